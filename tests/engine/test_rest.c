/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `rest=1` in a prompt: logits come nearer to the full cache's than without it, in the same true bytes; the token is no position of the
 * prompt; and it is the same bits whatever reads beside it.
 */
#include "engine/fixture.h"

#include <math.h>
#include <stdio.h>

enum { N = 1100, AFTER = 24, WORDS = 3 };

static const char policy[] = "full,score=reconq,alloc=global,format=q2s,share=0.12,sink=16,recent=4+";
static const char with_rest[] = "full,score=reconq,alloc=global,format=q2s,share=0.12,sink=16,recent=4+,rest=1";

static gen_spec spec(void) {
    gen_spec g = fixture_spec();
    g.n_layers = 2;
    return g;
}

/* A text of few words: what is evicted is like what stays, and more of it. */
static void draw_ids(int32_t *ids, uint32_t n, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(test_rand(&seed) % WORDS);
}

/* Mean over generated rows of the squared distance of logits, each less its mean, to `base`; fills base where it is to be made. */
static double distance(const fixture *fx, kvist_session *s, const int32_t *ids, double *base, bool make) {
    double sum = 0;
    for (uint32_t i = 0; i < AFTER; i++) {
        must_decode(s, ids - N, N + i, N + i + 1);
        const float *x = kvist_session_logits(s);
        double mean = 0;
        for (uint32_t c = 0; c < fx->info.n_vocab; c++) mean += (double)x[c] / fx->info.n_vocab;
        for (uint32_t c = 0; c < fx->info.n_vocab; c++) {
            double *b = &base[(size_t)i * fx->info.n_vocab + c], y = (double)x[c] - mean;
            if (make) *b = y;
            else sum += (y - *b) * (y - *b) / AFTER;
        }
    }
    return sum;
}

static void nearer_in_the_same_bytes(void **state) {
    (void)state;
    fixture fx;
    gen_spec g = spec();
    int32_t ids[N + AFTER];
    fixture_open(&fx, &g);
    draw_ids(ids, N + AFTER, 3);
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .n_ctx = N + AFTER});
    double *base = calloc((size_t)AFTER * fx.info.n_vocab, sizeof *base), off[2];
    assert_non_null(base);
    uint64_t bytes[2];
    const char *texts[] = {"full", policy, with_rest};
    for (int i = 0; i < 3; i++) {
        kvist_session *s = fixture_session(e, texts[i]);
        kvist_report r;
        must_sync(s, ids, N);
        kvist_session_report(s, &r);
        double d = distance(&fx, s, ids + N, base, i == 0);
        if (i) {
            off[i - 1] = d;
            bytes[i - 1] = r.bytes_true;
            assert_true(r.share_met);
        }
        kvist_session_close(&s);
    }
    assert_int_equal(bytes[0], bytes[1]);
    if (!(off[1] < 0.35 * off[0])) fail_msg("%g away from full with a rest token, %g without", off[1], off[0]);
    free(base);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

/* Positions rise and come once; 15 sinks of a page of 16. */
static void no_position_of_the_prompt(void **state) {
    (void)state;
    fixture fx;
    gen_spec g = spec();
    kvist_error err;
    int32_t ids[N];
    uint32_t rests = 0, pos[N + 1];
    fixture_open(&fx, &g);
    draw_ids(ids, N, 4);
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 1, .n_ctx = N});
    kvist_session *s = fixture_session(e, with_rest);
    kvist_stream_report streams[4];
    assert_int_equal(kvist_session_track(s, true, &err), KVIST_OK);
    must_sync(s, ids, N);
    assert_int_equal(kvist_session_streams(s, streams, 4), 4);
    for (uint32_t i = 0; i < 4; i++) {
        bool seen[N] = {false};
        float price[N + 1];
        size_t n = kvist_session_kept(s, i / 2, i % 2, pos, price, NULL, N + 1);
        uint32_t sinks = 0;
        for (size_t k = 0; k < n; k++) {
            assert_true(pos[k] < N && !seen[pos[k]]);
            seen[pos[k]] = true;
            sinks += pos[k] < 15;
        }
        assert_int_equal(sinks, 15);
        assert_in_range(streams[i].tokens_stored - n, 0, 1);
        rests += (uint32_t)(streams[i].tokens_stored - n);
    }
    assert_true(rests >= 3); /* a head whose token brings nothing has none */
    kvist_session_close(&s);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

