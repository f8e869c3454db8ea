/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming detokenizer: whole characters only, U+FFFD for what can never become one, SPM's first space. */
#include "text_util.h"

#include "base/alloc.h"

#include <utf8proc.h>

/* A vocabulary whose ids are the bytes themselves, and one token of several characters. */
static kv_tokenizer *byte_vocab(void) {
    static char text[257][16];
    const char *p[258];
    for (unsigned b = 0; b < 256; b++) {
        put_printable(text[b], b);
        p[b] = text[b];
    }
    p[256] = "x\xc3\xb0\xc5\x81"; /* x, then bytes f0 9f: a character that begins inside a token */
    p[257] = "<|end|>";
    kv_tokenizer *t;
    kv_error err = {0};
    if (kv_tokenizer_create_bpe("gpt-2", p, NULL, 258, NULL, 0, &t, &err) != KVIST_OK) fail_msg("%s", err.message);
    return t;
}

static void push(kv_detok *d, int32_t id, const char *want) {
    const char *out;
    size_t len;
    kv_error err = {0};
    assert_int_equal(kv_detok_push(d, id, &out, &len, &err), KVIST_OK);
    if (len != strlen(want) || memcmp(out, want, len) != 0)
        fail_msg("token %d gave '%.*s' (%zu), want '%s'", id, (int)len, out, len, want);
}
static void finish(kv_detok *d, const char *want) {
    const char *out;
    size_t len;
    kv_detok_finish(d, &out, &len);
    assert_int_equal(len, strlen(want));
    assert_memory_equal(out, want, len);
}

#define BAD "\xef\xbf\xbd"

static void test_emoji_split(void **state) {
    kv_tokenizer *t = byte_vocab();
    kv_detok d;
    kv_detok_init(&d, t, false);
    push(&d, 0xf0, "");
    push(&d, 0x9f, "");
    push(&d, 0x98, "");
    push(&d, 0x80, "\xf0\x9f\x98\x80");
    finish(&d, "");
    push(&d, 256, "x");
    push(&d, 0xa6, "");
    push(&d, 0x99, "\xf0\x9f\xa6\x99");
    push(&d, 257, ""); /* a control token says nothing */
    push(&d, 0xf0, "");
    push(&d, 'a', BAD "a"); /* cut short: one replacement for the whole beginning */
    push(&d, 0xe2, "");
    push(&d, 0x82, "");
    push(&d, 'b', BAD "b");
    push(&d, 0xe0, "");
    push(&d, 0x80, BAD BAD); /* overlong */
    push(&d, 0xed, "");
    push(&d, 0xa0, BAD BAD); /* surrogate */
    push(&d, 0xff, BAD);
    push(&d, 0xc0, BAD);
    push(&d, 0x80, BAD);
    push(&d, 0xf4, "");
    push(&d, 0x90, BAD BAD); /* past U+10FFFF */
    push(&d, 0xf0, "");
    push(&d, 0xf0, BAD);
    push(&d, 0xc3, BAD);
    push(&d, 0xa9, "\xc3\xa9");
    push(&d, 0xe2, "");
    push(&d, 0x96, "");
    finish(&d, BAD);
    finish(&d, "");
    kv_error err = {0};
    const char *out;
    size_t len;
    assert_int_equal(kv_detok_push(&d, 258, &out, &len, &err), KVIST_E_ARG);
    assert_int_equal(kv_detok_push(&d, -1, &out, &len, &err), KVIST_E_ARG);
    kv_detok_free(&d);
    kv_detok_free(&d);
    kv_detok_init(&d, t, true);
    push(&d, 257, "<|end|>");
    kv_detok_free(&d);
    kv_tokenizer_free(&t);
}

/* Whatever comes in, what goes out is valid UTF-8 at every step; valid text comes out unchanged; nothing allocates per
 * token. */
static void test_always_valid(void **state) {
    kv_tokenizer *t = byte_vocab();
    uint64_t seed = 5;
    for (int round = 0; round < 200; round++) {
        kv_detok d;
        kv_error err = {0};
        kv_detok_init(&d, t, true);
        uint64_t before = kv_alloc_count();
        for (int i = 0; i < 100; i++) {
            static const uint8_t lead[] = {0xf0, 0x9f, 0x98, 0x80, 0xe2, 0x82, 0xac, 0xc3, 0xa9, 0xed, 0xf4};
            int32_t id = test_rand(&seed) % 3 ? lead[test_rand(&seed) % 11] : (int32_t)(test_rand(&seed) % 258);
            const char *out;
            size_t len;
            assert_int_equal(kv_detok_push(&d, id, &out, &len, &err), KVIST_OK);
            for (size_t k = 0; k < len;) {
                utf8proc_int32_t c;
                utf8proc_ssize_t n =
                    utf8proc_iterate((const utf8proc_uint8_t *)out + k, (utf8proc_ssize_t)(len - k), &c);
                assert_true(n > 0);
                k += (size_t)n;
            }
        }
        assert_int_equal(kv_alloc_count(), before);
        kv_detok_free(&d);
    }
    kv_tokenizer_free(&t);
}

static void test_first_space(void **state) {
    const char *path = test_shared("data/tokenizers/ggml-vocab-llama-spm.gguf");
    if (!path) skip();
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(path, &g);
    size_t n;
    int32_t *ids = encode(t, "Hello world", 11, true, true, &n);
    assert_int_equal(n, 3); /* BOS, Hello, world */
    kv_detok d;
    kv_detok_init(&d, t, false);
    push(&d, ids[0], "");
    push(&d, ids[1], "Hello");
    push(&d, ids[2], " world");
    kv_detok_free(&d);
    kv_detok_init(&d, t, false);
    d.started = true; /* a text that goes on */
    push(&d, ids[1], " Hello");
    push(&d, 3 + 0xe2, "");
    push(&d, 3 + 0x82, "");
    push(&d, 3 + 0xac, "\xe2\x82\xac"); /* byte tokens */
    kv_detok_free(&d);
    free(ids);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
}

static void test_no_memory(void **state) {
    kv_tokenizer *t = byte_vocab();
    kv_detok d;
    kv_error err = {0};
    const char *out;
    size_t len;
    kv_alloc_test_fail_at(1);
    kv_detok_init(&d, t, false);
    kv_alloc_test_fail_at(1);
    assert_int_equal(kv_detok_push(&d, 'a', &out, &len, &err), KVIST_E_MEMORY);
    kv_alloc_test_fail_at(0);
    push(&d, 'a', "a");
    kv_detok_free(&d);
    kv_tokenizer_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_emoji_split), cmocka_unit_test(test_always_valid),
                                       cmocka_unit_test(test_first_space), cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
