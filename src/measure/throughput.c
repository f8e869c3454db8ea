/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See throughput.h. A group is the sessions of one policy at one depth; between samples each is at the depth, so that a
 * sample begins with what it is about.
 */
#include "measure/throughput.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"

enum { MAX_BATCH = 256 }; /* the engine's own limit */
enum { WARM_ROWS = 64, WARM_STEPS = 2 };
enum { MAX_FANS = 16 }; /* policies that one reading of a prompt serves: more are read apart */
/* Work is done again until a sample lasts this long, REPEATS times at most: half a second says little of a shared
 * machine, whose phases last about a second. */
#define SAMPLE_SECONDS 2.0
enum { REPEATS = 5 };
#define SEQUENCE_STRIDE 977u /* a prime: sequences of a batch read different texts */

typedef struct group {
    struct group *next;
    char *policy;
    uint32_t depth, n, wanted; /* sessions there are; that cells to come will ask for */
    kvist_session *s[MAX_BATCH];
} group;

struct kv_bench {
    kvist_engine *e;
    const int32_t *tokens;
    size_t n_tokens;
    bool keep;
    const kv_watch *watch;
    group *groups;
    int32_t *ids; /* [cap] */
    size_t cap;
};

kv_status kv_bench_open(kvist_engine *e, const int32_t *tokens, size_t n_tokens, bool keep, const kv_watch *watch,
                        kv_bench **out, kv_error *err) {
    *out = NULL;
    if (!n_tokens) KV_FAIL(err, ARG, "no tokens to measure with");
    kv_bench *b = kv_calloc(1, sizeof *b);
    if (!b) KV_FAIL(err, MEMORY, "no memory for a benchmark");
    *b = (kv_bench){.e = e, .tokens = tokens, .n_tokens = n_tokens, .keep = keep, .watch = watch};
    *out = b;
    return KVIST_OK;
}

static void group_free(group *g) {
    for (uint32_t i = 0; i < g->n; i++) kvist_session_close(&g->s[i]);
    kv_free(g->policy);
    kv_free(g);
}

static void drop_groups(kv_bench *b, const group *except) {
    group *kept = NULL;
    for (group *g = b->groups, *next; g; g = next) {
        next = g->next;
        if (g == except) {
            kept = g;
            g->next = NULL;
        } else
            group_free(g);
    }
    b->groups = kept;
}

void kv_bench_close(kv_bench **pb) {
    kv_bench *b = *pb;
    *pb = NULL;
    if (!b) return;
    drop_groups(b, NULL);
    kv_free(b->ids);
    kv_free(b);
}

/* The first n tokens of sequence i, in b->ids. */
static kv_status text_of(kv_bench *b, uint32_t i, size_t n, kv_error *err) {
    if (n > b->cap) {
        int32_t *p = kv_realloc(b->ids, n * sizeof *p);
        if (!p) KV_FAIL(err, MEMORY, "no memory for %zu tokens", n);
        b->ids = p;
        b->cap = n;
    }
    for (size_t t = 0; t < n; t++) b->ids[t] = b->tokens[(t + (size_t)i * SEQUENCE_STRIDE) % b->n_tokens];
    return KVIST_OK;
}

/* Groups whose next session is of the same prompt as g's, g first: at most MAX_FANS. */
static uint32_t same_prompt(const kv_bench *b, group *g, group **fan) {
    uint32_t n = 0;
    fan[n++] = g;
    for (group *o = b->groups; g->depth && o && n < MAX_FANS; o = o->next)
        if (o != g && o->depth == g->depth && o->n == g->n && o->wanted > o->n) fan[n++] = o;
    return n;
}

