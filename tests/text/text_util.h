/* SPDX-License-Identifier: Apache-2.0 */
/* Helpers of the text tests: encoding into malloc'd ids, decoding back, small vocabularies, Qwen's vocab.json +
 * merges.txt. */
#ifndef KV_TESTS_TEXT_UTIL_H
#define KV_TESTS_TEXT_UTIL_H

#include "support/support.h"
#include "text/tokenizer.h"

#include <jansson.h>

static inline int32_t *encode(const kv_tokenizer *t, const char *s, size_t len, bool special, bool parse, size_t *n) {
    kv_error err = {0};
    if (kv_tokenizer_encode(t, s, len, special, parse, NULL, 0, n, &err) != KVIST_OK)
        fail_msg("encode: %s", err.message);
    size_t need = *n;
    int32_t *ids = malloc((need + 1) * sizeof *ids);
    ids[need] = 0x5a5a5a5a; /* canary: never more than cap written */
    assert_int_equal(kv_tokenizer_encode(t, s, len, special, parse, ids, need, n, &err), KVIST_OK);
    assert_int_equal(*n, need);
    assert_int_equal(ids[need], 0x5a5a5a5a);
    return ids;
}

/* Concatenated bytes of ids, malloc'd and terminated. */
static inline char *bytes_of(const kv_tokenizer *t, const int32_t *ids, size_t n, bool special, size_t *len) {
    size_t cap = 16;
    char *s = malloc(cap);
    *len = 0;
    for (size_t i = 0; i < n; i++) {
        size_t k;
        const char *p = kv_tokenizer_bytes(t, ids[i], special, &k);
        while (*len + k + 1 > cap) s = realloc(s, cap *= 2);
        memcpy(s + *len, p, k);
        *len += k;
    }
    s[*len] = 0;
    return s;
}

/* The streamed text of ids, malloc'd and terminated. */
static inline char *stream_of(const kv_tokenizer *t, const int32_t *ids, size_t n, bool special, size_t *len) {
    kv_detok d;
    kv_error err = {0};
    kv_detok_init(&d, t, special);
    size_t cap = 16;
    char *s = malloc(cap);
    *len = 0;
    for (size_t i = 0; i <= n; i++) {
        const char *p;
        size_t k;
        if (i < n)
            assert_int_equal(kv_detok_push(&d, ids[i], &p, &k, &err), KVIST_OK);
        else
            kv_detok_finish(&d, &p, &k);
        while (*len + k + 1 > cap) s = realloc(s, cap *= 2);
        memcpy(s + *len, p, k);
        *len += k;
    }
    s[*len] = 0;
    kv_detok_free(&d);
    return s;
}

static inline void expect_ids(const kv_tokenizer *t, const char *text, bool special, bool parse, const int32_t *want,
                              size_t n_want) {
    size_t n;
    int32_t *ids = encode(t, text, strlen(text), special, parse, &n);
    bool same = n == n_want;
    for (size_t i = 0; same && i < n; i++) same = ids[i] == want[i];
    if (!same) {
        fprintf(stderr, "text '%s': got", text);
        for (size_t i = 0; i < n; i++) fprintf(stderr, " %d", ids[i]);
        fprintf(stderr, ", want");
        for (size_t i = 0; i < n_want; i++) fprintf(stderr, " %d", want[i]);
        fprintf(stderr, "\n");
    }
    free(ids);
    assert_true(same);
}
#define EXPECT_IDS(t, text, special, parse, ...)                                                                       \
    expect_ids(t, text, special, parse, (const int32_t[]){__VA_ARGS__},                                                \
               sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* Code point of a byte in GPT-2's alphabet, computed the way GPT-2's own encoder lists it. */
static inline uint32_t printable(unsigned byte) {
    uint32_t next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool same = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
        if (b == byte) return same ? b : next;
        if (!same) next++;
    }
    return 0;
}

static inline void put_printable(char *out, unsigned byte) {
    uint32_t c = printable(byte);
    if (c < 0x80) {
        out[0] = (char)c;
        out[1] = 0;
    } else {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        out[2] = 0;
    }
}

/* Qwen2.5's published vocabulary; NULL when the shared data are absent. types: its control tokens are not in
 * vocab.json. */
static inline kv_tokenizer *open_qwen(void) {
    const char *path = test_shared("data/tokenizers/qwen2.5_vocab.json");
    json_t *root = path ? json_load_file(path, 0, NULL) : NULL;
    path = root ? test_shared("data/tokenizers/qwen2.5_merges.txt") : NULL;
    size_t len;
    char *text = path ? test_read(path, &len) : NULL;
    if (!text) return NULL;
    size_t n = json_object_size(root), n_merges = 0, cap = 1;
    for (size_t i = 0; i < len; i++) cap += text[i] == '\n';
    const char **tokens = calloc(n, sizeof *tokens), **merges = calloc(cap, sizeof *merges);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        size_t id = (size_t)json_integer_value(value);
        assert_true(id < n && !tokens[id]);
        tokens[id] = key;
    }
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strncmp(line, "#version", 8) != 0) merges[n_merges++] = line;
    kv_tokenizer *t = NULL;
    kv_error err = {0};
    if (kv_tokenizer_create_bpe("qwen2", tokens, NULL, n, merges, n_merges, &t, &err) != KVIST_OK)
        fail_msg("%s", err.message);
    free(tokens);
    free(merges);
    free(text);
    json_decref(root);
    return t;
}

static inline kv_tokenizer *open_gguf_tokenizer(const char *path, kv_gguf **g) {
    kv_error err = {0};
    kv_tokenizer *t = NULL;
    if (kv_gguf_open(path, g, &err) != KVIST_OK) fail_msg("%s: %s", path, err.message);
    if (kv_tokenizer_create(*g, &t, &err) != KVIST_OK) fail_msg("%s: %s", path, err.message);
    return t;
}

#endif
