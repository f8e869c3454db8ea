/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attn_tile.h for AVX-512 with VNNI: vpdpwssd multiplies 32 pairs of codes an instruction, twice what an FMA does. Owns the order of the
 * float sums (over tokens, ascending); the integer sums are exact.
 */
#include "backend/cpu/attn.h"
#include "backend/cpu/attn_tile.h"
#include "backend/cpu/loops.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

typedef __m512 v16;
typedef __m512i n16;

/* 2^x by 2^floor(x) 2^r, 0 <= r < 1, degree 5 in r, minimax with 2^0 = 1: relative error below 1e-7. Below -100 it is 2^-100, so that
 * nothing is denormal: no f32 sum that holds a 1 sees it. */
KV_INLINE v16 exp2_of(v16 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
    v16 r = _mm512_reduce_ps(x, 0x09); /* x - floor(x) */
    v16 p = _mm512_fmadd_ps(_mm512_set1_ps(1.86713007e-3f), r, _mm512_set1_ps(9.01703032e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.57999131e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4016445e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93151312e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}

/* Low halves of a and b as pairs. */
KV_INLINE n16 pairs(n16 a, n16 b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)); }
KV_INLINE n16 broadcast(const void *p)
{
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}
/* sum + the products of pairs. In assembler: around the intrinsic gcc 12 copies every sum in every round. */
KV_INLINE n16 dot(n16 sum, n16 x, n16 y)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}
KV_INLINE v16 divide(float a, v16 b) { return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(b, _mm512_set1_ps(KV_ATTN_TINY), _CMP_GT_OQ), _mm512_set1_ps(a), b); }

/* ------------------------------------------------------------------ codes */
/* A step for each token and its reciprocal, 0 for a token of nothing. */
KV_INLINE void key_steps(const float *kt, uint32_t dk, float *step, v16 *inv)
{
    v16 norm[4], top[4];
    for (int v = 0; v < 4; v++) norm[v] = top[v] = _mm512_setzero_ps();
    for (uint32_t c = 0; c < dk; c++)
        for (int v = 0; v < 4; v++) {
            v16 x = _mm512_loadu_ps(kt + c * 64 + 16 * v);
            norm[v] = _mm512_fmadd_ps(x, x, norm[v]);
            top[v] = _mm512_max_ps(top[v], _mm512_abs_ps(x));
        }
    for (int v = 0; v < 4; v++) {
        v16 of_norm = _mm512_mul_ps(_mm512_sqrt_ps(norm[v]), _mm512_set1_ps(1.0f / KV_TILE_NORM));
        v16 x = _mm512_max_ps(_mm512_mul_ps(top[v], _mm512_set1_ps(1.0f / KV_TILE_CODE_MAX)), of_norm);
        inv[v] = divide(1.0f, x);
        _mm512_storeu_ps(step + 16 * v, x);
    }
}

static void key_codes(const float *kt, uint32_t dk, kv_tile_codes *t)
{
    v16 inv[4];
    key_steps(kt, dk, t->k_step, inv);
    for (uint32_t c = 0; c < dk; c += 2)
        for (int v = 0; v < 4; v++) {
            const float *x = kt + c * 64 + 16 * v;
            n16 a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inv[v])), b = _mm512_setzero_si512();
            if (c + 1 < dk) b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 64), inv[v]));
            _mm512_storeu_si512(t->k + c * 32 + 16 * v, pairs(a, b));
        }
}

static void value_codes(const float *v, uint32_t dvp, kv_tile_codes *t)
{
    float inv[64];
    for (uint32_t at = 0; at < 64; at++) {
        v16 top = _mm512_setzero_ps();
        for (uint32_t c = 0; c < dvp; c += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(v + (size_t)at * dvp + c)));
        t->v_step[at] = _mm512_reduce_max_ps(top) * (1.0f / KV_TILE_V_MAX);
    }
    for (uint32_t at = 0; at < 64; at += 16) _mm512_storeu_ps(inv + at, divide(1.0f, _mm512_loadu_ps(t->v_step + at)));
    for (uint32_t at = 0; at < 64; at += 2) {
        v16 a = _mm512_set1_ps(inv[at]), b = _mm512_set1_ps(inv[at + 1]);
        const float *x = v + (size_t)at * dvp;
        for (uint32_t c = 0; c < dvp; c += 16)
            _mm512_storeu_si512(t->v + at / 2 * dvp + c, pairs(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + c), a)),
                                                              _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + dvp + c), b))));
    }
}

