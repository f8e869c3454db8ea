/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Down to the budget while decoding: single tokens of f16 pages (H2O's and KV-Compress's continual eviction,
 * research/kv-compress.md 2.2), whole sealed pages of other formats, and the cheapest pages of all where the pool runs
 * short. Budgets are those of a compression point (policy/plan.h) over all tokens seen now.
 */
#include "engine/evict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A share is met within 2 % (DESIGN 5). */
#define SHARE_SLACK 1.02

static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ---- budgets */

/* The tail's least number of tokens: the recent ones, and the local ones where tokens are evicted one by one. */
static uint32_t protected_tail(const kv_policy *p, uint32_t n) {
    return kv_policy_by_token(p) ? max_u32(p->base.recent, kv_policy_local(p, n)) : p->base.recent;
}

/* Where a `share` is met: tails begin at a slot that their positions say, so their pages come and go with every token; a
 * budget made where they are most holds for the tokens after it. */
static uint32_t planned_at(const kvist_session *s, const kv_policy *p, uint32_t tail) {
    uint32_t P16 = s->seq->shapes[0].f16_tokens, over = (s->n + P16 - tail % P16 + 1) % P16;
    return p->budget_kind == KV_BUDGET_SHARE && tail && s->n > tail + over ? s->n - over : s->n;
}

static kv_status make_plan(kvist_session *s, const kv_policy *policy, uint32_t *n, kv_error *err) {
    kv_evict *ev = s->evict;
    const kv_model *m = s->e->m;
    kv_policy p;
    kv_policy_for_prompt(policy, s->n, &p);
    *n = planned_at(s, policy, p.base.recent);
    kv_plan_input in = {.policy = &p,
                        .n_layers = m->hp.n_layers,
                        .layers = ev->layers,
                        .page_bytes = (uint32_t)m->page_bytes,
                        .page_overhead = ev->page_overhead,
                        .n_seen = *n,
                        .n_unsealed = *n,
                        .first = true};
    return kv_plan_again(&in, &ev->plan, err);
}

/* Handles of a stream that hold no sinks. */
static uint32_t candidate_pages(const kvist_session *s, const kv_stream *st) {
    return st->n_handles - kv_region_first(s->seq, st);
}

/* ---- single tokens */

/* Sinks that wait in the tail are sealed as soon as there is a token to follow them. */
static kv_status seal_sinks(kvist_session *s, uint32_t layer, kv_stream *st, uint32_t sink, kv_error *err) {
    kv_sealer se;
    kv_run_source src = kv_run_source_of(s->seq, st, NULL, NULL);
    KV_TRY(kv_sealer_init(&se, s, layer, err));
    KV_TRY(kv_sealer_sinks(&se, &src, sink, err));
    KV_TRY(kv_sealer_flush(&se, err));
    kv_tail_drop_front(s->seq, st, sink);
    return KVIST_OK;
}

static bool sinks_wait(const kv_policy *p, const kv_stream *st) {
    return p->base.sink && st->n_handles == 0 && st->tail_pos == 0;
}

/* The tail's oldest token leaves it: into the region while there is room for `most`, in the place of a cheaper one, or out.
 */
static kv_status graduate(kvist_session *s, kv_stream *st, uint32_t most, bool by_position, kv_error *err) {
    if (by_position) st->scores.tail[0] = (float)st->tail_pos;
    uint32_t n = kv_region_tokens(s->seq, st);
    if (n < most) return kv_region_append(s->seq, st, err);
    if (n) {
        uint32_t at = kv_region_lowest(s->seq, st);
        float low = st->scores.slots[(size_t)kv_region_first(s->seq, st) * st->shape->f16_tokens + at];
        if (!(st->scores.tail[0] <= low)) return kv_region_replace(s->seq, st, at, err);
    }
    kv_tail_drop_front(s->seq, st, 1); /* the last of the cheapest itself */
    return KVIST_OK;
}

