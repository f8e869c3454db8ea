/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Score `expected` (Expected Attention, Devoto et al. 2025, arXiv 2510.00636, section 3): the attention that queries
 * still to come will pay a key, if they are Gaussian with the moments of the prompt's queries before RoPE, turned by
 * the mean RoPE rotation of the next 512 positions. The logit of a key is the log of E exp(scale q.k) (kv_score_forms);
 * per query head a softmax over the run without its sinks, then the mean over the group, times |v|. No constant is
 * added before |v|: 0.02, which some settings of the method have, is eighty times the mean probability of 4,096 keys,
 * and kept tokens by |v| (docs/decisions.md).
 */
#include "policy/score/score.h"

#include <math.h>
#include <string.h>

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->forms = true;
}

/* Adds a query head's softmax over keys [cand0, n_keys), of the candidates, to score. NaN logits count as nothing in
 * the sum and make their own key's score NaN. e: [n_keys]. */
static void add_softmax(const kv_score_input *in, const float *logit, float *score, float *e) {
    float top = -INFINITY;
    double sum = 0;
    for (uint32_t i = in->cand0; i < in->n_keys; i++)
        if (logit[i] > top) top = logit[i];
    if (!(top > -INFINITY)) return;
    for (uint32_t i = in->cand0; i < in->n_keys; i++)
        if ((e[i] = expf(logit[i] - top)) >= 0) sum += (double)e[i];
    float scale = (float)(1 / sum);
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] += e[in->cand0 + i] * scale;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] = 0;
    for (uint32_t g = 0; g < in->group; g++) add_softmax(in, in->forms + g * in->forms_stride, score, scratch);
    kv_score_value_sums(in, in->cand0, in->n_cand, 2, scratch);
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] = score[i] / (float)in->group * sqrtf(scratch[i]);
    kv_score_pool(p, score, in->n_cand, scratch);
}

const kv_score_method kv_score_expected = {
    KV_SCORE_VERSION, KV_SCORE_EXPECTED, "expected", 1, false, false, true, needs, finish};

/* Channels (a, b) of rotation pair i. */
static void pair_of(const kv_score_rotation *r, uint32_t i, uint32_t *a, uint32_t *b) {
    *a = r->neox ? i : 2 * i;
    *b = r->neox ? i + r->n_rot / 2 : 2 * i + 1;
}

/* x <- R x for a vector with `step` floats between channels. */
static void turn(const kv_score_rotation *r, float *x, size_t step) {
    for (uint32_t i = 0; i < r->n_rot / 2; i++) {
        uint32_t a, b;
        pair_of(r, i, &a, &b);
        float u = x[a * step], w = x[b * step];
        x[a * step] = u * r->cos[i] - w * r->sin[i];
        x[b * step] = u * r->sin[i] + w * r->cos[i];
    }
}

void kv_score_forms(const kv_score_moments *m, const kv_score_rotation *r, uint32_t d, float scale, float *linear,
                    float *square) {
    memset(linear, 0, d * sizeof *linear);
    memset(square, 0, (size_t)d * d * sizeof *square);
    if (!m->n) return;
    double n = m->n;
    for (uint32_t i = 0; i < d; i++) {
        double mean_i = m->sum[i] / n;
        linear[i] = (float)(m->pivot[i] + mean_i);
        for (uint32_t j = 0; j <= i; j++) {
            float cov = (float)(m->outer[(size_t)i * d + j] / n - mean_i * (m->sum[j] / n));
            square[(size_t)i * d + j] = square[(size_t)j * d + i] = cov;
        }
    }
    turn(r, linear, 1);
    for (uint32_t i = 0; i < d; i++) turn(r, square + (size_t)i * d, 1); /* C R^T */
    for (uint32_t j = 0; j < d; j++) turn(r, square + j, d);             /* R C R^T */
    for (uint32_t i = 0; i < d; i++) {
        linear[i] *= scale;
        /* Below the diagonal once for both halves: k_i k_j appears twice in k^T C k. */
        for (uint32_t j = 0; j < d; j++)
            square[(size_t)i * d + j] *= j < i ? scale * scale : j == i ? scale * scale / 2 : 0;
    }
}
