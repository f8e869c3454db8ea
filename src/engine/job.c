/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prompt job's admission and end: plans each target's compression point, then allocates everything the job will need
 * and charges it to the pool, so that what cannot be held is refused before the first row.
 */
#include "engine/evict.h"

#include "base/alloc.h"
#include "policy/guard.h"
#include "policy/rest.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* A heap entry of the global selection, and the half that its array may grow beyond what it holds (policy/gsel.c). */
enum { SELECTION_BYTES = 20 + 10 };

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static kv_status charge(kv_job *j, uint64_t bytes, kv_error *err) {
    KV_TRY(kv_engine_room(j->e, 0, bytes, err));
    KV_TRY(kv_pool_charge(j->e->pool, bytes, err));
    j->charged += bytes;
    return KVIST_OK;
}

static void *charged_alloc(kv_job *j, size_t bytes, bool zero, kv_error *err, kv_status *st) {
    if (*st) return NULL;
    if (bytes == 0) bytes = 64;
    *st = charge(j, bytes, err);
    if (*st) return NULL;
    void *p = kv_malloc64(bytes);
    if (!p) {
        *st = kv_fail(err, KVIST_E_MEMORY, "%zu bytes of prefill scratch", bytes);
        return NULL;
    }
    if (zero) memset(p, 0, bytes);
    return p;
}

static kv_status make_plan(kv_job_target *t, kv_error *err) {
    const kv_job *j = t->j;
    const kv_model *m = j->e->m;
    const kv_seq *seq = t->s->seq;
    uint32_t L = m->hp.n_layers;
    kv_plan_layer *layers = kv_calloc(L, sizeof *layers);
    if (!layers) KV_FAIL(err, MEMORY, "compression plan");
    kv_status st = KVIST_OK;
    kv_seq_bytes now;
    kv_seq_count(seq, NULL, &now);
    uint64_t spent = now.bytes_true - now.bytes_positions; /* who looks at a cache does not change it */
    const kv_stream *st0 = &seq->streams[0];
    uint64_t tail_bytes = 0;
    for (uint32_t i = 0; i < seq->n_streams; i++)
        tail_bytes += (uint64_t)seq->streams[i].n_tail * (m->page_bytes + sizeof(kv_page_entry) + 4);
    for (uint32_t l = 0; l < L && !st; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(&t->policy, l, &lp);
        st = kv_layer_layout(m, &lp, l, &lay, err);
        if (st) break;
        bool q2 = lay.kind == KV_KIND_LADDER;
        t->weighs |= q2;
        kv_score_need need;
        kv_score_needs(&lp, &need);
        t->echoes |= need.echo;
        layers[l] = (kv_plan_layer){.n_streams = m->hp.n_kv,
                                    .f16_tokens = m->shapes[l].f16_tokens,
                                    .page_tokens = lay.tokens,
                                    .q2_bytes = q2 ? m->hp.dk * 4u : 0,
                                    .f16_bytes_token = 2ull * (m->hp.dk + m->hp.dv)};
    }
    kv_plan_input in = {.policy = &t->policy,
                        .n_layers = L,
                        .layers = layers,
                        .page_bytes = (uint32_t)m->page_bytes,
                        .page_overhead = sizeof(kv_page_entry) + sizeof(kv_handle),
                        .n_seen = j->start + j->n_rows,
                        .n_before = j->start,
                        .n_unsealed = st0->tail_len + j->n_rows,
                        .first = st0->n_handles == 0 && st0->tail_pos == 0,
                        .bytes_before = spent > tail_bytes ? spent - tail_bytes : 0};
    if (in.first) in.bytes_before = 0;
    if (!st) kv_plan_count_scores(&t->policy, layers, &in);
    if (!st) st = kv_plan_make(&in, &t->plan, err);
    t->echoes &= t->plan.evict;
    kv_free(layers);
    return st;
}

static void longest_run(kv_job *j) {
    uint32_t tail = 0;
    const kv_seq *seq = j->targets[0].s->seq;
    for (uint32_t i = 0; i < seq->n_streams; i++)
        if (seq->streams[i].tail_len > tail) tail = seq->streams[i].tail_len;
    j->keys = j->n_rows + tail;
    j->stride = (j->keys + (j->n_kept - j->n_rows) + 15u) & ~15u;
    j->cap_cuts = j->keys / 8 + 8; /* pages hold 8 tokens at least; two may be partial */
}

