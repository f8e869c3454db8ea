/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Budgets of a compression point: the papers' figures, counts by hand, and shares against a real cache that is filled
 * as the plan says and counted by the pool's own walk.
 */
#include "support/support.h"

#include "base/alloc.h"
#include "cache/stream.h"
#include "policy/plan.h"

#include <math.h>

enum { MAXL = 48 };

typedef struct setup {
    kv_policy policy;
    kv_plan_layer layers[MAXL];
    kv_plan_input in;
} setup;

/* A first sync of n tokens: every layer has `heads` streams of head dims 64, pages of 4 KiB. */
static void first_sync(setup *s, const char *policy, uint32_t n_layers, uint32_t heads, uint32_t page_tokens,
                       uint32_t n) {
    kv_error err = {0};
    memset(s, 0, sizeof *s);
    if (kv_policy_parse(policy, &s->policy, &err)) fail_msg("%s", err.message);
    for (uint32_t l = 0; l < n_layers; l++) s->layers[l] = (kv_plan_layer){heads, 16, page_tokens, 256, 256};
    s->in = (kv_plan_input){.policy = &s->policy,
                            .n_layers = n_layers,
                            .layers = s->layers,
                            .page_bytes = 4096,
                            .page_overhead = 44,
                            .n_seen = n,
                            .n_unsealed = n,
                            .first = true};
}

static kv_plan make(const setup *s) {
    kv_plan p;
    kv_error err = {0};
    if (kv_plan_make(&s->in, &p, &err)) fail_msg("%s", err.message);
    assert_int_equal(p.n_sink + p.n_candidates + p.n_recent, s->in.n_unsealed);
    assert_true(p.n_local <= p.n_candidates);
    return p;
}

/* MiniKV: L = 4096, a = .25, delta 7, 32 layers: 1901 ... 146 heavy hitters and 1024 recent ones in every layer. */
static void pyramid_figures(void **state) {
    setup s;
    first_sync(&s, "minikv", 32, 8, 60, 4096);
    kv_plan p = make(&s);
    assert_true(p.evict && !p.global && p.share_met);
    assert_int_equal(p.n_local, 1024);
    assert_int_equal(p.tokens[0] - 1024, 1901);
    assert_int_equal(p.tokens[31] - 1024, 146);
    uint64_t sum = 0;
    for (uint32_t l = 0; l < 32; l++) {
        double k0 = .25 * (2 - 1 / 7.), k31 = .25 / 7, k = k0 + (k31 - k0) * l / 31;
        uint32_t heavy = p.tokens[l] - 1024, floored = (uint32_t)floor(4096 * k + 1e-6);
        assert_true(heavy == floored || heavy == floored + 1);
        sum += p.tokens[l];
        for (uint32_t h = 0; h < 8; h++) {
            assert_int_equal(p.pages[l * 8 + h], (heavy + 59) / 60 + (1024 + 59) / 60);
            assert_int_equal(kv_plan_keep(&p, 60, l, l * 8 + h), heavy);
        }
    }
    assert_int_equal(sum, 32 * 2048);
    kv_plan_free(&p);
}

/* Whatever delta, clamp and stream counts: the total stays within one layer's streams, layers fall, none passes its
 * candidates. */
