/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics that compare sequences: shared words, longest common subsequences, matching blocks. Times and memory are
 * bounded for any input by the caps below, which no answer and no reference of the benchmarks reaches.
 */
#include "measure/metric.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

enum { SENTENCE_WORDS_MAX = 4096, RATIO_CHARS_MAX = 1024 };

static int span_order(const void *a, const void *b) {
    const kv_span *x = a, *y = b;
    size_t n = x->n < y->n ? x->n : y->n;
    int d = n ? memcmp(x->s, y->s, n) : 0;
    if (d) return d;
    return x->n < y->n ? -1 : x->n > y->n;
}

static kv_span *sorted_copy(const kv_span *w, size_t n) {
    kv_span *c = kv_malloc(n * sizeof *c);
    if (!c) return NULL;
    if (n) memcpy(c, w, n * sizeof *c);
    qsort(c, n, sizeof *c, span_order);
    return c;
}

double kv_words_f1(const kv_words *a, const kv_words *b) {
    kv_span *x = sorted_copy(a->w, a->n), *y = sorted_copy(b->w, b->n);
    double f = -1;
    if (x && y) {
        size_t same = 0;
        for (size_t i = 0, j = 0; i < a->n && j < b->n;) {
            int d = span_order(x + i, y + j);
            same += d == 0;
            i += d <= 0;
            j += d >= 0;
        }
        /* P = same / |a|, R = same / |b| */
        f = same ? 2.0 * (double)same / (double)(a->n + b->n) : 0;
    }
    kv_free(x);
    kv_free(y);
    return f;
}

/* Words of a text as numbers, sentence by sentence. */
typedef struct sentences {
    kv_span *words; /* [n]; an empty one stands for a sentence of white space only, as in the package */
    uint32_t *id;   /* [n] equal words, equal numbers */
    size_t n;
    size_t *end; /* [n_sentences] in words */
    size_t n_sentences;
} sentences;

static void sentences_free(sentences *s) {
    kv_free(s->words);
    kv_free(s->id);
    kv_free(s->end);
}

static bool sentences_make(const char *text, size_t len, sentences *s) {
    *s = (sentences){0};
    /* At most a word every two bytes, at most one of white space a sentence. */
    s->words = kv_malloc((len + 1) * sizeof *s->words);
    s->id = kv_malloc((len + 1) * sizeof *s->id);
    s->end = kv_malloc((len + 1) * sizeof *s->end);
    if (!s->words || !s->id || !s->end) return false;
    for (size_t from = 0, to; from < len; from = to + 1) {
        const char *dot = memchr(text + from, '.', len - from);
        to = dot ? (size_t)(dot - text) : len;
        if (to == from) continue;
        kv_words w;
        if (!kv_text_split(text + from, to - from, &w)) return false;
        if (w.n)
            memcpy(s->words + s->n, w.w, w.n * sizeof *w.w);
        else
            s->words[s->n] = (kv_span){text + from, 0};
        s->n += w.n ? w.n : 1;
        s->end[s->n_sentences++] = s->n;
        kv_free(w.w);
    }
    return true;
}

/* Numbers the words of both; returns how many different ones there are, SIZE_MAX when out of memory. */
static size_t number_words(sentences *a, sentences *b) {
    size_t n = a->n + b->n, distinct = 0;
    kv_span *all = kv_malloc(n * sizeof *all);
    if (!all) return SIZE_MAX;
    if (a->n) memcpy(all, a->words, a->n * sizeof *all);
    if (b->n) memcpy(all + a->n, b->words, b->n * sizeof *all);
    qsort(all, n, sizeof *all, span_order);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || span_order(all + i, all + distinct - 1)) all[distinct++] = all[i];
    for (int k = 0; k < 2; k++) {
        sentences *s = k ? b : a;
        for (size_t i = 0; i < s->n; i++) {
            const kv_span *at = bsearch(s->words + i, all, distinct, sizeof *all, span_order);
            s->id[i] = (uint32_t)(at - all);
        }
    }
    kv_free(all);
    return distinct;
}

static size_t count_distinct(const uint32_t *id, size_t n, uint8_t *seen, size_t distinct) {
    size_t count = 0;
    memset(seen, 0, distinct);
    for (size_t i = 0; i < n; i++) {
        count += !seen[id[i]];
        seen[id[i]] = 1;
    }
    return count;
}

