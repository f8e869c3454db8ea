/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token-exact eviction in f16 pages against plain arrays: which tokens are stored, with which bytes and scores, after
 * random sequences of generated tokens, graduations, evictions, snapshots and returns; every page accounted for.
 */
#include "support/support.h"

#include "base/half.h"
#include "cache/stream.h"

#include <math.h>
#include <string.h>

enum { DK = 20, DV = 12, P16 = 16, MOST = 4096, SNAPS = 4 };

/* A token as the plain arrays know it. */
typedef struct token {
    uint32_t position;
    float score;
} token;
typedef struct list {
    token t[MOST];
    uint32_t n;
} list;
typedef struct model {
    list region, tail; /* any order; position order */
    uint32_t n;
} model;

typedef struct rig {
    kv_pool *pool;
    kv_seq *seq;
    kv_stream_shape shape;
    uint32_t first[2];
    model m;
    uint64_t seed;
} rig;

static void ok(kv_status s, const kv_error *e) {
    if (s) fail_msg("%s", e->message);
}

/* What a token's key and value hold: a function of its position. */
static void rows_of(uint32_t position, uint16_t *k, uint16_t *v) {
    uint64_t x = 77 + position;
    for (int c = 0; c < DK; c++) k[c] = (uint16_t)(test_rand(&x) & 0x7bff);
    for (int c = 0; c < DV; c++) v[c] = (uint16_t)(test_rand(&x) & 0x7bff);
}

static void rig_open(rig *r, uint64_t budget) {
    kv_error err;
    memset(r, 0, sizeof *r);
    r->shape = (kv_stream_shape){DK, DV, P16, 2};
    r->first[1] = 1;
    r->seed = 5;
    ok(kv_pool_create(2 * P16 * (32 + 16), budget, &r->pool, &err), &err);
    ok(kv_seq_create(r->pool, 1, r->first, &r->shape, &r->seq, &err), &err);
    ok(kv_scores_begin(r->seq, &r->seq->streams[0], true, &err), &err);
}

static void rig_close(rig *r) {
    kv_error err;
    kv_pool_stats st;
    kv_seq_free(&r->seq);
    kv_pool_get_stats(r->pool, &st);
    assert_int_equal(st.pages_used, 0);
    assert_int_equal(st.bytes_charged, 0);
    assert_true(kv_pool_check(r->pool, &err));
    kv_pool_free(&r->pool);
}

static void check_token(const kv_seq *s, uint32_t page, uint32_t slot, uint32_t position) {
    uint16_t k[DK], v[DV];
    const uint16_t *p = (const uint16_t *)(const void *)kv_pool_data(s->pool, page);
    rows_of(position, k, v);
    for (int c = 0; c < DK; c++) assert_int_equal(p[c * P16 + (int)slot], k[c]);
    for (int c = 0; c < DV; c++) assert_int_equal(p[32 * P16 + (int)slot * 16 + c], v[c]);
}

/* The position whose key lies in a slot, among those the model keeps. */
static const token *find(const list *l, const kv_seq *s, uint32_t page, uint32_t slot) {
    const uint16_t *p = (const uint16_t *)(const void *)kv_pool_data(s->pool, page);
    for (uint32_t i = 0; i < l->n; i++) {
        uint16_t k[DK], v[DV];
        rows_of(l->t[i].position, k, v);
        bool same = true;
        for (int c = 0; c < DK && same; c++) same = p[c * P16 + (int)slot] == k[c];
        if (same) return &l->t[i];
    }
    return NULL;
}

static void check(const rig *r) {
    kv_error err;
    const kv_stream *st = &r->seq->streams[0];
    if (!kv_seq_check(r->seq, &err) || !kv_pool_check(r->pool, &err)) fail_msg("%s", err.message);
    assert_int_equal(kv_region_tokens(r->seq, st), r->m.region.n);
    assert_int_equal(st->n_handles, (r->m.region.n + P16 - 1) / P16);
    assert_int_equal(st->tail_len, r->m.tail.n);
    bool seen[MOST] = {0};
    for (uint32_t i = 0; i < r->m.region.n; i++) {
        uint32_t page = st->handles[i / P16].page, slot = i % P16;
        const token *t = find(&r->m.region, r->seq, page, slot);
        if (!t) fail_msg("slot %u holds a token that was evicted", i);
        assert_false(seen[t - r->m.region.t]);
        seen[t - r->m.region.t] = true;
        check_token(r->seq, page, slot, t->position);
        assert_true(st->scores.slots[i] == t->score);
    }
    for (uint32_t i = 0; i < r->m.tail.n; i++) {
        uint16_t k[DK], v[DV], wk[DK], wv[DV];
        kv_tail_get(r->seq, st, i, k, v);
        rows_of(r->m.tail.t[i].position, wk, wv);
        assert_memory_equal(k, wk, sizeof k);
        assert_memory_equal(v, wv, sizeof v);
        assert_true(st->scores.tail[i] == r->m.tail.t[i].score);
    }
}

