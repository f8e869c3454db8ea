/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard end to end: what a double-precision transformer says that the kept tokens of each head hold of its
 * attention is at least the guard, or the head is reported and the limit binds; no head keeps a page more than it
 * needs; and where nothing is needed no bit changes.
 */
#include "engine/fixture.h"
#include "support/naive.h"

#include <math.h>

enum { N = 400, MORE = 90, LAYERS = 3, NQ = 6, NKV = 2, G = NQ / NKV, STREAMS = LAYERS * NKV, ROWS = 32 };

static fixture fx;
static int32_t ids[N + MORE + 64];
static double mass[LAYERS][NQ][N]; /* of the last ROWS queries of the first N tokens, by key */

static void watch(void *user, uint32_t layer, uint32_t row, uint32_t head, const double *p) {
    (void)user;
    for (uint32_t t = 0; row >= N - ROWS && t <= row; t++) mass[layer][head][t] += p[t];
}

static int setup(void **state) {
    (void)state;
    gen_spec g = fixture_spec();
    g.type = KV_TYPE_F32;
    fixture_open(&fx, &g);
    fixture_ids(ids, N + MORE + 64, 9);
    double *logits;
    if (!naive_forward_probed(fx.path, ids, N, &logits, watch, NULL)) return 1;
    free(logits);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    fixture_close(&fx);
    return 0;
}

static kvist_engine *engine(void) {
    return fixture_engine(&fx, (kvist_engine_params){.threads = 2, .precise = 1, .ubatch = 150});
}

/* What one stream holds. */
typedef struct kept {
    uint32_t n, at[N + MORE + 64];
    float price[N + MORE + 64];
    bool has[N + MORE + 64];
} kept;

static void read_kept(const kvist_session *s, uint32_t layer, uint32_t head, kept *k) {
    memset(k, 0, sizeof *k);
    k->n = (uint32_t)kvist_session_kept(s, layer, head, k->at, k->price, NULL, N + MORE + 64);
    for (uint32_t i = 0; i < k->n; i++) k->has[k->at[i]] = true;
}

/* Least over the group of kept / all, over tokens that are neither sink nor recent. */
static double dense_mass(uint32_t l, uint32_t h, const bool *has, uint32_t sink, uint32_t recent) {
    double least = 1;
    for (uint32_t g = h * G; g < (h + 1) * G; g++) {
        double some = 0, all = 0;
        for (uint32_t t = sink; t < N - recent; t++) {
            all += mass[l][g][t];
            if (has[t]) some += mass[l][g][t];
        }
        if (all >= 1e-3 * ROWS && some / all < least) least = some / all;
    }
    return least;
}

/* The same without the page of the lowest price (a page: neighbours in the list with one price). */
static double without_cheapest(uint32_t l, uint32_t h, const kept *k, uint32_t sink, uint32_t recent) {
    static bool has[N + MORE + 64];
    uint32_t from = 0, best = 0, best_n = 0;
    double least = INFINITY;
    memcpy(has, k->has, sizeof has);
    for (uint32_t i = 1; i <= k->n; i++) {
        if (i < k->n && k->price[i] == k->price[from]) continue;
        double price = (double)k->price[from] * (i - from);
        if (price < least) {
            least = price;
            best = from;
            best_n = i - from;
        }
        from = i;
    }
    for (uint32_t i = 0; i < best_n; i++) has[k->at[best + i]] = false;
    return dense_mass(l, h, has, sink, recent);
}

typedef struct world {
    kvist_session *s;
    kvist_report r;
    kvist_stream_report st[STREAMS];
    kept k[STREAMS];
} world;

static void read_world(kvist_engine *e, const char *policy, world *w) {
    kvist_error err;
    w->s = fixture_session(e, policy);
    assert_int_equal(kvist_session_track(w->s, true, &err), 0);
    must_sync(w->s, ids, N);
    kvist_session_report(w->s, &w->r);
    assert_int_equal(kvist_session_streams(w->s, w->st, STREAMS), STREAMS);
    for (uint32_t i = 0; i < STREAMS; i++) read_kept(w->s, w->st[i].layer, w->st[i].head, &w->k[i]);
}

/* `policy` with and without its guard. fixed: pages of a stream that are no choice (sinks, tail). Returns heads that
 * are not met. */
