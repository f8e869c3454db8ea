/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task runs on a small generated model against a conversation written out here: its text spelled by hand, one session a
 * policy, one token at a time. Then the file: interrupted anywhere, resumed, foreign, damaged; and summaries of made-up
 * scores. The samples are the test's own: it stands in for the task registry.
 */
#include <math.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvist/kvist.h"
#include "measure/taskrun_parts.h"
#include "support/genmodel.h"
#include "support/support.h"

enum { N_CTX = 2048, MAX_SAMPLES = 16, MAX_TEXT = 1200 };

struct kv_task_set {
    kv_sample *samples;
    size_t n;
};
size_t kv_task_count(const kv_task_set *set) { return set->n; }
const kv_sample *kv_task_at(const kv_task_set *set, size_t i) { return &set->samples[i]; }
/* Depends on every byte of the answer and on the turn. */
double kv_metric_score(const kv_sample *s, uint32_t turn, const char *answer) {
    uint32_t sum = turn + (uint32_t)strlen(s->id);
    for (; *answer; answer++) sum = sum * 31 + (unsigned char)*answer;
    return (sum % 997) / 996.0;
}

static char model_path[64];
static kvist_model *model;
static kvist_engine *engine;
static kvist_error err;
static kv_sample samples[MAX_SAMPLES];
static kv_turn turns[MAX_SAMPLES][3];
static char contexts[MAX_SAMPLES][MAX_TEXT];
static kv_task_set set = {samples, 0};
static const char *const policies[] = {"full", "full,format=q2s", "minikv,keep=0.4", "snapkv,tokens=64,recent=16"};
enum { N_POLICIES = sizeof policies / sizeof *policies };

static void make_text(char *out, size_t n, uint64_t seed) {
    static const char *const words[] = {"the ",   "red ", "kite ", "over ",    "a ",
                                        "hill, ", "so ",  "it ",   "falls.\n", "1887 "};
    size_t at = 0;
    while (at + 12 < n) at += (size_t)sprintf(out + at, "%s", words[test_rand(&seed) % 10]);
}

/* Chat and plain, one turn and three, first lines, references to read, no context, a long answer that may loop. */
static void make_set(void) {
    static const char *const references[] = {"and so the red kite falls over a hill, in 1887", "x"}, *const answers[] =
                                                                                                         {"unused"};
    static const char *const ids[] = {"chat", "plain", "line",  "three", "plain-3", "nll",  "nll-2",
                                      "none", "long",  "line2", "line3", "line4",   "empty"};
    set.n = sizeof ids / sizeof *ids;
    for (size_t i = 0; i < set.n; i++) {
        kv_sample *s = &samples[i];
        make_text(contexts[i], 300 + 60 * i, i + 1);
        *s = (kv_sample){.id = ids[i],
                         .stratum = i % 3 ? "b" : "a",
                         .context = contexts[i],
                         .turns = turns[i],
                         .n_turns = strchr(ids[i], '3') || !strcmp(ids[i], "three") ? 3 : 1,
                         .metric = strncmp(ids[i], "nll", 3) ? KV_METRIC_F1 : KV_METRIC_NLL,
                         .max_new = 24,
                         .chat = i % 2 == 0,
                         .first_line = !strncmp(ids[i], "line", 4),
                         .depth = NAN};
        for (uint32_t t = 0; t < 3; t++)
            turns[i][t] = (kv_turn){.question = t ? "And then?" : "Who fell?",
                                    .lead = i % 4 < 2 ? "It was" : "",
                                    .answers = s->metric == KV_METRIC_NLL ? references : answers,
                                    .n_answers = 1};
    }
    samples[6].turns[0].answers = references + 1; /* one token */
    samples[7].context = "";
    samples[8].max_new = 400;
    samples[12].max_new = 0;
}

static int setup(void **state) {
    (void)state;
    gen_spec spec = gen_spec_default();
    make_set();
    kvist_engine_params p = {.n_ctx = N_CTX, .threads = 1, .max_sessions = 16, .kv_bytes = 256u << 20};
    if (gen_temp_path(model_path, sizeof model_path) || gen_model(&spec, model_path) ||
        kvist_model_open(model_path, NULL, &model, &err) || kvist_engine_create(model, &p, &engine, &err))
        return -1;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return unlink(model_path);
}

/* ---------------------------------------------------------------- the conversation written out */

