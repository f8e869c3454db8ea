/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode kernels for AVX-512 with VNNI: a few rows times panels streamed from memory.
 * Owns: gemv of level 2. Must not know: threads, unpacked records.
 */
#if defined(__AVX512VNNI__)
#include "backend/cpu/matmul_avx512.h"

/* Rows a body takes at once are twelve at most: 12 int32 and 12 f32 accumulators, as in matmul_avx512.c. Rows share the
 * unpacking of a block; two are one row of 16-bit activations. Each body is compiled for each type. */
enum { MOST_ROWS = 2 * KV_TILE_ROWS };

/* ---- decode: few rows, panels streamed from the packed form, codes only ever in registers */

/* Row r's four bytes of a block's field of T: rows past a tile are the next tile's, `tile` bytes on. */
KV_INLINE const uint8_t *of_row(const uint8_t *act, const size_t tile, const uint32_t T, const int r) {
    return (uint32_t)r < T ? act + 4 * r : act + tile + 4 * ((uint32_t)r - T);
}

/* One panel x R rows of one or two tiles of T; the first `rows` are stored. */
KV_INLINE void stream_body(const int code, const int scale, const int zshift, const uint32_t T, const int R,
                           const kv_matmul_out *out, uint32_t panel, const uint8_t *act, size_t tile, uint32_t row0,
                           uint32_t rows) {
    const bool g16 = kv_scale_is_g16(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups;
    const uint32_t nb = out->w->nb;
    const kv_planes p = kv_planes_of(out->w, panel);
    const uint8_t *lo = p.lo, *hi = p.hi, *ahead = p.lo + PREFETCH_AHEAD;
    __m512 acc[MOST_ROWS];
    KV_UNROLL
    for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < nb; b++, act += KV_ACT_BYTES(T), lo += kv_code_lo_bytes(code),
                  hi += kv_code_hi_bytes(code), ahead += kv_block_bytes(code, scale)) {
        prefetch_block(code, scale, ahead);
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            const uint8_t *nsum = act + (g16 ? KV_ACT_NSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            __m512i sum[MOST_ROWS];
            KV_UNROLL
            for (int r = 0; r < R; r++)
                sum[r] = zshift >= 0 ? _mm512_slli_epi32(bcast32(of_row(nsum, tile, T, r)), zshift >= 0 ? zshift : 0)
                                     : _mm512_setzero_si512();
            KV_UNROLL
            for (int j = 0; j < quads; j++) {
                const int q = quads * g + j;
                __m512i w = quad(code, lo, hi, q);
                KV_UNROLL
                for (int r = 0; r < R; r++)
                    sum[r] = _mm512_dpbusd_epi32(sum[r], w, bcast32(of_row(act + 4 * (int)T * q, tile, T, r)));
            }
            __m512 s, m;
            scales(scale, &p, b, g, &s, &m);
            KV_UNROLL
            for (int r = 0; r < R; r++) {
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]),
                                         _mm512_mul_ps(s, bcastf(of_row(act + KV_ACT_D(T), tile, T, r))), acc[r]);
                if (kv_scale_has_min(scale)) acc[r] = _mm512_fmadd_ps(m, bcastf(of_row(dsum, tile, T, r)), acc[r]);
            }
        }
    }
    const sink o = sink_of(out, panel);
    if (R > 1 && out->wide) {
        KV_UNROLL
        for (int r = 0; r + 1 < R; r += 2)
            if ((uint32_t)r < rows) finish_wide(&o, (row0 + (uint32_t)r) / 2, acc[r], acc[r + 1]);
        return;
    }
    KV_UNROLL
    for (int r = 0; r < R; r++)
        if ((uint32_t)r < rows) finish(&o, row0 + (uint32_t)r, acc[r]);
}

/* Rows take the panel a few at a time, from the second time on out of L1. */
KV_INLINE void stream_type(const int code, const int scale, const int zshift, const kv_matmul_out *out, uint32_t p0,
                           uint32_t p1, const uint8_t *act, uint32_t rows) {
    enum { T = KV_TILE_ROWS };
    const size_t tile = (size_t)out->w->nb * KV_ACT_BYTES(T);
    for (uint32_t panel = p0; panel < p1; panel++) {
        if (rows == 1) {
            stream_body(code, scale, zshift, 1, 1, out, panel, act, 0, 0, 1);
            continue;
        }
        for (uint32_t r = 0; r < rows; r += MOST_ROWS) {
            uint32_t n = rows - r < MOST_ROWS ? rows - r : MOST_ROWS;
            const uint8_t *a = act + r / T * tile;
#define BODY(R)                                                                                                        \
    if (n <= R) {                                                                                                      \
        stream_body(code, scale, zshift, T, R, out, panel, a, tile, r, n);                                             \
        continue;                                                                                                      \
    }
            BODY(2)
            BODY(4)
            BODY(6)
            BODY(8)
            BODY(12)
#undef BODY
        }
    }
}

#define X(TY, C, S, Z)                                                                                                 \
    static void gemv_##TY(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {     \
        stream_type(C, S, Z, out, p0, p1, act, rows);                                                                  \
    }
KV_PACK_TYPES(X)
#undef X

void kv_matmul_stream_avx512(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
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
typedef int kv_matmul_stream_avx512_unit; /* a translation unit is never empty */
