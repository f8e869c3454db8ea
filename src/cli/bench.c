/* SPDX-License-Identifier: Apache-2.0 */
/* kvist bench: prompt and decode speed over depths and policies, beside what the machine's memory can stream. Reads
 * like llama-bench. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/hash.h"
#include "base/os.h"
#include "cli/common.h"
#include "measure/throughput.h"

enum { MAX_CASES = 2 * KV_CLI_MAX_LIST };

typedef struct bench {
    const cli_options *o;
    cli_engine e;
    uint32_t threads;
    double bandwidth; /* bytes/s */
    int32_t *tokens;
    size_t n_tokens;
    out_table table;
    bool json, csv;
} bench;

/* Tokens of -f, else pseudo-random ones: speed does not depend on what a text says, but eviction does on how it scores.
 */
static int make_tokens(bench *b) {
    if (b->o->file) {
        char *text;
        size_t len;
        int rc = kv_cli_prompt("bench", b->o, &text, &len);
        if (rc) return rc;
        rc = kv_cli_tokens(&b->e, text, len, true, false, &b->tokens, &b->n_tokens);
        kv_free(text);
        if (rc == KV_CLI_OK && !b->n_tokens) rc = kv_cli_usage_error("bench", "%s is empty", b->o->file);
        return rc;
    }
    enum { N = 4096 };
    b->tokens = kv_malloc(N * sizeof *b->tokens);
    if (!b->tokens) return KV_CLI_FAILED;
    b->n_tokens = N;
    for (uint64_t i = 0; i < N; i++)
        b->tokens[i] = (int32_t)(kv_mix64(0x9e3779b97f4a7c15ull * (i + 1)) % b->e.info.n_vocab);
    return KV_CLI_OK;
}

static void case_name(const kv_bench_case *c, char *buf, size_t cap) {
    int n = snprintf(buf, cap, "%s%u", c->n_prompt ? "pp" : "tg", c->n_prompt ? c->n_prompt : c->n_gen);
    if (c->depth && n > 0 && (size_t)n < cap) snprintf(buf + n, cap - (size_t)n, " @ d%u", c->depth);
}

static void add_row(bench *b, const char *policy, const kv_bench_case *c, const kv_bench_result *r) {
    char name[48], size[32];
    const kvist_model_info *m = &b->e.info;
    case_name(c, name, sizeof name);
    /* A decode step reads all weights and the cache, which grows from the depth's to the end's size. */
    double streamed =
        c->n_gen ? r->tps * ((double)m->bytes_weights + ((double)r->kv_bytes + (double)r->report.bytes_true) / 2) : 0;
    double limit = b->bandwidth > 0 ? streamed / b->bandwidth : 0;
    if (b->json) {
        json_t *o = kv_out_json_report(&r->report);
        json_object_set_new(o, "model", json_string(m->name ? m->name : ""));
        json_object_set_new(o, "test", json_string(name));
        json_object_set_new(o, "kv", json_string(policy));
        json_object_set_new(o, "threads", json_integer(b->threads));
        json_object_set_new(o, "depth", json_integer(c->depth));
        json_object_set_new(o, "batch", json_integer(1));
        json_object_set_new(o, "n_prompt", json_integer(c->n_prompt));
        json_object_set_new(o, "n_gen", json_integer(c->n_gen));
        json_object_set_new(o, "reps", json_integer(r->reps));
        json_object_set_new(o, "prefill_tps", c->n_prompt ? json_real(r->tps) : json_null());
        json_object_set_new(o, "decode_tps", c->n_gen ? json_real(r->tps) : json_null());
        kv_out_json_real(o, "tps_min", r->tps_min);
        kv_out_json_real(o, "tps_max", r->tps_max);
        kv_out_json_real(o, "bandwidth", b->bandwidth);
        kv_out_json_real(o, "bandwidth_share", limit);
        json_object_set_new(o, "bytes_weights", json_integer((json_int_t)m->bytes_weights));
        kv_out_json_line(o, stdout);
        return;
    }
    out_table *t = &b->table;
    kv_out_cell(t, "%s %s", m->name ? m->name : m->arch, m->type);
    kv_out_cell(t, "%s", kv_out_bytes(size, sizeof size, m->bytes_file));
    kv_out_cell(t, "%.2f M", (double)m->n_params * 1e-6);
    kv_out_cell(t, "%u", b->threads);
    kv_out_cell(t, "%s", policy);
    kv_out_cell(t, "%s", name);
    double spread = r->tps - r->tps_min > r->tps_max - r->tps ? r->tps - r->tps_min : r->tps_max - r->tps;
    kv_out_cell(t, "%.2f ± %.2f", r->tps, spread);
    kv_out_cell(t, "%.1f %%", 100 * r->report.share);
    kv_out_cell(t, "%.2f", kv_out_mib(r->report.bytes_true));
    if (c->n_gen)
        kv_out_cell(t, "%.1f (%.0f %%)", streamed * 1e-9, 100 * limit);
    else
        kv_out_cell(t, "-");
}

