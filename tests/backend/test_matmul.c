/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed weights and matrix products against dense double precision: all tensor types, all levels of this CPU.
 * The oracle decodes rows with gguf's own dequantizers and quantizes activations by itself; the levels, row counts and
 * thread counts are then compared bit for bit with the reference level's result for all rows.
 */
#include <math.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/pack.h"
#include "base/alloc.h"
#include "base/half.h"
#include "support/support.h"

#define MAX_ROWS 33
#define CANARY 12345.5f

typedef struct type_case {
    uint32_t type;
    int d_off, m_off;
    bool dense;
} type_case;
static const type_case types[] = {
    {KV_TYPE_F32, -1, -1, true},    {KV_TYPE_F16, -1, -1, true},    {KV_TYPE_BF16, -1, -1, true},
    {KV_TYPE_Q4_0, 0, -1, false},   {KV_TYPE_Q4_1, 0, 2, false},    {KV_TYPE_Q5_0, 0, -1, false},
    {KV_TYPE_Q5_1, 0, 2, false},    {KV_TYPE_Q8_0, 0, -1, false},   {KV_TYPE_Q2_K, 80, 82, false},
    {KV_TYPE_Q3_K, 108, -1, false}, {KV_TYPE_Q4_K, 0, 2, false},    {KV_TYPE_Q5_K, 0, 2, false},
    {KV_TYPE_Q6_K, 208, -1, false}, {KV_TYPE_IQ4_NL, 0, -1, false}, {KV_TYPE_IQ4_XS, 0, -1, false}};
#define N_TYPES (sizeof types / sizeof *types)

/* A tensor of random bytes (every code and sub-scale occurs) with sane f16 scales. */
static kv_tensor random_tensor(const type_case *tc, uint32_t n, uint32_t k, uint64_t *seed) {
    const kv_type_info *ti = kv_type_get(tc->type);
    size_t bytes = (size_t)n * (k / ti->block) * ti->bytes;
    uint8_t *data = malloc(bytes);
    if (tc->dense) {
        for (size_t i = 0; i < (size_t)n * k; i++) {
            float f = test_normal(seed) * 0.05f;
            uint16_t h = tc->type == KV_TYPE_F16 ? kv_f32_f16(f) : kv_f32_bf16(f);
            if (tc->type == KV_TYPE_F32)
                memcpy(data + 4 * i, &f, 4);
            else
                memcpy(data + 2 * i, &h, 2);
        }
    } else {
        for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(test_rand(seed) >> 40);
        for (size_t at = 0; at < bytes; at += ti->bytes) {
            uint16_t d = kv_f32_f16(test_normal(seed) * 0.01f), m = kv_f32_f16(test_normal(seed) * 0.01f);
            memcpy(data + at + tc->d_off, &d, 2);
            if (tc->m_off >= 0) memcpy(data + at + tc->m_off, &m, 2);
        }
    }
    return (kv_tensor){.name = "t", .type = tc->type, .n_dims = 2, .ne = {k, n, 1, 1}, .data = data, .bytes = bytes};
}

/* The sections of an execution context that matrix products need. */
typedef struct context {
    kv_cpu_backend be;
    kv_cpu_exec ex;
} context;

static void context_open(context *c, int level, uint32_t threads, int precise, uint32_t max_k) {
    memset(c, 0, sizeof *c);
    c->be.level = level;
    c->be.matmul = kv_matmul_kernels_get(level);
    c->ex.base.be = &c->be.base;
    c->ex.be = &c->be;
    c->ex.params = (kv_exec_params){.threads = threads, .precise = precise, .max_rows = 400, .max_k = max_k};
    kv_error err;
    assert_int_equal(kv_threads_create(threads, &c->ex.threads, &err), 0);
    assert_int_equal(kv_matmul_exec_init(&c->ex, &err), 0);
}

static void context_close(context *c) {
    kv_matmul_exec_free(&c->ex);
    kv_threads_free(&c->ex.threads);
}

