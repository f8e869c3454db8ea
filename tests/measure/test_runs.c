/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The measurements that drive an engine (eval, compare, bench), on a small generated model: against the same numbers
 * taken here row by row, and for compare against answers generated without teacher forcing and truncation.
 */
#include <math.h>
#include <unistd.h>

#include "kvist/kvist.h"
#include "measure/compare.h"
#include "measure/eval.h"
#include "measure/throughput.h"
#include "support/genmodel.h"
#include "support/support.h"

enum { MAX_TOKENS = 1024 };
static char path[64];
static kvist_model *model;
static kvist_engine *engine;
static kvist_model_info info;
static int32_t ids[MAX_TOKENS];

static int setup(void **state) {
    (void)state;
    kvist_error err;
    gen_spec spec = gen_spec_default();
    kvist_engine_params p = {.n_ctx = 1024, .threads = 1};
    uint64_t rng = 11;
    for (int i = 0; i < MAX_TOKENS; i++) ids[i] = (int32_t)(test_rand(&rng) % 250);
    if (gen_temp_path(path, sizeof path) || gen_model(&spec, path) || kvist_model_open(path, NULL, &model, &err) ||
        kvist_engine_create(model, &p, &engine, &err))
        return -1;
    kvist_model_get_info(model, &info);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return unlink(path);
}

typedef struct rows {
    float *x;
    size_t first, n;
} rows; /* x[n][n_vocab] from position first on */
static void take(void *user, size_t position, const float *logits) {
    rows *r = user;
    assert_int_equal(position, r->first + r->n);
    memcpy(r->x + r->n++ * info.n_vocab, logits, info.n_vocab * sizeof *logits);
}

/* Rows ctx/2 .. of a chunk fed as the definition says; step DECODED: one token at a time, as an answer is. */
enum { DECODED = 1000000 };
static rows feed(const char *policy, const int32_t *chunk, uint32_t ctx, uint32_t step) {
    kvist_error err;
    kvist_session *s;
    rows r = {malloc((size_t)ctx * info.n_vocab * sizeof(float)), ctx / 2, 0};
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    if (step == DECODED) {
        assert_int_equal(kvist_session_sync(s, chunk, ctx / 2, &err), 0);
        for (uint32_t i = ctx / 2; i < ctx; i++) {
            assert_int_equal(kvist_session_decode(s, chunk[i], &err), 0);
            take(&r, i, kvist_session_logits(s));
        }
        kvist_session_close(&s);
        return r;
    }
    if (step) assert_int_equal(kvist_session_sync(s, chunk, ctx / 2, &err), 0);
    for (uint32_t n = step ? ctx / 2 : 0; n < ctx;) {
        n = step && n + step < ctx ? n + step : ctx;
        assert_int_equal(kvist_session_sync_rows(s, chunk, n, ctx / 2 + r.n, take, &r, &err), 0);
    }
    kvist_session_close(&s);
    return r;
}

static long double log_z(const float *x) {
    long double z = 0;
    for (uint32_t i = 0; i < info.n_vocab; i++) z += expl((long double)x[i]);
    return logl(z);
}

static long double naive_kl(const float *x, const float *y) {
    long double zx = log_z(x), zy = log_z(y), kl = 0;
    for (uint32_t i = 0; i < info.n_vocab; i++)
        kl += expl((long double)x[i] - zx) * (((long double)x[i] - zx) - ((long double)y[i] - zy));
    return kl;
}

