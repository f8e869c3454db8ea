/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention kernels over vectors of 16 floats, included once by each instruction set's file after it has defined:
 *   v16 (16 floats), n16 (16 int32), v_load v_store v_set v_pair(a, b: lanes 0-7, 8-15) v_add v_sub v_mul v_div v_min v_max
 *   v_fma(a, b, c) = a b + c, v_f16 (16 halves), v_u8 (16 bytes), v_scale2(p, t: p times 2 to the low bits of t), v_keep(x, lo, hi, other): lanes
 *   [lo, hi) of x, v_keep_ge(x, t, p): p where x >= t else 0, v_hmax, v_hsum (halves, quarters, ...: x[i] + x[i + 8] first), v_first,
 *   n_round(v16), n_float, n_mul, n_add, n_sub, n_set, n_zero, n_load, n_store, n_hsum, n_bytes(to int8), n_words(to int16), n_shr7,
 *   n_low7, v_codes2, v_codes4 (16 packed codes as floats), v_rank (16 of q's channels by rank), q8_k, q8_v, ladder_k, ladder_v, TILE_NV
 *   (vectors of one register block).
 * Owns the order of every sum. The integer paths (Q8, LADDER) round exactly as attn_ref.c does, so that codes agree bit for bit.
 */
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE_MR 6 /* rows of a register block: 6 x 4 sums, 4 keys, 1 query of 32 registers */

/* exp(x) for x <= KV_ATTN_EXP_MAX by Cephes' expf: 2^n e^r, |r| <= ln 2 / 2, degree 5 in r beyond 1 + r; relative error below 1e-7,
 * exp(0) = 1. n comes out of the low bits of x log2(e) + 1.5 2^23 and is added to the exponent; lanes below the least x are garbage
 * until the end and then 0. */
INLINE v16 v_exp(v16 x)
{
    const v16 magic = v_set(12582912.0f);
    v16 t = v_fma(x, v_set(1.44269504088896341f), magic), n = v_sub(t, magic);
    v16 r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    v16 p = v_fma(v_set(1.9875691500e-4f), r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_keep_ge(x, KV_ATTN_EXP_MIN, v_scale2(p, t));
}

/* For nq rows of scores, `stride` floats apart, of whose vectors [lo, hi) count: they become exp(s - m'), m and l move on, and keep =
 * exp(m - m') is the factor of what was there before. The rows go side by side: one alone waits for its reductions. */
INLINE void softmax_rows(float *s, size_t stride, uint32_t lo, uint32_t hi, float *m, float *l, float *keep, const int nq)
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
        keep[q] = v_first(v_exp(v_set(before - from)));
        m[q] = now;
    }
    for (uint32_t g = g0; g < g1; g += 16)
        for (int q = 0; q < nq; q++) {
            float *x = s + (size_t)q * stride + g;
            v16 p = v_exp(v_sub(v_load(x), base[q]));
            v_store(x, p);
            sum[q] = v_add(sum[q], p);
        }
    for (int q = 0; q < nq; q++) l[q] = l[q] * keep[q] + v_hsum(sum[q]);
}

/* ------------------------------------------------------------------ tiles */

/* acc[i][j] += sum_c a[i][c] b[c][16 j..], c ascending. */
INLINE void multiply(v16 acc[TILE_MR][TILE_NV], const float *const *a, uint32_t kdim, const float *b, size_t ldb, const int mr, const int nv)
{
    for (uint32_t c = 0; c < kdim; c++, b += ldb) {
        v16 x[TILE_NV];
        for (int j = 0; j < nv; j++) x[j] = v_load(b + 16 * j);
        for (int i = 0; i < mr; i++) {
            v16 y = v_set(a[i][c]);
            for (int j = 0; j < nv; j++) acc[i][j] = v_fma(y, x[j], acc[i][j]);
        }
    }
}

/* o[i][0..16 nv) = o keep[i] + sum_t p[i][t] v[t]. */
INLINE void tile_values(const kv_attn_tile *t, uint32_t i0, uint32_t col, const float *const *p, const float *keep, const int mr, const int nv)
{
    v16 acc[TILE_MR][TILE_NV];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) acc[i][j] = v_mul(v_load(t->o + (i0 + (uint32_t)i) * t->o_stride + col + 16 * j), v_set(keep[i]));
    multiply(acc, p, t->n, t->v + col, t->dvp, mr, nv);
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) v_store(t->o + (i0 + (uint32_t)i) * t->o_stride + col + 16 * j, acc[i][j]);
}

