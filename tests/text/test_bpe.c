/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE on small made-up vocabularies: merging against a naive search over strings, how each pattern cuts,
 * special tokens, bytes that are no UTF-8, every allocation failing once.
 */
#include "text_util.h"

#include "base/alloc.h"

#define MAX_TOKENS 600
typedef struct small {
    char text[MAX_TOKENS][40];
    const char *p[MAX_TOKENS];
    int32_t type[MAX_TOKENS];
    size_t n;
} small;

/* 0..255: the bytes in order. */
static void all_bytes(small *v) {
    memset(v, 0, sizeof *v);
    for (; v->n < 256; v->n++) {
        put_printable(v->text[v->n], (unsigned)v->n);
        v->type[v->n] = 1;
    }
}
static int32_t add(small *v, const char *text, int32_t type) {
    assert_true(strlen(text) < sizeof v->text[0]);
    memcpy(v->text[v->n], text, strlen(text) + 1);
    v->type[v->n] = type;
    return (int32_t)v->n++;
}
static kv_tokenizer *make(small *v, const char *pre, const char *const *merges, size_t n_merges) {
    kv_tokenizer *t = NULL;
    kv_error err = {0};
    for (size_t i = 0; i < v->n; i++) v->p[i] = v->text[i];
    if (kv_tokenizer_create_bpe(pre, v->p, v->type, v->n, merges, n_merges, &t, &err) != KVIST_OK)
        fail_msg("%s", err.message);
    return t;
}

/* Naive: strings, whole list searched for the pair of lowest rank. Words of ASCII letters only. */
static size_t naive(const small *v, const char *const *merges, size_t n_merges, const char *word, int32_t *ids) {
    static char part[400][400];
    size_t n = strlen(word), out = 0;
    for (size_t i = 0; i < n; i++) {
        part[i][0] = word[i];
        part[i][1] = 0;
    }
    for (bool joined = true; joined;) {
        joined = false;
        for (size_t r = 0; r < n_merges && !joined; r++) {
            for (size_t i = 0; i + 1 < n && !joined; i++) {
                char both[810];
                snprintf(both, sizeof both, "%s %s", part[i], part[i + 1]);
                if (strcmp(both, merges[r]) != 0) continue;
                memcpy(part[i] + strlen(part[i]), part[i + 1], strlen(part[i + 1]) + 1);
                memmove(part[i + 1], part[i + 2], (n - i - 2) * sizeof part[0]);
                n--;
                joined = true;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < v->n && strcmp(v->text[k], part[i]) != 0) k++;
        if (k < v->n) {
            ids[out++] = (int32_t)k;
            continue;
        }
        for (const char *c = part[i]; *c; c++) ids[out++] = (uint8_t)*c; /* not a token: its bytes */
    }
    return out;
}

static void test_merge_order(void **state) {
    uint64_t seed = 7;
    for (int round = 0; round < 12; round++) {
        small v;
        all_bytes(&v);
        static char store[64][80];
        static char known[64][40];
        const char *merges[64];
        size_t n_merges = 0, n_known = 3;
        strcpy(known[0], "a");
        strcpy(known[1], "b");
        strcpy(known[2], "c");
        while (n_merges < 40) {
            const char *l = known[test_rand(&seed) % n_known], *r = known[test_rand(&seed) % n_known];
            if (strlen(l) + strlen(r) > 12) continue;
            snprintf(store[n_merges], sizeof store[0], "%s %s", l, r);
            merges[n_merges] = store[n_merges];
            n_merges++;
            char both[80];
            snprintf(both, sizeof both, "%s%s", l, r);
            bool have = false;
            for (size_t i = 0; i < n_known; i++) have |= strcmp(known[i], both) == 0;
            if (have) continue;
            strcpy(known[n_known++], both);
            if (test_rand(&seed) % 4) add(&v, both, 1); /* every fourth result is no token */
        }
        kv_tokenizer *t = make(&v, "gpt-2", merges, n_merges);
        static const size_t lengths[] = {1, 2, 3, 5, 17, 47, 48, 49, 50, 97, 200};
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            char word[256];
            for (size_t i = 0; i < lengths[k]; i++) word[i] = (char)('a' + test_rand(&seed) % 3);
            word[lengths[k]] = 0;
            int32_t want[256];
            expect_ids(t, word, false, false, want, naive(&v, merges, n_merges, word, want));
        }
        kv_tokenizer_free(&t);
    }
}

