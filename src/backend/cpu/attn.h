/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of the CPU backend: the kernel table of one instruction set level and the scratch the drivers share.
 * Owns the arithmetic of softmax(q K^T) V over pages and key tiles. Must not know models, policies or where pages come from.
 *
 * Two kinds of kernel:
 *   page    folds a run of pages of one format, as they are, into the online softmax states of nq query rows (decode; prompt rows over handles);
 *   tile    folds KV_KEY_TILE keys, unpacked to f32, into such states (prompt rows over the f16 run).
 * Invariant: a query's state after a call depends on that query and the keys alone, never on nq, on its neighbours or on keys it
 * does not see. Scores are in powers of two: kv_attn_load_query multiplies queries by scale log2(e), so that a probability is 2^(s - m).
 * State: m (largest score, -inf before the first key), l (sum of 2^(s - m)), o[dv] (sum of 2^(s - m) v).
 */
#ifndef KV_BACKEND_CPU_ATTN_H
#define KV_BACKEND_CPU_ATTN_H

#include "backend/cpu/attn_tile.h"
#include "backend/cpu/cpu.h"

/* Queries that share one unpacking of a page's codes: two integer rows each at 16 bits fill eight accumulators a tile. */
#define KV_ATTN_QBLOCK 4u
/* Query rows of one prefill work item in f32: 192 x 64 floats of q and of o are 96 KiB, a tenth of L2, and the packing of a key tile
 * (about 2,000 instructions) is below 5 % of the work done on it. */
#define KV_ATTN_ITEM_ROWS 192u
/* The same with integer tiles, where a row's codes and sums are 2 dk + 4 dv bytes and the work is half: a third of L2. */
#define KV_ATTN_ITEM_BYTES (320u << 10)
/* Two threads and three KV heads: two items a head, of which the first take three times as long as the last in a first chunk. */
#define KV_ATTN_ITEMS_A_THREAD 3u
/* Pages of one decode partial result. Part of the result's definition: partials are combined in order. */
#define KV_ATTN_CHUNK 16u
/* Pages of one call of a page kernel at most: they share one step of the softmax, and the dependent steps of one page hide behind those of
 * the others. Part of the result's definition. */
#define KV_ATTN_RUN 4u
/* Codes of 16 bits are two signed bytes: value = 128 hi + lo, lo in 0..127. Queries reach 127 * 128, probabilities 128 * 128 - 1. */
#define KV_ATTN_Q16_MAX 16256.0f
#define KV_ATTN_P16_MAX 16383.0f
#define KV_ATTN_Q8_MAX 127.0f
/* Below this a page's largest |query| or probability counts as zero: its reciprocal would not be finite. */
#define KV_ATTN_TINY 1e-30f
#define KV_ATTN_LOG2E 1.44269504088896341f
#define KV_ATTN_LN2 .693147180559945309f
/* 2^x and exp(x) are 0 below: keeps results out of the denormals, which slow the sums by 10x. */
#define KV_ATTN_EXP2_MIN -125.0f
#define KV_ATTN_EXP_MIN -87.0f
#define KV_ATTN_EXP_MAX 88.0f

typedef struct kv_attn_work kv_attn_work;

/* One page for nq queries. Slots [lo, hi) take part, lo < hi. Pages of a run differ in entry, data, lo, hi and next alone. */
typedef struct kv_attn_page {
    const kv_page_layout *layout;
    const kv_page_entry *entry;   /* not read for F16 */
    const uint8_t *data;
    uint32_t lo, hi, nq;
    const float *q;               /* [nq][q_stride] from kv_attn_load_query, channels dk.. up to a multiple of 32 are 0 */
    float *m, *l, *o;             /* [nq], [nq], [nq][o_stride] of dvp */
    size_t q_stride, o_stride;
    float softcap;                /* reference level only; 0: none */
    float *tap;                   /* [nq][tap_stride] what a row's attention to this page will be known from (attn_mass_simd.h); NULL: not wanted */
    size_t tap_stride;
    const uint8_t *next;          /* page to fetch meanwhile: its keys [0, next_keys) and scales [next_scales, next_bytes); NULL: none */
    uint32_t next_keys, next_scales, next_bytes;
} kv_attn_page;

