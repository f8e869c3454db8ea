/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels that AVX512_VBMI and GFNI make faster than plain AVX-512: LADDER (codes from bit planes), pairs of rows of bytes. The same sums,
 * bit for bit. Called only where the processor has both (kv_cpu_has_vbmi_gfni).
 */
#include "backend/cpu/attn.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include "backend/cpu/attn_vec_avx512.h"
#include "backend/cpu/attn_common_simd.h"

#define KV_ATTN_VBMI 1
#include "backend/cpu/attn_ladder_avx512.h"

LADDER_TARGET void kv_attn_ladder_vbmi(const kv_attn_page *p, uint32_t n, kv_attn_work *w) { ladder_pages(p, n, w); }

/* isum[q][0, 32) = sum_c row[c][t] codes[q][c] for P <= 32 slots: two rows are one register, of which two permutes make pairs of words. */
LADDER_OP void q8_rows(const uint8_t *p, uint32_t P, uint32_t n, const int16_t *codes, size_t stride, int32_t *isum, const int nq)
{
    const __m512i slot = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i at0 = _mm512_add_epi32(_mm512_mullo_epi32(slot, _mm512_set1_epi32(0x10001)), _mm512_set1_epi32((int)(P << 16)));
    const __m512i at1 = _mm512_add_epi32(at0, _mm512_set1_epi32(0x100010));
    const __mmask64 words = 0x5555555555555555ull;
    __m512i acc[KV_ATTN_QBLOCK][4];
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < 4; j++) acc[q][j] = _mm512_setzero_si512();
    for (uint32_t c = 0; c < n; c += 4)
        for (uint32_t j = 0; j < 4; j += 2, p += 2 * P) {
            __m512i rows = _mm512_loadu_si512(p);
            __m512i x = _mm512_maskz_permutexvar_epi8(words, at0, rows), y = _mm512_maskz_permutexvar_epi8(words, at1, rows);
            for (int q = 0; q < nq; q++) {
                int32_t pair;
                memcpy(&pair, codes + (size_t)q * stride + c + j, 4);
                acc[q][j] = _mm512_dpwssd_epi32(acc[q][j], x, _mm512_set1_epi32(pair));
                acc[q][j + 1] = _mm512_dpwssd_epi32(acc[q][j + 1], y, _mm512_set1_epi32(pair));
            }
        }
    for (int q = 0; q < nq; q++) {
        _mm512_storeu_si512(isum + (size_t)q * stride, _mm512_add_epi32(acc[q][0], acc[q][2]));
        _mm512_storeu_si512(isum + (size_t)q * stride + 16, _mm512_add_epi32(acc[q][1], acc[q][3]));
    }
}

LADDER_TARGET void kv_attn_q8_k_vbmi(const uint8_t *rows, uint32_t P, uint32_t n, const int16_t *codes, size_t stride, int32_t *isum, int nq)
{
    switch (nq) {
    case 1: q8_rows(rows, P, n, codes, stride, isum, 1); break;
    case 2: q8_rows(rows, P, n, codes, stride, isum, 2); break;
    case 3: q8_rows(rows, P, n, codes, stride, isum, 3); break;
    default: q8_rows(rows, P, n, codes, stride, isum, 4); break;
    }
}
#endif
