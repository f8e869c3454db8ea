/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sweep: methods x byte shares x tasks. Owns which points there are, how they are cut into runs, and what their
 * samples say: intervals, Pareto fronts, the recommended policy at each share. Pure functions over data; must not know
 * engines, files or printing. Point 0 is always the base, `full`: every ratio is to it, on the same samples.
 */
#ifndef KV_MEASURE_SWEEP_H
#define KV_MEASURE_SWEEP_H

#include "base/err.h"

enum {
    KV_SWEEP_POLICY = 256, /* bytes of a policy text: kvist_report's */
    KV_SWEEP_NAME = 64,    /* bytes of a task's or a stratum's name */
    KV_SWEEP_PEERS = 8     /* named beside a recommended policy */
};
/* A true share counts as the asked one up to this factor (docs/policies.md, `share`). */
#define KV_SWEEP_SLACK 1.02
/* Below this share the newest f16 tokens take a large part of the bytes: recent=32 then, where a method keeps more. */
#define KV_SWEEP_NARROW 0.07
enum { KV_SWEEP_NARROW_RECENT = 32 };

/* ---- points */

typedef struct kv_sweep_point {
    char method[KV_SWEEP_POLICY]; /* as asked for, without a share */
    char policy[KV_SWEEP_POLICY]; /* ready for --kv */
    double asked;                 /* share; NAN: it stands at its own */
} kv_sweep_point;

/* Tells why a method of the default list, or a point that is another one in other words, was left out. */
typedef void (*kv_sweep_note_fn)(void *user, const char *policy, const char *why);

typedef struct kv_sweep_ask {
    const char *const *methods; /* policy texts without budget; n_methods 0: every preset and every format of `full` */
    uint32_t n_methods;
    const double *shares; /* above 0, at most 1, no two alike */
    uint32_t n_shares;
    kv_sweep_note_fn note; /* may be NULL */
    void *note_user;
} kv_sweep_ask;

/* Points in table order: the base; those that stand at their own share (evict nothing, or have a budget of their own)
 * in the order asked for; then by share, falling, and method. kv_free() the points. A method that neither meets a share
 * nor stands by itself is an error; in the default list it is left out with a note. */
kv_status kv_sweep_expand(const kv_sweep_ask *ask, kv_sweep_point **points, uint32_t *n, kv_error *err) KV_WARN_UNUSED;

/* Cuts points 1..n-1 into runs of neighbours that each read a prompt once: at most max_points each, as many as fit. A
 * point that does not fit alone makes a run of its own. fits: the base with points first..end-1. group[i] of point i;
 * group[0] is 0. Returns the number of groups. */
typedef bool (*kv_sweep_fits_fn)(void *user, uint32_t first, uint32_t end);
uint32_t kv_sweep_groups(uint32_t n, uint32_t max_points, kv_sweep_fits_fn fits, void *user, uint32_t *group);

/* ---- samples */

typedef enum kv_sweep_kind {
    KV_SWEEP_SCORE, /* value in 0..1; ratio = mean / mean of the base */
    KV_SWEEP_NLL,   /* value = mean negative log-likelihood; ratio = exp(mean of the base - mean): perplexities */
    KV_SWEEP_KLD    /* value = mean KL(base || point); ratio = exp(-mean): how likely, a token, the point finds what the
                       base would say, against the base itself */
} kv_sweep_kind;
const char *kv_sweep_kind_name(kv_sweep_kind k); /* "score" "nll" "kld" */

typedef struct kv_sweep_sample {
    double value; /* NAN: not run */
    double share; /* true bytes over f16 bytes */
    double mass_min;
    double nll, same_top1; /* kld only, else NAN */
} kv_sweep_sample;

typedef struct kv_sweep_task {
    char name[KV_SWEEP_NAME];
    kv_sweep_kind kind;
    uint32_t n_points, n, n_strata;
    char (*ids)[KV_SWEEP_NAME];    /* [n] */
    char (*strata)[KV_SWEEP_NAME]; /* [n_strata] */
    uint32_t *stratum;             /* [n] */
    kv_sweep_sample *v;            /* [n_points][n] */
} kv_sweep_task;

