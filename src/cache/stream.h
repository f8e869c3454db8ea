/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream is the cache of one (sequence, layer, KV head): sealed handles in birth order, then the f16 tail.
 * A sequence is all streams of one conversation. A snapshot is a sequence's pages held at one token count.
 * Sealed pages never change; only the tail's last page is written, and copied first when shared.
 *
 * Order of tokens for attention: handles[0..n_handles) in birth order (sinks are the first, f16, flag KV_PAGE_SINK),
 * then the tail's tokens in position order: token i of the tail has position tail_pos + i and lies in slot (tail_start
 * + i) % P16 of tail[(tail_start + i) / P16]. P16 = f16 tokens a page of this layer (kv_stream_shape.f16_tokens). f16
 * page bytes: K transposed [dkp][P16] f16, then V [P16][dvp] f16; dkp, dvp: head dims padded to 16, padding 0. A tail
 * token of position p always lies in slot p % P16: where tail pages begin does not depend on how a prompt was cut into
 * calls.
 */
#ifndef KV_CACHE_STREAM_H
#define KV_CACHE_STREAM_H

#include "cache/pool.h"

#define KV_Q2_POSITIONS 1024u

typedef struct kv_handle {
    uint32_t page;
    float price;
    uint32_t birth;
} kv_handle;
_Static_assert(sizeof(kv_handle) == 12, "counted in bytes_true");

/* Same for all streams of a layer. dk, dv: real head dims, padded to multiples of 16 in pages. */
typedef struct kv_stream_shape {
    uint16_t dk, dv, f16_tokens, group; /* query heads a KV head */
} kv_stream_shape;

/* Sum of squared queries over the group, per channel: `sum` covers positions [0, covered); rows for positions
 * [covered, covered + n_rows) wait in `rows` until a page that ends there is sealed (DESIGN 4). Stops at
 * KV_Q2_POSITIONS. */
typedef struct kv_q2 {
    float *sum, *rows;
    uint32_t start, covered, n_rows, cap_rows;
} kv_q2;

/* What each token is worth, where a policy evicts while decoding: one f32 a tail token and, where tokens of f16 pages
 * are evicted one by one, one a slot of every handle (f16_tokens each). Begun by kv_scores_begin, empty otherwise. */
typedef struct kv_scores {
    float *tail, *slots;
    uint32_t cap_tail, cap_slots; /* items */
} kv_scores;

typedef struct kv_stream {
    const kv_stream_shape *shape;
    kv_handle *handles;
    uint32_t n_handles, cap_handles, next_birth;
    uint32_t *tail;
    uint32_t n_tail, cap_tail;     /* pages */
    uint32_t tail_start, tail_len; /* first slot in tail[0]; tokens */
    uint32_t tail_pos;             /* position of the tail's first token */
    uint32_t sealed_at;            /* sequence length when a page was last sealed (0: never) */
    uint32_t tokens_sealed;        /* valid tokens in handles */
    float mass;                    /* retained attention mass, 1 when nothing was evicted */
    kv_q2 q2;
    kv_scores scores;
} kv_stream;

typedef struct kv_seq {
    kv_pool *pool;
    uint32_t n_layers, n_streams;
    const uint32_t *layer_first;   /* [n_layers + 1] index of a layer's first stream */
    const kv_stream_shape *shapes; /* [n_layers] */
    kv_stream *streams;            /* [n_streams] */
    uint32_t length;               /* positions */
    uint64_t charged;              /* bytes of arrays charged to the pool */
    bool track;                    /* pages that are not contiguous get lists of positions (positions.h) */
} kv_seq;

/* shapes and layer_first are the caller's (the model's) and outlive the sequence. */
kv_status kv_seq_create(kv_pool *pool, uint32_t n_layers, const uint32_t *layer_first, const kv_stream_shape *shapes,
                        kv_seq **out, kv_error *err) KV_WARN_UNUSED;
void kv_seq_free(kv_seq **s);
static inline kv_stream *kv_seq_stream(const kv_seq *s, uint32_t layer, uint32_t head) {
    return &s->streams[s->layer_first[layer] + head];
}