static const char *const cut_merges[] = {
    "1 1", "11 1", "11 11", "\xc4\xa0 \xc4\xa0", "a a", "\xc4\xa0 \xc3\xa1", "' S", "a \xc4\x8a", ". \xc4\x8a"};
static void cut_vocab(small *v) {
    all_bytes(v);
    add(v, "11", 1);               /* 256 */
    add(v, "111", 1);              /* 257 */
    add(v, "1111", 1);             /* 258 */
    add(v, "\xc4\xa0\xc4\xa0", 1); /* 259: two spaces */
    add(v, "aa", 1);               /* 260 */
    add(v, "\xc4\xa0\xc3\xa1", 1); /* 261: a space and byte e1 */
    add(v, "'S", 1);               /* 262 */
    add(v, "a\xc4\x8a", 1);        /* 263: never inside one word */
    add(v, ".\xc4\x8a", 1);        /* 264: one word where line ends go with punctuation */
}

static void test_patterns(void **state) {
    small v;
    cut_vocab(&v);
    kv_tokenizer *gpt2 = make(&v, "gpt-2", cut_merges, 9), *llama = make(&v, "llama-bpe", cut_merges, 9),
                 *qwen = make(&v, "qwen2", cut_merges, 9), *smol = make(&v, "smollm", cut_merges, 9),
                 *plain = make(&v, "default", cut_merges, 9);
    EXPECT_IDS(gpt2, "1111", false, false, 258);
    EXPECT_IDS(llama, "1111", false, false, 257, '1');
    EXPECT_IDS(qwen, "1111", false, false, '1', '1', '1', '1');
    EXPECT_IDS(smol, "1111", false, false, '1', '1', '1', '1');
    EXPECT_IDS(plain, "1111", false, false, 257, '1');
    EXPECT_IDS(gpt2, "  1", false, false, ' ', ' ', '1');
    EXPECT_IDS(smol, "  1", false, false, 259, '1'); /* numbers are cut out first: the spaces end a piece */
    EXPECT_IDS(smol, "  a", false, false, ' ', ' ', 'a');
    EXPECT_IDS(gpt2, "a  ", false, false, 'a', 259);
    /* U+180E is no white space: the space before it belongs to its word. A letter behind it: at the end of a text both readings agree. */
    EXPECT_IDS(gpt2, " \xe1\xa0\x8e" "x", false, false, 261, 0xa0, 0x8e, 'x');
    EXPECT_IDS(qwen, " \xe1\xa0\x8e" "x", false, false, 261, 0xa0, 0x8e, 'x');
    /* U+1680 is: at the end of the text both are one run, before a letter the last one stays alone. */
    EXPECT_IDS(gpt2, " \xe1\x9a\x80", false, false, 261, 0x9a, 0x80);
    EXPECT_IDS(gpt2,
               " \xe1\x9a\x80"
               "a",
               false, false, ' ', 0xe1, 0x9a, 0x80, 'a');
    /* Short forms in capitals are one word only in the newer patterns; line ends go with punctuation there. */
    EXPECT_IDS(gpt2, "a'S", false, false, 'a', '\'', 'S');
    EXPECT_IDS(llama, "a'S", false, false, 'a', 262);
    EXPECT_IDS(qwen, "a'S", false, false, 'a', 262);
    EXPECT_IDS(gpt2, ".\n", false, false, '.', '\n');
    EXPECT_IDS(qwen, ".\n", false, false, 264);
    EXPECT_IDS(qwen, "a\n", false, false, 'a', '\n');
    kv_tokenizer_free(&gpt2);
    kv_tokenizer_free(&llama);
    kv_tokenizer_free(&qwen);
    kv_tokenizer_free(&smol);
    kv_tokenizer_free(&plain);
}

