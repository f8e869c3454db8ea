/* SPDX-License-Identifier: Apache-2.0 */
/* What the rounds say: medians and ranges, shares of the binding limit, ratios to peers, targets; see bench.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "cli/bench.h"
#include "measure/stats.h"

/* What a row comes to. */
typedef struct verdict {
    double median, min, max;
    double bytes;      /* moved a token at least: weights a step by sequences, cache read; a prompt: by its tokens */
    double share;      /* of the binding limit; 0: none measured */
    const char *limit; /* its name */
    double ratio;      /* to the best peer cell; NaN: none */
    const bench_peer_cell *best;
    bool counts;     /* the cache's share allows it */
    const char *met; /* "ratio" "limit" "percent"; NULL: not */
} verdict;

static bool is_part(const bench_cell *c) { return c->c.stage == KV_BENCH_SCORE || c->c.stage == KV_BENCH_SEAL; }

/* More pages of codes than of f16: attention's products are integer ones. */
static bool holds_codes(const kvist_report *r) {
    uint64_t codes = 0;
    for (uint32_t f = 0; f < KVIST_MAX_FORMATS; f++)
        if (kvist_format_name(f) && strcmp(kvist_format_name(f), "f16")) codes += r->pages_by_format[f];
    return codes * 2 > r->pages;
}

static void judge_limit(const bench *b, const bench_cell *c, verdict *v) {
    if (c->load || is_part(c) || !(v->median > 0)) return;
    const kvist_report *r = &c->last.report;
    bool codes = holds_codes(r), decode = c->c.stage == KV_BENCH_DECODE;
    double batch = c->c.batch ? c->c.batch : 1, done = decode ? batch : c->c.n;
    double seen = r->tokens_seen ? (double)r->tokens_seen : 1;
    /* Cache: of a decode the mean over its steps; of a prompt what was there before. */
    double bytes = decode ? ((double)c->last.kv_before + (double)r->bytes_true) / 2 : (double)c->last.kv_before;
    double stored = decode ? r->tokens_stored * (1 - c->c.n / 2.0 / seen) : r->tokens_stored * c->c.depth / seen;
    kv_work w = decode ? kv_work_decode(&b->shape, (uint32_t)batch, stored, bytes, codes)
                       : kv_work_prompt(&b->shape, c->c.n, stored, bytes, codes);
    v->bytes = w.bytes / done;
    if (!b->machine.threads) return;
    bench_series shares = {.n = 0};
    for (uint32_t i = 0; i < c->s.n; i++)
        kv_bench_add(&shares, kv_machine_limit(&c->at[i], &w).seconds * c->s.v[i] / done);
    v->limit = kv_machine_limit(&b->machine, &w).unit;
    v->share = kv_bench_median(&shares);
}

static verdict judge(const bench *b, const bench_row *r) {
    const bench_cell *c = &b->cells[r->cell];
    verdict v = {.median = kv_bench_median(&c->s), .limit = "", .ratio = NAN};
    kv_bench_range(&c->s, &v.min, &v.max);
    judge_limit(b, c, &v);
    for (uint32_t i = 0; i < r->n_peers; i++) {
        const bench_peer_cell *p = &b->peer_cells[r->peers[i]];
        double ratio = kv_bench_ratio(b, r, p);
        if (isnan(ratio) || (!isnan(v.ratio) && ratio >= v.ratio)) continue;
        v.ratio = ratio;
        v.best = p;
    }
    const bench_target *t = &r->target;
    v.counts = c->s.n && (t->share_max <= 0 || c->last.report.share <= t->share_max);
    if (!v.counts) return v;
    if (t->percent > 0 && v.median <= t->percent) v.met = "percent";
    if (t->limit > 0 && v.share >= t->limit) v.met = "limit";
    if (t->ratio > 0 && v.ratio >= t->ratio) v.met = "ratio";
    return v;
}

