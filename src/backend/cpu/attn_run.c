/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The f16 run of a KV head: tail pages, then the new rows of a sync, read as tiles of 64 keys at absolute positions. Owns the unpacking of
 * those tiles. Must not know queries. Invariant: a tile is the same whether a key lies in a tail page or among the new rows.
 */
#include "backend/cpu/attn.h"

#include <assert.h>
#include <string.h>

kv_attn_run kv_attn_run_of(const kv_cpu_exec *ex, const kv_attn_chunk *c, const kv_attn_params *p, const kv_attn_layouts *layouts, uint32_t head)
{
    const kv_stream *st = &c->streams[head];
    assert(!st->tail_len || st->tail_pos + st->tail_len == c->first_pos);
    return (kv_attn_run){.k = ex->be->attn, .tiles = kv_attn_scratch_of(ex)->tiles, .pool = c->pool, .st = st, .layout = &layouts->by_pair[0],
                         .rows_k = c->k + (size_t)head * c->head_stride * p->dk, .rows_v = c->v + (size_t)head * c->head_stride * p->dv,
                         .first = st->tail_len ? st->tail_pos : c->first_pos, .sync_pos = c->first_pos, .end = c->first_pos + c->row0 + c->n_rows};
}

/* Tokens of one tail page: run positions [from, to), to columns from `col`. */
static void pack_tail(const kv_attn_run *r, uint32_t from, uint32_t to, uint32_t col, float *kt, float *v)
{
    const kv_page_layout *L = r->layout;
    uint32_t P = L->tokens;
    for (uint32_t pos = from; pos < to;) {
        uint32_t slot = r->st->tail_start + (pos - r->st->tail_pos), page = slot / P, s0 = slot % P;
        uint32_t n = to - pos < P - s0 ? to - pos : P - s0;
        const uint8_t *data = kv_pool_data(r->pool, r->st->tail[page]);
        if (r->tiles && v && n == P && P % 16 == 0) { /* a whole page at once */
            const kv_page_entry e = {.n = (uint16_t)n};
            r->tiles->unpack(L, data, &e, 64, kt + col + (pos - from), v + (size_t)(col + pos - from) * L->dvp);
            pos += n;
            continue;
        }
        const uint16_t *k16 = (const uint16_t *)(const void *)data, *v16 = k16 + (size_t)L->dkp * P;
        for (uint32_t c = 0; c < L->dk; c++) r->k->widen(k16 + (size_t)c * P + s0, n, kt + (size_t)c * 64 + col + (pos - from));
        for (uint32_t t = 0; v && t < n; t++) r->k->widen(v16 + (size_t)(s0 + t) * L->dvp, L->dvp, v + (size_t)(col + pos - from + t) * L->dvp);
        pos += n;
    }
}

void kv_attn_pack(const kv_attn_run *r, uint32_t tile, float *kt, float *v)
{
    const kv_page_layout *L = r->layout;
    uint32_t at = tile * KV_KEY_TILE, from = r->first > at ? r->first : at, to = r->end < at + KV_KEY_TILE ? r->end : at + KV_KEY_TILE;
    if (from > at || to < at + KV_KEY_TILE) {
        memset(kt, 0, sizeof(float) * 64 * L->dk);
        if (v) memset(v, 0, sizeof(float) * 64 * L->dvp);
    }
    if (from < r->sync_pos) pack_tail(r, from, to < r->sync_pos ? to : r->sync_pos, from - at, kt, v);
    if (to <= r->sync_pos) return;
    uint32_t new_from = from > r->sync_pos ? from : r->sync_pos, row = new_from - r->sync_pos, n = to - new_from, col = new_from - at;
    r->k->pack_k(r->rows_k + (size_t)row * L->dk, L->dk, n, L->dk, col, kt);
    for (uint32_t t = 0; v && t < n; t++) {
        float *y = v + (size_t)(col + t) * L->dvp;
        r->k->widen(r->rows_v + (size_t)(row + t) * L->dv, L->dv, y);
        for (uint32_t c = L->dv; c < L->dvp; c++) y[c] = 0.0f;
    }
}
