/* SPDX-License-Identifier: Apache-2.0 */
/* kvist eval: perplexity and divergence of a text through the compressed cache. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/common.h"
#include "measure/eval.h"

static void print_table(const cli_options *o, const kv_eval_params *p, const char *const *names,
                        const kv_eval_result *r, uint32_t n) {
    out_table t;
    char step[32];
    snprintf(step, sizeof step, p->step ? "step %u" : "plain prefill", p->step);
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
        json_object_set_new(o, "step", json_integer(p->step));
        json_object_set_new(o, "predictions", json_integer((json_int_t)r[i].rows));
        kv_out_json_real(o, "prefill_tps", kv_out_rate((uint64_t)kv_eval_chunks(p) * p->ctx, r[i].seconds));
        kv_out_json_real(o, "ppl", r[i].ppl);
        kv_out_json_real(o, "ppl_se", r[i].ppl_se);
        if (p->kld) {
            kv_out_json_real(o, "ppl_ratio", r[i].ppl_ratio);
            kv_out_json_real(o, "kld_mean", r[i].kld.mean);
            kv_out_json_real(o, "kld_se", r[i].kld.stderr_mean);
            kv_out_json_real(o, "kld_median", r[i].kld.median);
            kv_out_json_real(o, "kld_p99", r[i].kld.p99);
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
    if (p->n_tokens / p->ctx < 1) {
        fprintf(stderr, "kvist: the text has %zu tokens, one chunk needs %u (-c)\n", p->n_tokens, p->ctx);
        return KV_CLI_FAILED;
    }
    if (p->chunks && kv_eval_chunks(p) < p->chunks)
        kv_cli_warn(o, "the text has %u chunks of %u tokens, not %u", kv_eval_chunks(p), p->ctx, p->chunks);
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

static int eval(const cli_options *o) {
    const char *what = o->positional.n ? o->positional.v[0] : NULL;
    if (!what || (strcmp(what, "ppl") && strcmp(what, "kld")))
        return kv_cli_usage_error("eval", what ? "'%s' is none of ppl, kld" : "say what to measure: ppl or kld", what);
    int rc = kv_cli_check("eval", o);
    if (rc) return rc;
    char *text = NULL;
    size_t len, n = 0;
    int32_t *ids = NULL;
    cli_engine e = {0};
    rc = kv_cli_prompt("eval", o, &text, &len);
    if (rc == KV_CLI_OK) rc = kv_cli_open_model(o, &e);
    if (rc == KV_CLI_OK) rc = kv_cli_tokens(&e, text, len, false, false, &ids, &n);
    if (rc == KV_CLI_OK) {
        uint32_t ctx = o->n_ctx ? o->n_ctx : e.info.n_ctx_train < 2048 ? e.info.n_ctx_train : 2048;
        if (ctx > e.info.n_ctx_train)
            kv_cli_warn(o, "-c %u is above the %u tokens this model was trained on", ctx, e.info.n_ctx_train);
        kv_eval_params p = {.tokens = ids,
                            .n_tokens = n,
                            .ctx = ctx,
                            .chunks = o->chunks,
                            .step = o->step,
                            .n_vocab = e.info.n_vocab,
                            .threads = o->threads ? o->threads : kv_os_processors(),
                            .kld = !strcmp(what, "kld")};
        rc = ctx < 4 ? kv_cli_usage_error("eval", "-c must be at least 4") : evaluate(o, &e, &p);
    }
    kv_cli_close(&e);
    kv_free(ids);
    kv_free(text);
    return rc;
}

static const cli_opt opts[] = {{"--chunks", "N", CLI_U32, offsetof(cli_options, chunks), 0, 1e9,
                                "chunks of -c tokens (default 0: the whole text)"},
                               {"--step", "N", CLI_U32, offsetof(cli_options, step), 0, 16777216,
                                "tokens a step of a chunk's second half (64; 0: the chunk is one prompt)"},
                               {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model,   kv_cli_opts_prompt, opts, kv_cli_opts_kv,
                                        kv_cli_opts_precise, kv_cli_opts_output, NULL};

const cli_command kv_cli_eval = {
    "eval",
    "ppl|kld -m MODEL -f TEXT [-c CTX] [--chunks N] [--step N] [--kv POLICY]... [--precise[=all]]",
    "Measures perplexity, or divergence from the full cache, through the compressed cache.",
    groups,
    "The text is tokenized once, without BOS; chunk i is tokens i*CTX .. (i+1)*CTX-1. The first half of a chunk is "
    "read as one\n"
    "prompt, the second half in steps, each compressed at its end, so that what is scored attends to compressed "
    "pages.\n"
    "Scored are the targets of positions CTX/2+1 .. CTX-1. kld compares with `full` fed in the same steps: KL(full || "
    "policy).\n\n"
    "examples:\n"
    "  kvist eval kld -m model.gguf -f wiki.test.raw -c 2048 --chunks 4 --precise --kv full,format=q4 --kv "
    "full,format=q2s\n"
    "  kvist eval ppl -m model.gguf -f wiki.test.raw -c 1024 --chunks 8 --step 0\n",
    1,
    eval};
