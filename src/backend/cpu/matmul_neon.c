/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels for NEON with SDOT: activations, records, register tiles, dense weights.
 * Owns: the level's table but for gemv (matmul_stream_neon.c). Must not know: threads.
 * Records of this level hold signed codes with the zero point taken off (code - 2^zshift fits int8 for all types), so
 * that a tile's sums start at 0: the same integers as code sums less the shifted activation sum.
 */
#if defined(__ARM_FEATURE_DOTPROD)
#include "backend/cpu/matmul_neon.h"

#include <math.h>

/* ---- activations */

static void put_word(uint8_t *act, uint32_t offset, const void *word) { memcpy(act + offset, word, 4); }

/* The greatest |x| of a block as bits: NaN above inf above numbers. */
KV_INLINE uint32_t max_bits(const float32x4_t *x) {
    const uint32x4_t mask = vdupq_n_u32(0x7fffffff);
    uint32x4_t a = vandq_u32(vreinterpretq_u32_f32(x[0]), mask);
    KV_UNROLL
    for (int i = 1; i < 8; i++) a = vmaxq_u32(a, vandq_u32(vreinterpretq_u32_f32(x[i]), mask));
    return vmaxvq_u32(a);
}

/* Quantizes one block and leaves in x what its codes do not say. |x id| <= 127 but for the last place, which rounds to
 * 127. */
KV_INLINE void quantize_block(float32x4_t *x, uint32_t T, uint32_t r, uint8_t *act) {
    const uint32_t top = max_bits(x);
    float amax, d = 0, id = 0;
    memcpy(&amax, &top, 4);
    if (top >= 0x7f800000u) {
        d = NAN;
    } else if (amax > KV_ACT_TINY) {
        d = amax / 127.0f;
        id = 127.0f / amax;
    }
    const int32x4_t some = vdupq_n_s32(id > 0 ? -1 : 0); /* inf times 0 is no code */
    int16x4_t q[8];
    KV_UNROLL
    for (int i = 0; i < 8; i++) {
        const int32x4_t c = vandq_s32(vcvtnq_s32_f32(vmulq_n_f32(x[i], id)), some);
        x[i] = vsubq_f32(x[i], vmulq_n_f32(vcvtq_f32_s32(c), d));
        q[i] = vmovn_s32(c);
    }
    int8x16_t bytes[2];
    uint32_t words[8];
    for (int h = 0; h < 2; h++) {
        bytes[h] = vcombine_s8(vmovn_s16(vcombine_s16(q[4 * h], q[4 * h + 1])),
                               vmovn_s16(vcombine_s16(q[4 * h + 2], q[4 * h + 3])));
        vst1q_u32(words + 4 * h, vreinterpretq_u32_s8(bytes[h]));
    }
    for (uint32_t j = 0; j < 8; j++) put_word(act, 4 * (T * j + r), &words[j]);
    kv_act_put_sums(act, T, r, d, vaddlvq_s8(bytes[0]), vaddlvq_s8(bytes[1]));
}

static void quantize(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act) {
    for (uint32_t b = 0; b < k / 32; b++, act += KV_ACT_BYTES(T), x += 32) {
        float32x4_t v[8];
        for (int i = 0; i < 8; i++) v[i] = vld1q_f32(x + 4 * i);
        quantize_block(v, T, r, act);
        if (wide) quantize_block(v, T, r + 1, act);
    }
}

/* ---- records */

