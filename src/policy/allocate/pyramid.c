/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocator `pyramid` (MiniKV-Pyramid, PyramidKV): ranked tokens fall linearly over the layers from a (2 - 1/delta) in
 * the first to a / delta in the last, mean a. A layer that would pass its candidates is cut there and the rest goes to
 * the others in proportion, so that the total stays. Whole tokens: rounded down, and what rounding leaves goes one each
 * to the inner layers, so that the first and the last layer keep the paper's figures (a = 1024, delta = 7, 32 layers:
 * 1901 ... 146).
 */
#include "policy/allocate/allocate.h"

#include <math.h>

/* Layer l's real-valued share before cutting. */
static double line(double a, double delta, uint32_t l, uint32_t n_layers) {
    if (n_layers == 1) return a;
    double first = a * (2 - 1 / delta), last = a / delta;
    return first + (last - first) * l / (n_layers - 1);
}

/* f such that the layers' min(f * line, cap) tokens add up to total (streams counted). Cuts at least one layer more in
 * each round. */
static double factor(double a, double delta, const kv_plan_layer *layers, uint32_t n_layers, double cap, double total) {
    double f = 1;
    for (uint32_t round = 0; round <= n_layers; round++) {
        double cut = 0, open = 0;
        for (uint32_t l = 0; l < n_layers; l++) {
            double k = line(a, delta, l, n_layers);
            if (f * k >= cap)
                cut += cap * layers[l].n_streams;
            else
                open += k * layers[l].n_streams;
        }
        if (open <= 0 || cut + f * open >= total * (1 - 1e-12)) break;
        f = (total - cut) / open;
    }
    return f;
}

/* 1, 2, ..., n-2, 0, n-1. */
static uint32_t inner_first(uint32_t i, uint32_t n) {
    if (n <= 2) return i;
    return i + 2 < n ? i + 1 : i + 2 == n ? 0 : n - 1;
}

static void spread(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy) {
    uint64_t streams = 0, left;
    double sum = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        streams += layers[l].n_streams;
        sum += line(mean, p->delta, l, n_layers) * layers[l].n_streams;
    }
    /* Layers of unequal stream counts: scale the line so that its mean over streams is the budget. */
    double a = sum > 0 ? mean * (mean * (double)streams / sum) : 0, total = (double)mean * (double)streams;
    double f = factor(a, p->delta, layers, n_layers, cap, total);
    left = (uint64_t)mean * streams;
    for (uint32_t l = 0; l < n_layers; l++) {
        double k = f * line(a, p->delta, l, n_layers);
        heavy[l] = k >= cap ? cap : (uint32_t)floor(k + 1e-9 * k); /* 146.0 that came out as 145.999999 is 146 */
        uint64_t used = (uint64_t)heavy[l] * layers[l].n_streams;
        if (used > left)
            heavy[l] = layers[l].n_streams ? (uint32_t)(left / layers[l].n_streams) : 0,
            used = (uint64_t)heavy[l] * layers[l].n_streams;
        left -= used;
    }
    for (bool gave = true; gave && left;) {
        gave = false;
        for (uint32_t i = 0; i < n_layers; i++) {
            uint32_t l = inner_first(i, n_layers);
            if (heavy[l] >= cap || layers[l].n_streams == 0 || layers[l].n_streams > left) continue;
            heavy[l]++;
            left -= layers[l].n_streams;
            gave = true;
        }
    }
}

const kv_alloc_method kv_alloc_pyramid = {KV_ALLOC_VERSION, KV_ALLOC_PYRAMID, "pyramid", false, false, spread, NULL};
