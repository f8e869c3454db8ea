/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantized blocks of GGUF files, byte for byte. Little-endian; packed, because a tensor's data in
 * a mapping are only as aligned as the file says. Sizes here are the source of kv_type_info.bytes.
 */
#ifndef KV_GGUF_BLOCKS_H
#define KV_GGUF_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#define KV_PACKED __attribute__((packed))

/* 32 values; nibble j low = value j, high = value j + 16. */
typedef struct KV_PACKED kv_q4_0 {
    uint16_t d;
    uint8_t qs[16];
} kv_q4_0; /* y = d (q - 8) */
typedef struct KV_PACKED kv_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
} kv_q4_1; /* y = d q + m */
typedef struct KV_PACKED kv_q5_0 {
    uint16_t d;
    uint8_t qh[4], qs[16];
} kv_q5_0; /* y = d (q - 16); bit j of qh: value j */
typedef struct KV_PACKED kv_q5_1 {
    uint16_t d, m;
    uint8_t qh[4], qs[16];
} kv_q5_1; /* y = d q + m */
typedef struct KV_PACKED kv_q8_0 {
    uint16_t d;
    int8_t qs[32];
} kv_q8_0; /* y = d q */
typedef struct KV_PACKED kv_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
} kv_iq4_nl; /* y = d kv_iq4_table[q] */

/* 256 values. Groups of 16 (q2, q3, q6) or 32 (q4, q5, iq4_xs) have their own scale s and minimum m. */
typedef struct KV_PACKED kv_q2_k {
    uint8_t scales[16], qs[64];
    uint16_t d, dmin;
} kv_q2_k; /* y = d s q - dmin m; s low, m high nibble */
typedef struct KV_PACKED kv_q3_k {
    uint8_t hmask[32], qs[64], scales[12];
    uint16_t d;
} kv_q3_k; /* y = d (s - 32) (q - 4) */
typedef struct KV_PACKED kv_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12], qs[128];
} kv_q4_k; /* y = d s q - dmin m */
typedef struct KV_PACKED kv_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12], qh[32], qs[128];
} kv_q5_k;
typedef struct KV_PACKED kv_q6_k {
    uint8_t ql[128], qh[64];
    int8_t scales[16];
    uint16_t d;
} kv_q6_k; /* y = d s (q - 32) */
typedef struct KV_PACKED kv_iq4_xs {
    uint16_t d, scales_h;
    uint8_t scales_l[4], qs[128];
} kv_iq4_xs; /* y = d (s - 32) table[q] */

_Static_assert(sizeof(kv_q4_0) == 18 && sizeof(kv_q4_1) == 20 && sizeof(kv_q5_0) == 22 && sizeof(kv_q5_1) == 24,
               "32-value blocks");
_Static_assert(sizeof(kv_q8_0) == 34 && sizeof(kv_iq4_nl) == 18, "32-value blocks");
_Static_assert(sizeof(kv_q2_k) == 84 && sizeof(kv_q3_k) == 110 && sizeof(kv_q4_k) == 144, "256-value blocks");
_Static_assert(sizeof(kv_q5_k) == 176 && sizeof(kv_q6_k) == 210 && sizeof(kv_iq4_xs) == 136, "256-value blocks");

/* The 16 levels of IQ4_NL and IQ4_XS (part of the format). */
extern const int8_t kv_iq4_table[16];

/* Scale and minimum j (0..7) of q4_k and q5_k: 6 bits each in 12 bytes. */
static inline void kv_k4_scale_min(const uint8_t s[12], unsigned j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        *min = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
    }
}

/* Scale j (0..15) of q3_k, 0..63 (the value is scale - 32): low 4 bits in bytes 0-7, high 2 bits in bytes 8-11. */
static inline int kv_q3_scale(const uint8_t s[12], unsigned j) {
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return low | ((s[8 + j % 4] >> (2 * (j / 4))) & 3) << 4;
}

/* Scale j (0..7) of iq4_xs, 0..63 (the value is scale - 32). */
static inline int kv_iq4_xs_scale(const kv_iq4_xs *b, unsigned j) {
    return ((b->scales_l[j / 2] >> (4 * (j % 2))) & 15) | ((b->scales_h >> (2 * j)) & 3) << 4;
}

/* dequant.c and quant.c; n is a multiple of the type's block. */
#define KV_QUANT_TYPES(X)                                                                                              \
    X(f32)                                                                                                             \
    X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k) X(iq4_nl) X(iq4_xs)
#define X(t)                                                                                                           \
    void kv_gguf_dequant_##t(const void *x, float *y, size_t n);                                                       \
    void kv_gguf_quant_##t(const float *x, void *y, size_t n);
KV_QUANT_TYPES(X)
#undef X

#endif
