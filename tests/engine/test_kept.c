/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept positions against the keys themselves: a second session keeps everything in f16 and in position order, so the
 * row at a kept position must be the row that the compressed page holds there (bit for bit in f16, nearest of all rows
 * in few bits). Watching costs what the report says and changes nothing.
 */
enum { TEXT_SEED = 41 };
#include "engine/fixture_shared.h"

#include "base/half.h"
#include "cache/positions.h"
#include "engine/engine.h"

#include <math.h>

enum { PROMPT = 700, D = 64, STREAMS = 6, MOST = 1200 };

static kvist_session *tracked(kvist_engine *e, const char *policy) {
    kvist_error err;
    kvist_session *s = fixture_session(e, policy);
    if (kvist_session_track(s, true, &err)) fail_msg("%s", err.message);
    return s;
}

/* All keys of a stream as stored, in the order of kvist_session_kept. */
static size_t stored_keys(const kvist_session *s, const kv_stream *st, float (*k)[D]) {
    static float pk[1024 * D], pv[1024 * D];
    size_t at = 0;
    for (uint32_t h = 0; h < st->n_handles; h++) {
        const kv_page_entry *e = kv_pool_entry(s->e->pool, st->handles[h].page);
        kv_page_layout lay;
        kv_error err;
        assert_int_equal(kv_page_layout_get(e->format, D, D, fx.info.page_bytes, &lay, &err), KVIST_OK);
        kv_decode_ref(&lay, kv_pool_data(s->e->pool, st->handles[h].page), e, pk, pv);
        memcpy(k[at], pk, (size_t)e->n * D * sizeof(float));
        at += e->n;
    }
    for (uint32_t i = 0; i < st->tail_len; i++, at++) {
        uint16_t kh[D], vh[D];
        kv_tail_get(s->seq, st, i, kh, vh);
        for (int c = 0; c < D; c++) k[at][c] = kv_f16_f32(kh[c]);
    }
    return at;
}

static double distance(const float *a, const float *b) {
    double sum = 0;
    for (int c = 0; c < D; c++) sum += ((double)a[c] - b[c]) * ((double)a[c] - b[c]);
    return sum;
}

/* exact_to: keys of positions below it are those of the full session in every layer; in layer 0 all are. */
static void check_stream(const kvist_session *s, const kvist_session *full, const char *policy, uint32_t layer,
                         uint32_t head, uint32_t n_seen, uint32_t exact_to, bool f16) {
    static float kept[MOST][D], all[MOST][D];
    static uint32_t pos[MOST];
    static uint8_t formats[MOST];
    static float prices[MOST];
    const kv_stream *st = kv_seq_stream(s->seq, layer, head), *ft = kv_seq_stream(full->seq, layer, head);
    size_t n = kvist_session_kept(s, layer, head, pos, prices, formats, MOST);
    assert_int_equal(n, st->tokens_sealed + st->tail_len);
    assert_int_equal(stored_keys(s, st, kept), n);
    assert_int_equal(stored_keys(full, ft, all), n_seen);
    bool seen[MOST] = {false};
    uint32_t misplaced = 0, compared = 0;
    for (size_t i = 0; i < n; i++) {
        if (pos[i] >= n_seen || seen[pos[i]]) fail_msg("%s: token %zu is at position %u", policy, i, pos[i]);
        seen[pos[i]] = true;
        if (layer && pos[i] >= exact_to) continue;
        compared++;
        double own = distance(kept[i], all[pos[i]]);
        if (f16 && own != 0)
            fail_msg("%s: layer %u head %u: key %zu is not that of %u", policy, layer, head, i, pos[i]);
        for (uint32_t p = 0; p < n_seen && !f16; p++)
            if (distance(kept[i], all[p]) < own) {
                misplaced++;
                break;
            }
    }
    assert_true(layer || compared > 10); /* later prompts may leave a head little of the first one */
    if (misplaced > 1 + compared / 50) fail_msg("%s: %u of %u keys lie nearer to others", policy, misplaced, compared);
    for (uint32_t i = 0; i < st->tail_len; i++) {
        assert_int_equal(pos[n - 1 - i], n_seen - 1 - i);
        assert_true(isinf(prices[n - 1 - i]) && formats[n - 1 - i] == 0);
    }
}