static void keys(const float *kt, uint32_t dk, const float *v, uint32_t dvp, kv_tile_codes *t)
{
    key_codes(kt, dk, t);
    if (v) value_codes(v, dvp, t);
}

KV_INLINE __mmask16 first_lanes(uint32_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* 16 x 16 dwords, in place. */
KV_INLINE void transpose(n16 *r)
{
    n16 t[16];
    for (int i = 0; i < 16; i += 4) {
        n16 a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        n16 c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) { /* t[4g + i] lane L: column 4L + i of rows 4g .. 4g + 3 */
        n16 a = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88), b = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
        n16 c = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88), d = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
        r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

/* codes[(dk + 1) / 2] of 16 rows, a lane each; rows from count on are 0. Returns the steps. */
KV_INLINE v16 query_codes(const float *const *x, uint32_t count, uint32_t dk, n16 *codes)
{
    n16 channel[256];
    v16 norm[4], top = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) norm[i] = _mm512_setzero_ps();
    for (uint32_t c = 0; c < dk; c += 16) {
        n16 *y = channel + c;
        for (uint32_t i = 0; i < 16; i++) y[i] = _mm512_maskz_loadu_epi32(i < count ? first_lanes(dk - c) : 0, x[i < count ? i : 0] + c);
        transpose(y);
        for (uint32_t i = 0; i < 16; i++) {
            v16 z = _mm512_castsi512_ps(y[i]);
            norm[i % 4] = _mm512_fmadd_ps(z, z, norm[i % 4]);
            top = _mm512_max_ps(top, _mm512_abs_ps(z));
        }
    }
    v16 of_norm = _mm512_sqrt_ps(_mm512_add_ps(_mm512_add_ps(norm[0], norm[1]), _mm512_add_ps(norm[2], norm[3])));
    v16 step = _mm512_max_ps(_mm512_mul_ps(top, _mm512_set1_ps(1.0f / KV_TILE_CODE_MAX)), _mm512_mul_ps(of_norm, _mm512_set1_ps(1.0f / KV_TILE_NORM)));
    /* Where codes are 0 any step is right but 0 and NaN, which would spoil -inf. */
    step = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), _mm512_cmp_ps_mask(step, _mm512_set1_ps(KV_ATTN_TINY), _CMP_GT_OQ), step);
    v16 inv = _mm512_div_ps(_mm512_set1_ps(1.0f), step);
    for (uint32_t c = 0; c < dk; c += 2) /* channels from dk to a multiple of 16 are 0 */
        codes[c / 2] = pairs(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(channel[c]), inv)),
                             _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(channel[c + 1]), inv)));
    return step;
}

static void queries(const float *const *x, uint32_t count, uint32_t dk, int16_t *const *codes, float *step)
{
    n16 y[128];
    _mm512_mask_storeu_ps(step, first_lanes(count), query_codes(x, count, dk, y));
    for (uint32_t j = 0; j < (dk + 1) / 2; j += 16) {
        transpose(y + j);
        for (uint32_t i = 0; i < count; i++) _mm512_mask_storeu_epi32(codes[i] + 2 * j, first_lanes((dk + 1) / 2 - j), y[j + i]);
    }
}

