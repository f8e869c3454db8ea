/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of a task run: sample by sample, new sessions of the policies whose answers the file does not hold, one
 * reading of the prompt, answers in one batch, rows scored and written. Everything is tokenized before anything is run,
 * so that what does not fit is known at once. See taskrun.h and taskrun_parts.h.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/memory.h"
#include "measure/stats.h"
#include "measure/taskrun_parts.h"
#include "policy/policy.h"
#include "policy/rest.h"

/* An answer's token takes about as long as this many of a prompt (measured: 5 to 8 on models of 0.1 to 0.5 billion
 * parameters); half of max_new is what an answer is expected to take. Only the progress bar knows. */
enum { ANSWER_WEIGHT = 3 };

typedef struct run {
    kvist_model *model;
    kvist_engine *engine;
    const kv_taskrun_params *p;
    kvist_model_info info;
    kv_task_results *r;
    kv_task_file file;
    kv_task_tokens *tokens;    /* [n_samples] */
    char (*names)[256];        /* [n_policies] canonical texts */
    const char **name;         /* [n_policies] the same */
    /* of the sample at hand, [n_policies] each, the first n in use */
    uint32_t n, *policy; /* those that answer it */
    kvist_session **sessions;
    kv_task_answer *answers;
    kvist_session **batch;
    int32_t *batch_ids;
    int32_t *ids, *answer_ids; /* longest conversation; n_policies x longest answer */
    uint32_t most_new;
    /* progress, in tokens of prompts and ANSWER_WEIGHT */
    uint64_t done, total, part;
    char what[96];
} run;

/* ---------------------------------------------------------------- progress */

static uint64_t weight(const run *c, size_t i) {
    const kv_sample *s = kv_task_at(c->p->set, i);
    const kv_task_tokens *t = &c->tokens[i];
    uint64_t prompt = t->context.n, answers = s->metric == KV_METRIC_NLL ? 0 : s->max_new;
    for (uint32_t k = 0; k < t->n_turns; k++) prompt += t->questions[k].n + t->references[k].n;
    return prompt + ANSWER_WEIGHT * answers * t->n_turns / 2;
}

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    run *c = user;
    return kv_watch_tell(&c->p->watch, c->what, c->done + (total ? c->part * done / total : 0), c->total);
}

static bool on_step(void *user, uint32_t step) {
    run *c = user;
    uint64_t on = (uint64_t)ANSWER_WEIGHT * step;
    return kv_watch_tell(&c->p->watch, c->what, c->done + (on < c->part ? on : c->part), c->total);
}

/* ---------------------------------------------------------------- sessions */

static kv_task_row *row_of(const run *c, size_t sample, uint32_t i, uint32_t turn) {
    return kv_task_results_row(c->r, sample, c->policy[i], turn);
}

static void close_sessions(run *c) {
    for (uint32_t i = 0; i < c->n; i++) kvist_session_close(&c->sessions[i]);
}

static kv_status open_sessions(run *c, kv_error *err) {
    for (uint32_t i = 0; i < c->n; i++) {
        KV_TRY(kvist_session_create(c->engine, c->p->policies[c->policy[i]], &c->sessions[i], err));
        kvist_session_on_progress(c->sessions[i], on_progress, c);
    }
    return KVIST_OK;
}

/* What the cache is at a compression point. */
static void note_cache(run *c, size_t sample, uint32_t turn) {
    for (uint32_t i = 0; i < c->n; i++) {
        kv_task_row *row = row_of(c, sample, i, turn);
        kvist_report k;
        kvist_session_report(c->sessions[i], &k);
        row->share = kv_task_rounded(k.share);
        row->share_met = k.share_met;
        row->bytes_true = k.bytes_true;
        row->mass_min = kv_task_rounded(k.mass_min);
    }
}

static void copy(int32_t *to, const kv_task_piece *p) {
    if (p->n) memcpy(to, p->ids, p->n * sizeof *to);
}

/* The first question: with the context, or after it. */
static kv_status read_first(run *c, size_t sample, kv_error *err) {
    const kv_task_tokens *t = &c->tokens[sample];
    uint32_t total = t->context.n + t->questions[0].n;
    copy(c->ids, &t->context);
    copy(c->ids + t->context.n, &t->questions[0]);
    bool apart = c->p->agnostic && t->context.n;
    KV_TRY(kvist_sync_many(c->sessions, c->n, c->ids, apart ? t->context.n : total, err));
    note_cache(c, sample, 0);
    for (uint32_t i = 0; apart && t->questions[0].n && i < c->n; i++)
        KV_TRY(kvist_session_sync(c->sessions[i], c->ids, total, err));
    return KVIST_OK;
}

