/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks to f32: the portable reference of every weight kernel. Exact: d (11 bits) times scale (at most 8) times code
 * (at most 8) fits f32's 24 bits, so each value is rounded once at most, where the minimum is added or subtracted, and
 * the order of the products does not matter. x is read by bytes: any alignment.
 */
#include "base/half.h"
#include "gguf/blocks.h"

#include <string.h>

void kv_gguf_dequant_f32(const void *x, float *y, size_t n) { memcpy(y, x, n * sizeof *y); }

void kv_gguf_dequant_f16(const void *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const uint8_t *)x + 2 * i, 2);
        y[i] = kv_f16_f32(h);
    }
}

void kv_gguf_dequant_bf16(const void *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const uint8_t *)x + 2 * i, 2);
        y[i] = kv_bf16_f32(h);
    }
}

void kv_gguf_dequant_q4_0(const void *x, float *y, size_t n) {
    const kv_q4_0 *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)((b->qs[j] & 15) - 8) * d;
            y[j + 16] = (float)((b->qs[j] >> 4) - 8) * d;
        }
    }
}

void kv_gguf_dequant_q4_1(const void *x, float *y, size_t n) {
    const kv_q4_1 *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d), m = kv_f16_f32(b->m);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)(b->qs[j] & 15) * d + m;
            y[j + 16] = (float)(b->qs[j] >> 4) * d + m;
        }
    }
}

static inline int bit(const uint8_t *bytes, int i) { return (bytes[i / 8] >> (i % 8)) & 1; }

void kv_gguf_dequant_q5_0(const void *x, float *y, size_t n) {
    const kv_q5_0 *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)((b->qs[j] & 15) + 16 * bit(b->qh, j) - 16) * d;
            y[j + 16] = (float)((b->qs[j] >> 4) + 16 * bit(b->qh, j + 16) - 16) * d;
        }
    }
}

void kv_gguf_dequant_q5_1(const void *x, float *y, size_t n) {
    const kv_q5_1 *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d), m = kv_f16_f32(b->m);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)((b->qs[j] & 15) + 16 * bit(b->qh, j)) * d + m;
            y[j + 16] = (float)((b->qs[j] >> 4) + 16 * bit(b->qh, j + 16)) * d + m;
        }
    }
}

void kv_gguf_dequant_q8_0(const void *x, float *y, size_t n) {
    const kv_q8_0 *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d);
        for (int j = 0; j < 32; j++) y[j] = (float)b->qs[j] * d;
    }
}

void kv_gguf_dequant_iq4_nl(const void *x, float *y, size_t n) {
    const kv_iq4_nl *b = x;
    for (; n >= 32; n -= 32, y += 32, b++) {
        float d = kv_f16_f32(b->d);
        for (int j = 0; j < 16; j++) {
            y[j] = (float)kv_iq4_table[b->qs[j] & 15] * d;
            y[j + 16] = (float)kv_iq4_table[b->qs[j] >> 4] * d;
        }
    }
}

/* The 2-bit planes of q2_k and q3_k: value 128 h + 32 s + i is bits 2s.. of byte 32 h + i; group = value / 16. */
void kv_gguf_dequant_q2_k(const void *x, float *y, size_t n) {
    const kv_q2_k *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d), dmin = kv_f16_f32(b->dmin);
        for (int g = 0; g < 16; g++) {
            const uint8_t *q = b->qs + 32 * (g / 8) + 16 * (g % 2);
            int shift = 2 * (g % 8 / 2);
            float scale = d * (float)(b->scales[g] & 15), min = dmin * (float)(b->scales[g] >> 4);
            for (int i = 0; i < 16; i++) y[16 * g + i] = scale * (float)((q[i] >> shift) & 3) - min;
        }
    }
}

/* The third bit of value v is bit v / 32 of hmask[v % 32]; set means "not minus 4". */
void kv_gguf_dequant_q3_k(const void *x, float *y, size_t n) {
    const kv_q3_k *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d);
        for (int g = 0; g < 16; g++) {
            const uint8_t *q = b->qs + 32 * (g / 8) + 16 * (g % 2), *high = b->hmask + 16 * (g % 2);
            int shift = 2 * (g % 8 / 2);
            float scale = d * (float)(kv_q3_scale(b->scales, (unsigned)g) - 32);
            for (int i = 0; i < 16; i++) {
                int code = ((q[i] >> shift) & 3) + 4 * ((high[i] >> (g / 2)) & 1) - 4;
                y[16 * g + i] = scale * (float)code;
            }
        }
    }
}

/* Value 64 p + i (i < 32) is the low nibble of byte 32 p + i, value 64 p + 32 + i the high one; group = value / 32. */
void kv_gguf_dequant_q4_k(const void *x, float *y, size_t n) {
    const kv_q4_k *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d), dmin = kv_f16_f32(b->dmin);
        for (unsigned g = 0; g < 8; g++) {
            uint8_t s, m;
            kv_k4_scale_min(b->scales, g, &s, &m);
            const uint8_t *q = b->qs + 32 * (g / 2);
            float scale = d * (float)s, min = dmin * (float)m;
            for (unsigned i = 0; i < 32; i++) y[32 * g + i] = scale * (float)((q[i] >> (4 * (g % 2))) & 15) - min;
        }
    }
}

/* As q4_k; the fifth bit of group g is bit g of qh[i]. */
void kv_gguf_dequant_q5_k(const void *x, float *y, size_t n) {
    const kv_q5_k *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d), dmin = kv_f16_f32(b->dmin);
        for (unsigned g = 0; g < 8; g++) {
            uint8_t s, m;
            kv_k4_scale_min(b->scales, g, &s, &m);
            const uint8_t *q = b->qs + 32 * (g / 2);
            float scale = d * (float)s, min = dmin * (float)m;
            for (unsigned i = 0; i < 32; i++) {
                int code = ((q[i] >> (4 * (g % 2))) & 15) + 16 * ((b->qh[i] >> g) & 1);
                y[32 * g + i] = scale * (float)code - min;
            }
        }
    }
}

/* Value 128 h + 32 r + i: low nibble of ql[64 h + 32 (r & 1) + i] (high nibble for r >= 2), bits 2r.. of qh[32 h + i].
 */
void kv_gguf_dequant_q6_k(const void *x, float *y, size_t n) {
    const kv_q6_k *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d);
        for (int v = 0; v < 256; v++) {
            int h = v / 128, r = v / 32 % 4, i = v % 32;
            int low = (b->ql[64 * h + 32 * (r & 1) + i] >> (r & 2 ? 4 : 0)) & 15;
            int high = (b->qh[32 * h + i] >> (2 * r)) & 3;
            y[v] = d * (float)b->scales[v / 16] * (float)((low | high << 4) - 32);
        }
    }
}

void kv_gguf_dequant_iq4_xs(const void *x, float *y, size_t n) {
    const kv_iq4_xs *b = x;
    for (; n >= 256; n -= 256, y += 256, b++) {
        float d = kv_f16_f32(b->d);
        for (unsigned g = 0; g < 8; g++) {
            float scale = d * (float)(kv_iq4_xs_scale(b, g) - 32);
            const uint8_t *q = b->qs + 16 * g;
            for (unsigned j = 0; j < 16; j++) {
                y[32 * g + j] = scale * (float)kv_iq4_table[q[j] & 15];
                y[32 * g + j + 16] = scale * (float)kv_iq4_table[q[j] >> 4];
            }
        }
    }
}