static uint32_t top(const float *x) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < info.n_vocab; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void eval_rows(void **state) {
    (void)state;
    static const struct {
        uint32_t ctx, step, threads;
    } cases[] = {{128, 16, 1},  {129, 50, 2},      {200, 0, 1},       {4, 1, 1},
                 {300, 300, 2}, {150, DECODED, 2}, {331, DECODED, 1}, {4, DECODED, 1}};
    static const char *const policies[] = {"full", "full,format=q2s", "minikv,keep=0.5"};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        uint32_t ctx = cases[c].ctx, chunks = 2;
        kvist_error err;
        kv_eval_result got[4];
        kv_eval_params p = {.tokens = ids,
                            .n_tokens = MAX_TOKENS,
                            .ctx = ctx,
                            .chunks = chunks,
                            .step = cases[c].step == DECODED ? 7 : cases[c].step,
                            .generated = cases[c].step == DECODED,
                            .n_vocab = info.n_vocab,
                            .threads = cases[c].threads,
                            .kld = true,
                            .policies = policies,
                            .n_policies = 3};
        if (kv_eval_run(engine, &p, got, &err)) fail_msg("%s", err.message);
        for (int i = 0; i < 4; i++) {
            long double nll = 0, base_nll = 0, kl = 0, most = 0;
            size_t n = 0, same = 0;
            for (uint32_t k = 0; k < chunks; k++) {
                const int32_t *chunk = ids + (size_t)k * ctx;
                rows a = feed("full", chunk, ctx, cases[c].step),
                     b = feed(i ? policies[i - 1] : "full", chunk, ctx, cases[c].step);
                for (uint32_t pos = ctx / 2; pos + 1 < ctx; pos++, n++) {
                    const float *x = a.x + (pos - ctx / 2) * info.n_vocab, *y = b.x + (pos - ctx / 2) * info.n_vocab;
                    long double sum = naive_kl(x, y);
                    nll += log_z(y) - (long double)y[chunk[pos + 1]];
                    base_nll += log_z(x) - (long double)x[chunk[pos + 1]];
                    kl += sum;
                    if (sum > most) most = sum;
                    same += top(x) == top(y);
                }
                free(a.x);
                free(b.x);
            }
            assert_int_equal(got[i].rows, chunks * (ctx - ctx / 2 - 1));
            assert_float_equal(got[i].nll, (double)(nll / n), 1e-9);
            assert_float_equal(got[i].ppl, (double)expl(nll / n), 1e-9 * got[i].ppl);
            assert_float_equal(got[i].ppl_ratio, (double)expl((nll - base_nll) / n), 1e-9);
            assert_float_equal(got[i].kld.mean, (double)(kl / n), 1e-9);
            assert_float_equal(got[i].kld.max, (double)most, 1e-9);
            assert_float_equal(got[i].same_top1, (double)same / (double)n, 1e-12);
            if (i < 2) assert_true(got[i].kld.max == 0 && got[i].ppl_ratio == 1);
            assert_int_equal(got[i].report.tokens_seen, cases[c].step == DECODED ? ctx - 1 : ctx);
        }
    }
    kvist_error err;
    kv_eval_result none;
    kv_eval_params p = {
        .tokens = ids, .n_tokens = 100, .ctx = 128, .n_vocab = info.n_vocab, .policies = policies, .n_policies = 1};
    assert_int_equal(kv_eval_run(engine, &p, &none, &err), KVIST_E_ARG);
}

/* Greedy answer after prefix + question by the plain loop, and its report after the prefix. */
static uint32_t answer(const char *policy, const int32_t *prefix, size_t n, const kv_compare_item *item, int32_t *out,
                       uint32_t max) {
    kvist_error err;
    kvist_session *s;
    int32_t all[MAX_TOKENS];
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    assert_int_equal(kvist_session_sync(s, prefix, n, &err), 0);
    memcpy(all, prefix, n * sizeof *all);
    if (item) {
        memcpy(all + n, item->ids, item->n * sizeof *all);
        assert_int_equal(kvist_session_sync(s, all, n + item->n, &err), 0);
    }
    uint32_t k = 0;
    while (k < max) {
        assert_int_equal(kvist_session_sample(s, NULL, &out[k], &err), 0);
        if (kvist_token_is_end(model, out[k])) break;
        k++;
        if (k < max) assert_int_equal(kvist_session_decode(s, out[k - 1], &err), 0);
    }
    kvist_session_close(&s);
    return k;
}

static void compare_paths(void **state) {
    (void)state;
    enum { PREFIX = 300, N = 20 };
    static const char *const policies[] = {"full", "full,format=q2", "minikv,keep=0.3", "kvcompress,share=0.5"};
    const kv_compare_item items[] = {{ids + 400, 1}, {ids + 410, 17}, {ids + 430, 40}};
    for (uint32_t with_items = 0; with_items < 2; with_items++) {
        kv_compare_params p = {.model = model,
                               .n_vocab = info.n_vocab,
                               .prefix = ids,
                               .n_prefix = PREFIX,
                               .items = items,
                               .n_items = with_items ? 3 : 0,
                               .n_predict = N,
                               .min_timed = 8};
        uint32_t n_answers = with_items ? 3 : 1;
        kvist_error err;
        kv_compare *c;
        int32_t want[N + 1];
        uint32_t base_rows = 0;
        for (int i = 0; i < 4; i++) {
            kv_compare_result r;
            if (i ? kv_compare_policy(c, policies[i], &r, &err)
                  : kv_compare_base(engine, &p, policies[0], &c, &r, &err))
                fail_msg("%s", err.message);
            assert_int_equal(r.n_answers, n_answers);
            for (uint32_t a = 0; a < n_answers; a++) {
                uint32_t n = answer(policies[i], ids, PREFIX, with_items ? &items[a] : NULL, want, N);
                if (r.answers[a].n != n || memcmp(want, r.answers[a].ids, n * sizeof *want))
                    fail_msg("%s: answer %u differs", policies[i], a);
                if (i == 0) base_rows += n < N ? n + 1 : n;
            }
            assert_int_equal(r.compared, i ? base_rows : 0);
            assert_int_equal(r.report.tokens_seen, PREFIX);
            if (i == 0)
                assert_true(r.kld_mean == 0 && r.same_top1 == 1);
            else
                assert_true(r.kld_mean > 0 && r.kld_p99 >= 0 && r.same_top1 >= 0 && r.same_top1 <= 1);
            kv_compare_result_free(&r);
        }
        kv_compare_free(&c);
    }
}

