/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels for AVX-512 with VNNI: vpdpbusd on u8 codes and s8 activations broadcast four at a time.
 * Owns: level 2 but for activations (matmul_quantize_avx512.c) and decode (matmul_stream_avx512.c). Must not know: threads.
 */
#if defined(__AVX512VNNI__)
#include "backend/cpu/matmul_avx512.h"

KV_INLINE void unpack_body(const int code, const int scale, const kv_weight *w, uint32_t panel, uint32_t b0,
                           uint32_t nb, uint8_t *rec, size_t stride) {
    const kv_planes p = kv_planes_of(w, panel);
    const int groups = kv_scale_is_g16(scale) ? 2 : 1;
    const uint8_t *ahead = p.lo + (size_t)b0 * kv_block_bytes(code, scale) + PREFETCH_AHEAD;
    for (uint32_t b = b0; b < b0 + nb; b++, rec += stride, ahead += kv_block_bytes(code, scale)) {
        prefetch_block(code, scale, ahead);
        const uint8_t *lo = p.lo + (size_t)b * kv_code_lo_bytes(code), *hi = p.hi + (size_t)b * kv_code_hi_bytes(code);
        KV_UNROLL
        for (int j = 0; j < 8; j++) _mm512_store_si512(rec + 64 * j, quad(code, lo, hi, j));
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            __m512 s, m;
            scales(scale, &p, b, g, &s, &m);
            _mm512_store_ps(rec + KV_REC_S + 64 * g, s);
            if (kv_scale_has_min(scale)) _mm512_store_ps(rec + KV_REC_M + 64 * g, m);
        }
    }
}

static void unpack(const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    switch (w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        unpack_body(C, S, w, panel, b0, nb, rec, stride);                                                              \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}

/* ---- prefill: two panels x R rows */

KV_INLINE void tile_body(const kv_mm_tile *t, const uint8_t *act, uint32_t row, const int R, const bool MIN,
                         const bool G16) {
    enum { T = KV_TILE_ROWS };
    const int groups = G16 ? 2 : 1, quads = 8 / groups;
    __m512 acc[2][T];
    float *carry = t->acc + (size_t)row * 32;
    const uint8_t *rec = t->rec;
    const __m128i shift = _mm_cvtsi32_si128(t->zshift);
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int p = 0; p < 2; p++)
            acc[p][r] = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(carry + 32 * r + 16 * p);
    for (uint32_t b = 0; b < t->nb; b++, rec += 2 * KV_REC_BYTES, act += KV_ACT_BYTES(T)) {
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            __m512i sum[2][T];
            const uint8_t *nsum = act + (G16 ? KV_ACT_NSUM16(T) + 4 * T * g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (G16 ? KV_ACT_DSUM16(T) + 4 * T * g : KV_ACT_DSUM(T));
            KV_UNROLL
            for (int r = 0; r < R; r++)
                sum[0][r] = sum[1][r] = MIN ? _mm512_setzero_si512() : _mm512_sll_epi32(bcast32(nsum + 4 * r), shift);
            KV_UNROLL
            for (int j = 0; j < quads; j++) {
                const int q = quads * g + j;
                __m512i w0 = _mm512_load_si512(rec + 64 * q), w1 = _mm512_load_si512(rec + KV_REC_BYTES + 64 * q);
                KV_UNROLL
                for (int r = 0; r < R; r++) {
                    __m512i a = bcast32(act + 4 * T * q + 4 * r);
                    sum[0][r] = _mm512_dpbusd_epi32(sum[0][r], w0, a);
                    sum[1][r] = _mm512_dpbusd_epi32(sum[1][r], w1, a);
                }
            }
            __m512 s0 = _mm512_load_ps(rec + KV_REC_S + 64 * g),
                   s1 = _mm512_load_ps(rec + KV_REC_BYTES + KV_REC_S + 64 * g);
            KV_UNROLL
            for (int r = 0; r < R; r++) {
                __m512 d = bcastf(act + KV_ACT_D(T) + 4 * r);
                acc[0][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0][r]), _mm512_mul_ps(s0, d), acc[0][r]);
                acc[1][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1][r]), _mm512_mul_ps(s1, d), acc[1][r]);
            }
            if (!MIN) continue;
            __m512 m0 = _mm512_load_ps(rec + KV_REC_M + 64 * g),
                   m1 = _mm512_load_ps(rec + KV_REC_BYTES + KV_REC_M + 64 * g);
            KV_UNROLL
            for (int r = 0; r < R; r++) {
                __m512 ds = bcastf(dsum + 4 * r);
                acc[0][r] = _mm512_fmadd_ps(m0, ds, acc[0][r]);
                acc[1][r] = _mm512_fmadd_ps(m1, ds, acc[1][r]);
            }
        }
    }
    if (!t->last) {
        KV_UNROLL
        for (int r = 0; r < R; r++)
            for (int p = 0; p < 2; p++) _mm512_storeu_ps(carry + 32 * r + 16 * p, acc[p][r]);
        return;
    }
    const sink o0 = sink_of(t->out, t->panel), o1 = sink_of(t->out, t->panel + 1);
    if (t->out->wide) {
        KV_UNROLL
        for (int r = 0; r < R; r += 2) {
            if (row + (uint32_t)r >= t->rows) break;
            uint32_t at = (t->row0 + row + (uint32_t)r) / 2;
            finish_wide(&o0, at, acc[0][r], acc[0][r + 1]);
            if (o1.mask) finish_wide(&o1, at, acc[1][r], acc[1][r + 1]);
        }
        return;
    }
    KV_UNROLL
    for (int r = 0; r < R; r++) {
        if (row + (uint32_t)r >= t->rows) break;
        uint32_t at = t->row0 + row + (uint32_t)r;
        finish(&o0, at, acc[0][r]);
        if (o1.mask) finish(&o1, at, acc[1][r]);
    }
}

