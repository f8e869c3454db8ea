/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist eval on tasks, on a small generated model: what it prints against its own file of answers, resuming, refusals,
 * an interrupt; and ppl and kld over several texts and both kinds of rows.
 */
#include <math.h>
#include <signal.h>

#include "json_rows.h"
#include "spawn.h"

enum { PROBLEMS = 30 };
static char data[96], results[96], prose[96];

static int setup(void **state) {
    if (spawn_setup(state)) return -1;
    in_work_dir(data, sizeof data, "facts.tsv");
    in_work_dir(results, sizeof results, "rows.jsonl");
    in_work_dir(prose, sizeof prose, "text");
    FILE *f = fopen(data, "w");
    for (int i = 0; i < PROBLEMS; i++)
        fprintf(f, "{\"question\": \"%d and %d?\", \"answer\": \"Sum.\\n#### %d\"}\n", i, i + 1, 2 * i + 1);
    fclose(f);
    f = fopen(prose, "w");
    uint64_t rng = 3;
    static const char *const words[] = {"a hill ", "the sea ", "was ", "not ", "seen ", "at dawn.\n", "then ", "we "};
    for (int i = 0; i < 3000; i++) fputs(words[test_rand(&rng) % 8], f);
    fclose(f);
    return 0;
}

static int teardown(void **state) {
    unlink(results);
    return spawn_teardown(state);
}

static const char *text_of(json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    if (!s) fail_msg("key '%s' is no text", key);
    return s;
}

static size_t count_lines(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += *s == '\n';
    return n;
}

/* Mean of a key over the rows of one policy in the file of answers. */
static double mean_of(const char *file, const char *policy, const char *key, size_t *n) {
    double sum = 0;
    *n = 0;
    for (size_t i = 1; i < count_lines(file); i++) {
        json_t *o = row(file, i);
        if (!strcmp(text_of(o, "policy"), policy)) {
            sum += num(o, key);
            ++*n;
        }
        json_decref(o);
    }
    return sum / (double)*n;
}

static void table_of_answers(void **state) {
    (void)state;
    unlink(results);
#define TASK "eval", "gsm8k", "-m", model_path, "-f", data, "-q", "--limit", "7", "--out", results
#define POLICIES                                                                                                       \
    "--kv", "full,format=q2s", "--kv", "full", "--kv", "snapkv,tokens=64", "--kv", "full,format=q2s,sink=16"
    spawned s = RUN(NULL, TASK, POLICIES, "--json");
    if (s.rc) fail_msg("%s", s.err);
    assert_int_equal(count_lines(s.out), 3); /* full first, each policy once */
    size_t len, again, n;
    char *file = test_read(results, &len);
    assert_non_null(file);
    assert_int_equal(count_lines(file), 1 + 7 * 3);
    static const char *const names[] = {"full", "full,format=q2s", "snapkv,tokens=64"};
    for (size_t i = 0; i < 3; i++) {
        json_t *o = row(s.out, i);
        const char *policy = text_of(o, "policy");
        assert_string_equal(text_of(o, "kv"), names[i]);
        assert_string_equal(text_of(o, "task"), "gsm8k");
        assert_int_equal(num(o, "n"), 7);
        assert_float_equal(num(o, "score"), mean_of(file, policy, "score", &n), 1e-8);
        assert_float_equal(num(o, "share"), mean_of(file, policy, "share", &n), 1e-8);
        assert_float_equal(num(o, "tokens"), mean_of(file, policy, "tokens", &n), 1e-6);
        assert_int_equal(n, 7);
        double base = mean_of(file, "full", "score", &n);
        if (base > 0)
            assert_float_equal(num(o, "ratio"), mean_of(file, policy, "score", &n) / base, 1e-8);
        else
            assert_true(json_is_null(json_object_get(o, "ratio")));
        json_decref(o);
    }
    spawned t = RUN(NULL, TASK, POLICIES, "--json"); /* all is there: the same, from the file */
    assert_string_equal(s.out, t.out);
    char *file2 = test_read(results, &again);
    assert_int_equal(len, again);
    assert_memory_equal(file, file2, len);
    spawned_free(&t);
    t = RUN(NULL, "eval", "gsm8k", "-m", model_path, "-f", data, "-q", "--limit", "8", "--out", results, POLICIES, "--json");
    if (t.rc) fail_msg("%s", t.err); /* one sample more: the rows that are there are not written again */
    json_t *more = row(t.out, 0);
    assert_int_equal(num(more, "n"), 8);
    json_decref(more);
    spawned_free(&t);
    char *grown = test_read(results, &again);
    assert_int_equal(count_lines(grown), 1 + 8 * 3);
    assert_memory_equal(file, grown, len);
    free(grown);
    t = RUN(NULL, TASK, POLICIES, "--json"); /* and of those eight seven again */
    assert_string_equal(s.out, t.out);
    spawned_free(&t);
    t = RUN(NULL, "eval", "gsm8k", "-m", model_path, "-f", data, "-q", "--limit", "7", "--seed", "2", "--out", results, POLICIES);
    assert_int_equal(t.rc, 1);
    assert_non_null(strstr(t.err, "'seed=1' where this one says 'seed=2'"));
    spawned_free(&t);
    t = RUN(NULL, TASK, "--kv", "streaming", "--json"); /* another policy: only its own answers are missing */
    if (t.rc) fail_msg("%s", t.err);
    assert_int_equal(count_lines(t.out), 2);
    spawned_free(&t);
    grown = test_read(results, &again);
    assert_int_equal(count_lines(grown), 1 + 8 * 3 + 7);
    free(grown);
    t = RUN(NULL, TASK, POLICIES, "--json"); /* which is not in the others' way */
    assert_string_equal(s.out, t.out);
    spawned_free(&t);
    t = RUN(NULL, TASK, POLICIES, "-o", "csv");
    assert_int_equal(strncmp(t.out, "kv,n,score,", 11), 0);
    assert_int_equal(count_lines(t.out), 4);
    spawned_free(&t);
    t = RUN(NULL, TASK, POLICIES, "--agnostic");
    assert_int_equal(t.rc, 1);
    assert_non_null(strstr(t.err, "before the question"));
    spawned_free(&t);
    spawned_free(&s);
    free(file);
    free(file2);
}

