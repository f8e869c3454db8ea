/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streamed global selection (DESIGN 2.4). Owns the set of pages that can still be chosen. Must not know: what a page
 * is.
 *
 * Offline rule: every stream keeps its best min(floor, its pages) pages; the rest of the budget goes to the best of all
 * others. Streamed: the others seen so far lie in a heap with the worst on top, no larger than budget - floors taken so
 * far. Floors only grow, so that bound only falls: a page that leaves was beaten by more others than the final bound
 * allows and cannot be in the final set. A stream with fewer pages than the floor takes only what it has, which leaves
 * the rest to the others. Invariant: floors taken + heap <= budget after each settle (unless floors alone pass it), so
 * the peak is the final cache and one layer.
 */
#include "policy/plan.h"

#include "base/alloc.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    float price;
    uint32_t layer, head, page;
} candidate;

struct kv_gsel {
    uint64_t budget, floors; /* floors: pages taken by floors so far */
    uint32_t floor_pages, n_streams, n_seen;
    candidate *heap; /* worst on top */
    size_t n, cap;
    candidate *sorted; /* one stream's pages, best first */
    size_t cap_sorted;
    kv_gsel_drop *drops;
    size_t cap_drops;
};

/* a is chosen before b: price falling, then layer, head, page. */
static bool better(const candidate *a, const candidate *b) {
    if (a->price != b->price) return a->price > b->price;
    if (a->layer != b->layer) return a->layer < b->layer;
    if (a->head != b->head) return a->head < b->head;
    return a->page < b->page;
}

static int best_first(const void *a, const void *b) { return better(a, b) ? -1 : better(b, a); }

kv_status kv_gsel_create(uint64_t budget_pages, uint32_t floor_pages, uint32_t n_streams_total, kv_gsel **out,
                         kv_error *err) {
    *out = kv_calloc(1, sizeof **out);
    if (!*out) KV_FAIL(err, MEMORY, "no memory for the selection of pages");
    (*out)->budget = budget_pages;
    (*out)->floor_pages = floor_pages;
    (*out)->n_streams = n_streams_total;
    return KVIST_OK;
}

void kv_gsel_free(kv_gsel **g) {
    if (*g) {
        kv_free((*g)->heap);
        kv_free((*g)->sorted);
        kv_free((*g)->drops);
        kv_free(*g);
    }
    *g = NULL;
}

static kv_status room(void **array, size_t *cap, size_t need, size_t size, kv_error *err) {
    if (need <= *cap) return KVIST_OK;
    size_t want = *cap + *cap / 2 > need ? *cap + *cap / 2 : need;
    void *p = kv_realloc(*array, want * size);
    if (!p) KV_FAIL(err, MEMORY, "no memory to select among %zu pages", need);
    *array = p;
    *cap = want;
    return KVIST_OK;
}

static void sift_up(candidate *h, size_t i) {
    candidate c = h[i];
    for (; i && better(&h[(i - 1) / 2], &c); i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
}

static void sift_down(candidate *h, size_t n) {
    candidate c = h[0];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && better(&h[child], &h[child + 1])) child++;
        if (!better(&c, &h[child])) break;
        h[i] = h[child];
    }
    h[i] = c;
}

kv_status kv_gsel_add(kv_gsel *g, uint32_t layer, uint32_t head, const float *price, uint32_t n, kv_error *err) {
    assert(g->n_seen < g->n_streams);
    void *heap = g->heap, *sorted = g->sorted;
    kv_status rc = room(&heap, &g->cap, g->n + n, sizeof *g->heap, err);
    g->heap = heap;
    KV_TRY(rc);
    rc = room(&sorted, &g->cap_sorted, n, sizeof *g->sorted, err);
    g->sorted = sorted;
    KV_TRY(rc);
    for (uint32_t i = 0; i < n; i++)
        g->sorted[i] = (candidate){price[i] == price[i] ? price[i] : -INFINITY, layer, head, i};
    if (n > 1) qsort(g->sorted, n, sizeof *g->sorted, best_first);
    uint32_t floors = n < g->floor_pages ? n : g->floor_pages;
    g->floors += floors;
    for (uint32_t i = floors; i < n; i++) {
        g->heap[g->n++] = g->sorted[i];
        sift_up(g->heap, g->n - 1);
    }
    g->n_seen++;
    return KVIST_OK;
}

kv_status kv_gsel_settle(kv_gsel *g, const kv_gsel_drop **drops, uint32_t *n_drops, kv_error *err) {
    *drops = NULL;
    *n_drops = 0;
    uint64_t others = g->budget > g->floors ? g->budget - g->floors : 0;
    if (g->n <= others) return KVIST_OK;
    size_t leaving = g->n - (size_t)others;
    void *array = g->drops;
    kv_status rc = room(&array, &g->cap_drops, leaving, sizeof *g->drops, err);
    g->drops = array;
    KV_TRY(rc);
    for (size_t i = 0; i < leaving; i++) {
        g->drops[i] = (kv_gsel_drop){g->heap[0].layer, g->heap[0].head, g->heap[0].page};
        g->heap[0] = g->heap[--g->n];
        if (g->n) sift_down(g->heap, g->n);
    }
    *drops = g->drops;
    *n_drops = (uint32_t)leaving;
    return KVIST_OK;
}
