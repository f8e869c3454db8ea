/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist bench: speed over depths, batches, policies and stages, beside the machine's own limits and beside other
 * programs. Reads like llama-bench. The parts are in bench.h.
 */
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "base/os.h"
#include "cli/bench_kernels.h"

enum { GRID_ROUNDS = 5, SUITE_ROUNDS = 3 };

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

/* ---------------------------------------------------------------- the grid */

enum { STAGE_PROMPT = 1, STAGE_DECODE = 2, STAGE_SCORE = 4, STAGE_SEAL = 8, STAGE_LOAD = 16 };

/* -1: a word that is no stage. */
static int parse_stages(const char *text) {
    static const struct {
        const char *name;
        int bit;
    } names[] = {{"prompt", STAGE_PROMPT},
                 {"decode", STAGE_DECODE},
                 {"score", STAGE_SCORE},
                 {"seal", STAGE_SEAL},
                 {"load", STAGE_LOAD}};
    int stages = 0;
    if (!text) return STAGE_PROMPT | STAGE_DECODE;
    while (*text) {
        size_t n = strcspn(text, ",");
        int bit = 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strlen(names[i].name) == n && !memcmp(names[i].name, text, n)) bit = names[i].bit;
        if (!bit) return -1;
        stages |= bit;
        text += n + (text[n] == ',');
    }
    return stages ? stages : -1;
}

/* An f16 cache is compared with the peers' f16 ones, a compressed one with the best they have. */
static bench_against against_for(const char *policy) {
    return !strcmp(policy, "full") || !strcmp(policy, "full,format=f16") ? AGAINST_F16 : AGAINST_ANY;
}

static bool add_cell(bench *b, kv_bench_stage stage, const char *policy, uint32_t depth, uint32_t n, uint32_t batch) {
    bench_cell cell = {.c = {stage, policy, depth, n, batch}};
    bool part = stage == KV_BENCH_SCORE || stage == KV_BENCH_SEAL;
    return !n || kv_bench_row_add(b, &cell, part ? AGAINST_NONE : against_for(policy));
}

static bool add_at_depth(bench *b, int stages, const char *policy, uint32_t depth, const cli_u32s *pp,
                         const cli_u32s *tg, const cli_u32s *npl) {
    bool ok = true;
    for (uint32_t i = 0; stages & STAGE_PROMPT && i < pp->n; i++)
        ok &= add_cell(b, KV_BENCH_PROMPT, policy, depth, pp->v[i], 1);
    for (uint32_t i = 0; stages & STAGE_DECODE && i < tg->n; i++)
        for (uint32_t k = 0; k < npl->n; k++) ok &= add_cell(b, KV_BENCH_DECODE, policy, depth, tg->v[i], npl->v[k]);
    return ok;
}

static bool add_parts(bench *b, int stages, const char *policy, const cli_u32s *pp) {
    static const cli_u32s score = {{4096}, 1}, seal = {{8192}, 1};
    bool ok = true;
    for (int part = 0; part < 2; part++) {
        const cli_u32s *n = pp->n ? pp : part ? &seal : &score;
        for (uint32_t i = 0; stages & (part ? STAGE_SEAL : STAGE_SCORE) && i < n->n; i++)
            ok &= add_cell(b, part ? KV_BENCH_SEAL : KV_BENCH_SCORE, policy, 0, n->v[i], 1);
    }
    return ok;
}

static int add_grid(bench *b, const cli_policies *pol) {
    const cli_options *o = b->o;
    cli_u32s pp = o->n_prompt, tg = o->n_gen, depth = o->depth, npl = o->n_parallel;
    int stages = parse_stages(o->stages);
    if (!pp.n) pp = (cli_u32s){{512}, 1};
    if (!tg.n) tg = (cli_u32s){{64}, 1};
    if (!depth.n) depth = (cli_u32s){{0}, 1};
    if (!npl.n) npl = (cli_u32s){{1}, 1};
    bool ok = true;
    for (uint32_t d = 0; d < depth.n; d++)
        for (uint32_t i = 0; i < pol->n; i++) ok &= add_at_depth(b, stages, pol->v[i], depth.v[d], &pp, &tg, &npl);
    for (uint32_t i = 0; i < pol->n; i++) ok &= add_parts(b, stages, pol->v[i], &o->n_prompt);
    bench_cell load = {.c = {KV_BENCH_DECODE, "full", 0, 1, 1}, .load = true};
    if (stages & STAGE_LOAD) ok &= kv_bench_row_add(b, &load, AGAINST_F16) != NULL;
    return ok ? KV_CLI_OK : kv_cli_usage_error("bench", "more than %d rows: give fewer values", BENCH_CELLS);
}

