/* SPDX-License-Identifier: Apache-2.0 */
/* The prompt job's life: admission, micro-steps over rows and layers, logits. Compression is compress.c's. */
#include "engine/job.h"

#include "base/alloc.h"
#include "base/os.h"

#include <string.h>

/* Rows of logits computed at once when a caller wants many: 16 rows x 49k words = 3 MB, inside L2+L3. */
enum { HEAD_ROWS = 16 };
/* Queries the retained mass is taken over where the score has no window of its own (DESIGN 5). */
enum { MASS_WINDOW = 32 };

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

static void *charged_alloc(kv_job *j, size_t bytes, bool zero, kv_error *err, kv_status *st) {
    if (*st) return NULL;
    if (bytes == 0) bytes = 64;
    *st = kv_engine_room(j->e, 0, bytes, err);
    if (!*st) *st = kv_pool_charge(j->e->pool, bytes, err);
    if (*st) return NULL;
    j->charged += bytes;
    void *p = kv_malloc64(bytes);
    if (!p) {
        *st = kv_fail(err, KVIST_E_MEMORY, "%zu bytes of prefill scratch", bytes);
        return NULL;
    }
    if (zero) memset(p, 0, bytes);
    return p;
}

static kv_status make_plan(kv_job *j, kv_error *err) {
    const kv_model *m = j->e->m;
    kvist_session *s = j->s;
    uint32_t L = m->hp.n_layers;
    kv_plan_layer *layers = kv_calloc(L, sizeof *layers);
    if (!layers) KV_FAIL(err, MEMORY, "compression plan");
    kv_status st = KVIST_OK;
    kv_seq_bytes now;
    kv_seq_count(s->seq, NULL, &now);
    const kv_stream *st0 = &s->seq->streams[0];
    uint64_t tail_bytes = 0;
    for (uint32_t i = 0; i < s->seq->n_streams; i++)
        tail_bytes += (uint64_t)s->seq->streams[i].n_tail * (m->page_bytes + sizeof(kv_page_entry) + 4);
    for (uint32_t l = 0; l < L && !st; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(&j->policy, l, &lp);
        st = kv_layer_layout(m, &lp, l, &lay, err);
        if (st) break;
        bool q2 = lay.kind == KV_KIND_LADDER;
        layers[l] = (kv_plan_layer){.n_streams = m->hp.n_kv,
                                    .f16_tokens = m->shapes[l].f16_tokens,
                                    .page_tokens = lay.tokens,
                                    .q2_bytes = q2 ? m->hp.dk * 4u : 0,
                                    .f16_bytes_token = 2ull * (m->hp.dk + m->hp.dv)};
    }
    kv_plan_input in = {.policy = &j->policy,
                        .n_layers = L,
                        .layers = layers,
                        .page_bytes = (uint32_t)m->page_bytes,
                        .page_overhead = sizeof(kv_page_entry) + sizeof(kv_handle),
                        .n_seen = j->start + j->n_rows,
                        .n_before = j->start,
                        .n_unsealed = st0->tail_len + j->n_rows,
                        .first = st0->n_handles == 0 && st0->tail_pos == 0,
                        .bytes_before = now.bytes_true > tail_bytes ? now.bytes_true - tail_bytes : 0};
    if (in.first) in.bytes_before = 0;
    if (!st) st = kv_plan_make(&in, &j->plan, err);
    kv_free(layers);
    return st;
}

