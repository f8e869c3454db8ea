/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an evaluation task came to: a table of policies, by part of the task and by turn where asked for, and needle's
 * map of depth against length. Scores are printed in 0..100 and losses as perplexities; JSON has the raw numbers.
 */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/eval.h"
#include "measure/resample.h"
#include "policy/policy.h"

/* One line: all of a policy, or a part or a turn of it. */
typedef struct line {
    const char *stratum;   /* NULL: all */
    uint32_t policy, turn; /* UINT32_MAX: all */
    kv_task_summary s;
} line;

typedef struct lines {
    line *v;
    size_t n;
    bool by_stratum, by_turn, loss; /* loss: scores are negative log-likelihoods */
} lines;

static bool wants(const eval_outcome *r, const char *format) {
    return (r->o->output && !strcmp(r->o->output, format)) || (!strcmp(format, "json") && r->o->json);
}

/* ---------------------------------------------------------------- lines */

static void add_lines(const eval_outcome *r, lines *l, const char *stratum, uint32_t turn) {
    for (uint32_t p = 0; p < r->n_policies; p++) {
        line *at = &l->v[l->n];
        *at = (line){.stratum = stratum, .policy = p, .turn = turn};
        kv_task_summarize(r->results, p, 0, stratum, turn, r->seed, &at->s);
        if (at->s.n) l->n++;
    }
}

/* Parts in the order of their first samples. */
static bool make_lines(const eval_outcome *r, lines *l) {
    size_t n = kv_task_count(r->set);
    uint32_t turns = 1, n_strata = 0;
    const char **strata = kv_calloc(n + 1, sizeof *strata);
    for (size_t i = 0; strata && i < n; i++) {
        const kv_sample *s = kv_task_at(r->set, i);
        uint32_t k = 0;
        if (s->n_turns > turns) turns = s->n_turns;
        while (k < n_strata && strcmp(strata[k], s->stratum) != 0) k++;
        if (k == n_strata) strata[n_strata++] = s->stratum;
    }
    l->loss = kv_task_at(r->set, 0)->metric == KV_METRIC_NLL;
    l->by_turn = turns > 1;
    l->by_stratum = r->o->task.by_stratum && n_strata > 1;
    l->v = kv_calloc(((size_t)turns + 1 + n_strata) * r->n_policies, sizeof *l->v);
    if (strata && l->v) {
        add_lines(r, l, NULL, UINT32_MAX);
        for (uint32_t t = 0; l->by_turn && t < turns; t++) add_lines(r, l, NULL, t);
        for (uint32_t k = 0; l->by_stratum && k < n_strata; k++) add_lines(r, l, strata[k], UINT32_MAX);
    }
    bool ok = strata && l->v;
    kv_free(strata);
    return ok;
}

/* ---------------------------------------------------------------- table */

static void cell_score(out_table *t, bool loss, double v) {
    if (isnan(v))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, loss ? "%.3f" : "%.1f", loss ? exp(v) : 100 * v);
}

static void cell_scores(out_table *t, bool loss, double low, double high) {
    if (isnan(low))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, loss ? "%.3f … %.3f" : "%.1f … %.1f", loss ? exp(low) : 100 * low,
                    loss ? exp(high) : 100 * high);
}

static void cell_percent(out_table *t, double v) {
    if (isnan(v))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%.1f %%", 100 * v);
}

static void cell_percents(out_table *t, double low, double high) {
    if (isnan(low))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%.1f … %.1f %%", 100 * low, 100 * high);
}

static void columns(out_table *t, const lines *l) {
    kv_out_table_init(t);
    kv_out_column(t, "kv", true);
    if (l->by_stratum) kv_out_column(t, "part", true);
    if (l->by_turn) kv_out_column(t, "turn", false);
    kv_out_column(t, "n", false);
    kv_out_column(t, l->loss ? "PPL" : "score", false);
    kv_out_column(t, "95 % of it", false);
    if (!l->by_stratum) kv_out_column(t, "mean of parts", false);
    kv_out_column(t, "of full", false);
    kv_out_column(t, "95 % of that", false);
    kv_out_column(t, "share", false);
    kv_out_column(t, "least mass", false);
    kv_out_column(t, "tokens", false);
}

static void table_line(out_table *t, const eval_outcome *r, const lines *l, const line *a) {
    const kv_task_summary *s = &a->s;
    kv_out_cell(t, "%s", r->policies[a->policy]);
    if (l->by_stratum) kv_out_cell(t, "%s", a->stratum ? a->stratum : "all");
    if (l->by_turn && a->turn == UINT32_MAX) kv_out_cell(t, "all");
    if (l->by_turn && a->turn != UINT32_MAX) kv_out_cell(t, "%u", a->turn + 1);
    kv_out_cell(t, "%zu", s->n);
    cell_score(t, l->loss, s->mean);
    cell_scores(t, l->loss, s->mean_low, s->mean_high);
    if (!l->by_stratum) cell_score(t, l->loss, s->macro);
    cell_percent(t, s->ratio);
    cell_percents(t, s->ratio_low, s->ratio_high);
    cell_percent(t, s->share);
    kv_out_cell(t, "%.3f", s->mass_min);
    kv_out_cell(t, "%.1f", s->tokens);
}

