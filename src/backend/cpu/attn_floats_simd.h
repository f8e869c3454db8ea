/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages computed in f32, F16 and GROUP: part of attn_simd.h, which includes it. Phases of a run as in attn_codes_simd.h.
 * Order of a sum: see page_scores and page_values.
 */
enum { SRC_F16, SRC_2BIT_16, SRC_2BIT_32, SRC_4BIT_32 }; /* packed codes with their group, so that loops know the steps */
KV_INLINE int source_shift(const int src) { return src == SRC_2BIT_16 ? 4 : 5; }

/* 16 values from element `at` of a row of f16 or packed codes. */
KV_INLINE v16 source(const uint8_t *row, uint32_t at, const int src)
{
    switch (src) {
    case SRC_F16: return v_f16((const uint16_t *)(const void *)row + at);
    case SRC_2BIT_16:
    case SRC_2BIT_32: return v_codes2(row + at / 4);
    default: return v_codes4(row + at / 2);
    }
}
KV_INLINE uint32_t source_bytes(uint32_t n, const int src) { return src == SRC_F16 ? 2 * n : src == SRC_4BIT_32 ? n / 2 : n / 4; }

/* Probabilities of a page from its slot lo on, rows of queries `row` floats apart; GROUP: scales and minima of the same slots' groups. */
typedef struct page_probs {
    const float *p;
    size_t row;
    const float *ga, *gb; /* [slots][v_groups] */
} page_probs;

#ifndef PAGE_PARTS
#define PAGE_PARTS 4 /* sums of page_scores, to hide the latency of the FMA; page_values: vectors of channels at once */
#define PAGE_NV 4
#endif
#ifdef PAGE_LOOPS /* a level's own page_scores and page_values */
#include PAGE_LOOPS
#else
/* o[q][16 nv channels from col] = o keep[q] + sum over slots, ascending, of p[q][t] x[t][channel]. Packed codes become x by the
 * scale and minimum of their (slot, group of channels). f: lines to fetch on the way. */
KV_INLINE void page_values(const kv_attn_page *a, const page_probs *w, uint32_t q0, const float *keep, uint32_t col,
                        const int src, const int nq, const int nv, fetch *f)
{
    const kv_page_layout *L = a->layout;
    const uint32_t step = source_bytes(L->dvp, src), n = a->hi - a->lo, groups = L->v_groups, shift = (uint32_t)source_shift(src);
    const uint8_t *row = a->data + L->v_off + (size_t)a->lo * step;
    v16 acc[KV_ATTN_QBLOCK][4];
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nv; j++) acc[q][j] = v_mul(v_load(a->o + (q0 + (uint32_t)q) * a->o_stride + col + 16 * j), v_set(keep[q]));
    const float *ga = w->ga + (col >> shift), *gb = w->gb + (col >> shift);
    for (uint32_t t = 0; t < n; t++, row += step, ga += groups, gb += groups) {
        v16 x[4];
        fetch_some(f, src == SRC_F16 && nv == 4 ? 2 : 1);
        for (int j = 0; j < nv; j++) {
            x[j] = source(row, col + 16u * (uint32_t)j, src);
            if (src != SRC_F16) x[j] = v_fma(x[j], v_set(ga[16 * j >> shift]), v_set(gb[16 * j >> shift])); /* col is a multiple of 64 where nv > 1 */
        }
        for (int q = 0; q < nq; q++) {
            v16 y = v_set(w->p[(size_t)q * w->row + t]);
            for (int j = 0; j < nv; j++) acc[q][j] = v_fma(y, x[j], acc[q][j]);
        }
    }
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nv; j++) v_store(a->o + (q0 + (uint32_t)q) * a->o_stride + col + 16 * j, acc[q][j]);
}

/* scores[q][t] = bias[q] + sum_c x[c][t] y[q][c] for 16 slots from t0, by PAGE_PARTS partial sums of c mod 4. f: as above. */
KV_INLINE void page_scores(const uint8_t *base, uint32_t P, uint32_t dkp, uint32_t t0, const float *y, size_t y_stride, const float *bias,
                        float *scores, size_t row, const int src, const int nq, fetch *f)
{
    v16 acc[KV_ATTN_QBLOCK][4];
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < PAGE_PARTS; j++) acc[q][j] = v_set(0.0f);
    for (uint32_t c = 0; c < dkp; c += 4) {
        fetch_some(f, src == SRC_F16 ? 2 : 1);
        for (uint32_t j = 0; j < 4; j++) {
            v16 x = source(base + (size_t)(c + j) * source_bytes(P, src), t0, src);
            for (int q = 0; q < nq; q++) acc[q][j % PAGE_PARTS] = v_fma(v_set(y[(uint32_t)q * y_stride + c + j]), x, acc[q][j % PAGE_PARTS]);
        }
    }
    for (int q = 0; q < nq; q++) {
        v16 s = PAGE_PARTS == 4 ? v_add(v_add(acc[q][0], acc[q][1]), v_add(acc[q][2], acc[q][3])) : acc[q][0];
        v_store(scores + (size_t)q * row + t0, v_add(s, v_set(bias[q])));
    }
}
#endif

