/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiles of unpacked keys over vectors of 16 floats: part of attn_simd.h, which includes it. Owns the arithmetic of KV_KEY_TILE f32 keys for
 * rows of a prompt and their column sums. TILE_NV (the vectors of one register block) comes from the instruction set.
 */
/* acc[i][j] += sum_c a[i][c] b[c][16 j..], c ascending. */
KV_INLINE void multiply(v16 acc[TILE_MR][TILE_NV], const float *const *a, uint32_t kdim, const float *b, size_t ldb, const int mr, const int nv)
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
KV_INLINE void tile_values(const kv_attn_tile *t, uint32_t i0, uint32_t col, const float *const *p, const float *keep, const int mr, const int nv)
{
    v16 acc[TILE_MR][TILE_NV];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) acc[i][j] = v_mul(v_load(t->o + (i0 + (uint32_t)i) * t->o_stride + col + 16 * j), v_set(keep[i]));
    multiply(acc, p, t->n, t->v + col, t->dvp, mr, nv);
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) v_store(t->o + (i0 + (uint32_t)i) * t->o_stride + col + 16 * j, acc[i][j]);
}

KV_INLINE void tile_rows(const kv_attn_tile *t, uint32_t i0, const int mr)
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

#ifndef COLS_ROW /* a level with few registers may keep this out of line: its constants would push the sums of cols_rows out of them */
#define COLS_ROW KV_INLINE
#endif
/* Adds row r, whose TILE_NV vectors of products from column col are s. */
COLS_ROW void cols_row(const kv_attn_cols *c, uint32_t r, int col, const float *s)
{
    v16 lse = v_set(-c->lse[r]), scale = v_set(c->scale);
    for (int at = col; at < col + 16 * TILE_NV; at += 16, s += 16) {
        v16 p = v_keep(v_exp(v_min(v_fma(v_load(s), scale, lse), v_set(KV_ATTN_EXP_MAX))), (int)c->lo[r] - at, (int)c->hi[r] - at, 0.0f);
        if (c->use[r] & KV_ATTN_SUM) v_store(c->sums + at, v_add(v_load(c->sums + at), c->square ? v_mul(p, p) : p));
        if (c->use[r] & KV_ATTN_MASS) v_store(c->mass + at, v_add(v_load(c->mass + at), p));
    }
}

/* Adds the columns of mr rows, one row after the other. Their products wait in memory: a row picked out of acc by its number would keep all
 * of acc there, written at each step of the multiplication. */
KV_INLINE void cols_rows(const kv_attn_cols *c, uint32_t i0, const int mr)
{
    float part[TILE_MR][16 * TILE_NV];
    for (int col = 0; col < 64; col += 16 * TILE_NV) {
        v16 acc[TILE_MR][TILE_NV];
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < TILE_NV; j++) acc[i][j] = v_set(0.0f);
        multiply(acc, c->q + i0, c->dk, c->kt + col, 64, mr, TILE_NV);
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < TILE_NV; j++) v_store(part[i] + 16 * j, acc[i][j]);
        for (int i = 0; i < mr; i++) cols_row(c, i0 + (uint32_t)i, col, part[i]);
    }
}

static void cols(const kv_attn_cols *c)
{
    uint32_t i = 0;
    for (; i + 6 <= c->n; i += 6) cols_rows(c, i, 6);
    for (; i + 3 <= c->n; i += 3) cols_rows(c, i, 3);
    for (; i < c->n; i++) cols_rows(c, i, 1);
}
