/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gathers tokens of a stream's f16 run into staging rows and seals them as pages, many pages in one backend call.
 * Used at compression points and while decoding. Staging belongs to the engine; one sealer is active at a time.
 */
#ifndef KV_ENGINE_SEALER_H
#define KV_ENGINE_SEALER_H

#include "engine/engine.h"

/* The f16 run of a stream: its tail, then rows k[][dk], v[][dv] (may be none). */
typedef struct kv_run_source {
    const kv_seq *seq;
    kv_stream *st;
    const uint16_t *k, *v;
    uint32_t tail, dk, dv;
} kv_run_source;
kv_run_source kv_run_source_of(const kv_seq *seq, kv_stream *st, const uint16_t *k, const uint16_t *v);
/* Copies tokens [first, first + n) of a run out: k[n][dk], v[n][dv] f16; either may be NULL. run: a kv_run_source (kv_score_input.rows). */
void kv_run_rows(const void *run, uint32_t first, uint32_t n, uint16_t *k, uint16_t *v);

typedef struct kv_sealer {
    kvist_session *s;
    kv_page_layout f16;                   /* sink pages of this layer */
    kv_page_layout layouts[KV_SEAL_JOBS]; /* by job: callers' may change between pages */
    uint32_t n_jobs, n_q2;
    size_t tokens;
} kv_sealer;

kv_status kv_sealer_init(kv_sealer *se, kvist_session *s, uint32_t layer, kv_error *err);
/* A row for mean q2, valid until the next flush. */
float *kv_sealer_q2(kv_sealer *se);
/* Pushes a handle and queues its page: run tokens at + idx[i] (idx NULL: at + i), i < n. Flushes by itself when staging
 * is full. */
kv_status kv_sealer_page(kv_sealer *se, const kv_run_source *src, const kv_page_layout *lay, uint32_t at,
                         const uint32_t *idx, uint32_t n, float price, uint8_t flags, const float *q2, kv_error *err);
/* The run's first n tokens as f16 sink pages. */
kv_status kv_sealer_sinks(kv_sealer *se, const kv_run_source *src, uint32_t n, kv_error *err);
/* Position order: the run's first `sink` tokens as sinks, then `pages` whole pages of `lay`; flushes, so that the tail
 * may move afterwards. length: of the sequence, for rollback. */
kv_status kv_sealer_in_order(kv_sealer *se, const kv_run_source *src, const kv_page_layout *lay, uint32_t sink,
                             uint32_t pages, uint32_t length, kv_error *err);
kv_status kv_sealer_flush(kv_sealer *se, kv_error *err);

/* Sliding-window streams: frees pages and tail tokens that no position >= length can see. */
void kv_trim_window(kvist_session *s, kv_stream *st, uint32_t length);

#endif
