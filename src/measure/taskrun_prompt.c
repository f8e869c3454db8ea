/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sample as tokens. The rendered conversation is cut at marks that stand for the context's end and for an answer, so
 * that whatever a template writes around them is kept. Invariant: the pieces do not depend on when the context is
 * compressed, nor on the policy.
 */
#include <string.h>

#include "base/alloc.h"
#include "measure/taskrun_parts.h"

/* No text holds these: control characters, kept by every template. */
#define MARK_QUESTION "\x01kvist question\x01"
#define MARK_ANSWER "\x01kvist answer\x01"

typedef struct frame {
    kvist_model *model;
    char *all;           /* the rendered conversations, cut by zeros */
    const char *before;  /* what stands before the question of turn 0: opening and context */
    const char *after;   /* between a question and its answer */
    const char *between; /* between an answer and the next question */
    bool parse;          /* special tokens are the template's */
} frame;

static char *join(const char *a, const char *b, const char *c) {
    size_t na = strlen(a), nb = strlen(b), nc = strlen(c);
    char *s = kv_malloc(na + nb + nc + 1);
    if (!s) return NULL;
    memcpy(s, a, na);
    memcpy(s + na, b, nb);
    memcpy(s + na + nb, c, nc + 1);
    return s;
}

/* Cuts text at the only occurrence of mark; *rest is what follows it. */
static kv_status cut(char *text, const char *mark, char **rest, kv_error *err) {
    char *at = strstr(text, mark);
    if (!at || strstr(at + 1, mark))
        KV_FAIL(err, UNSUPPORTED, "the chat template does not keep a message's text as it is");
    *at = 0;
    *rest = at + strlen(mark);
    return KVIST_OK;
}

static kv_status render(kvist_model *model, const kvist_message *m, size_t n, char **out, kv_error *err) {
    size_t len = 0;
    *out = NULL;
    KV_TRY(kvist_chat_render(model, NULL, m, n, true, NULL, 0, &len, err));
    char *buf = kv_malloc(len + 1);
    if (!buf) KV_FAIL(err, MEMORY, "no memory for a prompt of %zu bytes", len);
    kv_status st = kvist_chat_render(model, NULL, m, n, true, buf, len + 1, &len, err);
    if (st != KVIST_OK) {
        kv_free(buf);
        return st;
    }
    *out = buf;
    return KVIST_OK;
}

/* Opening and closing of turns, from a conversation of one exchange more than is needed for the first question. */
static kv_status render_chat(frame *f, const kv_sample *s, char **first, char **later, kv_error *err) {
    char *content = join(s->context, MARK_QUESTION, ""), *rest = NULL, *question;
    if (!content) KV_FAIL(err, MEMORY, "no memory for a prompt");
    kvist_message m[3] = {{"user", content}, {"assistant", MARK_ANSWER}, {"user", MARK_QUESTION}};
    kv_status st = render(f->model, m, 1, first, err);
    if (st == KVIST_OK) st = cut(*first, MARK_QUESTION, &rest, err);
    if (st == KVIST_OK) {
        f->before = *first;
        f->after = rest;
    }
    m[0].content = "-";
    if (st == KVIST_OK && s->n_turns > 1) st = render(f->model, m, 3, later, err);
    if (st == KVIST_OK && s->n_turns > 1) st = cut(*later, MARK_ANSWER, &rest, err);
    if (st == KVIST_OK && s->n_turns > 1) st = cut(rest, MARK_QUESTION, &question, err);
    if (st == KVIST_OK && s->n_turns > 1) f->between = rest;
    kv_free(content);
    return st;
}