INLINE void tile_rows(const kv_attn_tile *t, uint32_t i0, const int mr)
{
    const float *a[TILE_MR], *p[TILE_MR];
    float keep[TILE_MR];
    for (int i = 0; i < mr; i++) {
        a[i] = t->q + (i0 + (uint32_t)i) * t->q_stride;
        p[i] = t->s + 64 * i;
    }
    for (int col = 0; col < 64; col += 16 * TILE_NV) {
        v16 acc[TILE_MR][TILE_NV];
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < TILE_NV; j++) acc[i][j] = v_set(0.0f);
        multiply(acc, a, t->dk, t->kt + col, 64, mr, TILE_NV);
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < TILE_NV; j++) v_store(t->s + 64 * i + col + 16 * j, acc[i][j]);
    }
    for (int i = 0; i < mr; i++) {
        uint32_t r = i0 + (uint32_t)i, lo = t->lo[r], hi = t->hi[r];
        float *s = t->s + 64 * i;
        if (lo > 0 || hi < 64)
            for (int j = 0; j < 64; j += 16) v_store(s + j, v_keep(v_load(s + j), (int)lo - j, (int)hi - j, -INFINITY));
    }
    softmax_rows(t->s, 64, 0, 64, t->m + i0, t->l + i0, keep, mr);
    uint32_t col = 0;
    for (; col + 16 * TILE_NV <= t->dvp; col += 16 * TILE_NV) tile_values(t, i0, col, p, keep, mr, TILE_NV);
    for (; col < t->dvp; col += 16) tile_values(t, i0, col, p, keep, mr, 1);
}

static void tile(const kv_attn_tile *t)
{
    uint32_t i = 0;
    for (; i + 6 <= t->nq; i += 6) tile_rows(t, i, 6);
    for (; i + 3 <= t->nq; i += 3) tile_rows(t, i, 3);
    for (; i < t->nq; i++) tile_rows(t, i, 1);
}

/* Adds the columns of mr rows, one row after the other. */
INLINE void cols_rows(const kv_attn_cols *c, uint32_t i0, const int mr)
{
    for (int col = 0; col < 64; col += 16 * TILE_NV) {
        v16 acc[TILE_MR][TILE_NV];
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < TILE_NV; j++) acc[i][j] = v_set(0.0f);
        multiply(acc, c->q + i0, c->dk, c->kt + col, 64, mr, TILE_NV);
        for (int i = 0; i < mr; i++) {
            uint32_t r = i0 + (uint32_t)i;
            v16 lse = v_set(-c->lse[r]), scale = v_set(c->scale);
            for (int j = 0; j < TILE_NV; j++) {
                int at = col + 16 * j;
                v16 p = v_keep(v_exp(v_min(v_fma(acc[i][j], scale, lse), v_set(KV_ATTN_EXP_MAX))), (int)c->lo[r] - at, (int)c->hi[r] - at, 0.0f);
                if (c->use[r] & KV_ATTN_SUM) v_store(c->sums + at, v_add(v_load(c->sums + at), c->square ? v_mul(p, p) : p));
                if (c->use[r] & KV_ATTN_MASS) v_store(c->mass + at, v_add(v_load(c->mass + at), p));
            }
        }
    }
}

static void cols(const kv_attn_cols *c)
{
    uint32_t i = 0;
    for (; i + 6 <= c->n; i += 6) cols_rows(c, i, 6);
    for (; i + 3 <= c->n; i += 3) cols_rows(c, i, 3);
    for (; i < c->n; i++) cols_rows(c, i, 1);
}

/* ------------------------------------------------------------------ pages computed in f32: F16, GROUP */
enum { SRC_F16, SRC_2BIT, SRC_4BIT };

/* 16 values from element `at` of a row of f16 or packed codes. */
INLINE v16 source(const uint8_t *row, uint32_t at, const int src)
{
    switch (src) {
    case SRC_F16: return v_f16((const uint16_t *)(const void *)row + at);
    case SRC_2BIT: return v_codes2(row + at / 4);
    default: return v_codes4(row + at / 2);
    }
}
INLINE uint32_t source_bytes(uint32_t n, const int src) { return src == SRC_F16 ? 2 * n : src == SRC_2BIT ? n / 4 : n / 2; }

