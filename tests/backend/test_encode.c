/* SPDX-License-Identifier: Apache-2.0 */
/* Every level's page encoder gives the reference's bytes; sealing gives the same pages with any number of threads and
 * no allocation. */
#include "backend/cpu/encode.h"
#include "base/alloc.h"
#include "support/support.h"

#include <sys/mman.h>

static const uint32_t shapes[][2] = {{64, 64},   {72, 72},  {80, 80},  {128, 128},
                                     {256, 256}, {64, 128}, {128, 64}, {17, 33}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* `size` bytes that end at an unreadable page. */
static void *guarded(size_t size) {
    size_t whole = (size + 4095) / 4096 * 4096;
    uint8_t *p = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + whole, 4096, PROT_NONE), 0);
    return p + whole - size;
}
static void unguard(void *p, size_t size) {
    size_t whole = (size + 4095) / 4096 * 4096;
    munmap((uint8_t *)p + size - whole, whole + 4096);
}

/* Finite f16 of a few binades around 1 (wild: any bits at all). */
static void fill(uint16_t *x, size_t n, bool wild, uint64_t *seed) {
    for (size_t i = 0; i < n; i++) {
        uint64_t r = test_rand(seed);
        x[i] = wild ? (uint16_t)r : (uint16_t)((r & 0x8000) | (uint64_t)(10 + (r >> 20) % 6) << 10 | (r & 0x3ff));
    }
}

static bool legal(int kf, int vf) {
    return kf == vf || (kv_formats[kf].kind == KV_KIND_LADDER && kv_formats[vf].kind == KV_KIND_LADDER);
}

static void compare_levels(const kv_page_layout *l, uint32_t n, bool wild, uint64_t *seed) {
    size_t nk = 2ul * n * l->dk, nv = 2ul * n * l->dv, ns = (kv_encode_scratch(l) + 63) & ~(size_t)63;
    uint16_t *k = guarded(nk), *v = guarded(nv);
    float *q2 = guarded(4ul * l->dk);
    uint8_t *want = guarded(l->page_bytes), *got = guarded(l->page_bytes), *scratch = guarded(ns);
    kv_page_entry e[2];
    fill(k, (size_t)n * l->dk, wild, seed);
    fill(v, (size_t)n * l->dv, wild, seed);
    for (uint32_t c = 0; c < l->dk; c++) q2[c] = (float)(test_rand(seed) % 1000) / 100;
    memset(e, 0, sizeof e);
    kv_encode_ref(l, n, k, v, q2, want, &e[0], scratch);
    for (int level = 1; level <= kv_cpu_detect(); level++) {
        memset(got, 0xa5, l->page_bytes);
        memset(scratch, 0xff, ns);
        kv_encode_kernels_get(level)->encode(l, n, k, v, q2, got, &e[1], scratch);
        for (uint32_t i = 0; i < l->page_bytes; i++)
            if (want[i] != got[i])
                fail_msg("%s, %s/%s, d %u,%u, n %u: byte %u", kv_cpu_level_name(level), kv_formats[l->kf].name,
                         kv_formats[l->vf].name, l->dk, l->dv, n, i);
        assert_memory_equal(&e[0], &e[1], sizeof e[0]);
    }
    unguard(k, nk);
    unguard(v, nv);
    unguard(q2, 4ul * l->dk);
    unguard(want, l->page_bytes);
    unguard(got, l->page_bytes);
    unguard(scratch, ns);
}

static void test_levels_agree(void **state) {
    if (kv_cpu_detect() == KV_CPU_REF) skip();
    uint64_t seed = 1;
    for (int kf = 0; kf < KV_FORMATS; kf++)
        for (int vf = 0; vf < KV_FORMATS; vf++)
            for (int s = 0; s < (kf == vf ? N_SHAPES : 1) && legal(kf, vf); s++) {
                kv_page_layout l;
                kv_error err;
                assert_int_equal(kv_page_layout_get(kv_format_pair((uint8_t)kf, (uint8_t)vf), shapes[s][0],
                                                    shapes[s][1], kv_page_bytes_for(shapes[s][0], shapes[s][1]), &l,
                                                    &err),
                                 0);
                uint32_t P = l.tokens, counts[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, P - 1, P};
                if (s == 0 && kf == vf)
                    for (uint32_t n = 1; n <= P; n++) compare_levels(&l, n, n % 3 == 0, &seed);
                else
                    for (int i = 0; i < 11; i++)
                        if (counts[i] <= P) compare_levels(&l, counts[i], i % 2, &seed);
            }
}

