/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the encoders of all instruction set levels share: the work area, and the scalar steps (bits by water-filling,
 * metadata rounding, token scales), compiled once so that they cannot differ. The loops over tokens are in
 * encode_impl.inc, compiled once a level over the 16 lanes of lanes.h.
 */
#ifndef KV_POLICY_ENCODE_ENCODE_H
#define KV_POLICY_ENCODE_ENCODE_H

#include "policy/format.h"

#define KV_ENCODE_DIMS 256u
#define KV_ENCODE_LANES 16u

/* x is about s * code + m. */
typedef struct kv_affine {
    float s, m;
} kv_affine;

/* Decoded scale and minimum of a LADDER channel; triple: 0..6 K width, 7 V. s = scale * (smax / 255), m = lo + min *
 * step. */
kv_affine kv_page_affine(const kv_page_layout *l, const uint8_t *page, uint32_t triple, uint8_t scale, uint8_t min);
/* 2^(e0 + (a >> 4)) * (1 + (a & 15) / 16). */
float kv_token_scale(int8_t e0, uint8_t a);

/* f16 neighbours: the least f16 >= x, the greatest f16 <= x; outside the range +-65504. x finite. */
uint16_t kv_f16_up(float x);
uint16_t kv_f16_down(float x);
void kv_put_half(uint8_t *page, uint32_t off, uint32_t i, uint16_t h);

/* order[dkp]: channels by falling weight, ties lower channel. */
void kv_encode_rank(const float *w, uint32_t dkp, uint8_t *order);
/* widths[blocks] 0..6 of the blocks of 8 ranks: one bit at a time to the largest gain mean(w) (D_b - D_b+1), ties lower
 * block, until budget bits are given or no gain is left. */
void kv_encode_fill(const float *w, const uint8_t *order, uint32_t blocks, uint32_t budget, uint8_t *widths);
/* Writes triple `triple` and the scale and minimum bytes of the channels c[i], i < n, at ranks rank[i]; replaces
 * fits[i] by what they decode to. with_scale: false for 0 bits. */
void kv_encode_affines(const kv_page_layout *l, uint8_t *page, uint32_t triple, bool with_scale, uint32_t scale_off,
                       uint32_t min_off, const uint8_t *rank, kv_affine *fits, uint32_t n);
/* Rounds a[n] >= 0 to 8 bits each with a common exponent, a becomes what is decoded. Returns E0. */
int8_t kv_encode_token_scales(float *a, uint32_t n, uint8_t *u);

/* Work area of one encoding: this head, then x [channels][stride] f32, codes [channels][stride] u8, token rows. */
typedef struct kv_encode_work {
    float mean[KV_ENCODE_DIMS], sxx[KV_ENCODE_DIMS], lo[KV_ENCODE_DIMS], hi[KV_ENCODE_DIMS], w[KV_ENCODE_DIMS];
    uint8_t order[KV_ENCODE_DIMS], widths[KV_ENCODE_DIMS / 8];
    float row[KV_PAGE_TOKENS_MAX];   /* centred values of one channel; 0 past n */
    float valid[KV_PAGE_TOKENS_MAX]; /* 1 for t < n, else 0 */
    float norm[KV_PAGE_TOKENS_MAX], a[KV_PAGE_TOKENS_MAX], inverse[KV_PAGE_TOKENS_MAX], decoded[KV_PAGE_TOKENS_MAX];
} kv_encode_work;

#endif
