/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metrics of the evaluation tasks: an answer against its references. Those named after LongBench's tasks follow its
 * scoring scripts (THUDM/LongBench metrics.py and eval.py, version 1) in every particular that changes a figure; where
 * the two differ on purpose task.h says so. Must not know: where samples come from.
 */
#include "measure/metric.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/task.h"

static const char *const names[KV_METRICS] = {
    [KV_METRIC_F1] = "f1",
    [KV_METRIC_F1_ZH] = "f1_zh",
    [KV_METRIC_ROUGE_L] = "rouge_l",
    [KV_METRIC_ROUGE_L_ZH] = "rouge_l_zh",
    [KV_METRIC_CLASSES] = "classes",
    [KV_METRIC_RETRIEVAL] = "retrieval",
    [KV_METRIC_RETRIEVAL_ZH] = "retrieval_zh",
    [KV_METRIC_COUNT] = "count",
    [KV_METRIC_EDIT_SIM] = "edit_sim",
    [KV_METRIC_SUBSTRING] = "substring",
    [KV_METRIC_NUMBER] = "number",
    [KV_METRIC_NLL] = "nll",
};

const char *kv_metric_name(kv_metric m) { return m < KV_METRICS ? names[m] : "?"; }

kv_metric kv_metric_find(const char *name) {
    kv_metric m = 0;
    while (m < KV_METRICS && strcmp(names[m], name)) m++;
    return m;
}

static double f1(kv_span answer, kv_span reference, bool chinese) {
    kv_words w[2] = {{0}, {0}};
    char *text[2] = {NULL, NULL};
    bool ok = true;
    for (int k = 0; k < 2 && ok; k++) {
        kv_span s = k ? reference : answer;
        text[k] = kv_malloc(4 * s.n + 2);
        ok = text[k];
        if (!ok) break;
        size_t n;
        if (chinese) {
            /* Units first, punctuation after: a number with its decimals stays one unit. */
            char *units = kv_malloc(2 * s.n + 1);
            ok = units;
            if (!ok) break;
            n = kv_text_normalize_zh(units, kv_text_segment_zh(s.s, s.n, units), text[k]);
            kv_free(units);
        } else {
            n = kv_text_normalize(s.s, s.n, text[k]);
        }
        ok = kv_text_split(text[k], n, w + k);
    }
    double f = ok ? kv_words_f1(w, w + 1) : -1;
    for (int k = 0; k < 2; k++) {
        kv_free(w[k].w);
        kv_free(text[k]);
    }
    return f;
}

static double rouge_l_zh(kv_span answer, kv_span reference) {
    char *a = kv_malloc(2 * answer.n + 1), *b = kv_malloc(2 * reference.n + 1);
    double f = -1;
    if (a && b) {
        size_t na = kv_text_segment_zh(answer.s, answer.n, a), nb = kv_text_segment_zh(reference.s, reference.n, b);
        f = kv_rouge_l(a, na, b, nb);
    }
    kv_free(a);
    kv_free(b);
    return f;
}

static bool occurs(const char *what, kv_span in) { return memmem(in.s, in.n, what, strlen(what)) != NULL; }

/* 1 / (classes that the answer names) when the right one is among them. Those that are a part of the right one's name
 * are taken out first; a removal skips the class after it, as in the published script. */
static double classes(const kv_sample *s, kv_span answer, kv_span reference) {
    const char **named = kv_malloc((s->n_classes + 1) * sizeof *named);
    if (!named) return -1;
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_classes; i++)
        if (occurs(s->classes[i], answer)) named[n++] = s->classes[i];
    for (size_t i = 0; i < n; i++)
        if (occurs(named[i], reference) && strlen(named[i]) != reference.n) {
            size_t first = 0;
            while (strcmp(named[first], named[i])) first++;
            memmove(named + first, named + first + 1, (n - first - 1) * sizeof *named);
            n--;
        }
    double score = 0;
    for (size_t i = 0; i < n; i++)
        if (strlen(named[i]) == reference.n && !memcmp(named[i], reference.s, reference.n)) score = 1.0 / (double)n;
    kv_free(named);
    return score;
}

/* Next run of decimal digits of s from *at on. */
static bool next_digits(kv_span s, size_t *at, kv_span *out) {
    size_t n = 0;
    while (*at < s.n && !kv_text_is_digit(kv_text_next(s.s + *at, s.n - *at, &n))) *at += n;
    size_t from = *at;
    while (*at < s.n && kv_text_is_digit(kv_text_next(s.s + *at, s.n - *at, &n))) *at += n;
    *out = (kv_span){s.s + from, *at - from};
    return out->n > 0;
}

/* Share of the answer's numbers that are `right`, letter by letter. */
static double right_numbers(kv_span answer, kv_span right) {
    size_t at = 0, all = 0, good = 0;
    for (kv_span d; next_digits(answer, &at, &d); all++) good += d.n == right.n && !memcmp(d.s, right.s, d.n);
    return all ? (double)good / (double)all : 0;
}

static double retrieval(kv_span answer, kv_span reference, const char *word) {
    const char *at = memmem(reference.s, reference.n, word, strlen(word));
    kv_span right;
    size_t from = at ? (size_t)(at - reference.s) + strlen(word) : 0, start = from;
    if (!at || !next_digits(reference, &from, &right) || right.s != reference.s + start) return 0;
    return right_numbers(answer, right);
}

