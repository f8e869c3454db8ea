/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions as their user sees them: create, sync, decode, truncate, policy. */
#include "engine/evict.h"
#include "engine/shadow.h"

#include "base/alloc.h"
#include "cache/positions.h"

#include <string.h>

static kv_status push_policy(kvist_session *s, const char *text, kv_error *err) {
    kv_policy p;
    KV_TRY(kv_policy_parse(text ? text : "full", &p, err));
    const kv_model *m = s->e->m;
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(&p, l, &lp);
        KV_TRY(kv_layer_layout(m, &lp, l, &lay, err));
    }
    if (p.rest > m->hp.n_q / m->hp.n_kv) p.rest = 0;
    if (m->attn.window && (kv_policy_evicts(&p) || p.when != KV_WHEN_PREFILL))
        KV_FAIL(err, POLICY,
                "policy '%s' evicts by score, but this model's layers have a sliding window of %u: not built; use full "
                "or format=",
                text, m->attn.window);
    if (s->n_policies == s->cap_policies) {
        uint32_t cap = s->cap_policies ? 2 * s->cap_policies : 2;
        kv_policy *n = kv_realloc(s->policies, cap * sizeof *n);
        if (!n) KV_FAIL(err, MEMORY, "session policy");
        s->policies = n;
        s->cap_policies = cap;
    }
    if (s->n_policies == UINT16_MAX) KV_FAIL(err, STATE, "too many policy changes in one session");
    s->policies[s->n_policies++] = p;
    return KVIST_OK;
}

static kv_status init_session(kvist_session *s, const char *policy, kv_error *err) {
    kvist_engine *e = s->e;
    KV_TRY(push_policy(s, policy, err));
    s->tokens = kv_calloc(e->p.n_ctx + 1, sizeof *s->tokens);
    s->logits = kv_malloc64(e->m->hp.n_vocab * sizeof(float));
    s->sample_scratch = kv_malloc64(kv_sample_scratch(e->m->hp.n_vocab));
    if (!s->tokens || !s->logits || !s->sample_scratch) KV_FAIL(err, MEMORY, "session of %u tokens", e->p.n_ctx);
    s->point.share_met = true;
    return kv_seq_create(e->pool, e->m->hp.n_layers, e->m->layer_first, e->m->shapes, &s->seq, err);
}

int kvist_session_create(kvist_engine *e, const char *policy, kvist_session **out, kvist_error *err) {
    if (!e || !out) KV_FAIL(err, ARG, "session_create: NULL engine or result");
    *out = NULL;
    kvist_session *s = kv_calloc(1, sizeof *s);
    if (!s) KV_FAIL(err, MEMORY, "session");
    s->e = e;
    kv_engine_enter(e);
    kv_status st = init_session(s, policy, err);
    if (!st) {
        s->next = e->sessions;
        e->sessions = s;
        e->n_sessions++;
    }
    kv_engine_leave(e);
    if (st) {
        kvist_session_close(&s);
        return st;
    }
    *out = s;
    return KVIST_OK;
}

void kvist_session_close(kvist_session **ps) {
    if (!ps || !*ps) return;
    kvist_session *s = *ps;
    kvist_engine *e = s->e;
    *ps = NULL;
    kv_engine_enter(e);
    for (kvist_session **at = &e->sessions; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            e->n_sessions--;
            break;
        }
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS; i++) {
        if (s->saved[i].logits) kv_pool_discharge(e->pool, e->m->hp.n_vocab * sizeof(float));
        kv_snapshot_free(&s->saved[i].snap);
        kv_free64(s->saved[i].logits);
    }
    kv_job_free(&s->job);
    kv_shadow_free(e, &s->shadow);
    kv_evict_free(s);
    kv_seq_free(&s->seq);
    kv_engine_leave(e);
    kv_free(s->policies);
    kv_free(s->tokens);
    kv_free64(s->logits);
    kv_free64(s->sample_scratch);
    kv_free(s->runs);
    kv_free(s->todo);
    kv_free(s);
}

int kvist_session_set_policy(kvist_session *s, const char *policy, kvist_error *err) {
    if (!s) KV_FAIL(err, ARG, "set_policy: NULL session");
    kv_engine_enter(s->e);
    kv_status st = push_policy(s, policy, err);
    kv_engine_leave(s->e);
    return st;
}

