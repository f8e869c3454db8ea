/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The region of a stream: f16 pages whose tokens are evicted one by one while decoding (research/kv-compress.md 2.2, 2.3).
 * Owns moving tokens between slots. Must not know: policies, budgets, who scores. Invariants: a survivor moves only into
 * the place of an evicted token, so sources and targets are disjoint; all pages are full but the last; a token's score
 * moves with it; a shared page is copied first. K is stored after RoPE, so the order of tokens is free.
 */
#include "cache/array.h"
#include "cache/positions.h"

#include <assert.h>
#include <string.h>

static uint32_t padded(uint32_t d) { return (d + 15u) & ~15u; }

uint32_t kv_region_first(const kv_seq *s, const kv_stream *st) {
    uint32_t i = 0;
    while (i < st->n_handles && (kv_pool_entry(s->pool, st->handles[i].page)->flags & KV_PAGE_SINK)) i++;
    return i;
}

static kv_page_entry *entry_of(const kv_seq *s, const kv_stream *st, uint32_t handle) {
    return kv_pool_entry(s->pool, st->handles[handle].page);
}

uint32_t kv_region_tokens(const kv_seq *s, const kv_stream *st) {
    uint32_t first = kv_region_first(s, st), pages = st->n_handles - first;
    return pages ? (pages - 1) * st->shape->f16_tokens + entry_of(s, st, st->n_handles - 1)->n : 0;
}

/* Scores of the region, one after the other while its pages are full. */
static float *scores_of(const kv_stream *st, uint32_t first) {
    return st->scores.slots + (size_t)first * st->shape->f16_tokens;
}

/* The handle's page, own and writable. */
static kv_status own_page(kv_seq *s, kv_stream *st, uint32_t handle, kv_error *err) {
    uint32_t old = st->handles[handle].page, page;
    const kv_page_entry *from = kv_pool_entry(s->pool, old);
    if (from->refs == 1) return KVIST_OK;
    KV_TRY(kv_pool_acquire(s->pool, &page, err));
    kv_page_entry *to = kv_pool_entry(s->pool, page);
    uint32_t refs = to->refs;
    *to = *from;
    to->refs = refs;
    to->flags &= (uint8_t)~KV_PAGE_LISTED;
    kv_status listed = kv_positions_copy(s->pool, old, page, err);
    if (listed) {
        kv_pool_unref(s->pool, page);
        return listed;
    }
    memcpy(kv_pool_data(s->pool, page), kv_pool_data(s->pool, old), kv_pool_page_bytes(s->pool));
    kv_pool_unref(s->pool, old);
    st->handles[handle].page = page;
    return KVIST_OK;
}

/* Copies a token between slots of f16 pages of one shape: K [dkp][P16], V [P16][dvp]. */
static void copy_token(const kv_seq *s, const kv_stream_shape *sh, uint32_t from, uint32_t a, uint32_t to, uint32_t b) {
    size_t p16 = sh->f16_tokens, dk = padded(sh->dk), dv = padded(sh->dv);
    const uint16_t *x = (const uint16_t *)(const void *)kv_pool_data(s->pool, from);
    uint16_t *y = (uint16_t *)(void *)kv_pool_data(s->pool, to);
    for (size_t c = 0; c < sh->dk; c++) y[c * p16 + b] = x[c * p16 + a];
    memcpy(y + dk * p16 + b * dv, x + dk * p16 + a * dv, sh->dv * sizeof *y);
}

/* Copies the region's last token to slot `at` of handle `to`, an own page. */
static kv_status move_last(kv_seq *s, kv_stream *st, uint32_t to, uint32_t at, kv_error *err) {
    uint32_t last = st->n_handles - 1, p16 = st->shape->f16_tokens;
    const kv_page_entry *e = entry_of(s, st, last);
    float *scores = st->scores.slots;
    if (s->track) {
        uint32_t position = kv_positions_at(s->pool, st->handles[last].page, e->n - 1u);
        KV_TRY(kv_positions_set(s->pool, st->handles[to].page, at, position, err));
    }
    copy_token(s, st->shape, st->handles[last].page, e->n - 1u, st->handles[to].page, at);
    scores[(size_t)to * p16 + at] = scores[(size_t)last * p16 + e->n - 1];
    return KVIST_OK;
}

/* One token less at the end. */
static kv_status shorten(kv_seq *s, kv_stream *st, kv_error *err) {
    uint32_t last = st->n_handles - 1;
    if (entry_of(s, st, last)->n == 1) {
        kv_stream_remove(s, st, last);
        return KVIST_OK;
    }
    KV_TRY(own_page(s, st, last, err)); /* its count is part of the page */
    kv_page_entry *e = entry_of(s, st, last);
    if (s->track) {
        uint32_t positions[KV_POSITIONS_MAX];
        (void)kv_positions_get(s->pool, st->handles[last].page, positions);
        KV_TRY(kv_positions_put(s->pool, st->handles[last].page, 0, positions, e->n - 1u, err));
    }
    e->n--;
    st->tokens_sealed--;
    return KVIST_OK;
}