/* One key tile for nq queries: query i sees columns [lo[i], hi[i]) of the tile. */
typedef struct kv_attn_tile {
    const float *kt;              /* [dk][64] f32 */
    const float *v;               /* [64][dvp] f32, columns of no key are 0 */
    uint32_t dk, dvp, n, nq;      /* n: columns in use */
    const float *q;               /* [nq][q_stride] from kv_attn_load_query */
    float *m, *l, *o;
    size_t q_stride, o_stride;
    const uint8_t *lo, *hi;       /* [nq] */
    float *s;                     /* [6][64] scratch */
    float softcap;
} kv_attn_tile;

/* Column sums of exp(scale * q.k - lse) over n rows of one query head, added in row order. */
enum { KV_ATTN_SUM = 1, KV_ATTN_MASS = 2 };
typedef struct kv_attn_cols {
    const float *kt;              /* [dk][64] */
    uint32_t dk, n;
    const float *const *q;        /* [n] rows of dk, not scaled */
    const float *lse;             /* [n] */
    const uint8_t *lo, *hi, *use; /* [n] columns seen; KV_ATTN_SUM | KV_ATTN_MASS */
    float scale, softcap;
    bool square;
    float *sums, *mass;           /* [64] += */
} kv_attn_cols;

struct kv_attn_kernels {
    const char *name;
    /* By kv_format_kind: folds p[0 .. n), n <= KV_ATTN_RUN, in one step of the softmax. */
    void (*page[4])(const kv_attn_page *p, uint32_t n, kv_attn_work *w);
    void (*tile)(const kv_attn_tile *t);
    void (*cols)(const kv_attn_cols *c);
    /* kt[c][col0 + t] = rows[t * stride + c], t < n; f16 to f32. */
    void (*pack_k)(const uint16_t *rows, size_t stride, uint32_t n, uint32_t dk, uint32_t col0, float *kt);
    /* y[n] = f32(x[n]) */
    void (*widen)(const uint16_t *x, uint32_t n, float *y);
    /* y[n] = x[n] * s */
    void (*scale)(const float *x, uint32_t n, float s, float *y);
    /* Joins partial result b into a: m, l, o[dv]. */
    void (*join)(float *am, float *al, float *ao, float bm, float bl, const float *bo, uint32_t dv);
    /* Keeps what the masses of a run need of its scores, before they become probabilities: query q0 + q, page i at scores[q row + i step]. Of
     * an F16 page all slots' scores, -inf where not seen; of others {largest score m, sum of 2^(s - m), sum of 4^(s - m)}. */
    void (*tap)(const kv_attn_page *p, uint32_t n, const float *scores, size_t row, size_t step, uint32_t q0, int nq);
    /* One page's tap[group][slots] to masses in its first row: by slot (f16) or in item 0, the sum over the group of p = 2^(s - lse2) or p^2. */
    void (*mass)(float *tap, uint32_t slots, uint32_t group, bool f16, const float *lse2, bool square);
};

extern const struct kv_attn_kernels kv_attn_kernels_ref;
extern const struct kv_attn_kernels kv_attn_kernels_avx2;
extern const struct kv_attn_kernels kv_attn_kernels_avx512;
extern const struct kv_attn_kernels kv_attn_kernels_neon;
/* The avx512 kernels where VBMI and GFNI are there: the same bits. */
void kv_attn_ladder_vbmi(const kv_attn_page *p, uint32_t n, kv_attn_work *w);
/* isum[q][32] = sum_c rows[c][t] codes[q][c]: n (a multiple of 4) rows of P <= 32 bytes, 16 bytes and more behind them. */
void kv_attn_q8_k_vbmi(const uint8_t *rows, uint32_t P, uint32_t n, const int16_t *codes, size_t stride, int32_t *isum, int nq);

