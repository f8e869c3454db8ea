/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of src/text share: the vocabulary (texts, attributes, text -> id), the tokenizer object and the
 * scratch of one encode call. Must not know: chat templates.
 *
 * A symbol is what merging works on: ids below n_tokens are tokens; above them lie texts that occur only inside merges
 * and are written out as bytes in the end. Texts of byte-level BPE are stored as raw bytes (GPT-2's printable alphabet
 * is undone once, at creation), so that the text itself is looked up, never an encoded copy.
 */
#ifndef KV_TEXT_VOCAB_H
#define KV_TEXT_VOCAB_H

#include "text/tokenizer.h"

enum {
    KV_TOK_NORMAL = 1,
    KV_TOK_UNKNOWN = 2,
    KV_TOK_CONTROL = 4,
    KV_TOK_USER = 8,
    KV_TOK_UNUSED = 16,
    KV_TOK_BYTE = 32,
    KV_TOK_RSTRIP = 64,
    KV_TOK_END = 128,
    KV_TOK_HIDDEN = KV_TOK_UNKNOWN | KV_TOK_CONTROL, /* no text unless special tokens are asked for */
    KV_TOK_SPECIAL = KV_TOK_HIDDEN | KV_TOK_USER     /* found in the raw text before anything else */
};
/* GGUF's token types. */
enum {
    KV_TOKTYPE_NORMAL = 1,
    KV_TOKTYPE_UNKNOWN = 2,
    KV_TOKTYPE_CONTROL = 3,
    KV_TOKTYPE_USER = 4,
    KV_TOKTYPE_UNUSED = 5,
    KV_TOKTYPE_BYTE = 6
};

#define KV_NO_SYMBOL UINT32_MAX

typedef struct kv_token {
    uint32_t text, text_len;   /* what merging matches, in vocab.bytes (SPM: with U+2581 for spaces) */
    uint32_t piece, piece_len; /* what it stands for in the output */
    float score;
    uint32_t attr;
} kv_token;

typedef struct kv_vocab {
    char *bytes;
    size_t n_bytes, cap_bytes;
    kv_token *tok;
    size_t n_tok, cap_tok; /* n_tok counts symbols too */
    struct kv_slot {
        uint32_t tag, id;
    } * slot;
    size_t n_slot, used; /* open addressing, id KV_NO_SYMBOL = free */
} kv_vocab;

kv_status kv_vocab_init(kv_vocab *v, size_t n_tokens, size_t n_bytes, kv_error *err) KV_WARN_UNUSED;
void kv_vocab_free(kv_vocab *v);
/* Appends s[len] to the bytes; *off is where. */
kv_status kv_vocab_append(kv_vocab *v, const char *s, size_t len, uint32_t *off, kv_error *err) KV_WARN_UNUSED;
/* Makes text -> id known; the first id of a text wins. */
kv_status kv_vocab_index(kv_vocab *v, uint32_t id, kv_error *err) KV_WARN_UNUSED;
uint32_t kv_vocab_find(const kv_vocab *v, const char *s, size_t len); /* KV_NO_SYMBOL: none */
/* Finds or adds a symbol (attr 0). */
kv_status kv_vocab_intern(kv_vocab *v, const char *s, size_t len, uint32_t *id, kv_error *err) KV_WARN_UNUSED;

/* (left, right) symbols -> merged symbol and its rank; open addressing, key UINT64_MAX = free. */
typedef struct kv_merges {
    struct kv_merge {
        uint64_t key;
        uint32_t rank, symbol;
    } * m;
    size_t n_slot;
} kv_merges;

typedef struct kv_pre kv_pre;
/* KVIST_E_UNSUPPORTED names an unknown pattern. */
kv_status kv_pre_create(const char *name, kv_pre **out, kv_error *err) KV_WARN_UNUSED;
void kv_pre_free(kv_pre **p);
const char *kv_pre_name(const kv_pre *p);
bool kv_pre_ignore_merges(const kv_pre *p); /* a word that is a token as a whole is not merged */
bool kv_pre_add_bos(const kv_pre *p);       /* when the metadata says nothing */

