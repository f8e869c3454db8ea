/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of `kvist sweep`:
 *   sweep.c        options, tasks as asked for, the order of work
 *   sweep_run.c    runs the points of a task through the engine, in groups that read a prompt once
 *   sweep_store.c  sweep.json: points and samples, so that a finished sweep is printed again without running
 *   sweep_print.c  the tables: md, csv, json
 *   sweep_plot.c   the Pareto plot by gnuplot
 */
#ifndef KV_CLI_SWEEP_H
#define KV_CLI_SWEEP_H

#include "cli/common.h"
#include "measure/sweep.h"

enum { SWEEP_TASKS = 16, SWEEP_SHARES = 16, SWEEP_TEXT = 1024, SWEEP_GROUP = KV_CLI_MAX_LIST - 1 };

/* --task NAME=FILE[;key=value...], as asked for. */
typedef struct sweep_spec {
    char text[SWEEP_TEXT];     /* storage of the strings below */
    char label[KV_SWEEP_NAME]; /* the name, "-2" behind the second of a name */
    const char *name, *path, *only;
    uint32_t limit, ctx, next, questions, lengths, depths, repeats; /* 0: not given */
    bool likelihood;
} sweep_spec;

typedef struct sweep {
    const cli_options *o;
    sweep_spec specs[SWEEP_TASKS];
    double shares[SWEEP_SHARES], floor;
    uint32_t n_specs, n_shares, n_points, n_tasks;
    uint64_t seed;
    bool agnostic;
    char model[KV_SWEEP_POLICY]; /* file's name and what it holds */
    kv_sweep_point *points;
    kv_sweep_task tasks[SWEEP_TASKS];
    kv_sweep_table table;
    cli_engine e;
} sweep;

extern const cli_command kv_cli_sweep;

/* "a.b,c" -> shares; false when there is anything else. */
bool kv_sweep_shares(const char *text, double *shares, uint32_t *n);
/* Reads "NAME=FILE[;limit=N][;ctx=N][;next=N][;questions=N][;lengths=N][;depths=N][;repeats=N]
 * [;only=A,B][;metric=nll][;label=L]". False with a reason. */
bool kv_sweep_spec(const char *text, sweep_spec *out, char *why, size_t cap);

/* Runs task i of the specs for all points; what another run left in the folder is not run again. */
int kv_sweep_run_task(sweep *s, uint32_t i);
/* FOLDER/NAME; false when it is too long. */
bool kv_sweep_path(const sweep *s, const char *name, char *buf, size_t cap);

int kv_sweep_save(const sweep *s);
int kv_sweep_load(sweep *s);

void kv_sweep_print(const sweep *s);
/* One row of the table as JSON; the caller's. */
json_t *kv_sweep_json_row(const sweep *s, uint32_t point);

/* Writes pareto.dat and pareto.gp into the folder and draws pareto.svg and pareto.png. */
void kv_sweep_plot(const sweep *s);

#endif
