/* SPDX-License-Identifier: Apache-2.0 */
/* Score `keydiff` (KeyDiff, Park et al. 2025, arXiv 2504.15364, section 3): keys that point away from the others stay.
 * The anchor is the mean of the normalized keys of the run; 1 - cos(k, anchor) orders tokens as the paper's -cos does
 * and can be added up over a page. A key without direction counts as cos = 0. */
#include "policy/score/score.h"

#include <assert.h>
#include <math.h>

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    (void)out;
}

/* anchor[dk] = sum of the run's keys, each times inverse[i] = 1 / |k|, in double: thousands are added up. */
static void sum_keys(const kv_score_input *in, const float *inverse, double *anchor) {
    uint16_t rows[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    float wide[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    for (uint32_t i = 0; i < in->n_keys; i += KV_SCORE_ROWS) {
        uint32_t m = in->n_keys - i < KV_SCORE_ROWS ? in->n_keys - i : KV_SCORE_ROWS;
        in->rows(in->run, i, m, rows, NULL);
        kv_score_widen(rows, m * in->dk, wide);
        for (uint32_t r = 0; r < m; r++) {
            const float *k = wide + (size_t)r * in->dk, scale = inverse[i + r];
            if (!(scale > 0)) continue;
            for (uint32_t c = 0; c < in->dk; c++) anchor[c] += (double)(scale * k[c]);
        }
    }
}

/* dot[i] = anchor . candidate i, in 8 stripes of ascending channels, then halves. */
static void dot_keys(const kv_score_input *in, const double *anchor, float *dot) {
    uint16_t rows[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    float wide[KV_SCORE_ROWS * KV_SCORE_MAX_DIM];
    for (uint32_t i = 0; i < in->n_cand; i += KV_SCORE_ROWS) {
        uint32_t m = in->n_cand - i < KV_SCORE_ROWS ? in->n_cand - i : KV_SCORE_ROWS;
        in->rows(in->run, in->cand0 + i, m, rows, NULL);
        kv_score_widen(rows, m * in->dk, wide);
        for (uint32_t r = 0; r < m; r++) {
            const float *k = wide + (size_t)r * in->dk;
            double lane[8] = {0};
            uint32_t c = 0;
            for (; c + 8 <= in->dk; c += 8)
                for (uint32_t e = 0; e < 8; e++) lane[e] += anchor[c + e] * (double)k[c + e];
            for (uint32_t e = 0; c + e < in->dk; e++) lane[e] += anchor[c + e] * (double)k[c + e];
            for (uint32_t half = 4; half; half /= 2)
                for (uint32_t e = 0; e < half; e++) lane[e] += lane[e + half];
            dot[i + r] = (float)lane[0];
        }
    }
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    double anchor[KV_SCORE_MAX_DIM] = {0}, square = 0;
    float *inverse = scratch;
    assert(in->dk <= KV_SCORE_MAX_DIM);
    kv_score_key_sums(in, 0, in->n_keys, 2, inverse);
    for (uint32_t i = 0; i < in->n_keys; i++) inverse[i] = inverse[i] == 0 ? 0 : 1 / sqrtf(inverse[i]);
    sum_keys(in, inverse, anchor);
    for (uint32_t c = 0; c < in->dk; c++) square += anchor[c] * anchor[c];
    double unit = square > 0 ? 1 / sqrt(square) : 0;
    for (uint32_t c = 0; c < in->dk; c++) anchor[c] *= unit;
    dot_keys(in, anchor, score);
    for (uint32_t i = 0; i < in->n_cand; i++) {
        float cos = score[i] * inverse[in->cand0 + i];
        score[i] = cos > 1 ? 0 : 1 - cos; /* rounding may pass 1 by a hair */
    }
    kv_score_pool(p, score, in->n_cand, scratch);
}

const kv_score_method kv_score_keydiff = {
    KV_SCORE_VERSION, KV_SCORE_KEYDIFF, "keydiff", 1, false, false, false, needs, finish};
