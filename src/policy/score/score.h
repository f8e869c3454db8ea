/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores: how important each token of a stream is. A score is one method table in one file and one line in score.c.
 * Scores see numbers only: column sums that the second pass of attention made, never pages or models.
 */
#ifndef KV_POLICY_SCORE_H
#define KV_POLICY_SCORE_H

#include "policy/plan.h"

#define KV_SCORE_VERSION 1u

typedef struct kv_score_method {
    uint32_t version;
    uint8_t id;                      /* enum kv_score_id */
    const char *name;                /* as written in a policy */
    uint32_t pool;                   /* default of the key `pool` where this score is chosen */
    bool pool_all, group_after_pool; /* kv_layer_policy's, fixed by the score */
    void (*needs)(const kv_layer_policy *p, kv_score_need *out);
    /* As kv_score_finish. */
    void (*finish)(const kv_layer_policy *p, const float *sums, size_t stride, uint32_t group, uint32_t n_keys,
                   uint32_t cand0, uint32_t n_cand, float *score, float *scratch);
} kv_score_method;

/* By id; NULL when there is none. By name: NULL when not built. */
const kv_score_method *kv_score_at(uint32_t id);
const kv_score_method *kv_score_find(const char *name, size_t len);

/* y[i] = max of x over [i - width/2, i + width/2] cut at the ends; width odd; NaN is passed over (-inf when nothing
 * else is there). x and y must not overlap. */
void kv_score_max_pool(const float *x, uint32_t n, uint32_t width, float *y);
/* score[c] over the candidates: sums of the group's query heads and max-pooling in the order and over the keys that the
 * policy's pool_all and group_after_pool say. */
void kv_score_combine(const kv_layer_policy *p, const float *sums, size_t stride, uint32_t group, uint32_t n_keys,
                      uint32_t cand0, uint32_t n_cand, float *score, float *scratch);

extern const kv_score_method kv_score_attn, kv_score_vote, kv_score_vote2, kv_score_position;

#endif