/* "pp512 @ d8192", "tg32 @ d2048 x8", as llama-bench writes them. */
static void cell_name(const bench_cell *c, char *buf, size_t cap) {
    static const char *const stage[] = {"pp", "tg", "score", "seal"};
    int n = snprintf(buf, cap, "%s%u", c->load ? "load" : stage[c->c.stage], c->c.n);
    if (c->c.depth && n > 0 && (size_t)n < cap) n += snprintf(buf + n, cap - (size_t)n, " @ d%u", c->c.depth);
    if (c->c.batch > 1 && n > 0 && (size_t)n < cap) snprintf(buf + n, cap - (size_t)n, " x%u", c->c.batch);
}

/* ---------------------------------------------------------------- cells of tables */

static const char *digits(double v) { return v < 10 ? "%.2f" : v < 1000 ? "%.1f" : "%.0f"; }

/* "123.4 (120.0..125.1)" with the unit's sign. */
static void range_text(char *buf, size_t cap, double median, double min, double max, const char *unit) {
    char a[3][24];
    const double v[3] = {median, min, max};
    for (int i = 0; i < 3; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(a[i], sizeof a[i], digits(fabs(median)), v[i]);
#pragma GCC diagnostic pop
    }
    snprintf(buf, cap, "%s%s (%s..%s)", a[0], unit, a[1], a[2]);
}

static void ours_cell(out_table *t, const bench_cell *c, const verdict *v) {
    char text[80];
    if (!c->s.n) {
        kv_out_cell(t, c->why[0] ? "failed" : "-");
        return;
    }
    range_text(text, sizeof text, v->median, v->min, v->max, c->load ? " s" : is_part(c) ? " %" : "");
    kv_out_cell(t, "%s", text);
}

/* A peer's best cell of the row. */
static void peer_cell(const bench *b, out_table *t, const bench_row *r, uint32_t peer) {
    const bench_peer_cell *best = NULL, *any = NULL;
    double least = INFINITY;
    for (uint32_t i = 0; i < r->n_peers; i++) {
        const bench_peer_cell *p = &b->peer_cells[r->peers[i]];
        if (p->peer != peer) continue;
        double ratio = kv_bench_ratio(b, r, p);
        any = p;
        if (!p->s.n || !(ratio < least)) continue;
        least = ratio;
        best = p;
    }
    if (!best && any && any->s.n) best = any;
    if (!best) {
        kv_out_cell(t, !any ? "-" : any->absent ? "absent" : any->failures ? "failed" : any->slow ? "over the limit" : any->dropped ? "not run" : "-");
        return;
    }
    double min, max;
    char text[80];
    kv_bench_range(&best->s, &min, &max);
    range_text(text, sizeof text, kv_bench_median(&best->s), min, max, best->w.kind == PEER_LOAD ? " s" : "");
    kv_out_cell(t, "%s%s%s%s", text, strcmp(best->w.cache, "f16") ? " " : "",
                strcmp(best->w.cache, "f16") ? best->w.cache : "", best->s.n < b->rounds ? " n=1" : "");
}

static void limit_cell(out_table *t, const verdict *v) {
    if (v->share > 0)
        kv_out_cell(t, "%.0f %% %s", 100 * v->share, v->limit);
    else
        kv_out_cell(t, "-");
}

static void ratio_cell(out_table *t, const verdict *v) {
    if (isnan(v->ratio))
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%.2fx", v->ratio);
}

/* ---------------------------------------------------------------- the grid */

static void grid_columns(const bench *b, out_table *t) {
    static const struct {
        const char *title;
        bool left;
    } first[] = {{"model", true},   {"size", false},     {"params", false},  {"threads", false},
                 {"kv", true},      {"test", false},     {"t/s", false},     {"share", false},
                 {"KV MiB", false}, {"MB/token", false}, {"of limit", false}};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) kv_out_column(t, first[i].title, first[i].left);
    for (uint32_t p = 0; p < b->n_peers; p++) kv_out_column(t, b->peers[p].name, false);
    if (b->n_peers) kv_out_column(t, "ratio", false);
}

