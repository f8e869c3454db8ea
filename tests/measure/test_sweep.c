/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pure parts of a sweep: points, groups, cells, fronts and choices on made-up samples. Oracles: texts written down
 * by hand, means and orders computed naively, intervals in closed form (means of many equal strata are nearly normal).
 */
#include <math.h>

#include "base/alloc.h"
#include "measure/resample.h"
#include "measure/sweep.h"
#include "policy/policy.h"
#include "support/support.h"

/* ---------------------------------------------------------------- points */

static char noted[2048];
static void note(void *user, const char *policy, const char *why) {
    (void)user;
    size_t len = strlen(noted);
    snprintf(noted + len, sizeof noted - len, "%s|", policy);
    assert_true(*why);
}

static kv_status expand(const char *const *methods, uint32_t n, const double *shares, uint32_t n_shares,
                        kv_sweep_point **points, uint32_t *n_points, kv_error *err) {
    kv_sweep_ask ask = {methods, n, shares, n_shares, note, NULL};
    noted[0] = 0;
    return kv_sweep_expand(&ask, points, n_points, err);
}

static void points_as_written(void **state) {
    (void)state;
    static const char *const methods[] = {"minikv",
                                          "full,score=vote2,alloc=global,format=q2s",
                                          "full,format=q4",
                                          "streaming",
                                          "kivi",
                                          "snapkv,tokens=200",
                                          "snapkv,alloc=mass,mass=0.9",
                                          "kvcompress,recent=48",
                                          "minikv;layers=0-1:format=q8",
                                          "full"};
    static const double shares[] = {.04, .14};
    static const struct {
        const char *method, *policy;
        double asked;
    } want[] = {
        {"full", "full", NAN},
        {"full,format=q4", "full,format=q4", NAN},
        {"kivi", "kivi", NAN},
        {"snapkv,tokens=200", "snapkv,tokens=200", NAN},
        {"snapkv,alloc=mass,mass=0.9", "snapkv,alloc=mass,mass=0.9", NAN},
        {"minikv", "minikv,share=0.14", .14},
        {"full,score=vote2,alloc=global,format=q2s", "full,score=vote2,alloc=global,format=q2s,share=0.14", .14},
        {"streaming", "streaming,share=0.14", .14},
        {"kvcompress,recent=48", "kvcompress,recent=48,share=0.14", .14},
        {"minikv;layers=0-1:format=q8", "minikv,share=0.14;layers=0-1:format=q8", .14},
        {"minikv", "minikv,share=0.04", .04}, /* keeps no recent tokens: nothing to narrow */
        {"full,score=vote2,alloc=global,format=q2s", "full,score=vote2,alloc=global,format=q2s,share=0.04,recent=32",
         .04},
        {"streaming", "streaming,share=0.04,recent=32", .04},
        {"kvcompress,recent=48", "kvcompress,recent=48,share=0.04", .04}, /* as given */
        {"minikv;layers=0-1:format=q8", "minikv,share=0.04;layers=0-1:format=q8", .04},
    };
    kv_sweep_point *p;
    uint32_t n;
    kv_error err;
    if (expand(methods, 10, shares, 2, &p, &n, &err)) fail_msg("%s", err.message);
    assert_int_equal(n, sizeof want / sizeof *want);
    for (uint32_t i = 0; i < n; i++) {
        kv_policy policy;
        assert_string_equal(p[i].method, want[i].method);
        assert_string_equal(p[i].policy, want[i].policy);
        assert_true(isnan(want[i].asked) ? isnan(p[i].asked) : p[i].asked == want[i].asked);
        if (kv_policy_parse(p[i].policy, &policy, &err)) fail_msg("%s", err.message);
    }
    kv_free(p);
}

/* Below a narrow share two methods may be one policy, and one of other words always is. */
static void one_policy_once(void **state) {
    static const char *const methods[] = {"full,score=vote2,alloc=global,format=q2s",
                                          "full,score=vote2,alloc=global,format=q2s,recent=32",
                                          "full,format=q2s,alloc=global,score=vote2"};
    static const double shares[] = {.14, .04};
    kv_sweep_point *p;
    uint32_t n;
    kv_error err;
    if (expand(methods, 3, shares, 2, &p, &n, &err)) fail_msg("%s", err.message);
    assert_int_equal(n, 4); /* full; two at 14 %; one at 4 % */
    assert_string_equal(p[2].policy, "full,score=vote2,alloc=global,format=q2s,recent=32,share=0.14");
    assert_string_equal(p[3].policy, "full,score=vote2,alloc=global,format=q2s,share=0.04,recent=32");
    assert_non_null(strstr(noted, "full,score=vote2,alloc=global,format=q2s,recent=32,share=0.04|"));
    assert_non_null(strstr(noted, "full,format=q2s,alloc=global,score=vote2,share=0.14|"));
    kv_free(p);
}

