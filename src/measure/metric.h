/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the metrics: text as code points and words. Pure functions over byte strings that may hold
 * anything; an invalid byte counts as one code point U+FFFD. Must not know: samples, tasks.
 */
#ifndef KV_MEASURE_METRIC_H
#define KV_MEASURE_METRIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A piece of a text. */
typedef struct kv_span {
    const char *s;
    size_t n;
} kv_span;

typedef struct kv_words {
    kv_span *w; /* [n]; kv_free */
    size_t n;
} kv_words;

/* Code point at s[0..n), n >= 1; its length in bytes in *len. */
int32_t kv_text_next(const char *s, size_t n, size_t *len);
bool kv_text_is_space(int32_t c); /* what Python's str.split() splits at */
bool kv_text_is_word(int32_t c);  /* letters and numbers of any script, and _ */
bool kv_text_is_digit(int32_t c); /* decimal digits of any script */

/* SQuAD: lower case, no ASCII punctuation, no articles. out[2 len + 1]; returns its length. */
size_t kv_text_normalize(const char *s, size_t len, char *out);
/* Words of s[0..len) between white space. false: out of memory. */
bool kv_text_split(const char *s, size_t len, kv_words *out);
/* Chinese text with a blank after each unit: a Latin word or number with its decimals and percent sign is one unit,
 * every other code point one; white space is dropped. out[2 len + 1]; returns its length. */
size_t kv_text_segment_zh(const char *s, size_t len, char *out);
/* Lower case, no ASCII and no Chinese punctuation. out[2 len + 1]; returns its length. */
size_t kv_text_normalize_zh(const char *s, size_t len, char *out);

/* 2 P R / (P + R) over words as multisets; 0 when none is shared. < 0: out of memory. */
double kv_words_f1(const kv_words *a, const kv_words *b);
/* ROUGE-L of the Python package `rouge` 1.0 (Lin 2004, section 3.2, union LCS): sentences end at '.', words are counted
 * once each. Sentences of more than 4,096 words are cut there. < 0: out of memory. */
double kv_rouge_l(const char *answer, size_t answer_len, const char *reference, size_t reference_len);
/* 2 M / T, M the code points in the matching blocks that Python's difflib.SequenceMatcher finds (longest block first,
 * then to its left and right; code points that make up more than 1 % of a reference of 200 and more start no block).
 * Texts are cut at 1,024 code points. < 0: out of memory. */
double kv_text_ratio(const char *a, size_t a_len, const char *b, size_t b_len);

#endif
