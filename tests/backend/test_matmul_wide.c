/* SPDX-License-Identifier: Apache-2.0 */
/* 16-bit activations through the public backend table: against double products of decoded weights, with the bound that
 * two roundings in a row leave; the same bits for any rows, threads and levels; bias, accumulation, several outputs. */
#include "backend/backend.h"
#include "base/cpu.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

enum { K = 192, N0 = 80, N1 = 33, ROWS = 211 };

typedef struct setup_ {
    kv_backend *be;
    kv_exec *ex;
    kv_weight *w[2];
} backend_set;

static float x[ROWS * K], bias[N0];
static uint8_t packed[2][N0 * K];
static float dense[2][N0 * K];

static void make_data(void) {
    uint64_t seed = 4;
    const kv_type_info *ti = kv_type_get(KV_TYPE_Q4_1);
    for (int i = 0; i < ROWS * K; i++) x[i] = test_normal(&seed) * (i % 37 == 0 ? 20.0f : 1.0f);
    for (int i = 0; i < N0; i++) bias[i] = test_normal(&seed);
    for (int m = 0; m < 2; m++) {
        float w[N0 * K];
        for (int i = 0; i < N0 * K; i++) w[i] = test_normal(&seed) * 0.05f;
        ti->quant(w, packed[m], N0 * K);
        ti->dequant(packed[m], dense[m], N0 * K);
    }
}

static void open_set(backend_set *b, int level, uint32_t threads) {
    kv_error err;
    if (kv_backend_cpu_open(level, &b->be, &err)) fail_msg("%s", err.message);
    kv_exec_params p = {.threads = threads,
                        .max_rows = 64,
                        .max_k = K,
                        .max_n = N0,
                        .max_heads = 2,
                        .max_head_dim = 64,
                        .max_ctx = 64,
                        .page_bytes = 4096};
    if (b->be->ops->exec_create(b->be, &p, &b->ex, &err)) fail_msg("%s", err.message);
    for (int m = 0; m < 2; m++) {
        kv_tensor t = {.name = "w",
                       .type = KV_TYPE_Q4_1,
                       .n_dims = 2,
                       .ne = {K, m ? N1 : N0, 1, 1},
                       .data = packed[m],
                       .bytes = (uint64_t)(m ? N1 : N0) * K / 32 * 20};
        if (b->be->ops->weight_create(b->be, &t, NULL, &b->w[m], &err)) fail_msg("%s", err.message);
    }
}

static void close_set(backend_set *b) {
    for (int m = 0; m < 2; m++) b->be->ops->weight_free(b->be, b->w[m]);
    b->be->ops->exec_free(b->ex);
    b->be->ops->close(b->be);
}

static void product(backend_set *b, uint32_t row0, uint32_t rows, float *y0, float *y1) {
    kv_matmul_out o[2] = {{.w = b->w[0], .y = y0, .y_stride = N0 + 3, .bias = bias, .wide = true},
                          {.w = b->w[1], .y = y1, .y_stride = N1, .accumulate = true, .wide = true}};
    for (uint32_t i = 0; i < rows * N1; i++) y1[i] = 1.0f;
    b->be->ops->matmul(b->ex, x + row0 * K, rows, K, o, 2);
}

static void check_row(uint32_t r, const float *y, int m, uint32_t n) {
    for (uint32_t o = 0; o < n; o++) {
        double want = m ? 1.0 : bias[o], bound = 1e-5;
        for (uint32_t k = 0; k < K; k += 32) {
            double amax = 0, sum_w = 0;
            for (uint32_t i = k; i < k + 32; i++) {
                amax = fmax(amax, fabs(x[r * K + i]));
                sum_w += fabs(dense[m][o * K + i]);
                want += (double)x[r * K + i] * dense[m][o * K + i];
            }
            bound += sum_w * amax / (254.0 * 254.0);
        }
        if (fabs(y[o] - want) > bound)
            fail_msg("row %u output %u: %.7f, expected %.7f within %.2g", r, o, (double)y[o], want, bound);
    }
}

static void against_double(void **state) {
    (void)state;
    static float y0[64 * (N0 + 3)], y1[64 * N1];
    make_data();
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        backend_set b;
        open_set(&b, level, 2);
        for (uint32_t row0 = 0; row0 < ROWS - 64; row0 += 64) {
            product(&b, row0, 64, y0, y1);
            for (uint32_t r = 0; r < 64; r++) {
                check_row(row0 + r, y0 + r * (N0 + 3), 0, N0);
                check_row(row0 + r, y1 + r * N1, 1, N1);
            }
        }
        close_set(&b);
    }
}

static void same_bits(void **state) {
    (void)state;
    static float a0[64 * (N0 + 3)], a1[64 * N1], b0[64 * (N0 + 3)], b1[64 * N1];
    make_data();
    backend_set ref;
    open_set(&ref, KV_CPU_REF, 1);
    product(&ref, 0, 64, a0, a1);
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            static const uint32_t counts[] = {1, 2, 3, 4, 5, 31, 48, 49, 64};
            backend_set b;
            open_set(&b, level, threads);
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                for (uint32_t at = 0; at + counts[c] <= 64; at += counts[c]) {
                    product(&b, at, counts[c], b0, b1);
                    for (uint32_t r = 0; r < counts[c]; r++) {
                        assert_memory_equal(b0 + r * (N0 + 3), a0 + (at + r) * (N0 + 3), N0 * sizeof(float));
                        assert_memory_equal(b1 + r * N1, a1 + (at + r) * N1, N1 * sizeof(float));
                    }
                }
            close_set(&b);
        }
    close_set(&ref);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_double), cmocka_unit_test(same_bits)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    /* Again without what stands beside the levels (AVX-VNNI): a level that is named is that level alone. */
    setenv("KVIST_CPU", kv_cpu_level_name(kv_cpu_detect()), 1);
    return failed | cmocka_run_group_tests(tests, NULL, NULL);
}
