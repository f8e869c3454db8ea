/* SPDX-License-Identifier: Apache-2.0 */
/* A prompt job's micro-steps: rows, their echo and layers, then logits. Admission is job.c's, sums sums.c's, compression
 * compress.c's. */
#include "engine/job.h"

#include "base/os.h"

#include <string.h>

/* Rows of logits computed at once when a caller wants many: 16 rows x 49k words = 3 MB, inside L2+L3. */
enum { HEAD_ROWS = 16 };

/* A micro-step aims at 15 ms (20 ms is the promise to kvist_cancel). Rates a thread to begin with, of one AVX-512 VNNI
 * machine: products of 8-bit codes, attention; what steps really take corrects them, a quarter of the difference each.
 * Below LEAST_ROWS unpacking weights would cost more than using them. */
#define STEP_SECONDS 0.015
#define WEIGHT_MACS 200e9
#define ATTENTION_MACS 120e9
#define SLOWNESS_GAIN 0.25
#define SLOWNESS_MAX 32.0 /* the portable reference; 1 / this on the other side */
enum { LEAST_ROWS = 24 };

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static void embed_rows(kv_job *j) {
    const kv_model *m = j->e->m;
    m->be->ops->embed(j->e->f.ex, m->embed, j->targets[0].s->tokens + j->start, j->n_rows, j->x);
    if (j->n_echo) memcpy(j->x + (size_t)j->n_rows * m->hp.n_embd, j->x, (size_t)j->n_echo * m->hp.n_embd * sizeof(float));
}

/* What the present layer needs before its first row. */
static kv_status begin_layer(kv_job *j, kv_error *err) {
    kv_job_plan_passes(j);
    kv_job_begin_passes(j);
    kv_foresee_begin(j);
    for (uint32_t i = 0; i < j->n_targets; i++)
        KV_TRY(kv_layer_layout(j->e->m, &j->targets[i].lp, j->layer, &j->targets[i].layout, err));
    return KVIST_OK;
}

/* Position of the first row whose logits somebody wants: rows_first, else the last one. */
static uint32_t first_logits(const kv_job *j) {
    const kvist_session *s = j->targets[0].s;
    uint32_t end = j->start + j->n_rows;
    if (!s->rows_fn || s->rows_first >= end) return end - 1;
    return s->rows_first > j->start ? (uint32_t)s->rows_first : j->start;
}

/* First row of the sync whose output the present layer owes: all but in the last layer, where only rows with logits are
 * read from again. Keys and values are made of every row. */
static uint32_t first_owed(const kv_job *j) {
    if (j->layer + 1 < j->e->m->hp.n_layers) return 0;
    return j->last ? first_logits(j) - j->start : j->n_rows;
}

/* Where a row's keys and values lie, and its position behind the sync's start: pieces of an echo all come right behind
 * the rows. */
static uint32_t place_of(const kv_job *j, uint32_t row) {
    return row < j->n_rows ? row : j->n_rows + (row - j->n_rows) % KV_ECHO_ROWS;
}

/* Row where the rows, or a piece of the echo, that `row` belongs to ends. */
static uint32_t stretch_end(const kv_job *j, uint32_t row) {
    if (row < j->n_rows) return j->n_rows;
    return min_u32(row - place_of(j, row) + j->n_kept, j->n_rows + j->n_echo);
}

