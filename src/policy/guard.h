/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard's arithmetic (DESIGN 4, 5): how much attention a KV head retains, which pages it must keep for that, and
 * how many pages that may cost. Numbers in, numbers out; the selection over streams is gsel.c's.
 */
#ifndef KV_POLICY_GUARD_H
#define KV_POLICY_GUARD_H

#include "base/err.h"

/* A query head whose queries put less than this on what is neither sink nor recent, a query, retains 1: there is
 * nothing to lose (DESIGN 5). */
#define KV_GUARD_LEAST 1e-3
/* Sums of page masses are rounded to f32: a head within this of the guard is met. */
#define KV_GUARD_SLACK 1e-6

/* Retained mass of a KV head: the least over its query heads of 1 - evicted / all; never below 0.
 *   all[group]      mass of `queries` queries on every stored token that is neither sink nor recent
 *   evicted[group]  the part of it that goes */
double kv_guard_retained(const double *all, const double *evicted, uint32_t group, double queries);

/* What this compression point must retain so that retained x earlier >= guard; earlier: what earlier points left. Where
 * that is below the guard already nothing brings it back: then the point by itself keeps the guard. */
double kv_guard_target(double guard, double earlier);
bool kv_guard_met(double guard, double mass);
/* Pages that may be added over all streams: (guard_max - 1) x budget, rounded down. */
uint64_t kv_guard_limit(double guard_max, uint64_t budget_pages);

/* One stream's pages that may go; what is not among them stays. */
typedef struct kv_guard_stream {
    const float *price; /* [n]; NaN is the lowest */
    const float *mass;  /* [n][group] mass of a page's tokens, a query head */
    const double *all;  /* [group] as above */
    uint32_t n, group;
    double queries;
} kv_guard_stream;

/* The guard prefix: how many of the stream's best pages (price falling, equal prices: the earlier page; the order of
 * kv_gsel) must stay for the head to retain `target`; at most n, also where n pages are not enough (target above 1).
 * scratch: kv_guard_scratch(n) bytes, 8-byte aligned. */
size_t kv_guard_scratch(uint32_t n);
uint32_t kv_guard_prefix(const kv_guard_stream *s, double target, void *scratch);

#endif