typedef struct talk {
    int32_t ids[N_CTX];
    size_t n;
} talk;

static void append(talk *k, const char *text, bool special, bool parse) {
    size_t n;
    unsigned flags = (special ? KVIST_TOK_SPECIAL : 0u) | (parse ? KVIST_TOK_PARSE : 0u);
    assert_int_equal(kvist_tokenize(model, text, strlen(text), flags, k->ids + k->n, N_CTX - k->n, &n, &err), 0);
    k->n += n;
}

static void append_question(talk *k, const kv_sample *s, uint32_t t) {
    char text[256];
    snprintf(text, sizeof text, "%s%s%s%s",
             !t        ? ""
             : s->chat ? "<|im_end|>\n<|im_start|>user\n"
                       : "\n\n",
             s->turns[t].question, s->chat ? "<|im_end|>\n<|im_start|>assistant\n" : "", s->turns[t].lead);
    append(k, text, false, s->chat);
}

static const char *bytes_of(int32_t id, size_t *n) {
    const char *b = kvist_token_bytes(model, id, false, n);
    if (!b) *n = 0;
    return b ? b : "";
}

typedef struct naive_row {
    char text[8192]; /* raw bytes of the answer */
    uint32_t tokens, n_prompt;
    bool ended;
    double score;
    kvist_report report;
} naive_row;

/* Greedy, one by one; the stop rules by looking at the whole text after each token. What was said joins the talk. */
static void naive_answer(kvist_session *s, const kv_sample *q, talk *k, naive_row *r) {
    size_t len = 0, from = 0;
    while (r->tokens < q->max_new) {
        int32_t id;
        size_t n;
        assert_int_equal(kvist_session_sample(s, NULL, &id, &err), 0);
        if (kvist_token_is_end(model, id)) {
            r->ended = true;
            break;
        }
        const char *b = bytes_of(id, &n);
        memcpy(r->text + len, b, n);
        len += n;
        r->text[len] = 0;
        r->tokens++;
        k->ids[k->n++] = id;
        if (q->first_line) {
            from = strspn(r->text, " \t\r\n");
            char *end = strchr(r->text + from, '\n');
            if (end && r->text[from]) {
                r->ended = true;
                /* a token of nothing but the line's end is no part of what was said */
                if (strspn(b, " \t\r\n") >= n) k->n--;
                *end = 0;
                break;
            }
        }
        if (r->tokens < q->max_new) assert_int_equal(kvist_session_decode(s, id, &err), 0);
    }
    if (!q->first_line) return;
    from = strspn(r->text, " \t\r\n"); /* blank lines before it go, blanks before its first word stay */
    while (from && r->text[from - 1] != '\n') from--;
    memmove(r->text, r->text + from, strlen(r->text + from) + 1);
}

static double log_z(const float *x) {
    kvist_model_info info;
    kvist_model_get_info(model, &info);
    long double z = 0;
    for (uint32_t i = 0; i < info.n_vocab; i++) z += expl((long double)x[i]);
    return (double)logl(z);
}

typedef struct loss {
    const talk *k;
    double sum;
} loss;
static void add_loss(void *user, size_t position, const float *logits) {
    loss *l = user;
    if (position + 1 < l->k->n) l->sum += log_z(logits) - (double)logits[l->k->ids[position + 1]];
}

static void naive_reference(kvist_session *s, const kv_sample *q, uint32_t t, talk *k, naive_row *r) {
    size_t before = k->n;
    const float *first = kvist_session_logits(s);
    append(k, q->turns[t].answers[0], false, false);
    loss l = {k, log_z(first) - (double)first[k->ids[before]]};
    assert_int_equal(kvist_session_sync_rows(s, k->ids, k->n, before, add_loss, &l, &err), 0);
    r->tokens = (uint32_t)(k->n - before);
    r->score = l.sum / r->tokens;
    r->ended = true;
}

static naive_row naive[3];