static void check_session(const kvist_session *s, const kvist_session *full, const char *policy, uint32_t exact_to) {
    kvist_report r;
    kvist_session_report(s, &r);
    bool f16 = r.pages == r.pages_by_format[0];
    double sum = 0;
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t h = 0; h < 2; h++) {
            check_stream(s, full, policy, l, h, s->n, exact_to, f16);
            sum += (double)kvist_session_kept(s, l, h, NULL, NULL, NULL, 0);
        }
    assert_true(fabs(sum - STREAMS * r.tokens_stored) < 0.5);
    kv_error err;
    if (!kv_pool_check(s->e->pool, &err) || !kv_seq_check(s->seq, &err)) fail_msg("%s: %s", policy, err.message);
}

/* Prompt, generated rows, a second prompt, rollback to the middle of what was generated. */
static void kept_tokens_are_those(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *full = fixture_session(e, "full");
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        const char *policy = fixture_policies[i];
        kvist_session *s = tracked(e, policy);
        must_sync(full, ids, PROMPT);
        must_sync(s, ids, PROMPT);
        check_session(s, full, policy, PROMPT);
        must_decode(s, ids, PROMPT, PROMPT + 150);
        must_sync(full, ids, PROMPT + 150);
        check_session(s, full, policy, PROMPT);
        must_sync(s, ids, PROMPT + 400);
        must_sync(full, ids, PROMPT + 400);
        check_session(s, full, policy, PROMPT);
        must_truncate(s, PROMPT + 70);
        must_truncate(full, PROMPT + 70);
        check_session(s, full, policy, PROMPT);
        must_truncate(full, 0);
        kvist_session_close(&s);
    }
    kvist_session_close(&full);
    kvist_engine_close(&e);
}

static size_t kept_of(const kvist_session *s, uint32_t i, uint32_t *pos, float *prices) {
    return kvist_session_kept(s, i / 2, i % 2, pos, prices, NULL, MOST);
}

/* A session that was elsewhere in between keeps the same tokens at the same prices as one that never was; replayed
 * too, when its snapshots are gone. */
static void rollback_keeps_the_same(void **state) {
    (void)state;
    static const char *const policies[] = {"minikv", "kvcompress,share=0.3,format=q2s", "snapkv,tokens=96", "h2o"};
    static uint32_t a[MOST], b[MOST];
    static float pa[MOST], pb[MOST];
    for (size_t k = 0; k < sizeof policies / sizeof *policies; k++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
        kvist_session *s = tracked(e, policies[k]), *t = tracked(e, policies[k]);
        must_sync(s, ids, 500);
        must_decode(s, ids, 500, 560);
        must_sync(s, ids, 1100);
        if (k % 2)
            while (kv_engine_drop_oldest_snapshot(e)) {}
        must_truncate(s, 560);
        must_sync(s, ids, 900);
        must_sync(t, ids, 500);
        must_decode(t, ids, 500, 560);
        must_sync(t, ids, 900);
        for (uint32_t i = 0; i < STREAMS; i++) {
            size_t n = kept_of(s, i, a, pa);
            assert_int_equal(n, kept_of(t, i, b, pb));
            assert_memory_equal(a, b, n * sizeof *a);
            assert_memory_equal(pa, pb, n * sizeof *pa);
        }
        kvist_session_close(&s);
        kvist_session_close(&t);
        kvist_engine_close(&e);
    }
}

