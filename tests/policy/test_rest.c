/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fit of a rest token against attention computed here in double precision: on queries that the fit never saw, attention over the
 * kept tokens and the rest token must lie near attention over all of them.
 */
#include "support/support.h"

#include "base/half.h"
#include "policy/rest.h"

#include <math.h>

enum { D = 32, DV = 24, KEYS = 300, ROWS = 96, G = 3, STRIDE = 5, FRESH = 200 };

typedef struct head {
    double k[KEYS][D], v[KEYS][DV];
    uint32_t kept; /* the first ones */
    uint16_t q[G * ROWS][D], whole[G * ROWS][DV];
    float whole_lse[G * ROWS], kept_out[ROWS * STRIDE][DV], kept_lse[ROWS * STRIDE], mean[D];
    double center[D]; /* of the queries */
} head;

static const double scale = 0.2;
static double spread; /* of queries around their center */

/* Attention of q over keys [from, to) and, where k is given, one more; the log-sum-exp. */
static double attend(const head *h, const double *q, uint32_t from, uint32_t to, const float *k, const float *v, double *out) {
    double sum = 0;
    memset(out, 0, DV * sizeof *out);
    for (uint32_t t = from; t < to + (k != NULL); t++) {
        double s = 0;
        for (uint32_t c = 0; c < D; c++) s += q[c] * (t < to ? h->k[t][c] : (double)k[c]);
        double p = exp(scale * s);
        sum += p;
        for (uint32_t c = 0; c < DV; c++) out[c] += p * (t < to ? h->v[t][c] : (double)v[c]);
    }
    for (uint32_t c = 0; c < DV; c++) out[c] /= sum;
    return log(sum);
}

static void draw_query(const head *h, uint64_t *seed, double *q) {
    for (uint32_t c = 0; c < D; c++) q[c] = (double)kv_f16_f32(kv_f32_f16((float)(h->center[c] + spread * (double)test_normal(seed))));
}

/* Kept keys stand apart; those that leave lie around a point of their own, `wide` around it. */
static void draw(head *h, uint32_t kept, double wide, uint64_t seed) {
    h->kept = kept;
    for (uint32_t c = 0; c < D; c++) h->center[c] = 1.5 * (double)test_normal(&seed);
    for (uint32_t t = 0; t < KEYS; t++) {
        for (uint32_t c = 0; c < D; c++)
            h->k[t][c] = (double)test_normal(&seed) * (t < kept ? 1.0 : wide) + (t < kept ? 0 : sin(3.0 * c));
        for (uint32_t c = 0; c < DV; c++) h->v[t][c] = (double)test_normal(&seed) * (t < kept ? 1.0 : wide) + (t < kept ? 0 : 1.0);
    }
    for (uint32_t c = 0; c < D; c++) {
        double sum = 0;
        for (uint32_t t = 0; t < KEYS; t++) sum += h->k[t][c] / KEYS;
        h->mean[c] = (float)sum;
    }
    for (uint32_t i = 0; i < STRIDE * ROWS; i++) { /* other heads' */
        h->kept_lse[i] = NAN;
        for (uint32_t c = 0; c < DV; c++) h->kept_out[i][c] = NAN;
    }
    for (uint32_t i = 0; i < G * ROWS; i++) {
        double q[D], out[DV];
        uint32_t at = i % ROWS * STRIDE + i / ROWS;
        draw_query(h, &seed, q);
        for (uint32_t c = 0; c < D; c++) h->q[i][c] = kv_f32_f16((float)q[c]);
        h->whole_lse[i] = (float)attend(h, q, 0, KEYS, NULL, NULL, out);
        for (uint32_t c = 0; c < DV; c++) h->whole[i][c] = kv_f32_f16((float)out[c]);
        h->kept_lse[at] = (float)attend(h, q, 0, kept, NULL, NULL, out);
        for (uint32_t c = 0; c < DV; c++) h->kept_out[at][c] = (float)out[c];
    }
}

static bool fit(const head *h, float *k, float *v) {
    kv_rest_input in = {.group = G, .rows = ROWS, .dk = D, .dv = DV, .scale = (float)scale, .q = h->q[0], .whole = h->whole[0],
                        .whole_lse = h->whole_lse, .mean = h->mean, .kept = h->kept_out[0], .kept_lse = h->kept_lse, .stride = STRIDE};
    size_t bytes = kv_rest_scratch(&in);
    unsigned char *scratch = malloc(bytes + 16);
    assert_non_null(scratch);
    memset(scratch + bytes, 0xa5, 16);
    bool got = kv_rest_fit(&in, k, v, scratch);
    for (int i = 0; i < 16; i++) assert_int_equal(scratch[bytes + (size_t)i], 0xa5);
    free(scratch);
    return got;
}

