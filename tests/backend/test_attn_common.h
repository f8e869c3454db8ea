/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the attention tests share: streams with sealed pages and a tail built through the cache's own calls, the same tokens as plain
 * arrays of what the pages decode to, and attention over those arrays in double precision, written out naively.
 */
#ifndef KV_TESTS_ATTN_COMMON_H
#define KV_TESTS_ATTN_COMMON_H

#include "support/support.h"

#include "backend/cpu/attn.h"
#include "base/alloc.h"
#include "base/half.h"
#include "base/os.h"
#include "cache/stream.h"
#include "policy/format.h"

#include <math.h>

#define UNUSED_STATE (void)state

/* One key as a query meets it. */
typedef struct dense_key { uint32_t position; double k[256], v[256]; } dense_key;
typedef struct dense_head { dense_key *keys; uint32_t n, cap, n_sink; } dense_head;

typedef struct world {
    kv_cpu_backend be;
    kv_cpu_exec ex;
    kv_attn_params p;
    kv_pool *pool;
    kv_seq *seq;
    kv_stream_shape shape;
    uint32_t layer_first[2];
    dense_head *heads;       /* [n_kv]: handles, tail, then rows given to prefill */
    uint16_t *rows_k, *rows_v; /* [n_kv][stride][dk], [dv]: the tokens of positions 0.. as f16 */
    uint32_t stride;
    uint64_t seed;
} world;

static inline void *must(void *p) { assert_non_null(p); return p; }
static inline void ok(kv_status s, const kv_error *e) { if (s != KVIST_OK) fail_msg("%s", e->message); }

/* Tokens of all positions up to n: K with channel biases and scales of very different size, V with token norms of very different size. */
static inline void world_tokens(world *w, uint32_t n)
{
    uint32_t dk = w->p.dk, dv = w->p.dv;
    w->stride = n;
    w->rows_k = must(calloc((size_t)w->p.n_kv * n * dk, 2));
    w->rows_v = must(calloc((size_t)w->p.n_kv * n * dv, 2));
    for (uint32_t h = 0; h < w->p.n_kv; h++) {
        float bias[256], scale[256];
        for (uint32_t c = 0; c < dk; c++) {
            bias[c] = c % 7 == 3 ? 3.0f * test_normal(&w->seed) : 0.3f * test_normal(&w->seed);
            scale[c] = expf(0.8f * test_normal(&w->seed));
        }
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t c = 0; c < dk; c++) w->rows_k[((size_t)h * n + t) * dk + c] = kv_f32_f16(bias[c] + scale[c] * test_normal(&w->seed));
            float norm = expf(0.7f * test_normal(&w->seed));
            for (uint32_t c = 0; c < dv; c++) w->rows_v[((size_t)h * n + t) * dv + c] = kv_f32_f16(norm * (0.2f * (float)(c % 3) + test_normal(&w->seed)));
        }
    }
}

static inline void world_init(world *w, int level, uint32_t threads, uint32_t n_q, uint32_t n_kv, uint32_t dk, uint32_t dv, uint32_t tokens, int precise)
{
    kv_error err;
    memset(w, 0, sizeof *w);
    w->seed = 1234 + dk + 7 * dv;
    w->p = (kv_attn_params){.scale = 1.0f / sqrtf((float)dk), .n_q = (uint16_t)n_q, .n_kv = (uint16_t)n_kv, .dk = (uint16_t)dk, .dv = (uint16_t)dv, .causal = true};
    size_t page_bytes = kv_page_bytes_for(dk, dv);
    w->be.level = level;
    w->be.attn = kv_attn_kernels_get(level);
    w->ex.be = &w->be;
    w->ex.params = (kv_exec_params){.threads = threads, .precise = precise, .max_rows = 512, .max_heads = n_q, .max_head_dim = dk > dv ? dk : dv,
                                    .max_ctx = tokens + 64, .page_bytes = page_bytes};
    if (threads > 1) ok(kv_threads_create(threads, &w->ex.threads, &err), &err);
    else ok(kv_threads_create(1, &w->ex.threads, &err), &err);
    ok(kv_attn_exec_init(&w->ex, &err), &err);
    kv_page_layout L;
    ok(kv_page_layout_get(0, dk, dv, page_bytes, &L, &err), &err);
    w->shape = (kv_stream_shape){(uint16_t)dk, (uint16_t)dv, L.tokens, (uint16_t)(n_q / n_kv)};
    w->layer_first[1] = n_kv;
    ok(kv_pool_create(page_bytes, (uint64_t)64 << 20, &w->pool, &err), &err);
    ok(kv_seq_create(w->pool, 1, w->layer_first, &w->shape, &w->seq, &err), &err);
    w->heads = must(calloc(n_kv, sizeof *w->heads));
    for (uint32_t h = 0; h < n_kv; h++) {
        w->heads[h].cap = tokens + 64;
        w->heads[h].keys = must(malloc(sizeof(dense_key) * w->heads[h].cap));
    }
    world_tokens(w, tokens);
}

