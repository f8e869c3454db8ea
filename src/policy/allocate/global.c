/* SPDX-License-Identifier: Apache-2.0 */
/* Allocator `global` (KV-Compress): no count is fixed beforehand; the pages of highest price over all layers and heads
 * stay, with a floor for each stream (gsel.c). The spread gives the mean, which sizes the tiers. */
#include "policy/allocate/allocate.h"

const kv_alloc_method kv_alloc_global = {KV_ALLOC_VERSION, KV_ALLOC_GLOBAL, "global", true, false, kv_alloc_even, NULL};
