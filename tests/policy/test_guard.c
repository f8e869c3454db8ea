/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard's arithmetic against readings of DESIGN 4 and 5 that take nothing from the code: the shortest prefix that
 * retains the target, the pages beyond a stream's count, and the streamed selection with guard pages, which must end
 * with what an offline selection over all layers keeps and hold no more than budget + limit between layers.
 */
#include "support/support.h"

#include "base/alloc.h"
#include "policy/guard.h"
#include "policy/plan.h"

#include <math.h>

enum { MAXL = 7, MAXH = 4, MAXP = 20, MAXG = 4 };

typedef struct stream {
    uint32_t n, prefix, floor;
    float price[MAXP], mass[MAXP][MAXG];
    double all[MAXG];
    uint32_t order[MAXP]; /* best first */
    bool chosen[MAXP], extra[MAXP], held[MAXP];
} stream;

/* a before b in one stream. */
static bool above(const stream *s, uint32_t a, uint32_t b) {
    float x = isnan(s->price[a]) ? -INFINITY : s->price[a], y = isnan(s->price[b]) ? -INFINITY : s->price[b];
    return x != y ? x > y : a < b;
}

static void rank(stream *s) {
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t at = 0;
        for (uint32_t j = 0; j < s->n; j++) at += j != i && above(s, j, i);
        s->order[at] = i;
    }
}

/* Masses are whole numbers of 1/64 and their sum is the denominator (plus what earlier pages hold): every comparison is
 * exact. */
static void random_stream(stream *s, uint32_t n, uint32_t group, uint32_t kind, uint64_t *seed) {
    memset(s, 0, sizeof *s);
    s->n = n;
    for (uint32_t g = 0; g < group; g++) s->all[g] = kind % 2 ? (double)(test_rand(seed) % 3) : 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t x = test_rand(seed);
        s->price[i] = kind == 0 ? (float)(x % 3) : test_normal(seed);
        if (x % 17 == 0) s->price[i] = INFINITY;
        if (x % 31 == 0) s->price[i] = NAN;
        for (uint32_t g = 0; g < group; g++) {
            s->mass[i][g] = (float)((test_rand(seed) >> 20) % 64) / 64;
            s->all[g] += s->mass[i][g];
        }
    }
    rank(s);
}

static bool retains(const stream *s, uint32_t group, uint32_t n, double target, double queries) {
    for (uint32_t g = 0; g < group; g++) {
        double lost = 0;
        for (uint32_t i = n; i < s->n; i++) lost += s->mass[s->order[i]][g];
        if (s->all[g] >= 1e-3 * queries && lost > (1 - target) * s->all[g]) return false;
    }
    return true;
}

static uint32_t naive_prefix(const stream *s, uint32_t group, double target, double queries) {
    for (uint32_t n = 0; n < s->n; n++)
        if (retains(s, group, n, target, queries)) return n;
    return s->n;
}

static uint32_t prefix_of(const stream *s, uint32_t group, double target, double queries) {
    float mass[MAXP * MAXG];
    uint64_t scratch[MAXP];
    assert_true(kv_guard_scratch(MAXP) <= sizeof scratch);
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t g = 0; g < group; g++) mass[i * group + g] = s->mass[i][g];
    kv_guard_stream gs = {
        .price = s->price, .mass = mass, .all = s->all, .n = s->n, .group = group, .queries = queries};
    return kv_guard_prefix(&gs, target, scratch);
}

static void prefix_is_the_shortest(void **state) {
    (void)state;
    static const double targets[] = {0, .25, .5, .75, .875, .96875, 1, 1.25};
    uint64_t seed = 4;
    stream s;
    uint32_t whole = 0, inner = 0;
    for (int round = 0; round < 4000; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t group = 1 + (uint32_t)(r % MAXG), n = (uint32_t)((r >> 8) % (MAXP + 1));
        random_stream(&s, n, group, (uint32_t)((r >> 16) % 4), &seed);
        double queries = (r >> 24) % 5 ? 1 : 1e6; /* at 1e6 queries no head has a denominator that counts */
        for (size_t t = 0; t < sizeof targets / sizeof *targets; t++) {
            uint32_t want = naive_prefix(&s, group, targets[t], queries);
            assert_int_equal(prefix_of(&s, group, targets[t], queries), want);
            if (queries > 1) assert_int_equal(want, 0);
            whole += want == n;
            inner += want && want < n;
        }
    }
    assert_true(whole > 500 && inner > 5000);
}

