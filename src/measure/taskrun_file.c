/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of a task run: JSON lines, a header that says what run it is of, then the rows sample by sample. Invariants:
 * rows of a sample are written together and lie together; what a killed run leaves is whole samples and at most one
 * incomplete one at the end, which is cut; a file that is no such file is never changed. Samples of another subset of the
 * same task stay in it untouched: a run with a higher limit goes on where one with a lower ended.
 */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/taskrun_parts.h"

enum { DIGITS = 9 }; /* of reals; kv_task_rounded knows them too */

/* ---------------------------------------------------------------- writing */

static void set_real(json_t *o, const char *key, double v) {
    json_object_set_new(o, key, isfinite(v) ? json_real(v) : json_null());
}

static json_t *row_json(const kv_task_file *f, const kv_sample *s, const kv_task_row *row) {
    json_t *o = json_object();
    json_object_set_new(o, "id", json_string(row->id));
    json_object_set_new(o, "stratum", json_string(row->stratum));
    if (isfinite(s->depth)) set_real(o, "depth", s->depth);
    if (s->length) json_object_set_new(o, "length", json_integer(s->length));
    json_object_set_new(o, "policy", json_string(f->names[row->policy]));
    json_object_set_new(o, "turn", json_integer(row->turn + 1));
    json_object_set_new(o, "turns", json_integer(s->n_turns));
    set_real(o, "score", row->score);
    set_real(o, "share", row->share);
    json_object_set_new(o, "share_met", json_boolean(row->share_met));
    json_object_set_new(o, "bytes_true", json_integer((json_int_t)row->bytes_true));
    set_real(o, "mass_min", row->mass_min);
    json_object_set_new(o, "n_prompt", json_integer(row->n_prompt));
    json_object_set_new(o, "tokens", json_integer(row->tokens));
    json_object_set_new(o, "ended", json_boolean(row->ended));
    json_object_set_new(o, "looped", json_boolean(row->looped));
    json_object_set_new(o, "text", json_string(row->text ? row->text : ""));
    return o;
}

/* A line with its newline; kv_free; NULL: no memory (or text that is no UTF-8). Takes o. */
static char *line_of(json_t *o, size_t *len) {
    char *line = NULL;
    size_t n = o ? json_dumpb(o, NULL, 0, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS)) : 0;
    if (n && (line = kv_malloc(n + 2)) != NULL) {
        json_dumpb(o, line, n, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS));
        line[n] = '\n';
        line[n + 1] = 0;
        *len = n + 1;
    }
    json_decref(o);
    return line;
}

kv_status kv_task_file_append(kv_task_file *f, kv_task_results *r, size_t sample, kv_error *err) {
    const kv_sample *s = kv_task_at(r->set, sample);
    if (f->log.fd < 0) return KVIST_OK;
    for (uint32_t p = 0; p < r->n_policies; p++)
        for (uint32_t t = 0; t < s->n_turns; t++) {
            size_t len = 0;
            char *line = line_of(row_json(f, s, kv_task_results_row(r, sample, p, t)), &len);
            if (!line) KV_FAIL(err, MEMORY, "%s: no memory for a row of sample '%s'", f->log.path, s->id);
            kv_status st = kv_os_append_write(&f->log, line, len, err);
            kv_free(line);
            if (st != KVIST_OK) return st;
        }
    return KVIST_OK;
}

/* ---------------------------------------------------------------- the header */

static json_t *header_json(const char *run_id, const char *const *names, uint32_t n_names) {
    json_t *o = json_object(), *run = json_array();
    json_object_set_new(o, "kvist_eval", json_integer(1));
    for (const char *line = run_id ? run_id : ""; *line;) {
        size_t n = strcspn(line, "\n");
        if (n) json_array_append_new(run, json_stringn(line, n));
        line += n + (line[n] == '\n');
    }
    for (uint32_t i = 0; i < n_names; i++) {
        char text[300];
        snprintf(text, sizeof text, "kv=%s", names[i]);
        json_array_append_new(run, json_string(text));
    }
    json_object_set_new(o, "run", run);
    return o;
}

static const char *run_line(json_t *run, size_t i) {
    const char *s = json_string_value(json_array_get(run, i));
    return s ? s : "nothing";
}

