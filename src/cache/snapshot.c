/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot: the pages and arrays of a sequence at one token count, held by one block of memory charged to the pool.
 * Must not know: when snapshots are taken. Invariant: it holds one reference on each of its pages; the block's size is
 * its charge.
 */
#include "cache/array.h"

#include "base/alloc.h"
#include "cache/positions.h"

#include <assert.h>
#include <string.h>

struct kv_snapshot {
    kv_pool *pool;
    uint64_t bytes; /* of this block */
    uint32_t length, n_streams;
    kv_stream *streams; /* [n_streams] copies; their pointers lead into this block */
};

static size_t q2_floats(const kv_stream *st) { return st->q2.sum ? (size_t)st->shape->dk * (1 + st->q2.n_rows) : 0; }

/* Handles, tail, q2 and scores are all made of 4-byte items, so one after the other stays aligned. */
static size_t stream_bytes(const kv_stream *st) {
    return st->n_handles * sizeof *st->handles + st->n_tail * sizeof *st->tail + (q2_floats(st) + kv_scores_tail_items(st) + kv_scores_slot_items(st)) * sizeof(float);
}

static void *put(uint8_t **at, const void *from, size_t bytes) {
    void *to = *at;
    if (bytes) memcpy(to, from, bytes);
    *at += bytes;
    return to;
}

static void ref_all(kv_pool *pool, const kv_stream *st) {
    for (uint32_t i = 0; i < st->n_handles; i++) kv_pool_ref(pool, st->handles[i].page);
    for (uint32_t i = 0; i < st->n_tail; i++) kv_pool_ref(pool, st->tail[i]);
}

kv_status kv_snapshot_take(const kv_seq *s, kv_snapshot **out, kv_error *err) {
    *out = NULL;
    size_t bytes = sizeof(kv_snapshot) + s->n_streams * sizeof(kv_stream);
    for (uint32_t i = 0; i < s->n_streams; i++) bytes += stream_bytes(&s->streams[i]);
    KV_TRY(kv_pool_charge(s->pool, bytes, err));
    uint8_t *block = kv_malloc(bytes);
    if (!block) {
        kv_pool_discharge(s->pool, bytes);
        KV_FAIL(err, MEMORY, "no memory for a snapshot of %zu bytes", bytes);
    }
    kv_snapshot *snap = (kv_snapshot *)(void *)block;
    uint8_t *at = block + sizeof *snap + s->n_streams * sizeof(kv_stream);
    *snap = (kv_snapshot){s->pool, bytes, s->length, s->n_streams, (kv_stream *)(void *)(block + sizeof *snap)};
    for (uint32_t i = 0; i < s->n_streams; i++) {
        const kv_stream *st = &s->streams[i];
        kv_stream *copy = &snap->streams[i];
        size_t dk = st->shape->dk;
        *copy = *st;
        copy->handles = put(&at, st->handles, st->n_handles * sizeof *st->handles);
        copy->tail = put(&at, st->tail, st->n_tail * sizeof *st->tail);
        copy->q2.sum = copy->q2.rows = NULL;
        if (st->q2.sum) {
            copy->q2.sum = put(&at, st->q2.sum, dk * sizeof(float));
            copy->q2.rows = put(&at, st->q2.rows, st->q2.n_rows * dk * sizeof(float));
        }
        if (kv_scores_of_tail(st))
            copy->scores.tail = put(&at, st->scores.tail, kv_scores_tail_items(st) * sizeof(float));
        if (kv_scores_of_slots(st))
            copy->scores.slots = put(&at, st->scores.slots, kv_scores_slot_items(st) * sizeof(float));
        copy->cap_handles = st->n_handles;
        copy->cap_tail = st->n_tail;
        copy->q2.cap_rows = st->q2.n_rows;
        ref_all(s->pool, copy);
    }
    assert(at == block + bytes);
    *out = snap;
    return KVIST_OK;
}

/* Arrays of st at least as large as the snapshot's; contents untouched. */
static kv_status make_room(kv_seq *s, kv_stream *st, const kv_stream *from, kv_error *err) {
    void *p = st->handles;
    kv_status rc = kv_cache_grow(s, &p, &st->cap_handles, from->n_handles, sizeof *st->handles, false, err);
    st->handles = p;
    KV_TRY(rc);
    p = st->tail;
    rc = kv_cache_grow(s, &p, &st->cap_tail, from->n_tail, sizeof *st->tail, false, err);
    st->tail = p;
    KV_TRY(rc);
    if (kv_scores_of_tail(from)) KV_TRY(kv_scores_begin(s, st, kv_scores_of_slots(from), err));
    KV_TRY(kv_scores_room(s, st, from->tail_len, from->n_handles, err));
    return from->q2.sum ? kv_q2_room(s, st, from->q2.n_rows, err) : KVIST_OK;
}