/* Every preset is there: at each share, or by itself when it evicts nothing; else a note names it. */
static void default_points(void **state) {
    (void)state;
    static const double shares[] = {.5, .07, .025};
    kv_sweep_point *p;
    uint32_t n;
    kv_error err;
    const char *name;
    if (expand(NULL, 0, shares, 3, &p, &n, &err)) fail_msg("%s", err.message);
    assert_string_equal(p[0].policy, "full");
    for (uint32_t i = 0; (name = kv_policy_preset_at(i, NULL)); i++) {
        uint32_t standing = 0, at_share = 0;
        char in_note[64];
        snprintf(in_note, sizeof in_note, "%s|", name);
        for (uint32_t k = 0; k < n; k++)
            if (!strcmp(p[k].method, name)) *(isnan(p[k].asked) ? &standing : &at_share) += 1;
        assert_true((standing == 1 && !at_share) || (!standing && at_share == 3) || strstr(noted, in_note));
    }
    static const char *const formats[] = {"q8", "q4", "q3", "q2", "q2s"};
    for (int f = 0; f < 5; f++) {
        char text[32];
        uint32_t k = 0;
        snprintf(text, sizeof text, "full,format=%s", formats[f]);
        while (k < n && strcmp(p[k].policy, text) != 0) k++;
        assert_true(k < n && isnan(p[k].asked));
    }
    for (uint32_t k = 1; k < n; k++) { /* standing ones first, then shares, falling */
        assert_false(!isnan(p[k - 1].asked) && isnan(p[k].asked));
        assert_false(p[k - 1].asked < p[k].asked);
        for (uint32_t i = 0; i < k; i++) assert_string_not_equal(p[i].policy, p[k].policy);
    }
    kv_free(p);
}

