/* SPDX-License-Identifier: Apache-2.0 */
/* The page encoder compiled for AVX2: the bytes of kv_encode_ref. */
#if defined(__x86_64__)
#include "backend/cpu/encode.h"

#define KV_LANES_AVX2
#define KV_ENCODE_NAME kv_encode_avx2
#include "policy/encode/encode_impl.inc"
#endif
