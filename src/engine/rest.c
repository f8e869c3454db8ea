/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `rest` in a prompt job: the queries of some rows of each layer, turned to where the prompt ends, are kept with what attention gives them
 * over all of it, and when all layers have settled what they keep, each head's token is fitted to them (policy/rest.h) and written behind
 * the sinks. The rows are the job's, whoever shares it; the fit is a target's. Must not know scores or budgets. Invariant: a function of the prompt's rows alone.
 */
#include "engine/job.h"

#include "base/half.h"
#include "policy/rest.h"

#include <string.h>

enum { STEP_ROWS = 32 }; /* that look in one micro-step (prefill.c) */

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

void kv_job_rest_plan(kv_job *j) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_job_rest *r = &j->rest;
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        t->rest = t->policy.rest && t->plan.evict && t->plan.n_sink && j->start == 0;
        r->wanted |= t->rest;
    }
    if (!r->wanted) return;
    r->rows = kv_rest_rows(j->n_rows, hp->n_q / hp->n_kv);
    r->step = j->n_rows / r->rows;
}

kv_rest_input kv_job_rest_input(const kv_job *j, uint32_t layer, uint32_t head) {
    const kv_hparams *hp = &j->e->m->hp;
    const kv_job_rest *r = &j->rest;
    uint32_t g = hp->n_q / hp->n_kv;
    size_t first = ((size_t)layer * hp->n_q + (size_t)head * g) * r->rows;
    return (kv_rest_input){.group = g,
                           .rows = r->rows,
                           .dk = hp->dk,
                           .dv = hp->dv,
                           .scale = j->e->m->attn.scale,
                           .q = r->q + first * hp->dk,
                           .whole = r->whole + first * hp->dv,
                           .whole_lse = r->whole_lse + first,
                           .mean = r->mean + ((size_t)layer * hp->n_kv + head) * hp->dk,
                           .kept = r->out + (size_t)head * g * hp->dv,
                           .kept_lse = r->lse + (size_t)head * g,
                           .stride = hp->n_q};
}

void kv_job_rest_rows(kv_job *j, uint32_t row0, uint32_t n) {
    const size_t one = (size_t)j->e->m->hp.n_q * j->e->m->hp.dk;
    const kv_job_rest *r = &j->rest;
    if (!r->wanted) return;
    for (uint32_t i = 0; i < n; i++)
        if ((row0 + i) % r->step == 0 && (row0 + i) / r->step < r->rows)
            memcpy(r->now + (row0 + i) / r->step * one, j->e->f.q + i * one, one * sizeof(float));
}

/* Attention of n of the rows in r->now over the streams and the layer's first `keys` rows, to r->out and r->lse. */
static void attend(kv_job *j, const kv_stream *streams, uint32_t first_pos, uint32_t keys, uint32_t row, uint32_t n) {
    const kv_model *m = j->e->m;
    const kv_hparams *hp = &m->hp;
    const kv_job_rest *r = &j->rest;
    kv_attn_chunk c = {.pool = j->e->pool,
                       .streams = streams,
                       .k = j->kf,
                       .v = j->vf,
                       .head_stride = j->n_kept,
                       .first_pos = first_pos,
                       .row0 = keys,
                       .n_rows = n,
                       .apart = true,
                       .q = r->now + (size_t)row * hp->n_q * hp->dk,
                       .out = r->out + (size_t)row * hp->n_q * hp->dv,
                       .lse = r->lse + (size_t)row * hp->n_q};
    m->be->ops->attn_prefill(j->e->f.ex, &m->attn, &c);
}

/* The rows as they would be behind the prompt. */
static void rotate(kv_job *j) {
    const kv_hparams *hp = &j->e->m->hp;
    const kv_job_rest *r = &j->rest;
    kv_forward *f = &j->e->f;
    for (uint32_t i = 0, rows; i < r->rows; i += rows) {
        rows = min_u32(j->e->p.ubatch, r->rows - i);
        for (uint32_t k = 0; k < rows; k++) f->positions[k] = j->start + j->n_rows + (i + k) % KV_ECHO_ROWS;
        j->e->m->be->ops->rope(f->ex, &f->rope, r->now + (size_t)i * hp->n_q * hp->dk, rows, hp->n_q, hp->dk, f->positions);
    }
}

