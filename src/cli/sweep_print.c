/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of a sweep: md for people, csv (a line a point and task), json (a line a point); see sweep.h. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/sweep.h"

enum { BLOCK = 8 }; /* tasks side by side in a table of people */

static const char *verdict_word(kv_sweep_verdict v) {
    return v == KV_SWEEP_MET ? "met" : v == KV_SWEEP_MISSED ? "missed" : "open";
}

/* "0.981 (0.95..1.01)", "-" when it is no number. */
static void with_interval(char *buf, size_t cap, const char *mark, double v, double low, double high) {
    if (isnan(v))
        snprintf(buf, cap, "-");
    else if (isnan(low))
        snprintf(buf, cap, "%.3f%s", v, mark);
    else
        snprintf(buf, cap, "%.3f%s (%.3f..%.3f)", v, mark, low, high);
}

static void score_cell(out_table *t, const kv_sweep_task *task, const kv_sweep_cell *c) {
    char text[OUT_CELL];
    with_interval(text, sizeof text, "", c->score, c->score_low, c->score_high);
    if (task->kind == KV_SWEEP_KLD && !isnan(c->score))
        kv_out_cell(t, "%.4f, %.1f %%, %.3f", c->score, 100 * c->same_top1, c->ppl_ratio);
    else
        kv_out_cell(t, "%s", text);
}

/* ---------------------------------------------------------------- for people */

static void share_cells(out_table *t, const kv_sweep_point *p, const kv_sweep_row *r) {
    kv_out_cell(t, "%s", p->method);
    if (isnan(p->asked))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%g %%", 100 * p->asked);
    if (isnan(r->share))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%.1f %%", 100 * r->share);
    if (isnan(p->asked) || !r->n)
        kv_out_cell(t, "-");
    else if (r->n_met == r->n)
        kv_out_cell(t, "yes");
    else
        kv_out_cell(t, "%u of %u", r->n_met, r->n);
}

static void ratio_cell(out_table *t, bool front, double v, double low, double high) {
    char text[OUT_CELL];
    with_interval(text, sizeof text, front ? "*" : "", v, low, high);
    kv_out_cell(t, "%s", text);
}

/* Tasks from..to-1, and the means behind the last of them. Titles live in `titles`. */
static void block(const sweep *s, const kv_sweep_task *tasks, const kv_sweep_table *table, uint32_t from, uint32_t to,
                  bool scores) {
    out_table t;
    char titles[BLOCK + 1][KV_SWEEP_NAME + 24];
    bool means = to == table->n_tasks && table->n_tasks > 1;
    kv_out_table_init(&t);
    kv_out_column(&t, "method", true);
    kv_out_column(&t, "asked", false);
    kv_out_column(&t, "true", false);
    kv_out_column(&t, "met", false);
    for (uint32_t k = from; k < to; k++) {
        const char *what = tasks[k].kind == KV_SWEEP_KLD   ? " KLD, top-1, ppl"
                           : tasks[k].kind == KV_SWEEP_NLL ? " NLL"
                                                           : "";
        snprintf(titles[k - from], sizeof titles[0], "%s%s", tasks[k].name, scores ? what : "");
        kv_out_column(&t, titles[k - from], false);
        if (scores) kv_out_column(&t, "ratio", false);
    }
    snprintf(titles[BLOCK], sizeof titles[0], ">= %g", s->floor);
    if (means) kv_out_column(&t, "mean ratio", false);
    if (to == table->n_tasks) kv_out_column(&t, titles[BLOCK], false);
    for (uint32_t p = 0; p < s->n_points; p++) {
        const kv_sweep_row *r = &table->rows[p];
        share_cells(&t, &s->points[p], r);
        for (uint32_t k = from; k < to; k++) {
            const kv_sweep_cell *c = kv_sweep_at(table, p, k);
            if (scores) score_cell(&t, &tasks[k], c);
            ratio_cell(&t, c->front, c->ratio, c->ratio_low, c->ratio_high);
        }
        if (means) ratio_cell(&t, r->front, r->ratio, r->ratio_low, r->ratio_high);
        if (to == table->n_tasks) kv_out_cell(&t, "%s", verdict_word(r->verdict));
    }
    kv_out_table_print(&t, stdout);
    kv_out_table_free(&t);
}