/* Root of the squared error over fresh queries, of kept tokens alone and with the rest token. */
static void errors(const head *h, const float *k, const float *v, double *dropped, double *with) {
    uint64_t seed = 77;
    *dropped = *with = 0;
    for (uint32_t i = 0; i < FRESH; i++) {
        double q[D], all[DV], a[DV], b[DV];
        draw_query(h, &seed, q);
        (void)attend(h, q, 0, KEYS, NULL, NULL, all);
        (void)attend(h, q, 0, h->kept, NULL, NULL, a);
        (void)attend(h, q, 0, h->kept, k, v, b);
        for (uint32_t c = 0; c < DV; c++) {
            *dropped += (a[c] - all[c]) * (a[c] - all[c]);
            *with += (b[c] - all[c]) * (b[c] - all[c]);
        }
    }
    *dropped = sqrt(*dropped);
    *with = sqrt(*with);
}

/* Many equal tokens are one token with the log of their number in its logits, as far as queries have a direction in common to say so. */
static void equal_tokens_are_one(void **state) {
    static head h;
    float k[D], v[DV];
    double dropped, with;
    (void)state;
    static const struct { double spread, most; } cases[] = {{0.02, 0.02}, {0.1, 0.08}, {0.7, 0.4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spread = cases[i].spread;
        draw(&h, 100, 0, 3);
        assert_true(fit(&h, k, v));
        errors(&h, k, v, &dropped, &with);
        if (!(with < cases[i].most * dropped)) fail_msg("%g: error %g of %g", spread, with, dropped);
    }
}

static void scattered_tokens_come_near(void **state) {
    static head h;
    float k[D], v[DV];
    (void)state;
    static const struct { double wide, most; } cases[] = {{0.2, 0.45}, {0.5, 0.25}, {1.0, 0.15}};
    spread = 0.7;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double dropped, with;
        draw(&h, 60, cases[i].wide, 11 + i);
        assert_true(fit(&h, k, v));
        errors(&h, k, v, &dropped, &with);
        if (!(with < cases[i].most * dropped)) fail_msg("%g wide: error %g of %g", cases[i].wide, with, dropped);
    }
}

static void nothing_lost_nothing_gained(void **state) {
    static head h;
    float k[D], v[DV];
    (void)state;
    spread = 0.7;
    draw(&h, KEYS, 1, 5);
    assert_false(fit(&h, k, v));
    /* What the kept tokens say is wrong by chance alone: no token helps queries that were not fitted to. */
    uint64_t seed = 9;
    for (uint32_t i = 0; i < ROWS * STRIDE; i++) {
        h.kept_lse[i] -= 0.02f;
        for (uint32_t c = 0; c < DV; c++) h.kept_out[i][c] += 0.01f * test_normal(&seed);
    }
    assert_false(fit(&h, k, v));
    h.kept_out[STRIDE * 3 + 1][2] = NAN;
    assert_false(fit(&h, k, v));
}

/* A head that kept nothing at all: the token is its only one. */
static void all_lost(void **state) {
    static head h;
    float k[D], v[DV];
    (void)state;
    spread = 0.7;
    draw(&h, 0, 0.3, 21);
    for (uint32_t i = 0; i < ROWS * STRIDE; i++) {
        h.kept_lse[i] = -INFINITY;
        for (uint32_t c = 0; c < DV; c++) h.kept_out[i][c] = 0;
    }
    assert_true(fit(&h, k, v));
    for (uint32_t c = 0; c < DV; c++) assert_true(isfinite(k[c % D]) && fabs((double)v[c] - 1.0) < 0.2);
}

static void rows_and_bytes(void **state) {
    (void)state;
    assert_int_equal(kv_rest_rows(512, 3), 32);
    assert_int_equal(kv_rest_rows(4096, 3), 256);
    assert_int_equal(kv_rest_rows(1u << 20, 3), 512);
    assert_int_equal(kv_rest_rows(1u << 20, 7), 219);
    kv_rest_input one = {.group = 3, .rows = 256, .dk = 64, .dv = 64};
    assert_int_equal(kv_rest_bytes(4096, 30, 9, 3, 64, 64),
                     30ull * 9 * 256 * (64 + 64) * 2 + 30ull * 9 * 256 * 4 + 9ull * 256 * (64 + 64 + 1) * 4 + kv_rest_scratch(&one) + 30ull * 3 * 64 * 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_tokens_are_one),        cmocka_unit_test(scattered_tokens_come_near),
        cmocka_unit_test(nothing_lost_nothing_gained), cmocka_unit_test(all_lost),
        cmocka_unit_test(rows_and_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