/* Marks the words of one longest common subsequence of x[n] and y[m] in seen; the one the package walks back to: equal
 * ends are taken, else the shorter x is preferred only where it is strictly longer in common.
 * table[(n + 1) x (m + 1)] u16: length for each pair of prefixes. */
static void mark_lcs(const uint32_t *x, size_t n, const uint32_t *y, size_t m, uint16_t *table, uint8_t *seen) {
    size_t row = m + 1;
    memset(table, 0, row * sizeof *table);
    for (size_t i = 1; i <= n; i++) {
        uint16_t *t = table + i * row, *above = t - row;
        t[0] = 0;
        for (size_t j = 1; j <= m; j++)
            t[j] = x[i - 1] == y[j - 1] ? (uint16_t)(above[j - 1] + 1) : above[j] > t[j - 1] ? above[j] : t[j - 1];
    }
    for (size_t i = n, j = m; i && j;) {
        const uint16_t *t = table + i * row, *above = t - row;
        if (x[i - 1] == y[j - 1]) {
            seen[x[i - 1]] = 1;
            i--;
            j--;
        } else if (above[j] > t[j - 1]) {
            i--;
        } else {
            j--;
        }
    }
}

/* Distinct words in the union of the subsequences of all pairs of sentences; SIZE_MAX when out of memory. */
static size_t union_lcs(const sentences *ref, const sentences *ans, uint8_t *seen, size_t distinct) {
    size_t longest[2] = {0, 0}, count = 0;
    for (int k = 0; k < 2; k++) {
        const sentences *s = k ? ans : ref;
        for (size_t i = 0, from = 0; i < s->n_sentences; from = s->end[i++])
            if (s->end[i] - from > longest[k]) longest[k] = s->end[i] - from;
        if (longest[k] > SENTENCE_WORDS_MAX) longest[k] = SENTENCE_WORDS_MAX;
    }
    uint16_t *table = kv_malloc((longest[0] + 1) * (longest[1] + 1) * sizeof *table);
    if (!table) return SIZE_MAX;
    memset(seen, 0, distinct);
    for (size_t i = 0, from = 0; i < ref->n_sentences; from = ref->end[i++])
        for (size_t j = 0, other = 0; j < ans->n_sentences; other = ans->end[j++]) {
            size_t n = ref->end[i] - from, m = ans->end[j] - other;
            if (n > SENTENCE_WORDS_MAX) n = SENTENCE_WORDS_MAX;
            if (m > SENTENCE_WORDS_MAX) m = SENTENCE_WORDS_MAX;
            mark_lcs(ref->id + from, n, ans->id + other, m, table, seen);
        }
    kv_free(table);
    for (size_t i = 0; i < distinct; i++) count += seen[i];
    return count;
}

double kv_rouge_l(const char *answer, size_t answer_len, const char *reference, size_t reference_len) {
    sentences ans, ref = {0};
    double f = -1;
    if (sentences_make(answer, answer_len, &ans) && sentences_make(reference, reference_len, &ref)) {
        if (!ans.n || !ref.n) {
            f = 0;
        } else {
            size_t distinct = number_words(&ref, &ans);
            uint8_t *seen = distinct == SIZE_MAX ? NULL : kv_malloc(distinct);
            size_t n = seen ? count_distinct(ans.id, ans.n, seen, distinct) : 0;
            size_t m = seen ? count_distinct(ref.id, ref.n, seen, distinct) : 0;
            size_t common = seen ? union_lcs(&ref, &ans, seen, distinct) : SIZE_MAX;
            if (common != SIZE_MAX) {
                double p = (double)common / (double)n, r = (double)common / (double)m;
                f = 2.0 * (p * r / (p + r + 1e-8)); /* the package's guard against 0 / 0 */
            }
            kv_free(seen);
        }
    }
    sentences_free(&ans);
    sentences_free(&ref);
    return f;
}

/* ---- matching blocks ---- */

typedef struct range {
    uint32_t a_from, a_to, b_from, b_to;
} range;

typedef struct matcher {
    int32_t *a, *b; /* code points */
    uint32_t na, nb;
    uint8_t *popular;     /* [nb] code points that start no block */
    uint32_t *len, *next; /* [nb + 1] lengths of the blocks that end at a[i - 1], a[i], and b[j] */
} matcher;

static uint32_t to_chars(const char *s, size_t len, int32_t *out) {
    uint32_t n = 0;
    for (size_t i = 0, used; i < len && n < RATIO_CHARS_MAX; i += used) out[n++] = kv_text_next(s + i, len - i, &used);
    return n;
}