static void pyramid_total_is_kept(void **state) {
    uint64_t seed = 9;
    for (int round = 0; round < 3000; round++) {
        uint64_t r = test_rand(&seed);
        setup s;
        uint32_t n_layers = 1 + (uint32_t)(r % MAXL), n = 1 + (uint32_t)((r >> 8) % 5000),
                 heads = 1 + (uint32_t)((r >> 24) % 4);
        char text[96];
        (void)snprintf(text, sizeof text, "minikv,delta=%u.%u,keep=0.%u,local=0.%02u", 1 + (uint32_t)((r >> 32) % 25),
                       (uint32_t)((r >> 40) % 10), 100 + (uint32_t)((r >> 44) % 899), (uint32_t)((r >> 54) % 10));
        first_sync(&s, text, n_layers, heads, 60, n);
        bool equal_streams = r >> 63;
        if (!equal_streams)
            for (uint32_t l = 0; l < n_layers; l++) s.layers[l].n_streams = 1 + (uint32_t)(test_rand(&seed) % 4);
        kv_plan p = make(&s);
        uint32_t kept = (uint32_t)floor(s.policy.budget * n + 1e-7), local = (uint32_t)floor(s.policy.local * n + 1e-7);
        if (kept < 1) kept = 1;
        if (local > kept) local = kept;
        if (!p.evict) {
            kv_plan_free(&p);
            continue;
        }
        assert_int_equal(p.n_local, local);
        uint64_t sum = 0, want = 0;
        for (uint32_t l = 0; l < n_layers; l++) {
            assert_true(p.tokens[l] >= local && p.tokens[l] <= n);
            if (l && equal_streams && p.tokens[l] > p.tokens[l - 1] + 1)
                fail_msg("%s, %u layers, %u tokens: layer %u keeps %u after %u", text, n_layers, n, l, p.tokens[l],
                         p.tokens[l - 1]);
            sum += (uint64_t)p.tokens[l] * s.layers[l].n_streams;
            want += (uint64_t)kept * s.layers[l].n_streams;
        }
        assert_true(sum <= want);
        if (equal_streams)
            assert_int_equal(sum, want);
        else
            assert_true(want - sum < 4);
        kv_plan_free(&p);
    }
}

static void counts_by_hand(void **state) {
    static const struct {
        const char *policy;
        uint32_t n, sink, recent, local, tokens, pages;
    } cases[] = {
        {"streaming", 1000, 4, 64, 0, 182, 12},        /* 250 = 4 + 64 + 182; 182 tokens in pages of 16 */
        {"streaming,rate=4", 1000, 4, 64, 0, 182, 12}, /* the same said otherwise */
        {"snapkv", 5000, 0, 32, 0, 992, 62},           /* 1024 = 32 + 992 */
        {"h2o", 1000, 0, 0, 100, 200, 14},             /* 100 ranked in 7 pages, 100 local in 7 */
        {"h2o,recent=30", 1000, 0, 30, 70, 170,
         12}, /* recent ones are among the newest tenth: 70 + 30; 100 ranked: 7, 70 local: 5 */
        {"h2o,local=0,sink=16", 1000, 16, 0, 0, 184, 12},
        {"snapkv,tokens=40,sink=16", 5000, 16, 32, 0, 0, 0}, /* the fixed part alone passes the budget */
        {"snapkv,recent=0,tokens=1", 5000, 0, 0, 0, 1, 1},
        {"h2o,keep=0.0001", 1000, 0, 0, 0, 1, 1}, /* a stream never ends up empty */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setup s;
        first_sync(&s, cases[i].policy, 3, 2, 16, cases[i].n);
        kv_plan p = make(&s);
        assert_true(p.evict && !p.global);
        assert_int_equal(p.n_sink, cases[i].sink);
        assert_int_equal(p.n_recent, cases[i].recent);
        assert_int_equal(p.n_local, cases[i].local);
        for (uint32_t l = 0; l < 3; l++) assert_int_equal(p.tokens[l], cases[i].tokens);
        for (uint32_t h = 0; h < 6; h++) assert_int_equal(p.pages[h], cases[i].pages);
        kv_plan_free(&p);
    }
}

