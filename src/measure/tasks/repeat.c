/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recall as perplexity: a passage stands early in a long text and comes again at its end. The question is the passage's
 * first words, the answer the rest of it, scored teacher-forced: a cache that still holds the passage predicts it.
 * (page-formats study, section 5: full caches reach perplexities of 1.0 to 1.5 there.) Passages of 128, 256 and 384
 * tokens, in the first half of the context; places and passages drawn by the seed. Strata "passage-N". Data: any long
 * text.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task_build.h"

enum {
    SAMPLES = 24,    /* where no limit asks for more */
    CUE_TOKENS = 40, /* of the copy: behind them a full cache is sure of what comes */
    SAMPLES_MAX = 100000,
    CONTEXT_MAX = 16384, /* tokens, where n_ctx sets no end */
};
static const uint32_t passage_tokens[] = {128, 256, 384};
enum { PASSAGES = sizeof passage_tokens / sizeof *passage_tokens };

typedef struct state {
    char *text;
    size_t len;
} state;

static kv_status open_text(kv_task_build *b, kv_error *err) {
    state *st = b->state = kv_calloc(1, sizeof *st);
    KV_TASK_NEW(err, st);
    KV_TRY(kv_task_read_prose(b->p->path, &st->text, &st->len, err));
    if (b->p->limit > SAMPLES_MAX) KV_FAIL(err, ARG, "repeat: at most %d samples", SAMPLES_MAX);
    uint32_t n = b->p->limit > SAMPLES ? b->p->limit : SAMPLES;
    for (uint32_t i = 0; i < n; i++) {
        char id[48], stratum[32];
        snprintf(id, sizeof id, "repeat-%u-%u", passage_tokens[i % PASSAGES], i / PASSAGES);
        snprintf(stratum, sizeof stratum, "passage-%u", passage_tokens[i % PASSAGES]);
        KV_TRY(kv_task_candidate(b, id, stratum, err));
    }
    return KVIST_OK;
}

/* Bytes from a drawn place of text[0..len) on, behind a line's end, with room for `tokens` tokens of up to ten bytes.
 */
static size_t draw_place(uint64_t *rng, const char *text, size_t len, size_t tokens) {
    size_t need = 10 * tokens < len ? 10 * tokens : len;
    size_t at = kv_task_below(rng, (uint32_t)(len - need + 1));
    while (at && text[at - 1] != '\n') at--;
    return at;
}

/* Length of the piece of text that ends at a blank at or before byte n. */
static size_t at_blank(const char *text, size_t n) {
    size_t i = n;
    while (i > n / 2 && text[i - 1] != ' ' && text[i - 1] != '\n') i--;
    return i > n / 2 ? i : n;
}

static kv_status too_short(const kv_task_build *b, const kv_sample *s, size_t tokens, kv_error *err) {
    KV_FAIL(err, ARG, "%s: too short for %s with a context of %zu tokens", b->p->path, s->id, tokens);
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    const state *st = b->state;
    uint64_t rng = kv_task_seed(b, s->id, 1);
    size_t want = passage_tokens[i % PASSAGES], room;
    KV_TRY(kv_task_room(b, s->id, want, 2 * want, &room, err));
    if (room > CONTEXT_MAX) room = CONTEXT_MAX;
    /* The passage comes from the last tenth of the text, what surrounds it from before: they never overlap. */
    size_t border = st->len / 10 * 9;
    while (border && st->text[border - 1] != '\n') border--;
    const char *tail = st->text + border;
    size_t tail_len = st->len - border, from = draw_place(&rng, tail, tail_len, want);
    const char *passage = tail + from;
    size_t n = at_blank(passage, kv_task_fit(b, passage, tail_len - from, want, false));
    size_t cue = at_blank(passage, kv_task_fit(b, passage, n, CUE_TOKENS, false));
    size_t rest_tokens = kv_task_tokens(b, passage + cue, n - cue);
    if (rest_tokens < want / 2) return too_short(b, s, room, err);
    size_t hay = room - want - want / 8; /* joints, and that a piece counts more tokens than it does inside its text */
    size_t start = draw_place(&rng, st->text, border, hay);
    const char *text = st->text + start;
    size_t len = kv_task_fit(b, text, border - start, hay, false);
    if (len == border - start && kv_task_tokens(b, text, len) + hay / 50 + 1 < hay) return too_short(b, s, room, err);
    size_t at = len / 2 ? kv_task_below(&rng, (uint32_t)(len / 2)) : 0;
    while (at && text[at - 1] != '\n') at--;
    s->context = kv_task_printf(b, "%.*s%.*s\n\n%.*s\n\n", (int)at, text, (int)n, passage, (int)(len - at), text + at);
    KV_TASK_NEW(err, s->context);
    KV_TRY(kv_task_turns(b, s, 1, err));
    s->turns->question = kv_task_strndup(b, passage, cue);
    KV_TASK_NEW(err, s->turns->question);
    s->metric = KV_METRIC_NLL;
    s->max_new = (uint32_t)rest_tokens;
    return kv_task_answers(b, s->turns, 1, (const char *[]){kv_task_strndup(b, passage + cue, n - cue)}, err);
}

static void close_text(kv_task_build *b) {
    state *st = b->state;
    if (st) kv_free(st->text);
    kv_free(st);
}

const kv_task_kind kv_task_repeat = {
    .name = "repeat",
    .description = "a passage of a text comes again at its end: recall as perplexity; parts passage-N",
    .open = open_text,
    .make = make,
    .close = close_text,
};
