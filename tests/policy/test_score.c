/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores against the formulas of the papers, in doubles: SnapKV sums the group, cuts the window off and pools;
 * KV-Compress pools each query head over all keys and sums the group; H2O and MiniKV sum; TOVA sums the layer; key
 * norms, KeyDiff and Expected Attention look at keys, values and the queries' moments; StreamingLLM counts.
 */
#include "support/support.h"

#include "base/half.h"
#include "policy/scores.h"

#include <math.h>

enum { MAXK = 300, MAXG = 8, MAXH = 3, MAXD = 16 };

/* One layer's run: sums of all heads, keys and values of one KV head. */
typedef struct run {
    kv_score_input in;
    uint16_t k[MAXK * MAXD], v[MAXK * MAXD];
    float sums[MAXH * MAXG * (MAXK + 5)], forms[MAXG * (MAXK + 3)];
} run;

static void rows(const void *user, uint32_t first, uint32_t n, uint16_t *k, uint16_t *v) {
    const run *r = user;
    assert_true(first + n <= r->in.n_keys);
    if (k) memcpy(k, r->k + (size_t)first * r->in.dk, (size_t)n * r->in.dk * sizeof *k);
    if (v) memcpy(v, r->v + (size_t)first * r->in.dv, (size_t)n * r->in.dv * sizeof *v);
}

static double key(const run *r, uint32_t i, uint32_t c) { return (double)kv_f16_f32(r->k[i * r->in.dk + c]); }
static double value(const run *r, uint32_t i, uint32_t c) { return (double)kv_f16_f32(r->v[i * r->in.dv + c]); }

static double pool_at(const double *x, uint32_t n, uint32_t width, uint32_t i) {
    double best = -INFINITY;
    for (int64_t j = (int64_t)i - width / 2; j <= (int64_t)i + width / 2; j++)
        if (j >= 0 && j < n && x[j] > best) best = x[j];
    return best;
}

/* sum over the channels of |x|^power. */
static double norm_of(const run *r, bool values, uint32_t i, int power) {
    double sum = 0;
    for (uint32_t c = 0; c < (values ? r->in.dv : r->in.dk); c++)
        sum += pow(fabs(values ? value(r, i, c) : key(r, i, c)), power);
    return sum;
}

/* The paper's number for key i (not pooled), for scores that are one number a key. */
static double plain(const char *score, const run *r, uint32_t i) {
    const kv_score_input *in = &r->in;
    if (!strcmp(score, "tova")) {
        double sum = 0;
        for (uint32_t q = 0; q < in->n_heads * in->group; q++) sum += in->sums[q * in->stride + i];
        return sum;
    }
    if (!strcmp(score, "knorm")) return 1 / sqrt(norm_of(r, false, i, 2));
    if (!strcmp(score, "keydiff")) {
        double anchor[MAXD] = {0}, dot = 0, aa = 0;
        for (uint32_t t = 0; t < in->n_keys; t++)
            for (uint32_t c = 0; c < in->dk; c++)
                anchor[c] += key(r, t, c) / sqrt(norm_of(r, false, t, 2)) / in->n_keys;
        for (uint32_t c = 0; c < in->dk; c++) {
            dot += anchor[c] * key(r, i, c);
            aa += anchor[c] * anchor[c];
        }
        return 1 - dot / sqrt(aa * norm_of(r, false, i, 2));
    }
    if (!strcmp(score, "expected")) {
        double mean = 0;
        for (uint32_t g = 0; g < in->group; g++) {
            double sum = 0;
            const float *z = in->forms + g * in->forms_stride;
            for (uint32_t t = in->cand0; t < in->n_keys; t++) sum += exp((double)z[t]);
            mean += exp((double)z[i]) / sum / in->group;
        }
        return mean * sqrt(norm_of(r, true, i, 2));
    }
    double sum = 0; /* attn, vote, recon, reconq */
    for (uint32_t g = 0; g < in->group; g++) sum += in->sums[(in->head * in->group + g) * in->stride + i];
    return sum;
}

