/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grade-school arithmetic (Cobbe et al. 2021), eight solved examples before the question. Data: its file, {question,
 * answer} a line, the answer's working with its calculator notes <<...>> and the result behind "####". The examples of
 * a sample are other rows of the same file, drawn by the seed; a solution is written on one line, so that the answer
 * ends at the end of its line. Eight examples and a question take about 1,300 tokens; a context that does not hold them
 * is refused.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task_build.h"

/* Of 1,319 solutions 99 % have fewer than 230 tokens. */
enum { SHOTS = 8, ANSWER_TOKENS = 256 };

typedef struct row {
    json_t *json;
    const char *question;
    char *solution; /* one line; ends in "The answer is N." */
    char *result;   /* N */
} row;

static void close_row(row *r) {
    json_decref(r->json);
    kv_free(r->solution);
    kv_free(r->result);
}

/* The working without <<...>>, its lines joined by blanks. out[to - from]; returns its length. */
static size_t one_line(const char *from, const char *to, char *out) {
    size_t n = 0;
    for (const char *c = from; c < to; c++) {
        if (c[0] == '<' && c[1] == '<') {
            const char *end = strstr(c, ">>");
            if (end && end < to) {
                c = end + 1;
                continue;
            }
        }
        char ch = *c == '\n' || *c == '\r' ? ' ' : *c;
        if (ch == ' ' && n && out[n - 1] == ' ') continue;
        out[n++] = ch;
    }
    while (n && out[n - 1] == ' ') n--;
    return n;
}

static kv_status read_row(const kv_jsonl *j, uint32_t i, row *r, kv_error *err) {
    const char *answer;
    *r = (row){0};
    KV_TRY(kv_jsonl_at(j, i, &r->json, err));
    kv_status status = kv_jsonl_string(j, i, r->json, "question", true, &r->question, err);
    if (status == KVIST_OK) status = kv_jsonl_string(j, i, r->json, "answer", true, &answer, err);
    if (status == KVIST_OK) {
        const char *mark = strstr(answer, "####"), *from = mark ? mark + 4 + strspn(mark + 4, " ") : NULL;
        size_t n = from ? strcspn(from, " \r\n") : 0;
        if (!n) {
            status = kv_jsonl_fail(j, i, "answer", "does not end in '#### N'", err);
        } else {
            r->result = kv_strndup(from, n);
            r->solution = kv_malloc(strlen(answer) + 32);
            if (!r->result || !r->solution) {
                status = kv_fail(err, KVIST_E_MEMORY, "no memory for a record");
            } else {
                size_t at = one_line(answer, mark, r->solution);
                snprintf(r->solution + at, strlen(answer) + 32 - at, "%sThe answer is %s.", at ? " " : "", r->result);
            }
        }
    }
    if (status != KVIST_OK) close_row(r);
    return status;
}

/* Text of the examples of row `i`, the set's. It grows by copies: eight short ones. */
static kv_status examples(kv_task_build *b, uint32_t i, const char *id, const char **out, kv_error *err) {
    const kv_jsonl *j = b->state;
    uint32_t used[SHOTS];
    uint64_t rng = kv_task_seed(b, id, 1);
    const char *text = "";
    for (uint32_t n = 0; n < SHOTS;) {
        uint32_t pick = kv_task_below(&rng, j->n);
        bool again = pick == i;
        for (uint32_t k = 0; k < n; k++) again |= used[k] == pick;
        if (again) continue;
        used[n++] = pick;
        row r;
        KV_TRY(read_row(j, pick, &r, err));
        text = kv_task_printf(b, "%sQuestion: %s\nAnswer: %s\n\n", text, r.question, r.solution);
        close_row(&r);
        KV_TASK_NEW(err, text);
    }
    *out = text;
    return KVIST_OK;
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    row r;
    size_t room, tokens;
    KV_TRY(read_row(b->state, i, &r, err));
    const char *question = kv_task_printf(b, "Question: %s\nAnswer:", r.question);
    const char *result = kv_task_strndup(b, r.result, strlen(r.result));
    close_row(&r);
    if (!question || !result) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
    KV_TRY(examples(b, i, s->id, &s->context, err));
    tokens = kv_task_tokens(b, s->context, strlen(s->context));
    KV_TRY(kv_task_room(b, s->id, kv_task_tokens(b, question, strlen(question)) + ANSWER_TOKENS, tokens, &room, err));
    KV_TRY(kv_task_turns(b, s, 1, err));
    s->turns->question = question;
    s->metric = KV_METRIC_NUMBER;
    s->max_new = ANSWER_TOKENS;
    s->first_line = true;
    return kv_task_answers(b, s->turns, 1, &result, err);
}

static kv_status open_file(kv_task_build *b, kv_error *err) {
    kv_jsonl *j = b->state = kv_calloc(1, sizeof *j);
    KV_TASK_NEW(err, j);
    KV_TRY(kv_jsonl_open(b->p->path, j, err));
    if (j->n <= SHOTS)
        KV_FAIL(err, FORMAT, "%s: %u rows; %d examples and a question need more", b->p->path, j->n, SHOTS);
    for (uint32_t i = 0; i < j->n; i++) {
        char id[32];
        snprintf(id, sizeof id, "gsm8k-%u", i);
        KV_TRY(kv_task_candidate(b, id, "gsm8k", err));
    }
    return KVIST_OK;
}

static void close_file(kv_task_build *b) {
    if (b->state) kv_jsonl_close(b->state);
    kv_free(b->state);
}

const kv_task_kind kv_task_gsm8k = {
    .name = "gsm8k",
    .description = "grade-school arithmetic behind eight solved examples (GSM8K)",
    .open = open_file,
    .make = make,
    .close = close_file,
};
