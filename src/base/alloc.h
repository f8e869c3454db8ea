/* SPDX-License-Identifier: Apache-2.0 */
/* Every heap allocation of the library goes through here: it can be made to fail, and counted. */
#ifndef KV_BASE_ALLOC_H
#define KV_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

void *kv_malloc(size_t size);           /* NULL when out of memory; size 0 gives a valid pointer */
void *kv_calloc(size_t n, size_t size); /* zeroed; overflow checked */
void *kv_realloc(void *p, size_t size);
void *kv_malloc64(size_t size); /* 64-byte aligned; free with kv_free64 */
void kv_free(void *p);
void kv_free64(void *p);
char *kv_strndup(const char *s, size_t n);

/* Tests only. fail_at: the n-th allocation from now fails (1 = next), 0 = never. */
void kv_alloc_test_fail_at(uint64_t n);
uint64_t kv_alloc_count(void); /* allocations so far, all threads */

#endif