/* Rows [row0, row0 + n): of the sync, or of one piece of its echo. */
static void layer_rows(kv_job *j, uint32_t row0, uint32_t n) {
    kvist_engine *e = j->e;
    const kv_model *m = e->m;
    const kv_backend_ops *ops = m->be->ops;
    const kv_hparams *hp = &m->hp;
    kv_forward *f = &e->f;
    const kv_layer *l = &m->layers[j->layer];
    float *x = j->x + (size_t)row0 * hp->n_embd;
    bool echo = row0 >= j->n_rows;
    if (row0 == j->n_rows) kv_job_begin_echo(j);
    uint32_t place = place_of(j, row0);
    for (uint32_t r = 0; r < n; r++) f->positions[r] = j->start + place + r;
    kv_part_project(f, l, x, n);
    if (!echo) kv_foresee_rows(j, row0, n);
    if (!echo) kv_job_rest_rows(j, row0, n);
    kv_part_rotate(f, n);
    ops->kv_to_f16(f->ex, f->k, f->v, n, hp->n_kv, hp->dk, hp->dv, place, j->n_kept, j->kf, j->vf);
    if (row0 < j->q2_rows)
        ops->q_squares(f->ex, f->q, min_u32(n, j->q2_rows - row0), hp->n_q, hp->n_kv, hp->dk,
                       j->q2 + (size_t)row0 * hp->n_kv * hp->dk);
    uint32_t owed = first_owed(j), needed = min_u32(owed, kv_job_first_scored(j));
    uint32_t skip = needed > row0 ? min_u32(needed - row0, n) : 0;
    if (skip == n) return;
    /* Of the last layer, where a score looks at rows whose output nobody needs. */
    bool scored_only = j->layer + 1 == hp->n_layers && (echo || row0 + n <= owed);
    kv_attn_chunk c = {.pool = e->pool,
                       .streams = kv_seq_stream(j->targets[0].s->seq, j->layer, 0),
                       .k = j->kf,
                       .v = j->vf,
                       .head_stride = j->n_kept,
                       .first_pos = j->start,
                       .row0 = place + skip,
                       .n_rows = n - skip,
                       .q = f->q + (size_t)skip * hp->n_q * hp->dk,
                       .out = f->att,
                       .lse = f->lse};
    uint64_t t0 = kv_os_now_ns();
    ops->attn_prefill(f->ex, &m->attn, &c);
    if (scored_only) kv_job_count_scored(j, row0 + n, (double)(kv_os_now_ns() - t0) * 1e-9);
    kv_job_add_sums(j, &c, echo);
    if (scored_only) return;
    x += (size_t)skip * hp->n_embd;
    kv_part_attn_out(f, l, x, n - skip);
    kv_part_ffn(f, l, x, n - skip);
}

/* Seconds of n rows from the present one on, by the rates above. */
static double expected_seconds(const kv_job *j, uint32_t n) {
    const kv_hparams *hp = &j->e->m->hp;
    double threads = j->e->p.threads, keys = (double)j->start + j->row + n;
    double macs = (double)hp->n_embd *
                  ((hp->n_q + hp->n_kv) * (double)hp->dk + (hp->n_q + hp->n_kv) * (double)hp->dv + 3.0 * hp->n_ff);
    return n * (macs / (WEIGHT_MACS * threads) + keys * hp->n_q * (hp->dk + hp->dv) / (ATTENTION_MACS * threads));
}

/* Rows of the next micro-step: ubatch at most, fewer when a layer is large or the context long, so that a step stays
 * near STEP_SECONDS and cancelling, reports and other sessions' tokens wait no longer. Any choice gives the same bits.
 */
static uint32_t step_rows(const kv_job *j) {
    double slowness = j->e->step_slowness > 0 ? j->e->step_slowness : 1;
    double rows = STEP_SECONDS / (slowness * expected_seconds(j, j->e->p.ubatch) / j->e->p.ubatch);
    uint32_t most = min_u32(j->e->p.ubatch, stretch_end(j, j->row) - j->row);
    return rows >= most ? most : rows < LEAST_ROWS ? min_u32(LEAST_ROWS, most) : (uint32_t)rows;
}

/* A stall of the machine counts for little: the running mean is bounded, and any choice gives the same bits. */
static void learn_slowness(kv_job *j, uint32_t n, uint64_t t0) {
    double *mean = &j->e->step_slowness, ratio = (double)(kv_os_now_ns() - t0) * 1e-9 / expected_seconds(j, n);
    if (ratio > SLOWNESS_MAX) ratio = SLOWNESS_MAX;
    if (ratio < 1 / SLOWNESS_MAX) ratio = 1 / SLOWNESS_MAX;
    *mean = *mean > 0 ? *mean + SLOWNESS_GAIN * (ratio - *mean) : ratio;
}

/* The last row's logits are every session's own. */
static void give_logits(kv_job *j, const float *logits) {
    for (uint32_t i = 0; i < j->n_targets; i++)
        memcpy(j->targets[i].s->logits, logits, j->e->m->hp.n_vocab * sizeof(float));
}

/* Logits of the wanted rows, in batches. Rows are handed out by a job of one session only (kvist_session_sync_rows). */
static bool head_rows(kv_job *j) {
    const kvist_session *s = j->targets[0].s;
    const kv_hparams *hp = &j->e->m->hp;
    uint32_t from = first_logits(j) - j->start;
    if (j->row < from) j->row = from;
    uint32_t n = min_u32(min_u32(HEAD_ROWS, j->e->p.max_sessions), j->n_rows - j->row);
    kv_part_head(&j->e->f, j->x + (size_t)j->row * hp->n_embd, n, j->e->batch_logits);
    for (uint32_t i = 0; i < n; i++) {
        const float *lg = j->e->batch_logits + (size_t)i * hp->n_vocab;
        if (s->rows_fn && j->start + j->row + i >= s->rows_first) s->rows_fn(s->rows_user, j->start + j->row + i, lg);
        if (j->row + i + 1 == j->n_rows) give_logits(j, lg);
    }
    j->row += n;
    return j->row == j->n_rows;
}

