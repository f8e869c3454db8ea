/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One prompt read for many sessions: each gets what its own sync, in an engine of its own, would have given: every
 * page, handle, price, tail, mass and logit, and then the same tokens. What fails or is stopped leaves all of them
 * empty.
 */
#include "engine/fixture.h"

#include "base/alloc.h"
#include "engine/job.h"

#include <pthread.h>

enum { PROMPT = 413, STEPS = 70, MORE = 57, TOTAL = PROMPT + STEPS + MORE + 20 };

static const char *const more_policies[] = {
    "minikv,share=0.3,format=q2s", "full,score=vote2,alloc=global,share=0.25,format=q3,floor=0.5",
    "full,score=attn,alloc=global,keep=0.3,format=q2s,stride=3",
    "h2o,keep=0.3,when=prefill;layers=0-0:score=vote2,window=8,format=q8;layers=2-:pool=5", "snapkv,tokens=64,window=500,format=q2"};
enum { MORE_POLICIES = sizeof more_policies / sizeof *more_policies, N = FIXTURE_POLICIES + MORE_POLICIES };

static fixture fx;
static int32_t ids[4][TOTAL];

static const char *policy_at(int i) {
    return i < FIXTURE_POLICIES ? fixture_policies[i] : more_policies[i - FIXTURE_POLICIES];
}

static int setup(void **state) {
    (void)state;
    gen_spec g = fixture_spec();
    fixture_open(&fx, &g);
    for (int i = 0; i < 4; i++) fixture_ids(ids[i], TOTAL, 900 + (uint64_t)i);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    fixture_close(&fx);
    return 0;
}

static kvist_engine *engine(kvist_engine_params p) {
    if (!p.kv_bytes) p.kv_bytes = 256u << 20;
    if (!p.threads) p.threads = 2;
    return fixture_engine(&fx, p);
}

static uint64_t mix(uint64_t h, const void *p, size_t n) { return kv_hash64(p, n, h); }

/* Everything a stream holds: handles with their pages' bytes, the tail's tokens, squared queries, mass. */
static uint64_t stream_hash(const kv_seq *seq, const kv_stream *st, uint64_t h) {
    uint16_t k[64], v[64];
    for (uint32_t i = 0; i < st->n_handles; i++) {
        kv_page_entry e = *kv_pool_entry(seq->pool, st->handles[i].page);
        e.refs = 0;
        h = mix(h, &e, sizeof e);
        h = mix(h, &st->handles[i].price, sizeof st->handles[i].price);
        h = mix(h, &st->handles[i].birth, sizeof st->handles[i].birth);
        h = mix(h, kv_pool_data(seq->pool, st->handles[i].page), kv_pool_page_bytes(seq->pool));
    }
    for (uint32_t i = 0; i < st->tail_len; i++) {
        kv_tail_get(seq, st, i, k, v);
        h = mix(mix(h, k, sizeof k), v, sizeof v);
    }
    uint32_t n[] = {st->n_handles,  st->next_birth, st->n_tail,        st->tail_start,
                    st->tail_len,   st->tail_pos,   st->tokens_sealed, st->sealed_at,
                    st->q2.covered, st->q2.n_rows,  st->q2.start,      st->q2.sum != NULL};
    if (st->q2.sum) h = mix(h, st->q2.sum, 64 * sizeof(float));
    if (st->q2.n_rows) h = mix(h, st->q2.rows, (size_t)st->q2.n_rows * 64 * sizeof(float));
    return mix(mix(h, n, sizeof n), &st->mass, sizeof st->mass);
}

static uint64_t state_hash(const kvist_session *s) {
    uint64_t h = s->n;
    kv_error err;
    if (!kv_seq_check(s->seq, &err)) fail_msg("%s", err.message);
    for (uint32_t i = 0; i < s->seq->n_streams; i++) h = stream_hash(s->seq, &s->seq->streams[i], h);
    h = mix(h, &s->point, sizeof s->point);
    for (uint32_t i = 0; i < s->n_runs; i++) h = h * 31 + s->runs[i].end * 2u + s->runs[i].kind;
    return s->logits_valid ? mix(h, s->logits, fx.info.n_vocab * sizeof(float)) : h;
}

