/* SPDX-License-Identifier: Apache-2.0 */
/* kvist compare: one prompt, or one document and many questions, under several policies, side by side. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/common.h"
#include "cli/questions.h"
#include "measure/compare.h"
#include "policy/policy.h"

/* Speed rests on at least this many decode steps; fewer measured the first-touch of pages. */
enum { MIN_TIMED = 32, DEFAULT_PREDICT = 64, ANSWER_WIDTH = 90 };

typedef struct task {
    const cli_options *o;
    cli_engine e;
    cli_questions q;
    int32_t *prefix;
    size_t n_prefix;
    kv_compare_item *items; /* [q.n] */
    const char *policies[KV_CLI_MAX_LIST + 2];
    uint32_t n_policies, n_done;
    kv_compare_result *results; /* [n_policies] */
    uint32_t n_predict;
} task;

/* The base, full, comes first; the others keep their order. */
static void order_policies(task *t) {
    cli_policies given;
    kv_cli_policies(t->o, &given);
    t->policies[t->n_policies++] = "full";
    for (uint32_t i = 0; i < given.n; i++) {
        kv_policy p;
        char canonical[256] = "";
        kvist_error err;
        const char *text = t->o->kv.n ? t->o->kv.v[i] : "full";
        if (kv_policy_parse(text, &p, &err) == KVIST_OK) kv_policy_print(&p, canonical, sizeof canonical);
        if (strcmp(canonical, "full")) t->policies[t->n_policies++] = text;
    }
}

/* Keeps the first n tokens of a text, as text. */
static int cut_text(task *t, char **text, size_t *len, size_t n) {
    int32_t *ids;
    size_t have;
    int rc = kv_cli_tokens(&t->e, *text, *len, false, false, &ids, &have);
    if (rc) return rc;
    if (have < n) kv_cli_warn(t->o, "the text has %zu tokens, --prompt-tokens asks for %zu", have, n);
    if (have > n) {
        char *cut = kv_cli_text(t->e.model, ids, n);
        if (!cut)
            rc = KV_CLI_FAILED;
        else {
            kv_free(*text);
            *text = cut;
            *len = strlen(cut);
        }
    }
    kv_free(ids);
    return rc;
}

/* Tokens of the shared prefix and of each question: the rendered conversation is cut where the question begins, so that
 * the prefix's tokens are the same for all questions. */
static int make_items(task *t, const char *text) {
    static const char mark[] = "\x01question\x01";
    size_t len = strlen(text);
    char *with_mark = kv_malloc(len + sizeof mark + 2), *rendered = NULL;
    bool templated;
    if (!with_mark) return KV_CLI_FAILED;
    while (len && text[len - 1] == '\n') len--;
    memcpy(with_mark, text, len);
    memcpy(with_mark + len, "\n\n", 2);
    memcpy(with_mark + len + 2, mark, sizeof mark);
    int rc = kv_cli_render(t->o, &t->e, with_mark, &rendered, &templated);
    char *at = rc == KV_CLI_OK ? strstr(rendered, mark) : NULL;
    if (rc == KV_CLI_OK && !at) {
        fprintf(stderr, "kvist: the chat template does not keep the prompt's text: use --raw\n");
        rc = KV_CLI_FAILED;
    }
    if (rc == KV_CLI_OK)
        rc = kv_cli_tokens(&t->e, rendered, (size_t)(at - rendered), true, true, &t->prefix, &t->n_prefix);
    if (rc == KV_CLI_OK && !(t->items = kv_calloc(t->q.n, sizeof *t->items))) rc = KV_CLI_FAILED;
    for (uint32_t i = 0; rc == KV_CLI_OK && i < t->q.n; i++) {
        const char *tail = at + sizeof mark - 1;
        size_t nq = strlen(t->q.v[i].text), nt = strlen(tail), n;
        char *s = kv_malloc(nq + nt + 1);
        int32_t *ids;
        if (!s)
            rc = KV_CLI_FAILED;
        else {
            memcpy(s, t->q.v[i].text, nq);
            memcpy(s + nq, tail, nt + 1);
            rc = kv_cli_tokens(&t->e, s, nq + nt, false, true, &ids, &n);
            if (rc == KV_CLI_OK) t->items[i] = (kv_compare_item){ids, n};
        }
        kv_free(s);
    }
    kv_free(rendered);
    kv_free(with_mark);
    return rc;
}

