/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels for AVX-512 with VNNI: vpdpbusd on u8 codes and s8 activations broadcast four at a time.
 * Owns: level 2. Must not know: threads. Bodies are inlined with constant kinds, so each type and row count has its own loop.
 */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#include <string.h>

#include "backend/cpu/matmul.h"

/* Bytes ahead of the block being read. Measured on Zen 5, Q4_1 from memory: none 18-24 GB/s, 4 KiB 25-34, 8 KiB 47-50, 12 KiB 46-56, 16 KiB
 * 51-62, 32 KiB uneven. Panels follow each other, so past a panel's end lies the next one. */
#define PREFETCH_AHEAD 12288

KV_INLINE __m512i bcast32(const void *p) { int32_t v; memcpy(&v, p, 4); return _mm512_set1_epi32(v); }
KV_INLINE __m512 bcastf(const void *p) { float v; memcpy(&v, p, 4); return _mm512_set1_ps(v); }
KV_INLINE __m512 f16x16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
KV_INLINE __m512 i8x16(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p))); }
KV_INLINE __m512 u8x16(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p))); }

/* ---- activations */

static void quantize(const float *x, uint32_t k, uint32_t T, uint32_t r, uint8_t *act) {
    const __m512i abs_mask = _mm512_set1_epi32(0x7fffffff);
    for (uint32_t b = 0; b < k / 32; b++, act += KV_ACT_BYTES(T), x += 32) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        __m512i a = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), abs_mask), _mm512_and_si512(_mm512_castps_si512(x1), abs_mask));
        uint32_t top = _mm512_reduce_max_epu32(a);
        float amax, d = 0, id = 0;
        memcpy(&amax, &top, 4);
        if (top >= 0x7f800000u) {
            d = __builtin_nanf("");
            x0 = x1 = _mm512_setzero_ps();
        } else if (amax > KV_ACT_TINY) {
            d = amax / 127.0f;
            id = 127.0f / amax;
        }
        __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, _mm512_set1_ps(id))), q1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, _mm512_set1_ps(id)));
        int32_t s0 = _mm512_reduce_add_epi32(q0), s1 = _mm512_reduce_add_epi32(q1), all = s0 + s1;
        _Alignas(32) uint8_t q[32];
        _mm_store_si128((void *)q, _mm512_cvtepi32_epi8(q0));
        _mm_store_si128((void *)(q + 16), _mm512_cvtepi32_epi8(q1));
        for (uint32_t j = 0; j < 8; j++) memcpy(act + 4 * T * j + 4 * r, q + 4 * j, 4);
        float f[4] = {d, d * (float)all, d * (float)s0, d * (float)s1};
        int32_t n[3] = {-all, -s0, -s1};
        memcpy(act + KV_ACT_D(T) + 4 * r, &f[0], 4);
        memcpy(act + KV_ACT_DSUM(T) + 4 * r, &f[1], 4);
        memcpy(act + KV_ACT_NSUM(T) + 4 * r, &n[0], 4);
        for (uint32_t g = 0; g < 2; g++) {
            memcpy(act + KV_ACT_DSUM16(T) + 4 * (g * T + r), &f[2 + g], 4);
            memcpy(act + KV_ACT_NSUM16(T) + 4 * (g * T + r), &n[1 + g], 4);
        }
    }
}

/* ---- codes and scales of one block, constant kinds */

typedef struct planes { const uint8_t *lo, *hi, *d, *m, *sc, *scm; } planes;

KV_INLINE planes planes_of(const kv_weight *w, uint32_t panel) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    return (planes){p, p + w->off_hi, p + w->off_d, p + w->off_m, p + w->off_sc, p + w->off_scm};
}

/* Bytes of a panel a block takes, scales included. */
KV_INLINE uint32_t block_bytes(const int code, const int scale) {
    const uint32_t sc[] = {0, 32, 64, 20, 40, 36, 40};
    return kv_code_lo_bytes(code) + kv_code_hi_bytes(code) + sc[scale];
}

