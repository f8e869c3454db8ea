/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each kernel by itself, at every instruction set level this processor has: bench_kernels [--filter TEXT] [--level NAME]
 * [--reps N] [--csv] [--list]. Prints a Markdown table (or CSV).
 * Owns: options, levels, the clock, the table. The list of sections is the one place that names them; what each measures
 * follows from the tables of weight types, page formats and levels, so a new one appears by itself.
 *
 * How: repetitions go round the levels in turn, so a slow phase of the machine hits all of them; a repetition runs the
 * case often enough to last REP_NS; time is the median, the spread half the interquartile range, a ratio the median of the
 * ratios within each round. The clock is the thread's processor time: all work is on this thread, and what other programs
 * take of the machine in between is not the kernel's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/half.h"
#include "bench.h"

static const struct {
    const char *name;
    void (*run)(kb *b);
} sections[] = {
    {"machine", kb_machine}, {"matmul", kb_matmul}, {"attn", kb_attn}, {"encode", kb_encode}, {"elem", kb_elem},
};

#define REPS_MIN 7u
#define REPS_MAX 1001u
#define REP_NS 400000.0 /* several hundred times the cost of reading the clock */

struct kb {
    const char *filter;
    uint32_t reps;
    bool csv, list;
    int n_levels, levels[KV_CPU_LEVELS];
    kv_backend *be[KV_CPU_LEVELS];
    kv_exec *ex[KV_CPU_LEVELS][2]; /* by kv_exec_params.precise */
    uint32_t rows; /* printed */
    double t[KV_CPU_LEVELS][REPS_MAX]; /* ns a run, of the case at hand, by round */
};

static const char *const place_names[] = {"memory", "cache"};
static const struct {
    const char *name;
    double scale; /* of amount per second */
    bool inverse; /* seconds per amount */
} units[KB_UNITS] = {{"", 0, false},          {"GB/s", 1e-9, false},      {"GMAC/s", 1e-9, false},
                     {"Gvalue/s", 1e-9, false}, {"us/page", 1e6, true}};

/* ---- data */
void *kb_alloc(size_t bytes) {
    void *p = kv_malloc64(bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "bench_kernels: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

void kb_must(kv_status st, const kv_error *err) {
    if (st == KVIST_OK) return;
    fprintf(stderr, "bench_kernels: %s\n", err->message);
    exit(1);
}

static float next_value(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    uint64_t z = (*s ^ *s >> 29) * 0x9e3779b97f4a7c15u;
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(z >> (16 * i) & 0xffff) - 32767.5f;
    return sum * (1.7320508f / 65536.0f);
}

void kb_fill(float *y, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) y[i] = next_value(&seed);
}

void kb_fill_f16(uint16_t *y, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) y[i] = kv_f32_f16(next_value(&seed));
}

/* ---- measuring */
bool kb_wants(kb *b, const kb_case *c) {
    char full[160];
    snprintf(full, sizeof full, "%s/%s/%s", c->section, c->kernel, c->name);
    if (b->filter && !strstr(full, b->filter)) return false;
    if (!b->list) return true;
    printf("%s\n", full);
    b->rows++;
    return false;
}

kv_exec *kb_best(const kb *b) { return b->ex[b->n_levels - 1][0]; }

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

static void print_rate(const kb *b, const kb_rate *r, double ns) {
    double rate = 0, s = ns * 1e-9;
    if (r->unit != KB_NONE)
        rate = units[r->unit].inverse ? s / r->amount * units[r->unit].scale : r->amount / s * units[r->unit].scale;
    if (b->csv && r->unit != KB_NONE) printf(",%.4g,%s", rate, units[r->unit].name);
    else if (b->csv) printf(",,");
    else if (r->unit != KB_NONE) printf(" %.*f %s |", rate < 10 ? 2 : rate < 100 ? 1 : 0, rate, units[r->unit].name);
    else printf(" |");
}

static void print_ratio(const kb *b, double r) {
    if (b->csv) r > 0 ? printf(",%.4g", r) : printf(",");
    else if (r > 0) printf(" %.*f |", r < 10 ? 2 : 1, r);
    else printf(" |");
}

