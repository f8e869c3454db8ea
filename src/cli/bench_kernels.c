/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist bench --kernels: each kernel by itself, at every instruction set level this processor has. Needs no model.
 * Owns: levels, the clock, the table. The list of sections is the one place that names them; what each measures follows
 * from the tables of weight types, page formats and levels, so a new one appears by itself.
 *
 * How: repetitions go round the levels in turn, so a slow phase of the machine hits all of them; a repetition runs the
 * case often enough to last REP_NS; time is the median, the spread half the interquartile range, a ratio the median of
 * the ratios within each round. The clock is the thread's processor time: all work is on this thread, and what other
 * programs take of the machine in between is not the kernel's.
 */
#include "cli/bench_kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/half.h"

static const struct {
    const char *name;
    void (*run)(kb *b);
} sections[] = {
    {"machine", kv_kb_machine}, {"matmul", kv_kb_matmul}, {"attn", kv_kb_attn},
    {"encode", kv_kb_encode},   {"elem", kv_kb_elem},
};

enum { REPS = 7, REPS_MAX = KV_KB_REPS_MAX };
#define REP_NS 400000.0 /* several hundred times the cost of reading the clock */

struct kb {
    const char *filter;
    uint32_t reps;
    bool csv, json, list;
    int n_levels, levels[KV_CPU_LEVELS];
    kv_backend *be[KV_CPU_LEVELS];
    kv_exec *ex[KV_CPU_LEVELS][2]; /* by kv_exec_params.precise */
    uint32_t rows;                     /* printed */
    double t[KV_CPU_LEVELS][REPS_MAX]; /* ns a run, of the case at hand, by round */
};

static const char *const place_names[] = {"memory", "cache"};
static const struct {
    const char *name;
    double scale;               /* of amount per second */
    bool inverse;               /* seconds per amount */
} units[KB_UNITS] = {{"", 0, false},          {"GB/s", 1e-9, false},      {"GMAC/s", 1e-9, false},
                     {"Gvalue/s", 1e-9, false}, {"us/page", 1e6, true}};

/* ---- data */
void *kv_kb_alloc(size_t bytes) {
    void *p = kv_malloc64(bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "kvist bench: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

void kv_kb_must(kv_status st, const kv_error *err) {
    if (st == KVIST_OK) return;
    fprintf(stderr, "kvist bench: %s\n", err->message);
    exit(1);
}

static float next_value(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    uint64_t z = (*s ^ *s >> 29) * 0x9e3779b97f4a7c15u;
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(z >> (16 * i) & 0xffff) - 32767.5f;
    return sum * (1.7320508f / 65536.0f);
}

void kv_kb_fill(float *y, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) y[i] = next_value(&seed);
}

void kv_kb_fill_f16(uint16_t *y, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) y[i] = kv_f32_f16(next_value(&seed));
}

/* ---- measuring */
bool kv_kb_wants(kb *b, const kb_case *c) {
    char full[160];
    snprintf(full, sizeof full, "%s/%s/%s", c->section, c->kernel, c->name);
    if (b->filter && !strstr(full, b->filter)) return false;
    if (!b->list) return true;
    printf("%s\n", full);
    b->rows++;
    return false;
}

kv_exec *kv_kb_best(const kb *b) { return b->ex[b->n_levels - 1][0]; }

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds of one run in a repetition of n. */
static double time_runs(const kb_case *c, kv_exec *ex, uint32_t n) {
    double t0 = now_ns();
    for (uint32_t i = 0; i < n; i++) c->run(c->ctx, ex);
    return (now_ns() - t0) / n;
}