/* A later question, after what the session holds and the part of its last answer that it does not hold yet. */
static kv_status read_later(run *c, size_t sample, uint32_t turn, kv_error *err) {
    const kv_task_piece *q = &c->tokens[sample].questions[turn];
    for (uint32_t i = 0; i < c->n; i++) {
        kvist_session *s = c->sessions[i];
        const kv_task_answer *a = &c->answers[i];
        size_t before = row_of(c, sample, i, turn - 1)->n_prompt, n = before + a->keep + q->n;
        memcpy(c->ids, kvist_session_tokens(s), before * sizeof *c->ids);
        memcpy(c->ids + before, a->ids, a->keep * sizeof *c->ids);
        copy(c->ids + before + a->keep, q);
        KV_TRY(kvist_session_sync(s, c->ids, n, err));
    }
    note_cache(c, sample, turn);
    return KVIST_OK;
}

/* ---------------------------------------------------------------- answers */

typedef struct reference {
    const int32_t *ids;
    size_t from;
    uint32_t n, n_vocab;
    double nll;
} reference; /* ids[n] stand from position `from` on */

static void add_target(reference *ref, uint32_t i, const float *logits) {
    ref->nll += kv_measure_lse(logits, ref->n_vocab) - (double)logits[ref->ids[i]];
}

static void on_row(void *user, size_t position, const float *logits) {
    reference *ref = user;
    uint32_t next = (uint32_t)(position - ref->from) + 1;
    if (next < ref->n) add_target(ref, next, logits);
}

/* Mean NLL of the reference, read on top of the cache; its last token predicts nothing and stays for the next turn. */
static kv_status read_reference(run *c, size_t sample, uint32_t turn, uint32_t i, kv_error *err) {
    const kv_task_piece *piece = &c->tokens[sample].references[turn];
    kvist_session *s = c->sessions[i];
    size_t before = kvist_session_length(s);
    reference ref = {.ids = piece->ids, .from = before, .n = piece->n, .n_vocab = c->info.n_vocab};
    const float *logits = kvist_session_logits(s);
    if (!logits) KV_FAIL(err, STATE, "the engine gave no logits");
    add_target(&ref, 0, logits);
    memcpy(c->ids, kvist_session_tokens(s), before * sizeof *c->ids);
    copy(c->ids + before, piece);
    if (piece->n > 1) KV_TRY(kvist_session_sync_rows(s, c->ids, before + piece->n - 1, before, on_row, &ref, err));
    kv_task_answer *a = &c->answers[i];
    a->ids = piece->ids;
    a->n = a->keep = piece->n;
    kv_task_row *row = row_of(c, sample, i, turn);
    row->score = kv_task_rounded(ref.nll / piece->n);
    row->tokens = piece->n;
    row->ended = true;
    row->text = kv_strndup("", 0);
    return row->text ? KVIST_OK : kv_fail(err, KVIST_E_MEMORY, "no memory for a row");
}

static kv_status answer_turn(run *c, size_t sample, uint32_t turn, kv_error *err) {
    const kv_sample *s = kv_task_at(c->p->set, sample);
    for (uint32_t i = 0; i < c->n; i++) c->answers[i].ids = c->answer_ids + (size_t)i * c->most_new;
    kv_task_decode d = {.model = c->model,
                        .sessions = c->sessions,
                        .answers = c->answers,
                        .n = c->n,
                        .max_new = s->max_new,
                        .first_line = s->first_line,
                        .loops = turn + 1 == s->n_turns, /* a later turn needs all tokens of the history */
                        .batch = c->batch,
                        .batch_ids = c->batch_ids,
                        .step = on_step,
                        .user = c};
    KV_TRY(kv_task_answer_all(&d, err));
    for (uint32_t i = 0; i < c->n; i++) {
        kv_task_row *row = row_of(c, sample, i, turn);
        row->text = kv_task_answer_text(c->model, &c->answers[i], s->first_line);
        if (!row->text) KV_FAIL(err, MEMORY, "no memory for an answer");
        row->tokens = c->answers[i].n;
        row->ended = c->answers[i].ended;
        row->looped = c->answers[i].looped;
        row->score = kv_task_rounded(kv_metric_score(s, turn, row->text));
    }
    return KVIST_OK;
}

static kv_status run_turns(run *c, size_t sample, kv_error *err) {
    const kv_sample *s = kv_task_at(c->p->set, sample);
    KV_TRY(open_sessions(c, err));
    for (uint32_t t = 0; t < s->n_turns; t++) {
        KV_TRY(t ? read_later(c, sample, t, err) : read_first(c, sample, err));
        for (uint32_t i = 0; i < c->n; i++)
            row_of(c, sample, i, t)->n_prompt = (uint32_t)kvist_session_length(c->sessions[i]);
        if (s->metric != KV_METRIC_NLL) KV_TRY(answer_turn(c, sample, t, err));
        for (uint32_t i = 0; s->metric == KV_METRIC_NLL && i < c->n; i++)
            KV_TRY(read_reference(c, sample, t, i, err));
    }
    return KVIST_OK;
}

