/* SPDX-License-Identifier: Apache-2.0 */
/* A fork-join pool: low latency (spins briefly, then sleeps), no allocation while running. */
#ifndef KV_BASE_THREADS_H
#define KV_BASE_THREADS_H

#include "base/err.h"

typedef struct kv_threads kv_threads;
/* n >= 1 threads including the caller. */
kv_status kv_threads_create(uint32_t n, kv_threads **out, kv_error *err) KV_WARN_UNUSED;
void kv_threads_free(kv_threads **t);
uint32_t kv_threads_count(const kv_threads *t);

/* Runs fn(ctx, item, thread) for item in [0, n_items); returns when all are done. Items are taken dynamically
 * (atomic counter), so which thread gets one may vary: results must not depend on it. thread in [0, count).
 * The caller takes part as thread 0. Not reentrant; one run at a time per pool. t may be NULL: runs inline. */
typedef void (*kv_task_fn)(void *ctx, uint32_t item, uint32_t thread);
void kv_threads_run(kv_threads *t, kv_task_fn fn, void *ctx, uint32_t n_items);

#endif