static kv_status alloc_rows(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_status st = KVIST_OK;
    size_t rows = j->n_rows + j->n_echo, kept = j->n_kept;
    bool weighs = false;
    for (uint32_t i = 0; i < j->n_targets; i++) weighs |= j->targets[i].weighs;
    if (weighs && j->start < KV_Q2_POSITIONS) j->q2_rows = min_u32(j->n_rows, KV_Q2_POSITIONS - j->start);
    j->x = charged_alloc(j, rows * hp->n_embd * sizeof(float), false, err, &st);
    j->kf = charged_alloc(j, kept * hp->n_kv * hp->dk * 2, false, err, &st);
    j->vf = charged_alloc(j, kept * hp->n_kv * hp->dv * 2, false, err, &st);
    if (j->q2_rows) j->q2 = charged_alloc(j, (size_t)j->q2_rows * hp->n_kv * hp->dk * sizeof(float), false, err, &st);
    return st;
}

static kv_status alloc_foresight(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_status st = KVIST_OK;
    kv_score_moments *moments = charged_alloc(j, hp->n_q * sizeof *moments, true, err, &st);
    j->foresight.moments = moments;
    j->foresight_floats = charged_alloc(j, kv_foresee_floats(hp, j->stride) * sizeof(float), true, err, &st);
    if (!st) kv_foresee_open(j, j->foresight_floats, moments);
    return st;
}

static kv_status alloc_rest(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_job_rest *r = &j->rest;
    kv_status st = KVIST_OK;
    size_t now = (size_t)r->rows * hp->n_q, all = now * hp->n_layers;
    kv_rest_input one = kv_job_rest_input(j, 0, 0);
    r->q = charged_alloc(j, all * hp->dk * sizeof *r->q, false, err, &st);
    r->whole = charged_alloc(j, all * hp->dv * sizeof *r->whole, false, err, &st);
    r->whole_lse = charged_alloc(j, all * sizeof(float), false, err, &st);
    r->mean = charged_alloc(j, (size_t)hp->n_layers * hp->n_kv * hp->dk * sizeof(float), false, err, &st);
    r->now = charged_alloc(j, now * hp->dk * sizeof(float), false, err, &st);
    r->out = charged_alloc(j, now * hp->dv * sizeof(float), false, err, &st);
    r->lse = charged_alloc(j, now * sizeof(float), false, err, &st);
    r->scratch = charged_alloc(j, kv_rest_scratch(&one), false, err, &st);
    return st;
}

/* What every target's compression uses in its turn, and the sums of the layer that needs most of them. */
static kv_status alloc_scoring(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_status st = KVIST_OK;
    size_t keys = j->keys, sums = 0, mass = 0, heads = 1, one = hp->n_q * j->stride * sizeof(float);
    bool foresees = false, settles = false;
    for (uint32_t i = 0; i < j->n_targets; i++) {
        if (kv_job_selects(&j->targets[i])) heads = hp->n_kv;
        settles |= j->targets[i].plan.by_scores;
    }
    for (j->layer = 0; j->layer < hp->n_layers; j->layer++) {
        kv_job_plan_passes(j);
        if (j->n_sums > sums) sums = j->n_sums;
        if (j->n_mass > mass) mass = j->n_mass;
        foresees |= j->foresight.wanted;
    }
    j->layer = 0;
    if (sums) j->sums = charged_alloc(j, sums * one, false, err, &st);
    j->mass = charged_alloc(j, mass * one, false, err, &st);
    j->sink_mass = charged_alloc(j, mass * hp->n_q * sizeof(float), false, err, &st);
    j->score = charged_alloc(j, (settles ? hp->n_kv : 1) * keys * sizeof(float), false, err, &st);
    j->score_scratch = charged_alloc(j, 2 * keys * sizeof(float), false, err, &st);
    j->price = charged_alloc(j, j->cap_cuts * sizeof(float), false, err, &st);
    j->guard_scratch = charged_alloc(j, kv_guard_scratch(j->cap_cuts), false, err, &st);
    j->order = charged_alloc(j, heads * keys * sizeof(uint32_t), false, err, &st);
    j->cuts = charged_alloc(j, heads * j->cap_cuts * sizeof(kv_page_plan), false, err, &st);
    j->cut_scratch = charged_alloc(j, kv_cut_scratch((uint32_t)keys), false, err, &st);
    if (settles)
        j->settle_scratch = charged_alloc(j, kv_plan_settle_scratch((uint32_t)keys, hp->n_kv), false, err, &st);
    return st || !foresees ? st : alloc_foresight(j, err);
}

