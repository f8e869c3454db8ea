/* SPDX-License-Identifier: Apache-2.0 */
/* Log-softmax statistics; see stats.h. */
#include "measure/stats.h"

#include <math.h>
#include <stdlib.h>

double kv_measure_lse(const float *x, size_t n) {
    float max = x[0];
    for (size_t i = 1; i < n; i++)
        if (x[i] > max) max = x[i];
    if (!isfinite(max)) return max; /* all -inf, or an infinite logit: nothing to subtract */
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - (double)max);
    return (double)max + log(sum);
}

size_t kv_measure_argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    return best;
}

kv_divergence kv_measure_divergence(const float *base, double base_lse, const float *other, double other_lse,
                                    size_t n) {
    double kl = 0;
    for (size_t i = 0; i < n; i++) {
        double lp = (double)base[i] - base_lse, p = exp(lp);
        if (p == 0) continue; /* 0 ln 0 = 0, also where other is -inf */
        kl += p * (lp - ((double)other[i] - other_lse));
    }
    return (kv_divergence){kl, kv_measure_argmax(base, n) == kv_measure_argmax(other, n)};
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double kv_measure_quantile(const double *sorted, size_t n, double q) {
    if (!n) return NAN;
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n) return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

kv_summary kv_measure_summary(double *v, size_t n) {
    if (!n) return (kv_summary){0, NAN, NAN, NAN, NAN, NAN, NAN};
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += v[i];
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += (v[i] - mean) * (v[i] - mean);
    double se = n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : NAN;
    qsort(v, n, sizeof *v, by_value);
    return (kv_summary){n, mean, se, kv_measure_quantile(v, n, 0.5), kv_measure_quantile(v, n, 0.99), v[0], v[n - 1]};
}

double kv_measure_median(double *v, size_t n) {
    qsort(v, n, sizeof *v, by_value);
    return kv_measure_quantile(v, n, 0.5);
}
