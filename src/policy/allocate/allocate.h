/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocators: how a budget is spread over layers and heads. An allocator is one method table in one file and one line
 * in allocate.c. Allocators see counts, and where they settle a layer its scores. `global` has no fixed counts: pages
 * are chosen by price (gsel.c).
 */
#ifndef KV_POLICY_ALLOCATE_H
#define KV_POLICY_ALLOCATE_H

#include "policy/plan.h"

#define KV_ALLOC_VERSION 2u

/* Scores of the ranked candidates of a layer's streams: score[h * stride + i], i < n. */
typedef struct kv_alloc_scores {
    const float *score;
    size_t stride;
    uint32_t n_streams, n;
    void *scratch; /* kv_plan_settle_scratch bytes, 8-byte aligned */
} kv_alloc_scores;

typedef struct kv_alloc_method {
    uint32_t version;
    uint8_t id;       /* enum kv_alloc_id */
    const char *name; /* as written in a policy */
    bool global;      /* pages by price; `heavy` is then the mean only */
    bool masses;      /* compares sums of scores: only scores that are attention masses */
    /* heavy[n_layers] = ranked tokens of a stream of each layer: mean over streams is `mean` as nearly as whole tokens
     * allow, none is above cap (mean <= cap). */
    void (*spread)(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy);
    /* NULL: all streams of a layer keep alike. Else, once the layer's scores are known: keep[n_streams] ranked tokens
     * of each stream, each at most n, together about `total` (at most n * n_streams; the method says how near). */
    void (*settle)(const kv_policy *p, const kv_alloc_scores *s, uint64_t total, uint32_t *keep);
} kv_alloc_method;

/* By id; NULL when there is none. By name: NULL when not built. */
const kv_alloc_method *kv_alloc_at(uint32_t id);
const kv_alloc_method *kv_alloc_find(const char *name, size_t len);
const char *kv_alloc_names(char *buf, size_t cap); /* comma separated, for messages */

/* A spread: every layer the same. */
void kv_alloc_even(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy);

extern const kv_alloc_method kv_alloc_uniform, kv_alloc_pyramid, kv_alloc_global, kv_alloc_head, kv_alloc_mass;

#endif