static void load(kv_tile_rows *r, uint32_t row, uint32_t count, const float *const *x, float scale)
{
    n16 y[128];
    const uint32_t n_pairs = (r->dk + 1) / 2;
    _mm512_storeu_ps(r->q_step + row, _mm512_mul_ps(query_codes(x, count, r->dk, y), _mm512_set1_ps(scale * KV_ATTN_LOG2E)));
    int32_t *to = r->q + (size_t)(row / KV_TILE_BLOCK) * n_pairs * KV_TILE_BLOCK + row % KV_TILE_BLOCK;
    for (uint32_t j = 0; j < n_pairs; j++) _mm512_storeu_si512(to + (size_t)j * KV_TILE_BLOCK, y[j]);
    _mm512_storeu_ps(r->m + row, _mm512_set1_ps(-INFINITY));
    _mm512_storeu_ps(r->l + row, _mm512_setzero_ps());
    float *o = r->o + (size_t)(row / KV_TILE_BLOCK) * r->dvp * KV_TILE_BLOCK + row % KV_TILE_BLOCK;
    for (uint32_t c = 0; c < r->dvp; c++) _mm512_storeu_ps(o + (size_t)c * KV_TILE_BLOCK, _mm512_setzero_ps());
}

static void finish(const kv_tile_rows *r, uint32_t row, uint32_t count, uint32_t dv, float *const *out, float *lse)
{
    v16 inv = divide(1.0f, _mm512_loadu_ps(r->l + row));
    const float *o = r->o + (size_t)(row / KV_TILE_BLOCK) * r->dvp * KV_TILE_BLOCK + row % KV_TILE_BLOCK;
    for (uint32_t i = 0; i < count; i++) {
        float m = r->m[row + i], l = r->l[row + i];
        lse[i] = m == -INFINITY || l == 0.0f ? -INFINITY : m * 0.693147181f + logf(l);
    }
    for (uint32_t c = 0; c < dv; c += 16) {
        n16 y[16];
        for (uint32_t i = 0; i < 16; i++) y[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(o + (size_t)(c + i) * KV_TILE_BLOCK), inv));
        transpose(y);
        for (uint32_t i = 0; i < count; i++) _mm512_mask_storeu_epi32(out[i] + c, first_lanes(dv - c), y[i]);
    }
}

/* ------------------------------------------------------------------ fold: nv vectors of rows
 * 8 tokens or channels by 3 vectors: 24 sums, 3 operands and a broadcast in 32 registers. Of what a sum costs the loads are the part that
 * grows on a core whose other thread is busy: 11 for 24 products, 10 for 16 with two vectors. */
enum { WIDE = KV_TILE_BLOCK / 16 };
typedef struct lanes {
    const int32_t *q; /* [pairs][KV_TILE_BLOCK] */
    float *o;         /* [dvp][KV_TILE_BLOCK] */
    uint32_t row;     /* first */
    n16 lo[WIDE], hi[WIDE];
} lanes;

/* s[t][row] = score / q_step; top: the largest. */
KV_INLINE void scores(const kv_tile_rows *r, const kv_tile_codes *t, const lanes *b, v16 *top, const int nv)
{
    const uint32_t n_pairs = (r->dk + 1) / 2;
    KV_UNROLL
    for (int v = 0; v < nv; v++) top[v] = _mm512_set1_ps(-INFINITY);
    for (int at = 0; at < 64; at += 8) {
        n16 acc[8][WIDE];
        KV_UNROLL
        for (int i = 0; i < 8; i++)
            KV_UNROLL
            for (int v = 0; v < nv; v++) acc[i][v] = _mm512_setzero_si512();
        const int32_t *q = b->q, *k = t->k + at;
        for (uint32_t j = 0; j < n_pairs; j++, q += KV_TILE_BLOCK, k += 64) {
            n16 x[WIDE];
            KV_UNROLL
            for (int v = 0; v < nv; v++) x[v] = _mm512_loadu_si512(q + 16 * v);
            KV_UNROLL
            for (int i = 0; i < 8; i++) {
                n16 y = broadcast(k + i);
                KV_UNROLL
                for (int v = 0; v < nv; v++) acc[i][v] = dot(acc[i][v], x[v], y);
            }
        }
        KV_UNROLL
        for (int i = 0; i < 8; i++)
            KV_UNROLL
            for (int v = 0; v < nv; v++) {
                v16 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][v]), _mm512_set1_ps(t->k_step[at + i]));
                top[v] = _mm512_max_ps(top[v], y);
                _mm512_storeu_ps(r->s + (at + i) * (int)KV_TILE_BLOCK + 16 * v, y);
            }
    }
}

