/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Evaluation tasks as data: contexts, questions, answers, and how an answer is scored. One file per task in
 * measure/tasks/, one line in its registry. Must not know: engines, policies, sessions.
 */
#ifndef KV_MEASURE_TASK_H
#define KV_MEASURE_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* All but KV_METRIC_NLL are in [0, 1], higher is better, and take the best over the reference answers. Those of
 * LongBench (Bai et al. 2023) follow its scoring scripts; the two for Chinese text count characters where those segment
 * words with a dictionary, so their figures compare between caches, not with published ones. */
typedef enum kv_metric {
    KV_METRIC_F1,           /* token F1 after SQuAD normalization */
    KV_METRIC_F1_ZH,        /* the same over the characters (and Latin words) of Chinese text */
    KV_METRIC_ROUGE_L,      /* ROUGE-L F over words, summary level: union of longest common subsequences by sentence */
    KV_METRIC_ROUGE_L_ZH,   /* the same over the characters of Chinese text */
    KV_METRIC_CLASSES,      /* classification: the right class among those that the answer names */
    KV_METRIC_RETRIEVAL,    /* "Paragraph N": share of the answer's numbers that are N */
    KV_METRIC_RETRIEVAL_ZH, /* the same for Chinese paragraphs */
    KV_METRIC_COUNT,        /* share of the numbers in the answer that are right */
    KV_METRIC_EDIT_SIM,     /* similarity 2 M / T (Ratcliff, Obershelp) of the answer's first line of code */
    KV_METRIC_SUBSTRING,    /* 1 when a reference occurs in the answer, case of ASCII letters ignored */
    KV_METRIC_NUMBER,       /* 1 when the answer's last number is the reference's last; 1,018 = 1018 = 1018.0 */
    KV_METRIC_NLL,          /* mean negative log-likelihood of the first reference, teacher-forced; lower is better */
    KV_METRICS
} kv_metric;

/* One question on a context. All strings are the set's. */
typedef struct kv_turn {
    const char *question; /* follows the context; may be "" */
    const char *lead;     /* forced start of the answer; "" none */
    const char *const *answers;
    uint32_t n_answers;
} kv_turn;

typedef struct kv_sample {
    const char *id;      /* unique in its set, stable over runs: resuming and pairing go by it */
    const char *stratum; /* subset it counts to: "hotpotqa", "lines-80" */
    const char *context; /* read, and compressed, before the question where that is asked for */
    kv_turn *turns;
    uint32_t n_turns; /* 1, or the questions of one conversation in order */
    const char *const *classes;
    uint32_t n_classes;
    kv_metric metric;
    uint32_t max_new; /* answer tokens at most */
    bool chat;        /* context and question are a user's message in the model's chat template */
    bool first_line;  /* only the answer's first line counts, and generation stops there */
    double depth;     /* needle: 0..1; NAN elsewhere */
    uint32_t length;  /* needle: tokens asked for; 0 elsewhere */
} kv_sample;

typedef struct kv_task_set kv_task_set; /* owns its samples and their strings */

/* Counts tokens of a text, for tasks that build contexts of a given length. */
typedef size_t (*kv_count_tokens_fn)(void *user, const char *text, size_t len);

typedef struct kv_task_params {
    const char *name; /* "longbench", "longeval", "kvretrieval", "needle", "gsm8k", "repeat" */
    const char *path; /* data file, plain or gzip; for needle and repeat a text */
    const char *only; /* NULL, or comma-separated strata */
    uint32_t limit;   /* 0: all; else a seeded subset, stratified over the strata */
    uint64_t seed;
    uint32_t n_ctx;     /* longest prompt and answer in tokens, all turns; contexts are cut in the middle (longbench)
                         * or built to fit */
    uint32_t questions; /* turns a sample (longeval, kvretrieval); 0: 1 */
    uint32_t n_lengths; /* needle: lengths i/n of the longest that fits; 0: 4 */
    uint32_t n_depths;  /* needle: depths i/(n-1); 0: 6 */
    uint32_t repeats;   /* needle: samples a cell, with other facts and texts; 0: 1 */
    bool likelihood;    /* KV_METRIC_NLL of the first reference instead of the task's own metric: a finer measure, which
                         * tells caches apart with far fewer samples */
    kv_count_tokens_fn count;
    void *count_user;
} kv_task_params;

/* Errors name file, line and field; an unknown name in `name` or `only` lists what there is. A sample depends on the
 * file's record, the seed and n_ctx, never on which others were chosen. */
kv_status kv_task_load(const kv_task_params *p, kv_task_set **out, kv_error *err) KV_WARN_UNUSED;
void kv_task_free(kv_task_set **set);
size_t kv_task_count(const kv_task_set *set);
const kv_sample *kv_task_at(const kv_task_set *set, size_t i);
/* i-th task's name and a line on it; NULL past the end. */
const char *kv_task_name_at(uint32_t i, const char **description);

const char *kv_metric_name(kv_metric m);
/* Its number, or KV_METRICS when there is none of that name. */
kv_metric kv_metric_find(const char *name);
/* Score of one answer (what the model wrote after turn.lead); not for KV_METRIC_NLL. NAN when out of memory. */
double kv_metric_score(const kv_sample *s, uint32_t turn, const char *answer);

#endif