/* All tests of one policy and depth share a session, so that the depth is read once. */
static int run_depth(bench *b, const char *policy, uint32_t depth, const cli_u32s *pp, const cli_u32s *tg,
                     cli_progress *progress) {
    kv_bench_case cases[MAX_CASES];
    kv_bench_result results[MAX_CASES];
    uint32_t n = 0;
    for (uint32_t i = 0; i < pp->n; i++)
        if (pp->v[i]) cases[n++] = (kv_bench_case){depth, pp->v[i], 0};
    for (uint32_t i = 0; i < tg->n; i++)
        if (tg->v[i]) cases[n++] = (kv_bench_case){depth, 0, tg->v[i]};
    kvist_error err;
    kv_watch watch = {kv_cli_watch, progress};
    kv_status st =
        kv_bench_run(b->e.engine, policy, cases, n, b->o->reps, b->tokens, b->n_tokens, &watch, results, &err);
    kv_out_progress_clear(&progress->bar);
    if (st != KVIST_OK) return kv_cli_error(&err);
    for (uint32_t i = 0; i < n; i++) add_row(b, policy, &cases[i], &results[i]);
    return KV_CLI_OK;
}

static int run_grid(bench *b, const cli_u32s *pp, const cli_u32s *tg, const cli_u32s *depths) {
    uint32_t deepest = 0, longest = 0;
    for (uint32_t i = 0; i < depths->n; i++)
        if (depths->v[i] > deepest) deepest = depths->v[i];
    for (uint32_t i = 0; i < pp->n; i++)
        if (pp->v[i] > longest) longest = pp->v[i];
    for (uint32_t i = 0; i < tg->n; i++)
        if (tg->v[i] > longest) longest = tg->v[i];
    cli_options with = *b->o;
    if (!with.n_ctx)
        with.n_ctx = deepest + longest + 1; /* grown on purpose; the warning says when it passes the model's own */
    uint32_t n_ctx = kv_cli_context(&with, &b->e.info, deepest + longest, 1);
    int rc = n_ctx ? kv_cli_open_engine(b->o, n_ctx, 1, &b->e) : KV_CLI_FAILED;
    cli_progress progress;
    cli_policies pol;
    kv_cli_progress_init(&progress, b->o, "");
    kv_cli_policies(b->o, &pol);
    kv_cli_interrupt_install();
    for (uint32_t d = 0; rc == KV_CLI_OK && d < depths->n; d++)
        for (uint32_t i = 0; rc == KV_CLI_OK && i < pol.n; i++) {
            if (!progress.bar.on && !b->o->quiet) fprintf(stderr, "kvist: %s at depth %u\n", pol.v[i], depths->v[d]);
            rc = run_depth(b, pol.v[i], depths->v[d], pp, tg, &progress);
        }
    return rc;
}

static void table_start(bench *b) {
    kv_out_table_init(&b->table);
    kv_out_column(&b->table, "model", true);
    kv_out_column(&b->table, "size", false);
    kv_out_column(&b->table, "params", false);
    kv_out_column(&b->table, "threads", false);
    kv_out_column(&b->table, "kv", true);
    kv_out_column(&b->table, "test", false);
    kv_out_column(&b->table, "t/s", false);
    kv_out_column(&b->table, "share", false);
    kv_out_column(&b->table, "KV MiB", false);
    kv_out_column(&b->table, "GB/s", false);
}