static uint64_t solo(const fixture *fx, const int32_t *ids, uint32_t n, kvist_engine_params p, const char *text) {
    p.n_ctx = N + AFTER;
    kvist_engine *e = fixture_engine(fx, p);
    kvist_session *s = fixture_session(e, text);
    must_sync(s, ids, n);
    must_decode(s, ids, n, n + AFTER);
    uint64_t hash = logits_hash(fx, s);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    return hash;
}

static void the_same_bits(void **state) {
    (void)state;
    fixture fx;
    gen_spec g = spec();
    kvist_error err;
    int32_t ids[N + AFTER];
    fixture_open(&fx, &g);
    draw_ids(ids, N + AFTER, 6);
    uint64_t want = solo(&fx, ids, N, (kvist_engine_params){.threads = 1, .ubatch = 512}, with_rest);
    assert_int_equal(solo(&fx, ids, N, (kvist_engine_params){.threads = 3, .ubatch = 40}, with_rest), want);
    assert_int_not_equal(solo(&fx, ids, N, (kvist_engine_params){.threads = 1}, policy), want);
    /* Beside others that read the same rows; a second question; back to the first one's start and on again. */
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .n_ctx = N + AFTER});
    kvist_session *s[3] = {fixture_session(e, "full"), fixture_session(e, with_rest), fixture_session(e, policy)};
    if (kvist_sync_many(s, 3, ids, N, &err)) fail_msg("%s", err.message);
    must_decode(s[1], ids, N, N + AFTER);
    assert_int_equal(logits_hash(&fx, s[1]), want);
    must_truncate(s[1], N);
    must_decode(s[1], ids, N, N + AFTER);
    assert_int_equal(logits_hash(&fx, s[1]), want);
    must_truncate(s[1], 700);
    must_sync(s[1], ids, N + AFTER); /* 700 again, then the rest of it as a sync of its own: no token of its own */
    kvist_report r;
    kvist_session_report(s[1], &r);
    assert_int_equal(r.tokens_seen, N + AFTER);
    for (int i = 0; i < 3; i++) kvist_session_close(&s[i]);
    kvist_engine_close(&e);
    fixture_close(&fx);
}

/* Below 512 tokens there are too few rows to fit to: the policy without it, bit for bit. */
static void short_prompts_have_none(void **state) {
    (void)state;
    fixture fx;
    gen_spec g = spec();
    int32_t ids[N];
    fixture_open(&fx, &g);
    draw_ids(ids, N, 7);
    kvist_engine_params p = {.threads = 1};
    assert_int_equal(solo(&fx, ids, 511, p, with_rest), solo(&fx, ids, 511, p, policy));
    assert_int_not_equal(solo(&fx, ids, 512, p, with_rest), solo(&fx, ids, 512, p, policy));
    fixture_close(&fx);
}

/* Three query heads share a KV head here. */
static void only_where_heads_share(void **state) {
    (void)state;
    fixture fx;
    gen_spec g = spec();
    int32_t ids[N + AFTER];
    char text[sizeof policy + 8];
    fixture_open(&fx, &g);
    draw_ids(ids, N + AFTER, 6);
    kvist_engine_params p = {.threads = 2};
    (void)snprintf(text, sizeof text, "%s,rest=4", policy);
    assert_int_equal(solo(&fx, ids, N, p, text), solo(&fx, ids, N, p, policy));
    (void)snprintf(text, sizeof text, "%s,rest=3", policy);
    assert_int_equal(solo(&fx, ids, N, p, text), solo(&fx, ids, N, p, with_rest));
    fixture_close(&fx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nearer_in_the_same_bytes), cmocka_unit_test(no_position_of_the_prompt),
                                       cmocka_unit_test(the_same_bits), cmocka_unit_test(short_prompts_have_none), cmocka_unit_test(only_where_heads_share)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
