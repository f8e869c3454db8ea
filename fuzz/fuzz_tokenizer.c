/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes through the tokenizers: encoding succeeds, decoding gives the same bytes (byte-level BPE), a second
 * encoding the same ids, and the streamed text is as long as it must be. First byte: pattern and flags. libFuzzer's
 * entry; with FUZZ_MAIN a program that reads files (or standard input), for machines without it.
 */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"gpt-2", "llama-bpe", "qwen2", "smollm", "default"};

static kv_tokenizer *create(const char *pre) {
    static char text[256][3];
    const char *tokens[260];
    int32_t types[260];
    for (uint32_t b = 0, other = 256; b < 256; b++) {
        bool same = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        uint32_t c = same ? b : other++;
        if (c < 0x80)
            snprintf(text[b], 3, "%c", (int)c);
        else {
            text[b][0] = (char)(0xc0 | c >> 6);
            text[b][1] = (char)(0x80 | (c & 63));
            text[b][2] = 0;
        }
        tokens[b] = text[b];
        types[b] = 1;
    }
    tokens[256] = "aa";
    tokens[257] = "<|im_end|>";
    tokens[258] = "a<";
    tokens[259] = "11";
    types[256] = 1;
    types[257] = 3;
    types[258] = 4;
    types[259] = 1;
    static const char *const merges[] = {"a a", "1 1", "aa aa",
                                         "\xc3\xb0 \xc5\x81"}; /* two results that are no tokens */
    kv_tokenizer *t;
    if (kv_tokenizer_create_bpe(pre, tokens, types, 260, merges, 4, &t, NULL) != KVIST_OK) abort();
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > 1 << 16) return 0;
    kv_tokenizer *t = create(names[(data[0] & 7) % 5]);
    bool parse = data[0] & 8;
    const char *text = (const char *)data + 1;
    size_t len = size - 1, n, again, at = 0, k;
    int32_t *ids = malloc((len + 1) * 2 * sizeof *ids);
    if (kv_tokenizer_encode(t, text, len, false, parse, ids, len + 1, &n, NULL) != KVIST_OK || n > len) abort();
    if (kv_tokenizer_encode(t, text, len, false, parse, ids + len + 1, len + 1, &again, NULL) != KVIST_OK) abort();
    if (again != n || memcmp(ids, ids + len + 1, n * sizeof *ids) != 0) abort();
    kv_detok d;
    kv_detok_init(&d, t, true);
    for (size_t i = 0; i < n; i++) {
        const char *p = kv_tokenizer_bytes(t, ids[i], true, &k);
        if (at + k > len || memcmp(text + at, p, k) != 0) abort();
        at += k;
        if (kv_detok_push(&d, ids[i], &p, &k, NULL) != KVIST_OK) abort();
    }
    if (at != len) abort();
    kv_detok_free(&d);
    free(ids);
    kv_tokenizer_free(&t);
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv) {
    static uint8_t buf[1 << 16];
    for (int i = 1; i < (argc > 1 ? argc : 2); i++) {
        FILE *f = argc > 1 ? fopen(argv[i], "rb") : stdin;
        if (!f) return 2;
        size_t n = fread(buf, 1, sizeof buf, f);
        if (f != stdin) fclose(f);
        LLVMFuzzerTestOneInput(buf, n);
    }
    return 0;
}
#endif
