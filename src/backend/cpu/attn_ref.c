/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention kernels in plain C: the reference. Reads top to bottom, one query at a time; nothing is shared between queries. The
 * Q8 and LADDER paths are the integer arithmetic that every level must reproduce with the same roundings (round half to even, sums of floats over 16
 * lanes, then lane i + lane i + 8, + 4, + 2, + 1); the others compute in f32 in the same order but without fused operations.
 * Pages of a run share one step of the softmax. Softcap is built here only.
 */
#include "backend/cpu/attn.h"
#include "base/half.h"

#include <math.h>
#include <string.h>

static float exp_ref(float x)
{
    if (!(x >= KV_ATTN_EXP_MIN)) return 0.0f;
    if (x > KV_ATTN_EXP_MAX) x = KV_ATTN_EXP_MAX;
    float t = fmaf(x, 1.44269504088896341f, 12582912.0f), n = t - 12582912.0f; /* rounds to the nearest integer */
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return p * kv_bits_f32((uint32_t)((int)n + 127) << 23);
}

static float exp2_ref(float x)
{
    if (!(x >= KV_ATTN_EXP2_MIN)) return 0.0f;
    float n = rintf(x), r = x - n;
    float p = fmaf(1.3264727313e-03f, r, 9.6715129912e-03f);
    p = fmaf(p, r, 5.5507335812e-02f);
    p = fmaf(p, r, 2.4022242427e-01f);
    p = fmaf(p, r, 6.9314700365e-01f);
    p = fmaf(p, r, 1.0f);
    return p * kv_bits_f32((uint32_t)((int)n + 127) << 23);
}

/* A sum over 16 lanes: element i goes to lane i & 15. */
typedef struct { float lane[16]; } sum16;
static float sum16_total(const sum16 *s)
{
    float x[16];
    memcpy(x, s->lane, sizeof x);
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
}

static float capped(float s, float softcap) { return softcap != 0.0f ? softcap * tanhf(s / softcap) : s; }
static float capped2(float s, float softcap) { return softcap != 0.0f ? capped(s * KV_ATTN_LN2, softcap) * KV_ATTN_LOG2E : s; }

/* s[lo, hi) become 2^(s - m'); m, l move on; returns 2^(m - m'). */
static float softmax_step(float *s, uint32_t lo, uint32_t hi, float softcap, float *m, float *l)
{
    float now = *m;
    for (uint32_t t = lo; t < hi; t++) {
        s[t] = capped2(s[t], softcap);
        if (s[t] > now) now = s[t];
    }
    float base = now == -INFINITY ? 0.0f : now, keep = exp2_ref(*m - base);
    sum16 sum = {{0}};
    for (uint32_t t = lo; t < hi; t++) {
        s[t] = exp2_ref(s[t] - base);
        sum.lane[t & 15] += s[t];
    }
    *l = *l * keep + sum16_total(&sum);
    *m = now;
    return keep;
}

/* The same for the slots of a run: page i's scores at w->scores + i slots. */
static float softmax_run(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t query)
{
    float *m = &a->m[query], *l = &a->l[query], now = *m;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = a[i].lo; t < a[i].hi; t++) {
            float *s = &w->scores[i * w->slots + t];
            *s = capped2(*s, a->softcap);
            if (*s > now) now = *s;
        }
    float base = now == -INFINITY ? 0.0f : now, keep = exp2_ref(*m - base);
    sum16 sum = {{0}};
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = a[i].lo; t < a[i].hi; t++) {
            float *s = &w->scores[i * w->slots + t];
            *s = exp2_ref(*s - base);
            sum.lane[t & 15] += *s;
        }
    *l = *l * keep + sum16_total(&sum);
    *m = now;
    return keep;
}