/* o[q][16 nv channels from col] = o keep[q] + sum over slots, ascending, of p[q][t] x[t][channel]. Packed codes become x by the
 * scale and minimum of their (slot, group of channels). */
INLINE void page_values(const kv_attn_page *a, const kv_attn_work *w, uint32_t q0, const float *keep, uint32_t col,
                        const int src, const int nq, const int nv)
{
    const kv_page_layout *L = a->layout;
    const uint8_t *row = a->data + L->v_off + (size_t)a->lo * source_bytes(L->dvp, src);
    v16 acc[KV_ATTN_QBLOCK][4];
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nv; j++) acc[q][j] = v_mul(v_load(a->o + (q0 + (uint32_t)q) * a->o_stride + col + 16 * j), v_set(keep[q]));
    const float *p = w->scores + a->lo;
    const uint32_t n = a->hi - a->lo, step = source_bytes(L->dvp, src), groups = L->v_groups, shift = kv_formats[L->vf].group == 16 ? 4 : 5;
    const float *ga = w->group_a + (size_t)a->lo * groups + (col >> shift), *gb = w->group_b + (size_t)a->lo * groups + (col >> shift);
    const size_t slots = w->slots;
    uint32_t at[4];
    for (uint32_t j = 0; j < 4; j++) at[j] = ((col + 16 * j) >> shift) - (col >> shift);
    for (uint32_t t = 0; t < n; t++, row += step, ga += groups, gb += groups) {
        v16 x[4];
        for (int j = 0; j < nv; j++) {
            x[j] = source(row, col + 16u * (uint32_t)j, src);
            if (src == SRC_2BIT || src == SRC_4BIT) x[j] = v_fma(x[j], v_set(ga[at[j]]), v_set(gb[at[j]]));
        }
        for (int q = 0; q < nq; q++) {
            v16 y = v_set(p[(uint32_t)q * slots + t]);
            for (int j = 0; j < nv; j++) acc[q][j] = v_fma(y, x[j], acc[q][j]);
        }
    }
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nv; j++) v_store(a->o + (q0 + (uint32_t)q) * a->o_stride + col + 16 * j, acc[q][j]);
}

/* scores[q][t] = bias[q] + sum_c x[c][t] y[q][c] for 16 slots from t0; four partial sums by c mod 4 hide the latency of the FMA. */
INLINE void page_scores(const uint8_t *base, uint32_t P, uint32_t dkp, uint32_t t0, const float *y, size_t y_stride, const float *bias,
                        float *scores, uint32_t slots, const int src, const int nq)
{
    v16 acc[KV_ATTN_QBLOCK][4];
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < 4; j++) acc[q][j] = v_set(0.0f);
    for (uint32_t c = 0; c < dkp; c += 4)
        for (uint32_t j = 0; j < 4; j++) {
            v16 x = source(base + (size_t)(c + j) * source_bytes(P, src), t0, src);
            for (int q = 0; q < nq; q++) acc[q][j] = v_fma(v_set(y[(uint32_t)q * y_stride + c + j]), x, acc[q][j]);
        }
    for (int q = 0; q < nq; q++) {
        v16 s = v_add(v_add(acc[q][0], acc[q][1]), v_add(acc[q][2], acc[q][3]));
        v_store(scores + (uint32_t)q * slots + t0, v_add(s, v_set(bias[q])));
    }
}

/* Fetches a quarter of the next page: all at once would wait for the few line buffers a core has. */
INLINE void prefetch_quarter(const kv_attn_page *a, uint32_t q0, size_t quarter)
{
    if (!a->next || q0) return;
    size_t n = (a->next_bytes / 4 + 63) & ~(size_t)63, from = n * quarter, to = from + n < a->next_bytes ? from + n : a->next_bytes;
    for (size_t i = from; i < to; i += 64) __builtin_prefetch(a->next + i, 0, 3);
}

INLINE void f16_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq)
{
    const kv_page_layout *L = a->layout;
    const float bias[KV_ATTN_QBLOCK] = {0};
    float keep[KV_ATTN_QBLOCK];
    prefetch_quarter(a, q0, 0);
    for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16)
        page_scores(a->data + L->k_off, L->tokens, L->dkp, t, a->q + q0 * a->q_stride, a->q_stride, bias, w->scores, w->slots, SRC_F16, nq);
    prefetch_quarter(a, q0, 1);
    softmax_rows(w->scores, w->slots, a->lo, a->hi, a->m + q0, a->l + q0, keep, nq);
    prefetch_quarter(a, q0, 2);
    prefetch_quarter(a, q0, 3);
    uint32_t col = 0;
    for (; col + 64 <= L->dvp; col += 64) page_values(a, w, q0, keep, col, SRC_F16, nq, 4);
    for (; col < L->dvp; col += 16) page_values(a, w, q0, keep, col, SRC_F16, nq, 1);
}

