/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts that a layer's scores decide, against naive code: Ada-KV's formula over one sorted list of the layer, the
 * smallest sets that hold a mass by counting tokens off a sorted list, and whole pages under a share.
 */
#include "support/support.h"

#include "policy/plan.h"

#include <math.h>

enum { MAXH = 6, MAXN = 220 };

typedef struct layer {
    kv_policy policy;
    kv_plan plan;
    uint32_t heads, n; /* ranked candidates */
    float score[MAXH][MAXN + 3];
    double scratch[MAXH * MAXN + MAXN];
} layer;

/* One layer of `heads` streams and n tokens; no sinks, no recent tokens unless the policy has them. */
static void open_layer(layer *l, const char *text, uint32_t heads, uint32_t n, uint32_t page_tokens) {
    kv_error err = {0};
    kv_plan_layer la = {heads, 16, page_tokens, 0, 256};
    if (kv_policy_parse(text, &l->policy, &err)) fail_msg("%s", err.message);
    kv_plan_input in = {.policy = &l->policy,
                        .n_layers = 1,
                        .layers = &la,
                        .page_bytes = 4096,
                        .page_overhead = 44,
                        .n_seen = n,
                        .n_unsealed = n,
                        .first = true};
    if (kv_plan_make(&in, &l->plan, &err)) fail_msg("%s", err.message);
    l->heads = heads;
    l->n = l->plan.n_candidates - l->plan.n_local;
    assert_true(kv_plan_settle_scratch(l->n, heads) <= sizeof l->scratch);
}

static void settle(layer *l, uint32_t page_tokens) {
    kv_plan_settle(&l->plan, &l->policy, page_tokens, 0, 0, l->heads, &l->score[0][0], MAXN + 3, l->scratch);
}

/* kind 0: few values, many ties; 1: heads of very different strength; 2: NaN and zeros among them; 3: normal, signed.
 */
static void fill_scores(layer *l, uint32_t kind, uint64_t *seed) {
    for (uint32_t h = 0; h < l->heads; h++)
        for (uint32_t i = 0; i < l->n; i++) {
            uint64_t r = test_rand(seed);
            float x = fabsf(test_normal(seed));
            l->score[h][i] = kind == 0   ? (float)(r % 5)
                             : kind == 1 ? x * powf(10, (float)h)
                             : kind == 2 ? (r % 7 == 0   ? NAN
                                            : r % 3 == 0 ? 0
                                                         : x)
                                         : test_normal(seed);
        }
}

/* Counts of each head among the best `total` of all, by taking the best that is left; NaN last. */
static void wins_of(const layer *l, uint64_t total, uint32_t *wins) {
    static bool taken[MAXH][MAXN];
    memset(taken, 0, sizeof taken);
    memset(wins, 0, MAXH * sizeof *wins);
    for (; total; total--) {
        uint32_t bh = MAXH, bi = 0;
        for (uint32_t h = 0; h < l->heads; h++)
            for (uint32_t i = 0; i < l->n; i++) {
                if (taken[h][i]) continue;
                float x = isnan(l->score[h][i]) ? -INFINITY : l->score[h][i];
                if (bh == MAXH || x > (isnan(l->score[bh][bi]) ? -INFINITY : l->score[bh][bi])) bh = h, bi = i;
            }
        taken[bh][bi] = true;
        wins[bh]++;
    }
}

static void ada_kv(void **state) {
    uint64_t seed = 5;
    static layer l;
    for (int round = 0; round < 300; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t heads = 1 + (uint32_t)(r % MAXH), n = 33 + (uint32_t)((r >> 8) % 140),
                 tokens = 32 + (uint32_t)((r >> 20) % (n - 32)), fl = (uint32_t)((r >> 40) % 11);
        char text[64];
        (void)snprintf(text, sizeof text, "adakv,tokens=%u,floor=%u.%u", tokens, fl / 10, fl % 10);
        open_layer(&l, text, heads, n, 16);
        if (!l.plan.evict) {
            kv_plan_free(&l.plan);
            continue;
        }
        assert_true(l.plan.by_scores);
        uint32_t base = tokens - 32, wins[MAXH];
        fill_scores(&l, round % 4, &seed);
        wins_of(&l, (uint64_t)base * heads, wins);
        settle(&l, 16);
        uint64_t sum = 0;
        for (uint32_t h = 0; h < heads; h++) {
            double a = fl / 10.0, want = (1 - a) * wins[h] + a * base;
            uint32_t keep = kv_plan_keep(&l.plan, 16, 0, h);
            if (fabs(keep - want) > .5 + 1e-9) fail_msg("%s: head %u keeps %u, not %g", text, h, keep, want);
            assert_int_equal(l.plan.pages[h], (keep + 15) / 16);
            sum += keep;
        }
        assert_true(llabs((long long)sum - (long long)base * heads) <= heads / 2.0 + 1e-9);
        kv_plan_free(&l.plan);
    }
}

static int falling(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return a > b ? -1 : a < b;
}

/* Tokens off a sorted list until the fraction is held. */
static uint32_t smallest(const layer *l, uint32_t h, double fraction, double *retained) {
    double x[MAXN], all = 0, sum = 0;
    for (uint32_t i = 0; i < l->n; i++) all += x[i] = l->score[h][i] > 0 ? l->score[h][i] : 0;
    qsort(x, l->n, sizeof *x, falling);
    uint32_t n = 0;
    while (n < l->n && sum < all * fraction * (1 - 1e-12)) sum += x[n++];
    if (retained) *retained = all > 0 ? sum / all : 1;
    return n;
}