static void remove_at(list *l, uint32_t i) {
    memmove(l->t + i, l->t + i + 1, (l->n - i - 1) * sizeof *l->t);
    l->n--;
}
static uint32_t lowest(const list *l) {
    uint32_t at = 0;
    for (uint32_t i = 1; i < l->n; i++)
        if (l->t[i].score < l->t[at].score) at = i;
    return at;
}

static void generate(rig *r) {
    kv_error err;
    uint16_t k[DK], v[DV];
    kv_stream *st = &r->seq->streams[0];
    rows_of(r->m.n, k, v);
    if (!st->tail_len) st->tail_pos = r->m.n;
    ok(kv_tail_append(r->seq, st, k, v, &err), &err);
    st->scores.tail[st->tail_len - 1] = test_uniform(&r->seed); /* no ties: their order is order_of_eviction's */
    r->m.tail.t[r->m.tail.n++] = (token){r->m.n, st->scores.tail[st->tail_len - 1]};
    r->seq->length = ++r->m.n;
}

/* A row's attention: every stored token's score moves by the same rule on both sides. */
static void attend(rig *r) {
    kv_stream *st = &r->seq->streams[0];
    for (uint32_t i = 0; i < r->m.tail.n; i++) {
        st->scores.tail[i] += test_uniform(&r->seed);
        r->m.tail.t[i].score = st->scores.tail[i];
    }
    for (uint32_t i = 0; i < r->m.region.n; i++) {
        token *t = (token *)(uintptr_t)find(&r->m.region, r->seq, st->handles[i / P16].page, i % P16);
        st->scores.slots[i] += test_uniform(&r->seed);
        t->score = st->scores.slots[i];
    }
}

static void graduate(rig *r, uint32_t most) {
    kv_error err;
    kv_stream *st = &r->seq->streams[0];
    if (!r->m.tail.n) return;
    token t = r->m.tail.t[0];
    remove_at(&r->m.tail, 0);
    if (r->m.region.n < most) {
        ok(kv_region_append(r->seq, st, &err), &err);
        r->m.region.t[r->m.region.n++] = t;
    } else if (r->m.region.n) {
        uint32_t at = lowest(&r->m.region);
        ok(kv_region_replace(r->seq, st, kv_region_lowest(r->seq, st), &err), &err);
        r->m.region.t[at] = t;
    } else {
        kv_tail_drop_front(r->seq, st, 1);
    }
}

static void evict(rig *r) {
    kv_error err;
    kv_stream *st = &r->seq->streams[0];
    if (!r->m.region.n) return;
    ok(kv_region_evict(r->seq, st, kv_region_lowest(r->seq, st), &err), &err);
    remove_at(&r->m.region, lowest(&r->m.region));
}

