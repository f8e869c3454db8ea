/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist sweep end to end on a small random model: rows, resuming, and figures that `kvist eval` gives too (its own code
 * for intervals). What the samples say is tests/measure/test_sweep.c's, how it is printed test_sweep_report.sh's.
 */
#include <math.h>
#include <sys/stat.h>

#include "cli/json_rows.h"
#include "cli/spawn.h"

static char text[96], folder[96];

static void make_text(void) {
    in_work_dir(text, sizeof text, "text");
    in_work_dir(folder, sizeof folder, "sweep");
    FILE *f = fopen(text, "w");
    uint64_t rng = 3;
    assert_non_null(f);
    for (int i = 0; i < 900; i++) {
        static const char *const words[] = {"the", "sea", "was", "grey", "and", "a", "ship", "came", "in", "late"};
        fprintf(f, "%s%s", words[test_rand(&rng) % 10], i % 13 == 12 ? ".\n" : " ");
    }
    fclose(f);
}

static int setup(void **state) {
    int rc = spawn_setup(state);
    if (!rc) make_text();
    return rc;
}

static void remove_folder(void) {
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", folder);
    assert_int_equal(system(cmd), 0);
}

static int teardown(void **state) {
    remove_folder();
    return spawn_teardown(state);
}

static char *task_of(char *buf, size_t cap, const char *name, const char *keys) {
    snprintf(buf, cap, "%s=%s%s", name, text, keys);
    return buf;
}

#define SWEEP_ARGS                                                                                                     \
    "sweep", "-m", model_path, "-t", "1", "-q", "--method", "minikv", "--method", "full,format=q2s", "--share",        \
        ".6,.4", "--task", task_of(kld, sizeof kld, "kld", ";ctx=256;next=40;limit=2"), "-o", "json"

static void rows_of_points(void **state) {
    (void)state;
    char kld[160];
    spawned s = RUN(NULL, SWEEP_ARGS);
    if (s.rc) fail_msg("%s", s.err);
    static const char *const want[] = {"full", "full,format=q2s", "minikv,share=0.6", "minikv,share=0.4"};
    for (size_t i = 0; i < 4; i++) {
        json_t *o = row(s.out, i), *cell = json_array_get(json_object_get(o, "tasks"), 0);
        assert_string_equal(json_string_value(json_object_get(o, "kv")), want[i]);
        assert_int_equal(num(cell, "n"), 2);
        assert_true(i ? num(cell, "kld_mean") > 0 : num(cell, "kld_mean") == 0);
        assert_true(fabs(num(o, "ratio") - exp(-num(cell, "kld_mean"))) < 1e-9);
        if (i < 2)
            assert_true(json_is_null(json_object_get(o, "share_asked")));
        else
            assert_true(num(o, "share") <= 1.02 * num(o, "share_asked") &&
                        json_is_true(json_object_get(o, "share_met")));
        json_decref(o);
    }
    assert_int_equal(s.out_len && s.out[s.out_len - 1] == '\n', 1);
    spawned_free(&s);
}

/* Path of the only file in the folder whose name begins with `prefix`. */
static void only_file(const char *prefix, char *buf, size_t cap) {
    char cmd[256];
    snprintf(cmd, sizeof cmd, "ls '%s' | grep '^%s.*jsonl$'", folder, prefix);
    FILE *f = popen(cmd, "r");
    char name[128] = "", second[8] = "";
    assert_non_null(f);
    assert_non_null(fgets(name, sizeof name, f));
    assert_null(fgets(second, sizeof second, f));
    pclose(f);
    name[strcspn(name, "\n")] = 0;
    snprintf(buf, cap, "%s/%s", folder, name);
}

/* Run again: nothing is run. Cut off in the middle: the same result, and the same file. Another method: the rows of the
 * others are not run again. --report: the same without a model. */
static void resumes(void **state) {
    (void)state;
    char kld[160], path[256];
    size_t len, len2;
    spawned a = RUN(NULL, SWEEP_ARGS, "--out", folder);
    if (a.rc) fail_msg("%s", a.err);
    only_file("kld", path, sizeof path);
    char *rows = test_read(path, &len);
    spawned b = RUN(NULL, SWEEP_ARGS, "--out", folder);
    assert_string_equal(a.out, b.out);
    char *rows2 = test_read(path, &len2);
    assert_int_equal(len, len2);
    free(rows2);
    /* header and 2 x 4 rows; keep the first chunk's and a torn line */
    const char *cut = rows;
    for (int i = 0; i < 5; i++) cut = strchr(cut, '\n') + 1;
    assert_int_equal(truncate(path, cut - rows + 20), 0);
    spawned c = RUN(NULL, SWEEP_ARGS, "--out", folder);
    assert_string_equal(a.out, c.out);
    rows2 = test_read(path, &len2);
    assert_int_equal(len, len2);
    assert_memory_equal(rows, rows2, len);
    free(rows2);
    spawned d = RUN(NULL, SWEEP_ARGS, "--out", folder, "--method", "streaming");
    assert_int_equal(d.rc, 0);
    rows2 = test_read(path, &len2);
    assert_memory_equal(rows, rows2, len);
    size_t more = 0;
    for (const char *p = rows2 + len; *p; p++) more += *p == '\n';
    assert_int_equal(more, 4); /* two chunks, two shares */
    free(rows2);
    spawned e = RUN(NULL, "sweep", "--report", "--out", folder, "-o", "json", "-q");
    assert_string_equal(d.out, e.out);
    spawned *const all[] = {&a, &b, &c, &d, &e};
    for (int i = 0; i < 5; i++) spawned_free(all[i]);
    free(rows);
    remove_folder();
}

