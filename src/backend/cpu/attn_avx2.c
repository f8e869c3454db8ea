/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention kernels for AVX2 (with FMA, F16C). Owns the vector operations, 16 floats in two registers, and the integer loops over bit
 * planes; the kernels themselves are in attn_simd.h. A tile of 8 x 8 codes is two registers, one a half of 4 channels (K) or 4 tokens (V);
 * each plane is expanded by broadcast and test, products are added up in 16 bits for as many tiles as must fit. K's codes, of a width that
 * differs from block to block, are unpacked for all rows first; V's never leave registers.
 */
#include "backend/cpu/attn.h"
#include "base/half.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

typedef struct { __m256 a, b; } v16;
typedef struct { __m256i a, b; } n16;
#define VOP static inline __attribute__((always_inline))
#define TILE_NV 1
/* 16 registers: one chain of sums for three queries of 16 floats and what they read. */
#define PAGE_PARTS 1
#define PAGE_NV 1

VOP v16 v_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
VOP void v_store(float *p, v16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
VOP v16 v_set(float x) { __m256 y = _mm256_set1_ps(x); return (v16){y, y}; }
VOP v16 v_pair(float a, float b) { return (v16){_mm256_set1_ps(a), _mm256_set1_ps(b)}; }
VOP v16 v_add(v16 x, v16 y) { return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
VOP v16 v_sub(v16 x, v16 y) { return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
VOP v16 v_mul(v16 x, v16 y) { return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
VOP v16 v_div(v16 x, v16 y) { return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
VOP v16 v_min(v16 x, v16 y) { return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
VOP v16 v_max(v16 x, v16 y) { return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
VOP v16 v_fma(v16 x, v16 y, v16 z) { return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
VOP __m128i load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
VOP v16 v_f16(const uint16_t *p) { return (v16){_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
VOP n16 n_u8(const uint8_t *p)
{
    __m128i x = load128(p);
    return (n16){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
VOP v16 n_float(n16 x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
VOP v16 v_u8(const uint8_t *p) { return n_float(n_u8(p)); }
VOP __m256 scale2_8(__m256 p, __m256 t) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23))); }
VOP v16 v_scale2(v16 p, v16 t) { return (v16){scale2_8(p.a, t.a), scale2_8(p.b, t.b)}; }
VOP v16 v_keep_ge(v16 x, float t, v16 p)
{
    __m256 y = _mm256_set1_ps(t);
    return (v16){_mm256_and_ps(p.a, _mm256_cmp_ps(x.a, y, _CMP_GE_OQ)), _mm256_and_ps(p.b, _mm256_cmp_ps(x.b, y, _CMP_GE_OQ))};
}
VOP __m256 keep_8(__m256 x, __m256i at, int lo, int hi, __m256 other)
{
    __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), at), _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), at));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(in));
}
VOP v16 v_keep(v16 x, int lo, int hi, float other)
{
    const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 y = _mm256_set1_ps(other);
    return (v16){keep_8(x.a, at, lo, hi, y), keep_8(x.b, at, lo - 8, hi - 8, y)};
}
VOP float v_first(v16 x) { return _mm256_cvtss_f32(x.a); }
VOP float v_hmax(v16 x)
{
    __m256 a = _mm256_max_ps(x.a, x.b);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
VOP float v_hsum(v16 x)
{
    __m256 a = _mm256_add_ps(x.a, x.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
VOP v16 v_bits(n16 x) { return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
VOP n16 n_set(int x) { __m256i y = _mm256_set1_epi32(x); return (n16){y, y}; }
VOP n16 n_zero(void) { return n_set(0); }
VOP n16 n_load(const int32_t *p) { return (n16){_mm256_loadu_si256((const __m256i *)(const void *)p), _mm256_loadu_si256((const __m256i *)(const void *)(p + 8))}; }
VOP void n_store(int32_t *p, n16 x) { _mm256_storeu_si256((__m256i *)(void *)p, x.a); _mm256_storeu_si256((__m256i *)(void *)(p + 8), x.b); }
VOP n16 n_round(v16 x) { return (n16){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
VOP n16 n_add(n16 x, n16 y) { return (n16){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
VOP n16 n_sub(n16 x, n16 y) { return (n16){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
VOP n16 n_mul(n16 x, n16 y) { return (n16){_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
VOP n16 n_shl(n16 x, int n) { return (n16){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
VOP n16 n_shl19(n16 x) { return n_shl(x, 19); }
VOP n16 n_shr7(n16 x) { return (n16){_mm256_srai_epi32(x.a, 7), _mm256_srai_epi32(x.b, 7)}; }
VOP n16 n_low7(n16 x) { __m256i y = _mm256_set1_epi32(127); return (n16){_mm256_and_si256(x.a, y), _mm256_and_si256(x.b, y)}; }
VOP int32_t n_hsum(n16 x)
{
    __m256i a = _mm256_add_epi32(x.a, x.b);
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
/* Low bytes; the values fit int8. */
VOP void n_bytes(int8_t *p, n16 x)
{
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}

/* Low halves; the values fit int16. */
VOP void n_words(int16_t *p, n16 x) { _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8)); }

/* 16 packed codes as floats. */
VOP v16 v_codes2(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    const __m256i by = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14), mask = _mm256_set1_epi32(3);
    __m256i y = _mm256_srlv_epi32(_mm256_set1_epi32((int)x), by);
    return n_float((n16){_mm256_and_si256(y, mask), _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)(x >> 16)), by), mask)});
}
VOP v16 v_codes4(const uint8_t *p)
{
    uint32_t x[2];
    memcpy(x, p, 8);
    const __m256i by = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), mask = _mm256_set1_epi32(15);
    return n_float((n16){_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)x[0]), by), mask),
                         _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)x[1]), by), mask)});
}

/* q[order[0..16)] */
VOP v16 v_rank(const float *q, uint32_t n, const uint8_t *order)
{
    n16 at = n_u8(order);
    (void)n;
    return (v16){_mm256_i32gather_ps(q, at.a, 4), _mm256_i32gather_ps(q, at.b, 4)};
}

/* ------------------------------------------------------------------ LADDER: bit planes */
/* Codes of a tile of w planes: c[0] the low halves of the planes (channels, or tokens, 0-3), c[1] the high ones; bit i of 32 is byte i. */
VOP void tile_codes(const uint8_t *p, const uint32_t w, __m256i c[2])
{
    const __m256i low = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    __m256i first[2];
    const __m256i high = _mm256_add_epi8(low, _mm256_set1_epi8(4)), bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    for (uint32_t b = 0; b < w; b++) {
        int64_t x;
        memcpy(&x, p + 8 * b, 8);
        __m256i plane = _mm256_set1_epi64x(x), one = _mm256_set1_epi8((char)(1 << b));
        for (int h = 0; h < 2; h++) {
            __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(plane, h ? high : low), bit), bit);
            if (b == 0) first[h] = on;
            else c[h] = b == 1 ? _mm256_and_si256(on, one) : _mm256_or_si256(c[h], _mm256_and_si256(on, one));
        }
    }
    for (int h = 0; h < 2; h++) c[h] = _mm256_sub_epi8(w > 1 ? c[h] : _mm256_setzero_si256(), first[h]);
}