static void a_mass_that_is_no_number_keeps_the_page(void **state) {
    (void)state;
    stream s;
    uint64_t seed = 9;
    random_stream(&s, 5, 2, 1, &seed);
    s.mass[s.order[2]][1] = NAN;
    assert_true(prefix_of(&s, 2, 0, 1) >= 3);
}

static void retained_is_the_least_of_the_group(void **state) {
    (void)state;
    const double all[] = {10, 8, 0.001, 4}, evicted[] = {1, 4, 0.001, 1};
    assert_true(fabs(kv_guard_retained(all, evicted, 4, 32) - 0.5) < 1e-12);
    assert_true(fabs(kv_guard_retained(all, evicted, 1, 32) - 0.9) < 1e-12);
    assert_true(kv_guard_retained(all + 2, evicted + 2, 1, 32) == 1); /* 0.001 of 32 queries */
    assert_true(kv_guard_retained(all + 2, evicted + 2, 1, 1) < 1e-12);
    const double more[] = {11};
    assert_true(kv_guard_retained(all, more, 1, 32) == 0);
    assert_true(kv_guard_retained(all, evicted, 0, 32) == 1);
}

static void targets_and_limits(void **state) {
    (void)state;
    assert_true(kv_guard_target(.9, 1) == .9);
    assert_true(fabs(kv_guard_target(.9, .95) * .95 - .9) < 1e-12);
    assert_true(kv_guard_target(.9, .9) == 1);
    assert_true(kv_guard_target(.9, .89) == .9);
    assert_true(kv_guard_target(.9, 0) == .9);
    assert_true(kv_guard_met(.97, .97) && kv_guard_met(.97, .97 - 5e-7) && !kv_guard_met(.97, .96999));
    assert_int_equal(kv_guard_limit(2, 100), 100);
    assert_int_equal(kv_guard_limit(1, 100), 0);
    assert_int_equal(kv_guard_limit(1.3, 10), 3);
    assert_int_equal(kv_guard_limit(1.39, 10), 3);
    assert_int_equal(kv_guard_limit(3, 0), 0);
    assert_int_equal(kv_guard_limit(1000, 4000000), 3996000000ull);
}

/* ---- pages beyond a stream's count */

static void rest_follows_the_ranking(void **state) {
    (void)state;
    enum { N = 300 };
    uint64_t seed = 77;
    static float score[N];
    static uint32_t order[N];
    static kv_page_plan pages[N + 8];
    for (int round = 0; round < 600; round++) {
        uint64_t r = test_rand(&seed);
        uint32_t n = 1 + (uint32_t)(r % N), local = (uint32_t)((r >> 12) % (n + 1)), ranked = n - local;
        uint32_t keep = (uint32_t)((r >> 24) % (ranked + 1)), p = 1 + (uint32_t)((r >> 40) % 40);
        for (uint32_t i = 0; i < n; i++) {
            uint64_t x = test_rand(&seed);
            score[i] = round % 2 ? (float)(x % 5) : test_normal(&seed);
            if (x % 23 == 0) score[i] = NAN;
        }
        void *scratch = malloc(kv_cut_scratch(n));
        uint32_t own = kv_cut_pages(score, n, local, keep, p, false, keep, order, pages, scratch);
        uint32_t rest = kv_cut_rest(score, n, local, keep, p, order, pages + own, scratch);
        free(scratch);
        assert_int_equal(rest, (ranked - keep + p - 1) / p);
        uint32_t seen = 0;
        for (uint32_t g = 0; g < rest; g++) {
            const kv_page_plan *pg = &pages[own + g];
            assert_int_equal(pg->first, keep + local + g * p);
            assert_int_equal(pg->n, ranked - keep - g * p < p ? ranked - keep - g * p : p);
            assert_false(pg->local);
            float sum = 0;
            for (uint32_t i = 0; i < pg->n; i++) {
                uint32_t c = order[pg->first + i], before = 0;
                assert_true(c < ranked && (!i || c > order[pg->first + i - 1]));
                for (uint32_t k = 0; k < ranked; k++) {
                    bool nk = isnan(score[k]), nc = isnan(score[c]);
                    before += nk != nc ? nc : (!nk && score[k] != score[c]) ? score[k] > score[c] : k < c;
                }
                assert_int_equal((before - keep) / p, g); /* rank of the candidate */
                if (!isnan(score[c])) sum += score[c];
                seen++;
            }
            assert_true(pg->price == sum);
        }
        assert_int_equal(seen, ranked - keep);
    }
}

