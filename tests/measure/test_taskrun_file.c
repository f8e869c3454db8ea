/* SPDX-License-Identifier: Apache-2.0 */
/* The results of task runs: a file interrupted anywhere, resumed, foreign, damaged; and summaries of made-up scores. */
#include "measure/taskrun_fixture.h"

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

static const kv_task_row *find_row(const kv_task_results *r, const kv_task_row *like, uint32_t policy) {
    for (size_t i = 0; i < kv_task_results_count(r); i++) {
        const kv_task_row *row = kv_task_results_at(r, i);
        if (row->policy == policy && row->turn == like->turn && !strcmp(row->id, like->id)) return row;
    }
    fail_msg("no row of '%s'", like->id);
    return NULL;
}

/* Answers are kept by sample and policy: a file of other policies, in another order, cut anywhere, gives what it holds, and
 * only what is missing is run. */
static void other_policies(void **state) {
    (void)state;
    static const char *const turned[] = {"snapkv,tokens=64,recent=16", "full,format=q2s", "full"};
    static const char *const more[] = {"full", "minikv,keep=0.4", "full,format=q2s", "snapkv,tokens=64,recent=16"};
    char path[64];
    size_t len, n, all = set.n;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    set.n = 6;
    kv_task_results *want = run(more, 4, false, NULL), *r = run(turned, 3, false, path);
    kv_task_results_free(&r);
    char *three = slurp(path, &len);
    uint64_t rng = 3;
    for (int k = 0; k < 8; k++) {
        write_bytes(path, three, k ? len - test_rand(&rng) % (len / 2) : len);
        r = run(more, 4, false, path);
        same_results(want, r);
        kv_task_results_free(&r);
        char *got = slurp(path, &n);
        if (k == 0) assert_memory_equal(got, three, len);
        uint32_t lines = 0, minikv = 0; /* each row once */
        for (const char *p = got; (p = strchr(p, '\n')); p++) lines++;
        for (const char *p = got; (p = strstr(p, "\"minikv")); p++) minikv++;
        assert_int_equal(lines, 1 + kv_task_results_count(want));
        assert_int_equal(minikv, kv_task_results_count(want) / 4);
        r = run(turned + 1, 2, false, path); /* and the smaller run finds its own */
        for (size_t i = 0; i < kv_task_results_count(want); i++) {
            const kv_task_row *row = kv_task_results_at(want, i);
            if (row->policy == 2) same_rows(row, find_row(r, row, 0));
            if (row->policy == 0) same_rows(row, find_row(r, row, 1));
        }
        kv_task_results_free(&r);
        char *again = slurp(path, &len);
        assert_int_equal(len, n);
        assert_memory_equal(got, again, n);
        free(got);
        free(again);
        len = strlen(three);
    }
    free(three);
    kv_task_results_free(&want);
    unlink(path);
    set.n = all;
}

/* A file of six samples, cut anywhere, serves a run of the first three: those are its own or run again, the rest stays whole or goes. Then a run
 * of six finds what is left, and all is there. */
