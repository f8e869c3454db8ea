/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compression point of one layer: what of the f16 run (tail, then this sync's rows) becomes sealed pages, what is
 * evicted, what stays as the tail. Numbers (budgets, tiers, selection) are policy/plan.h's; bytes are the backend's
 * seal operation.
 */
#include "engine/job.h"
#include "engine/sealer.h"

#include "base/alloc.h"

#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The candidates' place in the run of one stream. */
typedef struct span {
    uint32_t sink, cand, recent;
} span;

/* q2 rows of this sync, in position order. */
static kv_status push_q2(kv_job *j, kv_stream *st, uint32_t head, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    if (j->q2_rows && !st->q2.sum) st->q2.start = st->q2.covered = j->start;
    for (uint32_t r = 0; r < j->q2_rows; r++)
        KV_TRY(kv_q2_push(j->s->seq, st, j->q2 + ((size_t)r * hp->n_kv + head) * hp->dk, err));
    return KVIST_OK;
}

/* Drops the run's first `consumed` tokens from the tail and appends the rows that stay. */
static kv_status settle_tail(kv_job *j, const kv_run_source *src, uint32_t consumed, kv_error *err) {
    kv_stream *st = src->st;
    uint32_t tail = st->tail_len, dropped = min_u32(tail, consumed), from = consumed - dropped;
    if (dropped) kv_tail_drop_front(j->s->seq, st, dropped);
    if (st->tail_len == 0) st->tail_pos = j->start + from;
    for (uint32_t r = from; r < j->n_rows; r++)
        KV_TRY(kv_tail_append(j->s->seq, st, src->k + (size_t)r * src->dk, src->v + (size_t)r * src->dv, err));
    return KVIST_OK;
}

/* Nothing is evicted: pages at fixed boundaries in position order, leftovers stay in the tail. */
static kv_status seal_in_order(kv_job *j, kv_sealer *se, const kv_run_source *src, bool first, kv_error *err) {
    kv_stream *st = src->st;
    uint32_t run = st->tail_len + j->n_rows, sink = first ? min_u32(j->lp.sink, run) : 0, P = j->layout.tokens;
    uint32_t fixed = sink + j->lp.recent, pages = kv_seals(&j->lp) && run > fixed ? (run - fixed) / P : 0;
    if (!pages) return settle_tail(j, src, 0, err);
    KV_TRY(kv_sealer_in_order(se, src, &j->layout, sink, pages, j->start + j->n_rows, err));
    return settle_tail(j, src, sink + pages * P, err);
}

static void add_mass(const kv_job *j, uint32_t head, uint32_t from, uint32_t to, double *acc, double sign) {
    uint32_t g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    for (uint32_t i = 0; i < g; i++) {
        const float *m = j->mass + (size_t)(head * g + i) * j->stride;
        double sum = 0;
        for (uint32_t t = from; t < to; t++) sum += m[t];
        acc[i] += sign * sum;
    }
}

/* Mass over stored tokens that are neither sink nor recent, from the whole (one a query) downwards: later syncs see
 * earlier pages too. */
static void begin_masses(kv_job *j, uint32_t head, kv_job_stream *js, span sp) {
    uint32_t g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    for (uint32_t i = 0; i < g; i++) js->all[i] = (double)j->mass_rows - j->sink_mass[head * g + i];
    add_mass(j, head, 0, sp.sink, js->all, -1.0);
    add_mass(j, head, sp.sink + sp.cand, sp.sink + sp.cand + sp.recent, js->all, -1.0);
    add_mass(j, head, sp.sink, sp.sink + sp.cand, js->evicted,
             1.0); /* all candidates; kept pages are taken off again */
}

/* Sum of a query head's mass over a page's tokens. */
static float page_mass(const kv_job *j, uint32_t query, const uint32_t *order, const kv_page_plan *p, uint32_t cand0) {
    const float *m = j->mass + (size_t)query * j->stride + cand0;
    double sum = 0;
    for (uint32_t t = 0; t < p->n; t++) sum += m[order[p->first + t]];
    return (float)sum;
}

static uint32_t cut_stream(kv_job *j, uint32_t head, span sp) {
    const kv_hparams *hp = &j->e->m->hp;
    uint32_t g = hp->n_q / hp->n_kv, run = sp.sink + sp.cand + sp.recent, local = min_u32(j->plan.n_local, sp.cand),
             P = j->layout.tokens;
    kv_score_finish(&j->lp, j->sums + (size_t)head * g * j->stride, j->stride, g, run, sp.sink, sp.cand, j->score,
                    j->score_scratch);
    uint32_t ranked = sp.cand - local, keep = ranked, unit;
    if (j->plan.global) {
        unit = j->plan.mean_tokens;
    } else {
        keep = unit = min_u32(kv_plan_keep(&j->plan, P, j->layer, j->s->seq->layer_first[j->layer] + head), ranked);
    }
    return kv_cut_pages(j->score, sp.cand, local, keep, P, j->plan.global, unit, j->order, j->cuts, j->cut_scratch);
}

static kv_status seal_cut(kv_job *j, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp, uint32_t c,
                          const float *q2, kv_error *err) {
    const kv_page_plan *p = &j->cuts[c];
    uint32_t g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    double *ev = j->streams[j->s->seq->layer_first[j->layer] + head].evicted;
    for (uint32_t i = 0; i < g; i++) ev[i] -= page_mass(j, head * g + i, j->order, p, sp.sink);
    return kv_sealer_page(se, src, &j->layout, sp.sink, j->order + p->first, p->n, p->price,
                          p->local ? KV_PAGE_LOCAL : KV_PAGE_SCORED, q2, err);
}

/* Uniform and pyramid budgets: a stream's pages are known at once. */
static kv_status seal_ranked(kv_job *j, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                             uint32_t n_cuts, const float *q2, kv_error *err) {
    for (uint32_t c = 0; c < n_cuts; c++) KV_TRY(seal_cut(j, se, src, head, sp, c, q2, err));
    return KVIST_OK;
}

/* Remembers a stream's pages for the global selection; births are given when (and if) a page is sealed. */
static kv_status offer_pages(kv_job *j, uint32_t head, span sp, uint32_t n_cuts, kv_error *err) {
    kv_job_stream *js = &j->streams[j->s->seq->layer_first[j->layer] + head];
    uint32_t g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    js->n_pages = n_cuts;
    js->pages = kv_calloc(n_cuts + 1, sizeof *js->pages);
    js->page_mass = kv_calloc((size_t)(n_cuts + 1) * g, sizeof(float));
    float *price = kv_malloc((n_cuts + 1) * sizeof(float));
    if (!js->pages || !js->page_mass || !price) {
        kv_free(price);
        KV_FAIL(err, MEMORY, "prices of %u pages", n_cuts);
    }
    for (uint32_t c = 0; c < n_cuts; c++) {
        price[c] = j->cuts[c].price;
        js->pages[c].sealed = true;
        for (uint32_t i = 0; i < g; i++)
            js->page_mass[(size_t)c * g + i] = page_mass(j, head * g + i, j->order, &j->cuts[c], sp.sink);
    }
    kv_status st = kv_gsel_add(j->gsel, j->layer, head, price, n_cuts, err);
    kv_free(price);
    return st;
}

/* A page that leaves the global set: not sealed if it is this layer's, else its handle is removed and the page freed.
 */
static void drop_page(kv_job *j, const kv_gsel_drop *d) {
    uint32_t si = j->s->seq->layer_first[d->layer] + d->head, g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    kv_job_stream *js = &j->streams[si];
    js->pages[d->page].sealed = false;
    if (d->layer == j->layer) return;
    for (uint32_t i = 0; i < g; i++) js->evicted[i] += js->page_mass[(size_t)d->page * g + i];
    kv_stream *st = &j->s->seq->streams[si];
    for (uint32_t h = st->n_handles; h-- > 0;)
        if (st->handles[h].birth == js->pages[d->page].birth) {
            kv_stream_remove(j->s->seq, st, h);
            return;
        }
}

static kv_status seal_survivors(kv_job *j, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                                uint32_t n_cuts, const float *q2, kv_error *err) {
    kv_job_stream *js = &j->streams[j->s->seq->layer_first[j->layer] + head];
    for (uint32_t c = 0; c < n_cuts; c++) {
        if (!js->pages[c].sealed) continue;
        js->pages[c].birth = src->st->next_birth;
        KV_TRY(seal_cut(j, se, src, head, sp, c, q2, err));
    }
    return KVIST_OK;
}

static span span_of(const kv_job *j, const kv_stream *st, bool first) {
    uint32_t run = st->tail_len + j->n_rows;
    span sp = {.sink = first ? min_u32(j->lp.sink, run) : 0};
    sp.recent = min_u32(j->lp.recent, run - sp.sink);
    sp.cand = run - sp.sink - sp.recent;
    return sp;
}

static kv_status evict_stream(kv_job *j, kv_sealer *se, const kv_run_source *src, uint32_t head, span sp,
                              uint32_t n_cuts, bool first, kv_error *err) {
    float *q2 = kv_sealer_q2(se);
    kv_q2_mean(src->st, j->start + j->n_rows, q2);
    if (first) KV_TRY(kv_sealer_sinks(se, src, sp.sink, err));
    KV_TRY(j->plan.global ? seal_survivors(j, se, src, head, sp, n_cuts, q2, err)
                          : seal_ranked(j, se, src, head, sp, n_cuts, q2, err));
    KV_TRY(kv_sealer_flush(se, err));
    src->st->sealed_at = j->start + j->n_rows;
    return settle_tail(j, src, sp.sink + sp.cand, err);
}

/* All streams of the layer are offered before any is sealed: the global selection settles once a layer. The cut of a
 * stream is recomputed then instead of being kept: it is cheap beside the layer, and one stream's arrays serve all. */
static kv_status evict_layer(kv_job *j, kv_sealer *se, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_seq *seq = j->s->seq;
    for (uint32_t h = 0; h < hp->n_kv; h++) {
        kv_stream *st = kv_seq_stream(seq, j->layer, h);
        span sp = span_of(j, st, st->n_handles == 0 && st->tail_pos == 0);
        KV_TRY(push_q2(j, st, h, err));
        begin_masses(j, h, &j->streams[seq->layer_first[j->layer] + h], sp);
        if (j->plan.global) KV_TRY(offer_pages(j, h, sp, cut_stream(j, h, sp), err));
    }
    if (j->plan.global) {
        const kv_gsel_drop *drops;
        uint32_t n;
        KV_TRY(kv_gsel_settle(j->gsel, &drops, &n, err));
        for (uint32_t i = 0; i < n; i++) drop_page(j, &drops[i]);
    }
    for (uint32_t h = 0; h < hp->n_kv; h++) {
        kv_stream *st = kv_seq_stream(seq, j->layer, h);
        bool first = st->n_handles == 0 && st->tail_pos == 0;
        span sp = span_of(j, st, first);
        kv_run_source src =
            kv_run_source_of(seq, st, j->kf + (size_t)h * j->n_rows * hp->dk, j->vf + (size_t)h * j->n_rows * hp->dv);
        KV_TRY(evict_stream(j, se, &src, h, sp, cut_stream(j, h, sp), first, err));
        kv_q2_trim(seq, st);
    }
    return KVIST_OK;
}

kv_status kv_job_compress_layer(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_sealer se;
    KV_TRY(kv_sealer_init(&se, j->s, j->layer, err));
    if (j->plan.evict) { return evict_layer(j, &se, err); }
    for (uint32_t h = 0; h < hp->n_kv; h++) {
        kv_stream *st = kv_seq_stream(j->s->seq, j->layer, h);
        kv_run_source src = kv_run_source_of(j->s->seq, st, j->kf + (size_t)h * j->n_rows * hp->dk,
                                             j->vf + (size_t)h * j->n_rows * hp->dv);
        KV_TRY(push_q2(j, st, h, err));
        KV_TRY(seal_in_order(j, &se, &src, st->n_handles == 0 && st->tail_pos == 0, err));
        kv_q2_trim(j->s->seq, st);
        kv_trim_window(j->s, st, j->start + j->n_rows);
    }
    return KVIST_OK;
}

/* Retained mass of a KV head: the least of its query heads (DESIGN 5); a denominator below 1e-3 a query gives 1. */
void kv_job_finish_masses(kv_job *j) {
    kvist_session *s = j->s;
    s->point.share_met = j->plan.share_met;
    memcpy(s->point.share_note, j->plan.share_note, sizeof s->point.share_note);
    s->point.mass_position = j->start + j->n_rows;
    if (!j->plan.evict) return;
    uint32_t g = j->e->m->hp.n_q / j->e->m->hp.n_kv;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        const kv_job_stream *js = &j->streams[i];
        double least = 1.0;
        for (uint32_t q = 0; q < g; q++) {
            if (js->all[q] < 1e-3 * j->mass_rows) continue;
            double kept = 1.0 - js->evicted[q] / js->all[q];
            if (kept < least) least = kept;
        }
        s->seq->streams[i].mass *= (float)(least < 0 ? 0 : least);
    }
}
