/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which program and options do a piece of work on a peer; see bench_peer.h. The flash attention kernels are on and the
 * threads are the caller's, in every call.
 */
#include "cli/bench_peer.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/os.h"
#include "cli/args.h"

enum { MAX_ARGV = 48 };

typedef struct command {
    const char *argv[MAX_ARGV];
    char text[16][48]; /* numbers as text */
    char path[PEER_PATH + 32];
    uint32_t n, n_text;
} command;

static void add(command *c, const char *s) {
    if (c->n + 1 < MAX_ARGV) c->argv[c->n++] = s;
    c->argv[c->n] = NULL;
}

static void add_option(command *c, const char *name, const char *value) {
    add(c, name);
    add(c, value);
}

static void add_numbers(command *c, const char *name, const char *fmt, uint32_t a, uint32_t b) {
    char *t = c->text[c->n_text < 15 ? c->n_text++ : 15];
    snprintf(t, sizeof c->text[0], fmt, a, b);
    add_option(c, name, t);
}

/* PATH of a program beside the peer's llama-bench. */
static void sibling(const bench_peer *p, const char *name, char *buf, size_t cap) {
    char copy[PEER_PATH];
    snprintf(copy, sizeof copy, "%s", p->path);
    snprintf(buf, cap, "%s/%s", dirname(copy), name);
}

static bool has_sibling(const bench_peer *p, const char *name) {
    char path[PEER_PATH + 32];
    sibling(p, name, path, sizeof path);
    return access(path, X_OK) == 0;
}

/* Whether that program's --help has the word. */
static bool sibling_says(const bench_peer *p, const char *name, const char *word) {
    char path[PEER_PATH + 32];
    sibling(p, name, path, sizeof path);
    peer_output o;
    kv_peer_spawn((const char *[]){path, "--help", NULL}, 60, &o);
    bool says = o.out && strstr(o.out, word);
    kv_peer_output_free(&o);
    return says;
}

/* ---------------------------------------------------------------- what it is */

/* A name out of a path: "ik" for a path that says so, else the program's. */
static void name_of(const char *path, char *name, size_t cap) {
    char copy[PEER_PATH];
    snprintf(copy, sizeof copy, "%s", path);
    snprintf(name, cap, "%.*s", (int)cap - 1,
             strstr(path, "ik_llama")    ? "ik_llama.cpp"
             : strstr(path, "llama.cpp") ? "llama.cpp"
                                         : basename(copy));
}

int kv_peer_open(const char *text, bench_peer *p, char *why, size_t cap) {
    const char *eq = strchr(text, '='), *slash = strchr(text, '/');
    bool named = eq && (!slash || eq < slash);
    const char *path = named ? eq + 1 : text;
    memset(p, 0, sizeof *p);
    if (!*path || strlen(path) >= sizeof p->path || (named && (eq == text || (size_t)(eq - text) >= sizeof p->name))) {
        snprintf(why, cap, "--vs '%s' is no NAME=PATH of a llama-bench", text);
        return KV_CLI_USAGE;
    }
    char *real = realpath(path, NULL); /* children do not stand where we do */
    snprintf(p->path, sizeof p->path, "%s", real && strlen(real) < sizeof p->path ? real : path);
    free(real);
    if (named)
        snprintf(p->name, sizeof p->name, "%.*s", (int)(eq - text), text);
    else
        name_of(path, p->name, sizeof p->name);
    if (access(path, X_OK)) {
        snprintf(why, cap, "--vs %s: there is no program %s", p->name, path);
        return KV_CLI_USAGE;
    }
    const char *argv[] = {p->path, "--help", NULL};
    peer_output o;
    kv_peer_spawn(argv, 60, &o);
    const char *help = o.out ? o.out : "";
    p->has_depth = strstr(help, "--n-depth") != NULL;
    p->has_gp = strstr(help, "-gp ") != NULL;
    p->warm_flag = strstr(help, "--no-warmup") != NULL;
    bool ok = o.status == 0 && (p->has_depth || p->has_gp);
    if (!ok)
        snprintf(why, cap, "--vs %s: %s is no llama-bench with -d or -gp (%s%s)", p->name, path,
                 o.status ? "its --help fails: " : "its --help names neither", o.status ? o.last : "");
    kv_peer_output_free(&o);
    p->batched = has_sibling(p, "llama-batched-bench");
    p->copies_prompt = p->batched && sibling_says(p, "llama-batched-bench", "--kv-unified");
    p->sweep = has_sibling(p, "llama-sweep-bench");
    return ok ? KV_CLI_OK : KV_CLI_FAILED;
}

