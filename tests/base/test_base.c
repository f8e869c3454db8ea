/* SPDX-License-Identifier: Apache-2.0 */
/* The small parts: half and bfloat16 against double arithmetic, cursor, allocation hook, files and mappings, CPU, hash,
 * errors. */
#include "support/support.h"

#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/cursor.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/os.h"

static kv_error err;

/* ---- half precision */

/* Value of a half from its definition, in double. */
static double half_value(uint16_t h) {
    int e = (h >> 10) & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

/* Nearest half of a finite double, ties to even, by search over all halves of its sign: no bit tricks shared with ours.
 */
static uint16_t half_nearest(double x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs(x);
    uint16_t lo = 0, hi = 0x7c00; /* monotonic; 0x7c00 stands for 65536 in rounding */
    while (hi - lo > 1) {
        uint16_t mid = (uint16_t)((lo + hi) / 2);
        if (half_value(mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    double low = half_value(lo), high = hi == 0x7c00 ? 65536.0 : half_value(hi);
    if (a - low > high - a || (a - low == high - a && (lo & 1))) lo = hi;
    return sign | lo;
}

static void half_decode_all(void **state) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kv_f16_f32((uint16_t)h);
        double v = half_value((uint16_t)h);
        if (isnan(v))
            assert_true(isnan(f));
        else if ((double)f != v || !signbit(f) != !signbit(v))
            fail_msg("half %04x: %a, not %a", h, (double)f, v);
        if (!isnan(v))
            assert_int_equal(kv_f32_f16(f), h);
        else
            assert_true((kv_f32_f16(f) & 0x7c00) == 0x7c00 && (kv_f32_f16(f) & 0x3ff));
    }
}

static void check_encode(float f) {
    uint16_t got = kv_f32_f16(f), want = isinf(f) ? (uint16_t)(signbit(f) ? 0xfc00 : 0x7c00) : half_nearest((double)f);
    if (got != want) fail_msg("%a: half %04x, not %04x", (double)f, got, want);
}

static void half_encode_rounds(void **state) {
    /* every half's neighbourhood: itself, the midpoint to the next, and one f32 step to either side of both */
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float a = kv_f16_f32((uint16_t)h),
              mid = (float)((half_value((uint16_t)h) + (h == 0x7bff ? 65536.0 : half_value((uint16_t)(h + 1)))) / 2);
        const float around[] = {a,   nextafterf(a, -1),  nextafterf(a, INFINITY),
                                mid, nextafterf(mid, 0), nextafterf(mid, INFINITY)};
        for (int i = 0; i < 6; i++) check_encode(around[i]), check_encode(-around[i]);
    }
    uint64_t s = 1;
    for (int i = 0; i < 300000; i++) {
        float f = kv_bits_f32((uint32_t)test_rand(&s));
        if (!isnan(f)) check_encode(f);
    }
    check_encode(INFINITY);
    check_encode(-INFINITY);
}

static void bfloat_rounds(void **state) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kv_bf16_f32((uint16_t)h);
        assert_int_equal(kv_f32_bits(f), h << 16);
        if (isnan(f))
            assert_true(isnan(kv_bf16_f32(kv_f32_bf16(f))));
        else
            assert_int_equal(kv_f32_bf16(f), h);
    }
    uint64_t s = 2;
    for (int i = 0; i < 300000; i++) {
        uint32_t u = (uint32_t)test_rand(&s);
        if (i & 1) u = (u & 0xffff0000u) | 0x8000u; /* ties */
        float f = kv_bits_f32(u);
        if (!isfinite(f)) continue;
        uint16_t got = kv_f32_bf16(f), down = (uint16_t)(u >> 16), up = (uint16_t)(down + 1); /* toward zero, away */
        double x = fabs((double)f), lo = fabs((double)kv_bf16_f32(down)),
               hi = (up & 0x7fff) == 0x7f80 ? ldexp(1, 128) : fabs((double)kv_bf16_f32(up));
        uint16_t want = x - lo < hi - x ? down : x - lo > hi - x ? up : down & 1 ? up : down;
        assert_int_equal(got, want);
    }
    assert_true(isnan(kv_bf16_f32(kv_f32_bf16(kv_bits_f32(0x7f800001)))));
}

/* ---- cursor */

