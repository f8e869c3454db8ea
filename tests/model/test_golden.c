/* SPDX-License-Identifier: Apache-2.0 */
/* SmolLM2-135M-Instruct against reference values of an independent implementation (f32 logits of 16 positions,
 * perplexity). */
#include "support/naive.h"
#include "support/support.h"

#include "kvist/kvist.h"

#include <math.h>

static const int positions[16] = {0, 1, 2, 3, 4, 7, 11, 15, 19, 23, 31, 39, 47, 55, 62, 63};

typedef struct rows {
    float *logits;
    uint32_t vocab;
} rows;

static void keep_row(void *user, size_t position, const float *logits) {
    rows *r = user;
    memcpy(r->logits + position * r->vocab, logits, r->vocab * sizeof *logits);
}

static void compare_logits(int precise, double limit, int least_top1) {
    const char *path = test_model();
    if (!path || !test_shared("golden/smollm2_wiki64_logits16.f32")) skip();
    size_t len, n_ids = 0;
    int32_t ids[64];
    char *golden = test_read(test_shared("golden/smollm2_wiki64_logits16.f32"), &len),
         *text = test_read(test_shared("golden/smollm2_wiki64_ids.txt"), NULL);
    assert_true(golden && text);
    for (char *p = text; n_ids < 64;) ids[n_ids++] = (int32_t)strtol(p, &p, 10);
    kvist_error err;
    kvist_model *m;
    kvist_engine *e;
    kvist_session *s;
    if (kvist_model_open(path, NULL, &m, &err)) fail_msg("%s", err.message);
    kvist_engine_params p = {.n_ctx = 256, .precise = precise, .max_sessions = 4};
    if (kvist_engine_create(m, &p, &e, &err)) fail_msg("%s", err.message);
    if (kvist_session_create(e, "full", &s, &err)) fail_msg("%s", err.message);
    rows r = {malloc(64 * 49152 * sizeof(float)), 49152};
    if (kvist_session_sync_rows(s, ids, 64, 0, keep_row, &r, &err)) fail_msg("%s", err.message);
    double sum = 0, nll = 0;
    int same = 0;
    for (int i = 0; i < 16; i++) {
        const float *ref = (const float *)(const void *)golden + (size_t)i * 49152,
                    *got = r.logits + (size_t)positions[i] * 49152;
        sum += naive_kl_f32(ref, got, 49152);
        same += naive_argmax_f32(ref, 49152) == naive_argmax_f32(got, 49152);
    }
    for (int i = 1; i < 64; i++) {
        const float *row = r.logits + (size_t)(i - 1) * 49152;
        double z = 0;
        for (int c = 0; c < 49152; c++) z += exp((double)row[c]);
        nll += (log(z) - row[ids[i]]) / 63;
    }
    print_message("precise=%d: mean KL %.3g, same top-1 %d of 16, mean NLL %.6f (reference 4.099216)\n", precise,
                  sum / 16, same, nll);
    assert_true(sum / 16 <= limit);
    assert_true(same >= least_top1);
    assert_true(fabs(nll - 4.099216) <= (precise ? 1e-3 : 0.02));
    free(r.logits);
    free(golden);
    free(text);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    kvist_model_close(&m);
}

static void logits(void **state) {
    (void)state;
    compare_logits(0, 3e-3, 15);
}

static void logits_precise(void **state) {
    (void)state;
    compare_logits(1, 1e-5, 16);
}

/* Perplexity as llama.cpp's tool counts it (second half of each chunk), ctx 2048, 4 chunks: it records 20.5491. */
enum { CTX = 2048, CHUNKS = 4 };
typedef struct nll {
    const int32_t *ids;
    double sum;
    size_t n;
} nll;

static void score_row(void *user, size_t position, const float *row) {
    nll *s = user;
    if (position + 1 >= CTX) return;
    double top = row[naive_argmax_f32(row, 49152)], z = 0;
    for (int c = 0; c < 49152; c++) z += exp(row[c] - top);
    s->sum += log(z) + top - row[s->ids[position + 1]];
    s->n++;
}

static void perplexity(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* 8,192 tokens take minutes under a sanitizer; the other cases run the same code */
#endif
    const char *path = test_model();
    if (!test_shared("data/text/wiki.test.raw") || !path || !strstr(path, "SmolLM2-135M")) skip();
    size_t len, n = 0;
    char *text = test_read(test_shared("data/text/wiki.test.raw"), &len);
    static int32_t ids[CTX * CHUNKS * 2];
    kvist_error err;
    kvist_model *m;
    kvist_engine *e;
    kvist_session *s;
    if (kvist_model_open(path, NULL, &m, &err)) fail_msg("%s", err.message);
    kvist_engine_params p = {.n_ctx = CTX, .max_sessions = 16};
    if (kvist_engine_create(m, &p, &e, &err)) fail_msg("%s", err.message);
    if (kvist_session_create(e, "full", &s, &err)) fail_msg("%s", err.message);
    if (kvist_tokenize(m, text, 50000, 0, ids, CTX * CHUNKS * 2, &n, &err)) fail_msg("%s", err.message);
    assert_true(n >= CTX * CHUNKS && n <= CTX * CHUNKS * 2);
    nll total = {0};
    for (int c = 0; c < CHUNKS; c++) {
        total.ids = ids + c * CTX;
        if (kvist_session_sync(s, NULL, 0, &err)) fail_msg("%s", err.message);
        if (kvist_session_sync_rows(s, total.ids, CTX, CTX / 2, score_row, &total, &err)) fail_msg("%s", err.message);
    }
    assert_int_equal(total.n, CHUNKS * (CTX / 2 - 1));
    double ppl = exp(total.sum / (double)total.n);
    print_message("perplexity %.4f (llama.cpp 20.5491)\n", ppl);
    assert_true(fabs(ppl / 20.5491 - 1) <= 0.005);
    free(text);
    kvist_session_close(&s);
    kvist_engine_close(&e);
    kvist_model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(logits), cmocka_unit_test(logits_precise),
                                       cmocka_unit_test(perplexity)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