KV_INLINE void unpack_body(const int code, const int scale, const int zshift, const kv_weight *w, uint32_t panel,
                           uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    const kv_planes p = kv_planes_of(w, panel);
    const int groups = kv_scale_is_g16(scale) ? 2 : 1;
    const int8x16_t zero = vdupq_n_s8(zshift >= 0 && !IS_SIGNED(code) ? (int8_t)(1 << (zshift > 0 ? zshift : 0)) : 0);
    for (uint32_t b = b0; b < b0 + nb; b++, rec += stride) {
        const uint8_t *lo = p.lo + (size_t)b * kv_code_lo_bytes(code), *hi = p.hi + (size_t)b * kv_code_hi_bytes(code);
        KV_UNROLL
        for (int j = 0; j < 8; j++)
            for (int v = 0; v < 4; v++)
                vst1q_u8(rec + 64 * j + 16 * v, vreinterpretq_u8_s8(vsubq_s8(quad(code, lo, hi, j, v), zero)));
        KV_UNROLL
        for (int g = 0; g < groups; g++)
            for (int v = 0; v < 4; v++) {
                float32x4_t s, m;
                scales(scale, &p, b, g, v, &s, &m);
                vst1q_u8(rec + KV_REC_S + 64 * g + 16 * v, vreinterpretq_u8_f32(s));
                if (kv_scale_has_min(scale)) vst1q_u8(rec + KV_REC_M + 64 * g + 16 * v, vreinterpretq_u8_f32(m));
            }
    }
}

static void unpack(const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    switch (w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        unpack_body(C, S, Z, w, panel, b0, nb, rec, stride);                                                           \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}

/* ---- integer products */

/* Half h (8 outputs) of panel p of the pair x R rows from row `row`, the first of a tile; the first `rows` are stored.
 * 12 int32 and 12 f32 accumulators of six rows, two vectors of codes and two of activations: 28 of 32 registers. */
KV_INLINE void half_body(const bool min, const bool g16, const kv_mm_tile *t, const uint8_t *act, uint32_t row, int p,
                         int h, const int R, uint32_t rows) {
    enum { T = KV_TILE_ROWS };
    const int groups = g16 ? 2 : 1, quads = 8 / groups;
    const uint8_t *rec = t->rec + (size_t)p * KV_REC_BYTES + 32 * h;
    float *carry = t->acc + (size_t)row * 32 + 16 * p + 8 * h;
    float32x4_t acc[T][2];
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++)
            acc[r][i] = t->first || (uint32_t)r >= rows ? vdupq_n_f32(0) : vld1q_f32(carry + 32 * r + 4 * i);
    for (uint32_t b = 0; b < t->nb; b++, rec += 2 * KV_REC_BYTES, act += KV_ACT_BYTES(T)) {
        const float32x4_t d0 = f32x4(act + KV_ACT_D(T)), d1 = f32x4(act + KV_ACT_D(T) + 16);
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            int32x4_t sum[T][2];
            KV_UNROLL
            for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vdupq_n_s32(0);
            KV_UNROLL
            for (int j = quads * g; j < quads * (g + 1); j++) {
                const int8x16_t a0 = vreinterpretq_s8_u8(vld1q_u8(act + 4 * T * j));
                const int8x16_t a1 = R > 4 ? vreinterpretq_s8_u8(vld1q_u8(act + 4 * T * j + 16)) : a0;
                KV_UNROLL
                for (int i = 0; i < 2; i++) {
                    const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(rec + 64 * j + 16 * i));
                    KV_UNROLL
                    for (int r = 0; r < R; r++) sum[r][i] = dot(sum[r][i], w, r < 4 ? a0 : a1, r & 3);
                }
            }
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            KV_UNROLL
            for (int i = 0; i < 2; i++) {
                const float32x4_t s = f32x4(rec + KV_REC_S + 64 * g + 16 * i);
                KV_UNROLL
                for (int r = 0; r < R; r++)
                    acc[r][i] = vfmaq_f32(acc[r][i], vcvtq_f32_s32(sum[r][i]), mul_lane(s, r < 4 ? d0 : d1, r & 3));
            }
            if (!min) continue;
            const float32x4_t e0 = f32x4(dsum), e1 = R > 4 ? f32x4(dsum + 16) : e0;
            KV_UNROLL
            for (int i = 0; i < 2; i++) {
                const float32x4_t m = f32x4(rec + KV_REC_M + 64 * g + 16 * i);
                KV_UNROLL
                for (int r = 0; r < R; r++) acc[r][i] = fma_lane(acc[r][i], m, r < 4 ? e0 : e1, r & 3);
            }
        }
    }
    KV_UNROLL
    for (int r = 0; r < R; r++) {
        if ((uint32_t)r >= rows) continue;
        if (t->last) {
            finish(t->out, t->panel + (uint32_t)p, 8 * (uint32_t)h, t->row0 + row + (uint32_t)r, acc[r], 2);
        } else {
            vst1q_f32(carry + 32 * r, acc[r][0]);
            vst1q_f32(carry + 32 * r + 4, acc[r][1]);
        }
    }
}

