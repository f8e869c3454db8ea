/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paired bootstrap intervals against a naive bootstrap with another generator, against the normal approximation from
 * the sampling theory of stratified means, and in the cases that have no interval.
 */
#include <math.h>

#include "base/alloc.h"
#include "measure/bootstrap.h"
#include "support/support.h"

enum { MAX = 800, NAIVE = 20000 };
static double x[MAX], base[MAX];
static uint32_t stratum[MAX];
static kvist_error err;

static kv_paired run(size_t n, uint32_t n_strata, kv_ratio_kind kind, uint64_t seed) {
    kv_paired p;
    if (kv_bootstrap_paired(x, base, stratum, n, n_strata, kind, seed, &p, &err)) fail_msg("%s", err.message);
    return p;
}

static int by_value(const void *a, const void *b) {
    double u = *(const double *)a, v = *(const double *)b;
    return (u > v) - (u < v);
}

/* n draws of n with rand(), both scores of a sample together. */
static void naive(size_t n, bool losses, double mean[2], double ratio[2]) {
    double *m = malloc(NAIVE * sizeof *m), *r = malloc(NAIVE * sizeof *r);
    srand(5);
    for (int k = 0; k < NAIVE; k++) {
        double a = 0, b = 0;
        for (size_t i = 0; i < n; i++) {
            size_t j = (size_t)(rand() / (RAND_MAX + 1.0) * (double)n);
            a += x[j];
            b += base[j];
        }
        m[k] = a / (double)n;
        r[k] = losses ? exp((b - a) / (double)n) : a / b;
    }
    qsort(m, NAIVE, sizeof *m, by_value);
    qsort(r, NAIVE, sizeof *r, by_value);
    mean[0] = m[NAIVE / 40];
    mean[1] = m[NAIVE - NAIVE / 40];
    ratio[0] = r[NAIVE / 40];
    ratio[1] = r[NAIVE - NAIVE / 40];
    free(m);
    free(r);
}

/* Scores as tasks have them: many zeros and ones, the policy's mostly the base's. */
static void scores(size_t n, uint64_t *rng) {
    for (size_t i = 0; i < n; i++) {
        base[i] = test_uniform(rng) > 0 ? 1.0 : 0.5 + 0.5 * test_uniform(rng);
        x[i] = test_uniform(rng) > 0.7f ? 0.3 : base[i];
        stratum[i] = 0;
    }
}

static void against_naive(void **state) {
    (void)state;
    uint64_t rng = 3;
    static const size_t sizes[] = {40, 127, 500};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int losses = 0; losses < 2; losses++) {
            size_t n = sizes[s];
            double mean[2], ratio[2], sx = 0, sb = 0;
            scores(n, &rng);
            for (size_t i = 0; i < n; i++) {
                sx += x[i];
                sb += base[i];
            }
            kv_paired p = run(n, 1, losses ? KV_RATIO_OF_LOSSES : KV_RATIO_OF_MEANS, 1);
            naive(n, losses, mean, ratio);
            assert_float_equal(p.mean.value, sx / (double)n, 1e-12);
            assert_float_equal(p.ratio.value, losses ? exp((sb - sx) / (double)n) : sx / sb, 1e-12);
            /* n - 1 draws for n: wider by sqrt(n / (n - 1)), 1.3 % at 40; the rest is the draws' noise */
            double wm = mean[1] - mean[0], wr = ratio[1] - ratio[0];
            assert_float_equal(p.mean.low, mean[0], 0.05 * wm);
            assert_float_equal(p.mean.high, mean[1], 0.05 * wm);
            assert_float_equal(p.ratio.low, ratio[0], 0.05 * wr);
            assert_float_equal(p.ratio.high, ratio[1], 0.05 * wr);
            assert_true(p.ratio.low < p.ratio.value && p.ratio.value < p.ratio.high);
        }
}

/* Many small strata with far apart means: only the variance inside them counts, without the factor (n - 1) / n. */
static void small_strata(void **state) {
    (void)state;
    uint64_t rng = 4;
    for (uint32_t size = 2; size <= 5; size++) {
        uint32_t n_strata = 600 / size, n = n_strata * size;
        double variance = 0;
        for (uint32_t s = 0; s < n_strata; s++) {
            double sum = 0, squares = 0;
            for (uint32_t i = s; i < n; i += n_strata) { /* strata lie interleaved */
                stratum[i] = s;
                x[i] = 10.0 * s + test_normal(&rng);
                base[i] = 1;
                sum += x[i];
            }
            for (uint32_t i = s; i < n; i += n_strata) squares += (x[i] - sum / size) * (x[i] - sum / size);
            variance += (double)size * squares / (size - 1); /* n_h^2 s_h^2 / n_h */
        }
        double deviation = sqrt(variance) / n;
        kv_paired p = run(n, n_strata, KV_RATIO_OF_MEANS, size);
        assert_float_equal(p.mean.high - p.mean.low, 2 * 1.95996 * deviation, 0.06 * 3.92 * deviation);
        assert_float_equal(p.mean.high + p.mean.low, 2 * p.mean.value, 0.2 * deviation);
    }
}