static int by_value(const void *x, const void *y) {
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return (a > b) - (a < b);
}

/* difflib's heuristic: in a text b of 200 code points or more, those that occur more than 1 + n / 100 times. */
static bool mark_popular(matcher *m) {
    memset(m->popular, 0, m->nb);
    if (m->nb < 200) return true;
    int32_t *sorted = kv_malloc(m->nb * sizeof *sorted);
    if (!sorted) return false;
    memcpy(sorted, m->b, m->nb * sizeof *sorted);
    qsort(sorted, m->nb, sizeof *sorted, by_value);
    uint32_t most = m->nb / 100 + 1;
    for (uint32_t j = 0; j < m->nb; j++) {
        const int32_t *at = bsearch(m->b + j, sorted, m->nb, sizeof *sorted, by_value), *from = at, *to = at + 1;
        while (from > sorted && from[-1] == *at) from--;
        while (to < sorted + m->nb && *to == *at) to++;
        m->popular[j] = (uint32_t)(to - from) > most;
    }
    kv_free(sorted);
    return true;
}

/* Longest block of the range that starts earliest in a, then in b; popular code points only extend one. */
static range longest_block(matcher *m, range r) {
    uint32_t best = 0, ba = r.a_from, bb = r.b_from;
    memset(m->len, 0, (m->nb + 1) * sizeof *m->len);
    memset(m->next, 0, (m->nb + 1) * sizeof *m->next);
    for (uint32_t i = r.a_from; i < r.a_to; i++) {
        for (uint32_t j = r.b_from; j < r.b_to; j++) {
            uint32_t k = 0;
            if (!m->popular[j] && m->a[i] == m->b[j]) k = (j > r.b_from ? m->len[j - 1] : 0) + 1;
            m->next[j] = k;
            if (k > best) {
                best = k;
                ba = i + 1 - k;
                bb = j + 1 - k;
            }
        }
        uint32_t *swap = m->len;
        m->len = m->next;
        m->next = swap;
    }
    while (ba > r.a_from && bb > r.b_from && m->a[ba - 1] == m->b[bb - 1]) {
        ba--;
        bb--;
        best++;
    }
    while (ba + best < r.a_to && bb + best < r.b_to && m->a[ba + best] == m->b[bb + best]) best++;
    return (range){ba, ba + best, bb, bb + best};
}

static uint32_t matched(matcher *m, range *todo) {
    uint32_t total = 0, n = 1;
    todo[0] = (range){0, m->na, 0, m->nb};
    while (n) {
        range r = todo[--n];
        if (r.a_from == r.a_to || r.b_from == r.b_to) continue;
        range hit = longest_block(m, r);
        if (hit.a_from == hit.a_to) continue;
        total += hit.a_to - hit.a_from;
        todo[n++] = (range){r.a_from, hit.a_from, r.b_from, hit.b_from};
        todo[n++] = (range){hit.a_to, r.a_to, hit.b_to, r.b_to};
    }
    return total;
}

double kv_text_ratio(const char *a, size_t a_len, const char *b, size_t b_len) {
    matcher m = {0};
    /* A stack of ranges: each hit removes one and leaves two, and there are at most RATIO_CHARS_MAX hits. */
    range *todo = kv_malloc((RATIO_CHARS_MAX + 2) * sizeof *todo);
    m.a = kv_malloc(2 * RATIO_CHARS_MAX * sizeof *m.a);
    m.popular = kv_malloc(RATIO_CHARS_MAX + 1);
    uint32_t *lengths = kv_malloc(2 * (RATIO_CHARS_MAX + 1) * sizeof *lengths);
    double ratio = -1;
    if (todo && m.a && m.popular && lengths) {
        m.b = m.a + RATIO_CHARS_MAX;
        m.len = lengths;
        m.next = lengths + RATIO_CHARS_MAX + 1;
        m.na = to_chars(a, a_len, m.a);
        m.nb = to_chars(b, b_len, m.b);
        if (m.na + m.nb == 0)
            ratio = 1;
        else if (mark_popular(&m))
            ratio = 2.0 * matched(&m, todo) / (m.na + m.nb);
    }
    kv_free(todo);
    kv_free(m.a);
    kv_free(m.popular);
    kv_free(lengths);
    return ratio;
}
