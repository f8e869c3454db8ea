/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shadow check: on a model of one layer, whose queries and keys no compression changes, the mass it measures must
 * be what a double-precision transformer says of the kept tokens; over a full cache it finds nothing; and no token
 * changes for being watched.
 */
#include "engine/fixture.h"
#include "support/naive.h"

#include <math.h>

enum { N = 300, STEPS = 60, TOTAL = N + STEPS, NQ = 6, NKV = 2, G = NQ / NKV };

static int32_t ids[TOTAL];
static double p_of[NQ][STEPS][TOTAL];

static void watch(void *user, uint32_t layer, uint32_t row, uint32_t head, const double *p) {
    (void)user;
    if (layer == 0 && row >= N) memcpy(p_of[head][row - N], p, (row + 1) * sizeof *p);
}

static void open_model(fixture *fx, uint32_t layers) {
    gen_spec g = fixture_spec();
    g.type = KV_TYPE_F32;
    g.n_layers = layers;
    fixture_open(fx, &g);
    fixture_ids(ids, TOTAL, 21);
}

static kvist_session *shadowed(kvist_engine *e, const char *policy, uint32_t every) {
    kvist_error err;
    kvist_session *s = fixture_session(e, policy);
    if (kvist_session_set_shadow(s, every, &err)) fail_msg("%s", err.message);
    assert_int_equal(kvist_session_track(s, true, &err), 0);
    return s;
}

/* Kept / all of [sink, N - recent) over the checked rows, the least of the group; mean and least over the heads. */
static void dense(const kvist_session *s, uint32_t every, uint32_t sink, uint32_t recent, double *mean, double *least) {
    static uint32_t at[TOTAL];
    *mean = 0;
    *least = 1;
    for (uint32_t h = 0; h < NKV; h++) {
        bool has[TOTAL] = {false};
        size_t n = kvist_session_kept(s, 0, h, at, NULL, NULL, TOTAL);
        for (size_t i = 0; i < n; i++) has[at[i]] = true;
        double worst = 1;
        for (uint32_t g = h * G; g < (h + 1) * G; g++) {
            double some = 0, all = 0;
            for (uint32_t r = 0; r < STEPS; r++) {
                if ((N + r) % every) continue;
                for (uint32_t t = sink; t < N - recent; t++) {
                    all += p_of[g][r][t];
                    if (has[t]) some += p_of[g][r][t];
                }
            }
            if (some / all < worst) worst = some / all;
        }
        *mean += worst / NKV;
        if (worst < *least) *least = worst;
    }
}

static void masses_of_one_layer(void **state) {
    (void)state;
    static const struct {
        const char *policy;
        uint32_t every, sink, recent, before; /* before: tokens of a sync of their own */
    } cases[] = {{"snapkv,tokens=96", 1, 0, 32, 0},
                 {"snapkv,tokens=70,sink=7", 4, 7, 32, 0},
                 {"kvcompress,rate=6,sink=4", 3, 4, 32, 0},
                 {"minikv,keep=0.3", 7, 0, 0, 0},
                 {"full,score=vote2,alloc=global,rate=4,format=q4,sink=16,recent=16", 2, 16, 16, 0},
                 {"full,score=vote2,alloc=global,share=0.3,format=q4,sink=16/6,recent=16+", 2, 0, 28, 0},
                 /* given up at 200 tokens, where 35 % are 70, and not there at 300, where they are 105 */
                 {"full,score=vote2,alloc=global,share=0.35,format=q4,sink=16/6,recent=16", 2, 0, 16, 200}};
    fixture fx;
    open_model(&fx, 1);
    double *logits;
    assert_true(naive_forward_probed(fx.path, ids, TOTAL, &logits, watch, NULL) > 0);
    free(logits);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .precise = 1, .shadows = 1});
        kvist_session *s = shadowed(e, cases[i].policy, cases[i].every);
        kvist_report r;
        double mean, least;
        if (cases[i].before) must_sync(s, ids, cases[i].before);
        must_sync(s, ids, N);
        kvist_session_report(s, &r);
        assert_true(r.bytes_shadow > 0 && r.shadow.steps == 0);
        must_decode(s, ids, N, TOTAL);
        kvist_session_report(s, &r);
        dense(s, cases[i].every, cases[i].sink, cases[i].recent, &mean, &least);
        assert_int_equal(r.shadow.steps, (TOTAL - 1) / cases[i].every - (N - 1) / cases[i].every);
        if (fabs(r.shadow.mass_mean - mean) > 2e-3 || fabs(r.shadow.mass_min - least) > 2e-3)
            fail_msg("%s: %.4f, least %.4f; expected %.4f, %.4f", cases[i].policy, r.shadow.mass_mean,
                     r.shadow.mass_min, mean, least);
        assert_true(fabs(r.shadow.estimate_mean - r.mass_mean) < 1e-9 && r.shadow.estimate_min == r.mass_min);
        assert_true(r.shadow.error_mean > 1e-3 && r.shadow.error_max >= r.shadow.error_mean && r.shadow.error_max < 2);
        kvist_session_close(&s);
        kvist_engine_close(&e);
    }
    fixture_close(&fx);
}

