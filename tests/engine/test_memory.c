/* SPDX-License-Identifier: Apache-2.0 */
/* True bytes, peaks, budgets, failed allocations; nothing allocated per token. */
enum { TEXT_SEED = 77 };
#include "engine/fixture_shared.h"

#include "base/alloc.h"
#include "engine/engine.h"

#include <math.h>

enum { PROMPT = 700 };

/* The report is the pool's own count; with the session gone the pool is empty but for the engine's scratch. */
static void reports_are_counts(void **state) {
    (void)state;
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
        kvist_session *s = fixture_session(e, fixture_policies[i]);
        must_sync(s, ids, PROMPT);
        must_decode(s, ids, PROMPT, PROMPT + 90);
        kv_error err;
        assert_true(kv_pool_check(e->pool, &err));
        if (!kv_seq_check(s->seq, &err)) fail_msg("%s: %s", fixture_policies[i], err.message);
        kvist_report r;
        kvist_session_report(s, &r);
        uint64_t pages = 0, bytes = 0;
        kvist_stream_report sr[64];
        size_t n = kvist_session_streams(s, sr, 64);
        assert_int_equal(n, 6);
        double stored = 0;
        for (size_t k = 0; k < n; k++) {
            pages += sr[k].pages;
            stored += sr[k].tokens_stored;
        }
        for (uint32_t k = 0; k < s->seq->n_streams; k++) {
            const kv_stream *st = &s->seq->streams[k];
            bytes += st->n_handles * 12ull + st->n_tail * 4ull + (st->q2.sum ? (1ull + st->q2.n_rows) * 64 * 4 : 0);
            bytes += (st->scores.tail ? st->tail_len * 4ull : 0) + (st->scores.slots ? st->n_handles * 16 * 4ull : 0);
        }
        assert_int_equal(r.pages, pages);
        assert_int_equal(r.bytes_true, bytes + pages * (fx.info.page_bytes + 32));
        assert_true(fabs(r.tokens_stored - stored / n) < 1e-9);
        assert_int_equal(r.bytes_unique, r.bytes_true); /* the session's own snapshots share nothing with anybody */
        assert_int_equal(r.bytes_f16, (PROMPT + 90ull) * fx.info.bytes_f16_token);
        while (kv_engine_drop_oldest_snapshot(e)) {}
        kv_pool_stats ps;
        kv_pool_get_stats(e->pool, &ps);
        assert_int_equal(ps.pages_used, pages); /* everything evicted was freed */
        kvist_session_close(&s);
        kv_pool_get_stats(e->pool, &ps);
        assert_int_equal(ps.pages_used, 0);
        assert_int_equal(ps.bytes_charged, e->fixed_bytes);
        kvist_engine_close(&e);
    }
}

