/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads one block of 32 values of each quantized GGUF type as unsigned codes and raw scales.
 * Owns: where codes and scales lie inside the file's blocks. Must not know: panels.
 * Invariant: nothing is rounded; codes and scales are the file's own bits.
 */
#include <string.h>

#include "backend/cpu/pack.h"

const uint8_t kv_pack_iq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

static uint16_t u16_at(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static uint32_t u32_at(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Four bytes at a time, as words: the shift stays inside each byte by the mask. */
enum { BITS1 = 0x01010101, BITS2 = 0x03030303, BITS4 = 0x0f0f0f0f };

/* n codes = the bits of n bytes under the mask, from bit `shift` up. */
static void take_bits(const uint8_t *q, uint32_t n, uint32_t shift, uint32_t mask, uint8_t *c) {
    for (uint32_t i = 0; i < n; i += 4) {
        uint32_t w = (u32_at(q + i) >> shift) & mask;
        memcpy(c + i, &w, 4);
    }
}

/* 32 codes |= such bits, as bits from `to` up. */
static void add_bits(const uint8_t *q, uint32_t shift, uint32_t mask, uint32_t to, uint8_t *c) {
    for (uint32_t i = 0; i < 32; i += 4) {
        uint32_t w = u32_at(c + i) | ((u32_at(q + i) >> shift) & mask) << to;
        memcpy(c + i, &w, 4);
    }
}

/* 16 bytes of nibbles: low ones are values 0..15, high ones 16..31. */
static void nibbles_16(const uint8_t *qs, uint8_t *c) {
    take_bits(qs, 16, 0, BITS4, c);
    take_bits(qs, 16, 4, BITS4, c + 16);
}

/* Bit i of four bytes is bit 4 of code i: the product spreads four bits over four bytes. */
static void fifth_bits(const uint8_t *qh, uint8_t *c) {
    uint32_t bits = u32_at(qh);
    for (uint32_t i = 0; i < 32; i += 4, bits >>= 4) {
        uint32_t w = u32_at(c + i) | (((bits & 15) * 0x00204081u) & BITS1) << 4;
        memcpy(c + i, &w, 4);
    }
}

/* Q4_K and Q5_K: eight 6-bit scales and minima in 12 bytes. */
static void scale_min_6bit(const uint8_t *s, uint32_t j, kv_pack_row *o) {
    if (j < 4) {
        o->sc[0] = s[j] & 63;
        o->scm = s[j + 4] & 63;
    } else {
        o->sc[0] = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        o->scm = (uint8_t)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}

/* Block j of a super block: bytes of 32, low nibbles an even block, high ones the odd one after it. */
static void nibbles_k(const uint8_t *qs, uint32_t j, uint8_t *c) {
    take_bits(qs + 32 * (j >> 1), 32, 4 * (j & 1), BITS4, c);
}

/* Q2_K, Q3_K: 32 bytes hold four blocks, two bits each. */
static void pairs_k(const uint8_t *qs, uint32_t j, uint8_t *c) {
    take_bits(qs + 32 * (j >> 2), 32, 2 * (j & 3), BITS2, c);
}

static void decode_q2_k(const uint8_t *x, uint32_t j, kv_pack_row *o) {
    o->sc[0] = x[2 * j];
    o->sc[1] = x[2 * j + 1];
    pairs_k(x + 16, j, o->codes);
    o->d = u16_at(x + 80);
    o->m = u16_at(x + 82);
}

static void decode_q3_k(const uint8_t *x, uint32_t j, kv_pack_row *o) {
    const uint8_t *hmask = x, *scales = x + 96;
    pairs_k(x + 32, j, o->codes);
    add_bits(hmask, j, BITS1, 2, o->codes);
    for (uint32_t g = 0; g < 2; g++) {
        uint32_t s = 2 * j + g;
        uint32_t lo = s < 8 ? scales[s] & 15u : scales[s - 8] >> 4;
        uint32_t hi = (scales[8 + (s & 3)] >> (2 * (s >> 2))) & 3u;
        o->sc[g] = (uint8_t)((lo | hi << 4) - 32u);
    }
    o->d = u16_at(x + 108);
}

static void decode_q6_k(const uint8_t *x, uint32_t j, kv_pack_row *o) {
    uint32_t half = j >> 2, in = j & 3;
    const uint8_t *ql = x + 64 * half + 32 * (in & 1), *qh = x + 128 + 32 * half;
    take_bits(ql, 32, in < 2 ? 0 : 4, BITS4, o->codes);
    add_bits(qh, 2 * in, BITS2, 4, o->codes);
    o->sc[0] = x[192 + 2 * j];
    o->sc[1] = x[192 + 2 * j + 1];
    o->d = u16_at(x + 208);
}

static void decode_iq4_xs(const uint8_t *x, uint32_t j, kv_pack_row *o) {
    uint32_t lo = (x[4 + (j >> 1)] >> (4 * (j & 1))) & 15u, hi = ((uint32_t)u16_at(x + 2) >> (2 * j)) & 3u;
    o->d = u16_at(x);
    o->sc[0] = (uint8_t)((lo | hi << 4) - 32u);
    nibbles_16(x + 8 + 16 * j, o->codes);
}

void kv_pack_decode(uint32_t type, const uint8_t *row, uint32_t b, kv_pack_row *o) {
    memset(o, 0, sizeof *o);
    const uint8_t *x;
    uint32_t j = b & 7; /* block inside a super block */
    switch (type) {
    case KV_TYPE_Q4_0:
    case KV_TYPE_IQ4_NL:
        x = row + 18 * (size_t)b;
        o->d = u16_at(x);
        nibbles_16(x + 2, o->codes);
        break;
    case KV_TYPE_Q4_1:
        x = row + 20 * (size_t)b;
        o->d = u16_at(x);
        o->m = u16_at(x + 2);
        nibbles_16(x + 4, o->codes);
        break;
    case KV_TYPE_Q5_0:
        x = row + 22 * (size_t)b;
        o->d = u16_at(x);
        nibbles_16(x + 6, o->codes);
        fifth_bits(x + 2, o->codes);
        break;
    case KV_TYPE_Q5_1:
        x = row + 24 * (size_t)b;
        o->d = u16_at(x);
        o->m = u16_at(x + 2);
        nibbles_16(x + 8, o->codes);
        fifth_bits(x + 4, o->codes);
        break;
    case KV_TYPE_Q8_0:
        x = row + 34 * (size_t)b;
        o->d = u16_at(x);
        for (uint32_t i = 0; i < 32; i++) o->codes[i] = x[2 + i] ^ 0x80;
        break;
    case KV_TYPE_Q2_K:
        decode_q2_k(row + 84 * (size_t)(b >> 3), j, o);
        break;
    case KV_TYPE_Q3_K:
        decode_q3_k(row + 110 * (size_t)(b >> 3), j, o);
        break;
    case KV_TYPE_Q4_K:
    case KV_TYPE_Q5_K:
        x = row + (type == KV_TYPE_Q4_K ? 144 : 176) * (size_t)(b >> 3);
        o->d = u16_at(x);
        o->m = u16_at(x + 2);
        scale_min_6bit(x + 4, j, o);
        nibbles_k(x + (type == KV_TYPE_Q4_K ? 16 : 48), j, o->codes);
        if (type == KV_TYPE_Q5_K) add_bits(x + 16, j, BITS1, 4, o->codes);
        break;
    case KV_TYPE_Q6_K:
        decode_q6_k(row + 210 * (size_t)(b >> 3), j, o);
        break;
    case KV_TYPE_IQ4_XS:
        decode_iq4_xs(row + 136 * (size_t)(b >> 3), j, o);
        break;
    default:
        break;
    }
}
