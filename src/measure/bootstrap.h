/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Confidence intervals of paired scores. Pure functions of their arguments: the same seed draws the same resamples for
 * every policy. Knows no tasks and no sessions.
 *
 * Method: stratified paired bootstrap, percentile intervals: a resample (resample.h) weighs a sample's score of the
 * policy and of the base alike.
 */
#ifndef KV_MEASURE_BOOTSTRAP_H
#define KV_MEASURE_BOOTSTRAP_H

#include "base/err.h"

typedef struct kv_interval {
    double value, low, high; /* 95 %; low and high NaN where n < 2 or they are not defined */
} kv_interval;

typedef enum kv_ratio_kind {
    KV_RATIO_OF_MEANS,  /* mean(x) / mean(base); NaN when mean(base) is 0 */
    KV_RATIO_OF_LOSSES, /* exp(mean(base) - mean(x)) for negative log-likelihoods: perplexity of the base over ours */
} kv_ratio_kind;

typedef struct kv_paired {
    kv_interval mean, ratio;
} kv_paired;

/* x[n], base[n]: scores of the same samples; stratum[n]: 0 .. n_strata-1. Resamples in which the ratio is not defined
 * are left out; where they are more than 2.5 % its interval is NaN. */
kv_status kv_bootstrap_paired(const double *x, const double *base, const uint32_t *stratum, size_t n, uint32_t n_strata,
                              kv_ratio_kind kind, uint64_t seed, kv_paired *out, kv_error *err) KV_WARN_UNUSED;

#endif
