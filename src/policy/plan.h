/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic of one compression point (the end of a sync): budgets, tiers, pages with prices, and the streamed global
 * selection. No pool, no pages: numbers in, numbers out, so that everything is tested against naive code.
 */
#ifndef KV_POLICY_PLAN_H
#define KV_POLICY_PLAN_H

#include "policy/scores.h"

/* What a layer's streams look like at the compression point. All streams of a layer are alike here. */
typedef struct kv_plan_layer {
    uint32_t n_streams;
    uint32_t f16_tokens;      /* tokens an f16 page */
    uint32_t page_tokens;     /* P of the layer's sealed format */
    uint32_t q2_bytes;        /* charged for q2 by each stream */
    uint64_t f16_bytes_token; /* 2 * (dk + dv), of one stream */
} kv_plan_layer;

typedef struct kv_plan_input {
    const kv_policy *policy;
    uint32_t n_layers;
    const kv_plan_layer *layers;
    uint32_t page_bytes, page_overhead; /* overhead of a referenced page: entry + handle (or tail list item) */
    uint32_t n_seen;                    /* tokens after this sync */
    uint32_t n_before;                  /* tokens before it (its first row's position) */
    uint32_t n_unsealed;   /* tokens not in sealed handles: the tail plus this sync's rows (sinks not yet in a handle
                              included) */
    bool first;            /* sinks are still among the unsealed tokens */
    uint64_t bytes_before; /* true bytes of sealed handles that earlier compression points left (0 on the first) */
} kv_plan_input;

/* Budget of one compression point. Candidates of a stream = unsealed tokens without sinks (first) and without the
 * `recent` newest. Nothing evicted: evict = false and pages lie at fixed boundaries, leftovers stay in the tail (and
 * sinks until there is a page). */
typedef struct kv_plan {
    bool evict;
    bool global;
    uint32_t n_candidates; /* per stream */
    uint32_t n_local;      /* newest candidates always kept (sealed in position order, after the ranked ones) */
    uint32_t n_sink;       /* sinks to seal now */
    uint32_t n_recent;     /* stay in the tail */
    uint32_t *tokens; /* [n_layers] tokens a stream of this layer keeps among its candidates, local included (uniform,
                         pyramid) */
    uint32_t *pages; /* [n_streams_total] pages a stream may use (uniform, pyramid): >= ceil(tokens / P); leftover pages
                        of a `share` went one each in layer, head order, and then tokens of that stream = pages * P */
    uint64_t pages_global; /* global: sealed pages over all streams */
    uint32_t floor_pages;  /* global: kept in every stream whatever their price */
    uint32_t mean_tokens;  /* global: mean budget of a stream, for the tiers */
    uint64_t guard_pages;  /* pages the guard may add over all streams; 0: none */
    bool by_scores;        /* a layer's scores decide its streams' counts (kv_plan_settle); equal until then */
    uint32_t least;        /* by_scores: ranked tokens that every stream keeps, as far as it has them */
    uint32_t *keep;        /* by_scores: [n_streams_total] ranked tokens a stream keeps */
    bool by_pages;         /* share: pages[] is the budget, a stream's kept tokens fill its pages (kv_plan_keep) */
    double share_target, share_total; /* true bytes asked for and planned; 0: the budget is no share */
    uint32_t page_cost;               /* true bytes of a sealed page */
    bool share_met;
    char share_note[128];
} kv_plan;

/* Later syncs: budgets apply to the sync's own candidates in proportion (keep, rate, share: of the tokens this sync
 * added; share counts bytes_before as spent for the tokens before). tokens=T: what is left of T after the tokens stored
 * before, at least one page. */
kv_status kv_plan_make(const kv_plan_input *in, kv_plan *out, kv_error *err) KV_WARN_UNUSED;
/* Scores of tokens that a policy keeps while decoding (cache/stream.h) are bytes of the cache: adds them to what a page
 * or a stream costs. */
void kv_plan_count_scores(const kv_policy *p, kv_plan_layer *layers, kv_plan_input *in);
/* The same into a plan made before for as many layers and streams: nothing is allocated. Where nothing must be evicted
 * it says so, also where `when` would have all pages priced. */
kv_status kv_plan_again(const kv_plan_input *in, kv_plan *out, kv_error *err) KV_WARN_UNUSED;
void kv_plan_free(kv_plan *p);
/* After the selection: the guard kept that many pages beside the budget. A share that they pass is not met, and the
 * note says so. */
void kv_plan_note_guard(kv_plan *p, uint64_t extra_pages);
/* How many ranked candidates (local ones not counted) a stream pages: `keep` of kv_cut_pages. stream: index over all
 * layers; page_tokens: the layer's. global: all of them, kv_gsel chooses. */
