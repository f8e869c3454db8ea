/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a KV cache before anything is loaded: the policy's own plan, counted in whole pages. */
#ifndef KV_MEASURE_MEMORY_H
#define KV_MEASURE_MEMORY_H

#include "base/err.h"

typedef struct kv_memory_shape {
    uint32_t n_layers, n_kv, dk, dv;
} kv_memory_shape;
typedef struct kv_memory_need {
    uint64_t bytes_true;  /* at the end of one sync of n tokens */
    uint64_t bytes_f16;   /* what n tokens take in f16, without pages */
    double tokens_stored; /* mean over streams */
} kv_memory_need;

/* Cache of n tokens read in one sync under a policy. */
kv_status kv_memory_estimate(const kv_memory_shape *shape, const char *policy, uint32_t n, kv_memory_need *out,
                             kv_error *err) KV_WARN_UNUSED;

#endif
