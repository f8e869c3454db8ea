/* SPDX-License-Identifier: Apache-2.0 */
/* Company changes nothing: threads, micro-steps, batches, other sessions, page reuse and rollback leave every bit as it
 * was. */
#include "engine/fixture.h"

#include <pthread.h>

enum { PROMPT = 333, MORE = 61, STEPS = 150, TOTAL = PROMPT + STEPS + MORE + 20 };

static fixture fx;
static int32_t ids[8][TOTAL];

static int setup(void **state) {
    (void)state;
    gen_spec g = fixture_spec();
    fixture_open(&fx, &g);
    for (int i = 0; i < 8; i++) fixture_ids(ids[i], TOTAL, 100 + (uint64_t)i);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    fixture_close(&fx);
    return 0;
}

/* Reads, generates, reads more, generates: the hash of three logit rows. */
static uint64_t script(kvist_session *s, const int32_t *t) {
    must_sync(s, t, PROMPT);
    uint64_t h = logits_hash(&fx, s);
    must_decode(s, t, PROMPT, PROMPT + STEPS);
    h = h * 31 + logits_hash(&fx, s);
    must_sync(s, t, PROMPT + STEPS + MORE);
    must_decode(s, t, PROMPT + STEPS + MORE, TOTAL);
    return h * 31 + logits_hash(&fx, s);
}

static uint64_t solo(const char *policy, const int32_t *t, kvist_engine_params p) {
    kvist_engine *e = fixture_engine(&fx, p);
    kvist_session *s = fixture_session(e, policy);
    uint64_t h = script(s, t);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    return h;
}

static void threads_and_microsteps(void **state) {
    (void)state;
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        uint64_t want = solo(fixture_policies[i], ids[0], (kvist_engine_params){.threads = 1, .ubatch = 512});
        static const kvist_engine_params other[] = {{.threads = 2, .ubatch = 512},
                                                    {.threads = 3, .ubatch = 64},
                                                    {.threads = 2, .ubatch = 7},
                                                    {.threads = 1, .ubatch = 100}};
        for (int j = 0; j < 4; j++)
            if (solo(fixture_policies[i], ids[0], other[j]) != want)
                fail_msg("%s: %u threads, ubatch %u differ", fixture_policies[i], other[j].threads, other[j].ubatch);
    }
}

typedef struct worker {
    kvist_session *s;
    const int32_t *t;
    uint64_t hash;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    w->hash = script(w->s, w->t);
    return NULL;
}

static void ignore_row(void *user, size_t position, const float *logits) { (void)user, (void)position, (void)logits; }

/* Rows whose logits nobody wants are not computed in the last layer: that changes no row that is, nor the cache. */
static void rows_nobody_wants(void **state) {
    (void)state;
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        uint64_t want = solo(fixture_policies[i], ids[1], (kvist_engine_params){.threads = 2, .ubatch = 64});
        for (size_t first = 0; first < PROMPT; first += 150) {
            kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .ubatch = 64});
            kvist_session *s = fixture_session(e, fixture_policies[i]);
            kvist_error err;
            if (kvist_session_sync_rows(s, ids[1], PROMPT, first, ignore_row, NULL, &err)) fail_msg("%s", err.message);
            if (script(s, ids[1]) != want) fail_msg("%s: rows from %zu wanted differ", fixture_policies[i], first);
            kvist_session_close(&s);
            kvist_engine_close(&e);
        }
    }
}

/* Eight sessions of mixed policies, each in its own thread, twice (the second time on reused pages). */
static void mixed_company(void **state) {
    (void)state;
    static const int pick[8] = {0, 3, 9, 12, 2, 5, 7, 13};
    uint64_t want[8];
    for (int i = 0; i < 8; i++) want[i] = solo(fixture_policies[pick[i]], ids[i], (kvist_engine_params){.threads = 2});
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .ubatch = 96, .kv_bytes = 256u << 20});
    for (int round = 0; round < 2; round++) {
        worker w[8];
        pthread_t t[8];
        for (int i = 0; i < 8; i++) w[i] = (worker){.s = fixture_session(e, fixture_policies[pick[i]]), .t = ids[i]};
        for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
        for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
        for (int i = 0; i < 8; i++) {
            if (w[i].hash != want[i]) fail_msg("round %d: %s differs in company", round, fixture_policies[pick[i]]);
            kvist_session_close(&w[i].s);
        }
    }
    kvist_engine_close(&e);
}

