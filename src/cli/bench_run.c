/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rounds of a benchmark: each round takes one sample of every cell, right after one of the machine, followed by its
 * peers, so that a slow phase of the machine hits all of them. See bench.h.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/os.h"
#include "cli/bench.h"
#include "measure/memory.h"
#include "measure/stats.h"

/* A peer cell this far below the best of its row after round 1 cannot become the best: it is not repeated. */
#define HOPELESS 0.7
enum { PEER_FAILURES = 2 }; /* some programs crash now and then: one failure is tried again in the next round */

/* ---------------------------------------------------------------- series */

void kv_bench_add(bench_series *s, double v) {
    if (s->n < BENCH_ROUNDS) s->v[s->n++] = v;
}

double kv_bench_median(const bench_series *s) {
    double v[BENCH_ROUNDS];
    memcpy(v, s->v, s->n * sizeof *v);
    return s->n ? kv_measure_median(v, s->n) : NAN;
}

void kv_bench_range(const bench_series *s, double *min, double *max) {
    *min = *max = s->n ? s->v[0] : NAN;
    for (uint32_t i = 1; i < s->n; i++) {
        if (s->v[i] < *min) *min = s->v[i];
        if (s->v[i] > *max) *max = s->v[i];
    }
}

double kv_bench_ratio(const bench *b, const bench_row *r, const bench_peer_cell *p) {
    double ours = kv_bench_median(&b->cells[r->cell].s), theirs = kv_bench_median(&p->s);
    return b->cells[r->cell].load ? theirs / ours : ours / theirs;
}

/* ---------------------------------------------------------------- rows */

static bool same_cell(const bench_cell *a, const bench_cell *b) {
    return a->load == b->load && a->c.stage == b->c.stage && a->c.depth == b->c.depth && a->c.n == b->c.n &&
           a->c.batch == b->c.batch && !strcmp(a->c.policy, b->c.policy);
}

static bool same_work(const bench_peer_cell *p, uint32_t peer, const peer_work *w) {
    return p->peer == peer && p->w.kind == w->kind && p->w.depth == w->depth && p->w.n == w->n &&
           p->w.batch == w->batch && !strcmp(p->w.cache, w->cache);
}

static void add_peer_cell(bench *b, bench_row *r, uint32_t peer, const peer_work *w) {
    uint32_t i = 0;
    while (i < b->n_peer_cells && !same_work(&b->peer_cells[i], peer, w)) i++;
    if (i == BENCH_CELLS || r->n_peers == BENCH_ROW_PEERS) return;
    if (i == b->n_peer_cells)
        b->peer_cells[b->n_peer_cells++] = (bench_peer_cell){.peer = peer, .cell = r->cell, .w = *w};
    r->peers[r->n_peers++] = i;
}

/* Which caches of the peers a row is compared with. q6_0 is ik_llama.cpp's. */
static void add_peers(bench *b, bench_row *r) {
    static const char *const quantized[] = {"q8_0", "q4_0", "q6_0"};
    const bench_cell *c = &b->cells[r->cell];
    peer_work w = {.depth = c->c.depth, .n = c->c.n, .batch = c->c.batch, .cache = "f16"};
    w.kind = c->load                         ? PEER_LOAD
             : c->c.stage == KV_BENCH_PROMPT ? PEER_PROMPT
             : c->c.batch > 1                ? PEER_BATCH
                                             : PEER_DECODE;
    for (uint32_t p = 0; p < b->n_peers; p++) {
        w.cache = "f16";
        if (r->against != AGAINST_QUANTIZED) add_peer_cell(b, r, p, &w);
        for (int q = 0; q < (b->peers[p].has_gp ? 3 : 2) && r->against >= AGAINST_QUANTIZED; q++) {
            w.cache = quantized[q];
            add_peer_cell(b, r, p, &w);
        }
    }
}

