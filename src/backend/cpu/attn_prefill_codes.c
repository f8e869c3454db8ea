/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of prompt rows with integer tiles (attn_tile.h): for one KV head and some rows, the handles' tokens and then the f16 run, 64 keys
 * at a time. Owns the cutting of handles into tiles and what a row sees of a tile.
 * Invariants: tiles depend on the handles and on absolute positions alone, never on the rows of an item; a tile of which a row sees nothing
 * leaves that row's state as it is.
 */
#include "backend/cpu/attn.h"

#include <string.h>

/* Key tiles of the handles: the valid slots of all pages in birth order, 64 a tile. With a window a tile also ends where positions do not
 * go on, so that a row sees one range of it. */
typedef struct handle_tiles {
    const kv_attn_prefill_job *j;
    const kv_stream *st;
    uint32_t handle, slot; /* next to take; slot 0: the page is not unpacked yet */
    uint32_t first, n;     /* of the tile at hand: position of column 0 (means something with a window only), columns */
} handle_tiles;

/* Slots [from, from + n) of the unpacked page to columns from it->n. */
static void copy_slots(handle_tiles *it, const kv_page_layout *L, uint32_t from, uint32_t n, kv_attn_work *w)
{
    const size_t stride = kv_pad16(L->tokens);
    for (uint32_t c = 0; c < L->dk; c++) memcpy(w->kt + c * 64 + it->n, w->page_k + c * stride + from, n * sizeof(float));
    memcpy(w->v + (size_t)it->n * L->dvp, w->page_v + (size_t)from * L->dvp, (size_t)n * L->dvp * sizeof(float));
    it->n += n;
}

/* The next tile into w->kt and w->v; false after the last. */
static bool next_tile(handle_tiles *it, kv_attn_work *w)
{
    const kv_attn_prefill_job *j = it->j;
    for (it->n = 0; it->handle < it->st->n_handles && it->n < KV_KEY_TILE; it->handle++, it->slot = 0) {
        const uint32_t page = it->st->handles[it->handle].page;
        const kv_page_entry *e = kv_pool_entry(j->c->pool, page);
        const kv_page_layout *L = &j->layouts->by_pair[e->format];
        uint32_t from = it->slot ? it->slot : e->start;
        if (from >= e->n) continue;
        if (!it->n) it->first = e->first_pos + from;
        else if (j->p->window && e->first_pos + from != it->first + it->n) break;
        const kv_tile_ops *ops = kv_attn_scratch_of(j->ex)->tiles;
        const uint8_t *data = kv_pool_data(j->c->pool, page);
        if (!it->slot && !from && it->n + kv_pad16(e->n) <= KV_KEY_TILE) { /* all of it: unpacked where it belongs */
            ops->unpack(L, data, e, KV_KEY_TILE, w->kt + it->n, w->v + (size_t)it->n * L->dvp);
            it->n += e->n;
            continue;
        }
        if (!it->slot) ops->unpack(L, data, e, kv_pad16(L->tokens), w->page_k, w->page_v);
        uint32_t n = e->n - from < KV_KEY_TILE - it->n ? e->n - from : KV_KEY_TILE - it->n;
        copy_slots(it, L, from, n, w);
        it->slot = from + n;
        if (it->slot < e->n) break;
    }
    return it->n > 0;
}

/* Rows [from, to) of the item see columns [lo, hi). */
static void set_columns(const kv_attn_prefill_job *j, kv_attn_work *w, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi)
{
    memset(w->lo + from * j->group, (int)lo, (to - from) * j->group);
    memset(w->hi + from * j->group, (int)hi, (to - from) * j->group);
}