static float *decode(const kv_tensor *t) {
    const kv_type_info *ti = kv_type_get(t->type);
    size_t k = t->ne[0], n = t->ne[1], row = k / ti->block * ti->bytes;
    float *w = malloc(n * k * sizeof *w);
    for (size_t o = 0; o < n; o++) ti->dequant(t->data + o * row, w + o * k, k);
    return w;
}

static float *random_x(uint32_t rows, uint32_t k, uint64_t *seed) {
    float *x = malloc((size_t)rows * k * sizeof *x);
    for (size_t i = 0; i < (size_t)rows * k; i++) x[i] = test_normal(seed) * (i % 97 == 5 ? 8.0f : 1.0f);
    for (uint32_t i = 0; i < 32; i++) x[i] = 0; /* one block of zeros */
    return x;
}

/* One output of the oracle: the product with activations as they are (precise) or rounded to int8 by block, its error
 * bounds for f32 sums, and the exact product with the bound of the activations' rounding. */
typedef struct expected {
    double y, bound, exact, exact_bound;
} expected;

static expected oracle(const float *x, const float *w, uint32_t k, bool int8) {
    expected e = {0};
    double sum_abs = 0;
    for (uint32_t b = 0; b < k; b += 32) {
        float amax = 0;
        double wmax = 0, qabs = 0;
        uint32_t end = b + 32 < k ? b + 32 : k;
        for (uint32_t i = b; i < end; i++) amax = fmaxf(amax, fabsf(x[i]));
        float d = amax / 127.0f, id = amax > 0 ? 127.0f / amax : 0;
        for (uint32_t i = b; i < end; i++) {
            double q = nearbyint((double)(float)(x[i] * id));
            double v = int8 ? q * (double)d : (double)x[i];
            e.y += v * (double)w[i];
            e.exact += (double)x[i] * (double)w[i];
            e.exact_bound += fabs((double)w[i]) * (double)d * 0.50001;
            wmax = fmax(wmax, fabs((double)w[i]));
            qabs += fabs(v);
        }
        sum_abs += wmax * qabs;
    }
    e.bound = 1e-6 * sum_abs + 1e-30;
    e.exact_bound += e.bound;
    return e;
}

static void test_pack_unpack(void **state) {
    uint64_t seed = 1;
    for (size_t i = 0; i < N_TYPES; i++) {
        const uint32_t shapes[][2] = {{1, 256}, {15, 512}, {17, 768}, {48, 256}};
        for (size_t s = 0; s < 4; s++) {
            kv_tensor t = random_tensor(&types[i], shapes[s][0], shapes[s][1], &seed);
            float *w = decode(&t), *y = malloc(t.ne[0] * sizeof *y);
            kv_weight *p = NULL;
            kv_error err;
            assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &p, &err), 0);
            for (uint32_t o = 0; o < t.ne[1]; o++) {
                kv_pack_unpack_row(p, o, y);
                if (memcmp(y, w + o * t.ne[0], t.ne[0] * sizeof *y))
                    fail_msg("%s %ux%u row %u differs", kv_type_get(t.type)->name, shapes[s][0], shapes[s][1], o);
            }
            kv_cpu_weight_free(NULL, p);
            free(w);
            free(y);
            free((void *)t.data);
        }
    }
}

static void test_resident_bytes(void **state) {
    uint64_t seed = 2;
    for (size_t i = 0; i < N_TYPES; i++) {
        kv_tensor t = random_tensor(&types[i], 64, 1536, &seed);
        kv_weight *p = NULL;
        kv_error err;
        assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &p, &err), 0);
        assert_true((double)kv_cpu_weight_bytes(p) <= 1.10 * (double)t.bytes);
        kv_cpu_weight_free(NULL, p);
        free((void *)t.data);
    }
}