bench_row *kv_bench_row_add(bench *b, const bench_cell *cell, bench_against against) {
    uint32_t i = 0;
    while (i < b->n_cells && !same_cell(&b->cells[i], cell)) i++;
    if (b->n_rows == BENCH_CELLS || i == BENCH_CELLS) return NULL;
    if (i == b->n_cells) b->cells[b->n_cells++] = *cell;
    bench_row *r = &b->rows[b->n_rows++];
    *r = (bench_row){.cell = i, .against = against};
    if (against != AGAINST_NONE) add_peers(b, r);
    return r;
}

/* ---------------------------------------------------------------- engine */

/* Bytes of memory that can be had without swapping; 0: unknown. */
static uint64_t memory_available(void) {
    unsigned long long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    if (f) fclose(f);
    return (uint64_t)kib << 10;
}

/* True bytes of one sequence's cache under a policy, at most; f16's where nothing can be said. */
static uint64_t cache_bytes(const bench *b, const char *policy, uint32_t n) {
    const kvist_model_info *m = &b->e.info;
    kv_memory_shape shape = {m->n_layers, m->n_kv_heads, m->head_dim_k, m->head_dim_v};
    kv_memory_need need;
    kv_error err;
    if (n && kv_memory_estimate(&shape, policy, n, &need, &err) == KVIST_OK) return need.bytes_true;
    return n * m->bytes_f16_token;
}

/* The caches of all sessions at once (all), or of the largest cell: with copies on write and snapshots beside. */
static uint64_t sessions_bytes(const bench *b, bool all) {
    uint64_t sum = 0, most = 0;
    for (uint32_t i = 0; i < b->n_cells; i++) {
        const kv_bench_cell *c = &b->cells[i].c;
        uint64_t bytes = c->batch * (cache_bytes(b, c->policy, c->depth + c->n) * 5 / 4 + (4 << 20));
        bool counted = false; /* cells of one policy, depth and batch share sessions */
        for (uint32_t k = 0; k < i && !counted; k++)
            counted = b->cells[k].c.depth == c->depth && b->cells[k].c.batch >= c->batch &&
                      !strcmp(b->cells[k].c.policy, c->policy);
        if (!counted) sum += bytes;
        if (bytes > most) most = bytes;
    }
    return all ? sum : most;
}

/* What the engine needs beside sessions at rest: one prompt of the whole context on its way, snapshots, buffers. */
static uint64_t engine_bytes(const bench *b, uint32_t n_ctx, uint32_t sessions) {
    const kvist_model_info *m = &b->e.info;
    uint64_t token = m->bytes_f16_token * 5 / 4 + 8ull * m->n_embd + 16ull * m->n_heads + 4096;
    return n_ctx * token + (sessions + 64ull) * 4 * m->n_vocab + (512ull << 20);
}

/* The context for the deepest cell. Sessions are kept when all of them take less than half of the free memory (and fit
 * --kv-mem); else a cell's sessions give way to the next one's, and the depth is read anew each time. */
static int open_engine(bench *b) {
    uint32_t longest = 0, batch = 1;
    for (uint32_t i = 0; i < b->n_cells; i++) {
        const kv_bench_cell *c = &b->cells[i].c;
        if (c->depth + c->n > longest) longest = c->depth + c->n;
        if (c->batch > batch) batch = c->batch;
    }
    cli_options with = *b->o;
    if (!with.n_ctx) with.n_ctx = longest + 1; /* grown on purpose; the warning says when it passes the model's own */
    uint32_t n_ctx = kv_cli_context(&with, &b->e.info, longest, 1);
    if (!n_ctx) return KV_CLI_FAILED;
    uint64_t own = engine_bytes(b, n_ctx, batch), all = sessions_bytes(b, true), room = memory_available() / 2;
    if (with.kv_mem) room = with.kv_mem;
    b->kept = own + all <= room;
    if (!with.kv_mem) with.kv_mem = own + (b->kept ? all : sessions_bytes(b, false));
    char text[32];
    if (b->o->verbose || !b->kept)
        kv_cli_warn(b->o, "the caches of all cells take %s: %s", kv_out_bytes(text, sizeof text, all),
                    b->kept ? "all are kept between repetitions"
                            : "too much, so one cell's at a time, and each repetition reads its depth again");
    return kv_cli_open_engine(&with, n_ctx, batch < 16 ? 16 : batch, &b->e);
}

