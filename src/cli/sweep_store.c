/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sweep.json: what a sweep asked and every sample's value, so that it is printed again, with another floor, without
 * running; beside them the rows as printed, for other programs. Written whole after each task.
 *   {"kvist_sweep": 1, "model", "agnostic", "seed", "floor", "shares": [],
 *    "points": [{"method", "kv", "asked"}],
 *    "tasks": [{"name", "kind", "strata": [], "samples": [{"id", "stratum"}],
 *               "values": [a point: [a sample: [value, share, mass_min, nll, same_top1] or null]]}],
 *    "rows": [...]}
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/sweep.h"

enum { VERSION = 1, VALUES = 5 };

static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static json_t *values_of(const kv_sweep_task *t, uint32_t point) {
    json_t *all = json_array();
    for (uint32_t i = 0; i < t->n; i++) {
        const kv_sweep_sample *v = &t->v[(size_t)point * t->n + i];
        if (isnan(v->value)) {
            json_array_append_new(all, json_null());
            continue;
        }
        const double x[VALUES] = {v->value, v->share, v->mass_min, v->nll, v->same_top1};
        json_t *one = json_array();
        for (int k = 0; k < VALUES; k++) json_array_append_new(one, number(x[k]));
        json_array_append_new(all, one);
    }
    return all;
}

static json_t *task_json(const kv_sweep_task *t) {
    json_t *o = json_object(), *strata = json_array(), *samples = json_array(), *values = json_array();
    json_object_set_new(o, "name", json_string(t->name));
    json_object_set_new(o, "kind", json_string(kv_sweep_kind_name(t->kind)));
    for (uint32_t i = 0; i < t->n_strata; i++) json_array_append_new(strata, json_string(t->strata[i]));
    for (uint32_t i = 0; i < t->n; i++) {
        json_t *sample = json_object();
        json_object_set_new(sample, "id", json_string(t->ids[i]));
        json_object_set_new(sample, "stratum", json_string(t->strata[t->stratum[i]]));
        json_array_append_new(samples, sample);
    }
    for (uint32_t p = 0; p < t->n_points; p++) json_array_append_new(values, values_of(t, p));
    json_object_set_new(o, "strata", strata);
    json_object_set_new(o, "samples", samples);
    json_object_set_new(o, "values", values);
    return o;
}

int kv_sweep_save(const sweep *s) {
    char path[SWEEP_TEXT + 64];
    kvist_error err;
    json_t *o = json_object(), *shares = json_array(), *points = json_array(), *tasks = json_array(),
           *rows = json_array();
    json_object_set_new(o, "kvist_sweep", json_integer(VERSION));
    json_object_set_new(o, "model", json_string(s->model));
    json_object_set_new(o, "agnostic", json_boolean(s->agnostic));
    json_object_set_new(o, "seed", json_integer((json_int_t)s->seed));
    json_object_set_new(o, "floor", json_real(s->floor));
    for (uint32_t i = 0; i < s->n_shares; i++) json_array_append_new(shares, json_real(s->shares[i]));
    for (uint32_t p = 0; p < s->n_points; p++) {
        json_t *point = json_object();
        json_object_set_new(point, "method", json_string(s->points[p].method));
        json_object_set_new(point, "kv", json_string(s->points[p].policy));
        json_object_set_new(point, "asked", number(s->points[p].asked));
        json_array_append_new(points, point);
        json_array_append_new(rows, kv_sweep_json_row(s, p));
    }
    for (uint32_t k = 0; k < s->n_tasks; k++) json_array_append_new(tasks, task_json(&s->tasks[k]));
    json_object_set_new(o, "shares", shares);
    json_object_set_new(o, "points", points);
    json_object_set_new(o, "tasks", tasks);
    json_object_set_new(o, "rows", rows);
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(o);
    bool named = kv_sweep_path(s, "sweep.json", path, sizeof path);
    kv_status st = text && named ? kv_os_write_file(path, &(kv_os_part){text, strlen(text)}, 1, &err)
                   : text        ? kv_fail(&err, KVIST_E_ARG, "--out: the name is too long")
                                 : kv_fail(&err, KVIST_E_MEMORY, "no memory for sweep.json");
    free(text);
    return st == KVIST_OK ? KV_CLI_OK : kv_cli_error(&err);
}

/* ---------------------------------------------------------------- reading */

typedef struct reader {
    const char *path;
    kv_error *err;
} reader;

static kv_status wrong(const reader *r, const char *field) {
    return kv_fail(r->err, KVIST_E_FORMAT, "%s: '%s' is missing or wrong", r->path, field);
}

static bool text_of(json_t *o, const char *key, char *out, size_t cap) {
    const char *s = json_string_value(json_object_get(o, key));
    if (!s || strlen(s) >= cap) return false;
    memcpy(out, s, strlen(s) + 1);
    return true;
}

static double real_of(json_t *v) { return json_is_number(v) ? json_number_value(v) : NAN; }

