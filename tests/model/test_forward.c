/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass against a plain double-precision transformer, for every architecture, RoPE scaling, and weight type.
 */
#include "support/genmodel.h"
#include "support/naive.h"
#include "support/support.h"

#include "kvist/kvist.h"

#include <math.h>
#include <unistd.h>

enum { N = 41 };

typedef struct rows {
    float *logits;
    uint32_t vocab;
} rows;

static void keep_row(void *user, size_t position, const float *logits) {
    rows *r = user;
    memcpy(r->logits + position * r->vocab, logits, r->vocab * sizeof *logits);
}

static void ids_of(int32_t *ids, uint32_t n, uint32_t vocab, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(test_rand(&seed) % vocab);
}

/* Largest KL over all rows, prompt rows and (from row `split` on) generated rows. */
static double worst_kl(const gen_spec *spec, int precise, uint32_t split) {
    char path[128];
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    assert_int_equal(gen_model(spec, path), 0);
    kvist_error err = {0};
    kvist_model *m;
    kvist_engine *e;
    kvist_session *s;
    int32_t ids[N];
    ids_of(ids, N, 256, spec->seed);
    if (kvist_model_open(path, NULL, &m, &err)) fail_msg("%s", err.message);
    kvist_engine_params p = {.n_ctx = 128, .threads = 2, .precise = precise, .max_sessions = 4};
    if (kvist_engine_create(m, &p, &e, &err)) fail_msg("%s", err.message);
    if (kvist_session_create(e, "full", &s, &err)) fail_msg("%s", err.message);
    kvist_model_info info;
    kvist_model_get_info(m, &info);
    rows r = {calloc((size_t)N * info.n_vocab, sizeof(float)), info.n_vocab};
    if (kvist_session_sync_rows(s, ids, split, 0, keep_row, &r, &err)) fail_msg("%s", err.message);
    for (uint32_t i = split; i < N; i++) {
        if (kvist_session_decode(s, ids[i], &err)) fail_msg("%s", err.message);
        keep_row(&r, i, kvist_session_logits(s));
    }
    double *ref, worst = 0;
    assert_int_equal(naive_forward(path, ids, N, &ref), info.n_vocab);
    double *row = malloc(info.n_vocab * sizeof *row);
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t c = 0; c < info.n_vocab; c++) row[c] = r.logits[(size_t)i * info.n_vocab + c];
        double kl = naive_kl(ref + (size_t)i * info.n_vocab, row, info.n_vocab);
        if (!(kl <= worst)) worst = kl;
    }
    free(row);
    free(ref);
    free(r.logits);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    kvist_model_close(&m);
    unlink(path);
    return worst;
}

static void architectures(void **state) {
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    for (int a = 0; a < 3; a++) {
        gen_spec g = gen_spec_default();
        g.arch = archs[a];
        g.seed = 11 + (uint64_t)a;
        g.head_dim = 64;
        g.n_heads = 4;
        g.n_kv = a == 1 ? 1 : 2;
        g.n_embd = 128;
        g.tied = a == 2;
        double kl = worst_kl(&g, 1, 29);
        print_message("%s: worst KL %.3g\n", archs[a], kl);
        assert_true(kl <= 1e-7);
    }
}

static void rope_scalings(void **state) {
    (void)state;
    static const char *const kinds[] = {"linear", "yarn", "llama3"};
    for (int k = 0; k < 3; k++) {
        gen_spec g = gen_spec_default();
        g.rope_scaling = kinds[k];
        g.seed = 21 + (uint64_t)k;
        g.head_dim = 32;
        double kl = worst_kl(&g, 1, 17);
        print_message("%s: worst KL %.3g\n", kinds[k], kl);
        assert_true(kl <= 1e-7);
    }
}

static void odd_heads(void **state) {
    (void)state;
    gen_spec g = gen_spec_default();
    g.head_dim = 80;
    g.head_dim_v = 96;
    g.n_heads = 6;
    g.n_kv = 2;
    g.seed = 31;
    double kl = worst_kl(&g, 1, 20);
    assert_true(kl <= 1e-7);
}

/* Rows see the newest `window` positions only; pages wholly outside are freed, the edge page is masked. */
static void sliding_window(void **state) {
    (void)state;
    static const uint32_t windows[] = {1, 5, 16, 33};
    for (int i = 0; i < 4; i++)
        for (uint32_t split = 1; split < N; split += 13) {
            gen_spec g = gen_spec_default();
            g.head_dim = 64;
            g.window = windows[i];
            g.seed = 61;
            double kl = worst_kl(&g, 1, split);
            if (!(kl <= 1e-7)) fail_msg("window %u, %u prompt rows: worst KL %.3g", windows[i], split, kl);
        }
}

/* f32 products of decoded weights must match the oracle; 8-bit activations are allowed their rounding. */
static void weight_types(void **state) {
    (void)state;
    static const uint32_t types[] = {KV_TYPE_F16,  KV_TYPE_BF16, KV_TYPE_Q4_0,   KV_TYPE_Q4_1,  KV_TYPE_Q5_0,
                                     KV_TYPE_Q5_1, KV_TYPE_Q8_0, KV_TYPE_Q2_K,   KV_TYPE_Q3_K,  KV_TYPE_Q4_K,
                                     KV_TYPE_Q5_K, KV_TYPE_Q6_K, KV_TYPE_IQ4_NL, KV_TYPE_IQ4_XS};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        gen_spec g = gen_spec_default();
        g.type = types[i];
        g.n_embd = 256;
        g.n_ff = 256;
        g.head_dim = 64;
        g.seed = 41 + i;
        double exact = worst_kl(&g, 1, 23), fast = worst_kl(&g, 0, 23);
        print_message("%s: worst KL %.3g with f32 products, %.3g with 8-bit activations\n", kv_type_get(types[i])->name,
                      exact, fast);
        assert_true(exact <= 1e-7);
        assert_true(fast <= 0.05);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(architectures), cmocka_unit_test(rope_scalings),
                                       cmocka_unit_test(odd_heads), cmocka_unit_test(sliding_window),
                                       cmocka_unit_test(weight_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