/* Answers serve any list of shares and methods: one file, into which only what is missing is written. */
static void grows(void **state) {
    (void)state;
    char task[160], path[256];
    size_t len, len2;
#define ANSWERS "sweep", "-m", model_path, "-t", "1", "-q", "--task", task_of(task, sizeof task, "repeat", ";ctx=2048;limit=2"), \
                "-o", "json"
    spawned a = RUN(NULL, ANSWERS, "--out", folder, "--method", "minikv", "--share", ".4");
    if (a.rc) fail_msg("%s", a.err);
    only_file("repeat", path, sizeof path);
    char *rows = test_read(path, &len);
    spawned b = RUN(NULL, ANSWERS, "--out", folder, "--method", "snapkv", "--method", "minikv", "--share", ".6,.4");
    if (b.rc) fail_msg("%s", b.err);
    only_file("repeat", path, sizeof path);
    char *more = test_read(path, &len2);
    assert_memory_equal(rows, more, len);
    size_t n = 0;
    for (const char *p = more + len; *p; p++) n += *p == '\n';
    assert_int_equal(n, 2 * 3); /* of full and minikv at .4 nothing again */
    spawned c = RUN(NULL, ANSWERS, "--method", "snapkv", "--method", "minikv", "--share", ".6,.4");
    assert_string_equal(b.out, c.out); /* as if it had been run at once */
    spawned *const all[] = {&a, &b, &c};
    for (int i = 0; i < 3; i++) spawned_free(all[i]);
    free(rows);
    free(more);
    remove_folder();
}

/* A task of `kvist eval`: the same samples, scores and intervals; groups of one point change nothing. */
static void as_eval_says(void **state) {
    (void)state;
    static const char *const tasks[][3] = {
        {"repeat", ";ctx=2048;limit=3", NULL}, {"needle", ";ctx=2048;limit=3;metric=nll", "--likelihood"}};
    for (size_t k = 0; k < 2; k++) {
        char task[160];
        spawned s =
            RUN(NULL, "sweep", "-m", model_path, "-t", "1", "-q", "--method", "minikv", "--share", ".6,.4", "--task",
                task_of(task, sizeof task, tasks[k][0], tasks[k][1]), "-o", "json", "--out", folder);
        if (s.rc) fail_msg("%s", s.err);
        spawned v = RUN(NULL, "eval", tasks[k][0], "-m", model_path, "-t", "1", "-q", "-f", text, "-c", "2048",
                        "--limit", "3", "--kv", "minikv,share=0.6", "--kv", "minikv,share=0.4", "-o", "json",
                        tasks[k][2]);
        if (v.rc == 2) skip(); /* a program whose eval has no tasks */
        if (v.rc) fail_msg("%s", v.err);
        for (size_t i = 0; i < 3; i++) {
            json_t *o = row(s.out, i), *e = row(v.out, i), *cell = json_array_get(json_object_get(o, "tasks"), 0);
            assert_int_equal(num(cell, "n"), num(e, "n"));
            assert_true(fabs(num(cell, "ratio") - num(e, "ratio")) < 1e-9);
            assert_true(fabs(num(cell, "ratio_low") - num(e, "ratio_low")) < 1e-9);
            assert_true(fabs(num(cell, "ratio_high") - num(e, "ratio_high")) < 1e-9);
            assert_true(i == 0 || num(cell, "ratio") != 1); /* a perplexity, not right or wrong */
            json_decref(o);
            json_decref(e);
        }
        spawned_free(&s);
        spawned_free(&v);
        remove_folder();
    }
}

static void refused(void **state) {
    (void)state;
    char kld[160], task[160];
    static const struct {
        const char *keys, *why;
    } specs[] = {{";ctx=0", "ctx"},
                 {";color=3", "color"},
                 {";next=256;ctx=256", "continuation"},
                 {";ctx=16000", "ctx="},
                 {";limit=x", "limit"},
                 {";metric=f1", "metric=f1"},
                 {";metric=nll", "not for kld"},
                 {";repeats=2", "needle"}};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        spawned s = RUN(NULL, "sweep", "-m", model_path, "-q", "--method", "minikv", "--share", ".5", "--task",
                        task_of(task, sizeof task, "kld", specs[i].keys));
        assert_int_not_equal(s.rc, 0);
        if (!strstr(s.err, specs[i].why)) fail_msg("'%s' does not say %s", s.err, specs[i].why);
        spawned_free(&s);
    }
    static const char *const wrong[][2] = {{"--share", ".5,.5"},     {"--share", "0"},  {"--share", ".5,"},
                                           {"--method", "nonsense"}, {"--task", "kld"}, {"--task", "dance=x"},
                                           {"-o", "html"},           {"--floor", "2"},  {"--method", "minikv"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        spawned s = RUN(NULL, SWEEP_ARGS, wrong[i][0], wrong[i][1]);
        if (s.rc != 2) fail_msg("%s %s: exit %d", wrong[i][0], wrong[i][1], s.rc);
        if (!strstr(s.err, wrong[i][1])) fail_msg("'%s' does not say %s", s.err, wrong[i][1]);
        spawned_free(&s);
    }
    spawned s = RUN(NULL, "sweep", "-m", model_path);
    assert_int_equal(s.rc, 2);
    assert_non_null(strstr(s.err, "--task"));
    spawned_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_of_points), cmocka_unit_test(resumes), cmocka_unit_test(grows),
                                       cmocka_unit_test(as_eval_says), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
