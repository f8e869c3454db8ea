/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocator `mass`: each head keeps the smallest set of tokens that holds the same fraction of its score's sum, so
 * heads that look at few tokens keep few. The budget `mass` gives the fraction; under any other budget every layer gets
 * the same count of tokens, and the fraction is the largest for which its heads fit in (the least retained mass of the
 * layer is then as large as it can be). Scores that are not numbers or not positive hold nothing.
 */
#include "policy/allocate/allocate.h"

#include <math.h>
#include <stdlib.h>

/* Halvings of the fraction: 2^-50 of it is below one part in what f32 scores can tell. */
enum { HALVINGS = 50 };

static int falling(const void *x, const void *y) {
    float a = *(const float *)x, b = *(const float *)y;
    return a > b ? -1 : a < b;
}

/* sums[h][i] = mass of head h's best i + 1 tokens. */
static double *prefix_sums(const kv_alloc_scores *s) {
    double *sums = s->scratch;
    float *sorted = (float *)(sums + (size_t)s->n_streams * s->n);
    for (uint32_t h = 0; h < s->n_streams; h++) {
        double sum = 0;
        for (uint32_t i = 0; i < s->n; i++) {
            float x = s->score[h * s->stride + i];
            sorted[i] = x > 0 ? fminf(x, 1e30f) : 0; /* infinite masses are none */
        }
        qsort(sorted, s->n, sizeof *sorted, falling);
        for (uint32_t i = 0; i < s->n; i++) sums[(size_t)h * s->n + i] = sum += (double)sorted[i];
    }
    return sums;
}

/* Tokens of the smallest set that holds the fraction: the first i with sums[i - 1] >= fraction of the whole. A hair is
 * left to rounding, so that a fraction of 1 does not ask for tokens of no mass. */
static uint32_t smallest_set(const double *sums, uint32_t n, double fraction) {
    double want = sums[n - 1] * fraction * (1 - 1e-12);
    uint32_t low = 0, high = n;
    if (want <= 0) return 0;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (sums[mid] >= want)
            high = mid;
        else
            low = mid + 1;
    }
    return low + 1 < n ? low + 1 : n;
}

static uint64_t count_all(const kv_alloc_scores *s, const double *sums, double fraction, uint32_t *keep) {
    uint64_t total = 0;
    for (uint32_t h = 0; h < s->n_streams; h++)
        total += keep[h] = smallest_set(sums + (size_t)h * s->n, s->n, fraction);
    return total;
}

static void settle(const kv_policy *p, const kv_alloc_scores *s, uint64_t total, uint32_t *keep) {
    if (!s->n) {
        for (uint32_t h = 0; h < s->n_streams; h++) keep[h] = 0;
        return;
    }
    const double *sums = prefix_sums(s);
    if (p->budget_kind == KV_BUDGET_MASS) {
        (void)count_all(s, sums, p->budget, keep);
        return;
    }
    double low = 0, high = 1;
    if (count_all(s, sums, 1, keep) > total) {
        for (int i = 0; i < HALVINGS; i++) {
            double mid = (low + high) / 2;
            if (count_all(s, sums, mid, keep) <= total)
                low = mid;
            else
                high = mid;
        }
        total -= count_all(s, sums, low, keep);
    } else {
        total -= count_all(s, sums, 1, keep);
    }
    /* What equal scores and tokens of no mass leave over: one each, heads in order. */
    for (bool gave = true; gave && total;) {
        gave = false;
        for (uint32_t h = 0; h < s->n_streams && total; h++) {
            if (keep[h] >= s->n) continue;
            keep[h]++;
            total--;
            gave = true;
        }
    }
}

const kv_alloc_method kv_alloc_mass = {KV_ALLOC_VERSION, KV_ALLOC_MASS, "mass", false, true, kv_alloc_even, settle};
