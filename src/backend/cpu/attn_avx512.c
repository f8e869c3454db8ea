/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention kernels for AVX-512 (F, BW, DQ, VL, VNNI). Owns the vector operations and the integer loops over bit planes; the kernels
 * themselves are in attn_simd.h. A 64-bit plane of a tile is one mask register: codes of any width are masked additions, and vpdpbusd
 * takes 8 channels x 8 tokens at once (dword lane 8 (c >> 2) + t for K, 8 (t >> 2) + c for V); the two halves of the sum are folded last.
 */
#include "backend/cpu/attn.h"
#include "base/half.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

typedef __m512 v16;
typedef __m512i n16;
#define VOP static inline __attribute__((always_inline))
#define TILE_NV 4

VOP v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
VOP void v_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
VOP v16 v_set(float x) { return _mm512_set1_ps(x); }
VOP v16 v_pair(float a, float b) { return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(a), _mm512_set1_ps(b)); }
VOP v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
VOP v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
VOP v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
VOP v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
VOP v16 v_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
VOP v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
VOP v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
VOP v16 v_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
VOP n16 n_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)); }
VOP v16 v_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(n_u8(p)); }
VOP v16 v_scale2(v16 p, v16 t) { return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23))); }
VOP v16 v_keep_ge(v16 x, float t, v16 p) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(t), _CMP_GE_OQ), p); }
VOP v16 v_keep(v16 x, int lo, int hi, float other)
{
    uint32_t below = lo <= 0 ? 0u : lo >= 16 ? 0xffffu : (1u << lo) - 1, upto = hi <= 0 ? 0u : hi >= 16 ? 0xffffu : (1u << hi) - 1;
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)(upto & ~below), x);
}
VOP float v_first(v16 x) { return _mm512_cvtss_f32(x); }
VOP float v_hmax(v16 x)
{
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
VOP float v_hsum(v16 x)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
VOP v16 v_bits(n16 x) { return _mm512_castsi512_ps(x); }
VOP n16 n_zero(void) { return _mm512_setzero_si512(); }
VOP n16 n_set(int x) { return _mm512_set1_epi32(x); }
VOP n16 n_load(const int32_t *p) { return _mm512_loadu_si512(p); }
VOP void n_store(int32_t *p, n16 x) { _mm512_storeu_si512(p, x); }
VOP n16 n_round(v16 x) { return _mm512_cvtps_epi32(x); }
VOP v16 n_float(n16 x) { return _mm512_cvtepi32_ps(x); }
VOP n16 n_add(n16 a, n16 b) { return _mm512_add_epi32(a, b); }
VOP n16 n_sub(n16 a, n16 b) { return _mm512_sub_epi32(a, b); }
VOP n16 n_mul(n16 a, n16 b) { return _mm512_mullo_epi32(a, b); }
VOP n16 n_shl(n16 a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
VOP n16 n_shl19(n16 a) { return _mm512_slli_epi32(a, 19); }
VOP n16 n_shr7(n16 a) { return _mm512_srai_epi32(a, 7); }
VOP n16 n_low7(n16 a) { return _mm512_and_si512(a, _mm512_set1_epi32(127)); }
VOP int32_t n_hsum(n16 x) { return _mm512_reduce_add_epi32(x); }
VOP void n_bytes(int8_t *p, n16 x) { _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(x)); }

/* 16 packed codes as floats: shifted down, then looked up by their low four bits. */
VOP v16 v_codes2(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const __m512i by = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32((int)x), by), table);
}
VOP v16 v_codes4(const uint8_t *p)
{
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i by = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512i x = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)(const void *)p));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_permutexvar_epi32(at, x), by), table);
}

/* q[order[0..16)] of n channels: two-source permutes over 32 channels at a time. */
VOP v16 v_rank(const float *q, uint32_t n, const uint8_t *order)
{
    n16 at = n_u8(order), part = _mm512_srli_epi32(at, 5);
    v16 x = _mm512_permutex2var_ps(v_load(q), at, v_load(q + 16));
    for (uint32_t c = 32; c < n; c += 32)
        x = _mm512_mask_mov_ps(x, _mm512_cmpeq_epi32_mask(part, _mm512_set1_epi32((int)(c / 32))),
                               _mm512_permutex2var_ps(v_load(q + c), at, v_load(q + c + 16)));
    return x;
}

