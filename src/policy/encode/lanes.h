/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sixteen f32 lanes: the only vector type of the encoders, in four renderings that give the same bits. Sums over
 * tokens are kept in lane t mod 16 and joined by one fixed tree (8, 4, 2, 1 apart). No FMA, no approximate reciprocal
 * anywhere. Choose with KV_LANES_AVX512, KV_LANES_AVX2 or KV_LANES_NEON before including; none: plain C. Values are finite and
 * zeros positive on entry (load_halves sees to it), so that min and max cannot disagree about -0.
 */
#ifndef KV_POLICY_ENCODE_LANES_H
#define KV_POLICY_ENCODE_LANES_H

#include "base/half.h"

#include <stdint.h>
#include <string.h>

#if defined(KV_LANES_AVX512)
#include <immintrin.h>
typedef __m512 lanes;
static inline lanes ln_set(float x) { return _mm512_set1_ps(x); }
static inline lanes ln_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void ln_store(float *p, lanes a) { _mm512_storeu_ps(p, a); }
static inline lanes ln_add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
static inline lanes ln_sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
static inline lanes ln_mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
static inline lanes ln_min(lanes a, lanes b) { return _mm512_min_ps(a, b); }
static inline lanes ln_max(lanes a, lanes b) { return _mm512_max_ps(a, b); }
static inline float ln_sum(lanes a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
static inline float ln_least(lanes a) { return _mm512_reduce_min_ps(a); }
static inline float ln_most(lanes a) { return _mm512_reduce_max_ps(a); }
/* Lanes are integers in 0..255. */
static inline void ln_store_bytes(uint8_t *p, lanes a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

#elif defined(KV_LANES_AVX2)
#include <immintrin.h>
typedef struct lanes {
    __m256 a, b;
} lanes;
static inline lanes ln_set(float x) { return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline lanes ln_load(const float *p) { return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void ln_store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline lanes ln_add(lanes x, lanes y) { return (lanes){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline lanes ln_sub(lanes x, lanes y) { return (lanes){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline lanes ln_mul(lanes x, lanes y) { return (lanes){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline lanes ln_min(lanes x, lanes y) { return (lanes){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline lanes ln_max(lanes x, lanes y) { return (lanes){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline float ln_sum(lanes x) {
    __m256 b = _mm256_add_ps(x.a, x.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
static inline float ln_least(lanes x) {
    __m256 b = _mm256_min_ps(x.a, x.b);
    __m128 c = _mm_min_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_min_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_min_ss(c, _mm_shuffle_ps(c, c, 1)));
}
static inline float ln_most(lanes x) {
    __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
static inline void ln_store_bytes(uint8_t *p, lanes x) {
    __m256i i = _mm256_packus_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    i = _mm256_permute4x64_epi64(i, 0xd8); /* 16 words in order */
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}

#elif defined(KV_LANES_NEON)
#include <arm_neon.h>
typedef struct lanes {
    float32x4_t v[4];
} lanes;
#define LN_EACH(expr)                                                                                                  \
    lanes r;                                                                                                           \
    for (int i = 0; i < 4; i++) r.v[i] = (expr);                                                                       \
    return r
static inline lanes ln_set(float x) { LN_EACH(vdupq_n_f32(x)); }
static inline lanes ln_load(const float *p) { LN_EACH(vld1q_f32(p + 4 * i)); }
static inline void ln_store(float *p, lanes x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
static inline lanes ln_add(lanes x, lanes y) { LN_EACH(vaddq_f32(x.v[i], y.v[i])); }
static inline lanes ln_sub(lanes x, lanes y) { LN_EACH(vsubq_f32(x.v[i], y.v[i])); }
static inline lanes ln_mul(lanes x, lanes y) { LN_EACH(vmulq_f32(x.v[i], y.v[i])); }
static inline lanes ln_min(lanes x, lanes y) { LN_EACH(vminq_f32(x.v[i], y.v[i])); }
static inline lanes ln_max(lanes x, lanes y) { LN_EACH(vmaxq_f32(x.v[i], y.v[i])); }
static inline float ln_sum(lanes x) {
    float32x4_t a = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
static inline float ln_least(lanes x) {
    return vminvq_f32(vminq_f32(vminq_f32(x.v[0], x.v[2]), vminq_f32(x.v[1], x.v[3])));
}
static inline float ln_most(lanes x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
static inline void ln_store_bytes(uint8_t *p, lanes x) {
    uint16x8_t h[2];
    for (int i = 0; i < 2; i++)
        h[i] = vcombine_u16(vmovn_u32(vcvtq_u32_f32(x.v[2 * i])), vmovn_u32(vcvtq_u32_f32(x.v[2 * i + 1])));
    vst1q_u8(p, vcombine_u8(vmovn_u16(h[0]), vmovn_u16(h[1])));
}

#else
typedef struct lanes {
    float f[16];
} lanes;
#define LN_EACH(expr)                                                                                                  \
    lanes r;                                                                                                           \
    for (int i = 0; i < 16; i++) r.f[i] = (expr);                                                                      \
    return r
static inline lanes ln_set(float x) { LN_EACH(x); }
static inline lanes ln_load(const float *p) { LN_EACH(p[i]); }
static inline void ln_store(float *p, lanes a) { memcpy(p, a.f, sizeof a.f); }
static inline lanes ln_add(lanes a, lanes b) { LN_EACH(a.f[i] + b.f[i]); }
static inline lanes ln_sub(lanes a, lanes b) { LN_EACH(a.f[i] - b.f[i]); }
static inline lanes ln_mul(lanes a, lanes b) { LN_EACH(a.f[i] * b.f[i]); }
static inline lanes ln_min(lanes a, lanes b) { LN_EACH(a.f[i] < b.f[i] ? a.f[i] : b.f[i]); }
static inline lanes ln_max(lanes a, lanes b) { LN_EACH(a.f[i] > b.f[i] ? a.f[i] : b.f[i]); }
static inline float ln_sum(lanes a) {
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a.f[i] += a.f[i + w];
    return a.f[0];
}
static inline float ln_least(lanes a) {
    for (int i = 1; i < 16; i++) a.f[0] = a.f[i] < a.f[0] ? a.f[i] : a.f[0];
    return a.f[0];
}
static inline float ln_most(lanes a) {
    for (int i = 1; i < 16; i++) a.f[0] = a.f[i] > a.f[0] ? a.f[i] : a.f[0];
    return a.f[0];
}
static inline void ln_store_bytes(uint8_t *p, lanes a) {
    for (int i = 0; i < 16; i++) p[i] = (uint8_t)a.f[i];
}
#endif

/* Nearest integer, half to even, for 0 <= x < 2^22; never -0. */
static inline lanes ln_round(lanes x) {
    lanes magic = ln_set(12582912.0f); /* 1.5 x 2^23: the sum's last place is 1 */
    return ln_sub(ln_add(x, magic), magic);
}

#endif