static kv_status settle_stream(kvist_session *s, const kv_policy *p, uint32_t layer, kv_stream *st, uint32_t most,
                               kv_error *err) {
    kv_layer_policy lp;
    kv_policy_layer(p, layer, &lp);
    uint32_t keep = protected_tail(p, s->n);
    bool by_position = kv_score_goes_on(lp.score) == KV_GOES_BY_POSITION;
    if (sinks_wait(p, st)) {
        if (st->tail_len <= p->base.sink + keep) return KVIST_OK;
        KV_TRY(seal_sinks(s, layer, st, p->base.sink, err));
    }
    KV_TRY(kv_region_compact(s->seq, st, err));
    while (st->tail_len > keep) KV_TRY(graduate(s, st, most, by_position, err));
    while (kv_region_tokens(s->seq, st) > most)
        KV_TRY(kv_region_evict(s->seq, st, kv_region_lowest(s->seq, st), err));
    return KVIST_OK;
}

/* KV-Compress: the streams whose next page is cheapest give one up each, until the pages are as many as the budget. */
static kv_status drop_region_pages(kvist_session *s, const kv_plan *plan, kv_error *err) {
    uint64_t pages = 0;
    float *price = s->evict->price;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        pages += candidate_pages(s, &s->seq->streams[i]);
        price[i] = NAN;
    }
    while (pages > plan->pages_global) {
        uint32_t best = UINT32_MAX, h;
        for (uint32_t i = 0; i < s->seq->n_streams; i++) {
            kv_stream *st = &s->seq->streams[i];
            uint32_t have = candidate_pages(s, st);
            if (!have || have <= plan->floor_pages) continue;
            if (price[i] != price[i]) price[i] = kv_region_price(s->seq, st, &h);
            if (best == UINT32_MAX || price[i] <= price[best]) best = i;
        }
        if (best == UINT32_MAX) break;
        KV_TRY(kv_region_drop_page(s->seq, &s->seq->streams[best], err));
        price[best] = NAN;
        pages--;
    }
    return KVIST_OK;
}

static kv_status settle_tokens(kvist_session *s, const kv_policy *p, kv_error *err) {
    const kv_plan *plan = &s->evict->plan;
    for (uint32_t l = 0; l < s->seq->n_layers; l++)
        for (uint32_t i = s->seq->layer_first[l]; i < s->seq->layer_first[l + 1]; i++) {
            kv_stream *st = &s->seq->streams[i];
            uint32_t most = !plan->evict || plan->global ? UINT32_MAX
                            : plan->by_pages             ? plan->pages[i] * st->shape->f16_tokens
                                                         : plan->tokens[l];
            KV_TRY(settle_stream(s, p, l, st, most, err));
        }
    return plan->evict && plan->global ? drop_region_pages(s, plan, err) : KVIST_OK;
}

/* ---- whole pages */

/* Sinks and pages that hold one of the newest `local` tokens stay; so does what is not sealed yet. */
static bool droppable(const kvist_session *s, const kv_stream *st, uint32_t handle, uint32_t local) {
    const kv_page_entry *e = kv_pool_entry(s->e->pool, st->handles[handle].page);
    if ((e->flags & KV_PAGE_SINK) || !e->n) return false;
    return (e->flags & KV_PAGE_SCORED) || !local || e->first_pos + e->n + local <= s->n;
}

/* The cheapest page that may go; equal prices: the last. UINT32_MAX: none. */
static uint32_t cheapest(const kvist_session *s, const kv_stream *st, uint32_t local) {
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < st->n_handles; i++)
        if (droppable(s, st, i, local) && (best == UINT32_MAX || st->handles[i].price <= st->handles[best].price))
            best = i;
    return best;
}

/* Pages of a stream that count against its budget: of a share all there are, else those of candidates. */
static uint64_t counted(const kvist_session *s, const kv_plan *plan, const kv_stream *st) {
    return plan->by_pages ? (uint64_t)st->n_handles + st->n_tail : candidate_pages(s, st);
}

