/* SPDX-License-Identifier: Apache-2.0 */
/* Score `vote` (SnapKV): sums of p over the last `window` queries and the group, then max-pooled over the candidates:
 * the window's own keys are cut off before pooling. Pool 7 is SnapKV's LongBench setting; queries and heads are summed,
 * not averaged: the order is the same. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->pass = true;
}

const kv_score_method kv_score_vote = {KV_SCORE_VERSION, KV_SCORE_VOTE, "vote", 7, false, false, true, needs,
                                       kv_score_combine};
