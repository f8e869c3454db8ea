/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task runs on a small generated model against a conversation written out here: its text spelled by hand, one session a
 * policy, one token at a time.
 */
#include "measure/taskrun_fixture.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_naive), cmocka_unit_test(both_orders),
                                       cmocka_unit_test(alone),         cmocka_unit_test(answer_text),
                                       cmocka_unit_test(loops),         cmocka_unit_test(memory)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
