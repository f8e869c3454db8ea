/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores and prices while decoding, and the hooks of a compression point that give them their first values. Budgets and
 * evictions are evict_settle.c's.
 */
#include "engine/evict.h"

#include "base/alloc.h"

#include <math.h>
#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ---- scratch */

/* Bytes of mass scratch and budget arrays. */
static uint64_t scratch_bytes(const kvist_session *s, uint32_t pages) {
    const kv_model *m = s->e->m;
    return sizeof(kv_evict) + (uint64_t)m->hp.n_q * sizeof(float) * (1 + (uint64_t)pages * s->evict->slots) +
           m->hp.n_layers * (sizeof(kv_plan_layer) + sizeof(uint32_t)) +
           s->seq->n_streams * (sizeof(uint32_t) + sizeof(float));
}

void kv_evict_free(kvist_session *s) {
    kv_evict *ev = s->evict;
    if (!ev) return;
    kv_pool_discharge(s->e->pool, ev->charged);
    kv_free64(ev->mass);
    kv_free(ev->lse);
    kv_free(ev->layers);
    kv_free(ev->price);
    kv_plan_free(&ev->plan);
    kv_free(ev);
    s->evict = NULL;
}

static uint32_t most_pages(const kvist_session *s) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        uint32_t n = s->seq->streams[i].n_handles + s->seq->streams[i].n_tail;
        if (n > most) most = n;
    }
    return most;
}

/* Pages any stream may come to have: those it has, the rest of the context at the fewest tokens a page, partial first and
 * last pages of sinks, region and tail. */
static uint32_t pages_ahead(const kvist_session *s) {
    uint32_t P16 = s->seq->shapes[0].f16_tokens;
    for (uint32_t l = 1; l < s->seq->n_layers; l++) P16 = min_u32(P16, s->seq->shapes[l].f16_tokens);
    return most_pages(s) + (s->e->p.n_ctx - s->n) / P16 + 8;
}

static kv_status make_scratch(kvist_session *s, kv_error *err) {
    const kv_model *m = s->e->m;
    kv_evict *ev = s->evict = kv_calloc(1, sizeof *ev);
    if (!ev) KV_FAIL(err, MEMORY, "eviction while decoding");
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        uint32_t slots = kv_attn_mass_slots(&m->shapes[l]);
        if (slots > ev->slots) ev->slots = slots;
    }
    ev->cap_pages = pages_ahead(s);
    uint64_t bytes = scratch_bytes(s, ev->cap_pages);
    KV_TRY(kv_engine_room(s->e, 0, bytes, err));
    KV_TRY(kv_pool_charge(s->e->pool, bytes, err));
    ev->charged = bytes;
    ev->mass = kv_malloc64((size_t)m->hp.n_q * ev->cap_pages * ev->slots * sizeof(float));
    ev->lse = kv_calloc(m->hp.n_q, sizeof(float));
    ev->layers = kv_calloc(m->hp.n_layers, sizeof *ev->layers);
    ev->price = kv_calloc(s->seq->n_streams, sizeof *ev->price);
    ev->plan.tokens = kv_calloc(m->hp.n_layers, sizeof *ev->plan.tokens);
    ev->plan.pages = kv_calloc(s->seq->n_streams, sizeof *ev->plan.pages);
    ev->policy = UINT32_MAX;
    if (!ev->mass || !ev->lse || !ev->layers || !ev->price || !ev->plan.tokens || !ev->plan.pages)
        KV_FAIL(err, MEMORY, "eviction while decoding");
    return KVIST_OK;
}

/* Tokens are moved between f16 pages only. */
static kv_status check_pages(const kvist_session *s, kv_error *err) {
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        const kv_stream *st = &s->seq->streams[i];
        for (uint32_t h = 0; h < st->n_handles; h++)
            if (kv_pool_entry(s->e->pool, st->handles[h].page)->format != kv_format_pair(KV_F16, KV_F16))
                KV_FAIL(err, POLICY, "when=always with format=f16 evicts single tokens, but this session already holds "
                        "pages in another format");
    }
    return KVIST_OK;
}