static void nothing_evicted(void **state) {
    static const struct {
        const char *policy;
        uint32_t n, sink, candidates, recent;
    } cases[] = {
        {"full", 1000, 16, 920, 64},
        {"full", 80, 16, 0, 64},
        {"full", 79, 0, 0, 79},
        {"full", 1, 0, 0, 1},
        {"full", 0, 0, 0, 0},
        {"kivi", 1000, 0, 872, 128},
        {"minikv,keep=1", 50, 0, 50, 0},
        {"snapkv", 1000, 0, 968, 32},
        {"snapkv", 1024, 0, 992, 32},
        {"streaming", 60, 0, 0, 60},
        {"kvcompress", 32, 0, 0, 32},
        {"kvcompress", 3, 0, 0, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setup s;
        first_sync(&s, cases[i].policy, 2, 2, 16, cases[i].n);
        kv_plan p = make(&s);
        assert_false(p.evict || p.global);
        assert_true(p.share_met);
        assert_int_equal(p.n_sink, cases[i].sink);
        assert_int_equal(p.n_candidates, cases[i].candidates);
        assert_int_equal(p.n_recent, cases[i].recent);
        kv_plan_free(&p);
    }
}

static void global_counts(void **state) {
    setup s;
    first_sync(&s, "kvcompress,floor=0.25", 4, 3, 16, 8000);
    kv_plan p = make(&s);
    assert_true(p.evict && p.global);
    assert_int_equal(p.mean_tokens, 968); /* 8000 / 8 - 32 */
    assert_int_equal(p.pages_global, 4 * ((3 * 968 + 15) / 16));
    assert_int_equal(p.floor_pages, 15); /* a quarter of 60.67 */
    assert_int_equal(kv_plan_keep(&p, 16, 0, 0), 7968);
    kv_plan_free(&p);
    first_sync(&s, "kvcompress,recent=0,rate=4000", 4, 3, 16, 8000); /* nothing but pages: every stream keeps one */
    p = make(&s);
    assert_int_equal(p.floor_pages, 1);
    assert_int_equal(p.pages_global, 12);
    kv_plan_free(&p);
}

/* Later syncs: the budget is about the tokens this sync added; what waited in the tail stays. */
static void later_syncs(void **state) {
    setup s;
    first_sync(&s, "h2o,recent=64,when=prefill", 3, 2, 16, 0);
    s.in.first = false;
    s.in.n_before = 2000;
    s.in.n_seen = 3000;
    s.in.n_unsealed = 1064;
    s.in.bytes_before = 100000;
    kv_plan p = make(&s);
    assert_true(p.evict);
    assert_int_equal(p.n_sink, 0);
    assert_int_equal(p.tokens[0], 200); /* .2 x 1000 + 64 that waited - 64 that wait now */
    assert_int_equal(p.n_local, 100 - 64);
    kv_plan_free(&p);
    s.in.n_before = 2990; /* a short question: a page a stream is paid anyway, so 16 stay */
    s.in.n_unsealed = 100;
    p = make(&s);
    assert_true(p.evict);
    assert_int_equal(p.tokens[0], 28); /* .2 x 10 + 90 - 64 */
    kv_plan_free(&p);
    s.in.n_unsealed = 74;
    p = make(&s);
    assert_false(p.evict); /* 10 candidates fit one page */
    kv_plan_free(&p);
    first_sync(&s, "h2o,recent=64", 3, 2, 16, 0);
    s.in.first = false;
    s.in.n_before = 2990;
    s.in.n_seen = 3000;
    s.in.n_unsealed = 74;
    p = make(&s);
    assert_true(p.evict); /* they may have to go while decoding: all are priced, none is evicted */
    assert_int_equal(p.tokens[0], 10);
    assert_int_equal(kv_plan_keep(&p, 16, 0, 0), 10);
    assert_int_equal(kv_plan_again(&s.in, &p, NULL), KVIST_OK);
    assert_false(p.evict);
    kv_plan_free(&p);
    first_sync(&s, "snapkv", 3, 2, 16, 0);
    s.in.first = false;
    s.in.n_before = 5000;
    s.in.n_seen = 6000;
    s.in.n_unsealed = 1032;
    s.in.bytes_before = 6ull * 50 * 4140; /* 50 pages of 16 a stream: 800 of the 1024 */
    p = make(&s);
    assert_int_equal(p.tokens[0], 1024 - 800 - 32);
    kv_plan_free(&p);
    s.in.bytes_before = 6ull * 70 * 4140;
    p = make(&s);
    assert_int_equal(p.tokens[0], 16); /* at least one page */
    kv_plan_free(&p);
}

/* ---- shares against a real cache */

typedef struct model {
    uint32_t first[MAXL + 1];
    kv_stream_shape shapes[MAXL];
} model;

static void fill(kv_seq *seq, kv_stream *st, uint32_t n_pages, uint32_t tokens) {
    kv_error err = {0};
    for (uint32_t i = 0; i < n_pages; i++) {
        uint32_t page;
        if (kv_stream_push(seq, st, 1, &page, &err)) fail_msg("%s", err.message);
        kv_pool_entry(seq->pool, page)->n = 1;
    }
    st->tokens_sealed += n_pages;
    (void)tokens;
}

/* Fills a cache as the plan says; returns its true bytes. */
static uint64_t bytes_of_plan(const setup *s, const model *m, const kv_plan *p) {
    kv_error err = {0};
    kv_pool *pool;
    kv_seq *seq;
    assert_int_equal(kv_pool_create(s->in.page_bytes, 1ull << 31, &pool, &err), 0);
    assert_int_equal(kv_seq_create(pool, s->in.n_layers, m->first, m->shapes, &seq, &err), 0);
    uint64_t global = p->pages_global;
    uint16_t row[256] = {0};
    float q2[256] = {0}, mean[256];
    for (uint32_t l = 0; l < s->in.n_layers; l++) {
        const kv_plan_layer *la = &s->layers[l];
        for (uint32_t h = 0; h < la->n_streams; h++) {
            kv_stream *st = kv_seq_stream(seq, l, h);
            uint32_t ranked = kv_plan_keep(p, la->page_tokens, l, m->first[l] + h), tail = p->n_recent;
            bool sealed = p->evict || p->n_candidates >= la->page_tokens; /* sinks wait for the first page */
            if (sealed) fill(seq, st, (p->n_sink + la->f16_tokens - 1) / la->f16_tokens, p->n_sink);
            if (!sealed) tail += p->n_sink;
            if (!p->evict) {
                fill(seq, st, p->n_candidates / la->page_tokens, 0);
                tail += p->n_candidates % la->page_tokens;
            } else if (p->global) {
                uint64_t most = (p->n_local + la->page_tokens - 1) / la->page_tokens +
                                (ranked + la->page_tokens - 1) / la->page_tokens;
                fill(seq, st, (uint32_t)(most < global ? most : global), 0);
                global -= most < global ? most : global;
            } else {
                uint32_t pages = (ranked + la->page_tokens - 1) / la->page_tokens +
                                 (p->n_local + la->page_tokens - 1) / la->page_tokens;
                assert_int_equal(pages, p->pages[m->first[l] + h]);
                fill(seq, st, pages, ranked);
            }
            st->tail_pos = s->in.n_seen - tail;
            for (uint32_t i = 0; i < tail; i++) assert_int_equal(kv_tail_append(seq, st, row, row, &err), 0);
            assert_int_equal(kv_q2_push(seq, st, q2, &err), 0);
            kv_q2_mean(st, 1, mean);
        }
    }
    assert_int_equal(global, 0);
    kv_seq_bytes bytes;
    kv_seq_count(seq, NULL, &bytes);
    kv_seq_free(&seq);
    kv_pool_free(&pool);
    return bytes.bytes_true;
}

static void shares_are_true_bytes(void **state) {
    static const char *const policies[] = {"minikv",
                                           "kvcompress",
                                           "snapkv",
                                           "h2o",
                                           "streaming",
                                           "full,score=vote2,alloc=global",
                                           "full,score=attn,format=q2s",
                                           "minikv,local=0.1",
                                           "minikv,sink=16,recent=64,alloc=uniform",
                                           "kvcompress,local=0.05",
                                           "minikv,alloc=global",
                                           "full,score=vote2,alloc=global,sink=16/6,recent=8",
                                           "snapkv,sink=20/8,recent=4+"};
    uint64_t seed = 77;
    uint32_t met = 0, unmet = 0, all = 0, given_up = 0;
    for (int round = 0; round < 400; round++) {
        uint64_t r = test_rand(&seed);
        setup s;
        model m;
        uint32_t n_layers = 1 + (uint32_t)(r % 12), heads = 1 + (uint32_t)((r >> 8) % 4),
                 n = 1 + (uint32_t)((r >> 16) % (round % 4 ? 3000 : 200));
        uint32_t d = (uint32_t[]){64, 80, 128}[(r >> 32) % 3], p = (uint32_t[]){16, 29, 60, 97}[(r >> 36) % 4];
        char text[128];
        (void)snprintf(text, sizeof text, "%s,share=0.%03u", policies[(r >> 40) % 13],
                       1 + (uint32_t)((r >> 48) % (round % 2 ? 999 : 250)));
        first_sync(&s, text, n_layers, heads, p, n);
        if (s.policy.base.sink_room) {
            kv_policy given = s.policy;
            kv_policy_for_prompt(&given, n, &s.policy);
            given_up += !s.policy.base.sink;
        }
        s.in.page_bytes = (uint32_t)kv_page_bytes_for(d, d);
        m.first[0] = 0;
        for (uint32_t l = 0; l < n_layers; l++) {
            m.shapes[l] = (kv_stream_shape){(uint16_t)d, (uint16_t)d, 16, 2};
            s.layers[l] = (kv_plan_layer){heads, 16, p, 4 * d, 4ull * d};
            if (round % 5 == 0 && l % 3 == 1) s.layers[l].page_tokens = 16; /* layers= with another format */
            m.first[l + 1] = m.first[l] + heads;
        }
        kv_plan plan = make(&s);
        double target = s.policy.budget * n * n_layers * heads * 4.0 * d, cost = s.in.page_bytes + 44.0;
        uint64_t bytes = bytes_of_plan(&s, &m, &plan);
        uint32_t tail = n_layers * heads * (plan.n_recent / 16 + 2);
        if (!plan.evict) {
            all++;
            if (plan.share_met)
                assert_true((double)bytes <= target * 1.02);
            else
                assert_true(plan.n_candidates == 0 && plan.share_note[0]);
        } else if (plan.share_met) {
            met++;
            assert_true((double)bytes <= target * 1.02);
            bool everything = true;
            uint64_t sum_most = 0;
            for (uint32_t l = 0, i = 0; l < n_layers; l++)
                for (uint32_t h = 0; h < heads; h++, i++) {
                    uint32_t pt = s.layers[l].page_tokens,
                             most = (plan.n_local + pt - 1) / pt + (plan.n_candidates - plan.n_local + pt - 1) / pt;
                    everything &= plan.global || plan.pages[i] >= most;
                    sum_most += most;
                }
            everything &= !plan.global || plan.pages_global == sum_most;
            /* Nothing more fits: the next page would pass the target (tail items are charged 12 bytes and cost 4). */
            if (!everything && (double)bytes + cost + 8.0 * tail <= target)
                fail_msg("%s, %u layers x %u, pages of %u, %u tokens: %.0f bytes of %.0f", text, n_layers, heads, p, n,
                         (double)bytes, target);
        } else {
            unmet++;
            assert_true((double)bytes > target);
            assert_true(plan.share_note[0] != 0);
            uint64_t pages = plan.pages_global;
            for (uint32_t i = 0; !plan.global && i < n_layers * heads; i++) pages += plan.pages[i];
            bool fixed = plan.n_sink || (plan.n_recent && !s.policy.base.sink_room);
            assert_true(pages == (fixed ? 0 : n_layers * heads)); /* the minimum */
        }
        kv_plan_free(&plan);
    }
    assert_true(met > 100 && unmet > 20 && all > 20 && given_up > 10);
}

/* Half of what a MiniKV stream keeps is local, also when a share says how much. */
static void share_keeps_the_ratio_of_local(void **state) {
    setup s;
    first_sync(&s, "minikv,share=0.14", 30, 3, 60, 7500);
    kv_plan p = make(&s);
    assert_true(p.evict && p.share_met && p.by_pages);
    double mean = 0;
    for (uint32_t l = 0; l < 30; l++) mean += p.tokens[l] / 30.0;
    assert_true(fabs(p.n_local / mean - .5) < .03);
    assert_true(p.n_local % 60 == 0 || p.n_local == p.n_candidates);
    assert_true(p.tokens[0] > 2 * p.tokens[29] - p.n_local);
    kv_plan_free(&p);
}

/* Sinks given up for room: every stream then has a page of ranked tokens, also where the share holds none, whatever the
 * allocator. */
static void a_page_each_without_sinks(void **state) {
    static const char *const policies[] = {"full,score=vote2,alloc=global,sink=16/6,share=0.02",
                                           "adakv,sink=16/6,recent=4+,share=0.02", "snapkv,sink=16/6,share=0.02"};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        for (uint32_t n = 200; n < 6000; n += 450) {
            setup s;
            first_sync(&s, policies[i], 5, 3, 60, n);
            kv_policy given = s.policy;
            kv_policy_for_prompt(&given, n, &s.policy);
            kv_plan p = make(&s);
            assert_int_equal(p.n_sink, n * 2 < 6 * 16 * 100 ? 0 : 16);
            if (p.n_sink) {
                kv_plan_free(&p);
                continue;
            }
            if (p.global) {
                assert_true(p.pages_global >= 15);
                assert_true(p.floor_pages >= 1);
            }
            for (uint32_t k = 0; k < 15 && !p.global; k++) assert_true(p.pages[k] >= 1);
            if (i == 1) assert_int_equal(p.least, 1);
            kv_plan_free(&p);
        }
}

static void leftover_pages_go_in_order(void **state) {
    setup s;
    first_sync(&s, "streaming,share=0.3", 5, 3, 16, 1000);
    kv_plan p = make(&s);
    assert_true(p.by_pages && p.share_met);
    uint32_t steps = 0;
    for (uint32_t i = 1; i < 15; i++) {
        assert_true(p.pages[i] <= p.pages[i - 1]);
        steps += p.pages[i - 1] - p.pages[i];
    }
    assert_true(steps <= 1);
    kv_plan_free(&p);
}

/* The guard's pages: (guard_max - 1) x the budget's, over all streams; a share that they pass by 2 % is not met. */
static void guard_pages(void **state) {
    static const struct {
        const char *policy;
        uint64_t want;
    } counts[] = {{"snapkv,tokens=160,guard=0.9", 15 * 8},                   /* 128 of 968 candidates: 8 pages of 16 */
                  {"snapkv,tokens=161,guard=0.9,guard_max=1.5", 15 * 9 / 2}, /* 129: 9 pages */
                  {"kvcompress,tokens=160,guard=0.9,guard_max=3", 2 * 15 * 8},
                  {"kvcompress,tokens=160,guard=0.9,guard_max=1", 0},
                  {"kvcompress,tokens=160,guard_max=3", 0},
                  {"full,guard=0.9", 0},
                  {"snapkv,tokens=2000,guard=0.9", 0}};
    setup s;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        first_sync(&s, counts[i].policy, 5, 3, 16, 1000);
        kv_plan p = make(&s);
        if (p.guard_pages != counts[i].want) fail_msg("%s: %llu", counts[i].policy, (unsigned long long)p.guard_pages);
        kv_plan_note_guard(&p, 100);
        assert_true(p.share_met && !p.share_note[0]);
        kv_plan_free(&p);
    }
    first_sync(&s, "kvcompress,share=0.3,guard=0.9", 5, 3, 16, 1000);
    kv_plan p = make(&s);
    assert_int_equal(p.guard_pages, p.pages_global);
    /* 1,000 tokens x 15 streams x 256 B x .3, less at most one page of 4,140 B; 2 % of it are 5.6 pages */
    kv_plan_note_guard(&p, 0);
    assert_true(p.share_met);
    kv_plan_note_guard(&p, 4);
    assert_true(p.share_met);
    kv_plan_note_guard(&p, 8);
    assert_false(p.share_met);
    assert_non_null(strstr(p.share_note, "the guard added 8 pages"));
    kv_plan_free(&p);
}

