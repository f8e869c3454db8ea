/* SPDX-License-Identifier: Apache-2.0 */
/* The page pool: reuse order, references, budget, peak, and a random run against plain counters. */
#include "support/support.h"

#include "base/alloc.h"
#include "cache/pool.h"

#define PB 4096u
#define COST (PB + sizeof(kv_page_entry))

static kv_pool *make(uint64_t budget) {
    kv_pool *p = NULL;
    kv_error err = {0};
    assert_int_equal(kv_pool_create(PB, budget, &p, &err), KVIST_OK);
    return p;
}

static void refuses_bad_sizes(void **state) {
    kv_pool *p = (kv_pool *)1;
    kv_error err = {0};
    assert_int_equal(kv_pool_create(100, 1 << 20, &p, &err), KVIST_E_ARG);
    assert_null(p);
    assert_int_equal(kv_pool_create(0, 1 << 20, &p, &err), KVIST_E_ARG);
    assert_int_equal(kv_pool_create(PB, COST - 1, &p, &err), KVIST_E_BUDGET);
    p = make(COST);
    kv_pool_free(&p);
    assert_null(p);
    kv_pool_free(&p);
}

static void reuses_last_freed_first(void **state) {
    kv_pool *p = make(10 * COST);
    uint32_t a, b, c, x;
    kv_error err;
    assert_int_equal(kv_pool_acquire(p, &a, &err), 0);
    assert_int_equal(kv_pool_acquire(p, &b, &err), 0);
    assert_int_equal(kv_pool_acquire(p, &c, &err), 0);
    assert_true(a != b && b != c && a != c);
    assert_int_equal((uintptr_t)kv_pool_data(p, b) % 64, 0);
    memset(kv_pool_data(p, a), 1, PB);
    memset(kv_pool_data(p, b), 2, PB);
    memset(kv_pool_data(p, c), 3, PB);
    assert_int_equal(kv_pool_data(p, a)[PB - 1], 1);
    assert_int_equal(kv_pool_data(p, b)[0], 2);
    kv_pool_entry(p, a)->n = 7;
    kv_pool_ref(p, a);
    kv_pool_unref(p, a);
    assert_int_equal(kv_pool_entry(p, a)->refs, 1);
    kv_pool_unref(p, a);
    kv_pool_unref(p, c);
    assert_true(kv_pool_check(p, &err));
    assert_int_equal(kv_pool_acquire(p, &x, &err), 0);
    assert_int_equal(x, c);
    assert_int_equal(kv_pool_acquire(p, &x, &err), 0);
    assert_int_equal(x, a);
    assert_int_equal(kv_pool_entry(p, x)->n, 0);
    assert_int_equal(kv_pool_entry(p, x)->refs, 1);
    kv_pool_free(&p);
}

static void budget_is_exact(void **state) {
    kv_pool *p = make(4 * COST + 100);
    kv_error err = {0};
    uint32_t page[5];
    for (int i = 0; i < 4; i++) assert_int_equal(kv_pool_acquire(p, &page[i], &err), 0);
    assert_int_equal(kv_pool_acquire(p, &page[4], &err), KVIST_E_BUDGET);
    assert_int_equal(page[4], KV_NO_PAGE);
    assert_int_equal(kv_pool_charge(p, 101, &err), KVIST_E_BUDGET);
    assert_int_equal(kv_pool_charge(p, UINT64_MAX, &err), KVIST_E_BUDGET);
    assert_int_equal(kv_pool_charge(p, 100, &err), 0);
    kv_pool_unref(p, page[3]);
    assert_int_equal(kv_pool_charge(p, 1, &err), 0); /* now the freed page's memory goes back */
    assert_int_equal(kv_pool_acquire(p, &page[3], &err), KVIST_E_BUDGET);
    assert_true(kv_pool_check(p, &err));
    kv_pool_discharge(p, 1);
    assert_int_equal(kv_pool_acquire(p, &page[3], &err), 0);
    kv_pool_stats st;
    kv_pool_get_stats(p, &st);
    assert_int_equal(st.pages_used, 4);
    assert_int_equal(st.pages_free, 0);
    assert_int_equal(st.pages_max, 4);
    assert_int_equal(st.bytes_used, 4 * COST);
    assert_int_equal(st.bytes_charged, 100);
    assert_int_equal(st.bytes_peak, 4 * COST + 100);
    kv_pool_unref(p, page[0]);
    kv_pool_reset_peak(p);
    kv_pool_get_stats(p, &st);
    assert_int_equal(st.bytes_peak, 3 * COST + 100);
    kv_pool_free(&p);
}

