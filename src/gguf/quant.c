/* SPDX-License-Identifier: Apache-2.0 */
/*
 * f32 to blocks, by range: for generated models and tests. Every field of every block is used, and dequantizing gives
 * values near x; nothing is searched or weighted, so files meant for people are better quantized elsewhere.
 * Input must be finite; constant and zero groups are safe.
 */
#include "base/half.h"
#include "gguf/blocks.h"

#include <math.h>
#include <string.h>

static int nearest(float v, int lo, int hi) {
    int q = (int)lrintf(v);
    return q < lo ? lo : q > hi ? hi : q;
}

static float inverse(float d) { return d != 0 ? 1.0f / d : 0; }

static void range(const float *x, int n, float *min, float *max) {
    *min = *max = x[0];
    for (int i = 1; i < n; i++) {
        if (x[i] < *min) *min = x[i];
        if (x[i] > *max) *max = x[i];
    }
}

/* The value of largest magnitude, with its sign. */
static float extreme(const float *x, int n) {
    float min, max;
    range(x, n, &min, &max);
    return max > -min ? max : min;
}

void kv_gguf_quant_f32(const float *x, void *y, size_t n) { memcpy(y, x, n * sizeof *x); }

void kv_gguf_quant_f16(const float *x, void *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h = kv_f32_f16(x[i]);
        memcpy((uint8_t *)y + 2 * i, &h, 2);
    }
}

void kv_gguf_quant_bf16(const float *x, void *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h = kv_f32_bf16(x[i]);
        memcpy((uint8_t *)y + 2 * i, &h, 2);
    }
}

/* codes[32] -> nibbles as in the 32-value blocks; the fifth bits, if qh. */
static void pack32(const int *codes, uint8_t qs[16], uint8_t *qh) {
    if (qh) memset(qh, 0, 4);
    for (int j = 0; j < 16; j++) qs[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
    if (qh)
        for (int j = 0; j < 32; j++) qh[j / 8] |= (uint8_t)((codes[j] >> 4) << (j % 8));
}

/* Symmetric: the extreme value gets code 0 (the only end with the full range). Returns d. */
static uint16_t codes_symmetric(const float *x, int half, int *codes) {
    uint16_t d = kv_f32_f16(extreme(x, 32) / (float)-half);
    float id = inverse(kv_f16_f32(d));
    for (int j = 0; j < 32; j++) codes[j] = nearest(x[j] * id + (float)half, 0, 2 * half - 1);
    return d;
}

static void codes_affine(const float *x, int top, int *codes, uint16_t *d, uint16_t *m) {
    float min, max;
    range(x, 32, &min, &max);
    *d = kv_f32_f16((max - min) / (float)top);
    *m = kv_f32_f16(min);
    float id = inverse(kv_f16_f32(*d)), base = kv_f16_f32(*m);
    for (int j = 0; j < 32; j++) codes[j] = nearest((x[j] - base) * id, 0, top);
}

void kv_gguf_quant_q4_0(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_q4_0 *b = y; n >= 32; n -= 32, x += 32, b++) {
        b->d = codes_symmetric(x, 8, codes);
        pack32(codes, b->qs, NULL);
    }
}

void kv_gguf_quant_q5_0(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_q5_0 *b = y; n >= 32; n -= 32, x += 32, b++) {
        b->d = codes_symmetric(x, 16, codes);
        pack32(codes, b->qs, b->qh);
    }
}

void kv_gguf_quant_q4_1(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_q4_1 *b = y; n >= 32; n -= 32, x += 32, b++) {
        uint16_t d, m;
        codes_affine(x, 15, codes, &d, &m);
        b->d = d, b->m = m;
        pack32(codes, b->qs, NULL);
    }
}

void kv_gguf_quant_q5_1(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_q5_1 *b = y; n >= 32; n -= 32, x += 32, b++) {
        uint16_t d, m;
        codes_affine(x, 31, codes, &d, &m);
        b->d = d, b->m = m;
        pack32(codes, b->qs, b->qh);
    }
}

void kv_gguf_quant_q8_0(const float *x, void *y, size_t n) {
    for (kv_q8_0 *b = y; n >= 32; n -= 32, x += 32, b++) {
        b->d = kv_f32_f16(fabsf(extreme(x, 32)) / 127.0f);
        float id = inverse(kv_f16_f32(b->d));
        for (int j = 0; j < 32; j++) b->qs[j] = (int8_t)nearest(x[j] * id, -127, 127);
    }
}