static void naive_sample(const kv_sample *q, const char *policy, bool agnostic) {
    static talk k;
    kvist_session *s;
    char opening[MAX_TEXT + 64];
    k.n = 0;
    memset(naive, 0, sizeof naive);
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    snprintf(opening, sizeof opening, "%s%s", q->chat ? "<|im_start|>user\n" : "", q->context);
    append(&k, opening, true, q->chat);
    for (uint32_t t = 0; t < q->n_turns; t++) {
        naive_row *r = &naive[t];
        bool apart = agnostic && t == 0 && k.n > 0;
        if (apart) {
            assert_int_equal(kvist_session_sync(s, k.ids, k.n, &err), 0);
            kvist_session_report(s, &r->report);
        }
        append_question(&k, q, t);
        assert_int_equal(kvist_session_sync(s, k.ids, k.n, &err), 0);
        if (!apart) kvist_session_report(s, &r->report);
        r->n_prompt = (uint32_t)k.n;
        if (q->metric == KV_METRIC_NLL)
            naive_reference(s, q, t, &k, r);
        else
            naive_answer(s, q, &k, r);
    }
    kvist_session_close(&s);
}

static kv_task_results *run(const char *const *pol, uint32_t n, bool agnostic, const char *path) {
    kv_taskrun_params p = {.set = &set,
                           .policies = pol,
                           .n_policies = n,
                           .n_ctx = N_CTX,
                           .agnostic = agnostic,
                           .out_path = path,
                           .run_id = "model=made up\nlimit=7"};
    kv_task_results *r;
    if (kv_taskrun(model, engine, &p, &r, &err)) fail_msg("%s", err.message);
    return r;
}

static void same_rows(const kv_task_row *a, const kv_task_row *b) {
    assert_string_equal(a->id, b->id);
    assert_string_equal(a->stratum, b->stratum);
    assert_string_equal(a->text, b->text);
    assert_true(a->score == b->score && a->share == b->share && a->mass_min == b->mass_min);
    assert_true(a->bytes_true == b->bytes_true && a->tokens == b->tokens && a->n_prompt == b->n_prompt);
    assert_true(a->ended == b->ended && a->looped == b->looped && a->share_met == b->share_met && a->turn == b->turn);
}

static void against_naive(void **state) {
    (void)state;
    uint32_t looped = 0, lines = 0, differ = 0;
    for (int agnostic = 0; agnostic < 2; agnostic++) {
        kv_task_results *r = run(policies, N_POLICIES, agnostic, NULL);
        size_t at = 0;
        for (size_t i = 0; i < set.n; i++)
            for (uint32_t p = 0; p < N_POLICIES; p++) {
                const kv_sample *q = &samples[i];
                naive_sample(q, policies[p], agnostic);
                for (uint32_t t = 0; t < q->n_turns; t++, at++) {
                    const kv_task_row *row = kv_task_results_at(r, at);
                    const naive_row *w = &naive[t];
                    bool nll = q->metric == KV_METRIC_NLL;
                    assert_true(row->policy == p && row->turn == t);
                    assert_string_equal(row->id, q->id);
                    assert_int_equal(row->n_prompt, w->n_prompt);
                    assert_int_equal(row->tokens, w->tokens);
                    assert_int_equal(row->ended, w->ended);
                    assert_int_equal(row->bytes_true, w->report.bytes_true);
                    assert_float_equal(row->share, w->report.share, 1e-9);
                    assert_float_equal(row->mass_min, w->report.mass_min, 1e-9);
                    if (nll) {
                        assert_float_equal(row->score, w->score, 1e-7 * w->score);
                        assert_string_equal(row->text, "");
                        continue;
                    }
                    char clean[3 * 8192 + 1]; /* bytes that are no character: U+FFFD each */
                    size_t n = 0, len = strlen(w->text);
                    for (size_t b = 0; b < len; b++)
                        if ((unsigned char)w->text[b] < 128)
                            clean[n++] = w->text[b];
                        else
                            n += (size_t)sprintf(clean + n, "\xef\xbf\xbd");
                    clean[n] = 0;
                    bool ascii = n == len;
                    if (ascii) assert_string_equal(row->text, w->text);
                    assert_float_equal(row->score, kv_metric_score(q, t, row->text), 1e-9);
                    lines += q->first_line && row->ended;
                    looped += row->looped;
                    if (p) differ += strcmp(row->text, kv_task_results_at(r, at - p * q->n_turns)->text) != 0;
                }
            }
        assert_int_equal(at, kv_task_results_count(r));
        assert_null(kv_task_results_at(r, at));
        kv_task_results_free(&r);
        assert_null(r);
    }
    assert_true(differ > 0);
    print_message("%u answers looped, %u first lines, %u differ from full\n", looped, lines, differ);
}

