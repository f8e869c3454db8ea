/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hash64: for tables, page checksums and prefix keys. Not cryptographic: never the only proof that two inputs are
 * equal where an attacker chooses them. Equal on every machine (bytes are read as little-endian words).
 */
#include "base/hash.h"

#include <string.h>

/* 2^64 / golden ratio, odd: multiplying spreads low bits upwards; kv_mix64 brings them back down. */
#define KV_HASH_K 0x9e3779b97f4a7c15ull

static uint64_t word_le(const uint8_t *p, size_t n) {
    uint64_t v = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(&v, p, n);
#else
    for (size_t i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
#endif
    return v;
}

uint64_t kv_hash64(const void *data, size_t len, uint64_t seed) {
    const uint8_t *p = data;
    uint64_t h = kv_mix64(seed + KV_HASH_K) ^ ((uint64_t)len * KV_HASH_K);
    for (; len >= 8; p += 8, len -= 8) h = (h ^ kv_mix64(word_le(p, 8))) * KV_HASH_K + 1;
    /* The length is in the start value, so a zero-padded tail word cannot collide with real zeros. */
    if (len) h = (h ^ kv_mix64(word_le(p, len))) * KV_HASH_K + 1;
    return kv_mix64(h);
}