static kv_status run_sample(run *c, size_t sample, kv_error *err) {
    const kv_sample *s = kv_task_at(c->p->set, sample);
    c->part = weight(c, sample);
    snprintf(c->what, sizeof c->what, "%zu of %zu: %.60s", sample + 1, c->r->n_samples, s->id);
    if (!kv_watch_tell(&c->p->watch, c->what, c->done, c->total)) KV_FAIL(err, CANCELLED, "stopped");
    kv_error why;
    c->n = 0;
    for (uint32_t p = 0; p < c->p->n_policies; p++)
        if (!*kv_task_results_done(c->r, sample, p)) c->policy[c->n++] = p;
    kv_status st = run_turns(c, sample, &why);
    close_sessions(c);
    for (uint32_t i = 0; st == KVIST_OK && i < c->n; i++) {
        st = kv_task_file_append(&c->file, c->r, sample, c->policy[i], &why);
        *kv_task_results_done(c->r, sample, c->policy[i]) = st == KVIST_OK;
    }
    c->done += c->part;
    if (st == KVIST_OK) return KVIST_OK;
    return kv_fail(err, st, "sample '%s': %s", s->id, why.message);
}

/* ---------------------------------------------------------------- preparation */

/* Texts that the engine takes, as it prints them; a policy that it refuses is named before anything is read. */
static kv_status name_policies(run *c, kv_error *err) {
    for (c->n = 0; c->n < c->p->n_policies; c->n++) c->policy[c->n] = c->n;
    KV_TRY(open_sessions(c, err));
    for (uint32_t i = 0; i < c->n; i++) {
        kvist_report k;
        kvist_session_report(c->sessions[i], &k);
        memcpy(c->names[i], k.policy, sizeof c->names[i]);
        c->name[i] = c->names[i];
        for (uint32_t j = 0; j < i; j++)
            if (!strcmp(c->names[i], c->names[j]))
                KV_FAIL(err, ARG, "policy '%s' stands in the list twice", c->names[i]);
    }
    return KVIST_OK;
}

static kv_status tokenize_all(run *c, kv_error *err) {
    const kv_taskrun_params *p = c->p;
    uint32_t longest = 0;
    for (size_t i = 0; i < c->r->n_samples; i++) {
        const kv_sample *s = kv_task_at(p->set, i);
        kv_error why;
        if (i % 16 == 0 && !kv_watch_tell(&p->watch, "tokens of the prompts", i, c->r->n_samples))
            KV_FAIL(err, CANCELLED, "stopped");
        kv_status st = kv_task_tokenize(c->model, s, &c->tokens[i], &why);
        if (st != KVIST_OK) return kv_fail(err, st, "sample '%s': %s", s->id, why.message);
        if (p->n_ctx && c->tokens[i].n_most > p->n_ctx)
            KV_FAIL(err, CONTEXT, "sample '%s': prompt and answer may take %u tokens, the context holds %u (-c)", s->id,
                    c->tokens[i].n_most, p->n_ctx);
        if (c->tokens[i].n_most > longest) longest = c->tokens[i].n_most;
        if (s->max_new > c->most_new) c->most_new = s->max_new;
    }
    c->ids = kv_malloc(((size_t)longest + 1) * sizeof *c->ids);
    c->answer_ids = kv_malloc(((size_t)c->most_new * p->n_policies + 1) * sizeof *c->answer_ids);
    if (!c->ids || !c->answer_ids) KV_FAIL(err, MEMORY, "no memory for prompts of %u tokens", longest);
    return KVIST_OK;
}