struct kv_tokenizer {
    kv_vocab v;
    uint32_t n_tokens;
    kv_pre *pre; /* NULL: SPM */
    kv_merges merges;
    uint32_t byte_symbol[256]; /* BPE: the symbol of a byte (token or not) */
    int32_t byte_id[256];      /* token that stands for a byte, -1: none */
    int32_t bos, eos, unk;
    bool add_bos, add_eos, add_space_prefix;
    bool spm_words; /* no token has U+2581 after another character: words can be merged one by one */
    uint32_t *special;
    size_t n_special;    /* ids, longest text first */
    uint32_t *by_byte;   /* positions in special[], grouped by first byte */
    uint32_t first[257]; /* by_byte[first[b]..first[b+1]) start with byte b */
    size_t max_piece;
};

typedef struct kv_symbol {
    uint32_t id, start, len;
} kv_symbol;

/* Scratch and output of one encode call. */
typedef struct kv_encoder {
    const kv_tokenizer *t;
    int32_t *ids;
    size_t cap, n;
    kv_symbol *sym;
    size_t cap_sym;
    void *work;
    size_t cap_work;
    char *buf;
    size_t cap_buf;
    void *match; /* pcre2 match data */
    kv_error *err;
} kv_encoder;

static inline void kv_encoder_emit(kv_encoder *e, int32_t id) {
    if (e->n < e->cap) e->ids[e->n] = id;
    e->n++;
}
/* The token of one byte, or the unknown token, or U+FFFD; fails when there is none of them. */
kv_status kv_encoder_emit_byte(kv_encoder *e, uint8_t byte) KV_WARN_UNUSED;
kv_status kv_encoder_reserve(kv_encoder *e, void **p, size_t *cap, size_t size) KV_WARN_UNUSED;

/* Order of joining two neighbours (lower first, equal: leftmost), UINT32_MAX: never; *id = the joined symbol. */
typedef uint32_t (*kv_pair_fn)(const kv_tokenizer *t, const char *text, const kv_symbol *a, const kv_symbol *b,
                               uint32_t *id);
/* Joins neighbours of e->sym[0..n) until none can be; *left symbols remain, in order. */
kv_status kv_text_merge(kv_encoder *e, const char *text, size_t n, kv_pair_fn pair, size_t *left) KV_WARN_UNUSED;

kv_status kv_spm_encode(kv_encoder *e, const char *text, size_t len, bool prefix) KV_WARN_UNUSED;
kv_status kv_bpe_encode(kv_encoder *e, const char *text, size_t len) KV_WARN_UNUSED;
kv_status kv_bpe_word(kv_encoder *e, const char *text, size_t len) KV_WARN_UNUSED;
/* Cuts text (valid UTF-8) into words and gives each to kv_bpe_word. */
kv_status kv_pre_split(const kv_pre *p, kv_encoder *e, const char *text, size_t len) KV_WARN_UNUSED;
void kv_pre_free_match(void *match);

/* GPT-2's printable alphabet: byte of a code point, -1 when it is not one of the 256. */
int kv_bpe_byte_of(uint32_t code_point);
kv_status kv_bpe_load_merges(kv_tokenizer *t, const char *const *merges, size_t n, kv_error *err) KV_WARN_UNUSED;
/* Raw bytes of a printable text into out (at least len bytes); false when some character is outside the alphabet
 * (its bytes are then copied as they are). */
bool kv_bpe_decode(const char *text, size_t len, char *out, size_t *out_len);

/* 1: a whole character of *len bytes; 0: a prefix of one that n cuts off (*len = n); -1: *len bytes that can never
 * become valid (the maximal subpart, so that U+FFFD replaces them once). No overlong forms, no surrogates. n >= 1. */
static inline int kv_utf8_next(const char *s, size_t n, size_t *len) {
    const uint8_t *p = (const uint8_t *)s;
    *len = 1;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return -1;
    size_t need = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    uint8_t lo = 0x80, hi = 0xbf; /* range of the second byte */
    if (p[0] == 0xe0)
        lo = 0xa0;
    else if (p[0] == 0xed)
        hi = 0x9f;
    else if (p[0] == 0xf0)
        lo = 0x90;
    else if (p[0] == 0xf4)
        hi = 0x8f;
    for (size_t i = 1; i < need; i++, lo = 0x80, hi = 0xbf) {
        if (i == n) {
            *len = n;
            return 0;
        }
        if (p[i] < lo || p[i] > hi) {
            *len = i;
            return -1;
        }
    }
    *len = need;
    return 1;
}

#endif
