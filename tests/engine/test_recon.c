/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores `recon` and `reconq`: a double-precision transformer reads the prompt with each piece of it once more behind;
 * what those rows attend to is the score, for `reconq` with 16 times what the prompt's last rows attend to before
 * themselves. What the engine keeps of each KV head, and at what price, must agree.
 */
#include "engine/fixture.h"
#include "support/naive.h"

#include <math.h>

enum { N = 600, PIECE = 512, LAYERS = 2, NQ = 4, NKV = 2, G = NQ / NKV, SINK = 4, RECENT = 16, WINDOW = 32 };

typedef struct echo {
    uint32_t stride, from, piece; /* from: first row that counts */
    double votes;
    double mass[LAYERS][NQ][N]; /* of the prompt's last 32 rows */
    double score[LAYERS][NKV][N]; /* sum over the group and the echo's rows of p^2 */
} echo;

static void watch(void *user, uint32_t layer, uint32_t row, uint32_t head, const double *p) {
    echo *e = user;
    for (uint32_t t = 0; !e->piece && row < N && row >= N - WINDOW && t <= row; t++) e->mass[layer][head][t] += p[t];
    if (row < e->from || (row - e->from) % e->stride || (row < N && e->piece)) return;
    double weight = row < N ? e->votes : 1;
    uint32_t end = row < N ? e->from : N; /* the voting rows' own keys get no votes */
    for (uint32_t t = 0; t < end; t++) e->score[layer][head / G][t] += weight * p[t] * p[t];
}

static gen_spec spec(void) {
    gen_spec g = fixture_spec();
    g.n_layers = LAYERS;
    g.n_heads = NQ;
    g.n_kv = NKV;
    g.head_dim = 32;
    g.n_embd = 64;
    g.type = KV_TYPE_F32;
    return g;
}

/* Of a sync of ids[start, N). */
static void read_pieces(const char *path, const int32_t *ids, uint32_t start, echo *e) {
    int32_t both[N + PIECE];
    memcpy(both, ids, N * sizeof *ids);
    for (uint32_t from = start; from < N; from += PIECE) {
        uint32_t n = N - from < PIECE ? N - from : PIECE;
        double *logits;
        memcpy(both + N, ids + from, n * sizeof *ids);
        assert_true(naive_forward_probed(path, both, N + n, &logits, watch, e) > 0);
        free(logits);
        e->piece++;
    }
}

/* Sum of the best `count` of x[SINK, N - RECENT). */
static double best_sum(const double *x, uint32_t count) {
    bool taken[N] = {false};
    double sum = 0;
    for (uint32_t c = 0; c < count; c++) {
        uint32_t best = N;
        for (uint32_t t = SINK; t < N - RECENT; t++)
            if (!taken[t] && (best == N || x[t] > x[best])) best = t;
        taken[best] = true;
        sum += x[best];
    }
    return sum;
}

/* Least over the group: what the kept tokens hold of the window's attention, without sinks and recent ones. */
static double retained(const echo *e, uint32_t l, uint32_t h, const bool *kept) {
    double least = 1;
    for (uint32_t q = h * G; q < (h + 1) * G; q++) {
        double held = 0, all = 0;
        for (uint32_t t = SINK; t < N - RECENT; t++) {
            all += e->mass[l][q][t];
            if (kept[t]) held += e->mass[l][q][t];
        }
        least = fmin(least, held / all);
    }
    return least;
}

