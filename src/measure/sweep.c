/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Samples of a sweep into cells, fronts and choices; see sweep.h. One bootstrap draw serves all points of a task, so
 * that any two points are compared on the same resampled texts. Results are a function of (samples, seed): no thread,
 * no clock.
 */
#include "measure/sweep.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/resample.h"

enum { B = KV_RESAMPLES };

/* ---------------------------------------------------------------- tasks */

const char *kv_sweep_kind_name(kv_sweep_kind k) {
    return k == KV_SWEEP_NLL ? "nll" : k == KV_SWEEP_KLD ? "kld" : "score";
}

static const kv_sweep_sample absent = {NAN, NAN, NAN, NAN, NAN};

kv_status kv_sweep_task_init(kv_sweep_task *t, const char *name, kv_sweep_kind kind, uint32_t n_points, uint32_t n,
                             kv_error *err) {
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->kind = kind;
    t->n_points = n_points;
    t->n = n;
    t->n_strata = 1;
    t->ids = kv_calloc(n ? n : 1, sizeof *t->ids);
    t->strata = kv_calloc(1, sizeof *t->strata);
    t->stratum = kv_calloc(n ? n : 1, sizeof *t->stratum);
    t->v = kv_calloc((size_t)n_points * n + 1, sizeof *t->v);
    if (!t->ids || !t->strata || !t->stratum || !t->v) {
        kv_sweep_task_free(t);
        KV_FAIL(err, MEMORY, "%u samples of %u points", n, n_points);
    }
    for (size_t i = 0; i < (size_t)n_points * n; i++) t->v[i] = absent;
    return KVIST_OK;
}

void kv_sweep_task_free(kv_sweep_task *t) {
    kv_free(t->ids);
    kv_free(t->strata);
    kv_free(t->stratum);
    kv_free(t->v);
    t->ids = t->strata = NULL;
    t->stratum = NULL;
    t->v = NULL;
    t->n = t->n_strata = 0;
}

kv_status kv_sweep_task_stratum(kv_sweep_task *t, uint32_t i, const char *stratum, kv_error *err) {
    char name[KV_SWEEP_NAME];
    snprintf(name, sizeof name, "%s", stratum ? stratum : "");
    uint32_t at = 0;
    while (at < t->n_strata && strcmp(t->strata[at], name)) at++;
    if (at == t->n_strata) {
        void *p = kv_realloc(t->strata, (t->n_strata + 1) * sizeof *t->strata);
        if (!p) KV_FAIL(err, MEMORY, "%u strata", t->n_strata + 1);
        t->strata = p;
        memcpy(t->strata[t->n_strata++], name, sizeof name);
    }
    t->stratum[i] = at;
    return KVIST_OK;
}

kv_status kv_sweep_task_split(const kv_sweep_task *t, uint32_t stratum, kv_sweep_task *out, kv_error *err) {
    uint32_t n = 0, k = 0;
    for (uint32_t i = 0; i < t->n; i++) n += t->stratum[i] == stratum;
    KV_TRY(kv_sweep_task_init(out, t->strata[stratum], t->kind, t->n_points, n, err));
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->stratum[i] != stratum) continue;
        memcpy(out->ids[k], t->ids[i], sizeof *out->ids);
        for (uint32_t p = 0; p < t->n_points; p++) out->v[(size_t)p * n + k] = t->v[(size_t)p * t->n + i];
        k++;
    }
    return KVIST_OK;
}

/* ---------------------------------------------------------------- one task */

static double ratio_of(kv_sweep_kind kind, double mean, double base) {
    switch (kind) {
    case KV_SWEEP_NLL:
        return exp(base - mean);
    case KV_SWEEP_KLD:
        return exp(-mean);
    default:
        return base > 0 ? mean / base : NAN;
    }
}

/* Means of a point over the samples that both it and the base have, sample i counting w[i]. */
typedef struct estimate {
    double mean, ratio;
} estimate;
static estimate estimate_of(const kv_sweep_task *t, uint32_t point, const double *w) {
    const kv_sweep_sample *v = t->v + (size_t)point * t->n, *base = t->v;
    double sum = 0, base_sum = 0, weight = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        if (w[i] <= 0 || isnan(v[i].value) || isnan(base[i].value)) continue;
        sum += w[i] * v[i].value;
        base_sum += w[i] * base[i].value;
        weight += w[i];
    }
    if (weight <= 0) return (estimate){NAN, NAN};
    return (estimate){sum / weight, ratio_of(t->kind, sum / weight, base_sum / weight)};
}

