/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page pool. Owns three reserved mappings (payloads, entries, free stack), reference counts and the budget's
 * arithmetic. Must not know: what a page's bytes mean, who holds a page. Not thread-safe: one engine thread uses a pool
 * at a time; other threads read statistics through the engine's lock.
 *
 * Pages [0, created) have been handed out at least once. Free ones lie on a stack: the bottom n_cold of them have had
 * their memory given back to the system, the rest are warm and are taken first. Resident memory is therefore (created -
 * n_cold) page costs plus charges; it never passes the budget, because a charge that would push it past gives warm free
 * pages back first.
 */
#include "cache/pool.h"

#include "base/alloc.h"
#include "base/os.h"
#include "cache/positions.h"

#include <assert.h>
#include <string.h>

/* Huge pages pay (fewer TLB misses on scattered 4 KiB pages) once a pool spans many of them; below they waste up to 2
 * MiB. */
#define HUGE_FROM ((uint64_t)64 << 20)

struct kv_pool {
    size_t page_bytes;
    uint64_t page_cost; /* page_bytes + its entry */
    uint64_t budget, charged, peak;
    uint8_t *data;          /* [pages_max][page_bytes] */
    kv_page_entry *entries; /* [pages_max] */
    uint32_t *free_stack;   /* [pages_max]; [0, n_cold) decommitted, [n_cold, n_free) warm; last in, first out */
    uint32_t pages_max, created, n_free, n_cold;
    kv_positions *positions; /* NULL until a page gets a list */
};

static uint64_t pages_used(const kv_pool *p) { return (uint64_t)p->created - p->n_free; }
static uint64_t bytes_in_use(const kv_pool *p) { return pages_used(p) * p->page_cost + p->charged; }

static void note_peak(kv_pool *p) {
    uint64_t use = bytes_in_use(p);
    if (use > p->peak) p->peak = use;
}

kv_status kv_pool_create(size_t page_bytes, uint64_t budget_bytes, kv_pool **out, kv_error *err) {
    *out = NULL;
    if (!page_bytes || page_bytes % 64) KV_FAIL(err, ARG, "page size of %zu bytes is not a multiple of 64", page_bytes);
    uint64_t cost = page_bytes + sizeof(kv_page_entry), n = budget_bytes / cost;
    if (n == 0)
        KV_FAIL(err, BUDGET, "a budget of %llu bytes does not hold one KV page of %zu bytes",
                (unsigned long long)budget_bytes, page_bytes);
    if (n > KV_NO_PAGE) n = KV_NO_PAGE; /* page ids 0 .. KV_NO_PAGE - 1 */
    if (n > SIZE_MAX / page_bytes)
        KV_FAIL(err, ARG, "a budget of %llu bytes does not fit into the address space",
                (unsigned long long)budget_bytes);
    kv_pool *p = kv_calloc(1, sizeof *p);
    if (!p) KV_FAIL(err, MEMORY, "no memory for the page pool");
    *p = (kv_pool){.page_bytes = page_bytes, .page_cost = cost, .budget = budget_bytes, .pages_max = (uint32_t)n};
    void *data = NULL, *entries = NULL, *stack = NULL;
    kv_status s = kv_os_reserve((size_t)n * page_bytes, n * page_bytes >= HUGE_FROM, &data, err);
    if (!s) s = kv_os_reserve((size_t)n * sizeof(kv_page_entry), false, &entries, err);
    if (!s) s = kv_os_reserve((size_t)n * sizeof(uint32_t), false, &stack, err);
    p->data = data;
    p->entries = entries;
    p->free_stack = stack;
    if (s) kv_pool_free(&p);
    *out = p;
    return s;
}

void kv_pool_free(kv_pool **pool) {
    kv_pool *p = *pool;
    *pool = NULL;
    if (!p) return;
    kv_positions_free(&p->positions);
    size_t n = p->pages_max;
    if (p->data) kv_os_unreserve(p->data, n * p->page_bytes);
    if (p->entries) kv_os_unreserve(p->entries, n * sizeof(kv_page_entry));
    if (p->free_stack) kv_os_unreserve(p->free_stack, n * sizeof(uint32_t));
    kv_free(p);
}

kv_status kv_pool_acquire(kv_pool *p, uint32_t *page, kv_error *err) {
    *page = KV_NO_PAGE;
    if (bytes_in_use(p) + p->page_cost > p->budget || pages_used(p) == p->pages_max)
        KV_FAIL(err, BUDGET, "KV memory is full: %llu pages of %zu bytes and %llu other bytes of %llu are in use",
                (unsigned long long)pages_used(p), p->page_bytes, (unsigned long long)p->charged,
                (unsigned long long)p->budget);
    uint32_t id;
    if (p->n_free) {
        id = p->free_stack[--p->n_free];
        if (p->n_cold > p->n_free) p->n_cold = p->n_free;
    } else {
        id = p->created++;
    }
    assert(p->entries[id].refs == 0);
    p->entries[id] = (kv_page_entry){.refs = 1};
    note_peak(p);
    *page = id;
    return KVIST_OK;
}