static void grid_row(const bench *b, out_table *t, const bench_row *r) {
    const bench_cell *c = &b->cells[r->cell];
    const kvist_model_info *m = &b->e.info;
    char name[48], size[32];
    verdict v = judge(b, r);
    cell_name(c, name, sizeof name);
    kv_out_cell(t, "%s %s", m->name ? m->name : m->arch, m->type);
    kv_out_cell(t, "%s", kv_out_bytes(size, sizeof size, m->bytes_file));
    kv_out_cell(t, "%.2f M", (double)m->n_params * 1e-6);
    kv_out_cell(t, "%u", b->threads);
    kv_out_cell(t, "%s", c->c.policy);
    kv_out_cell(t, "%s", name);
    ours_cell(t, c, &v);
    if (c->load || !c->s.n) {
        kv_out_cell(t, "-");
        kv_out_cell(t, "-");
    } else {
        kv_out_cell(t, "%.1f %%", 100 * c->last.report.share);
        kv_out_cell(t, "%.2f", kv_out_mib(c->last.report.bytes_true));
    }
    if (v.bytes > 0)
        kv_out_cell(t, "%.3g", v.bytes * 1e-6);
    else
        kv_out_cell(t, "-");
    limit_cell(t, &v);
    for (uint32_t p = 0; p < b->n_peers; p++) peer_cell(b, t, r, p);
    if (b->n_peers) ratio_cell(t, &v);
}

/* ---------------------------------------------------------------- the standing table */

static void suite_columns(const bench *b, out_table *t) {
    kv_out_column(t, "work", true);
    kv_out_column(t, "kv", true);
    kv_out_column(t, "share", false);
    kv_out_column(t, "kvist", false);
    for (uint32_t p = 0; p < b->n_peers; p++) kv_out_column(t, b->peers[p].name, false);
    kv_out_column(t, "ratio", false);
    kv_out_column(t, "target", false);
    kv_out_column(t, "of limit", false);
    kv_out_column(t, "met by", true);
}

static void suite_row(const bench *b, out_table *t, const bench_row *r) {
    const bench_cell *c = &b->cells[r->cell];
    verdict v = judge(b, r);
    kv_out_cell(t, "%s", r->work);
    kv_out_cell(t, "%s", c->c.policy);
    if (c->load || !c->s.n)
        kv_out_cell(t, "-");
    else
        kv_out_cell(t, "%.1f %%", 100 * c->last.report.share);
    ours_cell(t, c, &v);
    for (uint32_t p = 0; p < b->n_peers; p++) peer_cell(b, t, r, p);
    ratio_cell(t, &v);
    if (r->target.percent > 0)
        kv_out_cell(t, "<= %.0f %%", r->target.percent);
    else
        kv_out_cell(t, ">= %.1fx", r->target.ratio);
    limit_cell(t, &v);
    if (!v.counts && c->s.n)
        kv_out_cell(t, "share above %.0f %%", 100 * r->target.share_max);
    else
        kv_out_cell(t, "%s", v.met ? v.met : "-");
}

/* Rows of one group are candidates for one target. */
static void count_met(const bench *b, uint32_t *met, uint32_t *targets) {
    *met = *targets = 0;
    for (uint32_t i = 0; i < b->n_rows;) {
        bool any = false;
        uint32_t k = i;
        for (; k < b->n_rows && b->rows[k].group == b->rows[i].group; k++) any |= judge(b, &b->rows[k]).met != NULL;
        *met += any;
        ++*targets;
        i = k;
    }
}

/* ---------------------------------------------------------------- JSON */

static void json_peers(const bench *b, json_t *o, const bench_row *r) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < r->n_peers; i++) {
        const bench_peer_cell *p = &b->peer_cells[r->peers[i]];
        json_t *one = json_object();
        double min, max;
        kv_bench_range(&p->s, &min, &max);
        json_object_set_new(one, "name", json_string(b->peers[p->peer].name));
        json_object_set_new(one, "cache", json_string(p->w.cache));
        json_object_set_new(one, "how", json_string(p->last.how ? p->last.how : ""));
        kv_out_json_real(one, p->w.kind == PEER_LOAD ? "seconds" : "tps", kv_bench_median(&p->s));
        kv_out_json_real(one, "min", min);
        kv_out_json_real(one, "max", max);
        json_object_set_new(one, "reps", json_integer(p->s.n));
        kv_out_json_real(one, "ratio", kv_bench_ratio(b, r, p));
        if (p->absent || p->last.why[0])
            kv_out_json_text(one, "note", p->absent ? "absent" : p->last.why,
                             strlen(p->absent ? "absent" : p->last.why));
        json_array_append_new(list, one);
    }
    json_object_set_new(o, "peers", list);
}

