/* SPDX-License-Identifier: Apache-2.0 */
/* The chunk loop of a sweep's kld task; see sweep_kld.h. Sums are taken in row order: no thread count shows. */
#include "measure/sweep_kld.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/threads.h"
#include "measure/stats.h"

enum { ROWS = 64 }; /* rows of a policy held at a time, so that they are scored in parallel */

typedef struct run {
    const kv_sweep_kld_params *p;
    kvist_engine *engine;
    kv_threads *threads;
    float *base;      /* [next][n_vocab] logits of the base */
    double *base_lse; /* [next] */
    float *held;      /* [ROWS][n_vocab] */
    double *kl, *nll; /* [next] in row order */
    bool *same;       /* [next] */
    uint32_t n_held, first_held;
    const int32_t *chunk; /* tokens of the chunk at hand */
    bool is_base;
    kvist_session **sessions; /* [n_policies]; NULL where the row is known */
    kvist_session **reading;  /* [n_policies] those that are not, the base first */
} run;

/* Row i of those held: position ctx - next + row predicts the token after it. */
static void score_row(void *ctx, uint32_t i, uint32_t thread) {
    run *r = ctx;
    (void)thread;
    const kv_sweep_kld_params *p = r->p;
    const size_t v = p->n_vocab;
    uint32_t row = r->first_held + i;
    const float *x = r->is_base ? r->base + row * v : r->held + i * v;
    double lse = kv_measure_lse(x, v);
    r->nll[row] = lse - (double)x[r->chunk[p->ctx - p->next + row + 1]];
    if (r->is_base) {
        r->base_lse[row] = lse;
        r->kl[row] = 0;
        r->same[row] = true;
        return;
    }
    kv_divergence d = kv_measure_divergence(r->base + row * v, r->base_lse[row], x, lse, v);
    r->kl[row] = d.kl;
    r->same[row] = d.same_top;
}

static void score_held(run *r) {
    if (r->n_held) kv_threads_run(r->threads, score_row, r, r->n_held);
    r->first_held += r->n_held;
    r->n_held = 0;
}

static void take_logits(void *user, size_t position, const float *logits) {
    run *r = user;
    const kv_sweep_kld_params *p = r->p;
    const size_t v = p->n_vocab;
    uint32_t row = (uint32_t)(position - (p->ctx - p->next));
    if (row + 1 >= p->next) return; /* the last position has no target in the chunk */
    memcpy(r->is_base ? r->base + row * v : r->held + r->n_held * v, logits, v * sizeof *logits);
    if (++r->n_held == ROWS) score_held(r);
}

/* The continuation of the chunk at hand on session s, which holds its compressed context. */
static kv_status continuation(run *r, kvist_session *s, uint32_t chunk, uint32_t policy, kv_error *err) {
    const kv_sweep_kld_params *p = r->p;
    kvist_report report;
    kvist_session_report(s, &report);
    r->is_base = policy == 0;
    r->n_held = r->first_held = 0;
    kv_status st = kvist_session_sync_rows(s, r->chunk, p->ctx, p->ctx - p->next, take_logits, r, err);
    if (st != KVIST_OK) return st;
    score_held(r);
    uint32_t n = p->next - 1;
    if (r->first_held != n) KV_FAIL(err, STATE, "%u rows of a chunk came back, %u expected", r->first_held, n);
    kv_sweep_kld_row row = {.chunk = chunk,
                            .policy = policy,
                            .rows = n,
                            .share = report.share,
                            .mass_min = report.mass_min,
                            .bytes_true = report.bytes_true,
                            .share_met = report.share_met};
    for (uint32_t i = 0; i < n; i++) {
        row.kld += r->kl[i] / n;
        row.nll += r->nll[i] / n;
        row.same_top1 += r->same[i] ? 1. / n : 0;
    }
    return p->take(p->user, &row, err);
}

static bool known(const run *r, uint32_t chunk, uint32_t policy) {
    return r->p->known && r->p->known(r->p->user, chunk, policy);
}

static kv_status sessions_of(run *r, uint32_t chunk, kv_watch_stage *stage, uint32_t *n, kv_error *err) {
    const kv_sweep_kld_params *p = r->p;
    *n = 0;
    for (uint32_t i = 0; i < p->n_policies; i++) {
        if (i && known(r, chunk, i)) continue; /* the base is needed for any other */
        kv_status st = kvist_session_create(r->engine, p->policies[i], &r->sessions[i], err);
        if (st != KVIST_OK) return st;
        kvist_session_on_progress(r->sessions[i], kv_watch_progress, stage);
        r->reading[(*n)++] = r->sessions[i];
    }
    return KVIST_OK;
}