/* qs[q][c] = q_c scale_c; returns sum_c q_c bias_c (16 lanes over c, then the halves). */
INLINE float fold_scale(const float *q, const float *scale, const float *bias, uint32_t n, float *qs)
{
    v16 sum = v_set(0.0f);
    for (uint32_t c = 0; c < n; c += 16) {
        v16 x = v_load(q + c);
        v_store(qs + c, v_mul(x, v_load(scale + c)));
        sum = v_fma(x, v_load(bias + c), sum);
    }
    return v_hsum(sum);
}

static void widen(const uint16_t *x, uint32_t n, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(y + i, v_f16(x + i));
    for (; i < n; i++) y[i] = kv_f16_f32(x[i]);
}

/* y[n] = f32(x[n]) for n rounded up to 16, lanes from n on 0. The last vector is read backwards from the end: behind x the page may end. */
INLINE void widen_padded(const uint16_t *x, uint32_t n, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(y + i, v_f16(x + i));
    if (i == n) return;
    v_store(y + i, v_set(0.0f));
    if (n >= 16) v_store(y + n - 16, v_f16(x + n - 16));
    else
        for (uint32_t j = 0; j < n; j++) y[j] = kv_f16_f32(x[j]);
}

#define BY_BLOCK(fn, a, w)                                                     \
    for (uint32_t q0_ = 0; q0_ < (a)->nq; q0_ += KV_ATTN_QBLOCK) switch ((a)->nq - q0_) { \
        case 1: fn(a, w, q0_, 1); break;                                        \
        case 2: fn(a, w, q0_, 2); break;                                        \
        case 3: fn(a, w, q0_, 3); break;                                        \
        default: fn(a, w, q0_, 4); break;                                       \
    }

static void page_f16(const kv_attn_page *a, kv_attn_work *w) { BY_BLOCK(f16_block, a, w) }

/* GROUP: a vector of 16 slots lies in one group of K (g is 16 or 32), so the scales fold into the query once a group. */
INLINE void group_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq, const int src)
{
    const kv_page_layout *L = a->layout;
    uint32_t g = kv_formats[L->kf].group;
    float bias[KV_ATTN_QBLOCK], keep[KV_ATTN_QBLOCK];
    prefetch_quarter(a, q0, 0);
    for (uint32_t t0 = a->lo / g * g; t0 < a->hi; t0 += g) {
        widen((const uint16_t *)(const void *)(a->data + L->k_scale_off) + t0 / g * L->dkp, L->dkp, w->k_scale);
        widen((const uint16_t *)(const void *)(a->data + L->k_min_off) + t0 / g * L->dkp, L->dkp, w->k_mid);
        for (int q = 0; q < nq; q++) bias[q] = fold_scale(a->q + (q0 + (uint32_t)q) * a->q_stride, w->k_scale, w->k_mid, L->dkp, w->qs + (uint32_t)q * w->d);
        for (uint32_t t = t0; t < t0 + g && t < a->hi; t += 16)
            page_scores(a->data + L->k_off, L->tokens, L->dkp, t, w->qs, w->d, bias, w->scores, w->slots, src, nq);
    }
    prefetch_quarter(a, q0, 1);
    softmax_rows(w->scores, w->slots, a->lo, a->hi, a->m + q0, a->l + q0, keep, nq);
    prefetch_quarter(a, q0, 2);
    prefetch_quarter(a, q0, 3);
    uint32_t col = 0;
    for (; col + 64 <= L->dvp; col += 64) page_values(a, w, q0, keep, col, src, nq, 4);
    for (; col < L->dvp; col += 16) page_values(a, w, q0, keep, col, src, nq, 1);
}
INLINE void group2_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq) { group_block(a, w, q0, nq, SRC_2BIT); }
INLINE void group4_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq) { group_block(a, w, q0, nq, SRC_4BIT); }