int kvist_session_set_shadow(kvist_session *s, uint32_t every, kvist_error *err) {
    if (!s) KV_FAIL(err, ARG, "shadow: NULL session");
    kv_engine_enter(s->e);
    kv_status st = KVIST_OK;
    if (s->n) {
        st = kv_fail(err, KVIST_E_STATE, "shadow: the session holds %u tokens already", s->n);
    } else {
        kv_shadow_free(s->e, &s->shadow);
        if (every) st = kv_positions_prepare(s->e->pool, err);
        if (every && !st) st = kv_shadow_create(s->e, every, &s->shadow, err);
        s->seq->track = s->track || s->shadow;
    }
    kv_engine_leave(s->e);
    return st;
}

static kv_status check_ids(const kvist_session *s, const int32_t *ids, size_t n, kv_error *err) {
    if (n > s->e->p.n_ctx) KV_FAIL(err, CONTEXT, "%zu tokens do not fit the context of %u (-c)", n, s->e->p.n_ctx);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= s->e->m->hp.n_vocab)
            KV_FAIL(err, ARG, "token %zu has id %d, the vocabulary has %u", i, ids[i], s->e->m->hp.n_vocab);
    return KVIST_OK;
}

/* A prefix that ends inside a compressed prompt: reading that prompt again from its start costs the same as replaying
 * its head, and compresses once instead of twice. */
static uint32_t reusable(const kvist_session *s, uint32_t common) {
    uint32_t start = 0;
    if (common >= s->n) return s->n;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        if (common < s->runs[i].end) {
            bool sealed = false;
            for (uint32_t t = 0; t < s->seq->n_streams && !sealed; t++) sealed = s->seq->streams[t].sealed_at > common;
            return sealed && s->runs[i].kind == KV_ROWS_PROMPT && common > start ? start : common;
        }
        start = s->runs[i].end;
    }
    return common;
}

static kv_status plan_sync(kvist_session *s, const int32_t *ids, uint32_t n, kv_error *err) {
    uint32_t common = 0, policy = s->n_policies - 1;
    while (common < s->n && common < n && s->tokens[common] == ids[common]) common++;
    if (common < s->n) KV_TRY(kv_session_truncate_to(s, reusable(s, common), err));
    uint32_t at = s->n_todo ? s->todo[s->n_todo - 1].end : s->n;
    if (at == n) { /* nothing new: the logits of the last row may still have to be made again */
        if (s->n_todo || s->logits_valid || n == 0) return KVIST_OK;
        KV_TRY(kv_session_rewind(s, n - 1, n, err));
        s->n_replay = s->n_todo;
        return KVIST_OK;
    }
    s->n_replay = s->n_todo;
    memcpy(s->tokens + at, ids + at, (n - at) * sizeof *ids);
    return kv_session_add_todo(s, n, KV_ROWS_PROMPT, (uint16_t)policy, err);
}

static void begin_op(kvist_session *s) {
    s->n_todo = s->at_todo = s->n_replay = 0;
    s->status = KVIST_OK;
    s->rows_fn = NULL;
    s->fan = NULL;
    atomic_store(&s->cancel, false);
}

int kvist_session_sync_rows(kvist_session *s, const int32_t *ids, size_t n, size_t first, kvist_row_fn fn, void *user,
                            kvist_error *err) {
    if (!s || (!ids && n)) KV_FAIL(err, ARG, "sync: NULL session or ids");
    KV_TRY(check_ids(s, ids, n, err));
    begin_op(s);
    kv_engine_enter(s->e);
    kv_status st = plan_sync(s, ids, (uint32_t)n, err);
    kv_engine_leave(s->e);
    if (st) return st;
    s->rows_first = first;
    s->rows_fn = fn;
    s->rows_user = user;
    return kv_engine_run(s, err);
}

int kvist_session_sync(kvist_session *s, const int32_t *ids, size_t n, kvist_error *err) {
    return kvist_session_sync_rows(s, ids, n, SIZE_MAX, NULL, NULL, err);
}

static kv_status check_fan(kvist_session *const *s, size_t n, kv_error *err) {
    if (n > UINT32_MAX) KV_FAIL(err, ARG, "sync_many: %zu sessions", n);
    for (size_t i = 0; i < n; i++) {
        if (!s[i] || s[i]->e != s[0]->e) KV_FAIL(err, ARG, "sync_many: session %zu is NULL or of another engine", i);
        for (size_t j = 0; j < i; j++)
            if (s[j] == s[i]) KV_FAIL(err, ARG, "sync_many: session %zu is named twice", i);
        if (s[i]->n) KV_FAIL(err, STATE, "sync_many: session %zu holds %u tokens (truncate it to 0 first)", i, s[i]->n);
    }
    return KVIST_OK;
}

