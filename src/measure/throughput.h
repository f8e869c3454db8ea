/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed of prompt and decode at a depth under a policy, with the engine's own timers, several repetitions; and what the
 * memory of the machine can stream, measured in the same run. Works on the public interface only.
 */
#ifndef KV_MEASURE_THROUGHPUT_H
#define KV_MEASURE_THROUGHPUT_H

#include "measure/watch.h"

typedef struct kv_bench_case {
    uint32_t depth, n_prompt, n_gen;
} kv_bench_case; /* one of n_prompt, n_gen is 0 */

typedef struct kv_bench_result {
    uint32_t reps;
    double tps, tps_min, tps_max; /* tokens/s: median and spread over the repetitions */
    kvist_report report;          /* after the last one */
    uint64_t kv_bytes;            /* true bytes of the cache at the depth; report.bytes_true has them at the end */
} kv_bench_result;

/* Fills depth with tokens (read as one prompt, once), then times each repetition from the same state: truncate to the
 * depth in between. tokens[n_tokens] is repeated cyclically. A warm-up of one short call is not timed. */
kv_status kv_bench_run(kvist_engine *e, const char *policy, const kv_bench_case *cases, uint32_t n_cases, uint32_t reps,
                       const int32_t *tokens, size_t n_tokens, const kv_watch *watch, kv_bench_result *results,
                       kv_error *err) KV_WARN_UNUSED;

/* Bytes/s of reading memory with this many threads: median of several passes over a buffer far larger than the caches.
 * 0: no memory. */
double kv_bench_bandwidth(uint32_t threads);

#endif
