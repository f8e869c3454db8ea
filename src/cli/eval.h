/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of `kvist eval`: the command (eval.c), a task's run (eval_task.c), its tables (eval_print.c). */
#ifndef KV_CLI_EVAL_H
#define KV_CLI_EVAL_H

#include "cli/common.h"
#include "measure/taskrun.h"

/* The first option given that only tasks have; NULL: none. */
const char *kv_eval_task_option(const cli_options *o);
int kv_eval_task(const cli_options *o, const char *task);

/* What a run came to; `full` is policy 0, the base. */
typedef struct eval_outcome {
    const cli_options *o;
    const char *task;
    const kv_task_set *set;
    const kv_task_results *results;
    const char *const *policies; /* [n_policies] as given */
    uint32_t n_policies;
    uint64_t seed;
    size_t n_done; /* samples complete */
} eval_outcome;
/* Markdown, CSV or JSON lines on standard output, as -o and --json say. */
void kv_eval_print(const eval_outcome *r);

#endif