static inline void world_free(world *w)
{
    kv_seq_free(&w->seq);
    kv_pool_free(&w->pool);
    kv_attn_exec_free(&w->ex);
    kv_threads_free(&w->ex.threads);
    for (uint32_t h = 0; h < w->p.n_kv; h++) free(w->heads[h].keys);
    free(w->heads);
    free(w->rows_k);
    free(w->rows_v);
}

static inline const uint16_t *token_k(const world *w, uint32_t h, uint32_t t) { return w->rows_k + ((size_t)h * w->stride + t) * w->p.dk; }
static inline const uint16_t *token_v(const world *w, uint32_t h, uint32_t t) { return w->rows_v + ((size_t)h * w->stride + t) * w->p.dv; }

static inline void dense_add_half(world *w, uint32_t h, uint32_t position)
{
    dense_key *key = &w->heads[h].keys[w->heads[h].n++];
    key->position = position;
    for (uint32_t c = 0; c < w->p.dk; c++) key->k[c] = kv_f16_f32(token_k(w, h, position)[c]);
    for (uint32_t c = 0; c < w->p.dv; c++) key->v[c] = kv_f16_f32(token_v(w, h, position)[c]);
}

/* Seals positions [first, first + n) of head h as one page, of which the first `start` slots are no longer valid. */
static inline void world_seal(world *w, uint32_t h, uint8_t pair, uint32_t first, uint32_t n, uint32_t start, uint8_t flags)
{
    kv_error err;
    kv_page_layout L;
    uint32_t page, dk = w->p.dk, dv = w->p.dv;
    ok(kv_page_layout_get(pair, dk, dv, kv_pool_page_bytes(w->pool), &L, &err), &err);
    assert_true(n <= L.tokens);
    ok(kv_stream_push(w->seq, kv_seq_stream(w->seq, 0, h), 0.0f, &page, &err), &err);
    float q2[256];
    for (uint32_t c = 0; c < dk; c++) q2[c] = 1.0f;
    void *scratch = must(kv_malloc64(kv_encode_scratch(&L) + 64));
    kv_page_entry *e = kv_pool_entry(w->pool, page);
    memset(kv_pool_data(w->pool, page), 0xa5, kv_pool_page_bytes(w->pool));
    kv_encode_ref(&L, n, token_k(w, h, first), token_v(w, h, first), q2, kv_pool_data(w->pool, page), e, scratch);
    kv_free64(scratch);
    e->first_pos = first;
    e->start = (uint16_t)start;
    e->flags = flags;
    float *k = must(malloc(sizeof(float) * n * dk)), *v = must(malloc(sizeof(float) * n * dv));
    kv_decode_ref(&L, kv_pool_data(w->pool, page), e, k, v);
    for (uint32_t t = start; t < n; t++) {
        dense_key *key = &w->heads[h].keys[w->heads[h].n++];
        key->position = first + t;
        for (uint32_t c = 0; c < dk; c++) key->k[c] = k[t * dk + c];
        for (uint32_t c = 0; c < dv; c++) key->v[c] = v[t * dv + c];
    }
    if (flags & KV_PAGE_SINK) w->heads[h].n_sink += n - start;
    free(k);
    free(v);
}

/* Seals [from, to) of every head in full pages of `pair`, the last one short. */
static inline void world_seal_all(world *w, uint8_t pair, uint32_t from, uint32_t to)
{
    kv_page_layout L;
    kv_error err;
    ok(kv_page_layout_get(pair, w->p.dk, w->p.dv, kv_pool_page_bytes(w->pool), &L, &err), &err);
    for (uint32_t h = 0; h < w->p.n_kv; h++)
        for (uint32_t t = from; t < to; t += L.tokens) world_seal(w, h, pair, t, to - t < L.tokens ? to - t : L.tokens, 0, 0);
}

