/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LongEval (Li et al. 2023, LongChat): the number in one line among many, or the topics of a conversation by their
 * order. Data: its files; a record with `correct_line` is of lines, one with `topics` of topics, and both are cut to
 * whole items inside its `prompt`. All samples of a file keep the same number of items, the most that fits everywhere,
 * so that they form one stratum, "lines-N" or "topics-N". Lines: the asked ones and others, in a seeded order; the
 * answer begins with the line's own words up to "<", so that what is judged is the number. Topics: the first N; the
 * turns ask for the first, the second and so on.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/metric.h"
#include "measure/task_build.h"

/* Numbers have at most five digits, a token each at worst, and are followed by ">" and the line's end. A topic has
 * about ten words. */
enum { LINE_TOKENS = 10, TOPIC_TOKENS = 32 };

static const char line_middle[] = ": REGISTER_CONTENT is <";
static const char lines_opening[] =
    "Remember the lines below. Each has a name, and at its end a number, its REGISTER_CONTENT, "
    "between < and >.\n\n";
static const char topics_opening[] =
    "Below is the record of a conversation between a USER and an ASSISTANT about several "
    "topics, one after another. Remember the topics and their order.\n\n";
static const char topic_mark[] = "USER: I would like to discuss the topic of";
static const char *const ordinals[] = {"first",     "second",      "third",      "fourth",     "fifth",
                                       "sixth",     "seventh",     "eighth",     "ninth",      "tenth",
                                       "eleventh",  "twelfth",     "thirteenth", "fourteenth", "fifteenth",
                                       "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"};
enum { ORDINALS = sizeof ordinals / sizeof *ordinals };

typedef struct state {
    kv_jsonl file;
    bool topics;
    uint32_t keep; /* items a sample */
} state;

/* A record's items, pieces of its prompt; for lines with name and number. */
typedef struct record {
    json_t *json;
    kv_span *items; /* [n] */
    uint32_t n, asked;
    const json_t *topics; /* their names, by the record's own list */
} record;

static uint32_t n_turns(const kv_task_build *b) { return b->p->questions ? b->p->questions : 1; }

static kv_span line_name(kv_span line) {
    const char *end = memmem(line.s, line.n, line_middle, sizeof line_middle - 1);
    return (kv_span){line.s + 5, (size_t)(end - line.s) - 5};
}

static kv_span line_number(kv_span line) {
    const char *from =
        (const char *)memmem(line.s, line.n, line_middle, sizeof line_middle - 1) + sizeof line_middle - 1;
    return (kv_span){from, strspn(from, "0123456789")};
}

static bool is_line(kv_span l) {
    if (l.n < 6 || memcmp(l.s, "line ", 5) || !memmem(l.s, l.n, line_middle, sizeof line_middle - 1)) return false;
    kv_span number = line_number(l);
    return number.n > 0 && number.s + number.n < l.s + l.n && number.s[number.n] == '>';
}

static bool same(kv_span a, kv_span b) { return a.n == b.n && !memcmp(a.s, b.s, a.n); }

/* Items of the prompt between lines' ends, or between the marks of topics. */
static bool split_items(const state *st, const char *prompt, record *r) {
    uint32_t cap = 0;
    const char *step = st->topics ? topic_mark : "\n", *end = prompt + strlen(prompt);
    for (const char *at = prompt; at && at < end;) {
        const char *next = strstr(at + 1, step);
        kv_span item = {at, (size_t)((next ? next : end) - at)};
        if (!st->topics && *item.s == '\n') item.s++, item.n--;
        bool good = st->topics ? !strncmp(item.s, topic_mark, sizeof topic_mark - 1) : is_line(item);
        at = next;
        if (!good) continue;
        if (r->n == cap) {
            cap = cap ? 2 * cap : 64;
            kv_span *more = kv_realloc(r->items, cap * sizeof *more);
            if (!more) return false;
            r->items = more;
        }
        r->items[r->n++] = item;
    }
    return true;
}

