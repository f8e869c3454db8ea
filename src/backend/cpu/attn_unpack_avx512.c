/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages of every format to floats with AVX-512: the values of kv_decode_ref (policy/encode/decode_ref.c), bit for bit, so every product
 * and sum here rounds by itself. Owns the reading of packed codes by vectors of 16; must not know what the values are for.
 */
#include "backend/cpu/attn_tile.h"
#include "backend/cpu/loops.h"
#include "policy/encode/encode.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#include <string.h>

typedef __m512 v16;
typedef __m512i n16;

KV_INLINE v16 affine(v16 min, v16 scale, v16 code) { return _mm512_add_ps(min, _mm512_mul_ps(scale, code)); }
KV_INLINE v16 halves(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
KV_INLINE float half_at(const uint8_t *p, uint32_t i)
{
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return _cvtsh_ss(h);
}
/* Lanes of channels c .. c + 15 that are real. */
KV_INLINE __mmask16 lanes_of(uint32_t c, uint32_t d) { return c + 16 <= d ? 0xffff : c < d ? (__mmask16)((1u << (d - c)) - 1) : 0; }

/* ------------------------------------------------------------------ F16 */
static void unpack_f16(const kv_page_layout *L, const uint8_t *page, uint32_t n, size_t stride, float *k, float *v)
{
    const uint16_t *k16 = (const uint16_t *)(const void *)(page + L->k_off), *v16_ = (const uint16_t *)(const void *)(page + L->v_off);
    for (uint32_t c = 0; c < L->dk; c++)
        for (uint32_t t = 0; t < n; t += 16) _mm512_storeu_ps(k + c * stride + t, halves(k16 + (size_t)c * L->tokens + t));
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = 0; c < L->dvp; c += 16)
            _mm512_storeu_ps(v + (size_t)t * L->dvp + c, _mm512_maskz_mov_ps(lanes_of(c, L->dv), halves(v16_ + (size_t)t * L->dvp + c)));
}

/* ------------------------------------------------------------------ Q8 */
KV_INLINE v16 bytes(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p))); }

static void unpack_q8(const kv_page_layout *L, const uint8_t *page, uint32_t n, size_t stride, float *k, float *v)
{
    for (uint32_t c = 0; c < L->dk; c++) {
        v16 s = _mm512_set1_ps(half_at(page + L->k_scale_off, c)), m = _mm512_set1_ps(half_at(page + L->k_min_off, c));
        const uint8_t *row = page + L->k_off + (size_t)c * L->tokens;
        for (uint32_t t = 0; t < n; t += 16) _mm512_storeu_ps(k + c * stride + t, affine(m, s, bytes(row + t)));
    }
    for (uint32_t t = 0; t < n; t++) {
        v16 s = _mm512_set1_ps(half_at(page + L->v_scale_off, t)), m = _mm512_set1_ps(half_at(page + L->v_min_off, t));
        const uint8_t *row = page + L->v_off + (size_t)t * L->dvp;
        for (uint32_t c = 0; c < L->dvp; c += 16)
            _mm512_storeu_ps(v + (size_t)t * L->dvp + c, _mm512_maskz_mov_ps(lanes_of(c, L->dv), affine(m, s, bytes(row + c))));
    }
}

/* ------------------------------------------------------------------ GROUP */
/* 16 codes of 2 or 4 bits, low bits first. */
KV_INLINE v16 codes_at(const uint8_t *p, uint32_t bits)
{
    const n16 lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint64_t x = 0;
    memcpy(&x, p, bits * 2);
    n16 y;
    if (bits == 2) y = _mm512_srlv_epi32(_mm512_set1_epi32((int)x), _mm512_slli_epi32(lane, 1));
    else {
        y = _mm512_mask_mov_epi32(_mm512_set1_epi32((int)(uint32_t)x), 0xff00, _mm512_set1_epi32((int)(x >> 32)));
        y = _mm512_srlv_epi32(y, _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(7)), 2));
    }
    return _mm512_cvtepi32_ps(_mm512_and_si512(y, _mm512_set1_epi32((int)((1u << bits) - 1))));
}

