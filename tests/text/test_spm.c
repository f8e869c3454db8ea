/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SPM on small made-up vocabularies written as GGUF: merging against a naive search over the whole escaped text, flags
 * of the metadata, special tokens, every allocation failing once.
 */
#include "text_util.h"

#include "base/alloc.h"

#include <unistd.h>

#define SPACE "\xe2\x96\x81"

typedef struct vocab {
    char text[400][24];
    const char *p[400];
    int32_t type[400];
    float score[400];
    size_t n;
} vocab;

static int32_t add(vocab *v, const char *text, int32_t type, float score) {
    snprintf(v->text[v->n], sizeof v->text[0], "%s", text);
    v->type[v->n] = type;
    v->score[v->n] = score;
    return (int32_t)v->n++;
}

/* <unk> <s> </s>, then the bytes at 3.. */
static void base_vocab(vocab *v) {
    memset(v, 0, sizeof *v);
    add(v, "<unk>", 2, 0);
    add(v, "<s>", 3, 0);
    add(v, "</s>", 3, 0);
    for (int b = 0; b < 256; b++) {
        char s[8];
        snprintf(s, sizeof s, "<0x%02X>", b);
        add(v, s, 6, 0);
    }
}

#define OK(x) assert_int_equal(x, KVIST_OK)
/* flags: 1 add_bos false, 2 add_eos true, 4 add_space_prefix false, 8 named Phi-3 */
static kv_gguf *write_vocab(vocab *v, int flags) {
    char path[] = "/tmp/kvist-spm-XXXXXX";
    close(mkstemp(path));
    kv_gguf_writer *w;
    kv_gguf *g;
    kv_error err = {0};
    for (size_t i = 0; i < v->n; i++) v->p[i] = v->text[i];
    OK(kv_gguf_writer_create(&w, &err));
    OK(kv_gguf_put_str(w, "tokenizer.ggml.model", "llama", &err));
    OK(kv_gguf_put_str_array(w, "tokenizer.ggml.tokens", v->p, v->n, &err));
    OK(kv_gguf_put_f32_array(w, "tokenizer.ggml.scores", v->score, v->n, &err));
    OK(kv_gguf_put_i32_array(w, "tokenizer.ggml.token_type", v->type, v->n, &err));
    if (flags & 1) OK(kv_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false, &err));
    if (flags & 2) OK(kv_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", true, &err));
    if (flags & 4) OK(kv_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false, &err));
    if (flags & 8) OK(kv_gguf_put_str(w, "general.name", "Phi-3 mini", &err));
    OK(kv_gguf_write(w, path, &err));
    kv_gguf_writer_free(&w);
    OK(kv_gguf_open(path, &g, &err));
    unlink(path);
    return g;
}

static kv_tokenizer *make(vocab *v, int flags) {
    kv_gguf *g = write_vocab(v, flags);
    kv_tokenizer *t = NULL;
    kv_error err = {0};
    if (kv_tokenizer_create(g, &t, &err) != KVIST_OK) fail_msg("%s", err.message);
    kv_gguf_close(&g);
    return t;
}

static int32_t lookup(const vocab *v, const char *s) {
    for (size_t i = 0; i < v->n; i++)
        if (strcmp(v->text[i], s) == 0) return (int32_t)i;
    return -1;
}

/* Naive: characters of the whole text, best score (then leftmost) joined until nothing can be. */
static size_t naive(const vocab *v, const char *text, int32_t *ids) {
    static char part[700][700];
    size_t n = 0, out = 0;
    strcpy(part[n++], SPACE);
    for (const char *p = text; *p;) {
        size_t k = (uint8_t)*p < 0x80 ? 1 : (uint8_t)*p < 0xe0 ? 2 : 3;
        if (*p == ' ')
            strcpy(part[n++], SPACE);
        else {
            memcpy(part[n], p, k);
            part[n++][k] = 0;
        }
        p += k;
    }
    for (;;) {
        size_t best = 0;
        float score = 0;
        bool found = false;
        for (size_t i = 0; i + 1 < n; i++) {
            char both[1400];
            snprintf(both, sizeof both, "%s%s", part[i], part[i + 1]);
            int32_t id = lookup(v, both);
            if (id >= 0 && (!found || v->score[id] > score)) {
                best = i;
                score = v->score[id];
                found = true;
            }
        }
        if (!found) break;
        memcpy(part[best] + strlen(part[best]), part[best + 1], strlen(part[best + 1]) + 1);
        memmove(part[best + 1], part[best + 2], (n - best - 2) * sizeof part[0]);
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        int32_t id = lookup(v, part[i]);
        if (id >= 0)
            ids[out++] = id;
        else
            for (const char *c = part[i]; *c; c++) ids[out++] = 3 + (uint8_t)*c;
    }
    return out;
}