/* `share` is met in true bytes within 2 % at the compression point, or said not to be. */
static void shares_are_met(void **state) {
    (void)state;
    static const char *const policies[] = {"minikv,share=%g", "kvcompress,share=%g", "snapkv,share=%g",
                                           "kvcompress,format=q2s,share=%g,recent=16,sink=16",
                                           "h2o,share=%g,format=q4"};
    static const double shares[] = {0.5, 0.3, 0.2, 0.14};
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    for (size_t i = 0; i < 5; i++)
        for (size_t k = 0; k < 4; k++) {
            char policy[128];
            snprintf(policy, sizeof policy, policies[i], shares[k]);
            kvist_session *s = fixture_session(e, policy);
            must_sync(s, ids, 2000);
            kvist_report r;
            kvist_session_report(s, &r);
            /* Six streams of 2,000 tokens are about 750 f16 pages: one page is more than 2 % of the smallest of these
             * caches. */
            double page = (double)(fx.info.page_bytes + 64) / (double)r.bytes_f16,
                   slack = 0.02 * shares[k] > page ? 0.02 * shares[k] : page;
            bool all_fit = r.tokens_stored > 1999.5; /* a low-bit format may need less than was granted */
            if (r.share > shares[k] * 1.02 || (!all_fit && r.share < shares[k] - slack))
                fail_msg("%s: true share %.4f", policy, r.share);
            assert_true(r.share_met);
            kvist_session_close(&s);
        }
    kvist_session *s = fixture_session(e, "kvcompress,share=0.01");
    must_sync(s, ids, 500);
    kvist_report r;
    kvist_session_report(s, &r);
    assert_false(r.share_met);
    assert_true(strlen(r.share_note) > 0);
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

/* Peak of a prefill = final cache + one layer f16 + residual + scratch (DESIGN 2.4): far below the whole f16 cache. */
static void peak_of_a_prefill(void **state) {
    (void)state;
    gen_spec g = fixture_spec();
    g.n_layers = 12;
    fixture deep;
    fixture_open(&deep, &g);
    kvist_engine *e = fixture_engine(&deep, (kvist_engine_params){.threads = 2});
    kvist_session *s = fixture_session(e, "full,format=q2s");
    const uint64_t n = 2000, n_kv = 2, d = 64, embd = 96;
    must_sync(s, ids, n);
    kvist_report r;
    kvist_session_report(s, &r);
    uint64_t residual = n * embd * 4, layer = n * n_kv * 2 * d * 2, q2 = 1024 * n_kv * d * 4;
    uint64_t lists = s->seq->charged; /* capacity of handle and tail lists, q2 */
    uint64_t sum = e->fixed_bytes + r.bytes_true + residual + layer + q2 + lists;
    print_message("peak %llu, sum of its parts %llu, f16 cache %llu\n", (unsigned long long)r.bytes_peak,
                  (unsigned long long)sum, (unsigned long long)r.bytes_f16);
    assert_true(r.bytes_peak <= sum + n_kv * 20 * (4096 + 32) + q2);
    assert_true(r.bytes_peak >= sum - lists - q2);
    assert_true(r.bytes_peak - e->fixed_bytes < r.bytes_f16 / 2);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    fixture_close(&deep);
}

/* A sliding window frees what no later row can see: stored tokens stay near the window while the text grows. */
static void window_frees_pages(void **state) {
    (void)state;
    gen_spec g = fixture_spec();
    g.window = 100;
    fixture wf;
    fixture_open(&wf, &g);
    kvist_engine *e = fixture_engine(&wf, (kvist_engine_params){.threads = 2});
    static const char *const policies[] = {"full", "full,format=q8"};
    for (int i = 0; i < 2; i++) {
        kvist_session *s = fixture_session(e, policies[i]), *t = fixture_session(e, policies[i]);
        must_sync(s, ids, 900);
        must_decode(s, ids, 900, 1200);
        kvist_report r;
        kvist_session_report(s, &r);
        assert_true(r.tokens_stored >= 100 && r.tokens_stored < 100 + 64 + 16 + 28 + 64);
        kv_error err;
        if (!kv_seq_check(s->seq, &err)) fail_msg("%s", err.message);
        must_truncate(s, 1000);
        must_sync(t, ids, 900);
        must_decode(t, ids, 900, 1000);
        must_decode(s, ids, 1000, 1050);
        must_decode(t, ids, 1000, 1050);
        assert_true(logits_hash(&wf, s) == logits_hash(&wf, t));
        kvist_session_close(&s);
        kvist_session_close(&t);
    }
    kvist_session *s;
    kvist_error err;
    assert_int_equal(kvist_session_create(e, "minikv", &s, &err), KVIST_E_POLICY);
    assert_non_null(strstr(err.message, "window"));
    kvist_engine_close(&e);
    fixture_close(&wf);
}

static void nothing_allocated_per_token(void **state) {
    (void)state;
    static const char *const policies[] = {"full",
                                           "full,format=q2s",
                                           "minikv",
                                           "kvcompress,rate=4,format=q2s",
                                           "h2o",
                                           "kvcompress,rate=4,when=always",
                                           "kvcompress,share=0.3,format=q2s,when=always",
                                           "minikv,keep=0.3,when=always",
                                           "snapkv,format=q4,when=pressure"};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
        kvist_session *s = fixture_session(e, policies[i]);
        must_sync(s, ids, 100);
        must_decode(s, ids, 100, 101);
        uint64_t before = kv_alloc_count();
        must_decode(s, ids, 101, 600);
        uint64_t made = kv_alloc_count() - before;
        if (made) fail_msg("%s: %llu allocations", policies[i], (unsigned long long)made);
        kvist_session_close(&s);
        kvist_engine_close(&e);
    }
}

/* The n-th allocation of a script fails: an error comes back, nothing leaks (the sanitizers see it), and a session that
 * was created works on. False: the script needs fewer than n allocations. */