/* Asks for the lines of one block further on in the one linear stream of panels: the hardware follows each plane only inside a panel. */
KV_INLINE void prefetch_block(const int code, const int scale, const uint8_t *at) {
    KV_UNROLL
    for (uint32_t i = 0; i < 576; i += 64)
        if (i < block_bytes(code, scale)) _mm_prefetch((const char *)at + i, _MM_HINT_T0);
}

/* Quad j of the block at lo, hi: 64 unsigned codes. */
KV_INLINE __m512i quad(const int code, const uint8_t *lo, const uint8_t *hi, const int j) {
    const __m512i m4 = _mm512_set1_epi8(15);
    if (code == KV_CODE_8) return _mm512_load_si512(lo + 64 * j);
    if (code == KV_CODE_2 || code == KV_CODE_3) {
        __m512i q = _mm512_load_si512(lo + 64 * (j >> 2));
        q = _mm512_and_si512(_mm512_srli_epi16(q, 2 * (j & 3)), _mm512_set1_epi8(3));
        if (code == KV_CODE_2) return q;
        __m512i h = _mm512_load_si512(hi);
        h = j > 2 ? _mm512_srli_epi16(h, j > 2 ? j - 2 : 0) : _mm512_slli_epi16(h, j > 2 ? 0 : 2 - j);
        return _mm512_ternarylogic_epi32(h, _mm512_set1_epi8(4), q, 0xea); /* (h & 4) | q */
    }
    __m512i q = _mm512_load_si512(lo + 64 * (j >> 1));
    q = _mm512_and_si512((j & 1) ? _mm512_srli_epi16(q, 4) : q, m4);
    if (code == KV_CODE_5) {
        __m512i h = _mm512_load_si512(hi);
        h = j > 4 ? _mm512_srli_epi16(h, j > 4 ? j - 4 : 0) : _mm512_slli_epi16(h, j > 4 ? 0 : 4 - j);
        return _mm512_ternarylogic_epi32(h, _mm512_set1_epi8(16), q, 0xea);
    }
    if (code == KV_CODE_6) {
        __m512i h = _mm512_load_si512(hi + 64 * (j >> 2));
        const int s = 2 * (j & 3);
        h = s > 4 ? _mm512_srli_epi16(h, s > 4 ? s - 4 : 0) : _mm512_slli_epi16(h, s > 4 ? 0 : 4 - s);
        return _mm512_ternarylogic_epi32(h, _mm512_set1_epi8(48), q, 0xea);
    }
    if (code == KV_CODE_4T) return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)kv_pack_iq4)), q);
    return q;
}

/* s and m of group g of block b. */
KV_INLINE void scales(const int scale, const planes *p, uint32_t b, const int g, __m512 *s, __m512 *m) {
    size_t at = (size_t)(kv_scale_is_k(scale) ? b >> 3 : b) * 32, group = (size_t)(kv_scale_is_g16(scale) ? 2 * b + (uint32_t)g : b) * 16;
    __m512 d = f16x16(p->d + at), dm = kv_scale_has_min(scale) ? f16x16(p->m + at) : _mm512_setzero_ps();
    const __m512 neg = _mm512_set1_ps(-0.0f);
    *s = d;
    *m = dm;
    if (scale == KV_SC_K || scale == KV_SC_K16) *s = _mm512_mul_ps(d, i8x16(p->sc + group));
    if (scale == KV_SC_KM) {
        *s = _mm512_mul_ps(d, u8x16(p->sc + group));
        *m = _mm512_xor_ps(_mm512_mul_ps(dm, u8x16(p->scm + group)), neg);
    }
    if (scale == KV_SC_K16M) {
        __m512i sc = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p->sc + group)));
        *s = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_and_si512(sc, _mm512_set1_epi32(15))));
        *m = _mm512_xor_ps(_mm512_mul_ps(dm, _mm512_cvtepi32_ps(_mm512_srli_epi32(sc, 4))), neg);
    }
}