static void print_choices(const sweep *s) {
    const kv_sweep_table *t = &s->table;
    printf("\nrecommended (highest mean ratio of those that no other certainly beats; others: not certainly lower)\n");
    for (uint32_t i = 0; i < t->n_choices; i++) {
        const kv_sweep_choice *c = &t->choices[i];
        if (c->best < 0) {
            printf("  at %g %%: no point keeps to it\n", 100 * c->share);
            continue;
        }
        const kv_sweep_row *r = &t->rows[c->best];
        char ratio[64];
        with_interval(ratio, sizeof ratio, "", r->ratio, r->ratio_low, r->ratio_high);
        printf("  at %g %%: --kv '%s'   ratio %s, %.1f %% true, >= %g %s\n", 100 * c->share, s->points[c->best].policy,
               ratio, 100 * r->share, s->floor, verdict_word(r->verdict));
        for (uint32_t k = 0; k < c->n_peers; k++)
            printf("%s%s%s", k ? ", " : "    others: ", s->points[c->peers[k]].policy, k + 1 == c->n_peers ? "\n" : "");
    }
}

/* The ratios of every stratum: strata as tasks of their own. */
static void print_strata(const sweep *s, const kv_sweep_task *task) {
    kv_sweep_task *parts = kv_calloc(task->n_strata, sizeof *parts);
    kv_sweep_table table = {0};
    kv_sweep_rules rules = {NULL, 0, s->floor, s->seed};
    kvist_error err = {0};
    uint32_t n = 0;
    kv_status st = parts ? KVIST_OK : KVIST_E_MEMORY;
    for (uint32_t i = 0; st == KVIST_OK && i < task->n_strata; i++) {
        st = kv_sweep_task_split(task, i, &parts[n], &err);
        if (st == KVIST_OK && parts[n].n)
            n++;
        else if (st == KVIST_OK)
            kv_sweep_task_free(&parts[n]);
    }
    if (st == KVIST_OK && n > 1) st = kv_sweep_analyse(s->points, s->n_points, parts, n, &rules, &table, &err);
    if (st == KVIST_OK && n > 1) {
        printf("\n%s by stratum, ratios; n:", task->name);
        for (uint32_t i = 0; i < n; i++) printf("%s %s %u", i ? "," : "", parts[i].name, parts[i].n);
        printf("\n");
        for (uint32_t from = 0; from < n; from += BLOCK) {
            printf("\n");
            block(s, parts, &table, from, from + BLOCK < n ? from + BLOCK : n, false);
        }
    }
    if (st != KVIST_OK) kv_cli_warn(s->o, "%s by stratum: %s", task->name, err.message);
    for (uint32_t i = 0; parts && i < n; i++) kv_sweep_task_free(&parts[i]);
    kv_free(parts);
    kv_sweep_table_free(&table);
}

static void print_md(const sweep *s) {
    printf("%s; %s; seed %llu;", s->model,
           s->agnostic ? "question unknown when the context is compressed"
                       : "question known when the context is compressed",
           (unsigned long long)s->seed);
    for (uint32_t k = 0; k < s->n_tasks; k++)
        printf("%s %s: n = %u", k ? "," : "", s->tasks[k].name, kv_sweep_at(&s->table, 0, k)->n);
    printf("\n");
    for (uint32_t k = 0; k < s->n_tasks; k++)
        if (kv_sweep_at(&s->table, 0, k)->n && isnan(kv_sweep_at(&s->table, 0, k)->ratio))
            printf("%s: full scores 0, so that there is no ratio: not in the means\n", s->tasks[k].name);
    for (uint32_t from = 0; from < s->n_tasks; from += BLOCK) {
        printf("\n");
        block(s, s->tasks, &s->table, from, from + BLOCK < s->n_tasks ? from + BLOCK : s->n_tasks, true);
    }
    printf("\n* on the Pareto front of ratio against true bytes; (..): 95 %%, paired bootstrap over samples\n");
    print_choices(s);
    for (uint32_t k = 0; s->o->sweep.by_stratum && k < s->n_tasks; k++) print_strata(s, &s->tasks[k]);
}

/* ---------------------------------------------------------------- for programs */

static json_t *json_cell(const sweep *s, const kv_sweep_task *t, const kv_sweep_cell *c) {
    json_t *o = json_object();
    json_object_set_new(o, "task", json_string(t->name));
    json_object_set_new(o, "kind", json_string(kv_sweep_kind_name(t->kind)));
    json_object_set_new(o, "n", json_integer(c->n));
    json_object_set_new(o, "share_met_n", json_integer(c->n_met));
    kv_out_json_real(o, "share", c->share);
    kv_out_json_real(o, "mass_min", c->mass_min);
    kv_out_json_real(o, t->kind == KV_SWEEP_KLD ? "kld_mean" : "score", c->score);
    kv_out_json_real(o, t->kind == KV_SWEEP_KLD ? "kld_low" : "score_low", c->score_low);
    kv_out_json_real(o, t->kind == KV_SWEEP_KLD ? "kld_high" : "score_high", c->score_high);
    if (t->kind == KV_SWEEP_KLD) {
        kv_out_json_real(o, "same_top1", c->same_top1);
        kv_out_json_real(o, "ppl_ratio", c->ppl_ratio);
    }
    kv_out_json_real(o, "ratio", c->ratio);
    kv_out_json_real(o, "ratio_low", c->ratio_low);
    kv_out_json_real(o, "ratio_high", c->ratio_high);
    json_object_set_new(o, "front", json_boolean(c->front));
    kv_out_json_real(o, "floor", s->floor);
    json_object_set_new(o, "floor_met", json_string(verdict_word(c->verdict)));
    return o;
}

