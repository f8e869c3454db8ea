/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of a task run: JSON lines, a header that says what run it is of, then conversations: what one policy makes of
 * one sample, a row a turn. Invariants: the rows of a conversation are written together and lie together; what a killed
 * run leaves is whole conversations and at most one incomplete one at the end, which is cut; a file that is no such file
 * is never changed. Other samples of the same task and other policies stay in it untouched: a run with a higher limit,
 * or with one policy more, runs what is missing.
 */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/taskrun_parts.h"

enum {
    FORMAT = 2, /* of the file: its header holds no policies, which 1 did */
    DIGITS = 9  /* of reals; kv_task_rounded knows them too */
};

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

kv_status kv_task_file_append(kv_task_file *f, kv_task_results *r, size_t sample, uint32_t policy, kv_error *err) {
    const kv_sample *s = kv_task_at(r->set, sample);
    if (f->log.fd < 0) return KVIST_OK;
    for (uint32_t t = 0; t < s->n_turns; t++) {
        size_t len = 0;
        char *line = line_of(row_json(f, s, kv_task_results_row(r, sample, policy, t)), &len);
        if (!line) KV_FAIL(err, MEMORY, "%s: no memory for a row of sample '%s'", f->log.path, s->id);
        kv_status st = kv_os_append_write(&f->log, line, len, err);
        kv_free(line);
        if (st != KVIST_OK) return st;
    }
    return KVIST_OK;
}

/* ---------------------------------------------------------------- the header */

static json_t *header_json(const char *run_id) {
    json_t *o = json_object(), *run = json_array();
    json_object_set_new(o, "kvist_eval", json_integer(FORMAT));
    for (const char *line = run_id ? run_id : ""; *line;) {
        size_t n = strcspn(line, "\n");
        if (n) json_array_append_new(run, json_stringn(line, n));
        line += n + (line[n] == '\n');
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
    /* the conversation at hand */
    json_t *first;        /* its first row; NULL: none yet */
    uint64_t turn, turns; /* read of it; that it has */
    bool ours;            /* of this run's samples and policies: */
    size_t sample;
    uint32_t policy;
    kv_error *err;
} reader;

static kv_status bad(reader *rd, const char *what) {
    return kv_fail(rd->err, KVIST_E_FORMAT, "%s:%u: %s", rd->path, rd->line, what);
}

static const char *text_at(json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }

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

static kv_status fill_row(reader *rd, json_t *o, kv_task_row *row) {
    uint64_t tokens = 0, n_prompt = 0;
    const char *text = text_at(o, "text");
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

static kv_status begin(reader *rd, json_t *row) {
    const kv_task_results *r = rd->r;
    KV_TRY(get_count(rd, row, "turns", UINT32_MAX, &rd->turns));
    if (!rd->turns) return bad(rd, "a sample of no turns");
    json_decref(rd->first);
    rd->first = json_incref(row);
    rd->turn = 0;
    rd->policy = 0;
    while (rd->policy < r->n_policies && strcmp(rd->names[rd->policy], text_at(row, "policy")) != 0) rd->policy++;
    rd->ours = rd->policy < r->n_policies && find_sample(rd, text_at(row, "id"));
    if (!rd->ours) return KVIST_OK;
    if (rd->turns != kv_task_at(r->set, rd->sample)->n_turns) return bad(rd, "'turns' is another number than the sample's");
    return *kv_task_results_done(r, rd->sample, rd->policy) ? bad(rd, "this row stands in it already") : KVIST_OK;
}

static kv_status take_row(reader *rd, json_t *row) {
    const char *id = text_at(row, "id"), *policy = text_at(row, "policy");
    uint64_t turn = 0;
    if (!id || !policy) return bad(rd, "no 'id' or no 'policy'");
    if (rd->turn == rd->turns)
        KV_TRY(begin(rd, row));
    else if (strcmp(id, text_at(rd->first, "id")) != 0 || strcmp(policy, text_at(rd->first, "policy")) != 0)
        return bad(rd, "the answer before is not complete");
    KV_TRY(get_count(rd, row, "turn", rd->turns, &turn));
    if (turn != rd->turn + 1) return bad(rd, "turns count from 1, one by one");
    if (rd->ours) KV_TRY(fill_row(rd, row, kv_task_results_row(rd->r, rd->sample, rd->policy, (uint32_t)rd->turn)));
    rd->turn++;
    if (rd->ours) *kv_task_results_done(rd->r, rd->sample, rd->policy) = rd->turn == rd->turns;
    return KVIST_OK;
}

/* An answer that is not complete is run again. */
static void forget_incomplete(reader *rd) {
    for (uint32_t t = 0; rd->ours && rd->turn < rd->turns && t < rd->turn; t++) {
        kv_task_row *row = kv_task_results_row(rd->r, rd->sample, rd->policy, t);
        kv_free(row->text);
        row->text = NULL;
    }
}

/* Reads whole lines of text[0..len); *keep = bytes up to the end of the last complete conversation. */
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
        if (rd->turn == rd->turns) *keep = at;
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
    json_decref(rd.first);
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
    json_t *ours = header_json(run_id);
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