static void page_group(const kv_attn_page *a, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    uint32_t first = a->lo * L->v_groups, n = (a->hi - a->lo) * L->v_groups;
    widen_padded((const uint16_t *)(const void *)(a->data + L->v_scale_off) + first, n, w->group_a + first);
    widen_padded((const uint16_t *)(const void *)(a->data + L->v_min_off) + first, n, w->group_b + first);
    if (L->v_bits == 2) { BY_BLOCK(group2_block, a, w) }
    else { BY_BLOCK(group4_block, a, w) }
}

/* ------------------------------------------------------------------ Q8: integer codes around 128 */
INLINE v16 v_abs(v16 x) { return v_max(x, v_sub(v_set(0.0f), x)); }

/* One step of 16-bit codes for nq rows with largest |x| = top[q]; steps are 0 where all is 0. */
INLINE void code_steps(const v16 *top, const float limit, float *step, v16 *inv, const int nq)
{
    for (int q = 0; q < nq; q++) {
        float most = v_hmax(top[q]);
        bool empty = !(most > KV_ATTN_TINY);
        step[q] = empty ? 0.0f : most / limit;
        inv[q] = v_set(empty ? 0.0f : limit / most);
    }
}

/* Codes of 16 bits of x[q][from, to), multiples of 16; total[q]: 128 times their sum. */
INLINE void make_words(const float *x, size_t x_stride, uint32_t from, uint32_t to, const v16 *top, const float limit, int16_t *codes, size_t stride,
                       float *step, n16 *total, const int nq)
{
    v16 inv[KV_ATTN_QBLOCK];
    n16 sum[KV_ATTN_QBLOCK];
    code_steps(top, limit, step, inv, nq);
    for (int q = 0; q < nq; q++) sum[q] = n_zero();
    for (uint32_t i = from; i < to; i += 16)
        for (int q = 0; q < nq; q++) {
            n16 c = n_round(v_mul(v_load(x + (size_t)q * x_stride + i), inv[q]));
            sum[q] = n_add(sum[q], c);
            n_words(codes + (size_t)q * stride + i, c);
        }
    for (int q = 0; q < nq; q++) total[q] = n_set(128 * n_hsum(sum[q]));
}