typedef struct trace {
    uint64_t read, said, more, back;
    int32_t tokens[STEPS];
} trace;

/* After the prompt was read: generates, reads more, goes back into the prompt and reads it to its end again. */
static void go_on(kvist_session *s, const int32_t *t, trace *out) {
    kvist_error err;
    out->read = state_hash(s);
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(kvist_session_sample(s, NULL, &out->tokens[i], &err), 0);
        if (kvist_session_decode(s, out->tokens[i], &err)) fail_msg("%s", err.message);
    }
    out->said = state_hash(s);
    int32_t all[TOTAL];
    memcpy(all, kvist_session_tokens(s), (PROMPT + STEPS) * sizeof *all);
    memcpy(all + PROMPT + STEPS, t + PROMPT + STEPS, MORE * sizeof *all);
    must_sync(s, all, PROMPT + STEPS + MORE);
    out->more = state_hash(s);
    must_truncate(s, PROMPT / 2);
    must_sync(s, t, PROMPT - 3);
    out->back = state_hash(s);
}

static trace alone[N];
static bool know_alone;

static const trace *solo(int i) {
    for (int k = 0; !know_alone && k < N; k++) {
        kvist_engine *e = engine((kvist_engine_params){.threads = 2});
        kvist_session *s = fixture_session(e, policy_at(k));
        must_sync(s, ids[0], PROMPT);
        go_on(s, ids[0], &alone[k]);
        kvist_session_close(&s);
        kvist_engine_close(&e);
    }
    know_alone = true;
    return &alone[i];
}

static void must_sync_many(kvist_session *const *s, size_t n, const int32_t *t, size_t n_ids) {
    kvist_error err;
    if (kvist_sync_many(s, n, t, n_ids, &err)) fail_msg("sync_many: %s", err.message);
}

static void compare_with_solo(kvist_session *s, int i) {
    const trace *want = solo(i);
    trace got;
    go_on(s, ids[0], &got);
    if (got.read != want->read) fail_msg("%s: not what its own sync gives", policy_at(i));
    if (memcmp(got.tokens, want->tokens, sizeof got.tokens) || got.said != want->said)
        fail_msg("%s: goes on otherwise", policy_at(i));
    if (got.more != want->more) fail_msg("%s: a later sync differs", policy_at(i));
    if (got.back != want->back) fail_msg("%s: going back differs", policy_at(i));
}

static void each_as_alone(void **state) {
    (void)state;
    static const kvist_engine_params params[] = {
        {.threads = 2, .ubatch = 512}, {.threads = 1, .ubatch = 7}, {.threads = 3, .ubatch = 100}};
    for (int p = 0; p < 3; p++) {
        kvist_engine *e = engine(params[p]);
        kvist_session *s[N];
        for (int i = 0; i < N; i++) s[i] = fixture_session(e, policy_at(i));
        must_sync_many(s, N, ids[0], PROMPT);
        for (int i = 0; i < N; i++) {
            assert_int_equal(kvist_session_length(s[i]), PROMPT);
            compare_with_solo(s[i], i);
            kvist_session_close(&s[i]);
        }
        kvist_engine_close(&e);
    }
}

/* Any order and any subset: whose passes are shared with whom changes nothing; one session alone is a sync. */
static void any_company(void **state) {
    (void)state;
    static const int sets[][6] = {{12, 11, 10, 9, 8, 0}, {0, 13, 7, 17, -1}, {18, 7, 16, 3, -1}, {9, -1}, {0, 1, -1}};
    for (size_t k = 0; k < sizeof sets / sizeof *sets; k++) {
        kvist_engine *e = engine((kvist_engine_params){.threads = 2, .ubatch = 64});
        kvist_session *s[6];
        int n = 0;
        for (; n < 6 && sets[k][n] >= 0; n++) s[n] = fixture_session(e, policy_at(sets[k][n]));
        must_sync_many(s, (size_t)n, ids[0], PROMPT);
        for (int i = 0; i < n; i++) {
            compare_with_solo(s[i], sets[k][i]);
            kvist_session_close(&s[i]);
        }
        kvist_engine_close(&e);
    }
}

typedef struct worker {
    kvist_session *s;
    const int32_t *t;
    uint64_t hash;
} worker;