/* What is read does not depend on when the context is compressed: with the full cache nothing shows it. */
static void both_orders(void **state) {
    (void)state;
    kv_task_results *a = run(policies, N_POLICIES, false, NULL), *b = run(policies, N_POLICIES, true, NULL);
    assert_int_equal(kv_task_results_count(a), kv_task_results_count(b));
    uint32_t shares = 0;
    for (size_t i = 0; i < kv_task_results_count(a); i++) {
        const kv_task_row *x = kv_task_results_at(a, i), *y = kv_task_results_at(b, i);
        if (x->turn == 0) assert_int_equal(x->n_prompt, y->n_prompt);
        if (x->policy) {
            shares += x->bytes_true != y->bytes_true;
            continue;
        }
        assert_string_equal(x->text, y->text);
        assert_true(x->score == y->score);
    }
    assert_true(shares > 0); /* and a compressed one does */
    kv_task_results_free(&a);
    kv_task_results_free(&b);
}

static void alone(void **state) {
    (void)state;
    kv_task_results *all = run(policies, N_POLICIES, false, NULL);
    for (uint32_t p = 0; p < N_POLICIES; p++) {
        kv_task_results *one = run(policies + p, 1, false, NULL);
        size_t at = 0;
        for (size_t i = 0; i < kv_task_results_count(all); i++) {
            const kv_task_row *row = kv_task_results_at(all, i);
            if (row->policy == p) same_rows(row, kv_task_results_at(one, at++));
        }
        assert_int_equal(at, kv_task_results_count(one));
        kv_task_results_free(&one);
    }
    kv_task_results_free(&all);
}

/* ---------------------------------------------------------------- stops, by hand */

static int32_t byte_token(const char *text) {
    int32_t id;
    size_t n;
    assert_int_equal(kvist_tokenize(model, text, strlen(text), 0, &id, 1, &n, &err), 0);
    assert_int_equal(n, 1);
    return id;
}

static void answer_text(void **state) {
    (void)state;
    static const struct {
        const char *tokens[8], *line, *whole;
    } cases[] = {{{"a", "b", "\n", "c"}, "ab", "ab\nc"},
                 {{"\n", " ", "\n", " ", "a"}, " a", "\n \n a"},
                 {{"\n", "\n"}, "", "\n\n"},
                 {{"a"}, "a", "a"},
                 {{0}, "", ""},
                 {{"a", "\xc3"}, "a\xef\xbf\xbd", "a\xef\xbf\xbd"},
                 {{"\xc3", "\xa4", "\n"}, "\xc3\xa4", "\xc3\xa4\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[8];
        kv_task_answer a = {.ids = ids};
        for (; cases[i].tokens[a.n]; a.n++) {
            const char *b = cases[i].tokens[a.n];
            if ((unsigned char)*b < 128) {
                ids[a.n] = byte_token(b);
                continue;
            }
            for (int32_t id = 0; id < 256; id++) { /* half a character is no text: found by its byte */
                size_t n;
                const char *have = bytes_of(id, &n);
                if (n == 1 && *have == *b) ids[a.n] = id;
            }
        }
        char *line = kv_task_answer_text(model, &a, true), *whole = kv_task_answer_text(model, &a, false);
        assert_string_equal(line, cases[i].line);
        assert_string_equal(whole, cases[i].whole);
        kv_free(line);
        kv_free(whole);
    }
}

/* A loop is 128 tokens that repeat with a period of at most 32; what follows is written without being decoded. */
static void loops(void **state) {
    (void)state;
    enum { MAX_NEW = 300 };
    static const struct {
        uint32_t prefix, period, broken; /* broken: a token of the loop that is another one; 0: none */
        uint32_t stops;                  /* tokens taken; MAX_NEW: no loop is seen */
    } cases[] = {{0, 1, 0, 128},   {0, 5, 0, 128},       {17, 32, 0, 145},     {17, 33, 0, MAX_NEW},
                 {3, 7, 100, 232}, {200, 2, 0, MAX_NEW}, {172, 3, 0, MAX_NEW}, {171, 3, 0, 299}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int on = 0; on < 2; on++) {
            int32_t ids[MAX_NEW], want[MAX_NEW];
            kv_task_decode d = {.model = model, .max_new = MAX_NEW, .loops = on};
            kv_task_answer a = {.ids = ids, .blank = true};
            uint32_t taken = 0;
            for (uint32_t i = 0; i < MAX_NEW; i++) { /* a prefix of ever other tokens, then the loop of small ones */
                uint32_t at = i - cases[c].prefix;
                want[i] = i < cases[c].prefix ? (int32_t)(40 + i) : (int32_t)(1 + at % cases[c].period);
                if (cases[c].broken && at == cases[c].broken) want[i] = 39;
            }
            while (!a.done) kv_task_take(&d, &a, want[taken++]);
            assert_int_equal(taken, on ? cases[c].stops : MAX_NEW);
            assert_int_equal(a.looped, on && cases[c].stops < MAX_NEW);
            assert_true(a.n == MAX_NEW && a.keep == MAX_NEW && !a.ended);
            assert_memory_equal(ids, want, sizeof want); /* as if it had been decoded */
        }
}

/* ---------------------------------------------------------------- the file */

static char *slurp(const char *path, size_t *n) {
    char *s = test_read(path, n);
    assert_non_null(s);
    return s;
}

static void write_bytes(const char *path, const char *s, size_t n) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(s, 1, n, f), n);
    fclose(f);
}