KV_INLINE void unpack_body(const int code, const int scale, const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    const planes p = planes_of(w, panel);
    const int groups = kv_scale_is_g16(scale) ? 2 : 1;
    const uint8_t *ahead = p.lo + (size_t)b0 * block_bytes(code, scale) + PREFETCH_AHEAD;
    for (uint32_t b = b0; b < b0 + nb; b++, rec += stride, ahead += block_bytes(code, scale)) {
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
#define X(T, C, S, Z) case KV_TYPE_##T: unpack_body(C, S, w, panel, b0, nb, rec, stride); break;
        KV_PACK_TYPES(X)
#undef X
    default: break;
    }
}

/* ---- writing results */

typedef struct sink { float *y; const float *bias; bool accumulate; __mmask16 mask; } sink;

KV_INLINE sink sink_of(const kv_matmul_out *out, uint32_t panel) {
    uint32_t lanes = kv_mm_lanes(out->w, panel);
    return (sink){out->y + (size_t)panel * KV_PANEL, out->bias ? out->bias + (size_t)panel * KV_PANEL : NULL, out->accumulate, (__mmask16)((1u << lanes) - 1)};
}

KV_INLINE void finish(const sink *s, size_t offset, __m512 acc) {
    if (s->bias) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(s->mask, s->bias));
    if (s->accumulate) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(s->mask, s->y + offset));
    _mm512_mask_storeu_ps(s->y + offset, s->mask, acc);
}

/* ---- prefill: two panels x R rows */

KV_INLINE void tile_body(const kv_mm_tile *t, const uint8_t *act, uint32_t row, const int R, const bool MIN, const bool G16) {
    enum { T = KV_TILE_ROWS };
    const int groups = G16 ? 2 : 1, quads = 8 / groups;
    __m512 acc[2][T];
    float *carry = t->acc + (size_t)row * 32;
    const uint8_t *rec = t->rec;
    const __m128i shift = _mm_cvtsi32_si128(t->zshift);
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int p = 0; p < 2; p++) acc[p][r] = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(carry + 32 * r + 16 * p);
    for (uint32_t b = 0; b < t->nb; b++, rec += 2 * KV_REC_BYTES, act += KV_ACT_BYTES(T)) {
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            __m512i sum[2][T];
            const uint8_t *nsum = act + (G16 ? KV_ACT_NSUM16(T) + 4 * T * g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (G16 ? KV_ACT_DSUM16(T) + 4 * T * g : KV_ACT_DSUM(T));
            KV_UNROLL
            for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = MIN ? _mm512_setzero_si512() : _mm512_sll_epi32(bcast32(nsum + 4 * r), shift);
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
            __m512 s0 = _mm512_load_ps(rec + KV_REC_S + 64 * g), s1 = _mm512_load_ps(rec + KV_REC_BYTES + KV_REC_S + 64 * g);
            KV_UNROLL
            for (int r = 0; r < R; r++) {
                __m512 d = bcastf(act + KV_ACT_D(T) + 4 * r);
                acc[0][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0][r]), _mm512_mul_ps(s0, d), acc[0][r]);
                acc[1][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1][r]), _mm512_mul_ps(s1, d), acc[1][r]);
            }
            if (!MIN) continue;
            __m512 m0 = _mm512_load_ps(rec + KV_REC_M + 64 * g), m1 = _mm512_load_ps(rec + KV_REC_BYTES + KV_REC_M + 64 * g);
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
    KV_UNROLL
    for (int r = 0; r < R; r++) {
        size_t at = (size_t)(t->row0 + row + (uint32_t)r) * t->out->y_stride;
        finish(&o0, at, acc[0][r]);
        if (o1.mask) finish(&o1, at, acc[1][r]);
    }
}

#define TILE_ROWS(NAME, BODY, ...)                                                                                     \
    static void NAME##_rows(const kv_mm_tile *t, const uint8_t *act, uint32_t row, uint32_t n) {                       \
        switch (n) {                                                                                                   \
        case 1: BODY(t, act, row, 1, __VA_ARGS__); break;                                                              \
        case 2: BODY(t, act, row, 2, __VA_ARGS__); break;                                                              \
        case 3: BODY(t, act, row, 3, __VA_ARGS__); break;                                                              \
        case 4: BODY(t, act, row, 4, __VA_ARGS__); break;                                                              \
        case 5: BODY(t, act, row, 5, __VA_ARGS__); break;                                                              \
        default: BODY(t, act, row, 6, __VA_ARGS__);                                                                    \
        }                                                                                                              \
    }
