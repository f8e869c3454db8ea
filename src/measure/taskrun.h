/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs task samples through an engine under several policies, the prompt read once for all of them
 * (kvist_sync_many), and keeps one row per (sample, policy, turn). Works on the public interface only.
 */
#ifndef KV_MEASURE_TASKRUN_H
#define KV_MEASURE_TASKRUN_H

#include <kvist/kvist.h>

#include "measure/task.h"
#include "measure/watch.h"

/* One answer. Written as a line of JSON; read back when a run is resumed. */
typedef struct kv_task_row {
    const char *id, *stratum; /* the sample's */
    uint32_t policy, turn;
    double score;      /* kv_metric_score, or the mean NLL */
    double share;      /* true bytes over f16 bytes when the context was compressed (after the question where known) */
    uint64_t bytes_true;
    double mass_min;
    uint32_t tokens;   /* answered */
    bool ended;        /* by an end token or a stop, not by max_new */
    uint32_t n_prompt; /* tokens of context and question */
    char *text;        /* the answer; owned by the results */
} kv_task_row;

typedef struct kv_task_results kv_task_results;

typedef struct kv_taskrun_params {
    const kv_task_set *set;
    const char *const *policies; /* [n_policies]; paired over the same samples */
    uint32_t n_policies;
    bool agnostic;               /* the context is compressed before the question is seen */
    const char *out_path;        /* JSONL, appended to; rows found there are not run again; NULL: none */
    const char *run_id;          /* what must be equal to resume: model, task, parameters; refused otherwise */
    kv_watch watch;
} kv_taskrun_params;

kv_status kv_taskrun(kvist_model *model, kvist_engine *engine, const kv_taskrun_params *p, kv_task_results **out,
                     kv_error *err) KV_WARN_UNUSED;
void kv_task_results_free(kv_task_results **r);
size_t kv_task_results_count(const kv_task_results *r);
const kv_task_row *kv_task_results_at(const kv_task_results *r, size_t i); /* sample, then policy, then turn */

/* Mean over strata's means would hide their sizes: `mean` is over samples, `macro` over strata. ratio: to policy
 * `base`, with a 95 % interval by paired bootstrap over samples (stratified, seeded). */
typedef struct kv_task_summary {
    size_t n;
    double mean, mean_low, mean_high, macro;
    double ratio, ratio_low, ratio_high;
    double share, mass_min;
} kv_task_summary;
/* stratum NULL: all; turn UINT32_MAX: all. */
void kv_task_summarize(const kv_task_results *r, uint32_t policy, uint32_t base, const char *stratum, uint32_t turn,
                       uint64_t seed, kv_task_summary *out);

#endif
