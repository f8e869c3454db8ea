/* SPDX-License-Identifier: Apache-2.0 */
/* kvist run: one prompt, one streamed answer, the report. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/common.h"

static void print_json(const kvist_session *s, const cli_generate *g, double ttft_ms, size_t n_prompt, uint64_t seed) {
    json_t *o = kv_cli_json_report(s);
    kv_out_json_real(o, "ttft_ms", ttft_ms);
    json_object_set_new(o, "tokens_prompt", json_integer((json_int_t)n_prompt));
    json_object_set_new(o, "tokens_generated", json_integer(g->n_tokens));
    json_object_set_new(o, "seed", json_integer((json_int_t)seed));
    json_object_set_new(o, "finish", json_string(g->finish));
    kv_out_json_text(o, "text", g->text, g->len);
    kv_out_json_line(o, stdout);
}

static int answer(const cli_options *o, cli_engine *e, uint32_t n_ctx, int32_t n_predict, const int32_t *ids, size_t n,
                  uint64_t t0) {
    cli_policies pol;
    kvist_session *s;
    kvist_error err;
    kv_cli_policies(o, &pol);
    if (kvist_session_create(e->engine, pol.v[0], &s, &err)) return kv_cli_error(&err);
    if (o->shadow && kvist_session_set_shadow(s, o->shadow, &err)) {
        kvist_session_close(&s);
        return kv_cli_error(&err);
    }
    cli_progress progress;
    kv_cli_progress_init(&progress, o, "reading the prompt");
    kv_cli_interrupt_install();
    kvist_session_on_progress(s, kv_cli_session_progress, &progress);
    int st = kvist_session_sync(s, ids, n, &err);
    kvist_session_on_progress(s, NULL, NULL);
    kv_out_progress_clear(&progress.bar);
    if (st) {
        kvist_session_close(&s);
        if (st != KVIST_E_CANCELLED) return kv_cli_error(&err);
        fprintf(stderr, "kvist: stopped while reading the prompt\n");
        return KV_CLI_FAILED;
    }
    kvist_sampling sampling;
    kv_cli_sampling(o, &sampling);
    cli_generate g = {.model = e->model,
                      .session = s,
                      .sampling = &sampling,
                      .n_predict = n_predict,
                      .n_ctx = n_ctx,
                      .ignore_end = o->ignore_eos,
                      .out = o->json ? NULL : stdout};
    int rc = kv_cli_generate(&g);
    if (rc == KV_CLI_OK) {
        double ttft = g.first_ns ? (double)(g.first_ns - t0) * 1e-6 : 0;
        if (o->json)
            print_json(s, &g, ttft, n, sampling.seed);
        else if (!g.len || g.text[g.len - 1] != '\n')
            fputc('\n', stdout);
        fflush(stdout);
        if (!o->quiet && !o->json) {
            fputc('\n', stderr);
            kv_cli_report(s, stderr);
            fprintf(stderr, "answer  %u tokens, ended by %s; first token after %.0f ms", g.n_tokens,
                    !strcmp(g.finish, "stop")      ? "an end token"
                    : !strcmp(g.finish, "length")  ? "-n"
                    : !strcmp(g.finish, "context") ? "the context's end"
                                                   : "Ctrl-C",
                    ttft);
            if (o->temp > 0) fprintf(stderr, "; seed %" PRIu64, sampling.seed);
            fputc('\n', stderr);
        }
    }
    kv_cli_generate_free(&g);
    kvist_session_close(&s);
    return rc;
}

static int run(const cli_options *o) {
    if (o->kv.n > 1) return kv_cli_usage_error("run", "one --kv here; kvist compare takes several");
    int rc = kv_cli_check("run", o);
    if (rc) return rc;
    char *text = NULL, *rendered = NULL;
    size_t len, n = 0;
    int32_t *ids = NULL;
    cli_engine e = {0};
    rc = kv_cli_prompt("run", o, &text, &len);
    if (rc == KV_CLI_OK) rc = kv_cli_open_model(o, &e);
    uint64_t t0 = kv_os_now_ns(); /* time to the first token does not count loading */
    bool templated = false;
    if (rc == KV_CLI_OK) rc = kv_cli_render(o, &e, text, &rendered, &templated);
    if (rc == KV_CLI_OK) rc = kv_cli_tokens(&e, rendered, strlen(rendered), true, true, &ids, &n);
    if (rc == KV_CLI_OK && !n) rc = kv_cli_usage_error("run", "the prompt is empty");
    int32_t n_predict = o->n_predict == -2 ? -1 : o->n_predict;
    uint32_t n_ctx = 0;
    if (rc == KV_CLI_OK) {
        n_ctx = kv_cli_context(o, &e.info, n, n_predict);
        if (!n_ctx) rc = KV_CLI_FAILED;
    }
    if (rc == KV_CLI_OK) rc = kv_cli_open_engine(o, n_ctx, 1, &e);
    if (rc == KV_CLI_OK) rc = answer(o, &e, n_ctx, n_predict, ids, n, t0);
    kv_cli_close(&e);
    kv_free(ids);
    kv_free(rendered);
    kv_free(text);
    return rc;
}

static const cli_opt *const groups[] = {
    kv_cli_opts_model,  kv_cli_opts_prompt,   kv_cli_opts_chat,    kv_cli_opts_predict, kv_cli_opts_kv,
    kv_cli_opts_shadow, kv_cli_opts_sampling, kv_cli_opts_precise, kv_cli_opts_output,  NULL};

const cli_command kv_cli_run = {
    "run",
    "-m MODEL [-f FILE] [-p TEXT] [-n N] [--kv POLICY] [options]",
    "Streams the model's answer to standard output and ends with a report on standard error.",
    groups,
    "The context (-c) is by default prompt + N rounded up, at most the model's own. Ctrl-C ends the answer; what was\n"
    "generated stays and the report follows. A text with NUL bytes ends at the first one.\n\n"
    "examples:\n"
    "  kvist run -m model.gguf -p \"What is a page table?\" -n 200\n"
    "  kvist run -m model.gguf -f report.txt -p \"Who signed it?\" --kv minikv,share=0.14 --temp 0\n"
    "  git log | kvist run -m model.gguf --raw -n 64 --kv full,format=q4 --json\n",
    0,
    run};