static void masses(void **state) {
    uint64_t seed = 6;
    static layer l;
    for (int round = 0; round < 300; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t heads = 1 + (uint32_t)(r % MAXH), n = 40 + (uint32_t)((r >> 8) % 150),
                 f = 1 + (uint32_t)((r >> 20) % 99);
        char text[64];
        (void)snprintf(text, sizeof text, "snapkv,alloc=mass,mass=0.%02u", f);
        open_layer(&l, text, heads, n, 16);
        assert_true(l.plan.evict && l.plan.by_scores);
        fill_scores(&l, round % 4, &seed);
        settle(&l, 16);
        for (uint32_t h = 0; h < heads; h++) {
            uint32_t want = smallest(&l, h, f / 100.0, NULL), got = kv_plan_keep(&l.plan, 16, 0, h);
            if (got != want) fail_msg("%s, %u tokens: head %u keeps %u, not %u", text, n, h, got, want);
        }
        kv_plan_free(&l.plan);
    }
}

/* Another budget: the heads' counts add up to it, and no head could hold more of its mass without one that holds less.
 */
static void masses_within_a_budget(void **state) {
    uint64_t seed = 7;
    static layer l;
    for (int round = 0; round < 200; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t heads = 1 + (uint32_t)(r % MAXH), n = 60 + (uint32_t)((r >> 8) % 150),
                 tokens = 33 + (uint32_t)((r >> 20) % (n - 34));
        char text[64];
        (void)snprintf(text, sizeof text, "snapkv,alloc=mass,tokens=%u", tokens);
        open_layer(&l, text, heads, n, 16);
        fill_scores(&l, round % 3, &seed);
        settle(&l, 16);
        uint64_t sum = 0;
        double least_held = 1, held[MAXH], next[MAXH];
        for (uint32_t h = 0; h < heads; h++) {
            double x[MAXN], all = 0, k = 0;
            uint32_t keep = kv_plan_keep(&l.plan, 16, 0, h);
            sum += keep;
            for (uint32_t i = 0; i < l.n; i++) all += x[i] = l.score[h][i] > 0 ? l.score[h][i] : 0;
            qsort(x, l.n, sizeof *x, falling);
            for (uint32_t i = 0; i < keep; i++) k += x[i];
            held[h] = all > 0 ? k / all : 1;
            next[h] = keep < l.n && all > 0 ? (k + x[keep]) / all : 1;
            if (held[h] < least_held) least_held = held[h];
        }
        assert_int_equal(sum, (uint64_t)(tokens - 32) * heads);
        /* Giving the poorest head a token must need more than leftovers: every head holds less than the poorest's next
         * would, up to the tokens that rounding hands out (one a head and value). */
        for (uint32_t h = 0; h < heads && round % 3 == 1; h++) assert_true(next[h] >= least_held - 1e-9);
        for (uint32_t h = 0; h < heads && round % 3 == 1; h++) {
            double x[MAXN], all = 0, k = 0;
            uint32_t keep = kv_plan_keep(&l.plan, 16, 0, h);
            for (uint32_t i = 0; i < l.n; i++) all += x[i] = l.score[h][i];
            qsort(x, l.n, sizeof *x, falling);
            for (uint32_t i = 0; i + heads < keep; i++) k += x[i]; /* without its last few: below every other's next */
            for (uint32_t o = 0; o < heads; o++) assert_true(k / all <= next[o] + 1e-6);
        }
        kv_plan_free(&l.plan);
    }
}

/* A share: the layer's pages are given out whole, and all of them, as long as heads can use them. */
static void shares_give_whole_pages(void **state) {
    uint64_t seed = 8;
    static layer l;
    uint32_t checked = 0;
    for (int round = 0; round < 400; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t heads = 1 + (uint32_t)(r % MAXH), n = 60 + (uint32_t)((r >> 8) % 150), p = (r >> 30) % 2 ? 16 : 29;
        char text[96];
        (void)snprintf(
            text, sizeof text, "%s,share=0.%02u",
            (const char *[]){"adakv,recent=0", "snapkv,alloc=mass", "h2o,when=prefill,alloc=head,floor=0", "adakv"}[(r >> 33) % 4],
            10 + (uint32_t)((r >> 20) % 80));
        open_layer(&l, text, heads, n, p);
        if (!l.plan.evict) {
            kv_plan_free(&l.plan);
            continue;
        }
        uint64_t before = 0, after = 0, most = 0;
        uint32_t local = (l.plan.n_local + p - 1) / p;
        for (uint32_t h = 0; h < heads; h++) {
            before += l.plan.pages[h];
            most += (l.n + p - 1) / p + local;
        }
        fill_scores(&l, round % 3, &seed);
        settle(&l, p);
        for (uint32_t h = 0; h < heads; h++) {
            uint32_t keep = kv_plan_keep(&l.plan, p, 0, h);
            assert_true(keep % p == 0 || keep == l.n);
            assert_int_equal(l.plan.pages[h], (keep + p - 1) / p + local);
            if (l.plan.least) assert_true(keep > 0);
            after += l.plan.pages[h];
        }
        assert_true(after == (before < most ? before : most));
        checked++;
        kv_plan_free(&l.plan);
    }
    assert_true(checked > 200);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ada_kv), cmocka_unit_test(masses),
                                       cmocka_unit_test(masses_within_a_budget),
                                       cmocka_unit_test(shares_give_whole_pages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
