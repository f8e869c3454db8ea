/* SPDX-License-Identifier: Apache-2.0 */
/* The page encoder compiled for AVX-512: the bytes of kv_encode_ref. */
#if defined(__x86_64__)
#include "backend/cpu/encode.h"

#define KV_LANES_AVX512
#define KV_ENCODE_NAME kv_encode_avx512
#include "policy/encode/encode_impl.inc"
#endif