/* Values of all pages of a run; keep comes in with the first. */
KV_INLINE void run_values(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const float *keep, const int src, const int nq)
{
    const float ones[KV_ATTN_QBLOCK] = {1.0f, 1.0f, 1.0f, 1.0f};
    const uint32_t dvp = a->layout->dvp, groups = a->layout->v_groups;
    for (uint32_t i = 0; i < n; i++, keep = ones) {
        const page_probs x = {w->scores + (size_t)i * w->slots + a[i].lo, (size_t)KV_ATTN_RUN * w->slots,
                              w->group_a + (size_t)i * w->group_stride + (size_t)a[i].lo * groups,
                              w->group_b + (size_t)i * w->group_stride + (size_t)a[i].lo * groups};
        uint32_t col = 0;
        fetch f = q0 ? fetch_nothing(a + i) : fetch_next_keys(a + i);
        for (; col + 16 * PAGE_NV <= dvp; col += 16 * PAGE_NV) page_values(a + i, &x, q0, keep, col, src, nq, PAGE_NV, &f);
        for (; col < dvp; col += 16) page_values(a + i, &x, q0, keep, col, src, nq, 1, &f);
        fetch_rest(f);
        if (!q0) fetch_next_scales(a + i);
    }
}

KV_INLINE void f16_block(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq)
{
    const kv_page_layout *L = a->layout;
    const float bias[KV_ATTN_QBLOCK] = {0};
    float keep[KV_ATTN_QBLOCK];
    for (uint32_t i = 0; i < n; i++) {
        fetch f = q0 ? fetch_nothing(a + i) : fetch_values(a + i);
        for (uint32_t t = a[i].lo & ~15u; t < a[i].hi; t += 16)
            page_scores(a[i].data + L->k_off, L->tokens, L->dkp, t, a->q + q0 * a->q_stride, a->q_stride, bias, w->scores + (size_t)i * w->slots,
                        (size_t)KV_ATTN_RUN * w->slots, SRC_F16, nq, &f);
        fetch_rest(f);
    }
    if (a->tap) tap(a, n, w->scores, (size_t)KV_ATTN_RUN * w->slots, w->slots, q0, nq);
    softmax_pages(a, n, w, q0, keep, nq);
    run_values(a, n, w, q0, keep, SRC_F16, nq);
}

/* qs[q][c] = q_c scale_c; bias[q] = sum_c q_c min_c (16 lanes over c, then the halves) for a group's n scales and minima in f16. */
KV_INLINE void fold_group(const kv_attn_page *a, uint32_t q0, const uint16_t *scale, const uint16_t *min, uint32_t n, float *qs, size_t stride, float *bias,
                       const int nq)
{
    v16 sum[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) sum[q] = v_set(0.0f);
    for (uint32_t c = 0; c < n; c += 16) {
        v16 s = v_f16(scale + c), m = v_f16(min + c);
        for (int q = 0; q < nq; q++) {
            v16 x = v_load(a->q + (q0 + (uint32_t)q) * a->q_stride + c);
            v_store(qs + (size_t)q * stride + c, v_mul(x, s));
            sum[q] = v_fma(x, m, sum[q]);
        }
    }
    for (int q = 0; q < nq; q++) bias[q] = v_hsum(sum[q]);
}

static void page_f16(const kv_attn_page *a, uint32_t n, kv_attn_work *w) { BY_BLOCK(f16_block, a, n, w) }

/* GROUP: a vector of 16 slots lies in one group of K (g is 16 or 32), so the scales fold into the query once a group. */
KV_INLINE void group_scores(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, float *scores, const int src, const int nq)
{
    const kv_page_layout *L = a->layout;
    const uint32_t g = 1u << source_shift(src);
    float bias[KV_ATTN_QBLOCK];
    fetch f = q0 ? fetch_nothing(a) : fetch_values(a);
    for (uint32_t t0 = a->lo / g * g; t0 < a->hi; t0 += g) {
        fold_group(a, q0, (const uint16_t *)(const void *)(a->data + L->k_scale_off) + t0 / g * L->dkp,
                   (const uint16_t *)(const void *)(a->data + L->k_min_off) + t0 / g * L->dkp, L->dkp, w->qs, w->d, bias, nq);
        for (uint32_t t = t0; t < t0 + g && t < a->hi; t += 16)
            page_scores(a->data + L->k_off, L->tokens, L->dkp, t, w->qs, w->d, bias, scores, (size_t)KV_ATTN_RUN * w->slots, src, nq, &f);
    }
    fetch_rest(f);
}

KV_INLINE void group_block(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq, const int src)
{
    float keep[KV_ATTN_QBLOCK];
    for (uint32_t i = 0; i < n; i++) {
        group_scores(a + i, w, q0, w->scores + (size_t)i * w->slots, src, nq);
    }
    if (a->tap) tap(a, n, w->scores, (size_t)KV_ATTN_RUN * w->slots, w->slots, q0, nq);
    softmax_pages(a, n, w, q0, keep, nq);
    run_values(a, n, w, q0, keep, src, nq);
}
KV_INLINE void block_2_16(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq) { group_block(a, n, w, q0, nq, SRC_2BIT_16); }
KV_INLINE void block_2_32(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq) { group_block(a, n, w, q0, nq, SRC_2BIT_32); }
KV_INLINE void block_4_32(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq) { group_block(a, n, w, q0, nq, SRC_4BIT_32); }

static void page_group(const kv_attn_page *a, uint32_t n, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = a[i].lo * L->v_groups, count = (a[i].hi - a[i].lo) * L->v_groups;
        widen_padded((const uint16_t *)(const void *)(a[i].data + L->v_scale_off) + first, count, w->group_a + i * w->group_stride + first);
        widen_padded((const uint16_t *)(const void *)(a[i].data + L->v_min_off) + first, count, w->group_b + i * w->group_stride + first);
    }
    if (L->v_bits == 4) { BY_BLOCK(block_4_32, a, n, w) }
    else if (kv_formats[L->vf].group == 16) { BY_BLOCK(block_2_16, a, n, w) }
    else { BY_BLOCK(block_2_32, a, n, w) }
}
