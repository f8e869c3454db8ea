/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunk loop of `kvist eval`. Logits of the base are kept for one chunk at a time (f32 [ctx/2 - 1][n_vocab]); those
 * of a policy for one step, so that rows are scored in parallel between steps. Sums are taken in row order: no thread
 * count shows.
 */
#include "measure/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/threads.h"

typedef struct sample {
    double *nll, *kl;
    size_t n, same;
} sample; /* nll[n], kl[n] in row order */

typedef struct run {
    const kv_eval_params *p;
    kvist_engine *engine;
    kv_threads *threads;
    uint32_t n_rows;                       /* scored rows a chunk */
    float *base;                           /* [n_rows][n_vocab] logits of the base, NULL without kld */
    double *base_lse;                      /* [n_rows] */
    float *rows;                           /* [cap_rows][n_vocab] rows of the step at hand */
    uint32_t cap_rows, n_held, first_held; /* rows held and the scored index of the first */
    const int32_t *chunk;                  /* tokens of the chunk */
    bool is_base;
    sample *out;
} run;

/* Row i of those held: its target's likelihood, and its distance from the base. */
static void score_row(void *ctx, uint32_t i, uint32_t thread) {
    run *r = ctx;
    (void)thread;
    const size_t v = r->p->n_vocab;
    uint32_t row = r->first_held + i;
    const float *x = (r->is_base ? r->base : r->rows) + (r->is_base ? row : i) * v;
    double lse = kv_measure_lse(x, v);
    int32_t target = r->chunk[r->p->ctx / 2 + row + 1];
    r->out->nll[r->out->n + i] = lse - (double)x[target];
    if (r->is_base) {
        r->base_lse[row] = lse;
        r->out->kl[r->out->n + i] = 0;
    } else if (r->base) {
        kv_divergence d = kv_measure_divergence(r->base + row * v, r->base_lse[row], x, lse, v);
        r->out->kl[r->out->n + i] = d.kl;
        if (d.same_top) __atomic_add_fetch(&r->out->same, 1, __ATOMIC_RELAXED);
    }
}

static void score_held(run *r) {
    if (!r->n_held) return;
    kv_threads_run(r->threads, score_row, r, r->n_held);
    if (r->is_base) r->out->same += r->n_held;
    r->out->n += r->n_held;
    r->first_held += r->n_held;
    r->n_held = 0;
}

static void take_row(void *user, size_t position, const float *logits) {
    run *r = user;
    const size_t v = r->p->n_vocab;
    uint32_t row = (uint32_t)(position - r->p->ctx / 2);
    if (row >= r->n_rows) return; /* the last position has no target in the chunk */
    if (r->is_base)
        memcpy(r->base + row * v, logits, v * sizeof *logits);
    else
        memcpy(r->rows + r->n_held * v, logits, v * sizeof *logits);
    if (++r->n_held == r->cap_rows) score_held(r);
}

/* The first half as a prompt, the rest token by token. The chunk's last token predicts nothing in it. */
static kv_status decode_chunk(run *r, kvist_session *s, const kv_watch_stage *stage, kv_error *err) {
    uint32_t half = r->p->ctx / 2;
    KV_TRY(kvist_session_sync(s, r->chunk, half, err));
    for (uint32_t at = half; at + 1 < r->p->ctx; at++) {
        if (!kv_watch_tell(stage->watch, stage->what, at - half, r->p->ctx - half)) KV_FAIL(err, CANCELLED, "stopped");
        KV_TRY(kvist_session_decode(s, r->chunk[at], err));
        const float *logits = kvist_session_logits(s);
        if (!logits) KV_FAIL(err, STATE, "the engine gave no logits");
        take_row(r, at, logits);
    }
    score_held(r);
    return KVIST_OK;
}

static kv_status read_chunk(run *r, kvist_session *s, kv_error *err) {
    const kv_eval_params *p = r->p;
    uint32_t half = p->ctx / 2;
    if (p->step) KV_TRY(kvist_session_sync(s, r->chunk, half, err));
    for (uint32_t at = p->step ? half : 0; at < p->ctx;) {
        uint32_t end = p->step && p->ctx - at > p->step ? at + p->step : p->ctx;
        uint32_t first = at < half ? half : at;
        KV_TRY(kvist_session_sync_rows(s, r->chunk, end, first, take_row, r, err));
        score_held(r);
        at = end;
    }
    return KVIST_OK;
}

/* Feeds the chunk to a fresh session and scores its second half. */
static kv_status run_chunk(run *r, const char *policy, kv_watch_stage *stage, kvist_report *report, double *seconds,
                           kv_error *err) {
    kvist_session *s;
    KV_TRY(kvist_session_create(r->engine, policy, &s, err));
    kvist_session_on_progress(s, kv_watch_progress, stage);
    r->n_held = r->first_held = 0;
    kv_status st = r->p->generated ? decode_chunk(r, s, stage, err) : read_chunk(r, s, err);
    if (st == KVIST_OK && r->first_held != r->n_rows)
        st = kv_fail(err, KVIST_E_STATE, "%u rows of a chunk came back, %u expected", r->first_held, r->n_rows);
    kvist_session_report(s, report);
    *seconds += report->prefill_seconds + report->decode_seconds;
    kvist_session_close(&s);
    return st;
}