/* ------------------------------------------------------------------ masses */
static void tap_page(const kv_attn_page *a, const float *s, float *y)
{
    sum16 sum = {{0}}, squares = {{0}};
    float most = -INFINITY;
    for (uint32_t t = a->lo; t < a->hi; t++) most = fmaxf(most, capped2(s[t], a->softcap));
    for (uint32_t t = a->lo; t < a->hi && most > -INFINITY; t++) {
        float p = exp2_ref(capped2(s[t], a->softcap) - most);
        sum.lane[t & 15] += p;
        squares.lane[t & 15] = fmaf(p, p, squares.lane[t & 15]);
    }
    y[0] = most;
    y[1] = sum16_total(&sum);
    y[2] = sum16_total(&squares);
}

static void tap(const kv_attn_page *a, uint32_t n, const float *scores, size_t row, size_t step, uint32_t q0, int nq)
{
    for (uint32_t i = 0; i < n; i++)
        for (int q = 0; q < nq; q++) {
            const float *s = scores + (size_t)q * row + i * step;
            float *y = a[i].tap + (q0 + (uint32_t)q) * a[i].tap_stride;
            if (a[i].layout->kind != KV_KIND_F16) {
                tap_page(&a[i], s, y);
                continue;
            }
            for (uint32_t t = 0; t < a[i].tap_stride; t++) y[t] = t >= a[i].lo && t < a[i].hi ? capped2(s[t], a[i].softcap) : -INFINITY;
        }
}

static void mass(float *y, uint32_t slots, uint32_t group, bool f16, const float *lse2, bool square)
{
    float sum = 0.0f;
    if (!f16) {
        for (uint32_t g = 0; g < group; g++) {
            const float *x = y + (size_t)g * slots;
            float p = exp2_ref(x[0] - lse2[g]);
            sum += square ? x[2] * (p * p) : x[1] * p;
        }
        y[0] = sum;
        return;
    }
    for (uint32_t t = 0; t < slots; t++) {
        sum = 0.0f;
        for (uint32_t g = 0; g < group; g++) {
            float p = exp2_ref(y[(size_t)g * slots + t] - lse2[g]);
            sum += square ? p * p : p;
        }
        y[t] = sum;
    }
}

/* A kind is two steps, each for one page and one query: scores; values added to o. */
typedef void scores_fn(const kv_attn_page *a, kv_attn_work *w, const float *q, float *s);
typedef void values_fn(const kv_attn_page *a, kv_attn_work *w, const float *p, float *o);
static void fold_run(const kv_attn_page *a, uint32_t n, kv_attn_work *w, scores_fn *scores, values_fn *values)
{
    for (uint32_t q = 0; q < a->nq; q++) {
        float *o = a->o + q * a->o_stride;
        for (uint32_t i = 0; i < n; i++) scores(&a[i], w, a->q + q * a->q_stride, w->scores + i * w->slots);
        if (a->tap) tap(a, n, w->scores, 0, w->slots, q, 1);
        float keep = softmax_run(a, n, w, q);
        for (uint32_t c = 0; c < a->layout->dvp; c++) o[c] *= keep;
        for (uint32_t i = 0; i < n; i++) values(&a[i], w, w->scores + i * w->slots, o);
    }
}

static float half_at(const uint8_t *page, uint32_t off, uint32_t i)
{
    uint16_t h;
    memcpy(&h, page + off + 2 * i, 2);
    return kv_f16_f32(h);
}

/* Bit i of a plane. */
static uint32_t plane_bit(const uint8_t *plane, uint32_t i) { return (uint32_t)(plane[i >> 3] >> (i & 7)) & 1u; }

/* ------------------------------------------------------------------ kinds computed in f32 */
/* One element of K or V: kind, packed bits. */
static float k_value(const kv_attn_page *a, uint32_t t, uint32_t c)
{
    const kv_page_layout *L = a->layout;
    if (L->kind == KV_KIND_F16) return half_at(a->data, L->k_off, c * L->tokens + t);
    uint32_t bits = kv_formats[L->kf].k_bits2 / 2u, g = t / kv_formats[L->kf].group * L->dkp + c;
    const uint8_t *row = a->data + L->k_off + c * (L->tokens * bits / 8);
    uint32_t code = (uint32_t)(row[t * bits / 8] >> (t * bits % 8)) & ((1u << bits) - 1);
    return half_at(a->data, L->k_min_off, g) + half_at(a->data, L->k_scale_off, g) * (float)code;
}

