/* SPDX-License-Identifier: Apache-2.0 */
/* Score `tova` (Oren et al. 2024, arXiv 2401.06104, section 3.2): the last query's p, summed over ALL query heads of
 * the layer, so that every KV head keeps the same tokens. The preset's window is 1; a wider one sums that many queries.
 */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->pass = true;
}

static void finish(const kv_layer_policy *p, const kv_score_input *in, float *score, float *scratch) {
    for (uint32_t i = 0; i < in->n_cand; i++) score[i] = 0;
    for (uint32_t q = 0; q < in->n_heads * in->group; q++) {
        const float *row = in->sums + q * in->stride + in->cand0;
        for (uint32_t i = 0; i < in->n_cand; i++) score[i] += row[i];
    }
    kv_score_pool(p, score, in->n_cand, scratch);
}

const kv_score_method kv_score_tova = {KV_SCORE_VERSION, KV_SCORE_TOVA, "tova", 1, false, false, true, needs, finish};
