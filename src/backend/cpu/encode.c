/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing pages: the table of encoders by level, the threads' scratch, and jobs in parallel. A job is one page and
 * touches nothing but its page, its entry and its thread's scratch, so the result cannot depend on the threads. Must
 * not know what the bytes mean.
 */
#include "backend/cpu/encode.h"

#include "base/alloc.h"

#include <assert.h>

static const kv_encode_kernels kernels[KV_CPU_LEVELS] = {
    [KV_CPU_REF] = {"encode_ref", kv_encode_ref},
#if defined(__x86_64__)
    [KV_CPU_AVX2] = {"encode_avx2", kv_encode_avx2},
    [KV_CPU_AVX512] = {"encode_avx512", kv_encode_avx512},
#elif defined(__aarch64__)
    [KV_CPU_NEON] = {"encode_neon", kv_encode_neon},
#endif
};

typedef struct encode_scratch {
    size_t bytes; /* a thread */
    uint8_t *base;
} encode_scratch;

const struct kv_encode_kernels *kv_encode_kernels_get(int level) {
    while (level > 0 && !kernels[level].encode) level--;
    return &kernels[level];
}

kv_status kv_encode_exec_init(kv_cpu_exec *ex, kv_error *err) {
    uint32_t threads = kv_threads_count(ex->threads);
    encode_scratch *s = kv_calloc(1, sizeof *s);
    if (!s) KV_FAIL(err, MEMORY, "no memory for the page encoder");
    size_t bytes = kv_encode_scratch_bound(ex->params.page_bytes, ex->params.max_head_dim);
    s->bytes = bytes;
    s->base = kv_malloc64(bytes * threads);
    if (!s->base) {
        kv_free(s);
        KV_FAIL(err, MEMORY, "no memory for the page encoder: %zu bytes for each of %u threads", bytes, threads);
    }
    ex->encode_scratch = s;
    return KVIST_OK;
}

void kv_encode_exec_free(kv_cpu_exec *ex) {
    encode_scratch *s = ex->encode_scratch;
    if (!s) return;
    kv_free64(s->base);
    kv_free(s);
    ex->encode_scratch = NULL;
}

typedef struct seal_run {
    const encode_scratch *scratch;
    kv_encode_fn encode;
    const kv_seal_job *jobs;
} seal_run;

static void seal_one(void *ctx, uint32_t item, uint32_t thread) {
    const seal_run *r = ctx;
    const kv_seal_job *j = &r->jobs[item];
    assert(kv_encode_scratch(j->layout) <= r->scratch->bytes);
    r->encode(j->layout, j->n, j->k, j->v, j->q2, j->page, j->entry, r->scratch->base + thread * r->scratch->bytes);
}

void kv_cpu_seal(kv_exec *exec, const kv_seal_job *jobs, uint32_t n_jobs) {
    kv_cpu_exec *ex = kv_cpu_exec_of(exec);
    seal_run run = {ex->encode_scratch, ex->be->encode->encode, jobs};
    kv_threads_run(ex->threads, seal_one, &run, n_jobs);
}
