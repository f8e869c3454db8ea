/* SPDX-License-Identifier: Apache-2.0 */
/* Allocator `uniform`: every stream keeps the same number of tokens. */
#include "policy/allocate/allocate.h"

static void spread(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy) {
    (void)p, (void)layers;
    for (uint32_t l = 0; l < n_layers; l++) heavy[l] = mean < cap ? mean : cap;
}

const kv_alloc_method kv_alloc_uniform = {KV_ALLOC_VERSION, KV_ALLOC_UNIFORM, "uniform", false, spread};
