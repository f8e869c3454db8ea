/* SPDX-License-Identifier: Apache-2.0 */
/* Score `vote2v`: `vote2`, times the squared L2 norm of the token's value: the squared length of what the token adds to
 * the output, p v, summed over the window's queries, where no pooling is asked for. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->pass = true;
    out->square = true;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    kv_score_combine(p, in, score, scratch);
    kv_score_value_sums(in, in->cand0, in->n_cand, 2, scratch);
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] *= scratch[i];
}

const kv_score_method kv_score_vote2v = {
    KV_SCORE_VERSION, KV_SCORE_VOTE2V, "vote2v", 7, true, true, true, needs, finish};
