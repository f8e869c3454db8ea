/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second pass of scoring: column sums of p = exp(s - lse) over prompt rows, for the keys of the f16 run, and the rows' mass on sinks.
 * A work item is one (KV head, key tile): it owns its columns of `sums` and `mass` for the head's whole group, so nothing is added
 * atomically. Invariants: each key's sum is added in ascending row order, whatever the calls the rows are split over; scores are those
 * of the forward pass (in integers where that is), so that the probabilities of a row sum to 1.
 */
#include "backend/cpu/attn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

typedef struct colsum_job {
    kv_cpu_exec *ex;
    const kv_attn_params *p;
    const kv_attn_colsum *c;
    const kv_attn_layouts *layouts;
    uint32_t group, first_tile, n_tiles; /* of the longest run; counted from first_tile */
} colsum_job;

/* What row r of the chunk is added to. */
static uint8_t row_use(const kv_attn_colsum *c, uint32_t r)
{
    uint32_t row = c->c.row0 + r;
    uint8_t use = 0;
    if (c->sums && row >= c->row_from && (c->stride <= 1 || (row - c->row_from) % c->stride == 0)) use |= KV_ATTN_SUM;
    if (c->mass && row >= c->mass_from) use |= KV_ATTN_MASS;
    return use;
}

/* Adds the n rows listed in w->rows (limits in w->lo, w->hi, w->use) of query head h to 64 columns. */
static void add_columns(const colsum_job *j, uint32_t h, uint32_t n, bool square, float *sums, float *mass, kv_attn_work *w)
{
    const kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    const kv_attn_params *p = j->p;
    for (uint32_t i = 0; i < n; i++) {
        size_t q = (size_t)w->rows[i] * p->n_q + h;
        w->row_lse[i] = j->c->c.lse[q];
        if (s->tiles) {
            w->codes_of[i] = s->q_codes + q * kv_pad16(p->dk);
            w->row_step[i] = s->q_step[q];
            w->row_lse[i] *= KV_ATTN_LOG2E;
        } else w->ptr[i] = j->c->c.q + q * p->dk;
    }
    if (s->tiles) {
        kv_tile_cols a = {.keys = &w->keys, .dk = p->dk, .n = n, .q = w->codes_of, .q_step = w->row_step, .lse = w->row_lse, .lo = w->lo, .hi = w->hi,
                          .use = w->use, .square = square, .sums = sums, .mass = mass};
        s->tiles->cols(&a);
    } else {
        kv_attn_cols a = {.kt = w->kt, .dk = p->dk, .n = n, .q = w->ptr, .lse = w->row_lse, .lo = w->lo, .hi = w->hi, .use = w->use,
                          .scale = p->scale, .softcap = p->softcap, .square = square, .sums = sums, .mass = mass};
        j->ex->be->attn->cols(&a);
    }
}

/* Where scores are integers: codes of the keys in w->kt. */
static void prepare_keys(const colsum_job *j, kv_attn_work *w)
{
    const kv_tile_ops *ops = kv_attn_scratch_of(j->ex)->tiles;
    if (ops) ops->keys(w->kt, j->p->dk, NULL, 0, &w->keys);
}

/* Adds the n rows of w->rows to the columns of one tile, unpacked in w->kt. */
static void cols_of_head(const colsum_job *j, const kv_attn_run *run, uint32_t tile, uint32_t h, uint32_t n, kv_attn_work *w)
{
    const kv_attn_colsum *c = j->c;
    uint32_t at = tile * KV_KEY_TILE, from = run->first > at ? run->first - at : 0;
    uint32_t to = run->end - at < KV_KEY_TILE ? run->end - at : KV_KEY_TILE;
    float sums[KV_KEY_TILE] = {0}, mass[KV_KEY_TILE] = {0};
    size_t base = (size_t)h * c->sums_stride + (at + from - run->first);
    if (c->sums) memcpy(sums + from, c->sums + base, (to - from) * sizeof(float));
    if (c->mass) memcpy(mass + from, c->mass + base, (to - from) * sizeof(float));
    add_columns(j, h, n, c->square, sums, mass, w);
    if (c->sums) memcpy(c->sums + base, sums + from, (to - from) * sizeof(float));
    if (c->mass) memcpy(c->mass + base, mass + from, (to - from) * sizeof(float));
}

static void run_tile(const colsum_job *j, uint32_t head, uint32_t tile, kv_attn_work *w)
{
    const kv_attn_chunk *c = &j->c->c;
    kv_attn_run run = kv_attn_run_of(j->ex, c, j->p, j->layouts, head);
    uint32_t at = tile * KV_KEY_TILE, n = 0;
    if (at + KV_KEY_TILE <= run.first || at >= run.end) return;
    for (uint32_t r = 0; r < c->n_rows; r++) {
        uint32_t position = c->first_pos + c->row0 + r;
        if (position < at) continue;
        uint8_t use = row_use(j->c, r);
        if (!use) continue;
        kv_attn_columns(&run, tile, j->p->window, position, &w->lo[n], &w->hi[n]);
        if (w->lo[n] >= w->hi[n]) continue;
        w->use[n] = use;
        w->rows[n++] = r;
    }
    if (!n) return;
    kv_attn_pack(&run, tile, w->kt, NULL);
    prepare_keys(j, w);
    for (uint32_t g = 0; g < j->group; g++) cols_of_head(j, &run, tile, head * j->group + g, n, w);
}

