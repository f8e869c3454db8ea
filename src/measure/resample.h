/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Resamples of a stratified sample, one after another, as weights of its members: whoever applies the same weights to
 * several quantities has them paired. The sequence is a function of (strata, seed). Knows no scores; serves the
 * intervals of a policy against its base (bootstrap.h) and of many points against each other (sweep.h).
 *
 * The rescaling bootstrap of Rao and Wu (1988, section 2): out of a stratum of n it draws n - 1 with replacement, each
 * weighing n / (n - 1). Plain resampling of n from n understates a stratum's variance by (n - 1) / n, which for the two
 * to thirteen samples a task of a subset has would make every interval too narrow. Strata of one sample are pooled, since
 * alone they would seem to have no variance at all.
 */
#ifndef KV_MEASURE_RESAMPLE_H
#define KV_MEASURE_RESAMPLE_H

#include "base/err.h"

/* Percentiles 2.5 and 97.5 of this many resamples: their own Monte-Carlo error is then below 2 % of the interval. */
enum { KV_RESAMPLES = 10000 };

typedef struct kv_resampler kv_resampler;

/* stratum[n]: 0 .. n_strata-1. */
kv_status kv_resampler_create(const uint32_t *stratum, size_t n, uint32_t n_strata, uint64_t seed, kv_resampler **out,
                              kv_error *err) KV_WARN_UNUSED;
void kv_resampler_free(kv_resampler **r);
/* The next resample: w[n], adding up to n; all 0 when n < 2, which has no variance to show. */
void kv_resampler_weights(kv_resampler *r, double *w);
/* The 95 % interval of a quantity from its values in the resamples, v[KV_RESAMPLES]: percentiles 2.5 and 97.5 of those
 * that are defined (finite); NaN where more than 2.5 % are not. Reorders v. */
void kv_resample_interval(double *v, double *low, double *high);

#endif
