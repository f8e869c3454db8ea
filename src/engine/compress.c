/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compression point of one layer for one target: what of the f16 run (tail, then this sync's rows) becomes sealed
 * pages, what is evicted, what stays as the tail. Numbers (scores, budgets, tiers, selection) are policy/plan.h's;
 * bytes are the backend's seal operation. Must not know which other targets read the same rows.
 */
#include "engine/evict.h"
#include "engine/shadow.h"

#include "policy/guard.h"

#include <assert.h>
#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The candidates' place in the run of one stream. */
typedef struct span {
    uint32_t sink, cand, recent;
} span;

/* The ranked and cut candidates of one stream: order[] and n pages of it, in the job's scratch. The first `own` are the
 * stream's whatever a selection says: none where it is global. */
typedef struct cut {
    uint32_t *order;
    kv_page_plan *pages;
    uint32_t n, own;
} cut;

static uint32_t group_of(const kv_job_target *t) { return t->j->e->m->hp.n_q / t->j->e->m->hp.n_kv; }

static kv_job_stream *job_stream(const kv_job_target *t, uint32_t head) {
    return &t->streams[t->s->seq->layer_first[t->j->layer] + head];
}

/* q2 rows of this sync, in position order. */
static kv_status push_q2(kv_job_target *t, kv_stream *st, uint32_t head, kv_error *err) {
    const kv_job *j = t->j;
    const kv_hparams *hp = &j->e->m->hp;
    uint32_t rows = t->weighs ? j->q2_rows : 0;
    if (rows) KV_TRY(kv_engine_room(j->e, 0, (rows + 1ull) * hp->dk * sizeof(float), err));
    if (rows && !st->q2.sum) st->q2.start = st->q2.covered = j->start;
    for (uint32_t r = 0; r < rows; r++)
        KV_TRY(kv_q2_push(t->s->seq, st, j->q2 + ((size_t)r * hp->n_kv + head) * hp->dk, err));
    return KVIST_OK;
}

/* Drops the run's first `consumed` tokens from the tail and appends the rows that stay. */
static kv_status settle_tail(kv_job_target *t, const kv_run_source *src, uint32_t consumed, kv_error *err) {
    kv_stream *st = src->st;
    uint32_t tail = st->tail_len, dropped = min_u32(tail, consumed), from = consumed - dropped;
    if (dropped) kv_tail_drop_front(t->s->seq, st, dropped);
    if (st->tail_len == 0) st->tail_pos = t->j->start + from;
    KV_TRY(kv_engine_room(t->j->e, (t->j->n_rows - from) / st->shape->f16_tokens + 2, 0, err));
    for (uint32_t r = from; r < t->j->n_rows; r++)
        KV_TRY(kv_tail_append(t->s->seq, st, src->k + (size_t)r * src->dk, src->v + (size_t)r * src->dv, err));
    return KVIST_OK;
}

/* Nothing is evicted: pages at fixed boundaries in position order, leftovers stay in the tail. */
static kv_status seal_in_order(kv_job_target *t, kv_sealer *se, const kv_run_source *src, bool first, kv_error *err) {
    kv_stream *st = src->st;
    uint32_t run = st->tail_len + t->j->n_rows, sink = first ? min_u32(t->lp.sink, run) : 0, P = t->layout.tokens;
    uint32_t fixed = sink + t->lp.recent, pages = kv_seals(&t->lp) && run > fixed ? (run - fixed) / P : 0;
    if (!pages) return settle_tail(t, src, 0, err);
    KV_TRY(kv_sealer_in_order(se, src, &t->layout, sink, pages, t->j->start + t->j->n_rows, err));
    return settle_tail(t, src, sink + pages * P, err);
}

/* Mass of one query head over the run, [keys]. */
static const float *mass_of(const kv_job_target *t, uint32_t query) {
    return t->j->passes[t->mass_pass].mass + (size_t)query * t->j->stride;
}

static void add_mass(const kv_job_target *t, uint32_t head, uint32_t from, uint32_t to, double *acc, double sign) {
    uint32_t g = group_of(t);
    for (uint32_t i = 0; i < g; i++) {
        const float *m = mass_of(t, head * g + i);
        double sum = 0;
        for (uint32_t k = from; k < to; k++) sum += m[k];
        acc[i] += sign * sum;
    }
}

/* Mass over stored tokens that are neither sink nor recent, from the whole (one a query) downwards: later syncs see
 * earlier pages too. */
static void begin_masses(kv_job_target *t, uint32_t head, span sp) {
    kv_job_stream *js = job_stream(t, head);
    const float *sink_mass = t->j->passes[t->mass_pass].sink_mass;
    uint32_t g = group_of(t);
    js->queries = t->mass_rows;
    for (uint32_t i = 0; i < g; i++) js->all[i] = js->queries - sink_mass[head * g + i];
    add_mass(t, head, 0, sp.sink, js->all, -1.0);
    uint32_t run = sp.sink + sp.cand + sp.recent;
    add_mass(t, head, run - min_u32(sp.recent, t->kept_recent), run, js->all, -1.0);
    add_mass(t, head, sp.sink, sp.sink + sp.cand, js->evicted,
             1.0); /* all candidates; kept pages are taken off again */
}

/* Sum of a query head's mass over a page's tokens. */
static float page_mass(const kv_job_target *t, uint32_t query, const uint32_t *order, const kv_page_plan *p,
                       uint32_t cand0) {
    const float *m = mass_of(t, query) + cand0;
    double sum = 0;
    for (uint32_t i = 0; i < p->n; i++) sum += m[order[p->first + i]];
    return (float)sum;
}

static bool sinks_unsealed(const kv_stream *st) { return st->n_handles == 0 && st->tail_pos == 0; }

static span span_of(const kv_job_target *t, const kv_stream *st) {
    uint32_t run = st->tail_len + t->j->n_rows;
    span sp = {.sink = sinks_unsealed(st) ? min_u32(t->lp.sink, run) : 0};
    sp.recent = min_u32(t->lp.recent, run - sp.sink);
    sp.cand = run - sp.sink - sp.recent;
    return sp;
}

static kv_run_source run_of(const kv_job_target *t, uint32_t head) {
    const kv_job *j = t->j;
    const kv_hparams *hp = &j->e->m->hp;
    return kv_run_source_of(t->s->seq, kv_seq_stream(t->s->seq, j->layer, head),
                            j->kf + (size_t)head * j->n_kept * hp->dk, j->vf + (size_t)head * j->n_kept * hp->dv);
}

/* Scores a stream's candidates: everything about its run that this sync knows. */
static void score_stream(const kv_job_target *t, const kv_run_source *src, uint32_t head, span sp, float *score) {
    kv_job *j = t->j;
    kv_score_input in = {.layer = j->layer,
                         .head = head,
                         .n_heads = j->e->m->hp.n_kv,
                         .group = group_of(t),
                         .first_pos = src->st->tail_len ? src->st->tail_pos : j->start,
                         .n_keys = sp.sink + sp.cand + sp.recent,
                         .cand0 = sp.sink,
                         .n_cand = sp.cand,
                         .sums = t->need.pass ? j->passes[t->sums_pass].sums : NULL,
                         .stride = j->stride,
                         .rows = kv_run_rows,
                         .run = src,
                         .dk = src->dk,
                         .dv = src->dv,
                         .forms = t->need.forms ? kv_foresee_logits(j, src, head) : NULL,
                         .forms_stride = j->stride};
    kv_score_stream(&t->lp, &in, score, j->score_scratch);
}

/* To j->score: what this sync's rows say of the candidates, and what is left of what carried ones had earned before. */
static void score_candidates(kv_job_target *t, const kv_run_source *src, uint32_t head, span sp) {
    score_stream(t, src, head, sp, t->j->score);
    kv_evict_carried(t, src->st, sp.sink, sp.cand);
}

/* To j->score: the recent tokens', which become the tail. */
static void score_recent(kv_job_target *t, const kv_run_source *src, uint32_t head, span sp) {
    span recent = {.sink = sp.sink + sp.cand, .cand = sp.recent};
    if (sp.recent) score_stream(t, src, head, recent, t->j->score);
}

static uint32_t local_of(const kv_job_target *t, span sp) { return min_u32(t->plan.n_local, sp.cand); }

/* Ranked candidates that a stream's budget pages: all of them where the selection is global. */
static uint32_t keep_of(const kv_job_target *t, uint32_t head, span sp) {
    uint32_t layer = t->j->layer, ranked = sp.cand - local_of(t, sp);
    if (t->plan.global) return ranked;
    return min_u32(kv_plan_keep(&t->plan, t->layout.tokens, layer, t->s->seq->layer_first[layer] + head), ranked);
}

/* Where a stream's scores lie: of all heads of the layer where they decide its counts. */
static float *score_of(const kv_job_target *t, uint32_t head) {
    return t->j->score + (t->plan.by_scores ? (size_t)head * t->j->keys : 0);
}

/* Ranks and cuts a stream whose scores are there. The result lies in scratch: of its own by head where pages
 * are up for selection, else until the next stream's. */
static cut cut_scored(kv_job_target *t, uint32_t head, span sp, uint32_t keep) {
    kv_job *j = t->j;
    size_t slot = kv_job_selects(t) ? head : 0;
    cut c = {.order = j->order + slot * j->keys, .pages = j->cuts + slot * j->cap_cuts};
    c.n = kv_cut_pages(score_of(t, head), sp.cand, local_of(t, sp), keep, t->layout.tokens, t->plan.global,
                       t->plan.global ? t->plan.mean_tokens : keep, c.order, c.pages, j->cut_scratch);
    c.own = t->plan.global ? 0 : c.n;
    return c;
}

static cut cut_stream(kv_job_target *t, const kv_run_source *src, uint32_t head, span sp) {
    if (!t->plan.by_scores) score_candidates(t, src, head, sp);
    return cut_scored(t, head, sp, keep_of(t, head, sp));
}

/* What a head retains with its own pages alone. */
static double retained_by_own(const kv_job_target *t, uint32_t head, span sp, const cut *c) {
    const kv_job_stream *js = job_stream(t, head);
    uint32_t g = group_of(t);
    double least = 1;
    for (uint32_t i = 0; i < g; i++) {
        double evicted = js->evicted[i];
        for (uint32_t p = 0; p < c->own; p++) evicted -= page_mass(t, head * g + i, c->order, &c->pages[p], sp.sink);
        double kept = kv_guard_retained(&js->all[i], &evicted, 1, js->queries);
        if (kept < least) least = kept;
    }
    return least;
}

/* A count that the guard may pass. A stream whose own pages retain too little fills its last one, and the candidates
 * beyond are cut by rank into pages that are up for selection. */
static cut cut_guarded(kv_job_target *t, const kv_run_source *src, uint32_t head, span sp, double target) {
    cut c = cut_stream(t, src, head, sp);
    if (retained_by_own(t, head, sp, &c) >= target) return c;
    uint32_t local = local_of(t, sp), P = t->layout.tokens, keep = keep_of(t, head, sp), whole = (keep + P - 1) / P * P;
    if (whole != keep) c = cut_scored(t, head, sp, keep = min_u32(whole, sp.cand - local));
    c.n += kv_cut_rest(score_of(t, head), sp.cand, local, keep, P, c.order, c.pages + c.n, t->j->cut_scratch);
    return c;
}

/* Counts of the layer's streams, where their scores decide them. */
static void settle_counts(kv_job_target *t) {
    kv_job *j = t->j;
    uint32_t n_kv = j->e->m->hp.n_kv;
    for (uint32_t h = 0; h < n_kv; h++) {
        kv_run_source src = run_of(t, h);
        span sp = span_of(t, src.st);
        assert(sp.cand == t->plan.n_candidates);
        score_stream(t, &src, h, sp, j->score + (size_t)h * j->keys);
    }
    kv_plan_settle(&t->plan, &t->policy, t->layout.tokens, j->layer, t->s->seq->layer_first[j->layer], n_kv, j->score,
                   j->keys, j->settle_scratch);
}

static kv_status seal_cut(kv_job_target *t, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                          const cut *c, uint32_t page, const float *q2, kv_error *err) {
    const kv_page_plan *p = &c->pages[page];
    uint32_t g = group_of(t);
    double *ev = job_stream(t, head)->evicted;
    for (uint32_t i = 0; i < g; i++) ev[i] -= page_mass(t, head * g + i, c->order, p, sp.sink);
    KV_TRY(kv_sealer_page(se, src, &t->layout, sp.sink, c->order + p->first, p->n, p->price,
                          p->local ? KV_PAGE_LOCAL : KV_PAGE_SCORED, q2, err));
    kv_evict_sealed(t, src->st, c->order + p->first, p, sp.sink);
    return KVIST_OK;
}

/* Budgets that are not global: a stream's pages are known at once. */
static kv_status seal_ranked(kv_job_target *t, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                             const float *q2, kv_error *err) {
    cut c = cut_stream(t, src, head, sp);
    for (uint32_t i = 0; i < c.n; i++) KV_TRY(seal_cut(t, se, src, head, sp, &c, i, q2, err));
    return KVIST_OK;
}

/* Remembers a stream's pages for the selection; births are given when (and if) a page is sealed. */
static kv_status offer_pages(kv_job_target *t, uint32_t head, kv_error *err) {
    kv_run_source src = run_of(t, head);
    span sp = span_of(t, src.st);
    kv_job_stream *js = job_stream(t, head);
    double target = kv_guard_target(t->policy.guard, src.st->mass);
    cut c = t->plan.global ? cut_stream(t, &src, head, sp) : cut_guarded(t, &src, head, sp, target);
    uint32_t g = group_of(t), n_guard = 0;
    float *price = t->j->price;
    assert(c.n <= js->cap_pages);
    js->n_pages = c.n;
    js->n_own = c.own;
    for (uint32_t i = 0; i < c.n; i++) {
        price[i] = c.pages[i].price;
        js->pages[i].sealed = true;
        for (uint32_t q = 0; q < g; q++)
            js->page_mass[(size_t)i * g + q] = page_mass(t, head * g + q, c.order, &c.pages[i], sp.sink);
    }
    kv_guard_stream offered = {.price = price + c.own,
                               .mass = js->page_mass + (size_t)c.own * g,
                               .all = js->all,
                               .n = c.n - c.own,
                               .group = g,
                               .queries = js->queries};
    if (t->plan.guard_pages) n_guard = kv_guard_prefix(&offered, target, t->j->guard_scratch);
    return kv_gsel_add_guarded(t->gsel, t->j->layer, head, offered.price, offered.n, n_guard, err);
}

/* The handle of a page that was sealed in this sync; NULL: not sealed. */
static kv_handle *handle_of(const kv_job_target *t, const kv_gsel_drop *d) {
    uint32_t si = t->s->seq->layer_first[d->layer] + d->head;
    const kv_job_stream *js = &t->streams[si];
    const kv_stream *st = &t->s->seq->streams[si];
    for (uint32_t h = st->n_handles; h-- > 0;)
        if (st->handles[h].birth == js->pages[js->n_own + d->page].birth) return &st->handles[h];
    return NULL;
}

/* A page that leaves the selection: not sealed if it is this layer's, else its handle is removed and the page freed. */
static void drop_page(kv_job_target *t, const kv_gsel_drop *d) {
    uint32_t si = t->s->seq->layer_first[d->layer] + d->head, g = group_of(t);
    kv_job_stream *js = &t->streams[si];
    uint32_t page = js->n_own + d->page;
    js->pages[page].sealed = false;
    if (d->layer == t->j->layer) return;
    for (uint32_t i = 0; i < g; i++) js->evicted[i] += js->page_mass[(size_t)page * g + i];
    kv_stream *st = &t->s->seq->streams[si];
    const kv_handle *h = handle_of(t, d);
    if (h) kv_stream_remove(t->s->seq, st, (uint32_t)(h - st->handles));
}

/* What the selection left of a stream that was offered. */
static kv_status seal_survivors(kv_job_target *t, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                                const float *q2, kv_error *err) {
    kv_job_stream *js = job_stream(t, head);
    cut c = {.order = t->j->order + (size_t)head * t->j->keys,
             .pages = t->j->cuts + (size_t)head * t->j->cap_cuts,
             .n = js->n_pages};
    if (t->policy.when != KV_WHEN_PREFILL) score_candidates(t, src, head, sp); /* other heads' came in between */
    for (uint32_t i = 0; i < c.n; i++) {
        if (!js->pages[i].sealed) continue;
        js->pages[i].birth = src->st->next_birth;
        KV_TRY(seal_cut(t, se, src, head, sp, &c, i, q2, err));
    }
    return KVIST_OK;
}

static kv_status evict_stream(kv_job_target *t, kv_sealer *se, uint32_t head, kv_error *err) {
    kv_run_source src = run_of(t, head);
    span sp = span_of(t, src.st);
    uint32_t end = t->j->start + t->j->n_rows;
    float *q2 = kv_sealer_q2(se);
    kv_q2_mean(src.st, end, q2);
    KV_TRY(kv_sealer_sinks(se, &src, sp.sink, err));
    KV_TRY(kv_job_selects(t) ? seal_survivors(t, se, &src, head, sp, q2, err)
                             : seal_ranked(t, se, &src, head, sp, q2, err));
    KV_TRY(kv_sealer_flush(se, err));
    src.st->sealed_at = end;
    if (t->policy.when != KV_WHEN_PREFILL) score_recent(t, &src, head, sp);
    KV_TRY(settle_tail(t, &src, sp.sink + sp.cand, err));
    kv_evict_tail(t, src.st);
    kv_q2_trim(t->s->seq, src.st);
    return KVIST_OK;
}

/* All streams of the layer are offered before any is sealed: a selection settles once a layer. */
static kv_status evict_layer(kv_job_target *t, kv_sealer *se, kv_error *err) {
    uint32_t n_kv = t->j->e->m->hp.n_kv;
    for (uint32_t h = 0; h < n_kv; h++) {
        kv_run_source src = run_of(t, h);
        span sp = span_of(t, src.st);
        KV_TRY(push_q2(t, src.st, h, err));
        begin_masses(t, h, sp);
    }
    if (t->plan.by_scores) settle_counts(t);
    if (kv_job_selects(t)) {
        for (uint32_t h = 0; h < n_kv; h++) KV_TRY(offer_pages(t, h, err));
        const kv_gsel_drop *drops;
        uint32_t n;
        KV_TRY(kv_gsel_settle(t->gsel, &drops, &n, err));
        for (uint32_t i = 0; i < n; i++) drop_page(t, &drops[i]);
    }
    for (uint32_t h = 0; h < n_kv; h++) KV_TRY(evict_stream(t, se, h, err));
    return KVIST_OK;
}

kv_status kv_job_compress_layer(kv_job_target *t, kv_error *err) {
    const kv_job *j = t->j;
    kv_sealer se;
    KV_TRY(kv_sealer_init(&se, t->s, j->layer, err));
    if (t->s->shadow) kv_shadow_rows(t->s->shadow, j->layer, j->start, j->n_rows, j->n_kept, j->kf, j->vf);
    if (t->plan.evict) return evict_layer(t, &se, err);
    for (uint32_t h = 0; h < j->e->m->hp.n_kv; h++) {
        kv_run_source src = run_of(t, h);
        KV_TRY(push_q2(t, src.st, h, err));
        KV_TRY(seal_in_order(t, &se, &src, sinks_unsealed(src.st), err));
        kv_q2_trim(t->s->seq, src.st);
        kv_trim_window(t->s, src.st, j->start + j->n_rows);
    }
    return KVIST_OK;
}

/* Marks what stays for the guard only, so that reports find it by walking the pages. */
static kv_status mark_guard_pages(kv_job_target *t, kv_error *err) {
    const kv_gsel_drop *extras;
    uint32_t n;
    KV_TRY(kv_gsel_extras(t->gsel, &extras, &n, err));
    for (uint32_t i = 0; i < n; i++) {
        const kv_handle *h = handle_of(t, &extras[i]);
        if (h) kv_pool_entry(t->j->e->pool, h->page)->flags |= KV_PAGE_GUARD;
    }
    kv_plan_note_guard(&t->plan, n);
    return KVIST_OK;
}

kv_status kv_job_finish_masses(kv_job_target *t, kv_error *err) {
    kvist_session *s = t->s;
    if (t->plan.guard_pages) KV_TRY(mark_guard_pages(t, err));
    s->point.share_met = t->plan.share_met;
    memcpy(s->point.share_note, t->plan.share_note, sizeof s->point.share_note);
    s->point.mass_position = t->j->start + t->j->n_rows;
    for (uint32_t i = 0; t->plan.evict && i < s->seq->n_streams; i++) {
        const kv_job_stream *js = &t->streams[i];
        s->seq->streams[i].mass *= (float)kv_guard_retained(js->all, js->evicted, group_of(t), js->queries);
    }
    return KVIST_OK;
}