/* Mass of the counted rows on one sink page's slots [lo, hi), added to w->row_sum by row. */
static void sink_page(const colsum_job *j, uint32_t h, const kv_page_layout *L, const uint8_t *data, const kv_page_entry *e, uint32_t t0, kv_attn_work *w)
{
    const kv_attn_chunk *c = &j->c->c;
    const uint16_t *k16 = (const uint16_t *)(const void *)(data + L->k_off);
    uint32_t n = e->n - t0 < 64 ? e->n - t0 : 64;
    memset(w->kt, 0, sizeof(float) * 64 * L->dk);
    for (uint32_t d = 0; d < L->dk; d++) j->ex->be->attn->widen(k16 + (size_t)d * L->tokens + t0, n, w->kt + (size_t)d * 64);
    prepare_keys(j, w);
    for (uint32_t r = 0; r < c->n_rows; r++) {
        if (c->row0 + r < j->c->mass_from) continue;
        uint32_t lo, hi;
        kv_attn_visible(e->first_pos, e->start, t0 + n, j->p->window, c->first_pos + c->row0 + r, &lo, &hi);
        if (lo < t0) lo = t0;
        if (lo >= hi) continue;
        float mass[64] = {0}, none[64] = {0};
        w->rows[0] = r;
        w->lo[0] = (uint8_t)(lo - t0);
        w->hi[0] = (uint8_t)(hi - t0);
        w->use[0] = KV_ATTN_MASS;
        add_columns(j, h, 1, false, none, mass, w);
        for (uint32_t t = 0; t < 64; t++) w->row_sum[r] += mass[t];
    }
}

static void run_sinks(const colsum_job *j, uint32_t head, kv_attn_work *w)
{
    const kv_attn_chunk *c = &j->c->c;
    const kv_stream *st = &c->streams[head];
    for (uint32_t h = head * j->group; h < (head + 1) * j->group; h++) {
        memset(w->row_sum, 0, c->n_rows * sizeof(float));
        for (uint32_t i = 0; i < st->n_handles; i++) {
            const kv_page_entry *e = kv_pool_entry(c->pool, st->handles[i].page);
            if (!(e->flags & KV_PAGE_SINK)) continue;
            const kv_page_layout *L = &j->layouts->by_pair[e->format];
            assert(L->kind == KV_KIND_F16);
            for (uint32_t t = e->start / 64 * 64; t < e->n; t += 64) sink_page(j, h, L, kv_pool_data(c->pool, st->handles[i].page), e, t, w);
        }
        for (uint32_t r = 0; r < c->n_rows; r++)
            if (c->row0 + r >= j->c->mass_from) j->c->sink_mass[h] += w->row_sum[r];
    }
}

static void run_item(void *ctx, uint32_t index, uint32_t thread)
{
    const colsum_job *j = ctx;
    kv_attn_work *w = &kv_attn_scratch_of(j->ex)->work[thread];
    uint32_t n_kv = j->p->n_kv, tile = index / n_kv;
    if (tile < j->n_tiles) run_tile(j, index % n_kv, j->first_tile + tile, w); /* early tiles are seen by most rows: first */
    else run_sinks(j, index % n_kv, w);
}

/* Codes and steps (with the scale of scores) of queries 16 i .. 16 i + 15 of the chunk, for all tiles. */
static void quantize_queries(void *ctx, uint32_t index, uint32_t thread)
{
    const colsum_job *j = ctx;
    const kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    const kv_attn_params *p = j->p;
    const uint32_t first = 16 * index, end = j->c->c.n_rows * p->n_q, count = end - first < 16 ? end - first : 16;
    const float *x[16];
    int16_t *codes[16];
    bool used = false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t r = (first + i) / p->n_q;
        used |= row_use(j->c, r) || (j->c->sink_mass && j->c->c.row0 + r >= j->c->mass_from);
        x[i] = j->c->c.q + (size_t)(first + i) * p->dk;
        codes[i] = s->q_codes + (size_t)(first + i) * kv_pad16(p->dk);
    }
    if (!used) return;
    s->tiles->queries(x, count, p->dk, codes, s->q_step + first);
    for (uint32_t i = 0; i < count; i++) s->q_step[first + i] *= p->scale * KV_ATTN_LOG2E;
}

void kv_cpu_attn_colsum(kv_exec *base, const kv_attn_params *p, const kv_attn_colsum *c)
{
    kv_cpu_exec *ex = kv_cpu_exec_of(base);
    if (!c->c.n_rows || !(c->sums || c->mass || c->sink_mass)) return;
    assert(c->c.n_rows <= ex->params.max_rows);
    colsum_job j = {ex, p, c, kv_attn_layouts_for(ex, p->dk, p->dv), p->n_q / p->n_kv, 0, 0};
    uint32_t first = c->c.first_pos, end = c->c.first_pos + c->c.row0 + c->c.n_rows;
    for (uint32_t h = 0; h < p->n_kv; h++)
        if (c->c.streams[h].tail_len && c->c.streams[h].tail_pos < first) first = c->c.streams[h].tail_pos;
    j.first_tile = first / KV_KEY_TILE;
    if (c->sums || c->mass) j.n_tiles = (end + KV_KEY_TILE - 1) / KV_KEY_TILE - j.first_tile;
    if (kv_attn_scratch_of(ex)->tiles) kv_threads_run(ex->threads, quantize_queries, &j, (c->c.n_rows * p->n_q + 15) / 16);
    kv_threads_run(ex->threads, run_item, &j, (j.n_tiles + (c->sink_mass ? 1 : 0)) * p->n_kv);
}
