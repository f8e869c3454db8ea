/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens to text, one at a time: whole UTF-8 characters only.
 * Invariant: pending is a proper prefix (at most 3 bytes) of some character; what comes out is always valid UTF-8.
 */
#include "text/vocab.h"

#include "base/alloc.h"

#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Every byte of the longest token and of what was pending may become a three-byte replacement. */
static size_t needed(const kv_tokenizer *t) { return 3 * (t->max_piece + sizeof((kv_detok *)0)->pending); }

void kv_detok_init(kv_detok *d, const kv_tokenizer *t, bool special) {
    *d = (kv_detok){.t = t, .special = special};
    d->buf = kv_malloc(needed(t)); /* here, so that the token loop does not allocate; a failure is reported by push */
    if (d->buf) d->cap = needed(t);
}

kv_status kv_detok_push(kv_detok *d, int32_t id, const char **out, size_t *len, kv_error *err) {
    *out = "";
    *len = 0;
    if (id < 0 || (uint32_t)id >= d->t->n_tokens)
        KV_FAIL(err, ARG, "token %d is outside the vocabulary of %u", id, d->t->n_tokens);
    if (d->cap < needed(d->t)) {
        char *buf = kv_realloc(d->buf, needed(d->t));
        if (!buf) KV_FAIL(err, MEMORY, "no memory for the detokenizer");
        d->buf = buf;
        d->cap = needed(d->t);
    }
    size_t n;
    const char *s = kv_tokenizer_bytes(d->t, id, d->special, &n);
    if (n && !d->started) {
        d->started = true;
        if (d->t->add_space_prefix && *s == ' ') {
            s++;
            n--;
        }
    }
    /* The piece after what is pending, both at the end of buf: written text never overtakes them, since a replacement
     * (3 bytes) has its room in front: 2 bytes for each one read. */
    size_t total = d->n_pending + n, w = 0;
    char *in = d->buf + d->cap - total;
    memcpy(in, d->pending, d->n_pending);
    if (n) memcpy(in + d->n_pending, s, n);
    d->n_pending = 0;
    for (size_t i = 0, step; i < total; i += step) {
        int kind = kv_utf8_next(in + i, total - i, &step);
        if (kind == 0) {
            d->n_pending = (uint8_t)step;
            memcpy(d->pending, in + i, step);
        } else {
            memmove(d->buf + w, kind > 0 ? in + i : REPLACEMENT, kind > 0 ? step : 3);
            w += kind > 0 ? step : 3;
        }
    }
    *out = d->buf;
    *len = w;
    return KVIST_OK;
}

void kv_detok_finish(kv_detok *d, const char **out, size_t *len) {
    *out = d->n_pending ? REPLACEMENT : "";
    *len = d->n_pending ? 3 : 0;
    d->n_pending = 0;
}

void kv_detok_free(kv_detok *d) {
    kv_free(d->buf);
    d->buf = NULL;
    d->cap = 0;
}
