/* SPDX-License-Identifier: Apache-2.0 */
/* The page encoder compiled for NEON: the bytes of kv_encode_ref. */
#if defined(__ARM_FEATURE_DOTPROD)
#include "backend/cpu/encode.h"

#define KV_LANES_NEON
#define KV_ENCODE_NAME kv_encode_neon
#include "policy/encode/encode_impl.inc"
#endif
typedef int kv_encode_neon_unit; /* a translation unit is never empty */
