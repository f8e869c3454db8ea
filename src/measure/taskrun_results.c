/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of a task run in memory, and what they amount to. Must not know: engines. Only samples all of whose rows are
 * there count, so that every figure is paired.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/bootstrap.h"
#include "measure/taskrun_parts.h"

double kv_task_rounded(double v) {
    char text[40];
    if (!isfinite(v)) return NAN; /* JSON has neither infinities nor NaN: null */
    snprintf(text, sizeof text, "%.9g", v);
    return strtod(text, NULL);
}

kv_status kv_task_results_create(const kv_task_set *set, uint32_t n_policies, kv_task_results **out, kv_error *err) {
    size_t n = kv_task_count(set), rows = 0;
    kv_task_results *r = kv_calloc(1, sizeof *r);
    *out = NULL;
    if (!r) KV_FAIL(err, MEMORY, "no memory for results");
    r->set = set;
    r->n_policies = n_policies;
    r->n_samples = n;
    r->first = kv_calloc(n + 1, sizeof *r->first);
    r->done = kv_calloc(n * n_policies + 1, sizeof *r->done);
    for (size_t i = 0; r->first && i < n; i++) {
        r->first[i] = rows;
        rows += (size_t)n_policies * kv_task_at(set, i)->n_turns;
    }
    r->rows = kv_calloc(rows + 1, sizeof *r->rows);
    r->list = kv_calloc(rows + 1, sizeof *r->list);
    if (!r->first || !r->done || !r->rows || !r->list) {
        kv_task_results_free(&r);
        KV_FAIL(err, MEMORY, "no memory for %zu results", rows);
    }
    r->first[n] = rows;
    for (size_t i = 0; i < n; i++) {
        const kv_sample *s = kv_task_at(set, i);
        for (uint32_t p = 0; p < n_policies; p++)
            for (uint32_t t = 0; t < s->n_turns; t++)
                *kv_task_results_row(r, i, p, t) =
                    (kv_task_row){.id = s->id, .stratum = s->stratum, .policy = p, .turn = t, .score = NAN};
    }
    *out = r;
    return KVIST_OK;
}

void kv_task_results_free(kv_task_results **pr) {
    kv_task_results *r = *pr;
    if (!r) return;
    for (size_t i = 0; r->rows && r->first && i < r->first[r->n_samples]; i++) kv_free(r->rows[i].text);
    kv_free(r->first);
    kv_free(r->done);
    kv_free(r->rows);
    kv_free(r->list);
    kv_free(r);
    *pr = NULL;
}

kv_task_row *kv_task_results_row(kv_task_results *r, size_t sample, uint32_t policy, uint32_t turn) {
    return &r->rows[r->first[sample] + (size_t)policy * kv_task_at(r->set, sample)->n_turns + turn];
}

bool kv_task_results_whole(const kv_task_results *r, size_t sample) {
    uint32_t p = 0;
    while (p < r->n_policies && *kv_task_results_done(r, sample, p)) p++;
    return p == r->n_policies;
}

void kv_task_results_complete(kv_task_results *r) {
    r->n_list = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        if (!kv_task_results_whole(r, i)) continue;
        for (size_t k = r->first[i]; k < r->first[i + 1]; k++) r->list[r->n_list++] = k;
    }
}

size_t kv_task_results_count(const kv_task_results *r) { return r->n_list; }
const kv_task_row *kv_task_results_at(const kv_task_results *r, size_t i) {
    return i < r->n_list ? &r->rows[r->list[i]] : NULL;
}

/* ---------------------------------------------------------------- summary */

typedef struct gather {
    double *x, *base;   /* [n] */
    uint32_t *stratum;  /* [n] index into names */
    const char **names; /* [n_strata] */
    size_t n, n_rows;
    uint32_t n_strata;
    bool losses;
} gather;

static uint32_t stratum_index(gather *g, const char *name) {
    for (uint32_t i = g->n_strata; i-- > 0;) /* samples of a stratum mostly follow each other */
        if (!strcmp(g->names[i], name)) return i;
    g->names[g->n_strata] = name;
    return g->n_strata++;
}