/* Scratch of one thread; sizes follow kv_exec_params. slots: most tokens of any page, rounded up to 16; d: largest padded dim. */
struct kv_attn_work {
    uint32_t slots, d, codes_stride, group_stride; /* codes_stride: max(slots, d) to 64; group_stride: scales a page holds at most, and 16 */
    bool vbmi;                    /* kv_cpu_has_vbmi_gfni */
    /* page kernels */
    float *scores;                /* [QBLOCK][RUN][slots] scores, then probabilities */
    float *weighted;              /* [QBLOCK][slots] probabilities times a token's scale */
    float *token_a, *token_b;     /* [slots] per-token scale, minimum of V */
    float *group_a, *group_b;     /* [RUN][group_stride] GROUP: scale and minimum of V by (slot, channel group) */
    int32_t *isum;                /* [2 QBLOCK][max(slots, d)] integer sums */
    int8_t *wide;                 /* [2 QBLOCK (codes_stride + 64) + 64 d] codes as an instruction set wants them */
    int8_t *codes;                /* [2 QBLOCK][codes_stride] query or probability codes; Q8: [QBLOCK][..] of 16 bits */
    float *k_scale, *k_mid;       /* [d] by rank or channel */
    int32_t *k_levels;            /* [d] 2^width - 1 */
    float *v_scale, *v_mid;       /* [d] */
    float *qs;                    /* [RUN][QBLOCK][d to 64] queries with a scale folded in */
    /* tiles */
    float *kt, *v, *s;            /* [d][64], [64][d], [6][64] */
    float *page_k, *page_v;       /* precise == 2: a decoded page, [slots][d] each */
    kv_tile_codes keys;           /* integer tiles: 64 keys, 64 values */
    kv_tile_rows tile;            /* and the rows of one work item */
    const int16_t **codes_of;     /* [max_rows] */
    float *row_step;              /* [max_rows] */
    /* states of one work item */
    float *q, *m, *l, *o;         /* [rows][d + 16.. to 32], [rows], [rows], [rows][d] */
    uint8_t *lo, *hi, *use;       /* [max(rows, max_rows)] */
    const float **ptr;            /* [max_rows] */
    float *row_lse, *row_sum;     /* [max_rows] */
    uint32_t *rows;               /* [max_rows] */
};

/* Layouts of every pair of equal kind for one (dk, dv); kind 255 where the pair is not built or does not fit. */
typedef struct kv_attn_layouts { uint32_t dk, dv; kv_page_layout by_pair[256]; } kv_attn_layouts;

#define KV_ATTN_LAYOUT_SETS 4u
typedef struct kv_attn_scratch {
    uint32_t n_threads, rows, q_stride, o_stride; /* rows of a work item */
    const kv_tile_ops *tiles;     /* NULL: prompt rows in f32 */
    kv_attn_work *work;           /* [n_threads] */
    /* column sums in integers: codes of a call's queries, [max_rows][n_q][dk up to 16], their steps, [max_rows][n_q] */
    int16_t *q_codes;
    float *q_step;
    void *memory;                 /* one block behind all pointers of work */
    kv_attn_layouts *layouts;     /* [KV_ATTN_LAYOUT_SETS] */
    uint32_t n_layouts, next_layout;
    /* decode partials, cap_items work items of group rows */
    uint32_t cap_items, cap_rows;
    float *part_m, *part_l, *part_o; /* [cap_rows], [cap_rows], [cap_rows][o_stride] */
    float *run_m, *run_l, *run_o;    /* [max_heads] running states of one row */
    struct kv_attn_item *items;      /* [cap_items] */
} kv_attn_scratch;

/* A piece of decode work: pages [first, first + count) of row's KV head. */
typedef struct kv_attn_item { uint32_t row, head, first, count; } kv_attn_item;

static inline kv_attn_scratch *kv_attn_scratch_of(const kv_cpu_exec *ex) { return (kv_attn_scratch *)ex->attn_scratch; }
static inline uint32_t kv_pad16(uint32_t n) { return (n + 15u) & ~15u; }