/* One call for eight sessions, in lockstep. */
static void batched_decode(void **state) {
    (void)state;
    static const int pick[8] = {0, 3, 9, 12, 1, 5, 7, 10};
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .kv_bytes = 256u << 20});
    kvist_session *s[8];
    kvist_error err;
    for (int i = 0; i < 8; i++) {
        s[i] = fixture_session(e, fixture_policies[pick[i]]);
        must_sync(s[i], ids[i], PROMPT - 13 * (size_t)i);
    }
    for (int k = 0; k < STEPS; k++) {
        int32_t next[8];
        for (int i = 0; i < 8; i++) next[i] = ids[i][PROMPT - 13 * i + k];
        if (kvist_decode_batch(s, next, 8, &err)) fail_msg("%s", err.message);
    }
    for (int i = 0; i < 8; i++) {
        kvist_engine *e1 = fixture_engine(&fx, (kvist_engine_params){.threads = 1});
        kvist_session *one = fixture_session(e1, fixture_policies[pick[i]]);
        size_t n = PROMPT - 13 * (size_t)i;
        must_sync(one, ids[i], n);
        must_decode(one, ids[i], n, n + STEPS);
        if (logits_hash(&fx, one) != logits_hash(&fx, s[i]))
            fail_msg("%s differs in a batch", fixture_policies[pick[i]]);
        kvist_session_close(&one);
        kvist_engine_close(&e1);
        kvist_session_close(&s[i]);
    }
    kvist_engine_close(&e);
}

static void syncs_in_pieces(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *whole = fixture_session(e, "full,format=f16");
    must_sync(whole, ids[1], PROMPT);
    static const size_t pieces[][6] = {
        {1, PROMPT}, {64, 128, PROMPT}, {15, 16, 17, 100, 331, PROMPT}, {PROMPT - 1, PROMPT}};
    for (size_t i = 0; i < 4; i++) {
        kvist_session *s = fixture_session(e, "full,format=f16");
        for (size_t k = 0; k < 6 && pieces[i][k]; k++) must_sync(s, ids[1], pieces[i][k]);
        assert_true(logits_hash(&fx, s) == logits_hash(&fx, whole));
        must_decode(s, ids[1], PROMPT, PROMPT + 40);
        kvist_session_close(&s);
    }
    kvist_session_close(&whole);
    kvist_engine_close(&e);
}

/* Truncation equals never having been there: compared with a session that made the same calls, cut at n. */
static void rollback(void **state) {
    (void)state;
    static const uint32_t cuts[] = {
        1, 17, 200, PROMPT, PROMPT + 1, PROMPT + 70, PROMPT + STEPS, PROMPT + STEPS + 30, TOTAL - 1};
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .kv_bytes = 256u << 20});
    for (int i = 0; i < FIXTURE_POLICIES; i++)
        for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
            uint32_t n = cuts[c], a = n < PROMPT ? n : PROMPT, b = PROMPT + STEPS, d = b + MORE;
            kvist_session *s = fixture_session(e, fixture_policies[i]), *f = fixture_session(e, fixture_policies[i]);
            (void)script(s, ids[2]);
            must_truncate(s, n);
            assert_int_equal(kvist_session_length(s), n);
            must_sync(f, ids[2], a);
            if (n > PROMPT) must_decode(f, ids[2], PROMPT, n < b ? n : b);
            if (n > b) must_sync(f, ids[2], n < d ? n : d);
            if (n > d) must_decode(f, ids[2], d, n);
            must_decode(s, ids[3], n, n + 37);
            must_decode(f, ids[3], n, n + 37);
            if (logits_hash(&fx, s) != logits_hash(&fx, f))
                fail_msg("%s: truncated to %u differs", fixture_policies[i], n);
            kvist_report rs, rf;
            kvist_session_report(s, &rs);
            kvist_session_report(f, &rf);
            assert_int_equal(rs.bytes_true, rf.bytes_true);
            assert_true(rs.mass_min == rf.mass_min && rs.mass_mean == rf.mass_mean &&
                        rs.mass_position == rf.mass_position);
            kvist_session_close(&s);
            kvist_session_close(&f);
        }
    kvist_engine_close(&e);
}

/* Logits after going back to the end of a sync, and after asking for the same history again. */
static void logits_come_back(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        kvist_session *s = fixture_session(e, fixture_policies[i]);
        must_sync(s, ids[4], PROMPT);
        uint64_t h = logits_hash(&fx, s);
        must_decode(s, ids[4], PROMPT, PROMPT + 10);
        uint64_t h10 = logits_hash(&fx, s);
        must_decode(s, ids[4], PROMPT + 10, PROMPT + 30);
        must_truncate(s, PROMPT + 10);
        must_sync(s, ids[4], PROMPT + 10);
        if (logits_hash(&fx, s) != h10)
            fail_msg("%s: logits of a generated row did not come back", fixture_policies[i]);
        must_truncate(s, PROMPT);
        if (logits_hash(&fx, s) != h) fail_msg("%s: logits of the prompt did not come back", fixture_policies[i]);
        kvist_session_close(&s);
    }
    kvist_engine_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_microsteps), cmocka_unit_test(mixed_company), cmocka_unit_test(batched_decode),
        cmocka_unit_test(syncs_in_pieces),        cmocka_unit_test(rollback),      cmocka_unit_test(logits_come_back),
        cmocka_unit_test(rows_nobody_wants)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
