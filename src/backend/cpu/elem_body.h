/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The elementwise kernels' text, included once per level by elem_<level>.c, which defines ELEM_TABLE (the table's name)
 * and ELEM_NAME and may define ELEM_F16_8(x, y) (eight f32 to f16 by the CPU). The compiler vectorizes the loops;
 * without -ffast-math and with contraction off it may not change a bit.
 */
#include <math.h>

#include "backend/cpu/elem.h"
#include "base/half.h"

static void rmsnorm(const float *x, const float *weight, float eps, uint32_t n, float *y) {
    float lane[16] = {0};
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (uint32_t j = 0; j < 16; j++) lane[j] = fmaf(x[i + j], x[i + j], lane[j]);
    for (uint32_t j = 0; i + j < n; j++) lane[j] = fmaf(x[i + j], x[i + j], lane[j]);
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) lane[j] += lane[j + half];
    float scale = 1.0f / sqrtf(lane[0] / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = (x[i] * scale) * weight[i];
}

static void rope_neox(float *restrict a, float *restrict b, const float *restrict cos, const float *restrict sin,
                      uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        float x0 = a[i], x1 = b[i];
        a[i] = x0 * cos[i] - x1 * sin[i];
        b[i] = x0 * sin[i] + x1 * cos[i];
    }
}

static void rope(float *x, const float *cos, const float *sin, uint32_t n_rot, bool neox) {
    if (neox) {
        rope_neox(x, x + n_rot / 2, cos, sin, n_rot / 2);
        return;
    }
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = x0 * cos[i] - x1 * sin[i];
        x[2 * i + 1] = x0 * sin[i] + x1 * cos[i];
    }
}

/* e^x for |x| <= 87 (clamped), about 1 ulp: x = n ln2 + r, |r| <= ln2 / 2, a polynomial of degree 7 in r (Taylor: the
 * remainder r^8/8! is under 6e-9), times 2^n by exponent bits. Rounding to n by adding 1.5 * 2^23 leaves n in the low
 * mantissa bits. */
static inline float exp_clamped(float x) {
    const float magic = 12582912.0f, top = 87.0f;
    x = x > top ? top : x;
    x = x < -top ? -top : x;
    float t = fmaf(x, 1.44269504088896341f, magic), n = t - magic;
    float r = fmaf(n, -0.693359375f, x); /* ln2 in two parts, the first of 9 bits: n times it is exact */
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * kv_bits_f32((kv_f32_bits(t) + 127u) << 23);
}

static void silu_mul(const float *gate, const float *up, size_t n, float *y) {
    for (size_t i = 0; i < n; i += 16) { /* local copies: y may be gate or up, and the loop is still a vector's */
        float g[16] = {0}, u[16] = {0};
        size_t bytes = (n - i < 16 ? n - i : 16) * sizeof(float);
        if (n - i >= 16) {
            memcpy(g, gate + i, sizeof g);
            memcpy(u, up + i, sizeof u);
        } else {
            memcpy(g, gate + i, bytes);
            memcpy(u, up + i, bytes);
        }
        for (int j = 0; j < 16; j++) g[j] = g[j] / (1.0f + exp_clamped(-g[j])) * u[j];
        if (n - i >= 16)
            memcpy(y + i, g, sizeof g);
        else
            memcpy(y + i, g, bytes);
    }
}

static void to_f16(const float *x, size_t n, uint16_t *y) {
    size_t i = 0;
#ifdef ELEM_F16_8
    for (; i + 8 <= n; i += 8) ELEM_F16_8(x + i, y + i);
#endif
    for (; i < n; i++) y[i] = kv_f32_f16(x[i]);
}

static void squares(const float *restrict q, uint32_t g, uint32_t d, float *restrict y) {
    for (uint32_t i = 0; i < d; i++) y[i] = q[i] * q[i];
    for (uint32_t h = 1; h < g; h++)
        for (uint32_t i = 0; i < d; i++) y[i] += q[(size_t)h * d + i] * q[(size_t)h * d + i];
}

/* Four rows at a time: each sum is read and written once for them, and still takes them one after the other. */
static void outer_rows(float (*restrict x)[KV_ELEM_MAX_DIM], uint32_t rows, uint32_t d, float *restrict outer) {
    for (uint32_t i = 0; i < d; i++) {
        float *restrict o = outer + (size_t)i * d;
        uint32_t n = (i + 16) / 16 * 16 < d ? (i + 16) / 16 * 16 : d; /* whole vectors past the diagonal */
        float a0 = x[0][i], a1 = x[1][i], a2 = x[2][i], a3 = x[3][i];
        if (rows == 4)
            for (uint32_t j = 0; j < n; j++)
                o[j] = (((o[j] + a0 * x[0][j]) + a1 * x[1][j]) + a2 * x[2][j]) + a3 * x[3][j];
        else
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t j = 0; j < n; j++) o[j] += x[r][i] * x[r][j];
    }
}

static void outer_sums(const float *x, size_t stride, uint32_t rows, const float *restrict pivot, uint32_t d,
                       float *restrict sum, float *restrict outer) {
    float diff[4][KV_ELEM_MAX_DIM] = {{0}};
    for (uint32_t r = 0; r < rows; r += 4) {
        uint32_t n = rows - r < 4 ? rows - r : 4;
        for (uint32_t k = 0; k < n; k++)
            for (uint32_t i = 0; i < d; i++) {
                diff[k][i] = x[(r + k) * stride + i] - pivot[i];
                sum[i] += diff[k][i];
            }
        outer_rows(diff, n, d, outer);
    }
}

/* Sixteen keys side by side. The compiler splits it where registers are shorter. */
typedef float elem_keys __attribute__((vector_size(64), aligned(4), may_alias));
#define ELEM_KEYS(row) (*(const elem_keys *)(const void *)(kt + 16 * (size_t)(row)))

static void forms(const float *kt, uint32_t d, const float *linear, const float *square, float *y) {
    const elem_keys zero = {0};
    elem_keys total = zero;
    uint32_t i = 0;
    for (; i + 4 <= d; i += 4) { /* four chains of sums at once */
        elem_keys a0 = zero + linear[i], a1 = zero + linear[i + 1], a2 = zero + linear[i + 2], a3 = zero + linear[i + 3];
        const float *s = square + (size_t)i * d;
        for (uint32_t j = 0; j < i + 4; j++) {
            elem_keys k = ELEM_KEYS(j);
            a0 += k * s[j];
            a1 += k * s[d + j];
            a2 += k * s[2 * (size_t)d + j];
            a3 += k * s[3 * (size_t)d + j];
        }
        total += a0 * ELEM_KEYS(i);
        total += a1 * ELEM_KEYS(i + 1);
        total += a2 * ELEM_KEYS(i + 2);
        total += a3 * ELEM_KEYS(i + 3);
    }
    for (; i < d; i++) {
        elem_keys a = zero + linear[i];
        for (uint32_t j = 0; j <= i; j++) a += ELEM_KEYS(j) * square[(size_t)i * d + j];
        total += a * ELEM_KEYS(i);
    }
    memcpy(y, &total, sizeof total);
}

const struct kv_elem_kernels ELEM_TABLE = {ELEM_NAME, rmsnorm, rope,       silu_mul,
                                           to_f16,    squares, outer_sums, forms};
