/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE: a word's bytes are joined by the rank of the merge list. Knows GPT-2's printable alphabet, in which
 * vocabularies and merges are written; text itself is never converted into it.
 * Invariant: no byte of the input is lost: a symbol that is no token is written out as its byte tokens (a byte that the
 * vocabulary lacks as U+FFFD or the unknown token).
 */
#include "text/vocab.h"

#include "base/alloc.h"
#include "base/hash.h"

#include <string.h>

/* Printable bytes stand for themselves; the 68 others, in ascending order, for U+0100.. */
int kv_bpe_byte_of(uint32_t cp) {
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff)) return (int)cp;
    if (cp < 0x100 || cp >= 0x144) return -1;
    uint32_t i = cp - 0x100;
    if (i < 0x21) return (int)i;                        /* 0x00..0x20 */
    if (i < 0x21 + 0x22) return (int)(i - 0x21 + 0x7f); /* 0x7f..0xa0 */
    return 0xad;
}

bool kv_bpe_decode(const char *text, size_t len, char *out, size_t *out_len) {
    bool all = true;
    size_t n = 0, step;
    for (size_t i = 0; i < len; i += step) {
        int ok = kv_utf8_next(text + i, len - i, &step);
        int byte = -1;
        if (ok == 1 && step == 1) byte = kv_bpe_byte_of((uint8_t)text[i]);
        if (ok == 1 && step == 2)
            byte = kv_bpe_byte_of(((uint32_t)text[i] & 0x1f) << 6 | ((uint32_t)text[i + 1] & 0x3f));
        if (byte >= 0) {
            out[n++] = (char)byte;
        } else {
            all = false;
            memcpy(out + n, text + i, step);
            n += step;
        }
    }
    *out_len = n;
    return all;
}

static size_t merge_slot(const kv_merges *m, uint64_t key) {
    size_t at = (size_t)kv_mix64(key) & (m->n_slot - 1);
    while (m->m[at].key != key && m->m[at].key != UINT64_MAX) at = (at + 1) & (m->n_slot - 1);
    return at;
}

static uint32_t bpe_pair(const kv_tokenizer *t, const char *text, const kv_symbol *a, const kv_symbol *b,
                         uint32_t *id) {
    const struct kv_merge *m = &t->merges.m[merge_slot(&t->merges, (uint64_t)a->id << 32 | b->id)];
    if (m->key == UINT64_MAX) return UINT32_MAX;
    *id = m->symbol;
    return m->rank;
}

static kv_status add_merge(kv_tokenizer *t, const char *text, uint32_t rank, char *raw, kv_error *err) {
    size_t len = strlen(text), n1, n2;
    const char *gap = len ? memchr(text + 1, ' ', len - 1) : NULL; /* from 1: a side is never empty */
    if (!gap || gap + 1 == text + len)
        KV_FAIL(err, FORMAT, "tokenizer.ggml.merges[%u] is not two parts with a space between", rank);
    uint32_t left, right, both;
    if (!kv_bpe_decode(text, (size_t)(gap - text), raw, &n1)) return KVIST_OK; /* can never occur in a text */
    if (!kv_bpe_decode(gap + 1, (size_t)(text + len - gap - 1), raw + n1, &n2)) return KVIST_OK;
    KV_TRY(kv_vocab_intern(&t->v, raw, n1, &left, err));
    KV_TRY(kv_vocab_intern(&t->v, raw + n1, n2, &right, err));
    KV_TRY(kv_vocab_intern(&t->v, raw, n1 + n2, &both, err));
    uint64_t key = (uint64_t)left << 32 | right;
    size_t at = merge_slot(&t->merges, key);
    if (t->merges.m[at].key == UINT64_MAX)
        t->merges.m[at] = (struct kv_merge){key, rank, both}; /* the first rank wins */
    return KVIST_OK;
}

kv_status kv_bpe_load_merges(kv_tokenizer *t, const char *const *merges, size_t n, kv_error *err) {
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        KV_TRY(kv_vocab_intern(&t->v, &c, 1, &t->byte_symbol[b], err));
        t->byte_id[b] = t->byte_symbol[b] < t->n_tokens ? (int32_t)t->byte_symbol[b] : -1;
    }
    if (n >= UINT32_MAX) KV_FAIL(err, FORMAT, "tokenizer.ggml.merges: %zu merges", n);
    size_t slots = 16, longest = 1;
    while (slots < 2 * n + 2) slots *= 2;
    t->merges.m = kv_malloc(slots * sizeof *t->merges.m);
    if (!t->merges.m) KV_FAIL(err, MEMORY, "tokenizer: no memory for %zu merges", n);
    t->merges.n_slot = slots;
    for (size_t i = 0; i < slots; i++) t->merges.m[i].key = UINT64_MAX;
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(merges[i]);
        if (len > longest) longest = len;
    }
    char *raw = kv_malloc(longest);
    if (!raw) KV_FAIL(err, MEMORY, "tokenizer: no memory for merges");
    kv_status status = KVIST_OK;
    for (size_t i = 0; i < n && status == KVIST_OK; i++) status = add_merge(t, merges[i], (uint32_t)i, raw, err);
    kv_free(raw);
    return status;
}

kv_status kv_bpe_word(kv_encoder *e, const char *text, size_t len) {
    const kv_tokenizer *t = e->t;
    if (kv_pre_ignore_merges(t->pre)) {
        uint32_t id = kv_vocab_find(&t->v, text, len);
        if (id < t->n_tokens) {
            kv_encoder_emit(e, (int32_t)id);
            return KVIST_OK;
        }
    }
    KV_TRY(kv_encoder_reserve(e, (void **)&e->sym, &e->cap_sym, len * sizeof *e->sym));
    for (size_t i = 0; i < len; i++) e->sym[i] = (kv_symbol){t->byte_symbol[(uint8_t)text[i]], (uint32_t)i, 1};
    size_t n;
    KV_TRY(kv_text_merge(e, text, len, bpe_pair, &n));
    for (size_t i = 0; i < n; i++) {
        const kv_symbol *s = &e->sym[i];
        if (s->id < t->n_tokens) {
            kv_encoder_emit(e, (int32_t)s->id);
            continue;
        }
        for (uint32_t j = 0; j < s->len; j++) KV_TRY(kv_encoder_emit_byte(e, (uint8_t)text[s->start + j]));
    }
    return KVIST_OK;
}

/* Runs of valid UTF-8 go through the pattern; each byte outside is a word of its own, kept as it is. */
kv_status kv_bpe_encode(kv_encoder *e, const char *text, size_t len) {
    size_t start = 0, i = 0, step;
    while (i < len) {
        if (kv_utf8_next(text + i, len - i, &step) == 1) {
            i += step;
            continue;
        }
        if (i > start) KV_TRY(kv_pre_split(e->t->pre, e, text + start, i - start));
        KV_TRY(kv_bpe_word(e, text + i, 1));
        start = ++i;
    }
    return i > start ? kv_pre_split(e->t->pre, e, text + start, i - start) : KVIST_OK;
}
