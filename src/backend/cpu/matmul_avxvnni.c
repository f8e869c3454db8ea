/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products at level 1 where the processor has AVX-VNNI (256-bit vpdpbusd without AVX-512): the same bits. */
#if defined(__AVXVNNI__)
#define KV_YMM_TABLE kv_matmul_avxvnni
#define KV_YMM_NAME "avxvnni"
#include "backend/cpu/matmul_ymm.h"
#endif
typedef int kv_matmul_avxvnni_unit; /* a translation unit is never empty */
