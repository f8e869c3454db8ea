/* SPDX-License-Identifier: Apache-2.0 */
/* The order of scores, as integers: what ranks, cuts and counts by score agrees on ties, signs and NaN. */
#ifndef KV_POLICY_RANK_H
#define KV_POLICY_RANK_H

#include "base/half.h"

/* Smaller key = ranked higher; NaN last; -0 = +0. */
static inline uint32_t kv_rank_key(float f) {
    if (f != f) return UINT32_MAX;
    uint32_t u = kv_f32_bits(f == 0 ? 0.0f : f);
    return u & 0x80000000u ? u : 0x7fffffffu - u;
}

#endif
