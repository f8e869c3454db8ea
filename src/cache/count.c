/* SPDX-License-Identifier: Apache-2.0 */
/*
 * True bytes of a sequence, counted by walking it, and the function that states its invariants.
 * Must not know: policies. Nothing here changes anything.
 */
#include "cache/array.h"

#include "base/alloc.h"
#include "cache/positions.h"

#include <stdlib.h>

static void count_page(const kv_seq *s, const uint32_t *own_refs, uint32_t page, uint64_t list_bytes,
                       kv_seq_bytes *out) {
    const kv_page_entry *e = kv_pool_entry(s->pool, page);
    uint64_t positions = kv_positions_bytes(s->pool, page), bytes = kv_pool_page_bytes(s->pool) + sizeof *e + positions;
    out->bytes_positions += positions;
    out->pages++;
    out->by_format[e->format & 15u]++;
    out->bytes_true += bytes + list_bytes;
    out->bytes_unique += (e->refs - (own_refs ? own_refs[page] : 0) == 1 ? bytes : 0) + list_bytes;
}

void kv_stream_count(const kv_seq *s, const kv_stream *st, const uint32_t *own_refs, kv_seq_bytes *out) {
    for (uint32_t h = 0; h < st->n_handles; h++) {
        const kv_page_entry *e = kv_pool_entry(s->pool, st->handles[h].page);
        count_page(s, own_refs, st->handles[h].page, sizeof(kv_handle), out);
        out->tokens_stored_sum += (uint64_t)e->n - e->start;
    }
    for (uint32_t t = 0; t < st->n_tail; t++) count_page(s, own_refs, st->tail[t], sizeof *st->tail, out);
    out->tokens_stored_sum += st->tail_len;
    uint64_t q2 = st->q2.sum ? (uint64_t)st->shape->dk * (1 + st->q2.n_rows) * sizeof(float) : 0;
    uint64_t scores = (kv_scores_tail_items(st) + kv_scores_slot_items(st)) * sizeof(float);
    out->bytes_true += q2 + scores;
    out->bytes_unique += q2 + scores;
}

void kv_seq_count(const kv_seq *s, const uint32_t *own_refs, kv_seq_bytes *out) {
    *out = (kv_seq_bytes){0};
    for (uint32_t i = 0; i < s->n_streams; i++) kv_stream_count(s, &s->streams[i], own_refs, out);
}

#define REQUIRE(cond, ...)                                                                                             \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            (void)kv_fail(err, KVIST_E_STATE, "stream %u: " __VA_ARGS__);                                              \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

static bool check_handles(const kv_seq *s, const kv_stream *st, uint32_t i, kv_error *err) {
    uint64_t tokens = 0;
    REQUIRE(st->n_handles <= st->cap_handles, "%u handles in room for %u", i, st->n_handles, st->cap_handles);
    for (uint32_t h = 0; h < st->n_handles; h++) {
        const kv_page_entry *e = kv_pool_entry(s->pool, st->handles[h].page);
        REQUIRE(e->refs > 0, "handle %u points to free page %u", i, h, st->handles[h].page);
        REQUIRE(e->start < e->n, "handle %u points to page %u without valid tokens", i, h, st->handles[h].page);
        REQUIRE(st->handles[h].birth < st->next_birth, "handle %u was born in the future", i, h);
        REQUIRE(h == 0 || st->handles[h].birth > st->handles[h - 1].birth,
                "handle %u is not younger than the one before it", i, h);
        tokens += (uint64_t)e->n - e->start;
    }
    REQUIRE(tokens == st->tokens_sealed, "its pages hold %llu tokens but it counts %u", i, (unsigned long long)tokens,
            st->tokens_sealed);
    REQUIRE(st->sealed_at <= s->length, "a page was sealed at length %u of %u", i, st->sealed_at, s->length);
    return true;
}