json_t *kv_sweep_json_row(const sweep *s, uint32_t point) {
    const kv_sweep_point *p = &s->points[point];
    const kv_sweep_row *r = &s->table.rows[point];
    json_t *o = json_object(), *tasks = json_array(), *at = json_array();
    json_object_set_new(o, "kv", json_string(p->policy));
    json_object_set_new(o, "method", json_string(p->method));
    kv_out_json_real(o, "share_asked", p->asked);
    kv_out_json_real(o, "share", r->share);
    json_object_set_new(o, "share_met", isnan(p->asked) ? json_null() : json_boolean(r->n_met == r->n));
    kv_out_json_real(o, "mass_min", r->mass_min);
    kv_out_json_real(o, "ratio", r->ratio);
    kv_out_json_real(o, "ratio_low", r->ratio_low);
    kv_out_json_real(o, "ratio_high", r->ratio_high);
    json_object_set_new(o, "front", json_boolean(r->front));
    json_object_set_new(o, "floor_met", json_string(verdict_word(r->verdict)));
    for (uint32_t i = 0; i < s->table.n_choices; i++)
        if (s->table.choices[i].best == (int32_t)point) json_array_append_new(at, json_real(s->table.choices[i].share));
    json_object_set_new(o, "recommended_at", at);
    for (uint32_t k = 0; k < s->n_tasks; k++)
        json_array_append_new(tasks, json_cell(s, &s->tasks[k], kv_sweep_at(&s->table, point, k)));
    json_object_set_new(o, "tasks", tasks);
    return o;
}

static void number_cell(out_table *t, double v) {
    if (isnan(v))
        kv_out_cell(t, "%s", "");
    else
        kv_out_cell(t, "%.6g", v);
}

static void print_csv(const sweep *s) {
    static const char *const titles[] = {"kv",          "method",   "share_asked", "share",      "n",
                                         "share_met_n", "task",     "kind",        "score",      "score_low",
                                         "score_high",  "ratio",    "ratio_low",   "ratio_high", "same_top1",
                                         "ppl_ratio",   "mass_min", "front",       "floor_met"};
    out_table t;
    kv_out_table_init(&t);
    for (size_t i = 0; i < sizeof titles / sizeof *titles; i++) kv_out_column(&t, titles[i], true);
    for (uint32_t p = 0; p < s->n_points; p++)
        for (uint32_t k = 0; k < s->n_tasks; k++) {
            const kv_sweep_cell *c = kv_sweep_at(&s->table, p, k);
            kv_out_cell(&t, "%s", s->points[p].policy);
            kv_out_cell(&t, "%s", s->points[p].method);
            number_cell(&t, s->points[p].asked);
            number_cell(&t, c->share);
            kv_out_cell(&t, "%u", c->n);
            kv_out_cell(&t, "%u", c->n_met);
            kv_out_cell(&t, "%s", s->tasks[k].name);
            kv_out_cell(&t, "%s", kv_sweep_kind_name(s->tasks[k].kind));
            const double values[] = {c->score,      c->score_low, c->score_high, c->ratio,   c->ratio_low,
                                     c->ratio_high, c->same_top1, c->ppl_ratio,  c->mass_min};
            for (size_t i = 0; i < sizeof values / sizeof *values; i++) number_cell(&t, values[i]);
            kv_out_cell(&t, "%d", c->front);
            kv_out_cell(&t, "%s", verdict_word(c->verdict));
        }
    kv_out_table_csv(&t, stdout);
    kv_out_table_free(&t);
}

void kv_sweep_print(const sweep *s) {
    const char *form = s->o->output;
    if (s->o->json || (form && !strcmp(form, "json")))
        for (uint32_t p = 0; p < s->n_points; p++) kv_out_json_line(kv_sweep_json_row(s, p), stdout);
    else if (form && !strcmp(form, "csv"))
        print_csv(s);
    else
        print_md(s);
}
