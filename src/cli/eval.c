/* SPDX-License-Identifier: Apache-2.0 */
/* kvist eval: perplexity and divergence of texts through the compressed cache; tasks are in eval_task.c. */
#include "cli/eval.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "measure/eval.h"
#include "measure/task.h"

static void print_table(const cli_options *o, const kv_eval_params *p, const char *const *names,
                        const kv_eval_result *r, uint32_t n) {
    out_table t;
    char step[32];
    snprintf(step, sizeof step, p->generated ? "decoded one by one" : p->step ? "step %u" : "plain prefill", p->step);
    printf("%u chunks of %u tokens, %s, %zu predictions; %s\n", kv_eval_chunks(p), p->ctx, step, r[0].rows,
           !o->precise   ? "8-bit activations"
           : *o->precise ? "f32 matrix products and attention"
                         : "f32 matrix products");
    kv_out_table_init(&t);
    kv_out_column(&t, "kv", true);
    kv_out_column(&t, "PPL", false);
    if (p->kld) {
        static const char *const more[] = {"PPL ratio", "KLD mean", "median", "p99", "max", "same top-1"};
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) kv_out_column(&t, more[i], false);
    }
    kv_out_column(&t, "share", false);
    kv_out_column(&t, "KV MiB", false);
    kv_out_column(&t, "tok/s", false);
    for (uint32_t i = 0; i < n; i++) {
        kv_out_cell(&t, "%s", names[i]);
        kv_out_cell(&t, "%.4f ± %.4f", r[i].ppl, r[i].ppl_se);
        if (p->kld) {
            kv_out_cell(&t, "%.5f", r[i].ppl_ratio);
            kv_out_cell(&t, "%.6f ± %.6f", r[i].kld.mean, r[i].kld.stderr_mean);
            kv_out_cell(&t, "%.6f", r[i].kld.median);
            kv_out_cell(&t, "%.5f", r[i].kld.p99);
            kv_out_cell(&t, "%.4f", r[i].kld.max);
            kv_out_cell(&t, "%.2f %%", 100 * r[i].same_top1);
        }
        kv_out_cell(&t, "%.1f %%", 100 * r[i].report.share);
        kv_out_cell(&t, "%.2f", kv_out_mib(r[i].report.bytes_true));
        kv_out_cell(&t, "%.0f", kv_out_rate((uint64_t)kv_eval_chunks(p) * p->ctx, r[i].seconds));
    }
    kv_out_table_print(&t, stdout);
    kv_out_table_free(&t);
}

static void print_json(const kv_eval_params *p, const char *const *names, const kv_eval_result *r, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        json_t *o = kv_out_json_report(&r[i].report);
        json_object_set_new(o, "kv", json_string(names[i]));
        json_object_set_new(o, "ctx", json_integer(p->ctx));
        json_object_set_new(o, "chunks", json_integer(kv_eval_chunks(p)));
        if (!p->generated) json_object_set_new(o, "step", json_integer(p->step));
        json_object_set_new(o, "rows", json_string(p->generated ? "generated" : "prompt"));
        json_object_set_new(o, "predictions", json_integer((json_int_t)r[i].rows));
        kv_out_json_real(o, "prefill_tps", kv_out_rate((uint64_t)kv_eval_chunks(p) * p->ctx, r[i].seconds));
        kv_out_json_real(o, "nll", r[i].nll);
        kv_out_json_real(o, "ppl", r[i].ppl);
        kv_out_json_real(o, "ppl_se", r[i].ppl_se);
        if (p->kld) {
            kv_out_json_real(o, "ppl_ratio", r[i].ppl_ratio);
            kv_out_json_real(o, "kld_mean", r[i].kld.mean);
            kv_out_json_real(o, "kld_se", r[i].kld.stderr_mean);
            kv_out_json_real(o, "kld_median", r[i].kld.median);
            kv_out_json_real(o, "kld_p99", r[i].kld.p99);
            kv_out_json_real(o, "kld_min", r[i].kld.min);
            kv_out_json_real(o, "kld_max", r[i].kld.max);
            kv_out_json_real(o, "same_top1", r[i].same_top1);
        }
        kv_out_json_line(o, stdout);
    }
}

static int evaluate(const cli_options *o, cli_engine *e, kv_eval_params *p) {
    kv_eval_result results[KV_CLI_MAX_LIST + 2];
    const char *names[KV_CLI_MAX_LIST + 2];
    uint32_t n = 0;
    cli_policies pol;
    kvist_error err;
    kv_cli_policies(o, &pol);
    p->policies = pol.v;
    p->n_policies = pol.n;
    if (p->kld) names[n++] = "full (base)";
    for (uint32_t i = 0; i < pol.n; i++) names[n++] = pol.v[i];
    int rc = kv_cli_open_engine(o, p->ctx, 16, e); /* logits of 16 rows at once */
    if (rc) return rc;
    cli_progress progress;
    kv_cli_progress_init(&progress, o, "");
    kv_cli_interrupt_install();
    p->watch = (kv_watch){kv_cli_watch, &progress};
    kv_status st = kv_eval_run(e->engine, p, results, &err);
    kv_out_progress_clear(&progress.bar);
    if (st != KVIST_OK) return kv_cli_error(&err);
    if (o->json)
        print_json(p, names, results, n);
    else
        print_table(o, p, names, results, n);
    return KV_CLI_OK;
}

