/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Resamples of a stratified sample, one after another, as weights of its members: whoever applies the same weights to
 * several quantities has them paired. The sequence is a function of (strata, seed). Knows no scores.
 *
 * The rescaling bootstrap of Rao and Wu (1988, section 2): out of a stratum of n it draws n - 1 with replacement, each
 * weighing n / (n - 1); plain resampling of n from n understates a stratum's variance by (n - 1) / n. Strata of one
 * sample are pooled, since alone they would seem to have no variance at all.
 */
#ifndef KV_MEASURE_RESAMPLE_H
#define KV_MEASURE_RESAMPLE_H

#include "base/err.h"

typedef struct kv_resampler kv_resampler;

/* stratum[n]: 0 .. n_strata-1. */
kv_status kv_resampler_create(const uint32_t *stratum, size_t n, uint32_t n_strata, uint64_t seed, kv_resampler **out,
                              kv_error *err) KV_WARN_UNUSED;
void kv_resampler_free(kv_resampler **r);
/* The next resample: w[n], adding up to n; all 0 when n < 2, which has no variance to show. */
void kv_resampler_weights(kv_resampler *r, double *w);

#endif