/* What is the same for every token under one policy. */
static kv_status take_policy(kvist_session *s, const kv_policy *policy, kv_error *err) {
    const kv_model *m = s->e->m;
    kv_evict *ev = s->evict;
    if (kv_policy_by_token(policy)) KV_TRY(check_pages(s, err));
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(policy, l, &lp);
        KV_TRY(kv_layer_layout(m, &lp, l, &lay, err));
        ev->layers[l] = (kv_plan_layer){.n_streams = m->hp.n_kv,
                                        .f16_tokens = m->shapes[l].f16_tokens,
                                        .page_tokens = lay.tokens,
                                        .q2_bytes = lay.kind == KV_KIND_LADDER ? m->hp.dk * 4u : 0,
                                        .f16_bytes_token = 2ull * (m->hp.dk + m->hp.dv)};
    }
    kv_plan_input in = {.n_layers = m->hp.n_layers, .page_overhead = sizeof(kv_page_entry) + sizeof(kv_handle)};
    kv_plan_count_scores(policy, ev->layers, &in);
    ev->page_overhead = in.page_overhead;
    ev->policy = (uint32_t)(policy - s->policies);
    return KVIST_OK;
}

/* Most tokens of n that a stream keeps single: the mean, twice it in the first layers of a pyramid; where streams compete
 * there is no bound. */
static double kept_at_most(const kv_policy *p, double n) {
    double mean = kv_policy_tokens(p, n);
    return p->alloc == KV_ALLOC_GLOBAL ? n : fmin(n, p->alloc == KV_ALLOC_UNIFORM ? mean : 2 * mean);
}

/* Room for the scores of a stream up to the context's end, so that no token allocates. Where the budget has none for it,
 * they grow as they need. */
static void reserve_scores(kvist_session *s, const kv_policy *p, uint32_t layer, kv_stream *st, bool fresh) {
    kv_error ignored;
    kv_layer_policy lp;
    uint32_t ctx = s->e->p.n_ctx, P16 = st->shape->f16_tokens;
    bool slots = kv_scores_of_slots(st);
    bool enough = st->scores.cap_tail >= st->tail_len + 2 && (!slots || st->scores.cap_slots >= (st->n_handles + 2) * P16);
    if (enough && !fresh) return;
    kv_policy_layer(p, layer, &lp);
    uint32_t tail = lp.sink + lp.recent + 2;
    if (kv_policy_by_token(p))
        tail += kv_policy_local(p, ctx);
    else
        tail = kv_seals(&lp) ? tail + s->evict->layers[layer].page_tokens : ctx;
    uint32_t handles = slots ? st->n_handles + (uint32_t)kept_at_most(p, ctx) / P16 + 8 : 0;
    (void)!kv_scores_room(s->seq, st, min_u32(tail, ctx), handles, &ignored);
}

kv_status kv_evict_ready(kvist_session *s, const kv_policy *policy, kv_error *err) {
    if (policy->when == KV_WHEN_PREFILL) return KVIST_OK;
    bool slots = kv_policy_by_token(policy);
    if (s->evict && most_pages(s) + 4 > s->evict->cap_pages) kv_evict_free(s); /* more partial pages than foreseen */
    if (!s->evict) {
        kv_status st = make_scratch(s, err);
        if (st) {
            kv_evict_free(s);
            return st;
        }
    }
    if (s->evict->policy != (uint32_t)(policy - s->policies)) KV_TRY(take_policy(s, policy, err));
    for (uint32_t l = 0; l < s->seq->n_layers; l++)
        for (uint32_t i = s->seq->layer_first[l]; i < s->seq->layer_first[l + 1]; i++) {
            kv_stream *st = &s->seq->streams[i];
            bool fresh = !kv_scores_of_tail(st) || (slots && !kv_scores_of_slots(st));
            if (fresh) KV_TRY(kv_scores_begin(s->seq, st, slots, err));
            reserve_scores(s, policy, l, st, fresh);
        }
    return KVIST_OK;
}

/* ---- generated rows */