static uint64_t other_script(kvist_session *s, const int32_t *t) {
    must_sync(s, t, 90);
    must_decode(s, t, 90, 400);
    return logits_hash(&fx, s);
}

static void *other_work(void *arg) {
    worker *w = arg;
    w->hash = other_script(w->s, w->t);
    return NULL;
}

/* Three other sessions read and decode in their own threads meanwhile; twice, the second time on reused pages. */
static void while_others_decode(void **state) {
    (void)state;
    static const int others[3] = {3, 9, 11};
    uint64_t want[3];
    kvist_engine *e = engine((kvist_engine_params){.threads = 2, .ubatch = 48});
    for (int i = 0; i < 3; i++) {
        kvist_session *s = fixture_session(e, policy_at(others[i]));
        want[i] = other_script(s, ids[1 + i]);
        kvist_session_close(&s);
    }
    for (int round = 0; round < 2; round++) {
        worker w[3];
        pthread_t t[3];
        kvist_session *s[N];
        for (int i = 0; i < N; i++) s[i] = fixture_session(e, policy_at(i));
        for (int i = 0; i < 3; i++) {
            w[i] = (worker){.s = fixture_session(e, policy_at(others[i])), .t = ids[1 + i]};
            assert_int_equal(pthread_create(&t[i], NULL, other_work, &w[i]), 0);
        }
        must_sync_many(s, N, ids[0], PROMPT);
        for (int i = 0; i < 3; i++) {
            pthread_join(t[i], NULL);
            if (w[i].hash != want[i]) fail_msg("%s differs beside a shared prompt", policy_at(others[i]));
            kvist_session_close(&w[i].s);
        }
        for (int i = 0; i < N; i++) {
            compare_with_solo(s[i], i);
            kvist_session_close(&s[i]);
        }
    }
    kvist_engine_close(&e);
}

static const char *const some[4] = {"full", "minikv", "kvcompress,rate=3,format=q2s", "snapkv,tokens=96,window=8"};

/* Nothing is left of a call that failed: lengths, pages, charges, and a second try gives the bits of the first. */
static void must_be_empty(kvist_engine *e, kvist_session *const *s, size_t n, uint64_t charged_before) {
    kv_error err;
    kv_pool_stats st;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(kvist_session_length(s[i]), 0);
        assert_null(kvist_session_logits(s[i]));
        assert_int_equal(s[i]->n_runs, 0);
        if (!kv_seq_check(s[i]->seq, &err)) fail_msg("session %zu: %s", i, err.message);
    }
    if (!kv_pool_check(e->pool, &err)) fail_msg("%s", err.message);
    kv_pool_get_stats(e->pool, &st);
    assert_int_equal(st.pages_used, 0);
    uint64_t lists = 0;
    for (size_t i = 0; i < n; i++) lists += s[i]->seq->charged;
    assert_int_equal(st.bytes_charged, charged_before + lists);
}

typedef struct stopper {
    kvist_session *other; /* cancelled at half; NULL: the callback says stop */
    uint64_t at, of;      /* stops at this fraction */
} stopper;

static bool stop_at(void *user, uint64_t done, uint64_t total) {
    stopper *st = user;
    if (done * st->of < total * st->at) return true;
    if (st->other) kvist_cancel(st->other);
    return st->other != NULL;
}

static void stopped(void **state) {
    (void)state;
    kvist_engine *e = engine((kvist_engine_params){.threads = 2, .ubatch = 32});
    kvist_session *s[4];
    kvist_error err;
    uint64_t want[4];
    for (int i = 0; i < 4; i++) {
        s[i] = fixture_session(e, some[i]);
        must_sync(s[i], ids[2], 300);
        want[i] = state_hash(s[i]);
        must_truncate(s[i], 0);
    }
    uint64_t charged = e->fixed_bytes;
    for (uint64_t at = 0; at <= 9; at++)
        for (int by = 0; by < 4; by++) {
            stopper st = {.other = by & 1 ? s[3 - by] : NULL, .at = at, .of = 9};
            kvist_session_on_progress(s[by], stop_at, &st);
            assert_int_equal(kvist_sync_many(s, 4, ids[2], 300, &err), KVIST_E_CANCELLED);
            kvist_session_on_progress(s[by], NULL, NULL);
            must_be_empty(e, s, 4, charged);
        }
    must_sync_many(s, 4, ids[2], 300);
    for (int i = 0; i < 4; i++) {
        if (state_hash(s[i]) != want[i]) fail_msg("%s differs after stopped calls", some[i]);
        kvist_session_close(&s[i]);
    }
    kvist_engine_close(&e);
}

