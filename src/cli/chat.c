/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist chat: a conversation in a terminal. The session's history is the conversation's tokens; each turn appends what
 * the template adds and syncs, so that the past is not read again. Invariant: ids[0..n_ids) are the tokens of the
 * conversation so far, which the rendered text `covered` bytes long stands for; turns remember both, so that undo is a
 * truncation.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/common.h"
#include "cli/kvmap.h"
#include "cli/line.h"
#include "policy/policy.h"

#define SPACE " \t\r\n"

typedef struct turn {
    char *user, *answer;
    size_t n_ids_before, covered_before;
} turn;

typedef struct chat {
    const cli_options *o;
    cli_engine e;
    kvist_session *s;
    kvist_sampling sampling;
    uint32_t n_ctx;
    turn *turns;
    size_t n_turns;
    int32_t *ids; /* [n_ids] */
    size_t n_ids, covered;
    char policy[256];
} chat;

/* The conversation as messages; the last turn may lack its answer. Caller kv_free()s. */
static kvist_message *messages(const chat *c, size_t *n) {
    kvist_message *m = kv_malloc((2 * c->n_turns + 1) * sizeof *m);
    *n = 0;
    if (!m) return NULL;
    if (c->o->system) m[(*n)++] = (kvist_message){"system", c->o->system};
    for (size_t i = 0; i < c->n_turns; i++) {
        m[(*n)++] = (kvist_message){"user", c->turns[i].user};
        if (c->turns[i].answer) m[(*n)++] = (kvist_message){"assistant", c->turns[i].answer};
    }
    return m;
}

static bool append_ids(chat *c, const int32_t *ids, size_t n) {
    int32_t *p = kv_realloc(c->ids, (c->n_ids + n + 1) * sizeof *p);
    if (!p) return false;
    c->ids = p;
    memcpy(p + c->n_ids, ids, n * sizeof *ids);
    c->n_ids += n;
    return true;
}

/*
 * Where in the new rendering the last answer ends, 0 when it is not there. `covered` is where it ended as generated;
 * templates may trim the white space around it, so that is skipped on both sides.
 */
static size_t end_of_answer(const chat *c, const char *text, size_t len) {
    const turn *last = c->n_turns > 1 ? &c->turns[c->n_turns - 2] : NULL;
    const char *answer = last ? last->answer : NULL;
    size_t n = answer ? strlen(answer) : 0;
    if (!answer || c->covered < n || len < c->covered - n) return 0;
    const char *at = text + (c->covered - n);
    answer += strspn(answer, SPACE);
    n = strlen(answer);
    while (n && strchr(SPACE, answer[n - 1])) n--;
    at += strspn(at, SPACE);
    return (size_t)(text + len - at) >= n && !memcmp(at, answer, n) ? (size_t)(at - text) + n : 0;
}

/*
 * Tokens of what the template adds since the last answer: the generated tokens stay as they are and only the rest is
 * tokenized. A template that rewrites the past makes the whole text new; sync keeps what is equal, and undo starts
 * over.
 */
static int extend(chat *c, const char *text) {
    int32_t *ids = NULL;
    size_t n = 0, len = strlen(text), from = end_of_answer(c, text, len);
    int rc = kv_cli_tokens(&c->e, text + from, len - from, from == 0, true, &ids, &n);
    if (rc) return rc;
    if (!from) {
        c->n_ids = 0;
        for (size_t i = 0; i < c->n_turns; i++) c->turns[i].n_ids_before = c->turns[i].covered_before = 0;
    }
    if (!append_ids(c, ids, n)) rc = KV_CLI_FAILED;
    c->covered = len;
    kv_free(ids);
    return rc;
}

static void drop_turn(chat *c) {
    turn *t = &c->turns[--c->n_turns];
    c->n_ids = t->n_ids_before;
    c->covered = t->covered_before;
    kv_free(t->user);
    kv_free(t->answer);
}

/* Back to before the last exchange, in the session too. */
static int undo(chat *c) {
    kvist_error err;
    drop_turn(c);
    size_t keep = c->n_ids < kvist_session_length(c->s) ? c->n_ids : kvist_session_length(c->s);
    return kvist_session_truncate(c->s, keep, &err) ? kv_cli_error(&err) : KV_CLI_OK;
}

