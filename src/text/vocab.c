/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vocabulary's storage: one growing byte array, one array of tokens and symbols, one hash from text to id.
 * Must not know: what texts mean. Invariant: every indexed id's text lies inside bytes; slots are at most half full.
 */
#include "text/vocab.h"

#include "base/alloc.h"
#include "base/hash.h"

#include <string.h>

static kv_status grow(void **p, size_t *cap, size_t need, size_t item, kv_error *err) {
    if (need <= *cap) return KVIST_OK;
    size_t n = *cap ? *cap : 64;
    while (n < need) n += n / 2 + 1;
    if (n > SIZE_MAX / item) KV_FAIL(err, MEMORY, "tokenizer: vocabulary too large");
    void *q = kv_realloc(*p, n * item);
    if (!q) KV_FAIL(err, MEMORY, "tokenizer: no memory for %zu bytes", n * item);
    *p = q;
    *cap = n;
    return KVIST_OK;
}

static kv_status rehash(kv_vocab *v, size_t n_slot, kv_error *err) {
    struct kv_slot *slot = kv_malloc(n_slot * sizeof *slot);
    if (!slot) KV_FAIL(err, MEMORY, "tokenizer: no memory for the vocabulary index");
    for (size_t i = 0; i < n_slot; i++) slot[i] = (struct kv_slot){0, KV_NO_SYMBOL};
    for (size_t i = 0; i < v->n_slot; i++) {
        if (v->slot[i].id == KV_NO_SYMBOL) continue;
        const kv_token *k = &v->tok[v->slot[i].id];
        size_t at = (size_t)kv_hash64(v->bytes + k->text, k->text_len, 0) & (n_slot - 1);
        while (slot[at].id != KV_NO_SYMBOL) at = (at + 1) & (n_slot - 1);
        slot[at] = v->slot[i];
    }
    kv_free(v->slot);
    v->slot = slot;
    v->n_slot = n_slot;
    return KVIST_OK;
}

kv_status kv_vocab_init(kv_vocab *v, size_t n_tokens, size_t n_bytes, kv_error *err) {
    *v = (kv_vocab){0};
    KV_TRY(grow((void **)&v->bytes, &v->cap_bytes, n_bytes + 1, 1, err));
    KV_TRY(grow((void **)&v->tok, &v->cap_tok, n_tokens + 1, sizeof *v->tok, err));
    size_t n = 1024;
    while (n < 2 * n_tokens + 2) n *= 2;
    return rehash(v, n, err);
}

void kv_vocab_free(kv_vocab *v) {
    kv_free(v->bytes);
    kv_free(v->tok);
    kv_free(v->slot);
    *v = (kv_vocab){0};
}

kv_status kv_vocab_append(kv_vocab *v, const char *s, size_t len, uint32_t *off, kv_error *err) {
    if (len > UINT32_MAX - 1 || v->n_bytes > UINT32_MAX - 1 - len)
        KV_FAIL(err, FORMAT, "tokenizer: token texts exceed 4 GiB");
    KV_TRY(grow((void **)&v->bytes, &v->cap_bytes, v->n_bytes + len, 1, err));
    if (len) memcpy(v->bytes + v->n_bytes, s, len);
    *off = (uint32_t)v->n_bytes;
    v->n_bytes += len;
    return KVIST_OK;
}

/* The slot that holds s, or the free one where it belongs. */
static size_t probe(const kv_vocab *v, const char *s, size_t len, uint64_t hash) {
    uint32_t tag = (uint32_t)(hash >> 32);
    size_t at = (size_t)hash & (v->n_slot - 1);
    for (;; at = (at + 1) & (v->n_slot - 1)) {
        const struct kv_slot *slot = &v->slot[at];
        if (slot->id == KV_NO_SYMBOL) return at;
        if (slot->tag != tag) continue;
        const kv_token *k = &v->tok[slot->id];
        if (k->text_len == len && memcmp(v->bytes + k->text, s, len) == 0) return at;
    }
}

kv_status kv_vocab_index(kv_vocab *v, uint32_t id, kv_error *err) {
    if (v->used * 2 >= v->n_slot) KV_TRY(rehash(v, v->n_slot * 2, err));
    const kv_token *k = &v->tok[id];
    uint64_t hash = kv_hash64(v->bytes + k->text, k->text_len, 0);
    size_t at = probe(v, v->bytes + k->text, k->text_len, hash);
    if (v->slot[at].id != KV_NO_SYMBOL) return KVIST_OK;
    v->slot[at] = (struct kv_slot){(uint32_t)(hash >> 32), id};
    v->used++;
    return KVIST_OK;
}

uint32_t kv_vocab_find(const kv_vocab *v, const char *s, size_t len) {
    return v->slot[probe(v, s, len, kv_hash64(s, len, 0))].id;
}

kv_status kv_vocab_intern(kv_vocab *v, const char *s, size_t len, uint32_t *id, kv_error *err) {
    *id = kv_vocab_find(v, s, len);
    if (*id != KV_NO_SYMBOL) return KVIST_OK;
    if (v->n_tok >= KV_NO_SYMBOL) KV_FAIL(err, FORMAT, "tokenizer: too many symbols");
    KV_TRY(grow((void **)&v->tok, &v->cap_tok, v->n_tok + 1, sizeof *v->tok, err));
    kv_token k = {.text_len = (uint32_t)len, .piece_len = (uint32_t)len};
    KV_TRY(kv_vocab_append(v, s, len, &k.text, err));
    k.piece = k.text;
    *id = (uint32_t)v->n_tok;
    v->tok[v->n_tok++] = k;
    return kv_vocab_index(v, *id, err);
}