static int nearest_level(float v) {
    int best = 0;
    for (int i = 1; i < 16; i++)
        if (fabsf(v - (float)kv_iq4_table[i]) < fabsf(v - (float)kv_iq4_table[best])) best = i;
    return best;
}

void kv_gguf_quant_iq4_nl(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_iq4_nl *b = y; n >= 32; n -= 32, x += 32, b++) {
        b->d = kv_f32_f16(extreme(x, 32) / -127.0f);
        float id = inverse(kv_f16_f32(b->d));
        for (int j = 0; j < 32; j++) codes[j] = nearest_level(x[j] * id);
        pack32(codes, b->qs, NULL);
    }
}

/* Scales of n_groups of len values, x ~ scale q - min (min >= 0): s and m as multiples of d and dmin, at most top_s,
 * top_m. */
static void group_scales(const float *x, int n_groups, int len, int top_q, int top_s, int top_m, uint8_t *s, uint8_t *m,
                         uint16_t *d, uint16_t *dmin) {
    float scale[16], min[16], max_scale = 0, max_min = 0;
    for (int g = 0; g < n_groups; g++) {
        float lo, hi;
        range(x + g * len, len, &lo, &hi);
        if (lo > 0) lo = 0;
        scale[g] = (hi - lo) / (float)top_q;
        if (scale[g] < 0) scale[g] = 0;
        min[g] = -lo;
        max_scale = fmaxf(max_scale, scale[g]);
        max_min = fmaxf(max_min, min[g]);
    }
    *d = kv_f32_f16(max_scale / (float)top_s);
    *dmin = kv_f32_f16(max_min / (float)top_m);
    float id = inverse(kv_f16_f32(*d)), im = inverse(kv_f16_f32(*dmin));
    for (int g = 0; g < n_groups; g++) {
        s[g] = (uint8_t)nearest(scale[g] * id, 0, top_s);
        m[g] = (uint8_t)nearest(min[g] * im, 0, top_m);
    }
}

/* Code of x in a group with scale d s and minimum dmin m. */
static int affine_code(float x, uint16_t d, uint8_t s, uint16_t dmin, uint8_t m, int top) {
    return nearest((x + kv_f16_f32(dmin) * (float)m) * inverse(kv_f16_f32(d) * (float)s), 0, top);
}

void kv_gguf_quant_q2_k(const float *x, void *y, size_t n) {
    for (kv_q2_k *b = y; n >= 256; n -= 256, x += 256, b++) {
        uint8_t s[16], m[16];
        uint16_t d, dmin;
        group_scales(x, 16, 16, 3, 15, 15, s, m, &d, &dmin);
        memset(b, 0, sizeof *b);
        b->d = d, b->dmin = dmin;
        for (int g = 0; g < 16; g++) b->scales[g] = (uint8_t)(s[g] | m[g] << 4);
        for (int v = 0; v < 256; v++)
            b->qs[32 * (v / 128) + v % 32] |=
                (uint8_t)(affine_code(x[v], d, s[v / 16], dmin, m[v / 16], 3) << (2 * (v / 32 % 4)));
    }
}

