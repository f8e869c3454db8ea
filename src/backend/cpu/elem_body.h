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

const struct kv_elem_kernels ELEM_TABLE = {ELEM_NAME, rmsnorm, rope, silu_mul, to_f16, squares};
