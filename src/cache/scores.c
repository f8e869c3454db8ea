/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores of tokens while decoding: the arrays alone. Must not know: what a score means, who adds to it. Invariants: item i
 * of the tail is tail token i; items [h P16, (h + 1) P16) of the slots are handle h's; every byte is charged.
 */
#include "cache/array.h"

#include <string.h>

size_t kv_scores_tail_items(const kv_stream *st) { return kv_scores_of_tail(st) ? st->tail_len : 0; }
size_t kv_scores_slot_items(const kv_stream *st) {
    return kv_scores_of_slots(st) ? (size_t)st->n_handles * st->shape->f16_tokens : 0;
}

kv_status kv_scores_room(kv_seq *s, kv_stream *st, uint64_t n_tail, uint64_t n_handles, kv_error *err) {
    kv_scores *c = &st->scores;
    void *p = c->tail;
    kv_status rc = KVIST_OK;
    if (p) rc = kv_cache_grow(s, &p, &c->cap_tail, n_tail, sizeof *c->tail, false, err);
    c->tail = p;
    KV_TRY(rc);
    p = c->slots;
    if (p) rc = kv_cache_grow(s, &p, &c->cap_slots, n_handles * st->shape->f16_tokens, sizeof *c->slots, false, err);
    c->slots = p;
    return rc;
}

/* A first array of n items, all 0; NULL stays NULL when there is no memory. */
static kv_status begin(kv_seq *s, float **array, uint32_t *cap, size_t n, kv_error *err) {
    void *p = NULL;
    if (*array) return KVIST_OK;
    KV_TRY(kv_cache_grow(s, &p, cap, n ? n : 1, sizeof **array, false, err));
    *array = p;
    memset(*array, 0, n * sizeof **array);
    return KVIST_OK;
}

kv_status kv_scores_begin(kv_seq *s, kv_stream *st, bool slots, kv_error *err) {
    KV_TRY(begin(s, &st->scores.tail, &st->scores.cap_tail, st->tail_len, err));
    if (!slots) return KVIST_OK;
    return begin(s, &st->scores.slots, &st->scores.cap_slots, (size_t)st->n_handles * st->shape->f16_tokens, err);
}

void kv_scores_reset(kv_seq *s, kv_stream *st) {
    void *tail = st->scores.tail, *slots = st->scores.slots;
    kv_cache_drop(s, &tail, &st->scores.cap_tail, sizeof(float));
    kv_cache_drop(s, &slots, &st->scores.cap_slots, sizeof(float));
    st->scores = (kv_scores){0};
}
