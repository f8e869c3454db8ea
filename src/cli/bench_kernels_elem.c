/* SPDX-License-Identifier: Apache-2.0 */
/* Cases of the elementwise operations, for one row (decode) and a full prompt chunk, on data in the cache. */
#include <math.h>
#include <stdio.h>

#include "base/alloc.h"
#include "cli/bench_kernels.h"

/* Inputs are never outputs (but for RoPE, which turns in place and keeps lengths), so that values stay as they are. */
typedef struct elem {
    float *a, *b, *y;   /* [KB_ROWS][KB_FFN] */
    uint16_t *kf, *vf;  /* [KB_N_KV][KB_ROWS][KB_HEAD_DIM] */
    float *cos, *sin;   /* [KB_ROWS][KB_HEAD_DIM / 2] */
    uint32_t *positions;
    uint32_t rows;
} elem;

static void run_rmsnorm(void *ctx, kv_exec *ex) {
    elem *e = ctx;
    ex->be->ops->rmsnorm(ex, e->a, e->b, 1e-5f, e->rows, KB_EMBED, e->y);
}

static void run_rope(void *ctx, kv_exec *ex, bool neox) {
    elem *e = ctx;
    kv_rope rope = {.cos = e->cos, .sin = e->sin, .n_rot = KB_HEAD_DIM, .neox = neox, .n_positions = KB_ROWS};
    ex->be->ops->rope(ex, &rope, e->y, e->rows, KB_N_Q, KB_HEAD_DIM, e->positions);
}
static void run_rope_neox(void *ctx, kv_exec *ex) { run_rope(ctx, ex, true); }
static void run_rope_pairs(void *ctx, kv_exec *ex) { run_rope(ctx, ex, false); }

static void run_silu(void *ctx, kv_exec *ex) {
    elem *e = ctx;
    ex->be->ops->silu_mul(ex, e->a, e->b, e->rows, KB_FFN, e->y);
}

static void run_f16(void *ctx, kv_exec *ex) {
    elem *e = ctx;
    ex->be->ops->kv_to_f16(ex, e->a, e->b, e->rows, KB_N_KV, KB_HEAD_DIM, KB_HEAD_DIM, 0, KB_ROWS, e->kf, e->vf);
}

static void run_squares(void *ctx, kv_exec *ex) {
    elem *e = ctx;
    ex->be->ops->q_squares(ex, e->a, e->rows, KB_N_Q, KB_N_KV, KB_HEAD_DIM, e->y);
}

/* values: inputs a row; width: as the case's name says it. */
static const struct {
    const char *kernel, *width;
    uint32_t values;
    void (*run)(void *ctx, kv_exec *ex);
} ops[] = {
    {"rmsnorm", "576", KB_EMBED, run_rmsnorm},
    {"rope", "9x64, halves", KB_N_Q * KB_HEAD_DIM, run_rope_neox},
    {"rope", "9x64, pairs", KB_N_Q * KB_HEAD_DIM, run_rope_pairs},
    {"silu_mul", "1536", KB_FFN, run_silu},
    {"kv_to_f16", "3x(64+64)", KB_N_KV * 2 * KB_HEAD_DIM, run_f16},
    {"q_squares", "9x64 to 3x64", KB_N_Q * KB_HEAD_DIM, run_squares},
};

static void fill_elem(elem *e) {
    size_t n = (size_t)KB_ROWS * KB_FFN;
    kv_kb_fill(e->a, n, 1);
    kv_kb_fill(e->b, n, 2);
    kv_kb_fill(e->y, n, 3);
    for (uint32_t r = 0; r < KB_ROWS; r++) {
        e->positions[r] = r;
        for (uint32_t i = 0; i < KB_HEAD_DIM / 2; i++) {
            double angle = r * pow(10000.0, -2.0 * i / KB_HEAD_DIM);
            e->cos[r * (KB_HEAD_DIM / 2) + i] = (float)cos(angle);
            e->sin[r * (KB_HEAD_DIM / 2) + i] = (float)sin(angle);
        }
    }
}

void kv_kb_elem(kb *b) {
    size_t wide = (size_t)KB_ROWS * KB_FFN * sizeof(float), half = (size_t)KB_N_KV * KB_ROWS * KB_HEAD_DIM * 2;
    size_t table = (size_t)KB_ROWS * (KB_HEAD_DIM / 2) * sizeof(float);
    elem e = {.a = kv_kb_alloc(wide),
              .b = kv_kb_alloc(wide),
              .y = kv_kb_alloc(wide),
              .kf = kv_kb_alloc(half),
              .vf = kv_kb_alloc(half),
              .cos = kv_kb_alloc(table),
              .sin = kv_kb_alloc(table),
              .positions = kv_kb_alloc(KB_ROWS * sizeof(uint32_t))};
    fill_elem(&e);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        for (e.rows = 1; e.rows <= KB_ROWS; e.rows *= KB_ROWS) {
            kb_case c = {.section = "elem", .kernel = ops[i].kernel, .place = KB_CACHE, .run = ops[i].run, .ctx = &e,
                         .rate = {{KB_GVALUES, (double)ops[i].values * e.rows}}};
            snprintf(c.name, sizeof c.name, "%s, %u row%s", ops[i].width, e.rows, e.rows == 1 ? "" : "s");
            kv_kb_measure(b, &c);
        }
    void *all[] = {e.a, e.b, e.y, e.kf, e.vf, e.cos, e.sin, e.positions};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) kv_free64(all[i]);
}
