/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cuts a stream's candidates into pages of equal importance (DESIGN 2.3, 4). Must not know: where tokens lie.
 * Invariants: every kept candidate is in exactly one page; inside a page and a tier indices rise; only the last ranked
 * and the last local page may be partial. Ranking is a stable radix sort of order-preserving 32-bit keys: ties keep the
 * lower index first.
 */
#include "policy/plan.h"

#include "policy/rank.h"

#include <math.h>
#include <string.h>

#define RADIX_BITS 11 /* three passes over 32 bits; a 2,048-entry histogram stays in the first cache level */
#define RADIX (1u << RADIX_BITS)

typedef struct item {
    uint32_t key, index;
} item;

size_t kv_cut_scratch(uint32_t n_cand) { return (size_t)n_cand * (2 * sizeof(item) + 1) + 8; }

_Static_assert((32 + RADIX_BITS - 1) / RADIX_BITS % 2 == 1, "kv_cut_rest finds the ranking in the second array");

/* Sorts a by key; b is as large; the result is in the returned one. */
static item *radix_sort(item *a, item *b, uint32_t n) {
    for (uint32_t shift = 0; shift < 32; shift += RADIX_BITS) {
        uint32_t at[RADIX] = {0}, sum = 0;
        for (uint32_t i = 0; i < n; i++) at[(a[i].key >> shift) & (RADIX - 1)]++;
        for (uint32_t r = 0; r < RADIX; r++) {
            uint32_t c = at[r];
            at[r] = sum;
            sum += c;
        }
        for (uint32_t i = 0; i < n; i++) b[at[(a[i].key >> shift) & (RADIX - 1)]++] = a[i];
        item *t = a;
        a = b;
        b = t;
    }
    return a;
}

/* The nearest whole number of pages, at most keep. */
static uint32_t whole_pages(uint64_t x, uint32_t page_tokens, uint32_t keep) {
    uint64_t r = (x + page_tokens / 2) / page_tokens * page_tokens;
    return r < keep ? (uint32_t)r : keep;
}

static float page_price(const float *score, const uint32_t *order, uint32_t n) {
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (score[order[i]] == score[order[i]]) sum += score[order[i]]; /* NaN: worth nothing */
    return sum;
}

/* Splits order[from, to), a tier or the local tokens, into pages. */
static uint32_t add_pages(const float *score, const uint32_t *order, uint32_t from, uint32_t to, uint32_t page_tokens,
                          uint8_t tier, bool local, kv_page_plan *pages) {
    uint32_t count = 0;
    for (uint32_t at = from; at < to; at += page_tokens) {
        uint32_t n = to - at < page_tokens ? to - at : page_tokens;
        pages[count++] = (kv_page_plan){.first = at,
                                        .n = n,
                                        .price = local ? INFINITY : page_price(score, order + at, n),
                                        .tier = tier,
                                        .local = local};
    }
    return count;
}

uint32_t kv_cut_pages(const float *score, uint32_t n_cand, uint32_t n_local, uint32_t keep, uint32_t page_tokens,
                      bool global, uint32_t m, uint32_t *order, kv_page_plan *pages, void *scratch) {
    uint32_t n_ranked = n_cand - n_local, n_pages = 0;
    if (keep > n_ranked) keep = n_ranked;
    item *a = scratch, *b = a + n_cand;
    uint8_t *tier = (uint8_t *)(b + n_cand); /* 0: evicted, else tier + 1 */
    for (uint32_t i = 0; i < n_ranked; i++) a[i] = (item){kv_rank_key(score[i]), i};
    a = radix_sort(a, b, n_ranked);
    uint64_t unit = global ? (uint64_t)m * 4 : keep;
    uint32_t ends[4] = {whole_pages(unit / 8, page_tokens, keep), whole_pages(unit / 4, page_tokens, keep),
                        whole_pages(unit / 2, page_tokens, keep), keep};
    if (n_ranked) memset(tier, 0, n_ranked);
    for (uint32_t t = 0, i = 0; t < 4; t++)
        for (; i < ends[t]; i++) tier[a[i].index] = (uint8_t)(t + 1);
    uint32_t at[4] = {0, ends[0], ends[1], ends[2]};
    for (uint32_t i = 0; i < n_ranked; i++)
        if (tier[i]) order[at[tier[i] - 1]++] = i;
    for (uint32_t t = 0; t < 4; t++)
        n_pages +=
            add_pages(score, order, t ? ends[t - 1] : 0, ends[t], page_tokens, (uint8_t)t, false, pages + n_pages);
    for (uint32_t i = 0; i < n_local; i++) order[keep + i] = n_ranked + i;
    return n_pages + add_pages(score, order, keep, keep + n_local, page_tokens, 0, true, pages + n_pages);
}

uint32_t kv_cut_rest(const float *score, uint32_t n_cand, uint32_t n_local, uint32_t keep, uint32_t page_tokens,
                     uint32_t *order, kv_page_plan *pages, void *scratch) {
    uint32_t n_ranked = n_cand - n_local, from = keep + n_local;
    if (keep >= n_ranked) return 0;
    /* An odd number of passes: the ranking lies in the second array; the first is free. key: a candidate's page + 1, 0:
     * kept already; index: how many tokens page i has so far. */
    item *a = scratch, *ranked = a + n_cand;
    for (uint32_t i = 0; i < n_ranked; i++) a[i] = (item){0, 0};
    for (uint32_t r = keep; r < n_ranked; r++) a[ranked[r].index].key = (r - keep) / page_tokens + 1;
    for (uint32_t i = 0; i < n_ranked; i++) {
        if (!a[i].key) continue;
        uint32_t page = a[i].key - 1;
        order[from + page * page_tokens + a[page].index++] = i;
    }
    return add_pages(score, order, from, n_cand, page_tokens, 4, false, pages);
}