static bool report_progress(kv_job *j) {
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kvist_session *s = j->targets[i].s;
        uint64_t rows = j->n_rows + (uint64_t)j->n_echo;
        if (s->progress && !s->progress(s->progress_user, j->layer * rows + j->row, j->e->m->hp.n_layers * rows))
            return false;
    }
    return true;
}

/* An echo is scoring's time, of every target that asked for it. */
static void count_echo(kv_job *j, uint64_t t0) {
    double seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    j->score_seconds = seconds;
    for (uint32_t i = 0; i < j->n_targets; i++)
        if (j->targets[i].echoes) j->targets[i].score_seconds = seconds;
}

static kv_status read_rows(kv_job *j, kv_error *err) {
    uint32_t n = step_rows(j);
    uint64_t t0 = kv_os_now_ns();
    layer_rows(j, j->row, n);
    if (n >= LEAST_ROWS && j->layer + 1 < j->e->m->hp.n_layers) learn_slowness(j, n, t0);
    if (j->row >= j->n_rows) count_echo(j, t0);
    j->row += n;
    if (!report_progress(j)) KV_FAIL(err, CANCELLED, "stopped by the progress callback");
    if (j->row == j->n_rows + j->n_echo) j->phase = j->rest.wanted ? KV_JOB_LOOK : KV_JOB_COMPRESS;
    return KVIST_OK;
}

static void end_layers(kv_job *j, bool *done) {
    j->phase = j->last ? KV_JOB_HEAD : KV_JOB_DONE;
    *done = !j->last;
}

/* One target's streams of the layer; after the last target's, on to the next layer. */
static kv_status compress_target(kv_job *j, bool *done, kv_error *err) {
    kv_job_target *t = &j->targets[j->target++];
    uint64_t t0 = kv_os_now_ns();
    KV_TRY(kv_job_named(t, kv_job_compress_layer(t, err), err));
    t->seal_seconds = j->seal_seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    if (j->target < j->n_targets) return KVIST_OK;
    j->target = j->row = 0;
    j->layer++;
    j->phase = KV_JOB_ROWS;
    if (j->layer < j->e->m->hp.n_layers) return begin_layer(j, err);
    for (uint32_t i = 0; i < j->n_targets; i++) KV_TRY(kv_job_finish_masses(&j->targets[i], err));
    if (j->rest.wanted) j->phase = KV_JOB_REST;
    else end_layers(j, done);
    return KVIST_OK;
}

/* What rest tokens take is scoring's time: looks are every target's that has them, a fit its own. */
static void look_rows(kv_job *j) {
    uint64_t t0 = kv_os_now_ns();
    if (kv_job_rest_look(j)) j->phase = KV_JOB_COMPRESS;
    j->score_seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    for (uint32_t i = 0; i < j->n_targets; i++)
        if (j->targets[i].rest) j->targets[i].score_seconds = j->score_seconds;
}

/* One rest token; a target's after the other's. */
static void fit_rest(kv_job *j, bool *done) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_job_target *t = &j->targets[j->target];
    uint64_t t0 = kv_os_now_ns();
    kv_job_rest_fit(t, j->rest.stream / hp->n_kv, j->rest.stream % hp->n_kv);
    t->score_seconds = j->score_seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    if (++j->rest.stream < hp->n_layers * hp->n_kv) return;
    j->rest.stream = 0;
    if (++j->target == j->n_targets) end_layers(j, done);
}

kv_status kv_job_step(kv_job *j, bool *done, kv_error *err) {
    *done = false;
    j->score_seconds = j->seal_seconds = 0;
    for (uint32_t i = 0; i < j->n_targets; i++) j->targets[i].score_seconds = j->targets[i].seal_seconds = 0;
    switch (j->phase) {
    case KV_JOB_EMBED:
        embed_rows(j);
        j->phase = KV_JOB_ROWS;
        return begin_layer(j, err);
    case KV_JOB_ROWS:
        return read_rows(j, err);
    case KV_JOB_LOOK:
        look_rows(j);
        return KVIST_OK;
    case KV_JOB_COMPRESS:
        return compress_target(j, done, err);
    case KV_JOB_REST:
        fit_rest(j, done);
        return KVIST_OK;
    case KV_JOB_HEAD:
        *done = head_rows(j);
        if (*done) j->phase = KV_JOB_DONE;
        return KVIST_OK;
    case KV_JOB_DONE:
        break;
    }
    *done = true;
    return KVIST_OK;
}