/* Groups of 8 codes as operands of vpdpbusd: the first four in dwords 0-7, the others in 8-15. wide[group][8 rows][64]. */
VOP void expand(const int8_t *codes, size_t stride, uint32_t g0, uint32_t g1, int rows, int8_t *wide)
{
    const __m512i at = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    for (uint32_t g = g0; g < g1; g++)
        for (int r = 0; r < rows; r++) {
            __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(codes + (size_t)r * stride + 8 * g));
            _mm512_store_si512(wide + (g * 8 + (uint32_t)r) * 64, _mm512_permutexvar_epi32(at, _mm512_castsi128_si512(x)));
        }
}

/* The codes of a tile from its w planes of 64 bits. */
VOP __m512i plane_codes(const uint8_t *p, const int w)
{
    __m512i v = _mm512_maskz_mov_epi8(_load_mask64((__mmask64 *)(uintptr_t)p), _mm512_set1_epi8(1));
    for (int b = 1; b < w; b++)
        v = _mm512_mask_add_epi8(v, _load_mask64((__mmask64 *)(uintptr_t)(p + 8 * b)), v, _mm512_set1_epi8((char)(1 << b)));
    return v;
}

/* Two tiles' sums, halves folded, as one store: what is loaded as a vector later must have been stored as one. */
VOP void fold_store(int32_t *y, __m512i a, __m512i b)
{
    _mm512_storeu_si512(y, _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee)));
}

VOP void plane_tiles(__m512i acc[4][8], const uint8_t *p, const int8_t *wide, const int w, const int nr, const int nt)
{
    for (int i = 0; i < nt; i++) {
        __m512i code = plane_codes(p + 8 * w * i, w);
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_dpbusd_epi32(acc[i][r], code, _mm512_load_si512(wide + 64 * r));
    }
}

/* isum[r][8 t ..] of nt token tiles from t: sums over all blocks of channels. */
VOP void k_tiles(const kv_attn_page *a, const kv_attn_work *w, uint32_t t, size_t stride, const int nr, const int nt)
{
    const kv_page_layout *L = a->layout;
    const uint8_t *p = a->data + L->k_off;
    const int8_t *wide = w->wide;
    __m512i acc[4][8];
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_setzero_si512();
    for (uint32_t b = 0; b < L->dkp / 8u; b++, wide += 512) {
        uint32_t width = kv_page_width(a->entry, b);
        switch (width) {
        case 1: plane_tiles(acc, p + 8 * t, wide, 1, nr, nt); break;
        case 2: plane_tiles(acc, p + 16 * t, wide, 2, nr, nt); break;
        case 3: plane_tiles(acc, p + 24 * t, wide, 3, nr, nt); break;
        case 4: plane_tiles(acc, p + 32 * t, wide, 4, nr, nt); break;
        case 5: plane_tiles(acc, p + 40 * t, wide, 5, nr, nt); break;
        case 6: plane_tiles(acc, p + 48 * t, wide, 6, nr, nt); break;
        default: break;
        }
        p += width * L->tokens;
    }
    for (int i = 0; i < nt; i += 2)
        for (int r = 0; r < nr; r++) fold_store(w->isum + (size_t)r * stride + 8 * (t + (uint32_t)i), acc[i][r], acc[i + 1][r]);
}

VOP void k_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int nr)
{
    const int nt = nr <= 4 ? 4 : 2;
    uint32_t t = a->lo / 16 * 2, t1 = (a->hi + 15) / 16 * 2; /* a tile past the last is read as codes of no token and not used */
    for (; t + (uint32_t)nt <= t1; t += (uint32_t)nt) k_tiles(a, w, t, stride, nr, nt);
    for (; t < t1; t += 2) k_tiles(a, w, t, stride, nr, 2);
}