/* ---------------------------------------------------------------- texts */

typedef struct chunks {
    int32_t *ids;
    size_t n;
} chunks; /* whole chunks of every text, one after another: none spans two texts */

/* Appends what a text has in whole chunks of ctx tokens, at most o->chunks of them. */
static int add_text(const cli_options *o, const cli_engine *e, const char *name, uint32_t ctx, chunks *c) {
    char *text = NULL;
    size_t len, n = 0;
    int32_t *ids = NULL;
    int rc = kv_cli_prompt("eval", o, &text, &len);
    if (rc == KV_CLI_OK) rc = kv_cli_tokens(e, text, len, false, false, &ids, &n);
    kv_free(text);
    if (rc != KV_CLI_OK) return rc;
    size_t have = n / ctx, take = o->chunks && have > o->chunks ? o->chunks : have;
    int32_t *more = take ? kv_realloc(c->ids, (c->n + take * ctx) * sizeof *more) : NULL;
    if (!have) {
        fprintf(stderr, "kvist: %s has %zu tokens, one chunk needs %u (-c)\n", name, n, ctx);
        rc = KV_CLI_FAILED;
    } else if (!more) {
        fprintf(stderr, "kvist: out of memory for %zu tokens\n", n);
        rc = KV_CLI_FAILED;
    } else {
        c->ids = more;
        memcpy(c->ids + c->n, ids, take * ctx * sizeof *ids);
        c->n += take * ctx;
        if (o->chunks > take) kv_cli_warn(o, "%s has %zu chunks of %u tokens, not %u", name, take, ctx, o->chunks);
    }
    kv_free(ids);
    return rc;
}

static int add_texts(const cli_options *o, const cli_engine *e, uint32_t ctx, chunks *c) {
    if (o->files.n > 1 && o->prompt) return kv_cli_usage_error("eval", "-p goes with one -f, not with several");
    cli_options one = *o; /* a text at a time, as the other commands read theirs */
    int rc = KV_CLI_OK;
    for (uint32_t i = 0; rc == KV_CLI_OK && i < (o->files.n ? o->files.n : 1); i++) {
        one.file = o->files.n ? o->files.v[i] : NULL;
        rc = add_text(&one, e, o->files.n > 1 ? one.file : "the text", ctx, c);
    }
    return rc;
}

static int eval_text(const cli_options *o, bool kld) {
    bool generated = o->rows && !strcmp(o->rows, "generated");
    if (o->rows && !generated && strcmp(o->rows, "prompt"))
        return kv_cli_usage_error("eval", "--rows: '%s' is neither prompt nor generated", o->rows);
    if (kv_eval_task_option(o))
        return kv_cli_usage_error("eval", "%s is for tasks, not for %s", kv_eval_task_option(o), kld ? "kld" : "ppl");
    if (o->output && strcmp(o->output, "json"))
        return kv_cli_usage_error("eval", "-o: '%s' is not for %s; json is", o->output, kld ? "kld" : "ppl");
    cli_engine e = {0};
    chunks c = {0};
    int rc = kv_cli_open_model(o, &e);
    uint32_t ctx = o->n_ctx ? o->n_ctx : e.info.n_ctx_train < 2048 ? e.info.n_ctx_train : 2048;
    if (rc == KV_CLI_OK && ctx < 4) rc = kv_cli_usage_error("eval", "-c must be at least 4");
    if (rc == KV_CLI_OK && ctx > e.info.n_ctx_train)
        kv_cli_warn(o, "-c %u is above the %u tokens this model was trained on", ctx, e.info.n_ctx_train);
    if (rc == KV_CLI_OK) rc = add_texts(o, &e, ctx, &c);
    if (rc == KV_CLI_OK) {
        kv_eval_params p = {.tokens = c.ids,
                            .n_tokens = c.n,
                            .ctx = ctx,
                            .step = o->step,
                            .generated = generated,
                            .n_vocab = e.info.n_vocab,
                            .threads = o->threads ? o->threads : kv_os_processors(),
                            .kld = kld};
        rc = evaluate(o, &e, &p);
    }
    kv_cli_close(&e);
    kv_free(c.ids);
    return rc;
}