/* The control: over f16 pages the output is the same up to rounding, over 8 bits nearly, over 2 bits not. */
static void nothing_evicted(void **state) {
    (void)state;
    static const struct {
        const char *policy;
        double least, most;
    } cases[] = {{"full", 0, 1e-3}, {"full,format=q8", 1e-4, .03}, {"full,format=q2s", .02, 1.5}};
    fixture fx;
    open_model(&fx, 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .precise = 2, .shadows = 1});
        kvist_session *s = shadowed(e, cases[i].policy, 1);
        kvist_report r;
        must_sync(s, ids, N);
        must_decode(s, ids, N, TOTAL);
        kvist_session_report(s, &r);
        assert_true(r.shadow.mass_mean == 1 && r.shadow.mass_min == 1 && r.shadow.estimate_min == 1);
        assert_int_equal(r.shadow.steps, STEPS);
        if (r.shadow.error_mean < cases[i].least || r.shadow.error_max > cases[i].most)
            fail_msg("%s: output off by %g, at most %g", cases[i].policy, r.shadow.error_mean, r.shadow.error_max);
        kvist_session_close(&s);
        kvist_engine_close(&e);
    }
    fixture_close(&fx);
}

/* Same logits, same bytes, watched or not; also after going back, whose replayed rows are not checked again. */
static void nothing_changes_for_being_watched(void **state) {
    (void)state;
    fixture fx;
    open_model(&fx, 3);
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .shadows = 1});
        kvist_session *a = fixture_session(e, fixture_policies[i]), *b = fixture_session(e, fixture_policies[i]);
        kvist_error err;
        kvist_report ra, rb;
        assert_int_equal(kvist_session_set_shadow(b, 1, &err), 0);
        must_sync(a, ids, N);
        must_sync(b, ids, N);
        must_decode(a, ids, N, N + 30);
        must_decode(b, ids, N, N + 30);
        assert_true(logits_hash(&fx, a) == logits_hash(&fx, b));
        must_truncate(b, N + 11);
        kvist_session_report(b, &rb);
        assert_int_equal(rb.shadow.steps, 30);
        must_decode(b, ids, N + 11, TOTAL);
        must_decode(a, ids, N + 30, TOTAL);
        if (logits_hash(&fx, a) != logits_hash(&fx, b)) fail_msg("%s differs when watched", fixture_policies[i]);
        kvist_session_report(a, &ra);
        kvist_session_report(b, &rb);
        assert_int_equal(ra.bytes_true, rb.bytes_true);
        assert_true(ra.share == rb.share && ra.bytes_shadow == 0 && rb.bytes_shadow > 0);
        assert_int_equal(rb.shadow.steps, 30 + STEPS - 11);
        kvist_session_close(&a);
        kvist_session_close(&b);
        kvist_engine_close(&e);
    }
    fixture_close(&fx);
}

static void refusals(void **state) {
    (void)state;
    fixture fx;
    kvist_error err;
    open_model(&fx, 3);
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 1, .n_ctx = 1024, .kv_bytes = 16u << 20});
    kvist_session *s = fixture_session(e, "full");
    assert_int_equal(kvist_session_set_shadow(NULL, 1, &err), KVIST_E_ARG);
    must_sync(s, ids, 10);
    assert_int_equal(kvist_session_set_shadow(s, 1, &err), KVIST_E_STATE);
    must_truncate(s, 0);
    int st = KVIST_OK, n = 0;
    kvist_session *more[16];
    while (!st && n < 16) {
        more[n] = fixture_session(e, "full");
        st = kvist_session_set_shadow(more[n++], 1, &err);
    }
    assert_int_equal(st, KVIST_E_BUDGET);
    while (n) kvist_session_close(&more[--n]);
    assert_int_equal(kvist_session_set_shadow(s, 3, &err), 0);
    assert_int_equal(kvist_session_set_shadow(s, 0, &err), 0);
    kvist_report r;
    kvist_session_report(s, &r);
    assert_int_equal(r.bytes_shadow, 0);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(masses_of_one_layer), cmocka_unit_test(nothing_evicted),
                                       cmocka_unit_test(nothing_changes_for_being_watched), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