enum { JOBS = 23 };

static void test_seal(void **state) {
    static const uint8_t formats[] = {KV_Q2S, KV_F16, KV_Q8, KV_Q4, KV_MINIKV2};
    uint64_t seed = 2;
    kv_page_layout layouts[5];
    kv_seal_job jobs[JOBS];
    static kv_page_entry entries[JOBS], want_entry;
    uint8_t *pages = kv_malloc64(JOBS * 8192), *want = kv_malloc64(8192),
            *scratch = kv_malloc64(kv_encode_scratch_bound(8192, 128));
    uint16_t *values = test_malloc(2ul * 2 * 128 * 128);
    float q2[128];
    fill(values, 2ul * 128 * 128, false, &seed);
    for (int i = 0; i < 128; i++) q2[i] = 1 + (float)(i % 3);
    for (int i = 0; i < 5; i++)
        assert_int_equal(kv_page_layout_get(kv_format_pair(formats[i], formats[i]), 128, 128, 8192, &layouts[i], NULL),
                         0);
    for (int i = 0; i < JOBS; i++) {
        const kv_page_layout *l = &layouts[i % 5];
        jobs[i] = (kv_seal_job){l,          i % 4 ? l->tokens : 1u + (uint32_t)i % l->tokens,
                                values + i, values + 128 * 128 - i,
                                q2,         pages + 8192 * i,
                                &entries[i]};
    }
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t threads = 1; threads <= 4; threads++) {
            kv_error err;
            kv_cpu_backend be = {.level = level, .encode = kv_encode_kernels_get(level)};
            kv_cpu_exec ex = {.be = &be, .params = {.threads = threads, .max_head_dim = 128, .page_bytes = 8192}};
            assert_int_equal(kv_threads_create(threads, &ex.threads, &err), 0);
            assert_int_equal(kv_encode_exec_init(&ex, &err), 0);
            memset(pages, 0x5a, JOBS * 8192);
            uint64_t before = kv_alloc_count();
            kv_cpu_seal(&ex.base, jobs, JOBS);
            kv_cpu_seal(&ex.base, jobs, 0);
            assert_int_equal(kv_alloc_count(), before);
            for (int i = 0; i < JOBS; i++) {
                kv_encode_ref(jobs[i].layout, jobs[i].n, jobs[i].k, jobs[i].v, q2, want, &want_entry, scratch);
                assert_memory_equal(want, jobs[i].page, 8192);
                assert_memory_equal(want_entry.k_widths, entries[i].k_widths, sizeof want_entry.k_widths);
                assert_int_equal(entries[i].n, jobs[i].n);
                assert_int_equal(entries[i].format, want_entry.format);
            }
            kv_encode_exec_free(&ex);
            assert_null(ex.encode_scratch);
            kv_encode_exec_free(&ex);
            kv_threads_free(&ex.threads);
        }
    kv_free64(pages);
    kv_free64(want);
    kv_free64(scratch);
    test_free(values);
}

/* Each allocation of the section fails once: an error, nothing kept. */
static void test_no_memory(void **state) {
    for (uint64_t n = 1; n <= 3; n++) {
        kv_error err;
        kv_cpu_exec ex = {.params = {.max_head_dim = 64, .page_bytes = 4096}};
        kv_alloc_test_fail_at(n);
        kv_status s = kv_encode_exec_init(&ex, &err);
        kv_alloc_test_fail_at(0);
        assert_int_equal(s, n <= 2 ? KVIST_E_MEMORY : KVIST_OK);
        if (s) assert_null(ex.encode_scratch);
        kv_encode_exec_free(&ex);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_levels_agree), cmocka_unit_test(test_seal),
                                       cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
