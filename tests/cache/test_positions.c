/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Positions of pages against plain arrays: random lists, moves, copies, references and failures; bytes and charges
 * against sums worked out from the header's formula.
 */
#include "support/support.h"

#include "base/alloc.h"
#include "cache/positions.h"

enum { PB = 1024, PAGES = 24, MOST = 300 };
#define COST (PB + sizeof(kv_page_entry))

typedef struct naive {
    uint32_t id, refs, n, pos[MOST + 1];
} naive;

typedef struct world {
    kv_pool *pool;
    naive page[PAGES];
    uint64_t seed, most_lists, most_cells; /* since there was no list */
    uint32_t refused;
} world;

/* Groups of 7 bits of the zigzag number of a step, straight from the definition. */
static uint32_t step_bytes(uint32_t before, uint32_t after) {
    int64_t d = (int64_t)after - (int64_t)before - 1;
    uint64_t z = d >= 0 ? (uint64_t)d * 2 : (uint64_t)(-2 * d - 1);
    return z < 1ull << 7 ? 1 : z < 1ull << 14 ? 2 : z < 1ull << 21 ? 3 : z < 1ull << 28 ? 4 : 5;
}

static uint64_t cells_of(const uint32_t *pos, uint32_t n) {
    uint64_t bytes = 0;
    bool neighbours = true;
    for (uint32_t i = 1; i < n; i++) {
        bytes += step_bytes(pos[i - 1], pos[i]);
        if (pos[i] != pos[0] + i) neighbours = false;
    }
    return neighbours ? 0 : (bytes + 27) / 28;
}

static uint64_t lists_now(const world *w, uint64_t *cells) {
    uint64_t lists = 0;
    *cells = 0;
    for (int i = 0; i < PAGES; i++) {
        uint64_t c = w->page[i].refs ? cells_of(w->page[i].pos, w->page[i].n) : 0;
        lists += c > 0;
        *cells += c;
    }
    return lists;
}

/* What a list in the making needs beside those that are there: a new one is whole before the old one goes. */
static void note_most(world *w, uint64_t more_cells, bool fresh) {
    uint64_t cells, lists = lists_now(w, &cells);
    if (!lists && !more_cells) w->most_lists = w->most_cells = 0;
    if (!more_cells) return;
    if (!lists && fresh) w->most_lists = w->most_cells = 0;
    if (cells + more_cells > w->most_cells) w->most_cells = cells + more_cells;
    if (lists + fresh > w->most_lists) w->most_lists = lists + fresh;
}

/* A refused list gives its cells back, but they stay charged while there are lists: the most is read from the pool (at
 * most one list more, any cells more). */
static void note_refusal(world *w) {
    kv_pool_stats s;
    uint64_t cells, lists = lists_now(w, &cells), most = w->most_cells;
    kv_pool_get_stats(w->pool, &s);
    w->refused++;
    if (!lists) {
        assert_int_equal(s.bytes_charged, 0);
        return;
    }
    if (s.bytes_charged % 32 != 4 * w->most_lists % 32) w->most_lists++;
    w->most_cells = (s.bytes_charged - 4 * w->most_lists) / 32;
    assert_true(w->most_cells >= most);
}

static void compare(const world *w) {
    kv_error err;
    kv_pool_stats st;
    uint32_t got[KV_POSITIONS_MAX];
    uint64_t cells;
    if (!kv_pool_check(w->pool, &err)) fail_msg("%s", err.message);
    for (int i = 0; i < PAGES; i++) {
        const naive *p = &w->page[i];
        if (!p->refs) continue;
        assert_int_equal(kv_positions_get(w->pool, p->id, got), p->n);
        assert_memory_equal(got, p->pos, p->n * sizeof *got);
        assert_int_equal(kv_positions_at(w->pool, p->id, p->n - 1), p->pos[p->n - 1]);
        assert_int_equal(kv_pool_entry(w->pool, p->id)->first_pos, p->pos[0]);
        uint64_t c = cells_of(p->pos, p->n);
        assert_int_equal(kv_positions_bytes(w->pool, p->id), c ? 4 + 32 * c : 0);
        assert_true(4 + 32 * c <= kv_positions_bound(p->n));
    }
    kv_pool_get_stats(w->pool, &st);
    bool any = lists_now(w, &cells) > 0;
    assert_int_equal(st.bytes_charged, any ? 4 * w->most_lists + 32 * w->most_cells : 0);
}

static void draw(world *w, naive *p) {
    uint64_t r = test_rand(&w->seed);
    uint32_t kind = r % 4, at = (uint32_t)(r >> 8) % 5000;
    p->n = 1 + (uint32_t)(r >> 32) % (kind == 3 ? 40 : MOST - 1);
    for (uint32_t i = 0; i < p->n; i++) {
        uint64_t x = test_rand(&w->seed);
        p->pos[i] = kind == 3 ? (uint32_t)x : at;                                     /* any order, any size */
        at += 1 + (kind == 0 ? 0 : kind == 1 ? (uint32_t)x % 5 : (uint32_t)x % 3000); /* neighbours, close, far */
    }
}