KV_INLINE __mmask16 sees(const lanes *b, int v, int at)
{
    n16 column = _mm512_set1_epi32(at);
    return _mm512_cmple_epi32_mask(b->lo[v], column) & _mm512_cmpgt_epi32_mask(b->hi[v], column);
}

/* Scores of columns a row does not see become -inf. */
KV_INLINE void mask(const kv_tile_rows *r, const lanes *b, v16 *top, const int nv)
{
    for (int v = 0; v < nv; v++) top[v] = _mm512_set1_ps(-INFINITY);
    for (int at = 0; at < 64; at++)
        for (int v = 0; v < nv; v++) {
            float *s = r->s + at * (int)KV_TILE_BLOCK + 16 * v;
            v16 y = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), sees(b, v, at), _mm512_loadu_ps(s));
            top[v] = _mm512_max_ps(top[v], y);
            _mm512_storeu_ps(s, y);
        }
}

/* Scores become codes of probability times V's step, in pairs of tokens; m and l move on. keep: factor of the sums so far, step: of the codes. */
KV_INLINE void probabilities(const kv_tile_rows *r, const kv_tile_codes *t, const lanes *b, const v16 *top, v16 *keep, v16 *step, const int nv,
                          const bool edge)
{
    float *const s = r->s;
    const float *const v_step = t->v_step;
    v16 base[WIDE], scale[WIDE], sum[WIDE], weight[WIDE], most[WIDE], inv[WIDE];
    for (int v = 0; v < nv; v++) {
        float *m = r->m + b->row + 16 * v;
        scale[v] = _mm512_loadu_ps(r->q_step + b->row + 16 * v);
        v16 before = _mm512_loadu_ps(m), now = _mm512_max_ps(before, _mm512_mul_ps(top[v], scale[v]));
        base[v] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(now, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ), now);
        keep[v] = exp2_of(_mm512_sub_ps(before, base[v]));
        _mm512_storeu_ps(m, now);
        sum[v] = weight[v] = most[v] = _mm512_setzero_ps();
    }
    for (uint32_t at = 0; at < 64; at++) {
        v16 of_token = _mm512_set1_ps(v_step[at]);
        for (int v = 0; v < nv; v++) {
            v16 p = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(s + at * KV_TILE_BLOCK + 16 * v), scale[v], base[v]));
            if (edge) p = _mm512_maskz_mov_ps(sees(b, v, (int)at), p);
            v16 w = _mm512_mul_ps(p, of_token);
            sum[v] = _mm512_add_ps(sum[v], p);
            weight[v] = _mm512_add_ps(weight[v], w);
            most[v] = _mm512_max_ps(most[v], w);
            _mm512_storeu_ps(s + at * KV_TILE_BLOCK + 16 * v, w);
        }
    }
    for (int v = 0; v < nv; v++) {
        float *l = r->l + b->row + 16 * v;
        _mm512_storeu_ps(l, _mm512_fmadd_ps(_mm512_loadu_ps(l), keep[v], sum[v]));
        step[v] = _mm512_max_ps(_mm512_mul_ps(weight[v], _mm512_set1_ps(1.0f / KV_TILE_P_SUM)), _mm512_mul_ps(most[v], _mm512_set1_ps(1.0f / KV_TILE_CODE_MAX)));
        inv[v] = divide(1.0f, step[v]);
        /* Without weights: -0, which leaves even the sign of a zero in o. */
        step[v] = _mm512_mask_mov_ps(_mm512_set1_ps(-0.0f), _mm512_cmp_ps_mask(step[v], _mm512_set1_ps(KV_ATTN_TINY), _CMP_GT_OQ), step[v]);
    }
    int32_t *codes = (int32_t *)(void *)s;
    const v16 magic = _mm512_set1_ps(12582912.0f); /* its low 16 bits are 0: those of the sum are the code */
    for (uint32_t j = 0; j < 32; j++)
        for (int v = 0; v < nv; v++) {
            const float *x = s + 2 * j * KV_TILE_BLOCK + 16 * v;
            v16 a = _mm512_fmadd_ps(_mm512_loadu_ps(x), inv[v], magic), c = _mm512_fmadd_ps(_mm512_loadu_ps(x + KV_TILE_BLOCK), inv[v], magic);
            _mm512_storeu_si512(codes + j * KV_TILE_BLOCK + 16 * v, pairs(_mm512_castps_si512(a), _mm512_castps_si512(c)));
        }
}

