/* SPDX-License-Identifier: Apache-2.0 */
/* Allocator `global` (KV-Compress): no count is fixed beforehand; the pages of highest price over all layers and heads
 * stay, with a floor for each stream (gsel.c). spread gives the mean, which sizes the tiers. */
#include "policy/allocate/allocate.h"

static void spread(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy) {
    (void)p, (void)layers;
    for (uint32_t l = 0; l < n_layers; l++) heavy[l] = mean < cap ? mean : cap;
}

const kv_alloc_method kv_alloc_global = {KV_ALLOC_VERSION, KV_ALLOC_GLOBAL, "global", true, spread};
