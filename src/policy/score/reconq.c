/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Score `reconq`: `recon`, and beside it the votes of the sync's last `window` rows for the keys before them, squared as
 * `vote2` takes them and each counted VOTES times. A question at a prompt's end is one or two of thousands of tokens
 * that the second reading says again; what it looks up is what the answer needs. Of no use where the question is not
 * there yet.
 */
#include "policy/score/score.h"

#define VOTES 16.0f /* docs/decisions.md */

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    kv_score_recon.needs(p, out);
    out->votes = VOTES;
}

const kv_score_method kv_score_reconq = {KV_SCORE_VERSION, KV_SCORE_RECONQ, "reconq", 1, false, false, true, needs,
                                         kv_score_combine};