INLINE void q8_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq)
{
    const kv_page_layout *L = a->layout;
    const uint32_t stride = w->slots > w->d ? w->slots : w->d, t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    float step[KV_ATTN_QBLOCK], bias[KV_ATTN_QBLOCK], keep[KV_ATTN_QBLOCK];
    int16_t *codes = (int16_t *)(void *)w->codes;
    v16 top[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    n16 total[KV_ATTN_QBLOCK];
    prefetch_quarter(a, q0, 0);
    for (int q = 0; q < nq; q++) top[q] = sum[q] = v_set(0.0f);
    for (uint32_t c = 0; c < L->dkp; c += 16)
        for (int q = 0; q < nq; q++) {
            v16 x = v_load(a->q + (q0 + (uint32_t)q) * a->q_stride + c), y = v_mul(x, v_load(w->k_scale + c));
            sum[q] = v_fma(x, v_load(w->k_mid + c), sum[q]);
            top[q] = v_max(top[q], v_abs(y));
            v_store(w->qs + (uint32_t)q * w->d + c, y);
        }
    for (int q = 0; q < nq; q++) bias[q] = v_hsum(sum[q]);
    make_words(w->qs, w->d, 0, L->dkp, top, KV_ATTN_Q16_MAX, codes, stride, step, total, nq);
    q8_k(a, w, t0, t1, codes, stride, nq);
    for (uint32_t t = t0; t < t1; t += 16)
        for (int q = 0; q < nq; q++) {
            v16 s = n_float(n_sub(n_load(w->isum + (uint32_t)q * stride + t), total[q]));
            v_store(w->scores + (uint32_t)q * w->slots + t, v_fma(s, v_set(step[q]), v_set(bias[q])));
        }
    prefetch_quarter(a, q0, 1);
    softmax_rows(w->scores, w->slots, a->lo, a->hi, a->m + q0, a->l + q0, keep, nq);
    prefetch_quarter(a, q0, 2);
    for (int q = 0; q < nq; q++) top[q] = sum[q] = v_set(0.0f);
    for (uint32_t t = t0; t < t1; t += 16)
        for (int q = 0; q < nq; q++) {
            v16 x = v_load(w->scores + (uint32_t)q * w->slots + t), y = v_mul(x, v_load(w->token_a + t));
            sum[q] = v_fma(x, v_load(w->token_b + t), sum[q]);
            top[q] = v_max(top[q], y);
            v_store(w->weighted + (uint32_t)q * w->slots + t, y);
        }
    for (int q = 0; q < nq; q++) bias[q] = v_hsum(sum[q]);
    make_words(w->weighted, w->slots, t0, t1, top, KV_ATTN_P16_MAX, codes, stride, step, total, nq);
    prefetch_quarter(a, q0, 3);
    q8_v(a, w, codes, stride, nq);
    for (uint32_t c = 0; c < L->dvp; c += 16)
        for (int q = 0; q < nq; q++) {
            float *o = a->o + (q0 + (uint32_t)q) * a->o_stride + c;
            v16 s = n_float(n_sub(n_load(w->isum + (uint32_t)q * stride + c), total[q]));
            v_store(o, v_add(v_mul(v_load(o), v_set(keep[q])), v_fma(s, v_set(step[q]), v_set(bias[q]))));
        }
}

/* s[n] = scale, mid[n] = min + 128 scale of n channels or slots, n rounded up to 16, lanes from n on 0. */
INLINE void q8_affine(const uint8_t *page, uint32_t scale_off, uint32_t min_off, uint32_t n, float *s, float *mid)
{
    widen_padded((const uint16_t *)(const void *)(page + scale_off), n, s);
    widen_padded((const uint16_t *)(const void *)(page + min_off), n, mid);
    for (uint32_t i = 0; i < n; i += 16) v_store(mid + i, v_fma(v_load(s + i), v_set(128.0f), v_load(mid + i)));
}

static void page_q8(const kv_attn_page *a, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    q8_affine(a->data, L->k_scale_off, L->k_min_off, L->dkp, w->k_scale, w->k_mid);
    q8_affine(a->data, L->v_scale_off, L->v_min_off, L->tokens, w->token_a, w->token_b);
    BY_BLOCK(q8_block, a, w)
}

/* ------------------------------------------------------------------ LADDER: integer codes */
/* 2^(exponent + e0) (1 + mantissa / 16) of 16 tokens: their bytes go in above the 19 low bits of a float whose exponent is e0. */
INLINE v16 token_scales(const uint8_t *u, uint32_t bias) { return v_bits(n_add(n_shl19(n_u8(u)), n_set((int)bias))); }

/* Scales and midpoints of the ranks: score = sum_r q_r scale_r (code_r - levels_r / 2) + sum_r q_r mid_r with mid = min + scale levels / 2;
 * centred codes halve what the rounding of the query costs. V likewise, and the token scales. */
INLINE void ladder_scales(const kv_attn_page *a, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    float triple[32], unit[32]; /* {smax, lo, step} of K's widths 0..6 and of V, and a 255th of them; what follows in the page is not used */
    const uint16_t *halves = (const uint16_t *)(const void *)(a->data + L->triples_off);
    for (uint32_t i = 0; i < 32; i += 16) {
        v16 x = v_f16(halves + i);
        v_store(triple + i, x);
        v_store(unit + i, v_div(x, v_set(255.0f)));
    }
    unit[0] = 0.0f; /* no bits: the value is the minimum */
    for (uint32_t r = 0; r < L->dkp; r += 16) {
        uint32_t w0 = kv_page_width(a->entry, r / 8), w1 = kv_page_width(a->entry, r / 8 + 1), t0 = 3 * w0, t1 = 3 * w1;
        v16 levels = v_pair((float)((1u << w0) - 1), (float)((1u << w1) - 1));
        v16 s = v_mul(v_u8(a->data + L->k_scale_off + r), v_pair(unit[t0], unit[t1]));
        v16 min = v_fma(v_u8(a->data + L->k_min_off + r), v_pair(triple[t0 + 2], triple[t1 + 2]), v_pair(triple[t0 + 1], triple[t1 + 1]));
        v_store(w->k_scale + r, s);
        v_store(w->k_mid + r, v_fma(s, v_mul(levels, v_set(0.5f)), min));
        n_store(w->k_levels + r, n_round(levels));
    }
    float half = 0.5f * (float)((1u << L->v_bits) - 1);
    for (uint32_t c = 0; c < L->dvp; c += 16) {
        v16 s = v_mul(v_u8(a->data + L->v_scale_off + c), v_set(unit[21]));
        v16 min = v_fma(v_u8(a->data + L->v_min_off + c), v_set(triple[23]), v_set(triple[22]));
        v_store(w->v_scale + c, s);
        v_store(w->v_mid + c, v_fma(s, v_set(half), min));
    }
    int e0 = (int8_t)a->data[L->e0_off];
    e0 = e0 < -100 ? -100 : e0 > 100 ? 100 : e0;
    uint32_t bias = (uint32_t)(e0 + 127) << 23;
    const uint8_t *u = a->data + L->a_off;
    for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16) {
        if (L->tokens - t >= 16) {
            v_store(w->token_a + t, token_scales(u + t, bias));
        } else { /* 8 slots are left, and the page ends behind them: read from 8 before, or one by one */
            v_store(w->token_a + t, v_set(0.0f));
            if (t) v_store(w->token_a + t - 8, token_scales(u + t - 8, bias));
            else
                for (uint32_t k = 0; k < 8; k++) w->token_a[k] = kv_bits_f32(((uint32_t)u[k] << 19) + bias);
        }
    }
}