/* The next session of n groups at one depth: the prompt is read once for all of them. */
static kv_status fill_sessions(kv_bench *b, group *const *fan, uint32_t n, kv_error *err) {
    kvist_session *s[MAX_FANS] = {0};
    uint32_t i = fan[0]->n, depth = fan[0]->depth;
    kv_watch_stage stage = {.watch = b->watch};
    snprintf(stage.what, sizeof stage.what, "%.40s%s: filling %u tokens, sequence %u", fan[0]->policy,
             n > 1 ? ", ..." : "", depth, i + 1);
    kv_status st = KVIST_OK;
    for (uint32_t k = 0; k < n && st == KVIST_OK; k++) st = kvist_session_create(b->e, fan[k]->policy, &s[k], err);
    if (st == KVIST_OK && depth) st = text_of(b, i, depth, err);
    if (st == KVIST_OK && depth) {
        kvist_session_on_progress(s[0], kv_watch_progress, &stage);
        st = kvist_sync_many(s, n, b->ids, depth, err);
        kvist_session_on_progress(s[0], NULL, NULL);
    }
    for (uint32_t k = 0; k < n; k++) {
        if (st == KVIST_OK)
            fan[k]->s[fan[k]->n++] = s[k];
        else
            kvist_session_close(&s[k]);
    }
    return st;
}

/* A policy that cannot be had is its own cell's failure, not that of cells that would have shared a prompt with it. */
static kv_status fill_session(kv_bench *b, group *g, kv_error *err) {
    group *fan[MAX_FANS];
    uint32_t n = same_prompt(b, g, fan);
    kv_status st = fill_sessions(b, fan, n, err);
    if (st == KVIST_OK || st == KVIST_E_CANCELLED || n == 1) return st;
    for (uint32_t k = 1; k < n; k++) fan[k]->wanted = 0;
    return fill_sessions(b, &g, 1, err);
}

static kv_status group_of(kv_bench *b, const char *policy, uint32_t depth, group **out, kv_error *err) {
    group *g = b->groups;
    while (g && (g->depth != depth || strcmp(g->policy, policy))) g = g->next;
    *out = g;
    if (g) return KVIST_OK;
    if (!b->keep) drop_groups(b, NULL);
    g = kv_calloc(1, sizeof *g);
    if (g) g->policy = kv_strndup(policy, strlen(policy));
    if (!g || !g->policy) {
        kv_free(g);
        KV_FAIL(err, MEMORY, "no memory for sessions");
    }
    g->depth = depth;
    g->next = b->groups;
    *out = b->groups = g;
    return KVIST_OK;
}

kv_status kv_bench_plan(kv_bench *b, const kv_bench_cell *c, kv_error *err) {
    group *g;
    if (!b->keep) return KVIST_OK;
    KV_TRY(group_of(b, c->policy, c->depth, &g, err));
    uint32_t batch = c->batch ? c->batch : 1;
    if (batch > g->wanted) g->wanted = batch < MAX_BATCH ? batch : MAX_BATCH;
    return KVIST_OK;
}

/* The group of a policy and depth with at least n sessions at the depth. */
static kv_status group_get(kv_bench *b, const char *policy, uint32_t depth, uint32_t n, group **out, kv_error *err) {
    KV_TRY(group_of(b, policy, depth, out, err));
    while ((*out)->n < n) KV_TRY(fill_session(b, *out, err));
    return KVIST_OK;
}

static kv_status back_to_depth(group *g, uint32_t n, kv_error *err) {
    for (uint32_t i = 0; i < n; i++) KV_TRY(kvist_session_truncate(g->s[i], g->depth, err));
    return KVIST_OK;
}

/* Reads n tokens after the depth in each of `batch` sessions, one after another; seconds in all. */
static kv_status prompt(kv_bench *b, group *g, uint32_t batch, uint32_t n, double *seconds, kv_error *err) {
    *seconds = 0;
    for (uint32_t i = 0; i < batch; i++) {
        KV_TRY(text_of(b, i, (size_t)g->depth + n, err));
        uint64_t t0 = kv_os_now_ns();
        KV_TRY(kvist_session_sync(g->s[i], b->ids, (size_t)g->depth + n, err));
        *seconds += (double)(kv_os_now_ns() - t0) * 1e-9;
    }
    return KVIST_OK;
}

