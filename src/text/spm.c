/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SPM (SentencePiece as llama models use it): spaces become U+2581, characters are joined by token score, what is no
 * token becomes byte tokens <0xNN>.
 */
#include "text/vocab.h"

#include <string.h>

#define SPACE "\xe2\x96\x81" /* U+2581 */

/* Higher score first, as an ascending unsigned key. Scores are never NaN (creation replaces it) nor -0. */
static uint32_t score_key(float score) {
    uint32_t u;
    memcpy(&u, &score, 4);
    return u & 0x80000000u ? u : ~(u | 0x80000000u);
}

static uint32_t spm_pair(const kv_tokenizer *t, const char *text, const kv_symbol *a, const kv_symbol *b,
                         uint32_t *id) {
    *id = kv_vocab_find(&t->v, text + a->start, (size_t)a->len + b->len);
    return *id == KV_NO_SYMBOL ? UINT32_MAX : score_key(t->v.tok[*id].score);
}

static kv_status encode_word(kv_encoder *e, const char *text, size_t len) {
    KV_TRY(kv_encoder_reserve(e, (void **)&e->sym, &e->cap_sym, len * sizeof *e->sym));
    size_t n = 0, step;
    for (size_t i = 0; i < len; i += step) {
        if (kv_utf8_next(text + i, len - i, &step) != 1) step = 1; /* an invalid byte stands alone */
        e->sym[n++] = (kv_symbol){KV_NO_SYMBOL, (uint32_t)i, (uint32_t)step};
    }
    KV_TRY(kv_text_merge(e, text, n, spm_pair, &n));
    for (size_t i = 0; i < n; i++) {
        const kv_symbol *s = &e->sym[i];
        uint32_t id = s->id != KV_NO_SYMBOL ? s->id : kv_vocab_find(&e->t->v, text + s->start, s->len);
        if (id != KV_NO_SYMBOL) {
            kv_encoder_emit(e, (int32_t)id);
            continue;
        }
        for (uint32_t j = 0; j < s->len; j++) KV_TRY(kv_encoder_emit_byte(e, (uint8_t)text[s->start + j]));
    }
    return KVIST_OK;
}

kv_status kv_spm_encode(kv_encoder *e, const char *text, size_t len, bool prefix) {
    KV_TRY(kv_encoder_reserve(e, (void **)&e->buf, &e->cap_buf, 3 * (len + 1)));
    char *buf = e->buf;
    size_t n = 0;
    if (prefix) {
        memcpy(buf, SPACE, 3);
        n = 3;
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ') {
            memcpy(buf + n, SPACE, 3);
            n += 3;
        } else
            buf[n++] = text[i];
    }
    if (!e->t->spm_words) return n ? encode_word(e, buf, n) : KVIST_OK;
    /* No token spans a space after another character, so each run of spaces with what follows is on its own. */
    for (size_t start = 0, i; start < n; start = i) {
        i = start;
        while (n - i >= 3 && memcmp(buf + i, SPACE, 3) == 0) i += 3;
        if (i == start) i++;
        while (i < n && !(n - i >= 3 && buf[i] == SPACE[0] && memcmp(buf + i, SPACE, 3) == 0)) i++;
        KV_TRY(encode_word(e, buf + start, i - start));
    }
    return KVIST_OK;
}