/* ---- selection over streams */

typedef struct world {
    uint32_t layers, heads;
    stream s[MAXL][MAXH];
} world;

typedef struct place {
    uint32_t l, h, p;
} place;

static bool beats(const world *w, place a, place b) {
    float x = w->s[a.l][a.h].price[a.p], y = w->s[b.l][b.h].price[b.p];
    if (isnan(x)) x = -INFINITY;
    if (isnan(y)) y = -INFINITY;
    if (x != y) return x > y;
    if (a.l != b.l) return a.l < b.l;
    if (a.h != b.h) return a.h < b.h;
    return a.p < b.p;
}

/* The best page that is not taken; of guard prefixes only where asked. */
static bool best_left(const world *w, bool guard_only, place *out) {
    bool any = false;
    for (uint32_t l = 0; l < w->layers; l++)
        for (uint32_t h = 0; h < w->heads; h++) {
            const stream *s = &w->s[l][h];
            for (uint32_t i = 0; i < (guard_only ? s->prefix : s->n); i++) {
                place c = {l, h, s->order[i]};
                if (s->chosen[c.p] || s->extra[c.p]) continue;
                if (!any || beats(w, c, *out)) *out = c;
                any = true;
            }
        }
    return any;
}

/* Floors, then the best of all by price within the budget; then the guard's pages, the best first, up to the limit.
 * Returns how many extras there are. */
static uint64_t offline(world *w, uint64_t budget, uint32_t floor_pages, uint64_t limit) {
    uint64_t taken = 0, extras = 0;
    place best = {0, 0, 0};
    for (uint32_t l = 0; l < w->layers; l++)
        for (uint32_t h = 0; h < w->heads; h++)
            for (uint32_t i = 0; i < floor_pages && i < w->s[l][h].n; i++) {
                w->s[l][h].chosen[w->s[l][h].order[i]] = true;
                taken++;
            }
    for (; taken < budget && best_left(w, false, &best); taken++) w->s[best.l][best.h].chosen[best.p] = true;
    for (; extras < limit && best_left(w, true, &best); extras++) w->s[best.l][best.h].extra[best.p] = true;
    return extras;
}

static uint64_t stream_in(world *w, kv_gsel *g, uint32_t l, uint32_t h) {
    kv_error err;
    stream *s = &w->s[l][h];
    assert_int_equal(kv_gsel_add_guarded(g, l, h, s->price, s->n, s->prefix, &err), 0);
    for (uint32_t p = 0; p < s->n; p++) s->held[p] = true;
    return s->n;
}

static void compare(world *w, kv_gsel *g, uint64_t n_extras) {
    kv_error err;
    const kv_gsel_drop *extras;
    uint32_t n;
    static bool extra[MAXL][MAXH][MAXP];
    memset(extra, 0, sizeof extra);
    assert_int_equal(kv_gsel_extras(g, &extras, &n, &err), 0);
    assert_int_equal(n, n_extras);
    for (uint32_t i = 0; i < n; i++) extra[extras[i].layer][extras[i].head][extras[i].page] = true;
    for (uint32_t l = 0; l < w->layers; l++)
        for (uint32_t h = 0; h < w->heads; h++) {
            const stream *s = &w->s[l][h];
            for (uint32_t p = 0; p < s->n; p++) {
                assert_int_equal(s->held[p], s->chosen[p] || s->extra[p]);
                assert_int_equal(extra[l][h][p], s->extra[p]);
            }
            /* What a stream keeps is a prefix of its price order, so its retained mass is that of a page count. */
            for (uint32_t i = 1; i < s->n; i++) assert_true(s->held[s->order[i - 1]] || !s->held[s->order[i]]);
        }
}

