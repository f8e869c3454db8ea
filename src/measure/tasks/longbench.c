/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LongBench (Bai et al. 2023) and files of its kind. Data: {task, idx, prompt, answers[, all_classes]} a line, the
 * prompt complete. For each of its 21 tasks the table has what its scripts have: metric, answer length, whether the
 * prompt goes through the chat template, whether one line of the answer counts; and where the question begins, so that
 * the context can be compressed before the question is seen. Contexts that are too long lose their middle, in tokens,
 * half from each end; the question and the final instruction are never cut.
 *
 * A task of another name is a user's own: `metric` names its metric (f1 where it has none), `max_new`, `chat` and
 * `first_line` its handling, and the question begins at the prompt's last empty line. `question` (and `context` for
 * `prompt`) give the two parts apart, for any task.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task_build.h"

typedef struct kind {
    const char *name;
    kv_metric metric;
    uint32_t max_new;
    bool chat, first_line;
    const char *split[2]; /* the question begins where the last of these begins */
} kind;

/* Metric by eval.py, answer lengths by config/dataset2maxlen.json, chat by pred.py, parts by
 * config/dataset2prompt.json. */
static const kind kinds[] = {
    {"narrativeqa", KV_METRIC_F1, 128, true, false, {"\n\nNow, answer the question based on the story"}},
    {"qasper",
     KV_METRIC_F1,
     128,
     true,
     false,
     {"\n\nAnswer the question based on the", "\n\n Answer the question based on the"}},
    {"multifieldqa_en", KV_METRIC_F1, 64, true, false, {"\n\nNow, answer the following question"}},
    {"multifieldqa_zh", KV_METRIC_F1_ZH, 64, true, false, {"\n\n现在请基于上面的文章"}},
    {"hotpotqa", KV_METRIC_F1, 32, true, false, {"\n\nAnswer the question based on the"}},
    {"2wikimqa", KV_METRIC_F1, 32, true, false, {"\n\nAnswer the question based on the"}},
    {"musique", KV_METRIC_F1, 32, true, false, {"\n\nAnswer the question based on the"}},
    {"dureader", KV_METRIC_ROUGE_L_ZH, 128, true, false, {"\n\n请基于上述文章"}},
    {"gov_report", KV_METRIC_ROUGE_L, 512, true, false, {"\n\nNow, write a one-page summary"}},
    {"qmsum", KV_METRIC_ROUGE_L, 512, true, false, {"\n\nNow, answer the query"}},
    {"multi_news", KV_METRIC_ROUGE_L, 512, true, false, {"\n\nNow, write a one-page summary"}},
    {"vcsum", KV_METRIC_ROUGE_L_ZH, 512, true, false, {"\n\n会议总结："}},
    {"trec", KV_METRIC_CLASSES, 64, false, true, {"\nQuestion: "}},
    {"triviaqa", KV_METRIC_F1, 32, false, true, {"\n\nPassage:"}},
    {"samsum", KV_METRIC_ROUGE_L, 128, false, true, {"\n\nDialogue: "}},
    {"lsht", KV_METRIC_CLASSES, 64, false, true, {"\n新闻内容："}},
    {"passage_count", KV_METRIC_COUNT, 32, true, false, {"\n\nPlease enter the final count"}},
    {"passage_retrieval_en", KV_METRIC_RETRIEVAL, 32, true, false, {"\n\nThe following is an abstract."}},
    {"passage_retrieval_zh", KV_METRIC_RETRIEVAL_ZH, 32, true, false, {"\n\n下面是一个摘要\n\n"}},
    {"lcc", KV_METRIC_EDIT_SIM, 64, false, false, {"Next line of code:"}},
    {"repobench-p", KV_METRIC_EDIT_SIM, 64, false, false, {"Next line of code:"}},
};
static const kind own = {"", KV_METRIC_F1, 64, true, false, {"\n\n"}};
enum { N_KINDS = sizeof kinds / sizeof *kinds, MAX_NEW_MAX = 1 << 20 };

static const kind *find_kind(const char *name) {
    for (size_t i = 0; i < N_KINDS; i++)
        if (!strcmp(kinds[i].name, name)) return kinds + i;
    return &own;
}

