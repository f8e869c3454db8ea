/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cases of the matrix products: every weight type the GGUF table knows x 1, 8 and 512 rows; 16-bit activations and f32
 * products for one type; and the kernels a product of many rows is made of, alone: quantize, unpack, unpack_f32 (its
 * tile is the 512 rows).
 * One row and eight rows walk a ring of weights, as decoding does; many rows reuse one weight.
 */
#include <stdio.h>
#include <string.h>

#include "backend/cpu/matmul.h"
#include "base/alloc.h"
#include "cli/bench_kernels.h"

/* ---- products */
typedef struct product {
    kv_weight *w; /* [copies] of one shape, each with its own memory */
    uint32_t copies, at, per_run, rows;
    const float *x; /* [rows][k] */
    float *y;       /* [rows][n] */
    bool wide;
} product;

static void product_run(void *ctx, kv_exec *ex) {
    product *p = ctx;
    for (uint32_t i = 0; i < p->per_run; i++) {
        const kv_weight *w = &p->w[p->at];
        kv_matmul_out out = {.w = w, .y = p->y, .y_stride = w->n, .wide = p->wide};
        ex->be->ops->matmul(ex, p->x, p->rows, w->k, &out, 1);
        p->at = (p->at + 1) % p->copies;
    }
}

/* A weight w[n][k] of random values in the type's own encoding. */
static kv_weight *make_weight(kv_backend *be, uint32_t type, uint32_t n, uint32_t k) {
    const kv_type_info *ti = kv_type_get(type);
    size_t row = (size_t)k / ti->block * ti->bytes, bytes = row * n;
    uint8_t *data = kv_kb_alloc(bytes);
    float *x = kv_kb_alloc(k * sizeof *x);
    memset(data, 0x2a, bytes); /* a type without encoder: small finite scales in every 16-bit reading */
    for (uint32_t o = 0; ti->quant && o < n; o++) {
        kv_kb_fill(x, k, o + 1);
        ti->quant(x, data + o * row, k);
    }
    kv_tensor t = {"w", type, 2, {k, n, 1, 1}, data, bytes, 0};
    kv_weight *w;
    kv_error err;
    kv_kb_must(be->ops->weight_create(be, &t, NULL, &w, &err), &err);
    kv_free64(x);
    kv_free64(data);
    return w;
}

/* Weights that fill the ring, all copies of w; *memory holds their panels. */
static kv_weight *make_ring(const kv_weight *w, uint32_t *copies, uint8_t **memory) {
    size_t one = ((size_t)w->panels * w->panel_bytes + 63) & ~(size_t)63;
    *copies = (uint32_t)(KB_RING_BYTES / one) + 1;
    *memory = kv_kb_alloc(one * *copies);
    kv_weight *ring = kv_kb_alloc(*copies * sizeof *ring);
    for (uint32_t i = 0; i < *copies; i++) {
        ring[i] = *w;
        ring[i].data = *memory + i * one;
        memcpy(ring[i].data, w->data, (size_t)w->panels * w->panel_bytes);
    }
    return ring;
}

/* The ways a product can go. The last two unpack weights as the first does and differ after it: one type shows them. */
static const struct {
    const char *name;
    bool wide, precise, one_type;
} kernels[] = {{"matmul", false, false, false}, {"matmul_wide", true, false, true}, {"matmul_f32", false, true, true}};
static const uint32_t row_counts[] = {1, 8, KB_ROWS};
enum { KERNELS = sizeof kernels / sizeof *kernels, COUNTS = sizeof row_counts / sizeof *row_counts };

/* Few rows stream weights; many take fewer outputs of one weight, for the reference level's sake. */
static bool streams(uint32_t rows) { return rows <= 8; }
static uint32_t outputs(uint32_t rows) { return streams(rows) ? KB_FFN : KB_EMBED; }

/* Types of super blocks cannot hold 576 values a row: the largest multiple below. */
static uint32_t inputs(uint32_t type) { return KB_EMBED / kv_type_get(type)->block * kv_type_get(type)->block; }

/* A case but for its context and rates. */
static kb_case case_of(uint32_t type, size_t kernel, uint32_t rows) {
    kb_case c = {.section = "matmul", .kernel = kernels[kernel].name, .place = streams(rows) ? KB_MEMORY : KB_CACHE,
                 .precise = kernels[kernel].precise, .run = product_run};
    snprintf(c.name, sizeof c.name, "%s %ux%u, %u row%s", kv_type_get(type)->name, outputs(rows), inputs(type), rows,
             rows == 1 ? "" : "s");
    return c;
}

static bool has_kernel(uint32_t type, size_t kernel) { return !kernels[kernel].one_type || type == KV_TYPE_Q4_1; }