static void wrong_points(void **state) {
    (void)state;
    static const struct {
        const char *methods[2];
        double shares[2];
        const char *why;
    } cases[] = {{{"minikv", "minikv"}, {.5, .2}, "twice"},
                 {{"minikv", "nonsense"}, {.5, .2}, "nonsense"},
                 {{"minikv", "minikv,window=0"}, {.5, .2}, "window"},
                 {{"minikv", "snapkv"}, {.5, .5}, "twice"},
                 {{"minikv", "snapkv"}, {.5, 1.5}, "share 1.5"},
                 {{"minikv", "snapkv"}, {0, .5}, "share 0"},
                 {{"full,format=q4", "full,format=q4"}, {.5, .2}, "twice"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_sweep_point *p = NULL;
        uint32_t n;
        kv_error err;
        assert_int_not_equal(expand(cases[i].methods, 2, cases[i].shares, 2, &p, &n, &err), KVIST_OK);
        if (!strstr(err.message, cases[i].why)) fail_msg("'%s' does not say '%s'", err.message, cases[i].why);
        assert_null(p);
    }
}

/* ---------------------------------------------------------------- groups */

static uint32_t sizes[16], room;
static bool fits(void *user, uint32_t first, uint32_t end) {
    (void)user;
    uint32_t sum = 0;
    for (uint32_t i = first; i < end; i++) sum += sizes[i];
    return sum <= room;
}

static void groups_fit(void **state) {
    (void)state;
    static const uint32_t given[] = {0, 3, 3, 5, 9, 1, 1, 1, 1};
    static const uint32_t want[] = {0, 0, 0, 1, 2, 3, 3, 3, 4}; /* 3 3 | 5 | 9, though it does not fit | 1 1 1 | 1 */
    uint32_t group[9];
    memcpy(sizes, given, sizeof given);
    room = 6;
    assert_int_equal(kv_sweep_groups(9, 3, fits, NULL, group), 5);
    assert_memory_equal(group, want, sizeof want);
    assert_int_equal(kv_sweep_groups(1, 3, fits, NULL, group), 1);
    assert_int_equal(group[0], 0);
}

/* ---------------------------------------------------------------- resamples */

/* n - 1 draws of n with weight n / (n - 1): a weight has mean 1 and variance 1, and a stratum's add up to its size. */
static void weights_of_resamples(void **state) {
    (void)state;
    enum { N = 12, ROUNDS = 20000 };
    static const uint32_t stratum[N] = {0, 1, 0, 2, 0, 1, 0, 3, 0, 4, 1, 0}; /* 2, 3 and 4 have one sample each */
    static const uint32_t pool[N] = {0, 1, 0, 2, 0, 1, 0, 2, 0, 2, 1, 0};
    kv_resampler *r, *again;
    kv_error err;
    double w[N], w2[N], sum[N] = {0}, squares[N] = {0};
    assert_int_equal(kv_resampler_create(stratum, N, 5, 7, &r, &err), KVIST_OK);
    assert_int_equal(kv_resampler_create(stratum, N, 5, 7, &again, &err), KVIST_OK);
    for (int k = 0; k < ROUNDS; k++) {
        double in_pool[3] = {0};
        kv_resampler_weights(r, w);
        kv_resampler_weights(again, w2);
        assert_memory_equal(w, w2, sizeof w);
        for (int i = 0; i < N; i++) {
            in_pool[pool[i]] += w[i];
            sum[i] += w[i];
            squares[i] += w[i] * w[i];
        }
        assert_true(fabs(in_pool[0] - 6) < 1e-9 && fabs(in_pool[1] - 3) < 1e-9 && fabs(in_pool[2] - 3) < 1e-9);
    }
    for (int i = 0; i < N; i++) {
        double mean = sum[i] / ROUNDS, var = squares[i] / ROUNDS - mean * mean;
        assert_true(fabs(mean - 1) < .05 && fabs(var - 1) < .08); /* 5 standard errors and more */
    }
    kv_resampler_free(&r);
    kv_resampler_free(&again);
    assert_int_equal(kv_resampler_create(stratum, 1, 5, 7, &r, &err), KVIST_OK);
    kv_resampler_weights(r, w);
    assert_true(w[0] == 0);
    kv_resampler_free(&r);
}

/* ---------------------------------------------------------------- cells */

static double uniform(uint64_t *rng) { return (double)(test_rand(rng) >> 11) / 9007199254740992.0; }

static kv_sweep_sample sample_of(double value, double share) { return (kv_sweep_sample){value, share, .9, NAN, NAN}; }

static kv_sweep_task make_task(kv_sweep_kind kind, uint32_t points, uint32_t n) {
    kv_sweep_task t;
    kv_error err;
    assert_int_equal(kv_sweep_task_init(&t, "made up", kind, points, n, &err), KVIST_OK);
    return t;
}

static kv_sweep_table table_of(const kv_sweep_point *points, const kv_sweep_task *tasks, uint32_t n_tasks,
                               const double *shares, uint32_t n_shares) {
    kv_sweep_rules rules = {shares, n_shares, .97, 3};
    kv_sweep_table t;
    kv_error err;
    if (kv_sweep_analyse(points, tasks[0].n_points, tasks, n_tasks, &rules, &t, &err)) fail_msg("%s", err.message);
    return t;
}

static void near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.9g, wanted %.9g", got, want);
}

/* Two strata far apart: the standard error is that inside them, sqrt(sum n_s s_s^2) / n, and the paired difference's.
 */