/* "idx" may be a number or a string, and be absent: the line's number serves. */
static kv_status id_of(const kv_jsonl *j, uint32_t i, const json_t *o, const char *task, char *id, size_t size,
                       kv_error *err) {
    const json_t *idx = json_object_get(o, "idx");
    int n;
    if (!idx)
        n = snprintf(id, size, "%s-line%u", task, j->lines[i].number);
    else if (json_is_integer(idx))
        n = snprintf(id, size, "%s-%lld", task, (long long)json_integer_value(idx));
    else if (json_is_string(idx))
        n = snprintf(id, size, "%s-%s", task, json_string_value(idx));
    else
        return kv_jsonl_fail(j, i, "idx", "is neither a number nor a string", err);
    return n > 0 && (size_t)n < size ? KVIST_OK : kv_jsonl_fail(j, i, "idx", "and 'task' are too long together", err);
}

static kv_status open_file(kv_task_build *b, kv_error *err) {
    kv_jsonl *j = b->state = kv_calloc(1, sizeof *j);
    KV_TASK_NEW(err, j);
    KV_TRY(kv_jsonl_open(b->p->path, j, err));
    for (uint32_t i = 0; i < j->n; i++) {
        json_t *o;
        const char *task = NULL;
        char id[256];
        KV_TRY(kv_jsonl_at(j, i, &o, err));
        kv_status status = kv_jsonl_string(j, i, o, "task", true, &task, err);
        if (status == KVIST_OK && (!*task || strchr(task, ',')))
            status = kv_jsonl_fail(j, i, "task", "is empty or holds a comma", err);
        if (status == KVIST_OK) status = id_of(j, i, o, task, id, sizeof id, err);
        if (status == KVIST_OK) status = kv_task_candidate(b, id, task, err);
        json_decref(o);
        KV_TRY(status);
    }
    return KVIST_OK;
}

/* Last place in text where s begins. */
static const char *last_of(const char *text, const char *s) {
    const char *last = NULL;
    for (const char *at = text; (at = strstr(at, s)); at++) last = at;
    return last;
}

/* Where the question begins in the prompt. */
static const char *split_of(const kind *k, const char *prompt) {
    const char *best = NULL;
    for (int i = 0; i < 2 && k->split[i]; i++) {
        const char *at = last_of(prompt, k->split[i]);
        if (at && (!best || at > best)) best = at;
    }
    return best;
}

/* context[*n] and the question of a record. */
static kv_status parts(const kv_jsonl *j, uint32_t i, const json_t *o, const kind *k, const char **context, size_t *n,
                       const char **question, kv_error *err) {
    const char *prompt, *apart;
    KV_TRY(kv_jsonl_string(j, i, o, "context", false, context, err));
    KV_TRY(kv_jsonl_string(j, i, o, "question", false, &apart, err));
    KV_TRY(kv_jsonl_string(j, i, o, "prompt", !*context, &prompt, err));
    if (*context && prompt) return kv_jsonl_fail(j, i, "context", "stands beside 'prompt'", err);
    if (prompt) *context = prompt;
    if (!**context) return kv_jsonl_fail(j, i, prompt ? "prompt" : "context", "is empty", err);
    *n = strlen(*context);
    *question = apart ? apart : "";
    if (apart || !prompt) return KVIST_OK;
    const char *at = split_of(k, prompt);
    if (!at && k != &own) return kv_jsonl_fail(j, i, "prompt", "lacks the words that begin its task's question", err);
    *n = at ? (size_t)(at - prompt) : *n;
    *question = prompt + *n;
    if (!*n) return kv_jsonl_fail(j, i, "prompt", "has no context before its question", err);
    return KVIST_OK;
}

/* What a user's own task says of itself; LongBench's may not be told otherwise. */
static kv_status own_handling(const kv_jsonl *j, uint32_t i, const json_t *o, const kind *k, kv_sample *s,
                              kv_error *err) {
    const char *metric;
    const json_t *max_new = json_object_get(o, "max_new"), *chat = json_object_get(o, "chat");
    const json_t *first_line = json_object_get(o, "first_line");
    KV_TRY(kv_jsonl_string(j, i, o, "metric", false, &metric, err));
    s->metric = metric ? kv_metric_find(metric) : k->metric;
    s->max_new = k->max_new;
    s->chat = chat ? json_is_true(chat) : k->chat;
    s->first_line = first_line ? json_is_true(first_line) : k->first_line;
    if (k != &own && (metric || max_new || chat || first_line))
        return kv_jsonl_fail(j, i, "task", "is one of LongBench's: no metric, max_new, chat or first_line with it",
                             err);
    if (s->metric == KV_METRICS) return kv_jsonl_fail(j, i, "metric", "names none", err);
    if (chat && !json_is_boolean(chat)) return kv_jsonl_fail(j, i, "chat", "is neither true nor false", err);
    if (first_line && !json_is_boolean(first_line))
        return kv_jsonl_fail(j, i, "first_line", "is neither true nor false", err);
    if (!max_new) return KVIST_OK;
    json_int_t n = json_integer_value(max_new);
    if (n < 1 || n > MAX_NEW_MAX) return kv_jsonl_fail(j, i, "max_new", "is not a number of tokens", err);
    s->max_new = (uint32_t)n;
    return KVIST_OK;
}

