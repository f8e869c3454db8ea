/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed weights: a matrix w[n][k] cut into panels of 16 outputs, repacked without loss.
 * Owns: the byte layout of a panel and the table of tensor types. Must not know: threads' work split, activations.
 *
 * A quantized panel holds nb = k/32 blocks. The codes of one block are 8 "quads" of 64 bytes: byte 4*o + i of quad j is
 * the unsigned code of output o (0..15), k = 32*b + 4*j + i, which is the left operand of vpdpbusd as it is. Quads are
 * stored as bit planes, so that each becomes a vector by a shift and a mask: 4-bit plane  256 bytes a block: byte of
 * vector v = quad 2v | quad 2v+1 << 4 2-bit plane  128 bytes a block: byte of vector v = quad 4v | quad 4v+1 << 2 |
 * quad 4v+2 << 4 | quad 4v+3 << 6 1-bit plane   64 bytes a block: bit j = quad j 8-bit plane  512 bytes a block: quads
 * themselves Scales lie in planes of 16 outputs each: f16 [blocks or super blocks of 256][16], sub-scales as bytes
 * [groups][16]. Planes start at multiples of 64 bytes, panels too; panels lie one after the other in the order they are
 * read. Value: w = s * (code - zero) for types without minimum, w = s * code + m with it; s = d or d * sub-scale, m =
 * the file's minimum or -(dmin * sub-minimum): all exact in f32. A dense panel is [k][16] of the tensor's own type.
 */
#ifndef KV_BACKEND_CPU_PACK_H
#define KV_BACKEND_CPU_PACK_H

#include "backend/backend.h"

#define KV_PANEL 16u      /* outputs a panel: f32 lanes of one 64-byte vector */
#define KV_PACK_BLOCK 32u /* k values a block: the finest scale block but for the groups of 16 of Q2_K, Q3_K, Q6_K */

enum kv_code_kind {
    KV_CODE_DENSE,
    KV_CODE_2,
    KV_CODE_3,
    KV_CODE_4,
    KV_CODE_4T /* 16-entry table */,
    KV_CODE_5,
    KV_CODE_6,
    KV_CODE_8
};
enum kv_scale_kind {
    KV_SC_NONE,
    KV_SC_D,   /* d f16 a block */
    KV_SC_DM,  /* d, m f16 a block */
    KV_SC_K,   /* d f16 a super block, i8 a block */
    KV_SC_KM,  /* d, dmin f16 a super block, u8 scale and u8 minimum a block */
    KV_SC_K16, /* d f16 a super block, i8 a group of 16 */
    KV_SC_K16M /* d, dmin f16 a super block, u8 (scale | minimum << 4) a group of 16 */
};

/* Tensor type, codes, scales, log2 of the zero point (-1: none). IQ4's table is stored plus 128, Q8_0 and its like are
 * xor 0x80. */
#define KV_PACK_TYPES(X)                                                                                               \
    X(Q4_0, KV_CODE_4, KV_SC_D, 3)                                                                                     \
    X(Q4_1, KV_CODE_4, KV_SC_DM, -1) X(Q5_0, KV_CODE_5, KV_SC_D, 4) X(Q5_1, KV_CODE_5, KV_SC_DM, -1)                   \
        X(Q8_0, KV_CODE_8, KV_SC_D, 7) X(Q2_K, KV_CODE_2, KV_SC_K16M, -1) X(Q3_K, KV_CODE_3, KV_SC_K16, 2)             \
            X(Q4_K, KV_CODE_4, KV_SC_KM, -1) X(Q5_K, KV_CODE_5, KV_SC_KM, -1) X(Q6_K, KV_CODE_6, KV_SC_K16, 5)         \
                X(IQ4_NL, KV_CODE_4T, KV_SC_D, 7) X(IQ4_XS, KV_CODE_4T, KV_SC_K, 7)

static inline bool kv_scale_has_min(int scale) { return scale == KV_SC_DM || scale == KV_SC_KM || scale == KV_SC_K16M; }
static inline bool kv_scale_is_g16(int scale) { return scale == KV_SC_K16 || scale == KV_SC_K16M; }
static inline bool kv_scale_is_k(int scale) { return scale >= KV_SC_K; }
/* Bytes a block of the first plane and of the plane of high bits. */
static inline uint32_t kv_code_lo_bytes(int code) {
    return code == KV_CODE_8 ? 512u : code == KV_CODE_2 || code == KV_CODE_3 ? 128u : 256u;
}
static inline uint32_t kv_code_hi_bytes(int code) {
    return code == KV_CODE_6 ? 128u : code == KV_CODE_5 || code == KV_CODE_3 ? 64u : 0u;
}

struct kv_weight {
    uint32_t type;             /* enum kv_type */
    uint32_t n, k, nb, panels; /* nb = k / 32 (quantized) */
    int32_t code, scale, zshift;
    uint32_t off_hi, off_d, off_m, off_sc, off_scm; /* planes inside a panel; the codes are at 0 */
    size_t panel_bytes;
    uint8_t *data; /* [panels][panel_bytes], 64-byte aligned; the backend's region's or, without a backend, its own */
    uint64_t bytes;
};

/* IQ4's code values plus 128. */
extern const uint8_t kv_pack_iq4[16];

/* One block of 32 of one row of the file's format: codes and scales. */
typedef struct kv_pack_row {
    uint8_t codes[32];
    uint16_t d, m;      /* f16: block or super block */
    uint8_t sc[2], scm; /* sub-scales of its groups */
} kv_pack_row;
/* row: first byte of the row; b: block index in it. */
void kv_pack_decode(uint32_t type, const uint8_t *row, uint32_t b, kv_pack_row *out);

/* Four codes (k = 4j .. 4j+3) of output lane o of block b as one word; the plain reading of the planes. */
uint32_t kv_pack_quad(const kv_weight *w, const uint8_t *panel, uint32_t b, uint32_t j, uint32_t o);
/* Scale and minimum of group g (0 or 1; equal unless groups of 16) of block b for output lane o. */
void kv_pack_scale(const kv_weight *w, const uint8_t *panel, uint32_t b, uint32_t g, uint32_t o, float *s, float *m);
/* y[k] = row o of w, bit for bit what the file's type decodes to. */
void kv_pack_unpack_row(const kv_weight *w, uint32_t o, float *y);

#endif
