/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The open f16 tail of a stream. Owns appending, reading and forgetting its tokens.
 * Must not know: policies, why tokens leave.
 * Invariants: a token of position p lies in slot p % P16 (so that where pages begin depends on positions only, never on
 * how a prompt was cut into calls); an empty tail holds no page; pages come zeroed, so padding rows and slots never
 * written read as 0; a page that anybody else holds is copied before it is written. Entries of tail pages carry their
 * reference count and first position only.
 */
#include "cache/array.h"

#include <assert.h>
#include <string.h>

static uint32_t padded(uint32_t d) { return (d + 15u) & ~15u; }
static uint32_t pages_for(const kv_stream *st, uint32_t slots) {
    return (slots + st->shape->f16_tokens - 1) / st->shape->f16_tokens;
}

/* The page for the next token, own and writable. */
static kv_status writable_page(kv_seq *s, kv_stream *st, uint32_t index, uint32_t *page, kv_error *err) {
    if (index == st->n_tail) {
        void *tail = st->tail;
        kv_status rc = kv_cache_grow(s, &tail, &st->cap_tail, (uint64_t)index + 1, sizeof *st->tail, false, err);
        st->tail = tail;
        KV_TRY(rc);
        KV_TRY(kv_pool_acquire(s->pool, page, err));
        memset(kv_pool_data(s->pool, *page), 0, kv_pool_page_bytes(s->pool));
        kv_pool_entry(s->pool, *page)->first_pos = st->tail_pos + st->tail_len;
        st->tail[st->n_tail++] = *page;
        return KVIST_OK;
    }
    uint32_t old = st->tail[index];
    *page = old;
    if (kv_pool_entry(s->pool, old)->refs == 1) return KVIST_OK;
    KV_TRY(kv_pool_acquire(s->pool, page, err));
    memcpy(kv_pool_data(s->pool, *page), kv_pool_data(s->pool, old), kv_pool_page_bytes(s->pool));
    kv_pool_entry(s->pool, *page)->first_pos = kv_pool_entry(s->pool, old)->first_pos;
    kv_pool_unref(s->pool, old);
    st->tail[index] = *page;
    return KVIST_OK;
}

/* Token t of an f16 page. */
static void put_token(const kv_seq *s, const kv_stream_shape *sh, uint32_t page, uint32_t t, const uint16_t *k, const uint16_t *v) {
    uint16_t *kp = (uint16_t *)(void *)kv_pool_data(s->pool, page), *vp = kp + (size_t)padded(sh->dk) * sh->f16_tokens;
    for (uint32_t c = 0; c < sh->dk; c++) kp[(size_t)c * sh->f16_tokens + t] = k[c];
    memcpy(vp + (size_t)t * padded(sh->dv), v, sh->dv * sizeof *v);
}

void kv_stream_put_rest(kv_seq *s, kv_stream *st, uint32_t handle, const uint16_t *k, const uint16_t *v) {
    uint32_t page = st->handles[handle].page;
    kv_page_entry *e = kv_pool_entry(s->pool, page);
    assert(e->refs == 1 && e->n < st->shape->f16_tokens && !(e->flags & (KV_PAGE_LISTED | KV_PAGE_REST)));
    put_token(s, st->shape, page, e->n++, k, v);
    e->flags |= KV_PAGE_REST;
    st->tokens_sealed++;
}

kv_status kv_tail_append(kv_seq *s, kv_stream *st, const uint16_t *k, const uint16_t *v, kv_error *err) {
    const kv_stream_shape *sh = st->shape;
    uint32_t p16 = sh->f16_tokens, page;
    uint32_t start = st->tail_len ? st->tail_start : st->tail_pos % p16;
    uint32_t slot = start + st->tail_len;
    KV_TRY(kv_scores_room(s, st, (uint64_t)st->tail_len + 1, 0, err));
    KV_TRY(writable_page(s, st, slot / p16, &page, err));
    st->tail_start = start;
    put_token(s, sh, page, slot % p16, k, v);
    if (kv_scores_of_tail(st)) st->scores.tail[st->tail_len] = 0;
    st->tail_len++;
    return KVIST_OK;
}

void kv_tail_get(const kv_seq *s, const kv_stream *st, uint32_t i, uint16_t *k, uint16_t *v) {
    assert(i < st->tail_len);
    const kv_stream_shape *sh = st->shape;
    uint32_t p16 = sh->f16_tokens, slot = st->tail_start + i, t = slot % p16;
    const uint16_t *kp = (const uint16_t *)(const void *)kv_pool_data(s->pool, st->tail[slot / p16]);
    const uint16_t *vp = kp + (size_t)padded(sh->dk) * p16;
    for (uint32_t c = 0; k && c < sh->dk; c++) k[c] = kp[(size_t)c * p16 + t];
    if (v) memcpy(v, vp + (size_t)t * padded(sh->dv), sh->dv * sizeof *v);
}

/* Unrefs tail pages [from, to) and closes the gap. */
static void drop_pages(kv_seq *s, kv_stream *st, uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; i++) kv_pool_unref(s->pool, st->tail[i]);
    if (to > from) memmove(st->tail + from, st->tail + to, (st->n_tail - to) * sizeof *st->tail);
    st->n_tail -= to - from;
}

void kv_tail_drop_front(kv_seq *s, kv_stream *st, uint32_t n) {
    assert(n <= st->tail_len);
    uint32_t p16 = st->shape->f16_tokens;
    st->tail_pos += n;
    st->tail_len -= n;
    if (kv_scores_of_tail(st)) memmove(st->scores.tail, st->scores.tail + n, st->tail_len * sizeof *st->scores.tail);
    st->tail_start += n;
    drop_pages(s, st, 0, st->tail_len ? st->tail_start / p16 : st->n_tail);
    st->tail_start = st->tail_len ? st->tail_start % p16 : 0;
}

void kv_tail_drop_back(kv_seq *s, kv_stream *st, uint32_t n) {
    assert(n <= st->tail_len);
    st->tail_len -= n;
    drop_pages(s, st, st->tail_len ? pages_for(st, st->tail_start + st->tail_len) : 0, st->n_tail);
    if (!st->tail_len) st->tail_start = 0;
}