/* Makes room so that appending up to n_tokens to every tail and sealing needs no array growth (pages are still
 * acquired). */
kv_status kv_seq_reserve(kv_seq *s, uint32_t n_tokens, kv_error *err) KV_WARN_UNUSED;

/* ---- tail */
/* Appends one token: k[dk], v[dv] f16 (real dims; padding written as 0). Copies a shared last page first. Its position
 * is tail_pos + tail_len; while the tail is empty the caller may set tail_pos (rows sealed or evicted without passing
 * through the tail). */
kv_status kv_tail_append(kv_seq *s, kv_stream *st, const uint16_t *k, const uint16_t *v, kv_error *err) KV_WARN_UNUSED;
/* Writes token k[dk], v[dv] behind the last one of an f16 page of the stream's handles that nobody else holds and that has room, as
 * its KV_PAGE_REST. */
void kv_stream_put_rest(kv_seq *s, kv_stream *st, uint32_t handle, const uint16_t *k, const uint16_t *v);
/* Copies tail token i (0 = oldest) out as token-major rows k[dk], v[dv]; either may be NULL. */
void kv_tail_get(const kv_seq *s, const kv_stream *st, uint32_t i, uint16_t *k, uint16_t *v);
/* Forgets the oldest n tokens (they were sealed or evicted); frees pages wholly consumed. */
void kv_tail_drop_front(kv_seq *s, kv_stream *st, uint32_t n);
/* Forgets the newest n tokens (truncate). */
void kv_tail_drop_back(kv_seq *s, kv_stream *st, uint32_t n);

/* ---- handles */
/* Acquires a page and appends a handle (birth = next). The caller fills payload and entry (refs untouched), adds the
 * entry's tokens to tokens_sealed and sets sealed_at to the sequence's length. */
kv_status kv_stream_push(kv_seq *s, kv_stream *st, float price, uint32_t *page, kv_error *err) KV_WARN_UNUSED;
/* Removes handle i, keeping the order of the others; unrefs its page. */
void kv_stream_remove(kv_seq *s, kv_stream *st, uint32_t i);

/* ---- scores: kept beside the tokens by every operation above (a token appended, a page pushed: 0) */
/* Begins to keep them, 0 for what is there; slots: also of handles, whose pages must then all be f16. */
kv_status kv_scores_begin(kv_seq *s, kv_stream *st, bool slots, kv_error *err) KV_WARN_UNUSED;
/* Room for the scores of n_tail tail tokens and n_handles handles, where they are kept. */
kv_status kv_scores_room(kv_seq *s, kv_stream *st, uint64_t n_tail, uint64_t n_handles, kv_error *err) KV_WARN_UNUSED;
static inline bool kv_scores_of_tail(const kv_stream *st) { return st->scores.tail != NULL; }
static inline bool kv_scores_of_slots(const kv_stream *st) { return st->scores.slots != NULL; }

/* ---- region (region.c): f16 handles behind the sinks, whose tokens come and go one by one while decoding. Token i lies
 * in slot i % f16_tokens of region page i / f16_tokens: all pages are full but the last (kv_region_compact). A page that
 * anybody else holds is copied before it is written. Needs scores of tail and slots. */
uint32_t kv_region_first(const kv_seq *s, const kv_stream *st); /* index of its first handle */
uint32_t kv_region_tokens(const kv_seq *s, const kv_stream *st);
/* After pages were sealed: fills partial pages from the end. */
kv_status kv_region_compact(kv_seq *s, kv_stream *st, kv_error *err) KV_WARN_UNUSED;
/* The token of lowest score (NaN: lowest; ties: the last of them); the region is not empty. */
uint32_t kv_region_lowest(const kv_seq *s, const kv_stream *st);
/* The tail's oldest token becomes the region's last one, or takes the place of token i, which is evicted. */
kv_status kv_region_append(kv_seq *s, kv_stream *st, kv_error *err) KV_WARN_UNUSED;
kv_status kv_region_replace(kv_seq *s, kv_stream *st, uint32_t i, kv_error *err) KV_WARN_UNUSED;
/* Evicts token i: the last one moves into its place; a page that becomes empty is freed. */
kv_status kv_region_evict(kv_seq *s, kv_stream *st, uint32_t i, kv_error *err) KV_WARN_UNUSED;
/* Tokens that must go to free the last page: as many as it holds, h; and the score of the h-th lowest, which is the last
 * to go: the price of a page (KV-Compress, research/kv-compress.md 2.2). The region is not empty. */