static kv_status alloc_scratch(kv_job *j, kv_error *err) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_status st = KVIST_OK;
    uint32_t tail_max = 0;
    for (uint32_t i = 0; i < j->s->seq->n_streams; i++)
        if (j->s->seq->streams[i].tail_len > tail_max) tail_max = j->s->seq->streams[i].tail_len;
    size_t rows = j->n_rows, keys = rows + tail_max;
    bool weighs = false;
    for (uint32_t l = 0; l < hp->n_layers; l++) {
        kv_layer_policy lp;
        kv_policy_layer(&j->policy, l, &lp);
        if (kv_formats[lp.format & 15].kind == KV_KIND_LADDER) weighs = true;
    }
    if (weighs && j->start < KV_Q2_POSITIONS) j->q2_rows = min_u32(j->n_rows, KV_Q2_POSITIONS - j->start);
    j->x = charged_alloc(j, rows * hp->n_embd * sizeof(float), false, err, &st);
    j->kf = charged_alloc(j, rows * hp->n_kv * hp->dk * 2, false, err, &st);
    j->vf = charged_alloc(j, rows * hp->n_kv * hp->dv * 2, false, err, &st);
    if (j->q2_rows) j->q2 = charged_alloc(j, (size_t)j->q2_rows * hp->n_kv * hp->dk * sizeof(float), false, err, &st);
    if (!j->plan.evict || st) return st;

    j->stride = (keys + 15) & ~(size_t)15;
    j->sums = charged_alloc(j, hp->n_q * j->stride * sizeof(float), false, err, &st);
    j->mass = charged_alloc(j, hp->n_q * j->stride * sizeof(float), false, err, &st);
    j->sink_mass = charged_alloc(j, hp->n_q * sizeof(float), false, err, &st);
    j->score = charged_alloc(j, keys * sizeof(float), false, err, &st);
    j->score_scratch = charged_alloc(j, 2 * keys * sizeof(float), false, err, &st);
    j->order = charged_alloc(j, keys * sizeof(uint32_t), false, err, &st);
    j->cuts = charged_alloc(j, (keys / 8 + 8) * sizeof(kv_page_plan), false, err,
                            &st); /* pages hold 8 tokens at least; two may be partial */
    j->cut_scratch = charged_alloc(j, kv_cut_scratch((uint32_t)keys), false, err, &st);
    j->streams = charged_alloc(j, j->s->seq->n_streams * sizeof *j->streams, true, err, &st);
    double *acc = charged_alloc(j, 2ull * hp->n_layers * hp->n_q * sizeof(double), true, err, &st);
    if (st) {
        kv_free64(acc);
        return st;
    }
    uint32_t g = hp->n_q / hp->n_kv;
    for (uint32_t i = 0; i < j->s->seq->n_streams; i++) {
        j->streams[i].all = acc + 2ull * i * g;
        j->streams[i].evicted = acc + (2ull * i + 1) * g;
    }
    if (j->plan.global)
        st = kv_gsel_create(j->plan.pages_global, j->plan.floor_pages, j->s->seq->n_streams, &j->gsel, err);
    return st;
}

kv_status kv_job_create(kvist_session *s, uint32_t start, uint32_t end, const kv_policy *policy, bool last,
                        kv_job **out, kv_error *err) {
    kv_job *j = kv_calloc(1, sizeof *j);
    *out = NULL;
    if (!j) KV_FAIL(err, MEMORY, "prompt job");
    j->s = s;
    j->e = s->e;
    j->policy = *policy;
    j->last = last;
    j->start = start;
    j->n_rows = end - start;
    j->phase = KV_JOB_EMBED;
    kv_pool_reset_peak(s->e->pool);
    kv_status st = make_plan(j, err);
    if (!st) st = alloc_scratch(j, err);
    if (!st) st = kv_seq_reserve(s->seq, j->n_rows, err);
    if (st) {
        kv_job_free(&j);
        return st;
    }
    j->mass_rows = min_u32(j->n_rows, MASS_WINDOW);
    *out = j;
    return KVIST_OK;
}

void kv_job_free(kv_job **pj) {
    kv_job *j = *pj;
    *pj = NULL;
    if (!j) return;
    if (j->streams) {
        for (uint32_t i = 0; i < j->s->seq->n_streams; i++) {
            kv_free(j->streams[i].pages);
            kv_free(j->streams[i].page_mass);
        }
        if (j->s->seq->n_streams) kv_free64(j->streams[0].all);
    }
    kv_free64(j->x);
    kv_free64(j->kf);
    kv_free64(j->vf);
    kv_free64(j->q2);
    kv_free64(j->sums);
    kv_free64(j->mass);
    kv_free64(j->sink_mass);
    kv_free64(j->score);
    kv_free64(j->score_scratch);
    kv_free64(j->order);
    kv_free64(j->cuts);
    kv_free64(j->cut_scratch);
    kv_free64(j->streams);
    kv_gsel_free(&j->gsel);
    kv_plan_free(&j->plan);
    kv_pool_discharge(j->e->pool, j->charged);
    kv_free(j);
}