static void needle_map(void **state) {
    (void)state;
    spawned s = RUN(NULL, "eval", "needle", "-m", model_path, "-f", prose, "-c", "1024", "--lengths", "2", "--depths",
                    "3", "--kv", "streaming", "--agnostic");
    if (s.rc) fail_msg("%s", s.err);
    assert_non_null(strstr(s.out, "needle: 6 samples, contexts compressed before the question"));
    assert_non_null(strstr(s.out, "\nfull: score by depth"));
    assert_non_null(strstr(s.out, "\nstreaming: score by depth"));
    assert_non_null(strstr(s.out, "\n|  50 % |"));
    spawned_free(&s);
    s = RUN(NULL, "eval", "needle", "-m", model_path, "-f", prose, "-c", "1024", "--lengths", "2", "--depths", "3",
            "-o", "json", "--by-stratum", "-q", "-s", "5");
    size_t cells = 0, parts = 0;
    for (size_t i = 0; i < count_lines(s.out); i++) {
        json_t *o = row(s.out, i);
        cells += json_object_get(o, "depth") != NULL;
        parts += json_object_get(o, "stratum") != NULL;
        assert_int_equal(num(o, "seed"), 5);
        json_decref(o);
    }
    assert_int_equal(cells, 6);
    assert_int_equal(parts, 2);
    spawned_free(&s);
}

/* The reference read through the full cache: its perplexity and a ratio of exactly 1. */
static void recall(void **state) {
    (void)state;
    spawned s = RUN(NULL, "eval", "repeat", "-m", model_path, "-f", prose, "-c", "2048", "--limit", "3", "--kv",
                    "full,format=q2s", "--json", "-q");
    if (s.rc) fail_msg("%s", s.err);
    json_t *full = row(s.out, 0), *other = row(s.out, 1);
    assert_float_equal(num(full, "ppl"), exp(num(full, "nll")), 1e-6 * num(full, "ppl"));
    assert_true(num(full, "ratio") == 1 && num(full, "ratio_low") == 1);
    assert_float_equal(num(other, "ratio"), num(full, "ppl") / num(other, "ppl"), 1e-6);
    assert_true(num(other, "ratio") != 1);
    json_decref(full);
    json_decref(other);
    spawned_free(&s);
}