static float v_value(const kv_attn_page *a, uint32_t t, uint32_t c)
{
    const kv_page_layout *L = a->layout;
    if (L->kind == KV_KIND_F16) return half_at(a->data, L->v_off, t * L->dvp + c);
    uint32_t bits = L->v_bits, g = t * L->v_groups + c / kv_formats[L->vf].group;
    const uint8_t *row = a->data + L->v_off + t * (L->dvp * bits / 8u);
    uint32_t code = (uint32_t)(row[c * bits / 8] >> (c * bits % 8)) & ((1u << bits) - 1);
    return half_at(a->data, L->v_min_off, g) + half_at(a->data, L->v_scale_off, g) * (float)code;
}

static void float_scores(const kv_attn_page *a, kv_attn_work *w, const float *q, float *s)
{
    (void)w;
    for (uint32_t t = a->lo; t < a->hi; t++) {
        s[t] = 0.0f;
        for (uint32_t c = 0; c < a->layout->dk; c++) s[t] += q[c] * k_value(a, t, c);
    }
}
static void float_values(const kv_attn_page *a, kv_attn_work *w, const float *p, float *o)
{
    (void)w;
    for (uint32_t c = 0; c < a->layout->dv; c++)
        for (uint32_t t = a->lo; t < a->hi; t++) o[c] += p[t] * v_value(a, t, c);
}
static void page_floats(const kv_attn_page *a, uint32_t n, kv_attn_work *w) { fold_run(a, n, w, float_scores, float_values); }

/* What makes codes of 8 or 16 bits of x: code = rint(x * inv), x = code * step. */
typedef struct { float inv, step; } quantizer;
static quantizer quantizer_for(float top, float limit)
{
    if (!(top > KV_ATTN_TINY)) return (quantizer){0.0f, 0.0f};
    return (quantizer){limit / top, top / limit};
}

/* ------------------------------------------------------------------ Q8 */
/* value = mid + scale (code - 128), mid = min + 128 scale */
static void q8_scores(const kv_attn_page *a, kv_attn_work *w, const float *q, float *s)
{
    const kv_page_layout *L = a->layout;
    sum16 bias = {{0}};
    float top = 0.0f;
    for (uint32_t c = 0; c < L->dkp; c++) {
        float scale = half_at(a->data, L->k_scale_off, c);
        w->qs[c] = q[c] * scale;
        bias.lane[c & 15] = fmaf(q[c], fmaf(scale, 128.0f, half_at(a->data, L->k_min_off, c)), bias.lane[c & 15]);
        top = fmaxf(top, fabsf(w->qs[c]));
    }
    quantizer z = quantizer_for(top, KV_ATTN_Q16_MAX);
    float total_bias = sum16_total(&bias);
    for (uint32_t t = a->lo; t < a->hi; t++) {
        int32_t isum = 0;
        for (uint32_t c = 0; c < L->dkp; c++) isum += (int32_t)rintf(w->qs[c] * z.inv) * (a->data[L->k_off + c * L->tokens + t] - 128);
        s[t] = fmaf((float)isum, z.step, total_bias);
    }
}

static void q8_values(const kv_attn_page *a, kv_attn_work *w, const float *p, float *o)
{
    const kv_page_layout *L = a->layout;
    sum16 sum = {{0}};
    float top = 0.0f;
    for (uint32_t t = a->lo; t < a->hi; t++) {
        float scale = half_at(a->data, L->v_scale_off, t);
        w->weighted[t] = p[t] * scale;
        sum.lane[t & 15] = fmaf(p[t], fmaf(scale, 128.0f, half_at(a->data, L->v_min_off, t)), sum.lane[t & 15]);
        top = fmaxf(top, w->weighted[t]);
    }
    quantizer z = quantizer_for(top, KV_ATTN_P16_MAX);
    float total = sum16_total(&sum);
    for (uint32_t c = 0; c < L->dvp; c++) {
        int32_t isum = 0;
        for (uint32_t t = a->lo; t < a->hi; t++) isum += (int32_t)rintf(w->weighted[t] * z.inv) * (a->data[L->v_off + t * L->dvp + c] - 128);
        o[c] += fmaf((float)isum, z.step, total);
    }
}