/* First line without `, # and //, which mark fences and comments; "" when all have one. */
static double edit_similarity(kv_span answer, kv_span reference) {
    while (answer.n && *answer.s == '\n') answer = (kv_span){answer.s + 1, answer.n - 1};
    kv_span line = {answer.s, 0};
    for (size_t from = 0; from <= answer.n;) {
        const char *end = memchr(answer.s + from, '\n', answer.n - from);
        size_t to = end ? (size_t)(end - answer.s) : answer.n;
        kv_span l = {answer.s + from, to - from};
        if (!occurs("`", l) && !occurs("#", l) && !occurs("//", l)) {
            line = l;
            break;
        }
        from = to + 1;
    }
    double ratio = kv_text_ratio(line.s, line.n, reference.s, reference.n);
    return ratio < 0 ? ratio : rint(100 * ratio) / 100; /* whole per cent, ties to even */
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static double substring(kv_span answer, kv_span reference) {
    for (size_t i = 0; i + reference.n <= answer.n; i++) {
        size_t j = 0;
        while (j < reference.n && lower(answer.s[i + j]) == lower(reference.s[j])) j++;
        if (j == reference.n) return 1;
    }
    return 0;
}

static bool digit(kv_span s, size_t i) { return i < s.n && s.s[i] >= '0' && s.s[i] <= '9'; }

/* Last number of s in one spelling: sign, no leading zeros, no commas, no zeros at the end of a fraction. out[size], ""
 * when there is none or it is longer. */
static void last_number(kv_span s, char *out, size_t size) {
    size_t from = s.n, i = 0;
    while (i < s.n)
        if (digit(s, i)) {
            from = i;
            while (digit(s, i) || (i < s.n && (s.s[i] == ',' || s.s[i] == '.') && digit(s, i + 1))) i++;
        } else {
            i++;
        }
    *out = 0;
    size_t n = 0, whole = 0, end = from;
    bool fraction = false, minus = from > 0 && from < s.n && s.s[from - 1] == '-' &&
                                   !(from > 1 && (digit(s, from - 2) || kv_text_is_word((unsigned char)s.s[from - 2])));
    if (from == s.n) return;
    if (minus) out[n++] = '-';
    for (; end < s.n && (digit(s, end) || ((s.s[end] == ',' || s.s[end] == '.') && digit(s, end + 1))); end++) {
        char c = s.s[end];
        if (c == ',' || (c == '0' && !whole && !fraction && digit(s, end + 1))) continue;
        if (n + 2 >= size) {
            *out = 0;
            return;
        }
        if (c == '.') {
            if (fraction) break; /* 1.2.3: a version, cut after its second part */
            if (!whole) out[n++] = '0', whole = 1;
            fraction = true;
        } else if (!fraction) {
            whole++;
        }
        out[n++] = c;
    }
    while (fraction && out[n - 1] == '0') n--;
    if (fraction && out[n - 1] == '.') n--;
    out[n] = 0;
    if (!strcmp(out, "-0")) strcpy(out, "0");
}

static double number(kv_span answer, kv_span reference) {
    char a[128], b[128];
    last_number(answer, a, sizeof a);
    last_number(reference, b, sizeof b);
    return *b && !strcmp(a, b);
}

static double score_one(const kv_sample *s, kv_span answer, kv_span reference) {
    switch (s->metric) {
    case KV_METRIC_F1:
        return f1(answer, reference, false);
    case KV_METRIC_F1_ZH:
        return f1(answer, reference, true);
    case KV_METRIC_ROUGE_L:
        return kv_rouge_l(answer.s, answer.n, reference.s, reference.n);
    case KV_METRIC_ROUGE_L_ZH:
        return rouge_l_zh(answer, reference);
    case KV_METRIC_CLASSES:
        return classes(s, answer, reference);
    case KV_METRIC_RETRIEVAL:
        return retrieval(answer, reference, "Paragraph ");
    case KV_METRIC_RETRIEVAL_ZH:
        return retrieval(answer, reference, "\xe6\xae\xb5\xe8\x90\xbd");
    case KV_METRIC_COUNT:
        return right_numbers(answer, reference);
    case KV_METRIC_EDIT_SIM:
        return edit_similarity(answer, reference);
    case KV_METRIC_SUBSTRING:
        return substring(answer, reference);
    case KV_METRIC_NUMBER:
        return number(answer, reference);
    case KV_METRIC_NLL:
    case KV_METRICS:
        break;
    }
    return -1;
}

double kv_metric_score(const kv_sample *s, uint32_t turn, const char *answer) {
    if (turn >= s->n_turns) return NAN;
    kv_span a = {answer, strlen(answer)};
    if (s->first_line) {
        while (a.n && *a.s == '\n') a = (kv_span){a.s + 1, a.n - 1};
        const char *end = memchr(a.s, '\n', a.n);
        if (end) a.n = (size_t)(end - a.s);
    }
    double best = 0;
    const kv_turn *t = s->turns + turn;
    for (uint32_t i = 0; i < t->n_answers; i++) {
        double score = score_one(s, a, (kv_span){t->answers[i], strlen(t->answers[i])});
        if (score < 0) return NAN;
        if (score > best) best = score;
    }
    return best;
}
