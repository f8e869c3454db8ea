/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text as the metrics see it: code points, normalization, words. Character classes are those of Unicode by utf8proc, as
 * Python's str methods have them (the scoring scripts of the benchmarks are Python). Reads any bytes.
 */
#include "measure/metric.h"

#include <string.h>
#include <utf8proc.h>

#include "base/alloc.h"

enum { REPLACEMENT = 0xfffd };

int32_t kv_text_next(const char *s, size_t n, size_t *len) {
    utf8proc_int32_t c;
    /* A character has at most 4 bytes; a length of the type's limits is never passed on. */
    utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)s, n < 4 ? (utf8proc_ssize_t)n : 4, &c);
    if (used <= 0 || c < 0) {
        *len = 1;
        return REPLACEMENT;
    }
    *len = (size_t)used;
    return c;
}

bool kv_text_is_space(int32_t c) {
    if (c < 128) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

bool kv_text_is_digit(int32_t c) {
    if (c < 128) return c >= '0' && c <= '9';
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

bool kv_text_is_word(int32_t c) {
    if (c < 128) return kv_text_is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return true;
    default:
        return false;
    }
}

static bool is_ascii_punctuation(int32_t c) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

/* The list of LongBench's normalization of Chinese answers, by ranges: fullwidth forms, CJK marks, dashes and quotes.
 * It lacks U+300A and U+FF0E, and so does this one. */
static bool is_chinese_punctuation(int32_t c) {
    static const int32_t one[] = {0x3001, 0x3002, 0x3003, 0x2013, 0x2014, 0x2018, 0x2019, 0x201b, 0x201c,
                                  0x201d, 0x201e, 0x201f, 0x2026, 0x2027, 0xfe4f, 0x3030, 0x303e, 0x303f};
    for (size_t i = 0; i < sizeof one / sizeof *one; i++)
        if (c == one[i]) return true;
    return (c >= 0xff01 && c <= 0xff0f && c != 0xff0e) || (c >= 0xff1a && c <= 0xff20) ||
           (c >= 0xff3b && c <= 0xff40) || (c >= 0xff5b && c <= 0xff64) || (c >= 0x300b && c <= 0x3011) ||
           (c >= 0x3014 && c <= 0x301f);
}

/* Appends the lower case of the character s[0..len); an invalid byte stays. A lower case letter is at most one byte
 * longer than its capital of two: hence the callers' 2 len. */
static size_t put_lower(const char *s, size_t len, int32_t c, char *out) {
    if (c == REPLACEMENT) {
        memcpy(out, s, len);
        return len;
    }
    utf8proc_ssize_t n = utf8proc_encode_char(utf8proc_tolower(c), (utf8proc_uint8_t *)out);
    return n > 0 ? (size_t)n : 0;
}

static size_t lower_without(const char *s, size_t len, bool chinese, char *out) {
    size_t at = 0;
    for (size_t i = 0, n; i < len; i += n) {
        int32_t c = kv_text_next(s + i, len - i, &n);
        if (is_ascii_punctuation(c) || (chinese && is_chinese_punctuation(c))) continue;
        at += put_lower(s + i, n, c, out + at);
    }
    out[at] = 0;
    return at;
}

static bool is_article(const char *s, size_t n) {
    return (n == 1 && s[0] == 'a') || (n == 2 && !memcmp(s, "an", 2)) || (n == 3 && !memcmp(s, "the", 3));
}

size_t kv_text_normalize(const char *s, size_t len, char *out) {
    size_t n = lower_without(s, len, false, out);
    for (size_t i = 0, used; i < n; i += used) {
        if (!kv_text_is_word(kv_text_next(out + i, n - i, &used))) continue;
        size_t end = i + used, more;
        while (end < n && kv_text_is_word(kv_text_next(out + end, n - end, &more))) end += more;
        if (is_article(out + i, end - i)) memset(out + i, ' ', end - i);
        used = end - i;
    }
    return n;
}

size_t kv_text_normalize_zh(const char *s, size_t len, char *out) { return lower_without(s, len, true, out); }

bool kv_text_split(const char *s, size_t len, kv_words *out) {
    *out = (kv_words){0};
    size_t cap = 0;
    for (size_t i = 0, n; i < len;) {
        while (i < len && kv_text_is_space(kv_text_next(s + i, len - i, &n))) i += n;
        size_t from = i;
        while (i < len && !kv_text_is_space(kv_text_next(s + i, len - i, &n))) i += n;
        if (i == from) break;
        if (out->n == cap) {
            cap = cap ? 2 * cap : 64;
            kv_span *more = kv_realloc(out->w, cap * sizeof *more);
            if (!more) {
                kv_free(out->w);
                *out = (kv_words){0};
                return false;
            }
            out->w = more;
        }
        out->w[out->n++] = (kv_span){s + from, i - from};
    }
    return true;
}

static bool latin(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }
static bool figure(char c) { return c >= '0' && c <= '9'; }

size_t kv_text_segment_zh(const char *s, size_t len, char *out) {
    size_t at = 0;
    for (size_t i = 0, n; i < len; i += n) {
        if (latin(s[i])) {
            size_t end = i;
            while (end < len && latin(s[end])) end++;
            if (end + 1 < len && s[end] == '.' && figure(s[end + 1]))
                for (end++; end < len && figure(s[end]);) end++;
            if (end < len && s[end] == '%') end++;
            n = end - i;
        } else if (kv_text_is_space(kv_text_next(s + i, len - i, &n))) {
            continue;
        }
        memcpy(out + at, s + i, n);
        at += n;
        out[at++] = ' ';
    }
    out[at] = 0;
    return at;
}
