/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Elementwise operations over rows: the split over threads.
 * Owns: when threads are worth waking. Must not know: instruction sets.
 * Invariant: a row (or head) is computed by one thread alone, so threads and rows beside it change no bit.
 */
#include "backend/cpu/elem.h"

#include <assert.h>

/* About 10 us of one core at 2 values a ns: below it waking the threads gains nothing. */
#define SERIAL_VALUES 20000u

const struct kv_elem_kernels *kv_elem_kernels_get(int level) {
#if defined(__x86_64__)
    if (level >= KV_CPU_AVX512) return &kv_elem_avx512;
    if (level == KV_CPU_AVX2) return &kv_elem_avx2;
#elif defined(__aarch64__)
    if (level == KV_CPU_NEON) return &kv_elem_neon;
#endif
    return &kv_elem_ref;
}

typedef struct elem_job {
    const struct kv_elem_kernels *kn;
    uint32_t rows, rows_per_item, n, heads, dk, dv, row0;
    const float *a, *b;
    float *y, eps;
    const kv_rope *rope;
    const uint32_t *positions;
    size_t head_stride;
    uint16_t *kf, *vf;
    void (*row)(const struct elem_job *j, uint32_t r);
} elem_job;

static void run_item(void *ctx, uint32_t item, uint32_t thread) {
    const elem_job *j = ctx;
    uint32_t r0 = item * j->rows_per_item, r1 = r0 + j->rows_per_item < j->rows ? r0 + j->rows_per_item : j->rows;
    for (uint32_t r = r0; r < r1; r++) j->row(j, r);
}

/* values: floats a row. */
static void run_rows(kv_exec *ex_, elem_job *j, size_t values) {
    kv_cpu_exec *ex = kv_cpu_exec_of(ex_);
    if (j->rows == 0) return;
    j->kn = ex->be->elem;
    bool serial = values * j->rows < SERIAL_VALUES;
    uint32_t items = serial ? 1 : kv_threads_count(ex->threads) * 4;
    j->rows_per_item = (j->rows + items - 1) / items;
    kv_threads_run(serial ? NULL : ex->threads, run_item, j, (j->rows + j->rows_per_item - 1) / j->rows_per_item);
}

static void rmsnorm_row(const elem_job *j, uint32_t r) {
    j->kn->rmsnorm(j->a + (size_t)r * j->n, j->b, j->eps, j->n, j->y + (size_t)r * j->n);
}

void kv_cpu_rmsnorm(kv_exec *ex, const float *x, const float *weight, float eps, uint32_t rows, uint32_t n, float *y) {
    elem_job j = {.row = rmsnorm_row, .rows = rows, .n = n, .a = x, .b = weight, .eps = eps, .y = y};
    run_rows(ex, &j, n);
}

static void rope_row(const elem_job *j, uint32_t r) {
    const kv_rope *t = j->rope;
    size_t at = (size_t)j->positions[r] * (t->n_rot / 2);
    for (uint32_t h = 0; h < j->heads; h++)
        j->kn->rope(j->y + ((size_t)r * j->heads + h) * j->n, t->cos + at, t->sin + at, t->n_rot, t->neox);
}

void kv_cpu_rope(kv_exec *ex, const kv_rope *rope, float *x, uint32_t rows, uint32_t heads, uint32_t d,
                 const uint32_t *positions) {
    assert(rope->n_rot <= d && rope->n_rot % 2 == 0);
    elem_job j = {.row = rope_row, .rows = rows, .n = d, .heads = heads, .rope = rope, .positions = positions, .y = x};
    run_rows(ex, &j, (size_t)heads * d);
}

static void silu_row(const elem_job *j, uint32_t r) {
    size_t at = (size_t)r * j->n;
    j->kn->silu_mul(j->a + at, j->b + at, j->n, j->y + at);
}

void kv_cpu_silu_mul(kv_exec *ex, const float *gate, const float *up, uint32_t rows, uint32_t n, float *y) {
    elem_job j = {.row = silu_row, .rows = rows, .n = n, .a = gate, .b = up, .y = y};
    run_rows(ex, &j, 4 * (size_t)n); /* an exponential is worth about four values */
}

static void f16_row(const elem_job *j, uint32_t r) {
    for (uint32_t h = 0; h < j->heads; h++) {
        size_t src = (size_t)r * j->heads + h, dst = h * j->head_stride + j->row0 + r;
        j->kn->to_f16(j->a + src * j->dk, j->dk, j->kf + dst * j->dk);
        j->kn->to_f16(j->b + src * j->dv, j->dv, j->vf + dst * j->dv);
    }
}

void kv_cpu_kv_to_f16(kv_exec *ex, const float *k, const float *v, uint32_t rows, uint32_t n_kv, uint32_t dk,
                      uint32_t dv, uint32_t row0, size_t head_stride, uint16_t *kf, uint16_t *vf) {
    elem_job j = {.row = f16_row,
                  .rows = rows,
                  .heads = n_kv,
                  .dk = dk,
                  .dv = dv,
                  .row0 = row0,
                  .head_stride = head_stride,
                  .a = k,
                  .b = v,
                  .kf = kf,
                  .vf = vf};
    run_rows(ex, &j, (size_t)n_kv * (dk + dv));
}

static void squares_row(const elem_job *j, uint32_t r) {
    for (uint32_t h = 0; h < j->heads; h++) {
        size_t at = (size_t)r * j->heads + h;
        j->kn->squares(j->a + at * j->n * j->dk, j->n, j->dk, j->y + at * j->dk);
    }
}

void kv_cpu_q_squares(kv_exec *ex, const float *q, uint32_t rows, uint32_t n_q, uint32_t n_kv, uint32_t dk, float *q2) {
    elem_job j = {.row = squares_row, .rows = rows, .heads = n_kv, .n = n_q / n_kv, .dk = dk, .a = q, .y = q2};
    run_rows(ex, &j, (size_t)n_q * dk);
}