static void test_refuses(void **state) {
    uint64_t seed = 3;
    kv_error err;
    kv_weight *p = NULL;
    kv_tensor t = random_tensor(&types[4], 4, 64, &seed), bad = t;
    bad.bytes--;
    assert_int_equal(kv_cpu_weight_create(NULL, &bad, NULL, &p, &err), KVIST_E_FORMAT);
    bad = t;
    bad.ne[0] = 48;
    assert_int_equal(kv_cpu_weight_create(NULL, &bad, NULL, &p, &err), KVIST_E_FORMAT);
    bad = t;
    bad.ne[2] = 2;
    assert_int_equal(kv_cpu_weight_create(NULL, &bad, NULL, &p, &err), KVIST_E_UNSUPPORTED);
    bad = t;
    bad.type = 9999;
    assert_int_equal(kv_cpu_weight_create(NULL, &bad, NULL, &p, &err), KVIST_E_UNSUPPORTED);
    for (uint64_t n = 1; n <= 2; n++) {
        kv_alloc_test_fail_at(n);
        assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &p, &err), KVIST_E_MEMORY);
        assert_null(p);
    }
    kv_alloc_test_fail_at(0);
    free((void *)t.data);
}

/* y[rows][n] at a stride past n, canaries between rows. */
static void product(int level, uint32_t threads, int precise, const kv_weight *w, const float *x, uint32_t rows,
                    uint32_t k, const float *bias, bool accumulate, float *y) {
    context c;
    context_open(&c, level, threads, precise, k);
    uint32_t stride = w->n + 3;
    float *buf = malloc((size_t)rows * stride * sizeof *buf);
    for (size_t i = 0; i < (size_t)rows * stride; i++) buf[i] = i % stride < w->n ? 0.25f : CANARY;
    kv_matmul_out out = {.w = w, .y = buf, .y_stride = stride, .bias = bias, .accumulate = accumulate};
    kv_cpu_matmul(&c.ex.base, x, rows, k, &out, 1);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t o = w->n; o < stride; o++) assert_true(buf[(size_t)r * stride + o] == CANARY);
        memcpy(y + (size_t)r * w->n, buf + (size_t)r * stride, w->n * sizeof *y);
    }
    free(buf);
    context_close(&c);
}

static void check_oracle(const char *what, const float *y, const float *x, const float *w, uint32_t n, uint32_t k,
                         bool int8, const float *bias, bool accumulate) {
    for (uint32_t r = 0; r < MAX_ROWS; r++)
        for (uint32_t o = 0; o < n; o++) {
            expected e = oracle(x + (size_t)r * k, w + (size_t)o * k, k, int8);
            double add = (bias ? (double)bias[o] : 0) + (accumulate ? 0.25 : 0),
                   got = (double)y[(size_t)r * n + o] - add, slack = 2e-7 * (fabs(add) + fabs(e.y));
            if (!(fabs(got - e.y) <= e.bound + slack))
                fail_msg("%s n=%u k=%u row %u out %u: %g, expected %g +- %g", what, n, k, r, o, got, e.y, e.bound);
            if (!(fabs(got - e.exact) <= e.exact_bound + slack))
                fail_msg("%s n=%u k=%u row %u out %u: %g is off %g by more than the rounding %g", what, n, k, r, o, got,
                         e.exact, e.exact_bound);
        }
}

static void check_shape(const type_case *tc, uint32_t n, uint32_t k, int precise, uint64_t *seed) {
    const uint32_t counts[] = {1, 2, 3, 5, 7, 8, 12, 17, 33};
    kv_tensor t = random_tensor(tc, n, k, seed);
    const char *name = kv_type_get(t.type)->name;
    float *w = decode(&t), *x = random_x(MAX_ROWS, k, seed), *ref = malloc(sizeof(float) * MAX_ROWS * n),
          *y = malloc(sizeof(float) * MAX_ROWS * n), *bias = NULL;
    bool accumulate = n & 1;
    if (n > 16) {
        bias = malloc(n * sizeof *bias);
        for (uint32_t o = 0; o < n; o++) bias[o] = test_normal(seed);
    }
    kv_weight *p = NULL;
    kv_error err;
    assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &p, &err), 0);
    product(KV_CPU_REF, 1, precise, p, x, MAX_ROWS, k, bias, accumulate, ref);
    check_oracle(name, ref, x, w, n, k, !precise && !tc->dense, bias, accumulate);
    for (int level = kv_cpu_detect(); level >= 0; level--)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            if (level == KV_CPU_REF && counts[i] > 3) continue; /* slow, and more rows are the oracle's run */
            product(level, 1 + (uint32_t)i % 3, precise, p, x, counts[i], k, bias, accumulate, y);
            if (memcmp(y, ref, sizeof(float) * n * counts[i]))
                fail_msg("%s n=%u k=%u precise %d: level %s, %u rows differ from the reference's bits", name, n, k,
                         precise, kv_cpu_level_name(level), counts[i]);
        }
    kv_cpu_weight_free(NULL, p);
    free(w);
    free(x);
    free(ref);
    free(y);
    free(bias);
    free((void *)t.data);
}

