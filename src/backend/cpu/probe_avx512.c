/* SPDX-License-Identifier: Apache-2.0 */
/* Probe loops of the AVX-512 level: vpdpbusd, vpdpwssd, FMA, and vdpbf16ps for processors that have it; see probe.h. */
#include "backend/cpu/probe.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define KEEP(x) __asm__ volatile("" : "+v"(x))

enum { CHAINS = 16, FETCH = 2048 }; /* latency 4 to 5 cycles, at most two a cycle: 10 would do */

static double int8(uint32_t rounds) {
    __m512i acc[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = _mm512_dpbusd_epi32(acc[j], a, b);
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm512_add_epi32(acc[0], acc[j + 1]);
    return (double)_mm512_reduce_add_epi32(acc[0]);
}

static double int16(uint32_t rounds) {
    __m512i acc[CHAINS], a = _mm512_set1_epi16(3), b = _mm512_set1_epi16(-2);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = _mm512_dpwssd_epi32(acc[j], a, b);
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm512_add_epi32(acc[0], acc[j + 1]);
    return (double)_mm512_reduce_add_epi32(acc[0]);
}

static double f32(uint32_t rounds) {
    __m512 acc[CHAINS], a = _mm512_set1_ps(0.75f), b = _mm512_set1_ps(0.5f);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm512_set1_ps((float)j);
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = _mm512_fmadd_ps(acc[j], a, b);
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm512_add_ps(acc[0], acc[j + 1]);
    return (double)_mm512_reduce_add_ps(acc[0]);
}

__attribute__((target("avx512bf16"))) static double bf16(uint32_t rounds) {
    __m512 acc[CHAINS];
    __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25f), _mm512_set1_ps(0.25f));
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm512_set1_ps((float)j);
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = _mm512_dpbf16_ps(acc[j], a, a);
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm512_add_ps(acc[0], acc[j + 1]);
    return (double)_mm512_reduce_add_ps(acc[0]);
}

static uint64_t read_avx512(const uint8_t *p, size_t bytes) {
    __m512i a[8];
    for (int j = 0; j < 8; j++) a[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < bytes; i += KV_PROBE_STEP)
        for (int j = 0; j < 8; j++) {
            _mm_prefetch((const char *)(p + i + 64 * j + FETCH), _MM_HINT_T0); /* past the end: no fault */
            a[j] = _mm512_xor_si512(a[j], _mm512_load_si512(p + i + 64 * j));
        }
    for (int j = 1; j < 8; j++) a[0] = _mm512_xor_si512(a[0], a[j]);
    return (uint64_t)_mm512_reduce_add_epi64(a[0]);
}

const kv_probe kv_cpu_probe_avx512 = {
    .int8 = {int8, CHAINS * 64}, .f32 = {f32, CHAINS * 16}, .int16 = {int16, CHAINS * 32}, .read = read_avx512};
const kv_probe_loop kv_cpu_probe_bf16_avx512 = {bf16, CHAINS * 32};
#endif