static int eval(const cli_options *o) {
    const char *what = o->positional.n ? o->positional.v[0] : NULL, *task;
    char list[160] = "ppl, kld";
    bool text = what && (!strcmp(what, "ppl") || !strcmp(what, "kld")), known = text;
    for (uint32_t i = 0; (task = kv_task_name_at(i, NULL)); i++) {
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, ", %s", task);
        known |= what && !strcmp(what, task);
    }
    if (!what) return kv_cli_usage_error("eval", "say what to measure, one of %s", list);
    if (!known) return kv_cli_usage_error("eval", "'%s' is none of %s", what, list);
    int rc = kv_cli_check("eval", o);
    if (rc) return rc;
    return text ? eval_text(o, !strcmp(what, "kld")) : kv_eval_task(o, what);
}

#define AT(field) offsetof(cli_options, field)
static const cli_opt opts[] = {
    {"-f,--file", "FILE", CLI_LIST, AT(files), 0, 0,
     "text to read (-: standard input), several for ppl and kld; a task's\ndata"},
    {"-p,--prompt", "TEXT", CLI_STR, AT(prompt), 0, 0, "text, for ppl and kld (-: standard input)"},
    {"--chunks", "N", CLI_U32, AT(chunks), 0, 1e9, "chunks of -c tokens of each text (default 0: all)"},
    {"--step", "N", CLI_U32, AT(step), 0, 16777216,
     "tokens a step of a chunk's second half (64; 0: the chunk is one prompt)"},
    {"--rows", "KIND", CLI_STR, AT(rows), 0, 0,
     "prompt (default): the second half is read in steps; generated: it is\ndecoded token by token, as an answer is"},
    {0}};
static const cli_opt task_opts[] = {
    {"--agnostic", NULL, CLI_FLAG, AT(task.agnostic), 0, 0, "compress the context before the question is seen"},
    {"--limit", "N", CLI_U32, AT(task.limit), 0, 1e9, "a seeded, stratified subset of N samples (default 0: all)"},
    {"-s,--seed", "N", CLI_I64, AT(seed), 0, 9e15, "seed of the subset, of made contexts, of the resamples (1)"},
    {"--likelihood", NULL, CLI_FLAG, AT(task.likelihood), 0, 0,
     "how likely the reference is, read instead of an answer written: finer,\nso fewer samples tell policies apart"},
    {"--only", "NAMES", CLI_STR, AT(task.only), 0, 0, "only these parts of a task, comma separated: hotpotqa,lcc"},
    {"--questions", "N", CLI_U32, AT(task.turns), 1, 64, "questions on each context, one after another (1)"},
    {"--lengths", "N", CLI_U32, AT(task.lengths), 1, 64, "needle: lengths up to the longest that fits (4)"},
    {"--depths", "N", CLI_U32, AT(task.depths), 1, 64, "needle: depths from the start to the end of a text (6)"},
    {"-r,--repeats", "N", CLI_U32, AT(reps), 1, 1001, "needle: samples a cell (1)"},
    {"--out", "FILE", CLI_STR, AT(task.results), 0, 0,
     "append each answer as a JSON line; answers found there are not run again"},
    {"--by-stratum", NULL, CLI_FLAG, AT(task.by_stratum), 0, 0, "a row for each part of the task too"},
    {"-o,--output", "FORMAT", CLI_STR, AT(output), 0, 0, "md, csv or json (md)"},
    {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model,  opts, task_opts, kv_cli_opts_kv, kv_cli_opts_precise,
                                        kv_cli_opts_output, NULL};

const cli_command kv_cli_eval = {
    "eval",
    "TASK -m MODEL -f FILE [-c CTX] [--kv POLICY]... [options]",
    "Measures what the compressed cache costs: perplexity, divergence, answers of evaluation tasks.",
    groups,
    "ppl, kld: a text is tokenized without BOS; chunk i is tokens i*CTX .. (i+1)*CTX-1. The first half of a chunk is\n"
    "read as one prompt, the second half in steps, each compressed at its end, so that what is scored attends to\n"
    "compressed pages. Scored are the targets of positions CTX/2+1 .. CTX-1. kld compares with `full` fed in the same\n"
    "steps: KL(full || policy).\n\n"
    "longbench, longeval, kvretrieval, needle, gsm8k, repeat: `full` runs first and is the base of every ratio; all\n"
    "policies answer the same prompts, greedily. The ratio's interval (95 %, paired bootstrap over samples) tells\n"
    "whether a policy is as good as `full`.\n\n"
    "examples:\n"
    "  kvist eval kld -m model.gguf -f wiki.test.raw -c 2048 --chunks 4 --precise --kv full,format=q4 --kv "
    "full,format=q2s\n"
    "  kvist eval ppl -m model.gguf -f wiki.test.raw -c 1024 --chunks 8 --step 0\n"
    "  kvist eval longbench -m model.gguf -f longbench.jsonl -c 4096 --limit 40 --kv minikv,share=0.14 --out r.jsonl\n"
    "  kvist eval longeval -m model.gguf -f 200_lines.jsonl --agnostic --questions 3 --kv full,format=q2s --kv "
    "snapkv\n",
    1,
    eval};