/* ---------------------------------------------------------------- one repetition */

static void common(command *c, const peer_work *w, const char *model, uint32_t threads) {
    add_option(c, "-m", model);
    add_numbers(c, "-t", "%u", threads, 0);
    add_option(c, "-fa", "1");
    if (strcmp(w->cache, "f16")) {
        add_option(c, "-ctk", w->cache);
        add_option(c, "-ctv", w->cache);
    }
}

static void bench_command(command *c, const bench_peer *p, const peer_work *w, const char *model, uint32_t threads,
                          const char *reps) {
    add(c, p->path);
    for (uint32_t i = 0; i < p->n_args; i++) add(c, p->args[i]);
    common(c, w, model, threads);
    add_option(c, "-o", "json");
    add_option(c, "-r", reps);
}

static peer_outcome failed(const peer_output *o, const char *what, const peer_work *w, peer_result *r) {
    char *why = r->why;
    size_t cap = sizeof r->why;
    int n = snprintf(why, cap, "%s (%u at %u, x%u, cache %s): ", what, w->n, w->depth, w->batch, w->cache);
    if (n < 0 || (size_t)n >= cap) return PEER_FAILED;
    if (o->stopped) {
        snprintf(why + n, cap - (size_t)n, "ended after %.0f s", o->seconds);
        return PEER_SLOW;
    }
    if (o->status)
        snprintf(why + n, cap - (size_t)n, "exit status %d%s%s", o->status, *o->last ? ": " : "", o->last);
    else
        snprintf(why + n, cap - (size_t)n, "no such row in its output%s%s", *o->last ? "; it last said: " : "",
                 o->last);
    return PEER_FAILED;
}

/* Time of n tokens after the depth: llama.cpp says it (-d); ik_llama.cpp by two prompts, one longer by n. */
static peer_outcome run_prompt(const bench_peer *p, const peer_work *w, const char *model, uint32_t threads,
                               peer_result *r) {
    command c = {.n = 0};
    double tps, s, longer;
    bool two = w->depth && !p->has_depth;
    /* Where the warm-up is one token, the first repetition touches memory: the second counts. */
    bench_command(&c, p, w, model, threads, p->warm_flag || w->depth ? "1" : "2");
    add_numbers(&c, "-p", two ? "%u,%u" : "%u", two ? w->depth : w->n, w->depth + w->n);
    add_option(&c, "-n", "0");
    if (w->depth && !two) add_numbers(&c, "-d", "%u", w->depth, 0);
    r->how = two ? "llama-bench, two prompts, difference" : "llama-bench";
    peer_output o;
    kv_peer_spawn(c.argv, p->limit_s, &o);
    bool ok = o.status == 0;
    if (ok && two) {
        ok = kv_peer_bench_row(o.out, w->depth, 0, -1, &tps, &s) &&
             kv_peer_bench_row(o.out, w->depth + w->n, 0, -1, &tps, &longer) && longer > s;
        if (ok) tps = w->n / (longer - s);
    } else if (ok)
        ok = kv_peer_bench_row(o.out, w->n, 0, p->has_depth ? (int64_t)w->depth : -1, &tps, &s);
    peer_outcome result = ok ? PEER_OK : failed(&o, p->path, w, r);
    if (ok) r->value = tps;
    kv_peer_output_free(&o);
    return result;
}

/* ---------------------------------------------------------------- one context, many depths */

static uint32_t gcd(uint32_t a, uint32_t b) { return b ? gcd(b, a % b) : a; }

