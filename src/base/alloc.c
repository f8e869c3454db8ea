/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's heap: malloc with a counter and a hook that makes the n-th call fail.
 * The two counters are the only process-wide state of the library; they exist for tests and never change a result
 * unless a test arms the hook. Invariant: a size that would overflow gives NULL, never a short block.
 */
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static _Atomic uint64_t alloc_calls;
static _Atomic uint64_t fail_in; /* 0: off; 1: the next one fails */

/* Counts one allocation; true when the hook wants it to fail. The hook fires once and disarms itself. */
static bool must_fail(void) {
    atomic_fetch_add_explicit(&alloc_calls, 1, memory_order_relaxed);
    uint64_t left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    while (left) {
        if (atomic_compare_exchange_weak_explicit(&fail_in, &left, left - 1, memory_order_relaxed,
                                                  memory_order_relaxed))
            return left == 1;
    }
    return false;
}

void *kv_malloc(size_t size) { return must_fail() ? NULL : malloc(size ? size : 1); }

void *kv_calloc(size_t n, size_t size) {
    size_t bytes;
    if (must_fail() || __builtin_mul_overflow(n, size, &bytes)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *kv_realloc(void *p, size_t size) { return must_fail() ? NULL : realloc(p, size ? size : 1); }

void *kv_malloc64(size_t size) {
    if (must_fail() || size > SIZE_MAX - 63) return NULL;
    return aligned_alloc(64, size ? (size + 63) & ~(size_t)63 : 64);
}

void kv_free(void *p) { free(p); }
void kv_free64(void *p) { free(p); }

char *kv_strndup(const char *s, size_t n) {
    size_t len = strnlen(s, n);
    char *copy = kv_malloc(len + 1);
    if (!copy) return NULL;
    memcpy(copy, s, len);
    copy[len] = 0;
    return copy;
}

void kv_alloc_test_fail_at(uint64_t n) { atomic_store(&fail_in, n); }
uint64_t kv_alloc_count(void) { return atomic_load_explicit(&alloc_calls, memory_order_relaxed); }
