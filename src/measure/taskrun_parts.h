/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of a task run: a sample as tokens (taskrun_prompt.c), answers decoded together (taskrun_decode.c),
 * rows in memory (taskrun_results.c) and in their file (taskrun_file.c). taskrun.c drives them.
 */
#ifndef KV_MEASURE_TASKRUN_PARTS_H
#define KV_MEASURE_TASKRUN_PARTS_H

#include "base/os.h"
#include "measure/taskrun.h"

/* ---- tokens */

typedef struct kv_task_piece {
    int32_t *ids;
    uint32_t n;
} kv_task_piece;

/* A conversation is context, question[0], answer, question[1], answer, ... A question holds what closes the turn before
 * it, the template's words around it and the lead of its answer. */
typedef struct kv_task_tokens {
    kv_task_piece context;
    kv_task_piece *questions;  /* [n_turns] */
    kv_task_piece *references; /* [n_turns] KV_METRIC_NLL: the first answer; else empty */
    uint32_t n_turns;
    uint32_t n_most; /* tokens of the whole conversation when every answer is as long as it may be */
} kv_task_tokens;

/* Frees what it made on failure. */
kv_status kv_task_tokenize(kvist_model *model, const kv_sample *s, kv_task_tokens *out, kv_error *err) KV_WARN_UNUSED;
void kv_task_tokens_free(kv_task_tokens *t);

/* ---- answers */

/* A loop: the last LOOP_TOKENS tokens repeat with a period of at most LOOP_PERIOD. Greedy decoding rarely leaves one
 * that long (128 tokens are four times the longest period), and waiting for max_new costs most of an evaluation's time.
 */
enum { KV_TASK_LOOP_TOKENS = 128, KV_TASK_LOOP_PERIOD = 32 };

typedef struct kv_task_answer {
    int32_t *ids;  /* [max_new] */
    uint32_t n;    /* tokens of the answer */
    uint32_t keep; /* of them what the history of the next turn holds: without the token of a stop that has no text */
    bool ended, looped;
    /* while it is decoded */
    bool done, blank;                    /* blank: no text but white space so far */
    uint16_t match[KV_TASK_LOOP_PERIOD]; /* [p-1]: newest tokens in a row that equal the one p before */
} kv_task_answer;

typedef struct kv_task_decode {
    const kvist_model *model;
    kvist_session *const *sessions; /* [n] with current logits */
    kv_task_answer *answers;        /* [n], ids given */
    uint32_t n, max_new;
    bool first_line;                         /* stop at a newline after text */
    bool loops;                              /* stop decoding in a loop, and continue it on paper */
    kvist_session **batch;                   /* [n] scratch */
    int32_t *batch_ids;                      /* [n] scratch */
    bool (*step)(void *user, uint32_t done); /* after each token; false stops */
    void *user;
} kv_task_decode;

/* Takes a chosen token into an answer that began as {ids, blank}; done: nothing of it is left to decode. */
void kv_task_take(const kv_task_decode *d, kv_task_answer *a, int32_t id);
/* Greedy, all sessions in one batch; each ends by itself. */
kv_status kv_task_answer_all(kv_task_decode *d, kv_error *err) KV_WARN_UNUSED;
/* Valid UTF-8; first_line: from the first character that is no newline up to the next newline. kv_free; NULL: no
 * memory. */
char *kv_task_answer_text(const kvist_model *model, const kv_task_answer *a, bool first_line);

/* ---- rows */

struct kv_task_results {
    const kv_task_set *set;
    uint32_t n_policies;
    size_t n_samples, *first; /* [n_samples + 1] index of a sample's first row; rows lie policy by policy */
    kv_task_row *rows;
    bool *done;           /* [n_samples][n_policies] the rows of all turns are there */
    size_t *list, n_list; /* indices of the rows of complete samples, in order */
};

kv_status kv_task_results_create(const kv_task_set *set, uint32_t n_policies, kv_task_results **out,
                                 kv_error *err) KV_WARN_UNUSED;
kv_task_row *kv_task_results_row(kv_task_results *r, size_t sample, uint32_t policy, uint32_t turn);
static inline bool *kv_task_results_done(const kv_task_results *r, size_t sample, uint32_t policy) {
    return &r->done[sample * r->n_policies + policy];
}
bool kv_task_results_whole(const kv_task_results *r, size_t sample); /* of every policy */
void kv_task_results_complete(kv_task_results *r); /* lists the rows of complete samples */
double kv_task_rounded(double v);                  /* to the nine digits that the file holds */

/* ---- their file */

typedef struct kv_task_file {
    kv_os_append log;
    const char *const *names; /* [n_policies] canonical texts */
} kv_task_file;

/* Opens path, checks that it is of the same run (header: the lines of run_id), marks what it holds of this run's samples
 * and policies as done, and cuts what an interrupted run left of a last answer. path NULL: nothing is written. */
kv_status kv_task_file_open(kv_task_file *f, const char *path, const char *run_id, const char *const *names,
                            kv_task_results *r, kv_error *err) KV_WARN_UNUSED;
kv_status kv_task_file_append(kv_task_file *f, kv_task_results *r, size_t sample, uint32_t policy,
                              kv_error *err) KV_WARN_UNUSED;
void kv_task_file_close(kv_task_file *f);

#endif
