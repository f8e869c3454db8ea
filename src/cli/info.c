/* SPDX-License-Identifier: Apache-2.0 */
/* kvist info: what a GGUF file holds and what running it would take, before any weight is read. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/common.h"
#include "gguf/gguf.h"
#include "measure/memory.h"
#include "model/model.h"
#include "text/chat.h"

static const char *const presets[] = {"full", "full,format=q8", "full,format=q4", "full,format=q2s", "minikv"};
static const uint32_t contexts[] = {2048, 8192, 32768, 131072};
enum { N_CONTEXTS = sizeof contexts / sizeof *contexts };

typedef struct file_info {
    kv_gguf *g;
    const kv_arch *arch;
    kv_hparams hp;
    uint64_t n_params, bytes;
    const char *type;
} file_info;

static const char *maybe_str(const kv_gguf *g, const char *key) {
    const char *s;
    return kv_gguf_has(g, key) && kv_gguf_str(g, key, &s, NULL, NULL) == KVIST_OK ? s : NULL;
}

/* Parameters, bytes, and the type that most bytes have. */
static void sum_tensors(file_info *f) {
    uint64_t by_type[64] = {0}, best = 0;
    for (size_t i = 0; i < kv_gguf_tensor_count(f->g); i++) {
        const kv_tensor *t = kv_gguf_tensor_at(f->g, i);
        f->n_params += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        f->bytes += t->bytes;
        if (t->type < 64) by_type[t->type] += t->bytes;
    }
    for (uint32_t i = 0; i < 64; i++)
        if (by_type[i] > best && kv_type_get(i)) {
            best = by_type[i];
            f->type = kv_type_get(i)->name;
        }
}

static void print_head(const file_info *f, const char *path) {
    char a[32], b[32];
    const kv_hparams *h = &f->hp;
    const char *name = maybe_str(f->g, "general.name"), *jinja = maybe_str(f->g, "tokenizer.chat_template");
    const char *family = jinja ? kv_chat_detect(jinja) : NULL;
    printf("file        %s, %s\n", path, kv_out_bytes(a, sizeof a, kv_gguf_map(f->g)->size));
    printf("model       %s, %s\n", name ? name : "(no name)", f->arch->name);
    printf("size        %s parameters, %s in %zu tensors, mostly %s\n", kv_out_count(a, sizeof a, f->n_params),
           kv_out_bytes(b, sizeof b, f->bytes), kv_gguf_tensor_count(f->g), f->type ? f->type : "?");
    printf("layers      %u; width %u, feed-forward %u, vocabulary %s\n", h->n_layers, h->n_embd, h->n_ff,
           kv_out_count(a, sizeof a, h->n_vocab));
    printf("attention   %u heads, %u KV heads, head size %u (K) and %u (V)\n", h->n_q, h->n_kv, h->dk, h->dv);
    printf("context     %s tokens\n", kv_out_count(a, sizeof a, h->n_ctx_train));
    const char *tok = maybe_str(f->g, "tokenizer.ggml.model"), *pre = maybe_str(f->g, "tokenizer.ggml.pre");
    printf("tokenizer   %s%s%s\n", tok ? tok : "(none)", pre ? ", " : "", pre ? pre : "");
    printf("chat        %s\n", family  ? family
                               : jinja ? "a template of no known family (--chat-template names one)"
                                       : "no template");
    printf("cache       %s a token in f16; pages of %s\n",
           kv_out_bytes(a, sizeof a, 2ull * h->n_layers * h->n_kv * (h->dk + h->dv)),
           kv_out_bytes(b, sizeof b, kv_page_bytes_for(h->dk, h->dv)));
}

static int print_memory(const cli_options *o, const file_info *f) {
    uint32_t ctx[N_CONTEXTS + 1], n = 0;
    cli_list pol = o->kv;
    for (uint32_t i = 0; !o->kv.n && i < sizeof presets / sizeof *presets; i++) pol.v[pol.n++] = presets[i];
    if (o->n_ctx) ctx[n++] = o->n_ctx;
    for (uint32_t i = 0; !o->n_ctx && i < N_CONTEXTS; i++)
        if (i == 0 || contexts[i] <= f->hp.n_ctx_train || contexts[i - 1] < f->hp.n_ctx_train) ctx[n++] = contexts[i];
    kv_memory_shape shape = {f->hp.n_layers, f->hp.n_kv, f->hp.dk, f->hp.dv};
    out_table t;
    char title[N_CONTEXTS + 1][32], a[32], b[32];
    kv_out_table_init(&t);
    kv_out_column(&t, "kv", true);
    kv_out_column(&t, "share", false);
    for (uint32_t c = 0; c < n; c++) {
        char digits[24];
        snprintf(title[c], sizeof title[c], "%s tokens", kv_out_count(digits, sizeof digits, ctx[c]));
        kv_out_column(&t, title[c], false);
    }
    for (uint32_t i = 0; i < pol.n; i++) {
        kv_memory_need need[N_CONTEXTS + 1];
        kvist_error err;
        for (uint32_t c = 0; c < n; c++)
            if (kv_memory_estimate(&shape, pol.v[i], ctx[c], &need[c], &err) != KVIST_OK) {
                kv_out_table_free(&t);
                return kv_cli_usage_error("info", "--kv %s: %s", pol.v[i], err.message);
            }
        if (o->json) {
            for (uint32_t c = 0; c < n; c++) {
                json_t *row = json_object();
                json_object_set_new(row, "policy", json_string(pol.v[i]));
                json_object_set_new(row, "tokens_seen", json_integer(ctx[c]));
                kv_out_json_real(row, "tokens_stored", need[c].tokens_stored);
                json_object_set_new(row, "bytes_true", json_integer((json_int_t)need[c].bytes_true));
                json_object_set_new(row, "bytes_f16", json_integer((json_int_t)need[c].bytes_f16));
                kv_out_json_real(row, "share", (double)need[c].bytes_true / (double)need[c].bytes_f16);
                json_object_set_new(row, "bytes_weights", json_integer((json_int_t)f->bytes));
                kv_out_json_line(row, stdout);
            }
            continue;
        }
        kv_out_cell(&t, "%s", pol.v[i]);
        kv_out_cell(&t, "%.1f %%", 100.0 * (double)need[n - 1].bytes_true / (double)need[n - 1].bytes_f16);
        for (uint32_t c = 0; c < n; c++)
            kv_out_cell(&t, "%s (%s)", kv_out_bytes(a, sizeof a, need[c].bytes_true),
                        kv_out_bytes(b, sizeof b, need[c].bytes_true + f->bytes));
    }
    if (!o->json) {
        printf("\nmemory of the cache, in brackets with the weights; share: of f16, at %u tokens\n", ctx[n - 1]);
        kv_out_table_print(&t, stdout);
    }
    kv_out_table_free(&t);
    return KV_CLI_OK;
}