static void check_finds_faults(void **state) {
    kv_pool *p = make(4 * COST);
    kv_error err = {0};
    uint32_t a, b;
    assert_int_equal(kv_pool_acquire(p, &a, &err), 0);
    assert_int_equal(kv_pool_acquire(p, &b, &err), 0);
    kv_pool_entry(p, a)->refs = 0; /* leaked: neither used nor free */
    assert_false(kv_pool_check(p, &err));
    assert_true(strstr(err.message, "free list") != NULL);
    kv_pool_entry(p, a)->refs = 1;
    assert_true(kv_pool_check(p, &err));
    kv_pool_free(&p);
}

static void random_run(void **state) {
    uint64_t seed = 5;
    enum { MAX = 37 };
    kv_pool *p = make(MAX * COST + 3 * COST / 2);
    kv_error err = {0};
    uint32_t refs[64] = {0};
    uint64_t charged = 0, peak = 0;
    for (int step = 0; step < 20000; step++) {
        uint64_t r = test_rand(&seed);
        uint32_t page = (uint32_t)(r >> 32) % 64, used = 0;
        for (int i = 0; i < 64; i++) used += refs[i] > 0;
        switch (r % 5) {
        case 0:
        case 1: {
            uint32_t id;
            bool fits = (used + 1) * COST + charged <= MAX * COST + 3 * COST / 2;
            assert_int_equal(kv_pool_acquire(p, &id, &err), fits ? KVIST_OK : KVIST_E_BUDGET);
            if (!fits) break;
            assert_true(id < 64 && refs[id] == 0);
            refs[id] = 1;
            memset(kv_pool_data(p, id), (int)id, PB);
            used++;
            break;
        }
        case 2:
            if (refs[page]) kv_pool_ref(p, page), refs[page]++;
            break;
        case 3:
            if (!refs[page]) break;
            for (uint32_t i = 0; i < PB; i += 511) assert_int_equal(kv_pool_data(p, page)[i], page);
            kv_pool_unref(p, page);
            used -= --refs[page] == 0;
            break;
        default:
            if (r & 64) {
                uint64_t n = (r >> 8) % (8 * PB);
                bool fits = used * COST + charged + n <= MAX * COST + 3 * COST / 2;
                assert_int_equal(kv_pool_charge(p, n, &err), fits ? KVIST_OK : KVIST_E_BUDGET);
                charged += fits ? n : 0;
            } else {
                kv_pool_discharge(p, charged);
                charged = 0;
            }
        }
        if (used * COST + charged > peak) peak = used * COST + charged;
        kv_pool_stats st;
        kv_pool_get_stats(p, &st);
        assert_int_equal(st.pages_used, used);
        assert_int_equal(st.bytes_charged, charged);
        assert_int_equal(st.bytes_peak, peak);
        assert_true(kv_pool_check(p, &err));
    }
    kv_pool_free(&p);
}

static void survives_failed_allocations(void **state) {
    for (uint64_t n = 1;; n++) {
        kv_pool *p = NULL;
        kv_error err = {0};
        kv_alloc_test_fail_at(n);
        kv_status s = kv_pool_create(PB, 8 * COST, &p, &err);
        kv_alloc_test_fail_at(0);
        if (!s) {
            assert_true(n > 1);
            kv_pool_free(&p);
            break;
        }
        assert_int_equal(s, KVIST_E_MEMORY);
        assert_null(p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_bad_sizes), cmocka_unit_test(reuses_last_freed_first),
        cmocka_unit_test(budget_is_exact),   cmocka_unit_test(check_finds_faults),
        cmocka_unit_test(random_run),        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