KV_INLINE void values(const kv_tile_rows *r, const kv_tile_codes *t, const lanes *b, const v16 *keep, const v16 *step, const int nv)
{
    for (uint32_t c = 0; c < r->dvp; c += 8) {
        n16 acc[8][WIDE];
        KV_UNROLL
        for (int i = 0; i < 8; i++)
            KV_UNROLL
            for (int v = 0; v < nv; v++) acc[i][v] = _mm512_setzero_si512();
        const int32_t *p = (const int32_t *)(const void *)r->s, *x = t->v + c;
        for (int j = 0; j < 32; j++, p += KV_TILE_BLOCK, x += r->dvp) {
            n16 w[WIDE];
            KV_UNROLL
            for (int v = 0; v < nv; v++) w[v] = _mm512_loadu_si512(p + 16 * v);
            KV_UNROLL
            for (int i = 0; i < 8; i++) {
                n16 y = broadcast(x + i);
                KV_UNROLL
                for (int v = 0; v < nv; v++) acc[i][v] = dot(acc[i][v], w[v], y);
            }
        }
        KV_UNROLL
        for (int i = 0; i < 8; i++)
            KV_UNROLL
            for (int v = 0; v < nv; v++) {
                float *o = b->o + (c + (uint32_t)i) * KV_TILE_BLOCK + 16 * v;
                _mm512_storeu_ps(o, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i][v]), step[v], _mm512_mul_ps(_mm512_loadu_ps(o), keep[v])));
            }
    }
}

KV_INLINE void fold_lanes(const kv_tile_rows *r, uint32_t row, const kv_tile_codes *t, const int nv)
{
    const uint32_t n_pairs = (r->dk + 1) / 2;
    const size_t block = row / KV_TILE_BLOCK;
    lanes b = {.q = r->q + block * n_pairs * KV_TILE_BLOCK + row % KV_TILE_BLOCK, .o = r->o + block * r->dvp * KV_TILE_BLOCK + row % KV_TILE_BLOCK, .row = row};
    __mmask16 edge = 0; /* rows that do not see all 64 columns */
    for (int v = 0; v < nv; v++) {
        b.lo[v] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(r->lo + row + 16 * v)));
        b.hi[v] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(r->hi + row + 16 * v)));
        edge |= _mm512_cmpgt_epi32_mask(b.lo[v], _mm512_setzero_si512()) | _mm512_cmplt_epi32_mask(b.hi[v], _mm512_set1_epi32(64));
    }
    v16 top[WIDE], keep[WIDE], step[WIDE];
    scores(r, t, &b, top, nv);
    if (edge) {
        mask(r, &b, top, nv);
        probabilities(r, t, &b, top, keep, step, nv, true);
    } else probabilities(r, t, &b, top, keep, step, nv, false);
    values(r, t, &b, keep, step, nv);
}

static void fold(const kv_tile_rows *r, uint32_t from, uint32_t to, const kv_tile_codes *t)
{
    const uint32_t i = from & ~15u, end = (to + 15) & ~15u;
    memset(r->hi + i, 0, from - i);
    memset(r->hi + to, 0, end - to);
    if (end - i == KV_TILE_BLOCK) fold_lanes(r, i, t, 3);
    else if (end - i == 32) fold_lanes(r, i, t, 2);
    else fold_lanes(r, i, t, 1);
}

