/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Published fixtures: texts separated by "\n__ggml_vocab_test__\n" and their ids, one line each, without BOS. Every
 * vocabulary at hand must give the same ids, and the ids the same text again. War and Peace as a whole: round trip and
 * time.
 */
#include "text_util.h"

#include <time.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"

static void check_text(const kv_tokenizer *t, const char *s, size_t len, const char *line, size_t nr) {
    size_t n, want_n = 0, k;
    int32_t *ids = encode(t, s, len, false, false, &n);
    for (char *end;; line = end, want_n++) {
        long v = strtol(line, &end, 10);
        if (end == line) break;
        if (want_n >= n || ids[want_n] != v)
            fail_msg("text %zu '%.*s': id %zu is %d, want %ld", nr, (int)len, s, want_n, want_n < n ? ids[want_n] : -1,
                     v);
    }
    if (want_n != n) fail_msg("text %zu '%.*s': %zu ids, want %zu", nr, (int)len, s, n, want_n);
    char *back = stream_of(t, ids, n, false, &k);
    if (k != len || memcmp(back, s, len) != 0) fail_msg("text %zu '%.*s' decodes to '%s'", nr, (int)len, s, back);
    free(back);
    free(ids);
}

static void check_fixture(const kv_tokenizer *t, const char *name) {
    char path[256];
    size_t len = 0, out_len, nr = 0;
    snprintf(path, sizeof path, "data/tokenizers/ggml-vocab-%s.gguf.inp", name);
    const char *file = test_shared(path);
    char *inp = file ? test_read(file, &len) : NULL;
    snprintf(path, sizeof path, "data/tokenizers/ggml-vocab-%s.gguf.out", name);
    file = inp ? test_shared(path) : NULL;
    char *out = file ? test_read(file, &out_len) : NULL;
    if (!out) {
        free(inp);
        skip();
        return;
    }
    char *line = out;
    for (char *s = inp; s < inp + len; nr++) {
        char *next = strstr(s, SEPARATOR);
        size_t n = next ? (size_t)(next - s) : (size_t)(inp + len - s);
        char *eol = strchr(line, '\n');
        assert_non_null(eol);
        *eol = 0;
        check_text(t, s, n, line, nr);
        line = eol + 1;
        s += n + (next ? strlen(SEPARATOR) : 0);
    }
    assert_int_equal(*line, 0); /* as many lines as texts */
    assert_true(nr >= 40);
    free(inp);
    free(out);
}

static void check_gguf(const char *name, const char *pre) {
    char file[128];
    snprintf(file, sizeof file, "data/tokenizers/ggml-vocab-%s.gguf", name);
    const char *path = test_shared(file);
    if (!path) skip();
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(path, &g);
    assert_string_equal(kv_tokenizer_pre(t), pre);
    check_fixture(t, name);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
}

static void test_llama_spm(void **state) { check_gguf("llama-spm", "spm"); }
static void test_gpt_2(void **state) { check_gguf("gpt-2", "gpt-2"); }
static void test_llama_bpe(void **state) {
    check_gguf("llama-bpe", "llama-bpe");
} /* skipped: its vocabulary is not in the data */
static void test_qwen2(void **state) {
    kv_tokenizer *t = open_qwen();
    if (!t) skip();
    check_fixture(t, "qwen2");
    kv_tokenizer_free(&t);
}

static void test_smollm2_golden(void **state) {
    const char *model = test_model();
    const char *path = model ? test_shared("golden/smollm2_wiki64_ids.txt") : NULL;
    size_t len = 0, n, k;
    char *want = path ? test_read(path, &len) : NULL;
    path = want ? test_shared("data/text/wiki.test.raw") : NULL;
    char *text = path ? test_read(path, &len) : NULL;
    if (!text) skip();
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(test_model(), &g);
    int32_t *ids = encode(t, text, len, true, true, &n);
    char *at = want, *end;
    for (size_t i = 0; i < 64; i++, at = end) {
        long v = strtol(at, &end, 10);
        while (*end == ',' || *end == ' ') end++;
        assert_int_equal(ids[i], v);
    }
    char *back = bytes_of(t, ids, n, true, &k);
    assert_int_equal(k, len);
    assert_memory_equal(back, text, len);
    free(back);
    free(ids);
    free(text);
    free(want);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
}

static void whole_book(kv_tokenizer *t, const char *name) {
    const char *path = test_shared("data/text/pg2600_war_and_peace.txt");
    size_t len = 0, n, k;
    char *text = path ? test_read(path, &len) : NULL;
    if (!text) {
        kv_tokenizer_free(&t);
        skip();
        return;
    }
    int32_t *ids = malloc(len * sizeof *ids);
    kv_error err = {0};
    clock_t start = clock(); /* processor time: other work on the machine must not fail a test */
    assert_int_equal(kv_tokenizer_encode(t, text, len, false, false, ids, len, &n, &err), KVIST_OK);
    double s = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("%s: %zu bytes, %zu tokens, %.3f s\n", name, len, n, s);
    char *back = stream_of(t, ids, n, false, &k);
    assert_int_equal(k, len);
    assert_memory_equal(back, text, len);
#if !defined(__SANITIZE_ADDRESS__)
    assert_true(s < 2.0);
#endif
    free(back);
    free(ids);
    free(text);
    kv_tokenizer_free(&t);
}

static void test_book_spm(void **state) {
    const char *path = test_shared("data/tokenizers/ggml-vocab-llama-spm.gguf");
    if (!path) skip();
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(path, &g);
    kv_gguf_close(&g); /* the tokenizer keeps nothing of the file */
    whole_book(t, "llama-spm");
}

static void test_book_smollm(void **state) {
    if (!test_model()) skip();
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(test_model(), &g);
    kv_gguf_close(&g);
    whole_book(t, "smollm");
}

static void test_book_qwen(void **state) {
    kv_tokenizer *t = open_qwen();
    if (!t) skip();
    whole_book(t, "qwen2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_spm),   cmocka_unit_test(test_gpt_2),          cmocka_unit_test(test_llama_bpe),
        cmocka_unit_test(test_qwen2),       cmocka_unit_test(test_smollm2_golden), cmocka_unit_test(test_book_spm),
        cmocka_unit_test(test_book_smollm), cmocka_unit_test(test_book_qwen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