static void same_results(const kv_task_results *a, const kv_task_results *b) {
    assert_int_equal(kv_task_results_count(a), kv_task_results_count(b));
    for (size_t i = 0; i < kv_task_results_count(a); i++) same_rows(kv_task_results_at(a, i), kv_task_results_at(b, i));
}

static bool countdown(void *user, const char *what, uint64_t done, uint64_t total) {
    assert_non_null(what);
    assert_true(done <= total);
    return --*(int *)user > 0;
}

static void resumed(void **state) {
    (void)state;
    char path[64];
    size_t len, n;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    size_t all = set.n;
    set.n = 6;
    kv_task_results *whole = run(policies, 2, false, path), *r;
    char *want = slurp(path, &len);
    uint32_t lines = 0;
    for (size_t i = 0; i < len; i++) lines += want[i] == '\n';
    assert_int_equal(lines, 1 + kv_task_results_count(whole));
    r = run(policies, 2, false, path); /* nothing left to do */
    same_results(whole, r);
    kv_task_results_free(&r);
    uint64_t rng = 5;
    for (int k = 0; k < 24; k++) { /* killed while writing, anywhere */
        n = k == 0 ? 0 : k == 1 ? 10 : k == 2 ? len - 1 : test_rand(&rng) % len;
        write_bytes(path, want, n);
        r = run(policies, 2, false, path);
        same_results(whole, r);
        kv_task_results_free(&r);
        size_t got_len;
        char *got = slurp(path, &got_len);
        assert_int_equal(got_len, len);
        assert_memory_equal(got, want, len);
        free(got);
    }
    write_bytes(path, want, len); /* zeros where the last line was to come */
    FILE *f = fopen(path, "a");
    fwrite("\0\0\0\n", 1, 4, f);
    fclose(f);
    r = run(policies, 2, false, path);
    same_results(whole, r);
    kv_task_results_free(&r);
    for (int after = 1; after < 200; after += 13) { /* stopped by its user, again and again */
        int left = after, turns_left = 400;
        kv_taskrun_params p = {.set = &set,
                               .policies = policies,
                               .n_policies = 2,
                               .n_ctx = N_CTX,
                               .out_path = path,
                               .run_id = "model=made up\nlimit=7",
                               .watch = {countdown, &left}};
        unlink(path);
        int st;
        while ((st = kv_taskrun(model, engine, &p, &r, &err)) == KVIST_E_CANCELLED && --turns_left) {
            assert_true(!r || kv_task_results_count(r) < kv_task_results_count(whole));
            kv_task_results_free(&r);
            after += 40;
            left = after;
        }
        if (st) fail_msg("%s", err.message);
        same_results(whole, r);
        kv_task_results_free(&r);
        char *got = slurp(path, &n);
        assert_int_equal(n, len);
        assert_memory_equal(got, want, len);
        free(got);
    }
    kv_task_results_free(&whole);
    free(want);
    unlink(path);
    set.n = all;
}

static void refuses(const char *path, const kv_taskrun_params *p, int status, const char *part) {
    kv_task_results *r = (void *)1;
    size_t before, after;
    char *a = slurp(path, &before);
    assert_int_equal(kv_taskrun(model, engine, p, &r, &err), status);
    assert_null(r);
    if (!strstr(err.message, part)) fail_msg("'%s' is not in '%s'", part, err.message);
    char *b = slurp(path, &after);
    assert_int_equal(before, after); /* left as it is */
    assert_memory_equal(a, b, before);
    free(a);
    free(b);
}