static kv_status read_points(const reader *r, json_t *o, sweep *s) {
    json_t *points = json_object_get(o, "points"), *shares = json_object_get(o, "shares");
    size_t n = json_array_size(points), n_shares = json_array_size(shares);
    if (!n || n > 100000) return wrong(r, "points");
    if (!json_is_array(shares) || n_shares > SWEEP_SHARES) return wrong(r, "shares");
    for (size_t i = 0; i < n_shares; i++) s->shares[i] = real_of(json_array_get(shares, i));
    s->n_shares = (uint32_t)n_shares;
    s->points = kv_calloc(n, sizeof *s->points);
    if (!s->points) return kv_fail(r->err, KVIST_E_MEMORY, "%s: %zu points", r->path, n);
    s->n_points = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        json_t *p = json_array_get(points, i);
        if (!text_of(p, "method", s->points[i].method, sizeof s->points[i].method) ||
            !text_of(p, "kv", s->points[i].policy, sizeof s->points[i].policy))
            return wrong(r, "points");
        s->points[i].asked = real_of(json_object_get(p, "asked"));
    }
    return KVIST_OK;
}

static kv_status read_values(const reader *r, json_t *values, kv_sweep_task *t) {
    if (json_array_size(values) != t->n_points) return wrong(r, "values");
    for (uint32_t p = 0; p < t->n_points; p++) {
        json_t *all = json_array_get(values, p);
        if (json_array_size(all) != t->n) return wrong(r, "values");
        for (uint32_t i = 0; i < t->n; i++) {
            json_t *one = json_array_get(all, i);
            if (json_is_null(one)) continue;
            if (json_array_size(one) != VALUES) return wrong(r, "values");
            t->v[(size_t)p * t->n + i] = (kv_sweep_sample){
                real_of(json_array_get(one, 0)), real_of(json_array_get(one, 1)), real_of(json_array_get(one, 2)),
                real_of(json_array_get(one, 3)), real_of(json_array_get(one, 4))};
        }
    }
    return KVIST_OK;
}

static kv_status read_task(const reader *r, json_t *o, sweep *s) {
    char name[KV_SWEEP_NAME], kind[16], id[KV_SWEEP_NAME];
    json_t *samples = json_object_get(o, "samples"), *strata = json_object_get(o, "strata");
    size_t n = json_array_size(samples);
    uint32_t k = KV_SWEEP_SCORE;
    if (!text_of(o, "name", name, sizeof name) || !text_of(o, "kind", kind, sizeof kind)) return wrong(r, "tasks");
    while (k <= KV_SWEEP_KLD && strcmp(kind, kv_sweep_kind_name((kv_sweep_kind)k)) != 0) k++;
    if (k > KV_SWEEP_KLD || !json_is_array(samples) || !json_is_array(strata) || n > 10000000) return wrong(r, "tasks");
    kv_sweep_task *t = &s->tasks[s->n_tasks];
    KV_TRY(kv_sweep_task_init(t, name, (kv_sweep_kind)k, s->n_points, (uint32_t)n, r->err));
    s->n_tasks++;
    for (uint32_t i = 0; i < n; i++) {
        json_t *sample = json_array_get(samples, i);
        char stratum[KV_SWEEP_NAME];
        if (!text_of(sample, "id", id, sizeof id) || !text_of(sample, "stratum", stratum, sizeof stratum))
            return wrong(r, "samples");
        memcpy(t->ids[i], id, sizeof id);
        KV_TRY(kv_sweep_task_stratum(t, i, stratum, r->err));
    }
    return read_values(r, json_object_get(o, "values"), t);
}

static kv_status read_sweep(const reader *r, json_t *o, sweep *s) {
    json_t *tasks = json_object_get(o, "tasks"), *seed = json_object_get(o, "seed");
    if (json_integer_value(json_object_get(o, "kvist_sweep")) != VERSION) return wrong(r, "kvist_sweep");
    if (!text_of(o, "model", s->model, sizeof s->model)) return wrong(r, "model");
    if (!json_is_integer(seed) || json_integer_value(seed) < 0) return wrong(r, "seed");
    s->seed = (uint64_t)json_integer_value(seed);
    s->agnostic = json_is_true(json_object_get(o, "agnostic"));
    if (s->o->sweep.floor <= 0) s->floor = real_of(json_object_get(o, "floor"));
    if (!(s->floor > 0 && s->floor <= 1)) return wrong(r, "floor");
    KV_TRY(read_points(r, o, s));
    size_t n = json_array_size(tasks);
    if (!n || n > SWEEP_TASKS) return wrong(r, "tasks");
    for (size_t i = 0; i < n; i++) KV_TRY(read_task(r, json_array_get(tasks, i), s));
    return KVIST_OK;
}

int kv_sweep_load(sweep *s) {
    char path[SWEEP_TEXT + 64], *text = NULL;
    kvist_error err;
    json_error_t where;
    size_t len;
    if (!kv_sweep_path(s, "sweep.json", path, sizeof path))
        return kv_cli_usage_error("sweep", "--out: the name is too long");
    if (kv_os_read_file(path, &text, &len, &err) != KVIST_OK) return kv_cli_error(&err);
    json_t *o = json_loadb(text, len, 0, &where);
    kv_free(text);
    reader r = {path, &err};
    kv_status st = o ? read_sweep(&r, o, s) : kv_fail(&err, KVIST_E_FORMAT, "%s:%d: %s", path, where.line, where.text);
    json_decref(o);
    return st == KVIST_OK ? KV_CLI_OK : kv_cli_error(&err);
}
