/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SPM (llama) and byte-level BPE (gpt-2, llama-bpe, smollm, qwen2, default) tokenizers read from GGUF metadata.
 * Immutable after creation; usable from any thread. Ids equal llama.cpp's on its published fixtures.
 */
#ifndef KV_TEXT_TOKENIZER_H
#define KV_TEXT_TOKENIZER_H

#include "gguf/gguf.h"

typedef struct kv_tokenizer kv_tokenizer;

kv_status kv_tokenizer_create(const kv_gguf *g, kv_tokenizer **out, kv_error *err) KV_WARN_UNUSED;
/* A byte-level BPE from plain lists (Qwen's vocab.json + merges.txt in tests). pre: name of the pattern. tokens are in
 * GPT-2's printable byte alphabet; types may be NULL (all normal). */
kv_status kv_tokenizer_create_bpe(const char *pre, const char *const *tokens, const int32_t *types, size_t n_tokens,
                                  const char *const *merges, size_t n_merges, kv_tokenizer **out,
                                  kv_error *err) KV_WARN_UNUSED;
void kv_tokenizer_free(kv_tokenizer **t);

size_t kv_tokenizer_size(const kv_tokenizer *t);
const char *kv_tokenizer_pre(const kv_tokenizer *t); /* "spm" or the pattern's name */
int32_t kv_tokenizer_bos(const kv_tokenizer *t);     /* -1: none */
int32_t kv_tokenizer_eos(const kv_tokenizer *t);
bool kv_tokenizer_is_end(const kv_tokenizer *t,
                         int32_t id); /* eos, eot, <|im_end|>, <|eot_id|>, <end_of_turn>, <|end|> … */
bool kv_tokenizer_is_special(const kv_tokenizer *t, int32_t id); /* control or user-defined control */

/* add_special: BOS/EOS as the model's metadata asks. parse_special: control tokens written in the text become their
 * ids (user-defined tokens always do). Writes at most cap ids, *n = number in all. Input need not be valid UTF-8. */
kv_status kv_tokenizer_encode(const kv_tokenizer *t, const char *text, size_t len, bool add_special, bool parse_special,
                              int32_t *ids, size_t cap, size_t *n, kv_error *err) KV_WARN_UNUSED;
/* Raw bytes of a token as they stand in the text; control tokens give "" unless special. Owned by t. */
const char *kv_tokenizer_bytes(const kv_tokenizer *t, int32_t id, bool special, size_t *len);

/* Streaming detokenizer: hands out whole UTF-8 characters only. SPM's leading space at the very start is dropped. */
typedef struct kv_detok {
    const kv_tokenizer *t;
    bool special, started;
    uint8_t n_pending;
    char pending[8];
    char *buf;
    size_t cap;
} kv_detok;
void kv_detok_init(kv_detok *d, const kv_tokenizer *t, bool special);
/* *out (valid until the next call) gets the complete characters available after id; *len may be 0. Bytes that can
 * never become valid UTF-8 come out as U+FFFD. */
kv_status kv_detok_push(kv_detok *d, int32_t id, const char **out, size_t *len, kv_error *err) KV_WARN_UNUSED;
/* What is pending at the end (an incomplete character) as U+FFFD. The buffer lives until kv_detok_free. */
void kv_detok_finish(kv_detok *d, const char **out, size_t *len);
void kv_detok_free(kv_detok *d);

#endif
