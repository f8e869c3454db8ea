/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How scores are asked for: what a score needs of a layer, what it is given, and one number a candidate. The scores
 * themselves are src/policy/score/, one file each. Numbers in, numbers out: no pages, no models.
 */
#ifndef KV_POLICY_SCORES_H
#define KV_POLICY_SCORES_H

#include "policy/policy.h"

/* What a score asks for. Column sums: of all rows or of the last `window`, of p or of p^2; echo: of the sync's rows read
 * once more behind themselves, all of them, and where votes > 0 of the last `window` as they are for keys before those,
 * times votes. Of every stride-th row. */
typedef struct kv_score_need {
    bool pass; /* column sums at all */
    bool all_rows, echo, square;
    bool forms; /* logits that the sync's mean query and its covariance give (kv_score_moments) */
    uint32_t window, stride;
    float votes;
} kv_score_need;
void kv_score_needs(const kv_layer_policy *p, kv_score_need *out);

/*
 * One stream's f16 run (tail, then the sync's rows) at a compression point: n_keys keys, run index i at position
 * first_pos + i, of which [cand0, cand0 + n_cand) are candidates. Arrays a score did not ask for may be NULL.
 */
#define KV_SCORE_MAX_DIM 256u /* the largest head dimension that is loaded (model/hparams.c) */
typedef struct kv_score_input {
    uint32_t layer, head;    /* KV head of the layer */
    uint32_t n_heads, group; /* KV heads of a layer, query heads a KV head */
    uint32_t first_pos;
    uint32_t n_keys, cand0, n_cand;
    const float *sums; /* [n_heads * group][stride]: column sums of all query heads of the layer */
    size_t stride;
    /* Copies rows [first, first + n) of the run out as f16: k[n][dk] after RoPE, v[n][dv]; either may be NULL. */
    void (*rows)(const void *run, uint32_t first, uint32_t n, uint16_t *k, uint16_t *v);
    const void *run;
    uint32_t dk, dv;    /* at most KV_SCORE_MAX_DIM */
    const float *forms; /* [group][forms_stride]: expected logits of the run's keys, this KV head's query heads */
    size_t forms_stride;
} kv_score_input;

/* score[n_cand], higher stays; never negative (pages add them up). scratch: [2 * n_keys]. */
void kv_score_stream(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch);

/*
 * Moments of a query head over the sync's rows before RoPE, and what Expected Attention makes of them: the mean query
 * and the covariance, rotated by the mean RoPE rotation over the next KV_SCORE_FUTURE positions.
 */
#define KV_SCORE_FUTURE 512u     /* kvpress, ExpectedAttentionPress.n_future_positions */
#define KV_SCORE_MOMENTS_FROM 4u /* first positions are outliers: kvpress, n_sink */

/* Rows counted n; pivot[d] is the first of them (differences keep f32 exact where biases are large); sum[d] of q -
 * pivot, outer[d][d] of (q - pivot)(q - pivot)^T, its lower triangle. */
typedef struct kv_score_moments {
    uint32_t n;
    float *pivot, *sum, *outer;
} kv_score_moments;
/* Mean RoPE rotation: pairs of channels turn by (cos, sin)[n_rot / 2]; neox: halves are pairs, else neighbours. */
typedef struct kv_score_rotation {
    const float *cos, *sin;
    uint32_t n_rot;
    bool neox;
} kv_score_rotation;
/* linear[d], square[d][d] (lower triangle) such that the expected logit of key k (Gaussian queries: the log of
 * E exp(scale q.k)) is linear.k + sum over i of k_i (square_ii k_i + sum over j < i of square_ij k_j):
 * scale mean.k + scale^2 / 2 k^T cov k. No rows: zeros. */
void kv_score_forms(const kv_score_moments *m, const kv_score_rotation *r, uint32_t d, float scale, float *linear,
                    float *square);

#endif