/* Off: no byte, no entry. On: the same pages and logits, and exactly the lists' bytes more. */
static void watching_changes_nothing(void **state) {
    (void)state;
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
        kvist_session *s[2];
        kvist_report r[2];
        for (int w = 0; w < 2; w++) {
            s[w] = w ? tracked(e, fixture_policies[i]) : fixture_session(e, fixture_policies[i]);
            must_sync(s[w], ids, PROMPT);
            must_decode(s[w], ids, PROMPT, PROMPT + 80);
            must_sync(s[w], ids, PROMPT + 300);
            kvist_session_report(s[w], &r[w]);
            assert_true(w || !*kv_pool_positions(e->pool));
        }
        uint64_t lists = 0;
        for (uint32_t k = 0; k < STREAMS; k++)
            for (uint32_t h = 0; h < s[1]->seq->streams[k].n_handles; h++)
                lists += kv_positions_bytes(e->pool, s[1]->seq->streams[k].handles[h].page);
        assert_int_equal(r[0].bytes_positions, 0);
        assert_int_equal(r[1].bytes_positions, lists);
        assert_int_equal(r[1].bytes_true, r[0].bytes_true + lists);
        assert_int_equal(r[1].bytes_unique, r[0].bytes_unique + lists);
        assert_int_equal(r[1].pages, r[0].pages);
        kvist_stream_report sr[STREAMS];
        assert_int_equal(kvist_session_streams(s[1], sr, STREAMS), STREAMS);
        for (uint32_t k = 0; k < STREAMS; k++) { /* the parts make the whole */
            r[1].bytes_true -= sr[k].bytes_true;
            r[1].bytes_positions -= sr[k].bytes_positions;
        }
        assert_true(!r[1].bytes_true && !r[1].bytes_positions);
        /* Position order, and recency, keep neighbours: their pages need no list. */
        const char *p = fixture_policies[i];
        bool neighbours =
                 !strcmp(p, "full") || !strncmp(p, "full,format", 11) || !strcmp(p, "kivi") || !strcmp(p, "streaming"),
             evicts = r[0].tokens_stored < PROMPT + 299.5;
        if ((neighbours && lists) || (evicts && !neighbours && !lists))
            fail_msg("%s: %llu bytes of lists", p, (unsigned long long)lists);
        /* a byte or two a token, and what a list's last cell leaves unused */
        assert_true((double)lists <= 2 * STREAMS * r[0].tokens_stored + 36.0 * (double)r[0].pages);
        assert_true(logits_hash(&fx, s[0]) == logits_hash(&fx, s[1]));
        assert_int_equal(kvist_session_kept(s[0], 0, 0, NULL, NULL, NULL, 0), 0);
        kvist_session_close(&s[0]);
        kvist_session_close(&s[1]);
        kv_pool_stats ps;
        kv_pool_get_stats(e->pool, &ps);
        assert_int_equal(ps.bytes_charged, e->fixed_bytes);
        kvist_engine_close(&e);
    }
}

static void refusals_and_edges(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *s = fixture_session(e, "snapkv,tokens=96");
    kvist_error err;
    uint32_t pos[4] = {9, 9, 9, 9};
    assert_int_equal(kvist_session_track(NULL, true, &err), KVIST_E_ARG);
    assert_int_equal(kvist_session_kept(NULL, 0, 0, NULL, NULL, NULL, 0), 0);
    must_sync(s, ids, 300);
    assert_int_equal(kvist_session_track(s, true, &err), KVIST_E_STATE);
    assert_non_null(strstr(err.message, "300"));
    must_truncate(s, 0);
    assert_int_equal(kvist_session_track(s, true, &err), KVIST_OK);
    assert_int_equal(kvist_session_kept(s, 0, 0, pos, NULL, NULL, 4), 0);
    must_sync(s, ids, 300);
    assert_int_equal(kvist_session_kept(s, 2, 1, pos, NULL, NULL, 3), 96); /* no more than cap is written */
    assert_int_equal(pos[3], 9);
    assert_true(pos[0] < pos[1] && pos[1] < pos[2]);
    assert_int_equal(kvist_session_kept(s, 3, 0, pos, NULL, NULL, 4), 0);
    assert_int_equal(kvist_session_kept(s, 0, 2, pos, NULL, NULL, 4), 0);
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

/* A page's price over its tokens: kvcompress stores every kept page at the mean of its tokens' scores. */
static void prices_are_means(void **state) {
    (void)state;
    kvist_engine *e = fixture_engine(&fx, (kvist_engine_params){.threads = 2});
    kvist_session *s = tracked(e, "kvcompress,rate=4,format=q4,sink=16,recent=64,floor=0.5");
    static uint32_t pos[MOST];
    static float prices[MOST];
    must_sync(s, ids, PROMPT);
    for (uint32_t i = 0; i < STREAMS; i++) {
        const kv_stream *st = &s->seq->streams[i];
        size_t n = kept_of(s, i, pos, prices), at = 0;
        assert_true(n > 80);
        for (uint32_t h = 0; h < st->n_handles; h++) {
            const kv_page_entry *pe = kv_pool_entry(e->pool, st->handles[h].page);
            double sum = 0;
            for (uint32_t t = 0; t < pe->n; t++, at++) {
                assert_true(h == 0 ? isinf(prices[at]) && pos[at] == t : isfinite(prices[at]) && prices[at] > 0);
                sum += (double)prices[at];
            }
            if (h) assert_true(fabs(sum - (double)st->handles[h].price) < 1e-4 * sum);
        }
    }
    kvist_session_close(&s);
    kvist_engine_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(kept_tokens_are_those),
                                       cmocka_unit_test(rollback_keeps_the_same),
                                       cmocka_unit_test(watching_changes_nothing), cmocka_unit_test(refusals_and_edges),
                                       cmocka_unit_test(prices_are_means)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