static kv_status decode(kv_bench *b, group *g, uint32_t batch, uint32_t n, double *seconds, kv_error *err) {
    int32_t ids[MAX_BATCH];
    uint64_t t0 = kv_os_now_ns();
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < batch; i++)
            ids[i] = b->tokens[((size_t)g->depth + t + (size_t)i * SEQUENCE_STRIDE) % b->n_tokens];
        KV_TRY(batch == 1 ? kvist_session_decode(g->s[0], ids[0], err) : kvist_decode_batch(g->s, ids, batch, err));
        if (!kv_watch_tell(b->watch, g->policy, t, n)) KV_FAIL(err, CANCELLED, "stopped");
    }
    *seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    return KVIST_OK;
}

static kv_status work(kv_bench *b, group *g, const kv_bench_cell *c, uint32_t batch, uint32_t n, double *seconds,
                      kv_error *err) {
    return c->stage == KV_BENCH_DECODE ? decode(b, g, batch, n, seconds, err) : prompt(b, g, batch, n, seconds, err);
}

/* Warm-up, then the work from the depth, a few times where it is short, then back to the depth. */
static kv_status timed(kv_bench *b, const kv_bench_cell *c, const char *policy, uint32_t batch, kv_bench_sample *out,
                       kv_error *err) {
    group *g;
    uint32_t most = c->stage == KV_BENCH_DECODE ? WARM_STEPS : WARM_ROWS, warm = c->n < most ? c->n : most;
    kvist_report r;
    KV_TRY(group_get(b, policy, c->depth, batch, &g, err));
    kvist_session_report(g->s[0], &r);
    out->kv_before = c->depth ? r.bytes_true : 0;
    KV_TRY(work(b, g, c, c->stage == KV_BENCH_DECODE ? batch : 1, warm, &out->seconds, err));
    if (!kv_watch_tell(b->watch, policy, 0, 1)) KV_FAIL(err, CANCELLED, "stopped");
    const bool again = c->stage == KV_BENCH_PROMPT || c->stage == KV_BENCH_DECODE; /* parts have clocks of their own */
    double seconds = 0, stolen = 0;
    uint32_t done = 0;
    do {
        KV_TRY(back_to_depth(g, batch, err));
        kvist_session_report(g->s[0], &r);
        double before = kv_os_stolen_seconds();
        KV_TRY(work(b, g, c, batch, c->n, &out->seconds, err));
        stolen += kv_os_stolen_seconds() - before;
        seconds += out->seconds;
        done++;
    } while (again && seconds < SAMPLE_SECONDS && done < REPEATS);
    if (seconds > 0) out->stolen = stolen / (seconds * kv_os_processors());
    out->seconds = seconds / done;
    kvist_session_report(g->s[0], &out->report);
    out->score_seconds = out->report.score_seconds - r.score_seconds;
    out->seal_seconds = out->report.seal_seconds - r.seal_seconds;
    out->tps = out->seconds > 0 ? (double)c->n * batch / out->seconds : 0;
    return back_to_depth(g, batch, err);
}

/* What scoring (its passes, and rows that only they look at) or sealing adds to the rest of the same prompt: both clocks
 * run in turn, milliseconds apart, so that a machine that slows down or speeds up meanwhile does not show. */
static kv_status part(kv_bench *b, const kv_bench_cell *c, kv_bench_sample *out, kv_error *err) {
    KV_TRY(timed(b, c, c->policy, 1, out, err));
    double own = c->stage == KV_BENCH_SCORE ? out->score_seconds : out->seal_seconds;
    double rest = out->seconds - out->seal_seconds;
    if (c->stage == KV_BENCH_SCORE) rest -= out->score_seconds;
    if (rest > 0) out->percent = 100 * own / rest;
    return KVIST_OK;
}

kv_status kv_bench_run(kv_bench *b, const kv_bench_cell *c, kv_bench_sample *out, kv_error *err) {
    uint32_t batch = c->batch ? c->batch : 1;
    memset(out, 0, sizeof *out);
    if (!c->n) KV_FAIL(err, ARG, "a benchmark of 0 tokens");
    if (batch > MAX_BATCH) KV_FAIL(err, ARG, "%u sequences (at most %d)", batch, MAX_BATCH);
    if (c->stage == KV_BENCH_SCORE || c->stage == KV_BENCH_SEAL) return part(b, c, out, err);
    return timed(b, c, c->policy, batch, out, err);
}
