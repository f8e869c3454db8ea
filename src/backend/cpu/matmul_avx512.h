/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the AVX-512 matrix product files share: codes and scales of a block as vectors, prefetch, writing results.
 * Owns: inline functions with constant kinds, so that each type has its own loop. Must not know: threads. Included by
 * *_avx512.c only.
 */
#ifndef KV_BACKEND_CPU_MATMUL_AVX512_H
#define KV_BACKEND_CPU_MATMUL_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/matmul.h"

/* Bytes ahead of the block being read. Measured on Zen 5, Q4_1 from memory: none 18-24 GB/s, 4 KiB 25-34, 8 KiB 47-50,
 * 12 KiB 46-56, 16 KiB 51-62, 32 KiB uneven. Panels follow each other, so past a panel's end lies the next one. */
#define PREFETCH_AHEAD 12288

KV_INLINE __m512i bcast32(const void *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}
KV_INLINE __m512 bcastf(const void *p) {
    float v;
    memcpy(&v, p, 4);
    return _mm512_set1_ps(v);
}
KV_INLINE __m512 f16x16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
KV_INLINE __m512 i8x16(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
KV_INLINE __m512 u8x16(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)));
}

/* ---- codes and scales of one block, constant kinds */

/* Asks for the lines of one block further on in the one linear stream of panels: the hardware follows each plane only
 * inside a panel. */
KV_INLINE void prefetch_block(const int code, const int scale, const uint8_t *at) {
    KV_UNROLL
    for (uint32_t i = 0; i < 576; i += 64)
        if (i < kv_block_bytes(code, scale)) _mm_prefetch((const char *)at + i, _MM_HINT_T0);
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
    if (code == KV_CODE_4T)
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)kv_pack_iq4)), q);
    return q;
}

/* s and m of group g of block b. */
KV_INLINE void scales(const int scale, const kv_planes *p, uint32_t b, const int g, __m512 *s, __m512 *m) {
    size_t at = (size_t)(kv_scale_is_k(scale) ? b >> 3 : b) * 32,
           group = (size_t)(kv_scale_is_g16(scale) ? 2 * b + (uint32_t)g : b) * 16;
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

/* ---- writing results */

typedef struct sink {
    float *y;
    size_t stride;
    const float *bias;
    bool accumulate;
    __mmask16 mask;
} sink;

KV_INLINE sink sink_of(const kv_matmul_out *out, uint32_t panel) {
    uint32_t lanes = kv_mm_lanes(out->w, panel);
    return (sink){out->y + (size_t)panel * KV_PANEL,
                  out->y_stride,
                  out->bias ? out->bias + (size_t)panel * KV_PANEL : NULL,
                  out->accumulate,
                  (__mmask16)((1u << lanes) - 1)};
}

KV_INLINE void finish(const sink *s, uint32_t row, __m512 acc) {
    float *y = s->y + row * s->stride;
    if (s->bias) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(s->mask, s->bias));
    if (s->accumulate) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(s->mask, y));
    _mm512_mask_storeu_ps(y, s->mask, acc);
}

/* The two rows of activations of row `row` of y, in registers: what a masked store has written cannot be loaded again
 * before it has left the core's store queue. */
KV_INLINE void finish_wide(const sink *s, uint32_t row, __m512 first, __m512 second) {
    float *y = s->y + row * s->stride;
    if (s->bias) second = _mm512_add_ps(second, _mm512_maskz_loadu_ps(s->mask, s->bias));
    if (s->accumulate) first = _mm512_add_ps(first, _mm512_maskz_loadu_ps(s->mask, y));
    _mm512_mask_storeu_ps(y, s->mask, _mm512_add_ps(second, first));
}

/* matmul_quantize_avx512.c */
void kv_matmul_quantize_avx512(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act);
void kv_matmul_quantize_tile_avx512(const float *x, size_t x_stride, uint32_t k, bool wide, uint8_t *act);
/* matmul_stream_avx512.c */
void kv_matmul_stream_avx512(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows);

#endif