/* base + idx, as a compression point says it. */
static kv_status put(world *w, uint32_t id, const naive *p) {
    uint32_t idx[MOST + 1], base = p->pos[0];
    kv_error err;
    for (uint32_t i = 0; i < p->n && base; i++)
        if (p->pos[i] < base) base = p->pos[i];
    for (uint32_t i = 0; i < p->n; i++) idx[i] = p->pos[i] - base;
    bool plain = p->n > 1 && !cells_of(p->pos, p->n);
    return kv_positions_put(w->pool, id, base, plain ? NULL : idx, p->n, &err);
}

static void new_page(world *w, naive *p) {
    kv_error err;
    naive next = {0};
    if (kv_pool_acquire(w->pool, &next.id, &err)) {
        w->refused++;
        return;
    }
    draw(w, &next);
    uint64_t c = cells_of(next.pos, next.n);
    kv_status st = put(w, next.id, &next);
    if (st) {
        assert_int_equal(st, KVIST_E_BUDGET);
        kv_pool_unref(w->pool, next.id);
        note_refusal(w);
        return;
    }
    note_most(w, c, true);
    kv_pool_entry(w->pool, next.id)->n = (uint16_t)next.n;
    next.refs = 1;
    *p = next;
}

static void move_token(world *w, naive *p) {
    kv_error err;
    uint32_t slot = (uint32_t)(test_rand(&w->seed) % (p->n + (p->n < MOST ? 1u : 0u)));
    naive next = *p;
    next.pos[slot] = (uint32_t)test_rand(&w->seed) % 100000;
    if (slot == p->n) next.n++;
    uint64_t c = cells_of(next.pos, next.n);
    if (kv_positions_set(w->pool, p->id, slot, next.pos[slot], &err)) {
        note_refusal(w);
        return;
    }
    note_most(w, c, cells_of(p->pos, p->n) == 0);
    kv_pool_entry(w->pool, p->id)->n = (uint16_t)next.n;
    *p = next;
    note_most(w, 0, false);
}

static void copy_page(world *w, naive *to, const naive *from) {
    kv_error err;
    naive next = *from;
    if (kv_pool_acquire(w->pool, &next.id, &err)) return;
    if (kv_positions_copy(w->pool, from->id, next.id, &err)) {
        kv_pool_unref(w->pool, next.id);
        note_refusal(w);
        return;
    }
    note_most(w, cells_of(next.pos, next.n), true);
    kv_pool_entry(w->pool, next.id)->n = (uint16_t)next.n;
    next.refs = 1;
    *to = next;
}

static void random_run(void **state) {
    (void)state;
    world w = {.seed = 11};
    kv_error err;
    assert_int_equal(kv_pool_create(PB, 16 * COST + 3000, &w.pool, &err), KVIST_OK);
    for (int step = 0; step < 20000; step++) {
        uint64_t r = test_rand(&w.seed);
        naive *p = &w.page[(r >> 16) % PAGES], *q = &w.page[(r >> 32) % PAGES];
        uint32_t what = r % 8;
        if (!p->refs) {
            if (q->refs && what < 3)
                copy_page(&w, p, q);
            else
                new_page(&w, p);
        } else if (what < 3) {
            if (p->refs == 1) move_token(&w, p);
        } else if (what == 3) {
            kv_pool_ref(w.pool, p->id);
            p->refs++;
        } else {
            kv_pool_unref(w.pool, p->id);
            if (--p->refs == 0) note_most(&w, 0, false);
        }
        compare(&w);
        if (step % 5000 == 4999) /* everything ends: all memory goes back */
            for (int i = 0; i < PAGES; i++) {
                for (; w.page[i].refs; w.page[i].refs--) kv_pool_unref(w.pool, w.page[i].id);
                note_most(&w, 0, false);
            }
    }
    assert_true(w.refused > 50);
    for (int i = 0; i < PAGES; i++)
        for (; w.page[i].refs; w.page[i].refs--) kv_pool_unref(w.pool, w.page[i].id);
    kv_pool_stats st;
    kv_pool_get_stats(w.pool, &st);
    assert_int_equal(st.bytes_charged, 0);
    kv_pool_free(&w.pool);
}

