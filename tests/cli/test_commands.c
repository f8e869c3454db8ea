/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands end to end on a small generated model. What they print is compared with the same work done here through
 * the public interface, or with a second, different way through the program.
 */
#include "json_rows.h"
#include "spawn.h"

#include <math.h>

#include "kvist/kvist.h"

static kvist_model *model;
static kvist_engine *engine;
enum { CTX = 1024 };

static int setup(void **state) {
    kvist_error err;
    if (spawn_setup(state)) return -1;
    kvist_engine_params p = {.n_ctx = CTX, .threads = 1};
    if (kvist_model_open(model_path, NULL, &model, &err) || kvist_engine_create(model, &p, &engine, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return -1;
    }
    return 0;
}

static int teardown(void **state) {
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return spawn_teardown(state);
}

/* A text of words, long enough to have pages sealed. */
static char *long_text(size_t n) {
    char *s = malloc(n + 1);
    uint64_t rng = 5;
    for (size_t i = 0; i < n; i++) s[i] = test_rand(&rng) % 6 == 0 ? ' ' : (char)('a' + test_rand(&rng) % 26);
    s[n] = 0;
    return s;
}

static void write_file(const char *name, const char *text, char *path, size_t cap) {
    in_work_dir(path, cap, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static const char *str(json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    if (!s) fail_msg("key '%s' is no text", key);
    return s;
}

/* Bytes of a greedy answer, by the library's own loop. */
static char *greedy(const char *policy, const char *prompt, uint32_t n, kvist_report *report) {
    int32_t ids[4096], id;
    size_t n_ids, at = 0, len;
    kvist_error err;
    kvist_session *s;
    char *out = calloc(1, 4096);
    assert_int_equal(
        kvist_tokenize(model, prompt, strlen(prompt), KVIST_TOK_SPECIAL | KVIST_TOK_PARSE, ids, 4096, &n_ids, &err), 0);
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    assert_int_equal(kvist_session_sync(s, ids, n_ids, &err), 0);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(kvist_session_sample(s, NULL, &id, &err), 0);
        if (kvist_token_is_end(model, id)) break;
        const char *b = kvist_token_bytes(model, id, false, &len);
        memcpy(out + at, b, len);
        at += len;
        if (i + 1 < n) assert_int_equal(kvist_session_decode(s, id, &err), 0);
    }
    if (report) kvist_session_report(s, report);
    kvist_session_close(&s);
    return out;
}

/* The program replaces what is no UTF-8; a random model says such things. Only texts without it are compared byte by
 * byte. */
static bool plain(const char *s) {
    for (; *s; s++)
        if ((unsigned char)*s >= 0x80) return false;
    return true;
}

static void run_is_the_library(void **state) {
    (void)state;
    static const char *const policies[] = {"full", "full,format=q8", "full,format=q2s", "minikv,keep=0.5",
                                           "kvcompress,share=0.5"};
    char *text = long_text(500);
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        kvist_report r;
        char *want = greedy(policies[i], text, 40, &r);
        spawned s = RUN(NULL, "run", "-m", model_path, "--raw", "-p", text, "-n", "40", "--temp", "0", "--kv",
                        policies[i], "--json", "-q");
        assert_int_equal(s.rc, 0);
        assert_string_equal(s.err, "");
        json_t *o = row(s.out, 0);
        if (plain(want)) assert_string_equal(str(o, "text"), want);
        assert_int_equal(num(o, "tokens_seen"), r.tokens_seen);
        assert_int_equal(num(o, "bytes_true"), r.bytes_true);
        assert_float_equal(num(o, "tokens_stored"), r.tokens_stored, 1e-6);
        assert_float_equal(num(o, "share"), r.share, 1e-6);
        assert_string_equal(str(o, "policy"), r.policy);
        static const char *const keys[] = {"bytes_unique", "bytes_f16",   "bytes_peak", "mass_mean",
                                           "mass_min",     "prefill_tps", "decode_tps", "ttft_ms"};
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) num(o, keys[k]);
        assert_true(json_is_boolean(json_object_get(o, "share_met")));
        spawned t = RUN(text, "run", "-m", model_path, "--raw", "-n", "40", "--temp", "0", "--kv", policies[i], "-t",
                        "1"); /* streamed, from stdin */
        assert_int_equal(t.rc, 0);
        assert_int_equal(strncmp(t.out, str(o, "text"), strlen(str(o, "text"))), 0);
        assert_non_null(strstr(t.err, "policy  "));
        json_decref(o);
        spawned_free(&s);
        spawned_free(&t);
        free(want);
    }
    free(text);
}

