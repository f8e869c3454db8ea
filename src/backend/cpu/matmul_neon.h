/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the NEON matrix product files share: codes and scales of a block as vectors of four lanes, dot products by lane,
 * prefetch, writing results.
 * Owns: inline functions with constant kinds, so that each type has its own loop. Must not know: threads. Included by
 * matmul*_neon.c only.
 * A panel of 16 outputs is four vectors; vector v of quad j is outputs 4v .. 4v+3, four codes of k each, which is what
 * SDOT multiplies with four activations taken from one lane of another vector.
 */
#ifndef KV_BACKEND_CPU_MATMUL_NEON_H
#define KV_BACKEND_CPU_MATMUL_NEON_H

#include <string.h>

#include "backend/cpu/lane_neon.h"
#include "backend/cpu/matmul.h"

/* Bytes ahead of the block being read. Not measured on a machine: within what the x86 levels measured as flat (8 to 16
 * KiB), and half of what they use, since ARM cores have fewer lines in flight. */
#define PREFETCH_AHEAD 6144

/* Codes of 8 bits are taken as signed (the zero point being 128); smaller ones fit int8 as they are. */
#define IS_SIGNED(code) ((code) == KV_CODE_8 || (code) == KV_CODE_4T)

KV_INLINE uint8x16_t shift_right(uint8x16_t x, const int n) {
    switch (n) {
    case -4:
        return vshlq_n_u8(x, 4);
    case -2:
        return vshlq_n_u8(x, 2);
    case -1:
        return vshlq_n_u8(x, 1);
    case -3:
        return vshlq_n_u8(x, 3);
    case 1:
        return vshrq_n_u8(x, 1);
    case 2:
        return vshrq_n_u8(x, 2);
    case 3:
        return vshrq_n_u8(x, 3);
    case 4:
        return vshrq_n_u8(x, 4);
    case 5:
        return vshrq_n_u8(x, 5);
    case 6:
        return vshrq_n_u8(x, 6);
    case 7:
        return vshrq_n_u8(x, 7);
    default:
        return x;
    }
}

KV_INLINE float32x4_t f32x4(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
KV_INLINE int32x4_t s32x4(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
/* Four values of two bytes, four bytes. */
KV_INLINE float32x4_t f16x4(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
KV_INLINE uint32x4_t u8x4(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(v))));
}
KV_INLINE int32x4_t i8x4(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(v))));
}

/* ---- codes and scales of one block, constant kinds */

/* Asks for the lines of one block further on in the one linear stream of panels. */
KV_INLINE void prefetch_block(const int code, const int scale, const uint8_t *at) {
    for (uint32_t i = 0; i < kv_block_bytes(code, scale); i += 64) __builtin_prefetch(at + i, 0, 3);
}

/* Vector v of quad j of the block at lo, hi; signed where IS_SIGNED. */
KV_INLINE int8x16_t quad(const int code, const uint8_t *lo, const uint8_t *hi, const int j, const int v) {
    uint8x16_t q;
    if (code == KV_CODE_8) return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(lo + 64 * j + 16 * v), vdupq_n_u8(0x80)));
    if (code == KV_CODE_2 || code == KV_CODE_3) {
        q = vandq_u8(shift_right(vld1q_u8(lo + 64 * (j >> 2) + 16 * v), 2 * (j & 3)), vdupq_n_u8(3));
        if (code == KV_CODE_3) q = vorrq_u8(q, vandq_u8(shift_right(vld1q_u8(hi + 16 * v), j - 2), vdupq_n_u8(4)));
        return vreinterpretq_s8_u8(q);
    }
    q = vld1q_u8(lo + 64 * (j >> 1) + 16 * v);
    q = (j & 1) ? vshrq_n_u8(q, 4) : vandq_u8(q, vdupq_n_u8(15));
    if (code == KV_CODE_5) q = vorrq_u8(q, vandq_u8(shift_right(vld1q_u8(hi + 16 * v), j - 4), vdupq_n_u8(16)));
    if (code == KV_CODE_6)
        q = vorrq_u8(
            q, vandq_u8(shift_right(vld1q_u8(hi + 64 * (j >> 2) + 16 * v), 2 * (j & 3) - 4), vdupq_n_u8(48)));
    if (code == KV_CODE_4T) q = vqtbl1q_u8(veorq_u8(vld1q_u8(kv_pack_iq4), vdupq_n_u8(0x80)), q);
    return vreinterpretq_s8_u8(q);
}

/* s and m of group g of block b for outputs 4v .. 4v+3. */
KV_INLINE void scales(const int scale, const kv_planes *p, uint32_t b, const int g, const int v, float32x4_t *s,
                      float32x4_t *m) {
    size_t at = (size_t)(kv_scale_is_k(scale) ? b >> 3 : b) * 32 + 8 * (size_t)v;
    size_t group = (size_t)(kv_scale_is_g16(scale) ? 2 * b + (uint32_t)g : b) * 16 + 4 * (size_t)v;
    float32x4_t d = f16x4(p->d + at), dm = kv_scale_has_min(scale) ? f16x4(p->m + at) : vdupq_n_f32(0);
    *s = d;
    *m = dm;
    if (scale == KV_SC_K || scale == KV_SC_K16) *s = vmulq_f32(d, vcvtq_f32_s32(i8x4(p->sc + group)));
    if (scale == KV_SC_KM) {
        *s = vmulq_f32(d, vcvtq_f32_u32(u8x4(p->sc + group)));
        *m = vnegq_f32(vmulq_f32(dm, vcvtq_f32_u32(u8x4(p->scm + group))));
    }
    if (scale == KV_SC_K16M) {
        uint32x4_t sc = u8x4(p->sc + group);
        *s = vmulq_f32(d, vcvtq_f32_u32(vandq_u32(sc, vdupq_n_u32(15))));
        *m = vnegq_f32(vmulq_f32(dm, vcvtq_f32_u32(vshrq_n_u32(sc, 4))));
    }
}

/* ---- writing results */

/* x: 4 n outputs from lane `from` (0, 4, 8 or 12) of panel, row of activations `row`. Out of line: it runs once a row and
 * panel, and there are many callers. */
static __attribute__((noinline)) void put_outputs(const kv_matmul_out *out, uint32_t panel, uint32_t from, uint32_t row,
                                                  const float *x, int n) {
    const bool second = out->wide && row % 2, accumulate = out->accumulate || second;
    uint32_t lanes = kv_mm_lanes(out->w, panel);
    size_t at = (size_t)panel * KV_PANEL + from;
    float *y = out->y + (out->wide ? row / 2 : row) * out->y_stride + at;
    const float *bias = out->bias && second == out->wide ? out->bias + at : NULL;
    for (uint32_t o = 0; o < 4 * (uint32_t)n && from + o < lanes; o++) {
        float f = bias ? x[o] + bias[o] : x[o];
        y[o] = accumulate ? f + y[o] : f;
    }
}

KV_INLINE void finish(const kv_matmul_out *out, uint32_t panel, uint32_t from, uint32_t row, const float32x4_t *acc,
                      const int n) {
    float x[KV_PANEL];
    for (int i = 0; i < n; i++) vst1q_f32(x + 4 * i, acc[i]);
    put_outputs(out, panel, from, row, x, n);
}

/* matmul_stream_neon.c */
void kv_matmul_stream_neon(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows);

#endif
