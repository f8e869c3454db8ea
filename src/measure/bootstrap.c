/* SPDX-License-Identifier: Apache-2.0 */
/* Stratified paired bootstrap; see bootstrap.h. */
#include "measure/bootstrap.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "measure/stats.h"

typedef struct frame {
    const double *x, *base;
    size_t n;
    uint32_t *order; /* [n] samples, group by group */
    uint32_t *end;   /* [n_groups] where each group ends in order */
    uint32_t n_groups;
    kv_ratio_kind kind;
    uint64_t state;
} frame;

/* Uniform in 0 .. n-1 (n < 2^32), by the high half of a product: the bias is below n / 2^64. */
static uint32_t draw(frame *f, uint32_t n) {
    f->state += 0x9e3779b97f4a7c15ull;
    return (uint32_t)(((unsigned __int128)kv_mix64(f->state) * n) >> 64);
}

static double ratio_of(kv_ratio_kind kind, double x, double base, double n) {
    if (kind == KV_RATIO_OF_LOSSES) return exp((base - x) / n);
    return base > 0 || base < 0 ? x / base : NAN;
}

/* Strata of two samples and more, then all those of one as a last group; alone in that group, a sample joins the group
 * before it. */
static void make_groups(frame *f, const uint32_t *stratum, const uint32_t *size, uint32_t n_strata) {
    uint32_t at = 0;
    for (uint32_t s = 0; s < n_strata; s++) {
        if (size[s] < 2) continue;
        for (size_t i = 0; i < f->n; i++)
            if (stratum[i] == s) f->order[at++] = (uint32_t)i;
        f->end[f->n_groups++] = at;
    }
    uint32_t pooled = (uint32_t)f->n - at;
    for (size_t i = 0; pooled && i < f->n; i++)
        if (size[stratum[i]] == 1) f->order[at++] = (uint32_t)i;
    if (pooled == 1 && f->n_groups)
        f->end[f->n_groups - 1] = at;
    else if (pooled)
        f->end[f->n_groups++] = at;
}

/* One resample: weighted sums of both scores; their weights add up to n. */
static void resample(frame *f, double *x, double *base) {
    uint32_t from = 0;
    *x = *base = 0;
    for (uint32_t g = 0; g < f->n_groups; g++) {
        uint32_t n = f->end[g] - from;
        double sx = 0, sb = 0;
        for (uint32_t i = 0; i + 1 < n; i++) {
            uint32_t k = f->order[from + draw(f, n)];
            sx += f->x[k];
            sb += f->base[k];
        }
        double weight = (double)n / (double)(n - 1);
        *x += weight * sx;
        *base += weight * sb;
        from = f->end[g];
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void percentiles(double *v, size_t n, size_t of, kv_interval *out) {
    if ((double)n < 0.975 * (double)of) return;
    qsort(v, n, sizeof *v, by_value);
    out->low = kv_measure_quantile(v, n, 0.025);
    out->high = kv_measure_quantile(v, n, 0.975);
}

static void intervals(frame *f, double *means, double *ratios, kv_paired *out) {
    size_t defined = 0;
    for (int r = 0; r < KV_BOOTSTRAP_RESAMPLES; r++) {
        double x, base;
        resample(f, &x, &base);
        means[r] = x / (double)f->n;
        double ratio = ratio_of(f->kind, x, base, (double)f->n);
        if (isfinite(ratio)) ratios[defined++] = ratio;
    }
    percentiles(means, KV_BOOTSTRAP_RESAMPLES, KV_BOOTSTRAP_RESAMPLES, &out->mean);
    percentiles(ratios, defined, KV_BOOTSTRAP_RESAMPLES, &out->ratio);
}

kv_status kv_bootstrap_paired(const double *x, const double *base, const uint32_t *stratum, size_t n, uint32_t n_strata,
                              kv_ratio_kind kind, uint64_t seed, kv_paired *out, kv_error *err) {
    out->mean = out->ratio = (kv_interval){NAN, NAN, NAN};
    if (!n) return KVIST_OK;
    if (n > UINT32_MAX) KV_FAIL(err, ARG, "%zu samples are too many", n);
    double sx = 0, sb = 0;
    for (size_t i = 0; i < n; i++) {
        sx += x[i];
        sb += base[i];
    }
    out->mean.value = sx / (double)n;
    out->ratio.value = ratio_of(kind, sx, sb, (double)n);
    if (n < 2) return KVIST_OK;
    frame f = {.x = x, .base = base, .n = n, .kind = kind, .state = kv_mix64(seed ^ 0x626f6f7473747261ull)};
    uint32_t *ints = kv_calloc(n + 2 * (size_t)n_strata + 1, sizeof *ints), *size = ints;
    double *values = kv_malloc(2 * KV_BOOTSTRAP_RESAMPLES * sizeof *values);
    if (ints && values) {
        f.end = ints + n_strata;
        f.order = f.end + n_strata + 1;
        for (size_t i = 0; i < n; i++) size[stratum[i]]++;
        make_groups(&f, stratum, size, n_strata);
        intervals(&f, values, values + KV_BOOTSTRAP_RESAMPLES, out);
    }
    bool ok = ints && values;
    kv_free(ints);
    kv_free(values);
    if (!ok) KV_FAIL(err, MEMORY, "no memory for the resamples of %zu samples", n);
    return KVIST_OK;
}