static void measure_case(kb *b, uint32_t type, size_t kernel, uint32_t rows, const product *proto) {
    product p = *proto;
    kv_weight first = p.w[0];
    p.rows = rows;
    p.wide = kernels[kernel].wide;
    p.per_run = 1;
    if (!streams(rows)) {
        first.n = outputs(rows);
        first.panels = first.n / KV_PANEL;
        p.w = &first;
        p.copies = 1;
    }
    kb_case c = case_of(type, kernel, rows);
    c.ctx = &p;
    c.rate[0] = (kb_rate){KB_GMACS, (double)first.n * first.k * rows};
    if (streams(rows)) c.rate[1] = (kb_rate){KB_GBYTES, (double)first.panels * (double)first.panel_bytes};
    kv_kb_measure(b, &c);
}

/* ---- parts: one panel of 16 outputs, 256 values of k */
enum { PART_K = 256 };
typedef struct part {
    const kv_weight *w;
    const float *x; /* [PART_K] */
    uint8_t *rec;   /* [PART_K / 32][2] records, or f32 [PART_K][32] */
} part;

static const struct kv_matmul_kernels *kernels_of(kv_exec *ex) { return kv_cpu_exec_of(ex)->be->matmul; }

static void run_quantize(void *ctx, kv_exec *ex) {
    part *p = ctx;
    kernels_of(ex)->quantize(p->x, PART_K, KV_TILE_ROWS, 0, false, p->rec);
}

static void run_unpack(void *ctx, kv_exec *ex) {
    part *p = ctx;
    kernels_of(ex)->unpack(p->w, 0, 0, PART_K / KV_PACK_BLOCK, p->rec, 2 * KV_REC_BYTES);
}

static void run_unpack_f32(void *ctx, kv_exec *ex) {
    part *p = ctx;
    kernels_of(ex)->unpack_f32(p->w, 0, 0, PART_K, (float *)(void *)p->rec);
}

static kb_case part_case(uint32_t type, bool f32) {
    kb_case c = {.section = "matmul", .kernel = f32 ? "unpack_f32" : "unpack", .place = KB_CACHE,
                 .run = f32 ? run_unpack_f32 : run_unpack, .rate = {{KB_GVALUES, KV_PANEL * PART_K}}};
    snprintf(c.name, sizeof c.name, "%s %ux%d", kv_type_get(type)->name, KV_PANEL, PART_K);
    return c;
}

static void measure_parts(kb *b, const kv_weight *w, const float *x) {
    part p = {.w = w, .x = x, .rec = kv_kb_alloc((size_t)PART_K * 2 * KV_PANEL * sizeof(float))};
    for (int f32 = w->code == KV_CODE_DENSE; f32 < 2; f32++) { /* dense weights have no codes */
        kb_case c = part_case(w->type, f32);
        c.ctx = &p;
        kv_kb_measure(b, &c);
    }
    kv_free64(p.rec);
}

static void measure_quantize(kb *b, const float *x) {
    kb_case c = {.section = "matmul", .kernel = "quantize", .place = KB_CACHE, .run = run_quantize,
                 .rate = {{KB_GVALUES, PART_K}}};
    snprintf(c.name, sizeof c.name, "a row of %d in a tile of %u", PART_K, KV_TILE_ROWS);
    part p = {.x = x, .rec = kv_kb_alloc(PART_K / 32 * KV_ACT_BYTES(KV_TILE_ROWS))};
    c.ctx = &p;
    kv_kb_measure(b, &c);
    kv_free64(p.rec);
}

/* Whether any case of a type is wanted; when listing, names them all. */
static bool wants_type(kb *b, uint32_t type) {
    bool wanted = false;
    for (int f32 = kv_type_get(type)->block == 1; f32 < 2; f32++) {
        kb_case c = part_case(type, f32);
        wanted |= kv_kb_wants(b, &c);
    }
    for (size_t i = 0; i < KERNELS; i++)
        for (size_t r = 0; has_kernel(type, i) && r < COUNTS; r++) {
            kb_case c = case_of(type, i, row_counts[r]);
            wanted |= kv_kb_wants(b, &c);
        }
    return wanted;
}

static void measure_type(kb *b, uint32_t type, const float *x, float *y) {
    if (!wants_type(b, type)) return;
    kv_backend *be = kv_kb_best(b)->be;
    kv_weight *w = make_weight(be, type, KB_FFN, inputs(type));
    measure_parts(b, w, x);
    product p = {.x = x, .y = y};
    uint8_t *memory;
    p.w = make_ring(w, &p.copies, &memory);
    for (size_t i = 0; i < KERNELS; i++)
        for (size_t r = 0; has_kernel(type, i) && r < COUNTS; r++) measure_case(b, type, i, row_counts[r], &p);
    kv_free64(p.w);
    kv_free64(memory);
    be->ops->weight_free(be, w);
}

void kv_kb_matmul(kb *b) {
    float *x = kv_kb_alloc((size_t)KB_ROWS * KB_MAX_K * sizeof *x);
    float *y = kv_kb_alloc((size_t)KB_ROWS * KB_MAX_N * sizeof *y);
    kv_kb_fill(x, (size_t)KB_ROWS * KB_MAX_K, 7);
    measure_quantize(b, x);
    for (uint32_t type = 0; type < 256; type++) /* ggml's numbers; the table has gaps and grows */
        if (kv_type_get(type)) measure_type(b, type, x, y);
    kv_free64(x);
    kv_free64(y);
}