static void test_whole_word(void **state) {
    small v;
    all_bytes(&v);
    int32_t whole = add(&v, "xyz", 1);
    kv_tokenizer *llama = make(&v, "llama3", NULL, 0), *gpt2 = make(&v, "gpt-2", NULL, 0);
    assert_string_equal(kv_tokenizer_pre(llama), "llama-bpe");
    EXPECT_IDS(llama, "xyz", false, false, whole);
    EXPECT_IDS(gpt2, "xyz", false, false, 'x', 'y', 'z');
    kv_tokenizer_free(&llama);
    kv_tokenizer_free(&gpt2);
}

static void test_special(void **state) {
    small v;
    all_bytes(&v);
    int32_t end = add(&v, "<|im_end|>", 1), start = add(&v, "<|im_start|>", 3), user = add(&v, "<u>", 4),
            longer = add(&v, "<u><u>x", 4);
    int32_t mine = add(&v, "z z", 4);
    kv_tokenizer *t = make(&v, "gpt-2", NULL, 0);
    EXPECT_IDS(t, "a<|im_start|>b<|im_end|>", true, true, 'a', start, 'b', end);
    EXPECT_IDS(t, "<|x", true, true, '<', '|', 'x');
    EXPECT_IDS(t, "<u>", true, false, user);                /* user-defined tokens always */
    EXPECT_IDS(t, "<u><u><u>x", true, false, user, longer); /* longest first, wherever it starts */
    EXPECT_IDS(t, "z zz z", true, false, mine, mine);
    size_t n, k;
    int32_t *ids = encode(t, "<|im_end|>", 10, true, false, &n); /* control text is plain text unless asked for */
    assert_int_equal(n, 10);
    free(ids);
    assert_true(kv_tokenizer_is_end(t, end)); /* known by its text although typed normal */
    assert_true(kv_tokenizer_is_special(t, end) && kv_tokenizer_is_special(t, start) &&
                !kv_tokenizer_is_special(t, user));
    assert_false(kv_tokenizer_is_end(t, start) || kv_tokenizer_is_end(t, -1) || kv_tokenizer_is_end(t, 1 << 20));
    kv_tokenizer_bytes(t, start, false, &k);
    assert_int_equal(k, 0);
    assert_memory_equal(kv_tokenizer_bytes(t, start, true, &k), "<|im_start|>", 12);
    assert_int_equal(k, 12);
    assert_memory_equal(kv_tokenizer_bytes(t, mine, false, &k), "z z", 3);
    assert_int_equal(k, 3);
    kv_tokenizer_bytes(t, 1 << 20, true, &k);
    assert_int_equal(k, 0);
    ids = encode(t, "", 0, true, true, &n);
    assert_int_equal(n, 0);
    free(ids);
    kv_tokenizer_free(&t);
}

static void test_refusals(void **state) {
    small v;
    all_bytes(&v);
    for (size_t i = 0; i < v.n; i++) v.p[i] = v.text[i];
    kv_tokenizer *t = (kv_tokenizer *)&v;
    kv_error err = {0};
    assert_int_equal(kv_tokenizer_create_bpe("tekken", v.p, v.type, v.n, NULL, 0, &t, &err), KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "tekken"));
    assert_null(t);
    assert_int_equal(kv_tokenizer_create_bpe("gpt", v.p, v.type, v.n, NULL, 0, &t, &err), KVIST_E_UNSUPPORTED);
    static const char *const bad[] = {"", "ab", "ab ", " ab"};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(kv_tokenizer_create_bpe("gpt-2", v.p, v.type, v.n, &bad[i], 1, &t, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "merges[0]"));
    }
    assert_int_equal(kv_tokenizer_create_bpe("gpt-2", v.p, v.type, 0, NULL, 0, &t, &err), KVIST_E_FORMAT);
    /* A byte without a token: U+FFFD where it can be written, else an error that names the byte. */
    assert_int_equal(kv_tokenizer_create_bpe("gpt-2", v.p, v.type, 255, NULL, 0, &t, &err), KVIST_OK);
    EXPECT_IDS(t, "a\xff", false, false, 'a', 0xef, 0xbf, 0xbd);
    kv_tokenizer_free(&t);
    assert_int_equal(kv_tokenizer_create_bpe("gpt-2", v.p, v.type, 128, NULL, 0, &t, &err), KVIST_OK);
    size_t n;
    assert_int_equal(kv_tokenizer_encode(t, "a\xff", 2, false, false, NULL, 0, &n, &err), KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "0xff"));
    kv_tokenizer_free(&t);
    kv_tokenizer_free(&t);
}