static kv_status run_chunk(run *r, uint32_t chunk, kv_error *err) {
    const kv_sweep_kld_params *p = r->p;
    kv_watch_stage stage = {.watch = &p->watch};
    snprintf(stage.what, sizeof stage.what, "chunk %u of %u", chunk + 1, p->n_chunks);
    if (!kv_watch_tell(&p->watch, stage.what, chunk, p->n_chunks)) KV_FAIL(err, CANCELLED, "stopped in %s", stage.what);
    r->chunk = p->tokens + p->at[chunk];
    uint32_t n = 0;
    kv_status st = sessions_of(r, chunk, &stage, &n, err);
    if (st == KVIST_OK) st = kvist_sync_many(r->reading, n, r->chunk, p->ctx - p->next, err);
    for (uint32_t i = 0; st == KVIST_OK && i < p->n_policies; i++) {
        if (!r->sessions[i]) continue;
        snprintf(stage.what, sizeof stage.what, "chunk %u of %u, %.60s", chunk + 1, p->n_chunks, p->policies[i]);
        st = continuation(r, r->sessions[i], chunk, i, err);
        kvist_session_close(&r->sessions[i]); /* its pages serve the next one */
    }
    for (uint32_t i = 0; i < p->n_policies; i++) kvist_session_close(&r->sessions[i]);
    return st;
}

static kv_status check(const kv_sweep_kld_params *p, kv_error *err) {
    if (!p->n_policies) KV_FAIL(err, ARG, "no base policy");
    if (p->next < 2 || p->next >= p->ctx)
        KV_FAIL(err, ARG, "a continuation of %u tokens in chunks of %u (2 to %u)", p->next, p->ctx, p->ctx - 1);
    for (uint32_t c = 0; c < p->n_chunks; c++) {
        if (p->n_tokens < p->ctx || p->at[c] > p->n_tokens - p->ctx)
            KV_FAIL(err, ARG, "chunk %u begins at token %u of %zu and has %u", c, p->at[c], p->n_tokens, p->ctx);
        for (uint32_t i = 0; i < p->ctx; i++)
            if (p->tokens[p->at[c] + i] < 0 || (uint32_t)p->tokens[p->at[c] + i] >= p->n_vocab)
                KV_FAIL(err, ARG, "token %d is outside the vocabulary", p->tokens[p->at[c] + i]);
    }
    return KVIST_OK;
}

kv_status kv_sweep_kld(kvist_engine *engine, const kv_sweep_kld_params *p, kv_error *err) {
    KV_TRY(check(p, err));
    run r = {.p = p, .engine = engine};
    size_t row = (size_t)p->n_vocab * sizeof(float), n = p->next;
    r.base = kv_malloc(n * row);
    r.base_lse = kv_malloc(n * sizeof *r.base_lse);
    r.held = kv_malloc(ROWS * row);
    r.kl = kv_malloc(n * sizeof *r.kl);
    r.nll = kv_malloc(n * sizeof *r.nll);
    r.same = kv_malloc(n * sizeof *r.same);
    r.sessions = kv_calloc(p->n_policies, sizeof(kvist_session *));
    r.reading = kv_calloc(p->n_policies, sizeof(kvist_session *));
    kv_status st = KVIST_OK;
    if (!r.base || !r.base_lse || !r.held || !r.kl || !r.nll || !r.same || !r.sessions || !r.reading)
        st = kv_fail(err, KVIST_E_MEMORY, "no memory for the logits of %u rows", p->next);
    if (st == KVIST_OK) st = kv_threads_create(p->threads ? p->threads : 1, &r.threads, err);
    for (uint32_t c = 0; st == KVIST_OK && c < p->n_chunks; c++) {
        bool all = true;
        for (uint32_t i = 0; i < p->n_policies && all; i++) all = known(&r, c, i);
        if (!all) st = run_chunk(&r, c, err);
    }
    kv_threads_free(&r.threads);
    kv_free(r.base);
    kv_free(r.base_lse);
    kv_free(r.held);
    kv_free(r.kl);
    kv_free(r.nll);
    kv_free(r.same);
    kv_free(r.sessions);
    kv_free(r.reading);
    return st;
}
