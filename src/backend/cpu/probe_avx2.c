/* SPDX-License-Identifier: Apache-2.0 */
/* Probe loops of the AVX2 level: 8-bit products by maddubs and madd, FMA; see probe.h. */
#include "backend/cpu/probe.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define KEEP(x) __asm__ volatile("" : "+x"(x))

enum { CHAINS = 10, FETCH = 1024 }; /* FMA: 4 to 5 cycles at two a cycle; with the operands 12 to 13 of 16 registers */

static double int8(uint32_t rounds) {
    __m256i acc[CHAINS], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm256_setzero_si256();
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            KEEP(a);
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm256_add_epi32(acc[0], acc[j + 1]);
    return (double)_mm256_extract_epi32(acc[0], 0) + (double)_mm256_extract_epi32(acc[0], 7);
}

static double f32(uint32_t rounds) {
    __m256 acc[CHAINS], a = _mm256_set1_ps(0.75f), b = _mm256_set1_ps(0.5f);
    KV_PROBE_CHAINS(j, CHAINS) acc[j] = _mm256_set1_ps((float)j);
    for (uint32_t i = 0; i < rounds; i++)
        KV_PROBE_CHAINS(j, CHAINS) {
            acc[j] = _mm256_fmadd_ps(acc[j], a, b);
            KEEP(acc[j]);
        }
    KV_PROBE_CHAINS(j, CHAINS - 1) acc[0] = _mm256_add_ps(acc[0], acc[j + 1]);
    return (double)_mm256_cvtss_f32(acc[0]);
}

static uint64_t read_avx2(const uint8_t *p, size_t bytes) {
    __m256i a[8];
    for (int j = 0; j < 8; j++) a[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes; i += KV_PROBE_STEP)
        for (int j = 0; j < 16; j++) {
            if (!(j & 1))
                _mm_prefetch((const char *)(p + i + 32 * j + FETCH), _MM_HINT_T0); /* past the end: no fault */
            a[j & 7] = _mm256_xor_si256(a[j & 7], _mm256_load_si256((const __m256i *)(const void *)(p + i + 32 * j)));
        }
    for (int j = 1; j < 8; j++) a[0] = _mm256_xor_si256(a[0], a[j]);
    __m128i half = _mm_xor_si128(_mm256_castsi256_si128(a[0]), _mm256_extracti128_si256(a[0], 1));
    return (uint64_t)_mm_extract_epi64(half, 0) ^ (uint64_t)_mm_extract_epi64(half, 1);
}

const kv_probe kv_cpu_probe_avx2 = {.int8 = {int8, CHAINS * 32}, .f32 = {f32, CHAINS * 8}, .read = read_avx2};
#endif