/* ---------------------------------------------------------------- options */

/* --vs-arg NAME=ARG: options of the user's for one peer. */
static int add_peer_args(bench *b) {
    for (uint32_t i = 0; i < b->o->vs_args.n; i++) {
        const char *text = b->o->vs_args.v[i], *eq = strchr(text, '=');
        bench_peer *p = NULL;
        for (uint32_t k = 0; eq && k < b->n_peers; k++)
            if (strlen(b->peers[k].name) == (size_t)(eq - text) && !memcmp(b->peers[k].name, text, (size_t)(eq - text)))
                p = &b->peers[k];
        if (!p) return kv_cli_usage_error("bench", "--vs-arg '%s' is no NAME=ARGUMENT of a --vs", text);
        if (p->n_args == PEER_ARGS) return kv_cli_usage_error("bench", "--vs-arg %s: too many", text);
        p->args[p->n_args++] = eq + 1;
    }
    return KV_CLI_OK;
}

static int open_peers(bench *b) {
    char why[1024];
    setenv("GGML_NO_BACKTRACE", "1", 0); /* a debugger's stack trace would follow the reason of a failure */
    for (uint32_t i = 0; i < b->o->vs.n; i++) {
        if (i == PEER_MAX) return kv_cli_usage_error("bench", "--vs: %d programs at most", PEER_MAX);
        int rc = kv_peer_open(b->o->vs.v[i], &b->peers[i], why, sizeof why);
        if (rc == KV_CLI_USAGE) return kv_cli_usage_error("bench", "%s", why);
        if (rc != KV_CLI_OK) {
            fprintf(stderr, "kvist: %s\n", why);
            return rc;
        }
        b->peers[i].limit_s = b->o->vs_limit;
        b->n_peers++;
    }
    return add_peer_args(b);
}

static bool wants_suite(const cli_options *o) {
    return (o->vs.n || o->rows) && !o->n_prompt.n && !o->n_gen.n && !o->depth.n && !o->n_parallel.n && !o->stages &&
           !o->kv.n;
}

static int check(const cli_options *o) {
    if (o->output && strcmp(o->output, "csv") && strcmp(o->output, "json") && strcmp(o->output, "md"))
        return kv_cli_usage_error("bench", "-o: '%s' is none of md, csv, json", o->output);
    if (parse_stages(o->stages) < 0)
        return kv_cli_usage_error("bench", "--stage: '%s' names none of prompt, decode, score, seal, load", o->stages);
    return KV_CLI_OK;
}

static int measure(bench *b) {
    const cli_options *o = b->o;
    cli_policies pol;
    kv_cli_policies(o, &pol);
    int rc = open_peers(b);
    if (rc == KV_CLI_OK) rc = kv_cli_open_model(o, &b->e);
    if (rc == KV_CLI_OK) rc = make_tokens(b);
    if (rc != KV_CLI_OK) return rc;
    b->shape = kv_shape_of(&b->e.info, kv_table_bytes(b->e.model));
    char *real = realpath(o->model, NULL);
    snprintf(b->model, sizeof b->model, "%s", real ? real : o->model);
    free(real);
    b->suite = wants_suite(o);
    if (b->suite)
        kv_bench_suite(b, o->rows);
    else
        rc = add_grid(b, &pol);
    if (rc != KV_CLI_OK) return rc;
    if (!b->n_rows)
        return kv_cli_usage_error("bench", b->suite ? "no row's name contains '%s'" : "nothing to do%s",
                                  b->suite && o->rows ? o->rows : "");
    b->rounds = o->reps ? o->reps : b->suite ? SUITE_ROUNDS : GRID_ROUNDS;
    rc = kv_bench_rounds(b);
    kv_bench_print(b);
    return rc;
}

static int run_bench(const cli_options *o) {
    int rc = check(o);
    if (rc) return rc;
    if (o->kernels) return kv_bench_kernels(o);
    if (o->reps > BENCH_ROUNDS) return kv_cli_usage_error("bench", "-r %u: %d rounds at most", o->reps, BENCH_ROUNDS);
    if (o->list) {
        kv_bench_suite_list(o->rows);
        return KV_CLI_OK;
    }
    rc = kv_cli_check("bench", o);
    if (rc) return rc;
    bench *b = kv_calloc(1, sizeof *b);
    if (!b) return KV_CLI_FAILED;
    b->o = o;
    b->csv = o->output && !strcmp(o->output, "csv");
    b->json = o->json || (o->output && !strcmp(o->output, "json"));
    b->threads = o->threads ? o->threads : kv_os_processors();
    rc = measure(b);
    for (uint32_t i = 0; i < b->n_peers; i++) kv_peer_plan_clear(&b->peers[i]);
    kv_free(b->tokens);
    kv_cli_close(&b->e);
    kv_free(b);
    return rc;
}

