/* SPDX-License-Identifier: Apache-2.0 */
/* What the processor and the operating system (XGETBV, HWCAP) allow. */
#ifndef KV_BASE_CPU_H
#define KV_BASE_CPU_H
#include <stdbool.h>
/* A ladder for each architecture: level 0 is portable C, the steps above it are x86's or ARM's. */
enum kv_cpu_level {
    KV_CPU_REF = 0,
    KV_CPU_AVX2 = 1,
    KV_CPU_AVX512 = 2,
    KV_CPU_NEON = 1,
#if defined(__aarch64__)
    KV_CPU_LEVELS = 2
#else
    KV_CPU_LEVELS = 3
#endif
};
/* AVX2: avx2+fma+f16c+bmi2. AVX512: AVX2 and avx512 f,bw,dq,vl,vnni. NEON: Advanced SIMD and its dot products. Lowered by
 * the environment variable KVIST_CPU=ref|avx2|avx512|neon (a mask for tests and users: never raises). */
int kv_cpu_detect(void);
/* AVX512_VBMI and GFNI on top of the AVX512 level; false when KVIST_CPU names a level (a named level is that level
 * alone). */
bool kv_cpu_has_vbmi_gfni(void);
/* AVX-VNNI (256-bit vpdpbusd) on top of the AVX2 level, under the same condition. */
bool kv_cpu_has_avxvnni(void);
/* AVX512_BF16 on top of the AVX512 level, under the same condition. */
bool kv_cpu_has_bf16(void);
const char *kv_cpu_level_name(int level);
/* Brand string of the processor, for reports. */
void kv_cpu_name(char *buf, int cap);
#endif