/* ------------------------------------------------------------------ column sums: tokens in lanes, rows one after the other */
/* plain: every row sees all 64 columns and adds p itself to the sums alone, as most rows of `attn` do. */
KV_INLINE void cols_rows(const kv_tile_cols *c, uint32_t i0, const int mr, const bool plain)
{
    n16 acc[6][4];
    const uint32_t n_pairs = (c->dk + 1) / 2;
    const int32_t *k = c->keys->k, *q[6];
    for (int i = 0; i < mr; i++) {
        q[i] = (const int32_t *)(const void *)c->q[i0 + (uint32_t)i];
        for (int v = 0; v < 4; v++) acc[i][v] = _mm512_setzero_si512();
    }
    for (uint32_t j = 0; j < n_pairs; j++, k += 64) {
        n16 x[4];
        for (int v = 0; v < 4; v++) x[v] = _mm512_loadu_si512(k + 16 * v);
        for (int i = 0; i < mr; i++) {
            n16 y = broadcast(q[i] + j);
            for (int v = 0; v < 4; v++) acc[i][v] = dot(acc[i][v], x[v], y);
        }
    }
    for (int v = 0; v < 4; v++) {
        v16 k_step = _mm512_loadu_ps(c->keys->k_step + 16 * v), sum = _mm512_loadu_ps(c->sums + 16 * v), mass = _mm512_loadu_ps(c->mass + 16 * v);
        if (plain) {
            v16 p[6];
            KV_UNROLL
            for (int i = 0; i < mr; i++) {
                v16 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][v]), k_step);
                p[i] = exp2_of(_mm512_fmsub_ps(y, _mm512_set1_ps(c->q_step[i0 + (uint32_t)i]), _mm512_set1_ps(c->lse[i0 + (uint32_t)i])));
            }
            KV_UNROLL
            for (int i = 0; i < mr; i++) sum = _mm512_add_ps(sum, p[i]);
            _mm512_storeu_ps(c->sums + 16 * v, sum);
            continue;
        }
        for (int i = 0; i < mr; i++) {
            uint32_t r = i0 + (uint32_t)i;
            v16 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][v]), k_step);
            v16 p = exp2_of(_mm512_fmsub_ps(y, _mm512_set1_ps(c->q_step[r]), _mm512_set1_ps(c->lse[r])));
            if (c->lo[r] > 0 || c->hi[r] < 64) {
                uint64_t seen = (c->hi[r] < 64 ? (UINT64_C(1) << c->hi[r]) - 1 : ~UINT64_C(0)) & ~((UINT64_C(1) << c->lo[r]) - 1);
                p = _mm512_maskz_mov_ps((__mmask16)(seen >> (16 * v)), p);
            }
            if (c->use[r] & KV_ATTN_SUM) sum = _mm512_add_ps(sum, c->square ? _mm512_mul_ps(p, p) : p);
            if (c->use[r] & KV_ATTN_MASS) mass = _mm512_add_ps(mass, p);
        }
        _mm512_storeu_ps(c->sums + 16 * v, sum);
        _mm512_storeu_ps(c->mass + 16 * v, mass);
    }
}

static void cols(const kv_tile_cols *c)
{
    uint32_t i = 0;
    for (; i + 6 <= c->n; i += 6) {
        bool plain = !c->square;
        for (uint32_t r = i; r < i + 6; r++) plain = plain && c->lo[r] == 0 && c->hi[r] == 64 && c->use[r] == KV_ATTN_SUM;
        if (plain) cols_rows(c, i, 6, true);
        else cols_rows(c, i, 6, false);
    }
    for (; i < c->n; i++) cols_rows(c, i, 1, false);
}

const kv_tile_ops kv_tile_ops_avx512 = {keys, queries, load, fold, finish, cols, kv_tile_unpack_avx512};
#endif