/* One row of the table, for level index l. */
static void print_row(kb *b, const kb_case *c, int l) {
    double sorted[REPS_MAX], spread, ns;
    const char *level = c->no_level ? "any" : kv_cpu_level_name(b->levels[l]);
    memcpy(sorted, b->t[l], b->reps * sizeof *sorted);
    ns = median(sorted, b->reps, &spread);
    if (b->csv)
        printf("%s,%s,\"%s\",%s,%s,%.6g,%.3g", c->section, c->kernel, c->name, place_names[c->place], level, ns * 1e-3,
               100 * spread / ns);
    else
        printf("| %s | %s | %s | %s | %s | %.*f | %.0f %% |", c->section, c->kernel, c->name, place_names[c->place], level,
               ns < 1e2 ? 4 : ns < 1e3 ? 3 : ns < 1e4 ? 2 : ns < 1e6 ? 1 : 0, ns * 1e-3, 100 * spread / ns);
    print_rate(b, &c->rate[0], ns);
    print_rate(b, &c->rate[1], ns);
    print_ratio(b, l > 0 && b->levels[0] == KV_CPU_REF ? ratio(b->t[0], b->t[l], b->reps) : 0);
    print_ratio(b, l > 0 ? ratio(b->t[l - 1], b->t[l], b->reps) : 0);
    printf("\n");
    b->rows++;
}

void kb_measure(kb *b, const kb_case *c) {
    if (!kb_wants(b, c)) return;
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
        kb_must(kv_backend_cpu_open(level, &b->be[l], &err), &err);
        for (int precise = 0; precise < 2; precise++) {
            kv_exec_params p = {.threads = 1, .precise = precise, .max_rows = KB_ROWS, .max_k = KB_MAX_K,
                                .max_n = KB_MAX_N, .max_heads = KB_N_Q, .max_head_dim = KB_HEAD_DIM,
                                .max_ctx = KB_MAX_CTX, .page_bytes = kv_page_bytes_for(KB_HEAD_DIM, KB_HEAD_DIM)};
            kb_must(b->be[l]->ops->exec_create(b->be[l], &p, &b->ex[l][precise], &err), &err);
        }
    }
    if (b->n_levels == 0) kb_must(kv_fail(&err, KVIST_E_UNSUPPORTED, "this processor lacks that level"), &err);
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
    kv_cpu_name(cpu, sizeof cpu);
    if (b->csv) {
        printf("section,kernel,case,data,level,time_us,spread_pct,rate,unit,rate2,unit2,x_ref,x_below\n");
        return;
    }
    printf("kvist %s%s%s, %s, 1 thread, %u interleaved repetitions: median processor time and half the interquartile range. Data: memory "
           "= a ring of %zu MiB is walked, cache = reused. x ref, x below: times as fast as the reference level, as the level "
           "below.\n\n",
           KVIST_VERSION, commit && *commit ? " " : "", commit ? commit : "", cpu, b->reps, KB_RING_BYTES >> 20);
    printf("| section | kernel | case | data | level | time, us | +- | rate | rate 2 | x ref | x below |\n");
    printf("|---|---|---|---|---|--:|--:|--:|--:|--:|--:|\n");
}

static int usage(void) {
    fprintf(stderr, "usage: bench_kernels [--filter TEXT] [--level ref|avx2|...|N] [--reps N] [--csv] [--list]\n"
                    "  --filter TEXT  only cases whose section/kernel/case contains TEXT (--list shows them)\n"
                    "  --level L      this level alone (no ratios)\n"
                    "  --reps N       repetitions, at least %u\n",
            REPS_MIN);
    return 2;
}

static int find_level(const char *text) {
    for (int level = 0; level < KV_CPU_LEVELS; level++) {
        char number[12];
        snprintf(number, sizeof number, "%d", level);
        if (!strcmp(text, kv_cpu_level_name(level)) || !strcmp(text, number)) return level;
    }
    return -1;
}

int main(int argc, char **argv) {
    kb b = {.reps = REPS_MIN};
    int only = -1;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--csv")) b.csv = true;
        else if (!strcmp(argv[i], "--list")) b.list = true;
        else if (!strcmp(argv[i], "--filter") && value) b.filter = value, i++;
        else if (!strcmp(argv[i], "--level") && value && (only = find_level(value)) >= 0) i++;
        else if (!strcmp(argv[i], "--reps") && value && atoi(value) >= (int)REPS_MIN && atoi(value) <= (int)REPS_MAX)
            b.reps = (uint32_t)atoi(value), i++;
        else return usage();
    }
    open_levels(&b, only);
    if (!b.list) print_head(&b);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) sections[i].run(&b);
    close_levels(&b);
    if (b.rows == 0) {
        fprintf(stderr, "bench_kernels: no case contains '%s'\n", b.filter);
        return 1;
    }
    return 0;
}