static int prepare(task *t) {
    const cli_options *o = t->o;
    char *text = NULL, *rendered = NULL;
    size_t len;
    bool templated = !o->raw && (o->chat_template || t->e.info.chat_family);
    int rc = kv_cli_prompt("compare", o, &text, &len);
    if (rc == KV_CLI_OK && o->prompt_tokens && (templated || t->q.n)) rc = cut_text(t, &text, &len, o->prompt_tokens);
    if (rc == KV_CLI_OK && t->q.n)
        rc = make_items(t, text);
    else if (rc == KV_CLI_OK) {
        rc = kv_cli_render(o, &t->e, text, &rendered, &templated);
        if (rc == KV_CLI_OK)
            rc = kv_cli_tokens(&t->e, rendered, strlen(rendered), true, true, &t->prefix, &t->n_prefix);
        if (rc == KV_CLI_OK && !templated && o->prompt_tokens) {
            if (t->n_prefix > o->prompt_tokens)
                t->n_prefix = o->prompt_tokens;
            else if (t->n_prefix < o->prompt_tokens)
                kv_cli_warn(o, "the text has %zu tokens, --prompt-tokens asks for %u", t->n_prefix, o->prompt_tokens);
        }
    }
    kv_free(rendered);
    kv_free(text);
    if (rc == KV_CLI_OK && !t->n_prefix) rc = kv_cli_usage_error("compare", "the prompt is empty");
    return rc;
}

static int measure(task *t) {
    size_t longest = 0;
    for (uint32_t i = 0; i < t->q.n; i++)
        if (t->items[i].n > longest) longest = t->items[i].n;
    uint32_t n_ctx = kv_cli_context(t->o, &t->e.info, t->n_prefix + longest, t->n_predict);
    if (!n_ctx) return KV_CLI_FAILED;
    size_t room = n_ctx - t->n_prefix - longest;
    if (t->n_predict > room) t->n_predict = (uint32_t)room;
    int rc = kv_cli_open_engine(t->o, n_ctx, 1, &t->e);
    if (rc) return rc;
    cli_progress progress;
    kv_cli_progress_init(&progress, t->o, "");
    kv_cli_interrupt_install();
    kv_compare_params p = {.model = t->e.model,
                           .n_vocab = t->e.info.n_vocab,
                           .prefix = t->prefix,
                           .n_prefix = t->n_prefix,
                           .items = t->items,
                           .n_items = t->q.n,
                           .n_predict = t->n_predict,
                           .ignore_end = t->o->ignore_eos,
                           .min_timed = MIN_TIMED,
                           .shadow = t->o->shadow,
                           .watch = {kv_cli_watch, &progress}};
    kv_compare *c = NULL;
    kvist_error err;
    kv_status st = KVIST_OK;
    for (uint32_t i = 0; st == KVIST_OK && i < t->n_policies; i++) {
        if (!progress.bar.on && !t->o->quiet)
            fprintf(stderr, "kvist: %s (%u of %u)\n", t->policies[i], i + 1, t->n_policies);
        st = i ? kv_compare_policy(c, t->policies[i], &t->results[i], &err)
               : kv_compare_base(t->e.engine, &p, t->policies[0], &c, &t->results[0], &err);
        if (st == KVIST_OK) t->n_done++;
    }
    kv_out_progress_clear(&progress.bar);
    kv_compare_free(&c);
    return st == KVIST_OK ? KV_CLI_OK : kv_cli_error(&err);
}

static char *answer_text(const task *t, uint32_t policy, uint32_t i) {
    const kv_compare_answer *a = &t->results[policy].answers[i];
    return kv_cli_text(t->e.model, a->ids, a->n);
}

static uint32_t facts_found(const task *t, uint32_t policy) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < t->q.n; i++) {
        char *s = answer_text(t, policy, i);
        if (s) found += kv_compare_found(s, t->q.v[i].expected);
        kv_free(s);
    }
    return found;
}

/* One line of text, cut to a width in characters. */
static void print_line(const char *s, size_t width) {
    size_t n = 0;
    while (*s == ' ' || *s == '\n') s++;
    for (; *s; s++) {
        n += ((unsigned char)*s & 0xc0) != 0x80;
        if (n > width) {
            fputs("…", stdout);
            break;
        }
        fputc((unsigned char)*s < 32 ? ' ' : *s, stdout);
    }
    fputc('\n', stdout);
}

