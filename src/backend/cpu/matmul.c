/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Splits matrix products into work items and runs the level's kernels; embedding rows.
 * Owns: the matmul section's scratch, the split of work over threads. Must not know: instruction sets.
 * Invariants: nothing is allocated after kv_matmul_exec_init; which thread takes an item changes no bit, since an
 * output lane is always summed by one thread in ascending k.
 */
#include "backend/cpu/matmul.h"

#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cpu.h"

/* Blocks unpacked at a time: 64 x 2 records = 96 KiB a thread, a tenth of a usual L2. */
#define RANGE_BLOCKS 64u
/* f32 values of k unpacked at a time: 256 x 2 panels = 32 KiB. A multiple of 32. */
#define RANGE_K 256u
/* Rows of activations an item: a multiple of 6; large enough that unpacking a pair (about two rows' work) is under 2 %. */
#define ITEM_ROWS 516u
/* Items a thread: dynamic balance against noise, while an item stays well above the cost of taking one (about 50 ns).
 */
#define ITEMS_PER_THREAD 8u
/* Fewer rows are quantized by the caller: less than the cost of waking the threads once more. */
#define SERIAL_QUANT_ROWS 4u

typedef struct mm_thread {
    uint8_t *rec;
    float *acc;
} mm_thread;

typedef struct mm_scratch {
    uint8_t *memory, *act;
    uint32_t max_rows;
    mm_thread *threads;
} mm_scratch;

const struct kv_matmul_kernels *kv_matmul_kernels_get(int level) {
#if defined(__x86_64__)
    if (level >= KV_CPU_AVX512) return &kv_matmul_avx512;
    if (level == KV_CPU_AVX2) return kv_cpu_has_avxvnni() ? &kv_matmul_avxvnni : &kv_matmul_avx2;
#elif defined(__aarch64__)
    if (level == KV_CPU_NEON) return &kv_matmul_neon;
#endif
    return &kv_matmul_ref;
}

static uint32_t div_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

kv_status kv_matmul_exec_init(kv_cpu_exec *ex, kv_error *err) {
    const kv_exec_params *p = &ex->params;
    uint32_t rows = p->max_rows > 2 ? p->max_rows : 2, threads = p->threads ? p->threads : 1;
    size_t act = (size_t)div_up(rows, KV_TILE_ROWS) * (p->max_k / 32 + 1) * KV_ACT_BYTES(KV_TILE_ROWS);
    size_t rec = (size_t)RANGE_BLOCKS * 2 * KV_REC_BYTES, acc = (size_t)ITEM_ROWS * 2 * KV_PANEL * sizeof(float);
    mm_scratch *s = kv_calloc(1, sizeof *s);
    if (!s) KV_FAIL(err, MEMORY, "matmul scratch");
    s->max_rows = rows;
    s->threads = kv_calloc(threads, sizeof *s->threads);
    s->memory = kv_malloc64(act + threads * (rec + acc));
    ex->matmul_scratch = s;
    if (!s->threads || !s->memory) {
        kv_matmul_exec_free(ex);
        KV_FAIL(err, MEMORY, "matmul scratch of %zu bytes", act + threads * (rec + acc));
    }
    /* Zeros once: the second panel of an odd pair is computed on what lies there and never stored. */
    memset(s->memory, 0, act + threads * (rec + acc));
    s->act = s->memory;
    for (uint32_t t = 0; t < threads; t++) {
        s->threads[t].rec = s->memory + act + t * (rec + acc);
        s->threads[t].acc = (float *)(void *)(s->threads[t].rec + rec);
    }
    return KVIST_OK;
}

void kv_matmul_exec_free(kv_cpu_exec *ex) {
    mm_scratch *s = ex->matmul_scratch;
    if (!s) return;
    kv_free(s->threads);
    kv_free64(s->memory);
    kv_free(s);
    ex->matmul_scratch = NULL;
}

/* One call's work. rows: of activations, two for a row of x where wide. Units are pairs of panels, counted over all
 * outputs. */