int kvist_sync_many(kvist_session *const *s, size_t n, const int32_t *ids, size_t n_ids, kvist_error *err) {
    if (!n) return KVIST_OK;
    if (!s || (!ids && n_ids)) KV_FAIL(err, ARG, "sync_many: NULL sessions or ids");
    KV_TRY(check_fan(s, n, err));
    KV_TRY(check_ids(s[0], ids, n_ids, err));
    if (!n_ids) return KVIST_OK;
    for (size_t i = 0; i < n; i++) {
        begin_op(s[i]);
        memcpy(s[i]->tokens, ids, n_ids * sizeof *ids);
        KV_TRY(kv_session_add_todo(s[i], (uint32_t)n_ids, KV_ROWS_PROMPT, (uint16_t)(s[i]->n_policies - 1), err));
    }
    s[0]->fan = s;
    s[0]->n_fan = (uint32_t)n;
    kv_status st = kv_engine_run(s[0], err);
    s[0]->fan = NULL;
    return st;
}

static kv_status plan_decode(kvist_session *s, int32_t id, kv_error *err) {
    if (s->n >= s->e->p.n_ctx) KV_FAIL(err, CONTEXT, "the context of %u tokens is full (-c)", s->e->p.n_ctx);
    KV_TRY(check_ids(s, &id, 1, err));
    begin_op(s);
    s->tokens[s->n] = id;
    return kv_session_add_todo(s, s->n + 1, KV_ROWS_GENERATED, (uint16_t)(s->n_policies - 1), err);
}

int kvist_session_decode(kvist_session *s, int32_t id, kvist_error *err) {
    if (!s) KV_FAIL(err, ARG, "decode: NULL session");
    KV_TRY(plan_decode(s, id, err));
    return kv_engine_run(s, err);
}

int kvist_decode_batch(kvist_session *const *s, const int32_t *ids, size_t n, kvist_error *err) {
    if (!n) return KVIST_OK;
    if (!s || !ids) KV_FAIL(err, ARG, "decode_batch: NULL sessions or ids");
    for (size_t i = 0; i < n; i++) {
        if (!s[i] || s[i]->e != s[0]->e) KV_FAIL(err, ARG, "decode_batch: session %zu is NULL or of another engine", i);
        for (size_t j = 0; j < i; j++)
            if (s[j] == s[i]) KV_FAIL(err, ARG, "decode_batch: session %zu stands in the batch twice", i);
        KV_TRY(plan_decode(s[i], ids[i], err));
    }
    return kv_engine_run_many(s, (uint32_t)n, err);
}

int kvist_session_truncate(kvist_session *s, size_t n, kvist_error *err) {
    if (!s) KV_FAIL(err, ARG, "truncate: NULL session");
    if (n > s->n) KV_FAIL(err, ARG, "truncate to %zu tokens: the session has %u", n, s->n);
    begin_op(s);
    kv_engine_enter(s->e);
    kv_status st = kv_session_truncate_to(s, (uint32_t)n, err);
    s->n_replay = s->n_todo;
    kv_engine_leave(s->e);
    return st ? st : kv_engine_run(s, err);
}

const float *kvist_session_logits(const kvist_session *s) { return s && s->logits_valid ? s->logits : NULL; }
size_t kvist_session_length(const kvist_session *s) { return s ? s->n : 0; }
const int32_t *kvist_session_tokens(const kvist_session *s) { return s ? s->tokens : NULL; }

void kvist_session_on_progress(kvist_session *s, kvist_progress_fn fn, void *user) {
    s->progress = fn;
    s->progress_user = user;
}

void kvist_cancel(kvist_session *s) {
    if (s) atomic_store(&s->cancel, true);
}

int kvist_session_sample(kvist_session *s, const kvist_sampling *p, int32_t *id, kvist_error *err) {
    if (!s || !id) KV_FAIL(err, ARG, "sample: NULL session or result");
    if (!s->logits_valid) KV_FAIL(err, STATE, "sample: the session has no current logits (sync or decode first)");
    *id = kv_sample_logits(s->logits, s->e->m->hp.n_vocab, p, s->tokens, s->n, s->sample_scratch);
    return KVIST_OK;
}