static void print_answers(const task *t) {
    size_t widest = 0;
    for (uint32_t p = 0; p < t->n_done; p++)
        if (strlen(t->policies[p]) > widest) widest = strlen(t->policies[p]);
    for (uint32_t i = 0; i < t->q.n; i++) {
        printf("%u. %s  [%s]\n", i + 1, t->q.v[i].text, t->q.v[i].expected);
        for (uint32_t p = 0; p < t->n_done; p++) {
            char *s = answer_text(t, p, i);
            printf("   %-*s %s ", (int)widest, t->policies[p],
                   s && kv_compare_found(s, t->q.v[i].expected) ? "✓" : "✗");
            print_line(s ? s : "", ANSWER_WIDTH);
            kv_free(s);
        }
        fputc('\n', stdout);
    }
    for (uint32_t p = 0; !t->q.n && p < t->n_done; p++) {
        char *s = answer_text(t, p, 0);
        printf("--- %s\n%s\n\n", t->policies[p], s ? s : "");
        kv_free(s);
    }
}

static void print_table(const task *t) {
    out_table tab;
    char a[32], b[32];
    kv_out_table_init(&tab);
    kv_out_column(&tab, "policy", true);
    char facts[32];
    snprintf(facts, sizeof facts, "facts of %u", t->q.n);
    if (t->q.n) kv_out_column(&tab, facts, false);
    static const char *const rest[] = {"stored/seen",   "KV MiB",       "share",   "peak MiB",  "mass mean/min",
                                       "prefill tok/s", "decode tok/s", "KL nats", "same top-1"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) kv_out_column(&tab, rest[i], false);
    for (uint32_t p = 0; p < t->n_done; p++) {
        const kv_compare_result *r = &t->results[p];
        const kvist_report *k = &r->report;
        kv_out_cell(&tab, "%s", t->policies[p]);
        if (t->q.n) kv_out_cell(&tab, "%u", facts_found(t, p));
        kv_out_cell(&tab, "%s/%s", kv_out_count(a, sizeof a, (uint64_t)(k->tokens_stored + 0.5)),
                    kv_out_count(b, sizeof b, k->tokens_seen));
        kv_out_cell(&tab, "%.2f", kv_out_mib(k->bytes_true));
        kv_out_cell(&tab, "%.1f %%", 100 * k->share);
        kv_out_cell(&tab, "%.1f", kv_out_mib(k->bytes_peak));
        kv_out_cell(&tab, "%.3f/%.3f", k->mass_mean, k->mass_min);
        kv_out_cell(&tab, "%.0f", r->prefill_tps);
        kv_out_cell(&tab, "%.1f", r->decode_tps);
        if (isfinite(r->kld_mean))
            kv_out_cell(&tab, p ? "%.4f" : "0", r->kld_mean);
        else
            kv_out_cell(&tab, "-");
        if (isfinite(r->same_top1))
            kv_out_cell(&tab, "%.1f %%", 100 * r->same_top1);
        else
            kv_out_cell(&tab, "-");
    }
    kv_out_table_print(&tab, stdout);
    kv_out_table_free(&tab);
    for (uint32_t p = 0; p < t->n_done; p++)
        if (t->results[p].report.guard > 0 || t->results[p].report.bytes_shadow) {
            printf("%s:\n", t->policies[p]);
            kv_out_guard(&t->results[p].report, stdout);
            kv_out_guard_heads(&t->results[p].report, t->results[p].streams, t->results[p].n_streams, stdout);
        }
    for (uint32_t p = 0; p < t->n_done; p++)
        if (!t->results[p].report.share_met)
            printf("%s: the share asked for was not met: %s\n", t->policies[p], t->results[p].report.share_note);
}

