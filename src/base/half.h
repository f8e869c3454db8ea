/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE half and bfloat16 in portable C; round to nearest even. Kernels use the CPU's own conversions, same results. */
#ifndef KV_BASE_HALF_H
#define KV_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float kv_bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t kv_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float kv_f16_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 1023u;
    if (exp == 31) return kv_bits_f32(sign | 0x7f800000u | (man << 13));
    if (exp) return kv_bits_f32(sign | ((exp + 112u) << 23) | (man << 13));
    float f = (float)man * 5.9604644775390625e-8f; /* 2^-24 */
    return sign ? -f : f;
}

static inline uint16_t kv_f32_f16(float f) {
    uint32_t u = kv_f32_bits(f), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u >= 0x7f800000u) return (uint16_t)(sign | 0x7c00u | (u > 0x7f800000u ? 0x200u | ((u >> 13) & 0x3ffu) : 0));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (u < 0x38800000u) {                                   /* subnormal or zero: let an f32 addition round */
        float r = kv_bits_f32(u) + 0.5f;
        return (uint16_t)(sign | (kv_f32_bits(r) - 0x3f000000u));
    }
    uint32_t odd = (u >> 13) & 1u;
    u += 0xc8000fffu + odd; /* rebias by -112 and round */
    return (uint16_t)(sign | (u >> 13));
}

static inline float kv_bf16_f32(uint16_t h) { return kv_bits_f32((uint32_t)h << 16); }
static inline uint16_t kv_f32_bf16(float f) {
    uint32_t u = kv_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 64u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
