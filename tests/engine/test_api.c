/* SPDX-License-Identifier: Apache-2.0 */
/* The public edge: refusals name what is wrong, sampling does what it says, reports and cancel come from any thread. */
enum { TEXT_SEED = 3 };
#include "engine/fixture_shared.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

static void refusals(void **state) {
    (void)state;
    kvist_error err;
    kvist_model *m;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.n_ctx = 100, .threads = 1});
    kvist_session *s;
    assert_int_equal(kvist_model_open("no/such/file.gguf", NULL, &m, &err), KVIST_E_IO);
    assert_non_null(strstr(err.message, "no/such/file.gguf"));
    assert_null(m);
    static const char *const bad[][2] = {{"nosuch", "nosuch"},
                                         {"minikv,keep=2", "keep"},
                                         {"full,format=q9", "q9"},
                                         {"full,when=always", "when"},
                                         {"snapkv,guard=1.1", "guard"},
                                         {"snapkv,score=tuva", "tuva"},
                                         {"minikv,keep=0.2,share=0.1", "share"},
                                         {"snapkv,alloc=hand", "hand"},
                                         {"full,,", "key=value"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kvist_session_create(e, bad[i][0], &s, &err), KVIST_E_POLICY);
        assert_null(s);
        if (!strstr(err.message, bad[i][1]))
            fail_msg("'%s': the message does not name '%s': %s", bad[i][0], bad[i][1], err.message);
    }
    s = fixture_session(e, NULL);
    assert_int_equal(kvist_session_sync(s, ids, 101, &err), KVIST_E_CONTEXT);
    int32_t big = (int32_t)fx.info.n_vocab;
    assert_int_equal(kvist_session_sync(s, &big, 1, &err), KVIST_E_ARG);
    int32_t id;
    assert_int_equal(kvist_session_sample(s, NULL, &id, &err), KVIST_E_STATE);
    assert_int_equal(kvist_session_truncate(s, 1, &err), KVIST_E_ARG);
    must_sync(s, ids, 100);
    assert_int_equal(kvist_session_decode(s, 1, &err), KVIST_E_CONTEXT);
    assert_non_null(strstr(err.message, "100"));
    must_sync(s, ids, 0);
    assert_int_equal(kvist_session_length(s), 0);
    must_decode(s, ids, 0, 5); /* generated rows without any prompt */
    assert_int_equal(kvist_session_length(s), 5);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    for (int st = 0; st >= -10; st--) assert_non_null(kvist_status_name((kvist_status)st));
}