/* The sweep a piece of work can be read from; NULL: none is planned. */
static peer_sweep *sweep_of(bench_peer *p, const peer_work *w) {
    uint32_t step = w->kind == PEER_PROMPT ? w->n : PEER_SWEEP_STEP;
    if (!w->depth) return NULL; /* costs nothing by itself, right beside ours */
    for (uint32_t i = 0; i < p->n_sweeps; i++) {
        peer_sweep *s = &p->sweeps[i];
        if (strcmp(s->cache, w->cache) || s->step != step || w->depth > s->deepest) continue;
        if (w->depth % (step * s->every) == 0 && (w->kind == PEER_PROMPT || w->n == s->n_gen)) return s;
    }
    return NULL;
}

/* Only for a program that would have to read a depth anew for each piece of work. Generations of another length than
 * the cache's first one get a sweep of their own. */
void kv_peer_plan(bench_peer *p, const peer_work *w) {
    bool decode = w->kind == PEER_DECODE;
    uint32_t step = decode ? PEER_SWEEP_STEP : w->n, i = 0;
    if (p->has_depth || !p->sweep || !w->depth || (!decode && w->kind != PEER_PROMPT) || w->depth % step) return;
    if (w->n > step) return; /* beyond the last micro-batch there is no room */
    while (i < p->n_sweeps && (strcmp(p->sweeps[i].cache, w->cache) || p->sweeps[i].step != step ||
                               (decode && p->sweeps[i].n_gen && p->sweeps[i].n_gen != w->n)))
        i++;
    if (i == PEER_SWEEPS) return;
    peer_sweep *s = &p->sweeps[i];
    if (i == p->n_sweeps) {
        p->n_sweeps++;
        *s = (peer_sweep){.cache = w->cache, .step = step};
    }
    s->every = gcd(s->every, w->depth / step);
    if (w->depth > s->deepest) s->deepest = w->depth;
    if (decode) s->n_gen = w->n;
}

void kv_peer_plan_clear(bench_peer *p) {
    for (uint32_t i = 0; i < p->n_sweeps; i++) kv_peer_output_free(&p->sweeps[i].o);
    p->n_sweeps = 0;
}

/* Fills a context once and measures a micro-batch and a generation at every depth that is planned. */
static void fill(peer_sweep *s, const bench_peer *p, const peer_work *w, const char *model, uint32_t threads) {
    command c = {.n = 0};
    sibling(p, "llama-sweep-bench", c.path, sizeof c.path);
    add(&c, c.path);
    common(&c, w, model, threads);
    add_numbers(&c, "-c", "%u", s->deepest + s->step, 0);
    add_numbers(&c, "-ub", "%u", s->step, 0);
    add_numbers(&c, "-n", "%u", s->n_gen ? s->n_gen : 1, 0);
    add_numbers(&c, "--sweep-stride", "%u", s->every, 0);
    kv_os_host at = kv_os_host_now();
    kv_peer_spawn(c.argv, p->limit_s, &s->o);
    s->stolen = kv_os_host_took(at);
    s->ran = true;
}

static peer_outcome run_sweep(peer_sweep *s, const bench_peer *p, const peer_work *w, const char *model,
                              uint32_t threads, peer_result *r) {
    r->how = "llama-sweep-bench";
    if (!s->ran) fill(s, p, w, model, threads);
    r->seconds = s->o.seconds;
    r->stolen = s->stolen;
    bool ok = s->o.status == 0 &&
              kv_peer_sweep_row(s->o.out, s->step, w->depth, w->kind == PEER_DECODE ? w->n : 0, &r->value);
    return ok ? PEER_OK : failed(&s->o, r->how, w, r);
}