/* Codes of nq rows x[q][from, to) (multiples of 16) with largest |x| = top[q]: one row of codes each, or two rows of halves. Writes the steps
 * (0 where all is 0) and total[q] = sum of code times levels (NULL: 1). */
INLINE void make_codes(const float *x, size_t x_stride, uint32_t from, uint32_t to, const v16 *top, const float limit, const bool wide,
                       const int32_t *levels, int8_t *codes, size_t stride, float *step, int32_t *total, const int nq)
{
    v16 inv[KV_ATTN_QBLOCK];
    n16 sum[KV_ATTN_QBLOCK];
    int8_t *row[KV_ATTN_QBLOCK];
    code_steps(top, limit, step, inv, nq);
    for (int q = 0; q < nq; q++) {
        sum[q] = n_zero();
        row[q] = codes + (size_t)q * (wide ? 2 : 1) * stride;
    }
    for (uint32_t i = from; i < to; i += 16)
        for (int q = 0; q < nq; q++) {
            n16 c = n_round(v_mul(v_load(x + (size_t)q * x_stride + i), inv[q]));
            sum[q] = n_add(sum[q], levels ? n_mul(c, n_load(levels + i)) : c);
            n_bytes(row[q] + i, wide ? n_shr7(c) : c);
            if (wide) n_bytes(row[q] + stride + i, n_low7(c));
        }
    for (int q = 0; q < nq; q++) total[q] = n_hsum(sum[q]);
}

/* 2 sum(code x value) - levels x sum(value), from integer sums by row. */
INLINE v16 centred(const int32_t *row, size_t stride, uint32_t i, const bool wide, n16 total)
{
    n16 s = n_load(row + i);
    s = wide ? n_add(n_shl(s, 8), n_shl(n_load(row + stride + i), 1)) : n_shl(s, 1);
    return n_float(n_sub(s, total));
}

/* Query codes: rank order, channel scales folded in. */
INLINE void ladder_queries(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, size_t stride, float *step, float *bias, int32_t *total, const int nq, const bool wide)
{
    const kv_page_layout *L = a->layout;
    v16 top[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) top[q] = sum[q] = v_set(0.0f);
    for (uint32_t r = 0; r < L->dkp; r += 16) {
        v16 scale_r = v_load(w->k_scale + r), mid_r = v_load(w->k_mid + r);
        for (int q = 0; q < nq; q++) {
            v16 x = v_rank(a->q + (q0 + (uint32_t)q) * a->q_stride, L->dkp, a->data + L->k_order_off + r), y = v_mul(x, scale_r);
            sum[q] = v_fma(x, mid_r, sum[q]);
            top[q] = v_max(top[q], v_abs(y));
            v_store(w->qs + (uint32_t)q * w->d + r, y);
        }
    }
    for (int q = 0; q < nq; q++) bias[q] = v_hsum(sum[q]);
    make_codes(w->qs, w->d, 0, L->dkp, top, wide ? KV_ATTN_Q16_MAX : KV_ATTN_Q8_MAX, wide, w->k_levels, w->codes, stride, step, total, nq);
}