/* What a share's budget is besides candidates' pages: sinks and the tail of the recent tokens at n. */
static uint32_t fixed_pages(const kv_plan *plan, const kv_stream *st, uint32_t n) {
    uint32_t P16 = st->shape->f16_tokens, pages = (plan->n_sink + P16 - 1) / P16;
    if (!plan->by_pages) return 0;
    if (plan->n_recent) pages += (n - 1) / P16 - (n - plan->n_recent) / P16 + 1;
    return pages;
}

/* Pages' worth of what a share's plan does not foresee: squared queries of positions that no page covers yet, scores of a
 * tail longer than the recent tokens. */
static uint64_t unforeseen(const kvist_session *s, const kv_plan *plan) {
    uint64_t bytes = 0, cost = s->e->m->page_bytes + s->evict->page_overhead;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        const kv_stream *st = &s->seq->streams[i];
        uint32_t longer = st->tail_len > plan->n_recent ? st->tail_len - plan->n_recent : 0;
        bytes += st->q2.n_rows * (uint64_t)st->shape->dk * sizeof(float) + longer * sizeof(float);
    }
    return plan->by_pages ? (bytes + cost - 1) / cost : 0;
}

/* A plan that nothing has to go is about one prompt, whose pages are full but the last and whose tail is short. What is
 * there decides: where it passes the share (and its 2 %), all streams are bounded alike. */
static void bound_share(kvist_session *s, const kv_policy *p, uint32_t n) {
    kv_evict *ev = s->evict;
    uint64_t have = 0, fixed = 0, bytes = 0;
    double target = 0, cost = (double)s->e->m->page_bytes + ev->page_overhead;
    for (uint32_t l = 0; l < s->seq->n_layers; l++) {
        target += p->budget * s->n * (double)ev->layers[l].f16_bytes_token * ev->layers[l].n_streams;
        bytes += (uint64_t)ev->layers[l].q2_bytes * ev->layers[l].n_streams;
    }
    for (uint32_t i = 0; i < s->seq->n_streams; i++) have += s->seq->streams[i].n_handles + s->seq->streams[i].n_tail;
    ev->plan.by_pages = true;
    have += unforeseen(s, &ev->plan);
    if ((double)have * cost + (double)bytes <= SHARE_SLACK * target) return;
    ev->plan.evict = true;
    uint64_t allowed = (uint64_t)fmax((target - (double)bytes) / cost, 0);
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        uint32_t own = fixed_pages(&ev->plan, &s->seq->streams[i], n);
        uint64_t part = allowed / s->seq->n_streams + (i < allowed % s->seq->n_streams);
        ev->plan.pages[i] = part > own ? (uint32_t)(part - own) : 0;
        fixed += own;
    }
    ev->plan.global = p->alloc == KV_ALLOC_GLOBAL;
    ev->plan.pages_global = allowed > fixed ? allowed - fixed : 0;
}

/* Each stream has its own number of pages. */
static void settle_counts(kvist_session *s, uint32_t local) {
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        kv_stream *st = &s->seq->streams[i];
        while (candidate_pages(s, st) > s->evict->plan.pages[i]) {
            uint32_t at = cheapest(s, st, local);
            if (at == UINT32_MAX) break;
            kv_stream_remove(s->seq, st, at);
        }
    }
}

/* A share: all pages together are bounded; the stream that is furthest past its own number gives one up. */
static bool settle_share(kvist_session *s, uint32_t local, uint32_t n) {
    const kv_plan *plan = &s->evict->plan;
    float *stuck = s->evict->price; /* 1: nothing left that may go */
    int64_t over = (int64_t)unforeseen(s, plan);
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        const kv_stream *st = &s->seq->streams[i];
        over += (int64_t)counted(s, plan, st) - plan->pages[i] - fixed_pages(plan, st, n);
        stuck[i] = 0;
    }
    while (over > 0) {
        uint32_t best = UINT32_MAX;
        int64_t most = 0;
        for (uint32_t i = 0; i < s->seq->n_streams; i++) {
            const kv_stream *st = &s->seq->streams[i];
            int64_t past = (int64_t)counted(s, plan, st) - plan->pages[i] - fixed_pages(plan, st, n);
            if (stuck[i] != 0 || past < 1 || past < most) continue;
            most = past;
            best = i;
        }
        if (best == UINT32_MAX) break;
        kv_stream *st = &s->seq->streams[best];
        uint32_t at = cheapest(s, st, local);
        stuck[best] = at == UINT32_MAX;
        if (at == UINT32_MAX) continue;
        kv_stream_remove(s->seq, st, at);
        over--;
    }
    return over <= 0;
}