static int rising(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void drop_page(rig *r) {
    kv_error err;
    kv_stream *st = &r->seq->streams[0];
    uint32_t n = r->m.region.n, h, want = n % P16 ? n % P16 : P16;
    if (!n) return;
    float sorted[MOST];
    for (uint32_t i = 0; i < n; i++) sorted[i] = r->m.region.t[i].score;
    qsort(sorted, n, sizeof *sorted, rising);
    assert_true(kv_region_price(r->seq, st, &h) == sorted[want - 1]);
    assert_int_equal(h, want);
    uint32_t pages = st->n_handles;
    ok(kv_region_drop_page(r->seq, st, &err), &err);
    assert_int_equal(st->n_handles, pages - 1);
    for (uint32_t i = 0; i < want; i++) remove_at(&r->m.region, lowest(&r->m.region));
}

static void random_operations(void **state) {
    (void)state;
    static rig r;
    static model kept[SNAPS];
    kv_snapshot *snap[SNAPS] = {NULL};
    kv_error err;
    rig_open(&r, 1u << 20);
    for (int step = 0; step < 6000; step++) {
        uint32_t what = (uint32_t)(test_rand(&r.seed) % 100), i = (uint32_t)(test_rand(&r.seed) % SNAPS);
        if (what < 40 && r.m.n < MOST - 1)
            generate(&r);
        else if (what < 50)
            attend(&r);
        else if (what < 80)
            graduate(&r, 20 + (uint32_t)(test_rand(&r.seed) % 60));
        else if (what < 88)
            evict(&r);
        else if (what < 91)
            drop_page(&r);
        else if (what < 96) {
            kv_snapshot_free(&snap[i]);
            ok(kv_snapshot_take(r.seq, &snap[i], &err), &err);
            kept[i] = r.m;
        } else if (snap[i]) {
            ok(kv_snapshot_restore(snap[i], r.seq, &err), &err);
            r.m = kept[i];
        }
        if (step % 7 == 0) check(&r);
    }
    for (int i = 0; i < SNAPS; i++) kv_snapshot_free(&snap[i]);
    check(&r);
    rig_close(&r);
}

/* Pages of two prompts, each with a partial last one: full from the front afterwards, nothing lost. */
static void compaction(void **state) {
    (void)state;
    static rig r;
    static const uint32_t fills[][4] = {{5, 16, 3, 16}, {16, 1, 1, 1}, {1, 1, 1, 1}, {16, 16, 16, 2}, {7, 16, 16, 16}};
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
        rig_open(&r, 1u << 20);
        kv_error err;
        kv_stream *st = &r.seq->streams[0];
        for (int p = 0; p < 4; p++) {
            uint32_t page, n = fills[f][p];
            ok(kv_stream_push(r.seq, st, 0, &page, &err), &err);
            uint16_t *x = (uint16_t *)(void *)kv_pool_data(r.pool, page);
            memset(x, 0, kv_pool_page_bytes(r.pool));
            for (uint32_t t = 0; t < n; t++, r.m.n++) {
                uint16_t k[DK], v[DV];
                rows_of(r.m.n, k, v);
                for (int c = 0; c < DK; c++) x[c * P16 + (int)t] = k[c];
                memcpy(x + 32 * P16 + t * 16, v, sizeof v);
                st->scores.slots[(st->n_handles - 1) * P16 + t] = (float)r.m.n;
                r.m.region.t[r.m.region.n++] = (token){r.m.n, (float)r.m.n};
            }
            kv_pool_entry(r.pool, page)->n = (uint16_t)n;
            st->tokens_sealed += n;
        }
        r.seq->length = r.m.n;
        kv_snapshot *snap;
        ok(kv_snapshot_take(r.seq, &snap, &err), &err);
        ok(kv_region_compact(r.seq, st, &err), &err);
        check(&r);
        kv_snapshot_free(&snap);
        check(&r);
        rig_close(&r);
    }
}

/* Equal scores: the last of them; what is no number goes first. */
static void order_of_eviction(void **state) {
    (void)state;
    static rig r;
    static const float scores[] = {3, 1, 2, 1, 5};
    rig_open(&r, 1u << 20);
    kv_error err;
    kv_stream *st = &r.seq->streams[0];
    for (int i = 0; i < 5; i++) generate(&r);
    for (int i = 0; i < 5; i++) ok(kv_region_append(r.seq, st, &err), &err);
    memcpy(st->scores.slots, scores, sizeof scores);
    assert_int_equal(kv_region_lowest(r.seq, st), 3);
    st->scores.slots[2] = NAN;
    assert_int_equal(kv_region_lowest(r.seq, st), 2);
    uint32_t h;
    assert_true(kv_region_price(r.seq, st, &h) == 5 && h == 5);
    rig_close(&r);
}

/* No page to copy a shared one to: an error, and the region as it was. */
static void out_of_pages(void **state) {
    (void)state;
    static rig r;
    rig_open(&r, 12 << 10);
    kv_error err;
    kv_stream *st = &r.seq->streams[0];
    kv_snapshot *snap;
    for (int i = 0; i < 20; i++) generate(&r);
    for (int i = 0; i < 20; i++) graduate(&r, 100);
    ok(kv_snapshot_take(r.seq, &snap, &err), &err);
    generate(&r);
    kv_pool_stats ps;
    kv_pool_get_stats(r.pool, &ps);
    uint64_t left = ps.bytes_budget - ps.bytes_used - ps.bytes_charged;
    ok(kv_pool_charge(r.pool, left, &err), &err);
    assert_int_equal(kv_region_replace(r.seq, st, 3, &err), KVIST_E_BUDGET);
    assert_int_equal(kv_region_evict(r.seq, st, 3, &err), KVIST_E_BUDGET);
    kv_pool_discharge(r.pool, left);
    check(&r);
    kv_snapshot_free(&snap);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_operations), cmocka_unit_test(compaction),
                                       cmocka_unit_test(order_of_eviction), cmocka_unit_test(out_of_pages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