static void refused_files(void **state) {
    (void)state;
    char path[64];
    size_t len, all = set.n;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    set.n = 2;
    kv_task_results *r = run(policies, 2, false, path);
    kv_task_results_free(&r);
    char *good = slurp(path, &len);
    const kv_taskrun_params same = {.set = &set,
                                    .policies = policies,
                                    .n_policies = 2,
                                    .n_ctx = N_CTX,
                                    .out_path = path,
                                    .run_id = "model=made up\nlimit=7"};
    kv_taskrun_params p = same;
    p.run_id = "model=made up\nlimit=8";
    refuses(path, &p, KVIST_E_ARG, "'limit=7' where this one says 'limit=8'");
    p.run_id = "model=made up\nlimit=7\nmore=1";
    refuses(path, &p, KVIST_E_ARG, "'more=1'");
    p = same;
    p.agnostic = true;
    refuses(path, &p, KVIST_E_ARG, "before the question");
    p = same;
    p.policies = policies + 1;
    refuses(path, &p, KVIST_E_ARG, "'kv=full' where this one says 'kv=full,format=q2s'");
    p = same;
    p.n_policies = 3;
    refuses(path, &p, KVIST_E_ARG, "'nothing' where this one says 'kv=minikv,keep=0.4");
    const char *second = strchr(good, '\n') + 1, *third = strchr(second, '\n') + 1;
    static const struct {
        const char *from, *to, *why;
    } damage[] = {{"\"score\":", "\"scroe\":", "'score' is no number"},
                  {"\"turn\":1", "\"turn\":0", "turns count from 1"},
                  {"\"turn\":1", "\"turn\":2", "'turn' is no count"},
                  {"\"ended\":", "\"ende\":", "'ended' is neither"},
                  {"\"id\":\"chat", "\"id\":\"xhat", "no sample 'xhat'"},
                  {"\"text\":", "\"txet\":", "no 'text'"},
                  {"\"policy\":\"full\"", "\"policy\":\"half\"", "no policy 'half'"},
                  {"{\"id\"", "?\"id\"", "no JSON object"},
                  {"\"tokens\":", "\"tokens\":-", "'tokens' is no count"}};
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        char *bad = malloc(len + 64);
        const char *at = strstr(second, damage[i].from);
        assert_non_null(at);
        size_t head = (size_t)(at - good);
        memcpy(bad, good, head);
        sprintf(bad + head, "%s%s", damage[i].to, at + strlen(damage[i].from));
        write_bytes(path, bad, strlen(bad));
        refuses(path, &same, KVIST_E_FORMAT, damage[i].why);
        if (strcmp(damage[i].why, "no 'text'")) assert_non_null(strstr(err.message, ":2:"));
        free(bad);
    }
    char *twice = malloc(2 * len + 1); /* a row again, and a sample that another interrupts */
    sprintf(twice, "%s%.*s", good, (int)(third - second), second);
    write_bytes(path, twice, strlen(twice));
    refuses(path, &same, KVIST_E_FORMAT, "stands in it already");
    const char *other = strstr(good, "{\"id\":\"plain");
    sprintf(twice, "%.*s%.*s%s", (int)(third - good), good, (int)(strchr(other, '\n') + 1 - other), other, third);
    write_bytes(path, twice, strlen(twice));
    refuses(path, &same, KVIST_E_FORMAT, "not complete");
    static const char *const foreign[] = {"my notes\nand more\n", "my notes", "{\"run\":1}\n", "{}\n", "\n"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        write_bytes(path, foreign[i], strlen(foreign[i]));
        refuses(path, &same, KVIST_E_FORMAT, "left as it is");
    }
    free(twice);
    free(good);
    unlink(path);
    p = same;
    p.out_path = "/nonexistent/rows.jsonl";
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_IO);
    set.n = all;
}

