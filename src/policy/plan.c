/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Budgets of one compression point (docs/policies.md, "How a budget becomes pages"). Owns the split of a stream's
 * unsealed tokens into sinks, candidates and recent ones, and turns keep, tokens, rate and share into counts or pages.
 * Must not know: pages' contents, scores. Invariants: n_sink + n_candidates + n_recent = n_unsealed; n_local <= tokens
 * kept <= n_candidates; the bytes of a share are those that kv_seq_count will find, up to the page that does not fit
 * (tail pages begin at positions that are multiples of an f16 page's tokens).
 */
#include "policy/plan.h"

#include "base/alloc.h"
#include "policy/allocate/allocate.h"
#include "policy/guard.h"

#include <math.h>
#include <stdio.h>

/* A share is met within 2 % (DESIGN 5). */
#define SHARE_SLACK 1.02

typedef struct planner {
    const kv_plan_input *in;
    kv_plan *out;
    const kv_alloc_method *alloc;
    uint32_t n_streams;   /* over all layers */
    uint32_t page_tokens; /* P when all layers' are equal, else 0 */
    uint32_t page_tokens_max;
    uint32_t own;     /* tokens this budget is about: those the sync added; on the first all unsealed */
    uint32_t carried; /* unsealed tokens of earlier syncs: kept whatever happens to the own ones */
} planner;

static uint32_t div_up(uint64_t a, uint32_t b) { return (uint32_t)((a + b - 1) / b); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
/* Whole tokens of a fraction: 0.3 x 1000 is 300 also where the product is 299.9999... */
static uint32_t fraction(double f, uint32_t n) { return min_u32(n, (uint32_t)floor(f * n * (1 + 1e-12))); }
static uint64_t page_cost(const planner *pl) { return (uint64_t)pl->in->page_bytes + pl->in->page_overhead; }

static kv_status open_planner(planner *pl, const kv_plan_input *in, kv_plan *out, kv_error *err) {
    *pl = (planner){.in = in, .out = out, .alloc = kv_alloc_at(in->policy->alloc)};
    if (!pl->alloc || !in->n_layers || in->n_unsealed > in->n_seen || in->n_before > in->n_seen)
        KV_FAIL(err, ARG, "compression point: counts do not fit");
    if (!in->first && in->n_seen - in->n_before > in->n_unsealed)
        KV_FAIL(err, ARG, "compression point: new tokens are sealed already");
    pl->page_tokens = in->layers[0].page_tokens;
    for (uint32_t l = 0; l < in->n_layers; l++) {
        const kv_plan_layer *la = &in->layers[l];
        if (!la->page_tokens || !la->f16_tokens)
            KV_FAIL(err, ARG, "compression point: layer %u has pages without tokens", l);
        pl->n_streams += la->n_streams;
        pl->page_tokens_max = max_u32(pl->page_tokens_max, la->page_tokens);
        if (la->page_tokens != pl->page_tokens) pl->page_tokens = 0;
    }
    pl->own = in->first ? in->n_unsealed : in->n_seen - in->n_before;
    pl->carried = in->n_unsealed - pl->own;
    return KVIST_OK;
}

/* Sinks are sealed once `recent` newer tokens exist, like any token; until then all wait in the tail. */
static void split(const planner *pl) {
    const kv_layer_policy *base = &pl->in->policy->base;
    kv_plan *out = pl->out;
    uint32_t n = pl->in->n_unsealed, sink = pl->in->first ? base->sink : 0;
    if ((uint64_t)sink + base->recent > n) {
        out->n_recent = n;
        return;
    }
    out->n_sink = sink;
    out->n_recent = base->recent;
    out->n_candidates = n - sink - base->recent;
}

/* No rule keeps a stream's first tokens, nor (unless sinks were given up for them) its newest: its ranking must have a
 * page, or nothing is left that attention can rest on. */
static bool bare(const planner *pl) {
    const kv_plan *out = pl->out;
    return pl->in->first && !out->n_sink && (!out->n_recent || pl->in->policy->base.sink_room);
}

/* The newest candidates that `local` protects when a stream keeps `kept` tokens; recent ones are among the newest. */
static uint32_t local_tokens(const planner *pl, uint32_t kept) {
    const kv_policy *p = pl->in->policy;
    uint32_t n = p->local_of_kept > 0 ? fraction(p->local_of_kept, kept)
                 : p->local < 1       ? fraction(p->local, pl->own)
                                      : (uint32_t)fmin(p->local, pl->in->n_unsealed);
    n = n > pl->out->n_recent ? n - pl->out->n_recent : 0;
    return min_u32(n, pl->out->n_candidates);
}

/* ---- nothing evicted */

static void keep_all(const planner *pl) {
    kv_plan *out = pl->out;
    out->evict = out->global = false;
    out->n_local = 0;
    uint32_t s = 0;
    for (uint32_t l = 0; l < pl->in->n_layers; l++) {
        out->tokens[l] = out->n_candidates;
        for (uint32_t h = 0; h < pl->in->layers[l].n_streams; h++)
            out->pages[s++] = out->n_candidates / pl->in->layers[l].page_tokens;
    }
}

/* ---- keep, rate, tokens */

/* Tokens that pages of earlier compression points hold, a stream: whole pages. */
static double stored_before(const planner *pl) {
    double tokens = 0;
    for (uint32_t l = 0; l < pl->in->n_layers; l++)
        tokens += (double)pl->in->layers[l].page_tokens * pl->in->layers[l].n_streams;
    return (double)pl->in->bytes_before / (double)page_cost(pl) * tokens / ((double)pl->n_streams * pl->n_streams);
}

static uint32_t kept_candidates(const planner *pl) {
    const kv_policy *p = pl->in->policy;
    const kv_plan *out = pl->out;
    double all = p->budget_kind == KV_BUDGET_KEEP   ? (double)fraction(p->budget, pl->own) + pl->carried
                 : p->budget_kind == KV_BUDGET_RATE ? (double)fraction(1 / p->budget, pl->own) + pl->carried
                 : p->budget_kind == KV_BUDGET_MASS ? (double)pl->in->n_unsealed /* scores say how many of them */
                                                    : p->budget - floor(stored_before(pl));
    double rest = all - out->n_sink - out->n_recent;
    uint32_t k = rest <= 0 ? 0 : rest >= out->n_candidates ? out->n_candidates : (uint32_t)rest;
    /* A later sync pays for one page anyway; a stream that keeps nothing at all has nothing to attend to. */
    if (!pl->in->first)
        k = max_u32(k, min_u32(pl->page_tokens_max, out->n_candidates));
    else if (bare(pl))
        k = max_u32(k, 1);
    return k;
}

/* floor= of the mean pages; at least one page where a stream would otherwise be empty. */
static void finish_global(const planner *pl) {
    kv_plan *out = pl->out;
    bool page_each = bare(pl);
    if (page_each && out->pages_global < pl->n_streams) out->pages_global = pl->n_streams;
    out->floor_pages = (uint32_t)floor(pl->in->policy->floor * (double)out->pages_global / pl->n_streams * (1 + 1e-12));
    if (page_each && !out->floor_pages) out->floor_pages = 1;
    out->global = true;
}

static void plan_counts(const planner *pl) {
    const kv_plan_input *in = pl->in;
    kv_plan *out = pl->out;
    uint32_t k = kept_candidates(pl), s = 0;
    out->n_local = min_u32(k, local_tokens(pl, k + out->n_sink + out->n_recent));
    pl->alloc->spread(in->policy, in->layers, in->n_layers, k - out->n_local, out->n_candidates - out->n_local,
                      out->tokens);
    for (uint32_t l = 0; l < in->n_layers; l++) {
        uint32_t p = in->layers[l].page_tokens, heavy = out->tokens[l], local_pages = div_up(out->n_local, p);
        out->evict |= heavy < out->n_candidates - out->n_local;
        out->tokens[l] = heavy + out->n_local;
        out->pages_global +=
            (uint64_t)in->layers[l].n_streams * local_pages + div_up((uint64_t)in->layers[l].n_streams * heavy, p);
        for (uint32_t h = 0; h < in->layers[l].n_streams; h++) out->pages[s++] = div_up(heavy, p) + local_pages;
    }
    out->mean_tokens = max_u32(k, 1);
    out->evict |= in->policy->budget_kind == KV_BUDGET_MASS;
    if (!out->evict)
        keep_all(pl);
    else if (pl->alloc->global)
        finish_global(pl);
    if (!out->global) out->pages_global = 0;
}

/* ---- share */

/* Pages of the f16 tail of n tokens that ends at n_seen: slots are positions modulo p16. */
static uint32_t tail_pages(const planner *pl, uint32_t n, uint32_t p16) {
    if (!n) return 0;
    uint32_t end = pl->in->n_seen;
    return (end - 1) / p16 - (end - n) / p16 + 1;
}

/* Bytes besides sealed candidates. leftovers: nothing is evicted, so what fills no page stays in the tail, and sinks
 * wait there for the first page. */
static uint64_t other_bytes(const planner *pl, bool leftovers) {
    const kv_plan *out = pl->out;
    uint64_t sum = pl->in->bytes_before;
    for (uint32_t l = 0; l < pl->in->n_layers; l++) {
        const kv_plan_layer *la = &pl->in->layers[l];
        uint32_t sink = out->n_sink, tail = out->n_recent;
        if (leftovers) tail += out->n_candidates % la->page_tokens;
        if (leftovers && out->n_candidates < la->page_tokens) tail += sink, sink = 0;
        uint64_t pages = (uint64_t)div_up(sink, la->f16_tokens) + tail_pages(pl, tail, la->f16_tokens);
        sum += la->n_streams * (pages * page_cost(pl) + la->q2_bytes);
    }
    return sum;
}

static uint64_t bytes_of_all(const planner *pl) {
    uint64_t pages = 0;
    for (uint32_t l = 0; l < pl->in->n_layers; l++)
        pages += (uint64_t)pl->in->layers[l].n_streams * (pl->out->n_candidates / pl->in->layers[l].page_tokens);
    return other_bytes(pl, true) + pages * page_cost(pl);
}

/* Local tokens among k kept candidates, in whole pages where all layers' pages hold as many: a partial page would be
 * paid whole. */
static uint32_t local_in_pages(const planner *pl, uint32_t k) {
    uint32_t n = min_u32(k, local_tokens(pl, k + pl->out->n_sink + pl->out->n_recent)), p = pl->page_tokens;
    if (!p) return n;
    return min_u32((n + p / 2) / p * p, pl->out->n_candidates);
}

/* Sets n_local and tokens[] = ranked tokens for a mean of k kept candidates; returns the pages this takes. */
static uint64_t try_kept(const planner *pl, uint32_t k) {
    const kv_plan_input *in = pl->in;
    kv_plan *out = pl->out;
    uint64_t pages = 0;
    out->n_local = local_in_pages(pl, k);
    uint32_t cap = out->n_candidates - out->n_local, mean = k > out->n_local ? k - out->n_local : 0;
    pl->alloc->spread(in->policy, in->layers, in->n_layers, min_u32(mean, cap), cap, out->tokens);
    for (uint32_t l = 0; l < in->n_layers; l++)
        pages += (uint64_t)in->layers[l].n_streams *
                 (div_up(out->tokens[l], in->layers[l].page_tokens) + div_up(out->n_local, in->layers[l].page_tokens));
    return pages;
}

/* Largest mean of kept candidates whose pages fit; what is left over goes one page each in layer, head order. Returns
 * pages used. */
static uint64_t fill_pages(const planner *pl, uint64_t budget) {
    const kv_plan_input *in = pl->in;
    kv_plan *out = pl->out;
    uint32_t low = 0, high = out->n_candidates;
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        if (try_kept(pl, mid) <= budget)
            low = mid;
        else
            high = mid - 1;
    }
    uint64_t used = try_kept(pl, low), left = used < budget ? budget - used : 0;
    uint32_t s = 0;
    for (uint32_t l = 0; l < in->n_layers; l++) {
        uint32_t p = in->layers[l].page_tokens, ranked = div_up(out->tokens[l], p);
        for (uint32_t h = 0; h < in->layers[l].n_streams; h++) out->pages[s++] = ranked + div_up(out->n_local, p);
        out->tokens[l] = min_u32(ranked * p, out->n_candidates - out->n_local) + out->n_local;
    }
    for (bool gave = true; gave && left;) {
        gave = false;
        s = 0;
        for (uint32_t l = 0; l < in->n_layers; l++) {
            uint32_t p = in->layers[l].page_tokens,
                     most = div_up(out->n_local, p) + div_up(out->n_candidates - out->n_local, p);
            for (uint32_t h = 0; h < in->layers[l].n_streams; h++, s++) {
                if (!left || out->pages[s] >= most) continue;
                out->pages[s]++;
                used++;
                left--;
                gave = true;
            }
        }
    }
    return used;
}

/* Global: pages over all streams; local ones count and are limited to the pages there are. */
static uint64_t fill_global(const planner *pl, uint64_t budget) {
    const kv_plan_input *in = pl->in;
    kv_plan *out = pl->out;
    uint64_t most = 0;
    double tokens = 0;
    for (uint32_t l = 0; l < in->n_layers; l++) tokens += (double)in->layers[l].page_tokens * in->layers[l].n_streams;
    double mean = (double)budget * tokens / ((double)pl->n_streams * pl->n_streams);
    uint32_t k = mean >= out->n_candidates ? out->n_candidates : (uint32_t)mean;
    out->n_local = min_u32(k, local_in_pages(pl, k));
    if (pl->page_tokens)
        out->n_local =
            out->n_local == out->n_candidates ? out->n_local : out->n_local / pl->page_tokens * pl->page_tokens;
    for (uint32_t l = 0; l < in->n_layers; l++) {
        uint32_t p = in->layers[l].page_tokens;
        most +=
            (uint64_t)in->layers[l].n_streams * (div_up(out->n_local, p) + div_up(out->n_candidates - out->n_local, p));
        out->tokens[l] = k;
    }
    out->mean_tokens = max_u32(k, 1);
    out->pages_global = budget < most ? budget : most;
    finish_global(pl);
    return out->pages_global;
}

static void note_share(const planner *pl, double target, uint64_t fixed, uint64_t total) {
    kv_plan *out = pl->out;
    out->share_target = target;
    out->share_total = (double)total;
    out->share_met = (double)total <= target * SHARE_SLACK;
    if (out->share_met) return;
    const char *what = (double)pl->in->bytes_before > target ? "pages of earlier syncs"
                       : (double)fixed > target              ? "sinks, recent tokens and q2"
                                                             : "one page a stream";
    (void)snprintf(out->share_note, sizeof out->share_note, "%s alone take %.4g MiB of the %.4g MiB asked for", what,
                   (double)((double)pl->in->bytes_before > target ? pl->in->bytes_before
                            : (double)fixed > target              ? fixed
                                                                  : total) /
                       1048576,
                   target / 1048576);
}

static void plan_share(const planner *pl) {
    const kv_plan_input *in = pl->in;
    kv_plan *out = pl->out;
    double target = 0;
    for (uint32_t l = 0; l < in->n_layers; l++)
        target += (double)in->layers[l].f16_bytes_token * in->layers[l].n_streams;
    target *= in->policy->budget * in->n_seen;
    uint64_t fixed = other_bytes(pl, false), all = bytes_of_all(pl);
    if (!out->n_candidates) {
        keep_all(pl);
        note_share(pl, target, fixed, all);
        return;
    }
    if ((double)all <= target * SHARE_SLACK) {
        keep_all(pl);
        (void)snprintf(out->share_note, sizeof out->share_note, "nothing needed to be evicted");
        return;
    }
    uint64_t budget = target > (double)fixed ? (uint64_t)((target - (double)fixed) / (double)page_cost(pl)) : 0;
    if ((!in->first || bare(pl)) && budget < pl->n_streams) budget = pl->n_streams;
    out->evict = out->by_pages = true;
    uint64_t used = pl->alloc->global ? fill_global(pl, budget) : fill_pages(pl, budget);
    note_share(pl, target, fixed, fixed + used * page_cost(pl));
}

/* Counts that scores will decide: equal ones until then. */
static kv_status open_keep(const planner *pl, kv_error *err) {
    kv_plan *out = pl->out;
    if (!out->evict || !pl->alloc->settle) return KVIST_OK;
    out->keep = kv_calloc(pl->n_streams ? pl->n_streams : 1, sizeof *out->keep);
    if (!out->keep) KV_FAIL(err, MEMORY, "no memory for the plan of %u streams", pl->n_streams);
    for (uint32_t l = 0, s = 0; l < pl->in->n_layers; l++)
        for (uint32_t h = 0; h < pl->in->layers[l].n_streams; h++, s++)
            out->keep[s] = kv_plan_keep(out, pl->in->layers[l].page_tokens, l, s);
    out->by_scores = true;
    out->least = bare(pl) && !out->n_local;
    return KVIST_OK;
}

static void fill(const planner *pl) {
    const kv_policy *p = pl->in->policy;
    split(pl);
    if (p->when == KV_WHEN_PRESSURE)
        keep_all(pl);
    else if (p->budget_kind == KV_BUDGET_SHARE)
        plan_share(pl);
    else if (!kv_policy_evicts(p) || !pl->out->n_candidates)
        keep_all(pl);
    else
        plan_counts(pl);
}

/* Nothing has to go now, but pages may later: all candidates are ranked, priced and cut in tiers as if some had to. */
static void price_all(const planner *pl) {
    kv_plan *out = pl->out;
    uint32_t s = 0;
    out->evict = true;
    out->global = pl->alloc->global;
    out->n_local = local_tokens(pl, out->n_candidates + out->n_sink + out->n_recent);
    out->mean_tokens = max_u32(out->n_candidates, 1);
    for (uint32_t l = 0; l < pl->in->n_layers; l++) {
        uint32_t p = pl->in->layers[l].page_tokens;
        uint32_t pages = div_up(out->n_candidates - out->n_local, p) + div_up(out->n_local, p);
        for (uint32_t h = 0; h < pl->in->layers[l].n_streams; h++) out->pages[s++] = pages;
        if (out->global) out->pages_global += (uint64_t)pl->in->layers[l].n_streams * pages;
    }
}

kv_status kv_plan_make(const kv_plan_input *in, kv_plan *out, kv_error *err) {
    *out = (kv_plan){.share_met = true};
    planner pl;
    KV_TRY(open_planner(&pl, in, out, err));
    out->tokens = kv_calloc(in->n_layers, sizeof *out->tokens);
    out->pages = kv_calloc(pl.n_streams ? pl.n_streams : 1, sizeof *out->pages);
    if (!out->tokens || !out->pages) {
        kv_plan_free(out);
        KV_FAIL(err, MEMORY, "no memory for the plan of %u streams", pl.n_streams);
    }
    fill(&pl);
    if (in->policy->when != KV_WHEN_PREFILL && out->n_candidates && !out->evict) price_all(&pl);
    out->page_cost = (uint32_t)page_cost(&pl);
    if (out->evict && in->policy->guard > 0) {
        uint64_t budget = out->pages_global;
        for (uint32_t s = 0; s < pl.n_streams && !out->global; s++) budget += out->pages[s];
        out->guard_pages = kv_guard_limit(in->policy->guard_max, budget);
    }
    kv_status st = open_keep(&pl, err);
    if (st) kv_plan_free(out);
    return st;
}

void kv_plan_note_guard(kv_plan *p, uint64_t extra_pages) {
    double added = (double)extra_pages * p->page_cost;
    if (!extra_pages || p->share_target <= 0 || !p->share_met) return;
    p->share_met = p->share_total + added <= p->share_target * SHARE_SLACK;
    if (p->share_met) return;
    (void)snprintf(p->share_note, sizeof p->share_note,
                   "the guard added %llu pages, %.4g MiB, to the %.4g MiB asked for", (unsigned long long)extra_pages,
                   added / 1048576, p->share_target / 1048576);
}

kv_status kv_plan_again(const kv_plan_input *in, kv_plan *out, kv_error *err) {
    planner pl;
    *out = (kv_plan){.share_met = true, .tokens = out->tokens, .pages = out->pages};
    KV_TRY(open_planner(&pl, in, out, err));
    fill(&pl);
    return KVIST_OK;
}

void kv_plan_free(kv_plan *p) {
    kv_free(p->tokens);
    kv_free(p->pages);
    kv_free(p->keep);
    *p = (kv_plan){0};
}

uint32_t kv_plan_keep(const kv_plan *p, uint32_t page_tokens, uint32_t layer, uint32_t stream) {
    uint32_t all = p->n_candidates - p->n_local;
    if (!p->evict || p->global) return all;
    if (p->by_scores) return p->keep[stream];
    if (!p->by_pages) return min_u32(all, p->tokens[layer] - p->n_local);
    uint64_t ranked = (uint64_t)(p->pages[stream] - div_up(p->n_local, page_tokens)) * page_tokens;
    return ranked < all ? (uint32_t)ranked : all;
}