/* What a figure hides. */
static void notes(const eval_outcome *r, const lines *l) {
    size_t total = kv_task_count(r->set);
    for (size_t i = 0; i < l->n && i < r->n_policies; i++) {
        const line *a = &l->v[i];
        if (a->s.share_unmet)
            printf("%s: the share asked for was not met in %zu answers\n", r->policies[a->policy], a->s.share_unmet);
        if (a->s.looped)
            printf("%s: %zu answers ran into a loop of tokens, which was repeated to their end without decoding it\n",
                   r->policies[a->policy], a->s.looped);
    }
    if (r->n_done < total) printf("%zu of %zu samples: the run is not complete\n", r->n_done, total);
}

static void print_table(const eval_outcome *r, const lines *l, bool csv) {
    out_table t;
    columns(&t, l);
    for (size_t i = 0; i < l->n; i++) table_line(&t, r, l, &l->v[i]);
    if (csv) {
        kv_out_table_csv(&t, stdout);
    } else {
        printf(
            "%s: %zu samples, contexts compressed %s the question; %s; intervals: paired bootstrap, %d resamples, seed "
            "%llu\n",
            r->task, r->n_done, r->o->task.agnostic ? "before" : "with",
            l->loss ? "perplexity of the reference, of full = full's over it" : "scores in 0..100",
            KV_RESAMPLES, (unsigned long long)r->seed);
        kv_out_table_print(&t, stdout);
        notes(r, l);
    }
    kv_out_table_free(&t);
}

/* ---------------------------------------------------------------- needle's map */

typedef struct grid {
    double depths[64];
    uint32_t lengths[OUT_MAX_COLUMNS - 1];
    uint32_t n_depths, n_lengths;
} grid;

/* Sorted, each once; false: there is none, or it does not fit a table. */
static bool make_grid(const eval_outcome *r, grid *g) {
    memset(g, 0, sizeof *g);
    for (size_t i = 0; i < kv_task_count(r->set); i++) {
        const kv_sample *s = kv_task_at(r->set, i);
        uint32_t d = 0, n = 0;
        if (!isfinite(s->depth) || !s->length) return false;
        while (d < g->n_depths && g->depths[d] < s->depth) d++;
        while (n < g->n_lengths && g->lengths[n] < s->length) n++;
        if (d == g->n_depths || g->depths[d] > s->depth) {
            if (g->n_depths == sizeof g->depths / sizeof *g->depths) return false;
            memmove(g->depths + d + 1, g->depths + d, (g->n_depths++ - d) * sizeof *g->depths);
            g->depths[d] = s->depth;
        }
        if (n == g->n_lengths || g->lengths[n] > s->length) {
            if (g->n_lengths == sizeof g->lengths / sizeof *g->lengths) return false;
            memmove(g->lengths + n + 1, g->lengths + n, (g->n_lengths++ - n) * sizeof *g->lengths);
            g->lengths[n] = s->length;
        }
    }
    return g->n_depths && g->n_lengths;
}

/* Mean score of a policy at one depth and length; NAN: no sample of it is complete. */
static double cell_mean(const eval_outcome *r, uint32_t policy, double depth, uint32_t length) {
    double sum = 0;
    size_t n = 0, sample = 0;
    for (size_t i = 0; i < kv_task_results_count(r->results); i++) {
        const kv_task_row *row = kv_task_results_at(r->results, i);
        while (strcmp(kv_task_at(r->set, sample)->id, row->id) != 0) sample++; /* rows come in the set's order */
        const kv_sample *s = kv_task_at(r->set, sample);
        if (row->policy != policy || s->depth != depth || s->length != length) continue;
        sum += row->score;
        n++;
    }
    if (!n) return NAN;
    /* A likelihood is shown by token, 0..1 and higher is better as scores are. */
    return kv_task_at(r->set, 0)->metric == KV_METRIC_NLL ? exp(-sum / (double)n) : sum / (double)n;
}