static void other_subsets(void **state) {
    (void)state;
    char path[64];
    size_t len, got_len, all = set.n;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    for (uint32_t n_policies = 1; n_policies <= 2; n_policies++) {
        unlink(path);
        set.n = 3;
        kv_task_results *three = run(policies, n_policies, false, NULL), *r;
        set.n = 6;
        kv_task_results *six = run(policies, n_policies, false, path);
        char *want = slurp(path, &len);
        /* The last three samples before the first three. */
        const char *header_end = strchr(want, '\n') + 1, *fourth = header_end;
        for (size_t rows = kv_task_results_count(three); rows; rows--) fourth = strchr(fourth, '\n') + 1;
        char *turned = malloc(len + 1);
        size_t head = (size_t)(header_end - want), first = (size_t)(fourth - header_end), rest = len - head - first;
        memcpy(turned, want, head);
        memcpy(turned + head, fourth, rest);
        memcpy(turned + head + rest, header_end, first);
        uint64_t rng = 9;
        for (int k = 0; k < 24; k++) {
            size_t n = k == 0 ? len : head + test_rand(&rng) % (len - head);
            write_bytes(path, k & 1 ? turned : want, n);
            set.n = 3;
            r = run(policies, n_policies, false, path);
            same_results(three, r);
            kv_task_results_free(&r);
            char *got = slurp(path, &got_len);
            if (k == 0) assert_int_equal(got_len, len); /* nothing of the others is lost */
            free(got);
            set.n = 6;
            r = run(policies, n_policies, false, path);
            same_results(six, r);
            kv_task_results_free(&r);
            got = slurp(path, &got_len);
            assert_int_equal(got_len, len); /* the same rows in another order */
            free(got);
        }
        free(turned);
        free(want);
        kv_task_results_free(&three);
        kv_task_results_free(&six);
    }
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
    set.n = 4; /* the last has three turns */
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
    const char *second = strchr(good, '\n') + 1, *third = strchr(second, '\n') + 1;
    static const struct {
        const char *from, *to, *why;
    } damage[] = {{"\"score\":", "\"scroe\":", "'score' is no number"},
                  {"\"turn\":1", "\"turn\":0", "turns count from 1"},
                  {"\"turn\":1", "\"turn\":2", "'turn' is no count"},
                  {"\"turn\":2", "\"turn\":3", "one by one"},
                  {"\"turns\":1", "\"turns\":2", "than the sample's"},
                  {"\"turns\":1", "\"turns\":0", "of no turns"},
                  {"\"ended\":", "\"ende\":", "'ended' is neither"},
                  {"\"id\":\"three\",\"stratum\":\"a\",\"policy\":\"full\",\"turn\":2", "\"id\":\"chat\",\"stratum\":\"a\",\"policy\":\"full\",\"turn\":2", "before is not complete"},
                  {"\"text\":", "\"txet\":", "no 'text'"},
                  {"\"policy\":\"full\",\"turn\":2", "\"policy\":\"half\",\"turn\":2", "before is not complete"},
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
        char line[16];
        uint32_t n = 1;
        for (const char *b = good; b < at; b++) n += *b == '\n';
        sprintf(line, ":%u:", n);
        assert_non_null(strstr(err.message, line));
        free(bad);
    }
    char *twice = malloc(2 * len + 1); /* a row again, and an answer that another interrupts */
    sprintf(twice, "%s%.*s", good, (int)(third - second), second);
    write_bytes(path, twice, strlen(twice));
    refuses(path, &same, KVIST_E_FORMAT, "stands in it already");
    const char *other = strstr(good, "{\"id\":\"plain");
    const char *three = strchr(strstr(good, "{\"id\":\"three"), '\n') + 1;
    sprintf(twice, "%.*s%.*s%s", (int)(three - good), good, (int)(strchr(other, '\n') + 1 - other), other, three);
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
    for (size_t i = 0; i < 6; i++) *kv_task_results_done(r, i, 1) = true;
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_true(s.n == 0 && isnan(s.mean) && isnan(s.ratio) && isnan(s.share)); /* no sample is complete */
    memset(r->done, 1, 12);
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
    *kv_task_results_done(r, 0, 0) = false; /* an incomplete sample counts nowhere */
    kv_task_summarize(r, 1, 0, NULL, UINT32_MAX, 1, &s);
    assert_int_equal(s.n, 5);
    kv_task_results_free(&r);
    assert_true(isnan(kv_task_rounded(INFINITY)) && kv_task_rounded(1.0 / 3) == 0.333333333);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(resumed),       cmocka_unit_test(other_policies), cmocka_unit_test(other_subsets),
                                       cmocka_unit_test(refused_files), cmocka_unit_test(refused_runs), cmocka_unit_test(summaries)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