static void bad_input_and_no_memory(void **state) {
    setup s;
    kv_plan p;
    kv_error err = {0};
    first_sync(&s, "minikv", 3, 2, 16, 100);
    s.in.n_unsealed = 101;
    assert_int_equal(kv_plan_make(&s.in, &p, &err), KVIST_E_ARG);
    first_sync(&s, "minikv", 3, 2, 16, 100);
    s.layers[1].page_tokens = 0;
    assert_int_equal(kv_plan_make(&s.in, &p, &err), KVIST_E_ARG);
    first_sync(&s, "minikv", 3, 2, 16, 100);
    s.in.first = false;
    s.in.n_unsealed = 50;
    assert_int_equal(kv_plan_make(&s.in, &p, &err), KVIST_E_ARG);
    first_sync(&s, "minikv", 3, 2, 16, 100);
    for (uint64_t n = 1; n <= 2; n++) {
        kv_alloc_test_fail_at(n);
        assert_int_equal(kv_plan_make(&s.in, &p, &err), KVIST_E_MEMORY);
        kv_alloc_test_fail_at(0);
        assert_true(p.tokens == NULL && p.pages == NULL);
    }
    kv_plan_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pyramid_figures),
        cmocka_unit_test(pyramid_total_is_kept),
        cmocka_unit_test(counts_by_hand),
        cmocka_unit_test(nothing_evicted),
        cmocka_unit_test(global_counts),
        cmocka_unit_test(later_syncs),
        cmocka_unit_test(shares_are_true_bytes),
        cmocka_unit_test(share_keeps_the_ratio_of_local),
        cmocka_unit_test(a_page_each_without_sinks),
        cmocka_unit_test(leftover_pages_go_in_order),
        cmocka_unit_test(guard_pages),
        cmocka_unit_test(bad_input_and_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
