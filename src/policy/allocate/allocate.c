/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of allocators, and the spread that several share. */
#include "policy/allocate/allocate.h"

#include <stdio.h>
#include <string.h>

static const kv_alloc_method *const methods[KV_ALLOCS] = {
    [KV_ALLOC_UNIFORM] = &kv_alloc_uniform, [KV_ALLOC_PYRAMID] = &kv_alloc_pyramid,
    [KV_ALLOC_GLOBAL] = &kv_alloc_global,   [KV_ALLOC_HEAD] = &kv_alloc_head,
    [KV_ALLOC_MASS] = &kv_alloc_mass,
};

const kv_alloc_method *kv_alloc_at(uint32_t id) { return id < KV_ALLOCS ? methods[id] : NULL; }

const kv_alloc_method *kv_alloc_find(const char *name, size_t len) {
    for (uint32_t i = 0; i < KV_ALLOCS; i++)
        if (strlen(methods[i]->name) == len && !memcmp(methods[i]->name, name, len)) return methods[i];
    return NULL;
}

const char *kv_alloc_names(char *buf, size_t cap) {
    size_t at = 0;
    if (cap) buf[0] = 0;
    for (uint32_t i = 0; i < KV_ALLOCS; i++) {
        int n = snprintf(buf + at, cap - at, "%s%s", i ? ", " : "", methods[i]->name);
        if (n < 0 || (size_t)n >= cap - at) break;
        at += (size_t)n;
    }
    return buf;
}

void kv_alloc_even(const kv_policy *p, const kv_plan_layer *layers, uint32_t n_layers, uint32_t mean, uint32_t cap,
                   uint32_t *heavy) {
    (void)p, (void)layers;
    for (uint32_t l = 0; l < n_layers; l++) heavy[l] = mean < cap ? mean : cap;
}
