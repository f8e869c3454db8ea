/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a task implements, and what it builds its samples with. Two passes: `open` reads the data and names every sample
 * it could make, the registry chooses among the names, `make` builds the chosen ones. So a subset costs what it holds,
 * and a sample is the same whichever others are chosen.
 */
#ifndef KV_MEASURE_TASK_BUILD_H
#define KV_MEASURE_TASK_BUILD_H

#include <jansson.h>

#include "measure/task.h"

/* Tokens kept free in n_ctx beside what is counted: the chat template around a message and the joints between parts
 * that were counted apart. SmolLM2's and Qwen2.5's templates take about 30 with their default system messages. */
enum { KV_TASK_SPARE_TOKENS = 64 };

typedef struct kv_task_build {
    const kv_task_params *p;
    kv_task_set *set;
    void *state; /* the task's own; freed by its close */
} kv_task_build;

typedef struct kv_task_kind {
    const char *name, *description;
    bool multi_turn; /* `questions` may pass 1 */
    bool grid;       /* takes n_lengths, n_depths, repeats */
    /* Calls kv_task_candidate for each sample, in an order that a seed does not change. */
    kv_status (*open)(kv_task_build *b, kv_error *err);
    /* Fills the i-th candidate: all but id and stratum. */
    kv_status (*make)(kv_task_build *b, uint32_t i, kv_sample *s, kv_error *err);
    void (*close)(kv_task_build *b); /* also after a failed open */
} kv_task_kind;

/* One more sample that could be made. The strings are copied. */
kv_status kv_task_candidate(kv_task_build *b, const char *id, const char *stratum, kv_error *err) KV_WARN_UNUSED;

/* Memory of the set; NULL when there is none (KV_TASK_NEW fails by itself). */
void *kv_task_alloc(kv_task_build *b, size_t size);
char *kv_task_strndup(kv_task_build *b, const char *s, size_t n);
char *kv_task_printf(kv_task_build *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define KV_TASK_NEW(err, p)                                                                                            \
    do {                                                                                                               \
        if (!(p)) KV_FAIL(err, MEMORY, "no memory for the samples of a task");                                         \
    } while (0)
/* s->turns[n], zeroed. */
kv_status kv_task_turns(kv_task_build *b, kv_sample *s, uint32_t n, kv_error *err) KV_WARN_UNUSED;
/* t->answers[n] from the strings given (which must be the set's or literals). */
kv_status kv_task_answers(kv_task_build *b, kv_turn *t, uint32_t n, const char *const *answers,
                          kv_error *err) KV_WARN_UNUSED;

/* Seeded numbers (splitmix64). A sample's generator: from the seed and the sample's own name. */
uint64_t kv_task_rand(uint64_t *state);
uint32_t kv_task_below(uint64_t *state, uint32_t n); /* 0..n-1, n >= 1 */
uint64_t kv_task_seed(const kv_task_build *b, const char *name, uint64_t salt);
void kv_task_shuffle(uint64_t *state, uint32_t *v, uint32_t n);

/* ---- reading ---- */

/* Whole file, gzip undone, malloc'd by kv_malloc and terminated. */
kv_status kv_task_read(const char *path, char **text, size_t *len, kv_error *err) KV_WARN_UNUSED;
/* A text for haystacks: kv_task_read without BOM, carriage returns and Project Gutenberg's head and foot; runs of more
 * than two line ends become two. */
kv_status kv_task_read_prose(const char *path, char **text, size_t *len, kv_error *err) KV_WARN_UNUSED;

/* A file of JSON lines held as text; a line is parsed when asked for. Empty lines are not records. */
typedef struct kv_jsonl {
    const char *path;
    char *text;
    struct kv_jsonl_line {
        size_t at, len;
        uint32_t number; /* in the file, from 1 */
    } * lines;
    uint32_t n;
} kv_jsonl;
kv_status kv_jsonl_open(const char *path, kv_jsonl *out, kv_error *err) KV_WARN_UNUSED;
void kv_jsonl_close(kv_jsonl *j);
/* The i-th record, which must be an object; json_decref it. */
kv_status kv_jsonl_at(const kv_jsonl *j, uint32_t i, json_t **out, kv_error *err) KV_WARN_UNUSED;
/* Fields of record i. Errors name file, line and field. A string may be absent when `must` is false: NULL then. */
kv_status kv_jsonl_string(const kv_jsonl *j, uint32_t i, const json_t *o, const char *field, bool must,
                          const char **out, kv_error *err) KV_WARN_UNUSED;
kv_status kv_jsonl_fail(const kv_jsonl *j, uint32_t i, const char *field, const char *what, kv_error *err);
/* An array of strings that are not empty, at least one of them; copied into the set. */
kv_status kv_jsonl_strings(kv_task_build *b, const kv_jsonl *j, uint32_t i, const json_t *o, const char *field,
                           const char *const **out, uint32_t *n, kv_error *err) KV_WARN_UNUSED;

/* ---- lengths in tokens ---- */

size_t kv_task_tokens(const kv_task_build *b, const char *text, size_t len);
/* A prefix (tail: suffix) of text that has at most `tokens` tokens, at least 99.5 % of them where the text reaches so
 * far, and cuts no character; in bytes. */
size_t kv_task_fit(const kv_task_build *b, const char *text, size_t len, size_t tokens, bool tail);
/* Tokens left for a context beside `used` ones; an error when there are fewer than `least`. SIZE_MAX where n_ctx is 0.
 */
kv_status kv_task_room(const kv_task_build *b, const char *id, size_t used, size_t least, size_t *room,
                       kv_error *err) KV_WARN_UNUSED;

extern const kv_task_kind kv_task_longbench, kv_task_longeval, kv_task_kvretrieval, kv_task_needle, kv_task_gsm8k,
    kv_task_repeat;

#endif