/* special: BOS as the model asks, once even where the template writes it too. */
static kv_status tokens(const frame *f, const char *text, bool special, kv_task_piece *out, kv_error *err) {
    size_t len = strlen(text), cap = len + 8, n = 0; /* no tokenizer has more tokens than bytes, special ones aside */
    unsigned flags = (special ? KVIST_TOK_SPECIAL : 0u) | (f->parse ? KVIST_TOK_PARSE : 0u);
    out->ids = kv_malloc(cap * sizeof *out->ids);
    if (!out->ids) KV_FAIL(err, MEMORY, "no memory for the tokens of %zu bytes", len);
    KV_TRY(kvist_tokenize(f->model, text, len, flags, out->ids, cap, &n, err));
    if (n > cap) KV_FAIL(err, STATE, "%zu bytes have %zu tokens", len, n);
    size_t bytes;
    int32_t *p = out->ids;
    if (special && f->parse && n >= 2 && p[0] == p[1] &&
        (!kvist_token_bytes(f->model, p[0], false, &bytes) || bytes == 0)) /* a control token */
        memmove(p, p + 1, --n * sizeof *p);
    out->n = (uint32_t)n;
    if (n && n < cap / 2) { /* prompts of a whole set are held: give back what bytes have more than tokens */
        int32_t *less = kv_realloc(p, n * sizeof *p);
        if (less) out->ids = less;
    }
    return KVIST_OK;
}

static kv_status tokenize_turn(const frame *f, const kv_sample *s, uint32_t t, kv_task_tokens *out, kv_error *err) {
    const kv_turn *turn = &s->turns[t];
    const char *between = t ? f->between : "";
    char *question = join(between, turn->question, f->after), *text = question ? join(question, turn->lead, "") : NULL;
    kv_status st = text ? tokens(f, text, false, &out->questions[t], err)
                        : kv_fail(err, KVIST_E_MEMORY, "no memory for a question");
    kv_free(question);
    kv_free(text);
    if (st != KVIST_OK) return st;
    uint32_t answer = s->max_new;
    if (s->metric == KV_METRIC_NLL) {
        frame plain = *f;
        plain.parse = false; /* a reference is text */
        if (!turn->n_answers) KV_FAIL(err, FORMAT, "turn %u has no reference to read", t + 1);
        KV_TRY(tokens(&plain, turn->answers[0], false, &out->references[t], err));
        answer = out->references[t].n;
        if (!answer) KV_FAIL(err, FORMAT, "the reference of turn %u is empty", t + 1);
    }
    out->n_most += out->questions[t].n + answer;
    return KVIST_OK;
}

kv_status kv_task_tokenize(kvist_model *model, const kv_sample *s, kv_task_tokens *out, kv_error *err) {
    memset(out, 0, sizeof *out);
    kvist_model_info info;
    kvist_model_get_info(model, &info);
    /* Without a template, a later question stands on lines of its own, as the first one follows the context. */
    frame f = {
        .model = model, .before = s->context, .after = "", .between = "\n\n", .parse = s->chat && info.chat_family};
    char *first = NULL, *later = NULL;
    kv_status st = KVIST_OK;
    if (!s->n_turns) st = kv_fail(err, KVIST_E_FORMAT, "no question");
    out->questions = kv_calloc(s->n_turns, sizeof *out->questions);
    out->references = kv_calloc(s->n_turns, sizeof *out->references);
    out->n_turns = s->n_turns;
    if (!out->questions || !out->references)
        st = kv_fail(err, KVIST_E_MEMORY, "no memory for %u questions", s->n_turns);
    if (st == KVIST_OK && f.parse) st = render_chat(&f, s, &first, &later, err);
    if (st == KVIST_OK) st = tokens(&f, f.before, true, &out->context, err);
    out->n_most = out->context.n;
    for (uint32_t t = 0; st == KVIST_OK && t < s->n_turns; t++) st = tokenize_turn(&f, s, t, out, err);
    if (st == KVIST_OK && !(out->context.n + out->questions[0].n)) st = kv_fail(err, KVIST_E_FORMAT, "nothing to read");
    kv_free(first);
    kv_free(later);
    if (st != KVIST_OK) kv_task_tokens_free(out);
    return st;
}

void kv_task_tokens_free(kv_task_tokens *t) {
    for (uint32_t i = 0; i < t->n_turns; i++) {
        if (t->questions) kv_free(t->questions[i].ids);
        if (t->references) kv_free(t->references[i].ids);
    }
    kv_free(t->questions);
    kv_free(t->references);
    kv_free(t->context.ids);
    memset(t, 0, sizeof *t);
}