/* ---------------------------------------------------------------- machine */

/* Whether a sample is taken (once more), after so many tries of which the least disturbed one lost the share `least`. */
static bool tries_on(const bench *b, int tries, double least) {
    return !tries || (tries <= BENCH_AGAIN && kv_bench_disturbed(b->o, least));
}

/* A measurement of the machine serves the samples that begin this soon after it. */
#define PROBE_SECONDS 5.0

/* The rates that limits are made of, right before each sample: a machine that others share is another one a minute later.
 */
static void probe_machine(bench *b, kv_machine *m) {
    int level = kv_cpu_detect();
    if (b->now.threads && (double)(kv_os_now_ns() - b->now_ns) * 1e-9 < PROBE_SECONDS) {
        *m = b->now;
        return;
    }
    for (int i = 0; b->o->cpu && i < level; i++)
        if (!strcmp(b->o->cpu, kv_cpu_level_name(i))) level = i;
    double least = INFINITY;
    for (int i = 0; tries_on(b, i, least); i++) {
        kv_os_host at = kv_os_host_now();
        kv_machine one;
        kv_machine_probe(b->threads, level, &one);
        double stolen = kv_os_host_took(at);
        if (i && stolen >= least) continue;
        *m = one;
        least = stolen;
    }
    if (b->o->precise) m->int16 = 0; /* f32 then */
    b->now = *m;
    b->now_ns = kv_os_now_ns();
}

static double median_rate(const bench *b, size_t field) {
    static double v[BENCH_CELLS * BENCH_ROUNDS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->n_cells; i++)
        for (uint32_t k = 0; k < b->cells[i].s.n; k++)
            if (b->cells[i].at[k].threads) v[n++] = *(const double *)(const void *)((const char *)&b->cells[i].at[k] + field);
    return n ? kv_measure_median(v, n) : 0;
}

/* Medians over all samples; the best pass of all. */
static void sum_up_machine(bench *b) {
    kv_machine *m = &b->machine;
    double best = 0;
    memset(m, 0, sizeof *m);
    for (uint32_t i = 0; i < b->n_cells; i++)
        for (uint32_t k = 0; k < b->cells[i].s.n; k++) {
            const kv_machine *at = &b->cells[i].at[k];
            if (at->threads) *m = *at;
            if (at->bandwidth_best > best) best = at->bandwidth_best;
        }
    m->bandwidth = median_rate(b, offsetof(kv_machine, bandwidth));
    m->bandwidth_best = best;
    m->int8 = median_rate(b, offsetof(kv_machine, int8));
    m->int16 = median_rate(b, offsetof(kv_machine, int16));
    m->f32 = median_rate(b, offsetof(kv_machine, f32));
    m->bf16 = median_rate(b, offsetof(kv_machine, bf16));
}

/* ---------------------------------------------------------------- samples */

/* The file goes into the page cache, whatever was there: loading is measured, not the disk. */
static void touch_file(const char *path) {
    char buf[65536];
    FILE *f = fopen(path, "rb");
    while (f && fread(buf, 1, sizeof buf, f) == sizeof buf) {}
    if (f) fclose(f);
}

static void sample_load(bench *b, bench_cell *c, kv_bench_sample *s) {
    char self[PEER_PATH], threads[16];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) {
        snprintf(c->why, sizeof c->why, "cannot find this program");
        return;
    }
    self[n] = 0;
    snprintf(threads, sizeof threads, "%u", b->threads);
    const char *argv[] = {self,
                          "run",
                          "-m",
                          b->model,
                          "-p",
                          "a",
                          "--raw",
                          "-n",
                          "1",
                          "-c",
                          "512",
                          "--temp",
                          "0",
                          "-q",
                          "-t",
                          threads,
                          b->o->cpu ? "--cpu" : NULL,
                          b->o->cpu,
                          NULL};
    peer_output o;
    touch_file(b->model);
    kv_peer_spawn_warm(argv, 0, &o);
    if (o.status)
        snprintf(c->why, sizeof c->why, "a fresh process ended with status %d: %.200s", o.status, o.last);
    else
        s->seconds = o.seconds;
    kv_peer_output_free(&o);
}