static kv_status prepare(run *c, kv_error *err) {
    uint32_t n = c->p->n_policies;
    size_t samples = kv_task_count(c->p->set);
    if (!n) KV_FAIL(err, ARG, "no policy to run");
    if (!samples) KV_FAIL(err, ARG, "no samples to run");
    kvist_model_get_info(c->model, &c->info);
    KV_TRY(kv_task_results_create(c->p->set, n, &c->r, err));
    c->tokens = kv_calloc(samples, sizeof *c->tokens);
    c->names = kv_calloc(n, sizeof *c->names);
    c->name = kv_calloc(n, sizeof *c->name);
    c->policy = kv_calloc(n, sizeof *c->policy);
    c->sessions = kv_calloc(n, sizeof *c->sessions);
    c->answers = kv_calloc(n, sizeof *c->answers);
    c->batch = kv_calloc(n, sizeof *c->batch);
    c->batch_ids = kv_calloc(n, sizeof *c->batch_ids);
    if (!c->tokens || !c->names || !c->name || !c->policy || !c->sessions || !c->answers || !c->batch || !c->batch_ids)
        KV_FAIL(err, MEMORY, "no memory to run %u policies", n);
    kv_status st = name_policies(c, err);
    close_sessions(c);
    if (st == KVIST_OK) st = tokenize_all(c, err);
    if (st != KVIST_OK || !c->p->out_path) return st;
    size_t len = c->p->run_id ? strlen(c->p->run_id) : 0;
    char *id = kv_malloc(len + 64);
    if (!id) KV_FAIL(err, MEMORY, "no memory for a header");
    snprintf(id, len + 64, "%s%scontext compressed=%s", len ? c->p->run_id : "", len ? "\n" : "",
             c->p->agnostic ? "before the question" : "with the question");
    st = kv_task_file_open(&c->file, c->p->out_path, id, c->name, c->r, err);
    kv_free(id);
    return st;
}

static void release(run *c) {
    kv_task_file_close(&c->file);
    for (size_t i = 0; c->tokens && i < c->r->n_samples; i++) kv_task_tokens_free(&c->tokens[i]);
    kv_free(c->tokens);
    kv_free(c->names);
    kv_free(c->name);
    kv_free(c->policy);
    kv_free(c->sessions);
    kv_free(c->answers);
    kv_free(c->batch);
    kv_free(c->batch_ids);
    kv_free(c->ids);
    kv_free(c->answer_ids);
}

kv_status kv_taskrun(kvist_model *model, kvist_engine *engine, const kv_taskrun_params *p, kv_task_results **out,
                     kv_error *err) {
    run c = {.model = model, .engine = engine, .p = p, .file = {.log = {.fd = -1}}};
    *out = NULL;
    kv_status st = prepare(&c, err);
    for (size_t i = 0; st == KVIST_OK && i < c.r->n_samples; i++)
        if (!kv_task_results_whole(c.r, i)) c.total += weight(&c, i);
    for (size_t i = 0; st == KVIST_OK && i < c.r->n_samples; i++)
        if (!kv_task_results_whole(c.r, i)) st = run_sample(&c, i, err);
    release(&c);
    if (c.r) kv_task_results_complete(c.r);
    if (st == KVIST_OK || (st == KVIST_E_CANCELLED && c.r))
        *out = c.r;
    else
        kv_task_results_free(&c.r);
    return st;
}

/* ---------------------------------------------------------------- memory */

kv_status kv_taskrun_kv_bytes(const kvist_model_info *info, const char *const *policies, uint32_t n_policies,
                              uint32_t n_ctx, uint64_t *out, kv_error *err) {
    kv_memory_shape shape = {info->n_layers, info->n_kv_heads, info->head_dim_k, info->head_dim_v};
    uint64_t layer = 2 * (info->bytes_f16_token / info->n_layers) * n_ctx, n = n_ctx;
    uint64_t total = 0, rest = 0;
    for (uint32_t i = 0; i < n_policies; i++) {
        kv_memory_need need;
        kv_policy policy;
        KV_TRY(kv_memory_estimate(&shape, policies[i], n_ctx, &need, err));
        KV_TRY(kv_policy_parse(policies[i], &policy, err));
        if (policy.rest && policy.rest <= info->n_heads / info->n_kv_heads) /* all policies' fits read the same rows */
            rest = kv_rest_bytes(n_ctx, info->n_layers, info->n_heads, info->n_kv_heads, info->head_dim_k, info->head_dim_v);
        /* One layer in f16 and sealed, and its scores, beside what stays; two open pages of each stream. */
        total += need.bytes_true + need.bytes_true / 20 + layer + n * info->n_heads * 2 * sizeof(float) +
                 2ull * info->n_layers * info->n_kv_heads * info->page_bytes;
    }
    /* Reading a prompt: the residual stream of all rows; a step's rows (512) through the widest parts; logits. */
    uint64_t wide =
        4ull * info->n_embd + 2ull * info->n_ff + 2ull * info->n_heads * (info->head_dim_k + info->head_dim_v);
    uint64_t rows = 512 > n_policies ? 512 : n_policies;
    total += rest + n * info->n_embd * sizeof(float) + rows * wide * sizeof(float);
    total += (16 + 2ull * n_policies) * info->n_vocab * sizeof(float);
    total += 8192ull * 2 * (info->head_dim_k + info->head_dim_v) + (8ull << 20); /* pages being sealed; lists */
    *out = total;
    return KVIST_OK;
}
