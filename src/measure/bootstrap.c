/* SPDX-License-Identifier: Apache-2.0 */
/* Stratified paired bootstrap; see bootstrap.h. */
#include "measure/bootstrap.h"

#include <math.h>

#include "base/alloc.h"
#include "measure/resample.h"

static double ratio_of(kv_ratio_kind kind, double x, double base, double n) {
    if (kind == KV_RATIO_OF_LOSSES) return exp((base - x) / n);
    return base > 0 || base < 0 ? x / base : NAN;
}

/* Mean and ratio of the n samples, sample i counting w[i]; the weights add up to n. */
static void estimate(const double *x, const double *base, const double *w, size_t n, kv_ratio_kind kind, double *mean,
                     double *ratio) {
    double sx = 0, sb = 0;
    for (size_t i = 0; i < n; i++) {
        sx += w[i] * x[i];
        sb += w[i] * base[i];
    }
    *mean = sx / (double)n;
    *ratio = ratio_of(kind, sx, sb, (double)n);
}

kv_status kv_bootstrap_paired(const double *x, const double *base, const uint32_t *stratum, size_t n, uint32_t n_strata,
                              kv_ratio_kind kind, uint64_t seed, kv_paired *out, kv_error *err) {
    out->mean = out->ratio = (kv_interval){NAN, NAN, NAN};
    if (!n) return KVIST_OK;
    kv_resampler *r;
    KV_TRY(kv_resampler_create(stratum, n, n_strata, seed, &r, err));
    double *means = kv_malloc((2 * KV_RESAMPLES + n) * sizeof *means);
    if (!means) {
        kv_resampler_free(&r);
        KV_FAIL(err, MEMORY, "no memory for the resamples of %zu samples", n);
    }
    double *ratios = means + KV_RESAMPLES, *w = ratios + KV_RESAMPLES;
    for (size_t i = 0; i < n; i++) w[i] = 1;
    estimate(x, base, w, n, kind, &out->mean.value, &out->ratio.value);
    for (int b = 0; b < KV_RESAMPLES && n >= 2; b++) {
        kv_resampler_weights(r, w);
        estimate(x, base, w, n, kind, &means[b], &ratios[b]);
    }
    if (n >= 2) {
        kv_resample_interval(means, &out->mean.low, &out->mean.high);
        kv_resample_interval(ratios, &out->ratio.low, &out->ratio.high);
    }
    kv_resampler_free(&r);
    kv_free(means);
    return KVIST_OK;
}
