/* SPDX-License-Identifier: Apache-2.0 */
/* The option groups and their defaults, and the checks that need no model. Names follow llama.cpp. */
#include <stdarg.h>
#include <string.h>

#include "base/cpu.h"
#include "cli/common.h"
#include "policy/policy.h"

#define AT(field) offsetof(cli_options, field)
#if defined(__aarch64__)
#define CPU_LEVELS "ref, neon"
#else
#define CPU_LEVELS "ref, avx2, avx512"
#endif
#define MAX_U32 4294967295.0
#define MAX_CTX 16777216.0 /* 2^24: f32 positions of RoPE tables stay exact */

const cli_opt kv_cli_opts_model[] = {
    {"-m,--model", "FILE", CLI_STR, AT(model), 0, 0, "model, a GGUF file (default: $KVIST_MODEL)"},
    {"-t,--threads", "N", CLI_U32, AT(threads), 0, 1024, "threads (default 0: all processors)"},
    {"-c,--ctx-size", "N", CLI_U32, AT(n_ctx), 0, MAX_CTX,
     "context in tokens (default: what the call needs, up to the model's\nown; more than its own is allowed, with a "
     "warning)"},
    {"-b,--batch-size", "N", CLI_U32, AT(batch), 1, MAX_CTX,
     "accepted for llama.cpp's sake: a prompt is one batch here"},
    {"-ub,--ubatch-size", "N", CLI_U32, AT(ubatch), 1, 65536,
     "prompt rows a step (512); changes speed and memory, no result"},
    {"--kv-mem", "SIZE", CLI_BYTES, AT(kv_mem), 0, 0, "memory for the cache: 512M, 2G (default: one full f16 context)"},
    {"--cpu", "LEVEL", CLI_STR, AT(cpu), 0, 0, "of " CPU_LEVELS " (default: the best this CPU has)"},
    {"-ngl,--n-gpu-layers", "N", CLI_I32, AT(n_gpu_layers), -1, 100000,
     "accepted; this build has no GPU backend and says so"},
    {0}};

const cli_opt kv_cli_opts_prompt[] = {
    {"-p,--prompt", "TEXT", CLI_STR, AT(prompt), 0, 0, "prompt (-: standard input)"},
    {"-f,--file", "FILE", CLI_STR, AT(file), 0, 0,
     "file to read (-: standard input); with -p too: the file, a blank\nline, then the prompt"},
    {0}};

const cli_opt kv_cli_opts_chat[] = {
    {"--system", "TEXT", CLI_STR, AT(system), 0, 0, "system message"},
    {"--chat-template", "FAMILY", CLI_STR, AT(chat_template), 0, 0,
     "template family instead of the model's own (chatml, llama3, ...)"},
    {"--raw", NULL, CLI_FLAG, AT(raw), 0, 0, "no chat template: the text goes to the model as it is"},
    {0}};

const cli_opt kv_cli_opts_predict[] = {
    {"-n,--predict,--n-predict", "N", CLI_I32, AT(n_predict), -1, 1e9,
     "tokens to generate at most (-1: until the end)"},
    {"--ignore-eos", NULL, CLI_FLAG, AT(ignore_eos), 0, 0, "go on past an end token"},
    {0}};

const cli_opt kv_cli_opts_kv[] = {
    {"--kv", "POLICY", CLI_LIST, AT(kv), 0, 0,
     "cache policy: PRESET[,key=value...], for example minikv,share=0.14\nor full,format=q4; presets: kvist --help "
     "(default full)"},
    {"-ctk,--cache-type-k", "TYPE", CLI_STR, AT(ctk), 0, 0, "llama.cpp's way to say full,format=K/V: f16, q8_0, q4_0"},
    {"-ctv,--cache-type-v", "TYPE", CLI_STR, AT(ctv), 0, 0, "the same for V"},
    {0}};

const cli_opt kv_cli_opts_shadow[] = {{"--shadow", "N", CLI_U32, AT(shadow), 1, 1e9,
                                       "keep a full f16 copy beside the cache and compute one layer's\nattention over "
                                       "it at every N-th position generated: "
                                       "the report says\nhow much attention the cache really retains"},
                                      {0}};

const cli_opt kv_cli_opts_sampling[] = {
    {"-s,--seed", "N", CLI_I64, AT(seed), -1, 9e15, "seed of the draw (default -1: from the clock)"},
    {"--temp,--temperature", "X", CLI_F32, AT(temp), 0, 100, "temperature (0.8; 0: greedy)"},
    {"--top-k", "N", CLI_I32, AT(top_k), 0, 1e9, "of the N likeliest tokens (40; 0: off)"},
    {"--top-p", "X", CLI_F32, AT(top_p), 0, 1, "of the smallest set with this mass (0.95; 1: off)"},
    {"--min-p", "X", CLI_F32, AT(min_p), 0, 1, "of tokens at least X times as likely as the first (0.05; 0: off)"},
    {"--repeat-penalty", "X", CLI_F32, AT(repeat_penalty), 0.01, 100, "divides the logits of recent tokens (1: off)"},
    {"--repeat-last-n", "N", CLI_U32, AT(repeat_last_n), 0, 1e9, "how many tokens are recent (64)"},
    {0}};