static void run_limits(void **state) {
    (void)state;
    spawned s = RUN(NULL, "run", "-m", model_path, "--raw", "-p", "hello", "-n", "0", "--json", "-q");
    json_t *o = row(s.out, 0);
    assert_string_equal(str(o, "text"), "");
    assert_string_equal(str(o, "finish"), "length");
    json_decref(o);
    spawned_free(&s);
    s = RUN(NULL, "run", "-m", model_path, "--raw", "-p", "hello", "-n", "500", "-c", "64", "--ignore-eos", "--json",
            "--seed", "3");
    o = row(s.out, 0);
    assert_int_equal(s.rc, 0);
    assert_string_equal(str(o, "finish"), "context");
    assert_int_equal(num(o, "tokens_seen"), 64);
    assert_non_null(strstr(s.err, "generation stops there"));
    spawned t = RUN(NULL, "run", "-m", model_path, "--raw", "-p", "hello", "-n", "500", "-c", "64", "--ignore-eos",
                    "--json", "--seed", "3", "-q");
    json_t *p = row(t.out, 0);
    assert_string_equal(str(o, "text"), str(p, "text")); /* a seed names its answer */
    json_decref(o);
    json_decref(p);
    spawned_free(&s);
    spawned_free(&t);
    s = RUN(NULL, "run", "-m", model_path, "--raw", "-p", "hello", "-n", "4", "-c", "5000", "--temp", "0");
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.err, "warning: -c 5000 is above the 4096"));
    spawned_free(&s);
}

static void tokenize_ids(void **state) {
    (void)state;
    static const char text[] = "the world<|im_end|> caf\xc3\xa9\n";
    int32_t ids[64];
    size_t n;
    kvist_error err;
    char want[512] = "";
    assert_int_equal(kvist_tokenize(model, text, strlen(text), KVIST_TOK_SPECIAL | KVIST_TOK_PARSE, ids, 64, &n, &err),
                     0);
    for (size_t i = 0; i < n; i++)
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s%d", i ? " " : "", ids[i]);
    strcat(want, "\n");
    spawned a = RUN(NULL, "tokenize", "-m", model_path, text), b = RUN(text, "tokenize", "-m", model_path),
            c = RUN(NULL, "tokenize", "-m", model_path, "-p", text, "--count"),
            d = RUN(NULL, "tokenize", "-m", model_path, "-p", text, "--json");
    assert_string_equal(a.out, want);
    assert_string_equal(b.out, want);
    assert_int_equal(atoi(c.out), n);
    json_t *o = row(d.out, 0);
    assert_int_equal(json_array_size(json_object_get(o, "tokens")), n);
    json_decref(o);
    spawned_free(&a);
    spawned_free(&b);
    spawned_free(&c);
    spawned_free(&d);
    a = RUN(NULL, "tokenize", "-m", model_path, "--pieces", "<|im_end|>\n");
    snprintf(want, sizeof want, "%7d  '<|im_end|>'\n", GEN_IM_END);
    assert_int_equal(strncmp(a.out, want, strlen(want)), 0);
    assert_non_null(strstr(a.out, "'\\n'"));
    spawned_free(&a);
    a = RUN(NULL, "tokenize", "-m", model_path, "--no-parse-special", "--count", "<|im_end|>");
    assert_true(atoi(a.out) > 1);
    spawned_free(&a);
}