TILE_ROWS(sym, tile_body, false, false)
TILE_ROWS(sym16, tile_body, false, true)
TILE_ROWS(min, tile_body, true, false)
TILE_ROWS(min16, tile_body, true, true)

static void tile(const kv_mm_tile *t) {
    void (*rows)(const kv_mm_tile *, const uint8_t *, uint32_t, uint32_t) = t->min ? (t->g16 ? min16_rows : min_rows) : t->g16 ? sym16_rows : sym_rows;
    const uint8_t *act = t->act;
    for (uint32_t r = 0; r < t->rows; r += KV_TILE_ROWS, act += t->act_stride) rows(t, act, r, t->rows - r < KV_TILE_ROWS ? t->rows - r : KV_TILE_ROWS);
}

/* ---- decode: few rows, panels streamed from the packed form, codes only ever in registers */

/* One panel x R rows of a tile of T; the first `rows` are stored. */
KV_INLINE void stream_body(const int code, const int scale, const int zshift, const uint32_t T, const int R, const kv_matmul_out *out, uint32_t panel, const uint8_t *act, uint32_t row0, uint32_t rows) {
    const bool g16 = kv_scale_is_g16(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups;
    const uint32_t nb = out->w->nb;
    const planes p = planes_of(out->w, panel);
    const uint8_t *lo = p.lo, *hi = p.hi, *ahead = p.lo + PREFETCH_AHEAD;
    __m512 acc[KV_TILE_ROWS];
    KV_UNROLL
    for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < nb; b++, act += KV_ACT_BYTES(T), lo += kv_code_lo_bytes(code), hi += kv_code_hi_bytes(code), ahead += block_bytes(code, scale)) {
        prefetch_block(code, scale, ahead);
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            const uint8_t *nsum = act + (g16 ? KV_ACT_NSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            __m512i sum[KV_TILE_ROWS];
            KV_UNROLL
            for (int r = 0; r < R; r++) sum[r] = zshift >= 0 ? _mm512_slli_epi32(bcast32(nsum + 4 * r), zshift >= 0 ? zshift : 0) : _mm512_setzero_si512();
            KV_UNROLL
            for (int j = 0; j < quads; j++) {
                const int q = quads * g + j;
                __m512i w = quad(code, lo, hi, q);
                KV_UNROLL
                for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], w, bcast32(act + 4 * (int)T * q + 4 * r));
            }
            __m512 s, m;
            scales(scale, &p, b, g, &s, &m);
            KV_UNROLL
            for (int r = 0; r < R; r++) {
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(s, bcastf(act + KV_ACT_D(T) + 4 * r)), acc[r]);
                if (kv_scale_has_min(scale)) acc[r] = _mm512_fmadd_ps(m, bcastf(dsum + 4 * r), acc[r]);
            }
        }
    }
    const sink o = sink_of(out, panel);
    KV_UNROLL
    for (int r = 0; r < R; r++)
        if ((uint32_t)r < rows) finish(&o, (row0 + (uint32_t)r) * out->y_stride, acc[r]);
}

/* Tiles of six rows take the panel one after the other, from the second on out of L1. */
KV_INLINE void stream_type(const int code, const int scale, const int zshift, const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    enum { T = KV_TILE_ROWS };
    size_t tile = (size_t)out->w->nb * KV_ACT_BYTES(T);
    for (uint32_t panel = p0; panel < p1; panel++) {
        if (rows == 1) {
            stream_body(code, scale, zshift, 1, 1, out, panel, act, 0, 1);
            continue;
        }
        for (uint32_t r = 0; r < rows; r += T) {
            uint32_t n = rows - r < T ? rows - r : T;
            const uint8_t *a = act + r / T * tile;
            if (n <= 2) stream_body(code, scale, zshift, T, 2, out, panel, a, r, n);
            else if (n <= 4) stream_body(code, scale, zshift, T, 4, out, panel, a, r, n);
            else stream_body(code, scale, zshift, T, 6, out, panel, a, r, n);
        }
    }
}

