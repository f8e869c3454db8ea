/* SPDX-License-Identifier: Apache-2.0 */
/* Score `knorm` (Devoto et al. 2024, arXiv 2406.11430): keys of low L2 norm stay. 1 / |k| orders tokens as the paper's
 * -|k| does and can be added up over a page. A key of zeros comes first, at the largest finite number. */
#include "policy/score/score.h"

#include <float.h>
#include <math.h>

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    (void)out;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    kv_score_key_sums(in, in->cand0, in->n_cand, 2, score);
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] = score[i] == 0 ? FLT_MAX : 1 / sqrtf(score[i]);
    kv_score_pool(p, score, in->n_cand, scratch);
}

const kv_score_method kv_score_knorm = {
    KV_SCORE_VERSION, KV_SCORE_KNORM, "knorm", 1, false, false, false, needs, finish};