/* Sums of products in 16 bits, two a lane of 32, and what they were emptied into. A tile of w planes adds 4 products of at most 127 (2^w - 1)
 * to a sum of 16 bits, and 32,767 hold 508 (2^w - 1) as often as room says. */
enum { SUM_MOST = 32767, TILE_MOST = 508 };
typedef struct sums { __m256i small[2][8], all[2][8]; } sums;

VOP void sums_clear(sums *s, const int nr, const int nt)
{
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) s->small[i][r] = s->all[i][r] = _mm256_setzero_si256();
}
VOP void sums_empty(sums *s, const int nr, const int nt)
{
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) {
            s->all[i][r] = _mm256_add_epi32(s->all[i][r], _mm256_madd_epi16(s->small[i][r], _mm256_set1_epi16(1)));
            s->small[i][r] = _mm256_setzero_si256();
        }
}
VOP __m256i four(const int8_t *codes)
{
    int32_t x;
    memcpy(&x, codes, 4);
    return _mm256_set1_epi32(x);
}
/* Adds tile i's sums with the 8 codes of nr rows. */
VOP void sums_add(sums *s, const int i, const __m256i c[2], const int8_t *codes, size_t stride, const int nr)
{
    for (int r = 0; r < nr; r++) {
        s->small[i][r] = _mm256_add_epi16(s->small[i][r], _mm256_maddubs_epi16(c[0], four(codes + (size_t)r * stride)));
        s->small[i][r] = _mm256_add_epi16(s->small[i][r], _mm256_maddubs_epi16(c[1], four(codes + (size_t)r * stride + 4)));
    }
}
VOP void sums_store(sums *s, int32_t *y, size_t stride, const int nr, const int nt)
{
    sums_empty(s, nr, nt);
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) _mm256_storeu_si256((__m256i *)(void *)(y + (size_t)r * stride + 8 * i), s->all[i][r]);
}

