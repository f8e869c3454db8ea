/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who leads, and what a step does. A caller queues its session(s) and either leads (runs steps until its own are done)
 * or waits. Results never depend on which sessions share a step (DESIGN 2), so no order here is visible but speed.
 */
#include "engine/evict.h"

#include "base/os.h"

#include <string.h>

static bool current_is(const kvist_session *s, uint8_t kind) {
    return s->at_todo < s->n_todo && s->todo[s->at_todo].kind == kind;
}

static void finish(kvist_session *s, kv_status st) {
    s->status = st;
    s->done = true;
}

static bool cancelled(kvist_session *s) {
    if (!atomic_load(&s->cancel)) return false;
    s->status = kv_fail(&s->err, KVIST_E_CANCELLED, "cancelled at %u tokens", s->n);
    return true;
}

/* Logs the rows just finished and moves on to the next run. */
static void run_finished(kvist_session *s) {
    s->at_todo++;
    if (s->at_todo == s->n_todo) finish(s, KVIST_OK);
}

/* ---- generated rows */

static void step_generated(kvist_engine *e, kvist_session *const *batch, uint32_t n) {
    kvist_session *rows[256];
    int32_t ids[256];
    bool want[256];
    uint32_t before[256];
    kv_status status[256];
    static _Thread_local kv_error errs[256];
    uint32_t m = 0;
    for (uint32_t i = 0; i < n && m < e->p.max_sessions && m < 256; i++) {
        kvist_session *s = batch[i];
        if (s->done || !current_is(s, KV_ROWS_GENERATED)) continue;
        if (cancelled(s)) {
            finish(s, s->status);
            continue;
        }
        rows[m] = s;
        ids[m] = s->tokens[s->n];
        before[m] = s->n;
        want[m++] = s->at_todo + 1 == s->n_todo && s->n + 1 == s->todo[s->at_todo].end;
    }
    if (!m) return;
    uint64_t t0 = kv_os_now_ns();
    kv_decode_batch(e, rows, ids, want, m, status, errs);
    double seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    for (uint32_t i = 0; i < m; i++) {
        kvist_session *s = rows[i];
        if (s->n > before[i]) { /* also when sealing failed after it: the token is there, and can be rolled back */
            kv_error log_err;
            kv_status logged = kv_session_push_run(s, s->n, KV_ROWS_GENERATED, s->todo[s->at_todo].policy, &log_err);
            if (logged && !status[i]) {
                status[i] = logged;
                errs[i] = log_err;
            }
        }
        if (status[i]) {
            s->err = errs[i];
            finish(s, status[i]);
            continue;
        }
        if (s->at_todo >= s->n_replay) {
            s->decode_seconds += seconds;
            s->decode_tokens++;
        }
        if (s->n == s->todo[s->at_todo].end) run_finished(s);
    }
}

/* ---- prompt rows */

/* The sessions that a prompt run of s reads for: itself, or all that share it. */
typedef struct fan {
    kvist_session *const *s;
    uint32_t n;
} fan;

static fan fan_of(kvist_session *const *s) { return (*s)->fan ? (fan){(*s)->fan, (*s)->n_fan} : (fan){s, 1}; }

static kv_status begin_job(fan f) {
    kvist_session *s = f.s[0];
    if (s->n) KV_TRY(kv_session_save(s, &s->err)); /* to come back to when the job fails or is cancelled */
    for (uint32_t i = 0; i < f.n; i++) {
        f.s[i]->logits_valid = false;
        f.s[i]->reading = true;
    }
    return kv_job_create(f.s, f.n, &s->job, &s->err);
}

/* A job that stops half way leaves layers in different states: back to where it began, or, when there was no room for a
 * snapshot there, to the newest one before: a valid, shorter session. */
static void return_to_start(kvist_session *s) {
    kv_error ignored;
    kv_saved *back = s->n ? kv_session_find_saved(s, s->n) : NULL;
    if (!back || kv_snapshot_restore(back->snap, s->seq, &ignored)) {
        kv_session_forget(s);
        s->n_runs = 0;
    } else {
        s->n = s->seq->length = kv_snapshot_length(back->snap);
        s->point = back->point;
        kv_session_cut_runs(s, s->n);
    }
}