/* Pages that a stream of a layer may offer to the global selection. */
static uint32_t most_cuts(const kv_job_target *t, uint32_t layer, kv_error *err, kv_status *st) {
    kv_layer_policy lp;
    kv_page_layout lay = {.tokens = 8};
    kv_policy_layer(&t->policy, layer, &lp);
    if (!*st) *st = kv_layer_layout(t->j->e->m, &lp, layer, &lay, err);
    return *st ? 0 : t->j->keys / lay.tokens + 3; /* three may be partial: ranked, local, rest */
}

static kv_status alloc_selection(kv_job_target *t, uint32_t group, kv_error *err) {
    kv_job *j = t->j;
    const kv_seq *seq = t->s->seq;
    kv_status st = KVIST_OK;
    size_t all = 0, layer_most = 0;
    for (uint32_t l = 0; l < seq->n_layers; l++) {
        size_t n = (size_t)most_cuts(t, l, err, &st) * (seq->layer_first[l + 1] - seq->layer_first[l]);
        if (n > layer_most) layer_most = n;
        all += n;
    }
    KV_TRY(st);
    kv_job_page *pages = t->streams[0].pages = charged_alloc(j, all * sizeof *pages, true, err, &st);
    float *mass = t->streams[0].page_mass = charged_alloc(j, all * group * sizeof *mass, true, err, &st);
    KV_TRY(st);
    for (uint32_t l = 0; l < seq->n_layers; l++) {
        uint32_t cap = most_cuts(t, l, err, &st);
        for (uint32_t i = seq->layer_first[l]; i < seq->layer_first[l + 1]; i++) {
            t->streams[i].pages = pages;
            t->streams[i].page_mass = mass;
            t->streams[i].cap_pages = cap;
            pages += cap;
            mass += (size_t)cap * group;
        }
    }
    uint64_t most = t->plan.pages_global + t->plan.guard_pages;
    size_t held = most < all ? (size_t)most + layer_most : all;
    KV_TRY(charge(j, held * SELECTION_BYTES, err));
    KV_TRY(kv_gsel_create(t->plan.pages_global, t->plan.floor_pages, seq->n_streams, &t->gsel, err));
    kv_gsel_guard(t->gsel, t->plan.guard_pages);
    return KVIST_OK;
}

static kv_status alloc_target(kv_job_target *t, kv_error *err) {
    kv_job *j = t->j;
    const kv_hparams *hp = &j->e->m->hp;
    kv_status st = KVIST_OK;
    uint32_t g = hp->n_q / hp->n_kv, n = t->s->seq->n_streams;
    if (!t->plan.evict) return KVIST_OK;
    t->streams = charged_alloc(j, n * sizeof *t->streams, true, err, &st);
    double *acc = charged_alloc(j, 2ull * n * g * sizeof(double), true, err, &st);
    if (st) {
        kv_free64(acc);
        return st;
    }
    for (uint32_t i = 0; i < n; i++) {
        t->streams[i].all = acc + 2ull * i * g;
        t->streams[i].evicted = acc + (2ull * i + 1) * g;
    }
    return kv_job_selects(t) ? alloc_selection(t, g, err) : KVIST_OK;
}

kv_status kv_job_named(const kv_job_target *t, kv_status st, kv_error *err) {
    if (!st || t->j->n_targets == 1 || !err) return st;
    char why[sizeof err->message], policy[256];
    memcpy(why, err->message, sizeof why);
    kv_policy_print(&t->policy, policy, sizeof policy);
    return kv_fail(err, st, "session %u of %u (%.120s): %.300s", (unsigned)(t - t->j->targets) + 1, t->j->n_targets,
                   policy, why);
}

/* What the lists of all streams may grow by for n more tokens: a handle and a tail page each f16 page, and half as many
 * again. */
static uint64_t list_bytes(const kvist_session *s, uint32_t n) {
    uint64_t pages = n / s->seq->shapes[0].f16_tokens + 8;
    return s->seq->n_streams * pages * (sizeof(kv_handle) + sizeof(uint32_t)) * 3 / 2;
}