/* A last tile of fewer rows computes 2, 4 or 6 and stores its own; the tile's memory is there. */
#define TILE_ROWS(NAME, MIN, G16)                                                                                      \
    static void NAME##_rows(const kv_mm_tile *t, const uint8_t *act, uint32_t row, uint32_t n) {                       \
        if (n <= 2)                                                                                                    \
            tile_body(t, act, row, 2, MIN, G16);                                                                       \
        else if (n <= 4)                                                                                               \
            tile_body(t, act, row, 4, MIN, G16);                                                                       \
        else                                                                                                           \
            tile_body(t, act, row, 6, MIN, G16);                                                                       \
    }
TILE_ROWS(sym, false, false)
TILE_ROWS(sym16, false, true)
TILE_ROWS(min, true, false)
TILE_ROWS(min16, true, true)

static void tile(const kv_mm_tile *t) {
    void (*rows)(const kv_mm_tile *, const uint8_t *, uint32_t, uint32_t) = t->min   ? (t->g16 ? min16_rows : min_rows)
                                                                            : t->g16 ? sym16_rows
                                                                                     : sym_rows;
    const uint8_t *act = t->act;
    for (uint32_t r = 0; r < t->rows; r += KV_TILE_ROWS, act += t->act_stride)
        rows(t, act, r, t->rows - r < KV_TILE_ROWS ? t->rows - r : KV_TILE_ROWS);
}

/* ---- f32 */

KV_INLINE __m512 dense16(const uint32_t type, const uint8_t *panel, size_t k) {
    if (type == KV_TYPE_F32) return _mm512_load_ps(panel + 64 * k);
    if (type == KV_TYPE_F16) return f16x16(panel + 32 * k);
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(panel + 32 * k))), 16));
}

static void unpack_f32(const kv_weight *w, uint32_t panel, uint32_t k0, uint32_t nk, float *y) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    if (w->code == KV_CODE_DENSE) {
        for (uint32_t k = 0; k < nk; k++) _mm512_storeu_ps(y + 32 * k, dense16(w->type, p, k0 + k));
        return;
    }
    const bool min = kv_scale_has_min(w->scale), g16 = kv_scale_is_g16(w->scale);
    const __m512i zero = _mm512_set1_epi32(w->zshift >= 0 ? 1 << w->zshift : 0), byte = _mm512_set1_epi32(255);
    for (uint32_t k = 0; k < nk; k += 32) {
        _Alignas(64) uint8_t rec[KV_REC_BYTES] = {0};
        unpack(w, panel, (k0 + k) / 32, 1, rec, 0);
        for (uint32_t j = 0; j < 8; j++) {
            uint32_t g = g16 ? j / 4 : 0;
            __m512 s = _mm512_load_ps(rec + KV_REC_S + 64 * g),
                   m = min ? _mm512_load_ps(rec + KV_REC_M + 64 * g) : _mm512_setzero_ps();
            __m512i q = _mm512_load_si512(rec + 64 * j);
            for (uint32_t i = 0; i < 4; i++, q = _mm512_srli_epi32(q, 8), y += 32) {
                __m512 v = _mm512_mul_ps(s, _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_and_si512(q, byte), zero)));
                _mm512_storeu_ps(y, min ? _mm512_add_ps(v, m) : v);
            }
        }
    }
}

