/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building a tokenizer from GGUF metadata or plain lists, and its plain queries.
 * Must not know: how text is cut or joined. Invariant: after creation nothing changes; every id in 0..n_tokens-1 has a
 * text and a piece inside the vocabulary's bytes.
 */
#include "text/tokenizer.h"

#include "base/alloc.h"
#include "text/vocab.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define SPACE "\xe2\x96\x81" /* U+2581 */

/* What a vocabulary is made from. scores and types may be NULL. */
typedef struct source {
    const char *const *tokens;
    const uint32_t *lens; /* NULL: terminated strings */
    const float *scores;
    const int32_t *types;
    size_t n;
    bool spm;
} source;

/* Texts that end a turn or a document in the models we read, and fill-in-the-middle marks. Vocabularies often carry
 * them as ordinary tokens although they are control tokens. */
static const char *const end_texts[] = {"<|eot_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<end_of_turn>",
                                        "<|endoftext|>",
                                        "</s>",
                                        "<|eom_id|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<|end_of_text|>",
                                        "<end_of_utterance>",
                                        "<eos>",
                                        "<|fim_pad|>",
                                        "<fim-pad>",
                                        "<fim_pad>",
                                        "<PAD>",
                                        "[PAD]",
                                        "<|fim_repo|>",
                                        "<|repo_name|>",
                                        "<fim-repo>",
                                        "<REPO>",
                                        "<reponame>",
                                        "<|file_sep|>",
                                        "<\xef\xbd\x9c"
                                        "end" SPACE "of" SPACE "sentence\xef\xbd\x9c>"};
static const char *const control_texts[] = {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>",
                                            "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>",
                                            "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>"};

static bool listed(const char *const *list, size_t n, const char *s, size_t len) {
    for (size_t i = 0; i < n; i++)
        if (strlen(list[i]) == len && memcmp(list[i], s, len) == 0) return true;
    return false;
}

