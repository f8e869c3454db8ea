/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts that a layer's scores decide: what an allocator's `settle` says, as tokens and pages of each stream. Must not
 * know: how the counts come about. Invariants: least <= keep <= ranked candidates; by_pages: the layer's pages are the
 * plan's, as long as its streams can use them.
 */
#include "policy/plan.h"

#include "policy/allocate/allocate.h"

static uint32_t div_up(uint64_t a, uint32_t b) { return (uint32_t)((a + b - 1) / b); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

size_t kv_plan_settle_scratch(uint32_t n_candidates, uint32_t n_streams) {
    return (size_t)n_candidates * (n_streams * sizeof(double) + sizeof(float)) + 8;
}

/* The stream with most pages, the last of equals. */
static uint32_t richest(const uint32_t *pages, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t h = 1; h < n; h++)
        if (pages[h] >= pages[best]) best = h;
    return best;
}

/* Whole pages for counts keep[h]: room of them, at most `most` a stream and at least `least`. */
static void whole_pages(const uint32_t *keep, uint32_t n, uint32_t page_tokens, uint32_t least, uint32_t most,
                        uint64_t room, uint32_t *pages) {
    uint64_t used = 0;
    for (uint32_t h = 0; h < n; h++) {
        uint32_t want = keep[h] / page_tokens;
        used += pages[h] = want < least ? least : want > most ? most : want;
    }
    for (; used > room && used > (uint64_t)n * least; used--) pages[richest(pages, n)]--;
    for (bool gave = true; gave && used < room;) {
        gave = false;
        for (uint32_t h = 0; h < n && used < room; h++) {
            if (pages[h] >= most) continue;
            pages[h]++;
            used++;
            gave = true;
        }
    }
}

void kv_plan_settle(kv_plan *p, const kv_policy *policy, uint32_t page_tokens, uint32_t layer, uint32_t first_stream,
                    uint32_t n_streams, const float *score, size_t stride, void *scratch) {
    uint32_t ranked = p->n_candidates - p->n_local, local_pages = div_up(p->n_local, page_tokens);
    uint32_t *keep = p->keep + first_stream, *pages = p->pages + first_stream, least = min_u32(p->least, ranked);
    kv_alloc_scores s = {.score = score, .stride = stride, .n_streams = n_streams, .n = ranked, .scratch = scratch};
    const kv_alloc_method *alloc = kv_alloc_at(policy->alloc);
    uint64_t total = (uint64_t)(p->tokens[layer] - p->n_local) * n_streams, room = 0;
    if (!n_streams) return;
    if (p->by_pages) {
        for (uint32_t h = 0; h < n_streams; h++) room += pages[h] - local_pages;
        total = room * page_tokens;
    }
    if (total > (uint64_t)ranked * n_streams) total = (uint64_t)ranked * n_streams;
    alloc->settle(policy, &s, total, keep);
    if (p->by_pages)
        whole_pages(keep, n_streams, page_tokens, div_up(least, page_tokens), div_up(ranked, page_tokens), room, pages);
    for (uint32_t h = 0; h < n_streams; h++) {
        if (p->by_pages)
            keep[h] = min_u32(pages[h] * page_tokens, ranked);
        else if (keep[h] < least)
            keep[h] = least;
        pages[h] = div_up(keep[h], page_tokens) + local_pages;
    }
}
