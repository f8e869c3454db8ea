/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sweep's divergence of flowing text, on a small random model. Oracle: each policy alone in a session of its own (one
 * sync of the context, one of the rest), KL summed in long double straight from its definition.
 */
#include <math.h>
#include <unistd.h>

#include "kvist/kvist.h"
#include "measure/sweep_kld.h"
#include "support/genmodel.h"
#include "support/support.h"

enum { N_TOKENS = 1100, CTX = 500, NEXT = 70, CHUNKS = 2, POLICIES = 4 };
static const char *const policies[POLICIES] = {"full", "full,format=q2s", "minikv,share=0.4", "full,format=f16"};
static const uint32_t at[CHUNKS] = {37, 600};
static char path[64];
static kvist_model *model;
static kvist_engine *engine;
static kvist_model_info info;
static int32_t ids[N_TOKENS];

static int setup(void **state) {
    (void)state;
    kvist_error err;
    gen_spec spec = gen_spec_default();
    kvist_engine_params p = {.n_ctx = 512, .threads = 1, .kv_bytes = 64 << 20};
    uint64_t rng = 12;
    for (int i = 0; i < N_TOKENS; i++) ids[i] = (int32_t)(test_rand(&rng) % 250);
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
    uint32_t n;
} rows; /* x[NEXT][n_vocab] */
static void take_logits(void *user, size_t position, const float *logits) {
    rows *r = user;
    assert_int_equal(position, CTX - NEXT + r->n);
    memcpy(r->x + r->n++ * info.n_vocab, logits, info.n_vocab * sizeof *logits);
}

static rows alone(const char *policy, const int32_t *chunk, kvist_report *report) {
    kvist_error err;
    kvist_session *s;
    rows r = {malloc((size_t)NEXT * info.n_vocab * sizeof(float)), 0};
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    assert_int_equal(kvist_session_sync(s, chunk, CTX - NEXT, &err), 0);
    kvist_session_report(s, report);
    assert_int_equal(kvist_session_sync_rows(s, chunk, CTX, CTX - NEXT, take_logits, &r, &err), 0);
    assert_int_equal(r.n, NEXT);
    kvist_session_close(&s);
    return r;
}

static long double log_z(const float *x) {
    long double z = 0;
    for (uint32_t i = 0; i < info.n_vocab; i++) z += expl((long double)x[i]);
    return logl(z);
}

static uint32_t top(const float *x) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < info.n_vocab; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

typedef struct taken {
    kv_sweep_kld_row rows[CHUNKS][POLICIES];
    uint32_t n[CHUNKS][POLICIES], fail_at, total;
    bool known[CHUNKS][POLICIES];
} taken;
static kv_status take(void *user, const kv_sweep_kld_row *row, kv_error *err) {
    taken *t = user;
    if (t->fail_at && ++t->total == t->fail_at) KV_FAIL(err, IO, "the disk is full");
    t->rows[row->chunk][row->policy] = *row;
    t->n[row->chunk][row->policy]++;
    return KVIST_OK;
}
static bool known(void *user, uint32_t chunk, uint32_t policy) {
    const taken *t = user;
    return t->known[chunk][policy];
}

static kv_sweep_kld_params params(taken *t, uint32_t threads) {
    return (kv_sweep_kld_params){.tokens = ids,
                                 .n_tokens = N_TOKENS,
                                 .at = at,
                                 .n_chunks = CHUNKS,
                                 .ctx = CTX,
                                 .next = NEXT,
                                 .n_vocab = info.n_vocab,
                                 .threads = threads,
                                 .policies = policies,
                                 .n_policies = POLICIES,
                                 .known = known,
                                 .take = take,
                                 .user = t};
}

static void same_row(const kv_sweep_kld_row *a, const kv_sweep_kld_row *b) {
    assert_true(a->chunk == b->chunk && a->policy == b->policy && a->rows == b->rows && a->kld == b->kld);
    assert_true(a->nll == b->nll && a->same_top1 == b->same_top1 && a->share == b->share);
}