static void intervals_in_closed_form(void **state) {
    (void)state;
    enum { N = 400 };
    static const kv_sweep_point points[2] = {{"full", "full", NAN}, {"x", "x", NAN}};
    uint64_t rng = 5;
    kv_sweep_task t = make_task(KV_SWEEP_NLL, 2, N);
    kv_error err;
    double d[N], sum[2] = {0}, squares[2] = {0}, total = 0, value = 0;
    for (uint32_t i = 0; i < N; i++) {
        uint32_t s = i % 4 == 0;
        double noise = uniform(&rng) * 4; /* common to both: pairing removes it */
        d[i] = .2 * s + .3 * uniform(&rng);
        t.v[i] = sample_of(3 * s + noise, 1);
        t.v[N + i] = sample_of(3 * s + noise + d[i], .5);
        assert_int_equal(kv_sweep_task_stratum(&t, i, s ? "b" : "a", &err), KVIST_OK);
        sum[s] += d[i];
        squares[s] += d[i] * d[i];
        total += d[i];
        value += t.v[N + i].value;
    }
    double var = 0;
    for (int s = 0; s < 2; s++) {
        double n = s ? N / 4. : 3 * N / 4., mean = sum[s] / n;
        var += n * (squares[s] / n - mean * mean) * n / (n - 1);
    }
    double se = sqrt(var) / N, mean = total / N;
    kv_sweep_table table = table_of(points, &t, 1, NULL, 0);
    const kv_sweep_cell *c = kv_sweep_at(&table, 1, 0), *base = kv_sweep_at(&table, 0, 0);
    near(c->score, value / N, 1e-12);
    near(c->ratio, exp(-mean), 1e-12);
    near(log(c->ratio_low), -mean - 1.96 * se, .06 * se); /* 10,000 resamples: 1.5 % of se a quantile, four of them */
    near(log(c->ratio_high), -mean + 1.96 * se, .06 * se);
    assert_true(base->ratio == 1 && base->ratio_low == 1 && base->ratio_high == 1);
    assert_int_equal(c->n, N);
    near(c->share, .5, 1e-12);
    near(c->mass_min, .9, 1e-12);
    near(table.rows[1].ratio_low, c->ratio_low, 1e-12); /* one task: its mean is itself */
    kv_sweep_table_free(&table);
    kv_sweep_task_free(&t);
}

static void ratios_of_each_kind(void **state) {
    (void)state;
    static const kv_sweep_point points[4] = {{"full", "full", NAN}, {"a", "a", .2}, {"b", "b", .2}, {"c", "c", .2}};
    kv_sweep_task t[2] = {make_task(KV_SWEEP_SCORE, 4, 4), make_task(KV_SWEEP_KLD, 4, 2)};
    static const double base[] = {1, .5, 0, .5}, a[] = {1, .5, 0, 0}, b[] = {.5, NAN, .5, .5};
    static const double share[] = {.2, .204, .205, .1};
    for (int i = 0; i < 4; i++) {
        t[0].v[i] = sample_of(base[i], 1);
        t[0].v[4 + i] = sample_of(a[i], share[i]);
        t[0].v[8 + i] = isnan(b[i]) ? t[0].v[8 + i] : sample_of(b[i], .2);
    }
    for (int i = 0; i < 2; i++) {
        t[1].v[i] = (kv_sweep_sample){0, 1, 1, 2 + i, 1};
        t[1].v[2 + i] = (kv_sweep_sample){.02 + .04 * i, .2, .9, 2.1 + i, .9};
        t[1].v[4 + i] = (kv_sweep_sample){.01, .2, .9, 2 + i, .95};
    }
    kv_sweep_table table = table_of(points, t, 2, NULL, 0);
    near(kv_sweep_at(&table, 1, 0)->ratio, 1.5 / 2, 1e-12);
    assert_int_equal(kv_sweep_at(&table, 1, 0)->n_met, 3);    /* .205 is above 1.02 x .2 */
    near(kv_sweep_at(&table, 2, 0)->ratio, 1.5 / 1.5, 1e-12); /* over the samples that both have */
    assert_int_equal(kv_sweep_at(&table, 2, 0)->n, 3);
    near(kv_sweep_at(&table, 1, 1)->ratio, exp(-.04), 1e-12);
    near(kv_sweep_at(&table, 1, 1)->ppl_ratio, exp(.1), 1e-9);
    near(kv_sweep_at(&table, 1, 1)->same_top1, .9, 1e-12);
    near(table.rows[1].ratio, (.75 + exp(-.04)) / 2, 1e-12);
    assert_int_equal(table.rows[1].n, 6);
    assert_true(isnan(table.rows[3].ratio) && isnan(kv_sweep_at(&table, 3, 0)->ratio)); /* not run */
    assert_false(table.rows[3].front);
    assert_int_equal(kv_sweep_at(&table, 2, 1)->verdict, KV_SWEEP_MET);  /* exp(-.01), no spread */
    assert_int_equal(kv_sweep_at(&table, 3, 1)->verdict, KV_SWEEP_OPEN); /* not run */
    kv_sweep_table_free(&table);
    /* A task in which full scores nothing is not in the means. */
    for (int i = 0; i < 4; i++) t[0].v[i].value = 0;
    table = table_of(points, t, 2, NULL, 0);
    assert_true(isnan(kv_sweep_at(&table, 1, 0)->ratio));
    near(table.rows[1].ratio, exp(-.04), 1e-12);
    kv_sweep_table_free(&table);
    kv_sweep_task_free(&t[0]);
    kv_sweep_task_free(&t[1]);
}