static void info_of_a_file(void **state) {
    (void)state;
    spawned s = RUN(NULL, "info", model_path, "--tensors", "--metadata");
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.out, "layers      2; width 64, feed-forward 128, vocabulary 320\n"));
    assert_non_null(strstr(s.out, "attention   4 heads, 2 KV heads, head size 16 (K) and 16 (V)\n"));
    assert_non_null(strstr(s.out, "token_embd.weight"));
    assert_non_null(strstr(s.out, "general.architecture"));
    spawned_free(&s);
    s = RUN(NULL, "info", model_path, "--json", "-c", "500", "--kv", "full", "--kv", "minikv");
    json_t *a = row(s.out, 0), *b = row(s.out, 1);
    assert_true(num(b, "bytes_true") < num(a, "bytes_true"));
    assert_int_equal(num(a, "bytes_f16"), 2 * 2 * 500 * 2 * 32);
    json_decref(a);
    json_decref(b);
    spawned_free(&s);
}

static void chat_turns(void **state) {
    (void)state;
    /* The same message after /undo and after /edit gets the same greedy answer; the second turn differs. */
    spawned s = RUN("hello there\n/undo\nhello there\nsomething else\n/edit hello there\n/undo\n/undo\n/undo\n/edit "
                    "hello there\nhello there\n/kv\n/report\n/quit\nnever\n",
                    "chat", "-m", model_path, "--temp", "0", "-n", "12", "--json", "--chat-template", "chatml");
    assert_int_equal(s.rc, 0);
    json_t *r[6];
    size_t n = 0;
    for (const char *p = s.out; *p && n < 6; p = strchr(p, '\n') + 1) r[n++] = row(p, 0);
    assert_int_equal(n, 5);
    assert_string_equal(str(r[0], "text"), str(r[1], "text"));
    assert_int_equal(num(r[0], "tokens_seen"), num(r[1], "tokens_seen"));
    assert_int_equal(num(r[0], "bytes_true"), num(r[1], "bytes_true"));
    assert_true(num(r[2], "tokens_seen") > num(r[1], "tokens_seen"));
    assert_string_equal(str(r[4], "text"), str(r[0], "text")); /* all taken back: the first message again */
    assert_non_null(strstr(s.err, "nothing to take back"));
    assert_non_null(strstr(s.err, "nothing to edit yet"));
    assert_non_null(strstr(s.err, "    1  ████"));
    for (size_t i = 0; i < n; i++) json_decref(r[i]);
    spawned_free(&s);
}

/* Prompt tokens read over three turns = tokens of the conversation less the generated ones: nothing is read twice. */
static void chat_reads_once(void **state) {
    (void)state;
    spawned s = RUN("one two three\nfour five\nsix\n", "chat", "-m", model_path, "--temp", "0", "-n", "9",
                    "--chat-template", "chatml", "--ignore-eos");
    assert_int_equal(s.rc, 0);
    const char *speed = strstr(s.err, "speed   "), *tokens = strstr(s.err, "tokens  ");
    assert_non_null(speed);
    assert_non_null(tokens);
    int prompt = atoi(speed + 8), generated = atoi(strstr(speed, "tok/s, ") + 7), seen = atoi(tokens + 8);
    assert_int_equal(generated, 3 * 8); /* the last token of each answer is not decoded but read with the next turn */
    assert_int_equal(prompt + generated, seen);
    spawned_free(&s);
}

/* compare's own answers are those that run gives alone, though it reached them by teacher forcing and truncating. */
static void compare_answers(void **state) {
    (void)state;
    static const char *const policies[] = {"full", "full,format=q2s", "minikv,keep=0.4", "kvcompress,share=0.4"};
    char *text = long_text(600);
    spawned s = RUN(NULL, "compare", "-m", model_path, "--raw", "-p", text, "-n", "24", "--kv", policies[1], "--kv",
                    policies[2], "--kv", "full,format=f16", "--kv", policies[3], "--json");
    assert_int_equal(s.rc, 0);
    for (size_t i = 0; i < 4; i++) {
        json_t *o = row(s.out, i);
        spawned t = RUN(NULL, "run", "-m", model_path, "--raw", "-p", text, "-n", "24", "--temp", "0", "--kv",
                        policies[i], "--json", "-q");
        json_t *p = row(t.out, 0);
        assert_string_equal(str(o, "kv"), policies[i]);
        assert_string_equal(str(o, "text"), str(p, "text"));
        if (i == 0)
            assert_true(num(o, "kld_mean") == 0 && num(o, "same_top1") == 1);
        else {
            assert_true(num(o, "kld_mean") > 0);
            assert_in_range(num(o, "compared"), 1, 24);
            assert_true(num(o, "kld_p99") >= num(o, "kld_mean") / 2);
        }
        assert_true(num(o, "decode_tps") > 0 && num(o, "prefill_tps") > 0);
        json_decref(o);
        json_decref(p);
        spawned_free(&t);
    }
    assert_null(strchr(strchr(strchr(strchr(strchr(s.out, '\n') + 1, '\n') + 1, '\n') + 1, '\n') + 1,
                       '\n')); /* f16 is full: no row of its own */
    spawned_free(&s);
    free(text);
}