static void refused_runs(void **state) {
    (void)state;
    kv_task_results *r;
    kv_taskrun_params p = {.set = &set, .policies = policies, .n_policies = N_POLICIES, .n_ctx = 300};
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_CONTEXT);
    assert_non_null(strstr(err.message, "sample 'chat'"));
    assert_null(r);
    static const char *const twice[] = {"full", "snapkv", "full,format=f16"}, *const bad[] = {"full", "fulll"};
    p = (kv_taskrun_params){.set = &set, .policies = twice, .n_policies = 3};
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_ARG);
    assert_non_null(strstr(err.message, "'full' stands in the list twice"));
    p.policies = bad;
    p.n_policies = 2;
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_POLICY);
    p.n_policies = 0;
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_ARG);
    kv_task_set none = {samples, 0};
    p = (kv_taskrun_params){.set = &none, .policies = policies, .n_policies = 1};
    assert_int_equal(kv_taskrun(model, engine, &p, &r, &err), KVIST_E_ARG);
    size_t all = set.n;
    set.n = 5;
    p = (kv_taskrun_params){.set = &set, .policies = policies, .n_policies = 2};
    uint32_t failed = 0;
    for (uint64_t n = 1; n < 4000; n += n < 80 ? 1 : 97) { /* no memory, wherever: an error or nothing, and no leak */
        kv_alloc_test_fail_at(n);
        int st = kv_taskrun(model, engine, &p, &r, &err);
        kv_alloc_test_fail_at(0);
        failed += st != 0;
        if (st) assert_null(r);
        kv_task_results_free(&r);
    }
    assert_true(failed > 60);
    set.n = all;
}

/* The memory that is asked for holds all sessions at the longest context, and is not several times what they need. */
static void memory(void **state) {
    (void)state;
    static const char *const many[] = {
        "full",      "full,format=q8", "full,format=q2s",  "minikv", "kvcompress,share=0.2", "snapkv", "h2o",
        "streaming", "kivi",           "full,format=q4/q2"};
    enum { N = sizeof many / sizeof *many, CTX = 3072 };
    char path[64];
    kvist_model *m;
    kvist_model_info info;
    gen_spec spec = gen_spec_default();
    spec.n_layers = 6;
    spec.n_kv = 4;
    spec.head_dim = 32;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    assert_int_equal(gen_model(&spec, path), 0);
    if (kvist_model_open(path, NULL, &m, &err)) fail_msg("%s", err.message);
    unlink(path);
    kvist_model_get_info(m, &info);
    static char context[6 * CTX];
    static int32_t ids[6 * CTX];
    kv_turn turn = {.question = "?", .lead = ""};
    kv_sample s = {
        .id = "full", .stratum = "a", .turns = &turn, .n_turns = 1, .max_new = 8, .context = context, .depth = NAN};
    make_text(context, sizeof context, 1);
    for (size_t n, len = strlen(context);; len -= 8) { /* as long as fits */
        context[len] = 0;
        assert_int_equal(kvist_tokenize(m, context, len, 0, ids, 6 * CTX, &n, &err), 0);
        if (n + 10 <= CTX) break;
    }
    kv_task_set one = {&s, 1};
    kv_taskrun_params p = {.set = &one, .policies = many, .n_policies = N, .n_ctx = CTX};
    uint64_t bytes;
    assert_int_equal(kv_taskrun_kv_bytes(&info, many, N, CTX, &bytes, &err), 0);
    for (int part = 1; part <= 3; part += 2) {
        kvist_engine *e;
        kv_task_results *r;
        kvist_engine_params ep = {.n_ctx = CTX, .threads = 2, .max_sessions = N, .kv_bytes = bytes / (uint64_t)part};
        assert_int_equal(kvist_engine_create(m, &ep, &e, &err), 0);
        int st = kv_taskrun(m, e, &p, &r, &err);
        if (part == 1) {
            if (st) fail_msg("%s", err.message);
            assert_true(kv_task_results_at(r, 0)->n_prompt > CTX - 24);
        } else {
            assert_int_equal(st, KVIST_E_BUDGET);
            assert_non_null(strstr(err.message, "sample 'full'"));
        }
        kv_task_results_free(&r);
        kvist_engine_close(&e);
    }
    kvist_model_close(&m);
    assert_int_equal(kv_taskrun_kv_bytes(&info, (const char *const[]){"nonsense"}, 1, CTX, &bytes, &err),
                     KVIST_E_POLICY);
}

/* ---------------------------------------------------------------- summaries */