static void rows_as_alone(void **state) {
    (void)state;
    kv_error err;
    taken t = {0}, two = {0};
    kv_sweep_kld_params p = params(&t, 1), p2 = params(&two, 2);
    if (kv_sweep_kld(engine, &p, &err)) fail_msg("%s", err.message);
    if (kv_sweep_kld(engine, &p2, &err)) fail_msg("%s", err.message);
    for (uint32_t c = 0; c < CHUNKS; c++) {
        kvist_report base_report, report;
        rows base = alone("full", ids + at[c], &base_report);
        for (uint32_t i = 0; i < POLICIES; i++) {
            const kv_sweep_kld_row *got = &t.rows[c][i];
            rows r = alone(policies[i], ids + at[c], &report);
            long double kl = 0, nll = 0;
            uint32_t same = 0;
            for (uint32_t k = 0; k + 1 < NEXT; k++) { /* the last row predicts what is not in the chunk */
                const float *x = base.x + k * info.n_vocab, *y = r.x + k * info.n_vocab;
                long double zx = log_z(x), zy = log_z(y);
                for (uint32_t v = 0; v < info.n_vocab; v++)
                    kl += expl((long double)x[v] - zx) * (((long double)x[v] - zx) - ((long double)y[v] - zy));
                nll += zy - (long double)y[ids[at[c] + CTX - NEXT + k + 1]];
                same += top(x) == top(y);
            }
            assert_int_equal(t.n[c][i], 1);
            assert_int_equal(got->rows, NEXT - 1);
            assert_true(fabsl(kl / (NEXT - 1) - got->kld) <= 1e-9L + 1e-6L * kl);
            assert_true(fabsl(nll / (NEXT - 1) - got->nll) <= 1e-9L * nll);
            assert_true(fabs((double)same / (NEXT - 1) - got->same_top1) < 1e-9);
            assert_true(got->share == report.share && got->bytes_true == report.bytes_true);
            assert_true(got->share_met == report.share_met && got->mass_min == report.mass_min);
            same_row(got, &two.rows[c][i]); /* no thread count shows */
            free(r.x);
        }
        assert_true(t.rows[c][0].kld == 0 && t.rows[c][3].kld == 0); /* the base, and a control that is the base */
        assert_true(t.rows[c][1].kld > 0 && t.rows[c][2].kld > 0);
        free(base.x);
    }
}

/* A chunk that is known is not read; of another one only what is missing, with its base. */
static void known_rows(void **state) {
    (void)state;
    kv_error err;
    taken all = {0}, t = {0};
    kv_sweep_kld_params p = params(&all, 1), part = params(&t, 1);
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_OK);
    for (uint32_t i = 0; i < POLICIES; i++) t.known[0][i] = true;
    t.known[1][0] = t.known[1][1] = true;
    assert_int_equal(kv_sweep_kld(engine, &part, &err), KVIST_OK);
    static const uint32_t want[CHUNKS][POLICIES] = {{0, 0, 0, 0}, {1, 0, 1, 1}};
    assert_memory_equal(t.n, want, sizeof want);
    same_row(&t.rows[1][2], &all.rows[1][2]);
}

static bool stop(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)what;
    (void)done;
    (void)total;
    return --*(int *)user > 0;
}

static void refused(void **state) {
    (void)state;
    kv_error err;
    taken t = {0};
    static const uint32_t beyond[CHUNKS] = {0, N_TOKENS - CTX + 1};
    kv_sweep_kld_params p = params(&t, 1);
    p.next = CTX;
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_ARG);
    p.next = 1;
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_ARG);
    p = params(&t, 1);
    p.at = beyond;
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_ARG);
    p = params(&t, 1);
    static const char *const wrong[2] = {"full", "nonsense"};
    p.policies = wrong;
    p.n_policies = 2;
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_POLICY);
    p = params(&t, 1);
    t.fail_at = 2;
    assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_IO);
    assert_string_equal(err.message, "the disk is full");
    t.fail_at = 0;
    for (int n = 1; n < 8; n += 3) {
        int left = n;
        p.watch = (kv_watch){stop, &left};
        assert_int_equal(kv_sweep_kld(engine, &p, &err), KVIST_E_CANCELLED);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_as_alone), cmocka_unit_test(known_rows),
                                       cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