/* Asked for candidates 0, 1, ... of a run in turn: what is one number a key is made for the first of them. */
static double naive(const char *score, const run *r, uint32_t width, uint32_t c) {
    static double x[MAXK];
    const kv_score_input *in = &r->in;
    if (!strcmp(score, "position")) return in->cand0 + c;
    if (!strncmp(score, "vote2", 5)) {
        double sum = 0;
        for (uint32_t g = 0; g < in->group; g++) {
            for (uint32_t k = 0; k < in->n_keys; k++) x[k] = in->sums[(in->head * in->group + g) * in->stride + k];
            sum += pool_at(x, in->n_keys, width, in->cand0 + c);
        }
        return score[5] ? sum * norm_of(r, true, in->cand0 + c, 2) : sum;
    }
    for (uint32_t k = 0; !c && k < in->n_cand; k++) x[k] = plain(score, r, in->cand0 + k);
    double pooled = pool_at(x, in->n_cand, width, c);
    return !strcmp(score, "votev") ? pooled * norm_of(r, true, in->cand0 + c, 1) : pooled;
}

static void fill_run(run *r, uint64_t bits, uint32_t most, uint64_t *seed) {
    uint32_t n_keys = 1 + (uint32_t)((bits >> 16) % most), cand0 = (uint32_t)((bits >> 32) % (n_keys + 1));
    r->in = (kv_score_input){.layer = 2,
                             .n_heads = 1 + (uint32_t)((bits >> 4) % MAXH),
                             .group = 1 + (uint32_t)((bits >> 8) % MAXG),
                             .first_pos = 40,
                             .n_keys = n_keys,
                             .cand0 = cand0,
                             .n_cand = (uint32_t)((bits >> 44) % (n_keys - cand0 + 1)),
                             .sums = r->sums,
                             .stride = n_keys + 5,
                             .rows = rows,
                             .run = r,
                             .dk = 2 * (1 + (uint32_t)((bits >> 24) % (MAXD / 2))),
                             .dv = 1 + (uint32_t)((bits >> 12) % MAXD),
                             .forms = r->forms,
                             .forms_stride = n_keys + 3};
    r->in.head = (uint32_t)(bits >> 60) % r->in.n_heads;
    for (uint32_t i = 0; i < r->in.n_heads * r->in.group * r->in.stride; i++) r->sums[i] = fabsf(test_normal(seed));
    for (uint32_t i = 0; i < r->in.group * r->in.forms_stride; i++) r->forms[i] = 3 * test_normal(seed);
    for (uint32_t i = 0; i < n_keys * r->in.dk; i++) r->k[i] = kv_f32_f16(test_normal(seed) + 1);
    for (uint32_t i = 0; i < n_keys * r->in.dv; i++) r->v[i] = kv_f32_f16(test_normal(seed));
}

static kv_policy policy_of(const char *text) {
    kv_policy p;
    kv_error err;
    if (kv_policy_parse(text, &p, &err)) fail_msg("%s", err.message);
    return p;
}

static void formulas(void **state) {
    static const char *const names[] = {"attn", "vote",  "vote2",   "position", "votev",
                                        "tova", "knorm", "keydiff", "expected", "vote2v", "recon", "reconq"};
    static float score[MAXK + 1], scratch[2 * MAXK + 1];
    static run r;
    static const uint32_t widths[] = {1, 3, 5, 7, 63};
    uint64_t seed = 3;
    for (int round = 0; round < 3000; round++) {
        uint64_t bits = test_rand(&seed);
        const char *name = names[round % 12];
        uint32_t width = widths[(bits >> 28) % 5];
        fill_run(&r, test_rand(&seed), round < 700 ? 9 : MAXK, &seed);
        char text[64];
        (void)snprintf(text, sizeof text, "full,score=%s,pool=%u", name, width);
        kv_policy p = policy_of(text);
        score[r.in.n_cand] = scratch[2 * r.in.n_keys] = 12345;
        kv_score_stream(&p.base, &r.in, score, scratch);
        assert_true(score[r.in.n_cand] == 12345 && scratch[2 * r.in.n_keys] == 12345);
        for (uint32_t c = 0; c < r.in.n_cand; c++) {
            double want = naive(name, &r, width, c);
            if (!(fabs(score[c] - want) <= 5e-6 * (1 + fabs(want))) || score[c] < 0)
                fail_msg("%s group %u keys %u [%u, +%u) pool %u: %g, not %g", name, r.in.group, r.in.n_keys, r.in.cand0,
                         r.in.n_cand, width, score[c], want);
        }
    }
}

/* The window's keys are outside SnapKV's pooling and inside KV-Compress's: two heads, one spike each beyond the
 * candidates. */