static void check_all(int precise) {
    uint64_t seed = 7;
    for (size_t i = 0; i < N_TYPES; i++) {
        const type_case *tc = &types[i];
        bool small = kv_type_get(tc->type)->block <= 32;
        const uint32_t shapes[][2] = {{1, 32},    {15, 64},   {16, 256}, {17, 576}, {33, 768},
                                      {192, 256}, {31, 2304}, {2, 1},    {17, 37},  {1, 301}};
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            uint32_t k = shapes[s][1];
            if (k % 32 ? !tc->dense : k % 256 && !small) continue;
            check_shape(tc, shapes[s][0], k, precise, &seed);
        }
    }
}

static void test_int8(void **state) { check_all(0); }
static void test_precise(void **state) { check_all(1); }

/* SmolLM2's shape, enough rows for several items and threads; a few outputs in one call. */
static void test_many_rows(void **state) {
    uint64_t seed = 11;
    const uint32_t k = 576, rows = 400, n[3] = {576, 192, 40};
    const type_case *tc[3] = {&types[4], &types[7], &types[1]};
    kv_weight *w[3];
    kv_tensor t[3];
    kv_error err;
    float *x = random_x(rows, k, &seed), *y[3], *first[3];
    for (int i = 0; i < 3; i++) {
        t[i] = random_tensor(tc[i], n[i], k, &seed);
        assert_int_equal(kv_cpu_weight_create(NULL, &t[i], NULL, &w[i], &err), 0);
        y[i] = malloc(sizeof(float) * rows * n[i]);
        first[i] = malloc(sizeof(float) * rows * n[i]);
    }
    for (int level = 1; level <= kv_cpu_detect(); level++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            context c;
            context_open(&c, level, threads, 0, k);
            kv_matmul_out outs[3];
            for (int i = 0; i < 3; i++) outs[i] = (kv_matmul_out){.w = w[i], .y = y[i], .y_stride = n[i]};
            kv_cpu_matmul(&c.ex.base, x, rows, k, outs, 3);
            for (int i = 0; i < 3; i++) {
                if (level == 1 && threads == 1) memcpy(first[i], y[i], sizeof(float) * rows * n[i]);
                assert_memory_equal(y[i], first[i], sizeof(float) * rows * n[i]);
            }
            for (uint32_t r = 0; r < rows; r += 57) { /* each row alone: all outputs in one call */
                kv_cpu_matmul(&c.ex.base, x + (size_t)r * k, 1, k, outs, 3);
                for (int i = 0; i < 3; i++)
                    assert_memory_equal(y[i], first[i] + (size_t)r * n[i], sizeof(float) * n[i]);
            }
            uint64_t count = kv_alloc_count();
            kv_cpu_matmul(&c.ex.base, x, 7, k, outs, 3);
            assert_int_equal(kv_alloc_count(), count);
            context_close(&c);
        }
    for (int i = 0; i < 3; i++) {
        float *d = decode(&t[i]);
        expected e = oracle(x + (size_t)(rows - 1) * k, d + (size_t)(n[i] - 1) * k, k, i < 2);
        assert_true(fabs((double)first[i][(size_t)rows * n[i] - 1] - e.y) <= e.bound);
        kv_cpu_weight_free(NULL, w[i]);
        free(d);
        free(y[i]);
        free(first[i]);
        free((void *)t[i].data);
    }
    free(x);
}

