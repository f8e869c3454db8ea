/* SPDX-License-Identifier: Apache-2.0 */
/* Probe loops in portable C, and which level has which; see probe.h. */
#include "backend/cpu/probe.h"

#include "base/cpu.h"

/* The value leaves the compiler's sight: what is computed from it cannot be moved out of the loop. */
#define HIDE(x) __asm__ volatile("" : "+r"(x))

enum { CHAINS = 8 }; /* independent sums: a multiply takes 3 to 4 cycles, one or two start in each */

static double int8(uint32_t rounds) {
    int32_t acc[CHAINS] = {0}, a = 3, b = -5;
    for (uint32_t i = 0; i < rounds; i++)
        for (int j = 0; j < CHAINS; j++) {
            HIDE(a);
            acc[j] += (int32_t)((uint32_t)(int8_t)a * (uint32_t)(int8_t)b);
            HIDE(acc[j]);
        }
    double sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += acc[j];
    return sum;
}

/* |a| < 1 keeps the sums finite. Written with *acc as a factor: nothing is invariant. */
static double f32(uint32_t rounds) {
    float acc[CHAINS];
    volatile float factor = 0.75f, term = 0.5f;
    float a = factor, b = term;
    for (int j = 0; j < CHAINS; j++) acc[j] = (float)j;
    for (uint32_t i = 0; i < rounds; i++)
        for (int j = 0; j < CHAINS; j++) acc[j] = acc[j] * a + b;
    double sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += (double)acc[j];
    return sum;
}

static uint64_t read_words(const uint8_t *p, size_t bytes) {
    const uint64_t *x = (const uint64_t *)(const void *)p;
    uint64_t a[8] = {0}; /* independent sums, so that additions never bind */
    for (size_t i = 0; i < bytes / 8; i += 8)
        for (size_t j = 0; j < 8; j++) a[j] += x[i + j];
    for (size_t j = 1; j < 8; j++) a[0] += a[j];
    return a[0];
}

const kv_probe kv_cpu_probe_ref = {.int8 = {int8, CHAINS}, .f32 = {f32, CHAINS}, .read = read_words};

const kv_probe *kv_cpu_probe(int level) {
#if defined(__x86_64__)
    if (level == KV_CPU_AVX512) return &kv_cpu_probe_avx512;
    if (level == KV_CPU_AVX2) return &kv_cpu_probe_avx2;
#elif defined(__aarch64__)
    if (level == KV_CPU_NEON) return &kv_cpu_probe_neon;
#endif
    (void)level;
    return &kv_cpu_probe_ref;
}

kv_probe_loop kv_cpu_probe_bf16(void) {
#if defined(__x86_64__)
    if (kv_cpu_has_bf16()) return kv_cpu_probe_bf16_avx512;
#endif
    return (kv_probe_loop){0};
}
