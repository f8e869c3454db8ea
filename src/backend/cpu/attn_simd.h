/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention kernels over vectors of 16 floats, included once by each instruction set's file after it has defined:
 *   v16 (16 floats), n16 (16 int32), v_load v_store v_set v_pair(a, b: lanes 0-7, 8-15) v_add v_sub v_mul v_div v_min v_max
 *   v_fma(a, b, c) = a b + c, v_f16 (16 halves), v_u8 (16 bytes), v_scale2(p, t: p times 2 to the low bits of t), v_keep(x, lo, hi, other): lanes
 *   [lo, hi) of x, v_keep_ge(x, t, p): p where x >= t else 0, v_hmax, v_hsum (halves, quarters, ...: x[i] + x[i + 8] first), v_first,
 *   n_round(v16), n_float, n_mul, n_add, n_sub, n_set, n_zero, n_load, n_store, n_hsum, n_bytes(to int8), n_words(to int16), n_shr7,
 *   n_low7, v_codes2, v_codes4 (16 packed codes as floats), v_rank (16 of q's channels by rank), q8_k, q8_v, ladder_k, ladder_v, TILE_NV
 *   (vectors of one register block).
 * Owns the order of every sum. Here: exp, softmax, small kernels; at the end it includes the kernels by subject: attn_tiles_simd.h (unpacked
 * keys), attn_floats_simd.h (F16, GROUP), attn_codes_simd.h (Q8, LADDER).
 */
#include "backend/cpu/attn_common_simd.h"

#define TILE_MR 6 /* rows of a register block: 6 x 4 sums, 4 keys, 1 query of 32 registers */

/* For nq rows of scores, `stride` floats apart, of whose vectors [lo, hi) count: they become 2^(s - m'), m and l move on, and keep =
 * 2^(m - m') is the factor of what was there before. The rows go side by side: one alone waits for its reductions. */
KV_INLINE void softmax_rows(float *s, size_t stride, uint32_t lo, uint32_t hi, float *m, float *l, float *keep, const int nq)
{
    uint32_t g0 = lo / 16 * 16, g1 = (hi + 15) / 16 * 16;
    v16 top[TILE_MR], base[TILE_MR], sum[TILE_MR];
    for (int q = 0; q < nq; q++) {
        float *x = s + (size_t)q * stride;
        if (lo & 15) v_store(x + g0, v_keep(v_load(x + g0), (int)(lo & 15), 16, -INFINITY));
        if (hi & 15) v_store(x + g1 - 16, v_keep(v_load(x + g1 - 16), 0, (int)(hi & 15), -INFINITY));
        top[q] = v_load(x + g0);
        sum[q] = v_set(0.0f);
    }
    for (uint32_t g = g0 + 16; g < g1; g += 16)
        for (int q = 0; q < nq; q++) top[q] = v_max(top[q], v_load(s + (size_t)q * stride + g));
    for (int q = 0; q < nq; q++) {
        float most = v_hmax(top[q]), before = m[q], now = before > most ? before : most, from = now == -INFINITY ? 0.0f : now;
        base[q] = v_set(from);
        keep[q] = v_first(v_exp2(v_set(before - from)));
        m[q] = now;
    }
    for (uint32_t g = g0; g < g1; g += 16)
        for (int q = 0; q < nq; q++) {
            float *x = s + (size_t)q * stride + g;
            v16 p = v_exp2(v_sub(v_load(x), base[q]));
            v_store(x, p);
            sum[q] = v_add(sum[q], p);
        }
    for (int q = 0; q < nq; q++) l[q] = l[q] * keep[q] + v_hsum(sum[q]);
}

/* The same for the slots of a run of pages: scores[q][i][slot] become probabilities in one step; l's sum goes over the pages in order. */
KV_INLINE void softmax_pages(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, float *keep, const int nq)
{
    const size_t row = (size_t)KV_ATTN_RUN * w->slots;
    v16 top[KV_ATTN_QBLOCK], base[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) {
        top[q] = v_set(-INFINITY);
        sum[q] = v_set(0.0f);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t lo = a[i].lo, hi = a[i].hi, g0 = lo / 16 * 16, g1 = (hi + 15) / 16 * 16;
        for (int q = 0; q < nq; q++) {
            float *x = w->scores + (size_t)q * row + (size_t)i * w->slots;
            if (lo & 15) v_store(x + g0, v_keep(v_load(x + g0), (int)(lo & 15), 16, -INFINITY));
            if (hi & 15) v_store(x + g1 - 16, v_keep(v_load(x + g1 - 16), 0, (int)(hi & 15), -INFINITY));
            for (uint32_t g = g0; g < g1; g += 16) top[q] = v_max(top[q], v_load(x + g));
        }
    }
    float *m = a->m + q0, *l = a->l + q0;
    for (int q = 0; q < nq; q++) {
        float most = v_hmax(top[q]), before = m[q], now = before > most ? before : most, from = now == -INFINITY ? 0.0f : now;
        base[q] = v_set(from);
        keep[q] = v_first(v_exp2(v_set(before - from)));
        m[q] = now;
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t g = a[i].lo / 16 * 16; g < a[i].hi; g += 16)
            for (int q = 0; q < nq; q++) {
                float *x = w->scores + (size_t)q * row + (size_t)i * w->slots + g;
                v16 p = v_exp2(v_sub(v_load(x), base[q]));
                v_store(x, p);
                sum[q] = v_add(sum[q], p);
            }
    for (int q = 0; q < nq; q++) l[q] = l[q] * keep[q] + v_hsum(sum[q]);
}

/* o *= keep */
KV_INLINE void keep_rows(const kv_attn_page *a, uint32_t q0, const float *keep, const int nq)
{
    for (int q = 0; q < nq; q++) {
        float *o = a->o + (q0 + (uint32_t)q) * a->o_stride;
        for (uint32_t c = 0; c < a->layout->dvp; c += 16) v_store(o + c, v_mul(v_load(o + c), v_set(keep[q])));
    }
}

KV_INLINE v16 v_abs(v16 x) { return v_max(x, v_sub(v_set(0.0f), x)); }

static void widen(const uint16_t *x, uint32_t n, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(y + i, v_f16(x + i));
    for (; i < n; i++) y[i] = kv_f16_f32(x[i]);
}

/* y[n] = f32(x[n]) for n rounded up to 16, lanes from n on 0. The last vector is read backwards from the end: behind x the page may end. */
KV_INLINE void widen_padded(const uint16_t *x, uint32_t n, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(y + i, v_f16(x + i));
    if (i == n) return;
    v_store(y + i, v_set(0.0f));
    if (n >= 16) v_store(y + n - 16, v_f16(x + n - 16));
    else
        for (uint32_t j = 0; j < n; j++) y[j] = kv_f16_f32(x[j]);
}

#define BY_BLOCK(fn, a, n, w)                                                  \
    for (uint32_t q0_ = 0; q0_ < (a)->nq; q0_ += KV_ATTN_QBLOCK) switch ((a)->nq - q0_) { \
        case 1: fn(a, n, w, q0_, 1); break;                                     \
        case 2: fn(a, n, w, q0_, 2); break;                                     \
        case 3: fn(a, n, w, q0_, 3); break;                                     \
        default: fn(a, n, w, q0_, 4); break;                                    \
    }

static void scale(const float *x, uint32_t n, float s, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(y + i, v_mul(v_load(x + i), v_set(s)));
    for (; i < n; i++) y[i] = x[i] * s;
}

static void join(float *am, float *al, float *ao, float bm, float bl, const float *bo, uint32_t dv)
{
    if (bm == -INFINITY) return;
    float now = *am > bm ? *am : bm;
    v16 fa = v_exp2(v_set(*am - now)), fb = v_exp2(v_set(bm - now));
    float ka = v_first(fa), kb = v_first(fb);
    *al = *al * ka + bl * kb;
    *am = now;
    for (uint32_t c = 0; c < dv; c += 16) v_store(ao + c, v_fma(v_load(bo + c), fb, v_mul(v_load(ao + c), fa)));
}

#include "backend/cpu/attn_tiles_simd.h"
#include "backend/cpu/attn_mass_simd.h"
#include "backend/cpu/attn_floats_simd.h"
#include "backend/cpu/attn_codes_simd.h"
