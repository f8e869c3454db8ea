/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Retrieval of a value by its key among pairs of random UUIDs in one JSON object (Liu et al. 2023, "Lost in the
 * Middle", section 3). Data: that paper's files, {ordered_kv_records: [[key, value], ...], key, value} a line. A record
 * that is too long loses pairs, never one that is asked for; every sample of a file keeps the same number, so that they
 * form one stratum, "keys-N". The answer begins with the key: small models that would chat about the object still show
 * whether they can find it.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task_build.h"

/* A UUID is at most 36 tokens; the quote and the line's end follow. */
enum { ANSWER_TOKENS = 40 };

static const char opening[] = "Here is a JSON object. Every key and every value in it is a random identifier.\n\n{";
static const char closing[] = "}\n";

typedef struct state {
    kv_jsonl file;
    uint32_t keep; /* pairs a sample */
} state;

/* A record as read: pairs[n], and the place of the pair its own question asks for. */
typedef struct record {
    json_t *json, *pairs;
    uint32_t n, asked;
} record;

static const char *part(const record *r, uint32_t i, size_t k) {
    return json_string_value(json_array_get(json_array_get(r->pairs, i), k));
}

static kv_status read_record(const state *st, uint32_t i, record *r, kv_error *err) {
    const char *key, *value;
    *r = (record){0};
    KV_TRY(kv_jsonl_at(&st->file, i, &r->json, err));
    kv_status status = kv_jsonl_string(&st->file, i, r->json, "key", true, &key, err);
    if (status == KVIST_OK) status = kv_jsonl_string(&st->file, i, r->json, "value", true, &value, err);
    if (status == KVIST_OK) {
        const char *wrong = NULL;
        r->pairs = json_object_get(r->json, "ordered_kv_records");
        r->n = (uint32_t)json_array_size(r->pairs);
        r->asked = UINT32_MAX;
        if (!r->n) wrong = "is not an array of pairs";
        for (uint32_t k = 0; k < r->n && !wrong; k++) {
            const char *a = part(r, k, 0), *b = part(r, k, 1);
            if (!a || !b || !*a || !*b || json_array_size(json_array_get(r->pairs, k)) != 2)
                wrong = "holds what is not a pair of strings";
            else if (!strcmp(a, key) && !strcmp(b, value))
                r->asked = k;
        }
        if (!wrong && r->asked == UINT32_MAX) wrong = "does not hold the pair of 'key' and 'value'";
        if (wrong) status = kv_jsonl_fail(&st->file, i, "ordered_kv_records", wrong, err);
    }
    if (status != KVIST_OK) json_decref(r->json);
    return status;
}

/* The pairs `which`[n] in this order, as the object's text. kv_free. */
static char *object_text(const record *r, const uint32_t *which, uint32_t n) {
    size_t size = sizeof opening + sizeof closing, at;
    for (uint32_t i = 0; i < n; i++) size += strlen(part(r, which[i], 0)) + strlen(part(r, which[i], 1)) + 16;
    char *t = kv_malloc(size);
    if (!t) return NULL;
    at = (size_t)snprintf(t, size, "%s", opening);
    for (uint32_t i = 0; i < n; i++)
        at += (size_t)snprintf(t + at, size - at, "\"%s\": \"%s\"%s", part(r, which[i], 0), part(r, which[i], 1),
                               i + 1 < n ? ",\n " : "");
    snprintf(t + at, size - at, "%s", closing);
    return t;
}

static uint32_t n_turns(const kv_task_build *b) { return b->p->questions ? b->p->questions : 1; }

/* Chooses `keep` pairs in the record's order: those asked for, drawn first, and others. asked[turns] are their places.
 */
static uint32_t *draw(const kv_task_build *b, const record *r, const char *id, uint32_t keep, uint32_t *asked) {
    uint32_t *order = kv_malloc(r->n * sizeof *order), turns = n_turns(b), kept = 0;
    bool *in = kv_calloc(r->n, sizeof *in);
    if (order && in) {
        uint64_t rng = kv_task_seed(b, id, 1);
        for (uint32_t i = 0; i < r->n; i++) order[i] = i;
        kv_task_shuffle(&rng, order, r->n);
        for (uint32_t i = 0; i < r->n; i++) /* the record's own question is the first */
            if (order[i] == r->asked) order[i] = order[0], order[0] = r->asked;
        for (uint32_t i = 0; i < turns; i++) asked[i] = order[i];
        for (uint32_t i = 0; i < keep; i++) in[order[i]] = true;
        for (uint32_t i = 0; i < r->n; i++)
            if (in[i]) order[kept++] = i;
    }
    kv_free(in);
    if (order && kept == keep) return order;
    kv_free(order);
    return NULL;
}

static char *question(kv_task_build *b, const char *key) {
    return kv_task_printf(b, "\nWhich value stands beside the key \"%s\"? Answer with the pair as it is written above.",
                          key);
}

static kv_status tokens_of(kv_task_build *b, const record *r, const char *id, uint32_t keep, size_t *used,
                           size_t *tokens, kv_error *err) {
    uint32_t turns = n_turns(b), *asked = kv_malloc(turns * sizeof *asked);
    uint32_t *which = asked ? draw(b, r, id, keep, asked) : NULL;
    char *text = which ? object_text(r, which, keep) : NULL;
    char *q = which ? question(b, part(r, asked[0], 0)) : NULL;
    if (text && q) {
        *tokens = kv_task_tokens(b, text, strlen(text));
        /* Every question is as long as the first, and the answer begins with the key again. */
        *used = turns * (2 * kv_task_tokens(b, q, strlen(q)) + ANSWER_TOKENS + (turns > 1 ? 16 : 0));
    }
    kv_free(asked);
    kv_free(which);
    kv_free(text);
    KV_TASK_NEW(err, text && q);
    return KVIST_OK;
}

/* The number of pairs that every record of the file can keep. */
static kv_status find_keep(kv_task_build *b, state *st, kv_error *err) {
    for (uint32_t i = 0; i < st->file.n; i++) {
        char id[32];
        record r;
        size_t used = 0, tokens = 0, room;
        KV_TRY(read_record(st, i, &r, err));
        snprintf(id, sizeof id, "kv-%u", i);
        uint32_t keep = r.n < st->keep ? r.n : st->keep;
        kv_status status = r.n < n_turns(b) ? kv_fail(err, KVIST_E_ARG, "%s: line %u: %u questions, but only %u pairs",
                                                      st->file.path, st->file.lines[i].number, n_turns(b), r.n)
                                            : KVIST_OK;
        while (status == KVIST_OK) {
            status = tokens_of(b, &r, id, keep, &used, &tokens, err);
            if (status == KVIST_OK) status = kv_task_room(b, id, used, tokens / keep * n_turns(b), &room, err);
            if (status != KVIST_OK || tokens <= room) break;
            uint32_t fewer = (uint32_t)((double)keep * (double)room / (double)tokens);
            keep = fewer < keep ? fewer : keep - 1;
            if (keep < n_turns(b)) status = kv_task_room(b, id, used, tokens, &room, err);
        }
        json_decref(r.json);
        KV_TRY(status);
        st->keep = keep;
    }
    return KVIST_OK;
}

static kv_status open_file(kv_task_build *b, kv_error *err) {
    state *st = b->state = kv_calloc(1, sizeof *st);
    KV_TASK_NEW(err, st);
    KV_TRY(kv_jsonl_open(b->p->path, &st->file, err));
    st->keep = UINT32_MAX;
    KV_TRY(find_keep(b, st, err));
    char id[32], stratum[32];
    snprintf(stratum, sizeof stratum, "keys-%u", st->keep);
    for (uint32_t i = 0; i < st->file.n; i++) {
        snprintf(id, sizeof id, "kv-%u", i);
        KV_TRY(kv_task_candidate(b, id, stratum, err));
    }
    return KVIST_OK;
}

static kv_status fill(kv_task_build *b, const record *r, const uint32_t *asked, kv_sample *s, kv_error *err) {
    KV_TRY(kv_task_turns(b, s, n_turns(b), err));
    for (uint32_t t = 0; t < s->n_turns; t++) {
        const char *value = part(r, asked[t], 1);
        s->turns[t].question = question(b, part(r, asked[t], 0));
        s->turns[t].lead = kv_task_printf(b, "\"%s\": \"", part(r, asked[t], 0));
        if (!s->turns[t].question || !s->turns[t].lead) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
        KV_TRY(kv_task_answers(b, s->turns + t, 1, (const char *[]){kv_task_strndup(b, value, strlen(value))}, err));
    }
    s->metric = KV_METRIC_SUBSTRING;
    s->max_new = ANSWER_TOKENS;
    s->chat = s->first_line = true;
    return KVIST_OK;
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    state *st = b->state;
    record r;
    KV_TRY(read_record(st, i, &r, err));
    uint32_t *asked = kv_malloc(n_turns(b) * sizeof *asked);
    uint32_t *which = asked ? draw(b, &r, s->id, st->keep, asked) : NULL;
    char *text = which ? object_text(&r, which, st->keep) : NULL;
    s->context = text ? kv_task_strndup(b, text, strlen(text)) : NULL;
    kv_status status = s->context ? fill(b, &r, asked, s, err) : kv_fail(err, KVIST_E_MEMORY, "no memory for a sample");
    kv_free(asked);
    kv_free(which);
    kv_free(text);
    json_decref(r.json);
    return status;
}

static void close_file(kv_task_build *b) {
    state *st = b->state;
    if (st) kv_jsonl_close(&st->file);
    kv_free(st);
}

const kv_task_kind kv_task_kvretrieval = {
    .name = "kvretrieval",
    .description = "the value of a key among random UUIDs (Lost in the Middle); parts keys-N",
    .multi_turn = true,
    .open = open_file,
    .make = make,
    .close = close_file,
};