static uint32_t check(const char *policy, double guard, double guard_max, uint32_t sink, uint32_t recent,
                      uint32_t fixed) {
    static world plain, w;
    char with[200];
    kvist_engine *e = engine();
    snprintf(with, sizeof with, "%s,guard=%g,guard_max=%g", policy, guard, guard_max);
    read_world(e, policy, &plain);
    read_world(e, with, &w);
    uint64_t limit = (uint64_t)floor((guard_max - 1) * (double)(plain.r.pages - fixed * STREAMS) + 1e-9), added = 0;
    uint32_t unmet = 0, widened = 0;
    for (uint32_t i = 0; i < STREAMS; i++) {
        uint32_t l = w.st[i].layer, h = w.st[i].head;
        double dense = dense_mass(l, h, w.k[i].has, sink, recent);
        if (fabs(dense - w.st[i].mass) > 2e-3)
            fail_msg("%s: layer %u head %u: mass %.5f, expected %.5f", with, l, h, (double)w.st[i].mass, dense);
        if (w.st[i].guard_unmet != (w.st[i].mass < (float)(guard - 1e-6))) fail_msg("%s: unmet of %u/%u", with, l, h);
        for (uint32_t t = 0; t < N; t++)
            if (plain.k[i].has[t] && !w.k[i].has[t]) fail_msg("%s: %u/%u lost token %u", with, l, h, t);
        if (!w.st[i].pages_guard && w.st[i].mass == plain.st[i].mass) assert_int_equal(w.k[i].n, plain.k[i].n);
        if (w.st[i].pages_guard && !w.st[i].guard_unmet) {
            double less = without_cheapest(l, h, &w.k[i], sink, recent);
            if (less > guard + 2e-3) fail_msg("%s: %u/%u keeps a page too many: %.5f without it", with, l, h, less);
        }
        unmet += w.st[i].guard_unmet;
        widened += w.st[i].pages_guard > 0;
        added += w.st[i].pages_guard;
    }
    assert_true(w.r.guard == guard);
    assert_int_equal(w.r.guard_met, unmet == 0);
    assert_int_equal(w.r.guard_heads_unmet, unmet);
    assert_int_equal(w.r.guard_heads_widened, widened);
    assert_int_equal(w.r.pages_guard, added);
    assert_int_equal(w.r.pages - plain.r.pages, added);
    if (added > limit || (unmet && added != limit))
        fail_msg("%s: %u unmet, %u pages added of %u", with, unmet, (uint32_t)added, (uint32_t)limit);
    assert_true(plain.r.guard == 0 && plain.r.guard_met && !plain.r.pages_guard);
    kvist_session_close(&plain.s);
    kvist_session_close(&w.s);
    kvist_engine_close(&e);
    return widened ? unmet : UINT32_MAX;
}

static void counts_are_widened(void **state) {
    (void)state;
    assert_int_equal(check("snapkv,tokens=96", .6, 6, 0, 32, 2), 0);
    assert_int_equal(check("snapkv,tokens=101,sink=5", .75, 9, 5, 32, 3), 0); /* pages that are partial before */
    assert_int_equal(check("h2o,when=prefill", .8, 9, 0, 0, 0), 0);
    assert_int_equal(check("full,score=vote2,alloc=pyramid,delta=20,keep=0.3", .9, 9, 16, 64, 5), 0);
}

static void counts_meet_the_limit(void **state) {
    (void)state;
    assert_in_range(check("snapkv,tokens=96", .95, 1.5, 0, 32, 2), 1, STREAMS);
    assert_in_range(check("minikv,keep=0.3", .97, 1.34, 0, 0, 0), 1, STREAMS);
}

static void the_selection_is_widened(void **state) {
    (void)state;
    assert_int_equal(check("kvcompress,rate=8", .6, 9, 0, 32, 2), 0);
    assert_int_equal(check("kvcompress,rate=5,sink=4,floor=0.5,local=40", .8, 7, 4, 32, 3), 0);
    assert_int_equal(check("full,score=vote2,alloc=global,rate=3,format=q4", .85, 9, 16, 64, 5), 0);
}

static void the_selection_meets_the_limit(void **state) {
    (void)state;
    assert_in_range(check("kvcompress,rate=6", .95, 1.5, 0, 32, 2), 1, STREAMS);
    assert_in_range(check("kvcompress,rate=6,floor=1", .97, 1.2, 0, 32, 2), 1, STREAMS);
}