static kv_status read_lines(const state *st, uint32_t i, record *r, kv_error *err) {
    const char *correct;
    KV_TRY(kv_jsonl_string(&st->file, i, r->json, "correct_line", true, &correct, err));
    kv_span c = {correct, strcspn(correct, "\n")};
    if (!is_line(c))
        return kv_jsonl_fail(&st->file, i, "correct_line", "is not 'line NAME: REGISTER_CONTENT is <N>'", err);
    for (uint32_t k = 0; k < r->n; k++)
        if (same(r->items[k], c)) r->asked = k;
    if (r->asked == UINT32_MAX)
        return kv_jsonl_fail(&st->file, i, "prompt", "does not hold the line of 'correct_line'", err);
    return KVIST_OK;
}

static kv_status read_topics(const state *st, uint32_t i, record *r, kv_error *err) {
    r->topics = json_object_get(r->json, "topics");
    if (!json_array_size(r->topics)) return kv_jsonl_fail(&st->file, i, "topics", "is not an array of names", err);
    for (size_t k = 0; k < json_array_size(r->topics); k++) {
        const char *t = json_string_value(json_array_get(r->topics, k));
        if (!t || !*t) return kv_jsonl_fail(&st->file, i, "topics", "is not an array of names", err);
    }
    if (r->n != json_array_size(r->topics))
        return kv_jsonl_fail(&st->file, i, "prompt", "does not have as many topics as 'topics'", err);
    /* The record's own question follows the last topic. */
    kv_span *last = r->items + r->n - 1;
    const char *end = memmem(last->s, last->n, "Now the record ends", 19);
    if (end) last->n = (size_t)(end - last->s);
    return KVIST_OK;
}

static void close_record(record *r) {
    json_decref(r->json);
    kv_free(r->items);
}

static kv_status read_record(const state *st, uint32_t i, record *r, kv_error *err) {
    const char *prompt;
    *r = (record){.asked = UINT32_MAX};
    KV_TRY(kv_jsonl_at(&st->file, i, &r->json, err));
    kv_status status = kv_jsonl_string(&st->file, i, r->json, "prompt", true, &prompt, err);
    if (status == KVIST_OK && !split_items(st, prompt, r))
        status = kv_fail(err, KVIST_E_MEMORY, "no memory for a record");
    if (status == KVIST_OK) status = st->topics ? read_topics(st, i, r, err) : read_lines(st, i, r, err);
    if (status != KVIST_OK) close_record(r);
    return status;
}

/* which[keep]: items in the order in which they are read; asked[]: those asked for, one a turn. Returns how many turns
 * have an item that can be asked for; -1 when out of memory. */
static int64_t draw(const kv_task_build *b, const state *st, const record *r, const char *id, uint32_t keep,
                    uint32_t *which, uint32_t *asked) {
    uint32_t turns = n_turns(b), found = 0;
    if (st->topics) {
        for (uint32_t i = 0; i < keep; i++) which[i] = i;
        for (uint32_t t = 0; t < turns; t++) asked[t] = t;
        return turns;
    }
    uint32_t *order = kv_malloc(r->n * sizeof *order);
    if (!order) return -1;
    uint64_t rng = kv_task_seed(b, id, 1);
    for (uint32_t i = 0; i < r->n; i++) order[i] = i;
    kv_task_shuffle(&rng, order, r->n);
    for (uint32_t i = 0; i < r->n; i++)
        if (order[i] == r->asked) order[i] = order[0], order[0] = r->asked;
    /* A line is asked for by its name: one whose name stands twice cannot be. */
    for (uint32_t i = 0; i < r->n && found < turns; i++) {
        bool twice = false;
        for (uint32_t k = 0; k < r->n && !twice; k++)
            twice = k != order[i] && same(line_name(r->items[k]), line_name(r->items[order[i]]));
        if (twice) continue;
        asked[found] = order[i];
        order[i] = order[found];
        order[found] = asked[found];
        found++;
    }
    memcpy(which, order, keep * sizeof *which);
    kv_free(order);
    kv_task_shuffle(&rng, which, keep);
    return found;
}

