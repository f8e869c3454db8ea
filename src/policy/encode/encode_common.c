/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scalar steps of encoding, the same object code for every instruction set level: channel ranking, bits by reverse
 * water-filling, scales and minima rounded to a byte, token scales, the size of the work area. Must not know about
 * loops over tokens.
 */
#include "base/half.h"
#include "policy/encode/encode.h"

#include <math.h>
#include <string.h>

/* Distortion of a unit Gaussian after the best (Lloyd-Max) quantizer of 0..6 bits; Max 1960, table 1, continued by the
 * 4^-b law. */
static const double distortion[7] = {1.0, .3634, .1175, .03454, .009497, .0026, .0007};
#define BITS_MAX 6u
#define F16_MAX 65504.0f

static size_t work_bytes(size_t values) {
    return ((sizeof(kv_encode_work) + 63) & ~(size_t)63) + values * (sizeof(float) + 1) + 64;
}

size_t kv_encode_scratch(const kv_page_layout *l) {
    size_t stride = (l->tokens + KV_ENCODE_LANES - 1) & ~(size_t)(KV_ENCODE_LANES - 1);
    return work_bytes((l->dkp > l->dvp ? l->dkp : l->dvp) * stride);
}

size_t kv_encode_scratch_bound(size_t page_bytes, uint32_t max_dim) {
    size_t d = max_dim && max_dim < KV_ENCODE_DIMS ? (max_dim + 15) & ~(size_t)15 : KV_ENCODE_DIMS;
    /* The densest side has 1.5 bits a value (q1's K): a page holds less than page_bytes * 8 / 1.5 of them; rows are
     * padded to 16. */
    size_t by_page = page_bytes * 16 / 3 + d * (KV_ENCODE_LANES - 1), by_slots = d * KV_PAGE_TOKENS_MAX;
    return work_bytes((by_page < by_slots ? by_page : by_slots) & ~(size_t)15) + 64;
}

uint16_t kv_f16_up(float x) {
    if (x > F16_MAX) return 0x7bff;
    if (x < -F16_MAX) return 0xfbff;
    uint16_t h = kv_f32_f16(x);
    if (kv_f16_f32(h) >= x) return h;
    return h == 0x8000 ? 1 : h & 0x8000 ? (uint16_t)(h - 1) : (uint16_t)(h + 1);
}

uint16_t kv_f16_down(float x) { return kv_f16_up(-x) ^ 0x8000; }

void kv_put_half(uint8_t *page, uint32_t off, uint32_t i, uint16_t h) {
    page[off + 2 * i] = (uint8_t)h;
    page[off + 2 * i + 1] = (uint8_t)(h >> 8);
}

void kv_encode_rank(const float *w, uint32_t dkp, uint8_t *order) {
    /* Insertion keeps equal weights in channel order; 64 to 256 channels, once a page. */
    for (uint32_t c = 0; c < dkp; c++) {
        uint32_t i = c;
        for (; i > 0 && w[order[i - 1]] < w[c]; i--) order[i] = order[i - 1];
        order[i] = (uint8_t)c;
    }
}

void kv_encode_fill(const float *w, const uint8_t *order, uint32_t blocks, uint32_t budget, uint8_t *widths) {
    double weight[KV_ENCODE_DIMS / 8];
    for (uint32_t b = 0; b < blocks; b++) {
        weight[b] = 0;
        for (uint32_t i = 0; i < 8; i++) weight[b] += (double)w[order[8 * b + i]];
        weight[b] /= 8;
        widths[b] = 0;
    }
    while (budget--) {
        double best = 0;
        uint32_t at = blocks;
        for (uint32_t b = 0; b < blocks; b++) {
            if (widths[b] == BITS_MAX) continue;
            double gain = weight[b] * (distortion[widths[b]] - distortion[widths[b] + 1]);
            if (gain > best) best = gain, at = b;
        }
        if (at == blocks) return;
        widths[at]++;
    }
}

static uint8_t round_byte(float x, float least) {
    return (uint8_t)(x < least ? least : x > 255.0f ? 255.0f : rintf(x));
}

void kv_encode_affines(const kv_page_layout *l, uint8_t *page, uint32_t triple, bool with_scale, uint32_t scale_off,
                       uint32_t min_off, const uint8_t *rank, kv_affine *fits, uint32_t n) {
    if (!n) return;
    float smax = 0, lo = fits[0].m, hi = fits[0].m;
    for (uint32_t i = 0; i < n; i++) {
        if (fits[i].s > smax) smax = fits[i].s;
        if (fits[i].m < lo) lo = fits[i].m;
        if (fits[i].m > hi) hi = fits[i].m;
    }
    uint16_t h_smax = with_scale ? kv_f16_up(smax) : 0, h_lo = kv_f16_down(lo);
    lo = kv_f16_f32(h_lo);
    uint16_t h_step = kv_f16_up((hi - lo) / 255.0f);
    float unit = kv_f16_f32(h_smax) / 255.0f, step = kv_f16_f32(h_step);
    kv_put_half(page, l->triples_off + 6 * triple, 0, h_smax);
    kv_put_half(page, l->triples_off + 6 * triple, 1, h_lo);
    kv_put_half(page, l->triples_off + 6 * triple, 2, h_step);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t s = with_scale ? (unit > 0 ? round_byte(fits[i].s / unit, 1) : 1) : 0;
        uint8_t m = step > 0 ? round_byte((fits[i].m - lo) / step, 0) : 0;
        page[scale_off + rank[i]] = s;
        page[min_off + rank[i]] = m;
        fits[i] = kv_page_affine(l, page, triple, s, m);
    }
}

/* x > 0 as (1 + *m / 16) 2^exponent, m in 0..15, rounded half to even. */
static int exponent_of(float x, int *m) {
    int e;
    float f = frexpf(x, &e); /* f in [.5, 1), x = f 2^e */
    *m = (int)rintf((2.0f * f - 1.0f) * 16.0f);
    if (*m < 16) return e - 1;
    *m = 0;
    return e;
}

int8_t kv_encode_token_scales(float *a, uint32_t n, uint8_t *u) {
    float max = 0;
    for (uint32_t t = 0; t < n; t++)
        if (a[t] > max) max = a[t];
    int m, e0 = -64; /* f16 values cannot ask for less than 2^-43; -64 keeps 2^e0 normal */
    if (max > 0) e0 = exponent_of(max, &m) - 15;
    if (e0 < -64) e0 = -64;
    for (uint32_t t = 0; t < n; t++) {
        int e = a[t] > 0 ? exponent_of(a[t], &m) - e0 : -1;
        u[t] = e < 0 ? 0 : (uint8_t)(e << 4 | m);
        a[t] = kv_token_scale((int8_t)e0, u[t]);
    }
    return (int8_t)e0;
}
