/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving values into and codes out of the channel-major work arrays: f16 rows transposed to f32, and codes to the bit
 * planes of 8 x 8 tiles. One rendering a level, chosen as in lanes.h; all give the same bits.
 */
#ifndef KV_POLICY_ENCODE_TILES_H
#define KV_POLICY_ENCODE_TILES_H

#include "base/half.h"

#include <stdint.h>
#include <string.h>

/* NaN counts as 0, infinity as the greatest f16, -0 as 0. */
static inline uint16_t clean_half(uint16_t h) {
    if ((h & 0x7fff) > 0x7c00 || h == 0x8000) return 0;
    return (h & 0x7fff) == 0x7c00 ? (uint16_t)(h - 1) : h;
}

/* Tokens [t0, n), channels [c0, dim). */
static inline void load_halves_plain(const uint16_t *src, uint32_t t0, uint32_t n, uint32_t c0, uint32_t dim, float *x,
                                     uint32_t stride) {
    for (uint32_t t = t0; t < n; t++)
        for (uint32_t c = c0; c < dim; c++)
            x[(size_t)c * stride + t] = kv_f16_f32(clean_half(src[(size_t)t * dim + c]));
}

static inline void store_word(uint8_t *out, uint64_t w) {
    for (uint32_t i = 0; i < 8; i++) out[i] = (uint8_t)(w >> (8 * i));
}

/* load_halves:   src [n][dim] f16 -> x [dim][stride] f32, t < n.
 * tile_planes_*: codes, 8 rows (channels) of 8 tokens, `stride` bytes apart -> out, `bits` planes of 8 bytes, low bit
 * first. Bit of (channel i, token t): K 32 (i >> 2) + 4 t + (i & 3), V 32 (t >> 2) + 4 i + (t & 3). */
#if defined(KV_LANES_AVX512) || defined(KV_LANES_AVX2)
#include <immintrin.h>

/* 8 f16 -> f32, clean. */
static inline __m256 clean_floats(const uint16_t *p) {
    const __m256 most = _mm256_set1_ps(65504.0f);
    __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    x = _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
    x = _mm256_max_ps(_mm256_min_ps(x, most), _mm256_sub_ps(_mm256_setzero_ps(), most));
    return _mm256_add_ps(x, _mm256_setzero_ps()); /* -0 + 0 = 0 */
}

/* 8 x 8 transpose: tokens t..t+7 of channels c..c+7. */
static inline void load_block(const uint16_t *src, uint32_t dim, float *x, uint32_t stride) {
    __m256 r[8], s[8];
    for (uint32_t i = 0; i < 8; i++) r[i] = clean_floats(src + (size_t)i * dim);
    for (uint32_t i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (uint32_t i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (uint32_t i = 0; i < 4; i++) {
        _mm256_storeu_ps(x + (size_t)i * stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(x + (size_t)(i + 4) * stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

static inline void load_halves(const uint16_t *src, uint32_t n, uint32_t dim, float *x, uint32_t stride) {
    uint32_t nb = n & ~7u, db = dim & ~7u;
    for (uint32_t c = 0; c < db; c += 8)
        for (uint32_t t = 0; t < nb; t += 8)
            load_block(src + (size_t)t * dim + c, dim, x + (size_t)c * stride + t, stride);
    load_halves_plain(src, 0, nb, db, dim, x, stride);
    load_halves_plain(src, nb, n, 0, dim, x, stride);
}

/* Rows 0..3 and 4..7 of a tile, each row's 8 bytes in its half's order of dwords: low dwords of the 4 rows, then their
 * high dwords. */
static inline __m256i tile_rows(const uint8_t *codes, uint32_t stride) {
    uint64_t r[4];
    for (uint32_t i = 0; i < 4; i++) memcpy(&r[i], codes + (size_t)i * stride, 8);
    __m256i x = _mm256_set_epi64x((long long)r[3], (long long)r[2], (long long)r[1], (long long)r[0]);
    return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

/* Bit p of the 32 bytes of a and of b, as one plane, for p < bits. */
static inline void store_planes(__m256i a, __m256i b, uint32_t bits, uint8_t *out) {
    for (uint32_t p = 0; p < bits; p++) {
        __m128i up = _mm_cvtsi32_si128((int)(7 - p));
        uint32_t w[2] = {(uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(a, up)),
                         (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(b, up))};
        memcpy(out + 8 * p, w, 8);
    }
}

static inline void tile_planes_k(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    const __m256i turn = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9,
                                          13, 2, 6, 10, 14, 3, 7, 11, 15); /* byte 4 i + t -> 4 t + i */
    __m256i a = _mm256_shuffle_epi8(tile_rows(codes, stride), turn);
    __m256i b = _mm256_shuffle_epi8(tile_rows(codes + (size_t)4 * stride, stride), turn);
    store_planes(a, b, bits, out);
}

static inline void tile_planes_v(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    __m256i a = tile_rows(codes, stride), b = tile_rows(codes + (size_t)4 * stride, stride);
    store_planes(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31), bits, out);
}

#elif defined(KV_LANES_NEON)
#include <arm_neon.h>

/* 4 f16 -> f32, clean. */
static inline float32x4_t clean_floats(const uint16_t *p) {
    const float32x4_t most = vdupq_n_f32(65504.0f);
    float32x4_t x = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
    x = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vceqq_f32(x, x)));
    x = vmaxq_f32(vminq_f32(x, most), vnegq_f32(most));
    return vaddq_f32(x, vdupq_n_f32(0)); /* -0 + 0 = 0 */
}

/* 4 x 4 transpose: tokens t..t+3 of channels c..c+3. */
static inline void load_block(const uint16_t *src, uint32_t dim, float *x, uint32_t stride) {
    float32x4_t r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = clean_floats(src + (size_t)i * dim);
    float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    for (uint32_t i = 0; i < 2; i++) {
        vst1q_f32(x + (size_t)i * stride, vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i])));
        vst1q_f32(x + (size_t)(i + 2) * stride, vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i])));
    }
}

