/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See compare.h. Logits are copied out between decode calls and compared afterwards, so that the engine's own timers
 * see nothing but decoding. All policies decode the same tokens at the same positions: their speeds compare.
 */
#include "measure/compare.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/os.h"

typedef struct path {
    int32_t *ids;
    float *logits;
    double *lse;
    uint32_t n, rows;
} path; /* logits[rows][n_vocab]: row i predicts ids[i] */

struct kv_compare {
    kvist_engine *engine;
    kv_compare_params p;
    uint32_t n_paths;
    path *paths;  /* [n_paths] the base's answers */
    float *rows;  /* [n_predict + 1][n_vocab] of the policy at hand */
    int32_t *ids; /* [n_prefix + longest item] */
    double *kl;   /* [n_paths * (n_predict + 1)] */
};

typedef struct timing {
    double seconds;
    uint64_t tokens;
    double least, most;
} timing;

void kv_compare_free(kv_compare **cp) {
    kv_compare *c = *cp;
    if (!c) return;
    for (uint32_t i = 0; c->paths && i < c->n_paths; i++) {
        kv_free(c->paths[i].ids);
        kv_free(c->paths[i].logits);
        kv_free(c->paths[i].lse);
    }
    kv_free(c->paths);
    kv_free(c->rows);
    kv_free(c->ids);
    kv_free(c->kl);
    kv_free(c);
    *cp = NULL;
}

void kv_compare_result_free(kv_compare_result *r) {
    for (uint32_t i = 0; r->answers && i < r->n_answers; i++) kv_free(r->answers[i].ids);
    kv_free(r->answers);
    kv_free(r->streams);
    r->answers = NULL;
    r->streams = NULL;
}

static kv_status make(kvist_engine *e, const kv_compare_params *p, kv_compare **out, kv_error *err) {
    kv_compare *c = kv_calloc(1, sizeof *c);
    if (!c) KV_FAIL(err, MEMORY, "no memory to compare");
    c->engine = e;
    c->p = *p;
    c->n_paths = p->n_items ? p->n_items : 1;
    size_t longest = 0, row = (size_t)p->n_vocab * sizeof(float);
    for (uint32_t i = 0; i < p->n_items; i++)
        if (p->items[i].n > longest) longest = p->items[i].n;
    c->paths = kv_calloc(c->n_paths, sizeof *c->paths);
    c->rows = kv_malloc((p->n_predict + 1) * row);
    c->ids = kv_malloc((p->n_prefix + longest) * sizeof *c->ids);
    c->kl = kv_malloc((size_t)c->n_paths * (p->n_predict + 1) * sizeof *c->kl);
    bool ok = c->paths && c->rows && c->ids && c->kl;
    for (uint32_t i = 0; ok && i < c->n_paths; i++) {
        path *a = &c->paths[i];
        a->ids = kv_malloc(((size_t)p->n_predict + 1) * sizeof *a->ids);
        a->logits = kv_malloc((p->n_predict + 1) * row);
        a->lse = kv_malloc((p->n_predict + 1) * sizeof *a->lse);
        ok = a->ids && a->logits && a->lse;
    }
    if (!ok) {
        kv_compare_free(&c);
        KV_FAIL(err, MEMORY, "no memory for the logits of %u answers of %u tokens", p->n_items ? p->n_items : 1,
                p->n_predict);
    }
    if (p->n_prefix) memcpy(c->ids, p->prefix, p->n_prefix * sizeof *c->ids);
    *out = c;
    return KVIST_OK;
}

static kv_status keep_logits(const kv_compare *c, kvist_session *s, float *to, kv_error *err) {
    const float *x = kvist_session_logits(s);
    if (!x) KV_FAIL(err, STATE, "the engine gave no logits");
    memcpy(to, x, (size_t)c->p.n_vocab * sizeof *x);
    return KVIST_OK;
}

static kv_status timed_decode(kvist_session *s, int32_t id, timing *t, kv_error *err) {
    uint64_t t0 = kv_os_now_ns();
    KV_TRY(kvist_session_decode(s, id, err));
    double dt = (double)(kv_os_now_ns() - t0) * 1e-9;
    if (!t->tokens || dt < t->least) t->least = dt;
    if (!t->tokens || dt > t->most) t->most = dt;
    t->seconds += dt;
    t->tokens++;
    return KVIST_OK;
}

/* Reads prefix and question i; afterwards the first token of the answer can be chosen. */
static kv_status read_question(kv_compare *c, kvist_session *s, uint32_t i, kv_error *err) {
    const kv_compare_params *p = &c->p;
    if (!p->n_items) return KVIST_OK; /* the prefix is read and current */
    memcpy(c->ids + p->n_prefix, p->items[i].ids, p->items[i].n * sizeof *c->ids);
    return kvist_session_sync(s, c->ids, p->n_prefix + p->items[i].n, err);
}