/* n tiles of a block of channels as bytes, K_TILES x 64 bytes from block to block. */
enum { K_TILES = 8 };
VOP void unpack_tiles(const uint8_t *p, const uint32_t w, uint32_t n, uint8_t *y)
{
    for (uint32_t i = 0; i < n; i++, p += 8 * w, y += 64) {
        __m256i c[2];
        tile_codes(p, w, c);
        _mm256_storeu_si256((__m256i *)(void *)y, c[0]);
        _mm256_storeu_si256((__m256i *)(void *)(y + 32), c[1]);
    }
}

/* Tiles [t, t + n) of all blocks of channels that have bits. */
static void unpack_keys(const kv_attn_page *a, uint32_t t, uint32_t n, uint8_t *y)
{
    const kv_page_layout *L = a->layout;
    const uint8_t *p = a->data + L->k_off;
    for (uint32_t b = 0; b < L->dkp / 8u; b++, y += K_TILES * 64) {
        uint32_t w = kv_page_width(a->entry, b);
        switch (w) {
        case 0: break;
        case 1: unpack_tiles(p + 8 * t, 1, n, y); break;
        case 2: unpack_tiles(p + 16 * t, 2, n, y); break;
        case 3: unpack_tiles(p + 24 * t, 3, n, y); break;
        case 4: unpack_tiles(p + 32 * t, 4, n, y); break;
        default: unpack_tiles(p + 8 * w * t, w, n, y); break;
        }
        p += w * L->tokens;
    }
}

/* Sums of nt unpacked tiles at y over all blocks. */
VOP void k_tiles(const kv_attn_page *a, const uint8_t *y, const int8_t *codes, size_t stride, int32_t *isum, const int nr, const int nt)
{
    int32_t room = SUM_MOST;
    sums s;
    sums_clear(&s, nr, nt);
    for (uint32_t b = 0; b < a->layout->dkp / 8u; b++, y += K_TILES * 64) {
        uint32_t w = kv_page_width(a->entry, b);
        int32_t most = TILE_MOST * (int32_t)((1u << w) - 1);
        if (!w) continue;
        if (room < most) {
            sums_empty(&s, nr, nt);
            room = SUM_MOST;
        }
        room -= most;
        for (int i = 0; i < nt; i++) {
            const __m256i *x = (const __m256i *)(const void *)(y + 64 * i);
            __m256i c[2] = {_mm256_loadu_si256(x), _mm256_loadu_si256(x + 1)};
            sums_add(&s, i, c, codes + 8 * b, stride, nr);
        }
    }
    sums_store(&s, isum, stride, nr, nt);
}

VOP void k_rows(const kv_attn_page *a, kv_attn_work *w, size_t stride, const int nr)
{
    uint8_t *y = (uint8_t *)w->wide;
    const uint32_t end = (a->hi + 7) / 8;
    for (uint32_t t0 = a->lo / 8; t0 < end; t0 += K_TILES) {
        uint32_t n = end - t0 < K_TILES ? end - t0 : K_TILES, i = 0;
        unpack_keys(a, t0, n, y);
        if (nr <= 4)
            for (; i + 2 <= n; i += 2) k_tiles(a, y + 64 * i, w->codes, stride, w->isum + 8 * (t0 + i), nr, 2);
        for (; i < n; i++) k_tiles(a, y + 64 * i, w->codes, stride, w->isum + 8 * (t0 + i), nr, 1);
    }
}

/* Sums of nt tiles of channels from tile c over the tokens. */
VOP void v_tiles(const kv_attn_page *a, kv_attn_work *w, size_t stride, uint32_t c, const uint32_t bits, const int nr, const int nt)
{
    const kv_page_layout *L = a->layout;
    const uint32_t n = L->dvp / 8u, t1 = (a->hi + 7) / 8, most = SUM_MOST / (TILE_MOST * ((1u << bits) - 1));
    sums s;
    sums_clear(&s, nr, nt);
    for (uint32_t t = a->lo / 8; t < t1;) {
        uint32_t to = t1 - t < most ? t1 : t + most;
        for (; t < to; t++)
            for (int i = 0; i < nt; i++) {
                __m256i x[2];
                tile_codes(a->data + L->v_off + 8 * (size_t)bits * (t * n + c + (uint32_t)i), bits, x);
                sums_add(&s, i, x, w->codes + 8 * t, stride, nr);
            }
        if (t < t1) sums_empty(&s, nr, nt);
    }
    sums_store(&s, w->isum + 8 * c, stride, nr, nt);
}

