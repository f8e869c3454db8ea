/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages computed on their integer codes, Q8 and LADDER: part of attn_simd.h, which includes it. Every rounding is that of attn_ref.c: codes
 * of queries and probabilities, integer sums, sums of floats over 16 lanes. A run's pages go through three phases: scores page by page, one step
 * of the softmax, values page by page. KV_ATTN_OWN_LADDER: the instruction set has LADDER kernels of its own.
 */
/* ------------------------------------------------------------------ Q8: integer codes around 128 */
/* One step of 16-bit codes for nq rows with largest |x| = top[q]; steps are 0 where all is 0. */
KV_INLINE void code_steps(const v16 *top, const float limit, float *step, v16 *inv, const int nq)
{
    for (int q = 0; q < nq; q++) {
        float most = v_hmax(top[q]);
        bool empty = !(most > KV_ATTN_TINY);
        step[q] = empty ? 0.0f : most / limit;
        inv[q] = v_set(empty ? 0.0f : limit / most);
    }
}

/* Codes of 16 bits of x[q][from, to), multiples of 16; total[q]: 128 times their sum. */
KV_INLINE void make_words(const float *x, size_t x_stride, uint32_t from, uint32_t to, const v16 *top, const float limit, int16_t *codes, size_t stride,
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

/* s[n] = scale, mid[n] = min + 128 scale of n channels or slots, n rounded up to 16, lanes from n on 0. */
KV_INLINE void q8_affine(const uint8_t *page, uint32_t scale_off, uint32_t min_off, uint32_t n, float *s, float *mid)
{
    widen_padded((const uint16_t *)(const void *)(page + scale_off), n, s);
    widen_padded((const uint16_t *)(const void *)(page + min_off), n, mid);
    for (uint32_t i = 0; i < n; i += 16) v_store(mid + i, v_fma(v_load(s + i), v_set(128.0f), v_load(mid + i)));
}

/* Scores of one page, in rows of RUN slots. */
KV_INLINE void q8_scores(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, float *scores, const int nq)
{
    const kv_page_layout *L = a->layout;
    const uint32_t stride = w->slots > w->d ? w->slots : w->d, t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    const size_t row = (size_t)KV_ATTN_RUN * w->slots;
    float step[KV_ATTN_QBLOCK], bias[KV_ATTN_QBLOCK];
    int16_t *codes = (int16_t *)(void *)w->codes;
    v16 top[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    n16 total[KV_ATTN_QBLOCK];
    q8_affine(a->data, L->k_scale_off, L->k_min_off, L->dkp, w->k_scale, w->k_mid);
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
            v_store(scores + (size_t)q * row + t, v_fma(s, v_set(step[q]), v_set(bias[q])));
        }
}

/* Adds the values of one page to o. */
KV_INLINE void q8_values(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const float *scores, const int nq)
{
    const kv_page_layout *L = a->layout;
    const uint32_t stride = w->slots > w->d ? w->slots : w->d, t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    const size_t row = (size_t)KV_ATTN_RUN * w->slots;
    float step[KV_ATTN_QBLOCK], bias[KV_ATTN_QBLOCK];
    int16_t *codes = (int16_t *)(void *)w->codes;
    v16 top[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    n16 total[KV_ATTN_QBLOCK];
    q8_affine(a->data, L->v_scale_off, L->v_min_off, L->tokens, w->token_a, w->token_b);
    for (int q = 0; q < nq; q++) top[q] = sum[q] = v_set(0.0f);
    for (uint32_t t = t0; t < t1; t += 16)
        for (int q = 0; q < nq; q++) {
            v16 x = v_load(scores + (size_t)q * row + t), y = v_mul(x, v_load(w->token_a + t));
            sum[q] = v_fma(x, v_load(w->token_b + t), sum[q]);
            top[q] = v_max(top[q], y);
            v_store(w->weighted + (uint32_t)q * w->slots + t, y);
        }
    for (int q = 0; q < nq; q++) bias[q] = v_hsum(sum[q]);
    make_words(w->weighted, w->slots, t0, t1, top, KV_ATTN_P16_MAX, codes, stride, step, total, nq);
    q8_v(a, w, codes, stride, nq);
    for (uint32_t c = 0; c < L->dvp; c += 16)
        for (int q = 0; q < nq; q++) {
            float *o = a->o + (q0 + (uint32_t)q) * a->o_stride + c;
            v16 s = n_float(n_sub(n_load(w->isum + (uint32_t)q * stride + c), total[q]));
            v_store(o, v_add(v_load(o), v_fma(s, v_set(step[q]), v_set(bias[q]))));
        }
}

KV_INLINE void q8_block(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq)
{
    float keep[KV_ATTN_QBLOCK];
    for (uint32_t i = 0; i < n; i++) {
        if (!q0) fetch_rest(fetch_values(a + i));
        q8_scores(a + i, w, q0, w->scores + (size_t)i * w->slots, nq);
    }
    if (a->tap) tap(a, n, w->scores, (size_t)KV_ATTN_RUN * w->slots, w->slots, q0, nq);
    softmax_pages(a, n, w, q0, keep, nq);
    keep_rows(a, q0, keep, nq);
    for (uint32_t i = 0; i < n; i++) {
        if (!q0) {
            fetch_rest(fetch_next_keys(a + i));
            fetch_next_scales(a + i);
        }
        q8_values(a + i, w, q0, w->scores + (size_t)i * w->slots, nq);
    }
}

static void page_q8(const kv_attn_page *a, uint32_t n, kv_attn_work *w) { BY_BLOCK(q8_block, a, n, w) }

#ifndef KV_ATTN_OWN_LADDER
/* ------------------------------------------------------------------ LADDER: integer codes */
/* 2^(exponent + e0) (1 + mantissa / 16) of 16 tokens: their bytes go in above the 19 low bits of a float whose exponent is e0. */
KV_INLINE v16 token_scales(const uint8_t *u, uint32_t bias) { return v_bits(n_add(n_shl19(n_u8(u)), n_set((int)bias))); }

/* {smax, lo, step} of K's widths 0..6 and of V, and a 255th of them; what follows in the page is not used. */
KV_INLINE void ladder_triples(const kv_attn_page *a, float *triple, float *unit)
{
    const uint16_t *halves = (const uint16_t *)(const void *)(a->data + a->layout->triples_off);
    for (uint32_t i = 0; i < 32; i += 16) {
        v16 x = v_f16(halves + i);
        v_store(triple + i, x);
        v_store(unit + i, v_div(x, v_set(255.0f)));
    }
    unit[0] = 0.0f; /* no bits: the value is the minimum */
}

/* Scales and midpoints of the ranks: score = sum_r q_r scale_r (code_r - levels_r / 2) + sum_r q_r mid_r with mid = min + scale levels / 2;
 * centred codes halve what the rounding of the query costs. V likewise, and the token scales. */
KV_INLINE void ladder_k_scales(const kv_attn_page *a, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    float triple[32], unit[32];
    ladder_triples(a, triple, unit);
    for (uint32_t r = 0; r < L->dkp; r += 16) {
        uint32_t w0 = kv_page_width(a->entry, r / 8), w1 = kv_page_width(a->entry, r / 8 + 1), t0 = 3 * w0, t1 = 3 * w1;
        v16 levels = v_pair((float)((1u << w0) - 1), (float)((1u << w1) - 1));
        v16 s = v_mul(v_u8(a->data + L->k_scale_off + r), v_pair(unit[t0], unit[t1]));
        v16 min = v_fma(v_u8(a->data + L->k_min_off + r), v_pair(triple[t0 + 2], triple[t1 + 2]), v_pair(triple[t0 + 1], triple[t1 + 1]));
        v_store(w->k_scale + r, s);
        v_store(w->k_mid + r, v_fma(s, v_mul(levels, v_set(0.5f)), min));
        n_store(w->k_levels + r, n_round(levels));
    }
}

KV_INLINE void ladder_v_scales(const kv_attn_page *a, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    float triple[32], unit[32], half = 0.5f * (float)((1u << L->v_bits) - 1);
    ladder_triples(a, triple, unit);
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
KV_INLINE void make_codes(const float *x, size_t x_stride, uint32_t from, uint32_t to, const v16 *top, const float limit, const bool wide,
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

/* Integer sums of one query: one row, or two of 15 bits. */
KV_INLINE v16 row_sums(const int32_t *row, size_t stride, uint32_t i, const bool wide)
{
    n16 s = n_load(row + i);
    return n_float(wide ? n_add(n_shl(s, 7), n_load(row + stride + i)) : s);
}

/* Query codes: rank order, channel scales folded in. */
KV_INLINE void ladder_queries(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, size_t stride, float *step, float *bias, int32_t *total, const int nq, const bool wide)
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
KV_INLINE void ladder_weights(const kv_attn_page *a, kv_attn_work *w, const float *scores, size_t stride, float *step, float *sum, int32_t *total, const int nq, const bool wide)
{
    uint32_t t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    v16 top[KV_ATTN_QBLOCK], f[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) top[q] = f[q] = v_set(0.0f);
    for (uint32_t t = t0; t < t1; t += 16) {
        v16 x = v_load(w->token_a + t);
        for (int q = 0; q < nq; q++) {
            v16 p = v_mul(v_load(scores + (size_t)q * KV_ATTN_RUN * w->slots + t), x);
            v_store(w->weighted + (uint32_t)q * w->slots + t, p);
            top[q] = v_max(top[q], p);
            f[q] = v_add(f[q], p);
        }
    }
    for (int q = 0; q < nq; q++) sum[q] = v_hsum(f[q]);
    make_codes(w->weighted, w->slots, t0, t1, top, wide ? KV_ATTN_P16_MAX : KV_ATTN_Q8_MAX, wide, NULL, w->codes, stride, step, total, nq);
}

KV_INLINE void ladder_scores(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, float *scores, const int nq, const bool wide)
{
    uint32_t stride = w->slots > w->d ? w->slots : w->d;
    float step[KV_ATTN_QBLOCK], bias[KV_ATTN_QBLOCK];
    int32_t total[KV_ATTN_QBLOCK];
    ladder_k_scales(a, w);
    ladder_queries(a, w, q0, stride, step, bias, total, nq, wide);
    ladder_k(a, w, stride, nq * (wide ? 2 : 1));
    for (int q = 0; q < nq; q++) {
        const v16 s = v_set(step[q]), b = v_fma(v_set(-0.5f * (float)total[q]), s, v_set(bias[q]));
        const int32_t *row = w->isum + (uint32_t)q * (wide ? 2 : 1) * stride;
        for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16) v_store(scores + (size_t)q * KV_ATTN_RUN * w->slots + t, v_fma(row_sums(row, stride, t, wide), s, b));
    }
}

/* o += scale (step isum + off) + mid sum, off = -levels / 2 total step */
KV_INLINE void ladder_values(const kv_attn_page *a, kv_attn_work *w, uint32_t q0, const float *scores, const int nq, const bool wide)
{
    const kv_page_layout *L = a->layout;
    uint32_t stride = w->slots > w->d ? w->slots : w->d;
    float step[KV_ATTN_QBLOCK], sum[KV_ATTN_QBLOCK];
    int32_t total[KV_ATTN_QBLOCK];
    ladder_v_scales(a, w);
    ladder_weights(a, w, scores, stride, step, sum, total, nq, wide);
    ladder_v(a, w, stride, nq * (wide ? 2 : 1));
    const float half = -0.5f * (float)((1u << L->v_bits) - 1);
    for (int q = 0; q < nq; q++) {
        const v16 off = v_set((float)total[q] * half * step[q]);
        const int32_t *row = w->isum + (uint32_t)q * (wide ? 2 : 1) * stride;
        for (uint32_t c = 0; c < L->dvp; c += 16) {
            float *o = a->o + (q0 + (uint32_t)q) * a->o_stride + c;
            v16 d = v_fma(row_sums(row, stride, c, wide), v_set(step[q]), off);
            v_store(o, v_fma(v_load(w->v_scale + c), d, v_fma(v_load(w->v_mid + c), v_set(sum[q]), v_load(o))));
        }
    }
}

KV_INLINE void ladder_block(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq, const bool kwide, const bool vwide)
{
    float keep[KV_ATTN_QBLOCK];
    for (uint32_t i = 0; i < n; i++) {
        if (!q0) fetch_rest(fetch_values(a + i));
        ladder_scores(a + i, w, q0, w->scores + (size_t)i * w->slots, nq, kwide);
    }
    if (a->tap) tap(a, n, w->scores, (size_t)KV_ATTN_RUN * w->slots, w->slots, q0, nq);
    softmax_pages(a, n, w, q0, keep, nq);
    keep_rows(a, q0, keep, nq);
    for (uint32_t i = 0; i < n; i++) {
        if (!q0) {
            fetch_rest(fetch_next_keys(a + i));
            fetch_next_scales(a + i);
        }
        ladder_values(a + i, w, q0, w->scores + (size_t)i * w->slots, nq, vwide);
    }
}

KV_INLINE void ladder_8_8(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq) { ladder_block(a, n, w, q0, nq, false, false); }
KV_INLINE void ladder_16_16(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, const int nq) { ladder_block(a, n, w, q0, nq, true, true); }
static void ladder_8_16(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, int nq) { ladder_block(a, n, w, q0, nq, false, true); }
static void ladder_16_8(const kv_attn_page *a, uint32_t n, kv_attn_work *w, uint32_t q0, int nq) { ladder_block(a, n, w, q0, nq, true, false); }

static void page_ladder(const kv_attn_page *a, uint32_t n, kv_attn_work *w)
{
    bool kwide = kv_formats[a->layout->kf].code_bits == 16, vwide = kv_formats[a->layout->vf].code_bits == 16;
    if (!kwide && !vwide) { BY_BLOCK(ladder_8_8, a, n, w) }
    else if (kwide && vwide) { BY_BLOCK(ladder_16_16, a, n, w) }
    else if (vwide) { BY_BLOCK(ladder_8_16, a, n, w) }
    else { BY_BLOCK(ladder_16_8, a, n, w) }
}
#endif