static bool ends(const kv_compare *c, int32_t id) { return !c->p.ignore_end && kvist_token_is_end(c->p.model, id); }

/* The base's greedy answer; the row that chose an end token is kept too, since it is a prediction like the others. */
static kv_status base_path(kv_compare *c, kvist_session *s, path *a, timing *t, kv_error *err) {
    const size_t v = c->p.n_vocab;
    a->n = a->rows = 0;
    while (a->n < c->p.n_predict) {
        KV_TRY(keep_logits(c, s, a->logits + a->rows * v, err));
        int32_t id = (int32_t)kv_measure_argmax(a->logits + a->rows * v, v);
        a->rows++;
        if (ends(c, id)) break;
        a->ids[a->n++] = id;
        if (a->n == c->p.n_predict) break; /* its logits would choose nothing */
        KV_TRY(timed_decode(s, id, t, err));
    }
    for (uint32_t r = 0; r < a->rows; r++) a->lse[r] = kv_measure_lse(a->logits + r * v, v);
    return KVIST_OK;
}

/* Decodes the base's answer, keeping this policy's logits; *same = how long its own choices agree. */
static kv_status forced_path(kv_compare *c, kvist_session *s, const path *a, timing *t, kv_error *err) {
    const size_t v = c->p.n_vocab;
    for (uint32_t r = 0; r < a->rows; r++) {
        KV_TRY(keep_logits(c, s, c->rows + r * v, err));
        if (r + 1 < a->rows) KV_TRY(timed_decode(s, a->ids[r], t, err));
    }
    return KVIST_OK;
}

/* The policy's own answer: the base's while its choices agree, then its own from the same state on. */
static kv_status own_answer(kv_compare *c, kvist_session *s, const path *a, size_t at, kv_compare_answer *out,
                            kv_error *err) {
    const size_t v = c->p.n_vocab;
    out->n = 0;
    out->ids = kv_malloc(((size_t)c->p.n_predict + 1) * sizeof *out->ids);
    if (!out->ids) KV_FAIL(err, MEMORY, "no memory for an answer");
    bool same = true;
    int32_t id;
    for (uint32_t r = 0; same && r < a->rows; r++) {
        id = (int32_t)kv_measure_argmax(c->rows + r * v, v);
        if (ends(c, id)) return KVIST_OK;
        out->ids[out->n++] = id;
        same = r < a->n && id == a->ids[r];
    }
    if (same || out->n == c->p.n_predict) return KVIST_OK;
    KV_TRY(kvist_session_truncate(s, at + out->n - 1, err));
    while (out->n < c->p.n_predict) {
        KV_TRY(kvist_session_decode(s, out->ids[out->n - 1], err));
        const float *x = kvist_session_logits(s);
        if (!x) KV_FAIL(err, STATE, "the engine gave no logits");
        id = (int32_t)kv_measure_argmax(x, v);
        if (ends(c, id)) break;
        out->ids[out->n++] = id;
    }
    return KVIST_OK;
}

/* More decode steps at the prompt's end until the speed rests on enough of them: short answers are repeated. */
static kv_status time_more(kv_compare *c, kvist_session *s, const path *a, size_t at, timing *t, kv_error *err) {
    while (a->n && t->tokens < c->p.min_timed) {
        KV_TRY(kvist_session_truncate(s, at, err));
        for (uint32_t i = 0; i < a->n && t->tokens < c->p.min_timed; i++) KV_TRY(timed_decode(s, a->ids[i], t, err));
    }
    return KVIST_OK;
}

static void diverge(kv_compare *c, const path *a, kv_compare_result *r, uint32_t *same) {
    const size_t v = c->p.n_vocab;
    for (uint32_t i = 0; i < a->rows; i++) {
        const float *x = c->rows + i * v;
        kv_divergence d = kv_measure_divergence(a->logits + i * v, a->lse[i], x, kv_measure_lse(x, v), v);
        c->kl[r->compared++] = d.kl;
        *same += d.same_top;
    }
}

static kv_status take_base_answer(const path *a, kv_compare_answer *out, kv_error *err) {
    out->ids = kv_malloc((a->n + 1) * sizeof *out->ids);
    if (!out->ids) KV_FAIL(err, MEMORY, "no memory for an answer");
    memcpy(out->ids, a->ids, a->n * sizeof *out->ids);
    out->n = a->n;
    return KVIST_OK;
}

