/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two loops of attn_floats_simd.h in blocks of NEON registers: 16 floats are four of them here, so that fewer vectors are open at a
 * time. Included by attn_floats_simd.h. Order of a sum: one chain, channels or slots ascending, whatever the block.
 */

VOP v16 v_fma_lane(v16 z, v16 x, float32x4_t y, const int lane)
{
    return (v16){fma_lane(z.a, x.a, y, lane), fma_lane(z.b, x.b, y, lane), fma_lane(z.c, x.c, y, lane), fma_lane(z.d, x.d, y, lane)};
}

/* scores[q][t] = bias[q] + sum_c x[c][t] y[q][c] for 16 slots from t0; dkp is a multiple of 4. */
VOP void page_scores(const uint8_t *base, uint32_t P, uint32_t dkp, uint32_t t0, const float *y, size_t y_stride, const float *bias,
                     float *scores, size_t slots, const int src, const int nq, fetch *f)
{
    fetch_all(f);
    const size_t step = source_bytes(P, src);
    v16 acc[KV_ATTN_QBLOCK];
    for (int q = 0; q < nq; q++) acc[q] = v_set(0.0f);
    for (uint32_t c = 0; c < dkp; c += 4) {
        float32x4_t k[KV_ATTN_QBLOCK];
        for (int q = 0; q < nq; q++) k[q] = vld1q_f32(y + (uint32_t)q * y_stride + c);
        KV_UNROLL
        for (int j = 0; j < 4; j++, base += step) {
            v16 x = source(base, t0, src);
            for (int q = 0; q < nq; q++) acc[q] = v_fma_lane(acc[q], x, k[q], j);
        }
    }
    for (int q = 0; q < nq; q++) v_store(scores + (uint32_t)q * slots + t0, v_add(acc[q], v_set(bias[q])));
}

/* nb blocks of 16 channels of one slot, as floats; a, b: scale and minimum of the slot's group of each block. */
VOP void value_row(const uint8_t *row, uint32_t col, const float *a, const float *b, const uint32_t *at, const int src, v16 *x, const int nb)
{
    for (int j = 0; j < nb; j++) {
        x[j] = source(row, col + 16u * (uint32_t)j, src);
        if (src != SRC_F16) x[j] = v_fma(x[j], v_set(a[at[j]]), v_set(b[at[j]]));
    }
}

/* o[q][16 nb channels from col] = o keep[q] + sum over slots of p[q][t] x[t][channel]. */
VOP void value_blocks(const kv_attn_page *a, const page_probs *w, uint32_t q0, const float *keep, uint32_t col, const int src, const int nq, const int nb)
{
    const kv_page_layout *L = a->layout;
    const uint32_t n = a->hi - a->lo, step = source_bytes(L->dvp, src), groups = L->v_groups, shift = kv_formats[L->vf].group == 16 ? 4 : 5;
    const uint8_t *row = a->data + L->v_off + (size_t)a->lo * step;
    const float *ga = w->ga + (col >> shift), *gb = w->gb + (col >> shift);
    const float *p = w->p;
    float *o = a->o + q0 * a->o_stride + col;
    const size_t slots = w->row;
    uint32_t at[4], t = 0;
    v16 acc[KV_ATTN_QBLOCK][4], x[4];
    for (uint32_t j = 0; j < 4; j++) at[j] = ((col + 16 * j) >> shift) - (col >> shift);
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nb; j++) acc[q][j] = v_mul(v_load(o + (uint32_t)q * a->o_stride + 16 * j), v_set(keep[q]));
    for (; t + 4 <= n; t += 4) {
        float32x4_t f[KV_ATTN_QBLOCK];
        for (int q = 0; q < nq; q++) f[q] = vld1q_f32(p + (uint32_t)q * slots + t);
        KV_UNROLL
        for (int i = 0; i < 4; i++, row += step, ga += groups, gb += groups) {
            value_row(row, col, ga, gb, at, src, x, nb);
            for (int q = 0; q < nq; q++)
                for (int j = 0; j < nb; j++) acc[q][j] = v_fma_lane(acc[q][j], x[j], f[q], i);
        }
    }
    for (; t < n; t++, row += step, ga += groups, gb += groups) {
        value_row(row, col, ga, gb, at, src, x, nb);
        for (int q = 0; q < nq; q++)
            for (int j = 0; j < nb; j++) acc[q][j] = v_fma(v_set(p[(uint32_t)q * slots + t]), x[j], acc[q][j]);
    }
    for (int q = 0; q < nq; q++)
        for (int j = 0; j < nb; j++) v_store(o + (uint32_t)q * a->o_stride + 16 * j, acc[q][j]);
}

/* 16 nv channels (nv is 1 or 4) in blocks of at most 16 registers of sums. */
VOP void page_values(const kv_attn_page *a, const page_probs *w, uint32_t q0, const float *keep, uint32_t col, const int src, const int nq, const int nv,
                     fetch *f)
{
    fetch_all(f);
    const int nb = nv == 1 || nq > 2 ? 1 : nq == 2 ? 2 : 4;
    for (uint32_t end = col + 16 * (uint32_t)nv; col < end; col += 16 * (uint32_t)nb) value_blocks(a, w, q0, keep, col, src, nq, nb);
}