static int read_and_answer(chat *c) {
    kvist_error err;
    cli_progress progress;
    turn *t = &c->turns[c->n_turns - 1];
    kv_cli_progress_init(&progress, c->o, "reading");
    kv_cli_interrupt_install();
    kvist_session_on_progress(c->s, kv_cli_session_progress, &progress);
    int st = kvist_session_sync(c->s, c->ids, c->n_ids, &err);
    kvist_session_on_progress(c->s, NULL, NULL);
    kv_out_progress_clear(&progress.bar);
    if (st) {
        kv_cli_interrupt_at_prompt();
        if (st == KVIST_E_CANCELLED)
            fprintf(stderr, "stopped while reading; the message is taken back\n");
        else
            kv_cli_error(&err);
        return undo(c) == KV_CLI_OK ? KV_CLI_OK : KV_CLI_FAILED;
    }
    int32_t n_predict = c->o->n_predict == -2 ? -1 : c->o->n_predict;
    cli_generate g = {.model = c->e.model,
                      .session = c->s,
                      .sampling = &c->sampling,
                      .n_predict = n_predict,
                      .n_ctx = c->n_ctx,
                      .ignore_end = c->o->ignore_eos,
                      .out = c->o->json ? NULL : stdout};
    int rc = kv_cli_generate(&g);
    kv_cli_interrupt_at_prompt();
    if (rc == KV_CLI_OK && c->o->json) {
        json_t *row = kv_cli_json_report(c->s);
        json_object_set_new(row, "finish", json_string(g.finish));
        kv_out_json_text(row, "text", g.text, g.len);
        kv_out_json_line(row, stdout);
    } else if (rc == KV_CLI_OK) {
        fputs(kv_cli_line_is_terminal() ? "\n\n" : "\n", stdout);
        fflush(stdout);
        if (!strcmp(g.finish, "context"))
            kv_cli_warn(c->o, "the context's %u tokens are full (-c raises it, /undo frees the last exchange)",
                        c->n_ctx);
    }
    if (rc == KV_CLI_OK) {
        t->answer = g.text;
        g.text = NULL;
        if (!append_ids(c, g.ids, g.n_tokens)) rc = KV_CLI_FAILED;
        c->covered += g.len;
    }
    kv_cli_generate_free(&g);
    return rc;
}

static int say(chat *c, const char *text) {
    turn *turns = kv_realloc(c->turns, (c->n_turns + 1) * sizeof *turns);
    char *user = kv_strndup(text, strlen(text)), *rendered = NULL;
    if (turns) c->turns = turns;
    if (!turns || !user) {
        kv_free(user);
        return KV_CLI_FAILED;
    }
    c->turns[c->n_turns++] = (turn){user, NULL, c->n_ids, c->covered};
    size_t n;
    kvist_message *m = messages(c, &n);
    int rc = m ? kv_cli_render_messages(c->o, &c->e, m, n, true, &rendered) : KV_CLI_FAILED;
    kv_free(m);
    if (rc == KV_CLI_OK) rc = extend(c, rendered);
    kv_free(rendered);
    if (rc == KV_CLI_OK && c->n_ids >= c->n_ctx) {
        fprintf(stderr,
                "kvist: the conversation has %zu tokens, the context %u: /undo, or start again with a larger -c\n",
                c->n_ids, c->n_ctx);
        return undo(c);
    }
    return rc == KV_CLI_OK ? read_and_answer(c) : rc;
}

/* ---------------------------------------------------------------- commands */

static void show_map(const chat *c) {
    kvist_report r;
    kvist_session_report(c->s, &r);
    size_t n = kvist_session_streams(c->s, NULL, 0);
    kvist_stream_report *v = kv_malloc(n * sizeof *v + 1);
    if (!v) return;
    n = kvist_session_streams(c->s, v, n);
    kv_cli_map_print(v, n, r.tokens_seen, stderr);
    kv_cli_report(c->s, stderr);
    kv_free(v);
}

static void set_policy(chat *c, const char *text) {
    kvist_error err;
    if (kvist_session_set_policy(c->s, text, &err)) {
        kv_cli_error(&err);
        return;
    }
    snprintf(c->policy, sizeof c->policy, "%s", text);
    fprintf(stderr, "policy for what follows: %s (pages already sealed stay as they are)\n", text);
}

static int edit_last(chat *c, const char *text) {
    if (!c->n_turns) {
        fprintf(stderr, "nothing to edit yet\n");
        return KV_CLI_OK;
    }
    char *line = NULL;
    if (!*text && kv_cli_line_is_terminal()) {
        line = kv_cli_line_read("edit> ", c->turns[c->n_turns - 1].user);
        if (!line || !*line) {
            free(line);
            return KV_CLI_OK;
        }
        text = line;
    }
    if (!*text) {
        fprintf(stderr, "/edit TEXT\n");
        return KV_CLI_OK;
    }
    int rc = undo(c);
    if (rc == KV_CLI_OK) rc = say(c, text);
    free(line);
    return rc;
}

static void help(void) {
    fprintf(stderr, "/kv          the cache by layer and head\n"
                    "/kv POLICY   another cache policy for what follows\n"
                    "/undo        takes the last exchange back\n"
                    "/edit [TEXT] changes the last message and answers again\n"
                    "/report      bytes, speed and retained mass\n"
                    "/quit        ends (so does the end of input)\n"
                    "//...        a message that begins with a slash\n"
                    "Ctrl-C stops an answer.\n");
}