static void verdicts(void **state) {
    (void)state;
    enum { N = 50 };
    static const kv_sweep_point points[4] = {{"full", "full", NAN}, {"a", "a", .2}, {"b", "b", .2}, {"c", "c", .2}};
    kv_sweep_task t = make_task(KV_SWEEP_SCORE, 4, N);
    uint64_t rng = 9;
    for (int i = 0; i < N; i++) {
        t.v[i] = sample_of(1, 1);
        t.v[N + i] = sample_of(.98 + .01 * uniform(&rng), .2);    /* always above .97 */
        t.v[2 * N + i] = sample_of(.9 + .05 * uniform(&rng), .2); /* always below */
        t.v[3 * N + i] = sample_of(i < N / 2 ? 1 : .94, .2);      /* mean .97 */
    }
    kv_sweep_table table = table_of(points, &t, 1, NULL, 0);
    assert_int_equal(table.rows[1].verdict, KV_SWEEP_MET);
    assert_int_equal(table.rows[2].verdict, KV_SWEEP_MISSED);
    assert_int_equal(table.rows[3].verdict, KV_SWEEP_OPEN);
    kv_sweep_table_free(&table);
    kv_sweep_task_free(&t);
}

/* ---------------------------------------------------------------- fronts and choices */

static void fronts_naively(void **state) {
    (void)state;
    enum { P = 40, N = 3 };
    kv_sweep_point points[P] = {{"full", "full", NAN}};
    uint64_t rng = 21;
    kv_sweep_task t = make_task(KV_SWEEP_SCORE, P, N);
    double share[P], ratio[P];
    for (int p = 0; p < P; p++) {
        /* coarse values, so that shares and ratios are often equal */
        share[p] = p ? .1 * (1 + (double)(test_rand(&rng) % 6)) : 1;
        ratio[p] = p ? .125 * (double)(test_rand(&rng) % 9) : 1;
        for (int i = 0; i < N; i++) t.v[p * N + i] = sample_of(ratio[p], share[p]);
        points[p].asked = NAN;
    }
    kv_sweep_table table = table_of(points, &t, 1, NULL, 0);
    for (int p = 0; p < P; p++) {
        bool beaten = false;
        for (int q = 0; q < P; q++)
            beaten |= (kv_sweep_at(&table, q, 0)->share < kv_sweep_at(&table, p, 0)->share && ratio[q] >= ratio[p]) ||
                      (kv_sweep_at(&table, q, 0)->share <= kv_sweep_at(&table, p, 0)->share && ratio[q] > ratio[p]);
        assert_int_equal(kv_sweep_at(&table, p, 0)->front, !beaten);
        assert_int_equal(table.rows[p].front, !beaten);
    }
    kv_sweep_table_free(&table);
    kv_sweep_task_free(&t);
}

/* Value of every sample of a point: constant parts make a difference certain, `swing` (one sign a half of the samples,
 * so that it cancels in the mean) makes it uncertain. */
static void fill(kv_sweep_task *t, uint32_t point, double value, double swing, double share) {
    for (uint32_t i = 0; i < t->n; i++)
        t->v[(size_t)point * t->n + i] = sample_of(value + (i % 2 ? swing : -swing), share);
}

