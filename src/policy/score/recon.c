/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Score `recon` (after KVzip, Kim et al. 2025, arXiv 2505.23416, section 3): what a model needs of a context to say it
 * again. The sync's rows are read a second time behind themselves (engine/job.h, echo), and a key counts by the
 * attention that this reading pays it. No question votes, so it suits contexts that are compressed before the question
 * is known. KVzip takes the maximum over the second reading and the group; here it is the sum of squares of p, which
 * the passes make of any rows.
 */
#include "policy/score/score.h"

static void needs(const kv_layer_policy *p, kv_score_need *out) {
    out->pass = true;
    out->echo = true;
    out->square = true;
    out->stride = p->stride;
}

const kv_score_method kv_score_recon = {KV_SCORE_VERSION, KV_SCORE_RECON, "recon", 1, false, false, true, needs,
                                        kv_score_combine};
