/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs task samples through an engine under several policies, the prompt read once for all of them
 * (kvist_sync_many), and keeps one row per (sample, policy, turn). Works on the public interface only.
 *
 * What is read: context and question of a sample are tokenized apart, at the same boundary whether the question is
 * known when the context is compressed (one sync of both) or not (a sync of the context, a second one of the question),
 * so that both orders see the same ids. Where the sample says so and the model has a chat template of a known family,
 * both are the user's message in it. The answer is greedy; all policies decode as one batch, each with the bits it
 * would have alone. The next turn's question follows the policy's own answer in the same session. KV_METRIC_NLL samples
 * answer nothing: the reference is read on top of the cache and scored row by row.
 */
#ifndef KV_MEASURE_TASKRUN_H
#define KV_MEASURE_TASKRUN_H

#include <kvist/kvist.h>

#include "measure/task.h"
#include "measure/watch.h"

/* One answer. Written as a line of JSON; read back when a run is resumed. Numbers are kept to the nine digits that the
 * file holds, so that a resumed run has the very rows of an uninterrupted one. */
typedef struct kv_task_row {
    const char *id, *stratum; /* the sample's */
    uint32_t policy, turn;
    double score; /* kv_metric_score, or the mean NLL */
    double share; /* true bytes over f16 bytes when the context was compressed (after the question where known, and
                     after the question of every later turn) */
    uint64_t bytes_true;
    double mass_min;
    bool share_met;    /* false: the policy asks for a share that could not be met */
    uint32_t tokens;   /* answered, or of the reference */
    bool ended;        /* by an end token or a stop, not by max_new */
    bool looped;       /* ran into a loop of tokens: the rest up to max_new is the loop's, not decoded */
    uint32_t n_prompt; /* tokens before the answer */
    char *text;        /* the answer; owned by the results */
} kv_task_row;

typedef struct kv_task_results kv_task_results;

typedef struct kv_taskrun_params {
    const kv_task_set *set;      /* outlives the results */
    const char *const *policies; /* [n_policies]; paired over the same samples */
    uint32_t n_policies;         /* at most the engine's max_sessions */
    uint32_t n_ctx;       /* the engine's context: what does not fit is refused before anything is run; 0: unknown */
    bool agnostic;        /* the context is compressed before the question is seen */
    const char *out_path; /* JSONL, appended to; what it holds of a sample and a policy is not run again; NULL: none */
    const char *run_id;   /* lines "key=value" that must be equal to resume: model, task, parameters; refused
                             otherwise, naming the line that differs. When the context is compressed is added */
    kv_watch watch;
} kv_taskrun_params;

/* KVIST_E_CANCELLED: what was complete is in *out and in the file. Other failures: *out is NULL, the file keeps its
 * rows. */
kv_status kv_taskrun(kvist_model *model, kvist_engine *engine, const kv_taskrun_params *p, kv_task_results **out,
                     kv_error *err) KV_WARN_UNUSED;
void kv_task_results_free(kv_task_results **r);
size_t kv_task_results_count(const kv_task_results *r);
const kv_task_row *kv_task_results_at(const kv_task_results *r, size_t i); /* sample, then policy, then turn */

/* Cache memory (kvist_engine_params.kv_bytes) that holds one session of each policy at n_ctx tokens and the reading of
 * the prompt. An upper bound: estimates of measure/memory.h, with every layer of the largest of them in f16 once more.
 */
kv_status kv_taskrun_kv_bytes(const kvist_model_info *info, const char *const *policies, uint32_t n_policies,
                              uint32_t n_ctx, uint64_t *out, kv_error *err) KV_WARN_UNUSED;

/* Over the samples that are complete. Mean over strata's means would hide their sizes: `mean` is over samples (a
 * sample's score is the mean of its turns'), `macro` over strata. ratio: to policy `base`, with a 95 % interval by
 * paired bootstrap over samples (stratified, seeded; measure/bootstrap.h). Samples of KV_METRIC_NLL: mean and macro in
 * nats, ratio = exp(base's mean - mean), so that lower than 1 is worse as everywhere. n = 0: all NaN. */
typedef struct kv_task_summary {
    size_t n;
    double mean, mean_low, mean_high, macro;
    double ratio, ratio_low, ratio_high;
    double share, tokens;       /* means over rows */
    double mass_min;            /* the least of all rows */
    size_t looped, share_unmet; /* rows */
} kv_task_summary;
/* stratum NULL: all; turn UINT32_MAX: all. */
void kv_task_summarize(const kv_task_results *r, uint32_t policy, uint32_t base, const char *stratum, uint32_t turn,
                       uint64_t seed, kv_task_summary *out);

#endif
