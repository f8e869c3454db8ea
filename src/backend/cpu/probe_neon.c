/* SPDX-License-Identifier: Apache-2.0 */
/* Probe loops of the NEON level: SDOT and FMLA; see probe.h. */
#include "backend/cpu/probe.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#define KEEP(x) __asm__ volatile("" : "+w"(x))

enum { CHAINS = 16, FETCH = 1024 }; /* latency 3 to 4 cycles, at most four a cycle */

static double int8(uint32_t rounds) {
    int32x4_t acc[CHAINS];
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-2);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = vdupq_n_s32(0);
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = vdotq_s32(acc[j], a, b);
            KEEP(acc[j]);
        }
    double sum = 0;
    KV_PROBE_CHAINS(j, CHAINS) sum += (double)vaddvq_s32(acc[j]);
    return sum;
}

static double f32(uint32_t rounds) {
    float32x4_t acc[CHAINS], a = vdupq_n_f32(0.75f);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = vdupq_n_f32((float)j);
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = vfmaq_f32(a, acc[j], a);
            KEEP(acc[j]);
        } /* acc = a + acc a: bounded by 3 */
    double sum = 0;
    KV_PROBE_CHAINS(j, CHAINS) sum += (double)vaddvq_f32(acc[j]);
    return sum;
}

static uint64_t read_neon(const uint8_t *p, size_t bytes) {
    uint64x2_t a[8];
    for (int j = 0; j < 8; j++) a[j] = vdupq_n_u64(0);
    for (size_t i = 0; i < bytes; i += KV_PROBE_STEP)
        for (int j = 0; j < 32; j++) {
            if (!(j & 3)) __builtin_prefetch(p + i + 16 * j + FETCH); /* past the end: no fault */
            a[j & 7] = veorq_u64(a[j & 7], vreinterpretq_u64_u8(vld1q_u8(p + i + 16 * j)));
        }
    for (int j = 1; j < 8; j++) a[0] = veorq_u64(a[0], a[j]);
    return vgetq_lane_u64(a[0], 0) ^ vgetq_lane_u64(a[0], 1);
}

const kv_probe kv_cpu_probe_neon = {.int8 = {int8, CHAINS * 16}, .f32 = {f32, CHAINS * 4}, .read = read_neon};
#endif