/* The list is the page's: it stays while anybody holds the page and goes with the last reference. */
static void lives_with_the_page(void **state) {
    (void)state;
    kv_pool *p;
    kv_error err;
    kv_pool_stats st;
    uint32_t a, b, got[KV_POSITIONS_MAX], want[3] = {7, 9, 30};
    assert_int_equal(kv_pool_create(PB, 8 * COST, &p, &err), KVIST_OK);
    assert_int_equal(kv_pool_acquire(p, &a, &err), KVIST_OK);
    assert_int_equal(kv_positions_put(p, a, 5, (uint32_t[]){2, 4, 25}, 3, &err), KVIST_OK);
    kv_pool_entry(p, a)->n = 3;
    kv_pool_ref(p, a);
    kv_pool_unref(p, a);
    assert_int_equal(kv_positions_get(p, a, got), 3);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(kv_positions_bytes(p, a), 36);
    kv_pool_unref(p, a);
    kv_pool_get_stats(p, &st);
    assert_int_equal(st.bytes_charged, 0);
    assert_int_equal(kv_pool_acquire(p, &b, &err), KVIST_OK); /* the same page again: nothing is left of it */
    assert_int_equal(a, b);
    assert_int_equal(kv_positions_bytes(p, b), 0);
    assert_int_equal(kv_positions_put(p, b, 100, NULL, 4, &err), KVIST_OK);
    kv_pool_entry(p, b)->n = 4;
    assert_int_equal(kv_positions_get(p, b, got), 4);
    assert_int_equal(got[0], 100);
    assert_int_equal(got[3], 103);
    kv_pool_get_stats(p, &st);
    assert_int_equal(st.bytes_charged, 0); /* neighbours need no list */
    kv_pool_free(&p);
}

/* Moves that end in neighbours drop the list; a failing allocation is an error that changes nothing. */
static void moves_and_failures(void **state) {
    (void)state;
    kv_pool *p;
    kv_error err;
    uint32_t a, got[KV_POSITIONS_MAX];
    assert_int_equal(kv_pool_create(PB, 8 * COST, &p, &err), KVIST_OK);
    assert_int_equal(kv_pool_acquire(p, &a, &err), KVIST_OK);
    assert_int_equal(kv_positions_put(p, a, 10, NULL, 3, &err), KVIST_OK);
    kv_pool_entry(p, a)->n = 3;
    kv_alloc_test_fail_at(1);
    assert_int_equal(kv_positions_set(p, a, 1, 77, &err), KVIST_E_MEMORY);
    kv_alloc_test_fail_at(0);
    assert_int_equal(kv_positions_at(p, a, 1), 11);
    assert_int_equal(kv_positions_prepare(p, &err), KVIST_OK);
    uint64_t before = kv_alloc_count();
    assert_int_equal(kv_positions_set(p, a, 1, 77, &err), KVIST_OK);
    assert_int_equal(kv_positions_at(p, a, 1), 77);
    assert_int_equal(kv_positions_bytes(p, a), 36);
    assert_int_equal(kv_positions_set(p, a, 0, 4000000000u, &err), KVIST_OK);
    assert_int_equal(kv_pool_entry(p, a)->first_pos, 4000000000u);
    assert_int_equal(kv_positions_get(p, a, got), 3);
    assert_int_equal(got[0], 4000000000u);
    assert_int_equal(got[1], 77);
    assert_int_equal(got[2], 12);
    assert_int_equal(kv_positions_set(p, a, 0, 10, &err), KVIST_OK);
    assert_int_equal(kv_positions_set(p, a, 1, 11, &err), KVIST_OK);
    assert_int_equal(kv_positions_set(p, a, 3, 13, &err), KVIST_OK); /* appended */
    kv_pool_entry(p, a)->n = 4;
    assert_int_equal(kv_positions_bytes(p, a), 0);
    assert_int_equal(kv_alloc_count(), before);
    assert_true(kv_pool_check(p, &err));
    kv_pool_free(&p);
}

static void check_finds_faults(void **state) {
    (void)state;
    kv_pool *p;
    kv_error err;
    uint32_t a;
    assert_int_equal(kv_pool_create(PB, 8 * COST, &p, &err), KVIST_OK);
    assert_int_equal(kv_pool_acquire(p, &a, &err), KVIST_OK);
    assert_int_equal(kv_positions_put(p, a, 0, (uint32_t[]){1, 3}, 2, &err), KVIST_OK);
    kv_pool_entry(p, a)->n = 60; /* more tokens than the list has steps */
    assert_false(kv_pool_check(p, &err));
    assert_non_null(strstr(err.message, "positions"));
    kv_pool_entry(p, a)->n = 2;
    assert_true(kv_pool_check(p, &err));
    kv_pool_entry(p, a)->flags = 0; /* a list nobody has */
    assert_false(kv_pool_check(p, &err));
    kv_pool_entry(p, a)->flags = KV_PAGE_LISTED;
    kv_pool_unref(p, a);
    kv_pool_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_run), cmocka_unit_test(lives_with_the_page),
                                       cmocka_unit_test(moves_and_failures), cmocka_unit_test(check_finds_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
