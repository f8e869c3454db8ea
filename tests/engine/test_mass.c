/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores, selection and retained mass end to end: a double-precision transformer says which tokens each KV head should
 * keep and how much of its attention they hold; the engine's report must agree.
 */
#include "engine/fixture.h"
#include "support/naive.h"

#include <math.h>

enum { N = 400, MAX_LAYERS = 3, NQ = 6, NKV = 2, G = NQ / NKV };

typedef struct probe {
    uint32_t window, from; /* rows of the score; square */
    bool square;
    double sums[MAX_LAYERS][NQ][N];
    double mass[MAX_LAYERS][NQ][N];
} probe;

static void watch(void *user, uint32_t layer, uint32_t row, uint32_t head, const double *p) {
    probe *w = user;
    for (uint32_t t = 0; t <= row; t++) {
        if (row >= w->from) w->sums[layer][head][t] += w->square ? p[t] * p[t] : p[t];
        if (row >= N - 32) w->mass[layer][head][t] += p[t];
    }
}

typedef struct ranked {
    double score;
    uint32_t t;
} ranked;

static int best_first(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    return x->score > y->score ? -1 : x->score < y->score ? 1 : (x->t > y->t) - (x->t < y->t);
}

/* KV-Compress: each query head's squares max-pooled over all keys, then the group sum. */
static void square_scores_of(const probe *w, uint32_t l, uint32_t h, uint32_t cand, uint32_t pool, ranked *out) {
    for (uint32_t t = 0; t < cand; t++) {
        out[t] = (ranked){0, t};
        for (uint32_t g = 0; g < G; g++) {
            const double *sum = w->sums[l][h * G + g];
            double best = 0;
            for (uint32_t k = t < pool / 2 ? 0 : t - pool / 2; k < N && k <= t + pool / 2; k++)
                if (sum[k] > best) best = sum[k];
            out[t].score += best;
        }
    }
}

/* SnapKV: group sum, max-pool over the candidates; H2O: group sum. */
static void scores_of(const probe *w, uint32_t l, uint32_t h, uint32_t cand, uint32_t pool, ranked *out) {
    if (w->square) {
        square_scores_of(w, l, h, cand, pool, out);
        return;
    }
    double sum[N];
    for (uint32_t t = 0; t < cand; t++) {
        sum[t] = 0;
        for (uint32_t g = 0; g < G; g++) sum[t] += w->sums[l][h * G + g][t];
    }
    for (uint32_t t = 0; t < cand; t++) {
        double best = sum[t];
        for (uint32_t d = 1; d <= pool / 2; d++) {
            if (t >= d && sum[t - d] > best) best = sum[t - d];
            if (t + d < cand && sum[t + d] > best) best = sum[t + d];
        }
        out[t] = (ranked){best, t};
    }
}

/* Least over the group of kept / all, over tokens that are neither sink nor recent. */
static double mass_of(const probe *w, uint32_t l, uint32_t h, const ranked *r, uint32_t cand, uint32_t keep,
                      uint32_t local) {
    double least = 1;
    for (uint32_t g = 0; g < G; g++) {
        double kept = 0, all = 0;
        for (uint32_t t = 0; t < cand + local; t++) all += w->mass[l][h * G + g][t];
        for (uint32_t i = 0; i < keep; i++) kept += w->mass[l][h * G + g][r[i].t];
        for (uint32_t t = cand; t < cand + local; t++) kept += w->mass[l][h * G + g][t];
        if (all >= 1e-3 * 32 && kept / all < least) least = kept / all;
    }
    return least;
}

static void check(const char *policy, bool all_rows, bool square, uint32_t pool, uint32_t cand, uint32_t keep,
                  uint32_t local) {
    static probe w;
    static ranked r[N];
    fixture fx;
    gen_spec g = fixture_spec();
    g.type = KV_TYPE_F32;
    fixture_open(&fx, &g);
    int32_t ids[N];
    fixture_ids(ids, N, 9);
    memset(&w, 0, sizeof w);
    w.from = all_rows ? 0 : N - 32;
    w.square = square;
    double *logits;
    assert_true(naive_forward_probed(fx.path, ids, N, &logits, watch, &w) > 0);
    free(logits);
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .precise = 1, .ubatch = 150});
    kvist_session *s = fixture_session(e, policy);
    must_sync(s, ids, N);
    kvist_stream_report sr[MAX_LAYERS * NKV];
    assert_int_equal(kvist_session_streams(s, sr, MAX_LAYERS * NKV), MAX_LAYERS * NKV);
    for (uint32_t i = 0; i < MAX_LAYERS * NKV; i++) {
        uint32_t l = sr[i].layer, h = sr[i].head;
        scores_of(&w, l, h, cand, pool, r);
        qsort(r, cand, sizeof *r, best_first);
        double want = mass_of(&w, l, h, r, cand, keep, local);
        if (fabs(want - sr[i].mass) > 2e-3)
            fail_msg("%s: layer %u head %u: mass %.5f, expected %.5f", policy, l, h, (double)sr[i].mass, want);
    }
    assert_int_equal(sr[0].tokens_stored, keep + local + (N - cand - local));
    kvist_session_close(&s);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

static void snapkv(void **state) {
    (void)state;
    check("snapkv,tokens=96", false, false, 7, N - 32, 64, 0);
}

static void h2o(void **state) {
    (void)state;
    /* keep .2 of 400 = 80 tokens, 40 of them the newest */
    check("h2o", true, false, 1, N - 40, 40, 40);
}

static void squared_votes(void **state) {
    (void)state;
    check("snapkv,score=vote2,tokens=96", false, true, 7, N - 32, 64, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(snapkv), cmocka_unit_test(h2o),
                                       cmocka_unit_test(squared_votes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