static void choices_by_the_rule(void **state) {
    (void)state;
    enum { N = 20, P = 6 };
    static const kv_sweep_point points[P] = {{"full", "full", NAN}, {"a", "a", .2},  {"b", "b", .2},
                                             {"c", "c", .1},        {"d", "d", NAN}, {"e", "e", .1}};
    static const double shares[] = {1, .2, .15, .1, .05};
    kv_sweep_task t[2] = {make_task(KV_SWEEP_SCORE, P, N), make_task(KV_SWEEP_SCORE, P, N)};
    for (int k = 0; k < 2; k++) fill(&t[k], 0, 1, 0, 1);
    /* a leads in the mean by a noisy task 1, and b certainly beats it in task 0: a is put aside */
    fill(&t[0], 1, .80, 0, .2);
    fill(&t[1], 1, .95, .5, .2);
    fill(&t[0], 2, .85, 0, .203);
    fill(&t[1], 2, .85, -.5, .203); /* swings against a: neither is certainly better in task 1 */
    /* at .1: c and e trade certain wins, so that the mean decides */
    fill(&t[0], 3, .70, 0, .1);
    fill(&t[1], 3, .60, 0, .1);
    fill(&t[0], 5, .60, 0, .1);
    fill(&t[1], 5, .65, 0, .1);
    /* d stands at .12, below both in every task */
    fill(&t[0], 4, .5, 0, .12);
    fill(&t[1], 4, .5, 0, .12);
    kv_sweep_table table = table_of(points, t, 2, shares, 5);
    assert_int_equal(table.n_choices, 5);
    assert_int_equal(table.choices[0].best, 0); /* full itself keeps to 100 % */
    assert_int_equal(table.choices[1].best, 2);
    assert_int_equal(table.choices[1].peers[0], 1); /* not certainly lower in the mean */
    assert_int_equal(table.choices[2].best, 3);     /* better and smaller than d */
    assert_int_equal(table.choices[3].best, 3);
    assert_int_equal(table.choices[3].n_peers, 0);
    assert_int_equal(table.choices[4].best, -1);
    kv_sweep_table_free(&table);
    /* Equal means: fewer bytes. */
    fill(&t[0], 5, .60, 0, .09);
    fill(&t[1], 5, .70, 0, .09);
    table = table_of(points, t, 2, shares, 5);
    assert_true(table.rows[3].ratio == table.rows[5].ratio);
    assert_int_equal(table.choices[3].best, 5);
    kv_sweep_table_free(&table);
    kv_sweep_task_free(&t[0]);
    kv_sweep_task_free(&t[1]);
}

static void split_by_stratum(void **state) {
    (void)state;
    static const char *const names[] = {"x", "y", "x", "", "y", "x"};
    kv_sweep_task t = make_task(KV_SWEEP_SCORE, 2, 6), part;
    kv_error err;
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(t.ids[i], sizeof t.ids[i], "s%u", i);
        t.v[i] = sample_of(i, 1);
        t.v[6 + i] = sample_of(10 + i, 1);
        assert_int_equal(kv_sweep_task_stratum(&t, i, names[i], &err), KVIST_OK);
    }
    assert_int_equal(t.n_strata, 3);
    for (uint32_t s = 0; s < 3; s++) {
        uint32_t k = 0;
        assert_int_equal(kv_sweep_task_split(&t, s, &part, &err), KVIST_OK);
        assert_string_equal(part.name, t.strata[s]);
        for (uint32_t i = 0; i < 6; i++) {
            if (strcmp(names[i], part.name) != 0) continue;
            assert_string_equal(part.ids[k], t.ids[i]);
            assert_true(part.v[k].value == i && part.v[part.n + k].value == 10 + i);
            k++;
        }
        assert_int_equal(part.n, k);
        kv_sweep_task_free(&part);
    }
    kv_sweep_task_free(&t);
}

static void refused(void **state) {
    (void)state;
    kv_sweep_point points[2] = {{"full", "full", NAN}, {"a", "a", .2}};
    kv_sweep_task t = make_task(KV_SWEEP_SCORE, 2, 3);
    kv_sweep_rules rules = {NULL, 0, .97, 0};
    kv_sweep_table table;
    kv_error err;
    assert_int_equal(kv_sweep_analyse(points, 1, &t, 1, &rules, &table, &err), KVIST_E_ARG);
    assert_non_null(strstr(err.message, "made up"));
    assert_int_equal(kv_sweep_analyse(points, 2, &t, 0, &rules, &table, &err), KVIST_E_ARG);
    for (uint64_t k = 1; k < 12; k++) { /* out of memory anywhere: an error, nothing kept */
        kv_alloc_test_fail_at(k);
        kv_status st = kv_sweep_analyse(points, 2, &t, 1, &rules, &table, &err);
        kv_alloc_test_fail_at(0);
        if (st == KVIST_OK) kv_sweep_table_free(&table);
        assert_true(st == KVIST_OK || st == KVIST_E_MEMORY);
    }
    kv_sweep_task_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_as_written),    cmocka_unit_test(default_points), cmocka_unit_test(one_policy_once),
        cmocka_unit_test(wrong_points),         cmocka_unit_test(groups_fit),
        cmocka_unit_test(weights_of_resamples), cmocka_unit_test(intervals_in_closed_form),
        cmocka_unit_test(ratios_of_each_kind),  cmocka_unit_test(verdicts),
        cmocka_unit_test(fronts_naively),       cmocka_unit_test(choices_by_the_rule),
        cmocka_unit_test(split_by_stratum),     cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
