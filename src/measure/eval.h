/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Perplexity and divergence of a text through the compressed cache. Chunk i is tokens [i ctx, (i+1) ctx); its first
 * half is one sync, the second half is fed in steps, each a sync that compresses at its end, so that what is scored
 * attends to sealed pages; or it is decoded token by token (generated), so that rows take the decode kernel with its
 * rounding of queries and pages are sealed as in an answer. Scored: the targets of positions ctx/2+1 .. ctx-1, that is
 * the rows ctx/2 .. ctx-2 (as llama-perplexity). Works on the public interface only.
 */
#ifndef KV_MEASURE_EVAL_H
#define KV_MEASURE_EVAL_H

#include "measure/stats.h"
#include "measure/watch.h"

typedef struct kv_eval_params {
    const int32_t *tokens;
    size_t n_tokens;
    uint32_t ctx, chunks; /* chunks: 0: as many as the text has */
    uint32_t step;        /* tokens a step of the second half; 0: the whole chunk in one sync */
    bool generated;       /* the second half is decoded; step does not matter then */
    uint32_t n_vocab;
    uint32_t threads; /* for the statistics of rows */
    bool kld;         /* compare with `full` on the same chunk and steps */
    const char *const *policies;
    uint32_t n_policies;
    kv_watch watch;
} kv_eval_params;

typedef struct kv_eval_result {
    size_t rows;         /* scored tokens */
    double nll, nll_se;  /* mean negative log-likelihood of the targets, its standard error */
    double ppl, ppl_se;  /* exp(nll); ppl * nll_se */
    double ppl_ratio;    /* to the base's; NaN without one */
    kv_summary kld;      /* n = 0 without a base */
    double same_top1;    /* fraction */
    kvist_report report; /* of the last chunk, at its end */
    double seconds;      /* spent in the engine */
} kv_eval_result;

/* results[n_policies], or [n_policies + 1] with kld: the base first. KVIST_E_ARG when the text is too short. */
kv_status kv_eval_run(kvist_engine *engine, const kv_eval_params *p, kv_eval_result *results,
                      kv_error *err) KV_WARN_UNUSED;
/* Chunks that will be run: at most p->chunks, at most what the text holds. */
uint32_t kv_eval_chunks(const kv_eval_params *p);

#endif