/* Where no bar is drawn, a line a sample: a long run can be followed, and what was measured is not lost with it. */
static bool says(const bench *b) { return !b->o->quiet && !isatty(STDERR_FILENO); }

static const char *taken(const bench *b, double stolen, char *buf, size_t cap) {
    snprintf(buf, cap, ", the host took %.0f %%", 100 * stolen);
    return kv_bench_disturbed(b->o, stolen) ? buf : "";
}

static void say_cell(const bench *b, const bench_cell *c, uint32_t round) {
    static const char *const stage[] = {"prompt", "decode", "score", "seal"};
    static const char *const unit[] = {"tokens/s", "tokens/s", "%", "%"};
    char host[48];
    if (!says(b) || c->why[0] || !c->s.n) return;
    fprintf(stderr, "kvist: round %u/%u: %s %u at %u, %u sequence%s, %s: %.4g %s%s\n", round + 1, b->rounds,
            c->load ? "load" : stage[c->c.stage], c->c.n, c->c.depth, c->c.batch, c->c.batch > 1 ? "s" : "",
            c->c.policy, c->s.v[c->s.n - 1], c->load ? "s" : unit[c->c.stage],
            taken(b, c->stolen.v[c->s.n - 1], host, sizeof host));
}

static void say_peer(const bench *b, const bench_peer_cell *p) {
    char host[48];
    if (!says(b) || !p->s.n) return;
    fprintf(stderr, "kvist:     %s, %s, %s: %.4g %s%s\n", b->peers[p->peer].name, p->last.how, p->w.cache, p->s.v[p->s.n - 1],
            p->w.kind == PEER_LOAD ? "s" : "tokens/s", taken(b, p->stolen.v[p->s.n - 1], host, sizeof host));
}

static double cell_value(const bench_cell *c, const kv_bench_sample *s) {
    bool part = c->c.stage == KV_BENCH_SCORE || c->c.stage == KV_BENCH_SEAL;
    return c->load ? s->seconds : part ? s->percent : s->tps;
}

/* One attempt; KVIST_E_CANCELLED: stopped by the user. What else fails is in c->why. */
static kv_status try_cell(bench *b, kv_bench *kb, bench_cell *c, kv_machine *machine, kv_bench_sample *s) {
    kvist_error err;
    bool has_limit = !c->load && (c->c.stage == KV_BENCH_PROMPT || c->c.stage == KV_BENCH_DECODE);
    memset(s, 0, sizeof *s);
    if (has_limit && !b->o->no_probe) probe_machine(b, machine);
    if (c->load) {
        kv_os_host at = kv_os_host_now();
        sample_load(b, c, s);
        s->stolen = kv_os_host_took(at);
    } else if (kv_bench_run(kb, &c->c, s, &err) != KVIST_OK) {
        if (err.status == KVIST_E_CANCELLED) return KVIST_E_CANCELLED;
        snprintf(c->why, sizeof c->why, "%.250s", err.message);
    }
    return kv_cli_interrupted() ? KVIST_E_CANCELLED : KVIST_OK;
}

/* False: stopped by the user. */
static bool sample_cell(bench *b, kv_bench *kb, bench_cell *c) {
    kv_bench_sample s, best = {.stolen = INFINITY};
    kv_machine machine = {0}, at = {0};
    if (c->why[0]) return true;
    for (int i = 0; !c->why[0] && tries_on(b, i, best.stolen); i++) {
        if (try_cell(b, kb, c, &machine, &s) != KVIST_OK) return false;
        b->again += i > 0;
        if (s.stolen >= best.stolen) continue;
        best = s;
        at = machine;
    }
    if (c->why[0]) {
        b->failed = true;
        fprintf(stderr, "kvist: %s at depth %u: %s\n", c->c.policy, c->c.depth, c->why);
        return true;
    }
    c->at[c->s.n] = at;
    kv_bench_add(&c->stolen, best.stolen);
    if (!c->load) c->last = best;
    kv_bench_add(&c->s, cell_value(c, &best));
    return true;
}

