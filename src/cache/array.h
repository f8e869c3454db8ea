/* SPDX-License-Identifier: Apache-2.0 */
/* The cache's only growing arrays: every byte of capacity is charged to the pool. Internal to src/cache. */
#ifndef KV_CACHE_ARRAY_H
#define KV_CACHE_ARRAY_H

#include "cache/stream.h"

/* Makes *array (of *cap items of `size` bytes) hold at least need items: exactly need when `exact`, else at least half
 * as many more than before. On failure nothing changes. */
kv_status kv_cache_grow(kv_seq *s, void **array, uint32_t *cap, uint64_t need, size_t size, bool exact,
                        kv_error *err) KV_WARN_UNUSED;
/* Frees *array and gives its charge back. */
void kv_cache_drop(kv_seq *s, void **array, uint32_t *cap, size_t size);
/* Frees both q2 buffers; the collection starts again at position 0. */
void kv_q2_reset(kv_seq *s, kv_stream *st);
/* Frees both. */
void kv_scores_reset(kv_seq *s, kv_stream *st);
/* Floats in use: of the tail, of the handles. */
size_t kv_scores_tail_items(const kv_stream *st);
size_t kv_scores_slot_items(const kv_stream *st);
/* Unrefs every page of a stream and forgets tokens, births and mass; arrays stay. */
void kv_stream_release(kv_seq *s, kv_stream *st);

#endif
