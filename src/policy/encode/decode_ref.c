/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decode formula of every page format, plainly: the oracle of the attention kernels. Reads a page, its entry and
 * its layout; must not know how codes were chosen. f32 arithmetic, one operation at a time, in the order the
 * specification (docs/page-formats.md) writes it, so that a kernel may be compared with exactly these values.
 */
#include "base/half.h"
#include "policy/encode/encode.h"

#include <string.h>

/* f16 value i of the little-endian array at page + off. */
static float half_at(const uint8_t *page, uint32_t off, uint32_t i) {
    return kv_f16_f32((uint16_t)(page[off + 2 * i] | page[off + 2 * i + 1] << 8));
}

static uint64_t word_at(const uint8_t *p) {
    uint64_t w = 0;
    for (uint32_t i = 0; i < 8; i++) w |= (uint64_t)p[i] << (8 * i);
    return w;
}

static void decode_f16(const kv_page_layout *l, const uint8_t *page, uint32_t n, float *k, float *v) {
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t c = 0; c < l->dk; c++) k[t * l->dk + c] = half_at(page, l->k_off, c * l->tokens + t);
        for (uint32_t c = 0; c < l->dv; c++) v[t * l->dv + c] = half_at(page, l->v_off, t * l->dvp + c);
    }
}

static void decode_q8(const kv_page_layout *l, const uint8_t *page, uint32_t n, float *k, float *v) {
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t c = 0; c < l->dk; c++) {
            float s = half_at(page, l->k_scale_off, c), m = half_at(page, l->k_min_off, c);
            k[t * l->dk + c] = m + s * (float)page[l->k_off + c * l->tokens + t];
        }
        float s = half_at(page, l->v_scale_off, t), m = half_at(page, l->v_min_off, t);
        for (uint32_t c = 0; c < l->dv; c++) v[t * l->dv + c] = m + s * (float)page[l->v_off + t * l->dvp + c];
    }
}

kv_affine kv_page_affine(const kv_page_layout *l, const uint8_t *page, uint32_t triple, uint8_t scale, uint8_t min) {
    uint32_t off = l->triples_off + 6 * triple;
    float smax = half_at(page, off, 0), lo = half_at(page, off, 1), step = half_at(page, off, 2);
    return (kv_affine){(float)scale * (smax / 255.0f), lo + (float)min * step};
}

float kv_token_scale(int8_t e0, uint8_t a) {
    /* 2^e as bits: e0 >= -64 and a nibble of at most 15 keep it normal. */
    return kv_bits_f32((uint32_t)((int)e0 + (a >> 4) + 127) << 23) * (1.0f + (float)(a & 15) / 16.0f);
}

static void decode_ladder(const kv_page_layout *l, const uint8_t *page, const kv_page_entry *e, uint32_t n, float *k,
                          float *v) {
    const uint8_t *planes = page + l->k_off;
    for (uint32_t b = 0; b < l->dkp / 8u; b++) {
        uint32_t width = kv_page_width(e, b);
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t rank = 8 * b + i, c = page[l->k_order_off + rank];
            if (c >= l->dk) continue;
            kv_affine f =
                kv_page_affine(l, page, width, width ? page[l->k_scale_off + rank] : 0, page[l->k_min_off + rank]);
            for (uint32_t t = 0; t < n; t++) {
                uint32_t code = 0;
                for (uint32_t p = 0; p < width; p++) {
                    uint64_t plane = word_at(planes + 8 * ((t / 8) * width + p));
                    code |= (uint32_t)(plane >> (32 * (i >> 2) + 4 * (t % 8) + (i & 3)) & 1) << p;
                }
                k[t * l->dk + c] = f.m + f.s * (float)code;
            }
        }
        planes += l->tokens * width;
    }
    int8_t e0 = (int8_t)page[l->e0_off];
    for (uint32_t c = 0; c < l->dv; c++) {
        kv_affine f = kv_page_affine(l, page, 7, page[l->v_scale_off + c], page[l->v_min_off + c]);
        for (uint32_t t = 0; t < n; t++) {
            const uint8_t *tile = page + l->v_off + 8 * ((t / 8) * (l->dvp / 8u) + c / 8) * l->v_bits;
            uint32_t code = 0;
            for (uint32_t p = 0; p < l->v_bits; p++)
                code |= (uint32_t)(word_at(tile + 8 * p) >> (32 * (t % 8 >> 2) + 4 * (c % 8) + (t & 3)) & 1) << p;
            v[t * l->dv + c] = kv_token_scale(e0, page[l->a_off + t]) * (f.m + f.s * (float)code);
        }
    }
}

/* Code i of a row of b-bit codes (b divides 8), low bits first. */
static float group_code(const uint8_t *row, uint32_t i, uint32_t b) {
    return (float)(row[i * b / 8] >> (i * b % 8) & ((1u << b) - 1));
}

static void decode_group(const kv_page_layout *l, const uint8_t *page, uint32_t n, float *k, float *v) {
    uint32_t g = kv_formats[l->kf].group, kb = kv_formats[l->kf].k_bits2 / 2u, vb = l->v_bits;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t c = 0; c < l->dk; c++) {
            uint32_t i = t / g * l->dkp + c;
            float s = half_at(page, l->k_scale_off, i), m = half_at(page, l->k_min_off, i);
            k[t * l->dk + c] = m + s * group_code(page + l->k_off + c * (l->tokens * kb / 8), t, kb);
        }
        for (uint32_t c = 0; c < l->dv; c++) {
            uint32_t i = t * l->v_groups + c / g;
            float s = half_at(page, l->v_scale_off, i), m = half_at(page, l->v_min_off, i);
            v[t * l->dv + c] = m + s * group_code(page + l->v_off + t * (l->dvp * vb / 8), c, vb);
        }
    }
}

void kv_decode_ref(const kv_page_layout *l, const uint8_t *page, const kv_page_entry *e, float *k, float *v) {
    switch (l->kind) {
    case KV_KIND_F16:
        decode_f16(l, page, e->n, k, v);
        break;
    case KV_KIND_Q8:
        decode_q8(l, page, e->n, k, v);
        break;
    case KV_KIND_LADDER:
        decode_ladder(l, page, e, e->n, k, v);
        break;
    default:
        decode_group(l, page, e->n, k, v);
        break;
    }
}
