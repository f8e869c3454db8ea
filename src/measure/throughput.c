/* SPDX-License-Identifier: Apache-2.0 */
/* See throughput.h. All cases given to one call have the same depth, so that the depth is read once. */
#include "measure/throughput.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "base/threads.h"
#include "measure/stats.h"

enum { MAX_REPS = 64 };

/* Seconds of one repetition, from the state at `depth`. */
static kv_status one_rep(kvist_session *s, const kv_bench_case *c, const int32_t *ids, double *seconds, kv_error *err) {
    kvist_report before, after;
    kvist_session_report(s, &before);
    if (c->n_prompt) {
        KV_TRY(kvist_session_sync(s, ids, (size_t)c->depth + c->n_prompt, err));
        kvist_session_report(s, &after);
        *seconds = after.prefill_seconds - before.prefill_seconds;
        return KVIST_OK;
    }
    for (uint32_t i = 0; i < c->n_gen; i++) KV_TRY(kvist_session_decode(s, ids[c->depth + i], err));
    kvist_session_report(s, &after);
    *seconds = after.decode_seconds - before.decode_seconds;
    return KVIST_OK;
}

static kv_status run_case(kvist_session *s, const char *policy, const kv_bench_case *c, uint32_t reps,
                          const int32_t *ids, const kv_watch *watch, kv_bench_result *r, kv_error *err) {
    double tps[MAX_REPS], seconds;
    char what[96];
    uint32_t n = c->n_prompt ? c->n_prompt : c->n_gen;
    snprintf(what, sizeof what, "%.50s: %s%u @ %u", policy, c->n_prompt ? "pp" : "tg", n, c->depth);
    kvist_report depth;
    kvist_session_report(s, &depth);
    r->kv_bytes = depth.bytes_true;
    r->reps = reps;
    kv_bench_case warm = *c; /* a short untimed call: caches, frequency, first touch of pages */
    if (warm.n_prompt > 64) warm.n_prompt = 64;
    if (warm.n_gen > 4) warm.n_gen = 4;
    KV_TRY(one_rep(s, &warm, ids, &seconds, err));
    for (uint32_t i = 0; i < reps; i++) {
        KV_TRY(kvist_session_truncate(s, c->depth, err));
        if (!kv_watch_tell(watch, what, i, reps)) KV_FAIL(err, CANCELLED, "stopped");
        KV_TRY(one_rep(s, c, ids, &seconds, err));
        tps[i] = seconds > 0 ? n / seconds : 0;
    }
    kvist_session_report(s, &r->report);
    KV_TRY(kvist_session_truncate(s, c->depth, err));
    r->tps = kv_measure_median(tps, reps); /* sorts */
    r->tps_min = tps[0];
    r->tps_max = tps[reps - 1];
    return KVIST_OK;
}

kv_status kv_bench_run(kvist_engine *e, const char *policy, const kv_bench_case *cases, uint32_t n_cases, uint32_t reps,
                       const int32_t *tokens, size_t n_tokens, const kv_watch *watch, kv_bench_result *results,
                       kv_error *err) {
    size_t longest = 0;
    if (!n_tokens || !reps || reps > MAX_REPS) KV_FAIL(err, ARG, "1 to %d repetitions", MAX_REPS);
    for (uint32_t i = 0; i < n_cases; i++) {
        size_t need = (size_t)cases[i].depth + cases[i].n_prompt + cases[i].n_gen;
        if (cases[i].depth != cases[0].depth) KV_FAIL(err, ARG, "cases of one run have one depth");
        if (need > longest) longest = need;
    }
    int32_t *ids = kv_malloc(longest * sizeof *ids + 1);
    if (!ids) KV_FAIL(err, MEMORY, "no memory for %zu tokens", longest);
    for (size_t i = 0; i < longest; i++) ids[i] = tokens[i % n_tokens];
    kvist_session *s;
    kv_status st = kvist_session_create(e, policy, &s, err);
    if (st == KVIST_OK) {
        uint32_t depth = n_cases ? cases[0].depth : 0;
        kv_watch_stage stage = {.watch = watch};
        snprintf(stage.what, sizeof stage.what, "%.50s: filling %u tokens", policy, depth);
        kvist_session_on_progress(s, kv_watch_progress, &stage);
        if (depth) st = kvist_session_sync(s, ids, depth, err);
        kvist_session_on_progress(s, NULL, NULL);
        for (uint32_t i = 0; st == KVIST_OK && i < n_cases; i++)
            st = run_case(s, policy, &cases[i], reps, ids, watch, &results[i], err);
        kvist_session_close(&s);
    }
    kv_free(ids);
    return st;
}

/* ---------------------------------------------------------------- bandwidth */

/* 256 MiB: several times the last-level cache of a server slice; smaller buffers measured the cache. */
enum { PROBE_BYTES = 256 << 20, PROBE_PIECE = 1 << 20, PROBE_PASSES = 7 };

typedef struct probe {
    const uint64_t *data;
    uint64_t sums[PROBE_BYTES / PROBE_PIECE];
} probe;

static void read_piece(void *ctx, uint32_t item, uint32_t thread) {
    probe *p = ctx;
    (void)thread;
    const uint64_t *x = p->data + (size_t)item * (PROBE_PIECE / 8);
    uint64_t a[8] = {0}; /* independent sums, so that additions never bind */
    for (size_t i = 0; i < PROBE_PIECE / 8; i += 8)
        for (size_t j = 0; j < 8; j++) a[j] += x[i + j];
    for (size_t j = 1; j < 8; j++) a[0] += a[j];
    p->sums[item] = a[0];
}

double kv_bench_bandwidth(uint32_t threads) {
    kv_threads *t = NULL;
    kv_error err;
    double rate[PROBE_PASSES], result = 0;
    uint64_t *data = kv_malloc64(PROBE_BYTES);
    probe *p = kv_calloc(1, sizeof *p);
    if (data && p && kv_threads_create(threads ? threads : kv_os_processors(), &t, &err) == KVIST_OK) {
        memset(data, 1, PROBE_BYTES);
        p->data = data;
        for (int i = 0; i < PROBE_PASSES; i++) {
            uint64_t t0 = kv_os_now_ns();
            kv_threads_run(t, read_piece, p, PROBE_BYTES / PROBE_PIECE);
            rate[i] = (double)PROBE_BYTES / ((double)(kv_os_now_ns() - t0) * 1e-9);
        }
        result = kv_measure_median(rate, PROBE_PASSES);
    }
    kv_threads_free(&t);
    kv_free(p);
    kv_free64(data);
    return result;
}