kv_status kv_region_compact(kv_seq *s, kv_stream *st, kv_error *err) {
    uint32_t p16 = st->shape->f16_tokens;
    assert(kv_scores_of_slots(st));
    for (uint32_t h = kv_region_first(s, st); h + 1 < st->n_handles; h++)
        while (h + 1 < st->n_handles && entry_of(s, st, h)->n < p16) {
            KV_TRY(own_page(s, st, h, err));
            kv_page_entry *e = entry_of(s, st, h);
            KV_TRY(move_last(s, st, h, e->n, err));
            e->n++;
            st->tokens_sealed++;
            KV_TRY(shorten(s, st, err));
        }
    return KVIST_OK;
}

/* a goes before b: lower score, NaN first. */
static bool lower(float a, float b) { return a < b || (a != a && b == b); }

uint32_t kv_region_lowest(const kv_seq *s, const kv_stream *st) {
    uint32_t first = kv_region_first(s, st), n = kv_region_tokens(s, st), at = 0;
    const float *x = scores_of(st, first);
    assert(n);
    for (uint32_t i = 1; i < n; i++)
        if (!lower(x[at], x[i])) at = i;
    return at;
}

/* The tail's oldest token to a slot of handle `to`. */
static kv_status take_oldest(kv_seq *s, kv_stream *st, uint32_t to, uint32_t at, kv_error *err) {
    if (s->track && entry_of(s, st, to)->n) /* of an empty page first_pos says it */
        KV_TRY(kv_positions_set(s->pool, st->handles[to].page, at, st->tail_pos, err));
    copy_token(s, st->shape, st->tail[0], st->tail_start, st->handles[to].page, at);
    st->scores.slots[(size_t)to * st->shape->f16_tokens + at] = st->scores.tail[0];
    kv_tail_drop_front(s, st, 1);
    return KVIST_OK;
}

kv_status kv_region_append(kv_seq *s, kv_stream *st, kv_error *err) {
    uint32_t first = kv_region_first(s, st), last = st->n_handles - 1, page;
    assert(st->tail_len && kv_scores_of_slots(st));
    if (st->n_handles == first || entry_of(s, st, last)->n == st->shape->f16_tokens) {
        KV_TRY(kv_stream_push(s, st, 0, &page, err));
        memset(kv_pool_data(s->pool, page), 0, kv_pool_page_bytes(s->pool)); /* padding and unused slots read as 0 */
        kv_page_entry *e = kv_pool_entry(s->pool, page);
        e->flags = KV_PAGE_SCORED;
        e->first_pos = st->tail_pos;
        last = st->n_handles - 1;
    } else {
        KV_TRY(own_page(s, st, last, err));
    }
    kv_page_entry *e = entry_of(s, st, last);
    KV_TRY(take_oldest(s, st, last, e->n, err));
    e->n++;
    st->tokens_sealed++;
    return KVIST_OK;
}

kv_status kv_region_replace(kv_seq *s, kv_stream *st, uint32_t i, kv_error *err) {
    uint32_t p16 = st->shape->f16_tokens, h = kv_region_first(s, st) + i / p16;
    assert(st->tail_len && i < kv_region_tokens(s, st));
    KV_TRY(own_page(s, st, h, err));
    return take_oldest(s, st, h, i % p16, err);
}

kv_status kv_region_evict(kv_seq *s, kv_stream *st, uint32_t i, kv_error *err) {
    uint32_t p16 = st->shape->f16_tokens, h = kv_region_first(s, st) + i / p16;
    if (i + 1 < kv_region_tokens(s, st)) {
        KV_TRY(own_page(s, st, h, err));
        KV_TRY(move_last(s, st, h, i % p16, err));
    }
    return shorten(s, st, err);
}

/* The k-th smallest of x (k from 1, at most the tokens of a page): the k smallest so far, in order. */
static float smallest(const float *x, uint32_t n, uint32_t k) {
    float low[64];
    uint32_t have = 0;
    assert(k && k <= n && k <= 64);
    for (uint32_t i = 0; i < n; i++) {
        if (have == k && !lower(x[i], low[k - 1])) continue;
        uint32_t at = have < k ? have++ : k - 1;
        for (; at && lower(x[i], low[at - 1]); at--) low[at] = low[at - 1];
        low[at] = x[i];
    }
    return low[k - 1];
}

float kv_region_price(const kv_seq *s, const kv_stream *st, uint32_t *h) {
    uint32_t first = kv_region_first(s, st), n = kv_region_tokens(s, st);
    assert(n);
    *h = entry_of(s, st, st->n_handles - 1)->n;
    return smallest(scores_of(st, first), n, *h);
}

kv_status kv_region_drop_page(kv_seq *s, kv_stream *st, kv_error *err) {
    uint32_t h = entry_of(s, st, st->n_handles - 1)->n;
    for (uint32_t k = 0; k < h; k++) KV_TRY(kv_region_evict(s, st, kv_region_lowest(s, st), err));
    return KVIST_OK;
}