static uint64_t run(const char *policy, kvist_report *r) {
    kvist_engine *e = engine();
    kvist_session *s = fixture_session(e, policy);
    must_sync(s, ids, N);
    uint64_t h = logits_hash(&fx, s);
    must_decode(s, ids, N, N + 40);
    h = h * 31 + logits_hash(&fx, s);
    must_sync(s, ids, N + MORE);
    must_decode(s, ids, N + MORE, N + MORE + 20);
    h = h * 31 + logits_hash(&fx, s);
    kvist_session_report(s, r);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    return h;
}

/* Off, met from the start, or without room: no bit changes, and what is not met is said. */
static void where_nothing_is_added_nothing_changes(void **state) {
    (void)state;
    static const char *const policies[] = {"snapkv,tokens=90", "kvcompress,rate=4,floor=0.5", "minikv,keep=0.3", "kivi",
                                           "full"};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        char text[200];
        kvist_report plain, r;
        uint64_t want = run(policies[i], &plain);
        static const char *const guards[] = {"guard=0", "guard=0,guard_max=9", "guard=0.97,guard_max=1", "guard=0.01"};
        for (size_t g = 0; g < 4; g++) {
            snprintf(text, sizeof text, "%s,%s", policies[i], guards[g]);
            if (run(text, &r) != want) fail_msg("%s changes bits", text);
            assert_int_equal(r.bytes_true, plain.bytes_true);
            assert_int_equal(r.pages_guard, 0);
            assert_int_equal(r.guard_met, g != 2 || plain.mass_min == 1);
        }
    }
}

/* Masses of later syncs multiply; the guard holds for the product. Rollback takes its pages along. */
static void later_syncs_and_rollback(void **state) {
    (void)state;
    static const char *const policies[] = {"snapkv,keep=0.2,recent=16,guard=0.7,guard_max=8",
                                           "kvcompress,rate=4,guard=0.7,guard_max=9"};
    for (int i = 0; i < 2; i++) {
        kvist_engine *e = engine();
        kvist_session *s = fixture_session(e, policies[i]);
        kvist_report one, two, back;
        must_sync(s, ids, N);
        kvist_session_report(s, &one);
        assert_true(one.guard_met && one.pages_guard && one.mass_min >= .7 - 1e-6);
        must_sync(s, ids, N + MORE);
        kvist_session_report(s, &two);
        assert_true(two.guard_met && two.mass_min >= .7 - 1e-6 && two.mass_min <= one.mass_min);
        assert_true(two.pages_guard >= one.pages_guard);
        must_truncate(s, N);
        kvist_session_report(s, &back);
        assert_true(back.pages_guard == one.pages_guard && back.guard_heads_widened == one.guard_heads_widened &&
                    back.mass_min == one.mass_min);
        kvist_session_close(&s);
        kvist_engine_close(&e);
    }
}

/* A share is the budget; what the guard adds is said, and the share is not called met. */
static void a_share_that_the_guard_passes(void **state) {
    (void)state;
    static const char *const policies[] = {"full,score=vote2,alloc=global,share=0.3,sink=4,recent=16",
                                           "full,score=vote2,alloc=uniform,share=0.3,sink=4,recent=16"};
    for (int i = 0; i < 2; i++) {
        char text[200];
        kvist_report plain, r;
        kvist_engine *e = engine();
        kvist_session *s = fixture_session(e, policies[i]), *g;
        snprintf(text, sizeof text, "%s,guard=0.9", policies[i]);
        g = fixture_session(e, text);
        must_sync(s, ids, N);
        must_sync(g, ids, N);
        kvist_session_report(s, &plain);
        kvist_session_report(g, &r);
        assert_true(plain.share_met && plain.share <= .3 * 1.02);
        assert_true(r.pages_guard > 0 && r.share > .3 * 1.02);
        assert_false(r.share_met);
        assert_non_null(strstr(r.share_note, "guard"));
        kvist_session_close(&s);
        kvist_session_close(&g);
        kvist_engine_close(&e);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts_are_widened),
                                       cmocka_unit_test(counts_meet_the_limit),
                                       cmocka_unit_test(the_selection_is_widened),
                                       cmocka_unit_test(the_selection_meets_the_limit),
                                       cmocka_unit_test(where_nothing_is_added_nothing_changes),
                                       cmocka_unit_test(later_syncs_and_rollback),
                                       cmocka_unit_test(a_share_that_the_guard_passes)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