void kv_pool_ref(kv_pool *p, uint32_t page) {
    assert(page < p->created && p->entries[page].refs > 0 && p->entries[page].refs < UINT32_MAX);
    p->entries[page].refs++;
}

void kv_pool_unref(kv_pool *p, uint32_t page) {
    assert(page < p->created && p->entries[page].refs > 0);
    if (p->entries[page].refs == 1 && p->entries[page].flags & KV_PAGE_LISTED) kv_positions_drop(p, page);
    if (--p->entries[page].refs == 0) p->free_stack[p->n_free++] = page;
}

kv_positions **kv_pool_positions(const kv_pool *p) { return &((kv_pool *)p)->positions; }

size_t kv_pool_page_bytes(const kv_pool *p) { return p->page_bytes; }

uint8_t *kv_pool_data(const kv_pool *p, uint32_t page) {
    assert(page < p->created);
    return p->data + (size_t)page * p->page_bytes;
}

kv_page_entry *kv_pool_entry(const kv_pool *p, uint32_t page) {
    assert(page < p->created);
    return &p->entries[page];
}

kv_status kv_pool_charge(kv_pool *p, uint64_t bytes, kv_error *err) {
    uint64_t use = bytes_in_use(p);
    if (bytes > p->budget - use)
        KV_FAIL(err, BUDGET, "KV memory is full: %llu more bytes asked for, %llu of %llu are in use",
                (unsigned long long)bytes, (unsigned long long)use, (unsigned long long)p->budget);
    p->charged += bytes;
    /* Free pages are still memory: give back the longest unused of them until all fits. */
    while (p->n_cold < p->n_free && (uint64_t)(p->created - p->n_cold) * p->page_cost + p->charged > p->budget)
        kv_os_decommit(p->data + (size_t)p->free_stack[p->n_cold++] * p->page_bytes, p->page_bytes);
    note_peak(p);
    return KVIST_OK;
}

void kv_pool_discharge(kv_pool *p, uint64_t bytes) {
    assert(bytes <= p->charged);
    p->charged -= bytes;
}

void kv_pool_get_stats(const kv_pool *p, kv_pool_stats *out) {
    *out = (kv_pool_stats){.pages_used = pages_used(p),
                           .pages_free = p->n_free,
                           .pages_max = p->pages_max,
                           .bytes_used = pages_used(p) * p->page_cost,
                           .bytes_charged = p->charged,
                           .bytes_budget = p->budget,
                           .bytes_peak = p->peak};
}

void kv_pool_reset_peak(kv_pool *p) { p->peak = bytes_in_use(p); }

bool kv_pool_check(const kv_pool *p, kv_error *err) {
#define REQUIRE(cond, ...)                                                                                             \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            (void)kv_fail(err, KVIST_E_STATE, "page pool: " __VA_ARGS__);                                              \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)
    REQUIRE(p->created <= p->pages_max, "more pages were created (%u) than the budget holds (%u)", p->created,
            p->pages_max);
    REQUIRE(p->n_free <= p->created, "more pages are free (%u) than were created (%u)", p->n_free, p->created);
    REQUIRE(p->n_cold <= p->n_free, "more free pages were given back (%u) than are free (%u)", p->n_cold, p->n_free);
    REQUIRE(bytes_in_use(p) <= p->budget, "bytes in use pass the budget");
    REQUIRE((uint64_t)(p->created - p->n_cold) * p->page_cost + p->charged <= p->budget,
            "resident bytes pass the budget");
    REQUIRE(p->peak >= bytes_in_use(p), "the peak is below the present use");
    uint32_t unreferenced = 0;
    for (uint32_t i = 0; i < p->created; i++) unreferenced += p->entries[i].refs == 0;
    REQUIRE(unreferenced == p->n_free, "%u pages have no reference but %u are on the free list", unreferenced,
            p->n_free);
    uint8_t *seen = kv_calloc(p->created ? p->created : 1, 1);
    REQUIRE(seen, "no memory to check it");
    bool ok = true;
    for (uint32_t i = 0; ok && i < p->n_free; i++) {
        uint32_t id = p->free_stack[i];
        ok = id < p->created && p->entries[id].refs == 0 && !seen[id];
        if (ok)
            seen[id] = 1;
        else
            (void)kv_fail(err, KVIST_E_STATE,
                          "page pool: place %u of the free list holds page %u, which is unknown, in use or there twice",
                          i, id);
    }
    kv_free(seen);
    return ok && kv_positions_check(p, p->created, err);
#undef REQUIRE
}
