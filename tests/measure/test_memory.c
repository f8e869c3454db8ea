/* SPDX-License-Identifier: Apache-2.0 */
/* The estimate made before anything is loaded against the bytes that a session really takes after one sync. */
#include <unistd.h>

#include "kvist/kvist.h"
#include "measure/memory.h"
#include "support/genmodel.h"
#include "support/support.h"

static char path[64];
static kvist_model *model;
static kvist_engine *engine;

static int setup(void **state) {
    (void)state;
    kvist_error err;
    gen_spec spec = gen_spec_default();
    spec.n_layers = 3;
    kvist_engine_params p = {.n_ctx = 3000, .threads = 1};
    return gen_temp_path(path, sizeof path) || gen_model(&spec, path) || kvist_model_open(path, NULL, &model, &err) ||
           kvist_engine_create(model, &p, &engine, &err);
}

static int teardown(void **state) {
    (void)state;
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return unlink(path);
}

static void estimates(void **state) {
    (void)state;
    static const char *const policies[] = {"full", "full,format=q8", "full,format=q4",   "full,format=q2s",
                                           "kivi", "minikv",         "minikv,share=0.3", "kvcompress,share=0.3",
                                           "h2o",  "streaming",      "snapkv,tokens=200",
                                           "auto,share=0.1"};
    const double tolerance = 0.002; /* a partial page of a scored policy; the others are exact */
    static const uint32_t sizes[] = {700, 1024, 2500};
    kvist_model_info info;
    kvist_model_get_info(model, &info);
    kv_memory_shape shape = {info.n_layers, info.n_kv_heads, info.head_dim_k, info.head_dim_v};
    int32_t ids[2500];
    uint64_t rng = 3;
    for (int i = 0; i < 2500; i++) ids[i] = (int32_t)(test_rand(&rng) % 250);
    for (size_t c = 0; c < sizeof policies / sizeof *policies; c++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            kvist_error err;
            kvist_session *s;
            kvist_report r;
            kv_memory_need need;
            assert_int_equal(kv_memory_estimate(&shape, policies[c], sizes[i], &need, &err), KVIST_OK);
            if (kvist_session_create(engine, policies[c], &s, &err)) fail_msg("%s: %s", policies[c], err.message);
            if (kvist_session_sync(s, ids, sizes[i], &err)) fail_msg("%s: %s", policies[c], err.message);
            kvist_session_report(s, &r);
            kvist_session_close(&s);
            assert_int_equal(need.bytes_f16, r.bytes_f16);
            double off = ((double)need.bytes_true - (double)r.bytes_true) / (double)r.bytes_true;
            if (off > tolerance || off < -tolerance)
                fail_msg("%s at %u tokens: %llu bytes estimated, %llu true (%.1f %%)", policies[c], sizes[i],
                         (unsigned long long)need.bytes_true, (unsigned long long)r.bytes_true, 100 * off);
        }
}

static void refused(void **state) {
    (void)state;
    kv_memory_shape shape = {2, 2, 64, 64};
    kv_memory_need need;
    kvist_error err;
    assert_int_not_equal(kv_memory_estimate(&shape, "nonsense", 100, &need, &err), KVIST_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(estimates), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
