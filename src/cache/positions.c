/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of positions beside the pool's pages. Owns two reserved mappings (first cell of each page, cells) and their
 * free list; the pool's entry says by KV_PAGE_LISTED whether a page has one. Must not know: who asks for positions,
 * what a page's bytes mean.
 * Invariants: a page is flagged exactly when it has a list; every cell below n_cells is in one list or free; a list has
 * a step for each valid token but the first; charged = 4 most_lists + 32 n_cells, both 0 when no list is left.
 */
#include "cache/positions.h"

#include "base/alloc.h"
#include "base/os.h"

#include <assert.h>
#include <string.h>

enum { CELL_DATA = 28 };
#define NO_CELL UINT32_MAX

typedef struct cell {
    uint32_t next;
    uint8_t data[CELL_DATA];
} cell;
_Static_assert(sizeof(cell) == 32, "counted in bytes_true");

struct kv_positions {
    uint32_t *heads; /* [pages_max] first cell of a listed page; others unspecified */
    cell *cells;     /* [cells_max] */
    size_t pages_max, cells_max;
    uint32_t n_cells, n_lists, most_lists; /* cells handed out so far; lists now, and the most since there was none */
    uint32_t free;                         /* first free cell */
};

kv_status kv_positions_prepare(kv_pool *p, kv_error *err) {
    kv_positions **at = kv_pool_positions(p);
    if (*at) return KVIST_OK;
    kv_pool_stats st;
    kv_pool_get_stats(p, &st);
    kv_positions *ps = kv_calloc(1, sizeof *ps);
    if (!ps) KV_FAIL(err, MEMORY, "no memory for positions of pages");
    ps->pages_max = (size_t)st.pages_max;
    uint64_t cells = st.bytes_budget / sizeof(cell);
    ps->cells_max = cells < NO_CELL ? (size_t)cells : NO_CELL;
    ps->free = NO_CELL;
    void *heads = NULL, *mem = NULL;
    kv_status s = kv_os_reserve(ps->pages_max * sizeof *ps->heads, false, &heads, err);
    if (!s) s = kv_os_reserve(ps->cells_max * sizeof(cell), false, &mem, err);
    ps->heads = heads;
    ps->cells = mem;
    if (s) kv_positions_free(&ps);
    *at = ps;
    return s;
}

void kv_positions_free(kv_positions **pps) {
    kv_positions *ps = *pps;
    *pps = NULL;
    if (!ps) return;
    if (ps->heads) kv_os_unreserve(ps->heads, ps->pages_max * sizeof *ps->heads);
    if (ps->cells) kv_os_unreserve(ps->cells, ps->cells_max * sizeof(cell));
    kv_free(ps);
}

static bool listed(const kv_pool *p, uint32_t page) { return kv_pool_entry(p, page)->flags & KV_PAGE_LISTED; }

/* ---- writing */

typedef struct writer {
    kv_pool *pool;
    kv_positions *ps;
    uint32_t first, last, used; /* bytes used of the last cell */
} writer;

static kv_status add_cell(writer *w, kv_error *err) {
    kv_positions *ps = w->ps;
    uint32_t c = ps->free;
    if (c != NO_CELL) {
        ps->free = ps->cells[c].next;
    } else {
        if (ps->n_cells == ps->cells_max) KV_FAIL(err, BUDGET, "KV memory is full: positions of tokens");
        KV_TRY(kv_pool_charge(w->pool, sizeof(cell), err));
        c = ps->n_cells++;
    }
    ps->cells[c].next = NO_CELL;
    if (w->first == NO_CELL)
        w->first = c;
    else
        ps->cells[w->last].next = c;
    w->last = c;
    w->used = 0;
    return KVIST_OK;
}

static kv_status put_step(writer *w, int64_t step, kv_error *err) {
    uint64_t z = step < 0 ? 2 * (uint64_t)-step - 1 : 2 * (uint64_t)step;
    do {
        if (w->first == NO_CELL || w->used == CELL_DATA) KV_TRY(add_cell(w, err));
        w->ps->cells[w->last].data[w->used++] = (uint8_t)((z & 127) | (z > 127 ? 128 : 0));
        z >>= 7;
    } while (z);
    return KVIST_OK;
}

