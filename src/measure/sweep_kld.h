/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Divergence of flowing text under many policies: the context of a chunk is read once and compressed into a session of
 * each policy; then each session reads the chunk's continuation in one step on top of it, teacher-forced, and its rows
 * are compared with the base's. What is measured is a cache compressed once, at the end of its prompt; the continuation
 * itself is not compressed (kvist eval kld compresses as it goes). Works on the public interface only; knows no files.
 */
#ifndef KV_MEASURE_SWEEP_KLD_H
#define KV_MEASURE_SWEEP_KLD_H

#include "base/err.h"
#include "measure/watch.h"

/* One chunk under one policy. */
typedef struct kv_sweep_kld_row {
    uint32_t chunk, policy;     /* indices into at[] and policies[] */
    uint32_t rows;              /* predictions compared: next - 1 */
    double kld, nll, same_top1; /* means over them: KL(base || policy) and -ln p(target) in nats, 0..1 */
    double share, mass_min;     /* at the compression point */
    uint64_t bytes_true;
    bool share_met;
} kv_sweep_kld_row;

typedef struct kv_sweep_kld_params {
    const int32_t *tokens;
    size_t n_tokens;
    const uint32_t *at; /* [n_chunks] first token of each chunk */
    uint32_t n_chunks;
    uint32_t ctx, next; /* tokens of a chunk; the last `next` of them are the continuation (2 .. ctx - 1) */
    uint32_t n_vocab, threads;
    const char *const *policies; /* [n_policies]; policies[0] is the base */
    uint32_t n_policies;
    /* true: this row is known already. NULL: none is. A chunk all of whose rows are known is not read. */
    bool (*known)(void *user, uint32_t chunk, uint32_t policy);
    /* A row as soon as it is there; a failure stops the run. */
    kv_status (*take)(void *user, const kv_sweep_kld_row *row, kv_error *err);
    void *user;
    kv_watch watch;
} kv_sweep_kld_params;

/* Needs next x n_vocab floats for the base's logits. */
kv_status kv_sweep_kld(kvist_engine *engine, const kv_sweep_kld_params *p, kv_error *err) KV_WARN_UNUSED;

#endif