/* The divergence of one policy along the base's answer, row by row. */
static void compare_divergence(void **state) {
    (void)state;
    enum { PREFIX = 300, N = 12 };
    kv_compare_params p = {
        .model = model, .n_vocab = info.n_vocab, .prefix = ids, .n_prefix = PREFIX, .n_predict = N, .ignore_end = true};
    kvist_error err;
    kv_compare *c;
    kv_compare_result a, b;
    assert_int_equal(kv_compare_base(engine, &p, "full", &c, &a, &err), 0);
    assert_int_equal(kv_compare_policy(c, "full,format=q2s", &b, &err), 0);
    assert_int_equal(a.answers[0].n, N);
    kvist_session *s, *t;
    assert_int_equal(kvist_session_create(engine, "full", &s, &err), 0);
    assert_int_equal(kvist_session_create(engine, "full,format=q2s", &t, &err), 0);
    assert_int_equal(kvist_session_sync(s, ids, PREFIX, &err), 0);
    assert_int_equal(kvist_session_sync(t, ids, PREFIX, &err), 0);
    long double kl = 0;
    uint32_t same = 0;
    for (int i = 0; i < N; i++) {
        const float *x = kvist_session_logits(s), *y = kvist_session_logits(t);
        kl += naive_kl(x, y);
        same += top(x) == top(y);
        assert_int_equal(top(x), a.answers[0].ids[i]);
        assert_int_equal(kvist_session_decode(s, a.answers[0].ids[i], &err), 0);
        assert_int_equal(kvist_session_decode(t, a.answers[0].ids[i], &err), 0);
    }
    assert_float_equal(b.kld_mean, (double)(kl / N), 1e-9);
    assert_float_equal(b.same_top1, (double)same / N, 1e-12);
    kvist_session_close(&s);
    kvist_session_close(&t);
    kv_compare_result_free(&a);
    kv_compare_result_free(&b);
    kv_compare_free(&c);
}

static bool stop_at_once(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)what;
    (void)done;
    (void)total;
    return --*(int *)user > 0;
}

static void stopped(void **state) {
    (void)state;
    static const char *const policies[] = {"full"};
    for (int after = 1; after < 6;
         after++) { /* wherever it stops, everything is given back (the sanitizers see to that) */
        int left = after;
        kvist_error err;
        kv_eval_result r[2];
        kv_eval_params p = {.tokens = ids,
                            .n_tokens = 512,
                            .ctx = 128,
                            .step = 16,
                            .n_vocab = info.n_vocab,
                            .kld = true,
                            .policies = policies,
                            .n_policies = 1,
                            .watch = {stop_at_once, &left}};
        assert_int_equal(kv_eval_run(engine, &p, r, &err), KVIST_E_CANCELLED);
        p.generated = true;
        left = after;
        assert_int_equal(kv_eval_run(engine, &p, r, &err), KVIST_E_CANCELLED);
        kv_compare_params q = {.model = model,
                               .n_vocab = info.n_vocab,
                               .prefix = ids,
                               .n_prefix = 100,
                               .n_predict = 4,
                               .watch = {stop_at_once, &left}};
        kv_compare *c = NULL;
        kv_compare_result res;
        left = 1;
        assert_int_equal(kv_compare_base(engine, &q, "full", &c, &res, &err), KVIST_E_CANCELLED);
        assert_null(c);
        kv_bench_cell cell = {KV_BENCH_PROMPT, "full", 64, 32, 1};
        kv_bench_sample sample;
        kv_bench *b;
        left = 1;
        kv_watch w = {stop_at_once, &left};
        assert_int_equal(kv_bench_open(engine, ids, MAX_TOKENS, true, &w, &b, &err), 0);
        assert_int_equal(kv_bench_run(b, &cell, &sample, &err), KVIST_E_CANCELLED);
        kv_bench_close(&b);
    }
}