static void test_merge_order(void **state) {
    uint64_t seed = 3;
    static const char *const letters[] = {"a", "b", SPACE, "\xc3\xa9"};
    for (int round = 0; round < 16; round++) {
        vocab v;
        base_vocab(&v);
        for (int i = 0; i < 3; i++) add(&v, letters[i], 1, -1); /* e acute alone is no token */
        for (int i = 0; i < 50; i++) {
            char s[24] = "";
            size_t n = 2 + test_rand(&seed) % 4;
            for (size_t k = 0; k < n; k++) {
                size_t c = test_rand(&seed) % 4;
                /* Half of the vocabularies have no token with a space inside: words are then merged one by one. */
                if (round & 1 && k && c == 2) c = strcmp(s, SPACE) == 0 ? 2 : 0;
                strcat(s, letters[c]);
            }
            if (lookup(&v, s) < 0)
                add(&v, s, 1, (float)(test_rand(&seed) % 9) - 6); /* many equal scores, both signs, zero */
        }
        kv_tokenizer *t = make(&v, 1);
        static const size_t lengths[] = {1, 2, 3, 10, 46, 47, 48, 49, 150};
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            char text[700] = "";
            for (size_t i = 0; i < lengths[k]; i++) {
                size_t c = test_rand(&seed) % 5;
                strcat(text, c == 2 ? " " : c == 4 ? "a" : letters[c]);
            }
            int32_t want[700];
            expect_ids(t, text, true, false, want, naive(&v, text, want));
        }
        kv_tokenizer_free(&t);
    }
}

static void test_flags(void **state) {
    vocab v;
    base_vocab(&v);
    int32_t sp = add(&v, SPACE, 1, -1), a = add(&v, "a", 1, -1), user = add(&v, "[U]", 4, 0);
    kv_tokenizer *t = make(&v, 0);
    assert_int_equal(kv_tokenizer_bos(t), 1);
    assert_int_equal(kv_tokenizer_eos(t), 2);
    assert_true(kv_tokenizer_is_end(t, 2));
    assert_string_equal(kv_tokenizer_pre(t), "spm");
    EXPECT_IDS(t, "a", true, true, 1, sp, a);
    EXPECT_IDS(t, "a", false, true, sp, a);
    EXPECT_IDS(t, "", true, true, 1);
    EXPECT_IDS(t, "a<s>a", true, true, 1, sp, a, 1, sp, a); /* a space also after a special token */
    EXPECT_IDS(t, "a[U] a", false, false, sp, a, user, sp, sp, a);
    EXPECT_IDS(t, "\xff", false, false, sp, 3 + 0xff);
    EXPECT_IDS(t, "\xe2\x82", false, false, sp, 3 + 0xe2, 3 + 0x82);
    EXPECT_IDS(t, SPACE "a", false, false, sp, sp, a);
    size_t n;
    int32_t *ids = encode(t, "<s>", 3, false, false, &n); /* text, not BOS */
    assert_int_equal(n, 4);
    free(ids);
    kv_tokenizer_free(&t);
    t = make(&v, 1 | 2 | 4);
    EXPECT_IDS(t, "a", true, true, a, 2);
    EXPECT_IDS(t, " a", true, true, sp, a, 2);
    kv_tokenizer_free(&t);
    t = make(&v, 1 | 8); /* Phi-3's special tokens take the white space after them, <s> does not */
    EXPECT_IDS(t, "a[U] \n a", true, true, sp, a, user, sp, a);
    EXPECT_IDS(t, "a<s> a", true, true, sp, a, 1, sp, sp, a);
    kv_tokenizer_free(&t);
}

static void test_bad_metadata(void **state) {
    static const char *const model[] = {"bert", "llama"};
    for (int i = 0; i < 2; i++) {
        char path[] = "/tmp/kvist-spm-XXXXXX";
        close(mkstemp(path));
        kv_gguf_writer *w;
        kv_gguf *g;
        kv_tokenizer *t;
        kv_error err = {0};
        static const char *const tokens[] = {"a", "b"};
        static const float one = 1;
        OK(kv_gguf_writer_create(&w, &err));
        OK(kv_gguf_put_str(w, "tokenizer.ggml.model", model[i], &err));
        OK(kv_gguf_put_str_array(w, "tokenizer.ggml.tokens", tokens, 2, &err));
        OK(kv_gguf_put_f32_array(w, "tokenizer.ggml.scores", &one, 1, &err)); /* fewer scores than tokens */
        OK(kv_gguf_write(w, path, &err));
        kv_gguf_writer_free(&w);
        OK(kv_gguf_open(path, &g, &err));
        unlink(path);
        assert_int_equal(kv_tokenizer_create(g, &t, &err), i ? KVIST_E_FORMAT : KVIST_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, i ? "scores" : "bert"));
        assert_null(t);
        kv_gguf_close(&g);
    }
}

static void test_allocation_failures(void **state) {
    vocab v;
    base_vocab(&v);
    add(&v, SPACE "a", 1, -1);
    kv_gguf *g = write_vocab(&v, 0);
    kv_tokenizer *t = NULL;
    kv_error err;
    kv_status s = KVIST_E_MEMORY;
    uint64_t i = 1;
    for (; s != KVIST_OK; i++) {
        kv_alloc_test_fail_at(i);
        s = kv_tokenizer_create(g, &t, &err);
        kv_alloc_test_fail_at(0);
        if (s != KVIST_OK) {
            assert_int_equal(s, KVIST_E_MEMORY);
            assert_null(t);
        }
        assert_true(i < 100);
    }
    assert_true(i > 5);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_merge_order), cmocka_unit_test(test_flags),
                                       cmocka_unit_test(test_bad_metadata), cmocka_unit_test(test_allocation_failures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
