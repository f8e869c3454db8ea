/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handles of a stream, and the charged arrays everything here grows in. Owns the list and its order of birth.
 * Must not know: what a price means. Invariants: births rise; a page is in a stream once; every byte of capacity is
 * charged.
 */
#include "cache/array.h"

#include "base/alloc.h"

#include <assert.h>
#include <string.h>

kv_status kv_cache_grow(kv_seq *s, void **array, uint32_t *cap, uint64_t need, size_t size, bool exact, kv_error *err) {
    if (need <= *cap) return KVIST_OK;
    uint64_t want = exact ? need : (uint64_t)*cap + *cap / 2;
    if (want < need) want = need;
    if (!exact && want < 8) want = 8;
    if (want > UINT32_MAX || want > SIZE_MAX / size)
        KV_FAIL(err, MEMORY, "an array of %llu items is too large", (unsigned long long)want);
    uint64_t more = (want - *cap) * size;
    KV_TRY(kv_pool_charge(s->pool, more, err));
    void *p = kv_realloc(*array, (size_t)want * size);
    if (!p) {
        kv_pool_discharge(s->pool, more);
        KV_FAIL(err, MEMORY, "no memory for %llu cache items", (unsigned long long)want);
    }
    *array = p;
    *cap = (uint32_t)want;
    s->charged += more;
    return KVIST_OK;
}

void kv_cache_drop(kv_seq *s, void **array, uint32_t *cap, size_t size) {
    uint64_t bytes = (uint64_t)*cap * size;
    kv_free(*array);
    kv_pool_discharge(s->pool, bytes);
    s->charged -= bytes;
    *array = NULL;
    *cap = 0;
}

kv_status kv_stream_push(kv_seq *s, kv_stream *st, float price, uint32_t *page, kv_error *err) {
    *page = KV_NO_PAGE;
    void *handles = st->handles;
    kv_status rc =
        kv_cache_grow(s, &handles, &st->cap_handles, (uint64_t)st->n_handles + 1, sizeof *st->handles, false, err);
    st->handles = handles;
    KV_TRY(rc);
    KV_TRY(kv_scores_room(s, st, 0, (uint64_t)st->n_handles + 1, err));
    KV_TRY(kv_pool_acquire(s->pool, page, err));
    size_t p16 = st->shape->f16_tokens;
    if (kv_scores_of_slots(st)) memset(st->scores.slots + st->n_handles * p16, 0, p16 * sizeof *st->scores.slots);
    st->handles[st->n_handles++] = (kv_handle){.page = *page, .price = price, .birth = st->next_birth++};
    return KVIST_OK;
}

void kv_stream_remove(kv_seq *s, kv_stream *st, uint32_t i) {
    assert(i < st->n_handles);
    uint32_t page = st->handles[i].page;
    const kv_page_entry *e = kv_pool_entry(s->pool, page);
    uint32_t tokens = (uint32_t)e->n - e->start;
    st->tokens_sealed -= tokens < st->tokens_sealed ? tokens : st->tokens_sealed;
    kv_pool_unref(s->pool, page);
    size_t p16 = st->shape->f16_tokens, after = st->n_handles - i - 1;
    memmove(st->handles + i, st->handles + i + 1, after * sizeof *st->handles);
    if (kv_scores_of_slots(st))
        memmove(st->scores.slots + i * p16, st->scores.slots + (i + 1) * p16, after * p16 * sizeof *st->scores.slots);
    st->n_handles--;
}

void kv_stream_release(kv_seq *s, kv_stream *st) {
    for (uint32_t i = 0; i < st->n_handles; i++) kv_pool_unref(s->pool, st->handles[i].page);
    for (uint32_t i = 0; i < st->n_tail; i++) kv_pool_unref(s->pool, st->tail[i]);
    st->n_handles = st->next_birth = st->n_tail = 0;
    st->tail_start = st->tail_len = st->tail_pos = st->sealed_at = st->tokens_sealed = 0;
    st->mass = 1;
}
