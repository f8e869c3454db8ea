/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KV_BASE_HASH_H
#define KV_BASE_HASH_H
#include <stddef.h>
#include <stdint.h>
/* 64-bit, seeded, not cryptographic; equal on every machine. */
uint64_t kv_hash64(const void *data, size_t len, uint64_t seed);
static inline uint64_t kv_mix64(uint64_t x) { /* splitmix64 finaliser */
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
#endif