static void forget_scores(kv_seq *s, kv_stream *st, bool keep_tail) {
    void *slots = st->scores.slots;
    if (!keep_tail) {
        kv_scores_reset(s, st);
        return;
    }
    kv_cache_drop(s, &slots, &st->scores.cap_slots, sizeof(float));
    st->scores.slots = NULL;
}

static void restore_stream(kv_seq *s, kv_stream *st, const kv_stream *from) {
    size_t dk = st->shape->dk;
    ref_all(s->pool, from); /* before the release: a page both hold must not pass through the free list */
    kv_stream_release(s, st);
    if (!from->q2.sum) kv_q2_reset(s, st);
    if (!kv_scores_of_slots(from)) forget_scores(s, st, kv_scores_of_tail(from));
    kv_stream next = *from;
    next.shape = st->shape;
    next.handles = st->handles;
    next.cap_handles = st->cap_handles;
    next.tail = st->tail;
    next.cap_tail = st->cap_tail;
    next.q2.sum = st->q2.sum;
    next.q2.rows = st->q2.rows;
    next.q2.cap_rows = st->q2.cap_rows;
    next.scores = st->scores;
    if (from->n_handles) memcpy(next.handles, from->handles, from->n_handles * sizeof *from->handles);
    if (from->n_tail) memcpy(next.tail, from->tail, from->n_tail * sizeof *from->tail);
    if (from->q2.sum) memcpy(next.q2.sum, from->q2.sum, dk * sizeof(float));
    if (from->q2.n_rows) memcpy(next.q2.rows, from->q2.rows, from->q2.n_rows * dk * sizeof(float));
    size_t n_tail = kv_scores_tail_items(from), n_slots = kv_scores_slot_items(from);
    if (n_tail) memcpy(next.scores.tail, from->scores.tail, n_tail * sizeof(float));
    if (n_slots) memcpy(next.scores.slots, from->scores.slots, n_slots * sizeof(float));
    *st = next;
}

kv_status kv_snapshot_restore(const kv_snapshot *snap, kv_seq *s, kv_error *err) {
    if (snap->pool != s->pool || snap->n_streams != s->n_streams)
        KV_FAIL(err, ARG, "a snapshot of %u streams does not fit a sequence of %u", snap->n_streams, s->n_streams);
    for (uint32_t i = 0; i < s->n_streams; i++) KV_TRY(make_room(s, &s->streams[i], &snap->streams[i], err));
    for (uint32_t i = 0; i < s->n_streams; i++) restore_stream(s, &s->streams[i], &snap->streams[i]);
    s->length = snap->length;
    return KVIST_OK;
}

void kv_snapshot_free(kv_snapshot **snapshot) {
    kv_snapshot *snap = *snapshot;
    *snapshot = NULL;
    if (!snap) return;
    for (uint32_t i = 0; i < snap->n_streams; i++) {
        const kv_stream *st = &snap->streams[i];
        for (uint32_t h = 0; h < st->n_handles; h++) kv_pool_unref(snap->pool, st->handles[h].page);
        for (uint32_t t = 0; t < st->n_tail; t++) kv_pool_unref(snap->pool, st->tail[t]);
    }
    kv_pool_discharge(snap->pool, snap->bytes);
    kv_free(snap);
}

uint32_t kv_snapshot_length(const kv_snapshot *snap) { return snap->length; }

uint64_t kv_snapshot_bytes(const kv_snapshot *snap) {
    uint64_t pages = 0, positions = 0;
    for (uint32_t i = 0; i < snap->n_streams; i++) {
        const kv_stream *st = &snap->streams[i];
        for (uint32_t h = 0; h < st->n_handles; h++) {
            if (kv_pool_entry(snap->pool, st->handles[h].page)->refs != 1) continue;
            pages++;
            positions += kv_positions_bytes(snap->pool, st->handles[h].page);
        }
        for (uint32_t t = 0; t < st->n_tail; t++) pages += kv_pool_entry(snap->pool, st->tail[t])->refs == 1;
    }
    return snap->bytes + positions + pages * (kv_pool_page_bytes(snap->pool) + sizeof(kv_page_entry));
}

void kv_snapshot_add_refs(const kv_snapshot *snap, uint32_t *refs) {
    for (uint32_t i = 0; i < snap->n_streams; i++) {
        const kv_stream *st = &snap->streams[i];
        for (uint32_t h = 0; h < st->n_handles; h++) refs[st->handles[h].page]++;
        for (uint32_t t = 0; t < st->n_tail; t++) refs[st->tail[t]]++;
    }
}