#define AT(field) offsetof(cli_options, field)
static const cli_opt opts[] = {
    {"-p,--n-prompt", "N,...", CLI_U32S, AT(n_prompt), 0, 16777216, "prompt sizes (512; 0: none)"},
    {"-n,--n-gen", "N,...", CLI_U32S, AT(n_gen), 0, 16777216, "tokens decoded (64; 0: none)"},
    {"-d,--n-depth", "N,...", CLI_U32S, AT(depth), 0, 16777216, "tokens in the cache before (0)"},
    {"-npl,--n-parallel", "N,...", CLI_U32S, AT(n_parallel), 1, 256, "sequences decoding together (1)"},
    {"--stage", "S,...", CLI_STR, AT(stages), 0, 0,
     "prompt, decode (both are the default), score, seal: what scoring, and\nsealing with selecting, add to a prompt "
     "of "
     "-p (4096, 8192); load:\nthe second of two fresh processes to its first token"},
    {"-r,--repetitions,--reps", "N", CLI_U32, AT(reps), 1, KV_KB_REPS_MAX,
     "rounds over all cells (5; the standing table 3; kernels 7)"},
    {"--vs", "NAME=PATH", CLI_LIST, AT(vs), 0, 0,
     "another llama-bench, run in the same rounds; may be repeated. Without\nany of -p -n -d -npl --stage --kv: the "
     "standing table of targets"},
    {"--vs-limit", "SECONDS", CLI_U32, AT(vs_limit), 0, 86400,
     "end a program that takes longer for one cell, and do not try it again (600; 0: never)"},
    {"--vs-once", "SECONDS", CLI_U32, AT(vs_once), 0, 86400,
     "a program that takes longer for one cell is measured in round 1 only (0: in every round)"},
    {"--stolen-max", "PERCENT", CLI_U32, AT(stolen_max), 0, 100,
     "a sample during which the host of a virtual machine took so much of the\nprocessors is taken again, twice at most, and the "
     "least disturbed counts\n(5; 0: always; 100: never)"},
    {"--vs-arg", "NAME=ARG", CLI_LIST, AT(vs_args), 0, 0, "an argument for that program, before ours; may be repeated"},
    {"--rows", "TEXT", CLI_STR, AT(rows), 0, 0, "only rows of the standing table whose name contains TEXT"},
    {"--kernels", NULL, CLI_FLAG, AT(kernels), 0, 0,
     "each kernel by itself, on one thread, at every instruction set level;\nneeds no model"},
    {"--filter", "TEXT", CLI_STR, AT(filter), 0, 0, "only kernels whose section/kernel/case contains TEXT"},
    {"--level", "L", CLI_STR, AT(cpu), 0, 0, "only kernels of this level: ref, avx2, avx512, neon"},
    {"--list", NULL, CLI_FLAG, AT(list), 0, 0,
     "the standing table's rows and targets, or the kernels; measures\nnothing"},
    {"-f,--file", "FILE", CLI_STR, AT(file), 0, 0, "text to read (default: pseudo-random tokens)"},
    {"-o,--output", "FORMAT", CLI_STR, AT(output), 0, 0, "md, csv or json (md)"},
    {"--no-probe", NULL, CLI_FLAG, AT(no_probe), 0, 0, "do not measure the machine's limits"},
    {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model,  opts, kv_cli_opts_kv, kv_cli_opts_precise,
                                        kv_cli_opts_output, NULL};

const cli_command kv_cli_bench = {
    "bench",
    "-m MODEL [-p N,...] [-n N,...] [-d N,...] [-npl N,...] [--kv POLICY]... [--vs NAME=PATH]...",
    "Measures speed over depths, batches and cache policies, beside the machine's limits and other programs.",
    groups,
    "ppN: reading N tokens; tgN: generating N, one by one; @ dD: with D tokens in the cache; xB: B sequences together, "
    "total.\nEach round takes one sample of every cell, so that a slow phase of the machine hits all of them.\n\n"
    "examples:\n"
    "  kvist bench -m model.gguf\n"
    "  kvist bench -m model.gguf -p 0 -n 32 -d 0,2048,8192 --kv full --kv minikv --kv full,format=q2s\n"
    "  kvist bench -m model.gguf -p 0 -d 2048 -npl 1,8,32 -o csv\n"
    "  kvist bench -m model.gguf --vs llama=/opt/llama.cpp/llama-bench --vs ik=/opt/ik_llama.cpp/llama-bench\n"
    "  kvist bench --kernels --filter decode/q2s --level avx2\n",
    0,
    run_bench};
