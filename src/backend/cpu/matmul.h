/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products over packed weights: y[r][o] = sum_k x[r][k] w[o][k].
 * Owns: quantized activations, the unpacked form of weights ("records"), the kernel table. Must not know: layers.
 *
 * Arithmetic, the same operations at every level and for any number of rows (so the same bits):
 *   int8 (weights with codes, precise == 0): per row and block of 32, d = amax/127, q = round_half_even(x *
 * (127/amax)). For each group g (32 values, or 16 where the type's scales are) in ascending k: t   = sum_i code_i q_i -
 * (sum_i q_i << zshift)         exact in int32 acc = fma((float)t, s * d, acc);   types with a minimum, after it: acc =
 * fma(m, d * (float)sum_i q_i, acc) f32 (dense weights, or precise >= 1): acc = fma(x[k], w[k], acc) for ascending k.
 *   Then y = acc (+ bias) (+ y).
 *   wide (16-bit activations): x = Q(x) + Q(x - Q(x)) + rest, two rows of activations for one of y, one after the other
 *   in a tile: first y = acc (+ y), then y = acc of the second (+ bias) + y. Halves the divergence that rounding
 *   activations to 8 bits causes, where that hurts most and costs least (docs/decisions.md).
 * A block whose amax is below KV_ACT_TINY counts as zeros (1/amax would overflow); one with inf or NaN gets d = NaN.
 */
#ifndef KV_BACKEND_CPU_MATMUL_H
#define KV_BACKEND_CPU_MATMUL_H

#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/loops.h"
#include "backend/cpu/pack.h"

#define KV_ACT_TINY 1e-30f

/* Rows of activations a register tile: 2 panels x 6 rows keep 12 int32 and 12 f32 accumulators in 32 vector registers.
 */
#define KV_TILE_ROWS 6u
#define KV_TILE_PANELS 2u

/* Quantized activations of T rows (T = 6, or 1 for a single row) and one block of 32, 64*T bytes:
 *   i8 q[8 quads][T][4]; f32 d[T]; f32 dsum[T] = d * sum; i32 nsum[T] = -sum; f32 dsum16[2][T]; i32 nsum16[2][T]
 * Tiles of T rows lie at a stride of nb * 64 * T bytes. */
#define KV_ACT_BYTES(T) (64u * (T))
#define KV_ACT_D(T) (32u * (T))
#define KV_ACT_DSUM(T) (36u * (T))
#define KV_ACT_NSUM(T) (40u * (T))
#define KV_ACT_DSUM16(T) (44u * (T))
#define KV_ACT_NSUM16(T) (52u * (T))

/* Unpacked weights of one block and panel: u8 codes[8 quads][16][4], f32 s[2][16], f32 m[2][16] (the second of each
 * only with groups of 16). Records of the two panels of a pair follow each other. */
#define KV_REC_BYTES 768u
#define KV_REC_S 512u
#define KV_REC_M 640u

/* One product of two unpacked panels with rows; f32 form where x is given. */
typedef struct kv_mm_tile {
    const uint8_t *rec; /* int8: [nb][2] records; f32: float [nb][2][16], nb = number of k */
    uint32_t nb;
    const uint8_t *act; /* first block of the first tile of 6 rows */
    size_t act_stride;  /* bytes between tiles of 6 rows */
    const float *x;     /* f32: first row at the first k */
    size_t x_stride;    /* floats between rows */
    uint32_t rows;
    int32_t zshift;
    bool min, g16;
    float *acc;       /* [rows][2][16] carried between k ranges */
    bool first, last; /* first range of k: acc starts as 0; last: y is written */
    const kv_matmul_out *out;
    uint32_t row0, panel; /* row of activations the first row is; first panel */
} kv_mm_tile;

struct kv_matmul_kernels {
    const char *name;
    uint32_t stream_rows; /* rows gemv takes; more go by unpack and tile */
    /* Quantizes row r of a tile of T rows: x[k], k a multiple of 32, into act (the tile's first block). wide: x minus
     * what that row says becomes row r + 1. */
    void (*quantize)(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act);
    /* A whole tile: six rows of activations of six rows of x, x_stride floats apart, or of three where wide. NULL: row
     * by row. */
    void (*quantize_tile)(const float *x, size_t x_stride, uint32_t k, bool wide, uint8_t *act);
    /* Blocks b0 .. b0+nb of a panel into records `stride` bytes apart. */
    void (*unpack)(const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride);
    /* k values k0 .. k0+nk (multiples of 32 for codes) of a panel as f32: w[i * 32 .. + 16). */
    void (*unpack_f32)(const kv_weight *w, uint32_t panel, uint32_t k0, uint32_t nk, float *y);
    void (*tile)(const kv_mm_tile *t);
    void (*tile_f32)(const kv_mm_tile *t);
    /* Few rows of activations (1 .. stream_rows): panels [p0, p1) straight from the packed form. act: tiles of T = 6,
     * for one row T = 1. */
    void (*gemv)(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows);
    /* Dense weights, one row. */
    void (*gemv_f32)(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x);
};

extern const struct kv_matmul_kernels kv_matmul_ref, kv_matmul_avx2, kv_matmul_avxvnni, kv_matmul_avx512,
    kv_matmul_neon;

/* Lanes of a panel that are outputs. */
static inline uint32_t kv_mm_lanes(const kv_weight *w, uint32_t panel) {
    uint32_t o = panel * KV_PANEL;
    return o >= w->n ? 0 : w->n - o < KV_PANEL ? w->n - o : KV_PANEL;
}

/* ---- what the levels share */

/* Planes of a panel. */
typedef struct kv_planes {
    const uint8_t *lo, *hi, *d, *m, *sc, *scm;
} kv_planes;

KV_INLINE kv_planes kv_planes_of(const kv_weight *w, uint32_t panel) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    return (kv_planes){p, p + w->off_hi, p + w->off_d, p + w->off_m, p + w->off_sc, p + w->off_scm};
}

/* Bytes of a panel a block takes, scales included. */
KV_INLINE uint32_t kv_block_bytes(const int code, const int scale) {
    const uint32_t sc[] = {0, 32, 64, 20, 40, 36, 40};
    return kv_code_lo_bytes(code) + kv_code_hi_bytes(code) + sc[scale];
}

/* The step and sums of one block of row r of a tile of T rows; s0, s1: the codes' sums by half. */
KV_INLINE void kv_act_put_sums(uint8_t *act, uint32_t T, uint32_t r, float d, int32_t s0, int32_t s1) {
    const int32_t n[3] = {-(s0 + s1), -s0, -s1};
    const float f[4] = {d, d * (float)(s0 + s1), d * (float)s0, d * (float)s1};
    memcpy(act + KV_ACT_D(T) + 4 * r, &f[0], 4);
    memcpy(act + KV_ACT_DSUM(T) + 4 * r, &f[1], 4);
    memcpy(act + KV_ACT_NSUM(T) + 4 * r, &n[0], 4);
    for (uint32_t g = 0; g < 2; g++) {
        memcpy(act + KV_ACT_DSUM16(T) + 4 * (g * T + r), &f[2 + g], 4);
        memcpy(act + KV_ACT_NSUM16(T) + 4 * (g * T + r), &n[1 + g], 4);
    }
}

#endif