/* Zero, tiny, infinite and NaN activations: never garbage. */
static void test_odd_activations(void **state) {
    uint64_t seed = 13;
    const uint32_t k = 64, n = 20;
    kv_tensor t = random_tensor(&types[3], n, k, &seed);
    kv_weight *w = NULL;
    kv_error err;
    assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &w, &err), 0);
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t rows = 1; rows <= 2; rows++) {
            float x[2 * 64], y[2 * 20];
            for (uint32_t i = 0; i < 2 * k; i++) x[i] = i % 3 ? 1e-39f : 0;
            product(level, 1, 0, w, x, rows, k, NULL, false, y);
            for (uint32_t o = 0; o < n; o++) assert_true(y[o] == 0);
            for (int odd = 0; odd < 2; odd++) {
                x[40] = odd ? NAN : -INFINITY;
                product(level, 1, 0, w, x, rows, k, NULL, false, y);
                for (uint32_t o = 0; o < n; o++) assert_true(isnan(y[o]));
            }
        }
    kv_cpu_weight_free(NULL, w);
    free((void *)t.data);
}

/* Odd rows side by side in one tile of six: each is what it is alone. */
static void test_odd_rows_of_a_tile(void **state) {
    uint64_t seed = 14;
    enum { ROWS = 13, KS = 96, N = 20 };
    kv_tensor t = random_tensor(&types[3], N, KS, &seed);
    kv_weight *w = NULL;
    kv_error err;
    (void)state;
    assert_int_equal(kv_cpu_weight_create(NULL, &t, NULL, &w, &err), 0);
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t shift = 0; shift < 6; shift++) { /* which row of the tile is which kind */
            float x[ROWS * KS], y[ROWS * N], alone[N];
            for (uint32_t i = 0; i < ROWS * KS; i++) {
                uint32_t kind = (i / KS + shift) % 6;
                x[i] = kind == 0 ? 0 : kind == 1 ? 1e-39f : test_normal(&seed) * (kind == 2 ? 1e4f : 1);
                if (i % KS == 70 && kind == 3) x[i] = INFINITY;
                if (i % KS == 5 && kind == 4) x[i] = NAN;
            }
            product(level, 1, 0, w, x, ROWS, KS, NULL, false, y);
            for (uint32_t r = 0; r < ROWS; r++) {
                product(level, 1, 0, w, x + r * KS, 1, KS, NULL, false, alone);
                for (uint32_t o = 0; o < N; o++)
                    assert_true(isnan(alone[o]) ? isnan(y[r * N + o]) : !memcmp(&alone[o], &y[r * N + o], 4));
            }
        }
    kv_cpu_weight_free(NULL, w);
    free((void *)t.data);
}

static void test_embed(void **state) {
    uint64_t seed = 17;
    kv_tensor t = random_tensor(&types[7], 50, 96, &seed);
    float *w = decode(&t), y[9 * 96];
    kv_weight *p = NULL;
    kv_error err;
    context c;
    context_open(&c, kv_cpu_detect(), 2, 0, 96);
    assert_int_equal(kv_cpu_weight_create(NULL, &t, c.ex.threads, &p, &err), 0);
    const int32_t ids[9] = {49, 0, 3, 3, 17, 16, 15, 32, 48};
    kv_cpu_embed(&c.ex.base, p, ids, 9, y);
    for (int i = 0; i < 9; i++) assert_memory_equal(y + 96 * i, w + 96 * ids[i], 96 * sizeof(float));
    kv_cpu_weight_free(NULL, p);
    context_close(&c);
    free(w);
    free((void *)t.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_unpack),     cmocka_unit_test(test_resident_bytes),
        cmocka_unit_test(test_refuses),         cmocka_unit_test(test_int8),
        cmocka_unit_test(test_precise),         cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_odd_activations),
        cmocka_unit_test(test_odd_rows_of_a_tile), cmocka_unit_test(test_embed),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    /* Again without what stands beside the levels (AVX-VNNI): a level that is named is that level alone. */
    setenv("KVIST_CPU", kv_cpu_level_name(kv_cpu_detect()), 1);
    return failed | cmocka_run_group_tests(tests, NULL, NULL);
}
