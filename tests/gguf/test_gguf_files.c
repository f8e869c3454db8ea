/* SPDX-License-Identifier: Apache-2.0 */
/* Whole files on disk: what the writer wrote read back, generated models of every architecture, a real model. */
#include "support/support.h"

#include <unistd.h>

#include "gguf/gguf.h"
#include "support/genmodel.h"

static kv_error err;

static void writer_round_trip(void **state) {
    char path[64];
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    static const uint32_t types[] = {KV_TYPE_F32,  KV_TYPE_F16,  KV_TYPE_BF16, KV_TYPE_Q4_0,   KV_TYPE_Q4_1,
                                     KV_TYPE_Q5_0, KV_TYPE_Q5_1, KV_TYPE_Q8_0, KV_TYPE_Q2_K,   KV_TYPE_Q3_K,
                                     KV_TYPE_Q4_K, KV_TYPE_Q5_K, KV_TYPE_Q6_K, KV_TYPE_IQ4_NL, KV_TYPE_IQ4_XS};
    enum { N = sizeof types / sizeof *types, COLS = 512, ROWS = 3 };
    static float x[COLS * ROWS];
    static uint8_t expected[COLS * ROWS * 4];
    uint64_t s = 3;
    for (int i = 0; i < COLS * ROWS; i++) x[i] = test_normal(&s);
    kv_gguf_writer *w;
    assert_int_equal(kv_gguf_writer_create(&w, &err), 0);
    const char *strs[] = {"", "b", "c c"};
    const int32_t is[] = {-1, 2};
    const float fs[] = {0.5f};
    assert_int_equal(kv_gguf_put_u32(w, "u", 77, &err), 0);
    assert_int_equal(kv_gguf_put_f32(w, "f", -1.25f, &err), 0);
    assert_int_equal(kv_gguf_put_bool(w, "b", true, &err), 0);
    assert_int_equal(kv_gguf_put_str(w, "s", "text", &err), 0);
    assert_int_equal(kv_gguf_put_str_array(w, "ss", strs, 3, &err), 0);
    assert_int_equal(kv_gguf_put_i32_array(w, "is", is, 2, &err), 0);
    assert_int_equal(kv_gguf_put_f32_array(w, "fs", fs, 1, &err), 0);
    for (int i = 0; i < N; i++)
        assert_int_equal(kv_gguf_put_tensor(w, kv_type_get(types[i])->name, types[i], COLS, ROWS, x, &err), 0);
    assert_int_equal(kv_gguf_put_tensor(w, "odd", KV_TYPE_F32, 7, 1, x, &err), 0);
    assert_int_equal(kv_gguf_put_tensor(w, "cut", KV_TYPE_Q4_K, 128, 2, x, &err), KVIST_E_ARG);
    assert_int_equal(kv_gguf_put_tensor(w, "what", 999, 128, 2, x, &err), KVIST_E_UNSUPPORTED);
    assert_int_equal(kv_gguf_put_tensor(w, "none", KV_TYPE_F32, 0, 2, x, &err), KVIST_E_ARG);
    assert_int_equal(kv_gguf_write(w, path, &err), 0);
    kv_gguf *g;
    assert_int_equal(kv_gguf_open(path, &g, &err), 0);
    uint32_t u;
    float f;
    bool t;
    const char *str;
    size_t n;
    const char *const *ss;
    const int32_t *ri;
    assert_int_equal(kv_gguf_u32(g, "u", &u, &err), 0);
    assert_int_equal(u, 77);
    assert_int_equal(kv_gguf_f32(g, "f", &f, &err), 0);
    assert_true(f == -1.25f);
    assert_int_equal(kv_gguf_bool(g, "b", &t, &err), 0);
    assert_true(t);
    assert_int_equal(kv_gguf_str(g, "s", &str, NULL, &err), 0);
    assert_string_equal(str, "text");
    assert_int_equal(kv_gguf_str_array(g, "ss", &ss, NULL, &n, &err), 0);
    assert_int_equal(n, 3);
    assert_string_equal(ss[2], "c c");
    assert_int_equal(kv_gguf_i32_array(g, "is", &ri, &n, &err), 0);
    assert_int_equal(ri[0], -1);
    assert_int_equal(kv_gguf_tensor_count(g), N + 1);
    for (int i = 0; i < N; i++) {
        const kv_tensor *r = kv_gguf_tensor(g, kv_type_get(types[i])->name);
        assert_non_null(r);
        assert_int_equal(r->type, types[i]);
        assert_int_equal(r->n_dims, 2);
        assert_int_equal(r->ne[0], COLS);
        assert_int_equal(r->ne[1], ROWS);
        kv_type_get(types[i])->quant(x, expected, COLS * ROWS);
        assert_memory_equal(r->data, expected, r->bytes);
    }
    assert_int_equal(kv_gguf_tensor(g, "odd")->n_dims, 1);
    kv_gguf_close(&g);
    assert_int_equal(kv_gguf_write(w, "/nonexistent/x.gguf", &err), KVIST_E_IO);
    kv_gguf_writer_free(&w);
    assert_null(w);
    unlink(path);
}