/* Mean key of the run's rows behind the sinks. */
static void mean_key(const kv_job *j, uint32_t head, float *mean) {
    const uint32_t dk = j->e->m->hp.dk, from = min_u32(KV_PAGE_F16_TOKENS, j->n_rows - 1);
    double sum[KV_SCORE_MAX_DIM] = {0};
    for (uint32_t i = from; i < j->n_rows; i++)
        for (uint32_t c = 0; c < dk; c++) sum[c] += (double)kv_f16_f32(j->kf[((size_t)head * j->n_kept + i) * dk + c]);
    for (uint32_t c = 0; c < dk; c++) mean[c] = (float)(sum[c] / (j->n_rows - from));
}

/* The looks of all rows, for the fits. */
static void keep_looks(kv_job *j) {
    const kv_hparams *hp = &j->e->m->hp;
    const kv_job_rest *r = &j->rest;
    const size_t at = (size_t)j->layer * hp->n_q * r->rows;
    j->e->m->be->ops->kv_to_f16(j->e->f.ex, r->now, r->out, r->rows, hp->n_q, hp->dk, hp->dv, 0, r->rows, r->q + at * hp->dk,
                                r->whole + at * hp->dv);
    for (uint32_t h = 0; h < hp->n_kv; h++) mean_key(j, h, r->mean + ((size_t)j->layer * hp->n_kv + h) * hp->dk);
    for (uint32_t i = 0; i < r->rows; i++)
        for (uint32_t h = 0; h < hp->n_q; h++) r->whole_lse[at + (size_t)h * r->rows + i] = r->lse[(size_t)i * hp->n_q + h];
}

bool kv_job_rest_look(kv_job *j) {
    kv_job_rest *r = &j->rest;
    uint32_t n = min_u32(min_u32(STEP_ROWS, j->e->p.ubatch), r->rows - r->row);
    if (!r->row) rotate(j);
    attend(j, kv_seq_stream(j->targets[0].s->seq, j->layer, 0), j->start, j->n_rows, r->row, n);
    r->row += n;
    if (r->row < r->rows) return false;
    r->row = 0;
    keep_looks(j);
    return true;
}

/* The page of the sinks, which is a stream's first. */
static bool sinks_of(const kv_job *j, const kv_stream *st) {
    if (!st->n_handles) return false;
    const kv_page_entry *e = kv_pool_entry(j->e->pool, st->handles[0].page);
    return (e->flags & KV_PAGE_SINK) && e->refs == 1 && e->n < st->shape->f16_tokens;
}

/* The layer's rows look at what the target keeps. */
static void look_again(kv_job_target *t, uint32_t layer) {
    kv_job *j = t->j;
    const kv_hparams *hp = &j->e->m->hp;
    const kv_job_rest *r = &j->rest;
    const uint16_t *q = r->q + (size_t)layer * hp->n_q * r->rows * hp->dk;
    for (uint32_t h = 0; h < hp->n_q; h++)
        for (uint32_t i = 0; i < r->rows; i++)
            for (uint32_t c = 0; c < hp->dk; c++)
                r->now[((size_t)i * hp->n_q + h) * hp->dk + c] = kv_f16_f32(q[((size_t)h * r->rows + i) * hp->dk + c]);
    for (uint32_t i = 0; i < r->rows; i += j->e->p.ubatch)
        attend(j, kv_seq_stream(t->s->seq, layer, 0), j->start + j->n_rows, 0, i, min_u32(j->e->p.ubatch, r->rows - i));
}

void kv_job_rest_fit(kv_job_target *t, uint32_t layer, uint32_t head) {
    const kv_hparams *hp = &t->j->e->m->hp;
    float k[KV_SCORE_MAX_DIM], v[KV_SCORE_MAX_DIM];
    uint16_t k16[KV_SCORE_MAX_DIM], v16[KV_SCORE_MAX_DIM];
    if (!t->rest) return;
    if (!head) look_again(t, layer);
    kv_stream *st = kv_seq_stream(t->s->seq, layer, head);
    kv_rest_input in = kv_job_rest_input(t->j, layer, head);
    if (!sinks_of(t->j, st) || !kv_rest_fit(&in, k, v, t->j->rest.scratch)) return;
    for (uint32_t c = 0; c < hp->dk; c++) k16[c] = kv_f32_f16(k[c]);
    for (uint32_t c = 0; c < hp->dv; c++) v16[c] = kv_f32_f16(v[c]);
    kv_stream_put_rest(t->s->seq, st, 0, k16, v16);
}