static kv_status run_items(kv_compare *c, kvist_session *s, bool base, kv_watch_stage *stage, kv_compare_result *r,
                           kv_error *err) {
    timing t = {.least = NAN, .most = NAN};
    uint32_t same = 0;
    r->n_answers = c->n_paths;
    r->answers = kv_calloc(c->n_paths, sizeof *r->answers);
    if (!r->answers) KV_FAIL(err, MEMORY, "no memory for answers");
    for (uint32_t i = 0; i < c->n_paths; i++) {
        path *a = &c->paths[i];
        if (!kv_watch_tell(stage->watch, stage->what, i, c->n_paths)) KV_FAIL(err, CANCELLED, "stopped");
        KV_TRY(read_question(c, s, i, err));
        size_t at = kvist_session_length(s);
        if (base) {
            KV_TRY(base_path(c, s, a, &t, err));
            KV_TRY(take_base_answer(a, &r->answers[i], err));
        } else {
            KV_TRY(forced_path(c, s, a, &t, err));
            diverge(c, a, r, &same);
            KV_TRY(own_answer(c, s, a, at, &r->answers[i], err));
        }
        if (i + 1 == c->n_paths) KV_TRY(time_more(c, s, a, at, &t, err));
    }
    r->decode_tps = t.seconds > 0 ? (double)t.tokens / t.seconds : 0;
    r->decode_ms[0] = 1e3 * t.least;
    r->decode_ms[1] = 1e3 * t.most;
    if (base) {
        r->kld_mean = r->kld_p99 = 0;
        r->same_top1 = 1;
        return KVIST_OK;
    }
    kv_summary sum = kv_measure_summary(c->kl, r->compared);
    r->kld_mean = sum.mean;
    r->kld_p99 = sum.p99;
    r->same_top1 = r->compared ? (double)same / r->compared : NAN;
    return KVIST_OK;
}

static kv_status take_streams(const kvist_session *s, kv_compare_result *r, kv_error *err) {
    r->n_streams = kvist_session_streams(s, NULL, 0);
    r->streams = kv_calloc(r->n_streams + 1, sizeof *r->streams);
    if (!r->streams) KV_FAIL(err, MEMORY, "no memory for %zu heads", r->n_streams);
    r->n_streams = kvist_session_streams(s, r->streams, r->n_streams);
    return KVIST_OK;
}

/* The shadow sees generated tokens: its part of the report is that of the end. */
static void take_shadow(const kvist_session *s, kvist_report *r) {
    kvist_report end;
    kvist_session_report(s, &end);
    r->shadow = end.shadow;
}

static kv_status run_policy(kv_compare *c, const char *policy, bool base, kv_compare_result *r, kv_error *err) {
    memset(r, 0, sizeof *r);
    kvist_session *s;
    KV_TRY(kvist_session_create(c->engine, policy, &s, err));
    kv_watch_stage stage = {.watch = &c->p.watch};
    snprintf(stage.what, sizeof stage.what, "%.60s: reading", policy);
    kvist_session_on_progress(s, kv_watch_progress, &stage);
    kv_status st = c->p.shadow ? kvist_session_set_shadow(s, c->p.shadow, err) : KVIST_OK;
    if (st == KVIST_OK && c->p.n_prefix) st = kvist_session_sync(s, c->p.prefix, c->p.n_prefix, err);
    kvist_session_report(s, &r->report);
    if (st == KVIST_OK) st = take_streams(s, r, err);
    r->prefill_tps = r->report.prefill_seconds > 0 ? (double)r->report.prefill_tokens / r->report.prefill_seconds : 0;
    kvist_session_on_progress(s, NULL, NULL);
    snprintf(stage.what, sizeof stage.what, "%.60s: answering", policy);
    if (st == KVIST_OK) st = run_items(c, s, base, &stage, r, err);
    if (st == KVIST_OK) take_shadow(s, &r->report);
    kvist_session_close(&s);
    if (st != KVIST_OK) kv_compare_result_free(r);
    return st;
}

kv_status kv_compare_base(kvist_engine *e, const kv_compare_params *p, const char *policy, kv_compare **out,
                          kv_compare_result *result, kv_error *err) {
    *out = NULL;
    if (!p->n_prefix && !p->n_items) KV_FAIL(err, ARG, "nothing to read");
    KV_TRY(make(e, p, out, err));
    kv_status st = run_policy(*out, policy, true, result, err);
    if (st != KVIST_OK) kv_compare_free(out);
    return st;
}

kv_status kv_compare_policy(kv_compare *c, const char *policy, kv_compare_result *result, kv_error *err) {
    return run_policy(c, policy, false, result, err);
}

bool kv_compare_found(const char *text, const char *expected) {
    while (*expected) {
        size_t n = strcspn(expected, "|");
        const char *a = expected;
        size_t len = n;
        while (len && isspace((unsigned char)*a)) {
            a++;
            len--;
        }
        while (len && isspace((unsigned char)a[len - 1])) len--;
        for (const char *t = text; len && *t; t++)
            if (!strncasecmp(t, a, len)) return true;
        expected += n + (expected[n] == '|');
    }
    return false;
}