static void embed_rows(kv_job *j) {
    const kv_model *m = j->e->m;
    m->be->ops->embed(j->e->f.ex, m->embed, j->s->tokens + j->start, j->n_rows, j->x);
}

/* What the present layer needs before its first row. */
static kv_status begin_layer(kv_job *j, kv_error *err) {
    kv_policy_layer(&j->policy, j->layer, &j->lp);
    KV_TRY(kv_layer_layout(j->e->m, &j->lp, j->layer, &j->layout, err));
    if (!j->plan.evict) return KVIST_OK;
    kv_score_needs(&j->lp, &j->need);
    j->mass_rows = min_u32(j->n_rows, j->need.window ? j->need.window : MASS_WINDOW);
    size_t n = (size_t)j->e->m->hp.n_q * j->stride * sizeof(float);
    memset(j->sums, 0, n);
    memset(j->mass, 0, n);
    memset(j->sink_mass, 0, j->e->m->hp.n_q * sizeof(float));
    return KVIST_OK;
}

/* Rows whose attention is summed: by the score, by that or the retained mass. */
static uint32_t votes_from(const kv_job *j) {
    if (!j->need.pass) return j->n_rows;
    return j->need.all_rows ? 0 : j->n_rows - min_u32(j->n_rows, j->need.window);
}
static uint32_t first_scored(const kv_job *j) { return min_u32(votes_from(j), j->n_rows - j->mass_rows); }

/* Position of the first row whose logits somebody wants: rows_first, else the last one. */
static uint32_t first_logits(const kv_job *j) {
    const kvist_session *s = j->s;
    uint32_t end = j->start + j->n_rows;
    if (!s->rows_fn || s->rows_first >= end) return end - 1;
    return s->rows_first > j->start ? (uint32_t)s->rows_first : j->start;
}

static void column_sums(kv_job *j, const kv_attn_chunk *c) {
    if (c->row0 + c->n_rows <= first_scored(j)) return;
    kv_attn_colsum cs = {.c = *c,
                         .row_from = votes_from(j),
                         .stride = j->need.stride ? j->need.stride : 1,
                         .square = j->need.square,
                         .sums = j->need.pass ? j->sums : NULL,
                         .sums_stride = j->stride,
                         .mass_from = j->n_rows - j->mass_rows,
                         .mass = j->mass,
                         .sink_mass = j->sink_mass};
    uint64_t t0 = kv_os_now_ns();
    j->e->m->be->ops->attn_colsum(j->e->f.ex, &j->e->m->attn, &cs);
    j->score_seconds += (double)(kv_os_now_ns() - t0) * 1e-9;
}

/* First row of the sync whose output the present layer owes: all but in the last layer, where only rows with logits and
 * rows that a score looks at are read from again. Keys and values are made of every row. */
static uint32_t first_needed(const kv_job *j) {
    if (j->layer + 1 < j->e->m->hp.n_layers) return 0;
    uint32_t from = j->last ? first_logits(j) - j->start : j->n_rows;
    return j->plan.evict ? min_u32(from, first_scored(j)) : from;
}

static void layer_rows(kv_job *j, uint32_t row0, uint32_t n) {
    kvist_engine *e = j->e;
    const kv_model *m = e->m;
    const kv_backend_ops *ops = m->be->ops;
    const kv_hparams *hp = &m->hp;
    kv_forward *f = &e->f;
    const kv_layer *l = &m->layers[j->layer];
    float *x = j->x + (size_t)row0 * hp->n_embd;
    for (uint32_t r = 0; r < n; r++) f->positions[r] = j->start + row0 + r;
    kv_part_qkv(f, l, x, n);
    ops->kv_to_f16(f->ex, f->k, f->v, n, hp->n_kv, hp->dk, hp->dv, row0, j->n_rows, j->kf, j->vf);
    if (row0 < j->q2_rows)
        ops->q_squares(f->ex, f->q, min_u32(n, j->q2_rows - row0), hp->n_q, hp->n_kv, hp->dk,
                       j->q2 + (size_t)row0 * hp->n_kv * hp->dk);
    uint32_t needed = first_needed(j), skip = needed > row0 ? min_u32(needed - row0, n) : 0;
    if (skip == n) return;
    kv_attn_chunk c = {.pool = e->pool,
                       .streams = kv_seq_stream(j->s->seq, j->layer, 0),
                       .k = j->kf,
                       .v = j->vf,
                       .head_stride = j->n_rows,
                       .first_pos = j->start,
                       .row0 = row0 + skip,
                       .n_rows = n - skip,
                       .q = f->q + (size_t)skip * hp->n_q * hp->dk,
                       .out = f->att,
                       .lse = f->lse};
    ops->attn_prefill(f->ex, &m->attn, &c);
    if (j->plan.evict) column_sums(j, &c);
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
    uint32_t most = min_u32(j->e->p.ubatch, j->n_rows - j->row);
    return rows >= most ? most : rows < LEAST_ROWS ? min_u32(LEAST_ROWS, most) : (uint32_t)rows;
}

