/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device does for a layer: one versioned table of operations over rows. The model composes them, so a device
 * is one table. kv_backend holds what is immutable (device, kernels chosen, weights); kv_exec is one execution context
 * (threads, scratch) and is used by one caller at a time. Buffers passed to operations are the backend's own memory
 * (CPU: any host memory).
 *
 * Determinism: every operation's result for a row is the same bits for any number of rows beside it, any number of
 * threads and any split of the rows over calls (DESIGN 2, "company changes nothing"). Matrix products add block sums in
 * ascending k.
 */
#ifndef KV_BACKEND_BACKEND_H
#define KV_BACKEND_BACKEND_H

#include "base/threads.h"
#include "cache/stream.h"
#include "gguf/gguf.h"
#include "policy/format.h"
#include "policy/scores.h"

#define KV_BACKEND_VERSION 1u

typedef struct kv_backend kv_backend;
typedef struct kv_exec kv_exec;
typedef struct kv_weight kv_weight; /* a packed matrix w[n][k] */

/* Attention of a layer (DESIGN 4). A build refuses by name what it does not implement. */
typedef struct kv_attn_params {
    float scale;            /* 1/sqrt(d) or the model's own */
    float softcap;          /* 0: none (reference only) */
    uint32_t window;        /* 0: global; else a row at position i sees keys at positions > i - window */
    const float *head_sink; /* NULL; else refused */
    uint16_t n_q, n_kv, dk, dv;
    bool causal; /* false: refused */
} kv_attn_params;

typedef struct kv_exec_params {
    uint32_t threads;
    int32_t precise;       /* 0: 8-bit activations; 1: f32 matrix products; 2: f32 attention on decoded pages too */
    uint32_t max_rows;     /* rows in any call */
    uint32_t max_k, max_n; /* largest matrix dimensions */
    uint32_t max_heads, max_head_dim;
    uint32_t max_ctx;
    size_t page_bytes;
} kv_exec_params;

/* One output of a matmul: y[r][o] (+)= sum_k x[r][k] w[o][k] + bias[o], rows y_stride floats apart. wide (all outputs
 * of a call alike): 16-bit activations where the backend would use 8. */
typedef struct kv_matmul_out {
    const kv_weight *w;
    float *y;
    size_t y_stride;
    const float *bias;
    bool accumulate;
    bool wide;
} kv_matmul_out;

/* RoPE tables: cos/sin[position][n_rot/2], computed once per context by the model (linear, YaRN, Llama-3 scaling
 * inside). */
typedef struct kv_rope {
    const float *cos, *sin;
    uint32_t n_rot;
    bool neox; /* halves rotate together, else adjacent pairs */
    uint32_t n_positions;
} kv_rope;

/* Decode attention: row r is the newest token of its sequence, already in the tail of its streams. */
typedef struct kv_attn_decode_row {
    const kv_stream *streams; /* [n_kv] of this layer */
    const float *q;           /* [n_q][dk] */
    float *out;               /* [n_q][dv] */
    uint32_t position;
} kv_attn_decode_row;

/* How a row's attention lies over what its streams store, collected on the way (no second pass over K). Page i of KV head h: handles in birth
 * order, then the tail's pages; its place is p + (h cap_pages + i) group slots. There, an f16 page has by slot the sum over the group of p
 * (square: of p^2), 0 for slots not seen; a page of another format has in item 0 that sum over its tokens. The rest of the place is scratch. */
typedef struct kv_attn_mass {
    float *p;           /* [n_kv][cap_pages][group][slots]; NULL: not wanted */
    uint32_t cap_pages; /* at least the pages of any of the heads */
    uint32_t slots;     /* kv_attn_mass_slots of the streams' shape */
    bool square;
    float *lse; /* [n_q] natural log of the sum of exp(scaled scores); needed for p, may be wanted alone */
} kv_attn_mass;
static inline uint32_t kv_attn_mass_slots(const kv_stream_shape *s) { return (s->f16_tokens + 15u) & ~15u; }

/* Prompt attention of rows [row0, row0 + n_rows) of a sync whose row 0 has position first_pos. Keys, in this order: the
 * handles of `streams` (paged kernel, birth order), then the f16 run: the streams' tail followed by the sync's own
 * rows, in tiles at absolute positions that are multiples of KV_KEY_TILE. k, v: f16 [n_kv][head_stride tokens][dk or
 * dv], rows 0 .. row0 + n_rows (apart: row0) valid. */
#define KV_KEY_TILE 64u
typedef struct kv_attn_chunk {
    const kv_pool *pool;
    const kv_stream *streams; /* [n_kv] history before this sync (unchanged during it) */
    const uint16_t *k, *v;
    size_t head_stride; /* tokens between heads in k, v */
    uint32_t first_pos, row0, n_rows;
    bool apart; /* the rows are no part of the run: each sees all of streams and of the rows below row0, none of the
                   chunk's. Without a window */
    const float *q; /* [n_rows][n_q][dk], after RoPE, not scaled */
    float *out;     /* [n_rows][n_q][dv] */
    float *lse;     /* [n_rows][n_q] natural log of the sum of exp(scaled scores) over all keys; may be NULL */
} kv_attn_chunk;

/* Second pass (DESIGN 7): column sums of p = exp(s - lse) over rows of a chunk, for keys of the f16 run (tail first,
 * then new rows; run index j has position tail_pos + j). Adds in ascending row order. Rows counted: those r (relative
 * to the sync) with r >= row_from and (r - row_from) % stride == 0. */