/* Random bytes, half of them made to look like UTF-8, come back exactly, with every pattern. */
static void random_round_trips(const kv_tokenizer *t, uint64_t seed, int rounds) {
    static const char *const bits[] = {
        "\xf0\x9f\x98\x80", "\xe2\x96\x81", "\xc3\xa9", " ", "\n", "1", "x", "'s", "\xe3\x80\x80", "<", "|"};
    for (int r = 0; r < rounds; r++) {
        char s[300];
        size_t len = 0, want = test_rand(&seed) % 280, n, k;
        while (len < want) {
            const char *bit = bits[test_rand(&seed) % 11];
            if (test_rand(&seed) & 1)
                s[len++] = (char)test_rand(&seed);
            else {
                memcpy(s + len, bit, strlen(bit));
                len += strlen(bit);
            }
        }
        int32_t *ids = encode(t, s, len, false, r & 1, &n);
        char *back = bytes_of(t, ids, n, true, &k);
        assert_int_equal(k, len);
        assert_memory_equal(back, s, len);
        free(back);
        free(ids);
    }
}

static void test_random_bytes(void **state) {
    static const char *const names[] = {"gpt-2",  "llama-bpe", "llama-v3", "qwen2", "deepseek-r1-qwen",
                                        "smollm", "default"};
    for (int i = 0; i < 7; i++) {
        small v;
        cut_vocab(&v);
        kv_tokenizer *t = make(&v, names[i], cut_merges, 9);
        random_round_trips(t, 11, 300);
        kv_tokenizer_free(&t);
    }
    const char *path = test_shared("data/tokenizers/ggml-vocab-gpt-2.gguf");
    if (!path) return;
    kv_gguf *g;
    kv_tokenizer *t = open_gguf_tokenizer(path, &g);
    random_round_trips(t, 12, 1000);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
}

static void test_allocation_failures(void **state) {
    small v;
    cut_vocab(&v);
    add(&v, "<|im_end|>", 3);
    for (size_t i = 0; i < v.n; i++) v.p[i] = v.text[i];
    kv_error err;
    kv_tokenizer *t = NULL;
    uint64_t before = kv_alloc_count(), i, refused = 0;
    kv_status s = kv_tokenizer_create_bpe("default", v.p, v.type, v.n, cut_merges, 9, &t, &err);
    uint64_t total = kv_alloc_count() - before;
    for (i = 1; i <= total; i++) {
        kv_tokenizer_free(&t);
        kv_alloc_test_fail_at(i);
        s = kv_tokenizer_create_bpe("default", v.p, v.type, v.n, cut_merges, 9, &t, &err);
        kv_alloc_test_fail_at(0);
        if (s == KVIST_OK) { /* PCRE2's JIT had no memory: the interpreter finds the same words */
            EXPECT_IDS(t, "1111", false, false, 257, '1');
            continue;
        }
        assert_int_equal(s, KVIST_E_MEMORY);
        assert_null(t);
        refused++;
    }
    assert_true(refused >= 10);
    kv_tokenizer_free(&t);
    assert_int_equal(kv_tokenizer_create_bpe("default", v.p, v.type, v.n, cut_merges, 9, &t, &err), KVIST_OK);
    char text[400];
    memset(text, 'a', sizeof text);
    memcpy(text + 100, "<|im_end|>", 10);
    int32_t ids[400];
    size_t n;
    for (s = KVIST_E_MEMORY, i = 1; s != KVIST_OK; i++) {
        kv_alloc_test_fail_at(i);
        s = kv_tokenizer_encode(t, text, sizeof text, true, true, ids, 400, &n, &err);
        kv_alloc_test_fail_at(0);
        if (s != KVIST_OK) assert_int_equal(s, KVIST_E_MEMORY);
        assert_true(i < 100);
    }
    assert_true(i > 5);
    kv_tokenizer_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge_order),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_whole_word),
        cmocka_unit_test(test_special),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