KV_INLINE void f32_body(const kv_mm_tile *t, uint32_t row, const int R) {
    enum { T = KV_TILE_ROWS };
    __m512 acc[2][T];
    float *carry = t->acc + (size_t)row * 32;
    const float *w = (const float *)(const void *)t->rec, *x = t->x + row * t->x_stride;
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int p = 0; p < 2; p++)
            acc[p][r] = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(carry + 32 * r + 16 * p);
    for (uint32_t k = 0; k < t->nb; k++) {
        __m512 w0 = _mm512_load_ps(w + 32 * (size_t)k), w1 = _mm512_load_ps(w + 32 * (size_t)k + 16);
        KV_UNROLL
        for (int r = 0; r < R; r++) {
            __m512 a = _mm512_set1_ps(x[(size_t)r * t->x_stride + k]);
            acc[0][r] = _mm512_fmadd_ps(a, w0, acc[0][r]);
            acc[1][r] = _mm512_fmadd_ps(a, w1, acc[1][r]);
        }
    }
    if (!t->last) {
        KV_UNROLL
        for (int r = 0; r < R; r++)
            for (int p = 0; p < 2; p++) _mm512_storeu_ps(carry + 32 * r + 16 * p, acc[p][r]);
        return;
    }
    const sink o0 = sink_of(t->out, t->panel), o1 = sink_of(t->out, t->panel + 1);
    KV_UNROLL
    for (int r = 0; r < R; r++) {
        uint32_t at = t->row0 + row + (uint32_t)r;
        finish(&o0, at, acc[0][r]);
        if (o1.mask) finish(&o1, at, acc[1][r]);
    }
}

static void tile_f32(const kv_mm_tile *t) {
    uint32_t r = 0;
    for (; r + KV_TILE_ROWS <= t->rows; r += KV_TILE_ROWS) f32_body(t, r, KV_TILE_ROWS);
    for (; r + 2 <= t->rows; r += 2) f32_body(t, r, 2);
    if (r < t->rows) f32_body(t, r, 1);
}

/* P panels side by side: an output lane is one chain of FMAs over k, so several panels hide its latency. */
KV_INLINE void gemv_f32_body(const uint32_t type, const int P, const kv_matmul_out *out, uint32_t panel,
                             const float *x) {
    const kv_weight *w = out->w;
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    __m512 acc[4];
    KV_UNROLL
    for (int i = 0; i < P; i++) acc[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < w->k; k++) {
        __m512 a = _mm512_set1_ps(x[k]);
        KV_UNROLL
        for (int i = 0; i < P; i++)
            acc[i] = _mm512_fmadd_ps(a, dense16(type, p + (size_t)i * w->panel_bytes, k), acc[i]);
    }
    KV_UNROLL
    for (int i = 0; i < P; i++) {
        const sink o = sink_of(out, panel + (uint32_t)i);
        finish(&o, 0, acc[i]);
    }
}

KV_INLINE void gemv_f32_type(const uint32_t type, const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    for (; p0 + 4 <= p1; p0 += 4) gemv_f32_body(type, 4, out, p0, x);
    for (; p0 < p1; p0++) gemv_f32_body(type, 1, out, p0, x);
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

/* gemv up to eight tiles of rows: their activations lie in L2, the panel in L1, and unpacking it again for each tile
 * costs what writing records would. Q4_1 1536 x 576, us: 16 rows 58 against 88 unpacked, 32: 105 / 141, 48: 149 / 172,
 * 64: 204 / 214. */
const struct kv_matmul_kernels kv_matmul_avx512 = {
    "avx512", 8 * KV_TILE_ROWS, kv_matmul_quantize_avx512, kv_matmul_quantize_tile_avx512, unpack, unpack_f32, tile, tile_f32,
    kv_matmul_stream_avx512, gemv_f32};
#endif
typedef int kv_matmul_avx512_unit; /* a translation unit is never empty */