/* Two questions about one text: each answer is what a run on text and question alone gives; facts are counted. */
static void compare_questions(void **state) {
    (void)state;
    char facts[96], whole[800], *text = long_text(300);
    kvist_report r;
    snprintf(whole, sizeof whole, "%s\n\nfirst question", text);
    char *answer = greedy("full", whole, 12, &r), line[64];
    if (!plain(answer) || strpbrk(answer, "\t\n\r|") || strlen(answer) < 4)
        snprintf(line, sizeof line, "first question\tno such thing");
    else
        snprintf(line, sizeof line, "first question\tnothing|%.4s", answer);
    write_file("facts.tsv", "# two\n", facts, sizeof facts);
    FILE *f = fopen(facts, "a");
    fprintf(f, "%s\nsecond\tno such thing\n", line);
    fclose(f);
    spawned s = RUN(NULL, "compare", "-m", model_path, "--raw", "-p", text, "--questions", facts, "-n", "12", "--kv",
                    "full,format=q4", "--json");
    assert_int_equal(s.rc, 0);
    for (size_t i = 0; i < 2; i++) {
        json_t *o = row(s.out, i);
        assert_int_equal(json_array_size(json_object_get(o, "answers")), 2);
        assert_int_equal(num(o, "facts_total"), 2);
        if (i == 0 && plain(answer)) {
            assert_string_equal(json_string_value(json_array_get(json_object_get(o, "answers"), 0)), answer);
            assert_int_equal(num(o, "facts_found"), strstr(line, "nothing|") ? 1 : 0);
        }
        json_decref(o);
    }
    spawned t = RUN(NULL, "compare", "-m", model_path, "--raw", "-p", text, "--questions", facts, "-n", "12", "--kv",
                    "full,format=q4");
    assert_non_null(strstr(t.out, "| facts of 2 |"));
    assert_non_null(strstr(t.out, "1. first question"));
    spawned_free(&s);
    spawned_free(&t);
    free(answer);
    free(text);
}

typedef struct nll_sum {
    const int32_t *ids;
    size_t from, to;
    double sum;
    size_t n;
    uint32_t vocab;
} nll_sum;
static void add_nll(void *user, size_t position, const float *logits) {
    nll_sum *s = user;
    if (position < s->from || position > s->to) return;
    long double z = 0;
    for (uint32_t i = 0; i < s->vocab; i++) z += expl((long double)logits[i]);
    s->sum += (double)(logl(z) - (long double)logits[s->ids[position + 1]]);
    s->n++;
}

