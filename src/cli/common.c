/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a model and an engine, prompt text and tokens; see common.h. */
#include "cli/common.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/os.h"
#include "text/utf8.h"

static void log_line(void *user, int level, const char *text) {
    const cli_options *o = user;
    if (o->quiet && level > 0) return;
    if (level > 1 && !o->verbose) return;
    fprintf(stderr, "kvist: %s%s\n", level == 1 ? "warning: " : "", text);
}

static int cpu_level(const cli_options *o) {
    for (int i = 0; o->cpu && i < KV_CPU_LEVELS; i++)
        if (!strcmp(o->cpu, kv_cpu_level_name(i))) return i;
    return -1; /* kv_cli_check refuses any other name */
}

int kv_cli_open_model(const cli_options *o, cli_engine *e) {
    kvist_error err;
    kvist_model_params p = {.threads = o->threads, .cpu_level = cpu_level(o), .log = log_line, .log_user = (void *)o};
    memset(e, 0, sizeof *e);
    if (kvist_model_open(o->model, &p, &e->model, &err)) return kv_cli_error(&err);
    kvist_model_get_info(e->model, &e->info);
    return KV_CLI_OK;
}

int kv_cli_open_engine(const cli_options *o, uint32_t n_ctx, uint32_t max_sessions, cli_engine *e) {
    kvist_error err;
    kvist_engine_params p = {.n_ctx = n_ctx,
                             .threads = o->threads,
                             .ubatch = o->ubatch,
                             .max_sessions = max_sessions,
                             .kv_bytes = o->kv_mem,
                             .shadows = o->shadow ? max_sessions : 0,
                             .precise = !o->precise   ? 0
                                        : *o->precise ? 2
                                                      : 1,
                             .log = log_line,
                             .log_user = (void *)o};
    return kvist_engine_create(e->model, &p, &e->engine, &err) ? kv_cli_error(&err) : KV_CLI_OK;
}

void kv_cli_close(cli_engine *e) {
    kvist_engine_close(&e->engine);
    kvist_model_close(&e->model);
}

uint32_t kv_cli_context(const cli_options *o, const kvist_model_info *info, size_t n_prompt, int64_t n_predict) {
    uint64_t train = info->n_ctx_train, n = o->n_ctx, need = n_prompt + (uint64_t)(n_predict < 0 ? 1 : n_predict);
    if (!n) {
        n = n_predict < 0 ? train : (need + 255) / 256 * 256;
        if (n > train) n = train;
    } else if (n > train) {
        kv_cli_warn(o, "-c %llu is above the %llu tokens this model was trained on: answers may be poor",
                    (unsigned long long)n, (unsigned long long)train);
    }
    if (n_prompt >= n) {
        fprintf(stderr, "kvist: the prompt has %zu tokens, the context %llu: give a larger -c%s\n", n_prompt,
                (unsigned long long)n, n == train ? " (above the model's own)" : "");
        return 0;
    }
    if (need > n)
        kv_cli_warn(o,
                    "prompt and answer need %llu tokens, the context has %llu: generation stops there (-c raises it)",
                    (unsigned long long)need, (unsigned long long)n);
    return (uint32_t)n;
}

/* ---------------------------------------------------------------- prompt */

static int read_stream(FILE *f, char **text, size_t *len) {
    size_t cap = 65536, n = 0, got;
    char *p = kv_malloc(cap + 1);
    while (p && (got = fread(p + n, 1, cap - n, f))) {
        n += got;
        if (n < cap) continue;
        char *q = kv_realloc(p, 2 * cap + 1);
        if (!q) kv_free(p);
        p = q;
        cap *= 2;
    }
    if (!p) {
        fprintf(stderr, "kvist: out of memory reading standard input\n");
        return KV_CLI_FAILED;
    }
    p[n] = 0;
    *text = p;
    *len = n;
    return KV_CLI_OK;
}

static int read_source(const char *path, char **text, size_t *len) {
    kvist_error err;
    if (!strcmp(path, "-")) return read_stream(stdin, text, len);
    return kv_os_read_file(path, text, len, &err) ? kv_cli_error(&err) : KV_CLI_OK;
}

int kv_cli_prompt(const char *command, const cli_options *o, char **text, size_t *len) {
    bool p_stdin = o->prompt && !strcmp(o->prompt, "-");
    if (!o->prompt && !o->file) {
        if (isatty(STDIN_FILENO))
            return kv_cli_usage_error(command, "no prompt: -p TEXT, -f FILE, or text on standard input");
        return read_stream(stdin, text, len);
    }
    if (p_stdin && o->file && !strcmp(o->file, "-"))
        return kv_cli_usage_error(command, "-p - and -f - both want standard input");
    char *file = NULL, *prompt = NULL;
    size_t n_file = 0, n_prompt = 0;
    int rc = KV_CLI_OK;
    if (o->file) rc = read_source(o->file, &file, &n_file);
    if (rc == KV_CLI_OK && p_stdin)
        rc = read_stream(stdin, &prompt, &n_prompt);
    else if (rc == KV_CLI_OK && o->prompt) {
        n_prompt = strlen(o->prompt);
        prompt = kv_strndup(o->prompt, n_prompt);
        if (!prompt) rc = KV_CLI_FAILED;
    }
    if (rc == KV_CLI_OK && file && prompt) {
        while (n_file && file[n_file - 1] == '\n') n_file--;
        char *both = kv_malloc(n_file + n_prompt + 3);
        if (both) {
            memcpy(both, file, n_file);
            memcpy(both + n_file, "\n\n", 2);
            memcpy(both + n_file + 2, prompt, n_prompt + 1);
        }
        *text = both;
        *len = n_file + 2 + n_prompt;
        kv_free(file);
        kv_free(prompt);
        return both ? KV_CLI_OK : KV_CLI_FAILED;
    }
    if (rc != KV_CLI_OK) {
        kv_free(file);
        kv_free(prompt);
        return rc;
    }
    *text = file ? file : prompt;
    *len = file ? n_file : n_prompt;
    return KV_CLI_OK;
}

