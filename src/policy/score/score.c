/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of scores and what several of them share: group sums and max-pooling.
 * Invariant: sums run over query heads in ascending order, so a score is the same bits however it was computed before.
 */
#include "policy/score/score.h"

#include <math.h>
#include <string.h>

static const kv_score_method *const methods[KV_SCORES] = {
    [KV_SCORE_POSITION] = &kv_score_position,
    [KV_SCORE_ATTN] = &kv_score_attn,
    [KV_SCORE_VOTE] = &kv_score_vote,
    [KV_SCORE_VOTE2] = &kv_score_vote2,
};

const kv_score_method *kv_score_at(uint32_t id) { return id < KV_SCORES ? methods[id] : NULL; }

const kv_score_method *kv_score_find(const char *name, size_t len) {
    for (uint32_t i = 0; i < KV_SCORES; i++)
        if (strlen(methods[i]->name) == len && !memcmp(methods[i]->name, name, len)) return methods[i];
    return NULL;
}

void kv_score_max_pool(const float *x, uint32_t n, uint32_t width, float *y) {
    uint32_t half = width / 2;
    for (uint32_t i = 0; i < n; i++) y[i] = -INFINITY;
    for (uint32_t d = 0; d <= half && d < n; d++) {
        for (uint32_t i = 0; i + d < n; i++) y[i] = x[i + d] > y[i] ? x[i + d] : y[i];
        for (uint32_t i = d; i < n; i++) y[i] = x[i - d] > y[i] ? x[i - d] : y[i];
    }
}

/* One row [n] of a query head, pooled when asked for; the result is in the row itself or in tmp. */
static const float *pooled(const float *row, uint32_t n, uint32_t width, float *tmp) {
    if (width <= 1) return row;
    kv_score_max_pool(row, n, width, tmp);
    return tmp;
}

void kv_score_combine(const kv_layer_policy *p, const float *sums, size_t stride, uint32_t group, uint32_t n_keys,
                      uint32_t cand0, uint32_t n_cand, float *score, float *scratch) {
    /* The keys that pooling may look at, and where the candidates begin among them. */
    uint32_t from = p->pool_all ? 0 : cand0, n = p->pool_all ? n_keys : n_cand, at = cand0 - from;
    float *total = scratch, *tmp = scratch + n_keys;
    for (uint32_t i = 0; i < n; i++) total[i] = 0;
    for (uint32_t g = 0; g < group; g++) {
        const float *row = sums + g * stride + from;
        if (p->group_after_pool) row = pooled(row, n, p->pool, tmp);
        for (uint32_t i = 0; i < n; i++) total[i] += row[i];
    }
    const float *out = p->group_after_pool ? total : pooled(total, n, p->pool, tmp);
    memcpy(score, out + at, n_cand * sizeof *score);
}

void kv_score_finish(const kv_layer_policy *p, const float *sums, size_t stride, uint32_t group, uint32_t n_keys,
                     uint32_t cand0, uint32_t n_cand, float *score, float *scratch) {
    if (n_cand) methods[p->score]->finish(p, sums, stride, group, n_keys, cand0, n_cand, score, scratch);
}

void kv_score_needs(const kv_layer_policy *p, kv_score_need *out) {
    *out = (kv_score_need){.window = p->window, .stride = 1};
    methods[p->score]->needs(p, out);
}