uint32_t kv_plan_keep(const kv_plan *p, uint32_t page_tokens, uint32_t layer, uint32_t stream);
/*
 * by_scores: counts of a layer's streams first_stream .. first_stream + n_streams - 1 from the scores of their ranked
 * candidates, score[h * stride + i], i < n_candidates - n_local: sets keep[] and pages[]. by_pages: the layer's pages
 * are given out whole: those that a stream's count fills, what is left one each in head order.
 */
size_t kv_plan_settle_scratch(uint32_t n_candidates, uint32_t n_streams);
void kv_plan_settle(kv_plan *p, const kv_policy *policy, uint32_t page_tokens, uint32_t layer, uint32_t first_stream,
                    uint32_t n_streams, const float *score, size_t stride, void *scratch);

/* One page to seal: candidates order[first .. first+n), ascending positions, of one tier. */
typedef struct kv_page_plan {
    uint32_t first, n;
    float price;
    uint8_t tier;
    bool local;
} kv_page_plan;

/*
 * Ranks a stream's candidates and cuts them into pages.
 *   score[n_cand]  higher stays; ties: the lower index stays. NaN counts as lowest.
 *   n_local newest candidates are always kept and not ranked; they make their own pages in position order, after the
 * ranked pages, price +inf. keep: how many ranked candidates to page (n_cand - n_local at most); the rest is not paged
 * (evicted). m: the tiers' unit. Not global: cuts at m/8, m/4, m/2 with m = keep; global: at m/2, m, 2m with m =
 * mean_tokens. Cuts are rounded to whole pages so that only the last page of a ranking may be partial. Inside a tier
 * tokens are in position order. price = sum of the page's scores (f32, ascending index). order[] receives candidate
 * indices page by page; returns the number of pages written (pages[] has room for n_cand/P + 2). scratch:
 * kv_cut_scratch(n_cand) bytes.
 */
size_t kv_cut_scratch(uint32_t n_cand);
uint32_t kv_cut_pages(const float *score, uint32_t n_cand, uint32_t n_local, uint32_t keep, uint32_t page_tokens,
                      bool global, uint32_t m, uint32_t *order, kv_page_plan *pages, void *scratch);

/*
 * After kv_cut_pages with the same counts and its scratch untouched: pages of the ranked candidates beyond keep,
 * page_tokens each in rank order (the last may be partial), positions rising inside a page. Written behind what
 * kv_cut_pages wrote: order[keep + n_local ..), pages[0 ..) of the array given here; returns how many. These are the
 * pages a guard may add.
 */
uint32_t kv_cut_rest(const float *score, uint32_t n_cand, uint32_t n_local, uint32_t keep, uint32_t page_tokens,
                     uint32_t *order, kv_page_plan *pages, void *scratch);

/*
 * Streamed global selection (DESIGN 2.4): fed layer by layer, keeps at any time every stream's floor pages plus the
 * best of the others that can still be in the final set; what it drops is exactly what an offline selection over all
 * layers would not keep. Order: price falling, then layer, head, page index. A page with price +inf (local) counts
 * against the budget and is never dropped before finite ones.
 */
typedef struct kv_gsel kv_gsel;
typedef struct kv_gsel_drop {
    uint32_t layer, head, page;
} kv_gsel_drop; /* page: index as added */
kv_status kv_gsel_create(uint64_t budget_pages, uint32_t floor_pages, uint32_t n_streams_total, kv_gsel **out,
                         kv_error *err) KV_WARN_UNUSED;
void kv_gsel_free(kv_gsel **g);
/* Adds one stream's pages (any order of prices). */
kv_status kv_gsel_add(kv_gsel *g, uint32_t layer, uint32_t head, const float *price, uint32_t n,
                      kv_error *err) KV_WARN_UNUSED;
/* The guard: up to limit_pages of the streams' guard pages stay beside the budget, the best of them, where the budget
 * alone would not keep them. */
void kv_gsel_guard(kv_gsel *g, uint64_t limit_pages);
/* As kv_gsel_add; the stream's best n_guard pages are its guard prefix (policy/guard.h). */
kv_status kv_gsel_add_guarded(kv_gsel *g, uint32_t layer, uint32_t head, const float *price, uint32_t n,
                              uint32_t n_guard, kv_error *err) KV_WARN_UNUSED;
/* After all streams of a layer: pages that leave the set now (of this layer or earlier ones). Valid until the next
 * call. */
kv_status kv_gsel_settle(kv_gsel *g, const kv_gsel_drop **drops, uint32_t *n_drops, kv_error *err) KV_WARN_UNUSED;
/* The pages that stay for the guard only, in no order; after the last settle. Valid until the next call. */
kv_status kv_gsel_extras(kv_gsel *g, const kv_gsel_drop **extras, uint32_t *n, kv_error *err) KV_WARN_UNUSED;

#endif