/* isum[r][8 c ..] of nt channel tiles from c: sums over the token tiles of [lo, hi). */
VOP void v_tiles(const kv_attn_page *a, const kv_attn_work *w, uint32_t c, size_t stride, const int bits, const int nr, const int nt)
{
    const kv_page_layout *L = a->layout;
    uint32_t t1 = (a->hi + 7) / 8, row = (uint32_t)L->dvp * (uint32_t)bits;
    const uint8_t *p = a->data + L->v_off + 8 * (size_t)bits * c;
    __m512i acc[4][8];
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_setzero_si512();
    for (uint32_t t = a->lo / 8; t < t1; t++) plane_tiles(acc, p + (size_t)t * row, w->wide + (size_t)t * 512, bits, nr, nt);
    for (int i = 0; i < nt; i += 2)
        for (int r = 0; r < nr; r++) fold_store(w->isum + (size_t)r * stride + 8 * (c + (uint32_t)i), acc[i][r], acc[i + 1][r]);
}

VOP void v_bits_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int bits, const int nr)
{
    const int nt = nr <= 4 ? 4 : 2;
    uint32_t c = 0, n = a->layout->dvp / 8u;
    for (; c + (uint32_t)nt <= n; c += (uint32_t)nt) v_tiles(a, w, c, stride, bits, nr, nt);
    for (; c < n; c += 2) v_tiles(a, w, c, stride, bits, nr, 2);
}

VOP void v_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int nr)
{
    switch (a->layout->v_bits) {
    case 2: v_bits_rows(a, w, stride, 2, nr); break;
    case 3: v_bits_rows(a, w, stride, 3, nr); break;
    case 4: v_bits_rows(a, w, stride, 4, nr); break;
    default: v_bits_rows(a, w, stride, a->layout->v_bits, nr); break;
    }
}

#define BY_ROWS(nr, fn, ...)                                                   \
    switch (nr) {                                                              \
    case 1: fn(__VA_ARGS__, 1); break;                                         \
    case 2: fn(__VA_ARGS__, 2); break;                                         \
    case 3: fn(__VA_ARGS__, 3); break;                                         \
    case 4: fn(__VA_ARGS__, 4); break;                                         \
    case 6: fn(__VA_ARGS__, 6); break;                                         \
    default: fn(__VA_ARGS__, 8); break;                                        \
    }

static void ladder_k(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr)
{
    expand(w->codes, stride, 0, a->layout->dkp / 8u, nr, w->wide);
    BY_ROWS(nr, k_rows, a, w, stride)
}

static void ladder_v(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr)
{
    expand(w->codes, stride, a->lo / 8, (a->hi + 7) / 8, nr, w->wide);
    BY_ROWS(nr, v_rows, a, w, stride)
}

#include "backend/cpu/attn_simd.h"

/* 16 x 16 floats, in place. */
VOP void transpose(__m512 *r)
{
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
        __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
        t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
        t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
        t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
    }
    for (int i = 0; i < 4; i++) { /* t[4g + i] lane L: column 4L + i of rows 4g .. 4g + 3 */
        __m512 a = _mm512_shuffle_f32x4(t[i], t[4 + i], 0x88), b = _mm512_shuffle_f32x4(t[i], t[4 + i], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0x88), d = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

static void pack_k(const uint16_t *rows, size_t stride, uint32_t n, uint32_t dk, uint32_t col0, float *kt)
{
    uint32_t t = 0;
    for (; t + 16 <= n; t += 16) {
        uint32_t c = 0;
        for (; c + 16 <= dk; c += 16) {
            __m512 r[16];
            for (uint32_t i = 0; i < 16; i++) r[i] = v_f16(rows + (t + i) * stride + c);
            transpose(r);
            for (uint32_t i = 0; i < 16; i++) v_store(kt + (c + i) * 64 + col0 + t, r[i]);
        }
        for (; c < dk; c++)
            for (uint32_t i = 0; i < 16; i++) kt[c * 64 + col0 + t + i] = kv_f16_f32(rows[(t + i) * stride + c]);
    }
    for (; t < n; t++)
        for (uint32_t c = 0; c < dk; c++) kt[c * 64 + col0 + t] = kv_f16_f32(rows[t * stride + c]);
}

const struct kv_attn_kernels kv_attn_kernels_avx512 = {"avx512", {page_f16, page_q8, page_ladder, page_group}, tile, cols, pack_k, widen, scale, join};
#endif