static void fetch(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

/* The part-th of `parts` shares of the run's keys at positions [at, at + 64), to L2: of the tail their pages, of the new rows their rows. */
static void fetch_keys(const kv_attn_run *r, uint32_t at, uint32_t part, uint32_t parts)
{
    const kv_page_layout *L = r->layout;
    const uint32_t end = at + KV_KEY_TILE < r->end ? at + KV_KEY_TILE : r->end;
    if (at < r->first || at >= r->end) return;
    const size_t from = L->bytes_used * part / parts / 64 * 64, to = part + 1 == parts ? L->bytes_used : L->bytes_used * (part + 1) / parts / 64 * 64;
    for (uint32_t pos = at; pos < end && pos < r->sync_pos; pos += L->tokens)
        fetch((const char *)kv_pool_data(r->pool, r->st->tail[(r->st->tail_start + (pos - r->st->tail_pos)) / L->tokens]) + from, to - from);
    if (end <= r->sync_pos) return;
    const uint32_t row = at > r->sync_pos ? at - r->sync_pos : 0, n = end - r->sync_pos - row, r0 = n * part / parts, r1 = n * (part + 1) / parts;
    fetch(r->rows_k + (size_t)(row + r0) * L->dk, (size_t)(r1 - r0) * L->dk * 2);
    fetch(r->rows_v + (size_t)(row + r0) * L->dv, (size_t)(r1 - r0) * L->dv * 2);
}

/* Folds the tile at hand into rows [from, to), block by block; between blocks the run's keys at position next come nearer (NULL: of none):
 * a few lines at a time, since a burst of them waits for its buffers. */
static void fold_tile(const kv_attn_prefill_job *j, uint32_t from, uint32_t to, kv_attn_work *w, const kv_attn_run *run, uint32_t next)
{
    const kv_tile_ops *ops = kv_attn_scratch_of(j->ex)->tiles;
    ops->keys(w->kt, j->p->dk, w->v, w->tile.dvp, &w->keys);
    const uint32_t a = from * j->group, b = to * j->group, first = a / KV_TILE_BLOCK, blocks = (b - 1) / KV_TILE_BLOCK + 1 - first;
    for (uint32_t i = 0; i < blocks; i++) {
        const uint32_t at = (first + i) * KV_TILE_BLOCK, end = at + KV_TILE_BLOCK < b ? at + KV_TILE_BLOCK : b;
        ops->fold(&w->tile, at > a ? at : a, end, &w->keys);
        if (run) fetch_keys(run, next, i, blocks);
    }
}

/* The handles, for rows at positions [pos, pos + n). */
static void fold_handles(const kv_attn_prefill_job *j, const kv_stream *st, uint32_t pos, uint32_t n, kv_attn_work *w)
{
    const uint32_t window = j->p->window;
    handle_tiles it = {.j = j, .st = st};
    memset(w->kt, 0, sizeof(float) * 64 * j->p->dk);
    memset(w->v, 0, sizeof(float) * 64 * w->tile.dvp);
    while (next_tile(&it, w)) {
        set_columns(j, w, 0, n, 0, it.n);
        uint32_t rows = n; /* that see the tile */
        for (uint32_t r = 0; window && r < rows; r++) {
            uint32_t from = pos + r >= window ? pos + r - window + 1 : 0, lo = from > it.first ? from - it.first : 0;
            if (lo < it.n) set_columns(j, w, r, r + 1, lo, it.n);
            else rows = r;
        }
        if (rows) fold_tile(j, 0, rows, w, NULL, 0);
    }
}

/* The f16 run, likewise. */
static void fold_run(const kv_attn_prefill_job *j, kv_attn_run *run, uint32_t pos, uint32_t n, kv_attn_work *w)
{
    const uint32_t window = j->p->window;
    uint32_t from = run->first;
    if (window && pos >= window && pos - window + 1 > from) from = pos - window + 1;
    const bool apart = j->c->apart; /* all rows stand where the run ends */
    const uint32_t seen = apart ? pos : pos + 1; /* keys that the first row sees lie below it */
    run->end = apart ? pos : pos + n;
    if (run->first >= run->end) return;
    for (uint32_t i = from / KV_KEY_TILE; i * KV_KEY_TILE < run->end; i++) {
        uint32_t at = i * KV_KEY_TILE, r0 = at > pos ? at - pos : 0, r1 = n; /* rows that see the tile */
        if (window && at + KV_KEY_TILE + window <= run->end) r1 = at + KV_KEY_TILE + window - 1 - pos;
        if (r0 >= r1) continue;
        kv_attn_pack(run, i, w->kt, w->v);
        if (!window && run->first <= at && at + KV_KEY_TILE <= seen) set_columns(j, w, r0, r1, 0, KV_KEY_TILE);
        else
            for (uint32_t r = r0; r < r1; r++) {
                uint8_t lo, hi;
                kv_attn_columns(run, i, window, pos + r, &lo, &hi);
                set_columns(j, w, r, r + 1, lo, hi);
            }
        fold_tile(j, r0, r1, w, run, at + KV_KEY_TILE);
    }
}

void kv_attn_prefill_codes(const kv_attn_prefill_job *j, uint32_t head, uint32_t r0, uint32_t n, kv_attn_work *w)
{
    const kv_tile_ops *ops = kv_attn_scratch_of(j->ex)->tiles;
    const kv_attn_params *p = j->p;
    const uint32_t G = j->group;
    kv_tile_rows *r = &w->tile;
    r->dk = p->dk;
    r->dvp = kv_pad16(p->dv);
    size_t at[16]; /* of query vectors in the chunk */
    for (uint32_t i = 0; i < n * G; i += 16) {
        const float *x[16];
        uint32_t count = n * G - i < 16 ? n * G - i : 16;
        for (uint32_t k = 0; k < count; k++) x[k] = j->c->q + ((size_t)(r0 + (i + k) / G) * p->n_q + head * G + (i + k) % G) * p->dk;
        ops->load(r, i, count, x, p->scale);
    }
    kv_attn_run run = kv_attn_run_of(j->ex, j->c, p, j->layouts, head);
    const uint32_t pos = j->c->first_pos + j->c->row0 + (j->c->apart ? 0 : r0);
    fold_handles(j, &j->c->streams[head], pos, n, w);
    fold_run(j, &run, pos, n, w);
    for (uint32_t i = 0; i < n * G; i += 16) {
        float *out[16], lse[16];
        uint32_t count = n * G - i < 16 ? n * G - i : 16;
        for (uint32_t k = 0; k < count; k++) {
            at[k] = (size_t)(r0 + (i + k) / G) * p->n_q + head * G + (i + k) % G;
            out[k] = j->c->out + at[k] * p->dv;
        }
        ops->finish(r, i, count, p->dv, out, lse);
        for (uint32_t k = 0; j->c->lse && k < count; k++) j->c->lse[at[k]] = lse[k];
    }
}
