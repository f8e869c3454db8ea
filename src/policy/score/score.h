/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores: how important each token of a stream is. A score is one method table in one file and one line in score.c.
 * Scores see numbers only (policy/scores.h), never pages or models.
 */
#ifndef KV_POLICY_SCORE_H
#define KV_POLICY_SCORE_H

#include "policy/scores.h"

#define KV_SCORE_VERSION 2u

typedef struct kv_score_method {
    uint32_t version;
    uint8_t id;                      /* enum kv_score_id */
    const char *name;                /* as written in a policy */
    uint32_t pool;                   /* default of the key `pool` where this score is chosen */
    bool pool_all, group_after_pool; /* kv_layer_policy's, fixed by the score */
    bool mass;                       /* an attention mass: fractions of its sum mean something (alloc=mass) */
    void (*needs)(const kv_layer_policy *p, kv_score_need *out);
    /* As kv_score_stream; n_cand > 0. */
    void (*finish)(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch);
} kv_score_method;

/* By id; NULL when there is none. By name: NULL when not built. */
const kv_score_method *kv_score_at(uint32_t id);
const kv_score_method *kv_score_find(const char *name, size_t len);
/* All names, comma separated, for messages; those of masses only. */
const char *kv_score_names(char *buf, size_t cap, bool masses);

/* y[i] = max of x over [i - width/2, i + width/2] cut at the ends; width odd; NaN is passed over (-inf when nothing
 * else is there). x and y must not overlap. */
void kv_score_max_pool(const float *x, uint32_t n, uint32_t width, float *y);
/* Pools a finished score over the candidates when the policy asks for it. tmp: [n]. */
void kv_score_pool(const kv_layer_policy *p, float *score, uint32_t n, float *tmp);
/* score[c] over the candidates: sums of the group's query heads and max-pooling in the order and over the keys that the
 * policy's pool_all and group_after_pool say. */
void kv_score_combine(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch);
/* out[i] = sum over the channels of key (or value) first + i of |x| (power 1) or x^2 (power 2), i < n. */
void kv_score_key_sums(const kv_score_input *in, uint32_t first, uint32_t n, uint32_t power, float *out);
void kv_score_value_sums(const kv_score_input *in, uint32_t first, uint32_t n, uint32_t power, float *out);
enum { KV_SCORE_ROWS = 32 }; /* rows of a run that are looked at together: 48 KiB at the largest head dimension */
/* f16 to f32. */
void kv_score_widen(const uint16_t *x, uint32_t n, float *y);

extern const kv_score_method kv_score_attn, kv_score_vote, kv_score_vote2, kv_score_position, kv_score_votev,
    kv_score_vote2v, kv_score_tova, kv_score_knorm, kv_score_keydiff, kv_score_expected, kv_score_random, kv_score_recon,
    kv_score_reconq;

#endif
