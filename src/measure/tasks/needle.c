/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A needle in a haystack (Kamradt 2023): one sentence that tells a number, at a depth of a text that has nothing to do
 * with it, and the question for the number. A grid of lengths x depths; each cell has its own place in the text, its
 * own fact and number, drawn by the seed. Strata by length, "L tokens of context": "needle-4096". Data: any long text.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task_build.h"

enum {
    LENGTHS = 4,        /* a quarter, half, three quarters, all of the context */
    DEPTHS = 6,         /* 0, 20, ..., 100 % */
    CELLS_MAX = 100000, /* of the grid with its repeats */
    ANSWER_TOKENS = 16, /* seven digits, a token each at worst, and some words */
    LENGTH_MIN = 64,    /* tokens: the sentence and something around it */
};

static const char *const things[] = {"blue cabinet", "harbour gate", "old safe",        "archive door",
                                     "silver trunk", "greenhouse",   "boat shed",       "music room",
                                     "tower clock",  "wine cellar",  "post office box", "map drawer"};
static const char *const places[] = {"Bergen", "Coimbra", "Trieste", "Galway", "Tartu", "Bruges", "Ronda", "Lugano"};
enum { THINGS = sizeof things / sizeof *things, PLACES = sizeof places / sizeof *places };

static const char opening[] = "Somewhere in the following text a code is told. Remember it.\n\n";

typedef struct state {
    char *text;
    size_t len;
    uint32_t lengths, depths, repeats;
    size_t most; /* tokens of the longest context */
} state;

static const char *thing(uint64_t rng) { return things[rng % THINGS]; }
static const char *place(uint64_t rng) { return places[rng / THINGS % PLACES]; }

static char *question_of(kv_task_build *b, uint64_t fact) {
    return kv_task_printf(b, "\n\nWhat is the code of the %s in %s?", thing(fact), place(fact));
}

static char *lead_of(kv_task_build *b, uint64_t fact) {
    return kv_task_printf(b, "The code of the %s in %s is", thing(fact), place(fact));
}

/* Tokens of the longest context: what n_ctx leaves beside the longest question. */
static kv_status longest(kv_task_build *b, size_t *tokens, kv_error *err) {
    size_t used = 0;
    if (!b->p->n_ctx) KV_FAIL(err, ARG, "needle: how long is the context? (n_ctx)");
    for (uint64_t f = 0; f < THINGS * PLACES; f++) {
        const char *q = question_of(b, f), *l = lead_of(b, f);
        if (!q || !l) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
        size_t n = kv_task_tokens(b, q, strlen(q)) + kv_task_tokens(b, l, strlen(l));
        if (n > used) used = n;
    }
    return kv_task_room(b, "needle", used + ANSWER_TOKENS, LENGTH_MIN, tokens, err);
}

/* Lengths are multiples of 64 tokens, so that strata have round names. */
static uint32_t length_of(const state *st, uint32_t i) {
    size_t n = st->most * (i + 1) / st->lengths / 64 * 64;
    return n < LENGTH_MIN ? LENGTH_MIN : (uint32_t)n;
}

static double depth_of(const state *st, uint32_t i) { return st->depths > 1 ? (double)i / (st->depths - 1) : 0.5; }

static kv_status open_text(kv_task_build *b, kv_error *err) {
    state *st = b->state = kv_calloc(1, sizeof *st);
    KV_TASK_NEW(err, st);
    st->lengths = b->p->n_lengths ? b->p->n_lengths : LENGTHS;
    st->depths = b->p->n_depths ? b->p->n_depths : DEPTHS;
    st->repeats = b->p->repeats ? b->p->repeats : 1;
    if ((double)st->lengths * st->depths * st->repeats > CELLS_MAX)
        KV_FAIL(err, ARG, "needle: %u lengths x %u depths x %u is more than %d samples", st->lengths, st->depths,
                st->repeats, CELLS_MAX);
    KV_TRY(kv_task_read_prose(b->p->path, &st->text, &st->len, err));
    KV_TRY(longest(b, &st->most, err));
    for (uint32_t l = 0; l < st->lengths; l++) {
        uint32_t length = length_of(st, l);
        if (l && length == length_of(st, l - 1))
            KV_FAIL(err, ARG, "needle: %u lengths in %zu tokens lie closer than 64", st->lengths, st->most);
        for (uint32_t d = 0; d < st->depths; d++)
            for (uint32_t k = 0; k < st->repeats; k++) {
                char id[64], stratum[32];
                snprintf(id, sizeof id, "needle-%u-%.3f-%u", length, depth_of(st, d), k);
                snprintf(stratum, sizeof stratum, "needle-%u", length);
                KV_TRY(kv_task_candidate(b, id, stratum, err));
            }
    }
    return KVIST_OK;
}

