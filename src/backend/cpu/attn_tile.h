/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of prompt rows in integers: key tiles and query rows as 16-bit codes, both products as 32-bit sums of pairs.
 * Owns the layouts of codes and states. Must not know streams, positions or threads (attn_prefill_codes.c, attn_colsum.c).
 *
 * A key of step a and a query of step b have the score a b sum(code code), exact in 32 bits: each vector is scaled so that its norm in
 * codes is at most KV_TILE_NORM, and by Cauchy and Schwarz no sum of products exceeds KV_TILE_NORM^2 < 2^31, for any head dimension.
 * The error of a score has a deviation of 9e-6 |q| |k| scale; with outliers, where a step follows the largest channel, up to twice that.
 * Values: the probabilities of a row, times their token's step of V, take a step of the row and tile from their sum and their largest.
 *
 * Query rows lie in the lanes of vectors, KV_TILE_BLOCK rows a block: no reduction ever crosses lanes. Column sums have keys in the lanes and take the
 * same codes. Invariant: a token's codes depend on that token alone, a row's state on its query and the keys it sees.
 */
#ifndef KV_BACKEND_CPU_ATTN_TILE_H
#define KV_BACKEND_CPU_ATTN_TILE_H

#include "policy/format.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a block: three vectors. What a product of a block touches (queries, keys and scores; codes, values and sums) stays in 32 KiB of L1
 * at a head dimension of 64. */
#define KV_TILE_BLOCK 48u
#define KV_TILE_CODE_MAX 32767.0f
/* 46,300 and what rounding 256 codes adds (half a code each: 8) stay below sqrt(2^31) = 46,340. */
#define KV_TILE_NORM 46300.0f
/* |V code| <= 16,383 and sum of probability codes <= 131,000 + 32 (rounding): below 2^31. At that split both roundings cost the same,
 * about 1e-4 of a value, where 64 keys weigh alike. */
#define KV_TILE_V_MAX 16383.0f
#define KV_TILE_P_SUM 131000.0f

/* 64 keys. */
typedef struct kv_tile_codes {
    int32_t *k;     /* [(dk + 1) / 2][64]: channels 2j (low half) and 2j + 1 of a token */
    float *k_step;  /* [64] */
    int32_t *v;     /* [32][dvp]: tokens 2j (low half) and 2j + 1 of a channel */
    float *v_step;  /* [64] */
} kv_tile_codes;

/* Query rows of a work item and their states, as in attn.h with scores in powers of two. Lanes behind the last row hold zeros. */
typedef struct kv_tile_rows {
    uint32_t dk, dvp;
    int32_t *q;       /* [blocks][(dk + 1) / 2][KV_TILE_BLOCK]: channels 2j (low half) and 2j + 1 of a row */
    float *q_step;    /* [rows] times scale and log2(e) */
    float *m, *l;     /* [rows] */
    float *o;         /* [blocks][dvp][KV_TILE_BLOCK] */
    uint8_t *lo, *hi; /* [rows, and 16 more] columns of the tile at hand that a row sees */
    float *s;         /* [64][KV_TILE_BLOCK] scores, then codes of probabilities, of a block */
} kv_tile_rows;

/* Column sums (attn.h's kv_attn_cols) from codes. */
typedef struct kv_tile_cols {
    const kv_tile_codes *keys;
    uint32_t dk, n;
    const int16_t *const *q;      /* [n] codes of dk, one more when dk is odd */
    const float *q_step, *lse;    /* [n]; lse in units of log 2 */
    const uint8_t *lo, *hi, *use;
    bool square;
    float *sums, *mass;           /* [64] += */
} kv_tile_cols;

typedef struct kv_tile_ops {
    /* Codes of kt[dk][64] and, when v is not NULL, v[64][dvp]. */
    void (*keys)(const float *kt, uint32_t dk, const float *v, uint32_t dvp, kv_tile_codes *t);
    /* codes[i] of x[i][dk], one 0 more when dk is odd, and step[i], i < count <= 16. */
    void (*queries)(const float *const *x, uint32_t count, uint32_t dk, int16_t *const *codes, float *step);
    /* Takes x[0..count) as rows [row, row + count), count <= 16, row a multiple of 16; states empty. scale: of the scores. */
    void (*load)(kv_tile_rows *r, uint32_t row, uint32_t count, const float *const *x, float scale);
    /* Folds the tile into rows [from, to) of one block, whose lo and hi are given; those of the lanes around them become 0. */
    void (*fold)(const kv_tile_rows *r, uint32_t from, uint32_t to, const kv_tile_codes *t);
    /* out[i][dv] = o / l of rows [row, row + count), zeros without keys; lse[i] natural. */
    void (*finish)(const kv_tile_rows *r, uint32_t row, uint32_t count, uint32_t dv, float *const *out, float *lse);
    void (*cols)(const kv_tile_cols *c);
    /* Slots [0, e->n) of a page: k[dkp][stride], stride the page's slots up to a multiple of 16, and v[slots][dvp], padding channels 0;
     * the values of kv_decode_ref. */
    void (*unpack)(const kv_page_layout *L, const uint8_t *page, const kv_page_entry *e, size_t stride, float *k, float *v);
} kv_tile_ops;

/* NULL where the level computes prompt attention in f32. */
const kv_tile_ops *kv_tile_ops_get(int level);
extern const kv_tile_ops kv_tile_ops_avx512;
void kv_tile_unpack_avx512(const kv_page_layout *L, const uint8_t *page, const kv_page_entry *e, size_t stride, float *k, float *v);

#endif
