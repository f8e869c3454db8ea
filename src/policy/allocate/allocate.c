/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of allocators. */
#include "policy/allocate/allocate.h"

#include <string.h>

static const kv_alloc_method *const methods[KV_ALLOCS] = {
    [KV_ALLOC_UNIFORM] = &kv_alloc_uniform,
    [KV_ALLOC_PYRAMID] = &kv_alloc_pyramid,
    [KV_ALLOC_GLOBAL] = &kv_alloc_global,
};

const kv_alloc_method *kv_alloc_at(uint32_t id) { return id < KV_ALLOCS ? methods[id] : NULL; }

const kv_alloc_method *kv_alloc_find(const char *name, size_t len) {
    for (uint32_t i = 0; i < KV_ALLOCS; i++)
        if (strlen(methods[i]->name) == len && !memcmp(methods[i]->name, name, len)) return methods[i];
    return NULL;
}
