/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode kernels for NEON with SDOT: a few rows times panels streamed from memory.
 * Owns: gemv of the level. Must not know: threads, unpacked records.
 */
#if defined(__ARM_FEATURE_DOTPROD)
#include "backend/cpu/matmul_neon.h"

/* One panel x R rows, rows 0 .. R of a tile of T; the first `rows` are stored. Sums of half a panel at a time: 16 f32
 * and 8 int32 accumulators of four rows, four vectors of codes and two of activations are 30 of 32 registers. */
KV_INLINE void stream_body(const int code, const int scale, const int zshift, const uint32_t T, const int R,
                           const kv_matmul_out *out, uint32_t panel, const uint8_t *act, uint32_t rows) {
    const bool g16 = kv_scale_is_g16(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups;
    const uint32_t nb = out->w->nb;
    const kv_planes p = kv_planes_of(out->w, panel);
    const uint8_t *lo = p.lo, *hi = p.hi, *ahead = p.lo + PREFETCH_AHEAD;
    float32x4_t acc[4][4];
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 4; v++) acc[r][v] = vdupq_n_f32(0);
    for (uint32_t b = 0; b < nb; b++, act += KV_ACT_BYTES(T), lo += kv_code_lo_bytes(code),
                  hi += kv_code_hi_bytes(code), ahead += kv_block_bytes(code, scale)) {
        prefetch_block(code, scale, ahead);
        const float32x4_t d = T == 1 ? vld1q_dup_f32((const float *)(const void *)(act + KV_ACT_D(T)))
                                     : f32x4(act + KV_ACT_D(T));
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            const uint8_t *nsum = act + (g16 ? KV_ACT_NSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            const bool shifted = zshift >= 0 && !IS_SIGNED(code), min = kv_scale_has_min(scale);
            const int32x4_t zero = shifted ? vshlq_s32(s32x4(nsum), vdupq_n_s32(zshift)) : vdupq_n_s32(0);
            KV_UNROLL
            for (int h = 0; h < 2; h++) {
                int32x4_t sum[4][2];
                KV_UNROLL
                for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = shifted ? dup_lane(zero, r) : vdupq_n_s32(0);
                KV_UNROLL
                for (int j = 0; j < quads; j++) {
                    const int q = quads * g + j;
                    const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(act + (T == 1 ? 16 * (q >> 2) : 4 * (int)T * q)));
                    KV_UNROLL
                    for (int i = 0; i < 2; i++) {
                        int8x16_t w = quad(code, lo, hi, q, 2 * h + i);
                        KV_UNROLL
                        for (int r = 0; r < R; r++) sum[r][i] = dot(sum[r][i], w, a, T == 1 ? q & 3 : r);
                    }
                }
                KV_UNROLL
                for (int i = 0; i < 2; i++) {
                    float32x4_t s, m;
                    scales(scale, &p, b, g, 2 * h + i, &s, &m);
                    KV_UNROLL
                    for (int r = 0; r < R; r++) {
                        float32x4_t *y = &acc[r][2 * h + i];
                        *y = vfmaq_f32(*y, vcvtq_f32_s32(sum[r][i]), mul_lane(s, d, r));
                        if (min) *y = fma_lane(*y, m, f32x4(dsum), r);
                    }
                }
            }
        }
    }
    KV_UNROLL
    for (int r = 0; r < R; r++)
        if ((uint32_t)r < rows) finish(out, panel, 0, (uint32_t)r, acc[r], 4);
}

KV_INLINE void stream_type(const int code, const int scale, const int zshift, const kv_matmul_out *out, uint32_t p0,
                           uint32_t p1, const uint8_t *act, uint32_t rows) {
    for (; p0 < p1; p0++) {
        if (rows == 1)
            stream_body(code, scale, zshift, 1, 1, out, p0, act, 1);
        else if (rows == 2)
            stream_body(code, scale, zshift, KV_TILE_ROWS, 2, out, p0, act, 2);
        else
            stream_body(code, scale, zshift, KV_TILE_ROWS, 4, out, p0, act, rows);
    }
}

#define X(TY, C, S, Z)                                                                                                 \
    static void gemv_##TY(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {     \
        stream_type(C, S, Z, out, p0, p1, act, rows);                                                                  \
    }
KV_PACK_TYPES(X)
#undef X

void kv_matmul_stream_neon(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    switch (out->w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        gemv_##T(out, p0, p1, act, rows);                                                                              \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}
#endif
typedef int kv_matmul_stream_neon_unit; /* a translation unit is never empty */