static kv_status admit(kv_job *j, kvist_session *const *s, kv_error *err) {
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        const kv_policy *p = &s[i]->policies[s[i]->todo[s[i]->at_todo].policy];
        *t = (kv_job_target){.j = j, .s = s[i], .policy = *p, .kept_recent = p->base.recent};
        KV_TRY(kv_job_named(t, kv_evict_ready(s[i], p, err), err));
        kv_policy_for_prompt(p, j->start + j->n_rows, &t->policy);
        KV_TRY(kv_job_named(t, make_plan(t, err), err));
        j->evict |= t->plan.evict;
        if (t->echoes) j->n_echo = j->n_rows;
    }
    j->n_kept = j->n_rows + min_u32(j->n_echo, KV_ECHO_ROWS);
    longest_run(j);
    KV_TRY(alloc_rows(j, err));
    if (j->evict) KV_TRY(alloc_scoring(j, err));
    kv_job_rest_plan(j);
    if (j->rest.wanted) KV_TRY(alloc_rest(j, err));
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        KV_TRY(kv_job_named(t, alloc_target(t, err), err));
        KV_TRY(kv_job_named(t, kv_engine_room(j->e, 0, list_bytes(t->s, j->n_rows), err), err));
        KV_TRY(kv_job_named(t, kv_seq_reserve(t->s->seq, j->n_rows, err), err));
    }
    return KVIST_OK;
}

kv_status kv_job_create(kvist_session *const *s, uint32_t n, kv_job **out, kv_error *err) {
    const kv_run *run = &s[0]->todo[s[0]->at_todo];
    kv_job *j = kv_calloc(1, sizeof *j);
    *out = NULL;
    if (!j) KV_FAIL(err, MEMORY, "prompt job");
    for (uint32_t i = 0; i < n; i++) assert(n == 1 || (s[i]->n == 0 && s[i]->todo[s[i]->at_todo].end == run->end));
    j->e = s[0]->e;
    j->last = s[0]->at_todo + 1 == s[0]->n_todo;
    j->start = s[0]->n;
    j->n_rows = run->end - j->start;
    j->phase = KV_JOB_EMBED;
    j->targets = kv_calloc(n, sizeof *j->targets);
    j->passes = kv_calloc(n, sizeof *j->passes);
    kv_pool_reset_peak(j->e->pool);
    kv_status st = KVIST_OK;
    if (!j->targets || !j->passes) {
        st = kv_fail(err, KVIST_E_MEMORY, "prompt job of %u sessions", n);
    } else {
        j->n_targets = n;
        st = admit(j, s, err);
    }
    if (st) {
        kv_job_free(&j);
        return st;
    }
    *out = j;
    return KVIST_OK;
}

static void free_target(kv_job_target *t) {
    if (t->streams) {
        kv_free64(t->streams[0].all);
        kv_free64(t->streams[0].pages);
        kv_free64(t->streams[0].page_mass);
        kv_free64(t->streams);
    }
    kv_gsel_free(&t->gsel);
    kv_plan_free(&t->plan);
}

void kv_job_free(kv_job **pj) {
    kv_job *j = *pj;
    *pj = NULL;
    if (!j) return;
    for (uint32_t i = 0; i < j->n_targets; i++) free_target(&j->targets[i]);
    kv_free(j->targets);
    kv_free(j->passes);
    kv_free64(j->x);
    kv_free64(j->kf);
    kv_free64(j->vf);
    kv_free64(j->q2);
    kv_free64(j->sums);
    kv_free64(j->mass);
    kv_free64(j->sink_mass);
    kv_free64(j->score);
    kv_free64(j->score_scratch);
    kv_free64(j->price);
    kv_free64(j->guard_scratch);
    kv_free64(j->order);
    kv_free64(j->cuts);
    kv_free64(j->cut_scratch);
    kv_free64(j->settle_scratch);
    kv_free64(j->foresight.moments);
    kv_free64(j->foresight_floats);
    kv_free64(j->rest.q);
    kv_free64(j->rest.whole);
    kv_free64(j->rest.whole_lse);
    kv_free64(j->rest.mean);
    kv_free64(j->rest.now);
    kv_free64(j->rest.out);
    kv_free64(j->rest.lse);
    kv_free64(j->rest.scratch);
    kv_pool_discharge(j->e->pool, j->charged);
    kv_free(j);
}