float kv_region_price(const kv_seq *s, const kv_stream *st, uint32_t *h);
/* Evicts the h lowest: survivors of the last page move into the holes before it, and it is freed. */
kv_status kv_region_drop_page(kv_seq *s, kv_stream *st, kv_error *err) KV_WARN_UNUSED;

/* ---- q2 */
/* Room for `need` waiting q2 rows (and for the sum). */
kv_status kv_q2_room(kv_seq *s, kv_stream *st, uint32_t need, kv_error *err) KV_WARN_UNUSED;
/* Adds the row of the next position (sum over the group of q_c^2, [dk]); ignored from KV_Q2_POSITIONS on. */
kv_status kv_q2_push(kv_seq *s, kv_stream *st, const float *row, kv_error *err) KV_WARN_UNUSED;
/* mean[dk] over positions [start, min(end, KV_Q2_POSITIONS)) and the group; folds waiting rows in position order. All
 * ones when nothing was collected. */
void kv_q2_mean(kv_stream *st, uint32_t end, float *mean);
/* Gives the memory of folded rows back (after a layer's pages are sealed). */
void kv_q2_trim(kv_seq *s, kv_stream *st);

/* ---- whole sequence */
/* Free truncation, tail tokens and waiting q2 rows: true and done when no stream sealed a page after the sequence held
 * n tokens; else false, untouched. */
bool kv_seq_truncate_free(kv_seq *s, uint32_t n);
void kv_seq_clear(kv_seq *s);

typedef struct kv_snapshot kv_snapshot;
kv_status kv_snapshot_take(const kv_seq *s, kv_snapshot **out, kv_error *err) KV_WARN_UNUSED;
kv_status kv_snapshot_restore(const kv_snapshot *snap, kv_seq *s,
                              kv_error *err) KV_WARN_UNUSED; /* s becomes the state at the snapshot */
void kv_snapshot_free(kv_snapshot **snap);
uint32_t kv_snapshot_length(const kv_snapshot *snap);
uint64_t kv_snapshot_bytes(const kv_snapshot *snap); /* arrays it owns, and pages nobody else holds */

/* Adds one to refs[page] for each page the snapshot holds; refs has an item for every page of the pool. */
void kv_snapshot_add_refs(const kv_snapshot *snap, uint32_t *refs);

/* True bytes (DESIGN 5): pages x page size + 32 B entry a page + 12 B a handle + 4 B a tail page + 4 B a q2 float in
 * use + 4 B a score + lists of positions, which are also told apart. unique: without pages with refs > 1 held by
 * others. by_format[16] counts pages by K format id; may be NULL. */
typedef struct kv_seq_bytes {
    uint64_t bytes_true, bytes_unique, bytes_positions, pages, tokens_stored_sum, by_format[16];
} kv_seq_bytes;
/* own_refs: references by the owner's own snapshots (kv_snapshot_add_refs), which do not make a page shared; NULL:
 * none. */
void kv_seq_count(const kv_seq *s, const uint32_t *own_refs, kv_seq_bytes *out);
/* The part of one stream, added to out. */
void kv_stream_count(const kv_seq *s, const kv_stream *st, const uint32_t *own_refs, kv_seq_bytes *out);
/* Every invariant of this header, between syncs; false and a sentence in err. (That pages in use are those of sequences
 * and snapshots is for the owner of all of them: tests compare the sum with the pool's counters.) */
bool kv_seq_check(const kv_seq *s, kv_error *err);

#endif
