/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The option parser that every subcommand shares. A command is a table of options over one struct of values; parsing,
 * ranges, help text and usage errors come from the table. Knows no command and prints nothing but help and usage
 * errors. Forms: -n 5, --predict 5, --predict=5; llama.cpp's long names with one dash (-ub, -ngl) are plain names. No
 * bundling.
 */
#ifndef KV_CLI_ARGS_H
#define KV_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { KV_CLI_OK = 0, KV_CLI_FAILED = 1, KV_CLI_USAGE = 2 }; /* exit status of the program */

#define KV_CLI_MAX_LIST 32
typedef struct cli_list {
    const char *v[KV_CLI_MAX_LIST];
    uint32_t n;
} cli_list;
typedef struct cli_u32s {
    uint32_t v[KV_CLI_MAX_LIST];
    uint32_t n;
} cli_u32s;

/* Values of all commands; a command's table says which of them it fills. */
typedef struct cli_options {
    const char *model, *prompt, *file, *chat_template, *system, *cpu, *questions, *output, *ctk, *ctv, *precise,
        *stages, *rows, *filter;
    cli_list kv, vs, vs_args, files, positional;
    cli_u32s n_prompt, n_gen, depth, n_parallel;
    int32_t n_predict, top_k, n_gpu_layers;
    uint32_t n_ctx, threads, batch, ubatch, prompt_tokens, chunks, step, reps, repeat_last_n, vs_limit, vs_once,
        stolen_max, shadow;
    uint64_t kv_mem;
    int64_t seed;
    struct {
        cli_list methods, tasks;
        const char *shares, *out;
        uint32_t limit;
        float floor;
        bool agnostic, by_stratum, report;
    } sweep; /* kvist sweep's own */
    struct {
        const char *only, *results;
        uint32_t limit, turns, lengths, depths;
        bool agnostic, by_stratum, likelihood;
    } task; /* kvist eval TASK's own */
    float temp, top_p, min_p, repeat_penalty;
    bool raw, quiet, json, ignore_eos, pieces, count, no_bos, no_parse, tensors, no_probe, verbose, help, list, kernels;
} cli_options;

enum cli_kind {
    CLI_FLAG, /* bool */
    CLI_STR,  /* const char * */
    CLI_OPT,  /* const char *: "" when given without =value */
    CLI_LIST, /* cli_list, one more on each use */
    CLI_I32,
    CLI_U32,
    CLI_I64,
    CLI_F32,   /* numbers inside [min, max] */
    CLI_BYTES, /* uint64_t: 1048576, 512K, 64M, 2G (binary) */
    CLI_U32S   /* cli_u32s: comma separated, also on repeated use */
};

typedef struct cli_opt {
    const char *names; /* comma separated, dashes included: "-m,--model" */
    const char *arg;   /* what the value is called in help; NULL: none */
    enum cli_kind kind;
    size_t offset; /* in cli_options */
    double min, max;
    const char *help;
} cli_opt; /* a table ends with names NULL */

typedef struct cli_command {
    const char *name, *usage, *summary;
    const cli_opt *const *groups; /* ends with NULL */
    const char *more;             /* notes and examples, printed after the options */
    uint32_t max_positional;
    int (*run)(const cli_options *o);
} cli_command;

/* Parses argv[0..argc) (without program and command). KV_CLI_OK, or KV_CLI_USAGE with `why` filled: one line that names
 * the argument. */
int kv_cli_parse(const cli_command *cmd, int argc, char **argv, cli_options *o, char *why, size_t cap);
void kv_cli_help(const cli_command *cmd, FILE *out);

/* The name out of list[n] nearest to `text` (edit distance at most 2 and below half its length), NULL when none is
 * near. */
const char *kv_cli_nearest(const char *text, const char *const *list, size_t n);
/* "64M" and the like; false when malformed or past 64 bits. */
bool kv_cli_bytes(const char *text, uint64_t *out);

#endif
