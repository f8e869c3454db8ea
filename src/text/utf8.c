/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 by the table of Unicode 15 section 3.9 (no surrogates, no overlong forms, nothing past U+10FFFF). */
#include "text/utf8.h"

#include <string.h>

/* Length of the character s[0..len) starts with; 0: starts none; -k: a valid beginning of a k-byte character that is
 * cut off. */
static int scan(const unsigned char *s, size_t len) {
    if (s[0] < 0x80) return 1;
    int need = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    if (!need) return 0;
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= len) return -need;
        unsigned char lo = 0x80, hi = 0xbf;
        if (i == 1) {
            if (s[0] == 0xe0) lo = 0xa0;
            if (s[0] == 0xed) hi = 0x9f;
            if (s[0] == 0xf0) lo = 0x90;
            if (s[0] == 0xf4) hi = 0x8f;
        }
        if (s[i] < lo || s[i] > hi) return 0;
    }
    return need;
}

size_t kv_utf8_complete(const char *s, size_t len) {
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        const unsigned char *p = (const unsigned char *)s + len - back;
        if ((*p & 0xc0) == 0x80) continue;
        return scan(p, back) < 0 ? len - back : len;
    }
    return len;
}

size_t kv_utf8_clean(const char *s, size_t len, char *out) {
    size_t at = 0;
    for (size_t i = 0; i < len;) {
        int n = scan((const unsigned char *)s + i, len - i);
        if (n > 0) {
            memcpy(out + at, s + i, (size_t)n);
            at += (size_t)n;
            i += (size_t)n;
        } else {
            memcpy(out + at, "\xef\xbf\xbd", 3);
            at += 3;
            i++;
        }
    }
    out[at] = 0;
    return at;
}

size_t kv_utf8_push(kv_utf8_stream *u, const char *bytes, size_t len, char *out) {
    size_t at = 0;
    /* Complete what is pending byte by byte (at most three), then the rest in one go. */
    while (u->n && len) {
        u->pending[u->n++] = *bytes++;
        len--;
        if (scan((const unsigned char *)u->pending, u->n) < 0) continue;
        size_t whole = kv_utf8_complete(u->pending, u->n);
        at += kv_utf8_clean(u->pending, whole, out + at);
        memmove(u->pending, u->pending + whole, u->n - whole);
        u->n = (uint8_t)(u->n - whole);
    }
    size_t whole = kv_utf8_complete(bytes, len);
    at += kv_utf8_clean(bytes, whole, out + at);
    if (len > whole) {
        memcpy(u->pending, bytes + whole, len - whole);
        u->n = (uint8_t)(len - whole);
    }
    out[at] = 0;
    return at;
}

size_t kv_utf8_finish(kv_utf8_stream *u, char *out) {
    size_t n = kv_utf8_clean(u->pending, u->n, out);
    u->n = 0;
    return n;
}
