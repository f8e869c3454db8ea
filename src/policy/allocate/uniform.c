/* SPDX-License-Identifier: Apache-2.0 */
/* Allocator `uniform`: every stream keeps the same number of tokens. */
#include "policy/allocate/allocate.h"

const kv_alloc_method kv_alloc_uniform = {
    KV_ALLOC_VERSION, KV_ALLOC_UNIFORM, "uniform", false, false, kv_alloc_even, NULL};