static kv_status check_header(const char *path, json_t *there, json_t *ours, kv_error *err) {
    json_t *a = json_object_get(there, "run"), *b = json_object_get(ours, "run");
    if (!json_is_array(a) || !json_is_integer(json_object_get(there, "kvist_eval")))
        KV_FAIL(err, FORMAT, "%s: not a file of results (its first line is no header): it is left as it is", path);
    if (!json_equal(json_object_get(there, "kvist_eval"), json_object_get(ours, "kvist_eval")))
        KV_FAIL(err, UNSUPPORTED, "%s: results of another version of the format", path);
    size_t n = json_array_size(a) > json_array_size(b) ? json_array_size(a) : json_array_size(b);
    for (size_t i = 0; i < n; i++)
        if (strcmp(run_line(a, i), run_line(b, i)) != 0)
            KV_FAIL(err, ARG, "%s holds another run: it says '%s' where this one says '%s'", path, run_line(a, i),
                    run_line(b, i));
    return KVIST_OK;
}

/* ---------------------------------------------------------------- reading */

typedef struct reader {
    const char *path;
    uint32_t line;
    kv_task_results *r;
    const char *const *names;
    size_t sample;  /* of the row before */
    size_t missing; /* rows that its sample still lacks */
    char *other;    /* sample of the row before where this run does not take it, else NULL */
    kv_error *err;
} reader;

static kv_status bad(reader *rd, const char *what) {
    return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: %s", rd->path, rd->line, what);
}

static bool find_sample(reader *rd, const char *id) {
    for (size_t k = 0, n = rd->r->n_samples; k < n; k++) { /* rows come in the set's order */
        size_t i = (rd->sample + k) % n;
        if (strcmp(kv_task_at(rd->r->set, i)->id, id) != 0) continue;
        rd->sample = i;
        return true;
    }
    return false;
}

static kv_status get_real(reader *rd, json_t *o, const char *key, double *out) {
    json_t *v = json_object_get(o, key);
    if (!json_is_number(v) && !json_is_null(v))
        return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: '%s' is no number", rd->path, rd->line, key);
    *out = json_is_null(v) ? NAN : json_number_value(v);
    return KVIST_OK;
}

static kv_status get_count(reader *rd, json_t *o, const char *key, uint64_t most, uint64_t *out) {
    json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > most)
        return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: '%s' is no count", rd->path, rd->line, key);
    *out = (uint64_t)json_integer_value(v);
    return KVIST_OK;
}

static kv_status get_bool(reader *rd, json_t *o, const char *key, bool *out) {
    json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v))
        return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: '%s' is neither true nor false", rd->path, rd->line, key);
    *out = json_is_true(v);
    return KVIST_OK;
}

/* A row of a sample that is not of this run's subset. */
static kv_status pass_other(reader *rd, json_t *o, const char *id) {
    if (!rd->missing) {
        uint64_t turns = 0;
        KV_TRY(get_count(rd, o, "turns", UINT32_MAX / 256, &turns));
        if (!turns) return bad(rd, "a sample of no turns");
        kv_free(rd->other);
        rd->other = kv_strndup(id, strlen(id));
        if (!rd->other) return kv_fail(rd->err, KVIST_E_MEMORY, "%s: no memory for its rows", rd->path);
        rd->missing = (size_t)rd->r->n_policies * turns;
    }
    rd->missing--;
    return KVIST_OK;
}

static kv_status fill_row(reader *rd, json_t *o, kv_task_row *row) {
    uint64_t tokens = 0, n_prompt = 0;
    const char *text = json_string_value(json_object_get(o, "text"));
    KV_TRY(get_real(rd, o, "score", &row->score));
    KV_TRY(get_real(rd, o, "share", &row->share));
    KV_TRY(get_real(rd, o, "mass_min", &row->mass_min));
    KV_TRY(get_count(rd, o, "bytes_true", INT64_MAX, &row->bytes_true));
    KV_TRY(get_count(rd, o, "tokens", UINT32_MAX, &tokens));
    KV_TRY(get_count(rd, o, "n_prompt", UINT32_MAX, &n_prompt));
    KV_TRY(get_bool(rd, o, "share_met", &row->share_met));
    KV_TRY(get_bool(rd, o, "ended", &row->ended));
    KV_TRY(get_bool(rd, o, "looped", &row->looped));
    if (!text) return bad(rd, "no 'text'");
    row->tokens = (uint32_t)tokens;
    row->n_prompt = (uint32_t)n_prompt;
    row->text = kv_strndup(text, strlen(text));
    return row->text ? KVIST_OK : kv_fail(rd->err, KVIST_E_MEMORY, "%s: no memory for its rows", rd->path);
}

