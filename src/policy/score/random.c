/* SPDX-License-Identifier: Apache-2.0 */
/* Score `random`: the control. A hash of position, layer and head, uniform in [0, 1) in steps of 2^-24: the same in
 * every run, another set in every head. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    (void)out;
}

/* The output function of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    uint64_t stream = mix((uint64_t)in->layer << 32 | in->head);
    for (uint32_t i = 0; i < in->n_cand; i++)
        score[i] = (float)(mix(stream ^ (in->first_pos + in->cand0 + i)) >> 40) * 5.9604644775390625e-8f; /* 2^-24 */
    kv_score_pool(p, score, in->n_cand, scratch);
}

const kv_score_method kv_score_random = {
    KV_SCORE_VERSION, KV_SCORE_RANDOM, "random", 1, false, false, false, needs, finish};
