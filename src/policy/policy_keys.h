/* SPDX-License-Identifier: Apache-2.0 */
/* The contract's keys, in the order in which they are printed. Bits of kv_policy.over[].set for those a layer may
 * override. */
#ifndef KV_POLICY_KEYS_H
#define KV_POLICY_KEYS_H

#include <stdint.h>

enum kv_policy_key {
    KV_KEY_SCORE,
    KV_KEY_WINDOW,
    KV_KEY_POOL,
    KV_KEY_STRIDE,
    KV_KEY_FORMAT,
    KV_KEYS_LAYER, /* those before may differ by layer */
    KV_KEY_SINK = KV_KEYS_LAYER,
    KV_KEY_RECENT,
    KV_KEY_ALLOC,
    KV_KEY_DELTA,
    KV_KEY_FLOOR,
    KV_KEY_KEEP,
    KV_KEY_TOKENS,
    KV_KEY_RATE,
    KV_KEY_SHARE,
    KV_KEY_MASS, /* the last budget */
    KV_KEY_LOCAL,
    KV_KEY_WHEN,
    KV_KEY_GUARD,
    KV_KEY_GUARD_MAX,
    KV_KEY_REST,
    KV_KEYS
};
extern const char *const kv_policy_key_names[KV_KEYS];
extern const char *const kv_policy_when_names[]; /* by enum kv_when */
static inline uint32_t kv_key_bit(uint32_t key) { return 1u << key; }

#endif