static void json_target(json_t *o, const bench_row *r, const verdict *v) {
    json_object_set_new(o, "work", json_string(r->work));
    json_object_set_new(o, "group", json_integer(r->group));
    kv_out_json_real(o, "target_ratio", r->target.ratio > 0 ? r->target.ratio : NAN);
    kv_out_json_real(o, "target_limit", r->target.limit > 0 ? r->target.limit : NAN);
    kv_out_json_real(o, "target_percent", r->target.percent > 0 ? r->target.percent : NAN);
    json_object_set_new(o, "counts", json_boolean(v->counts));
    json_object_set_new(o, "met_by", v->met ? json_string(v->met) : json_null());
}

static void json_machine(const bench *b, json_t *o) {
    const kv_machine *m = &b->machine;
    kv_out_json_real(o, "bandwidth", m->bandwidth);
    kv_out_json_real(o, "bandwidth_best", m->bandwidth_best);
    kv_out_json_real(o, "int8_macs", m->int8);
    kv_out_json_real(o, "int16_macs", m->int16 > 0 ? m->int16 : NAN);
    kv_out_json_real(o, "f32_macs", m->f32);
    kv_out_json_real(o, "bf16_macs", m->bf16 > 0 ? m->bf16 : NAN);
}

static void json_row(const bench *b, const bench_row *r) {
    static const char *const stage[] = {"prompt", "decode", "score", "seal"};
    const bench_cell *c = &b->cells[r->cell];
    const kvist_model_info *m = &b->e.info;
    verdict v = judge(b, r);
    bool prompt = !c->load && c->c.stage == KV_BENCH_PROMPT, decode = !c->load && c->c.stage == KV_BENCH_DECODE;
    char name[48], cpu[96];
    json_t *o = kv_out_json_report(&c->last.report);
    cell_name(c, name, sizeof name);
    kv_cpu_name(cpu, sizeof cpu);
    json_object_set_new(o, "model", json_string(m->name ? m->name : ""));
    json_object_set_new(o, "cpu", json_string(cpu));
    json_object_set_new(o, "version", json_string(kvist_version()));
    json_object_set_new(o, "commit", getenv("KVIST_COMMIT") ? json_string(getenv("KVIST_COMMIT")) : json_null());
    json_object_set_new(o, "test", json_string(name));
    json_object_set_new(o, "stage", json_string(c->load ? "load" : stage[c->c.stage]));
    json_object_set_new(o, "kv", json_string(c->c.policy));
    json_object_set_new(o, "threads", json_integer(b->threads));
    json_object_set_new(o, "depth", json_integer(c->c.depth));
    json_object_set_new(o, "batch", json_integer(c->c.batch));
    json_object_set_new(o, "n_prompt", json_integer(decode || c->load ? 0 : c->c.n));
    json_object_set_new(o, "n_gen", json_integer(decode || c->load ? c->c.n : 0));
    json_object_set_new(o, "reps", json_integer(c->s.n));
    kv_out_json_real(o, "prefill_tps", prompt ? v.median : NAN);
    kv_out_json_real(o, "decode_tps", decode ? v.median : NAN);
    if (is_part(c)) {
        kv_out_json_real(o, "percent", v.median);
        kv_out_json_real(o, "score_ms", 1000 * c->last.score_seconds);
        kv_out_json_real(o, "seal_ms", 1000 * c->last.seal_seconds);
    }
    if (c->load) kv_out_json_real(o, "ttft_ms", 1000 * v.median);
    const char *of = c->load ? "seconds" : is_part(c) ? "percent" : "tps";
    char key[24];
    snprintf(key, sizeof key, "%s_min", of);
    kv_out_json_real(o, key, v.min);
    snprintf(key, sizeof key, "%s_max", of);
    kv_out_json_real(o, key, v.max);
    double least, most;
    kv_bench_range(&c->stolen, &least, &most);
    kv_out_json_real(o, "stolen_max", most);
    json_machine(b, o);
    kv_out_json_real(o, "bytes_token", v.bytes > 0 ? v.bytes : NAN);
    json_object_set_new(o, "limit", v.share > 0 ? json_string(v.limit) : json_null());
    kv_out_json_real(o, "limit_share", v.share > 0 ? v.share : NAN);
    json_object_set_new(o, "bytes_weights", json_integer((json_int_t)m->bytes_weights));
    if (c->why[0]) kv_out_json_text(o, "error", c->why, strlen(c->why));
    if (b->n_peers) {
        json_peers(b, o, r);
        kv_out_json_real(o, "ratio", v.ratio);
    }
    if (b->suite) json_target(o, r, &v);
    kv_out_json_line(o, stdout);
}