static void eval_numbers(void **state) {
    (void)state;
    char path[96], *text = long_text(1200);
    write_file("text", text, path, sizeof path);
    int32_t ids[2048];
    size_t n;
    kvist_error err;
    kvist_model_info info;
    kvist_model_get_info(model, &info);
    assert_int_equal(kvist_tokenize(model, text, strlen(text), 0, ids, 2048, &n, &err), 0);
    nll_sum sum = {.vocab = info.n_vocab};
    for (int c = 0; c < 2; c++) { /* --step 0: each chunk of 256 in one sync; rows 128..254 predict 129..255 */
        kvist_session *s;
        sum.ids = ids + 256 * c;
        sum.from = 128;
        sum.to = 254;
        assert_int_equal(kvist_session_create(engine, "full", &s, &err), 0);
        assert_int_equal(kvist_session_sync_rows(s, sum.ids, 256, 0, add_nll, &sum, &err), 0);
        kvist_session_close(&s);
    }
    assert_int_equal(sum.n, 2 * 127);
    spawned s =
        RUN(NULL, "eval", "ppl", "-m", model_path, "-f", path, "-c", "256", "--chunks", "2", "--step", "0", "--json");
    json_t *o = row(s.out, 0);
    assert_int_equal(num(o, "predictions"), 2 * 127);
    assert_float_equal(num(o, "ppl"), exp(sum.sum / (double)sum.n), 1e-6 * num(o, "ppl"));
    json_decref(o);
    spawned_free(&s);
    s = RUN(NULL, "eval", "kld", "-m", model_path, "-f", path, "-c", "256", "--chunks", "2", "--step", "48", "--kv",
            "full,format=f16", "--kv", "full,format=q8", "--kv", "full,format=q2s", "--kv", "minikv,keep=0.5", "--json",
            "--precise");
    assert_int_equal(s.rc, 0);
    double last = 0;
    for (size_t i = 0; i < 5; i++) {
        o = row(s.out, i);
        if (i < 2)
            assert_true(num(o, "kld_mean") == 0 && num(o, "kld_max") == 0 && num(o, "same_top1") == 1 &&
                        num(o, "ppl_ratio") == 1);
        else
            assert_true(num(o, "kld_mean") > last && num(o, "kld_max") >= num(o, "kld_p99") &&
                        num(o, "kld_p99") >= num(o, "kld_median"));
        if (i < 4)
            last = num(o, "kld_mean");
        else
            last = 0;
        if (i == 3) last = 0; /* which of q2s and minikv is worse is the model's matter */
        json_decref(o);
    }
    spawned_free(&s);
    s = RUN(NULL, "eval", "kld", "-m", model_path, "-f", path, "-c", "256", "--chunks", "9", "--kv", "full,format=q8");
    assert_non_null(strstr(s.out, "same top-1"));
    assert_non_null(strstr(s.err, "warning: the text has 4 chunks of 256 tokens, not 9"));
    spawned_free(&s);
    free(text);
}

static void bench_rows(void **state) {
    (void)state;
    spawned s = RUN(NULL, "bench", "-m", model_path, "-p", "32", "-n", "4,8", "-d", "0,100", "-r", "2", "--kv", "full",
                    "--kv", "minikv", "--no-probe", "--json", "-q");
    assert_int_equal(s.rc, 0);
    static const char *const names[] = {"pp32",       "tg4",         "tg8",         "pp32",
                                        "tg4",        "tg8",         "pp32 @ d100", "tg4 @ d100",
                                        "tg8 @ d100", "pp32 @ d100", "tg4 @ d100",  "tg8 @ d100"};
    for (size_t i = 0; i < 12; i++) {
        json_t *o = row(s.out, i);
        bool prompt = names[i][0] == 'p';
        assert_string_equal(str(o, "test"), names[i]);
        assert_string_equal(str(o, "kv"), i % 6 < 3 ? "full" : "minikv");
        assert_int_equal(num(o, "tokens_seen"), num(o, "depth") + num(o, "n_prompt") + num(o, "n_gen"));
        assert_true(num(o, prompt ? "prefill_tps" : "decode_tps") > 0);
        assert_true(json_is_null(json_object_get(o, prompt ? "decode_tps" : "prefill_tps")));
        assert_true(num(o, "tps_min") <= num(o, "tps_max"));
        json_decref(o);
    }
    spawned_free(&s);
    s = RUN(NULL, "bench", "-m", model_path, "-p", "16", "-n", "0", "-r", "1", "-o", "csv", "--no-probe", "-q");
    assert_int_equal(strncmp(s.out, "model,size,params,threads,kv,test,t/s,", 38), 0);
    spawned_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(run_is_the_library), cmocka_unit_test(run_limits),
                                       cmocka_unit_test(tokenize_ids),       cmocka_unit_test(info_of_a_file),
                                       cmocka_unit_test(chat_turns),         cmocka_unit_test(chat_reads_once),
                                       cmocka_unit_test(compare_answers),    cmocka_unit_test(compare_questions),
                                       cmocka_unit_test(eval_numbers),       cmocka_unit_test(bench_rows)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