static void add_row(gather *g, const kv_task_row *row, kv_task_summary *out) {
    out->share += row->share;
    out->tokens += row->tokens;
    if (!(row->mass_min >= out->mass_min)) out->mass_min = row->mass_min;
    out->looped += row->looped;
    out->share_unmet += !row->share_met;
    g->n_rows++;
}

static void add_sample(gather *g, const kv_task_results *r, size_t i, uint32_t policy, uint32_t base, uint32_t turn,
                       kv_task_summary *out) {
    const kv_sample *s = kv_task_at(r->set, i);
    double sums[2] = {0, 0};
    uint32_t n = 0;
    for (uint32_t t = 0; t < s->n_turns; t++) {
        if (turn != UINT32_MAX && turn != t) continue;
        const kv_task_row *row = &r->rows[r->first[i] + (size_t)policy * s->n_turns + t],
                          *other = &r->rows[r->first[i] + (size_t)base * s->n_turns + t];
        sums[0] += row->score;
        sums[1] += other->score;
        add_row(g, row, out);
        n++;
    }
    if (!n) return;
    if (!g->n) g->losses = s->metric == KV_METRIC_NLL;
    g->x[g->n] = sums[0] / n;
    g->base[g->n] = sums[1] / n;
    g->stratum[g->n++] = stratum_index(g, s->stratum);
}

/* Mean over strata of their means. */
static double macro_mean(const gather *g) {
    double total = 0;
    for (uint32_t s = 0; s < g->n_strata; s++) {
        double sum = 0;
        size_t n = 0;
        for (size_t i = 0; i < g->n; i++)
            if (g->stratum[i] == s) {
                sum += g->x[i];
                n++;
            }
        total += sum / (double)n;
    }
    return total / g->n_strata;
}

static void finish(const gather *g, uint64_t seed, kv_task_summary *out) {
    kv_paired p;
    kv_error ignored;
    if (kv_bootstrap_paired(g->x, g->base, g->stratum, g->n, g->n_strata,
                            g->losses ? KV_RATIO_OF_LOSSES : KV_RATIO_OF_MEANS, seed, &p, &ignored) != KVIST_OK)
        return;
    out->n = g->n;
    out->mean = p.mean.value;
    out->mean_low = p.mean.low;
    out->mean_high = p.mean.high;
    out->macro = macro_mean(g);
    out->ratio = p.ratio.value;
    out->ratio_low = p.ratio.low;
    out->ratio_high = p.ratio.high;
    out->share /= (double)g->n_rows;
    out->tokens /= (double)g->n_rows;
}

void kv_task_summarize(const kv_task_results *r, uint32_t policy, uint32_t base, const char *stratum, uint32_t turn,
                       uint64_t seed, kv_task_summary *out) {
    const kv_task_summary none = {0, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 0};
    gather g = {0};
    *out = (kv_task_summary){.mass_min = NAN};
    g.x = kv_calloc(r->n_samples + 1, sizeof *g.x);
    g.base = kv_calloc(r->n_samples + 1, sizeof *g.base);
    g.stratum = kv_calloc(r->n_samples + 1, sizeof *g.stratum);
    g.names = kv_calloc(r->n_samples + 1, sizeof *g.names);
    bool ok = g.x && g.base && g.stratum && g.names && policy < r->n_policies && base < r->n_policies;
    for (size_t i = 0; ok && i < r->n_samples; i++)
        if (kv_task_results_whole(r, i) && (!stratum || !strcmp(kv_task_at(r->set, i)->stratum, stratum)))
            add_sample(&g, r, i, policy, base, turn, out);
    if (g.n) finish(&g, seed, out);
    if (!out->n) *out = none; /* nothing to sum up, or no memory for it */
    kv_free(g.x);
    kv_free(g.base);
    kv_free(g.stratum);
    kv_free(g.names);
}