static void cursor_reads(void **state) {
    const uint8_t data[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x00, 0x00, 0x80, 0x3f, 0,    0,    0,
                            0,    0,    0,    4,    0x40, 'x',  0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
    kv_cursor c = kv_cursor_make(data, sizeof data);
    assert_int_equal(kv_cursor_u8(&c), 1);
    assert_int_equal(kv_cursor_u16(&c), 0x0302);
    assert_int_equal(kv_cursor_u32(&c), 0x07060504);
    assert_true(kv_cursor_f32(&c) == 1.0f);
    assert_true(kv_cursor_f64(&c) == 2.5);
    assert_int_equal(*kv_cursor_bytes(&c, 1), 'x');
    assert_true(kv_cursor_u64(&c) == 0x8877665544332211ull);
    assert_int_equal(kv_cursor_left(&c), 0);
    assert_non_null(kv_cursor_bytes(&c, 0));
    assert_false(c.failed);
    assert_int_equal(kv_cursor_u8(&c), 0);
    assert_true(c.failed);
}

static void cursor_fails_and_stays_failed(void **state) {
    uint8_t data[8] = {9, 9, 9, 9, 9, 9, 9, 9};
    for (size_t n = 0; n <= 8; n++) {
        kv_cursor c = kv_cursor_make(data, n);
        assert_null(kv_cursor_bytes(&c, n + 1));
        assert_int_equal(c.pos, 0);
        assert_int_equal(kv_cursor_u8(&c), 0); /* sticky, though a byte is there */
        c = kv_cursor_make(data, n);
        assert_null(kv_cursor_bytes(&c, UINT64_MAX));
        c = kv_cursor_make(data, n);
        assert_int_equal(kv_cursor_u64(&c) != 0, n == 8);
        c = kv_cursor_make(data, n);
        kv_cursor_u16(&c);
        kv_cursor_u32(&c);
        assert_int_equal(c.failed, n < 6);
        assert_true(c.pos <= n);
    }
}

/* ---- allocation */

static void allocations(void **state) {
    uint64_t before = kv_alloc_count();
    void *p = kv_malloc(0), *q = kv_calloc(3, 5);
    assert_non_null(p);
    assert_memory_equal(q, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 15);
    p = kv_realloc(p, 100);
    assert_non_null(p);
    void *a = kv_malloc64(1);
    assert_int_equal((uintptr_t)a % 64, 0);
    char *s = kv_strndup("hello", 3), *t = kv_strndup("hi", SIZE_MAX);
    assert_string_equal(s, "hel");
    assert_string_equal(t, "hi");
    assert_int_equal(kv_alloc_count() - before, 6);
    assert_null(kv_calloc(SIZE_MAX / 4 + 2, 4)); /* the product wraps to 4 */
    assert_null(kv_malloc64(SIZE_MAX - 10));
    kv_free(p), kv_free(q), kv_free64(a), kv_free(s), kv_free(t), kv_free(NULL), kv_free64(NULL);
}

static void allocation_fails_once(void **state) {
    for (uint64_t n = 1; n <= 4; n++) {
        kv_alloc_test_fail_at(n);
        for (uint64_t i = 1; i <= 6; i++) {
            void *p = i % 2 ? kv_malloc(8) : kv_malloc64(8);
            assert_int_equal(p == NULL, i == n);
            free(p);
        }
    }
    kv_alloc_test_fail_at(2);
    kv_alloc_test_fail_at(0);
    for (int i = 0; i < 4; i++) {
        void *p = kv_calloc(1, 8);
        assert_non_null(p);
        kv_free(p);
    }
}

/* ---- operating system */

static void temp(char *path) {
    strcpy(path, "/tmp/kvist-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

static void files(void **state) {
    char path[64], *text;
    size_t len;
    temp(path);
    kv_file_map map;
    assert_int_equal(kv_os_map_file(path, &map, &err), 0); /* empty */
    assert_int_equal(map.size, 0);
    assert_non_null(map.data);
    kv_os_unmap_file(&map);
    assert_int_equal(kv_os_read_file(path, &text, &len, &err), 0);
    assert_int_equal(len, 0);
    assert_string_equal(text, "");
    kv_free(text);
    static const size_t sizes[] = {1, 4094, 4095, 4096, 4097, 100003};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        uint8_t *data = malloc(n);
        uint64_t s = n;
        for (size_t k = 0; k < n; k++) data[k] = (uint8_t)test_rand(&s);
        const kv_os_part parts[] = {{data, n / 3}, {NULL, 0}, {data + n / 3, n - n / 3}};
        assert_int_equal(kv_os_write_file(path, parts, 3, &err), 0);
        assert_int_equal(kv_os_map_file(path, &map, &err), 0);
        assert_int_equal(map.size, n);
        assert_memory_equal(map.data, data, n);
        kv_os_release_mapped(&map, 1, n);
        kv_os_release_mapped(&map, n + 5, 10);
        assert_memory_equal(map.data, data, n); /* comes back from the file */
        kv_os_unmap_file(&map);
        kv_os_unmap_file(&map);
        assert_int_equal(kv_os_read_file(path, &text, &len, &err), 0);
        assert_int_equal(len, n);
        assert_memory_equal(text, data, n);
        assert_int_equal(text[n], 0);
        kv_free(text);
        free(data);
    }
    assert_int_equal(kv_os_read_file("/proc/self/status", &text, &len, &err), 0); /* has no size of its own */
    assert_non_null(strstr(text, "VmRSS"));
    kv_free(text);
    for (uint64_t n = 1; n < 3; n++) {
        kv_alloc_test_fail_at(n);
        int st = kv_os_read_file(path, &text, &len, &err);
        kv_alloc_test_fail_at(0);
        assert_int_equal(st, n == 1 ? KVIST_E_MEMORY : KVIST_OK);
        kv_free(text);
    }
    unlink(path);
    assert_int_equal(kv_os_map_file(path, &map, &err), KVIST_E_IO);
    assert_non_null(strstr(err.message, path));
    assert_null(map.data);
    assert_int_equal(kv_os_read_file(path, &text, &len, &err), KVIST_E_IO);
    assert_int_equal(kv_os_read_file("/", &text, &len, &err), KVIST_E_IO);
    assert_null(text);
    assert_int_equal(kv_os_map_file("/", &map, NULL), KVIST_E_IO);
    assert_int_equal(kv_os_write_file("/nonexistent/x", NULL, 0, &err), KVIST_E_IO);
}

/* Lines reach the file at once, a cut shortens it, and nobody else gets it meanwhile. */
static void appended(void **state) {
    (void)state;
    char path[64], *text;
    size_t len;
    temp(path);
    kv_os_append a, b;
    assert_int_equal(kv_os_append_open(path, &a, &err), 0);
    assert_int_equal(kv_os_append_write(&a, "one\ntwo\n", 8, &err), 0);
    assert_int_equal(kv_os_read_file(path, &text, &len, &err), 0);
    assert_string_equal(text, "one\ntwo\n");
    kv_free(text);
    assert_int_equal(kv_os_append_open(path, &b, &err), KVIST_E_STATE);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(b.fd, -1);
    kv_os_append_close(&b);
    assert_int_equal(kv_os_append_cut(&a, 4, &err), 0);
    assert_int_equal(kv_os_append_write(&a, "three\n", 6, &err), 0);
    kv_os_append_close(&a);
    assert_int_equal(kv_os_append_open(path, &a, &err), 0); /* given up, and nothing lost */
    assert_int_equal(kv_os_append_write(&a, "x", 1, &err), 0);
    kv_os_append_close(&a);
    assert_int_equal(kv_os_read_file(path, &text, &len, &err), 0);
    assert_string_equal(text, "one\nthree\nx");
    kv_free(text);
    unlink(path);
    assert_int_equal(kv_os_append_open("/", &a, &err), KVIST_E_IO);
    assert_int_equal(kv_os_append_open("/nonexistent/x", &a, &err), KVIST_E_IO);
    assert_int_equal(kv_os_append_open("/dev/null", &a, &err), KVIST_E_IO);
    assert_non_null(strstr(err.message, "not a regular file"));
}

static size_t resident(const uint8_t *p, size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 0;
    unsigned char *map = malloc(size / page);
    assert_int_equal(mincore((void *)(uintptr_t)p, size, map), 0);
    for (size_t i = 0; i < size / page; i++) n += map[i] & 1;
    free(map);
    return n * page;
}

static void reserve(void **state) {
    for (int huge = 0; huge < 2; huge++) {
        size_t size = (size_t)8 << 20;
        void *v;
        assert_int_equal(kv_os_reserve(size, huge, &v, &err), 0);
        uint8_t *p = v;
        if (huge) assert_int_equal((uintptr_t)p % (2u << 20), 0);
        for (size_t i = 0; i < size; i += 4096) assert_int_equal(p[i], 0);
        memset(p, 0x5a, size);
        kv_os_decommit(p + 100, size / 2); /* unaligned: exactly this range becomes zero */
        assert_int_equal(p[99], 0x5a);
        for (size_t i = 100; i < 100 + size / 2; i++)
            if (p[i]) fail_msg("byte %zu survived", i);
        assert_int_equal(p[100 + size / 2], 0x5a);
        kv_os_decommit(p, size);
        assert_true(resident(p, size) < size / 2 || huge);
        kv_os_decommit(p, 0);
        kv_os_unreserve(p, size);
    }
    void *v;
    assert_int_equal(kv_os_reserve((size_t)1 << 40, false, &v, &err), 0); /* a terabyte: reserved, not committed */
    ((uint8_t *)v)[(size_t)1 << 39] = 1;
    kv_os_unreserve(v, (size_t)1 << 40);
    assert_int_equal(kv_os_reserve(0, false, &v, &err), KVIST_E_ARG);
    assert_int_equal(kv_os_reserve(SIZE_MAX, false, &v, &err), KVIST_E_ARG);
    assert_int_equal(kv_os_reserve(SIZE_MAX / 4, true, &v, &err), KVIST_E_MEMORY);
    assert_null(v);
}

/* What a host took: the eighth count of the first line, in its unit; nothing where there is none, as of old kernels. */
static void stolen(void **state) {
    (void)state;
    static const char stat[] = "cpu  4705 356 584 3699 23 230 20 1250 7 8\ncpu0 1 1 1 1 1 1 1 99 1 1\n";
    assert_float_equal(kv_os_stolen_of(stat, 100), 12.5, 0);
    assert_float_equal(kv_os_stolen_of(stat, 1000), 1.25, 0);
    assert_float_equal(kv_os_stolen_of("cpu  4705 356 584 3699 23 230 20\n", 100), 0, 0);
    assert_float_equal(kv_os_stolen_of("", 100), 0, 0);
    assert_float_equal(kv_os_stolen_of(stat, -1), 0, 0);
    double before = kv_os_stolen_seconds();
    assert_true(before >= 0 && kv_os_stolen_seconds() >= before);
}

static void clock_and_processors(void **state) {
    uint64_t a = kv_os_now_ns();
    usleep(2000);
    uint64_t b = kv_os_now_ns();
    assert_true(b - a >= 2000000 && b - a < 10000000000ull);
    assert_true(kv_os_processors() >= 1 && kv_os_processors() < 100000);
    assert_true(kv_os_peak_rss() > 1 << 20);
}

static void *leave(void *arg) {
    int cpu = kv_os_current_cpu();
    bool only = kv_os_processors() == 1;
    kv_os_leave_cpu(cpu);
    *(bool *)arg = only || kv_os_current_cpu() != cpu;
    kv_os_leave_cpu(-1);
    kv_os_leave_cpu(1 << 20);
    return NULL;
}

static void leaving_a_processor(void **state) {
    uint32_t before = kv_os_processors();
    bool left = false;
    pthread_t id;
    assert_int_equal(pthread_create(&id, NULL, leave, &left), 0);
    pthread_join(id, NULL);
    assert_true(left);
    assert_int_equal(kv_os_processors(), before); /* ours is not touched */
}

/* ---- CPU, hash, errors */

static void cpu(void **state) {
    const char *old = getenv("KVIST_CPU");
    char saved[32] = "";
    if (old) snprintf(saved, sizeof saved, "%s", old);
    unsetenv("KVIST_CPU");
    int best = kv_cpu_detect();
    assert_true(best >= KV_CPU_REF && best < KV_CPU_LEVELS);
#if defined(__x86_64__)
    /* the compiler's own runtime reads CPUID and XGETBV too */
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512vnni");
    assert_int_equal(best, avx512 ? KV_CPU_AVX512 : avx2 ? KV_CPU_AVX2 : KV_CPU_REF);
#endif
    for (int i = 0; i < KV_CPU_LEVELS; i++) {
        setenv("KVIST_CPU", kv_cpu_level_name(i), 1);
        assert_int_equal(kv_cpu_detect(), i < best ? i : best); /* lowers, never raises */
    }
    setenv("KVIST_CPU", "nonsense", 1);
    assert_int_equal(kv_cpu_detect(), best);
    if (old)
        setenv("KVIST_CPU", saved, 1);
    else
        unsetenv("KVIST_CPU");
    assert_string_equal(kv_cpu_level_name(-1), "?");
    assert_string_equal(kv_cpu_level_name(KV_CPU_LEVELS), "?");
    char name[64], small[4] = "xyz";
    kv_cpu_name(name, sizeof name);
    assert_true(strlen(name) > 0 && name[0] != ' ' && name[strlen(name) - 1] != ' ');
    kv_cpu_name(small, sizeof small);
    assert_memory_equal(small, name, 3);
    assert_int_equal(small[3], 0);
    kv_cpu_name(small, 0);
}

static void hash(void **state) {
    uint8_t data[64];
    uint64_t s = 9, seen[65 + 64 * 8], n = 0;
    for (int i = 0; i < 64; i++) data[i] = (uint8_t)test_rand(&s);
    for (size_t len = 0; len <= 64; len++) seen[n++] = kv_hash64(data, len, 0);
    for (int bit = 0; bit < 512; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        seen[n++] = kv_hash64(data, 64, 0);
        int flipped = __builtin_popcountll(seen[n - 1] ^ seen[64]);
        if (flipped < 12 || flipped > 52) fail_msg("bit %d changes %d bits", bit, flipped);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (uint64_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < i; k++) assert_true(seen[i] != seen[k]);
    memset(data, 0, sizeof data);
    assert_true(kv_hash64(data, 7, 0) != kv_hash64(data, 8, 0)); /* zeros of different length */
    assert_true(kv_hash64(data, 8, 0) != kv_hash64(data, 8, 1));
    /* the same on every machine: saved files depend on it */
    assert_true(kv_hash64("kvist", 5, 0) == 0x6a441941c9195a81ull);
    assert_true(kv_hash64("0123456789abcdefg", 17, 42) == 0xf6fd8b538cb2f4abull);
    memmove(data + 1, "kvist", 5); /* unaligned */
    assert_true(kv_hash64(data + 1, 5, 0) == 0x6a441941c9195a81ull);
}

static kv_status forwards(int st) {
    KV_TRY(st ? kv_fail(&err, (kv_status)st, "inner %d", 7) : KVIST_OK);
    return KVIST_OK;
}

static void errors(void **state) {
    assert_int_equal(forwards(0), KVIST_OK);
    assert_int_equal(forwards(KVIST_E_BUDGET), KVIST_E_BUDGET);
    assert_string_equal(err.message, "inner 7");
    assert_int_equal(err.status, KVIST_E_BUDGET);
    assert_int_equal(kv_fail(NULL, KVIST_E_IO, "x"), KVIST_E_IO);
    kv_fail(&err, KVIST_E_CONTEXT, "%s", "");
    assert_string_equal(err.message, "context is full");
    char big[1000];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = 0;
    kv_fail(&err, KVIST_E_ARG, "%s", big);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_string_equal(kvist_status_name(KVIST_OK), "OK");
    assert_string_equal(kvist_status_name(KVIST_E_POLICY), "E_POLICY");
    assert_string_equal(kvist_status_name((kvist_status)-1000), "E_UNKNOWN");
    assert_string_equal(kvist_version(), KVIST_VERSION);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_decode_all),
        cmocka_unit_test(half_encode_rounds),
        cmocka_unit_test(bfloat_rounds),
        cmocka_unit_test(cursor_reads),
        cmocka_unit_test(cursor_fails_and_stays_failed),
        cmocka_unit_test(allocations),
        cmocka_unit_test(allocation_fails_once),
        cmocka_unit_test(files),
        cmocka_unit_test(appended),
        cmocka_unit_test(reserve),
        cmocka_unit_test(clock_and_processors),
        cmocka_unit_test(stolen),
        cmocka_unit_test(leaving_a_processor),
        cmocka_unit_test(cpu),
        cmocka_unit_test(hash),
        cmocka_unit_test(errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
