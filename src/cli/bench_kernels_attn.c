/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cases of attention, through the backend's operations over streams built with the cache's own calls: decode and prompt
 * rows over pages of every format, prompt rows over the f16 run (key tiles), column sums. One KV head with G = 3 query
 * heads of 64 channels (SmolLM2's group).
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench_kernels.h"

enum {
    GROUP = KB_N_Q / KB_N_KV,
    D = KB_HEAD_DIM,
    DECODE_PAGES = 128, /* a stream of 4,096 to some 30,000 tokens */
    PREFILL_PAGES = 8,
    PREFILL_ROWS = 32,  /* over pages: more rows cost the same each (queries share a page's codes by four) */
    DISTINCT = 16,      /* pages encoded; the others are copies */
};

typedef struct attn {
    kv_pool *pool;
    kv_seq *seq;
    kv_stream_shape shape;    /* of every layer */
    kv_stream_shape *shapes;  /* [streams] */
    uint32_t *layer_first;    /* [streams + 1] */
    uint32_t streams, at;     /* a "layer" each, of one KV head */
    uint32_t pages, tokens;   /* a stream; a page */
    kv_attn_params p;
    const uint16_t *k, *v;    /* f16 [KB_ROWS or more tokens][D] */
    const float *q;           /* [KB_ROWS][GROUP][D] */
    float *out, *lse;         /* [KB_ROWS][GROUP][D], [KB_ROWS][GROUP] */
    float *sums;              /* [GROUP][KB_ROWS] */
} attn;

/* Empty streams with room for `pages` pages each. */
static void open_streams(attn *a, uint32_t streams, uint32_t pages) {
    kv_error err;
    size_t page_bytes = kv_page_bytes_for(D, D);
    kv_page_layout f16;
    kv_kb_must(kv_page_layout_get(kv_format_pair(KV_F16, KV_F16), D, D, page_bytes, &f16, &err), &err);
    a->shape = (kv_stream_shape){D, D, f16.tokens, GROUP};
    a->streams = streams;
    a->pages = pages;
    a->at = 0;
    a->shapes = kv_kb_alloc(streams * sizeof *a->shapes);
    a->layer_first = kv_kb_alloc((streams + 1) * sizeof *a->layer_first);
    for (uint32_t i = 0; i < streams; i++) a->shapes[i] = a->shape;
    for (uint32_t i = 0; i <= streams; i++) a->layer_first[i] = i;
    /* An entry of 32 bytes a page, and handles and sequence arrays, within an eighth. */
    uint64_t budget = (uint64_t)(streams * pages + 64) * page_bytes;
    kv_kb_must(kv_pool_create(page_bytes, budget + budget / 8 + (1 << 20), &a->pool, &err), &err);
    kv_kb_must(kv_seq_create(a->pool, streams, a->layer_first, a->shapes, &a->seq, &err), &err);
}

static void close_streams(attn *a) {
    kv_seq_free(&a->seq);
    kv_pool_free(&a->pool);
    kv_free64(a->shapes);
    kv_free64(a->layer_first);
}

/* Fills every stream with full pages of a format. */
static void fill_streams(attn *a, kv_exec *ex, const kv_page_layout *layout) {
    kv_error err;
    float q2[D];
    uint32_t model[DISTINCT];
    for (uint32_t c = 0; c < D; c++) q2[c] = 1.0f + (float)(c % 7);
    a->tokens = layout->tokens;
    for (uint32_t s = 0; s < a->streams; s++)
        for (uint32_t i = 0; i < a->pages; i++) {
            kv_stream *st = kv_seq_stream(a->seq, s, 0);
            uint32_t page, m = (s * a->pages + i) % DISTINCT;
            kv_kb_must(kv_stream_push(a->seq, st, 0.0f, &page, &err), &err);
            kv_page_entry *e = kv_pool_entry(a->pool, page);
            if (s * a->pages + i < DISTINCT) {
                model[m] = page;
                kv_seal_job job = {layout, layout->tokens, a->k + (size_t)m * D, a->v + (size_t)m * D, q2,
                                   kv_pool_data(a->pool, page), e};
                ex->be->ops->seal(ex, &job, 1);
            } else {
                uint32_t refs = e->refs;
                *e = *kv_pool_entry(a->pool, model[m]);
                e->refs = refs;
                memcpy(kv_pool_data(a->pool, page), kv_pool_data(a->pool, model[m]), kv_pool_page_bytes(a->pool));
            }
            e->first_pos = i * layout->tokens;
            st->tokens_sealed += layout->tokens;
        }
    a->seq->length = a->pages * layout->tokens;
}

static void run_decode(void *ctx, kv_exec *ex) {
    attn *a = ctx;
    kv_attn_decode_row row = {kv_seq_stream(a->seq, a->at, 0), a->q, a->out, a->seq->length};
    ex->be->ops->attn_decode(ex, &a->p, a->pool, &row, 1);
    a->at = (a->at + 1) % a->streams;
}

/* Rows [0, n) of a sync after the stream's pages. */
static kv_attn_chunk chunk(attn *a, uint32_t n) {
    kv_attn_chunk c = {.pool = a->pool, .streams = kv_seq_stream(a->seq, a->at, 0), .k = a->k, .v = a->v,
                       .head_stride = KB_ROWS, .first_pos = a->seq->length, .n_rows = n, .q = a->q, .out = a->out,
                       .lse = a->lse};
    return c;
}

static void run_prefill_pages(void *ctx, kv_exec *ex) {
    attn *a = ctx;
    kv_attn_chunk c = chunk(a, PREFILL_ROWS);
    ex->be->ops->attn_prefill(ex, &a->p, &c);
    a->at = (a->at + 1) % a->streams;
}

static void run_prefill(void *ctx, kv_exec *ex) {
    attn *a = ctx;
    kv_attn_chunk c = chunk(a, KB_ROWS);
    ex->be->ops->attn_prefill(ex, &a->p, &c);
}

static void run_colsum(void *ctx, kv_exec *ex) {
    attn *a = ctx;
    kv_attn_colsum c = {.c = chunk(a, KB_ROWS), .stride = 1, .sums = a->sums, .sums_stride = KB_ROWS,
                        .mass_from = KB_ROWS};
    c.c.out = NULL;
    memset(a->sums, 0, (size_t)GROUP * KB_ROWS * sizeof *a->sums);
    ex->be->ops->attn_colsum(ex, &a->p, &c);
}

/* Streams of `pages` pages each filled with a format, for one case. */
static void measure_streams(kb *b, attn *a, kb_case *c, const kv_page_layout *layout, uint32_t streams,
                            uint32_t pages) {
    if (!kv_kb_wants(b, c)) return;
    open_streams(a, streams, pages);
    if (pages) fill_streams(a, kv_kb_best(b), layout);
    c->ctx = a;
    kv_kb_measure(b, c);
    close_streams(a);
}

/* Decode from a ring in memory, prompt rows over pages that stay in the cache; for one format. */
static void measure_pages(kb *b, attn *a, const char *format, const kv_page_layout *layout) {
    size_t page_bytes = kv_page_bytes_for(D, D);
    kb_case c = {.section = "attn", .kernel = "decode", .place = KB_MEMORY, .run = run_decode,
                 .rate = {{KB_US_PAGE, DECODE_PAGES}, {KB_GBYTES, (double)DECODE_PAGES * page_bytes}}};
    snprintf(c.name, sizeof c.name, "%s, %u pages of %u, G=%d d=%d", format, DECODE_PAGES, layout->tokens, GROUP, D);
    measure_streams(b, a, &c, layout, (uint32_t)(KB_RING_BYTES / page_bytes / DECODE_PAGES) + 1, DECODE_PAGES);

    double pairs = PREFILL_ROWS * ((double)PREFILL_PAGES * layout->tokens + (PREFILL_ROWS + 1) / 2.0) * GROUP;
    c = (kb_case){.section = "attn", .kernel = "prefill_page", .place = KB_CACHE, .run = run_prefill_pages,
                  .rate = {{KB_GMACS, pairs * 2 * D}}};
    snprintf(c.name, sizeof c.name, "%s, %u rows over %u pages of %u", format, PREFILL_ROWS, PREFILL_PAGES,
             layout->tokens);
    measure_streams(b, a, &c, layout, 1, PREFILL_PAGES);
}

/* The f16 run: causal, nothing stored before. */
static void measure_tiles(kb *b, attn *a) {
    double pairs = KB_ROWS * (KB_ROWS + 1.0) / 2 * GROUP;
    kb_case c = {.section = "attn", .kernel = "prefill_tile", .place = KB_CACHE, .run = run_prefill,
                 .rate = {{KB_GMACS, pairs * 2 * D}}};
    snprintf(c.name, sizeof c.name, "f16 run, %u rows, G=%d d=%d", KB_ROWS, GROUP, D);
    measure_streams(b, a, &c, NULL, 1, 0);
    c.kernel = "colsum";
    c.run = run_colsum;
    c.rate[0].amount = pairs * D;
    /* Column sums need the rows' log-sum-exp: the prefill of the same rows leaves it in a->lse. */
    open_streams(a, 1, 0);
    run_prefill(a, kv_kb_best(b));
    close_streams(a);
    measure_streams(b, a, &c, NULL, 1, 0);
}

void kv_kb_attn(kb *b) {
    /* Pages are encoded from tokens m .. m + P, m < DISTINCT. */
    size_t tokens = KV_PAGE_TOKENS_MAX + DISTINCT, q_floats = (size_t)KB_ROWS * GROUP * D;
    uint16_t *k = kv_kb_alloc(tokens * D * 2), *v = kv_kb_alloc(tokens * D * 2);
    float *q = kv_kb_alloc(q_floats * sizeof *q);
    kv_kb_fill_f16(k, tokens * D, 11);
    kv_kb_fill_f16(v, tokens * D, 12);
    kv_kb_fill(q, q_floats, 13);
    attn a = {.k = k, .v = v, .q = q, .out = kv_kb_alloc(q_floats * sizeof(float)),
              .lse = kv_kb_alloc((size_t)KB_ROWS * GROUP * sizeof(float)),
              .sums = kv_kb_alloc((size_t)KB_ROWS * GROUP * sizeof(float)),
              .p = {.scale = 1.0f / sqrtf(D), .n_q = GROUP, .n_kv = 1, .dk = D, .dv = D, .causal = true}};
    for (uint8_t f = 0; f < KV_FORMATS; f++) {
        kv_page_layout layout;
        kv_error err;
        kv_kb_must(kv_page_layout_get(kv_format_pair(f, f), D, D, kv_page_bytes_for(D, D), &layout, &err), &err);
        measure_pages(b, &a, kv_formats[f].name, &layout);
    }
    measure_tiles(b, &a);
    kv_free64(k);
    kv_free64(v);
    kv_free64(q);
    kv_free64(a.out);
    kv_free64(a.lse);
    kv_free64(a.sums);
}

/* ---- encode: one page from f16 rows the chunk just computed (in the cache). */
typedef struct sealing {
    kv_page_layout layout;
    const uint16_t *k, *v; /* [KV_PAGE_TOKENS_MAX + DISTINCT][D] */
    float q2[D];
    uint8_t *pages; /* [DISTINCT][page_bytes] */
    kv_page_entry entries[DISTINCT];
    uint32_t at;
} sealing;

static void run_seal(void *ctx, kv_exec *ex) {
    sealing *s = ctx;
    uint32_t m = s->at;
    kv_seal_job job = {&s->layout, s->layout.tokens, s->k + (size_t)m * D, s->v + (size_t)m * D, s->q2,
                       s->pages + (size_t)m * s->layout.page_bytes, &s->entries[m]};
    ex->be->ops->seal(ex, &job, 1);
    s->at = (m + 1) % DISTINCT;
}

void kv_kb_encode(kb *b) {
    size_t page_bytes = kv_page_bytes_for(D, D), values = (size_t)(KV_PAGE_TOKENS_MAX + DISTINCT) * D;
    uint16_t *k = kv_kb_alloc(values * 2), *v = kv_kb_alloc(values * 2);
    kv_kb_fill_f16(k, values, 21);
    kv_kb_fill_f16(v, values, 22);
    sealing s = {.k = k, .v = v, .pages = kv_kb_alloc(DISTINCT * page_bytes)};
    for (uint32_t c = 0; c < D; c++) s.q2[c] = 1.0f + (float)(c % 7);
    for (uint8_t f = 0; f < KV_FORMATS; f++) {
        kv_error err;
        kv_kb_must(kv_page_layout_get(kv_format_pair(f, f), D, D, page_bytes, &s.layout, &err), &err);
        kb_case c = {.section = "encode", .kernel = "seal", .place = KB_CACHE, .run = run_seal, .ctx = &s,
                     .rate = {{KB_US_PAGE, 1}, {KB_GBYTES, s.layout.tokens * 2.0 * D * 2}}};
        snprintf(c.name, sizeof c.name, "%s, page of %u, d=%d", kv_formats[f].name, s.layout.tokens, D);
        kv_kb_measure(b, &c);
    }
    kv_free64(k);
    kv_free64(v);
    kv_free64(s.pages);
}
