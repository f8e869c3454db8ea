/* SPDX-License-Identifier: Apache-2.0 */
/* One batch of generated rows: one row per session, all layers, paged attention. Nothing is allocated here. */
#include "engine/evict.h"
#include "engine/shadow.h"

#include <string.h>

static const kv_policy *policy_of(const kvist_session *s) { return &s->policies[s->todo[s->at_todo].policy]; }

/* Appends each row's K/V (and squared queries where channels are weighed) to its own streams of the layer. */
static kv_status append_rows(kvist_engine *e, kvist_session *const *s, uint32_t layer, uint32_t n, kv_error *err) {
    const kv_hparams *hp = &e->m->hp;
    for (uint32_t i = 0; i < n; i++) {
        kv_layer_policy lp;
        kv_policy_layer(policy_of(s[i]), layer, &lp);
        bool weighs = kv_formats[lp.format & 15].kind == KV_KIND_LADDER && s[i]->n < KV_Q2_POSITIONS;
        for (uint32_t h = 0; h < hp->n_kv; h++) {
            kv_stream *st = kv_seq_stream(s[i]->seq, layer, h);
            const uint16_t *k = e->row_k + ((size_t)h * n + i) * hp->dk, *v = e->row_v + ((size_t)h * n + i) * hp->dv;
            if (st->tail_len == 0) st->tail_pos = s[i]->n;
            if (weighs && !st->q2.sum) st->q2.start = st->q2.covered = s[i]->n;
            if (weighs) KV_TRY(kv_q2_push(s[i]->seq, st, e->row_q2 + ((size_t)i * hp->n_kv + h) * hp->dk, err));
            KV_TRY(kv_tail_append(s[i]->seq, st, k, v, err));
        }
    }
    return KVIST_OK;
}

/* Row i of n stands at stride n in row_k, row_v. */
static void shadow_rows(kvist_engine *e, kvist_session *const *s, uint32_t layer, uint32_t n) {
    const kv_hparams *hp = &e->m->hp;
    for (uint32_t i = 0; i < n; i++)
        if (s[i]->shadow)
            kv_shadow_rows(s[i]->shadow, layer, s[i]->n, 1, n, e->row_k + (size_t)i * hp->dk,
                           e->row_v + (size_t)i * hp->dv);
}

/* Replayed rows were checked when they were first generated. */
static void shadow_checks(kvist_engine *e, kvist_session *const *s, uint32_t layer, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (s[i]->shadow && s[i]->at_todo >= s[i]->n_replay && kv_shadow_due(s[i]->shadow, layer, s[i]->n))
            kv_shadow_check(s[i], layer, s[i]->n, e->rows[i].q, e->rows[i].out);
}

static kv_status forward_rows(kvist_engine *e, kvist_session *const *s, uint32_t n, kv_error *err) {
    const kv_model *m = e->m;
    const kv_backend_ops *ops = m->be->ops;
    const kv_hparams *hp = &m->hp;
    kv_forward *f = &e->f;
    for (uint32_t l = 0; l < hp->n_layers; l++) {
        const kv_layer *lw = &m->layers[l];
        kv_part_qkv(f, lw, e->x, n);
        ops->kv_to_f16(f->ex, f->k, f->v, n, hp->n_kv, hp->dk, hp->dv, 0, n, e->row_k, e->row_v);
        ops->q_squares(f->ex, f->q, n, hp->n_q, hp->n_kv, hp->dk, e->row_q2);
        KV_TRY(append_rows(e, s, l, n, err));
        shadow_rows(e, s, l, n);
        for (uint32_t i = 0; i < n; i++) {
            e->rows[i] = (kv_attn_decode_row){.streams = kv_seq_stream(s[i]->seq, l, 0),
                                              .q = f->q + (size_t)i * hp->n_q * hp->dk,
                                              .out = f->att + (size_t)i * hp->n_q * hp->dv,
                                              .position = s[i]->n};
            e->masses[i] = kv_evict_wants(s[i], policy_of(s[i]), l);
        }
        ops->attn_decode_mass(f->ex, &m->attn, e->pool, e->rows, e->masses, n);
        shadow_checks(e, s, l, n);
        for (uint32_t i = 0; i < n; i++) kv_evict_note(s[i], policy_of(s[i]), l);
        kv_part_attn_out(f, lw, e->x, n);
        kv_part_ffn(f, lw, e->x, n);
    }
    return KVIST_OK;
}

/* Takes back what a failed step appended: streams longer than the sequence lose their newest token. */
static void undo_rows(kvist_session *const *s, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < s[i]->seq->n_streams; j++) {
            kv_stream *st = &s[i]->seq->streams[j];
            if (st->tail_len && st->tail_pos + st->tail_len > s[i]->n) kv_tail_drop_back(s[i]->seq, st, 1);
            if (st->q2.covered + st->q2.n_rows > s[i]->n && st->q2.n_rows) st->q2.n_rows--;
        }
}

static void logits_of(kvist_engine *e, kvist_session *const *s, const bool *want, uint32_t n) {
    const kv_hparams *hp = &e->m->hp;
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < n; i++) wanted += want[i];
    if (!wanted) return;
    float *out = n == 1 ? s[0]->logits : e->batch_logits;
    kv_part_head(&e->f, e->x, n, out);
    for (uint32_t i = 0; i < n; i++) {
        if (n > 1 && want[i]) memcpy(s[i]->logits, out + (size_t)i * hp->n_vocab, hp->n_vocab * sizeof(float));
        s[i]->logits_valid = want[i];
    }
}

/* A batch of one fails for its own reasons (its error is its own); a larger batch that runs out of pages fails whole
 * and its sessions stay as they were. */
void kv_decode_batch(kvist_engine *e, kvist_session *const *s, const int32_t *ids, const bool *want_logits, uint32_t n,
                     kv_status *status, kv_error *errs) {
    const kv_model *m = e->m;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < n; i++) {
        pages += kv_decode_pages_needed(s[i], policy_of(s[i])) + kv_evict_pages_needed(s[i], policy_of(s[i]));
        e->f.positions[i] = s[i]->n;
        s[i]->logits_valid = false;
        status[i] = KVIST_OK;
    }
    kv_status st = kv_engine_room(e, pages, 0, &errs[0]);
    for (uint32_t i = 0; i < n && !st; i++) st = kv_evict_ready(s[i], policy_of(s[i]), &errs[0]);
    if (!st) {
        m->be->ops->embed(e->f.ex, m->embed, ids, n, e->x);
        st = forward_rows(e, s, n, &errs[0]);
        if (st) undo_rows(s, n);
    }
    if (st) {
        for (uint32_t i = 0; i < n; i++) {
            status[i] = st;
            if (i) errs[i] = errs[0];
        }
        return;
    }
    logits_of(e, s, want_logits, n);
    for (uint32_t i = 0; i < n; i++) {
        s[i]->n++;
        s[i]->seq->length = s[i]->n;
        status[i] = kv_seal_tail(s[i], policy_of(s[i]), &errs[i]);
        if (!status[i]) status[i] = kv_evict_settle(s[i], policy_of(s[i]), &errs[i]);
    }
}
