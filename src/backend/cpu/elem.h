/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Elementwise operations on rows of f32: the kernel table.
 * Owns: signatures. Must not know: threads. Every kernel is the same C (elem_body.h) compiled once per level, with
 * explicit fmaf and no contraction, so all levels give the same bits.
 */
#ifndef KV_BACKEND_CPU_ELEM_H
#define KV_BACKEND_CPU_ELEM_H

#include "backend/cpu/cpu.h"

enum { KV_ELEM_MAX_DIM = 256 }; /* the largest head dimension that is loaded */

struct kv_elem_kernels {
    const char *name;
    /* y[n] = x / sqrt(mean(x^2) + eps) * weight; sum of squares in 16 stripes of ascending i, then halves added (8, 4,
     * 2, 1). */
    void (*rmsnorm)(const float *x, const float *weight, float eps, uint32_t n, float *y);
    /* One head x[n_rot], cos/sin[n_rot/2], in place. */
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t n_rot, bool neox);
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *y);
    void (*to_f16)(const float *x, size_t n, uint16_t *y);
    /* y[d] = sum over g rows of q[g][d]^2, ascending g. */
    void (*squares)(const float *q, uint32_t g, uint32_t d, float *y);
    /* Rows x_r = x + r * stride, less the pivot[d]: sum[d] += x_r, outer[i][j] += x_ri x_rj for j <= i (beyond that what
     * is left is not defined), ascending r whatever the calls they come in. d at most KV_ELEM_MAX_DIM. */
    void (*outer)(const float *x, size_t stride, uint32_t rows, const float *pivot, uint32_t d, float *sum,
                  float *outer);
    /* y[16] = for each column t of kt[d][16]: sum over i of kt_it (linear_i + sum over j <= i of square[i][j] kt_jt);
     * square's upper triangle is zero. */
    void (*forms)(const float *kt, uint32_t d, const float *linear, const float *square, float *y);
};

extern const struct kv_elem_kernels kv_elem_ref, kv_elem_avx2, kv_elem_avx512, kv_elem_neon;

#endif
