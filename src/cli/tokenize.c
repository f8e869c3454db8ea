/* SPDX-License-Identifier: Apache-2.0 */
/* kvist tokenize: text to token ids, with the vocabulary alone (no weights are loaded). */
#include <string.h>

#include "base/alloc.h"
#include "cli/common.h"
#include "text/utf8.h"
#include "text/tokenizer.h"

/* A piece in quotes, with control bytes and quotes escaped, so that one line is one token. */
static void print_piece(const char *s, size_t len) {
    fputc('\'', stdout);
    char clean[3 * 256 + 1];
    if (len > 256) len = 256;
    if (kv_utf8_complete(s, len) != len) { /* part of a character */
        for (size_t i = 0; i < len; i++) fprintf(stdout, "\\x%02x", (unsigned char)s[i]);
    } else {
        size_t n = kv_utf8_clean(s, len, clean);
        for (size_t i = 0; i < n; i++) {
            unsigned char c = (unsigned char)clean[i];
            if (c == '\n')
                fputs("\\n", stdout);
            else if (c == '\t')
                fputs("\\t", stdout);
            else if (c == '\'' || c == '\\')
                fprintf(stdout, "\\%c", c);
            else if (c < 32 || c == 127)
                fprintf(stdout, "\\x%02x", c);
            else
                fputc(c, stdout);
        }
    }
    fputc('\'', stdout);
}

static void print_tokens(const cli_options *o, const kv_tokenizer *t, const int32_t *ids, size_t n) {
    size_t len;
    if (o->count && !o->json) {
        printf("%zu\n", n);
        return;
    }
    if (o->json) {
        json_t *row = json_object(), *list = json_array();
        for (size_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
        json_object_set_new(row, "tokens", list);
        json_object_set_new(row, "count", json_integer((json_int_t)n));
        kv_out_json_line(row, stdout);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (!o->pieces) {
            printf("%s%d", i ? " " : "", ids[i]);
            continue;
        }
        const char *b = kv_tokenizer_bytes(t, ids[i], true, &len);
        printf("%7d  ", ids[i]);
        print_piece(b ? b : "", b ? len : 0);
        fputc('\n', stdout);
    }
    if (!o->pieces) fputc('\n', stdout);
}

static int tokenize(const cli_options *o) {
    if (!o->model) return kv_cli_usage_error("tokenize", "no model: -m FILE (or KVIST_MODEL)");
    cli_options with = *o;
    if (o->positional.n) {
        if (o->prompt)
            return kv_cli_usage_error("tokenize", "the text is given twice: -p and '%s'", o->positional.v[0]);
        with.prompt = o->positional.v[0];
    }
    char *text = NULL;
    size_t len, n = 0;
    kvist_error err;
    kv_gguf *g = NULL;
    kv_tokenizer *t = NULL;
    int32_t *ids = NULL;
    int rc = kv_cli_prompt("tokenize", &with, &text, &len);
    if (rc) return rc;
    kv_status st = kv_gguf_open(o->model, &g, &err);
    if (st == KVIST_OK) st = kv_tokenizer_create(g, &t, &err);
    size_t cap = len + 8;
    ids = kv_malloc(cap * sizeof *ids);
    if (st == KVIST_OK && !ids) st = kv_fail(&err, KVIST_E_MEMORY, "no memory for %zu tokens", cap);
    if (st == KVIST_OK) st = kv_tokenizer_encode(t, text, len, !o->no_bos, !o->no_parse, ids, cap, &n, &err);
    if (st == KVIST_OK && n > cap) st = kv_fail(&err, KVIST_E_STATE, "a text of %zu bytes has %zu tokens", len, n);
    if (st == KVIST_OK) print_tokens(o, t, ids, n);
    kv_free(ids);
    kv_tokenizer_free(&t);
    kv_gguf_close(&g);
    kv_free(text);
    return st == KVIST_OK ? KV_CLI_OK : kv_cli_error(&err);
}

static const cli_opt opts[] = {
    {"-m,--model", "FILE", CLI_STR, offsetof(cli_options, model), 0, 0, "model, a GGUF file (default: $KVIST_MODEL)"},
    {"--pieces", NULL, CLI_FLAG, offsetof(cli_options, pieces), 0, 0, "one token a line: id and text"},
    {"--count", NULL, CLI_FLAG, offsetof(cli_options, count), 0, 0, "only how many"},
    {"--no-bos", NULL, CLI_FLAG, offsetof(cli_options, no_bos), 0, 0,
     "without the tokens the model wants around a text"},
    {"--no-parse-special", NULL, CLI_FLAG, offsetof(cli_options, no_parse), 0, 0,
     "special tokens written in the text are plain text"},
    {0}};
static const cli_opt *const groups[] = {opts, kv_cli_opts_prompt, kv_cli_opts_output, NULL};

const cli_command kv_cli_tokenize = {"tokenize",
                                     "-m MODEL [TEXT | -p TEXT | -f FILE] [--pieces | --count]",
                                     "Prints the token ids of a text. Loads the vocabulary only.",
                                     groups,
                                     "examples:\n"
                                     "  kvist tokenize -m model.gguf \"Hello, world\"\n"
                                     "  kvist tokenize -m model.gguf -f book.txt --count\n"
                                     "  echo héllo | kvist tokenize -m model.gguf --pieces\n",
                                     1,
                                     tokenize};