KV_INLINE void group_of(const kv_page_layout *L, const uint8_t *page, uint32_t n, size_t stride, float *k, float *v, const uint32_t bits)
{
    const uint32_t g = kv_formats[L->kf].group;
    for (uint32_t c = 0; c < L->dk; c++) {
        const uint8_t *row = page + L->k_off + (size_t)c * (L->tokens * bits / 8);
        for (uint32_t t = 0; t < n; t += 16) {
            uint32_t i = t / g * L->dkp + c;
            v16 s = _mm512_set1_ps(half_at(page + L->k_scale_off, i)), m = _mm512_set1_ps(half_at(page + L->k_min_off, i));
            _mm512_storeu_ps(k + c * stride + t, affine(m, s, codes_at(row + t * bits / 8, bits)));
        }
    }
    for (uint32_t t = 0; t < n; t++) {
        const uint8_t *row = page + L->v_off + (size_t)t * (L->dvp * bits / 8);
        for (uint32_t c = 0; c < L->dvp; c += 16) {
            uint32_t i = t * L->v_groups + c / g;
            v16 s = _mm512_set1_ps(half_at(page + L->v_scale_off, i)), m = _mm512_set1_ps(half_at(page + L->v_min_off, i));
            _mm512_storeu_ps(v + (size_t)t * L->dvp + c, _mm512_maskz_mov_ps(lanes_of(c, L->dv), affine(m, s, codes_at(row + c * bits / 8, bits))));
        }
    }
}

static void unpack_group(const kv_page_layout *L, const uint8_t *page, uint32_t n, size_t stride, float *k, float *v)
{
    if (L->v_bits == 2) group_of(L, page, n, stride, k, v, 2);
    else group_of(L, page, n, stride, k, v, 4);
}

/* ------------------------------------------------------------------ LADDER */
/* The codes of an 8 x 8 tile: each plane is a mask of 64 bytes. Dword l < 8: column l of members 0 .. 3, l >= 8: of members 4 .. 7. */
KV_INLINE n16 tile_codes(const uint8_t *planes, uint32_t width)
{
    n16 x = _mm512_setzero_si512();
    for (uint32_t b = 0; b < width; b++) {
        uint64_t plane;
        memcpy(&plane, planes + 8 * b, 8);
        x = _mm512_mask_add_epi8(x, plane, x, _mm512_set1_epi8((char)(1u << b)));
    }
    return x;
}

/* Members 0 .. 7 of two neighbouring tiles as rows of 16 columns: byte i of a dword of x[quad]. */
KV_INLINE void tile_pair(const uint8_t *planes, size_t step, uint32_t width, n16 x[2])
{
    n16 a = tile_codes(planes, width), b = tile_codes(planes + step, width);
    x[0] = _mm512_shuffle_i64x2(a, b, 0x44);
    x[1] = _mm512_shuffle_i64x2(a, b, 0xee);
}
KV_INLINE v16 member(n16 quad, uint32_t i)
{
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(quad, 8 * i), _mm512_set1_epi32(255)));
}

typedef struct triple { float unit, lo, step; } triple; /* smax / 255 and the rest */
KV_INLINE triple triple_of(const kv_page_layout *L, const uint8_t *page, uint32_t i)
{
    const uint8_t *p = page + L->triples_off + 6 * i;
    return (triple){half_at(p, 0) / 255.0f, half_at(p, 1), half_at(p, 2)};
}

