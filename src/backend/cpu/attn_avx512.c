/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention kernels for AVX-512 (F, BW, DQ, VL, VNNI): the vector operations of attn_vec_avx512.h in the kernels of attn_simd.h, and LADDER
 * of its own (attn_ladder_avx512.h). Owns the integer loops over bytes. What VBMI and GFNI make faster is in attn_vbmi_avx512.c, with the same
 * bits; w->vbmi says that they are there.
 */
#include "backend/cpu/attn.h"
#include "base/half.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define TILE_NV 4
#include "backend/cpu/attn_vec_avx512.h"

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

/* The codes of two rows, for every column. */
VOP __m512i code_pair(const int16_t *codes)
{
    int32_t pair;
    memcpy(&pair, codes, 4);
    return _mm512_set1_epi32(pair);
}

/* isum[q][i] = sum_r row[r][i] codes[q][r] for columns [from, to) of n (even) rows of bytes: vpdpwssd over pairs of rows. */
VOP void byte_sums(const uint8_t *base, size_t step, uint32_t n, uint32_t from, uint32_t to, const int16_t *codes, size_t stride, int32_t *isum, const int nq)
{
    for (uint32_t i = from; i < to; i += 16) {
        __m512i acc[KV_ATTN_QBLOCK];
        const uint8_t *p = base + i;
        for (int q = 0; q < nq; q++) acc[q] = n_zero();
        for (uint32_t r = 0; r < n; r += 2, p += 2 * step) {
            __m512i x = _mm512_or_si512(n_u8(p), n_shl(n_u8(p + step), 16));
            for (int q = 0; q < nq; q++) acc[q] = _mm512_dpwssd_epi32(acc[q], x, code_pair(codes + (size_t)q * stride + r));
        }
        for (int q = 0; q < nq; q++) n_store(isum + (size_t)q * stride + i, acc[q]);
    }
}

/* The same for 64 columns. Unpacking within the four 128-bit lanes leaves columns 16 L + 4 j + i in dword 4 L + i of vector j. */
VOP void byte_sums64(const uint8_t *p, size_t step, uint32_t n, const int16_t *codes, size_t stride, int32_t *isum, const int nq)
{
    __m512i acc[KV_ATTN_QBLOCK][4];
    const __m512i zero = n_zero();
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < 4; j++) acc[q][j] = zero;
    for (uint32_t r = 0; r < n; r += 2, p += 2 * step) {
        __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + step), lo = _mm512_unpacklo_epi8(a, b), hi = _mm512_unpackhi_epi8(a, b);
        __m512i x[4] = {_mm512_unpacklo_epi8(lo, zero), _mm512_unpackhi_epi8(lo, zero), _mm512_unpacklo_epi8(hi, zero), _mm512_unpackhi_epi8(hi, zero)};
        for (int q = 0; q < nq; q++) {
            __m512i c = code_pair(codes + (size_t)q * stride + r);
            for (int j = 0; j < 4; j++) acc[q][j] = _mm512_dpwssd_epi32(acc[q][j], x[j], c);
        }
    }
    for (int q = 0; q < nq; q++) { /* 4 x 4 blocks of 4 columns, transposed */
        __m512i *x = acc[q], a = _mm512_shuffle_i64x2(x[0], x[1], 0x44), b = _mm512_shuffle_i64x2(x[2], x[3], 0x44);
        __m512i c = _mm512_shuffle_i64x2(x[0], x[1], 0xee), d = _mm512_shuffle_i64x2(x[2], x[3], 0xee);
        int32_t *y = isum + (size_t)q * stride;
        n_store(y, _mm512_shuffle_i64x2(a, b, 0x88));
        n_store(y + 16, _mm512_shuffle_i64x2(a, b, 0xdd));
        n_store(y + 32, _mm512_shuffle_i64x2(c, d, 0x88));
        n_store(y + 48, _mm512_shuffle_i64x2(c, d, 0xdd));
    }
}

VOP void q8_k(const kv_attn_page *a, kv_attn_work *w, uint32_t t0, uint32_t t1, const int16_t *codes, size_t stride, const int nq)
{
    const kv_page_layout *L = a->layout;
    if (w->vbmi && L->tokens <= 32) kv_attn_q8_k_vbmi(a->data + L->k_off, L->tokens, L->dkp, codes, stride, w->isum, nq);
    else byte_sums(a->data + L->k_off, L->tokens, L->dkp, t0, t1, codes, stride, w->isum, nq);
}

VOP void q8_v(const kv_attn_page *a, kv_attn_work *w, const int16_t *codes, size_t stride, const int nq)
{
    uint32_t t0 = a->lo & ~1u, n = ((a->hi + 1) & ~1u) - t0, dvp = a->layout->dvp, c = 0;
    const uint8_t *base = a->data + a->layout->v_off + (size_t)t0 * dvp;
    for (; c + 64 <= dvp; c += 64) byte_sums64(base + c, dvp, n, codes + t0, stride, w->isum + c, nq);
    byte_sums(base, dvp, n, c, dvp, codes + t0, stride, w->isum, nq);
}

#define KV_ATTN_OWN_LADDER 1
#include "backend/cpu/attn_simd.h"
#include "backend/cpu/attn_ladder_avx512.h"

static void page_ladder(const kv_attn_page *a, uint32_t n, kv_attn_work *w)
{
    if (w->vbmi) kv_attn_ladder_vbmi(a, n, w);
    else ladder_pages(a, n, w);
}

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

const struct kv_attn_kernels kv_attn_kernels_avx512 = {"avx512", {page_f16, page_q8, page_ladder, page_group}, tile, cols, pack_k, widen, scale, join, tap, mass};
#endif
