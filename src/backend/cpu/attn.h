/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of the CPU backend: the kernel table of one instruction set level and the scratch the drivers share.
 * Owns the arithmetic of softmax(q K^T) V over pages and key tiles. Must not know models, policies or where pages come from.
 *
 * Two kinds of kernel:
 *   page    folds one page, in its own format, into the online softmax states of nq query rows (decode; prompt rows over handles);
 *   tile    folds KV_KEY_TILE keys, unpacked to f32, into such states (prompt rows over the f16 run).
 * Invariant: a query's state after a call depends on that query and the keys alone, never on nq, on its neighbours or on keys it
 * does not see. State: m (largest score, -inf before the first key), l (sum of exp(s - m)), o[dv] (sum of exp(s - m) v).
 */
#ifndef KV_BACKEND_CPU_ATTN_H
#define KV_BACKEND_CPU_ATTN_H

#include "backend/cpu/cpu.h"

/* Queries that share one unpacking of a page's codes: two integer rows each at 16 bits fill eight accumulators a tile. */
#define KV_ATTN_QBLOCK 4u
/* Query rows of one prefill work item: 192 x 64 floats of q and of o are 96 KiB, a tenth of L2, and the packing of a key tile
 * (about 2,000 instructions) is below 5 % of the work done on it. */
#define KV_ATTN_ITEM_ROWS 192u
/* Pages of one decode partial result. Part of the result's definition: partials are combined in order. */
#define KV_ATTN_CHUNK 16u
/* Codes of 16 bits are two signed bytes: value = 128 hi + lo, lo in 0..127. Queries reach 127 * 128, probabilities 128 * 128 - 1. */
#define KV_ATTN_Q16_MAX 16256.0f
#define KV_ATTN_P16_MAX 16383.0f
#define KV_ATTN_Q8_MAX 127.0f
/* Below this a page's largest |query| or probability counts as zero: its reciprocal would not be finite. */
#define KV_ATTN_TINY 1e-30f
/* exp(x) is 0 below: keeps results out of the denormals, which slow the sums by 10x. */
#define KV_ATTN_EXP_MIN -87.0f
#define KV_ATTN_EXP_MAX 88.0f

typedef struct kv_attn_work kv_attn_work;

/* One page for nq queries. Slots [lo, hi) take part, lo < hi. */
typedef struct kv_attn_page {
    const kv_page_layout *layout;
    const kv_page_entry *entry;   /* not read for F16 */
    const uint8_t *data;
    uint32_t lo, hi, nq;
    const float *q;               /* [nq][q_stride] scaled, channels dk.. up to a multiple of 32 are 0 */
    float *m, *l, *o;             /* [nq], [nq], [nq][o_stride] of dvp */
    size_t q_stride, o_stride;
    float softcap;                /* reference level only; 0: none */
    const uint8_t *next;          /* page to fetch meanwhile, next_bytes long; NULL: none */
    size_t next_bytes;
} kv_attn_page;

/* One key tile for nq queries: query i sees columns [lo[i], hi[i]) of the tile. */
typedef struct kv_attn_tile {
    const float *kt;              /* [dk][64] f32 */
    const float *v;               /* [64][dvp] f32, columns of no key are 0 */
    uint32_t dk, dvp, n, nq;      /* n: columns in use */
    const float *q;               /* [nq][q_stride] scaled */
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
    void (*page[4])(const kv_attn_page *p, kv_attn_work *w); /* by kv_format_kind */
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
};

extern const struct kv_attn_kernels kv_attn_kernels_ref;
extern const struct kv_attn_kernels kv_attn_kernels_avx2;
extern const struct kv_attn_kernels kv_attn_kernels_avx512;
/* Inner loops of the avx512 kernels where VBMI and GFNI are there: the same bits. nr rows of codes in w->codes, sums in w->isum. */
void kv_attn_ladder_k_vbmi(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr);
void kv_attn_ladder_v_vbmi(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr);
/* isum[q][32] = sum_c rows[c][t] codes[q][c]: n (a multiple of 4) rows of P <= 32 bytes, 16 bytes and more behind them. */
void kv_attn_q8_k_vbmi(const uint8_t *rows, uint32_t P, uint32_t n, const int16_t *codes, size_t stride, int32_t *isum, int nq);

/* Scratch of one thread; sizes follow kv_exec_params. slots: most tokens of any page, rounded up to 16; d: largest padded dim. */
struct kv_attn_work {
    uint32_t slots, d;
    bool vbmi;                    /* kv_cpu_has_vbmi_gfni */
    /* page kernels */
    float *scores;                /* [QBLOCK][slots] scores, then probabilities */
    float *weighted;              /* [QBLOCK][slots] probabilities times a token's scale */
    float *token_a, *token_b;     /* [slots] per-token scale, minimum of V */
    float *group_a, *group_b;     /* [page_bytes / 2 + 16] GROUP: scale and minimum of V by (slot, channel group) */
    int32_t *isum;                /* [2 QBLOCK][max(slots, d)] integer sums */
    int8_t *codes;                /* [2 QBLOCK][max(slots, d)] query or probability codes; Q8: [QBLOCK][..] of 16 bits */
    int8_t *wide;                 /* [max(slots, d) / 8][2 QBLOCK][64] the same as vector operands */
    float *k_scale, *k_mid;       /* [d] by rank or channel */
    int32_t *k_levels;            /* [d] 2^width - 1 */
    float *v_scale, *v_mid;       /* [d] */
    float *qs;                    /* [QBLOCK][groups * d] queries with a scale folded in */
    /* tiles */
    float *kt, *v, *s;            /* [d][64], [64][d], [6][64] */
    float *page_k, *page_v;       /* precise == 2: a decoded page, [slots][d] each */
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
    kv_attn_work *work;           /* [n_threads] */
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
/* Keys of the f16 run of one KV head: the tail's tokens, then the sync's own rows; run index j has position first + j. */
typedef struct kv_attn_run {
    const struct kv_attn_kernels *k;
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
/* Query rows ready for a page kernel: y[dk..stride) = 0, y = x * scale. */
void kv_attn_load_query(const struct kv_attn_kernels *k, const float *x, uint32_t dk, float scale, float *y, size_t stride);
/* out[dv] = o / l, zeros without keys; returns lse. */
float kv_attn_finish(float m, float l, const float *o, uint32_t dv, float *out);

#endif