VOP void v_rows_bits(const kv_attn_page *a, kv_attn_work *w, size_t stride, const uint32_t bits, const int nr)
{
    uint32_t c = 0, n = a->layout->dvp / 8u;
    if (nr <= 4)
        for (; c + 2 <= n; c += 2) v_tiles(a, w, stride, c, bits, nr, 2);
    for (; c < n; c++) v_tiles(a, w, stride, c, bits, nr, 1);
}
VOP void v_rows(const kv_attn_page *a, kv_attn_work *w, size_t stride, const int nr)
{
    switch (a->layout->v_bits) {
    case 2: v_rows_bits(a, w, stride, 2, nr); break;
    case 3: v_rows_bits(a, w, stride, 3, nr); break;
    default: v_rows_bits(a, w, stride, 4, nr); break;
    }
}

#define BY_ROWS(nr, fn)                                                        \
    switch (nr) {                                                              \
    case 1: fn(a, w, stride, 1); break;                                        \
    case 2: fn(a, w, stride, 2); break;                                        \
    case 3: fn(a, w, stride, 3); break;                                        \
    case 4: fn(a, w, stride, 4); break;                                        \
    case 6: fn(a, w, stride, 6); break;                                        \
    default: fn(a, w, stride, 8); break;                                       \
    }

static void ladder_k(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr) { BY_ROWS(nr, k_rows) }
static void ladder_v(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr) { BY_ROWS(nr, v_rows) }

/* isum[q][i] = sum_r row[r][i] codes[q][r] for columns [from, to) of n (even) rows of bytes, in pairs of rows. */
VOP void byte_sums(const uint8_t *base, size_t step, uint32_t n, uint32_t from, uint32_t to, const int16_t *codes, size_t stride, int32_t *isum, const int nq)
{
    for (uint32_t i = from; i < to; i += 16) {
        n16 acc[KV_ATTN_QBLOCK];
        const uint8_t *p = base + i;
        for (int q = 0; q < nq; q++) acc[q] = n_zero();
        for (uint32_t r = 0; r < n; r += 2, p += 2 * step) {
            __m128i x = load128(p), y = load128(p + step);
            __m256i a = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), b = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
            for (int q = 0; q < nq; q++) {
                int32_t pair;
                memcpy(&pair, codes + (size_t)q * stride + r, 4);
                __m256i c = _mm256_set1_epi32(pair);
                acc[q] = n_add(acc[q], (n16){_mm256_madd_epi16(a, c), _mm256_madd_epi16(b, c)});
            }
        }
        for (int q = 0; q < nq; q++) n_store(isum + (size_t)q * stride + i, acc[q]);
    }
}

VOP void q8_k(const kv_attn_page *a, kv_attn_work *w, uint32_t t0, uint32_t t1, const int16_t *codes, size_t stride, const int nq)
{
    byte_sums(a->data + a->layout->k_off, a->layout->tokens, a->layout->dkp, t0, t1, codes, stride, w->isum, nq);
}

VOP void q8_v(const kv_attn_page *a, kv_attn_work *w, const int16_t *codes, size_t stride, const int nq)
{
    uint32_t t0 = a->lo & ~1u, dvp = a->layout->dvp;
    byte_sums(a->data + a->layout->v_off + (size_t)t0 * dvp, dvp, ((a->hi + 1) & ~1u) - t0, 0, dvp, codes + t0, stride, w->isum, nq);
}

#include "backend/cpu/attn_simd.h"

/* The transpose is 4 % of a tile's work at this level: rows are widened, then scattered. */
static void pack_k(const uint16_t *rows, size_t stride, uint32_t n, uint32_t dk, uint32_t col0, float *kt)
{
    float x[256];
    for (uint32_t t = 0; t < n; t++) {
        widen(rows + t * stride, dk, x);
        for (uint32_t c = 0; c < dk; c++) kt[c * 64 + col0 + t] = x[c];
    }
}

const struct kv_attn_kernels kv_attn_kernels_avx2 = {"avx2", {page_f16, page_q8, page_ladder, page_group}, tile, cols, pack_k, widen, scale, join, tap, mass};
#endif