/* A stall of the machine counts for little: the running mean is bounded, and any choice gives the same bits. */
static void learn_slowness(kv_job *j, uint32_t n, uint64_t t0) {
    double *mean = &j->e->step_slowness, ratio = (double)(kv_os_now_ns() - t0) * 1e-9 / expected_seconds(j, n);
    if (ratio > SLOWNESS_MAX) ratio = SLOWNESS_MAX;
    if (ratio < 1 / SLOWNESS_MAX) ratio = 1 / SLOWNESS_MAX;
    *mean = *mean > 0 ? *mean + SLOWNESS_GAIN * (ratio - *mean) : ratio;
}

/* Logits of the wanted rows, in batches. */
static bool head_rows(kv_job *j) {
    kvist_session *s = j->s;
    const kv_hparams *hp = &j->e->m->hp;
    uint32_t from = first_logits(j) - j->start;
    if (j->row < from) j->row = from;
    uint32_t n = min_u32(min_u32(HEAD_ROWS, j->e->p.max_sessions), j->n_rows - j->row);
    kv_part_head(&j->e->f, j->x + (size_t)j->row * hp->n_embd, n, j->e->batch_logits);
    for (uint32_t i = 0; i < n; i++) {
        const float *lg = j->e->batch_logits + (size_t)i * hp->n_vocab;
        if (s->rows_fn && j->start + j->row + i >= s->rows_first) s->rows_fn(s->rows_user, j->start + j->row + i, lg);
        if (j->row + i + 1 == j->n_rows) memcpy(s->logits, lg, hp->n_vocab * sizeof(float));
    }
    j->row += n;
    return j->row == j->n_rows;
}

static bool report_progress(kv_job *j) {
    if (!j->s->progress) return true;
    return j->s->progress(j->s->progress_user, (uint64_t)j->layer * j->n_rows + j->row,
                          (uint64_t)j->e->m->hp.n_layers * j->n_rows);
}

kv_status kv_job_step(kv_job *j, bool *done, kv_error *err) {
    *done = false;
    j->score_seconds = j->seal_seconds = 0;
    switch (j->phase) {
    case KV_JOB_EMBED:
        embed_rows(j);
        j->phase = KV_JOB_ROWS;
        return begin_layer(j, err);
    case KV_JOB_ROWS: {
        uint32_t n = step_rows(j);
        uint64_t t0 = kv_os_now_ns();
        layer_rows(j, j->row, n);
        if (n >= LEAST_ROWS && j->layer + 1 < j->e->m->hp.n_layers) learn_slowness(j, n, t0);
        j->row += n;
        if (!report_progress(j)) KV_FAIL(err, CANCELLED, "stopped by the progress callback");
        if (j->row == j->n_rows) j->phase = KV_JOB_COMPRESS;
        return KVIST_OK;
    }
    case KV_JOB_COMPRESS: {
        uint64_t t0 = kv_os_now_ns();
        KV_TRY(kv_job_compress_layer(j, err));
        j->seal_seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
        j->row = 0;
        j->layer++;
        j->phase = KV_JOB_ROWS;
        if (j->layer < j->e->m->hp.n_layers) return begin_layer(j, err);
        kv_job_finish_masses(j);
        j->phase = j->last ? KV_JOB_HEAD : KV_JOB_DONE;
        *done = !j->last;
        return KVIST_OK;
    }
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
