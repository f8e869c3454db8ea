/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed global selection: what stays after the last layer is exactly what an offline sort over all layers keeps, and
 * never more pages than the budget are held between layers. */
#include "support/support.h"

#include "base/alloc.h"
#include "policy/plan.h"

#include <math.h>

enum { MAXL = 9, MAXH = 4, MAXP = 24 };

typedef struct world {
    uint32_t layers, heads, n[MAXL][MAXH];
    float price[MAXL][MAXH][MAXP];
    bool kept[MAXL][MAXH][MAXP];
} world;

static bool above(const world *w, uint32_t l, uint32_t h, uint32_t p, uint32_t l2, uint32_t h2, uint32_t p2) {
    float a = w->price[l][h][p], b = w->price[l2][h2][p2];
    if (isnan(a)) a = -INFINITY;
    if (isnan(b)) b = -INFINITY;
    if (a != b) return a > b;
    if (l != l2) return l < l2;
    if (h != h2) return h < h2;
    return p < p2;
}

/* Repeatedly takes the best page that is left. */
static void offline(world *w, uint64_t budget, uint32_t floor_pages) {
    uint64_t taken = 0;
    memset(w->kept, 0, sizeof w->kept);
    for (uint32_t l = 0; l < w->layers; l++)
        for (uint32_t h = 0; h < w->heads; h++)
            for (uint32_t f = 0; f < floor_pages && f < w->n[l][h]; f++) {
                uint32_t best = MAXP;
                for (uint32_t p = 0; p < w->n[l][h]; p++)
                    if (!w->kept[l][h][p] && (best == MAXP || above(w, l, h, p, l, h, best))) best = p;
                w->kept[l][h][best] = true;
                taken++;
            }
    while (taken < budget) {
        uint32_t bl = 0, bh = 0, bp = MAXP;
        for (uint32_t l = 0; l < w->layers; l++)
            for (uint32_t h = 0; h < w->heads; h++)
                for (uint32_t p = 0; p < w->n[l][h]; p++)
                    if (!w->kept[l][h][p] && (bp == MAXP || above(w, l, h, p, bl, bh, bp))) bl = l, bh = h, bp = p;
        if (bp == MAXP) break;
        w->kept[bl][bh][bp] = true;
        taken++;
    }
}

static void streamed_equals_offline(void **state) {
    uint64_t seed = 23;
    world *w = calloc(1, sizeof *w);
    static bool held[MAXL][MAXH][MAXP];
    for (int round = 0; round < 2500; round++) {
        uint64_t r = test_rand(&seed);
        w->layers = 1 + (uint32_t)(r % MAXL);
        w->heads = 1 + (uint32_t)((r >> 8) % MAXH);
        uint32_t total = 0, most = 1 + (uint32_t)((r >> 16) % MAXP), kind = (uint32_t)((r >> 24) % 4);
        for (uint32_t l = 0; l < w->layers; l++)
            for (uint32_t h = 0; h < w->heads; h++) {
                w->n[l][h] = kind == 3 ? (uint32_t)(test_rand(&seed) % (most + 1)) : most;
                total += w->n[l][h];
                for (uint32_t p = 0; p < w->n[l][h]; p++) {
                    uint64_t x = test_rand(&seed);
                    w->price[l][h][p] = kind == 0 ? (float)(x % 4) : test_normal(&seed);
                    if (x % 13 == 0) w->price[l][h][p] = INFINITY;
                    if (x % 29 == 0) w->price[l][h][p] = NAN;
                }
            }
        uint64_t budget = (r >> 32) % (total + 4);
        uint32_t floor_pages = (uint32_t)((r >> 48) % (most + 2));
        if ((r >> 60) % 2) floor_pages = (uint32_t)(budget / (2 * w->layers * w->heads));
        offline(w, budget, floor_pages);
        kv_gsel *g = NULL;
        kv_error err;
        uint64_t in_set = 0, floors = 0;
        memset(held, 0, sizeof held);
        assert_int_equal(kv_gsel_create(budget, floor_pages, w->layers * w->heads, &g, &err), 0);
        for (uint32_t l = 0; l < w->layers; l++) {
            for (uint32_t h = 0; h < w->heads; h++) {
                assert_int_equal(kv_gsel_add(g, l, h, w->price[l][h], w->n[l][h], &err), 0);
                for (uint32_t p = 0; p < w->n[l][h]; p++) held[l][h][p] = true, in_set++;
                floors += w->n[l][h] < floor_pages ? w->n[l][h] : floor_pages;
            }
            const kv_gsel_drop *drops;
            uint32_t n;
            assert_int_equal(kv_gsel_settle(g, &drops, &n, &err), 0);
            for (uint32_t i = 0; i < n; i++) {
                assert_true(held[drops[i].layer][drops[i].head][drops[i].page]);
                held[drops[i].layer][drops[i].head][drops[i].page] = false;
                in_set--;
            }
            assert_true(in_set <= (budget > floors ? budget : floors));
        }
        for (uint32_t l = 0; l < w->layers; l++)
            for (uint32_t h = 0; h < w->heads; h++)
                for (uint32_t p = 0; p < w->n[l][h]; p++) assert_int_equal(held[l][h][p], w->kept[l][h][p]);
        kv_gsel_free(&g);
        assert_null(g);
    }
    free(w);
}

/* +inf pages stay before finite ones of any layer, and count. */
static void infinite_prices_count(void **state) {
    kv_gsel *g;
    kv_error err;
    const kv_gsel_drop *drops;
    uint32_t n;
    const float a[] = {5, INFINITY, 4}, b[] = {INFINITY, 100, INFINITY};
    assert_int_equal(kv_gsel_create(3, 0, 2, &g, &err), 0);
    assert_int_equal(kv_gsel_add(g, 0, 0, a, 3, &err), 0);
    assert_int_equal(kv_gsel_settle(g, &drops, &n, &err), 0);
    assert_int_equal(n, 0);
    assert_int_equal(kv_gsel_add(g, 1, 0, b, 3, &err), 0);
    assert_int_equal(kv_gsel_settle(g, &drops, &n, &err), 0);
    assert_int_equal(n, 3); /* 4, then 5, then 100 */
    assert_true(drops[0].layer == 0 && drops[0].page == 2);
    assert_true(drops[1].layer == 0 && drops[1].page == 0);
    assert_true(drops[2].layer == 1 && drops[2].page == 1);
    kv_gsel_free(&g);
}

static void failed_allocations_change_nothing(void **state) {
    float price[20];
    for (int i = 0; i < 20; i++) price[i] = (float)i;
    for (uint64_t n = 1; n < 20; n++) {
        kv_gsel *g = NULL;
        kv_error err = {0};
        const kv_gsel_drop *drops;
        uint32_t n_drops = 0;
        kv_alloc_test_fail_at(n);
        kv_status s = kv_gsel_create(4, 1, 2, &g, &err);
        if (!s) s = kv_gsel_add(g, 0, 0, price, 20, &err);
        if (!s) s = kv_gsel_settle(g, &drops, &n_drops, &err);
        kv_alloc_test_fail_at(0);
        if (!s) {
            assert_int_equal(n_drops, 16);
            kv_gsel_free(&g);
            assert_true(n == 5);
            return;
        }
        assert_int_equal(s, KVIST_E_MEMORY);
        kv_gsel_free(&g);
    }
    fail();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(streamed_equals_offline),
                                       cmocka_unit_test(infinite_prices_count),
                                       cmocka_unit_test(failed_allocations_change_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
