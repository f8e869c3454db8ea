/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One pool of pages of equal bytes (DESIGN 2.1, 4). Owns pages, their entries and reference counts, the free list and
 * the memory budget that everything of an engine is charged to. Must not know what a page's bytes mean.
 * Invariants (kv_pool_check): every page is free or has refs > 0; the free list holds each free page once;
 * used + free = created; charged bytes <= budget. Not thread-safe: one engine thread uses a pool at a time, others read
 * its statistics through the engine's lock.
 */
#ifndef KV_CACHE_POOL_H
#define KV_CACHE_POOL_H

#include "base/err.h"

#define KV_NO_PAGE UINT32_MAX

/* K format in the low 4 bits, V format in the high 4. */
enum {
    KV_PAGE_SINK = 1,
    KV_PAGE_LOCAL = 2,
    KV_PAGE_SCORED = 4,
    KV_PAGE_LISTED = 8, /* positions.h */
    KV_PAGE_GUARD = 16, /* beyond the budget, for the guard */
    KV_PAGE_REST = 32   /* its last token has no position: it stands for those that were evicted (policy/rest.h) */
};

typedef struct kv_page_entry {
    uint32_t refs;
    uint8_t format; /* K format id | V format id << 4 (policy/format.h) */
    uint8_t flags;  /* KV_PAGE_... */
    uint16_t n;     /* valid tokens: [start, n) of the page's slots */
    uint16_t start; /* first valid slot (window streams) */
    uint16_t reserved;
    uint32_t first_pos;   /* position of the first token sealed in it */
    uint8_t k_widths[16]; /* bits of K block b (8 channels): nibble b&1 of byte b>>1 */
} kv_page_entry;
_Static_assert(sizeof(kv_page_entry) == 32, "docs/page-formats.md");

/* Slots [start, this) hold tokens of the sequence: all but a rest token. */
static inline uint32_t kv_page_end(const kv_page_entry *e) { return e->n - ((e->flags & KV_PAGE_REST) != 0); }

static inline uint32_t kv_page_width(const kv_page_entry *e, uint32_t block) {
    return (e->k_widths[block >> 1] >> (4 * (block & 1))) & 15u;
}

typedef struct kv_pool kv_pool;

/* page_bytes: multiple of 64. budget_bytes bounds pages + entries + charges; the address space for budget/page_bytes
 * pages is reserved, memory is committed on first use. */
kv_status kv_pool_create(size_t page_bytes, uint64_t budget_bytes, kv_pool **out, kv_error *err) KV_WARN_UNUSED;
void kv_pool_free(kv_pool **p);

/* LIFO. refs = 1, entry zeroed otherwise, payload unspecified. KVIST_E_BUDGET when nothing fits. */
kv_status kv_pool_acquire(kv_pool *p, uint32_t *page, kv_error *err) KV_WARN_UNUSED;
void kv_pool_ref(kv_pool *p, uint32_t page);
void kv_pool_unref(kv_pool *p, uint32_t page);

size_t kv_pool_page_bytes(const kv_pool *p);
uint8_t *kv_pool_data(const kv_pool *p, uint32_t page); /* 64-byte aligned, page_bytes long */
kv_page_entry *kv_pool_entry(const kv_pool *p, uint32_t page);

/* Memory that is not pages (handles, q2, prefill scratch, snapshots) against the same budget. */
kv_status kv_pool_charge(kv_pool *p, uint64_t bytes, kv_error *err) KV_WARN_UNUSED;
void kv_pool_discharge(kv_pool *p, uint64_t bytes);

/* bytes_used: pages in use and their entries. bytes_peak: highest bytes_used + bytes_charged. */
typedef struct kv_pool_stats {
    uint64_t pages_used, pages_free, pages_max, bytes_used, bytes_charged, bytes_budget, bytes_peak;
} kv_pool_stats;
void kv_pool_get_stats(const kv_pool *p, kv_pool_stats *out);
/* bytes_peak restarts from the present use. */
void kv_pool_reset_peak(kv_pool *p);
/* Walks everything; false and a sentence in err on a broken invariant. */
bool kv_pool_check(const kv_pool *p, kv_error *err);

#endif
