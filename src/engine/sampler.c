/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature, draw. The draw is a function of
 * (seed, position), so that a rolled-back session draws the same token again.
 */
#include "engine/engine.h"

#include "base/hash.h"

#include <math.h>
#include <string.h>

typedef struct cand {
    float logit;
    int32_t id;
    float p;
} cand;

void kvist_sampling_default(kvist_sampling *p) {
    *p = (kvist_sampling){.temp = 0.8f,
                          .top_k = 40,
                          .top_p = 0.95f,
                          .min_p = 0.05f,
                          .repeat_penalty = 1.0f,
                          .repeat_last_n = 64,
                          .seed = 0};
}

size_t kv_sample_scratch(uint32_t n) { return n * sizeof(cand); }

static int32_t argmax(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

/* Falling logits, ties by rising id: the same order on every machine. */
static int by_logit(const cand *a, const cand *b) {
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Moves the k best to the front (quickselect), so that only they are sorted. */
static void select_top(cand *c, uint32_t n, uint32_t k) {
    uint32_t lo = 0, hi = n;
    while (hi - lo > 1 && k < hi && k > lo) {
        cand pivot = c[lo + (hi - lo) / 2];
        uint32_t i = lo, j = hi - 1;
        for (;;) {
            while (by_logit(&c[i], &pivot) < 0) i++;
            while (by_logit(&pivot, &c[j]) < 0) j--;
            if (i >= j) break;
            cand t = c[i];
            c[i++] = c[j];
            c[j--] = t;
        }
        uint32_t split = j + 1;
        if (split == lo || split == hi) break;
        if (k <= split)
            hi = split;
        else
            lo = split;
    }
}

static void penalise(cand *c, uint32_t n, const kvist_sampling *p, const int32_t *history, uint32_t n_history) {
    if (p->repeat_penalty == 1.0f || p->repeat_last_n <= 0) return;
    uint32_t from = n_history > (uint32_t)p->repeat_last_n ? n_history - (uint32_t)p->repeat_last_n : 0;
    for (uint32_t i = from; i < n_history; i++) {
        bool seen = false;
        for (uint32_t j = from; j < i && !seen; j++) seen = history[j] == history[i];
        uint32_t id = (uint32_t)history[i];
        if (seen || id >= n) continue;
        c[id].logit = c[id].logit > 0 ? c[id].logit / p->repeat_penalty : c[id].logit * p->repeat_penalty;
    }
}

static void sift_down(cand *c, uint32_t at, uint32_t n) {
    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && by_logit(&c[child], &c[child + 1]) < 0) child++;
        if (by_logit(&c[at], &c[child]) >= 0) return;
        cand t = c[at];
        c[at] = c[child];
        c[child] = t;
    }
}

/* Heap sort: in place, where the library's qsort may allocate (nothing is allocated per token). */
static void sort_candidates(cand *c, uint32_t n) {
    for (uint32_t i = n / 2; i-- > 0;) sift_down(c, i, n);
    for (uint32_t end = n; end > 1; end--) {
        cand t = c[0];
        c[0] = c[end - 1];
        c[end - 1] = t;
        sift_down(c, 0, end - 1);
    }
}

/* Moves what top_p and min_p leave of c[0..n) to the front and returns how many (at least one). Only as many as needed
 * are sorted. */
static uint32_t cut_tail(cand *c, uint32_t n, float top_p, float min_p) {
    if (top_p >= 1.0f && min_p <= 0.0f) return n;
    float best = c[0].logit;
    for (uint32_t i = 1; i < n; i++) best = c[i].logit > best ? c[i].logit : best;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += c[i].p = expf(c[i].logit - best);
    for (uint32_t k = n < 128 ? n : 128;; k = n / 8 < k ? n : 8 * k) {
        if (k < n) select_top(c, n, k);
        sort_candidates(c, k);
        double acc = 0;
        uint32_t keep = 0;
        while (keep < k && (keep == 0 || c[keep].p >= min_p)) { /* the best has p = 1 */
            acc += c[keep++].p / sum;
            if (top_p < 1.0f && acc >= top_p) return keep;
        }
        if (keep < k || k == n) return keep;
    }
}

int32_t kv_sample_logits(const float *logits, uint32_t n, const kvist_sampling *p, const int32_t *history,
                         uint32_t n_history, void *scratch) {
    bool penalty = p && p->repeat_penalty != 1.0f && p->repeat_last_n > 0;
    if (!p || (p->temp <= 0.0f && !penalty)) return argmax(logits, n);
    cand *c = scratch;
    for (uint32_t i = 0; i < n; i++) c[i] = (cand){.logit = logits[i], .id = (int32_t)i};
    penalise(c, n, p, history, n_history);
    uint32_t m = p->top_k > 0 && (uint32_t)p->top_k < n ? (uint32_t)p->top_k : n;
    if (p->temp <= 0.0f) m = 1;
    if (m < n) select_top(c, n, m);
    if (m < n) sort_candidates(c, m);
    m = cut_tail(c, m, p->top_p, p->min_p);
    if (m == 1) return c[0].id;
    double sum = 0, acc = 0;
    float best = c[0].logit;
    for (uint32_t i = 1; i < m; i++) best = c[i].logit > best ? c[i].logit : best;
    for (uint32_t i = 0; i < m; i++) sum += c[i].p = expf((c[i].logit - best) / p->temp);
    uint64_t bits = kv_mix64(p->seed + 0x9e3779b97f4a7c15ull * (n_history + 1ull));
    double u = (double)(bits >> 11) * 0x1p-53 * sum;
    for (uint32_t i = 0; i < m; i++) {
        acc += c[i].p;
        if (u < acc) return c[i].id;
    }
    return c[m - 1].id;
}