static void check_head(const kvist_session *s, const echo *e, uint32_t l, uint32_t h, double mass) {
    bool is_kept[N] = {false};
    uint32_t pos[N], count = 0;
    float prices[N];
    size_t n = kvist_session_kept(s, l, h, pos, prices, NULL, N);
    double kept = 0, priced = 0;
    assert_int_equal(n, N * 3 / 10);
    for (size_t i = 0; i < n; i++) {
        is_kept[pos[i]] = true;
        if (isinf(prices[i])) continue;
        kept += e->score[l][h][pos[i]];
        priced += (double)prices[i];
        count++;
    }
    assert_int_equal(count, n - SINK - RECENT);
    double want = best_sum(e->score[l][h], count);
    if (!(kept > .999 * want)) fail_msg("layer %u head %u: keeps %.6f of %.6f", l, h, kept, want);
    if (!(fabs(priced - kept) < 1e-3 * kept)) fail_msg("layer %u head %u: priced %.6f, is %.6f", l, h, priced, kept);
    want = retained(e, l, h, is_kept);
    if (!(fabs(mass - want) < 3e-3)) fail_msg("layer %u head %u: mass %.5f, is %.5f", l, h, mass, want);
}

/* before: tokens of a first sync, too few for a page: keys of the second one's run. */
static void check_after(uint32_t before, const char *policy, uint32_t stride, uint32_t window) {
    static echo e;
    fixture fx;
    gen_spec g = spec();
    kvist_error err;
    int32_t ids[N];
    e = (echo){.stride = stride, .from = N - window, .votes = 16};
    fixture_open(&fx, &g);
    fixture_ids(ids, N, 8);
    read_pieces(fx.path, ids, before, &e);
    kvist_engine *eng = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .precise = 1, .ubatch = 90, .n_ctx = N});
    kvist_session *s = fixture_session(eng, policy); /* the context is full: the echo's positions lie behind it */
    assert_int_equal(kvist_session_track(s, true, &err), KVIST_OK);
    if (before) must_sync(s, ids, before);
    must_sync(s, ids, N);
    kvist_stream_report streams[LAYERS * NKV];
    assert_int_equal(kvist_session_streams(s, streams, LAYERS * NKV), LAYERS * NKV);
    for (uint32_t i = 0; i < LAYERS * NKV; i++) check_head(s, &e, i / NKV, i % NKV, (double)streams[i].mass);
    kvist_session_close(&s);
    kvist_engine_close(&eng);
    fixture_close(&fx);
}

static void check(const char *policy, uint32_t stride, uint32_t window) { check_after(0, policy, stride, window); }

static void attention_of_the_echo(void **state) { check("full,score=recon,keep=0.3,sink=4,recent=16", 1, 0); }
static void every_third_row(void **state) { check("full,score=recon,stride=3,keep=0.3,sink=4,recent=16", 3, 0); }
static void votes_beside_the_echo(void **state) { check("full,score=reconq,keep=0.3,sink=4,recent=16", 1, WINDOW); }
static void every_third_vote(void **state) { check("full,score=reconq,stride=3,keep=0.3,sink=4,recent=16", 3, WINDOW); }
static void votes_for_keys_before_the_sync(void **state) { check_after(20, "full,score=reconq,tokens=180,sink=4,recent=16", 1, WINDOW); }

/* The echo is read for scores only: the prompt's logits are the full cache's, and its time is scoring's. */
static void leaves_no_trace(void **state) {
    fixture fx;
    gen_spec g = spec();
    int32_t ids[N];
    fixture_open(&fx, &g);
    fixture_ids(ids, N, 9);
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 1});
    kvist_session *full = fixture_session(e, "full"), *s = fixture_session(e, "full,score=recon,stride=512,keep=0.5");
    must_sync(full, ids, N);
    must_sync(s, ids, N);
    assert_int_equal(logits_hash(&fx, full), logits_hash(&fx, s));
    kvist_report r;
    kvist_session_report(s, &r);
    assert_true(r.score_seconds > 0 && r.score_seconds < r.prefill_seconds && r.prefill_tokens == N);
    kvist_session_close(&s);
    kvist_session_close(&full);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_of_the_echo),
        cmocka_unit_test(every_third_row),
        cmocka_unit_test(votes_beside_the_echo),
        cmocka_unit_test(every_third_vote),
        cmocka_unit_test(votes_for_keys_before_the_sync),
        cmocka_unit_test(leaves_no_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