/* Every sample of a cell starts from the same state: the same tokens are seen, the same bytes held, whatever other
 * cells ran in between, whether sessions were kept and whether one reading of a prompt served several policies. */
static void bench_cells(void **state) {
    (void)state;
    const kv_bench_cell cells[] = {{KV_BENCH_PROMPT, "full,format=q4", 100, 32, 1},
                                   {KV_BENCH_DECODE, "full,format=q4", 100, 8, 1},
                                   {KV_BENCH_DECODE, "full,format=q4", 100, 8, 3},
                                   {KV_BENCH_DECODE, "minikv,keep=0.5", 100, 8, 2},
                                   {KV_BENCH_DECODE, "full", 0, 5, 2},
                                   {KV_BENCH_PROMPT, "minikv,keep=0.5", 0, 200, 2}};
    enum { N = sizeof cells / sizeof *cells };
    uint64_t bytes[4][N];
    for (int keep = 0; keep < 4; keep++) { /* 2: kept, and planned; 3: beside a policy that is none */
        kv_bench *b;
        kvist_error err;
        const kv_bench_cell bad = {KV_BENCH_DECODE, "nonsense", 100, 1, 1};
        assert_int_equal(kv_bench_open(engine, ids, 7, keep, NULL, &b, &err), 0); /* 7 tokens, repeated */
        for (int i = 0; keep >= 2 && i < N; i++) assert_int_equal(kv_bench_plan(b, &cells[i], &err), 0);
        if (keep == 3) assert_int_equal(kv_bench_plan(b, &bad, &err), 0); /* fails by itself, and only there */
        for (int round = 0; round < 2; round++)
            for (int i = 0; i < N; i++) {
                kv_bench_sample s;
                if (kv_bench_run(b, &cells[i], &s, &err)) fail_msg("%s", err.message);
                assert_true(s.seconds > 0 && isfinite(s.tps));
                assert_float_equal(s.tps * s.seconds, cells[i].n * cells[i].batch, 1e-6);
                assert_int_equal(s.report.tokens_seen, cells[i].depth + cells[i].n);
                assert_true((s.kv_before > 0) == (cells[i].depth > 0));
                if (round)
                    assert_int_equal(s.report.bytes_true, bytes[keep][i]);
                else
                    bytes[keep][i] = s.report.bytes_true;
            }
        kv_bench_sample s;
        if (keep == 3) assert_int_equal(kv_bench_run(b, &bad, &s, &err), KVIST_E_POLICY);
        kv_bench_close(&b);
        kv_bench_close(&b);
    }
    assert_memory_equal(bytes[0], bytes[1], sizeof bytes[0]);
    assert_memory_equal(bytes[0], bytes[2], sizeof bytes[0]);
    assert_memory_equal(bytes[0], bytes[3], sizeof bytes[0]);
}

static void bench_parts(void **state) {
    (void)state;
    kv_bench *b;
    kvist_error err;
    kv_bench_sample s;
    assert_int_equal(kv_bench_open(engine, ids, MAX_TOKENS, true, NULL, &b, &err), 0);
    for (int stage = KV_BENCH_SCORE; stage <= KV_BENCH_SEAL; stage++) {
        kv_bench_cell c = {(kv_bench_stage)stage, "minikv,keep=0.5", 0, 300, 1};
        assert_int_equal(kv_bench_run(b, &c, &s, &err), 0);
        assert_true(isfinite(s.percent) && s.percent > -100);
        assert_int_equal(s.report.tokens_seen, 300);
    }
    const kv_bench_cell none = {KV_BENCH_PROMPT, "full", 0, 0, 1}, many = {KV_BENCH_DECODE, "full", 0, 1, 257},
                        bad = {KV_BENCH_DECODE, "nonsense", 0, 1, 1};
    assert_int_equal(kv_bench_run(b, &none, &s, &err), KVIST_E_ARG);
    assert_int_equal(kv_bench_run(b, &many, &s, &err), KVIST_E_ARG);
    assert_int_equal(kv_bench_run(b, &bad, &s, &err), KVIST_E_POLICY);
    kv_bench_close(&b);
    assert_int_equal(kv_bench_open(engine, ids, 0, true, NULL, &b, &err), KVIST_E_ARG);
    assert_null(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(eval_rows),          cmocka_unit_test(compare_paths),
                                       cmocka_unit_test(compare_divergence), cmocka_unit_test(stopped),
                                       cmocka_unit_test(bench_cells),        cmocka_unit_test(bench_parts)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
