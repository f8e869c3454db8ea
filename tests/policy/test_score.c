/* SPDX-License-Identifier: Apache-2.0 */
/* Scores against the formulas of the papers, in doubles: SnapKV sums the group, cuts the window off and pools;
 * KV-Compress pools each query head over all keys and sums the group; H2O and MiniKV sum; StreamingLLM counts. */
#include "support/support.h"

#include "policy/plan.h"

#include <math.h>

enum { MAXK = 300, MAXG = 8 };

static double pool_at(const double *x, uint32_t n, uint32_t width, uint32_t i) {
    double best = -INFINITY;
    for (int64_t j = (int64_t)i - width / 2; j <= (int64_t)i + width / 2; j++)
        if (j >= 0 && j < n && x[j] > best) best = x[j];
    return best;
}

static double naive(const char *score, const float *sums, size_t stride, uint32_t group, uint32_t n_keys,
                    uint32_t cand0, uint32_t n_cand, uint32_t width, uint32_t c) {
    static double x[MAXK];
    if (!strcmp(score, "position")) return cand0 + c;
    if (!strcmp(score, "vote2")) {
        double sum = 0;
        for (uint32_t g = 0; g < group; g++) {
            for (uint32_t k = 0; k < n_keys; k++) x[k] = sums[g * stride + k];
            sum += pool_at(x, n_keys, width, cand0 + c);
        }
        return sum;
    }
    for (uint32_t k = 0; k < n_cand; k++) {
        x[k] = 0;
        for (uint32_t g = 0; g < group; g++) x[k] += sums[g * stride + cand0 + k];
    }
    return pool_at(x, n_cand, width, c);
}

static void formulas(void **state) {
    static const char *const names[] = {"attn", "vote", "vote2", "position"};
    static float sums[MAXG * (MAXK + 5)], score[MAXK + 1], scratch[2 * MAXK + 1];
    static const uint32_t widths[] = {1, 3, 5, 7, 63};
    uint64_t seed = 3;
    for (int round = 0; round < 800; round++) {
        uint64_t r = test_rand(&seed);
        const char *name = names[r % 4];
        uint32_t group = 1 + (uint32_t)((r >> 8) % MAXG), n_keys = 1 + (uint32_t)((r >> 16) % (round < 200 ? 9 : MAXK)),
                 width = widths[(r >> 28) % 5];
        uint32_t cand0 = (uint32_t)((r >> 32) % (n_keys + 1)), n_cand = (uint32_t)((r >> 44) % (n_keys - cand0 + 1));
        size_t stride = n_keys + 5;
        for (uint32_t i = 0; i < group * stride; i++) sums[i] = fabsf(test_normal(&seed));
        char text[64];
        kv_policy p;
        kv_error err;
        (void)snprintf(text, sizeof text, "full,score=%s,pool=%u", name, width);
        assert_int_equal(kv_policy_parse(text, &p, &err), 0);
        score[n_cand] = scratch[2 * n_keys] = 12345;
        kv_score_finish(&p.base, sums, stride, group, n_keys, cand0, n_cand, score, scratch);
        assert_true(score[n_cand] == 12345 && scratch[2 * n_keys] == 12345);
        for (uint32_t c = 0; c < n_cand; c++) {
            double want = naive(name, sums, stride, group, n_keys, cand0, n_cand, width, c);
            if (fabs(score[c] - want) > 2e-6 * (1 + fabs(want)))
                fail_msg("%s group %u keys %u [%u, +%u) pool %u: %g, not %g", name, group, n_keys, cand0, n_cand, width,
                         score[c], want);
        }
    }
}

/* The window's keys are outside SnapKV's pooling and inside KV-Compress's: two heads, one spike each beyond the
 * candidates. */
static void pooling_at_the_edge(void **state) {
    float sums[2][6] = {{1, 2, 3, 4, 50, 0}, {1, 1, 1, 1, 0, 60}}, score[4], scratch[12];
    kv_policy p;
    kv_error err;
    assert_int_equal(kv_policy_parse("snapkv,pool=3", &p, &err), 0);
    kv_score_finish(&p.base, &sums[0][0], 6, 2, 6, 0, 4, score, scratch);
    assert_true(score[0] == 3 && score[1] == 4 && score[2] == 5 && score[3] == 5);
    assert_int_equal(kv_policy_parse("kvcompress,pool=3", &p, &err), 0);
    kv_score_finish(&p.base, &sums[0][0], 6, 2, 6, 0, 4, score, scratch);
    assert_true(score[0] == 2 + 1 && score[1] == 3 + 1 && score[2] == 4 + 1 && score[3] == 50 + 1);
}

static void needs(void **state) {
    static const struct {
        const char *policy;
        bool pass, all, square;
        uint32_t window, stride;
    } cases[] = {
        {"streaming", false, false, false, 32, 1},     {"h2o", true, true, false, 32, 1},
        {"minikv,stride=4", true, true, false, 32, 4}, {"snapkv,window=16,stride=4", true, false, false, 16, 1},
        {"kvcompress", true, false, true, 32, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_policy p;
        kv_error err;
        kv_score_need n;
        assert_int_equal(kv_policy_parse(cases[i].policy, &p, &err), 0);
        kv_score_needs(&p.base, &n);
        assert_int_equal(n.pass, cases[i].pass);
        assert_int_equal(n.all_rows, cases[i].all);
        assert_int_equal(n.square, cases[i].square);
        assert_int_equal(n.window, cases[i].window);
        assert_int_equal(n.stride, cases[i].stride);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(formulas), cmocka_unit_test(pooling_at_the_edge),
                                       cmocka_unit_test(needs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