static void generated_models(void **state) {
    char path[64];
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    static const char *const archs[] = {"llama", "qwen2", "qwen3"}, *const ropes[] = {NULL, "linear", "yarn", "llama3"};
    for (int a = 0; a < 3; a++)
        for (int r = 0; r < 4; r++) {
            gen_spec spec = gen_spec_default();
            spec.arch = archs[a];
            spec.rope_scaling = ropes[r];
            spec.tied = r % 2;
            spec.type = KV_TYPE_Q8_0;
            spec.head_dim_v = r == 2 ? 24 : 0;
            spec.n_ff = r == 3 ? 100 : 128;
            spec.mixed = a == 1;
            spec.type_v = KV_TYPE_Q4_1;
            assert_int_equal(gen_model(&spec, path), 0);
            kv_gguf *g;
            assert_int_equal(kv_gguf_open(path, &g, &err), 0);
            assert_int_equal(kv_gguf_tensor(g, "output.weight") == NULL, spec.tied);
            assert_int_equal(kv_gguf_tensor(g, "rope_freqs.weight") != NULL, r == 3);
            assert_int_equal(kv_gguf_tensor(g, "blk.1.attn_k.bias") != NULL, a == 1);
            assert_int_equal(kv_gguf_tensor(g, "blk.1.attn_k_norm.weight") != NULL, a == 2);
            /* rows of 100 are no whole blocks: F16 */
            assert_int_equal(kv_gguf_tensor(g, "blk.0.ffn_down.weight")->type, r == 3   ? KV_TYPE_F16
                                                                               : a == 1 ? KV_TYPE_Q4_1
                                                                                        : KV_TYPE_Q8_0);
            assert_int_equal(kv_gguf_tensor(g, "blk.0.attn_output.weight")->ne[0], spec.n_heads * (r == 2 ? 24 : 16));
            const char *const *tokens;
            size_t n;
            assert_int_equal(kv_gguf_str_array(g, "tokenizer.ggml.tokens", &tokens, NULL, &n, &err), 0);
            assert_int_equal(n, spec.n_vocab);
            assert_string_equal(tokens['A'], "A");
            assert_string_equal(tokens[' '], "\xc4\xa0");
            assert_string_equal(tokens[173], "\xc5\x83");
            assert_string_equal(tokens[GEN_IM_END], "<|im_end|>");
            for (size_t i = 0; i < 256; i++)
                for (size_t k = 0; k < i; k++) assert_string_not_equal(tokens[i], tokens[k]);
            kv_gguf_close(&g);
        }
    unlink(path);
}

static void real_model(void **state) {
    const char *path = test_model();
    if (!path) skip();
    kv_gguf *g;
    uint64_t t0 = kv_os_now_ns();
    assert_int_equal(kv_gguf_open(path, &g, &err), 0);
    double ms = (double)(kv_os_now_ns() - t0) * 1e-6;
    print_message("%s: opened in %.2f ms\n", path, ms);
    const char *arch;
    assert_int_equal(kv_gguf_str(g, "general.architecture", &arch, NULL, &err), 0);
    const char *const *tokens;
    const uint32_t *lens;
    size_t n;
    assert_int_equal(kv_gguf_str_array(g, "tokenizer.ggml.tokens", &tokens, &lens, &n, &err), 0);
    assert_true(n > 1000);
    for (size_t i = 0; i < n; i++) assert_int_equal(strlen(tokens[i]), lens[i]);
    uint32_t n_layers;
    char key_[64];
    snprintf(key_, sizeof key_, "%s.block_count", arch);
    assert_int_equal(kv_gguf_u32(g, key_, &n_layers, &err), 0);
    for (uint32_t i = 0; i < n_layers; i++) {
        snprintf(key_, sizeof key_, "blk.%u.attn_q.weight", i);
        assert_non_null(kv_gguf_tensor(g, key_));
    }
    assert_non_null(kv_gguf_tensor(g, "token_embd.weight"));
    assert_int_equal(kv_gguf_tensor(g, "token_embd.weight")->ne[1], n);
    uint64_t total = 0;
    for (size_t i = 0; i < kv_gguf_tensor_count(g); i++) total += kv_gguf_tensor_at(g, i)->bytes;
    assert_true(total > kv_gguf_map(g)->size / 2 && total < kv_gguf_map(g)->size);
    kv_gguf_close(&g);
    assert_int_equal(kv_gguf_open("/nonexistent.gguf", &g, &err), KVIST_E_IO);
    assert_non_null(strstr(err.message, "/nonexistent.gguf"));
    assert_int_equal(kv_gguf_open("/", &g, &err), KVIST_E_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writer_round_trip),
        cmocka_unit_test(generated_models),
        cmocka_unit_test(real_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