static void means(const kv_sweep_task *t, const kv_sweep_point *p, uint32_t point, kv_sweep_cell *c) {
    const kv_sweep_sample *v = t->v + (size_t)point * t->n, *base = t->v;
    double share = 0, mass = 0, nll = 0, top = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        if (isnan(v[i].value) || isnan(base[i].value)) continue;
        c->n++;
        c->n_met += isnan(p->asked) || v[i].share <= p->asked * KV_SWEEP_SLACK;
        share += v[i].share;
        mass += v[i].mass_min;
        nll += v[i].nll - base[i].nll;
        top += v[i].same_top1;
    }
    c->share = c->n ? share / c->n : NAN;
    c->mass_min = c->n ? mass / c->n : NAN;
    c->ppl_ratio = c->n && t->kind == KV_SWEEP_KLD ? exp(nll / c->n) : NAN;
    c->same_top1 = c->n && t->kind == KV_SWEEP_KLD ? top / c->n : NAN;
}

static void plain_cells(const kv_sweep_task *t, const kv_sweep_point *points, const double *ones, kv_sweep_cell *cells,
                        uint32_t n_tasks) {
    for (uint32_t p = 0; p < t->n_points; p++) {
        kv_sweep_cell *c = &cells[(size_t)p * n_tasks];
        estimate e = estimate_of(t, p, ones);
        means(t, &points[p], p, c);
        c->score = e.mean;
        c->ratio = e.ratio;
    }
}

static void intervals(const kv_sweep_task *t, double *scores, const double *reps, double *sorted, double floor,
                      kv_sweep_cell *cells, uint32_t n_tasks) {
    for (uint32_t p = 0; p < t->n_points; p++) {
        kv_sweep_cell *c = &cells[(size_t)p * n_tasks];
        kv_resample_interval(scores + (size_t)p * B, &c->score_low, &c->score_high);
        memcpy(sorted, reps + (size_t)p * B, B * sizeof *sorted);
        kv_resample_interval(sorted, &c->ratio_low, &c->ratio_high);
        c->verdict = c->ratio_low >= floor ? KV_SWEEP_MET : c->ratio_high < floor ? KV_SWEEP_MISSED : KV_SWEEP_OPEN;
    }
}

/* Cells of a task (every n_tasks-th of cells[]), and the replicates of their ratios: reps[n_points][B]. */
static kv_status one_task(const kv_sweep_task *t, const kv_sweep_point *points, const kv_sweep_rules *rules,
                          kv_sweep_cell *cells, uint32_t n_tasks, double *reps, kv_error *err) {
    kv_resampler *r = NULL;
    double *w = kv_malloc((t->n + 1) * sizeof *w), *sorted = kv_malloc(B * sizeof *sorted);
    double *scores = kv_malloc((size_t)t->n_points * B * sizeof *scores);
    kv_status st = w && sorted && scores ? kv_resampler_create(t->stratum, t->n, t->n_strata, rules->seed, &r, err)
                                         : kv_fail(err, KVIST_E_MEMORY, "%d resamples of %u points", B, t->n_points);
    if (st == KVIST_OK) {
        for (uint32_t i = 0; i < t->n; i++) w[i] = 1;
        plain_cells(t, points, w, cells, n_tasks);
        for (uint32_t b = 0; b < B; b++) {
            kv_resampler_weights(r, w);
            for (uint32_t p = 0; p < t->n_points; p++) {
                estimate e = estimate_of(t, p, w);
                scores[(size_t)p * B + b] = e.mean;
                reps[(size_t)p * B + b] = e.ratio;
            }
        }
        intervals(t, scores, reps, sorted, rules->floor, cells, n_tasks);
    }
    kv_resampler_free(&r);
    kv_free(w);
    kv_free(sorted);
    kv_free(scores);
    return st;
}

/* ---------------------------------------------------------------- all tasks */

