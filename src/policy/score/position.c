/* SPDX-License-Identifier: Apache-2.0 */
/* Score `position` (StreamingLLM): newer is better. Exact in f32 up to 2^24 candidates. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    (void)out;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    (void)p, (void)scratch;
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] = (float)(in->cand0 + i);
}

const kv_score_method kv_score_position = {
    KV_SCORE_VERSION, KV_SCORE_POSITION, "position", 1, false, false, false, needs, finish};