static void page_q8(const kv_attn_page *a, uint32_t n, kv_attn_work *w) { fold_run(a, n, w, q8_scores, q8_values); }

/* ------------------------------------------------------------------ LADDER */
typedef struct { float scale, mid; } affine; /* value = mid + scale (code - levels / 2) */

static affine affine_of(const kv_page_layout *L, const uint8_t *page, uint32_t triple, uint32_t bits, uint8_t u_scale, uint8_t u_min)
{
    uint32_t off = L->triples_off + 6 * triple;
    float scale = bits ? (float)u_scale * (half_at(page, off, 0) / 255.0f) : 0.0f;
    float min = fmaf((float)u_min, half_at(page, off, 2), half_at(page, off, 1));
    return (affine){scale, fmaf(scale, (float)((1u << bits) - 1) * 0.5f, min)};
}

static void ladder_scores(const kv_attn_page *a, kv_attn_work *w, const float *q, float *s)
{
    const kv_page_layout *L = a->layout;
    const uint8_t *planes = a->data + L->k_off, *order = a->data + L->k_order_off;
    sum16 bias = {{0}};
    float top = 0.0f;
    for (uint32_t r = 0; r < L->dkp; r++) {
        uint32_t bits = kv_page_width(a->entry, r / 8);
        affine f = affine_of(L, a->data, bits, bits, a->data[L->k_scale_off + r], a->data[L->k_min_off + r]);
        w->qs[r] = q[order[r]] * f.scale;
        bias.lane[r & 15] = fmaf(q[order[r]], f.mid, bias.lane[r & 15]);
        top = fmaxf(top, fabsf(w->qs[r]));
    }
    quantizer z = quantizer_for(top, kv_formats[L->kf].code_bits == 16 ? KV_ATTN_Q16_MAX : KV_ATTN_Q8_MAX);
    float total_bias = sum16_total(&bias);
    int32_t total = 0;
    memset(w->isum, 0, w->slots * sizeof *w->isum);
    for (uint32_t r = 0; r < L->dkp; r++) {
        uint32_t bits = kv_page_width(a->entry, r / 8), i = r & 7;
        int32_t query = (int32_t)rintf(w->qs[r] * z.inv), levels = (int32_t)(1u << bits) - 1;
        for (uint32_t t = a->lo; t < a->hi; t++) {
            int32_t code = 0;
            for (uint32_t p = 0; p < bits; p++) code |= (int32_t)(plane_bit(planes + 8 * (t / 8 * bits + p), 32 * (i >> 2) + 4 * (t & 7) + (i & 3)) << p);
            w->isum[t] += query * code;
        }
        total += query * levels;
        if (i == 7) planes += L->tokens * bits;
    }
    total_bias = fmaf(-0.5f * (float)total, z.step, total_bias); /* codes around their middle */
    for (uint32_t t = a->lo; t < a->hi; t++) s[t] = fmaf((float)w->isum[t], z.step, total_bias);
}

