/* SPDX-License-Identifier: Apache-2.0 */
/* Score `attn` (H2O, MiniKV): column sums of p over all queries of the sync, or every stride-th, summed over the group.
 * Raw sums: early tokens, which more queries see, are favoured, as in the papers. No pooling unless `pool` says so
 * (then over the candidates). */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    out->pass = true;
    out->all_rows = true;
    out->stride = p->stride;
}

const kv_score_method kv_score_attn = {KV_SCORE_VERSION, KV_SCORE_ATTN, "attn", 1, false, false, true, needs,
                                       kv_score_combine};