static void abandon_job(fan f) {
    bool touched = f.s[0]->job != NULL; /* a job that could not be created has changed nothing */
    kv_job_free(&f.s[0]->job);
    for (uint32_t i = 0; i < f.n; i++) {
        f.s[i]->logits_valid = false;
        if (touched) return_to_start(f.s[i]);
        f.s[i]->reading = false;
    }
}

/* Room for what decoding will append, so that no token allocates: lists up to the context's end, squared queries up to
 * the first page sealed. Where the budget has no room for it, lists grow as they need. */
static void reserve_ahead(kvist_session *s, const kv_policy *policy) {
    kv_error ignored;
    (void)!kv_seq_reserve(s->seq, s->e->p.n_ctx - s->n, &ignored);
    (void)!kv_evict_ready(s, policy, &ignored);
    for (uint32_t l = 0; l < s->seq->n_layers && s->n < KV_Q2_POSITIONS; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(policy, l, &lp);
        if (kv_formats[lp.format & 15].kind != KV_KIND_LADDER || kv_layer_layout(s->e->m, &lp, l, &lay, &ignored))
            continue;
        uint32_t rows = lp.sink + lp.recent + lay.tokens + 1;
        for (uint32_t i = s->seq->layer_first[l]; i < s->seq->layer_first[l + 1]; i++)
            (void)!kv_q2_room(s->seq, &s->seq->streams[i], rows, &ignored);
    }
}

static void take_run(kvist_session *s, uint64_t bytes_peak) {
    const kv_run *r = &s->todo[s->at_todo];
    s->bytes_peak = bytes_peak;
    s->reading = false;
    if (s->at_todo >= s->n_replay) s->prefill_tokens += r->end - s->n;
    s->n = s->seq->length = r->end;
    s->logits_valid = s->at_todo + 1 == s->n_todo;
    reserve_ahead(s, &s->policies[r->policy]);
}

/* All sessions have what they read, or none has: several that could not be finished are left empty, as they were. */
static kv_status end_job(fan f, kv_error *err) {
    kv_pool_stats stats;
    kv_pool_get_stats(f.s[0]->e->pool, &stats);
    for (uint32_t i = 0; i < f.n; i++) {
        const kv_run *r = &f.s[i]->todo[f.s[i]->at_todo];
        KV_TRY(kv_session_push_run(f.s[i], r->end, KV_ROWS_PROMPT, r->policy, err));
    }
    for (uint32_t i = 0; i < f.n; i++) kv_evict_point(&f.s[0]->job->targets[i]);
    kv_job_free(&f.s[0]->job);
    kv_status st = KVIST_OK;
    for (uint32_t i = 0; i < f.n; i++) take_run(f.s[i], stats.bytes_peak);
    for (uint32_t i = 0; i < f.n && !st; i++) st = kv_session_save(f.s[i], err);
    for (uint32_t i = 0; i < f.n && st && f.n > 1; i++) {
        kv_session_drop_saved_above(f.s[i], 0);
        kv_session_forget(f.s[i]);
        f.s[i]->n_runs = 0;
        f.s[i]->logits_valid = false;
    }
    return st;
}

/* Each session's time: the step's without what was only done for the others' policies. */
static void count_step(fan f, const kv_job *j, bool counts) {
    if (!counts) return;
    for (uint32_t i = 0; i < f.n; i++) {
        const kv_job_target *t = &j->targets[i];
        f.s[i]->score_seconds += t->score_seconds;
        f.s[i]->seal_seconds += t->seal_seconds;
        f.s[i]->prefill_seconds -= (j->score_seconds - t->score_seconds) + (j->seal_seconds - t->seal_seconds);
    }
}

static kv_status advance(fan f, bool counts, bool *done) {
    kvist_session *s = f.s[0];
    for (uint32_t i = 0; i < f.n; i++)
        if (cancelled(f.s[i])) {
            if (i) s->err = f.s[i]->err;
            return f.s[i]->status;
        }
    if (!s->job) KV_TRY(begin_job(f));
    KV_TRY(kv_job_step(s->job, done, &s->err));
    count_step(f, s->job, counts);
    return *done ? end_job(f, &s->err) : KVIST_OK;
}

