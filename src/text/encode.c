/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One encode call: special tokens are found in the raw text first, what lies between goes to SPM or BPE.
 * Special tokens are taken longest first over the whole text (not leftmost first): a shorter one never breaks up a
 * longer one, wherever it starts. Must not know: how the rest is tokenized.
 */
#include "text/vocab.h"

#include "base/alloc.h"

#include <string.h>

kv_status kv_encoder_reserve(kv_encoder *e, void **p, size_t *cap, size_t size) {
    if (size <= *cap) return KVIST_OK;
    size_t n = size + size / 2;
    void *q = kv_realloc(*p, n);
    if (!q) KV_FAIL(e->err, MEMORY, "no memory to tokenize (%zu bytes)", n);
    *p = q;
    *cap = n;
    return KVIST_OK;
}

/* Some vocabularies (SmolLM2's) lack bytes that valid text hardly has. Their metadata may name a control token such as
 * <|endoftext|> as unknown token, which would end the text here: U+FFFD stands in then. */
kv_status kv_encoder_emit_byte(kv_encoder *e, uint8_t byte) {
    const kv_tokenizer *t = e->t;
    if (t->byte_id[byte] >= 0) {
        kv_encoder_emit(e, t->byte_id[byte]);
    } else if (t->unk >= 0 && t->v.tok[t->unk].attr & KV_TOK_UNKNOWN) {
        kv_encoder_emit(e, t->unk);
    } else if (t->byte_id[0xef] >= 0 && t->byte_id[0xbf] >= 0 && t->byte_id[0xbd] >= 0) {
        kv_encoder_emit(e, t->byte_id[0xef]);
        kv_encoder_emit(e, t->byte_id[0xbf]);
        kv_encoder_emit(e, t->byte_id[0xbd]);
    } else {
        KV_FAIL(e->err, UNSUPPORTED, "the vocabulary has no token for byte 0x%02x and no unknown token", byte);
    }
    return KVIST_OK;
}

typedef struct piece {
    size_t start, len;
    int32_t id;
} piece; /* id -1: text still to be tokenized */
typedef struct pieces {
    piece *p;
    size_t n, cap;
} pieces;

static kv_status add(kv_encoder *e, pieces *list, piece x) {
    if (list->n == list->cap) {
        size_t bytes = list->cap * sizeof *list->p;
        KV_TRY(kv_encoder_reserve(e, (void **)&list->p, &bytes, (list->n + 16) * sizeof *list->p));
        list->cap = bytes / sizeof *list->p;
    }
    list->p[list->n++] = x;
    return KVIST_OK;
}

static bool white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Marks in present[] which special tokens occur at all, so that the passes below run only for those. */
static bool mark_present(const kv_tokenizer *t, const char *text, size_t len, bool parse_special, uint8_t *present) {
    bool any = false;
    for (size_t i = 0; i < len; i++) {
        uint32_t b = (uint8_t)text[i];
        for (uint32_t j = t->first[b]; j < t->first[b + 1]; j++) {
            const kv_token *k = &t->v.tok[t->special[t->by_byte[j]]];
            if (present[t->by_byte[j]] || k->piece_len > len - i) continue;
            if (!parse_special && k->attr & KV_TOK_HIDDEN) continue;
            if (memcmp(t->v.bytes + k->piece, text + i, k->piece_len) != 0) continue;
            present[t->by_byte[j]] = 1;
            any = true;
        }
    }
    return any;
}

/* Cuts one text piece at every occurrence of special token id. */
static kv_status cut(kv_encoder *e, const char *text, piece x, uint32_t id, pieces *to) {
    const kv_token *k = &e->t->v.tok[id];
    const char *word = e->t->v.bytes + k->piece;
    for (;;) {
        const char *hit = memmem(text + x.start, x.len, word, k->piece_len);
        if (!hit) break;
        size_t before = (size_t)(hit - (text + x.start));
        if (before) KV_TRY(add(e, to, (piece){x.start, before, -1}));
        KV_TRY(add(e, to, (piece){x.start + before, k->piece_len, (int32_t)id}));
        x.start += before + k->piece_len;
        x.len -= before + k->piece_len;
        for (; k->attr & KV_TOK_RSTRIP && x.len && white(text[x.start]); x.start++) x.len--;
    }
    return x.len ? add(e, to, x) : KVIST_OK;
}

static kv_status find_specials(kv_encoder *e, const char *text, size_t len, bool parse_special, pieces *list,
                               pieces *spare) {
    KV_TRY(add(e, list, (piece){0, len, -1}));
    const kv_tokenizer *t = e->t;
    if (!t->n_special) return KVIST_OK;
    uint8_t *present = kv_calloc(t->n_special, 1);
    if (!present) KV_FAIL(e->err, MEMORY, "no memory to tokenize");
    kv_status status = KVIST_OK;
    if (mark_present(t, text, len, parse_special, present)) {
        for (size_t s = 0; s < t->n_special && status == KVIST_OK; s++) {
            if (!present[s]) continue;
            spare->n = 0;
            for (size_t i = 0; i < list->n && status == KVIST_OK; i++)
                status = list->p[i].id < 0 ? cut(e, text, list->p[i], t->special[s], spare) : add(e, spare, list->p[i]);
            pieces swap = *list;
            *list = *spare;
            *spare = swap;
        }
    }
    kv_free(present);
    return status;
}

static kv_status encode_pieces(kv_encoder *e, const char *text, const pieces *list) {
    bool after_special = true; /* SPM puts a space before the first text and after each special token */
    for (size_t i = 0; i < list->n; i++) {
        const piece *x = &list->p[i];
        if (x->id >= 0) {
            kv_encoder_emit(e, x->id);
            after_special = true;
            continue;
        }
        if (e->t->pre)
            KV_TRY(kv_bpe_encode(e, text + x->start, x->len));
        else
            KV_TRY(kv_spm_encode(e, text + x->start, x->len, e->t->add_space_prefix && after_special));
        after_special = false;
    }
    return KVIST_OK;
}

kv_status kv_tokenizer_encode(const kv_tokenizer *t, const char *text, size_t len, bool add_special, bool parse_special,
                              int32_t *ids, size_t cap, size_t *n, kv_error *err) {
    *n = 0;
    /* Offsets inside a piece are 32 bits and SPM triples a space. */
    if (len > UINT32_MAX / 4) KV_FAIL(err, ARG, "text of %zu bytes is too long to tokenize at once", len);
    kv_encoder e = {.t = t, .ids = ids, .cap = cap, .err = err};
    pieces list = {0}, spare = {0};
    kv_status status = KVIST_OK;
    if (add_special && t->add_bos && t->bos >= 0) kv_encoder_emit(&e, t->bos);
    if (len) {
        status = find_specials(&e, text, len, parse_special, &list, &spare);
        if (status == KVIST_OK) status = encode_pieces(&e, text, &list);
    }
    if (add_special && t->add_eos && t->eos >= 0) kv_encoder_emit(&e, t->eos);
    if (status == KVIST_OK) *n = e.n;
    kv_free(list.p);
    kv_free(spare.p);
    kv_free(e.sym);
    kv_free(e.work);
    kv_free(e.buf);
    if (e.match) kv_pre_free_match(e.match);
    return status;
}
