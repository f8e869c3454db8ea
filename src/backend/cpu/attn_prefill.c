/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of prompt rows: for each KV head and tile of rows first the handles, page by page in birth order with the format's own
 * kernel, then the f16 run in key tiles at absolute positions; where the level has integer tiles, attn_prefill_codes.c does both. Owns the
 * work items.
 * Invariants: a row's bits depend on its query and its keys alone: key tiles lie at multiples of KV_KEY_TILE wherever a chunk begins and
 * whether a key is in a tail page or among the new rows, and a tile outside a row's limits leaves that row's state as it is.
 */
#include "backend/cpu/attn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Folds handle i for the item's rows; rows that see different slots (a window's edge) go one by one. */
static void fold_handle(const kv_attn_prefill_job *j, const kv_stream *st, uint32_t i, uint32_t row, uint32_t n, kv_attn_work *w)
{
    const kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    const kv_page_entry *e = kv_pool_entry(j->c->pool, st->handles[i].page);
    kv_attn_page p = {.layout = &j->layouts->by_pair[e->format], .entry = e, .data = kv_pool_data(j->c->pool, st->handles[i].page),
                      .q_stride = s->q_stride, .o_stride = s->o_stride, .softcap = j->p->softcap};
    for (uint32_t r = 0; r < n;) {
        uint32_t lo, hi, at = r;
        kv_attn_visible(e->first_pos, e->start, e->n, j->p->window, j->c->first_pos + row + r, &p.lo, &p.hi);
        for (r++; r < n; r++) {
            kv_attn_visible(e->first_pos, e->start, e->n, j->p->window, j->c->first_pos + row + r, &lo, &hi);
            if (lo != p.lo || hi != p.hi) break;
        }
        if (p.lo >= p.hi) continue;
        uint32_t q = at * j->group;
        p.nq = (r - at) * j->group;
        p.q = w->q + q * s->q_stride;
        p.m = w->m + q;
        p.l = w->l + q;
        p.o = w->o + q * s->o_stride;
        kv_attn_fold_page(j->ex, &p, w);
    }
}

/* Folds the f16 run for rows [row, row + n). */
static void fold_run(const kv_attn_prefill_job *j, uint32_t head, uint32_t row, uint32_t n, kv_attn_work *w)
{
    const kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    kv_attn_run run = kv_attn_run_of(j->ex, j->c, j->p, j->layouts, head);
    const bool apart = j->c->apart; /* all rows stand where the run ends */
    uint32_t G = j->group, window = j->p->window, pos0 = j->c->first_pos + (apart ? j->c->row0 : row);
    uint32_t pos1 = apart ? pos0 : pos0 + n; /* keys at positions below it */
    uint32_t from = run.first;
    if (window && pos0 >= window && pos0 - window + 1 > from) from = pos0 - window + 1;
    run.end = pos1;
    if (run.first >= pos1) return;
    for (uint32_t i = from / KV_KEY_TILE; i * KV_KEY_TILE < pos1; i++) {
        uint32_t r0 = i * KV_KEY_TILE > pos0 ? i * KV_KEY_TILE - pos0 : 0, r1 = n; /* rows that see the tile */
        if (window && i * KV_KEY_TILE + KV_KEY_TILE + window <= pos1) r1 = i * KV_KEY_TILE + KV_KEY_TILE + window - 1 - pos0;
        if (r0 >= r1) continue;
        kv_attn_pack(&run, i, w->kt, w->v);
        for (uint32_t r = r0; r < r1; r++) {
            kv_attn_columns(&run, i, window, pos0 + r, &w->lo[r * G], &w->hi[r * G]);
            for (uint32_t g = 1; g < G; g++) {
                w->lo[r * G + g] = w->lo[r * G];
                w->hi[r * G + g] = w->hi[r * G];
            }
        }
        uint32_t q = r0 * G;
        kv_attn_tile t = {.kt = w->kt, .v = w->v, .dk = j->p->dk, .dvp = run.layout->dvp, .n = w->hi[(r1 - 1) * G], .nq = (r1 - r0) * G,
                          .q = w->q + q * s->q_stride, .q_stride = s->q_stride, .m = w->m + q, .l = w->l + q, .o = w->o + q * s->o_stride,
                          .o_stride = s->o_stride, .lo = w->lo + q, .hi = w->hi + q, .s = w->s, .softcap = j->p->softcap};
        j->ex->be->attn->tile(&t);
    }
}

static void run_item(void *ctx, uint32_t index, uint32_t thread)
{
    const kv_attn_prefill_job *j = ctx;
    const kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    kv_attn_work *w = &s->work[thread];
    const kv_attn_chunk *c = j->c;
    const kv_attn_params *p = j->p;
    uint32_t head = index % p->n_kv, tile = j->n_tiles - 1 - index / p->n_kv; /* the last rows have most keys: first */
    uint32_t G = j->group, r0 = tile * j->tile_rows, n = c->n_rows - r0 < j->tile_rows ? c->n_rows - r0 : j->tile_rows;
    if (s->tiles) {
        kv_attn_prefill_codes(j, head, r0, n, w);
        return;
    }
    for (uint32_t i = 0; i < n * G; i++) {
        const float *q = c->q + ((size_t)(r0 + i / G) * p->n_q + head * G + i % G) * p->dk;
        kv_attn_load_query(j->ex->be->attn, q, p->dk, p->scale, w->q + i * s->q_stride, s->q_stride);
        w->m[i] = -INFINITY;
        w->l[i] = 0.0f;
    }
    memset(w->o, 0, (size_t)n * G * s->o_stride * sizeof(float));
    const kv_stream *st = &c->streams[head];
    for (uint32_t i = 0; i < st->n_handles; i++) fold_handle(j, st, i, c->row0 + r0, n, w);
    fold_run(j, head, c->row0 + r0, n, w);
    for (uint32_t i = 0; i < n * G; i++) {
        size_t at = (size_t)(r0 + i / G) * p->n_q + head * G + i % G;
        float lse = kv_attn_finish(w->m[i], w->l[i], w->o + i * s->o_stride, p->dv, c->out + at * p->dv);
        if (c->lse) c->lse[at] = lse;
    }
}

/* Rows of an item: at most what its scratch holds, fewer where threads would wait for the last one. */
static uint32_t rows_of_item(const kv_cpu_exec *ex, uint32_t n_rows, uint32_t group, uint32_t n_kv)
{
    const kv_attn_scratch *s = kv_attn_scratch_of(ex);
    uint32_t tiles = (n_rows + s->rows / group - 1) / (s->rows / group), wanted = KV_ATTN_ITEMS_A_THREAD * s->n_threads / n_kv;
    if (tiles < wanted) tiles = wanted;
    uint32_t rows = (n_rows + tiles - 1) / tiles, least = (KV_TILE_BLOCK + group - 1) / group;
    return rows > least ? rows : least;
}

void kv_cpu_attn_prefill(kv_exec *base, const kv_attn_params *p, const kv_attn_chunk *c)
{
    kv_cpu_exec *ex = kv_cpu_exec_of(base);
    uint32_t group = p->n_q / p->n_kv;
    assert(!c->apart || !p->window);
    if (!c->n_rows) return;
    uint32_t rows = rows_of_item(ex, c->n_rows, group, p->n_kv);
    kv_attn_prefill_job j = {ex, p, c, kv_attn_layouts_for(ex, p->dk, p->dv), group, rows, (c->n_rows + rows - 1) / rows};
    kv_threads_run(ex->threads, run_item, &j, j.n_tiles * p->n_kv);
}
