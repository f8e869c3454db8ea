/* SPDX-License-Identifier: Apache-2.0 */
/* The fork-join pool: every item exactly once, for every thread count, also with more threads than processors. */
#include "support/support.h"

#include "base/alloc.h"
#include "base/os.h"
#include "base/threads.h"

#include <stdatomic.h>
#include <unistd.h>

#define MAX_ITEMS 1009u

typedef struct job {
    _Atomic uint32_t hits[MAX_ITEMS];
    uint32_t plain[MAX_ITEMS];
    uint32_t n_threads, serial;
    _Atomic uint32_t bad;
} job;

static void mark(void *ctx, uint32_t item, uint32_t thread) {
    job *j = ctx;
    if (item >= MAX_ITEMS || thread >= j->n_threads) {
        atomic_fetch_add(&j->bad, 1);
        return;
    }
    atomic_fetch_add(&j->hits[item], 1);
    j->plain[item] = j->serial ^ item; /* not atomic: a data race here is the sanitizer's to find */
}

static void run_many(uint32_t n_threads, uint32_t rounds) {
    kv_threads *t;
    kv_error err;
    assert_int_equal(kv_threads_create(n_threads, &t, &err), 0);
    assert_int_equal(kv_threads_count(t), n_threads);
    static job j;
    memset(&j, 0, sizeof j);
    j.n_threads = n_threads;
    uint64_t seed = n_threads;
    uint64_t allocs = kv_alloc_count();
    for (uint32_t r = 0; r < rounds; r++) {
        uint32_t n = r % 7 == 0 ? MAX_ITEMS : (uint32_t)(test_rand(&seed) % 12);
        j.serial = r + 1;
        for (uint32_t i = 0; i < n; i++) atomic_store_explicit(&j.hits[i], 0, memory_order_relaxed);
        atomic_store(&j.hits[n < MAX_ITEMS ? n : 0], 0);
        kv_threads_run(t, mark, &j, n);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(atomic_load(&j.hits[i]), 1);
            assert_int_equal(j.plain[i], j.serial ^ i);
        }
        if (n < MAX_ITEMS) assert_int_equal(atomic_load(&j.hits[n]), 0);
    }
    assert_int_equal(atomic_load(&j.bad), 0);
    assert_int_equal(kv_alloc_count(), allocs);
    kv_threads_free(&t);
    assert_null(t);
}

static void every_item_once(void **state) {
    for (uint32_t n = 1; n <= 9; n++) run_many(n, 400);
    run_many(33, 60);
}

static void sleeping_between_jobs(void **state) {
    /* Longer than the spinning time, so that workers sleep and must be woken, and items long enough for them to come.
     */
    kv_threads *t;
    kv_error err;
    assert_int_equal(kv_threads_create(2, &t, &err), 0);
    static job j;
    memset(&j, 0, sizeof j);
    j.n_threads = 2;
    for (uint32_t r = 0; r < 200; r++) {
        uint64_t until = kv_os_now_ns() + (r % 3) * 50000u;
        while (kv_os_now_ns() < until) {}
        j.serial = r;
        kv_threads_run(t, mark, &j, 64);
    }
    for (uint32_t i = 0; i < 64; i++) assert_int_equal(atomic_load(&j.hits[i]), 200);
    kv_threads_free(&t);
}

/* Each of 3 items waits for the other threads: only when every worker wakes up does it end before its patience does. */
static void meet(void *ctx, uint32_t item, uint32_t thread) {
    _Atomic uint32_t *seen = ctx;
    atomic_fetch_or(seen, 1u << thread);
    for (int i = 0; i < 20000 && atomic_load(seen) != 7; i++) usleep(1000);
}

static void work_is_shared(void **state) {
    kv_threads *t;
    kv_error err;
    assert_int_equal(kv_threads_create(3, &t, &err), 0);
    _Atomic uint32_t seen = 0;
    for (int i = 0; i < 3; i++) {
        atomic_store(&seen, 0);
        kv_threads_run(t, meet, (void *)&seen, 3);
        assert_int_equal(atomic_load(&seen), 7);
    }
    kv_threads_free(&t);
}

typedef struct late {
    _Atomic uint32_t arrived, finished;
} late;

/* Both items run at the same time; the worker's ends 20 ms after the caller's. */
static void end_late(void *ctx, uint32_t item, uint32_t thread) {
    late *l = ctx;
    atomic_fetch_add(&l->arrived, 1);
    for (int i = 0; i < 20000 && atomic_load(&l->arrived) != 2; i++) usleep(1000);
    if (thread) usleep(20000);
    atomic_fetch_add(&l->finished, 1);
}

static void returns_when_all_are_done(void **state) {
    kv_threads *t;
    kv_error err;
    assert_int_equal(kv_threads_create(2, &t, &err), 0);
    for (int i = 0; i < 3; i++) {
        late l = {0};
        kv_threads_run(t, end_late, &l, 2);
        assert_int_equal(atomic_load(&l.finished), 2);
    }
    kv_threads_free(&t);
}

static void inline_without_pool(void **state) {
    static job j;
    memset(&j, 0, sizeof j);
    j.n_threads = 1;
    kv_threads_run(NULL, mark, &j, 5);
    kv_threads_run(NULL, mark, &j, 0);
    for (uint32_t i = 0; i < 5; i++) assert_int_equal(atomic_load(&j.hits[i]), 1);
    assert_int_equal(kv_threads_count(NULL), 1);
    kv_threads *none = NULL;
    kv_threads_free(&none);
    kv_threads_free(NULL);
}

static void create_refuses(void **state) {
    kv_threads *t = (kv_threads *)1;
    kv_error err;
    assert_int_equal(kv_threads_create(0, &t, &err), KVIST_E_ARG);
    assert_null(t);
    for (uint64_t n = 1; n <= 2; n++) {
        kv_alloc_test_fail_at(n);
        assert_int_equal(kv_threads_create(4, &t, &err), KVIST_E_MEMORY);
        assert_null(t);
    }
    kv_alloc_test_fail_at(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_once),     cmocka_unit_test(sleeping_between_jobs),
        cmocka_unit_test(work_is_shared),      cmocka_unit_test(returns_when_all_are_done),
        cmocka_unit_test(inline_without_pool), cmocka_unit_test(create_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