static void step_prompt(kvist_session *const *first) {
    kvist_session *s = *first;
    fan f = fan_of(first);
    uint64_t t0 = kv_os_now_ns();
    bool done = false, counts = s->at_todo >= s->n_replay;
    kv_status st = advance(f, counts, &done);
    if (st) {
        if (!done || s->job) abandon_job(f);
        finish(s, st);
    } else if (done) {
        run_finished(s);
    }
    double seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    for (uint32_t i = 0; i < f.n && counts; i++) f.s[i]->prefill_seconds += seconds;
}

void kv_engine_step(kvist_engine *e, kvist_session *const *batch, uint32_t n) {
    step_generated(e, batch, n);
    for (uint32_t i = 0; i < n; i++)
        if (!batch[i]->done && current_is(batch[i], KV_ROWS_PROMPT)) {
            step_prompt(&batch[i]);
            return;
        }
}

/* ---- leading */

static void enqueue(kvist_engine *e, kvist_session *s) {
    kvist_session **at = &e->queue;
    while (*at) at = &(*at)->queue_next;
    s->queue_next = NULL;
    s->busy = true;
    s->done = false;
    *at = s;
}

static void dequeue_done(kvist_engine *e) {
    for (kvist_session **at = &e->queue; *at;) {
        kvist_session *s = *at;
        if (s->done) {
            *at = s->queue_next;
            s->busy = false;
        } else {
            at = &s->queue_next;
        }
    }
}

static bool all_done(kvist_session *const *s, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (s[i]->busy) return false;
    return true;
}

/* mu is held on entry and exit. */
static void lead(kvist_engine *e, kvist_session *const *mine, uint32_t n) {
    kvist_session *batch[256];
    e->led = true;
    while (!all_done(mine, n)) {
        while (e->reporters) pthread_cond_wait(&e->reported, &e->mu);
        uint32_t m = 0;
        for (kvist_session *s = e->queue; s && m < 256; s = s->queue_next) batch[m++] = s;
        pthread_mutex_unlock(&e->mu);
        pthread_mutex_lock(&e->work);
        kv_engine_step(e, batch, m);
        pthread_mutex_unlock(&e->work);
        pthread_mutex_lock(&e->mu);
        dequeue_done(e);
        pthread_cond_broadcast(&e->changed);
    }
    e->led = false;
    pthread_cond_broadcast(&e->changed);
}

kv_status kv_engine_run_many(kvist_session *const *s, uint32_t n, kv_error *err) {
    if (!n) return KVIST_OK;
    kvist_engine *e = s[0]->e;
    pthread_mutex_lock(&e->mu);
    for (uint32_t i = 0; i < n; i++) enqueue(e, s[i]);
    while (!all_done(s, n)) {
        if (e->led)
            pthread_cond_wait(&e->changed, &e->mu);
        else
            lead(e, s, n);
    }
    pthread_mutex_unlock(&e->mu);
    for (uint32_t i = 0; i < n; i++)
        if (s[i]->status) {
            if (err) *err = s[i]->err;
            return s[i]->status;
        }
    return KVIST_OK;
}

kv_status kv_engine_run(kvist_session *s, kv_error *err) {
    if (!s->n_todo) return KVIST_OK;
    kvist_session *one[1] = {s};
    return kv_engine_run_many(one, 1, err);
}

void kv_engine_enter(kvist_engine *e) {
    pthread_mutex_lock(&e->mu);
    e->reporters++;
    pthread_mutex_unlock(&e->mu);
    pthread_mutex_lock(&e->work);
}

void kv_engine_leave(kvist_engine *e) {
    pthread_mutex_unlock(&e->work);
    pthread_mutex_lock(&e->mu);
    e->reporters--;
    pthread_cond_broadcast(&e->reported);
    pthread_mutex_unlock(&e->mu);
}