static char *context_text(const state *st, const record *r, const uint32_t *which, uint32_t keep) {
    const char *opening = st->topics ? topics_opening : lines_opening;
    size_t at = strlen(opening), size = at + 2;
    for (uint32_t i = 0; i < keep; i++) size += r->items[which[i]].n + 1;
    char *t = kv_malloc(size);
    if (!t) return NULL;
    memcpy(t, opening, at);
    for (uint32_t i = 0; i < keep; i++) {
        kv_span l = r->items[which[i]];
        memcpy(t + at, l.s, l.n);
        at += l.n;
        if (!st->topics) t[at++] = '\n';
    }
    t[at] = 0;
    return t;
}

static kv_status fill_turn(kv_task_build *b, const state *st, const record *r, uint32_t item, kv_turn *t,
                           kv_error *err) {
    const char *answers[2];
    uint32_t n = 1;
    if (st->topics) {
        const char *topic = json_string_value(json_array_get(r->topics, item));
        t->question =
            kv_task_printf(b, "\nWhich was the %s topic of the conversation? Give only its name.", ordinals[item]);
        answers[0] = kv_task_strndup(b, topic, strlen(topic));
        if (!strncmp(topic, "The ", 4) && topic[4]) answers[n++] = kv_task_strndup(b, topic + 4, strlen(topic + 4));
    } else {
        kv_span name = line_name(r->items[item]), number = line_number(r->items[item]);
        t->question = kv_task_printf(b, "\nWhat is the REGISTER_CONTENT in line %.*s?", (int)name.n, name.s);
        t->lead = kv_task_printf(b, "line %.*s%s", (int)name.n, name.s, line_middle);
        answers[0] = kv_task_strndup(b, number.s, number.n);
    }
    if (!t->question || !t->lead) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
    return kv_task_answers(b, t, n, answers, err);
}

static uint32_t answer_tokens(const state *st) { return st->topics ? TOPIC_TOKENS : LINE_TOKENS; }

/* The sample of record r with `keep` items, and its length: context, and everything else. */
static kv_status build(kv_task_build *b, const record *r, uint32_t keep, kv_sample *s, size_t *tokens, size_t *used,
                       kv_error *err) {
    const state *st = b->state;
    uint32_t turns = n_turns(b), *which = kv_malloc((keep + turns) * sizeof *which);
    char *text = NULL;
    int64_t found = which ? draw(b, st, r, s->id, keep, which, which + keep) : -1;
    if (found == turns) text = context_text(st, r, which, keep);
    kv_status status = found < 0       ? kv_fail(err, KVIST_E_MEMORY, "no memory for a sample")
                       : found < turns ? kv_fail(err, KVIST_E_ARG, "%s: %s: not %u lines with names of their own",
                                                 st->file.path, s->id, turns)
                                       : kv_task_turns(b, s, turns, err);
    if (status == KVIST_OK && !text) status = kv_fail(err, KVIST_E_MEMORY, "no memory for a sample");
    *used = 0;
    for (uint32_t t = 0; t < turns && status == KVIST_OK; t++) {
        kv_turn *turn = s->turns + t;
        status = fill_turn(b, st, r, which[keep + t], turn, err);
        if (status == KVIST_OK)
            *used += kv_task_tokens(b, turn->question, strlen(turn->question)) + answer_tokens(st) + (t ? 16 : 0) +
                     kv_task_tokens(b, turn->lead, strlen(turn->lead));
    }
    if (status == KVIST_OK) {
        *tokens = kv_task_tokens(b, text, strlen(text));
        s->context = text;
    } else {
        kv_free(text);
    }
    kv_free(which);
    return status;
}

/* Lines are dropped by tens: near lengths then share a stratum over files and seeds. */
static uint32_t fewer_items(const state *st, uint32_t keep, double fits) {
    uint32_t n = (uint32_t)(keep * fits);
    if (n >= keep) n = keep - 1;
    return st->topics || n < 10 ? n : n / 10 * 10;
}