#define X(TY, C, S, Z)                                                                                                 \
    static void gemv_##TY(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) { stream_type(C, S, Z, out, p0, p1, act, rows); }
KV_PACK_TYPES(X)
#undef X

static void gemv(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    switch (out->w->type) {
#define X(T, C, S, Z) case KV_TYPE_##T: gemv_##T(out, p0, p1, act, rows); break;
        KV_PACK_TYPES(X)
#undef X
    default: break;
    }
}

/* ---- f32 */

KV_INLINE __m512 dense16(const uint32_t type, const uint8_t *panel, size_t k) {
    if (type == KV_TYPE_F32) return _mm512_load_ps(panel + 64 * k);
    if (type == KV_TYPE_F16) return f16x16(panel + 32 * k);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(panel + 32 * k))), 16));
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
            __m512 s = _mm512_load_ps(rec + KV_REC_S + 64 * g), m = min ? _mm512_load_ps(rec + KV_REC_M + 64 * g) : _mm512_setzero_ps();
            __m512i q = _mm512_load_si512(rec + 64 * j);
            for (uint32_t i = 0; i < 4; i++, q = _mm512_srli_epi32(q, 8), y += 32) {
                __m512 v = _mm512_mul_ps(s, _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_and_si512(q, byte), zero)));
                _mm512_storeu_ps(y, min ? _mm512_add_ps(v, m) : v);
            }
        }
    }
}

KV_INLINE void f32_body(const kv_mm_tile *t, const uint8_t *unused, uint32_t row, const int R, const int dummy) {
    enum { T = KV_TILE_ROWS };
    __m512 acc[2][T];
    float *carry = t->acc + (size_t)row * 32;
    const float *w = (const float *)(const void *)t->rec, *x = t->x + row * t->x_stride;
    KV_UNROLL
    for (int r = 0; r < R; r++)
        for (int p = 0; p < 2; p++) acc[p][r] = t->first ? _mm512_setzero_ps() : _mm512_loadu_ps(carry + 32 * r + 16 * p);
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
        size_t at = (size_t)(t->row0 + row + (uint32_t)r) * t->out->y_stride;
        finish(&o0, at, acc[0][r]);
        if (o1.mask) finish(&o1, at, acc[1][r]);
    }
}
TILE_ROWS(f32, f32_body, 0)

static void tile_f32(const kv_mm_tile *t) {
    for (uint32_t r = 0; r < t->rows; r += KV_TILE_ROWS) f32_rows(t, NULL, r, t->rows - r < KV_TILE_ROWS ? t->rows - r : KV_TILE_ROWS);
}

/* P panels side by side: an output lane is one chain of FMAs over k, so several panels hide its latency. */
KV_INLINE void gemv_f32_body(const uint32_t type, const int P, const kv_matmul_out *out, uint32_t panel, const float *x) {
    const kv_weight *w = out->w;
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    __m512 acc[4];
    KV_UNROLL
    for (int i = 0; i < P; i++) acc[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < w->k; k++) {
        __m512 a = _mm512_set1_ps(x[k]);
        KV_UNROLL
        for (int i = 0; i < P; i++) acc[i] = _mm512_fmadd_ps(a, dense16(type, p + (size_t)i * w->panel_bytes, k), acc[i]);
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
    case KV_TYPE_F32: gemv_f32_type(KV_TYPE_F32, out, p0, p1, x); break;
    case KV_TYPE_F16: gemv_f32_type(KV_TYPE_F16, out, p0, p1, x); break;
    default: gemv_f32_type(KV_TYPE_BF16, out, p0, p1, x); break;
    }
}

/* gemv up to two tiles of rows: beyond, unpacking once for all rows wins. */
const struct kv_matmul_kernels kv_matmul_avx512 = {"avx512", 2 * KV_TILE_ROWS, quantize, unpack, unpack_f32, tile, tile_f32, gemv, gemv_f32};
#endif
typedef int kv_matmul_avx512_unit; /* a translation unit is never empty */