static uint32_t attr_of(const source *src, size_t i) {
    if (!src->types) return KV_TOK_NORMAL;
    switch (src->types[i]) {
    case KV_TOKTYPE_NORMAL:
        return KV_TOK_NORMAL;
    case KV_TOKTYPE_UNKNOWN:
        return KV_TOK_UNKNOWN;
    case KV_TOKTYPE_CONTROL:
        return KV_TOK_CONTROL;
    case KV_TOKTYPE_USER:
        return KV_TOK_USER;
    case KV_TOKTYPE_BYTE:
        return KV_TOK_BYTE;
    default:
        return KV_TOK_UNUSED;
    }
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* Value of "<0xNN>", -1 otherwise. */
static int byte_text(const char *s, size_t len) {
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

static size_t unescape(const char *s, size_t len, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        if (len - i >= 3 && memcmp(s + i, SPACE, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else
            out[n++] = s[i++];
    }
    return n;
}

/* Fills one token: text as merging sees it, piece as it is written out. scratch holds len bytes. */
static kv_status add_token(kv_tokenizer *t, const source *src, size_t i, const char *s, size_t len, char *scratch,
                           kv_error *err) {
    kv_token *k = &t->v.tok[i];
    *k = (kv_token){.attr = attr_of(src, i), .score = src->scores ? src->scores[i] + 0.0f : 0.0f};
    if (isnan(k->score)) k->score = -FLT_MAX;
    size_t n = len;
    bool index = len > 0;
    int byte = k->attr & KV_TOK_BYTE ? byte_text(s, len) : -1;
    if (byte >= 0) {
        scratch[0] = (char)byte;
        n = 1;
        t->byte_id[byte] = (int32_t)i;
    } else if (!src->spm) {
        bool plain = kv_bpe_decode(s, len, scratch, &n);
        /* A special token is written as it stands; only where both agree can a word of the text equal it. */
        if (k->attr & KV_TOK_SPECIAL) {
            if (n != len || memcmp(scratch, s, len) != 0) index = false;
            memcpy(scratch, s, len);
            n = len;
        } else if (!plain) {
            index = false;
        }
    } else if (k->attr & KV_TOK_NORMAL) {
        n = unescape(s, len, scratch);
    } else {
        memcpy(scratch, s, len);
    }
    if (listed(end_texts, sizeof end_texts / sizeof *end_texts, s, len)) k->attr |= KV_TOK_CONTROL | KV_TOK_END;
    if (listed(control_texts, sizeof control_texts / sizeof *control_texts, s, len)) k->attr |= KV_TOK_CONTROL;
    if (k->attr & KV_TOK_UNUSED && !(k->attr & KV_TOK_SPECIAL)) n = 0; /* padding of the vocabulary: says nothing */
    if (src->spm || n == 0) KV_TRY(kv_vocab_append(&t->v, s, len, &k->text, err));
    KV_TRY(kv_vocab_append(&t->v, scratch, n, &k->piece, err));
    if (src->spm || n == 0) {
        k->text_len = (uint32_t)len;
    } else {
        k->text = k->piece;
        k->text_len = (uint32_t)n;
    }
    k->piece_len = (uint32_t)n;
    if (n > t->max_piece) t->max_piece = n;
    if (src->spm && t->spm_words && k->attr & KV_TOK_NORMAL) {
        for (size_t j = 3; j + 3 <= len; j++)
            if (memcmp(s + j, SPACE, 3) == 0 && memcmp(s + j - 3, SPACE, 3) != 0) t->spm_words = false;
        for (size_t j = 1; j < 3 && j + 3 <= len; j++) /* after a character of one or two bytes */
            if (memcmp(s + j, SPACE, 3) == 0) t->spm_words = false;
    }
    return index ? kv_vocab_index(&t->v, (uint32_t)i, err) : KVIST_OK;
}

static kv_status add_tokens(kv_tokenizer *t, const source *src, kv_error *err) {
    if (src->n == 0 || src->n > INT32_MAX / 2) KV_FAIL(err, FORMAT, "tokenizer.ggml.tokens: %zu tokens", src->n);
    size_t total = 0, longest = 1;
    for (size_t i = 0; i < src->n; i++) {
        size_t len = src->lens ? src->lens[i] : strlen(src->tokens[i]);
        if (total > UINT32_MAX - len) KV_FAIL(err, FORMAT, "tokenizer.ggml.tokens: texts exceed 4 GiB");
        total += len;
        if (len > longest) longest = len;
    }
    KV_TRY(kv_vocab_init(&t->v, src->n, src->spm ? 2 * total : total, err));
    t->n_tokens = (uint32_t)src->n;
    t->v.n_tok = src->n;
    t->spm_words = src->spm;
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    char *scratch = kv_malloc(longest);
    if (!scratch) KV_FAIL(err, MEMORY, "tokenizer: no memory");
    kv_status status = KVIST_OK;
    for (size_t i = 0; i < src->n && status == KVIST_OK; i++)
        status = add_token(t, src, i, src->tokens[i], src->lens ? src->lens[i] : strlen(src->tokens[i]), scratch, err);
    kv_free(scratch);
    KV_TRY(status);
    for (int b = 0; src->spm && b < 256; b++) { /* a vocabulary without <0xNN> may have the character itself */
        char c = (char)b;
        uint32_t id = t->byte_id[b] < 0 ? kv_vocab_find(&t->v, &c, 1) : KV_NO_SYMBOL;
        if (id != KV_NO_SYMBOL) t->byte_id[b] = (int32_t)id;
    }
    return KVIST_OK;
}

/* special[]: longest first, equal lengths by id; by_byte[]: the same grouped by first byte. */
static kv_status index_specials(kv_tokenizer *t, kv_error *err) {
    size_t n = 0, longest = 0;
    for (uint32_t i = 0; i < t->n_tokens; i++) {
        const kv_token *k = &t->v.tok[i];
        if (!(k->attr & KV_TOK_SPECIAL) || !k->piece_len) continue;
        n++;
        if (k->piece_len > longest) longest = k->piece_len;
    }
    t->special = kv_malloc(n * sizeof *t->special);
    t->by_byte = kv_malloc(n * sizeof *t->by_byte);
    uint32_t *count = kv_calloc(longest + 2, sizeof *count);
    if (!t->special || !t->by_byte || !count) {
        kv_free(count);
        KV_FAIL(err, MEMORY, "tokenizer: no memory for special tokens");
    }
    t->n_special = n;
    for (uint32_t i = 0; i < t->n_tokens; i++) /* counting sort: count[l] = how many are longer than l */
        if (t->v.tok[i].attr & KV_TOK_SPECIAL && t->v.tok[i].piece_len) count[t->v.tok[i].piece_len - 1]++;
    for (size_t l = longest; l > 0; l--) count[l - 1] += count[l];
    for (uint32_t i = 0; i < t->n_tokens; i++) {
        const kv_token *k = &t->v.tok[i];
        if (k->attr & KV_TOK_SPECIAL && k->piece_len) t->special[count[k->piece_len]++] = i;
    }
    kv_free(count);
    memset(t->first, 0, sizeof t->first);
    for (size_t i = 0; i < n; i++) t->first[(uint8_t)t->v.bytes[t->v.tok[t->special[i]].piece] + 1]++;
    for (int b = 0; b < 256; b++) t->first[b + 1] += t->first[b];
    uint32_t at[256];
    memcpy(at, t->first, sizeof at);
    for (uint32_t i = 0; i < n; i++) t->by_byte[at[(uint8_t)t->v.bytes[t->v.tok[t->special[i]].piece]]++] = i;
    return KVIST_OK;
}

static kv_status build(kv_tokenizer *t, const source *src, const char *pre, const char *const *merges, size_t n_merges,
                       kv_error *err) {
    if (!src->spm) KV_TRY(kv_pre_create(pre, &t->pre, err));
    KV_TRY(add_tokens(t, src, err));
    if (!src->spm) KV_TRY(kv_bpe_load_merges(t, merges, n_merges, err));
    t->add_bos = src->spm || kv_pre_add_bos(t->pre);
    t->add_space_prefix = src->spm;
    return KVIST_OK;
}

kv_status kv_tokenizer_create_bpe(const char *pre, const char *const *tokens, const int32_t *types, size_t n_tokens,
                                  const char *const *merges, size_t n_merges, kv_tokenizer **out, kv_error *err) {
    *out = NULL;
    kv_tokenizer *t = kv_calloc(1, sizeof *t);
    if (!t) KV_FAIL(err, MEMORY, "no memory for a tokenizer");
    t->bos = t->eos = t->unk = -1;
    source src = {.tokens = tokens, .types = types, .n = n_tokens};
    kv_status status = build(t, &src, pre, merges, n_merges, err);
    if (status == KVIST_OK) status = index_specials(t, err);
    if (status != KVIST_OK) kv_tokenizer_free(&t);
    *out = t;
    return status;
}

/* An id from the metadata; fallback when the key is absent. Ids outside the vocabulary are refused. */
static kv_status token_id(const kv_gguf *g, const char *key, uint32_t n_tokens, int32_t fallback, int32_t *out,
                          kv_error *err) {
    *out = fallback >= 0 && (uint32_t)fallback < n_tokens ? fallback : -1;
    if (!kv_gguf_has(g, key)) return KVIST_OK;
    uint32_t id;
    KV_TRY(kv_gguf_u32(g, key, &id, err));
    if (id == UINT32_MAX) {
        *out = -1;
        return KVIST_OK;
    } /* -1 written unsigned: none */
    if (id >= n_tokens) KV_FAIL(err, FORMAT, "%s: %u is outside the vocabulary of %u tokens", key, id, n_tokens);
    *out = (int32_t)id;
    return KVIST_OK;
}

static kv_status flag(const kv_gguf *g, const char *key, bool *out, kv_error *err) {
    return kv_gguf_has(g, key) ? kv_gguf_bool(g, key, out, err) : KVIST_OK;
}

/* Phi-3's special tokens swallow the white space after them; its GGUFs do not say so, only the name does. */
static kv_status strip_attributes(kv_tokenizer *t, const kv_gguf *g, kv_error *err) {
    const char *name = "";
    size_t len = 0;
    if (kv_gguf_has(g, "general.name")) KV_TRY(kv_gguf_str(g, "general.name", &name, &len, err));
    bool phi3 = false;
    for (size_t i = 0; i + 4 <= len && !phi3; i++) {
        size_t gap = name[i + 3] == '-';
        phi3 = tolower((unsigned char)name[i]) == 'p' && tolower((unsigned char)name[i + 1]) == 'h' &&
               tolower((unsigned char)name[i + 2]) == 'i' && i + 3 + gap < len && name[i + 3 + gap] == '3';
    }
    if (!phi3) return KVIST_OK;
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (uint32_t i = 0; i < t->n_tokens; i++) {
        kv_token *k = &t->v.tok[i];
        if (k->attr & KV_TOK_SPECIAL && !listed(keep, 3, t->v.bytes + k->piece, k->piece_len)) k->attr |= KV_TOK_RSTRIP;
    }
    return KVIST_OK;
}

static kv_status read_lists(const kv_gguf *g, source *src, kv_error *err) {
    size_t n;
    KV_TRY(kv_gguf_str_array(g, "tokenizer.ggml.tokens", &src->tokens, &src->lens, &src->n, err));
    if (kv_gguf_has(g, "tokenizer.ggml.scores")) {
        KV_TRY(kv_gguf_f32_array(g, "tokenizer.ggml.scores", &src->scores, &n, err));
        if (n < src->n) KV_FAIL(err, FORMAT, "tokenizer.ggml.scores: %zu scores for %zu tokens", n, src->n);
    }
    if (kv_gguf_has(g, "tokenizer.ggml.token_type")) {
        KV_TRY(kv_gguf_i32_array(g, "tokenizer.ggml.token_type", &src->types, &n, err));
        if (n < src->n) KV_FAIL(err, FORMAT, "tokenizer.ggml.token_type: %zu types for %zu tokens", n, src->n);
    }
    return KVIST_OK;
}

static kv_status create(kv_tokenizer *t, const kv_gguf *g, kv_error *err) {
    const char *model, *pre = "default";
    KV_TRY(kv_gguf_str(g, "tokenizer.ggml.model", &model, NULL, err));
    source src = {.spm = strcmp(model, "llama") == 0};
    if (!src.spm && strcmp(model, "gpt2") != 0)
        KV_FAIL(err, UNSUPPORTED, "tokenizer.ggml.model '%s' is not supported (known: llama, gpt2)", model);
    KV_TRY(read_lists(g, &src, err));
    const char *const *merges = NULL;
    size_t n_merges = 0;
    if (!src.spm) {
        KV_TRY(kv_gguf_str_array(g, "tokenizer.ggml.merges", &merges, NULL, &n_merges, err));
        if (kv_gguf_has(g, "tokenizer.ggml.pre")) KV_TRY(kv_gguf_str(g, "tokenizer.ggml.pre", &pre, NULL, err));
    }
    KV_TRY(build(t, &src, pre, merges, n_merges, err));
    KV_TRY(token_id(g, "tokenizer.ggml.bos_token_id", t->n_tokens, src.spm ? 1 : -1, &t->bos, err));
    KV_TRY(token_id(g, "tokenizer.ggml.eos_token_id", t->n_tokens, src.spm ? 2 : -1, &t->eos, err));
    KV_TRY(token_id(g, "tokenizer.ggml.unknown_token_id", t->n_tokens, src.spm ? 0 : -1, &t->unk, err));
    KV_TRY(flag(g, "tokenizer.ggml.add_bos_token", &t->add_bos, err));
    KV_TRY(flag(g, "tokenizer.ggml.add_eos_token", &t->add_eos, err));
    if (src.spm) KV_TRY(flag(g, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix, err));
    static const char *const ends[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (int i = 0; i < 2; i++) {
        int32_t id;
        KV_TRY(token_id(g, ends[i], t->n_tokens, -1, &id, err));
        if (id >= 0) t->v.tok[id].attr |= KV_TOK_END;
    }
    if (t->eos >= 0) t->v.tok[t->eos].attr |= KV_TOK_END;
    KV_TRY(index_specials(t, err));
    return strip_attributes(t, g, err);
}

kv_status kv_tokenizer_create(const kv_gguf *g, kv_tokenizer **out, kv_error *err) {
    *out = NULL;
    kv_tokenizer *t = kv_calloc(1, sizeof *t);
    if (!t) KV_FAIL(err, MEMORY, "no memory for a tokenizer");
    kv_status status = create(t, g, err);
    if (status != KVIST_OK) kv_tokenizer_free(&t);
    *out = t;
    return status;
}

void kv_tokenizer_free(kv_tokenizer **tt) {
    kv_tokenizer *t = *tt;
    if (!t) return;
    kv_vocab_free(&t->v);
    kv_pre_free(&t->pre);
    kv_free(t->merges.m);
    kv_free(t->special);
    kv_free(t->by_byte);
    kv_free(t);
    *tt = NULL;
}

size_t kv_tokenizer_size(const kv_tokenizer *t) { return t->n_tokens; }
const char *kv_tokenizer_pre(const kv_tokenizer *t) { return t->pre ? kv_pre_name(t->pre) : "spm"; }
int32_t kv_tokenizer_bos(const kv_tokenizer *t) { return t->bos; }
int32_t kv_tokenizer_eos(const kv_tokenizer *t) { return t->eos; }

static uint32_t attr(const kv_tokenizer *t, int32_t id) {
    return id >= 0 && (uint32_t)id < t->n_tokens ? t->v.tok[id].attr : 0;
}
bool kv_tokenizer_is_end(const kv_tokenizer *t, int32_t id) { return attr(t, id) & KV_TOK_END; }
bool kv_tokenizer_is_special(const kv_tokenizer *t, int32_t id) { return attr(t, id) & KV_TOK_HIDDEN; }

const char *kv_tokenizer_bytes(const kv_tokenizer *t, int32_t id, bool special, size_t *len) {
    uint32_t a = attr(t, id);
    *len = 0;
    if (!a || (a & KV_TOK_HIDDEN && !special)) return "";
    *len = t->v.tok[id].piece_len;
    return t->v.bytes + t->v.tok[id].piece;
}
