/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocators: how a budget is spread over layers and heads. An allocator is one method table in one file and one line
 * in allocate.c. Allocators see counts only. `global` has no fixed counts: pages are chosen by price (gsel.c).
 */
#ifndef KV_POLICY_ALLOCATE_H
#define KV_POLICY_ALLOCATE_H

#include "policy/plan.h"

#define KV_ALLOC_VERSION 1u

typedef struct kv_alloc_method {
    uint32_t version;
    uint8_t id;       /* enum kv_alloc_id */
    const char *name; /* as written in a policy */
    bool global;      /* pages by price; `heavy` is then the mean only */
    /* heavy[n_layers] = ranked tokens of a stream of each layer: mean over streams is `mean` as nearly as whole tokens
     * allow, none is above cap (mean <= cap). */
    void (*spread)(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy);
} kv_alloc_method;

/* By id; NULL when there is none. By name: NULL when not built. */
const kv_alloc_method *kv_alloc_at(uint32_t id);
const kv_alloc_method *kv_alloc_find(const char *name, size_t len);

extern const kv_alloc_method kv_alloc_uniform, kv_alloc_pyramid, kv_alloc_global;

#endif