static int run_bench(const cli_options *o) {
    int rc = kv_cli_check("bench", o);
    if (rc) return rc;
    bool csv = o->output && !strcmp(o->output, "csv"), json = o->json || (o->output && !strcmp(o->output, "json"));
    if (o->output && !csv && !json && strcmp(o->output, "md"))
        return kv_cli_usage_error("bench", "-o: '%s' is none of md, csv, json", o->output);
    cli_u32s pp = o->n_prompt, tg = o->n_gen, depth = o->depth;
    if (!pp.n) pp = (cli_u32s){{512}, 1};
    if (!tg.n) tg = (cli_u32s){{64}, 1};
    if (!depth.n) depth = (cli_u32s){{0}, 1};
    bench b = {.o = o, .csv = csv, .json = json, .threads = o->threads ? o->threads : kv_os_processors()};
    if (!o->no_probe) b.bandwidth = kv_bench_bandwidth(b.threads);
    table_start(&b);
    rc = kv_cli_open_model(o, &b.e);
    if (rc == KV_CLI_OK) rc = make_tokens(&b);
    if (rc == KV_CLI_OK) rc = run_grid(&b, &pp, &tg, &depth);
    if (b.table.n_rows && csv)
        kv_out_table_csv(&b.table, stdout);
    else if (b.table.n_rows) {
        char cpu[96];
        kv_out_table_print(&b.table, stdout);
        kv_cpu_name(cpu, sizeof cpu);
        printf("\n%s, %u threads; kvist %s; median of %u and the greater deviation\n", cpu, b.threads, kvist_version(),
               o->reps);
        if (b.bandwidth > 0)
            printf("memory reads at %.1f GB/s; GB/s: weights and cache streamed by decoding (share of that); share, KV "
                   "MiB: at the end\n",
                   b.bandwidth * 1e-9);
    }
    kv_out_table_free(&b.table);
    kv_free(b.tokens);
    kv_cli_close(&b.e);
    return rc;
}

static const cli_opt opts[] = {
    {"-p,--n-prompt", "N,...", CLI_U32S, offsetof(cli_options, n_prompt), 0, 16777216, "prompt sizes (512; 0: none)"},
    {"-n,--n-gen", "N,...", CLI_U32S, offsetof(cli_options, n_gen), 0, 16777216, "tokens decoded (64; 0: none)"},
    {"-d,--n-depth", "N,...", CLI_U32S, offsetof(cli_options, depth), 0, 16777216, "tokens in the cache before (0)"},
    {"-r,--repetitions", "N", CLI_U32, offsetof(cli_options, reps), 1, 64, "repetitions (5)"},
    {"-f,--file", "FILE", CLI_STR, offsetof(cli_options, file), 0, 0, "text to read (default: pseudo-random tokens)"},
    {"-o,--output", "FORMAT", CLI_STR, offsetof(cli_options, output), 0, 0, "md, csv or json (md)"},
    {"--no-probe", NULL, CLI_FLAG, offsetof(cli_options, no_probe), 0, 0,
     "do not measure the machine's memory bandwidth"},
    {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model,  opts, kv_cli_opts_kv, kv_cli_opts_precise,
                                        kv_cli_opts_output, NULL};

const cli_command kv_cli_bench = {
    "bench",
    "-m MODEL [-p N,...] [-n N,...] [-d N,...] [--kv POLICY]... [-o md|csv|json]",
    "Measures prompt and decode speed at given depths under given cache policies.",
    groups,
    "ppN: reading N tokens; tgN: generating N, one by one; @ dD: with D tokens in the cache. Engine time only, batch "
    "1.\n\n"
    "examples:\n"
    "  kvist bench -m model.gguf\n"
    "  kvist bench -m model.gguf -p 0 -n 32 -d 0,2048,8192 -c 8704 --kv full --kv minikv --kv full,format=q2s\n"
    "  kvist bench -m model.gguf -t 2 -r 9 -o csv\n",
    0,
    run_bench};