static void streamed_equals_offline(void **state) {
    (void)state;
    uint64_t seed = 31, bound = 0, free_rounds = 0, unguarded = 0;
    world *w = calloc(1, sizeof *w);
    for (int round = 0; round < 3000; round++) {
        uint64_t r = test_rand(&seed);
        w->layers = 1 + (uint32_t)(r % MAXL);
        w->heads = 1 + (uint32_t)((r >> 8) % MAXH);
        uint32_t most = 1 + (uint32_t)((r >> 16) % MAXP), kind = (uint32_t)((r >> 24) % 4), total = 0, wanted = 0;
        for (uint32_t l = 0; l < w->layers; l++)
            for (uint32_t h = 0; h < w->heads; h++) {
                stream *s = &w->s[l][h];
                random_stream(s, kind == 3 ? (uint32_t)(test_rand(&seed) % (most + 1)) : most, 2, kind, &seed);
                s->prefix = naive_prefix(s, 2, .75, 1);
                total += s->n;
                wanted += s->prefix;
            }
        uint64_t budget = (r >> 32) % (total + 3), limit = (r >> 40) % (wanted + 2);
        uint32_t floor_pages = (r >> 56) % 3 ? 0 : (uint32_t)((r >> 48) % 4);
        if (round % 11 == 0) budget = 0; /* as counts per stream use it: every page beside the count is an extra */
        uint64_t n_extras = offline(w, budget, floor_pages, limit), in_set = 0, floors = 0;
        kv_gsel *g = NULL;
        kv_error err;
        assert_int_equal(kv_gsel_create(budget, floor_pages, w->layers * w->heads, &g, &err), 0);
        kv_gsel_guard(g, limit);
        for (uint32_t l = 0; l < w->layers; l++) {
            for (uint32_t h = 0; h < w->heads; h++) {
                in_set += stream_in(w, g, l, h);
                floors += w->s[l][h].n < floor_pages ? w->s[l][h].n : floor_pages;
            }
            const kv_gsel_drop *drops;
            uint32_t n;
            assert_int_equal(kv_gsel_settle(g, &drops, &n, &err), 0);
            for (uint32_t i = 0; i < n; i++) {
                bool *held = &w->s[drops[i].layer][drops[i].head].held[drops[i].page];
                assert_true(*held);
                *held = false;
                in_set--;
            }
            assert_true(in_set <= (budget > floors ? budget : floors) + limit);
        }
        compare(w, g, n_extras);
        kv_gsel_free(&g);
        bound += n_extras == limit && limit;
        free_rounds += n_extras && n_extras < limit;
        unguarded += !n_extras;
    }
    free(w);
    assert_true(bound > 300 && free_rounds > 300 && unguarded > 100);
}

static void failed_allocations_change_nothing(void **state) {
    (void)state;
    float price[20];
    for (int i = 0; i < 20; i++) price[i] = (float)i;
    for (uint64_t n = 1; n < 20; n++) {
        kv_gsel *g = NULL;
        kv_error err = {0};
        const kv_gsel_drop *list;
        uint32_t count = 0, extras = 0;
        kv_alloc_test_fail_at(n);
        kv_status s = kv_gsel_create(4, 1, 2, &g, &err);
        if (!s) kv_gsel_guard(g, 3);
        if (!s) s = kv_gsel_add_guarded(g, 0, 0, price, 20, 9, &err);
        if (!s) s = kv_gsel_settle(g, &list, &count, &err);
        if (!s) s = kv_gsel_extras(g, &list, &extras, &err);
        kv_alloc_test_fail_at(0);
        if (!s) {
            assert_int_equal(count, 13);
            assert_int_equal(extras, 3);
            kv_gsel_free(&g);
            assert_true(n == 6);
            return;
        }
        assert_int_equal(s, KVIST_E_MEMORY);
        kv_gsel_free(&g);
    }
    fail();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(prefix_is_the_shortest),
                                       cmocka_unit_test(a_mass_that_is_no_number_keeps_the_page),
                                       cmocka_unit_test(retained_is_the_least_of_the_group),
                                       cmocka_unit_test(targets_and_limits),
                                       cmocka_unit_test(rest_follows_the_ranking),
                                       cmocka_unit_test(streamed_equals_offline),
                                       cmocka_unit_test(failed_allocations_change_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