static void refusals(void **state) {
    (void)state;
    spawned s = RUN(NULL, "eval", "gsm8k", "-m", model_path, "-f", data, "--kv-mem", "1M", "--kv", "snapkv");
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "--kv-mem 1.00 MiB is too small: the caches of 2 policies"));
    spawned_free(&s);
    s = RUN(NULL, "eval", "gsm8k", "-m", model_path, "-f", "/nonexistent.jsonl");
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "/nonexistent.jsonl"));
    spawned_free(&s);
    s = RUN(NULL, "eval", "gsm8k", "-m", model_path, "-f", data, "--kv", "full,format=q2s", "--kv",
            "full,format=q2s,recent=64", "--limit", "1");
    assert_non_null(strstr(s.err, "warning: --kv full,format=q2s,recent=64 is full,format=q2s once more"));
    spawned_free(&s);
}

/* Ctrl-C keeps what was answered, and the same command goes on from there. */
static void interrupted(void **state) {
    (void)state;
    if (!binary()) skip();
    unlink(results);
    const char *const args[] = {binary(), "eval", "gsm8k",          "-m",   model_path, "-f", data, "--out",
                                results,  "--kv", "full,format=q8", "--kv", "minikv",   NULL};
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(open("/dev/null", O_WRONLY), 1);
        dup2(open("/dev/null", O_WRONLY), 2);
        execv(args[0], (char *const *)args);
        _exit(127);
    }
    int status = 0;
    for (int i = 0; i < 3000 && waitpid(pid, &status, WNOHANG) == 0; i++) { /* until two samples are answered */
        char *file = test_read(results, NULL);
        bool some = file && count_lines(file) > 6;
        free(file);
        if (some) break;
        usleep(20000);
    }
    if (kill(pid, SIGINT) == 0) waitpid(pid, &status, 0);
    char *file = test_read(results, NULL);
    size_t before = count_lines(file);
    assert_true(before >= 7 && (before - 1) % 3 == 0); /* whole samples */
    if (before < 1 + 3 * PROBLEMS) assert_int_equal(WEXITSTATUS(status), 1);
    free(file);
    spawned s = run_argv(NULL, args + 1);
    assert_int_equal(s.rc, 0);
    file = test_read(results, NULL);
    assert_int_equal(count_lines(file), 1 + 3 * PROBLEMS);
    free(file);
    spawned_free(&s);
}

/* Several texts are the chunks of all; rows may be decoded. */
static void texts_and_rows(void **state) {
    (void)state;
    char second[96];
    in_work_dir(second, sizeof second, "facts.tsv");
    static const char *const kinds[] = {"prompt", "generated"};
    double mean[2];
    for (int k = 0; k < 2; k++) {
        const char *const files[3][5] = {{"-f", prose}, {"-f", second}, {"-f", prose, "-f", second}};
        double kld[3];
        for (int i = 0; i < 3; i++) {
            const char *args[40] = {"eval",   "kld",    "-m",     model_path, "-c",   "256",  "--chunks",
                                    "2",      "--rows", kinds[k], "--kv",     "full", "--kv", "full,format=q3",
                                    "--json", "-q"};
            size_t n = 0;
            while (args[n]) n++;
            for (int j = 0; files[i][j]; j++) args[n++] = files[i][j];
            spawned s = run_argv(NULL, args);
            if (s.rc) fail_msg("%s", s.err);
            for (size_t r = 0; r < 3; r++) {
                json_t *o = row(s.out, r);
                assert_int_equal(num(o, "chunks"), i == 2 ? 4 : 2);
                assert_string_equal(text_of(o, "rows"), kinds[k]);
                if (r < 2) /* full against full: exactly nothing, as the base and as a policy */
                    assert_true(num(o, "kld_mean") == 0 && num(o, "kld_max") == 0 && num(o, "kld_min") == 0 &&
                                num(o, "same_top1") == 1);
                else
                    kld[i] = num(o, "kld_mean");
                json_decref(o);
            }
            spawned_free(&s);
        }
        assert_float_equal(kld[2], (kld[0] + kld[1]) / 2, 1e-6 * kld[2]); /* as many rows of each */
        assert_true(kld[2] > 0);
        mean[k] = kld[2];
    }
    assert_true(mean[0] != mean[1]);
    spawned s = RUN(NULL, "eval", "kld", "-m", model_path, "-c", "256", "-f", prose, "-f", model_path, "-p", "x");
    assert_int_equal(s.rc, 2);
    assert_non_null(strstr(s.err, "-p goes with one -f"));
    spawned_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_of_answers), cmocka_unit_test(needle_map),
                                       cmocka_unit_test(recall),           cmocka_unit_test(refusals),
                                       cmocka_unit_test(interrupted),      cmocka_unit_test(texts_and_rows)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