static void policy_changes(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *s = fixture_session(e, "full");
    kvist_error err;
    kvist_report a, b;
    must_sync(s, ids, 900);
    kvist_session_report(s, &a);
    assert_int_equal(kvist_session_set_policy(s, "full,format=q2s", &err), KVIST_OK);
    assert_int_equal(kvist_session_set_policy(s, "rubbish", &err), KVIST_E_POLICY);
    must_sync(s, ids, 1000);
    kvist_session_report(s, &b);
    assert_true(b.share < 0.4 && a.share > 0.99);
    must_decode(s, ids, 1000, 1100);
    must_truncate(s, 950); /* replays the old part under the old policy */
    kvist_session_report(s, &b);
    assert_non_null(strstr(b.policy, "q2s"));
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

/* Draws from known logits: shares follow the softmax of what top-k, top-p and min-p leave. */
static void sampling(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *s = fixture_session(e, "full");
    must_sync(s, ids, 40);
    const float *lg = kvist_session_logits(s);
    uint32_t n = fx.info.n_vocab, best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (lg[i] > lg[best]) best = i;
    kvist_error err;
    int32_t id;
    assert_int_equal(kvist_session_sample(s, NULL, &id, &err), 0);
    assert_int_equal(id, best);
    double p[2048], z = 0;
    uint32_t order[2048];
    for (uint32_t i = 0; i < n; i++) {
        order[i] = i;
        for (uint32_t j = i; j > 0 && lg[order[j]] > lg[order[j - 1]]; j--) {
            uint32_t t = order[j];
            order[j] = order[j - 1];
            order[j - 1] = t;
        }
    }
    enum { K = 5, DRAWS = 20000 };
    for (uint32_t i = 0; i < K; i++) z += p[i] = exp((lg[order[i]] - lg[best]) / 1.3);
    uint32_t count[K] = {0};
    for (uint32_t d = 0; d < DRAWS; d++) {
        kvist_sampling sp = {.temp = 1.3f, .top_k = K, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .seed = d};
        assert_int_equal(kvist_session_sample(s, &sp, &id, &err), 0);
        uint32_t k = 0;
        while (k < K && order[k] != (uint32_t)id) k++;
        assert_true(k < K);
        count[k]++;
    }
    for (uint32_t k = 0; k < K; k++) {
        double want = p[k] / z, sd = sqrt(want * (1 - want) / DRAWS);
        assert_true(fabs((double)count[k] / DRAWS - want) < 5 * sd + 1e-3);
    }
    /* top_p and min_p over the whole vocabulary: the draws stay inside the smallest set that a sort gives. */
    double all = 0, acc = 0;
    for (uint32_t i = 0; i < n; i++) all += exp(lg[i] - lg[best]);
    uint32_t inside = 0;
    for (; inside < n && acc < 0.6; inside++) acc += exp(lg[order[inside]] - lg[best]) / all;
    while (inside > 1 && exp(lg[order[inside - 1]] - lg[best]) < 0.1) inside--;
    bool seen[2048] = {false};
    for (uint32_t d = 0; d < DRAWS; d++) {
        kvist_sampling sp = {.temp = 1, .top_k = 0, .top_p = 0.6f, .min_p = 0.1f, .repeat_penalty = 1, .seed = d};
        assert_int_equal(kvist_session_sample(s, &sp, &id, &err), 0);
        uint32_t k = 0;
        while (k < n && order[k] != (uint32_t)id) k++;
        seen[k] = true;
    }
    for (uint32_t k = 0; k < n; k++) assert_int_equal(seen[k], k < inside);
    kvist_sampling again = {
        .temp = 1, .top_k = 0, .top_p = 0.9f, .min_p = 0.02f, .repeat_penalty = 1.1f, .repeat_last_n = 64, .seed = 7};
    int32_t first;
    assert_int_equal(kvist_session_sample(s, &again, &first, &err), 0);
    assert_int_equal(kvist_session_sample(s, &again, &id, &err), 0);
    assert_int_equal(first, id);
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

typedef struct watcher {
    kvist_session *s;
    atomic_bool stop;
    uint64_t reads;
} watcher;

static void *read_reports(void *arg) {
    watcher *w = arg;
    while (!atomic_load(&w->stop)) {
        kvist_report r;
        kvist_session_report(w->s, &r);
        w->reads++;
    }
    return NULL;
}

static void *cancel_soon(void *arg) {
    watcher *w = arg;
    while (!atomic_load(&w->stop)) kvist_cancel(w->s);
    return NULL;
}

static void other_threads(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2, .ubatch = 16});
    watcher w = {.s = fixture_session(e, "minikv")};
    kvist_session *s = w.s;
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, read_reports, &w), 0);
    must_sync(s, ids, 500);
    must_decode(s, ids, 500, 600);
    atomic_store(&w.stop, true);
    pthread_join(t, NULL);
    assert_true(w.reads > 0);
    atomic_store(&w.stop, false);
    assert_int_equal(pthread_create(&t, NULL, cancel_soon, &w), 0);
    kvist_error err;
    int st = KVIST_OK;
    for (int i = 0; i < 50 && !st; i++) st = kvist_session_sync(s, ids, 1900 + (size_t)i, &err);
    atomic_store(&w.stop, true);
    pthread_join(t, NULL);
    assert_int_equal(st, KVIST_E_CANCELLED);
    must_sync(s, ids, 700);
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(refusals), cmocka_unit_test(policy_changes),
                                       cmocka_unit_test(sampling), cmocka_unit_test(other_threads)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