static bool script_with_failure(const char *policy, uint64_t n) {
    kvist_error err;
    kvist_engine *e = NULL;
    kvist_session *s = NULL;
    kvist_engine_params p = {.threads = 2, .n_ctx = 512, .max_sessions = 2};
    uint64_t before = kv_alloc_count();
    kv_alloc_test_fail_at(n);
    int st = kvist_engine_create(fx.m, &p, &e, &err);
    if (!st) st = kvist_session_create(e, policy, &s, &err);
    if (!st) st = kvist_session_sync(s, ids, 140, &err);
    for (uint32_t i = 140; i < 180 && !st; i++) st = kvist_session_decode(s, ids[i], &err);
    if (!st) st = kvist_session_truncate(s, 150, &err);
    if (!st) st = kvist_session_sync(s, ids, 230, &err);
    kv_alloc_test_fail_at(0);
    bool hit = kv_alloc_count() - before >= n;
    if (!hit && st) fail_msg("%s: %s, and no allocation failed", policy, err.message);
    if (st && st != KVIST_E_MEMORY) fail_msg("%s: allocation %llu: %s", policy, (unsigned long long)n, err.message);
    if (s) {
        if (kvist_session_sync(s, ids, 240, &err))
            fail_msg("%s: allocation %llu: the session is dead: %s", policy, (unsigned long long)n, err.message);
        assert_int_equal(kvist_session_length(s), 240);
        kv_error why;
        if (!kv_seq_check(s->seq, &why))
            fail_msg("%s: allocation %llu: %s", policy, (unsigned long long)n, why.message);
    }
    kvist_session_close(&s);
    kvist_engine_close(&e);
    return hit;
}

/* Every allocation of the first 300, every fifth of the rest, until the script ends before its failure. */
static void failed_allocations(void **state) {
    (void)state;
    static const char *const policies[] = {"kvcompress,rate=4,format=q2s", "full,format=q4", "h2o,sink=4"};
    for (int i = 0; i < 3; i++) {
        uint64_t n = 1;
        while (script_with_failure(policies[i], n)) n += n < 300 ? 1 : 5;
        print_message("%s: fewer than %llu allocations\n", policies[i], (unsigned long long)n);
        assert_true(n > 50);
    }
}

static void failed_loading(void **state) {
    (void)state;
    for (uint64_t n = 1;; n += n < 300 ? 1 : 5) {
        kvist_error err;
        kvist_model *m;
        uint64_t before = kv_alloc_count();
        kv_alloc_test_fail_at(n);
        int st = kvist_model_open(fx.path, NULL, &m, &err);
        kv_alloc_test_fail_at(0);
        if (kv_alloc_count() - before < n) {
            assert_int_equal(st, 0);
            kvist_model_close(&m);
            print_message("fewer than %llu allocations\n", (unsigned long long)n);
            return;
        }
        if (st && st != KVIST_E_MEMORY) fail_msg("allocation %llu: %s", (unsigned long long)n, err.message);
        assert_true(!st == !!m);
        kvist_model_close(&m);
    }
}

/* Tokens generated one by one are sealed in order: sinks first, a page as soon as the newest `recent` leave it whole.
 */
static void decoding_seals_in_order(void **state) {
    (void)state;
    enum { SINK = 8, RECENT = 20, TOKENS = 400 };
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 1});
    kvist_session *s = fixture_session(e, "full,format=q4,sink=8,recent=20");
    for (uint32_t n = 1; n <= TOKENS; n++) {
        must_decode(s, ids, n - 1, n);
        const kv_stream *st = &s->seq->streams[n % s->seq->n_streams];
        kv_page_layout q4;
        assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q4, KV_Q4), 64, 64, fx.info.page_bytes, &q4, NULL), 0);
        uint32_t pages = n > SINK + RECENT ? (n - SINK - RECENT) / q4.tokens : 0;
        assert_int_equal(st->n_handles, pages ? pages + 1 : 0);
        assert_int_equal(st->tail_len, pages ? n - SINK - pages * q4.tokens : n);
        if (pages) assert_int_equal(st->tail_pos, SINK + pages * q4.tokens);
    }
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