/* Budgets from nothing to enough: a refusal leaves every session empty and usable. */
static void every_budget(void **state) {
    (void)state;
    kvist_engine *big = engine((kvist_engine_params){.threads = 1, .n_ctx = 1024, .max_sessions = 4});
    uint64_t fixed = big->fixed_bytes;
    kvist_engine_close(&big);
    uint32_t failed = 0, passed = 0, named = 0;
    for (uint64_t extra = 300u << 10; extra < (7u << 20); extra += 130u << 10) {
        kvist_engine *e =
            engine((kvist_engine_params){.threads = 1, .n_ctx = 1024, .max_sessions = 4, .kv_bytes = fixed + extra});
        kvist_session *s[4];
        kvist_error err;
        for (int i = 0; i < 4; i++) s[i] = fixture_session(e, some[i]);
        int st = kvist_sync_many(s, 4, ids[3], 500, &err);
        if (st) {
            assert_int_equal(st, KVIST_E_BUDGET);
            assert_non_null(strstr(err.message, "of "));
            named += strstr(err.message, "session ") != NULL;
            must_be_empty(e, s, 4, fixed);
            failed++;
        } else {
            passed++;
        }
        for (int i = 0; i < 4; i++) {
            if (kvist_session_truncate(s[i], 0, &err) || kvist_session_sync(s[i], ids[3], 20, &err))
                fail_msg("%llu bytes: %s: %s", (unsigned long long)extra, some[i], err.message);
            kvist_session_close(&s[i]);
        }
        kvist_engine_close(&e);
    }
    print_message("%u budgets too small (%u name the session), %u enough\n", failed, named, passed);
    assert_true(failed > 5 && named > 0 && passed > 5);
}

/* The n-th allocation fails: an error, nothing leaks, and the sessions work. */
static bool with_failure(uint64_t n) {
    kvist_error err;
    kvist_engine *e = engine((kvist_engine_params){.threads = 2, .n_ctx = 512, .max_sessions = 4});
    kvist_session *s[4];
    for (int i = 0; i < 4; i++) s[i] = fixture_session(e, some[i]);
    uint64_t before = kv_alloc_count();
    kv_alloc_test_fail_at(n);
    int st = kvist_sync_many(s, 4, ids[3], 150, &err);
    kv_alloc_test_fail_at(0);
    bool hit = kv_alloc_count() - before >= n;
    if (st && (!hit || st != KVIST_E_MEMORY)) fail_msg("allocation %llu: %s", (unsigned long long)n, err.message);
    if (st) must_be_empty(e, s, 4, e->fixed_bytes);
    for (int i = 0; i < 4; i++) {
        must_sync(s[i], ids[3], 160);
        kvist_session_close(&s[i]);
    }
    kvist_engine_close(&e);
    return hit;
}

static void failed_allocations(void **state) {
    (void)state;
    uint64_t n = 1;
    while (with_failure(n)) n += n < 100 ? 1 : 3;
    print_message("fewer than %llu allocations\n", (unsigned long long)n);
    assert_true(n > 30);
}