static kv_status keep_of(kv_task_build *b, uint32_t i, const char *id, kv_error *err) {
    state *st = b->state;
    record r;
    KV_TRY(read_record(st, i, &r, err));
    uint32_t keep = r.n < st->keep ? r.n : st->keep, turns = n_turns(b);
    kv_status status = KVIST_OK;
    if (keep < turns || (st->topics && turns > ORDINALS))
        status = kv_fail(err, KVIST_E_ARG, "%s: line %u: %u questions, but only %u lines or topics", st->file.path,
                         st->file.lines[i].number, turns, keep);
    while (status == KVIST_OK) {
        kv_sample s = {.id = id};
        size_t tokens, used, room;
        status = build(b, &r, keep, &s, &tokens, &used, err);
        if (status != KVIST_OK) break;
        kv_free((char *)s.context);
        status = kv_task_room(b, id, used, tokens / keep * turns, &room, err);
        if (status != KVIST_OK || tokens <= room) break;
        keep = fewer_items(st, keep, (double)room / (double)tokens);
        if (keep < turns) status = kv_task_room(b, id, used, tokens, &room, err);
    }
    close_record(&r);
    st->keep = keep;
    return status;
}

static void sample_id(const state *st, uint32_t i, uint32_t all, char *id, size_t size) {
    snprintf(id, size, "%s%u-%u", st->topics ? "topics" : "lines", all, i);
}

static kv_status open_file(kv_task_build *b, kv_error *err) {
    state *st = b->state = kv_calloc(1, sizeof *st);
    KV_TASK_NEW(err, st);
    KV_TRY(kv_jsonl_open(b->p->path, &st->file, err));
    if (!st->file.n) return KVIST_OK;
    record r;
    json_t *first;
    KV_TRY(kv_jsonl_at(&st->file, 0, &first, err));
    bool lines = json_object_get(first, "correct_line");
    st->topics = json_object_get(first, "topics");
    json_decref(first);
    if (!lines && !st->topics)
        return kv_jsonl_fail(&st->file, 0, "correct_line", "is missing, and so is 'topics'", err);
    st->keep = UINT32_MAX;
    char id[48], stratum[32];
    /* Named by the first record's length, which is the file's ("200_lines"). */
    KV_TRY(read_record(st, 0, &r, err));
    uint32_t all = r.n;
    close_record(&r);
    for (uint32_t i = 0; i < st->file.n; i++) {
        sample_id(st, i, all, id, sizeof id);
        KV_TRY(keep_of(b, i, id, err));
    }
    snprintf(stratum, sizeof stratum, "%s-%u", st->topics ? "topics" : "lines", st->keep);
    for (uint32_t i = 0; i < st->file.n; i++) {
        sample_id(st, i, all, id, sizeof id);
        KV_TRY(kv_task_candidate(b, id, stratum, err));
    }
    return KVIST_OK;
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    const state *st = b->state;
    record r;
    size_t tokens, used;
    KV_TRY(read_record(st, i, &r, err));
    kv_status status = build(b, &r, st->keep, s, &tokens, &used, err);
    close_record(&r);
    KV_TRY(status);
    char *text = (char *)s->context;
    s->context = kv_task_strndup(b, text, strlen(text));
    kv_free(text);
    KV_TASK_NEW(err, s->context);
    s->metric = st->topics ? KV_METRIC_SUBSTRING : KV_METRIC_NUMBER;
    s->max_new = answer_tokens(st);
    s->chat = s->first_line = true;
    return KVIST_OK;
}

static void close_file(kv_task_build *b) {
    state *st = b->state;
    if (st) kv_jsonl_close(&st->file);
    kv_free(st);
}

const kv_task_kind kv_task_longeval = {
    .name = "longeval",
    .description = "a number among lines, or the order of topics (LongEval); parts lines-N, topics-N",
    .multi_turn = true,
    .open = open_file,
    .make = make,
    .close = close_file,
};
