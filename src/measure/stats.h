/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers out of logits and timings: log-softmax, divergence of two rows, quantiles. Double precision throughout; pure
 * functions. Knows no sessions.
 */
#ifndef KV_MEASURE_STATS_H
#define KV_MEASURE_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ln sum_i exp(x[i]); n >= 1. */
double kv_measure_lse(const float *x, size_t n);
/* Index of the largest value; ties: the lowest index. NaN never wins against a number. */
size_t kv_measure_argmax(const float *x, size_t n);

/* Two rows of logits over one vocabulary: kl = sum_i p_i (ln p_i - ln q_i), p = softmax(base), q = softmax(other), in
 * nats. Equal rows give exactly 0. same_top: both have the same argmax. */
typedef struct kv_divergence {
    double kl;
    bool same_top;
} kv_divergence;
kv_divergence kv_measure_divergence(const float *base, double base_lse, const float *other, double other_lse, size_t n);

/* Summary of a sample. stderr_mean = standard deviation (n - 1) / sqrt(n); quantiles interpolate linearly between order
 * statistics (position q (n - 1)). All NaN when n = 0. */
typedef struct kv_summary {
    size_t n;
    double mean, stderr_mean, median, p99, min, max;
} kv_summary;
/* Sorts v. */
kv_summary kv_measure_summary(double *v, size_t n);
double kv_measure_quantile(const double *sorted, size_t n, double q);
/* Median; sorts v. */
double kv_measure_median(double *v, size_t n);

#endif