/* Handles a line that begins with a slash; *quit when it ends the chat. */
static int command(chat *c, const char *line, bool *quit) {
    size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    if (n == 5 && !strncmp(line, "/quit", n))
        *quit = true;
    else if (n == 5 && !strncmp(line, "/exit", n))
        *quit = true;
    else if (n == 5 && !strncmp(line, "/help", n))
        help();
    else if (n == 5 && !strncmp(line, "/edit", n))
        return edit_last(c, rest);
    else if (n == 3 && !strncmp(line, "/kv", n)) {
        if (*rest)
            set_policy(c, rest);
        else
            show_map(c);
    } else if (n == 7 && !strncmp(line, "/report", n)) {
        kv_cli_report(c->s, stderr);
    } else if (n == 5 && !strncmp(line, "/undo", n)) {
        if (!c->n_turns)
            fprintf(stderr, "nothing to take back\n");
        else {
            int rc = undo(c);
            if (rc == KV_CLI_OK)
                fprintf(stderr, "took the last exchange back; %zu tokens\n", kvist_session_length(c->s));
            return rc;
        }
    } else
        fprintf(stderr, "unknown command '%.*s'; /help lists them\n", (int)n, line);
    return KV_CLI_OK;
}

static int converse(chat *c) {
    bool quit = false, again = false;
    int rc = KV_CLI_OK;
    if (kv_cli_line_is_terminal() && !c->o->quiet)
        fprintf(stderr, "%s, %s, context %u; /help lists commands\n\n",
                c->e.info.name ? c->e.info.name : c->e.info.arch, c->policy, c->n_ctx);
    while (rc == KV_CLI_OK && !quit) {
        kv_cli_interrupt_at_prompt();
        char *line = kv_cli_line_read("> ", NULL);
        if (!line && kv_cli_interrupted() && !again && kv_cli_line_is_terminal()) {
            fprintf(stderr, "\n(Ctrl-C again, Ctrl-D or /quit ends)\n"); /* it may have been meant for the answer */
            again = true;
            continue;
        }
        again = false;
        if (!line) break;
        if (line[0] == '/' && line[1] != '/')
            rc = command(c, line, &quit);
        else if (line[strspn(line, " \t")])
            rc = say(c, line[0] == '/' ? line + 1 : line);
        free(line);
    }
    return rc;
}

static int run_chat(const cli_options *o) {
    if (o->kv.n > 1) return kv_cli_usage_error("chat", "one --kv here; /kv POLICY changes it later");
    int rc = kv_cli_check("chat", o);
    if (rc) return rc;
    chat c = {.o = o};
    rc = kv_cli_open_model(o, &c.e);
    if (rc == KV_CLI_OK && !o->chat_template && !c.e.info.chat_family) {
        fprintf(stderr, "kvist: this model has no chat template of a known family: name one with --chat-template\n");
        rc = KV_CLI_FAILED;
    }
    if (rc == KV_CLI_OK) {
        c.n_ctx = kv_cli_context(o, &c.e.info, 0, -1);
        rc = c.n_ctx ? kv_cli_open_engine(o, c.n_ctx, 1, &c.e) : KV_CLI_FAILED;
    }
    kvist_error err;
    cli_policies pol;
    kv_cli_policies(o, &pol);
    snprintf(c.policy, sizeof c.policy, "%s", pol.v[0]);
    if (rc == KV_CLI_OK && kvist_session_create(c.e.engine, pol.v[0], &c.s, &err)) rc = kv_cli_error(&err);
    if (rc == KV_CLI_OK) {
        kv_cli_sampling(o, &c.sampling);
        rc = converse(&c);
        if (c.n_turns && !o->quiet && !o->json) kv_cli_report(c.s, stderr);
    }
    while (c.n_turns) drop_turn(&c);
    kvist_session_close(&c.s);
    kv_cli_close(&c.e);
    kv_free(c.turns);
    kv_free(c.ids);
    return rc;
}

static const cli_opt *const groups[] = {kv_cli_opts_model,    kv_cli_opts_chat,    kv_cli_opts_predict, kv_cli_opts_kv,
                                        kv_cli_opts_sampling, kv_cli_opts_precise, kv_cli_opts_output,  NULL};

const cli_command kv_cli_chat = {"chat",
                                 "-m MODEL [--system TEXT] [--kv POLICY] [options]",
                                 "Talks with the model in the terminal; the past is kept in the cache, not read again.",
                                 groups,
                                 "commands: /kv shows the cache, /kv POLICY changes it, /undo, /edit, /report, /help, "
                                 "/quit. Ctrl-C stops an answer.\n"
                                 "Without a terminal each line of standard input is a message.\n\n"
                                 "examples:\n"
                                 "  kvist chat -m model.gguf --kv minikv,share=0.14\n"
                                 "  printf 'Hello\\n/kv\\n' | kvist chat -m model.gguf --temp 0 -n 50\n",
                                 0,
                                 run_chat};