typedef struct kv_attn_colsum {
    kv_attn_chunk c; /* lse filled; out unused */
    uint32_t row_from, stride;
    bool square; /* sums of p^2 instead of p */
    float *sums; /* [n_q][sums_stride] +=; may be NULL */
    size_t sums_stride;
    uint32_t mass_from; /* rows >= mass_from add p to mass */
    float *mass;        /* [n_q][sums_stride] +=; may be NULL */
    float *sink_mass;   /* [n_q] += p over handles flagged KV_PAGE_SINK, rows >= mass_from; may be NULL */
} kv_attn_colsum;

/* What a score expects queries to come to give keys (kv_score_forms): y[g][i] = linear_g . k_i + sum over c of k_ic
 * (square_g[c][c] k_ic + sum over b < c of square_g[c][b] k_ib), of the group's query heads g and n keys. */
typedef struct kv_key_forms {
    const uint16_t *k; /* f16 [n][dk] */
    uint32_t n, dk, group;
    const float *linear, *square; /* [group][dk], [group][dk][dk] lower triangles */
    float *y;                     /* [group][y_stride] */
    size_t y_stride;
} kv_key_forms;

/* Encodes one page: n tokens gathered as rows. */
typedef struct kv_seal_job {
    const kv_page_layout *layout;
    uint32_t n;
    const uint16_t *k, *v;
    const float *q2;
    uint8_t *page;
    kv_page_entry *entry;
} kv_seal_job;

typedef struct kv_backend_ops {
    uint32_t version;
    const char *name;
    void (*close)(kv_backend *be);

    /* Repacks losslessly; src stays mapped by the caller and is not referenced afterwards. n rows of k values. threads
     * may be NULL. */
    kv_status (*weight_create)(kv_backend *be, const kv_tensor *src, kv_threads *threads, kv_weight **out,
                               kv_error *err);
    void (*weight_free)(kv_backend *be, kv_weight *w);
    uint64_t (*weight_bytes)(const kv_weight *w);

    kv_status (*exec_create)(kv_backend *be, const kv_exec_params *p, kv_exec **out, kv_error *err);
    void (*exec_free)(kv_exec *ex);

    void (*embed)(kv_exec *ex, const kv_weight *w, const int32_t *ids, uint32_t n,
                  float *y); /* y[n][k] = row ids[i] of w */
    void (*rmsnorm)(kv_exec *ex, const float *x, const float *weight, float eps, uint32_t rows, uint32_t n,
                    float *y); /* y may be x; also per-head: rows = rows*heads */
    void (*matmul)(kv_exec *ex, const float *x, uint32_t rows, uint32_t k, const kv_matmul_out *outs, uint32_t n_outs);
    void (*rope)(kv_exec *ex, const kv_rope *rope, float *x, uint32_t rows, uint32_t heads, uint32_t d,
                 const uint32_t *positions);
    void (*silu_mul)(kv_exec *ex, const float *gate, const float *up, uint32_t rows, uint32_t n,
                     float *y); /* y = gate * sigmoid(gate) * up */
    /* Rounds k[rows][n_kv][dk], v[rows][n_kv][dv] to f16 into the layer's scratch at token row0:
     * kf[n_kv][head_stride][dk]. */
    void (*kv_to_f16)(kv_exec *ex, const float *k, const float *v, uint32_t rows, uint32_t n_kv, uint32_t dk,
                      uint32_t dv, uint32_t row0, size_t head_stride, uint16_t *kf, uint16_t *vf);
    /* q2[rows][n_kv][dk] = sum over the group's query heads of q^2. */
    void (*q_squares)(kv_exec *ex, const float *q, uint32_t rows, uint32_t n_q, uint32_t n_kv, uint32_t dk, float *q2);
    /* Adds rows q[rows][n_q][dk] to the moments of the n_q query heads, ascending rows; the first row ever is the pivot. */
    void (*q_moments)(kv_exec *ex, const float *q, uint32_t rows, uint32_t n_q, uint32_t dk, kv_score_moments *m);
    void (*key_forms)(kv_exec *ex, const kv_key_forms *f);

    kv_status (*attn_supported)(kv_backend *be, const kv_attn_params *p, kv_error *err); /* refuses by name */
    void (*attn_prefill)(kv_exec *ex, const kv_attn_params *p, const kv_attn_chunk *c);
    void (*attn_decode)(kv_exec *ex, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows,
                        uint32_t n_rows);
    /* The same bits in out, and mass[r] filled for row r where it is asked for. */
    void (*attn_decode_mass)(kv_exec *ex, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows,
                             const kv_attn_mass *mass, uint32_t n_rows);
    void (*attn_colsum)(kv_exec *ex, const kv_attn_params *p, const kv_attn_colsum *c);
    void (*seal)(kv_exec *ex, const kv_seal_job *jobs, uint32_t n_jobs);
} kv_backend_ops;

struct kv_backend {
    const kv_backend_ops *ops;
};
struct kv_exec {
    kv_backend *be;
};

/* level: -1 best available, else enum kv_cpu_level (refused when the CPU lacks it). */
kv_status kv_backend_cpu_open(int level, kv_backend **out, kv_error *err) KV_WARN_UNUSED;
int kv_backend_cpu_level(const kv_backend *be);

#endif