/* Higher is better. */
static double value_of(const bench_peer_cell *p) {
    return p->w.kind == PEER_LOAD ? 1 / kv_bench_median(&p->s) : kv_bench_median(&p->s);
}

/* The host disturbed all samples there are: they say nothing against a program. */
static bool unfair(const bench *b, const bench_peer_cell *p) {
    double least, most;
    kv_bench_range(&p->stolen, &least, &most);
    return p->s.n && kv_bench_disturbed(b->o, least);
}

/* Whether a is the work of b or less of it: so that who is far behind at a would be further behind at b. Many sequences
 * decoding together are work of another kind than one: who is slow with one may be the best with eight. */
static bool no_harder(const peer_work *a, const peer_work *b) {
    return a->kind == b->kind && a->kind != PEER_LOAD && a->depth <= b->depth && a->batch <= b->batch &&
           (a->kind == PEER_DECODE || a->n <= b->n) && (!strcmp(a->cache, "f16") || !strcmp(a->cache, b->cache));
}

/* In round 1: another program was so much faster at easier work that this one's cell, which may take it many minutes,
 * cannot be the better one. */
static bool beaten_already(const bench *b, const bench_peer_cell *p) {
    for (uint32_t i = 0; i < b->n_peer_cells; i++) {
        const bench_peer_cell *easy = &b->peer_cells[i];
        if (easy->peer != p->peer || !easy->s.n || unfair(b, easy) || !no_harder(&easy->w, &p->w)) continue;
        for (uint32_t k = 0; k < b->n_peer_cells; k++) {
            const bench_peer_cell *other = &b->peer_cells[k];
            bool same = other->cell == easy->cell && !strcmp(other->w.cache, easy->w.cache);
            if (same && other->peer != p->peer && other->s.n && value_of(easy) < HOPELESS * value_of(other))
                return true;
        }
    }
    return false;
}

static bool sample_peer(bench *b, bench_peer_cell *p) {
    bench_peer *q = &b->peers[p->peer];
    peer_result *last = &p->last;
    if (p->dropped || p->absent || p->failed) return true;
    if (!p->s.n && beaten_already(b, p)) {
        p->dropped = true;
        snprintf(last->why, sizeof last->why, "not run: below %.0f %% of another's speed at less work", 100 * HOPELESS);
        if (says(b)) fprintf(stderr, "kvist:     %s, %s: %s\n", q->name, p->w.cache, last->why);
        return true;
    }
    peer_outcome r = PEER_OK;
    for (int i = 0; r == PEER_OK && tries_on(b, i, last->stolen); i++) {
        peer_result now = {0};
        if (i && b->o->vs_once && last->seconds > b->o->vs_once) break;
        if (p->w.kind == PEER_LOAD) touch_file(b->model);
        r = kv_peer_run(q, &p->w, b->model, b->threads, &now);
        if (kv_cli_interrupted()) return false;
        b->again += i > 0;
        if (i == 0 || (r == PEER_OK && now.stolen < last->stolen)) *last = now;
        if (i && r != PEER_OK) r = PEER_OK; /* the first one stands */
    }
    p->absent = r == PEER_ABSENT;
    p->failures += r == PEER_FAILED;
    p->failed = p->failures == PEER_FAILURES;
    if (r == PEER_OK) {
        kv_bench_add(&p->stolen, last->stolen);
        kv_bench_add(&p->s, last->value);
        say_peer(b, p);
    }
    p->slow = r == PEER_SLOW;
    p->dropped |= p->slow;
    if (p->slow) kv_cli_warn(b->o, "%s: %s (--vs-limit)", q->name, last->why);
    if (p->absent) kv_cli_warn(b->o, "%s: there is no %s beside it: absent", q->name, last->how);
    if (r == PEER_FAILED) {
        b->failed |= p->failed;
        fprintf(stderr, "kvist: %s: %s\n", q->name, last->why);
    }
    return true;
}