static void print_json(const task *t) {
    for (uint32_t p = 0; p < t->n_done; p++) {
        const kv_compare_result *r = &t->results[p];
        json_t *o = kv_out_json_report(&r->report);
        kv_out_json_guard_heads(o, &r->report, r->streams, r->n_streams);
        kv_out_json_real(o, "prefill_tps", r->prefill_tps);
        kv_out_json_real(o, "decode_tps", r->decode_tps);
        kv_out_json_real(o, "kld_mean", r->kld_mean);
        kv_out_json_real(o, "kld_p99", r->kld_p99);
        kv_out_json_real(o, "same_top1", r->same_top1);
        json_object_set_new(o, "compared", json_integer(r->compared));
        json_object_set_new(o, "kv", json_string(t->policies[p]));
        json_t *list = json_array();
        for (uint32_t i = 0; i < r->n_answers; i++) {
            char *s = answer_text(t, p, i);
            if (!t->q.n)
                kv_out_json_text(o, "text", s ? s : "", s ? strlen(s) : 0);
            else
                json_array_append_new(list, json_string(s ? s : ""));
            kv_free(s);
        }
        if (t->q.n) {
            json_object_set_new(o, "facts_found", json_integer(facts_found(t, p)));
            json_object_set_new(o, "facts_total", json_integer(t->q.n));
            json_object_set_new(o, "answers", list);
        } else {
            json_decref(list);
        }
        kv_out_json_line(o, stdout);
    }
}

static int load_questions(task *t) {
    kvist_error err;
    char *text;
    size_t len;
    if (!t->o->questions) return KV_CLI_OK;
    if (kv_os_read_file(t->o->questions, &text, &len, &err)) return kv_cli_error(&err);
    return kv_cli_questions_parse(text, t->o->questions, &t->q, &err) ? kv_cli_error(&err) : KV_CLI_OK;
}

static int compare(const cli_options *o) {
    int rc = kv_cli_check("compare", o);
    if (rc) return rc;
    if (o->n_predict == -1 || o->n_predict == 0) return kv_cli_usage_error("compare", "-n must be at least 1 here");
    task t = {.o = o, .n_predict = o->n_predict > 0 ? (uint32_t)o->n_predict : DEFAULT_PREDICT};
    order_policies(&t);
    t.results = kv_calloc(t.n_policies, sizeof *t.results);
    rc = t.results ? load_questions(&t) : KV_CLI_FAILED;
    if (rc == KV_CLI_OK) rc = kv_cli_open_model(o, &t.e);
    if (rc == KV_CLI_OK) rc = prepare(&t);
    if (rc == KV_CLI_OK) rc = measure(&t);
    if (t.n_done && o->json)
        print_json(&t);
    else if (t.n_done) {
        print_answers(&t);
        print_table(&t);
    }
    for (uint32_t p = 0; p < t.n_done; p++) kv_compare_result_free(&t.results[p]);
    for (uint32_t i = 0; t.items && i < t.q.n; i++) kv_free((void *)t.items[i].ids);
    kv_free(t.items);
    kv_free(t.prefix);
    kv_free(t.results);
    kv_cli_questions_free(&t.q);
    kv_cli_close(&t.e);
    return rc;
}

static const cli_opt opts[] = {{"--questions", "FILE", CLI_STR, offsetof(cli_options, questions), 0, 0,
                                "questions about the document, a line each: question TAB what the\nanswer must contain "
                                "(alternatives: a|b); it is read once per policy"},
                               {"--prompt-tokens", "N", CLI_U32, offsetof(cli_options, prompt_tokens), 1, 16777216,
                                "cut the prompt to N tokens (with a chat template: its text)"},
                               {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model,
                                        kv_cli_opts_prompt,
                                        opts,
                                        kv_cli_opts_chat,
                                        kv_cli_opts_predict,
                                        kv_cli_opts_kv,
                                        kv_cli_opts_shadow,
                                        kv_cli_opts_precise,
                                        kv_cli_opts_output,
                                        NULL};

const cli_command kv_cli_compare = {
    "compare",
    "-m MODEL [-f FILE] [-p TEXT] --kv POLICY [--kv POLICY]... [options]",
    "Answers one prompt under several cache policies and shows bytes, speed and divergence side by side.",
    groups,
    "`full` is the base and is added when it is not among the policies. All answers are greedy, -n 64 tokens by "
    "default.\n"
    "KL and same top-1 compare the predictions along the base's answer, decoded token by token under each policy;\n"
    "decode speed is that of the same tokens. Bytes, share and retained mass are those at the end of the prompt.\n\n"
    "examples:\n"
    "  kvist compare -m model.gguf -f report.txt -p \"Who signed it?\" --kv minikv --kv kvcompress\n"
    "  kvist compare -m model.gguf -f report.txt --questions facts.tsv --kv minikv,share=0.14 --kv full,format=q2s\n"
    "  kvist compare -m model.gguf -f book.txt --prompt-tokens 7500 --raw -n 64 --kv kvcompress,share=0.14 --json\n",
    0,
    compare};