static void pooling_at_the_edge(void **state) {
    float sums[2][6] = {{1, 2, 3, 4, 50, 0}, {1, 1, 1, 1, 0, 60}}, score[4], scratch[12];
    kv_score_input in = {.n_heads = 1, .group = 2, .n_keys = 6, .n_cand = 4, .sums = &sums[0][0], .stride = 6};
    kv_policy p = policy_of("snapkv,pool=3");
    kv_score_stream(&p.base, &in, score, scratch);
    assert_true(score[0] == 3 && score[1] == 4 && score[2] == 5 && score[3] == 5);
    p = policy_of("kvcompress,pool=3");
    kv_score_stream(&p.base, &in, score, scratch);
    assert_true(score[0] == 2 + 1 && score[1] == 3 + 1 && score[2] == 4 + 1 && score[3] == 50 + 1);
}

/* Keys without direction, without length, and without numbers. */
static void strange_keys(void **state) {
    static run r;
    uint64_t seed = 4;
    float score[8], scratch[16];
    fill_run(&r, 0, 1, &seed);
    r.in.n_keys = r.in.n_cand = 8;
    r.in.cand0 = r.in.head = 0;
    for (uint32_t i = 0; i < 8 * r.in.dk; i++) r.k[i] = kv_f32_f16(1);
    for (uint32_t c = 0; c < r.in.dk; c++) {
        r.k[1 * r.in.dk + c] = 0;
        r.k[5 * r.in.dk + c] = 0x7e00; /* NaN */
    }
    kv_policy p = policy_of("knorm");
    kv_score_stream(&p.base, &r.in, score, scratch);
    assert_true(score[1] > 1e38f && isfinite(score[1]) && isnan(score[5]) && score[0] == score[7]);
    p = policy_of("keydiff");
    kv_score_stream(&p.base, &r.in, score, scratch);
    assert_true(score[1] == 1 && isnan(score[5]) && fabsf(score[0]) < 1e-6f && score[0] == score[7]);
}

/* The control: each head draws its own, a position keeps its number whatever is evicted before it, and the mean is that
 * of a uniform draw. */
static void random_control(void **state) {
    static float a[3000], b[3000], scratch[6000];
    kv_policy p = policy_of("full,score=random");
    kv_score_input in = {
        .layer = 3, .head = 1, .n_heads = 2, .group = 1, .first_pos = 0, .n_keys = 3000, .n_cand = 3000};
    kv_score_stream(&p.base, &in, a, scratch);
    double mean = 0;
    for (uint32_t i = 0; i < 3000; i++) {
        assert_true(a[i] >= 0 && a[i] < 1);
        mean += a[i] / 3000;
    }
    assert_true(fabs(mean - .5) < .03);
    in.first_pos = 100;
    in.cand0 = 20;
    in.n_cand = 1000;
    kv_score_stream(&p.base, &in, b, scratch);
    for (uint32_t i = 0; i < 1000; i++) assert_true(b[i] == a[120 + i]);
    for (uint32_t other = 0; other < 2; other++) {
        uint32_t same = 0;
        in.first_pos = in.cand0 = 0;
        in.layer = other ? 4 : 3;
        in.head = other ? 1 : 0;
        kv_score_stream(&p.base, &in, b, scratch);
        for (uint32_t i = 0; i < 1000; i++) same += b[i] == a[i];
        assert_true(same < 5);
    }
}

/* Expected Attention's forms from moments: queries drawn from a Gaussian, each turned by every rotation of the future;
 * the average of the turned matrices applied to mean and covariance, in doubles. */