/* Warms up, and finds the runs that last a repetition. */
static uint32_t runs_for(const kb_case *c, kv_exec *ex) {
    uint32_t n = 1;
    double ns = time_runs(c, ex, 1);
    while (ns * n < REP_NS / 2 && n < 1u << 20) {
        n *= 4;
        ns = time_runs(c, ex, n);
    }
    return ns * n >= REP_NS ? n : (uint32_t)(REP_NS / ns) + 1;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts t and gives its median; half the distance of the quartiles in *spread (may be NULL). */
static double median(double *t, uint32_t n, double *spread) {
    qsort(t, n, sizeof *t, ascending);
    if (spread) *spread = (t[(3 * n) / 4] - t[n / 4]) / 2;
    return n & 1 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
}

/* How many times faster `a` is than `base`, round by round. */
static double ratio(const double *base, const double *a, uint32_t n) {
    double r[REPS_MAX];
    for (uint32_t i = 0; i < n; i++) r[i] = base[i] / a[i];
    return median(r, n, NULL);
}

/* In its unit; NaN: the case has no such rate. */
static double rate_of(const kb_rate *r, double ns) {
    double s = ns * 1e-9;
    if (r->unit == KB_NONE) return NAN;
    return units[r->unit].inverse ? s / r->amount * units[r->unit].scale : r->amount / s * units[r->unit].scale;
}

/* What a row says. */
typedef struct kb_row {
    const char *level;
    double ns, spread;        /* median; half the interquartile range, in percent of it */
    double rate[2];           /* NaN: none */
    double over_ref, over_below; /* times as fast; NaN: no such level */
} kb_row;

static void print_json(const kb_case *c, const kb_row *r) {
    json_t *o = json_object();
    json_object_set_new(o, "section", json_string(c->section));
    json_object_set_new(o, "kernel", json_string(c->kernel));
    json_object_set_new(o, "case", json_string(c->name));
    json_object_set_new(o, "data", json_string(place_names[c->place]));
    json_object_set_new(o, "level", json_string(r->level));
    kv_out_json_real(o, "time_us", r->ns * 1e-3);
    kv_out_json_real(o, "spread_pct", r->spread);
    for (int i = 0; i < 2; i++) {
        kv_out_json_real(o, i ? "rate2" : "rate", r->rate[i]);
        json_object_set_new(o, i ? "unit2" : "unit", json_string(units[c->rate[i].unit].name));
    }
    kv_out_json_real(o, "x_ref", r->over_ref);
    kv_out_json_real(o, "x_below", r->over_below);
    kv_out_json_line(o, stdout);
}

static void print_csv(const kb_case *c, const kb_row *r) {
    printf("%s,%s,\"%s\",%s,%s,%.6g,%.3g", c->section, c->kernel, c->name, place_names[c->place], r->level,
           r->ns * 1e-3, r->spread);
    for (int i = 0; i < 2; i++)
        isnan(r->rate[i]) ? printf(",,") : printf(",%.4g,%s", r->rate[i], units[c->rate[i].unit].name);
    isnan(r->over_ref) ? printf(",") : printf(",%.4g", r->over_ref);
    isnan(r->over_below) ? printf(",\n") : printf(",%.4g\n", r->over_below);
}

static void print_markdown(const kb_case *c, const kb_row *r) {
    const double over[2] = {r->over_ref, r->over_below};
    printf("| %s | %s | %s | %s | %s | %.*f | %.0f %% |", c->section, c->kernel, c->name, place_names[c->place],
           r->level,
           r->ns < 1e2 ? 4 : r->ns < 1e3 ? 3 : r->ns < 1e4 ? 2 : r->ns < 1e6 ? 1 : 0, r->ns * 1e-3, r->spread);
    for (int i = 0; i < 2; i++)
        isnan(r->rate[i]) ? printf(" |")
                          : printf(" %.*f %s |", r->rate[i] < 10 ? 2 : r->rate[i] < 100 ? 1 : 0, r->rate[i],
                                   units[c->rate[i].unit].name);
    for (int i = 0; i < 2; i++)
        isnan(over[i]) ? printf(" |") : printf(" %.*f |", over[i] < 10 ? 2 : 1, over[i]);
    printf("\n");
}

/* One row of the table, for level index l. */
static void print_row(kb *b, const kb_case *c, int l) {
    double sorted[REPS_MAX];
    kb_row r = {.level = c->no_level ? "any" : kv_cpu_level_name(b->levels[l]), .over_ref = NAN, .over_below = NAN};
    memcpy(sorted, b->t[l], b->reps * sizeof *sorted);
    r.ns = median(sorted, b->reps, &r.spread);
    r.spread *= 100 / r.ns;
    for (int i = 0; i < 2; i++) r.rate[i] = rate_of(&c->rate[i], r.ns);
    if (l > 0 && b->levels[0] == KV_CPU_REF) r.over_ref = ratio(b->t[0], b->t[l], b->reps);
    if (l > 0) r.over_below = ratio(b->t[l - 1], b->t[l], b->reps);
    (b->json ? print_json : b->csv ? print_csv : print_markdown)(c, &r);
    b->rows++;
}

void kv_kb_measure(kb *b, const kb_case *c) {
    if (!kv_kb_wants(b, c)) return;
    uint32_t runs[KV_CPU_LEVELS];
    int n = c->no_level ? 1 : b->n_levels;
    for (int l = 0; l < n; l++) runs[l] = runs_for(c, b->ex[l][c->precise]);
    for (uint32_t i = 0; i < b->reps; i++)
        for (int l = 0; l < n; l++) b->t[l][i] = time_runs(c, b->ex[l][c->precise], runs[l]);
    for (int l = 0; l < n; l++) print_row(b, c, l);
    fflush(stdout);
}

/* ---- levels, options */
static void open_levels(kb *b, int only) {
    kv_error err;
    for (int level = KV_CPU_REF; level <= kv_cpu_detect(); level++) {
        if (only >= 0 && level != only) continue;
        int l = b->n_levels++;
        b->levels[l] = level;
        kv_kb_must(kv_backend_cpu_open(level, &b->be[l], &err), &err);
        for (int precise = 0; precise < 2; precise++) {
            kv_exec_params p = {.threads = 1, .precise = precise, .max_rows = KB_ROWS, .max_k = KB_MAX_K,
                                .max_n = KB_MAX_N, .max_heads = KB_N_Q, .max_head_dim = KB_HEAD_DIM,
                                .max_ctx = KB_MAX_CTX, .page_bytes = kv_page_bytes_for(KB_HEAD_DIM, KB_HEAD_DIM)};
            kv_kb_must(b->be[l]->ops->exec_create(b->be[l], &p, &b->ex[l][precise], &err), &err);
        }
    }
}

static void close_levels(kb *b) {
    for (int l = 0; l < b->n_levels; l++) {
        for (int precise = 0; precise < 2; precise++) b->be[l]->ops->exec_free(b->ex[l][precise]);
        b->be[l]->ops->close(b->be[l]);
    }
}

static void print_head(const kb *b) {
    char cpu[128];
    const char *commit = getenv("KVIST_COMMIT");
    if (b->json) return;
    if (b->csv) {
        printf("section,kernel,case,data,level,time_us,spread_pct,rate,unit,rate2,unit2,x_ref,x_below\n");
        return;
    }
    kv_cpu_name(cpu, sizeof cpu);
    printf("kvist %s%s%s, %s, 1 thread, %u interleaved repetitions: median processor time and half the interquartile "
           "range. Data: memory = a ring of %zu MiB is walked, cache = reused. x ref, x below: times as fast as the "
           "reference level, as the level below.\n\n",
           kvist_version(), commit && *commit ? " " : "", commit ? commit : "", cpu, b->reps, KB_RING_BYTES >> 20);
    printf("| section | kernel | case | data | level | time, us | +- | rate | rate 2 | x ref | x below |\n");
    printf("|---|---|---|---|---|--:|--:|--:|--:|--:|--:|\n");
}

static int find_level(const char *text) {
    for (int level = 0; level < KV_CPU_LEVELS; level++) {
        char number[12];
        snprintf(number, sizeof number, "%d", level);
        if (!strcmp(text, kv_cpu_level_name(level)) || !strcmp(text, number)) return level;
    }
    return -1;
}

int kv_bench_kernels(const cli_options *o) {
    kb *b = kv_calloc(1, sizeof *b);
    int only = o->cpu ? find_level(o->cpu) : -1;
    if (!b) return KV_CLI_FAILED;
    *b = (kb){.reps = o->reps ? o->reps : REPS, .filter = o->filter, .list = o->list};
    b->csv = o->output && !strcmp(o->output, "csv");
    b->json = o->json || (o->output && !strcmp(o->output, "json"));
    int rc = KV_CLI_OK;
    if (o->cpu && only < 0)
        rc = kv_cli_usage_error("bench", "--level: '%s' is no instruction set level", o->cpu);
    else if (only > kv_cpu_detect()) {
        fprintf(stderr, "kvist: this processor lacks the level %s\n", kv_cpu_level_name(only));
        rc = KV_CLI_FAILED;
    } else {
        open_levels(b, only);
        if (!b->list) print_head(b);
        for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) sections[i].run(b);
        close_levels(b);
        if (!b->rows) {
            fprintf(stderr, "kvist: no kernel's section/kernel/case contains '%s'\n", b->filter);
            rc = KV_CLI_FAILED;
        }
    }
    kv_free(b);
    return rc;
}
