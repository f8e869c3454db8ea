/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed of a prompt, of decoding, and of the parts of compression, one sample a call, so that a caller can go round
 * many cells in turn. Owns the sessions a cell needs: the depth is read once and returned to by truncation. Works on
 * the public interface only; the clock is the wall's, as a user's is.
 */
#ifndef KV_MEASURE_THROUGHPUT_H
#define KV_MEASURE_THROUGHPUT_H

#include "measure/watch.h"

typedef enum kv_bench_stage {
    KV_BENCH_PROMPT, /* a prompt of n tokens after the depth; batch sequences one after another */
    KV_BENCH_DECODE, /* n tokens decoded by each of `batch` sequences together */
    KV_BENCH_SCORE, /* what scoring adds to a prompt of n, by the session's own timer, over the prompt without it */
    KV_BENCH_SEAL,  /* the same of selecting and sealing, over the rest of the prompt */
} kv_bench_stage;

typedef struct kv_bench_cell {
    kv_bench_stage stage;
    const char *policy;
    uint32_t depth, n, batch; /* batch 0: 1; score and seal: depth 0 */
} kv_bench_cell;

typedef struct kv_bench_sample {
    double seconds;                     /* of the work once */
    double tps;                         /* tokens/s over all sequences (prompt, decode) */
    double percent;                     /* score, seal: as their stages say */
    double stolen;                      /* share of the processors' time that a host took away meanwhile */
    double score_seconds, seal_seconds; /* by the session's own timers, of a prompt */
    uint64_t kv_before;                 /* true bytes of one sequence's cache at the depth */
    kvist_report report;                /* of the first sequence, after the work */
} kv_bench_sample;

typedef struct kv_bench kv_bench;
/* tokens[n_tokens] is repeated cyclically, from another start for each sequence; must outlive *out. keep: sessions of
 * all cells stay alive (their caches take memory of the engine's budget); else only those of the last cell's policy and
 * depth. */
kv_status kv_bench_open(kvist_engine *e, const int32_t *tokens, size_t n_tokens, bool keep, const kv_watch *watch,
                        kv_bench **out, kv_error *err) KV_WARN_UNUSED;
void kv_bench_close(kv_bench **b);

/* A cell that will be run: where sessions are kept, a prompt is read once for all policies of planned cells at its depth. */
kv_status kv_bench_plan(kv_bench *b, const kv_bench_cell *cell, kv_error *err) KV_WARN_UNUSED;

/* One sample, after a short untimed one (caches, frequency, first touch of pages); of short work the mean of a few. */
kv_status kv_bench_run(kv_bench *b, const kv_bench_cell *cell, kv_bench_sample *out, kv_error *err) KV_WARN_UNUSED;

#endif