static void pack_k4_scales(const uint8_t s[8], const uint8_t m[8], uint8_t out[12]) {
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        out[j + 4] = (uint8_t)(m[j] | (m[j + 4] >> 4) << 6);
        out[j + 8] = (uint8_t)((s[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

void kv_gguf_quant_q4_k(const float *x, void *y, size_t n) {
    for (kv_q4_k *b = y; n >= 256; n -= 256, x += 256, b++) {
        uint8_t s[8], m[8];
        uint16_t d, dmin;
        group_scales(x, 8, 32, 15, 63, 63, s, m, &d, &dmin);
        memset(b, 0, sizeof *b);
        b->d = d, b->dmin = dmin;
        pack_k4_scales(s, m, b->scales);
        for (int v = 0; v < 256; v++) {
            int g = v / 32;
            b->qs[32 * (g / 2) + v % 32] |= (uint8_t)(affine_code(x[v], d, s[g], dmin, m[g], 15) << (4 * (g % 2)));
        }
    }
}

void kv_gguf_quant_q5_k(const float *x, void *y, size_t n) {
    for (kv_q5_k *b = y; n >= 256; n -= 256, x += 256, b++) {
        uint8_t s[8], m[8];
        uint16_t d, dmin;
        group_scales(x, 8, 32, 31, 63, 63, s, m, &d, &dmin);
        memset(b, 0, sizeof *b);
        b->d = d, b->dmin = dmin;
        pack_k4_scales(s, m, b->scales);
        for (int v = 0; v < 256; v++) {
            int g = v / 32, code = affine_code(x[v], d, s[g], dmin, m[g], 31);
            b->qs[32 * (g / 2) + v % 32] |= (uint8_t)((code & 15) << (4 * (g % 2)));
            b->qh[v % 32] |= (uint8_t)((code >> 4) << g);
        }
    }
}

/* Signed group scales of len values for codes -half..half-1: scale[g] = d s[g], |s| <= top. Returns d. */
static uint16_t signed_scales(const float *x, int n_groups, int len, float reach, int top, int *s) {
    float scale[16], largest = 0;
    for (int g = 0; g < n_groups; g++) {
        scale[g] = extreme(x + g * len, len) / -reach;
        if (fabsf(scale[g]) > fabsf(largest)) largest = scale[g];
    }
    uint16_t d = kv_f32_f16(largest / (float)-top);
    float id = inverse(kv_f16_f32(d));
    for (int g = 0; g < n_groups; g++) s[g] = nearest(scale[g] * id, -top, top - 1);
    return d;
}

void kv_gguf_quant_q3_k(const float *x, void *y, size_t n) {
    for (kv_q3_k *b = y; n >= 256; n -= 256, x += 256, b++) {
        int s[16];
        uint16_t d = signed_scales(x, 16, 16, 4, 32, s);
        memset(b, 0, sizeof *b);
        b->d = d;
        for (int g = 0; g < 16; g++) {
            int u = s[g] + 32;
            b->scales[g % 8] |= (uint8_t)((u & 15) << (g < 8 ? 0 : 4));
            b->scales[8 + g % 4] |= (uint8_t)((u >> 4) << (2 * (g / 4)));
        }
        for (int v = 0; v < 256; v++) {
            int code = nearest(x[v] * inverse(kv_f16_f32(d) * (float)s[v / 16]), -4, 3) + 4;
            b->qs[32 * (v / 128) + v % 32] |= (uint8_t)((code & 3) << (2 * (v / 32 % 4)));
            b->hmask[v % 32] |= (uint8_t)((code >> 2) << (v / 32));
        }
    }
}

void kv_gguf_quant_q6_k(const float *x, void *y, size_t n) {
    for (kv_q6_k *b = y; n >= 256; n -= 256, x += 256, b++) {
        int s[16];
        uint16_t d = signed_scales(x, 16, 16, 32, 128, s);
        memset(b, 0, sizeof *b);
        b->d = d;
        for (int g = 0; g < 16; g++) b->scales[g] = (int8_t)s[g];
        for (int v = 0; v < 256; v++) {
            int h = v / 128, r = v / 32 % 4, i = v % 32;
            int code = nearest(x[v] * inverse(kv_f16_f32(d) * (float)s[v / 16]), -32, 31) + 32;
            b->ql[64 * h + 32 * (r & 1) + i] |= (uint8_t)((code & 15) << (r & 2 ? 4 : 0));
            b->qh[32 * h + i] |= (uint8_t)((code >> 4) << (2 * r));
        }
    }
}

void kv_gguf_quant_iq4_xs(const float *x, void *y, size_t n) {
    int codes[32];
    for (kv_iq4_xs *b = y; n >= 256; n -= 256, x += 256, b++) {
        int s[8];
        uint16_t d = signed_scales(x, 8, 32, 127, 32, s);
        memset(b, 0, sizeof *b);
        b->d = d;
        for (int g = 0; g < 8; g++) {
            int u = s[g] + 32;
            b->scales_l[g / 2] |= (uint8_t)((u & 15) << (4 * (g % 2)));
            b->scales_h = (uint16_t)(b->scales_h | (u >> 4) << (2 * g));
            float id = inverse(kv_f16_f32(d) * (float)s[g]);
            for (int j = 0; j < 32; j++) codes[j] = nearest_level(x[32 * g + j] * id);
            pack32(codes, b->qs + 16 * g, NULL);
        }
    }
}
