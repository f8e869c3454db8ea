/* SPDX-License-Identifier: Apache-2.0 */
/* Ctrl-C, progress, and the loop that turns logits into streamed text. */
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/common.h"
#include "text/utf8.h"

/* The one thing a signal handler may touch. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) {
    (void)sig;
    if (interrupted) {
        static const char text[] = "\nkvist: interrupted\n";
        ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
        (void)ignored;
        _exit(KV_CLI_FAILED);
    }
    interrupted = 1;
}

void kv_cli_interrupt_install(void) {
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_interrupt;
    sigemptyset(&sa.sa_mask);
    sa.sa_flags = SA_RESTART;
    interrupted = 0;
    sigaction(SIGINT, &sa, NULL);
}

void kv_cli_interrupt_at_prompt(void) {
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_interrupt;
    sigemptyset(&sa.sa_mask);
    interrupted = 0;
    sigaction(SIGINT, &sa, NULL); /* no SA_RESTART: reading a line ends */
}

bool kv_cli_interrupted(void) { return interrupted != 0; }

void kv_cli_progress_init(cli_progress *p, const cli_options *o, const char *what) {
    kv_out_progress_init(&p->bar, o->quiet);
    p->what = what;
}

bool kv_cli_session_progress(void *user, uint64_t done, uint64_t total) {
    cli_progress *p = user;
    kv_out_progress(&p->bar, p->what, done, total);
    return !interrupted;
}

bool kv_cli_watch(void *user, const char *what, uint64_t done, uint64_t total) {
    cli_progress *p = user;
    kv_out_progress(&p->bar, what, done, total);
    return !interrupted;
}

/* ---------------------------------------------------------------- generation */

void kv_cli_sampling(const cli_options *o, kvist_sampling *s) {
    kvist_sampling_default(s);
    s->temp = o->temp;
    s->top_k = o->top_k;
    s->top_p = o->top_p;
    s->min_p = o->min_p;
    s->repeat_penalty = o->repeat_penalty;
    s->repeat_last_n = (int32_t)o->repeat_last_n;
    s->seed = o->seed < 0 ? kv_os_now_ns() : (uint64_t)o->seed;
}

void kv_cli_generate_free(cli_generate *g) {
    kv_free(g->text);
    kv_free(g->ids);
    g->text = NULL;
    g->ids = NULL;
    g->len = g->cap = 0;
    g->n_tokens = 0;
}

static bool keep_text(cli_generate *g, const char *s, size_t n) {
    if (g->len + n + 1 > g->cap) {
        size_t cap = 2 * (g->len + n) + 256;
        char *p = kv_realloc(g->text, cap);
        if (!p) return false;
        g->text = p;
        g->cap = cap;
    }
    memcpy(g->text + g->len, s, n);
    g->len += n;
    g->text[g->len] = 0;
    if (g->out && n) {
        fwrite(s, 1, n, g->out);
        fflush(g->out);
    }
    return true;
}

static bool keep_token(cli_generate *g, kv_utf8_stream *u, int32_t id) {
    size_t len;
    const char *bytes = kvist_token_bytes(g->model, id, false, &len);
    int32_t *ids = kv_realloc(g->ids, ((size_t)g->n_tokens + 1) * sizeof *ids);
    if (!ids) return false;
    g->ids = ids;
    g->ids[g->n_tokens++] = id;
    if (!bytes || !len) return true;
    char *clean = kv_malloc(3 * (len + 4) + 1);
    bool ok = clean && keep_text(g, clean, kv_utf8_push(u, bytes, len, clean));
    kv_free(clean);
    return ok;
}

int kv_cli_generate(cli_generate *g) {
    kv_utf8_stream u = {0};
    kvist_error err;
    char rest[16];
    g->text = NULL;
    g->ids = NULL;
    g->len = g->cap = 0;
    g->n_tokens = 0;
    g->first_ns = 0;
    g->finish = "length";
    if (!keep_text(g, "", 0)) return KV_CLI_FAILED;
    while (g->n_predict < 0 || g->n_tokens < (uint32_t)g->n_predict) {
        int32_t id;
        if (interrupted) {
            g->finish = "cancelled";
            break;
        }
        int st = kvist_session_sample(g->session, g->sampling, &id, &err);
        if (st) return kv_cli_error(&err);
        if (!g->first_ns) g->first_ns = kv_os_now_ns();
        if (!g->ignore_end && kvist_token_is_end(g->model, id)) {
            g->finish = "stop";
            break;
        }
        if (!keep_token(g, &u, id)) return kv_cli_error(&(kvist_error){KVIST_E_MEMORY, "out of memory"});
        if (kvist_session_length(g->session) >= g->n_ctx) {
            g->finish = "context";
            break;
        }
        if (g->n_predict >= 0 && g->n_tokens == (uint32_t)g->n_predict) break;
        st = kvist_session_decode(g->session, id, &err);
        if (st == KVIST_E_CANCELLED) {
            g->finish = "cancelled";
            break;
        }
        if (st == KVIST_E_CONTEXT) {
            g->finish = "context";
            break;
        }
        if (st) return kv_cli_error(&err);
    }
    keep_text(g, rest, kv_utf8_finish(&u, rest));
    return KV_CLI_OK;
}