/* Ranks 8b .. 8b + 7; channels of padding (order >= dk) share a row behind the others. */
KV_INLINE void ladder_block(const kv_page_layout *L, const uint8_t *page, uint32_t b, triple f, const uint8_t *planes, const uint32_t width, uint32_t n,
                         size_t stride, float *k)
{
    float *to[8];
    v16 s[8], m[8];
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t rank = 8 * b + i, c = page[L->k_order_off + rank];
        to[i] = k + (size_t)(c < L->dk ? c : L->dk) * stride;
        s[i] = _mm512_set1_ps(width ? (float)page[L->k_scale_off + rank] * f.unit : 0.0f);
        m[i] = _mm512_set1_ps(f.lo + (float)page[L->k_min_off + rank] * f.step);
    }
    for (uint32_t t = 0; t < n; t += 16) {
        n16 quad[2];
        tile_pair(planes + (size_t)t * width, 8 * width, width, quad);
        for (uint32_t i = 0; i < 8; i++) _mm512_storeu_ps(to[i] + t, affine(m[i], s[i], member(quad[i / 4], i % 4)));
    }
}

static void ladder_k(const kv_page_layout *L, const uint8_t *page, const kv_page_entry *e, size_t stride, float *k)
{
    const uint8_t *planes = page + L->k_off;
    triple f[7];
    for (uint32_t w = 0; w < 7; w++) f[w] = triple_of(L, page, w);
    for (uint32_t b = 0; b < L->dkp / 8u; b++) {
        const uint32_t w = kv_page_width(e, b);
        switch (w) { /* constant widths unroll */
        case 0: ladder_block(L, page, b, f[0], planes, 0, e->n, stride, k); break;
        case 1: ladder_block(L, page, b, f[1], planes, 1, e->n, stride, k); break;
        case 2: ladder_block(L, page, b, f[2], planes, 2, e->n, stride, k); break;
        case 3: ladder_block(L, page, b, f[3], planes, 3, e->n, stride, k); break;
        default: ladder_block(L, page, b, f[w], planes, w, e->n, stride, k); break;
        }
        planes += (size_t)L->tokens * w;
    }
}

KV_INLINE void ladder_v(const kv_page_layout *L, const uint8_t *page, uint32_t n, float *v, const uint32_t bits)
{
    const triple f = triple_of(L, page, 7);
    const int8_t e0 = (int8_t)page[L->e0_off];
    for (uint32_t t = 0; t < n; t += 8) {
        const uint8_t *tile = page + L->v_off + (size_t)t * (L->dvp / 8u) * bits;
        for (uint32_t c = 0; c < L->dvp; c += 16) {
            v16 s = _mm512_mul_ps(bytes(page + L->v_scale_off + c), _mm512_set1_ps(f.unit));
            v16 m = affine(_mm512_set1_ps(f.lo), _mm512_set1_ps(f.step), bytes(page + L->v_min_off + c));
            n16 quad[2];
            tile_pair(tile + (size_t)c * bits, 8 * bits, bits, quad);
            for (uint32_t i = 0; i < 8; i++) {
                v16 x = _mm512_mul_ps(_mm512_set1_ps(kv_token_scale(e0, page[L->a_off + t + i])), affine(m, s, member(quad[i / 4], i % 4)));
                _mm512_storeu_ps(v + (size_t)(t + i) * L->dvp + c, _mm512_maskz_mov_ps(lanes_of(c, L->dv), x));
            }
        }
    }
}

void kv_tile_unpack_avx512(const kv_page_layout *L, const uint8_t *page, const kv_page_entry *e, size_t stride, float *k, float *v)
{
    switch (L->kind) {
    case KV_KIND_F16: unpack_f16(L, page, e->n, stride, k, v); break;
    case KV_KIND_Q8: unpack_q8(L, page, e->n, stride, k, v); break;
    case KV_KIND_GROUP: unpack_group(L, page, e->n, stride, k, v); break;
    default:
        ladder_k(L, page, e, stride, k);
        switch (L->v_bits) {
        case 2: ladder_v(L, page, e->n, v, 2); break;
        case 3: ladder_v(L, page, e->n, v, 3); break;
        case 4: ladder_v(L, page, e->n, v, 4); break;
        default: ladder_v(L, page, e->n, v, L->v_bits); break;
        }
    }
}
#endif
