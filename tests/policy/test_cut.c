/* SPDX-License-Identifier: Apache-2.0 */
/* Ranking and cutting into pages, against a quadratic reading of the rules in plan.h. */
#include "support/support.h"

#include "policy/plan.h"

#include <math.h>

enum { MAXN = 700 };

/* i is ranked before j. NaN is lowest; ties: lower index. */
static bool before(const float *s, uint32_t i, uint32_t j) {
    bool ni = isnan(s[i]), nj = isnan(s[j]);
    if (ni != nj) return nj;
    if (!ni && s[i] != s[j]) return s[i] > s[j];
    return i < j;
}

static uint32_t nearest(double x, uint32_t p, uint32_t keep) {
    uint32_t whole = (uint32_t)floor(x), r = (whole + p / 2) / p * p;
    return r < keep ? r : keep;
}

static void check_case(const float *score, uint32_t n, uint32_t n_local, uint32_t keep, uint32_t p, bool global,
                       uint32_t m) {
    static uint32_t order[MAXN], rank[MAXN];
    static kv_page_plan pages[MAXN + 8];
    void *scratch = malloc(kv_cut_scratch(n));
    for (uint32_t i = 0; i < MAXN; i++) order[i] = UINT32_MAX;
    uint32_t n_pages = kv_cut_pages(score, n, n_local, keep, p, global, m, order, pages, scratch);
    free(scratch);
    uint32_t ranked = n - n_local;
    if (keep > ranked) keep = ranked;
    assert_int_equal(n_pages, (keep + p - 1) / p + (n_local + p - 1) / p);
    for (uint32_t i = 0; i < ranked; i++) {
        rank[i] = 0;
        for (uint32_t j = 0; j < ranked; j++) rank[i] += before(score, j, i);
    }
    double unit = global ? m : keep;
    double at[5] = {0, unit / (global ? 2 : 8), unit / (global ? 1 : 4), unit * (global ? 2 : .5), 0};
    uint32_t end[4];
    for (int t = 0; t < 3; t++) end[t] = nearest(at[t + 1], p, keep);
    end[3] = keep;
    static uint8_t seen[MAXN];
    memset(seen, 0, sizeof seen);
    uint32_t next = 0, last_tier = 0, partial = 0;
    for (uint32_t g = 0; g < n_pages; g++) {
        const kv_page_plan *pg = &pages[g];
        assert_int_equal(pg->first, next);
        assert_true(pg->n >= 1 && pg->n <= p);
        next += pg->n;
        assert_int_equal(pg->local, g >= (keep + p - 1) / p);
        partial += pg->n < p && !pg->local;
        double sum = 0;
        for (uint32_t i = 0; i < pg->n; i++) {
            uint32_t c = order[pg->first + i];
            assert_true(c < n && !seen[c]);
            seen[c] = 1;
            assert_true(i == 0 || c > order[pg->first + i - 1]);
            if (pg->local) {
                assert_int_equal(c, ranked + pg->first - keep + i);
                continue;
            }
            assert_true(c < ranked && rank[c] < keep);
            uint32_t tier = 0;
            while (rank[c] >= end[tier]) tier++;
            assert_int_equal(pg->tier, tier);
            if (!isnan(score[c])) sum += score[c];
        }
        if (pg->local)
            assert_true(isinf(pg->price) && pg->price > 0);
        else {
            assert_true(fabs(pg->price - sum) <= 1e-4 * (1 + fabs(sum)));
            assert_true(pg->tier >= last_tier);
            /* Position order inside a tier, also from page to page. */
            if (g && pages[g - 1].tier == pg->tier) assert_true(order[pg->first] > order[pg->first - 1]);
            last_tier = pg->tier;
            if (pg->n < p) assert_int_equal(g, (keep + p - 1) / p - 1);
        }
    }
    assert_int_equal(next, keep + n_local);
    assert_true(partial <= 1);
}

static void random_cases(void **state) {
    uint64_t seed = 17;
    static float score[MAXN];
    static const uint32_t sizes[] = {0, 1, 2, 3, 15, 16, 17, 31, 61, 127, 128, 129, 500, 641};
    for (int round = 0; round < 1500; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t n = sizes[r % 14], p = (uint32_t[]){1, 3, 8, 16, 60, 64}[(r >> 8) % 6];
        uint32_t n_local = (r >> 16) % 3 ? 0 : (uint32_t)((r >> 20) % (n + 1)),
                 keep = (uint32_t)((r >> 32) % (n - n_local + 1));
        int kind = (int)((r >> 50) % 4);
        for (uint32_t i = 0; i < n; i++) {
            uint64_t x = test_rand(&seed);
            score[i] = kind == 0   ? (float)(x % 5)
                       : kind == 1 ? test_normal(&seed)
                       : kind == 2 ? test_uniform(&seed) * 1e-30f
                                   : (float)(x % 3) - 1;
            if (kind == 3 && x % 7 == 0) score[i] = NAN;
            if (kind == 3 && x % 11 == 0) score[i] = -0.0f;
        }
        check_case(score, n, n_local, keep, p, (r >> 40) % 2, (uint32_t)((r >> 41) % (n + 5)));
    }
}

/* By hand: 32 candidates with scores falling by index, all kept, pages of 4: tiers end at 4, 8 and 16. */
static void tiers_by_hand(void **state) {
    float score[32];
    uint32_t order[32];
    kv_page_plan pages[16];
    for (int i = 0; i < 32; i++) score[i] = (float)(32 - i);
    void *scratch = malloc(kv_cut_scratch(32));
    assert_int_equal(kv_cut_pages(score, 32, 0, 32, 4, false, 0, order, pages, scratch), 8);
    static const uint8_t tier[8] = {0, 1, 2, 2, 3, 3, 3, 3};
    for (int g = 0; g < 8; g++) assert_int_equal(pages[g].tier, tier[g]);
    assert_true(pages[0].price == 32 + 31 + 30 + 29);
    /* global, m = 8: ends at 4, 8, 16 as well; m = 2: 1, 2, 4 round to 0 (1 + 2 < 4), 4 (2 + 2), 4 */
    assert_int_equal(kv_cut_pages(score, 32, 0, 32, 4, true, 2, order, pages, scratch), 8);
    static const uint8_t tier2[8] = {1, 3, 3, 3, 3, 3, 3, 3};
    for (int g = 0; g < 8; g++) assert_int_equal(pages[g].tier, tier2[g]);
    free(scratch);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_cases), cmocka_unit_test(tiers_by_hand)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