static void finish(sample *s, double base_nll, kv_eval_result *out, bool kld) {
    kv_summary nll = kv_measure_summary(s->nll, s->n);
    out->rows = s->n;
    out->nll = nll.mean;
    out->nll_se = nll.stderr_mean;
    out->ppl = exp(nll.mean);
    out->ppl_se = out->ppl * nll.stderr_mean;
    out->ppl_ratio = NAN;
    if (!kld) return;
    out->ppl_ratio = exp(nll.mean - base_nll);
    out->kld = kv_measure_summary(s->kl, s->n);
    out->same_top1 = (double)s->same / (double)s->n;
}

static kv_status run_all(run *r, sample *samples, uint32_t n, uint32_t chunks, kv_eval_result *results, kv_error *err) {
    const kv_eval_params *p = r->p;
    for (uint32_t c = 0; c < chunks; c++)
        for (uint32_t i = 0; i < n; i++) {
            const char *policy = p->kld ? (i ? p->policies[i - 1] : "full") : p->policies[i];
            kv_watch_stage stage = {.watch = &p->watch};
            snprintf(stage.what, sizeof stage.what, "chunk %u of %u, %.60s", c + 1, chunks, policy);
            if (!kv_watch_tell(&p->watch, stage.what, (uint64_t)c * n + i, (uint64_t)chunks * n))
                KV_FAIL(err, CANCELLED, "stopped in chunk %u", c + 1);
            r->chunk = p->tokens + (size_t)c * p->ctx;
            r->is_base = p->kld && i == 0;
            r->out = &samples[i];
            KV_TRY(run_chunk(r, policy, &stage, &results[i].report, &results[i].seconds, err));
        }
    double base_nll = 0; /* in row order, as a summary adds it: the base's own ratio is exactly 1 */
    for (size_t i = 0; i < samples[0].n; i++) base_nll += samples[0].nll[i];
    base_nll /= (double)samples[0].n;
    for (uint32_t i = 0; i < n; i++) finish(&samples[i], base_nll, &results[i], p->kld);
    return KVIST_OK;
}

uint32_t kv_eval_chunks(const kv_eval_params *p) {
    size_t have = p->n_tokens / p->ctx;
    if (p->chunks && have > p->chunks) have = p->chunks;
    return (uint32_t)have;
}

kv_status kv_eval_run(kvist_engine *engine, const kv_eval_params *p, kv_eval_result *results, kv_error *err) {
    uint32_t chunks = kv_eval_chunks(p), n = p->n_policies + (p->kld ? 1 : 0);
    if (p->ctx < 4) KV_FAIL(err, ARG, "a chunk of %u tokens has nothing to score", p->ctx);
    if (!chunks) KV_FAIL(err, ARG, "the text has %zu tokens, one chunk needs %u", p->n_tokens, p->ctx);
    for (size_t i = 0; i < (size_t)chunks * p->ctx; i++)
        if (p->tokens[i] < 0 || (uint32_t)p->tokens[i] >= p->n_vocab)
            KV_FAIL(err, ARG, "token %d is outside the vocabulary", p->tokens[i]);
    memset(results, 0, n * sizeof *results);
    run r = {.p = p, .engine = engine, .n_rows = p->ctx - p->ctx / 2 - 1};
    r.cap_rows = p->step && !p->generated && p->step < r.n_rows ? p->step : r.n_rows < 64 ? r.n_rows : 64;
    size_t total = (size_t)chunks * r.n_rows, row = (size_t)p->n_vocab * sizeof(float);
    sample *samples = kv_calloc(n, sizeof *samples);
    double *values = kv_calloc((size_t)n * total, 2 * sizeof *values);
    r.rows = kv_malloc(r.cap_rows * row);
    if (p->kld) {
        r.base = kv_malloc(r.n_rows * row);
        r.base_lse = kv_malloc(r.n_rows * sizeof *r.base_lse);
    }
    kv_status st = KVIST_OK;
    if (!samples || !values || !r.rows || (p->kld && (!r.base || !r.base_lse)))
        st = kv_fail(err, KVIST_E_MEMORY, "no memory for the logits of %u rows", r.n_rows);
    for (uint32_t i = 0; st == KVIST_OK && i < n; i++) {
        samples[i].nll = values + (size_t)i * 2 * total;
        samples[i].kl = samples[i].nll + total;
    }
    if (st == KVIST_OK) st = kv_threads_create(p->threads ? p->threads : 1, &r.threads, err);
    if (st == KVIST_OK) st = run_all(&r, samples, n, chunks, results, err);
    kv_threads_free(&r.threads);
    kv_free(r.base_lse);
    kv_free(r.base);
    kv_free(r.rows);
    kv_free(values);
    kv_free(samples);
    return st;
}