static bool check_tail(const kv_seq *s, const kv_stream *st, uint32_t i, kv_error *err) {
    uint32_t p16 = st->shape->f16_tokens, slots = st->tail_start + st->tail_len;
    REQUIRE(st->n_tail <= st->cap_tail, "%u tail pages in room for %u", i, st->n_tail, st->cap_tail);
    REQUIRE(st->n_tail == (st->tail_len ? (slots + p16 - 1) / p16 : 0), "%u tail pages for %u tokens from slot %u", i,
            st->n_tail, st->tail_len, st->tail_start);
    REQUIRE(st->tail_start == (st->tail_len ? st->tail_pos % p16 : 0), "its tail of position %u begins in slot %u", i,
            st->tail_pos, st->tail_start);
    REQUIRE(!st->tail_len || st->tail_pos + st->tail_len == s->length,
            "its tail ends at position %u, the sequence at %u", i, st->tail_pos + st->tail_len, s->length);
    for (uint32_t t = 0; t < st->n_tail; t++)
        REQUIRE(kv_pool_entry(s->pool, st->tail[t])->refs > 0, "tail page %u is free page %u", i, t, st->tail[t]);
    return true;
}

static bool check_scores(const kv_stream *st, uint32_t i, kv_error *err) {
    const kv_scores *c = &st->scores;
    REQUIRE(!c->slots || c->tail, "scores of handles without scores of the tail", i);
    REQUIRE(kv_scores_tail_items(st) <= c->cap_tail, "%u tail tokens in room for %u scores", i, st->tail_len,
            c->cap_tail);
    REQUIRE(kv_scores_slot_items(st) <= c->cap_slots, "%u handles in room for %u scores", i, st->n_handles,
            c->cap_slots);
    return true;
}

static bool check_q2(const kv_seq *s, const kv_stream *st, uint32_t i, kv_error *err) {
    const kv_q2 *q = &st->q2;
    REQUIRE(q->n_rows <= q->cap_rows, "%u q2 rows in room for %u", i, q->n_rows, q->cap_rows);
    REQUIRE(q->start <= q->covered, "q2 begins at %u after its end %u", i, q->start, q->covered);
    REQUIRE(q->sum || (!q->n_rows && q->covered == q->start), "q2 rows without a sum", i);
    REQUIRE(q->covered + q->n_rows <= KV_Q2_POSITIONS, "q2 covers %u positions", i, q->covered + q->n_rows);
    REQUIRE(!q->sum || q->covered + q->n_rows <= s->length, "q2 reaches position %u of %u", i, q->covered + q->n_rows,
            s->length);
    return true;
}
#undef REQUIRE

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* A sequence refers to a page once: shared pages belong to other sequences and snapshots. */
static bool check_distinct(const kv_seq *s, uint64_t n_pages, kv_error *err) {
    uint32_t *ids = kv_malloc((size_t)n_pages * sizeof *ids);
    if (!ids) return kv_fail(err, KVIST_E_MEMORY, "no memory to check the sequence") == KVIST_OK;
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_streams; i++) {
        for (uint32_t h = 0; h < s->streams[i].n_handles; h++) ids[n++] = s->streams[i].handles[h].page;
        for (uint32_t t = 0; t < s->streams[i].n_tail; t++) ids[n++] = s->streams[i].tail[t];
    }
    qsort(ids, n, sizeof *ids, by_value);
    bool ok = true;
    for (size_t i = 1; ok && i < n; i++)
        if (ids[i] == ids[i - 1])
            ok = kv_fail(err, KVIST_E_STATE, "page %u is in the sequence twice", ids[i]) == KVIST_OK;
    kv_free(ids);
    return ok;
}

bool kv_seq_check(const kv_seq *s, kv_error *err) {
    uint64_t arrays = sizeof(kv_seq) + (uint64_t)s->n_streams * sizeof(kv_stream), n_pages = 0;
    for (uint32_t i = 0; i < s->n_streams; i++) {
        const kv_stream *st = &s->streams[i];
        if (!check_handles(s, st, i, err) || !check_tail(s, st, i, err) || !check_q2(s, st, i, err) ||
            !check_scores(st, i, err))
            return false;
        n_pages += (uint64_t)st->n_handles + st->n_tail;
        arrays += st->cap_handles * sizeof(kv_handle) + st->cap_tail * sizeof(uint32_t) +
                  (uint64_t)st->shape->dk * sizeof(float) * (st->q2.cap_rows + (st->q2.sum ? 1u : 0u)) +
                  ((uint64_t)st->scores.cap_tail + st->scores.cap_slots) * sizeof(float);
    }
    if (arrays != s->charged)
        return kv_fail(err, KVIST_E_STATE, "arrays hold %llu bytes but %llu are charged", (unsigned long long)arrays,
                       (unsigned long long)s->charged) == KVIST_OK;
    return check_distinct(s, n_pages, err);
}
