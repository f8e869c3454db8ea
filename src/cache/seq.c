/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sequence: all streams of one conversation. Owns their creation, room, truncation and end.
 * Must not know: policies, tokens' ids. Invariant: `charged` is exactly what its arrays hold of the pool's budget.
 */
#include "cache/array.h"

#include "base/alloc.h"

#include <assert.h>
#include <string.h>

/* Rows of q2 a stream reserves ahead: decoding needs one a token, and callers reserve some tens of tokens at a time. A
 * long prompt pushes layer by layer and grows there instead, or every layer would hold 1,024 rows at once. */
#define Q2_ROOM 64u

kv_status kv_seq_create(kv_pool *pool, uint32_t n_layers, const uint32_t *layer_first, const kv_stream_shape *shapes,
                        kv_seq **out, kv_error *err) {
    *out = NULL;
    uint32_t n = layer_first[n_layers];
    uint64_t bytes = sizeof(kv_seq) + (uint64_t)n * sizeof(kv_stream);
    KV_TRY(kv_pool_charge(pool, bytes, err));
    kv_seq *s = kv_calloc(1, sizeof *s);
    kv_stream *streams = kv_calloc(n ? n : 1, sizeof *streams);
    if (!s || !streams) {
        kv_free(s);
        kv_free(streams);
        kv_pool_discharge(pool, bytes);
        KV_FAIL(err, MEMORY, "no memory for a sequence of %u streams", n);
    }
    *s = (kv_seq){.pool = pool,
                  .n_layers = n_layers,
                  .n_streams = n,
                  .layer_first = layer_first,
                  .shapes = shapes,
                  .streams = streams,
                  .charged = bytes};
    for (uint32_t l = 0; l < n_layers; l++)
        for (uint32_t i = layer_first[l]; i < layer_first[l + 1]; i++) {
            assert(shapes[l].f16_tokens > 0);
            streams[i].shape = &shapes[l];
            streams[i].mass = 1;
        }
    *out = s;
    return KVIST_OK;
}

void kv_seq_clear(kv_seq *s) {
    for (uint32_t i = 0; i < s->n_streams; i++) {
        kv_stream_release(s, &s->streams[i]);
        kv_q2_reset(s, &s->streams[i]);
        kv_scores_reset(s, &s->streams[i]);
    }
    s->length = 0;
}

void kv_seq_free(kv_seq **seq) {
    kv_seq *s = *seq;
    *seq = NULL;
    if (!s) return;
    kv_seq_clear(s);
    for (uint32_t i = 0; i < s->n_streams; i++) {
        kv_free(s->streams[i].handles);
        kv_free(s->streams[i].tail);
    }
    kv_pool_discharge(s->pool, s->charged);
    kv_free(s->streams);
    kv_free(s);
}

kv_status kv_seq_reserve(kv_seq *s, uint32_t n_tokens, kv_error *err) {
    for (uint32_t i = 0; i < s->n_streams; i++) {
        kv_stream *st = &s->streams[i];
        uint32_t p16 = st->shape->f16_tokens;
        /* A page of any format holds at least an f16 page's tokens; sinks, a ranking, local tokens and leftovers may
         * each add a partial one. */
        uint64_t tokens = (uint64_t)st->tail_len + n_tokens, pages = tokens / p16 + 2;
        void *p = st->tail;
        kv_status rc = kv_cache_grow(s, &p, &st->cap_tail, pages, sizeof *st->tail, false, err);
        st->tail = p;
        KV_TRY(rc);
        p = st->handles;
        rc = kv_cache_grow(s, &p, &st->cap_handles, st->n_handles + pages + 2, sizeof *st->handles, false, err);
        st->handles = p;
        KV_TRY(rc);
        uint32_t at = st->q2.covered + st->q2.n_rows, rows = at < KV_Q2_POSITIONS ? KV_Q2_POSITIONS - at : 0;
        if (rows > n_tokens) rows = n_tokens;
        if (rows > Q2_ROOM) rows = Q2_ROOM;
        if (st->q2.sum && rows) KV_TRY(kv_q2_room(s, st, st->q2.n_rows + rows, err));
    }
    return KVIST_OK;
}

bool kv_seq_truncate_free(kv_seq *s, uint32_t n) {
    if (n > s->length) return false;
    for (uint32_t i = 0; i < s->n_streams; i++) {
        const kv_stream *st = &s->streams[i];
        bool newest_in_tail = st->tail_pos <= n && st->tail_pos + st->tail_len == s->length;
        if (st->sealed_at > n || (n < s->length && !newest_in_tail) || st->q2.covered > n) return false;
    }
    for (uint32_t i = 0; i < s->n_streams; i++) {
        kv_stream *st = &s->streams[i];
        if (n < s->length) kv_tail_drop_back(s, st, s->length - n);
        if (st->q2.n_rows > n - st->q2.covered) st->q2.n_rows = n - st->q2.covered;
    }
    s->length = n;
    return true;
}