static void summaries(void **state) {
    (void)state;
    kv_task_results *r;
    static kv_sample made[6];
    static kv_turn two[2];
    static char ids[6][8];
    kv_task_set few = {made, 6};
    for (int i = 0; i < 6; i++) {
        sprintf(ids[i], "s%d", i);
        made[i] = (kv_sample){.id = ids[i], .stratum = i < 4 ? "a" : "b", .turns = two, .n_turns = i < 4 ? 1 : 2};
    }
    static const double score[2][6][2] = {{{1}, {0.5}, {1}, {0.5}, {1, 0}, {0.5, 0.5}},
                                          {{0.5}, {0.5}, {1}, {0}, {1, 0.5}, {0, 0.5}}};
    assert_int_equal(kv_task_results_create(&few, 2, &r, &err), 0);
    for (size_t i = 0; i < 6; i++)
        for (uint32_t p = 0; p < 2; p++)
            for (uint32_t t = 0; t < made[i].n_turns; t++) {
                kv_task_row *row = kv_task_results_row(r, i, p, t);
                row->score = score[p][i][t];
                row->share = p ? 0.25 : 1;
                row->mass_min = p ? 0.9 - 0.1 * (double)i : 1;
                row->tokens = 10 + p;
                row->share_met = p == 0 || i != 2;
                row->looped = p == 1 && i == 3;
            }
    kv_task_summary s;
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_true(s.n == 0 && isnan(s.mean) && isnan(s.ratio) && isnan(s.share)); /* no sample is complete */
    memset(r->done, 1, 6);
    kv_task_results_complete(r);
    assert_int_equal(kv_task_results_count(r), 16);
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_int_equal(s.n, 6);
    assert_float_equal(s.mean, (0.5 + 0.5 + 1 + 0 + 0.75 + 0.25) / 6, 1e-12);
    assert_float_equal(s.macro, (2.0 / 4 + 1.0 / 2) / 2, 1e-12);
    assert_float_equal(s.ratio, 3.0 / 4, 1e-12); /* base: 1 + .5 + 1 + .5 + .5 + .5 */
    assert_true(s.ratio_low < 0.75 && s.ratio_high > 0.75 && s.mean_low < 0.5 && s.mean_high > 0.5);
    assert_float_equal(s.share, 0.25, 1e-12);
    assert_float_equal(s.mass_min, 0.4, 1e-12);
    assert_float_equal(s.tokens, 11, 1e-12);
    assert_true(s.looped == 1 && s.share_unmet == 1);
    kv_task_summarize(r, 1, 0, "b", 1, 1, &s);
    assert_int_equal(s.n, 2);
    assert_float_equal(s.mean, 0.5, 1e-12);
    assert_float_equal(s.ratio, 2, 1e-12);
    kv_task_summarize(r, 1, 0, NULL, 1, 1, &s);
    assert_int_equal(s.n, 2); /* only two samples have a second turn */
    kv_task_summarize(r, 0, 0, "a", 0, 1, &s);
    assert_true(s.n == 4 && s.ratio == 1 && s.ratio_low == 1 && s.ratio_high == 1);
    kv_task_summarize(r, 1, 0, "c", 0, 1, &s);
    assert_true(s.n == 0 && isnan(s.mean));
    kv_task_summarize(r, 2, 0, NULL, 0, 1, &s);
    assert_true(s.n == 0);
    for (int i = 0; i < 6; i++) made[i].metric = KV_METRIC_NLL;
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_float_equal(s.ratio, exp(4.0 / 6 - 3.0 / 6), 1e-12); /* less loss than the base: above 1 */
    assert_true(s.ratio_low < s.ratio && s.ratio < s.ratio_high);
    kv_alloc_test_fail_at(2);
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    kv_alloc_test_fail_at(0);
    assert_true(s.n == 0 && isnan(s.mean));
    r->done[0] = false; /* an incomplete sample counts nowhere */
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_int_equal(s.n, 5);
    kv_task_results_free(&r);
    assert_true(isnan(kv_task_rounded(INFINITY)) && kv_task_rounded(1.0 / 3) == 0.333333333);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_naive), cmocka_unit_test(both_orders),
                                       cmocka_unit_test(alone),         cmocka_unit_test(answer_text),
                                       cmocka_unit_test(loops),         cmocka_unit_test(resumed),
                                       cmocka_unit_test(refused_files), cmocka_unit_test(refused_runs),
                                       cmocka_unit_test(memory),        cmocka_unit_test(summaries)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