/* A budget that does not hold the prompt: a clear refusal, an intact session. */
static void small_budget(void **state) {
    (void)state;
    kvist_engine *big = fixture_engine(&fx, (kvist_engine_params){.threads = 1, .n_ctx = 2048, .max_sessions = 2});
    uint64_t fixed = big->fixed_bytes;
    kvist_engine_close(&big);
    kvist_error why;
    static const uint64_t tiny[] = {1, 4096, 1u << 20}; /* less than the engine's own scratch */
    for (int i = 0; i < 3; i++) {
        kvist_engine *none;
        kvist_engine_params p = {.threads = 1, .n_ctx = 2048, .max_sessions = 2, .kv_bytes = tiny[i]};
        assert_int_equal(kvist_engine_create(fx.m, &p, &none, &why), KVIST_E_BUDGET);
        assert_null(none);
    }
    kvist_engine *e = fixture_engine(
        &fx, (kvist_engine_params){
                 .threads = 1, .n_ctx = 2048, .max_sessions = 2, .kv_bytes = fixed + (1u << 20) + (1u << 19)});
    kvist_session *s = fixture_session(e, "full");
    kvist_error err;
    must_sync(s, ids, 200);
    uint64_t h = logits_hash(&fx, s);
    assert_int_equal(kvist_session_sync(s, ids, 1900, &err), KVIST_E_BUDGET);
    assert_true(strstr(err.message, "KV memory") != NULL);
    assert_int_equal(kvist_session_length(s), 200);
    must_sync(s, ids, 200);
    assert_true(logits_hash(&fx, s) == h);
    for (size_t i = 200; i < 2000; i++) {
        int st = kvist_session_decode(s, ids[i], &err);
        if (!st) continue;
        assert_int_equal(st, KVIST_E_BUDGET);
        assert_int_equal(kvist_session_length(s), i);
        break;
    }
    assert_true(kvist_session_length(s) < 2000);
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

/* Budgets of every size between nothing and enough: whatever step runs out, the session stays valid and goes on once
 * there is room. */
static void every_budget(void **state) {
    (void)state;
    static const char *const policies[] = {"full", "full,format=q2s", "kvcompress,rate=3,format=q3", "minikv",
                                           "h2o", "kvcompress,rate=3,when=always", "minikv,when=pressure"};
    kvist_engine *big = fixture_engine(&fx, (kvist_engine_params){.threads = 1, .n_ctx = 2048, .max_sessions = 2});
    uint64_t fixed = big->fixed_bytes;
    kvist_engine_close(&big);
    uint32_t failed = 0, passed = 0;
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        for (uint64_t extra = 200u << 10; extra < (4u << 20); extra += 90u << 10) {
            kvist_engine *e = fixture_engine(
                &fx, (kvist_engine_params){.threads = 1, .n_ctx = 2048, .max_sessions = 2, .kv_bytes = fixed + extra});
            kvist_session *s;
            kvist_error err;
            kv_error why;
            int st = kvist_session_create(e, policies[i], &s, &err);
            for (size_t n = 150; !st && n < 1500; n += 450) {
                st = kvist_session_sync(s, ids, n, &err);
                if (st) break;
                for (size_t k = 0; k < 60 && !st; k++) st = kvist_session_decode(s, ids[n + k], &err);
            }
            if (st) assert_int_equal(st, KVIST_E_BUDGET);
            st ? failed++ : passed++;
            if (s) {
                size_t n = kvist_session_length(s);
                if (!kv_seq_check(s->seq, &why) || !kv_pool_check(e->pool, &why))
                    fail_msg("%s, %llu bytes: %s", policies[i], (unsigned long long)extra, why.message);
                assert_int_equal(s->seq->length, n);
                if (n > 40) {
                    st = kvist_session_truncate(s, n - 40, &err);
                    if (st) assert_int_equal(st, KVIST_E_BUDGET); /* a replay may need room too */
                }
                assert_int_equal(kvist_session_truncate(s, 0, &err), KVIST_OK);
                if (kvist_session_sync(s, ids, 30, &err))
                    fail_msg("%s, %llu bytes: the session is dead: %s", policies[i], (unsigned long long)extra,
                             err.message);
            }
            kvist_session_close(&s);
            kvist_engine_close(&e);
        }
    print_message("%u budgets too small, %u enough\n", failed, passed);
    assert_true(failed > 20 && passed > 20);
}

static bool stop_half_way(void *user, uint64_t done, uint64_t total) {
    (void)user;
    return done * 2 < total;
}

static void cancelled_prefill(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .ubatch = 32});
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        kvist_error err;
        kvist_session *s = fixture_session(e, fixture_policies[i]), *f = fixture_session(e, fixture_policies[i]);
        must_sync(s, ids, 300);
        must_sync(f, ids, 300);
        kvist_session_on_progress(s, stop_half_way, NULL);
        assert_int_equal(kvist_session_sync(s, ids, 600, &err), KVIST_E_CANCELLED);
        assert_int_equal(kvist_session_length(s), 300);
        kvist_session_on_progress(s, NULL, NULL);
        must_decode(s, ids, 300, 320);
        must_decode(f, ids, 300, 320);
        if (logits_hash(&fx, s) != logits_hash(&fx, f))
            fail_msg("%s: differs after a cancelled prompt", fixture_policies[i]);
        kvist_session_close(&s);
        kvist_session_close(&f);
    }
    kvist_engine_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reports_are_counts),
                                       cmocka_unit_test(shares_are_met),
                                       cmocka_unit_test(peak_of_a_prefill),
                                       cmocka_unit_test(window_frees_pages),
                                       cmocka_unit_test(nothing_allocated_per_token),
                                       cmocka_unit_test(failed_allocations),
                                       cmocka_unit_test(failed_loading),
                                       cmocka_unit_test(decoding_seals_in_order),
                                       cmocka_unit_test(small_budget),
                                       cmocka_unit_test(every_budget),
                                       cmocka_unit_test(cancelled_prefill)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
