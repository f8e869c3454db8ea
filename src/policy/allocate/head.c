/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocator `head` (Ada-KV, Feng et al. 2024, arXiv 2407.11550, algorithm 1 and its safeguard): every layer gets the
 * same budget and spreads it over its heads by what they would win in one ranking of all their tokens. With H heads of
 * base tokens each and c_h = entries of head h among the layer's top H base scores: B_h = round((1 - floor) c_h + floor
 * base) so that the counts add up to H base within H / 2. Equal scores: the lower head, then the earlier token.
 */
#include "policy/allocate/allocate.h"

#include "policy/rank.h"

#include <math.h>

#define RADIX_BITS 11 /* three passes over 32 bits */
#define RADIX (1u << RADIX_BITS)

/* The rank key of the total-th best score of all streams (total from 1), and how many of that key belong to the top. */
static uint32_t threshold(const kv_alloc_scores *s, uint64_t total, uint64_t *of_that_key) {
    static const uint32_t shifts[] = {32 - RADIX_BITS, 32 - 2 * RADIX_BITS, 0};
    uint32_t prefix = 0, known = 0; /* bits found so far; their mask */
    for (uint32_t pass = 0; pass < 3; pass++) {
        uint32_t shift = shifts[pass], digits = pass < 2 ? RADIX : 1u << (32 - 2 * RADIX_BITS), count[RADIX] = {0},
                 d = 0;
        for (uint32_t h = 0; h < s->n_streams; h++)
            for (uint32_t i = 0; i < s->n; i++) {
                uint32_t key = kv_rank_key(s->score[h * s->stride + i]);
                if ((key & known) == prefix) count[(key >> shift) & (digits - 1)]++;
            }
        while (d + 1 < digits && count[d] < total) total -= count[d++];
        prefix |= d << shift;
        known |= (digits - 1) << shift;
    }
    *of_that_key = total;
    return prefix;
}

static void settle(const kv_policy *p, const kv_alloc_scores *s, uint64_t total, uint32_t *keep) {
    double base = (double)total / s->n_streams;
    uint64_t ties = 0;
    uint32_t last = total ? threshold(s, total, &ties) : 0;
    for (uint32_t h = 0; h < s->n_streams; h++) {
        uint32_t wins = 0;
        for (uint32_t i = 0; total && i < s->n; i++) {
            uint32_t key = kv_rank_key(s->score[h * s->stride + i]);
            bool tie = key == last && ties;
            ties -= tie;
            wins += key < last || tie;
        }
        keep[h] = (uint32_t)floor((1 - p->floor) * wins + p->floor * base + .5);
    }
}

const kv_alloc_method kv_alloc_head = {KV_ALLOC_VERSION, KV_ALLOC_HEAD, "head", false, false, kv_alloc_even, settle};
