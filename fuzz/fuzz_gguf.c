/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target: any bytes through the GGUF reader. Opens twice and asserts that both give the same answer; when it
 * opens, reads every key through every getter, every array to its end, and decodes the first block of every tensor.
 * make fuzz && build-fuzz/fuzz_gguf CORPUS -max_total_time=60
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t fold(uint64_t h, const void *p, size_t n) { return kv_hash64(p, n, h); }

static uint64_t walk_key(const kv_gguf *g, const char *name, uint64_t h) {
    uint32_t u;
    uint64_t w;
    float f;
    bool b;
    size_t n;
    const char *s, *const *strs;
    const uint32_t *lens;
    const float *fs;
    const int32_t *is;
    CHECK(kv_gguf_has(g, name));
    if (!kv_gguf_u32(g, name, &u, NULL)) h = fold(h, &u, sizeof u);
    if (!kv_gguf_u64(g, name, &w, NULL)) h = fold(h, &w, sizeof w);
    if (!kv_gguf_f32(g, name, &f, NULL)) h = fold(h, &f, sizeof f);
    if (!kv_gguf_bool(g, name, &b, NULL)) h += b;
    if (!kv_gguf_str(g, name, &s, &n, NULL)) {
        CHECK(s[n] == 0);
        h = fold(h, s, n);
    }
    if (!kv_gguf_str_array(g, name, &strs, &lens, &n, NULL))
        for (size_t i = 0; i < n; i++) {
            CHECK(strs[i][lens[i]] == 0);
            h = fold(h, strs[i], lens[i]);
        }
    if (!kv_gguf_i32_array(g, name, &is, &n, NULL)) h = fold(h, is, n * sizeof *is);
    if (!kv_gguf_f32_array(g, name, &fs, &n, NULL)) h = fold(h, fs, n * sizeof *fs);
    return h;
}

static uint64_t walk(const kv_gguf *g, const uint8_t *data, size_t size) {
    static float y[256];
    char value[40];
    uint64_t h = 0;
    const char *name;
    for (size_t i = 0; (name = kv_gguf_key_at(g, i, value, sizeof value)); i++)
        h = walk_key(g, name, fold(h, value, strlen(value)));
    for (size_t i = 0; i < kv_gguf_tensor_count(g); i++) {
        const kv_tensor *t = kv_gguf_tensor_at(g, i);
        const kv_type_info *info = kv_type_get(t->type);
        CHECK(kv_gguf_tensor(g, t->name) == t && info);
        CHECK(t->data >= data && t->bytes >= info->bytes && t->bytes <= size && t->data + t->bytes <= data + size);
        info->dequant(t->data, y, info->block);
        h = fold(h, y, info->block * sizeof *y);
        h += t->data[t->bytes - 1] + t->ne[0] * 3 + t->ne[1] * 5 + t->ne[2] * 7 + t->ne[3] * 11;
    }
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kv_gguf *a, *b;
    kv_error ea = {0}, eb = {0};
    int sa = kv_gguf_open_memory(data, size, &a, &ea), sb = kv_gguf_open_memory(data, size, &b, &eb);
    CHECK(sa == sb && !strcmp(ea.message, eb.message));
    if (sa)
        CHECK(!a && !b && ea.message[0]);
    else
        CHECK(walk(a, data, size) == walk(b, data, size));
    kv_gguf_close(&a);
    kv_gguf_close(&b);
    return 0;
}