/* Better in one of bytes and ratio, and in neither worse. */
static bool dominates(double share, double ratio, double than_share, double than_ratio) {
    return share <= than_share && ratio >= than_ratio && (share < than_share || ratio > than_ratio);
}

static void fronts(kv_sweep_table *t) {
    for (uint32_t k = 0; k <= t->n_tasks; k++) /* k = n_tasks: the means */
        for (uint32_t p = 0; p < t->n_points; p++) {
            kv_sweep_cell *c = k < t->n_tasks ? &t->cells[p * t->n_tasks + k] : NULL;
            double share = c ? c->share : t->rows[p].share, ratio = c ? c->ratio : t->rows[p].ratio;
            bool front = !isnan(share) && !isnan(ratio);
            for (uint32_t q = 0; front && q < t->n_points; q++) {
                const kv_sweep_cell *d = c ? kv_sweep_at(t, q, k) : NULL;
                front = !dominates(d ? d->share : t->rows[q].share, d ? d->ratio : t->rows[q].ratio, share, ratio);
            }
            *(c ? &c->front : &t->rows[p].front) = front;
        }
}

static void row(kv_sweep_table *t, uint32_t p, const double *reps, double *mean_reps, double *sorted) {
    kv_sweep_row *r = &t->rows[p];
    uint32_t met = 0, missed = 0, used = 0;
    memset(mean_reps, 0, B * sizeof *mean_reps);
    for (uint32_t k = 0; k < t->n_tasks; k++) {
        if (isnan(kv_sweep_at(t, 0, k)->ratio)) continue; /* the base scores 0: nothing to compare with */
        const kv_sweep_cell *c = kv_sweep_at(t, p, k);
        const double *x = reps + ((size_t)k * t->n_points + p) * B;
        r->share += c->share;
        r->mass_min += c->mass_min;
        r->ratio += c->ratio;
        r->n += c->n;
        r->n_met += c->n_met;
        met += c->verdict == KV_SWEEP_MET;
        missed += c->verdict == KV_SWEEP_MISSED;
        used++;
        for (uint32_t b = 0; b < B; b++) mean_reps[b] += x[b];
    }
    double scale = used ? 1. / used : NAN;
    for (uint32_t b = 0; b < B; b++) mean_reps[b] *= scale;
    r->share *= scale;
    r->mass_min *= scale;
    r->ratio *= scale;
    r->verdict = missed ? KV_SWEEP_MISSED : used && met == used ? KV_SWEEP_MET : KV_SWEEP_OPEN;
    memcpy(sorted, mean_reps, B * sizeof *sorted);
    kv_resample_interval(sorted, &r->ratio_low, &r->ratio_high);
}

/* Whether a is above b in at least 97.5 % of the resamples: the paired 95 % interval of a - b lies above 0. */
static bool certainly_above(const double *a, const double *b) {
    uint32_t above = 0;
    for (uint32_t i = 0; i < B; i++) above += a[i] > b[i]; /* false with NAN */
    return above >= .975 * B;
}

typedef struct judge {
    const kv_sweep_table *t;
    const double *reps, *mean_reps;
} judge;

static bool better_somewhere(const judge *j, uint32_t a, uint32_t b) {
    for (uint32_t k = 0; k < j->t->n_tasks; k++) {
        const double *x = j->reps + (size_t)k * j->t->n_points * B;
        if (certainly_above(x + (size_t)a * B, x + (size_t)b * B)) return true;
    }
    return false;
}

static bool candidate(const kv_sweep_table *t, uint32_t p, double share) {
    return !isnan(t->rows[p].ratio) && t->rows[p].share <= share * KV_SWEEP_SLACK;
}

static bool put_aside(const judge *j, uint32_t p, double share) {
    for (uint32_t q = 0; q < j->t->n_points; q++)
        if (q != p && candidate(j->t, q, share) && better_somewhere(j, q, p) && !better_somewhere(j, p, q)) return true;
    return false;
}

/* Higher mean ratio first; equal: fewer bytes, then the earlier point. */
static bool before(const kv_sweep_table *t, uint32_t a, uint32_t b) {
    const kv_sweep_row *x = &t->rows[a], *y = &t->rows[b];
    if (x->ratio != y->ratio) return x->ratio > y->ratio;
    return x->share != y->share ? x->share < y->share : a < b;
}