/* Types differ only in their record's groups and minima, so three bodies serve all. */
KV_INLINE void tile_kind(const kv_mm_tile *t, const bool min, const bool g16) {
    for (int p = 0; p < 2 && kv_mm_lanes(t->out->w, t->panel + (uint32_t)p); p++)
        for (int h = 0; h < 2; h++)
            for (uint32_t r = 0; r < t->rows; r += KV_TILE_ROWS) {
                const uint8_t *act = t->act + r / KV_TILE_ROWS * t->act_stride;
                uint32_t n = t->rows - r;
                if (n > 4)
                    half_body(min, g16, t, act, r, p, h, 6, n < 6 ? n : 6);
                else if (n > 2)
                    half_body(min, g16, t, act, r, p, h, 4, n);
                else
                    half_body(min, g16, t, act, r, p, h, 2, n);
            }
}

static void tile(const kv_mm_tile *t) {
    if (t->min && t->g16)
        tile_kind(t, true, true);
    else if (t->min)
        tile_kind(t, true, false);
    else if (t->g16)
        tile_kind(t, false, true);
    else
        tile_kind(t, false, false);
}

/* ---- f32 */

KV_INLINE float32x4_t dense4(const uint32_t type, const uint8_t *panel, size_t i) {
    if (type == KV_TYPE_F32) return f32x4(panel + 4 * i);
    if (type == KV_TYPE_F16) return f16x4(panel + 2 * i);
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(panel + 2 * i)), 16));
}

/* w[16 outputs] = s code (+ m) of 16 signed codes. */
KV_INLINE void codes_f32(int8x16_t q, const uint8_t *rec, bool min, float *y) {
    const int16x8_t h[2] = {vmovl_s8(vget_low_s8(q)), vmovl_s8(vget_high_s8(q))};
    for (int v = 0; v < 4; v++) {
        int32x4_t c = vmovl_s16((v & 1) ? vget_high_s16(h[v >> 1]) : vget_low_s16(h[v >> 1]));
        float32x4_t x = vmulq_f32(f32x4(rec + KV_REC_S + 16 * v), vcvtq_f32_s32(c));
        vst1q_f32(y + 4 * v, min ? vaddq_f32(x, f32x4(rec + KV_REC_M + 16 * v)) : x);
    }
}

static void unpack_f32(const kv_weight *w, uint32_t panel, uint32_t k0, uint32_t nk, float *y) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    if (w->code == KV_CODE_DENSE) {
        for (uint32_t k = 0; k < nk; k++)
            for (uint32_t v = 0; v < 4; v++)
                vst1q_f32(y + 32 * k + 4 * v, dense4(w->type, p, (size_t)(k0 + k) * KV_PANEL + 4 * v));
        return;
    }
    const bool min = kv_scale_has_min(w->scale), g16 = kv_scale_is_g16(w->scale);
    for (uint32_t k = 0; k < nk; k += 32) {
        _Alignas(64) uint8_t rec[KV_REC_BYTES] = {0};
        unpack(w, panel, (k0 + k) / 32, 1, rec, 0);
        for (uint32_t j = 0; j < 8; j++, y += 128) {
            const int8x16x4_t q = vld4q_s8((const int8_t *)rec + 64 * j); /* [4 of k][16 outputs] */
            for (int i = 0; i < 4; i++) codes_f32(q.val[i], rec + (g16 ? j / 4 * 64 : 0), min, y + 32 * i);
        }
    }
}

