/* SPDX-License-Identifier: Apache-2.0 */
/* Stratified resamples as weights, and intervals of what they gave; see resample.h. */
#include "measure/resample.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "measure/stats.h"

struct kv_resampler {
    size_t n;
    uint32_t *order; /* [n] samples, group by group */
    uint32_t *end;   /* [n_groups] where each group ends in order */
    uint32_t n_groups;
    uint64_t state;
};

/* Strata of two samples and more, then all those of one as a last group; alone in that group, a sample joins the group
 * before it. size[n_strata]: samples of each. */
static void make_groups(kv_resampler *r, const uint32_t *stratum, const uint32_t *size, uint32_t n_strata) {
    uint32_t at = 0;
    for (uint32_t s = 0; s < n_strata; s++) {
        if (size[s] < 2) continue;
        for (size_t i = 0; i < r->n; i++)
            if (stratum[i] == s) r->order[at++] = (uint32_t)i;
        r->end[r->n_groups++] = at;
    }
    uint32_t pooled = (uint32_t)r->n - at;
    for (size_t i = 0; pooled && i < r->n; i++)
        if (size[stratum[i]] == 1) r->order[at++] = (uint32_t)i;
    if (pooled == 1 && r->n_groups)
        r->end[r->n_groups - 1] = at;
    else if (pooled)
        r->end[r->n_groups++] = at;
}

kv_status kv_resampler_create(const uint32_t *stratum, size_t n, uint32_t n_strata, uint64_t seed, kv_resampler **out,
                              kv_error *err) {
    *out = NULL;
    if (n > UINT32_MAX) KV_FAIL(err, ARG, "%zu samples are too many", n);
    kv_resampler *r = kv_calloc(1, sizeof *r);
    uint32_t *size = kv_calloc((size_t)n_strata + 1, sizeof *size);
    if (r) {
        r->n = n;
        r->order = kv_calloc(n + 1, sizeof *r->order);
        r->end = kv_calloc((size_t)n_strata + 1, sizeof *r->end);
        r->state = kv_mix64(seed ^ 0x626f6f7473747261ull); /* apart from other uses of the same seed */
    }
    if (!r || !size || !r->order || !r->end) {
        kv_free(size);
        kv_resampler_free(&r);
        KV_FAIL(err, MEMORY, "no memory for the resamples of %zu samples", n);
    }
    for (size_t i = 0; i < n; i++) size[stratum[i]]++;
    make_groups(r, stratum, size, n_strata);
    kv_free(size);
    *out = r;
    return KVIST_OK;
}

void kv_resampler_free(kv_resampler **pr) {
    kv_resampler *r = *pr;
    if (!r) return;
    kv_free(r->order);
    kv_free(r->end);
    kv_free(r);
    *pr = NULL;
}

/* Uniform in 0 .. n-1 (n < 2^32), by the high half of a product: the bias is below n / 2^64. */
static uint32_t draw(kv_resampler *r, uint32_t n) {
    r->state += 0x9e3779b97f4a7c15ull;
    return (uint32_t)(((unsigned __int128)kv_mix64(r->state) * n) >> 64);
}

void kv_resampler_weights(kv_resampler *r, double *w) {
    memset(w, 0, r->n * sizeof *w);
    if (r->n < 2) return;
    for (uint32_t g = 0, from = 0; g < r->n_groups; g++) {
        uint32_t n = r->end[g] - from;
        double weight = (double)n / (double)(n - 1);
        for (uint32_t i = 0; i + 1 < n; i++) w[r->order[from + draw(r, n)]] += weight;
        from = r->end[g];
    }
}

void kv_resample_interval(double *v, double *low, double *high) {
    uint32_t n = 0;
    for (uint32_t b = 0; b < KV_RESAMPLES; b++)
        if (isfinite(v[b])) v[n++] = v[b];
    *low = *high = NAN;
    if (n < .975 * KV_RESAMPLES) return;
    kv_measure_median(v, n); /* sorts */
    *low = kv_measure_quantile(v, n, .025);
    *high = kv_measure_quantile(v, n, .975);
}