static peer_outcome run_decode(const bench_peer *p, const peer_work *w, const char *model, uint32_t threads,
                               peer_result *r) {
    command c = {.n = 0};
    double s;
    bool gp = w->depth && !p->has_depth;
    bench_command(&c, p, w, model, threads, "1");
    add_option(&c, "-p", "0");
    if (gp) {
        add_option(&c, "-n", "0");
        add_numbers(&c, "-gp", "%u,%u", w->depth, w->n);
    } else {
        add_numbers(&c, "-n", "%u", w->n, 0);
        if (w->depth) add_numbers(&c, "-d", "%u", w->depth, 0);
    }
    r->how = "llama-bench";
    peer_output o;
    kv_peer_spawn(c.argv, p->limit_s, &o);
    bool ok = o.status == 0 &&
              kv_peer_bench_row(o.out, gp ? w->depth : 0, w->n, p->has_depth ? (int64_t)w->depth : -1, &r->value, &s);
    peer_outcome result = ok ? PEER_OK : failed(&o, p->path, w, r);
    kv_peer_output_free(&o);
    return result;
}

/* The context is for all sequences, and llama.cpp rounds each one's part to 256. Where each sequence's cache is its own
 * memory (the programs that can also unify them), one prompt is read and copied to all of them (-pps): what decoding
 * reads is the same, the time before it is a 32nd. A unified cache would let sequences share what they read. */
static peer_outcome run_batch(const bench_peer *p, const peer_work *w, const char *model, uint32_t threads,
                              peer_result *r) {
    command c = {.n = 0};
    uint32_t depth = w->depth ? w->depth : 1; /* an empty prompt is none of its cases */
    r->how = "llama-batched-bench";
    if (!p->batched) return PEER_ABSENT;
    sibling(p, "llama-batched-bench", c.path, sizeof c.path);
    add(&c, c.path);
    common(&c, w, model, threads);
    add_numbers(&c, "-npp", "%u", depth, 0);
    add_numbers(&c, "-ntg", "%u", w->n, 0);
    add_numbers(&c, "-npl", "%u", w->batch, 0);
    add_numbers(&c, "-c", "%u", w->batch * ((depth + w->n + 255) / 256 * 256), 0);
    if (p->copies_prompt) add(&c, "-pps");
    peer_output o;
    kv_peer_spawn(c.argv, p->limit_s, &o);
    bool ok = o.status == 0 && kv_peer_batched_row(o.out, depth, w->n, w->batch, &r->value);
    peer_outcome result = ok ? PEER_OK : failed(&o, c.path, w, r);
    kv_peer_output_free(&o);
    return result;
}

/* From start to exit of a process that loads the model and reads one token. */
static peer_outcome run_load(const bench_peer *p, const peer_work *w, const char *model, uint32_t threads,
                             peer_result *r) {
    command c = {.n = 0};
    bench_command(&c, p, w, model, threads, "1");
    add_option(&c, "-p", "1");
    add_option(&c, "-n", "0");
    if (p->warm_flag)
        add(&c, "--no-warmup");
    else
        add_option(&c, "-w", "0");
    r->how = "llama-bench, prompt of 1, start to exit";
    peer_output o;
    kv_peer_spawn_warm(c.argv, p->limit_s, &o);
    bool ok = o.status == 0;
    peer_outcome result = ok ? PEER_OK : failed(&o, p->path, w, r);
    if (ok) r->value = o.seconds;
    kv_peer_output_free(&o);
    return result;
}

peer_outcome kv_peer_run(bench_peer *p, const peer_work *w, const char *model, uint32_t threads, peer_result *r) {
    kv_os_host at = kv_os_host_now();
    peer_sweep *s = sweep_of(p, w);
    peer_outcome outcome = PEER_FAILED;
    if (s) return run_sweep(s, p, w, model, threads, r);
    switch (w->kind) {
    case PEER_PROMPT:
        outcome = run_prompt(p, w, model, threads, r);
        break;
    case PEER_DECODE:
        outcome = run_decode(p, w, model, threads, r);
        break;
    case PEER_BATCH:
        outcome = run_batch(p, w, model, threads, r);
        break;
    case PEER_LOAD:
        outcome = run_load(p, w, model, threads, r);
        break;
    }
    r->seconds = (double)(kv_os_now_ns() - at.ns) * 1e-9;
    r->stolen = kv_os_host_took(at);
    return outcome;
}