const cli_opt kv_cli_opts_precise[] = {
    {"--precise", "all", CLI_OPT, AT(precise), 0, 0,
     "matrix products in f32, not with 8-bit activations; =all: attention\non compressed pages in f32 too"},
    {0}};

const cli_opt kv_cli_opts_output[] = {
    {"--json", NULL, CLI_FLAG, AT(json), 0, 0, "JSON lines on standard output, one object a row"},
    {"-q,--quiet", NULL, CLI_FLAG, AT(quiet), 0, 0, "nothing on standard error but errors"},
    {"-v,--verbose", NULL, CLI_FLAG, AT(verbose), 0, 0, "more on standard error"},
    {"-h,--help", NULL, CLI_FLAG, AT(help), 0, 0, "this help"},
    {0}};

void kv_cli_options_default(cli_options *o) {
    kvist_sampling s;
    memset(o, 0, sizeof *o);
    kvist_sampling_default(&s);
    o->n_predict = -2; /* not given: each command has its own default */
    o->seed = -1;
    o->temp = s.temp;
    o->top_k = s.top_k;
    o->top_p = s.top_p;
    o->min_p = s.min_p;
    o->repeat_penalty = s.repeat_penalty;
    o->vs_limit = 600;
    o->stolen_max = 5;
    o->repeat_last_n = s.repeat_last_n > 0 ? (uint32_t)s.repeat_last_n : 64;
    o->step = 64;
}

/* ---------------------------------------------------------------- messages */

int kv_cli_usage_error(const char *command, const char *fmt, ...) {
    va_list ap;
    fprintf(stderr, "kvist%s%s: ", command ? " " : "", command ? command : "");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\ntry: kvist%s%s --help\n", command ? " " : "", command ? command : "");
    return KV_CLI_USAGE;
}

int kv_cli_error(const kvist_error *err) {
    fprintf(stderr, "kvist: %s\n", err->message);
    return KV_CLI_FAILED;
}

void kv_cli_warn(const cli_options *o, const char *fmt, ...) {
    if (o->quiet) return;
    va_list ap;
    fprintf(stderr, "kvist: warning: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

/* ---------------------------------------------------------------- checks */

/* llama.cpp's cache types -> page formats. Only what means the same: a uniform quantization of every token. */
static const char *cache_type(const char *type) {
    static const char *const map[][2] = {{"f16", "f16"}, {"q8_0", "q8"}, {"q4_0", "q4"}, {"q8", "q8"}, {"q4", "q4"}};
    for (size_t i = 0; i < sizeof map / sizeof *map; i++)
        if (!strcmp(type, map[i][0])) return map[i][1];
    return NULL;
}

void kv_cli_policies(const cli_options *o, cli_policies *out) {
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < o->kv.n; i++) out->v[out->n++] = o->kv.v[i];
    if (out->n) return;
    const char *k = cache_type(o->ctk ? o->ctk : "f16"), *v = cache_type(o->ctv ? o->ctv : "f16");
    snprintf(out->cache_types, sizeof out->cache_types, "full,format=%s/%s", k ? k : "?", v ? v : "?");
    out->v[out->n++] = o->ctk || o->ctv ? out->cache_types : "full";
}

static bool is_level(const char *name) {
    for (int i = 0; i < KV_CPU_LEVELS; i++)
        if (!strcmp(name, kv_cpu_level_name(i))) return true;
    return false;
}

int kv_cli_check(const char *command, const cli_options *o) {
    if (!o->model) return kv_cli_usage_error(command, "no model: -m FILE (or KVIST_MODEL)");
    if (o->cpu && !is_level(o->cpu)) return kv_cli_usage_error(command, "--cpu: '%s' is none of " CPU_LEVELS, o->cpu);
    if (o->precise && *o->precise && strcmp(o->precise, "all"))
        return kv_cli_usage_error(command, "--precise: '%s' is not 'all'", o->precise);
    const char *types[2] = {o->ctk, o->ctv}, *names[2] = {"-ctk", "-ctv"};
    for (int i = 0; i < 2; i++)
        if (types[i] && !cache_type(types[i]))
            return kv_cli_usage_error(
                command, "%s: '%s' has no counterpart here; f16, q8_0 and q4_0 have, and --kv full,format=... has more",
                names[i], types[i]);
    if ((o->ctk || o->ctv) && o->kv.n)
        return kv_cli_usage_error(command, "-ctk/-ctv and --kv say the same thing: give one of them");
    cli_policies pol;
    kv_cli_policies(o, &pol);
    for (uint32_t i = 0; i < pol.n; i++) {
        kv_policy p;
        kvist_error err;
        if (kv_policy_parse(pol.v[i], &p, &err) != KVIST_OK)
            return kv_cli_usage_error(command, "--kv %s: %s", pol.v[i], err.message);
    }
    if (o->n_gpu_layers > 0)
        kv_cli_warn(o, "this build has no GPU backend: everything runs on the CPU (-ngl %d has no effect)",
                    o->n_gpu_layers);
    return KV_CLI_OK;
}
