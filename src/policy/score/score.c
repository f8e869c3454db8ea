/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of scores and what several of them share: group sums and max-pooling.
 * Invariant: sums run over query heads in ascending order, so a score is the same bits however it was computed before.
 */
#include "policy/score/score.h"

#include "base/half.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const kv_score_method *const methods[KV_SCORES] = {
    [KV_SCORE_POSITION] = &kv_score_position, [KV_SCORE_ATTN] = &kv_score_attn,
    [KV_SCORE_VOTE] = &kv_score_vote,         [KV_SCORE_VOTE2] = &kv_score_vote2,
    [KV_SCORE_VOTEV] = &kv_score_votev,       [KV_SCORE_VOTE2V] = &kv_score_vote2v,
    [KV_SCORE_TOVA] = &kv_score_tova,         [KV_SCORE_KNORM] = &kv_score_knorm,
    [KV_SCORE_KEYDIFF] = &kv_score_keydiff,   [KV_SCORE_EXPECTED] = &kv_score_expected,
    [KV_SCORE_RANDOM] = &kv_score_random,     [KV_SCORE_RECON] = &kv_score_recon,
    [KV_SCORE_RECONQ] = &kv_score_reconq,
};

const kv_score_method *kv_score_at(uint32_t id) { return id < KV_SCORES ? methods[id] : NULL; }

const kv_score_method *kv_score_find(const char *name, size_t len) {
    for (uint32_t i = 0; i < KV_SCORES; i++)
        if (strlen(methods[i]->name) == len && !memcmp(methods[i]->name, name, len)) return methods[i];
    return NULL;
}

const char *kv_score_names(char *buf, size_t cap, bool masses) {
    size_t at = 0;
    if (cap) buf[0] = 0;
    for (uint32_t i = 0; i < KV_SCORES; i++) {
        if (masses && !methods[i]->mass) continue;
        int n = snprintf(buf + at, cap - at, "%s%s", at ? ", " : "", methods[i]->name);
        if (n < 0 || (size_t)n >= cap - at) break;
        at += (size_t)n;
    }
    return buf;
}

void kv_score_max_pool(const float *x, uint32_t n, uint32_t width, float *y) {
    uint32_t half = width / 2;
    for (uint32_t i = 0; i < n; i++) y[i] = -INFINITY;
    for (uint32_t d = 0; d <= half && d < n; d++) {
        for (uint32_t i = 0; i + d < n; i++) y[i] = x[i + d] > y[i] ? x[i + d] : y[i];
        for (uint32_t i = d; i < n; i++) y[i] = x[i - d] > y[i] ? x[i - d] : y[i];
    }
}

void kv_score_pool(const kv_layer_policy *p, float *score, uint32_t n, float *tmp) {
    if (p->pool <= 1) return;
    kv_score_max_pool(score, n, p->pool, tmp);
    memcpy(score, tmp, n * sizeof *score);
}

/* One row [n] of a query head, pooled when asked for; the result is in the row itself or in tmp. */
static const float *pooled(const float *row, uint32_t n, uint32_t width, float *tmp) {
    if (width <= 1) return row;
    kv_score_max_pool(row, n, width, tmp);
    return tmp;
}

void kv_score_combine(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    /* The keys that pooling may look at, and where the candidates begin among them. */
    uint32_t from = p->pool_all ? 0 : in->cand0, n = p->pool_all ? in->n_keys : in->n_cand, at = in->cand0 - from;
    float *total = scratch, *tmp = scratch + in->n_keys;
    for (uint32_t i = 0; i < n; i++) total[i] = 0;
    for (uint32_t g = 0; g < in->group; g++) {
        const float *row = in->sums + ((size_t)in->head * in->group + g) * in->stride + from;
        if (p->group_after_pool) row = pooled(row, n, p->pool, tmp);
        for (uint32_t i = 0; i < n; i++) total[i] += row[i];
    }
    const float *out = p->group_after_pool ? total : pooled(total, n, p->pool, tmp);
    memcpy(score, out + at, in->n_cand * sizeof *score);
}

/* Loops without branches, so that the compiler makes vectors of them; infinities and NaN stay what they are. */
void kv_score_widen(const uint16_t *x, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t h = x[i], top = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
        float f = kv_bits_f32((h & 0x7fffu) << 13) * 0x1p112f; /* the exponent's bias, 127 - 15; exact */
        y[i] = kv_bits_f32(kv_f32_bits(f) | top | (h & 0x8000u) << 16);
    }
}

/* In 16 stripes of ascending channels, then halves. */
static float row_sum(const float *x, uint32_t n, bool square) {
    float lane[16] = {0};
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (uint32_t c = 0; c < 16; c++) lane[c] += square ? x[i + c] * x[i + c] : fabsf(x[i + c]);
    for (uint32_t c = 0; i + c < n; c++) lane[c] += square ? x[i + c] * x[i + c] : fabsf(x[i + c]);
    for (uint32_t half = 8; half; half /= 2)
        for (uint32_t c = 0; c < half; c++) lane[c] += lane[c + half];
    return lane[0];
}

static void row_sums(const kv_score_input *in, bool values, uint32_t first, uint32_t n, uint32_t power, float *out) {
    uint16_t rows[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    float wide[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    uint32_t d = values ? in->dv : in->dk;
    for (uint32_t i = 0; i < n; i += KV_SCORE_ROWS) {
        uint32_t m = n - i < KV_SCORE_ROWS ? n - i : KV_SCORE_ROWS;
        in->rows(in->run, first + i, m, values ? NULL : rows, values ? rows : NULL);
        kv_score_widen(rows, m * d, wide);
        for (uint32_t r = 0; r < m; r++) out[i + r] = row_sum(wide + (size_t)r * d, d, power == 2);
    }
}

void kv_score_key_sums(const kv_score_input *in, uint32_t first, uint32_t n, uint32_t power, float *out) {
    row_sums(in, false, first, n, power, out);
}

void kv_score_value_sums(const kv_score_input *in, uint32_t first, uint32_t n, uint32_t power, float *out) {
    row_sums(in, true, first, n, power, out);
}

void kv_score_stream(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    if (in->n_cand) methods[p->score]->finish(p, in, score, scratch);
}

void kv_score_needs(const kv_layer_policy *p, kv_score_need *out) {
    *out = (kv_score_need){.window = p->window, .stride = 1};
    methods[p->score]->needs(p, out);
}