typedef struct mm_job {
    const struct kv_matmul_kernels *kn;
    mm_scratch *s;
    const float *x;
    bool wide;
    uint32_t rows, k, tile_rows;
    const kv_matmul_out *outs;
    uint32_t n_outs, units, units_per_item, items_per_chunk;
    bool precise;
} mm_job;

static bool is_f32(const mm_job *j, const kv_weight *w) { return j->precise || w->code == KV_CODE_DENSE; }

/* Codes times few rows stream single panels; everything else works on pairs. */
static bool streams(const mm_job *j, const kv_weight *w) { return j->rows <= j->kn->stream_rows && !is_f32(j, w); }

static void quantize_tile(void *ctx, uint32_t item, uint32_t thread) {
    const mm_job *j = ctx;
    uint32_t T = j->tile_rows;
    uint8_t *act = j->s->act + (size_t)item * (j->k / 32) * KV_ACT_BYTES(T);
    uint32_t per = j->wide ? 2 : 1;
    if (j->kn->quantize_tile && T == KV_TILE_ROWS && item * T + T <= j->rows) {
        j->kn->quantize_tile(j->x + (size_t)(item * T / per) * j->k, j->k, j->k, j->wide, act);
        return;
    }
    for (uint32_t r = 0; r < T && item * T + r < j->rows; r += per)
        j->kn->quantize(j->x + (size_t)((item * T + r) / per) * j->k, j->k, T, r, j->wide, act);
}

/* A pair of panels times rows [row0, row0 + rows). */
static void pair_product(const mm_job *j, const kv_matmul_out *out, uint32_t panel, uint32_t row0, uint32_t rows,
                         mm_thread *th) {
    const kv_weight *w = out->w;
    bool f32 = is_f32(j, w);
    uint32_t total = f32 ? w->k : w->nb, range = f32 ? RANGE_K : RANGE_BLOCKS;
    kv_mm_tile t = {.rec = th->rec,
                    .act_stride = (size_t)(j->k / 32) * KV_ACT_BYTES(KV_TILE_ROWS),
                    .x_stride = j->k,
                    .rows = rows,
                    .zshift = w->zshift,
                    .min = kv_scale_has_min(w->scale),
                    .g16 = kv_scale_is_g16(w->scale),
                    .acc = th->acc,
                    .out = out,
                    .row0 = row0,
                    .panel = panel};
    bool both = panel + 1 < w->panels;
    for (uint32_t at = 0; at < total; at += range) {
        t.nb = total - at < range ? total - at : range;
        t.first = at == 0;
        t.last = at + t.nb == total;
        if (f32) {
            float *wf = (float *)(void *)th->rec;
            j->kn->unpack_f32(w, panel, at, t.nb, wf);
            if (both) j->kn->unpack_f32(w, panel + 1, at, t.nb, wf + KV_PANEL);
            t.x = j->x + (size_t)row0 * j->k + at;
            j->kn->tile_f32(&t);
        } else {
            j->kn->unpack(w, panel, at, t.nb, th->rec, 2 * KV_REC_BYTES);
            if (both) j->kn->unpack(w, panel + 1, at, t.nb, th->rec + KV_REC_BYTES, 2 * KV_REC_BYTES);
            t.act = j->s->act + row0 / KV_TILE_ROWS * t.act_stride + (size_t)at * KV_ACT_BYTES(KV_TILE_ROWS);
            j->kn->tile(&t);
        }
    }
}

/* Items run over chunks of rows first, then over ranges of units across all outputs. */
static void product_item(void *ctx, uint32_t item, uint32_t thread) {
    const mm_job *j = ctx;
    mm_thread *th = &j->s->threads[thread];
    uint32_t row0 = item / j->items_per_chunk * ITEM_ROWS,
             rows = j->rows - row0 < ITEM_ROWS ? j->rows - row0 : ITEM_ROWS;
    uint32_t u0 = item % j->items_per_chunk * j->units_per_item, u1 = u0 + j->units_per_item;
    for (uint32_t i = 0, base = 0; i < j->n_outs && base < u1; i++) {
        const kv_matmul_out *out = &j->outs[i];
        uint32_t n = div_up(out->w->panels, KV_TILE_PANELS), a = u0 > base ? u0 - base : 0,
                 b = u1 - base < n ? u1 - base : n;
        base += n;
        if (a >= b) continue;
        uint32_t p0 = a * KV_TILE_PANELS,
                 p1 = b * KV_TILE_PANELS < out->w->panels ? b * KV_TILE_PANELS : out->w->panels;
        if (streams(j, out->w))
            j->kn->gemv(out, p0, p1, j->s->act, j->rows);
        else if (j->rows == 1 && out->w->code == KV_CODE_DENSE)
            j->kn->gemv_f32(out, p0, p1, j->x);
        else
            for (uint32_t p = p0; p < p1; p += KV_TILE_PANELS) pair_product(j, out, p, row0, rows, th);
    }
}