static void free_chain(kv_positions *ps, uint32_t first) {
    while (first != NO_CELL) {
        uint32_t next = ps->cells[first].next;
        ps->cells[first].next = ps->free;
        ps->free = first;
        first = next;
    }
}

/* With the last list all memory goes back. */
static void reset_when_empty(kv_pool *p, kv_positions *ps) {
    if (ps->n_lists) return;
    kv_pool_discharge(p, (uint64_t)ps->n_cells * sizeof(cell) + (uint64_t)ps->most_lists * sizeof *ps->heads);
    if (ps->n_cells) kv_os_decommit(ps->cells, ps->n_cells * sizeof(cell));
    ps->n_cells = ps->most_lists = 0;
    ps->free = NO_CELL;
}

void kv_positions_drop(kv_pool *p, uint32_t page) {
    kv_positions *ps = *kv_pool_positions(p);
    kv_page_entry *e = kv_pool_entry(p, page);
    if (!(e->flags & KV_PAGE_LISTED)) return;
    free_chain(ps, ps->heads[page]);
    e->flags &= (uint8_t)~KV_PAGE_LISTED;
    ps->n_lists--;
    reset_when_empty(p, ps);
}

static kv_status write_list(kv_pool *p, uint32_t page, uint32_t base, const uint32_t *idx, uint32_t n, kv_error *err) {
    KV_TRY(kv_positions_prepare(p, err));
    kv_positions *ps = *kv_pool_positions(p);
    kv_page_entry *e = kv_pool_entry(p, page);
    writer w = {.pool = p, .ps = ps, .first = NO_CELL};
    kv_status st = KVIST_OK;
    bool fresh = !(e->flags & KV_PAGE_LISTED), more = fresh && ps->n_lists == ps->most_lists;
    if (more) st = kv_pool_charge(p, sizeof *ps->heads, err);
    if (st) return st;
    if (more) ps->most_lists++;
    for (uint32_t i = 1; i < n && !st; i++) st = put_step(&w, (int64_t)idx[i] - idx[i - 1] - 1, err);
    if (st) {
        free_chain(ps, w.first);
        reset_when_empty(p, ps);
        return st;
    }
    if (fresh)
        ps->n_lists++;
    else
        free_chain(ps, ps->heads[page]);
    ps->heads[page] = w.first;
    e->flags |= KV_PAGE_LISTED;
    e->first_pos = base + idx[0];
    return KVIST_OK;
}

kv_status kv_positions_put(kv_pool *p, uint32_t page, uint32_t base, const uint32_t *idx, uint32_t n, kv_error *err) {
    assert(n && n <= KV_POSITIONS_MAX);
    bool neighbours = true;
    for (uint32_t i = 1; idx && i < n && neighbours; i++) neighbours = idx[i] == idx[0] + i;
    if (!neighbours) return write_list(p, page, base, idx, n, err);
    if (listed(p, page)) kv_positions_drop(p, page);
    kv_pool_entry(p, page)->first_pos = base + (idx ? idx[0] : 0);
    return KVIST_OK;
}

kv_status kv_positions_set(kv_pool *p, uint32_t page, uint32_t slot, uint32_t position, kv_error *err) {
    uint32_t all[KV_POSITIONS_MAX], n = kv_positions_get(p, page, all);
    assert(kv_pool_entry(p, page)->refs == 1 && slot <= n && slot < KV_POSITIONS_MAX);
    all[slot] = position;
    return kv_positions_put(p, page, 0, all, slot == n ? n + 1 : n, err);
}

kv_status kv_positions_copy(kv_pool *p, uint32_t from, uint32_t to, kv_error *err) {
    uint32_t all[KV_POSITIONS_MAX], n = kv_positions_get(p, from, all);
    assert(from != to);
    if (n) return kv_positions_put(p, to, 0, all, n, err);
    kv_pool_entry(p, to)->first_pos = kv_pool_entry(p, from)->first_pos;
    return KVIST_OK;
}

/* ---- reading */

typedef struct reader {
    const kv_positions *ps;
    uint32_t cell, at;
} reader;