static kv_status take_row(reader *rd, json_t *o) {
    const char *id = json_string_value(json_object_get(o, "id")),
               *policy = json_string_value(json_object_get(o, "policy"));
    size_t before = rd->sample;
    uint64_t turn = 0;
    uint32_t p = 0;
    if (!id || !policy) return bad(rd, "no 'id' or no 'policy'");
    bool ours = find_sample(rd, id);
    if (rd->missing && (rd->other ? strcmp(rd->other, id) != 0 : !ours || rd->sample != before))
        return bad(rd, "the sample before is not complete");
    while (p < rd->r->n_policies && strcmp(rd->names[p], policy) != 0) p++;
    if (p == rd->r->n_policies)
        return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: this run has no policy '%s'", rd->path, rd->line, policy);
    if (!ours) return pass_other(rd, o, id);
    kv_free(rd->other);
    rd->other = NULL;
    const kv_sample *s = kv_task_at(rd->r->set, rd->sample);
    KV_TRY(get_count(rd, o, "turn", s->n_turns, &turn));
    kv_task_row *row = turn ? kv_task_results_row(rd->r, rd->sample, p, (uint32_t)turn - 1) : NULL;
    if (!row || row->text) return bad(rd, row ? "this row stands in it already" : "turns count from 1");
    KV_TRY(fill_row(rd, o, row));
    if (!rd->missing) rd->missing = (size_t)rd->r->n_policies * s->n_turns;
    if (--rd->missing == 0) rd->r->done[rd->sample] = true;
    return KVIST_OK;
}

/* The rows of a sample that is not complete are run again. */
static void forget_incomplete(reader *rd) {
    kv_task_results *r = rd->r;
    if (rd->other) return;
    for (size_t i = r->first[rd->sample]; rd->missing && i < r->first[rd->sample + 1]; i++) {
        kv_free(r->rows[i].text);
        r->rows[i].text = NULL;
    }
}

/* Reads whole lines of text[0..len); *keep = bytes up to the end of the last complete sample. */
static kv_status read_rows(reader *rd, const char *text, size_t len, size_t from, uint64_t *keep) {
    *keep = from;
    rd->line = 1;
    for (size_t at = from; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        if (!end) break; /* torn */
        size_t next = (size_t)(end - text) + 1;
        rd->line++;
        json_t *o = json_loadb(text + at, next - at - 1, 0, NULL);
        if (!json_is_object(o)) {
            json_decref(o);
            if (next == len) break; /* torn too: the system wrote its size before its bytes */
            return bad(rd, "no JSON object");
        }
        kv_status st = take_row(rd, o);
        json_decref(o);
        if (st != KVIST_OK) return st;
        at = next;
        if (!rd->missing) *keep = at;
    }
    forget_incomplete(rd);
    return KVIST_OK;
}

static kv_status resume(kv_task_file *f, char *text, size_t len, const char *header, size_t header_len, json_t *ours,
                        kv_task_results *r, kv_error *err) {
    char *end = memchr(text, '\n', len);
    if (!end && (len >= header_len || memcmp(text, header, len) != 0)) /* not even the beginning of our header */
        KV_FAIL(err, FORMAT, "%s: not a file of results (its first line is no header): it is left as it is",
                f->log.path);
    if (!end) {
        KV_TRY(kv_os_append_cut(&f->log, 0, err));
        return kv_os_append_write(&f->log, header, header_len, err);
    }
    json_t *there = json_loadb(text, (size_t)(end - text), 0, NULL);
    kv_status st = check_header(f->log.path, there, ours, err);
    json_decref(there);
    if (st != KVIST_OK) return st;
    reader rd = {.path = f->log.path, .r = r, .names = f->names, .err = err};
    uint64_t keep;
    st = read_rows(&rd, text, len, (size_t)(end - text) + 1, &keep);
    kv_free(rd.other);
    if (st != KVIST_OK) return st;
    return keep < len ? kv_os_append_cut(&f->log, keep, err) : KVIST_OK;
}

kv_status kv_task_file_open(kv_task_file *f, const char *path, const char *run_id, const char *const *names,
                            kv_task_results *r, kv_error *err) {
    *f = (kv_task_file){{-1, path}, names};
    if (!path) return KVIST_OK;
    char *text = NULL, *header = NULL;
    size_t len = 0, header_len = 0;
    KV_TRY(kv_os_append_open(path, &f->log, err));
    json_t *ours = header_json(run_id, names, r->n_policies);
    header = line_of(json_incref(ours), &header_len);
    kv_status st = header ? kv_os_read_file(path, &text, &len, err)
                          : kv_fail(err, KVIST_E_MEMORY, "%s: no memory for its header", path);
    if (st == KVIST_OK && !len) st = kv_os_append_write(&f->log, header, header_len, err);
    if (st == KVIST_OK && len) st = resume(f, text, len, header, header_len, ours, r, err);
    json_decref(ours);
    kv_free(header);
    kv_free(text);
    if (st != KVIST_OK) kv_task_file_close(f);
    return st;
}

void kv_task_file_close(kv_task_file *f) { kv_os_append_close(&f->log); }
