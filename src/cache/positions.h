/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Positions of the tokens in a page, kept only where a tool or a policy asks for them (kv_seq.track). A page whose
 * tokens are neighbours needs none: slot i holds position first_pos + i of its entry. Any other page has a list,
 * which lives as long as the page: forks and snapshots share it with the page's reference count.
 *
 * A list is the positions' steps as bytes: token i > 0 is zigzag(position[i] - position[i-1] - 1) in 7-bit groups, low
 * first, high bit: more follow; zigzag(d) = 2d for d >= 0, else -2d - 1. Ascending positions (every page as it was
 * sealed) take one byte where the gap is below 64. The bytes lie in a chain of cells of 32 bytes {next, 28 bytes} of
 * one mapping: any freed cell serves any list, and nothing is allocated from the heap, so lists may change while
 * decoding.
 *
 * True bytes of a list: 32 a cell and 4 for its place in the page's row. Charged to the pool: the most that was in use
 * since there was no list at all (freed cells stay resident until then). No list: no byte.
 */
#ifndef KV_CACHE_POSITIONS_H
#define KV_CACHE_POSITIONS_H

#include "cache/pool.h"

enum { KV_POSITIONS_MAX = 1024 }; /* tokens of a page at most (KV_PAGE_TOKENS_MAX of policy/format.h) */

/* Reserves what the lists of a pool need, once; later calls do nothing. The other calls do it themselves: this is for
 * who must not allocate later. Costs no byte of the budget. */
kv_status kv_positions_prepare(kv_pool *p, kv_error *err) KV_WARN_UNUSED;
/* Says that slots 0..n-1 of the page hold positions base + idx[i] (idx NULL: base + i): sets first_pos, and makes,
 * replaces or drops the list. KVIST_E_BUDGET when the pool has no room (nothing changes then); room for
 * kv_positions_bound(n) bytes suffices. */
kv_status kv_positions_put(kv_pool *p, uint32_t page, uint32_t base, const uint32_t *idx, uint32_t n,
                           kv_error *err) KV_WARN_UNUSED;
/* A token moved: slot <= n of the entry now holds `position` (slot == n: a token is about to be appended). The page
 * must be the caller's alone (refs 1): copy a shared page first. */
kv_status kv_positions_set(kv_pool *p, uint32_t page, uint32_t slot, uint32_t position, kv_error *err) KV_WARN_UNUSED;
/* A page was copied on write: `to` gets first_pos and list of `from` (all n of from's entry). */
kv_status kv_positions_copy(kv_pool *p, uint32_t from, uint32_t to, kv_error *err) KV_WARN_UNUSED;
/* Positions of slots 0..n-1, n of the entry (start is not skipped); returns n. out has room for KV_POSITIONS_MAX. */
uint32_t kv_positions_get(const kv_pool *p, uint32_t page, uint32_t *out);
uint32_t kv_positions_at(const kv_pool *p, uint32_t page, uint32_t slot);
/* True bytes of the page's list, 0 without one; and the most that n tokens can take. */
uint64_t kv_positions_bytes(const kv_pool *p, uint32_t page);
uint64_t kv_positions_bound(uint32_t n);

/* ---- between pool.c and positions.c */
typedef struct kv_positions kv_positions;
kv_positions **kv_pool_positions(const kv_pool *p); /* NULL until the first list */
void kv_positions_drop(kv_pool *p, uint32_t page);  /* the page's last reference went: frees its list */
void kv_positions_free(kv_positions **ps);
bool kv_positions_check(const kv_pool *p, uint32_t n_pages, kv_error *err); /* over pages 0..n_pages-1 */

#endif
