/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Retained mass and the pages a head needs for it (guard.h). Owns no memory. Must not know: what a page is.
 * Invariant: a prefix is the shortest one that retains the target; adding a page never makes another head's longer.
 */
#include "policy/guard.h"

#include <math.h>
#include <stdlib.h>

typedef struct item {
    float price;
    uint32_t page;
} item;

double kv_guard_retained(const double *all, const double *evicted, uint32_t group, double queries) {
    double least = 1;
    for (uint32_t q = 0; q < group; q++) {
        if (all[q] < KV_GUARD_LEAST * queries) continue;
        double kept = 1 - evicted[q] / all[q];
        if (kept < least) least = kept;
    }
    return least < 0 ? 0 : least;
}

double kv_guard_target(double guard, double earlier) {
    return earlier >= guard && earlier > 0 ? guard / earlier : guard;
}

bool kv_guard_met(double guard, double mass) { return mass >= guard - KV_GUARD_SLACK; }

uint64_t kv_guard_limit(double guard_max, uint64_t budget_pages) {
    double pages = floor((guard_max - 1) * (double)budget_pages * (1 + 1e-12)); /* 0.3 x 10 is 3 also as 2.9999... */
    return pages > 0 ? (uint64_t)pages : 0;
}

static int best_first(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->price != y->price) return x->price > y->price ? -1 : 1;
    return x->page < y->page ? -1 : 1;
}

size_t kv_guard_scratch(uint32_t n) { return (size_t)n * sizeof(item); }

/* From the worst page upwards: how many of the best must stay for query head q. */
static uint32_t prefix_of(const kv_guard_stream *s, uint32_t q, double target, const item *sorted) {
    double evicted = 0, allowed = (1 - target) * s->all[q];
    uint32_t n = s->n;
    for (; n; n--) {
        evicted += s->mass[(size_t)sorted[n - 1].page * s->group + q];
        if (!(evicted <= allowed)) break; /* also where a mass is not a number */
    }
    return n;
}

uint32_t kv_guard_prefix(const kv_guard_stream *s, double target, void *scratch) {
    item *sorted = scratch;
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->n; i++) sorted[i] = (item){s->price[i] == s->price[i] ? s->price[i] : -INFINITY, i};
    if (s->n > 1) qsort(sorted, s->n, sizeof *sorted, best_first);
    for (uint32_t q = 0; q < s->group; q++) {
        if (s->all[q] < KV_GUARD_LEAST * s->queries) continue;
        uint32_t n = prefix_of(s, q, target, sorted);
        if (n > most) most = n;
    }
    return most;
}