static void expected_forms(void **state) {
    enum { D = 10, ROT = 8, N = 200, FUTURE = 37 };
    uint64_t seed = 11;
    for (int neox = 0; neox < 2; neox++) {
        double q[N][D], mean[D] = {0}, cov[D][D] = {{0}}, R[D][D] = {{0}}, t[D][D] = {{0}}, turned[D][D] = {{0}},
                        mu[D] = {0};
        float pivot[D], sum[D] = {0}, outer[D * D] = {0}, cs[ROT / 2], sn[ROT / 2], linear[D], square[D * D];
        for (uint32_t r = 0; r < N; r++)
            for (uint32_t c = 0; c < D; c++) q[r][c] = (double)(test_normal(&seed) * (1 + (float)c) + 5);
        for (uint32_t c = 0; c < D; c++) pivot[c] = (float)q[0][c];
        for (uint32_t r = 0; r < N; r++)
            for (uint32_t i = 0; i < D; i++) {
                mean[i] += q[r][i] / N;
                sum[i] += (float)q[r][i] - pivot[i];
                for (uint32_t j = 0; j <= i; j++)
                    outer[i * D + j] += ((float)q[r][i] - pivot[i]) * ((float)q[r][j] - pivot[j]);
            }
        for (uint32_t r = 0; r < N; r++)
            for (uint32_t i = 0; i < D; i++)
                for (uint32_t j = 0; j < D; j++) cov[i][j] += (q[r][i] - mean[i]) * (q[r][j] - mean[j]) / N;
        for (uint32_t c = ROT; c < D; c++) R[c][c] = 1;
        for (uint32_t i = 0; i < ROT / 2; i++) {
            double co = 0, si = 0;
            for (uint32_t f = 0; f < FUTURE; f++) {
                double a = (300 + f) * pow(10000, -2.0 * i / ROT);
                co += cos(a) / FUTURE;
                si += sin(a) / FUTURE;
            }
            cs[i] = (float)co;
            sn[i] = (float)si;
            uint32_t a = neox ? i : 2 * i, b = neox ? i + ROT / 2 : 2 * i + 1;
            R[a][a] = R[b][b] = co;
            R[a][b] = -si;
            R[b][a] = si;
        }
        for (uint32_t i = 0; i < D; i++)
            for (uint32_t j = 0; j < D; j++) {
                mu[i] += R[i][j] * mean[j];
                for (uint32_t k = 0; k < D; k++) t[i][j] += R[i][k] * cov[k][j];
            }
        for (uint32_t i = 0; i < D; i++)
            for (uint32_t j = 0; j < D; j++)
                for (uint32_t k = 0; k < D; k++) turned[i][j] += t[i][k] * R[j][k];
        kv_score_moments m = {N, pivot, sum, outer};
        kv_score_rotation rot = {cs, sn, ROT, neox != 0};
        kv_score_forms(&m, &rot, D, .3f, linear, square);
        for (int k = 0; k < 50; k++) {
            double key[D], want = 0, got = 0;
            for (uint32_t i = 0; i < D; i++) key[i] = (double)test_normal(&seed);
            for (uint32_t i = 0; i < D; i++) {
                want += .3 * mu[i] * key[i];
                double inner = (double)linear[i];
                for (uint32_t j = 0; j < D; j++) {
                    want += .3 * .3 / 2 * key[i] * turned[i][j] * key[j];
                    inner += (double)square[i * D + j] * key[j];
                    if (j > i) assert_true(square[i * D + j] == 0);
                }
                got += key[i] * inner;
            }
            assert_true(fabs(got - want) < 1e-4 * (1 + fabs(want)));
        }
        m.n = 0;
        kv_score_forms(&m, &rot, D, .3f, linear, square);
        for (uint32_t i = 0; i < D * D; i++) assert_true(square[i] == 0 && linear[i % D] == 0);
    }
}

static void needs(void **state) {
    static const struct {
        const char *policy;
        bool pass, all, echo, square, forms;
        uint32_t window, stride;
    } cases[] = {
        {"streaming", false, false, false, false, false, 32, 1},
        {"h2o", true, true, false, false, false, 32, 1},
        {"minikv,stride=4", true, true, false, false, false, 32, 4},
        {"snapkv,window=16,stride=4", true, false, false, false, false, 16, 1},
        {"kvcompress", true, false, false, true, false, 32, 1},
        {"tova", true, false, false, false, false, 1, 1},
        {"knorm", false, false, false, false, false, 32, 1},
        {"keydiff", false, false, false, false, false, 32, 1},
        {"expected", false, false, false, false, true, 32, 1},
        {"full,score=random", false, false, false, false, false, 32, 1},
        {"full,score=votev", true, false, false, false, false, 32, 1},
        {"full,score=vote2v", true, false, false, true, false, 32, 1},
        {"full,score=recon,stride=3", true, false, true, true, false, 32, 3},
        {"full,score=reconq,window=8", true, false, true, true, false, 8, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_policy p = policy_of(cases[i].policy);
        kv_score_need n;
        kv_score_needs(&p.base, &n);
        assert_int_equal(n.pass, cases[i].pass);
        assert_int_equal(n.all_rows, cases[i].all);
        assert_int_equal(n.echo, cases[i].echo);
        assert_int_equal(n.square, cases[i].square);
        assert_int_equal(n.forms, cases[i].forms);
        assert_int_equal(n.window, cases[i].window);
        assert_int_equal(n.stride, cases[i].stride);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(formulas),       cmocka_unit_test(pooling_at_the_edge),
                                       cmocka_unit_test(strange_keys),   cmocka_unit_test(random_control),
                                       cmocka_unit_test(expected_forms), cmocka_unit_test(needs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
