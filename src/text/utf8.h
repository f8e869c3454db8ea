/* SPDX-License-Identifier: Apache-2.0 */
/* Whole UTF-8 characters out of token bytes: what reaches a terminal or a JSON line is always valid. */
#ifndef KV_TEXT_UTF8_H
#define KV_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the prefix of s[len] that does not end inside a character (invalid bytes count as whole). */
size_t kv_utf8_complete(const char *s, size_t len);
/* Copies with each byte that starts no valid character as U+FFFD; out has room for 3 * len + 1, terminated. Returns its
 * length. */
size_t kv_utf8_clean(const char *s, size_t len, char *out);

/* A stream of token bytes in, whole characters out. Zero-initialise. */
typedef struct kv_utf8_stream {
    char pending[8];
    uint8_t n;
} kv_utf8_stream;
/* Feeds bytes[len]; writes the characters complete by now (cleaned) to out, room for 3 * (len + 4) + 1. Returns the
 * length. */
size_t kv_utf8_push(kv_utf8_stream *u, const char *bytes, size_t len, char *out);
/* What is left at the end, as U+FFFD; out has room for 16. */
size_t kv_utf8_finish(kv_utf8_stream *u, char *out);

#endif