/* n samples, none run, one stratum "". */
kv_status kv_sweep_task_init(kv_sweep_task *t, const char *name, kv_sweep_kind kind, uint32_t n_points, uint32_t n,
                             kv_error *err) KV_WARN_UNUSED;
void kv_sweep_task_free(kv_sweep_task *t);
/* Sample i belongs to this stratum; longer names are cut. */
kv_status kv_sweep_task_stratum(kv_sweep_task *t, uint32_t i, const char *stratum, kv_error *err) KV_WARN_UNUSED;
/* The samples of one stratum as a task of that name. */
kv_status kv_sweep_task_split(const kv_sweep_task *t, uint32_t stratum, kv_sweep_task *out,
                              kv_error *err) KV_WARN_UNUSED;

/* ---- what they say */

typedef enum kv_sweep_verdict { KV_SWEEP_OPEN, KV_SWEEP_MET, KV_SWEEP_MISSED } kv_sweep_verdict;

/* One point in one task, over the samples that both it and the base have. Intervals: 95 %, stratified bootstrap over
 * samples, paired with the base (measure/resample.h); NAN below two samples. ratio: NAN where the base scores 0. */
typedef struct kv_sweep_cell {
    uint32_t n, n_met; /* samples; those whose true share is the asked one */
    double score, score_low, score_high;
    double ratio, ratio_low, ratio_high;
    double share, mass_min;
    double ppl_ratio, same_top1; /* kld only, else NAN */
    bool front;                  /* nothing is better in ratio at as few bytes, or as good at fewer */
    kv_sweep_verdict verdict;    /* non-inferiority: met when ratio_low >= floor, missed when ratio_high < floor */
} kv_sweep_cell;

/* One point: means over the tasks in which the base scores above 0; NAN while one of them has no sample of the point.
 */
typedef struct kv_sweep_row {
    double share, mass_min, ratio, ratio_low, ratio_high;
    uint32_t n, n_met;
    bool front;
    kv_sweep_verdict verdict; /* met: in all tasks; missed: in one */
} kv_sweep_row;

/* The recommended point at a share. Candidates: points whose mean true share is at most KV_SWEEP_SLACK x share. A
 * candidate is put aside when another one is certainly better in some task and itself certainly better in none
 * (certainly: the paired 95 % interval of the difference of ratios lies above 0). Of the others the highest mean ratio
 * is recommended; equal: fewer bytes, then the earlier point. Peers: candidates whose mean ratio is not certainly lower
 * than the recommended one's, best first. */
typedef struct kv_sweep_choice {
    double share;
    int32_t best; /* -1: no candidate */
    uint32_t n_peers, peers[KV_SWEEP_PEERS];
} kv_sweep_choice;

typedef struct kv_sweep_table {
    uint32_t n_points, n_tasks, n_choices;
    kv_sweep_cell *cells; /* [n_points][n_tasks] */
    kv_sweep_row *rows;   /* [n_points] */
    kv_sweep_choice *choices;
} kv_sweep_table;

typedef struct kv_sweep_rules {
    const double *shares; /* a choice each */
    uint32_t n_shares;
    double floor; /* of the ratio, for the verdicts */
    uint64_t seed;
} kv_sweep_rules;

kv_status kv_sweep_analyse(const kv_sweep_point *points, uint32_t n_points, const kv_sweep_task *tasks,
                           uint32_t n_tasks, const kv_sweep_rules *rules, kv_sweep_table *out,
                           kv_error *err) KV_WARN_UNUSED;
void kv_sweep_table_free(kv_sweep_table *t);
static inline const kv_sweep_cell *kv_sweep_at(const kv_sweep_table *t, uint32_t point, uint32_t task) {
    return &t->cells[point * t->n_tasks + task];
}

#endif