/* Layouts for (dk, dv); called before threads start. */
const kv_attn_layouts *kv_attn_layouts_for(kv_cpu_exec *ex, uint32_t dk, uint32_t dv);
/* Folds slots [p->lo, p->hi) with the format's kernel, or in f32 when precise == 2. */
void kv_attn_fold_page(const kv_cpu_exec *ex, kv_attn_page *p, kv_attn_work *w);
/* The same for a run of n <= KV_ATTN_RUN pages of one layout of which something is seen. */
void kv_attn_fold_pages(const kv_cpu_exec *ex, const kv_attn_page *p, uint32_t n, kv_attn_work *w);
/* Keys of the f16 run of one KV head: the tail's tokens, then the sync's own rows; run index j has position first + j. */
typedef struct kv_attn_run {
    const struct kv_attn_kernels *k;
    const kv_tile_ops *tiles;     /* NULL: none */
    const kv_pool *pool;
    const kv_stream *st;
    const kv_page_layout *layout; /* f16 pages */
    const uint16_t *rows_k, *rows_v; /* this head's [token][dk], [token][dv] */
    uint32_t first, sync_pos, end;   /* positions: of run index 0, of the sync's row 0, past the last key */
} kv_attn_run;
kv_attn_run kv_attn_run_of(const kv_cpu_exec *ex, const kv_attn_chunk *c, const kv_attn_params *p, const kv_attn_layouts *layouts, uint32_t head);
/* Unpacks the run's keys at positions [64 i, 64 i + 64) into kt[dk][64] and, when v is not NULL, v[64][dvp]; column = position - 64 i,
 * columns of no key are 0. */
void kv_attn_pack(const kv_attn_run *r, uint32_t tile, float *kt, float *v);
/* A call of attn_prefill: items of tile_rows rows of one KV head. */
typedef struct kv_attn_prefill_job {
    kv_cpu_exec *ex;
    const kv_attn_params *p;
    const kv_attn_chunk *c;
    const kv_attn_layouts *layouts;
    uint32_t group, tile_rows, n_tiles;
} kv_attn_prefill_job;
/* Rows [r0, r0 + n) of the chunk for one KV head by integer tiles. */
void kv_attn_prefill_codes(const kv_attn_prefill_job *j, uint32_t head, uint32_t r0, uint32_t n, kv_attn_work *w);
/* Columns of tile i that a row at `position` sees. */
static inline void kv_attn_columns(const kv_attn_run *r, uint32_t tile, uint32_t window, uint32_t position, uint8_t *lo, uint8_t *hi)
{
    uint32_t at = tile * KV_KEY_TILE, from = r->first > at ? r->first - at : 0, to = position + 1 < r->end ? position + 1 : r->end;
    if (window && position >= window && position - window + 1 > at + from) from = position - window + 1 - at;
    to = to > at ? to - at : 0;
    *hi = (uint8_t)(to < KV_KEY_TILE ? to : KV_KEY_TILE);
    *lo = (uint8_t)(from < *hi ? from : *hi);
}

/* Slots of handle i of st that a query at `position` sees; lo >= hi when none. */
static inline void kv_attn_visible(uint32_t first_pos, uint32_t start, uint32_t n, uint32_t window, uint32_t position, uint32_t *lo, uint32_t *hi)
{
    *lo = start;
    *hi = n;
    if (window && position >= window) {
        uint32_t from = position - window + 1; /* first position seen */
        if (from > first_pos && from - first_pos > *lo) *lo = from - first_pos;
    }
}
/* Tail page j of st: slots in use and the position slot 0 would have (may wrap below 0 where tail_start > tail_pos). */
static inline void kv_attn_tail_page(const kv_stream *st, uint32_t j, uint32_t P, uint32_t *lo, uint32_t *hi)
{
    uint32_t end = st->tail_start + st->tail_len;
    *lo = j == 0 ? st->tail_start : 0;
    *hi = end - j * P < P ? end - j * P : P;
}
/* Query rows ready for page and tile kernels: y[dk..stride) = 0, y = x * scale * log2(e). */
void kv_attn_load_query(const struct kv_attn_kernels *k, const float *x, uint32_t dk, float scale, float *y, size_t stride);
/* out[dv] = o / l, zeros without keys; returns the natural log-sum-exp. */
float kv_attn_finish(float m, float l, const float *o, uint32_t dv, float *out);

#endif