/* Panel p of the pair (four vectors) x R rows: 24 accumulators of six rows, four vectors of weights. */
KV_INLINE void f32_body(const kv_mm_tile *t, uint32_t row, int p, const int R) {
    float32x4_t acc[KV_TILE_ROWS][4];
    float *carry = t->acc + (size_t)row * 32 + 16 * p;
    const float *w = (const float *)(const void *)t->rec + 16 * p, *x = t->x + row * t->x_stride;
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 4; v++) acc[r][v] = t->first ? vdupq_n_f32(0) : vld1q_f32(carry + 32 * r + 4 * v);
    for (size_t k = 0; k < t->nb; k++) {
        float32x4_t wv[4];
        KV_UNROLL
        for (int v = 0; v < 4; v++) wv[v] = vld1q_f32(w + 32 * k + 4 * v);
        KV_UNROLL
        for (int r = 0; r < R; r++)
            for (int v = 0; v < 4; v++) acc[r][v] = vfmaq_n_f32(acc[r][v], wv[v], x[(size_t)r * t->x_stride + k]);
    }
    KV_UNROLL
    for (int r = 0; r < R; r++) {
        if (t->last)
            finish(t->out, t->panel + (uint32_t)p, 0, t->row0 + row + (uint32_t)r, acc[r], 4);
        else
            for (int v = 0; v < 4; v++) vst1q_f32(carry + 32 * r + 4 * v, acc[r][v]);
    }
}

static void tile_f32(const kv_mm_tile *t) {
    for (int p = 0; p < 2 && kv_mm_lanes(t->out->w, t->panel + (uint32_t)p); p++) {
        uint32_t r = 0;
        for (; r + 6 <= t->rows; r += 6) f32_body(t, r, p, 6);
        for (; r + 3 <= t->rows; r += 3) f32_body(t, r, p, 3);
        for (; r < t->rows; r++) f32_body(t, r, p, 1);
    }
}

/* P panels side by side: each output lane is one chain of FMAs. */
KV_INLINE void gemv_f32_body(const uint32_t type, const int P, const kv_matmul_out *out, uint32_t panel,
                             const float *x) {
    const kv_weight *w = out->w;
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    float32x4_t acc[2][4];
    KV_UNROLL
    for (int i = 0; i < P; i++)
        for (int v = 0; v < 4; v++) acc[i][v] = vdupq_n_f32(0);
    for (size_t k = 0; k < w->k; k++)
        KV_UNROLL
        for (int i = 0; i < P; i++)
            for (size_t v = 0; v < 4; v++)
                acc[i][v] =
                    vfmaq_n_f32(acc[i][v], dense4(type, p + (size_t)i * w->panel_bytes, k * KV_PANEL + 4 * v), x[k]);
    for (int i = 0; i < P; i++) finish(out, panel + (uint32_t)i, 0, 0, acc[i], 4);
}

KV_INLINE void gemv_f32_type(const uint32_t type, const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    for (; p0 + 2 <= p1; p0 += 2) gemv_f32_body(type, 2, out, p0, x);
    if (p0 < p1) gemv_f32_body(type, 1, out, p0, x);
}

static void gemv_f32(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    switch (out->w->type) {
    case KV_TYPE_F32:
        gemv_f32_type(KV_TYPE_F32, out, p0, p1, x);
        break;
    case KV_TYPE_F16:
        gemv_f32_type(KV_TYPE_F16, out, p0, p1, x);
        break;
    default:
        gemv_f32_type(KV_TYPE_BF16, out, p0, p1, x);
        break;
    }
}

const struct kv_matmul_kernels kv_matmul_neon = {"neon", 4,        quantize, NULL, unpack, unpack_f32,
                                                 tile,   tile_f32, kv_matmul_stream_neon, gemv_f32};
#endif
typedef int kv_matmul_neon_unit; /* a translation unit is never empty */
