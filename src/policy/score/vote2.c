/* SPDX-License-Identifier: Apache-2.0 */
/* Score `vote2` (KV-Compress): sums of p squared over the last `window` queries, max-pooled for each query head over
 * all keys (those of the window included: keys next to it inherit its local attention), then summed over the group. */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    (void)p;
    out->pass = true;
    out->square = true;
}

const kv_score_method kv_score_vote2 = {KV_SCORE_VERSION, KV_SCORE_VOTE2, "vote2", 7, true, true, true, needs,
                                        kv_score_combine};
