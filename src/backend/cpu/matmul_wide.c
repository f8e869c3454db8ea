/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with 16-bit activations from the 8-bit kernels: x = Q(x) + Q(x - Q(x)) + rest, two rows for one, so
 * y = W Q(x) + W Q(x - Q(x)). Where 8-bit activations hurt most and cost least (projections to q, k, v and the output
 * words) this halves the divergence that rounding activations causes (docs/decisions.md).
 * Owns: the rounding residual and the temporary outputs. Must not know: kernels. Same bits at every level and for any
 * number of rows, as each of the two rows is.
 */
#include "backend/cpu/matmul.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"

/* Rows a pass: with their residuals they fill one work item of matmul.c. */
#define WIDE_ROWS 96u
/* Temporary outputs, in floats: enough for WIDE_ROWS of a 4,096-wide layer, and for one row of any output. */
#define WIDE_FLOATS (2u * WIDE_ROWS * 4096u)

kv_status kv_matmul_wide_init(kv_matmul_wide *s, const kv_exec_params *p, kv_error *err) {
    s->floats = 2u * p->max_n > WIDE_FLOATS ? 2u * p->max_n : WIDE_FLOATS;
    s->x = kv_malloc64(2ull * WIDE_ROWS * p->max_k * sizeof(float));
    s->y = kv_malloc64(s->floats * sizeof(float));
    if (!s->x || !s->y) KV_FAIL(err, MEMORY, "matmul scratch for 16-bit activations");
    return KVIST_OK;
}

void kv_matmul_wide_free(kv_matmul_wide *s) {
    kv_free64(s->x);
    kv_free64(s->y);
}

/* r[k] = x[k] - Q(x)[k], Q as kv_matmul_kernels.quantize rounds (blocks of 32). The addition of 1.5 * 2^23 rounds
 * half to even as rintf does, and vectorizes everywhere. */
static void residual_row(const float *x, uint32_t k, float *r) {
    const float magic = 12582912.0f;
    for (uint32_t b = 0; b < k; b += 32) {
        float lane[8] = {0}, amax = 0; /* plain comparisons in lanes: these vectorize, fmaxf is a call */
        for (uint32_t i = 0; i < 32; i += 8)
            for (uint32_t l = 0; l < 8; l++) {
                float v = fabsf(x[b + i + l]);
                lane[l] = v > lane[l] ? v : lane[l];
            }
        for (uint32_t l = 0; l < 8; l++) amax = lane[l] > amax ? lane[l] : amax;
        if (!(amax > KV_ACT_TINY) || !isfinite(amax)) { /* the first row already says zero, or NaN */
            memset(r + b, 0, 32 * sizeof *r);
            continue;
        }
        float d = amax / 127.0f, id = 127.0f / amax;
        for (uint32_t i = b; i < b + 32; i++) {
            float q = (x[i] * id + magic) - magic;
            r[i] = x[i] - d * q;
        }
    }
}

typedef struct wide_job {
    const float *x;
    float *x2;
    uint32_t rows, k, n_outs;
    const kv_matmul_out *outs, *parts;
} wide_job;

static void split_row(void *ctx, uint32_t row, uint32_t thread) {
    const wide_job *j = ctx;
    (void)thread;
    memcpy(j->x2 + (size_t)row * j->k, j->x + (size_t)row * j->k, j->k * sizeof(float));
    residual_row(j->x + (size_t)row * j->k, j->k, j->x2 + (size_t)(j->rows + row) * j->k);
}

static void join_row(void *ctx, uint32_t row, uint32_t thread) {
    const wide_job *j = ctx;
    (void)thread;
    for (uint32_t i = 0; i < j->n_outs; i++) {
        const kv_matmul_out *o = &j->outs[i];
        size_t n = o->w->n;
        const float *hi = j->parts[i].y + row * n, *lo = j->parts[i].y + (j->rows + row) * n;
        float *y = o->y + row * o->y_stride;
        if (o->accumulate)
            for (size_t c = 0; c < n; c++) y[c] += hi[c] + lo[c];
        else
            for (size_t c = 0; c < n; c++) y[c] = hi[c] + lo[c];
        if (o->bias)
            for (size_t c = 0; c < n; c++) y[c] += o->bias[c];
    }
}

void kv_matmul_wide_rows(kv_cpu_exec *ex, const kv_matmul_wide *s, const float *x, uint32_t rows, uint32_t k,
                         const kv_matmul_out *outs, uint32_t n_outs, uint32_t max_rows) {
    size_t width = 0;
    for (uint32_t i = 0; i < n_outs; i++) width += outs[i].w->n;
    uint32_t most = (uint32_t)(s->floats / (2 * width));
    if (most > WIDE_ROWS) most = WIDE_ROWS;
    if (most > max_rows / 2) most = max_rows / 2;
    assert(most > 0 && n_outs <= 8);
    kv_matmul_out moved[8], parts[8];
    for (uint32_t r0 = 0; r0 < rows; r0 += most) {
        wide_job j = {.x = x + (size_t)r0 * k,
                      .x2 = s->x,
                      .rows = rows - r0 < most ? rows - r0 : most,
                      .k = k,
                      .n_outs = n_outs,
                      .outs = moved,
                      .parts = parts};
        float *y = s->y;
        for (uint32_t i = 0; i < n_outs; i++) {
            moved[i] = outs[i];
            moved[i].y += r0 * outs[i].y_stride;
            parts[i] = (kv_matmul_out){.w = outs[i].w, .y = y, .y_stride = outs[i].w->n};
            y += 2ull * j.rows * outs[i].w->n;
        }
        kv_threads *threads = j.rows < 4 ? NULL : ex->threads;
        kv_threads_run(threads, split_row, &j, j.rows);
        kv_matmul_rows(ex, s->x, 2 * j.rows, k, parts, n_outs);
        kv_threads_run(threads, join_row, &j, j.rows);
    }
}