/* Probability codes: token scales folded in; sum[q] of p a. */
INLINE void ladder_weights(const kv_attn_page *a, kv_attn_work *w, size_t stride, float *step, float *sum, int32_t *total, const int nq, const bool wide)
{
    uint32_t t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    v16 top[KV_ATTN_QBLOCK], f[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) top[q] = f[q] = v_set(0.0f);
    for (uint32_t t = t0; t < t1; t += 16) {
        v16 x = v_load(w->token_a + t);
        for (int q = 0; q < nq; q++) {
            v16 p = v_mul(v_load(w->scores + (uint32_t)q * w->slots + t), x);
            v_store(w->weighted + (uint32_t)q * w->slots + t, p);
            top[q] = v_max(top[q], p);
            f[q] = v_add(f[q], p);
        }
    }
    for (int q = 0; q < nq; q++) sum[q] = v_hsum(f[q]);
    make_codes(w->weighted, w->slots, t0, t1, top, wide ? KV_ATTN_P16_MAX : KV_ATTN_Q8_MAX, wide, NULL, w->codes, stride, step, total, nq);
}

INLINE void ladder_block(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq, const bool kwide, const bool vwide)
{
    const kv_page_layout *L = a->layout;
    uint32_t stride = w->slots > w->d ? w->slots : w->d;
    float step[KV_ATTN_QBLOCK], bias[KV_ATTN_QBLOCK], keep[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    int32_t total[KV_ATTN_QBLOCK];
    prefetch_quarter(a, q0, 0);
    ladder_queries(a, w, q0, stride, step, bias, total, nq, kwide);
    ladder_k(a, w, stride, nq * (kwide ? 2 : 1));
    for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16)
        for (int q = 0; q < nq; q++) {
            v16 s = centred(w->isum + (uint32_t)q * (kwide ? 2 : 1) * stride, stride, t, kwide, n_set(total[q]));
            v_store(w->scores + (uint32_t)q * w->slots + t, v_fma(s, v_set(0.5f * step[q]), v_set(bias[q])));
        }
    prefetch_quarter(a, q0, 1);
    softmax_rows(w->scores, w->slots, a->lo, a->hi, a->m + q0, a->l + q0, keep, nq);
    prefetch_quarter(a, q0, 2);
    ladder_weights(a, w, stride, step, sum, total, nq, vwide);
    bool any = false;
    for (int q = 0; q < nq; q++) any |= step[q] > 0.0f;
    prefetch_quarter(a, q0, 3);
    if (any) ladder_v(a, w, stride, nq * (vwide ? 2 : 1));
    for (uint32_t c = 0; c < L->dvp; c += 16)
        for (int q = 0; q < nq; q++) {
            float *o = a->o + (q0 + (uint32_t)q) * a->o_stride + c;
            v16 x = v_mul(v_load(o), v_set(keep[q]));
            if (step[q] > 0.0f) {
                n16 all = n_set(total[q] * (int32_t)((1u << L->v_bits) - 1));
                v16 d = v_mul(centred(w->isum + (uint32_t)q * (vwide ? 2 : 1) * stride, stride, c, vwide, all), v_set(0.5f * step[q]));
                x = v_add(x, v_fma(v_load(w->v_scale + c), d, v_mul(v_load(w->v_mid + c), v_set(sum[q]))));
            }
            v_store(o, x);
        }
}

INLINE void ladder_8_8(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq) { ladder_block(a, w, q0, nq, false, false); }
INLINE void ladder_16_16(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const int nq) { ladder_block(a, w, q0, nq, true, true); }
static void ladder_8_16(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, int nq) { ladder_block(a, w, q0, nq, false, true); }
static void ladder_16_8(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, int nq) { ladder_block(a, w, q0, nq, true, false); }

static void page_ladder(const kv_attn_page *a, kv_attn_work *w)
{
    bool kwide = kv_formats[a->layout->kf].code_bits == 16, vwide = kv_formats[a->layout->vf].code_bits == 16;
    ladder_scales(a, w);
    if (!kwide && !vwide) { BY_BLOCK(ladder_8_8, a, w) }
    else if (kwide && vwide) { BY_BLOCK(ladder_16_16, a, w) }
    else if (vwide) { BY_BLOCK(ladder_8_16, a, w) }
    else { BY_BLOCK(ladder_16_8, a, w) }
}

/* ------------------------------------------------------------------ small ones */
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
    v16 fa = v_exp(v_set(*am - now)), fb = v_exp(v_set(bm - now));
    float ka = v_first(fa), kb = v_first(fb);
    *al = *al * ka + bl * kb;
    *am = now;
    for (uint32_t c = 0; c < dv; c += 16) v_store(ao + c, v_fma(v_load(bo + c), fb, v_mul(v_load(ao + c), fa)));
}