/* The cheapest pages of all streams go, down to each stream's floor. */
static bool settle_global(kvist_session *s, uint32_t local, uint32_t n) {
    const kv_plan *plan = &s->evict->plan;
    uint64_t have = unforeseen(s, plan), budget = plan->pages_global;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        have += counted(s, plan, &s->seq->streams[i]);
        budget += fixed_pages(plan, &s->seq->streams[i], n);
        s->evict->price[i] = NAN;
    }
    for (; have > budget; have--) {
        uint32_t best = UINT32_MAX;
        float *price = s->evict->price;
        for (uint32_t i = 0; i < s->seq->n_streams; i++) {
            const kv_stream *st = &s->seq->streams[i];
            if (candidate_pages(s, st) <= plan->floor_pages) continue;
            if (price[i] != price[i]) {
                uint32_t at = cheapest(s, st, local);
                price[i] = at == UINT32_MAX ? INFINITY : st->handles[at].price;
            }
            if (price[i] < INFINITY && (best == UINT32_MAX || price[i] <= price[best])) best = i;
        }
        if (best == UINT32_MAX) break;
        kv_stream *st = &s->seq->streams[best];
        kv_stream_remove(s->seq, st, cheapest(s, st, local));
        price[best] = NAN;
    }
    return have <= budget;
}

/* Whether the share holds now. */
static void say_share(kvist_session *s, bool met) {
    kv_point *pt = &s->point;
    const kv_plan *plan = &s->evict->plan;
    pt->share_met = met && plan->share_met;
    if (!plan->share_met)
        memcpy(pt->share_note, plan->share_note, sizeof pt->share_note);
    else
        (void)snprintf(pt->share_note, sizeof pt->share_note, "%s",
                       met ? "" : "what is kept in any case and the f16 tail, which fills no page yet, take more");
}

kv_status kv_evict_settle(kvist_session *s, const kv_policy *policy, kv_error *err) {
    if (policy->when != KV_WHEN_ALWAYS || !s->n) return KVIST_OK;
    uint32_t n;
    KV_TRY(make_plan(s, policy, &n, err));
    /* Every row moves scores: only a snapshot leads back before it. */
    for (uint32_t i = 0; i < s->seq->n_streams; i++) s->seq->streams[i].sealed_at = s->n;
    if (kv_policy_by_token(policy)) return settle_tokens(s, policy, err);
    const kv_plan *plan = &s->evict->plan;
    uint32_t local = kv_policy_local(policy, s->n);
    if (!plan->evict && policy->budget_kind == KV_BUDGET_SHARE) bound_share(s, policy, n);
    bool met = true;
    if (plan->evict && plan->global)
        met = settle_global(s, local, n);
    else if (plan->evict && plan->by_pages)
        met = settle_share(s, local, n);
    else if (plan->evict)
        settle_counts(s, local);
    if (policy->budget_kind == KV_BUDGET_SHARE) say_share(s, met);
    return KVIST_OK;
}