static uint8_t rule_of(const kv_policy *policy, uint32_t layer, kv_layer_policy *lp) {
    kv_policy_layer(policy, layer, lp);
    return policy->when == KV_WHEN_PREFILL ? KV_GOES_NOT : kv_score_goes_on(lp->score);
}

kv_attn_mass kv_evict_wants(const kvist_session *s, const kv_policy *policy, uint32_t layer) {
    kv_layer_policy lp;
    uint8_t rule = rule_of(policy, layer, &lp);
    if (rule == KV_GOES_NOT || rule == KV_GOES_BY_POSITION) return (kv_attn_mass){0};
    return (kv_attn_mass){.p = s->evict->mass,
                          .cap_pages = s->evict->cap_pages,
                          .slots = kv_attn_mass_slots(&s->seq->shapes[layer]),
                          .square = rule == KV_GOES_BY_SQUARES,
                          .lse = s->evict->lse};
}

/* How a layer's scores move on by what a row adds. */
typedef struct motion {
    const kv_attn_mass *m;
    uint32_t group, heads; /* heads summed for one value: 1, or all of the layer */
    float keep, scale;
} motion;

/* What slot t of page i of head h was given. */
static float given(const motion *mo, uint32_t h, uint32_t i, uint32_t t) {
    float sum = 0;
    if (mo->heads > 1) h = 0;
    for (uint32_t end = h + mo->heads; h < end; h++)
        sum += mo->m->p[(((size_t)h * mo->m->cap_pages + i) * mo->group) * mo->m->slots + t];
    return sum * mo->scale;
}

/* Averaging over the heads of a layer needs their tokens to lie alike, as budgets by layer make them. */
static bool alike(const kv_stream *st, uint32_t n) {
    for (uint32_t h = 1; h < n; h++)
        if (st[h].n_handles != st->n_handles || st[h].tail_len != st->tail_len || st[h].tail_start != st->tail_start)
            return false;
    return true;
}

static void move_handles(const kvist_session *s, const motion *mo, kv_stream *st, uint32_t head) {
    uint32_t P16 = st->shape->f16_tokens;
    for (uint32_t i = 0; i < st->n_handles; i++) {
        const kv_page_entry *e = kv_pool_entry(s->e->pool, st->handles[i].page);
        if (e->flags & KV_PAGE_SINK) continue;
        bool f16 = e->format == kv_format_pair(KV_F16, KV_F16);
        if (kv_scores_of_slots(st) && f16) {
            float *x = st->scores.slots + (size_t)i * P16;
            for (uint32_t t = 0; t < e->n; t++) x[t] = x[t] * mo->keep + given(mo, head, i, t);
            continue;
        }
        float sum = 0;
        for (uint32_t t = f16 ? e->start : 0; t < (f16 ? e->n : 1u); t++) sum += given(mo, head, i, t);
        st->handles[i].price = st->handles[i].price * mo->keep + sum;
    }
}

static void move_tail(const motion *mo, kv_stream *st, uint32_t head) {
    uint32_t P16 = st->shape->f16_tokens;
    for (uint32_t k = 0; k < st->tail_len; k++) {
        uint32_t slot = st->tail_start + k;
        float x = given(mo, head, st->n_handles + slot / P16, slot % P16);
        st->scores.tail[k] = st->scores.tail[k] * mo->keep + x;
    }
}

void kv_evict_note(kvist_session *s, const kv_policy *policy, uint32_t layer) {
    kv_layer_policy lp;
    uint8_t rule = rule_of(policy, layer, &lp);
    kv_attn_mass m = kv_evict_wants(s, policy, layer);
    if (!m.p) return;
    const kv_hparams *hp = &s->e->m->hp;
    kv_stream *st = kv_seq_stream(s->seq, layer, 0);
    motion mo = {.m = &m, .group = hp->n_q / hp->n_kv, .heads = 1, .keep = 1, .scale = 1};
    if (rule == KV_GOES_BY_SQUARES) mo.keep = 1 - 1 / (float)lp.window;
    if (rule == KV_GOES_BY_LAST) {
        mo.keep = 0;
        if (alike(st, hp->n_kv)) mo.heads = hp->n_kv;
        mo.scale = 1 / (float)(mo.heads * mo.group);
    }
    for (uint32_t h = 0; h < hp->n_kv; h++) {
        move_handles(s, &mo, &st[h], h);
        move_tail(&mo, &st[h], h);
    }
}

