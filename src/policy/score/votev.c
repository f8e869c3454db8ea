/* SPDX-License-Identifier: Apache-2.0 */
/* Score `votev`: `vote`, times the L1 norm of the token's value (VATP, Guo et al. 2024, arXiv 2406.12335, section 3:
 * what a token adds to the output is its probability times its value). Votes are pooled first; the norm is the token's
 * own. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->pass = true;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    kv_score_combine(p, in, score, scratch);
    kv_score_value_sums(in, in->cand0, in->n_cand, 1, scratch);
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] *= scratch[i];
}

const kv_score_method kv_score_votev = {
    KV_SCORE_VERSION, KV_SCORE_VOTEV, "votev", 7, false, false, true, needs, finish};