static void print_map(const eval_outcome *r, const grid *g, uint32_t policy) {
    out_table t;
    char titles[OUT_MAX_COLUMNS - 1][16];
    kv_out_table_init(&t);
    kv_out_column(&t, "depth", false);
    for (uint32_t n = 0; n < g->n_lengths; n++) {
        snprintf(titles[n], sizeof titles[n], "%u", g->lengths[n]);
        kv_out_column(&t, titles[n], false);
    }
    for (uint32_t d = 0; d < g->n_depths; d++) {
        kv_out_cell(&t, "%.0f %%", 100 * g->depths[d]);
        for (uint32_t n = 0; n < g->n_lengths; n++) {
            static const char *const shades[] = {"·", "░", "▒", "▓", "█"};
            double v = cell_mean(r, policy, g->depths[d], g->lengths[n]);
            if (isnan(v))
                kv_out_cell(&t, "-");
            else
                kv_out_cell(&t, "%s %.0f", shades[v < 0 ? 0 : v > 1 ? 4 : (int)(4 * v + 0.5)], 100 * v);
        }
    }
    printf("\n%s: %s by depth of the fact (rows) and length of the context in tokens\n", r->policies[policy],
           kv_task_at(r->set, 0)->metric == KV_METRIC_NLL ? "likelihood of the reference, by token," : "score");
    kv_out_table_print(&t, stdout);
    kv_out_table_free(&t);
}

/* ---------------------------------------------------------------- JSON */

static json_t *json_base(const eval_outcome *r, uint32_t policy) {
    kv_policy p;
    kvist_error err;
    char canonical[256];
    json_t *o = json_object();
    json_object_set_new(o, "task", json_string(r->task));
    json_object_set_new(o, "kv", json_string(r->policies[policy]));
    if (kv_policy_parse(r->policies[policy], &p, &err) == KVIST_OK) {
        kv_policy_print(&p, canonical, sizeof canonical);
        json_object_set_new(o, "policy", json_string(canonical));
    }
    json_object_set_new(o, "agnostic", json_boolean(r->o->task.agnostic));
    json_object_set_new(o, "seed", json_integer((json_int_t)r->seed));
    return o;
}

static void print_json(const eval_outcome *r, const lines *l) {
    for (size_t i = 0; i < l->n; i++) {
        const line *a = &l->v[i];
        const kv_task_summary *s = &a->s;
        json_t *o = json_base(r, a->policy);
        if (a->stratum) json_object_set_new(o, "stratum", json_string(a->stratum));
        if (a->turn != UINT32_MAX) json_object_set_new(o, "turn", json_integer(a->turn + 1));
        json_object_set_new(o, "n", json_integer((json_int_t)s->n));
        json_object_set_new(o, "n_asked", json_integer((json_int_t)kv_task_count(r->set)));
        kv_out_json_real(o, l->loss ? "nll" : "score", s->mean);
        kv_out_json_real(o, l->loss ? "nll_low" : "score_low", s->mean_low);
        kv_out_json_real(o, l->loss ? "nll_high" : "score_high", s->mean_high);
        kv_out_json_real(o, "macro", s->macro);
        if (l->loss) kv_out_json_real(o, "ppl", exp(s->mean));
        kv_out_json_real(o, "ratio", s->ratio);
        kv_out_json_real(o, "ratio_low", s->ratio_low);
        kv_out_json_real(o, "ratio_high", s->ratio_high);
        json_object_set_new(o, "resamples", json_integer(KV_RESAMPLES));
        kv_out_json_real(o, "share", s->share);
        json_object_set_new(o, "share_unmet", json_integer((json_int_t)s->share_unmet));
        kv_out_json_real(o, "mass_min", s->mass_min);
        kv_out_json_real(o, "tokens", s->tokens);
        json_object_set_new(o, "looped", json_integer((json_int_t)s->looped));
        kv_out_json_line(o, stdout);
    }
}

static void print_json_map(const eval_outcome *r, const grid *g) {
    for (uint32_t p = 0; p < r->n_policies; p++)
        for (uint32_t d = 0; d < g->n_depths; d++)
            for (uint32_t n = 0; n < g->n_lengths; n++) {
                json_t *o = json_base(r, p);
                kv_out_json_real(o, "depth", g->depths[d]);
                json_object_set_new(o, "length", json_integer(g->lengths[n]));
                kv_out_json_real(o, "score", cell_mean(r, p, g->depths[d], g->lengths[n]));
                kv_out_json_line(o, stdout);
            }
}

void kv_eval_print(const eval_outcome *r) {
    lines l = {0};
    grid g;
    if (!make_lines(r, &l)) {
        fprintf(stderr, "kvist: out of memory for the table\n");
        kv_free(l.v);
        return;
    }
    bool map = make_grid(r, &g);
    if (wants(r, "json")) {
        print_json(r, &l);
        if (map) print_json_map(r, &g);
    } else {
        print_table(r, &l, wants(r, "csv"));
        for (uint32_t p = 0; map && !wants(r, "csv") && p < r->n_policies; p++) print_map(r, &g, p);
    }
    kv_free(l.v);
}
