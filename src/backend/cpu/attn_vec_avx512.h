/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vector operations of the AVX-512 attention kernels: 16 floats or 16 int32 in one register, by the names that attn_simd.h lists.
 */
#include <immintrin.h>
#include <string.h>

typedef __m512 v16;
typedef __m512i n16;
#define VOP static inline __attribute__((always_inline))

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
VOP void n_words(int16_t *p, n16 x) { _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(x)); }

/* v_exp2 of attn_common_simd.h, with the same bits. */
#define KV_ATTN_OWN_EXP2 1
VOP v16 v_exp2(v16 x)
{
    v16 r = _mm512_reduce_ps(x, 0), n = v_sub(x, r);
    v16 p = v_fma(v_set(1.3264727313e-03f), r, v_set(9.6715129912e-03f));
    p = v_fma(p, r, v_set(5.5507335812e-02f));
    p = v_fma(p, r, v_set(2.4022242427e-01f));
    p = v_fma(p, r, v_set(6.9314700365e-01f));
    p = v_fma(p, r, v_set(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, v_set(KV_ATTN_EXP2_MIN), _CMP_GE_OQ), p, n);
}