/* order[]: all candidates, `before` first. */
static void choose(const judge *j, double share, uint32_t *order, kv_sweep_choice *c) {
    const kv_sweep_table *t = j->t;
    uint32_t n = 0;
    c->share = share;
    c->best = -1;
    for (uint32_t p = 0; p < t->n_points; p++) {
        if (!candidate(t, p, share)) continue;
        uint32_t at = n++;
        for (; at && before(t, p, order[at - 1]); at--) order[at] = order[at - 1];
        order[at] = p;
    }
    for (uint32_t i = 0; i < n && c->best < 0; i++)
        if (!put_aside(j, order[i], share)) c->best = (int32_t)order[i];
    if (c->best < 0 && n) c->best = (int32_t)order[0]; /* each beaten by another, in a circle */
    for (uint32_t i = 0; i < n && c->n_peers < KV_SWEEP_PEERS; i++)
        if ((int32_t)order[i] != c->best &&
            !certainly_above(j->mean_reps + (size_t)c->best * B, j->mean_reps + (size_t)order[i] * B))
            c->peers[c->n_peers++] = order[i];
}

static kv_status analyse(const kv_sweep_point *points, const kv_sweep_task *tasks, const kv_sweep_rules *rules,
                         kv_sweep_table *t, double *reps, double *mean_reps, kv_error *err) {
    for (uint32_t k = 0; k < t->n_tasks; k++)
        KV_TRY(one_task(&tasks[k], points, rules, t->cells + k, t->n_tasks, reps + (size_t)k * t->n_points * B, err));
    double *sorted = kv_malloc(B * sizeof *sorted);
    uint32_t *order = kv_calloc(t->n_points, sizeof *order);
    if (sorted && order) {
        judge j = {t, reps, mean_reps};
        for (uint32_t p = 0; p < t->n_points; p++) row(t, p, reps, mean_reps + (size_t)p * B, sorted);
        fronts(t);
        for (uint32_t i = 0; i < t->n_choices; i++) choose(&j, rules->shares[i], order, &t->choices[i]);
    }
    bool ok = sorted && order;
    kv_free(sorted);
    kv_free(order);
    if (!ok) KV_FAIL(err, MEMORY, "a table of %u points", t->n_points);
    return KVIST_OK;
}

kv_status kv_sweep_analyse(const kv_sweep_point *points, uint32_t n_points, const kv_sweep_task *tasks,
                           uint32_t n_tasks, const kv_sweep_rules *rules, kv_sweep_table *out, kv_error *err) {
    memset(out, 0, sizeof *out);
    if (!n_points || !n_tasks) KV_FAIL(err, ARG, "a sweep of %u points and %u tasks", n_points, n_tasks);
    for (uint32_t k = 0; k < n_tasks; k++)
        if (tasks[k].n_points != n_points)
            KV_FAIL(err, ARG, "task '%s' has %u points, the sweep %u", tasks[k].name, tasks[k].n_points, n_points);
    out->n_points = n_points;
    out->n_tasks = n_tasks;
    out->n_choices = rules->n_shares;
    out->cells = kv_calloc((size_t)n_points * n_tasks, sizeof *out->cells);
    out->rows = kv_calloc(n_points, sizeof *out->rows);
    out->choices = kv_calloc(rules->n_shares + 1, sizeof *out->choices);
    double *reps = kv_malloc((size_t)n_tasks * n_points * B * sizeof *reps);
    double *mean_reps = kv_malloc((size_t)n_points * B * sizeof *mean_reps);
    kv_status st = out->cells && out->rows && out->choices && reps && mean_reps
                       ? analyse(points, tasks, rules, out, reps, mean_reps, err)
                       : kv_fail(err, KVIST_E_MEMORY, "%u points x %u tasks", n_points, n_tasks);
    kv_free(reps);
    kv_free(mean_reps);
    if (st != KVIST_OK) kv_sweep_table_free(out);
    return st;
}

void kv_sweep_table_free(kv_sweep_table *t) {
    kv_free(t->cells);
    kv_free(t->rows);
    kv_free(t->choices);
    memset(t, 0, sizeof *t);
}