/* The end of the sentence nearest to byte `at` of s[0..n); the nearest blank where there is none within 2,000 bytes. */
static size_t sentence_end(const char *s, size_t n, size_t at) {
    size_t blank = n;
    for (size_t d = 0; d <= 2000; d++)
        for (int side = 0; side < 2; side++) {
            if (side ? at + d > n : d > at) continue;
            size_t i = side ? at + d : at - d;
            if (i == 0 || i == n) return i;
            if (s[i] != ' ' && s[i] != '\n') continue;
            if (memchr(".!?", s[i - 1], 3) || s[i - 1] == '\n') return i;
            if (blank == n) blank = i;
        }
    return blank;
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    const state *st = b->state;
    s->length = length_of(st, i / st->repeats / st->depths);
    s->depth = depth_of(st, i / st->repeats % st->depths);
    uint64_t rng = kv_task_seed(b, s->id, 1), fact = kv_task_rand(&rng);
    uint32_t code = 1000000 + kv_task_below(&rng, 9000000);
    char *needle = kv_task_printf(b, "The code of the %s in %s is %u.", thing(fact), place(fact), code);
    KV_TASK_NEW(err, needle);
    size_t fixed = kv_task_tokens(b, needle, strlen(needle)) + kv_task_tokens(b, opening, strlen(opening));
    if (s->length <= fixed) KV_FAIL(err, ARG, "needle: %u tokens do not hold the sentence", s->length);
    /* A window of the text that begins behind a line's end. It is long enough where the rest has ten bytes a token. */
    size_t hay = s->length - fixed, need = 10 * hay < st->len ? 10 * hay : st->len;
    size_t from = kv_task_below(&rng, (uint32_t)(st->len - need + 1));
    while (from && st->text[from - 1] != '\n') from--;
    const char *text = st->text + from;
    size_t n = kv_task_fit(b, text, st->len - from, hay, false);
    if (n == st->len - from && kv_task_tokens(b, text, n) + hay / 50 + 1 < hay)
        KV_FAIL(err, ARG, "%s: too short for a context of %u tokens", b->p->path, s->length);
    size_t at = sentence_end(text, n, (size_t)(s->depth * (double)n));
    s->context = kv_task_printf(b, "%s%.*s%s%s%s%.*s", opening, (int)at, text, at ? " " : "", needle, at ? "" : "\n",
                                (int)(n - at), text + at);
    KV_TASK_NEW(err, s->context);
    KV_TRY(kv_task_turns(b, s, 1, err));
    s->turns->question = question_of(b, fact);
    s->turns->lead = lead_of(b, fact);
    if (!s->turns->question || !s->turns->lead) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
    KV_TRY(kv_task_answers(b, s->turns, 1, (const char *[]){kv_task_printf(b, "%u", code)}, err));
    s->metric = KV_METRIC_SUBSTRING;
    s->max_new = ANSWER_TOKENS;
    s->chat = s->first_line = true;
    return KVIST_OK;
}

static void close_text(kv_task_build *b) {
    state *st = b->state;
    if (st) kv_free(st->text);
    kv_free(st);
}

const kv_task_kind kv_task_needle = {
    .name = "needle",
    .description = "one sentence at a depth of a long text; parts needle-TOKENS",
    .grid = true,
    .open = open_text,
    .make = make,
    .close = close_text,
};