static void refusals(void **state) {
    (void)state;
    kvist_engine *e = engine((kvist_engine_params){.n_ctx = 100}), *f = engine((kvist_engine_params){.n_ctx = 100});
    kvist_session *s[3] = {fixture_session(e, "full"), fixture_session(e, "minikv"), fixture_session(f, "full")};
    kvist_error err;
    assert_int_equal(kvist_sync_many(s, 3, ids[0], 50, &err), KVIST_E_ARG);
    assert_non_null(strstr(err.message, "another engine"));
    kvist_session *twice[2] = {s[0], s[0]}, *none[2] = {s[0], NULL};
    assert_int_equal(kvist_sync_many(twice, 2, ids[0], 50, &err), KVIST_E_ARG);
    assert_non_null(strstr(err.message, "twice"));
    assert_int_equal(kvist_sync_many(none, 2, ids[0], 50, &err), KVIST_E_ARG);
    assert_int_equal(kvist_sync_many(NULL, 2, ids[0], 50, &err), KVIST_E_ARG);
    assert_int_equal(kvist_sync_many(s, 2, NULL, 50, &err), KVIST_E_ARG);
    assert_int_equal(kvist_sync_many(s, 2, ids[0], 101, &err), KVIST_E_CONTEXT);
    int32_t big = (int32_t)fx.info.n_vocab;
    assert_int_equal(kvist_sync_many(s, 2, &big, 1, &err), KVIST_E_ARG);
    must_decode(s[1], ids[0], 0, 1);
    assert_int_equal(kvist_sync_many(s, 2, ids[0], 50, &err), KVIST_E_STATE);
    assert_non_null(strstr(err.message, "session 1 holds 1 token"));
    assert_int_equal(kvist_session_length(s[0]), 0);
    must_truncate(s[1], 0);
    assert_int_equal(kvist_sync_many(s, 0, ids[0], 50, &err), KVIST_OK);
    assert_int_equal(kvist_sync_many(s, 2, ids[0], 0, &err), KVIST_OK);
    assert_null(kvist_session_logits(s[0]));
    must_sync_many(s, 2, ids[0], 1);
    must_truncate(s[0], 0);
    must_truncate(s[1], 0);
    must_sync_many(s, 2, ids[0], 100);
    for (int i = 0; i < 3; i++) kvist_session_close(&s[i]);
    kvist_engine_close(&e);
    kvist_engine_close(&f);
}

/* Every distinct need is one pass, and a report's times are parts of each other. */
static void passes_are_shared(void **state) {
    (void)state;
    static const char *const p[] = {"h2o",
                                    "minikv",
                                    "snapkv,tokens=90",
                                    "snapkv,tokens=60,format=q4",
                                    "kvcompress",
                                    "streaming",
                                    "full",
                                    "snapkv,tokens=90,window=8",
                                    "minikv,stride=2"};
    enum { P = sizeof p / sizeof *p };
    kvist_engine *e = engine((kvist_engine_params){.n_ctx = 2048});
    kvist_session *s[P];
    kvist_error err;
    kv_job *j;
    for (int i = 0; i < P; i++) {
        s[i] = fixture_session(e, p[i]);
        memcpy(s[i]->tokens, ids[0], PROMPT * sizeof *s[i]->tokens);
        assert_int_equal(kv_session_add_todo(s[i], PROMPT, KV_ROWS_PROMPT, 0, &err), 0);
    }
    if (kv_job_create(s, P, &j, &err)) fail_msg("%s", err.message);
    kv_job_plan_passes(j);
    assert_int_equal(j->n_sums, 5); /* attn, vote of 32, vote2 of 32, vote of 8, attn of every second row */
    assert_int_equal(j->n_mass, 2); /* 32 and 8 rows */
    assert_int_equal(j->n_passes, 5);
    assert_int_equal(j->targets[3].sums_pass, j->targets[2].sums_pass);
    assert_int_equal(j->targets[5].mass_pass, j->targets[0].mass_pass);
    kv_job_free(&j);
    for (int i = 0; i < P; i++) s[i]->n_todo = 0;
    must_sync_many(s, P, ids[0], PROMPT);
    for (int i = 0; i < P; i++) {
        kvist_report r;
        kvist_session_report(s[i], &r);
        assert_int_equal(r.prefill_tokens, PROMPT);
        assert_true(r.prefill_seconds > r.score_seconds + r.seal_seconds && r.seal_seconds > 0);
        assert_true((r.score_seconds > 0) == (i != 6));
        kvist_session_close(&s[i]);
    }
    kvist_engine_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_as_alone), cmocka_unit_test(any_company),      cmocka_unit_test(while_others_decode),
        cmocka_unit_test(stopped),       cmocka_unit_test(every_budget),     cmocka_unit_test(failed_allocations),
        cmocka_unit_test(refusals),      cmocka_unit_test(passes_are_shared)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
