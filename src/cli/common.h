/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the subcommands share: option groups, opening model and engine, prompt text and tokens, messages, Ctrl-C, the
 * generation loop. Nothing here knows a particular command.
 */
#ifndef KV_CLI_COMMON_H
#define KV_CLI_COMMON_H

#include <signal.h>

#include "cli/args.h"
#include "cli/output.h"
#include "kvist/kvist.h"
#include "measure/watch.h"

/* ---- option groups */
extern const cli_opt kv_cli_opts_model[], kv_cli_opts_prompt[], kv_cli_opts_chat[], kv_cli_opts_predict[],
    kv_cli_opts_kv[], kv_cli_opts_shadow[], kv_cli_opts_sampling[], kv_cli_opts_output[], kv_cli_opts_precise[];
void kv_cli_options_default(cli_options *o);

/* ---- messages: "kvist: ..." on stderr */
int kv_cli_usage_error(const char *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* returns KV_CLI_USAGE */
int kv_cli_error(const kvist_error *err);  /* returns KV_CLI_FAILED */
void kv_cli_warn(const cli_options *o, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* not with --quiet */

/* ---- before anything is loaded */
/* Checks -m, --cpu, --precise, -ctk/-ctv and every --kv text. KV_CLI_OK, or KV_CLI_USAGE after printing why. */
int kv_cli_check(const char *command, const cli_options *o);
/* The i-th policy text of --kv, or what -ctk/-ctv name, or "full" (i = 0). Storage is the caller's o or static. */
typedef struct cli_policies {
    const char *v[KV_CLI_MAX_LIST + 1];
    uint32_t n;
    char cache_types[64];
} cli_policies;
void kv_cli_policies(const cli_options *o, cli_policies *out);

/* ---- model and engine */
typedef struct cli_engine {
    kvist_model *model;
    kvist_engine *engine;
    kvist_model_info info;
} cli_engine;
int kv_cli_open_model(const cli_options *o, cli_engine *e);
int kv_cli_open_engine(const cli_options *o, uint32_t n_ctx, uint32_t max_sessions, cli_engine *e);
void kv_cli_close(cli_engine *e);
/* The context for a prompt of n_prompt tokens: -c when given (a warning when it is above the model's own or too small
 * for the answer); else prompt + answer rounded up to 256, at most the model's own; with n_predict < 0 the model's own.
 * 0 after a message when the prompt does not fit. */
uint32_t kv_cli_context(const cli_options *o, const kvist_model_info *info, size_t n_prompt, int64_t n_predict);

/* ---- prompt */
/* Text of -f (whole file, "-": stdin), a blank line, text of -p; stdin when neither is given and it is no terminal.
 * malloc'd through base/alloc. KV_CLI_USAGE when there is none. */
int kv_cli_prompt(const char *command, const cli_options *o, char **text, size_t *len);
/* One user message (after --system) through the chat template when there is one and --raw is off; else the text as it
 * is. *templated says which. out is kv_malloc'd. */
int kv_cli_render(const cli_options *o, const cli_engine *e, const char *text, char **out, bool *templated);
/* All messages through the template. */
int kv_cli_render_messages(const cli_options *o, const cli_engine *e, const kvist_message *m, size_t n, bool generation,
                           char **out);
/* Tokens, kv_malloc'd. special: BOS as the model asks, once even if the text has it too. parse: special tokens in the
 * text. */
int kv_cli_tokens(const cli_engine *e, const char *text, size_t len, bool special, bool parse, int32_t **ids,
                  size_t *n);
/* Bytes of tokens as text, terminated, whole UTF-8 only; kv_malloc'd, NULL when out of memory. */
char *kv_cli_text(const kvist_model *m, const int32_t *ids, size_t n);

/* ---- Ctrl-C: the first one sets a flag that progress callbacks and token loops read; a second one ends the program */
void kv_cli_interrupt_install(void);   /* idempotent; also clears the flag */
void kv_cli_interrupt_at_prompt(void); /* the same, and a line being read ends; clears the flag */
bool kv_cli_interrupted(void);

/* Progress of a session or measurement: draws the bar, stops on Ctrl-C. */
typedef struct cli_progress {
    out_progress bar;
    const char *what;
} cli_progress;
void kv_cli_progress_init(cli_progress *p, const cli_options *o, const char *what);
bool kv_cli_session_progress(void *user, uint64_t done, uint64_t total);        /* kvist_progress_fn */
bool kv_cli_watch(void *user, const char *what, uint64_t done, uint64_t total); /* kv_watch */

/* ---- a session's report, with the heads its guard widened or missed by name (output.h) */
void kv_cli_report(const kvist_session *s, FILE *out);
json_t *kv_cli_json_report(const kvist_session *s);

/* ---- generation */
typedef struct cli_generate {
    const kvist_model *model;
    kvist_session *session;
    const kvist_sampling *sampling;
    int32_t n_predict; /* < 0: until an end token or the context's end */
    uint32_t n_ctx;
    bool ignore_end;
    FILE *out; /* streamed to; NULL: only kept */
    /* results */
    char *text; /* kv_malloc'd, valid UTF-8 */
    size_t len, cap;
    uint32_t n_tokens;
    int32_t *ids;       /* kv_malloc'd [n_tokens]; the last may not have been decoded yet */
    const char *finish; /* "stop" "length" "context" "cancelled" */
    uint64_t first_ns;  /* clock when the first token was chosen */
} cli_generate;
int kv_cli_generate(cli_generate *g);
void kv_cli_generate_free(cli_generate *g);
void kv_cli_sampling(const cli_options *o, kvist_sampling *out);

extern const cli_command kv_cli_run, kv_cli_chat, kv_cli_compare, kv_cli_chart, kv_cli_bench, kv_cli_eval,
    kv_cli_tokenize, kv_cli_info;

#endif