static void ladder_values(const kv_attn_page *a, kv_attn_work *w, const float *p, float *o)
{
    const kv_page_layout *L = a->layout;
    int e0 = (int8_t)a->data[L->e0_off];
    sum16 sum = {{0}};
    float top = 0.0f;
    for (uint32_t t = a->lo; t < a->hi; t++) {
        uint8_t u = a->data[L->a_off + t];
        w->weighted[t] = p[t] * ldexpf(1.0f + (float)(u & 15) / 16.0f, e0 + (u >> 4));
        sum.lane[t & 15] += w->weighted[t];
        top = fmaxf(top, w->weighted[t]);
    }
    quantizer z = quantizer_for(top, kv_formats[L->vf].code_bits == 16 ? KV_ATTN_P16_MAX : KV_ATTN_Q8_MAX);
    float total = sum16_total(&sum);
    int32_t total_code = 0;
    for (uint32_t t = a->lo; t < a->hi; t++) total_code += (int32_t)rintf(w->weighted[t] * z.inv);
    float off = (float)total_code * (-0.5f * (float)((1u << L->v_bits) - 1)) * z.step; /* codes around their middle */
    for (uint32_t c = 0; c < L->dvp; c++) {
        affine f = affine_of(L, a->data, 7, L->v_bits, a->data[L->v_scale_off + c], a->data[L->v_min_off + c]);
        int32_t isum = 0;
        for (uint32_t t = a->lo; t < a->hi; t++) {
            const uint8_t *tile = a->data + L->v_off + 8 * (t / 8 * (L->dvp / 8u) + c / 8) * L->v_bits;
            int32_t code = 0, p_code = (int32_t)rintf(w->weighted[t] * z.inv);
            for (uint32_t b = 0; b < L->v_bits; b++) code |= (int32_t)(plane_bit(tile + 8 * b, 32 * ((t & 7) >> 2) + 4 * (c & 7) + (t & 3)) << b);
            isum += p_code * code;
        }
        o[c] = fmaf(f.scale, fmaf((float)isum, z.step, off), fmaf(f.mid, total, o[c]));
    }
}

static void page_ladder(const kv_attn_page *a, uint32_t n, kv_attn_work *w) { fold_run(a, n, w, ladder_scores, ladder_values); }

/* ------------------------------------------------------------------ tiles */
/* s[64] of one query. */
static void tile_scores(const float *q, const float *kt, uint32_t dk, float *s)
{
    memset(s, 0, 64 * sizeof *s);
    for (uint32_t c = 0; c < dk; c++)
        for (uint32_t t = 0; t < 64; t++) s[t] += q[c] * kt[c * 64 + t];
}

static void tile(const kv_attn_tile *t)
{
    for (uint32_t i = 0; i < t->nq; i++) {
        float *s = t->s, *o = t->o + i * t->o_stride;
        tile_scores(t->q + i * t->q_stride, t->kt, t->dk, s);
        float keep = softmax_step(s, t->lo[i], t->hi[i], t->softcap, &t->m[i], &t->l[i]);
        for (uint32_t c = 0; c < t->dvp; c++) o[c] *= keep;
        for (uint32_t k = t->lo[i]; k < t->hi[i]; k++)
            for (uint32_t c = 0; c < t->dvp; c++) o[c] += s[k] * t->v[k * t->dvp + c];
    }
}

static void cols(const kv_attn_cols *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        float s[64];
        tile_scores(c->q[i], c->kt, c->dk, s);
        for (uint32_t t = c->lo[i]; t < c->hi[i]; t++) {
            float p = exp_ref(capped(s[t] * c->scale, c->softcap) - c->lse[i]);
            if (c->use[i] & KV_ATTN_SUM) c->sums[t] += c->square ? p * p : p;
            if (c->use[i] & KV_ATTN_MASS) c->mass[t] += p;
        }
    }
}

static void pack_k(const uint16_t *rows, size_t stride, uint32_t n, uint32_t dk, uint32_t col0, float *kt)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = 0; c < dk; c++) kt[c * 64 + col0 + t] = kv_f16_f32(rows[t * stride + c]);
}

static void widen(const uint16_t *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++) y[i] = kv_f16_f32(x[i]);
}

static void scale(const float *x, uint32_t n, float s, float *y)
{
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] * s;
}

static void join(float *am, float *al, float *ao, float bm, float bl, const float *bo, uint32_t dv)
{
    if (bm == -INFINITY) return;
    float now = *am > bm ? *am : bm, ka = exp2_ref(*am - now), kb = exp2_ref(bm - now);
    *al = *al * ka + bl * kb;
    *am = now;
    for (uint32_t c = 0; c < dv; c++) ao[c] = fmaf(bo[c], kb, ao[c] * ka);
}

const struct kv_attn_kernels kv_attn_kernels_ref = {"ref", {page_floats, page_q8, page_ladder, page_floats}, tile, cols, pack_k, widen, scale, join, tap, mass};