/* At most max_rows rows of activations. */
static void product(kv_cpu_exec *ex, const float *x, bool wide, uint32_t rows, uint32_t k, const kv_matmul_out *outs,
                    uint32_t n_outs) {
    mm_job j = {.kn = ex->be->matmul,
                .s = ex->matmul_scratch,
                .x = x,
                .wide = wide,
                .rows = rows,
                .k = k,
                .outs = outs,
                .n_outs = n_outs,
                .precise = ex->params.precise > 0};
    bool coded = false;
    j.tile_rows = rows == 1 ? 1 : KV_TILE_ROWS;
    for (uint32_t i = 0; i < n_outs; i++) {
        assert(outs[i].w->k == k);
        coded |= !is_f32(&j, outs[i].w);
        j.units += div_up(outs[i].w->panels, KV_TILE_PANELS);
    }
    if (coded)
        kv_threads_run(rows < SERIAL_QUANT_ROWS ? NULL : ex->threads, quantize_tile, &j, div_up(rows, j.tile_rows));
    uint32_t chunks = div_up(rows, ITEM_ROWS), threads = kv_threads_count(ex->threads);
    uint32_t wanted = threads * ITEMS_PER_THREAD;
    j.units_per_item = div_up(j.units * chunks, wanted);
    j.items_per_chunk = div_up(j.units, j.units_per_item);
    kv_threads_run(ex->threads, product_item, &j, j.items_per_chunk * chunks);
}

void kv_cpu_matmul(kv_exec *ex_, const float *x, uint32_t rows, uint32_t k, const kv_matmul_out *outs,
                   uint32_t n_outs) {
    kv_cpu_exec *ex = kv_cpu_exec_of(ex_);
    mm_scratch *s = ex->matmul_scratch;
    uint32_t most = s->max_rows;
    assert(n_outs > 0 && n_outs <= 8 && rows <= most);
    if (rows == 0 || rows > most) return;
    bool wide = outs[0].wide && ex->params.precise == 0;
    for (uint32_t i = 0; i < n_outs; i++) wide = wide && outs[i].w->code != KV_CODE_DENSE;
    uint32_t pass = wide ? most / 2 : most;
    for (uint32_t r0 = 0; r0 < rows; r0 += pass) {
        kv_matmul_out part[8];
        uint32_t n = rows - r0 < pass ? rows - r0 : pass;
        for (uint32_t i = 0; i < n_outs; i++) {
            part[i] = outs[i];
            part[i].y += r0 * outs[i].y_stride;
            part[i].wide = wide;
        }
        product(ex, x + (size_t)r0 * k, wide, wide ? 2 * n : n, k, part, n_outs);
    }
}

/* ---- embedding */

typedef struct embed_job {
    const kv_weight *w;
    const int32_t *ids;
    float *y;
} embed_job;

static void embed_row(void *ctx, uint32_t item, uint32_t thread) {
    const embed_job *j = ctx;
    kv_pack_unpack_row(j->w, (uint32_t)j->ids[item], j->y + (size_t)item * j->w->k);
}

void kv_cpu_embed(kv_exec *ex_, const kv_weight *w, const int32_t *ids, uint32_t n, float *y) {
    embed_job j = {w, ids, y};
    /* A row is about 1 us; below a few rows waking the threads costs more. */
    kv_threads_run(n < 8 ? NULL : kv_cpu_exec_of(ex_)->threads, embed_row, &j, n);
}