/* Between rounds: peer cells that no row's comparison can hang on, and those too long to be repeated. What the host
 * disturbed stays for another try. */
static void drop_hopeless(bench *b) {
    for (uint32_t i = 0; i < b->n_peer_cells; i++) b->peer_cells[i].dropped |= b->peer_cells[i].s.n > 0;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const bench_row *r = &b->rows[i];
        double best = 0;
        for (int pass = 0; pass < 2; pass++)
            for (uint32_t k = 0; k < r->n_peers; k++) {
                bench_peer_cell *p = &b->peer_cells[r->peers[k]];
                if (!p->s.n) continue;
                double v = value_of(p);
                if (pass == 0 && v > best) best = v;
                if (pass == 1 && v >= HOPELESS * best) p->dropped = false;
            }
    }
    for (uint32_t i = 0; i < b->n_peer_cells; i++) {
        bench_peer_cell *p = &b->peer_cells[i];
        if (b->o->vs_once) p->dropped |= p->last.seconds > b->o->vs_once;
        if (unfair(b, p)) p->dropped = false;
        p->dropped |= p->slow;
    }
}

/* Others' work on the machine, from the load average (which lags by a minute and counts us, `own` threads). */
static void warn_loaded(const bench *b, double own) {
    double load;
    if (getloadavg(&load, 1) == 1 && load > own + 0.7)
        kv_cli_warn(b->o, "the machine is busy with something else: load average %.1f", load);
}

static void plan_peers(bench *b) {
    for (uint32_t p = 0; p < b->n_peers; p++) kv_peer_plan_clear(&b->peers[p]);
    for (uint32_t i = 0; i < b->n_peer_cells; i++) {
        const bench_peer_cell *c = &b->peer_cells[i];
        if (!c->dropped && !c->absent && !c->failed) kv_peer_plan(&b->peers[c->peer], &c->w);
    }
}

static bool one_round(bench *b, kv_bench *kb, cli_progress *progress, uint32_t round) {
    plan_peers(b);
    for (uint32_t i = 0; i < b->n_cells; i++) {
        if (!sample_cell(b, kb, &b->cells[i])) return false;
        say_cell(b, &b->cells[i], round);
        for (uint32_t k = 0; k < b->n_peer_cells; k++) {
            bench_peer_cell *p = &b->peer_cells[k];
            if (p->cell != i) continue;
            if (!p->dropped) kv_out_progress(&progress->bar, b->peers[p->peer].name, round, b->rounds);
            if (!sample_peer(b, p)) return false;
        }
    }
    if (round + 1 < b->rounds) drop_hopeless(b);
    return true;
}

int kv_bench_rounds(bench *b) {
    kvist_error err;
    cli_progress progress;
    kv_bench *kb;
    kv_cli_progress_init(&progress, b->o, "");
    kv_watch watch = {kv_cli_watch, &progress};
    warn_loaded(b, 0);
    int rc = open_engine(b);
    if (rc != KV_CLI_OK) return rc;
    if (kv_bench_open(b->e.engine, b->tokens, b->n_tokens, b->kept, &watch, &kb, &err)) return kv_cli_error(&err);
    for (uint32_t i = 0; i < b->n_cells; i++)
        if (!b->cells[i].load && kv_bench_plan(kb, &b->cells[i].c, &err)) {
            kv_bench_close(&kb);
            return kv_cli_error(&err);
        }
    kv_cli_interrupt_install();
    bool going = true;
    for (uint32_t round = 0; going && round < b->rounds; round++) {
        going = one_round(b, kb, &progress, round);
        if (going && round + 1 < b->rounds) warn_loaded(b, b->threads);
    }
    kv_out_progress_clear(&progress.bar);
    kv_bench_close(&kb);
    sum_up_machine(b);
    if (!going) fprintf(stderr, "kvist: stopped; what was measured follows\n");
    return going && !b->failed ? KV_CLI_OK : KV_CLI_FAILED;
}