static inline void load_halves(const uint16_t *src, uint32_t n, uint32_t dim, float *x, uint32_t stride) {
    uint32_t nb = n & ~3u, db = dim & ~3u;
    for (uint32_t c = 0; c < db; c += 4)
        for (uint32_t t = 0; t < nb; t += 4)
            load_block(src + (size_t)t * dim + c, dim, x + (size_t)c * stride + t, stride);
    load_halves_plain(src, 0, nb, db, dim, x, stride);
    load_halves_plain(src, nb, n, 0, dim, x, stride);
}

/* Two rows of a tile, 8 bytes each. */
static inline uint8x16_t tile_pair(const uint8_t *codes, uint32_t stride) {
    return vcombine_u8(vld1_u8(codes), vld1_u8(codes + stride));
}

/* Bit p of the 64 bytes of x as one plane, for p < bits: bytes become 0 or their bit of eight, then neighbours add up. */
static inline void store_planes(const uint8x16_t x[4], uint32_t bits, uint8_t *out) {
    const uint8x16_t weight = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    for (uint32_t p = 0; p < bits; p++) {
        const uint8x16_t bit = vdupq_n_u8((uint8_t)(1u << p));
        uint8x16_t y[4];
        for (int i = 0; i < 4; i++) y[i] = vandq_u8(vtstq_u8(x[i], bit), weight);
        uint8x16_t s = vpaddq_u8(vpaddq_u8(y[0], y[1]), vpaddq_u8(y[2], y[3]));
        vst1_u8(out + 8 * p, vget_low_u8(vpaddq_u8(s, s)));
    }
}

/* Rows i of four, tokens t -> 4 t + i: bytes of rows 0, 1 and of 2, 3 interleave, then their pairs. */
static inline void tile_planes_k(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    uint8x16_t x[4];
    for (uint32_t h = 0; h < 2; h++) {
        const uint8_t *row = codes + (size_t)4 * h * stride;
        uint8x16_t ab = tile_pair(row, stride), cd = tile_pair(row + (size_t)2 * stride, stride);
        uint16x8_t i = vreinterpretq_u16_u8(vzip1q_u8(ab, vextq_u8(ab, ab, 8)));
        uint16x8_t j = vreinterpretq_u16_u8(vzip1q_u8(cd, vextq_u8(cd, cd, 8)));
        x[2 * h] = vreinterpretq_u8_u16(vzip1q_u16(i, j));
        x[2 * h + 1] = vreinterpretq_u8_u16(vzip2q_u16(i, j));
    }
    store_planes(x, bits, out);
}

/* Tokens 0..3 of rows 0..7, then tokens 4..7. */
static inline void tile_planes_v(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    uint8x16_t x[4];
    for (uint32_t h = 0; h < 2; h++) {
        const uint8_t *row = codes + (size_t)4 * h * stride;
        uint32x4_t ab = vreinterpretq_u32_u8(tile_pair(row, stride));
        uint32x4_t cd = vreinterpretq_u32_u8(tile_pair(row + (size_t)2 * stride, stride));
        x[h] = vreinterpretq_u8_u32(vuzp1q_u32(ab, cd));
        x[2 + h] = vreinterpretq_u8_u32(vuzp2q_u32(ab, cd));
    }
    store_planes(x, bits, out);
}

#else
static inline void load_halves(const uint16_t *src, uint32_t n, uint32_t dim, float *x, uint32_t stride) {
    load_halves_plain(src, 0, n, 0, dim, x, stride);
}

static inline void tile_planes_k(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    uint64_t w[8] = {0};
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t t = 0; t < 8; t++)
            for (uint32_t p = 0; p < bits; p++)
                w[p] |= (uint64_t)(codes[(size_t)i * stride + t] >> p & 1) << (32 * (i >> 2) + 4 * t + (i & 3));
    for (uint32_t p = 0; p < bits; p++) store_word(out + 8 * p, w[p]);
}

static inline void tile_planes_v(const uint8_t *codes, uint32_t stride, uint32_t bits, uint8_t *out) {
    uint64_t w[8] = {0};
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t t = 0; t < 8; t++)
            for (uint32_t p = 0; p < bits; p++)
                w[p] |= (uint64_t)(codes[(size_t)i * stride + t] >> p & 1) << (32 * (t >> 2) + 4 * i + (t & 3));
    for (uint32_t p = 0; p < bits; p++) store_word(out + 8 * p, w[p]);
}
#endif

#endif
