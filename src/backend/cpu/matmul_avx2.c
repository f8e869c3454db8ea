/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products at level 1: 256-bit registers, integer products by vpmaddubsw. */
#if defined(__AVX2__)
#define KV_YMM_TABLE kv_matmul_avx2
#define KV_YMM_NAME "avx2"
#include "backend/cpu/matmul_ymm.h"
#endif
typedef int kv_matmul_avx2_unit; /* a translation unit is never empty */