/* The region's first shared page and its last one are copied, a full last page has a successor, sinks get theirs. */
uint32_t kv_evict_pages_needed(const kvist_session *s, const kv_policy *policy) {
    uint32_t need = 0;
    if (!kv_policy_by_token(policy)) return 0;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        const kv_stream *st = &s->seq->streams[i];
        uint32_t P16 = st->shape->f16_tokens, shared = 0;
        if (sinks_wait(policy, st)) need += (policy->base.sink + P16 - 1) / P16;
        for (uint32_t h = 0; h < st->n_handles && shared < 2; h++)
            shared += kv_pool_entry(s->e->pool, st->handles[h].page)->refs > 1;
        need += shared + (kv_region_tokens(s->seq, st) % P16 == 0);
    }
    return need;
}

/* ---- pressure */

enum { VICTIMS = 64 }; /* pages found by one walk over all streams: tens of pages make room for a micro-step */
typedef struct victim {
    float price;
    uint32_t stream, birth;
    kvist_session *s;
} victim;

static uint32_t floor_of(const kvist_session *s, uint32_t stream) {
    const kv_stream *st = &s->seq->streams[stream];
    uint32_t least = s->point.floor_pages;
    const kv_job_target *t = s->job ? &s->job->targets[0] : NULL;
    if (t && t->plan.evict) least += (uint32_t)(t->policy.floor * t->plan.pages[stream]);
    bool bare = !st->tail_len && !kv_region_first(s->seq, st);
    return max_u32(least, bare);
}

/* Streams of layers that a prompt job still reads or writes are left alone, and all of sessions that read together. */
static uint32_t streams_at_rest(const kvist_session *s) {
    if (!s->reading) return s->seq->n_streams;
    if (!s->job || s->job->n_targets > 1) return 0;
    return s->seq->layer_first[s->job->layer < s->seq->n_layers ? s->job->layer : s->seq->n_layers];
}

/* Only a page that nobody else holds comes free. */
static bool comes_free(const kvist_session *s, const kv_stream *st, uint32_t handle, uint32_t local) {
    return droppable(s, st, handle, local) && kv_pool_entry(s->e->pool, st->handles[handle].page)->refs == 1;
}

/* The cheapest pages that may go, rising by price. */
static uint32_t find_victims(kvist_engine *e, victim *v) {
    uint32_t n = 0;
    for (kvist_session *s = e->sessions; s; s = s->next) {
        const kv_policy *p = &s->policies[s->n_policies - 1];
        if (p->when != KV_WHEN_PRESSURE || !s->seq) continue;
        uint32_t local = kv_policy_local(p, s->n), streams = streams_at_rest(s);
        for (uint32_t i = 0; i < streams; i++) {
            const kv_stream *st = &s->seq->streams[i];
            if (candidate_pages(s, st) <= floor_of(s, i)) continue;
            for (uint32_t h = 0; h < st->n_handles; h++) {
                float price = st->handles[h].price;
                if (!comes_free(s, st, h, local) || (n == VICTIMS && !(price < v[n - 1].price))) continue;
                uint32_t at = n < VICTIMS ? n++ : n - 1;
                for (; at && price < v[at - 1].price; at--) v[at] = v[at - 1];
                v[at] = (victim){price, i, st->handles[h].birth, s};
            }
        }
    }
    return n;
}

static bool drop_victim(const victim *v) {
    kv_stream *st = &v->s->seq->streams[v->stream];
    if (candidate_pages(v->s, st) <= floor_of(v->s, v->stream)) return false;
    for (uint32_t h = 0; h < st->n_handles; h++)
        if (st->handles[h].birth == v->birth) {
            kv_stream_remove(v->s->seq, st, h);
            st->sealed_at = max_u32(st->sealed_at, v->s->n);
            v->s->pages_dropped_pressure++;
            return true;
        }
    return false;
}

bool kv_evict_under_pressure(kvist_engine *e, uint64_t bytes) {
    uint64_t each = kv_pool_page_bytes(e->pool) + sizeof(kv_page_entry), freed = 0;
    victim v[VICTIMS];
    uint32_t n = find_victims(e, v);
    for (uint32_t i = 0; i < n && freed < bytes; i++)
        if (drop_victim(&v[i])) freed += each;
    return freed > 0;
}
