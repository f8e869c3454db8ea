/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics of logits against the plain definitions in long double, and quantiles against counting. */
#include "support/support.h"

#include <math.h>

#include "measure/compare.h"
#include "measure/stats.h"

enum { MAX = 4099 };
static const size_t sizes[] = {1, 2, 3, 15, 16, 17, 257, MAX};

static void fill(float *x, size_t n, float scale, uint64_t *rng) {
    for (size_t i = 0; i < n; i++) x[i] = scale * test_normal(rng);
}

/* Softmax by its definition, no maximum subtracted: logits here stay below 60, far from long double's limits. */
static long double naive_kl(const float *a, const float *b, size_t n) {
    long double za = 0, zb = 0, kl = 0;
    for (size_t i = 0; i < n; i++) {
        za += expl((long double)a[i]);
        zb += expl((long double)b[i]);
    }
    for (size_t i = 0; i < n; i++) {
        long double p = expl((long double)a[i]) / za, q = expl((long double)b[i]) / zb;
        kl += p * logl(p / q);
    }
    return kl;
}

static void divergence(void **state) {
    (void)state;
    static float a[MAX], b[MAX];
    uint64_t rng = 1;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int rep = 0; rep < 4; rep++) {
            size_t n = sizes[s];
            fill(a, n, rep == 3 ? 12.0f : 3.0f, &rng);
            for (size_t i = 0; i < n; i++) b[i] = a[i] + (rep == 0 ? 0.01f : 1.0f) * test_normal(&rng);
            long double z = 0;
            for (size_t i = 0; i < n; i++) z += expl((long double)a[i]);
            double la = kv_measure_lse(a, n), lb = kv_measure_lse(b, n);
            assert_float_equal(la, (double)logl(z), 1e-11);
            kv_divergence d = kv_measure_divergence(a, la, b, lb, n);
            assert_float_equal(d.kl, (double)naive_kl(a, b, n), 1e-12 * (1 + n));
            assert_true(d.kl > -1e-12);
            size_t ta = 0, tb = 0;
            for (size_t i = 1; i < n; i++) {
                if (a[i] > a[ta]) ta = i;
                if (b[i] > b[tb]) tb = i;
            }
            assert_int_equal(d.same_top, ta == tb);
            kv_divergence same = kv_measure_divergence(a, la, a, la, n);
            assert_true(same.kl == 0); /* exactly: an uncompressed cache must show nothing */
            assert_true(same.same_top);
        }
}

static void shifted(void **state) {
    (void)state;
    float a[3] = {1000.0f, 1001.0f, 999.0f}, b[3] = {0.0f, 1.0f, -1.0f}; /* equal distributions; exp(1000) overflows */
    kv_divergence d = kv_measure_divergence(a, kv_measure_lse(a, 3), b, kv_measure_lse(b, 3), 3);
    assert_float_equal(d.kl, 0, 1e-12);
    float c[2] = {0.0f, -INFINITY}, e[2] = {0.0f, 0.0f};
    d = kv_measure_divergence(c, kv_measure_lse(c, 2), e, kv_measure_lse(e, 2), 2);
    assert_float_equal(d.kl, log(2), 1e-15); /* 0 ln 0 counts nothing */
    d = kv_measure_divergence(e, kv_measure_lse(e, 2), c, kv_measure_lse(c, 2), 2);
    assert_true(isinf(d.kl) && d.kl > 0);
}

static void argmax(void **state) {
    (void)state;
    float tie[5] = {1, 3, 2, 3, 3}, nan_first[3] = {NAN, 1, 2}, nan_last[3] = {1, 2, NAN}, one[1] = {-INFINITY};
    assert_int_equal(kv_measure_argmax(tie, 5), 1);
    assert_int_equal(kv_measure_argmax(nan_first, 3), 2);
    assert_int_equal(kv_measure_argmax(nan_last, 3), 1);
    assert_int_equal(kv_measure_argmax(one, 1), 0);
}

static void summaries(void **state) {
    (void)state;
    static double v[MAX], copy[MAX];
    uint64_t rng = 7;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s];
        long double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            copy[i] = v[i] = (double)test_normal(&rng);
            sum += v[i];
        }
        for (size_t i = 0; i < n; i++) squares += (v[i] - sum / n) * (v[i] - sum / n);
        kv_summary got = kv_measure_summary(v, n);
        assert_int_equal(got.n, n);
        assert_float_equal(got.mean, (double)(sum / n), 1e-12);
        if (n > 1)
            assert_float_equal(got.stderr_mean, (double)sqrtl(squares / (n - 1) / n), 1e-12);
        else
            assert_true(isnan(got.stderr_mean));
        /* Order statistic k by counting; the quantile lies between its neighbours, at the fraction. */
        for (int q = 0; q <= 100; q += 1) {
            double at = q / 100.0 * (double)(n - 1), want[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                size_t k = (size_t)at + (size_t)side;
                if (k >= n) k = n - 1;
                for (size_t i = 0; i < n; i++) {
                    size_t below = 0, equal = 0;
                    for (size_t j = 0; j < n && n < 300; j++) {
                        below += copy[j] < copy[i];
                        equal += copy[j] == copy[i];
                    }
                    if (n >= 300) {
                        want[side] = v[k]; /* sorted by the call; checked below */
                        break;
                    }
                    if (below <= k && k < below + equal) want[side] = copy[i];
                }
            }
            double expected = want[0] + (at - floor(at)) * (want[1] - want[0]);
            assert_float_equal(kv_measure_quantile(v, n, q / 100.0), expected, 1e-12);
        }
        for (size_t i = 1; i < n; i++) assert_true(v[i - 1] <= v[i]);
        assert_true(got.min == v[0] && got.max == v[n - 1]);
        assert_float_equal(got.median, kv_measure_median(copy, n), 0);
    }
    assert_true(isnan(kv_measure_summary(v, 0).mean));
    double even[4] = {4, 1, 3, 2};
    assert_float_equal(kv_measure_median(even, 4), 2.5, 0);
}

static void facts(void **state) {
    (void)state;
    assert_true(kv_compare_found("It was built in 1887.", "1887"));
    assert_true(kv_compare_found("the GREEN door", "red | Green"));
    assert_false(kv_compare_found("the blue door", "red|green"));
    assert_false(kv_compare_found("anything", ""));
    assert_false(kv_compare_found("anything", " | "));
    assert_true(kv_compare_found("x", "|x|"));
    assert_false(kv_compare_found("", "x"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(divergence), cmocka_unit_test(shifted),
                                       cmocka_unit_test(argmax), cmocka_unit_test(summaries), cmocka_unit_test(facts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