int kv_cli_render_messages(const cli_options *o, const cli_engine *e, const kvist_message *m, size_t n, bool generation,
                           char **out) {
    kvist_error err;
    size_t len = 0;
    *out = NULL;
    if (kvist_chat_render(e->model, o->chat_template, m, n, generation, NULL, 0, &len, &err)) return kv_cli_error(&err);
    char *buf = kv_malloc(len + 1);
    if (!buf) return KV_CLI_FAILED;
    if (kvist_chat_render(e->model, o->chat_template, m, n, generation, buf, len + 1, &len, &err)) {
        kv_free(buf);
        return kv_cli_error(&err);
    }
    buf[len] = 0;
    *out = buf;
    return KV_CLI_OK;
}

int kv_cli_render(const cli_options *o, const cli_engine *e, const char *text, char **out, bool *templated) {
    *templated = !o->raw && (o->chat_template || e->info.chat_family);
    if (!*templated) {
        if (o->system) kv_cli_warn(o, "--system has no effect without a chat template");
        if (!o->raw)
            kv_cli_warn(o, "no chat template of a known family in this model: the text is read as it is "
                           "(--chat-template FAMILY names one, --raw agrees)");
        *out = kv_strndup(text, strlen(text));
        return *out ? KV_CLI_OK : KV_CLI_FAILED;
    }
    kvist_message m[2];
    size_t n = 0;
    if (o->system) m[n++] = (kvist_message){"system", o->system};
    m[n++] = (kvist_message){"user", text};
    return kv_cli_render_messages(o, e, m, n, true, out);
}

int kv_cli_tokens(const cli_engine *e, const char *text, size_t len, bool special, bool parse, int32_t **ids,
                  size_t *n) {
    kvist_error err;
    unsigned flags = (special ? KVIST_TOK_SPECIAL : 0u) | (parse ? KVIST_TOK_PARSE : 0u);
    size_t cap = len + 8; /* no tokenizer has more tokens than bytes, special ones aside */
    for (;;) {
        int32_t *p = kv_malloc(cap * sizeof *p);
        if (!p) {
            fprintf(stderr, "kvist: out of memory for %zu tokens\n", cap);
            return KV_CLI_FAILED;
        }
        if (kvist_tokenize(e->model, text, len, flags, p, cap, n, &err)) {
            kv_free(p);
            return kv_cli_error(&err);
        }
        *ids = p;
        if (*n <= cap) break;
        kv_free(p);
        cap = *n;
    }
    /* A template that writes BOS itself and a tokenizer that adds one: keep one. Control tokens have no bytes of their
     * own. */
    size_t bytes;
    int32_t *p = *ids;
    if (special && parse && *n >= 2 && p[0] == p[1] &&
        (!kvist_token_bytes(e->model, p[0], false, &bytes) || bytes == 0))
        memmove(p, p + 1, --*n * sizeof *p);
    return KV_CLI_OK;
}

char *kv_cli_text(const kvist_model *m, const int32_t *ids, size_t n) {
    size_t total = 0, len, at = 0;
    for (size_t i = 0; i < n; i++)
        if (kvist_token_bytes(m, ids[i], false, &len)) total += len;
    char *raw = kv_malloc(total + 1), *out = kv_malloc(3 * total + 1);
    if (raw && out) {
        for (size_t i = 0; i < n; i++) {
            const char *b = kvist_token_bytes(m, ids[i], false, &len);
            if (b) memcpy(raw + at, b, len);
            at += b ? len : 0;
        }
        kv_utf8_clean(raw, at, out);
    } else {
        kv_free(out);
        out = NULL;
    }
    kv_free(raw);
    return out;
}

/* ---------------------------------------------------------------- reports */

/* All streams of a session, kv_malloc'd; NULL without memory, and nothing is named then. */
static kvist_stream_report *streams_of(const kvist_session *s, size_t *n) {
    *n = kvist_session_streams(s, NULL, 0);
    kvist_stream_report *v = kv_malloc(*n * sizeof *v + 1);
    *n = v ? kvist_session_streams(s, v, *n) : 0;
    return v;
}

void kv_cli_report(const kvist_session *s, FILE *out) {
    kvist_report r;
    size_t n;
    kvist_stream_report *v = streams_of(s, &n);
    kvist_session_report(s, &r);
    kv_out_report(&r, out);
    kv_out_guard_heads(&r, v, n, out);
    kv_free(v);
}

json_t *kv_cli_json_report(const kvist_session *s) {
    kvist_report r;
    size_t n;
    kvist_stream_report *v = streams_of(s, &n);
    kvist_session_report(s, &r);
    json_t *o = kv_out_json_report(&r);
    kv_out_json_guard_heads(o, &r, v, n);
    kv_free(v);
    return o;
}