/* False when the list ends first or a step is longer than 64 bits: a broken list. */
static bool get_step(reader *r, int64_t *step) {
    uint64_t z = 0;
    for (uint32_t shift = 0; shift < 64; shift += 7) {
        if (r->at == CELL_DATA) {
            r->cell = r->ps->cells[r->cell].next;
            r->at = 0;
        }
        if (r->cell == NO_CELL) return false;
        uint8_t b = r->ps->cells[r->cell].data[r->at++];
        z |= (uint64_t)(b & 127) << shift;
        if (b < 128) {
            *step = z & 1 ? -(int64_t)((z + 1) / 2) : (int64_t)(z / 2);
            return true;
        }
    }
    return false;
}

static bool read_list(const kv_pool *p, uint32_t page, uint32_t n, uint32_t *out) {
    const kv_positions *ps = *kv_pool_positions(p);
    reader r = {.ps = ps, .cell = ps->heads[page]};
    int64_t at = kv_pool_entry(p, page)->first_pos, step;
    for (uint32_t i = 0; i < n; i++) {
        if (i && !get_step(&r, &step)) return false;
        if (i) at += step + 1;
        if (at < 0 || at > UINT32_MAX) return false;
        if (out) out[i] = (uint32_t)at;
    }
    return true;
}

uint32_t kv_positions_get(const kv_pool *p, uint32_t page, uint32_t *out) {
    const kv_page_entry *e = kv_pool_entry(p, page);
    assert(e->n <= KV_POSITIONS_MAX);
    if (!listed(p, page)) {
        uint32_t n = kv_page_end(e);
        for (uint32_t i = 0; i < n; i++) out[i] = e->first_pos + i;
        return n;
    }
    bool whole = read_list(p, page, e->n, out);
    assert(whole);
    (void)whole;
    return e->n;
}

uint32_t kv_positions_at(const kv_pool *p, uint32_t page, uint32_t slot) {
    uint32_t all[KV_POSITIONS_MAX], n = kv_positions_get(p, page, all);
    assert(slot < n);
    (void)n;
    return all[slot];
}

uint64_t kv_positions_bytes(const kv_pool *p, uint32_t page) {
    if (!listed(p, page)) return 0;
    const kv_positions *ps = *kv_pool_positions(p);
    uint64_t bytes = sizeof *ps->heads;
    for (uint32_t c = ps->heads[page]; c != NO_CELL; c = ps->cells[c].next) bytes += sizeof(cell);
    return bytes;
}

uint64_t kv_positions_bound(uint32_t n) {
    uint64_t bytes = n ? 5ull * (n - 1) : 0; /* a step of 33 bits and a sign: 5 groups of 7 */
    return sizeof(uint32_t) + (bytes + CELL_DATA - 1) / CELL_DATA * sizeof(cell);
}

bool kv_positions_check(const kv_pool *p, uint32_t n_pages, kv_error *err) {
    const kv_positions *ps = *kv_pool_positions(p);
    uint64_t lists = 0, cells = 0;
    for (uint32_t i = 0; i < n_pages; i++) {
        if (!listed(p, i)) continue;
        const kv_page_entry *e = kv_pool_entry(p, i);
        uint64_t bytes = ps ? kv_positions_bytes(p, i) : 0;
        if (!ps || !e->refs || !read_list(p, i, e->n, NULL))
            return kv_fail(err, KVIST_E_STATE, "positions: page %u is free, or its list does not hold its %u tokens", i,
                           e->n) == KVIST_OK;
        lists++;
        cells += (bytes - sizeof *ps->heads) / sizeof(cell);
    }
    if (!ps) return true;
    for (uint32_t c = ps->free; c != NO_CELL && cells <= ps->n_cells; c = ps->cells[c].next) cells++;
    if (lists != ps->n_lists || lists > ps->most_lists || cells != ps->n_cells)
        return kv_fail(err, KVIST_E_STATE, "positions: %llu lists of %u, %llu cells of %u are accounted for",
                       (unsigned long long)lists, ps->n_lists, (unsigned long long)cells, ps->n_cells) == KVIST_OK;
    return true;
}
