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
 *
 * Guard pages (a stream's best pages that its retained mass needs) that are not chosen so stay beside the budget, up to a
 * limit, the best of all streams'. Streamed: a guard page that leaves the heap cannot be chosen any more, so it moves to
 * a second heap of at most `limit` pages; one that leaves there was beaten by `limit` others that are not chosen either.
 * Peak: budget + limit + one layer.
 */
#include "policy/plan.h"

#include "base/alloc.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    float price;
    uint32_t layer, head, page;
    bool guard; /* belongs to its stream's guard prefix */
} candidate;

typedef struct heap {
    candidate *v; /* worst on top */
    size_t n, cap;
} heap;

struct kv_gsel {
    uint64_t budget, floors; /* floors: pages taken by floors so far */
    uint64_t limit;          /* of extras */
    uint32_t floor_pages, n_streams, n_seen;
    heap others, extras; /* chosen by price; kept beside the budget for the guard */
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
        kv_free((*g)->others.v);
        kv_free((*g)->extras.v);
        kv_free((*g)->sorted);
        kv_free((*g)->drops);
        kv_free(*g);
    }
    *g = NULL;
}

void kv_gsel_guard(kv_gsel *g, uint64_t limit_pages) { g->limit = limit_pages; }

static kv_status room(void **array, size_t *cap, size_t need, size_t size, kv_error *err) {
    if (need <= *cap) return KVIST_OK;
    size_t want = *cap + *cap / 2 > need ? *cap + *cap / 2 : need;
    void *p = kv_realloc(*array, want * size);
    if (!p) KV_FAIL(err, MEMORY, "no memory to select among %zu pages", need);
    *array = p;
    *cap = want;
    return KVIST_OK;
}

static kv_status heap_room(heap *h, size_t more, kv_error *err) {
    void *v = h->v;
    kv_status rc = room(&v, &h->cap, h->n + more, sizeof *h->v, err);
    h->v = v;
    return rc;
}

/* There is room. */
static void push(heap *h, candidate c) {
    size_t i = h->n++;
    for (; i && better(&h->v[(i - 1) / 2], &c); i = (i - 1) / 2) h->v[i] = h->v[(i - 1) / 2];
    h->v[i] = c;
}

/* Takes the worst. */
static candidate pop(heap *h) {
    candidate top = h->v[0], c = h->v[--h->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && better(&h->v[child], &h->v[child + 1])) child++;
        if (!better(&c, &h->v[child])) break;
        h->v[i] = h->v[child];
    }
    if (h->n) h->v[i] = c;
    return top;
}

kv_status kv_gsel_add_guarded(kv_gsel *g, uint32_t layer, uint32_t head, const float *price, uint32_t n,
                              uint32_t n_guard, kv_error *err) {
    assert(g->n_seen < g->n_streams && n_guard <= n);
    KV_TRY(heap_room(&g->others, n, err));
    void *sorted = g->sorted;
    kv_status rc = room(&sorted, &g->cap_sorted, n, sizeof *g->sorted, err);
    g->sorted = sorted;
    KV_TRY(rc);
    for (uint32_t i = 0; i < n; i++)
        g->sorted[i] = (candidate){price[i] == price[i] ? price[i] : -INFINITY, layer, head, i, false};
    if (n > 1) qsort(g->sorted, n, sizeof *g->sorted, best_first);
    uint32_t floors = n < g->floor_pages ? n : g->floor_pages;
    g->floors += floors;
    for (uint32_t i = floors; i < n; i++) {
        g->sorted[i].guard = i < n_guard;
        push(&g->others, g->sorted[i]);
    }
    g->n_seen++;
    return KVIST_OK;
}

kv_status kv_gsel_add(kv_gsel *g, uint32_t layer, uint32_t head, const float *price, uint32_t n, kv_error *err) {
    return kv_gsel_add_guarded(g, layer, head, price, n, 0, err);
}

static void drop(kv_gsel *g, uint32_t *n, const candidate *c) {
    g->drops[(*n)++] = (kv_gsel_drop){c->layer, c->head, c->page};
}

kv_status kv_gsel_settle(kv_gsel *g, const kv_gsel_drop **drops, uint32_t *n_drops, kv_error *err) {
    *drops = NULL;
    *n_drops = 0;
    uint64_t others = g->budget > g->floors ? g->budget - g->floors : 0;
    if (g->others.n <= others) return KVIST_OK;
    size_t leaving = g->others.n - (size_t)others;
    uint32_t n = 0;
    void *array = g->drops;
    kv_status rc = room(&array, &g->cap_drops, leaving, sizeof *g->drops, err);
    g->drops = array;
    KV_TRY(rc);
    if (g->limit) KV_TRY(heap_room(&g->extras, leaving, err));
    for (size_t i = 0; i < leaving; i++) {
        candidate c = pop(&g->others);
        if (c.guard && g->limit)
            push(&g->extras, c);
        else
            drop(g, &n, &c);
    }
    while (g->extras.n > g->limit) {
        candidate c = pop(&g->extras);
        drop(g, &n, &c);
    }
    *drops = g->drops;
    *n_drops = n;
    return KVIST_OK;
}

kv_status kv_gsel_extras(kv_gsel *g, const kv_gsel_drop **extras, uint32_t *n, kv_error *err) {
    *extras = NULL;
    *n = 0;
    void *array = g->drops;
    kv_status rc = room(&array, &g->cap_drops, g->extras.n, sizeof *g->drops, err);
    g->drops = array;
    KV_TRY(rc);
    for (size_t i = 0; i < g->extras.n; i++) drop(g, n, &g->extras.v[i]);
    *extras = g->drops;
    return KVIST_OK;
}