void kv_evict_sealed_tail(const kvist_session *s, kv_stream *st, const kv_layer_policy *lp, uint32_t sink,
                          uint32_t pages, uint32_t P) {
    if (!kv_scores_of_tail(st)) return;
    for (uint32_t i = 0; i < pages; i++) {
        kv_handle *h = &st->handles[st->n_handles - pages + i];
        float sum = 0;
        for (uint32_t t = 0; t < P; t++) sum += st->scores.tail[sink + i * P + t];
        bool by_position = kv_score_goes_on(lp->score) == KV_GOES_BY_POSITION;
        h->price = by_position ? (float)kv_pool_entry(s->e->pool, h->page)->first_pos : sum;
    }
}

/* ---- prompts */

/* What is left of a score that was earned before this sync. */
static float carried_part(const kv_job_target *t) {
    uint8_t rule = kv_score_goes_on(t->lp.score);
    if (rule == KV_GOES_BY_SQUARES) return powf(1 - 1 / (float)t->lp.window, (float)t->j->n_rows);
    return rule == KV_GOES_BY_SUM;
}

void kv_evict_carried(kv_job_target *t, const kv_stream *st, uint32_t cand0, uint32_t n_cand) {
    if (t->policy.when == KV_WHEN_PREFILL) return;
    float part = carried_part(t);
    for (uint32_t k = cand0; k < st->tail_len && k - cand0 < n_cand; k++)
        t->j->score[k - cand0] += part * st->scores.tail[k];
}

/* Score of run token k: by position it is the position, whatever the sync it came with. */
static float score_at(const kv_job_target *t, const kv_stream *st, uint32_t k, float score) {
    uint32_t first = st->tail_len ? st->tail_pos : t->j->start;
    if (kv_score_goes_on(t->lp.score) == KV_GOES_BY_POSITION) return (float)(first + k);
    return score == score ? score : 0;
}

void kv_evict_sealed(kv_job_target *t, kv_stream *st, const uint32_t *order, const kv_page_plan *p, uint32_t cand0) {
    if (t->policy.when == KV_WHEN_PREFILL) return;
    const float *score = t->j->score;
    uint32_t at = st->n_handles - 1;
    kv_handle *h = &st->handles[at];
    float *slots = kv_scores_of_slots(st) ? st->scores.slots + (size_t)at * st->shape->f16_tokens : NULL;
    if (kv_score_goes_on(t->lp.score) == KV_GOES_BY_POSITION) {
        h->price = score_at(t, st, cand0 + order[0], 0);
    } else if (p->local) { /* they will not be the newest for ever */
        h->price = 0;
        for (uint32_t i = 0; i < p->n; i++) h->price += score_at(t, st, 0, score[order[i]]);
    }
    for (uint32_t i = 0; slots && i < p->n; i++) slots[i] = score_at(t, st, cand0 + order[i], score[order[i]]);
}

void kv_evict_tail(kv_job_target *t, kv_stream *st) {
    if (t->policy.when == KV_WHEN_PREFILL) return;
    float part = carried_part(t);
    bool by_position = kv_score_goes_on(t->lp.score) == KV_GOES_BY_POSITION;
    for (uint32_t i = 0; i < st->tail_len; i++) { /* carried tokens moved to the front with theirs, new ones have 0 */
        float x = t->j->score[i] == t->j->score[i] ? t->j->score[i] : 0;
        st->scores.tail[i] = by_position ? (float)(st->tail_pos + i) : part * st->scores.tail[i] + x;
    }
}

void kv_evict_point(kv_job_target *t) {
    kvist_session *s = t->s;
    uint64_t pages = 0;
    if (t->policy.when != KV_WHEN_PRESSURE || !t->plan.evict) return;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) pages += t->plan.pages[i];
    s->point.floor_pages += (uint32_t)(t->policy.floor * (double)pages / s->seq->n_streams);
}