static void print_metadata(const file_info *f) {
    char value[160];
    const char *key;
    printf("\nmetadata\n");
    for (size_t i = 0; (key = kv_gguf_key_at(f->g, i, value, sizeof value)); i++) {
        for (char *p = value; *p; p++)
            if ((unsigned char)*p < 32) *p = ' '; /* one key a line */
        printf("  %-42s %s\n", key, value);
    }
}

static void print_tensors(const file_info *f) {
    printf("\ntensors\n");
    for (size_t i = 0; i < kv_gguf_tensor_count(f->g); i++) {
        const kv_tensor *t = kv_gguf_tensor_at(f->g, i);
        const kv_type_info *type = kv_type_get(t->type);
        char shape[80], a[32];
        int n = 0;
        for (uint32_t d = 0; d < t->n_dims && d < 4; d++)
            n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRIu64, d ? " x " : "", t->ne[d]);
        printf("  %-34s %-8s %-18s %10s\n", t->name, type ? type->name : "?", shape,
               kv_out_bytes(a, sizeof a, t->bytes));
    }
}

static int info(const cli_options *o) {
    cli_options with = *o;
    if (o->positional.n) with.model = o->positional.v[0];
    if (!with.model) return kv_cli_usage_error("info", "no model: -m FILE (or KVIST_MODEL)");
    kvist_error err;
    file_info f = {0};
    kv_rope_params rope;
    kv_status st = kv_gguf_open(with.model, &f.g, &err);
    if (st == KVIST_OK) {
        const char *arch = maybe_str(f.g, "general.architecture");
        f.arch = arch ? kv_arch_find(arch) : NULL;
        if (!f.arch)
            st = kv_fail(&err, KVIST_E_UNSUPPORTED, "architecture '%s' is none of %s", arch ? arch : "(none)",
                         kv_arch_names());
    }
    if (st == KVIST_OK) st = kv_hparams_read(f.g, f.arch, &f.hp, &rope, &err);
    int rc = KV_CLI_OK;
    if (st == KVIST_OK) {
        sum_tensors(&f);
        const kv_tensor *embed = kv_gguf_tensor(f.g, "token_embd.weight");
        if (!f.hp.n_vocab && embed) f.hp.n_vocab = (uint32_t)embed->ne[1];
        if (!o->json) print_head(&f, with.model);
        rc = print_memory(&with, &f);
    }
    /* Metadata and tensors are shown even of a file that cannot be run. */
    if (f.g && !o->json && (o->count || st != KVIST_OK)) print_metadata(&f);
    if (f.g && !o->json && o->tensors) print_tensors(&f);
    kv_gguf_close(&f.g);
    return st == KVIST_OK ? rc : kv_cli_error(&err);
}

static const cli_opt opts[] = {
    {"-m,--model", "FILE", CLI_STR, offsetof(cli_options, model), 0, 0, "model, a GGUF file (default: $KVIST_MODEL)"},
    {"--metadata", NULL, CLI_FLAG, offsetof(cli_options, count), 0, 0, "every key of the file"},
    {"--tensors", NULL, CLI_FLAG, offsetof(cli_options, tensors), 0, 0, "every tensor: type, shape, bytes"},
    {"-c,--ctx-size", "N", CLI_U32, offsetof(cli_options, n_ctx), 1, 16777216, "memory for this context only"},
    {"--kv", "POLICY", CLI_LIST, offsetof(cli_options, kv), 0, 0, "memory under these policies (may be repeated)"},
    {0}};
static const cli_opt *const groups[] = {opts, kv_cli_opts_output, NULL};

const cli_command kv_cli_info = {
    "info",
    "-m MODEL [--metadata] [--tensors] [-c N] [--kv POLICY]...",
    "Shows what a model file holds and the memory it needs per policy and context.",
    groups,
    "Nothing is loaded. Cache bytes are true ones: whole pages and what keeps account of them.\n\n"
    "examples:\n"
    "  kvist info -m model.gguf\n"
    "  kvist info -m model.gguf -c 32768 --kv full --kv minikv,share=0.14 --kv full,format=q2s\n",
    1,
    info};