/* What the metric reads of the references must be there. */
static kv_status check_answers(const kv_jsonl *j, uint32_t i, const kv_sample *s, kv_error *err) {
    for (uint32_t a = 0; a < s->turns->n_answers; a++) {
        const char *answer = s->turns->answers[a];
        bool known = s->metric != KV_METRIC_CLASSES;
        for (uint32_t c = 0; c < s->n_classes && !known; c++) known = !strcmp(answer, s->classes[c]);
        if (!known) return kv_jsonl_fail(j, i, "answers", "holds none of 'all_classes'", err);
        /* A reference is right by its own metric, or it could never be met. */
        if (s->metric != KV_METRIC_NLL && s->metric != KV_METRIC_EDIT_SIM && s->metric != KV_METRIC_CLASSES && a == 0 &&
            kv_metric_score(s, 0, answer) == 0 && s->turns->n_answers == 1)
            return kv_jsonl_fail(j, i, "answers", "holds what its metric cannot meet", err);
    }
    return KVIST_OK;
}

/* The context, its middle left out where it has more than `room` tokens. */
static const char *truncated(kv_task_build *b, const char *context, size_t n, size_t room) {
    if (n <= room || kv_task_tokens(b, context, n) <= room) return kv_task_strndup(b, context, n);
    size_t head = kv_task_fit(b, context, n, room / 2, false), tail = kv_task_fit(b, context, n, room / 2, true);
    if (head + tail >= n) return kv_task_strndup(b, context, n);
    return kv_task_printf(b, "%.*s%.*s", (int)head, context, (int)tail, context + n - tail);
}

static kv_status fill(kv_task_build *b, uint32_t i, const json_t *o, kv_sample *s, kv_error *err) {
    const kv_jsonl *j = b->state;
    const kind *k = find_kind(s->stratum);
    const char *context = NULL, *question = NULL;
    size_t n = 0, room;
    KV_TRY(own_handling(j, i, o, k, s, err));
    KV_TRY(parts(j, i, o, k, &context, &n, &question, err));
    KV_TRY(kv_task_turns(b, s, 1, err));
    KV_TRY(kv_jsonl_strings(b, j, i, o, "answers", &s->turns->answers, &s->turns->n_answers, err));
    if (s->metric == KV_METRIC_CLASSES)
        KV_TRY(kv_jsonl_strings(b, j, i, o, "all_classes", &s->classes, &s->n_classes, err));
    if (s->metric == KV_METRIC_NLL || b->p->likelihood)
        s->max_new = (uint32_t)kv_task_tokens(b, s->turns->answers[0], strlen(s->turns->answers[0]));
    size_t used = kv_task_tokens(b, question, strlen(question)) + s->max_new;
    KV_TRY(kv_task_room(b, s->id, used, 2, &room, err));
    s->context = truncated(b, context, n, room);
    s->turns->question = kv_task_strndup(b, question, strlen(question));
    if (!s->context || !s->turns->question) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
    return check_answers(j, i, s, err);
}

static kv_status make(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err) {
    json_t *o;
    KV_TRY(kv_jsonl_at(b->state, i, &o, err));
    kv_status status = fill(b, i, o, s, err);
    json_decref(o);
    return status;
}

static void close_file(kv_task_build *b) {
    if (b->state) kv_jsonl_close(b->state);
    kv_free(b->state);
}

const kv_task_kind kv_task_longbench = {
    .name = "longbench",
    .description = "LongBench's 21 tasks, or a file in its format; parts by task",
    .open = open_file,
    .make = make,
    .close = close_file,
};