/* A stratum of one sample has no variance of its own: those are pooled. */
static void singletons(void **state) {
    (void)state;
    uint64_t rng = 6;
    enum { N = 100 };
    scores(N, &rng);
    kv_paired one = run(N, 1, KV_RATIO_OF_MEANS, 9);
    for (uint32_t i = 0; i < N; i++) stratum[i] = i;
    kv_paired many = run(N, N, KV_RATIO_OF_MEANS, 9);
    assert_float_equal(many.mean.low, one.mean.low, 1e-12);
    assert_float_equal(many.ratio.high, one.ratio.high, 1e-12);
    stratum[0] = stratum[99] = 0;
    for (uint32_t i = 1; i < 99; i++) stratum[i] = 1;
    x[0] = 0;
    x[99] = 1;
    kv_paired two = run(N, 2, KV_RATIO_OF_MEANS, 9);
    stratum[99] = 1; /* one alone beside one stratum: joined to it */
    kv_paired joined = run(N, 2, KV_RATIO_OF_MEANS, 9);
    assert_true(two.mean.high > two.mean.low && joined.mean.high > joined.mean.low);
    assert_true(isfinite(joined.ratio.low) && joined.mean.value == two.mean.value);
    /* It is drawn as often as any other: k times in 99 draws of 100, P(k <= 2) = 0.92, P(k <= 3) = 0.98. */
    x[0] = 1000;
    joined = run(N, 2, KV_RATIO_OF_MEANS, 9);
    assert_true(joined.mean.low < 1 && joined.mean.high > 3000. / 99 && joined.mean.high < 3000. / 99 + 1);
}

static void degenerate(void **state) {
    (void)state;
    uint64_t rng = 8;
    kv_paired p = run(0, 0, KV_RATIO_OF_MEANS, 1);
    assert_true(isnan(p.mean.value) && isnan(p.ratio.value) && isnan(p.ratio.low));
    x[0] = 0.5;
    base[0] = 0.25;
    stratum[0] = 0;
    p = run(1, 1, KV_RATIO_OF_MEANS, 1);
    assert_true(p.mean.value == 0.5 && p.ratio.value == 2 && isnan(p.mean.low) && isnan(p.ratio.high));
    scores(50, &rng);
    memcpy(x, base, sizeof x);
    p = run(50, 1, KV_RATIO_OF_MEANS, 1); /* the base against itself: exactly 1 */
    assert_true(p.ratio.value == 1 && p.ratio.low == 1 && p.ratio.high == 1 && p.mean.low < p.mean.high);
    p = run(50, 1, KV_RATIO_OF_LOSSES, 1);
    assert_true(p.ratio.value == 1 && p.ratio.low == 1 && p.ratio.high == 1);
    memset(base, 0, sizeof base);
    p = run(50, 1, KV_RATIO_OF_MEANS, 1); /* nothing to be a ratio of */
    assert_true(isnan(p.ratio.value) && isnan(p.ratio.low) && isnan(p.ratio.high) && isfinite(p.mean.low));
    base[0] = 1; /* a third of the resamples lack the only sample that scored */
    p = run(50, 1, KV_RATIO_OF_MEANS, 1);
    assert_true(isfinite(p.ratio.value) && isnan(p.ratio.low) && isnan(p.ratio.high));
    for (int i = 0; i < 8; i++) base[i] = 1; /* e^-8 of them: no matter */
    p = run(50, 1, KV_RATIO_OF_MEANS, 1);
    assert_true(isfinite(p.ratio.low) && p.ratio.low < p.ratio.high);
}

static void seeds(void **state) {
    (void)state;
    uint64_t rng = 10;
    scores(60, &rng);
    kv_paired a = run(60, 1, KV_RATIO_OF_MEANS, 1), b = run(60, 1, KV_RATIO_OF_MEANS, 1),
              c = run(60, 1, KV_RATIO_OF_MEANS, 2);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.ratio.low != c.ratio.low || a.ratio.high != c.ratio.high);
    assert_float_equal(a.ratio.low, c.ratio.low, 0.1 * (a.ratio.high - a.ratio.low));
    for (uint64_t n = 1; n <= 2; n++) {
        kv_paired p;
        kv_alloc_test_fail_at(n);
        int st = kv_bootstrap_paired(x, base, stratum, 60, 1, KV_RATIO_OF_MEANS, 1, &p, &err);
        kv_alloc_test_fail_at(0);
        assert_int_equal(st, KVIST_E_MEMORY);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_naive), cmocka_unit_test(small_strata),
                                       cmocka_unit_test(singletons), cmocka_unit_test(degenerate),
                                       cmocka_unit_test(seeds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