/* Appends positions [from, to) to every tail. */
static inline void world_tail(world *w, uint32_t from, uint32_t to)
{
    kv_error err;
    for (uint32_t h = 0; h < w->p.n_kv; h++) {
        kv_stream *st = kv_seq_stream(w->seq, 0, h);
        if (!st->tail_len) st->tail_pos = from;
        for (uint32_t t = from; t < to; t++) {
            ok(kv_tail_append(w->seq, st, token_k(w, h, t), token_v(w, h, t), &err), &err);
            dense_add_half(w, h, t);
        }
    }
    w->seq->length = to;
}

/* New rows of a prefill, as keys. */
static inline void world_rows(world *w, uint32_t from, uint32_t to)
{
    for (uint32_t h = 0; h < w->p.n_kv; h++)
        for (uint32_t t = from; t < to; t++) dense_add_half(w, h, t);
}

static inline float *random_queries(world *w, uint32_t rows)
{
    size_t n = (size_t)rows * w->p.n_q * w->p.dk;
    float *q = must(malloc(n * sizeof *q));
    for (size_t i = 0; i < n; i++) q[i] = 0.7f * test_normal(&w->seed);
    return q;
}

static inline double dense_score(const world *w, const float *q, const dense_key *key)
{
    double s = 0;
    for (uint32_t c = 0; c < w->p.dk; c++) s += (double)q[c] * key->k[c];
    s *= w->p.scale;
    return w->p.softcap != 0.0f ? w->p.softcap * tanh(s / w->p.softcap) : s;
}

static inline bool dense_sees(const world *w, const dense_key *key, uint32_t position)
{
    return key->position <= position && (!w->p.window || key->position + w->p.window > position);
}

/* out[dv] of one query head; returns lse. */
static inline double dense_attention(const world *w, uint32_t h, const float *q, uint32_t position, double *out)
{
    const dense_head *d = &w->heads[h];
    double top = -INFINITY, sum = 0;
    memset(out, 0, w->p.dv * sizeof *out);
    for (uint32_t i = 0; i < d->n; i++)
        if (dense_sees(w, &d->keys[i], position)) top = fmax(top, dense_score(w, q, &d->keys[i]));
    if (top == -INFINITY) return -INFINITY;
    for (uint32_t i = 0; i < d->n; i++) {
        if (!dense_sees(w, &d->keys[i], position)) continue;
        double p = exp(dense_score(w, q, &d->keys[i]) - top);
        sum += p;
        for (uint32_t c = 0; c < w->p.dv; c++) out[c] += p * d->keys[i].v[c];
    }
    for (uint32_t c = 0; c < w->p.dv; c++) out[c] /= sum;
    return top + log(sum);
}

/* |a - b| / |b| */
static inline double distance(const float *a, const double *b, uint32_t n)
{
    double e = 0, s = 0;
    for (uint32_t i = 0; i < n; i++) {
        e += (a[i] - b[i]) * (a[i] - b[i]);
        s += b[i] * b[i];
    }
    return s > 0 ? sqrt(e / s) : sqrt(e);
}

/* Bound on the error of a score and of a log-sum-exp. In integers: query and key have steps of their norms / 46,300 or, with outliers, of
 * their largest / 32,767, which gives a deviation of 9e-6 |q| |k|; five of them. */
static inline double score_error(const world *w, const float *q, uint32_t h)
{
    if (!kv_attn_scratch_of(&w->ex)->tiles) return 2e-6;
    double qq = 0, most = 0;
    for (uint32_t c = 0; c < w->p.dk; c++) qq += (double)q[c] * q[c];
    for (uint32_t i = 0; i < w->heads[h].n; i++) {
        double kk = 0;
        for (uint32_t c = 0; c < w->p.dk; c++) kk += w->heads[h].keys[i].k[c] * w->heads[h].keys[i].k[c];
        most = fmax(most, kk);
    }
    return 2e-6 + 4.5e-5 * sqrt(qq * most) * w->p.scale;
}

static inline kv_attn_chunk chunk_of(const world *w, uint32_t first_pos, uint32_t row0, uint32_t n_rows, const float *q, float *out, float *lse)
{
    size_t at = (size_t)row0 * w->p.n_q;
    return (kv_attn_chunk){.pool = w->pool, .streams = kv_seq_stream(w->seq, 0, 0), .k = w->rows_k + (size_t)first_pos * w->p.dk,
                           .v = w->rows_v + (size_t)first_pos * w->p.dv, .head_stride = w->stride, .first_pos = first_pos, .row0 = row0,
                           .n_rows = n_rows, .q = q + at * w->p.dk, .out = out ? out + at * w->p.dv : NULL, .lse = lse ? lse + at : NULL};
}

#endif