/* ---------------------------------------------------------------- all of it */

/* How much of the processors a host took during the samples that count. */
static void print_host(const bench *b) {
    static double v[2 * BENCH_CELLS * BENCH_ROUNDS];
    uint32_t n = 0, above = 0;
    double most = 0;
    for (uint32_t i = 0; i < b->n_cells; i++)
        for (uint32_t k = 0; k < b->cells[i].s.n; k++) v[n++] = b->cells[i].stolen.v[k];
    for (uint32_t i = 0; i < b->n_peer_cells; i++)
        for (uint32_t k = 0; k < b->peer_cells[i].s.n; k++) v[n++] = b->peer_cells[i].stolen.v[k];
    for (uint32_t i = 0; i < n; i++) {
        if (v[i] > most) most = v[i];
        above += kv_bench_disturbed(b->o, v[i]);
    }
    if (most <= 0) return;
    printf("host: took %.1f %% of the processors' time during a sample (median; most %.1f %%); %u samples taken again because it "
           "took %u %% or more, %u of %u remain so\n",
           100 * kv_measure_median(v, n), 100 * most, b->again, b->o->stolen_max, above, n);
}

static void print_notes(const bench *b) {
    const kv_machine *m = &b->machine;
    const char *commit = getenv("KVIST_COMMIT");
    char cpu[96];
    kv_cpu_name(cpu, sizeof cpu);
    printf("\n%s, %u threads; kvist %s%s%s; median (least..most) of %u rounds, all cells in turn\n", cpu, b->threads,
           kvist_version(), commit && *commit ? " " : "", commit ? commit : "", b->rounds);
    if (m->threads) {
        printf("machine, right before each sample, medians: memory reads %.1f GB/s (best %.1f), int8 %.0f, f32 %.0f",
               m->bandwidth * 1e-9, m->bandwidth_best * 1e-9, m->int8 * 1e-9, m->f32 * 1e-9);
        if (m->int16 > 0) printf(", int16 %.0f", m->int16 * 1e-9);
        if (m->bf16 > 0) printf(", bf16 %.0f", m->bf16 * 1e-9);
        printf(" GMAC/s\nof limit: share of the least time that memory (weights once a step, cache) or arithmetic "
               "allows, and which (median of the samples, each by its own machine); share, KV MiB: a cache at the end, true bytes\n");
    }
    print_host(b);
    if (b->n_peers)
        printf(
            "peers: best cache of each where there are several (n=1: below 70 %% of the best, or longer than --vs-once, so "
            "not repeated; not run: so far behind at less work); ratio: to the faster\n");
}

void kv_bench_print(bench *b) {
    if (!b->n_rows) return;
    if (b->json) {
        for (uint32_t i = 0; i < b->n_rows; i++) json_row(b, &b->rows[i]);
        return;
    }
    out_table t;
    kv_out_table_init(&t);
    (b->suite ? suite_columns : grid_columns)(b, &t);
    for (uint32_t i = 0; i < b->n_rows; i++) (b->suite ? suite_row : grid_row)(b, &t, &b->rows[i]);
    if (b->csv)
        kv_out_table_csv(&t, stdout);
    else {
        kv_out_table_print(&t, stdout);
        print_notes(b);
        if (b->suite) {
            uint32_t met, targets;
            count_met(b, &met, &targets);
            printf("%u of %u targets met\n", met, targets);
        }
    }
    kv_out_table_free(&t);
}
