/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sets of evaluation samples: errors by file, line and field, subsets, hostile files, failing allocations; and the
 * shared data, where they are present, by their published counts.
 */
#include "task_files.h"

#include <math.h>

#include "base/alloc.h"

static void longbench_errors(void **state) {
    (void)state;
    static const struct {
        const char *line, *a, *b;
    } wrong[] = {
        {"{\"task\": \"lcc\"", "line 2", "column"},
        {"[1]", "line 2", "not a JSON object"},
        {"{\"prompt\": \"x\"}", "line 2", "'task' is missing"},
        {"{\"task\": 3}", "line 2", "'task' is not a string"},
        {"{\"task\": \"a,b\"}", "line 2", "'task'"},
        {"{\"task\": \"hotpotqa\", \"idx\": []}", "line 2", "'idx'"},
        {"{\"task\": \"own\", \"answers\": [\"x\"]}", "line 2", "'prompt' is missing"},
        {"{\"task\": \"own\", \"prompt\": \"\", \"answers\": [\"x\"]}", "line 2", "'prompt' is empty"},
        {"{\"task\": \"own\", \"prompt\": \"x\"}", "line 2", "'answers' is missing"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": \"x\"}", "line 2", "'answers' is not an array"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": []}", "line 2", "'answers' is empty"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [1]}", "line 2", "'answers'"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [\"\"]}", "line 2", "'answers' holds an empty string"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [\"the\"]}", "line 2", "cannot meet"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"context\": \"x\", \"answers\": [\"y\"]}", "line 2", "'context'"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [\"y\"], \"metric\": \"bleu\"}", "line 2", "'metric'"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [\"y\"], \"max_new\": 0}", "line 2", "'max_new'"},
        {"{\"task\": \"own\", \"prompt\": \"x\", \"answers\": [\"y\"], \"chat\": 1}", "line 2", "'chat'"},
        {"{\"task\": \"lcc\", \"prompt\": \"x\", \"answers\": [\"y\"], \"max_new\": 3}", "line 2", "LongBench"},
        {"{\"task\": \"qmsum\", \"prompt\": \"x\", \"answers\": [\"y\"]}", "line 2", "'prompt' lacks"},
        {"{\"task\": \"trec\", \"prompt\": \"x\\nQuestion: ?\", \"answers\": [\"y\"]}", "line 2",
         "'all_classes' is missing"},
        {"{\"task\": \"trec\", \"prompt\": \"x\\nQuestion: ?\", \"answers\": [\"y\"], \"all_classes\": [\"z\"]}",
         "line 2", "'answers' holds none"},
        {"{\"task\": \"passage_retrieval_en\", \"prompt\": \"x\\n\\nThe following is an abstract.\", \"answers\": "
         "[\"28\"]}",
         "line 2", "cannot meet"},
        {"{\"task\": \"ok\", \"idx\": 1, \"prompt\": \"x\", \"answers\": [\"y\"]}", "ok-1", "two samples"},
    };
    kv_task_params p = params("longbench", 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[1024];
        sprintf(text, "{\"task\": \"ok\", \"idx\": 1, \"prompt\": \"x y\", \"answers\": [\"y\"]}\n%s\n", wrong[i].line);
        write_file(text, strlen(text));
        refused(&p, KVIST_E_FORMAT, wrong[i].a, wrong[i].b);
        refused(&p, KVIST_E_FORMAT, file, "");
    }
    write_file("\n \n", 3);
    refused(&p, KVIST_E_FORMAT, "no sample", file);
    p.path = "/nowhere/at/all.jsonl";
    refused(&p, KVIST_E_IO, "/nowhere/at/all.jsonl", "");
    p.name = "longbenhc";
    refused(&p, KVIST_E_ARG, "longbenhc", "kvretrieval, needle");
    p.name = "longbench";
    p.path = NULL;
    refused(&p, KVIST_E_ARG, "which file", "");
}

/* ---- subsets ---- */

enum { A = 60, B = 25, C = 5, D = 1 };

static void write_strata(bool backwards) {
    FILE *f = fopen(file, "w");
    for (int i = 0; i < A + B + C + D; i++) {
        int k = backwards ? A + B + C + D - 1 - i : i;
        const char *task = k < A ? "aa" : k < A + B ? "bb" : k < A + B + C ? "cc" : "dd";
        fprintf(f, "{\"task\": \"%s\", \"idx\": %d, \"prompt\": \"x %d\", \"answers\": [\"y\"]}\n", task, k, k);
    }
    assert_int_equal(fclose(f), 0);
}

static bool holds(const kv_task_set *set, const char *id) {
    for (size_t i = 0; i < kv_task_count(set); i++)
        if (!strcmp(kv_task_at(set, i)->id, id)) return true;
    return false;
}

static uint32_t of_stratum(const kv_task_set *set, const char *name) {
    uint32_t n = 0;
    for (size_t i = 0; i < kv_task_count(set); i++) n += !strcmp(kv_task_at(set, i)->stratum, name);
    return n;
}

static void subsets(void **state) {
    (void)state;
    kv_task_params p = params("longbench", 0);
    static const uint32_t limits[] = {1, 2, 3, 4, 5, 10, 22, 45, 90, 91, 1000};
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
        p.limit = limits[l];
        write_strata(false);
        kv_task_set *set = load(&p);
        uint32_t n = limits[l] < 91 ? limits[l] : 91;
        assert_int_equal(kv_task_count(set), n);
        static const char *const name[] = {"aa", "bb", "cc", "dd"};
        static const uint32_t size[] = {A, B, C, D};
        for (int k = 0; k < 4; k++) {
            double share = (double)size[k] * n / 91;
            uint32_t got = of_stratum(set, name[k]);
            if (n >= 4) assert_true(got >= 1);
            if (n < 4) assert_true(got <= 1);
            /* proportional, but for what the small strata's one each takes */
            assert_true(got <= ceil(share) + 0.0 || got == 1);
            assert_true(got + 3 >= floor(share));
        }
        for (size_t i = 1; i < kv_task_count(set); i++) /* in the file's order */
            assert_true(atoi(kv_task_at(set, i)->id + 3) > atoi(kv_task_at(set, i - 1)->id + 3));
        /* the same samples whatever the file's order */
        write_strata(true);
        kv_task_set *other = load(&p);
        assert_int_equal(kv_task_count(other), n);
        for (size_t i = 0; i < n; i++) assert_true(holds(other, kv_task_at(set, i)->id));
        kv_task_free(&other);
        /* other seeds, other samples */
        if (n == 22) {
            p.seed = 2;
            other = load(&p);
            uint32_t both = 0;
            for (size_t i = 0; i < n; i++) both += holds(other, kv_task_at(set, i)->id);
            assert_true(both < n);
            p.seed = 1;
            kv_task_free(&other);
        }
        kv_task_free(&set);
    }
    p.limit = 12;
    p.only = "cc,bb";
    kv_task_set *set = load(&p);
    assert_int_equal(of_stratum(set, "bb"), 10);
    assert_int_equal(of_stratum(set, "cc"), 2);
    kv_task_free(&set);
    p.limit = 0;
    p.only = "dd";
    set = load(&p);
    assert_int_equal(kv_task_count(set), 1);
    kv_task_free(&set);
    p.only = "dd,ee";
    refused(&p, KVIST_E_ARG, "'ee'", "aa, bb, cc, dd");
    p.only = "d";
    refused(&p, KVIST_E_ARG, "'d'", "aa, bb, cc, dd");
}

/* A sample is the same alone and among all. */
static void independent(void **state) {
    (void)state;
    write_pairs(20, 30, false);
    kv_task_params p = params("kvretrieval", 420);
    p.questions = 2;
    kv_task_set *all = load(&p);
    p.limit = 3;
    kv_task_set *few = load(&p);
    for (size_t i = 0; i < 3; i++) {
        const kv_sample *s = kv_task_at(few, i), *same = NULL;
        for (size_t k = 0; k < 20; k++)
            if (!strcmp(kv_task_at(all, k)->id, s->id)) same = kv_task_at(all, k);
        assert_non_null(same);
        assert_string_equal(s->context, same->context);
        assert_string_equal(s->turns[1].question, same->turns[1].question);
    }
    kv_task_free(&all);
    kv_task_free(&few);
}

/* ---- hostile files ---- */

static const char *const task_names[] = {"longbench", "longeval", "kvretrieval", "needle", "gsm8k", "repeat"};

static void any_file(void **state) {
    (void)state;
    static const char *const seeds[] = {
        "{\"task\": \"trec\", \"idx\": 1, \"prompt\": \"x\\nQuestion: ?\", \"answers\": [\"y\"], \"all_classes\": "
        "[\"y\"]}\n",
        "{\"correct_line\": \"line a: REGISTER_CONTENT is <1>\\n\", \"prompt\": \"x\\nline a: REGISTER_CONTENT is "
        "<1>\\nline b: "
        "REGISTER_CONTENT is <2>\\n\"}\n",
        "{\"topics\": [\"A\"], \"prompt\": \"USER: I would like to discuss the topic of a. Now the record ends\"}\n",
        "{\"ordered_kv_records\": [[\"a\", \"b\"], [\"c\", \"d\"]], \"key\": \"a\", \"value\": \"b\"}\n",
        "{\"question\": \"q\", \"answer\": \"a <<1>> #### 2\"}\n{\"question\": \"q\", \"answer\": \"#### 2\"}\n",
        "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xe6\x02\x00\x00\x00\x00\x00",
    };
    uint64_t rng = 17;
    for (int rep = 0; rep < 3000; rep++) {
        char text[1024];
        const char *seed = seeds[test_rand(&rng) % 6];
        size_t n = seed[0] == '\x1f' ? 18 : strlen(seed);
        memcpy(text, seed, n);
        for (uint32_t k = test_rand(&rng) % 4; k; k--) text[test_rand(&rng) % n] = (char)test_rand(&rng);
        if (rep % 5 == 0) n = test_rand(&rng) % n;
        write_file(text, n);
        for (size_t t = 0; t < 6; t++) {
            kv_task_params p = params(task_names[t], rep & 1 ? 512 : 0);
            p.questions = rep % 7 == 0 && t < 3 && t ? 2 : 0;
            kv_task_set *set;
            kv_error err = {0};
            if (kv_task_load(&p, &set, &err) == KVIST_OK)
                kv_task_free(&set);
            else
                assert_true(err.message[0]);
        }
    }
    /* gzip data that end early, and a header with nothing behind it */
    write_pairs(3, 3, true);
    size_t len;
    char *whole = test_read(file, &len);
    kv_task_params p = params("kvretrieval", 0);
    for (size_t n = 3; n < len; n++) {
        write_file(whole, n);
        refused(&p, KVIST_E_FORMAT, file, "gzip");
    }
    free(whole);
}

/* Every allocation of ours fails once: an error, nothing lost (leaks show under the address sanitizer). */
static void no_memory(void **state) {
    (void)state;
    for (size_t t = 0; t < 4; t++) {
        static const char *const names[] = {"kvretrieval", "longeval", "longbench", "gsm8k"};
        if (t == 0) write_pairs(2, 6, true);
        if (t == 1) write_lines();
        if (t == 2) write_strata(false);
        if (t == 3) {
            char text[2048] = "";
            for (int i = 0; i < 9; i++)
                sprintf(text + strlen(text), "{\"question\": \"q%d\", \"answer\": \"#### %d\"}\n", i, i);
            write_file(text, strlen(text));
        }
        kv_task_params p = params(names[t], 4096);
        kv_status status = KVIST_E_MEMORY;
        uint64_t n;
        for (n = 1; status != KVIST_OK && n < 100000; n++) {
            kv_task_set *set;
            kv_error err = {0};
            kv_alloc_test_fail_at(n);
            status = kv_task_load(&p, &set, &err);
            kv_alloc_test_fail_at(0);
            if (status == KVIST_OK)
                kv_task_free(&set);
            else if (status != KVIST_E_MEMORY && status != KVIST_E_IO)
                fail_msg("%s, allocation %u: %s", names[t], (unsigned)n, err.message);
        }
        assert_int_equal(status, KVIST_OK);
        assert_true(n > 5);
    }
}

/* ---- shared data ---- */

static kv_task_set *load_shared(const char *task, const char *name, uint32_t n_ctx, uint32_t questions,
                                uint32_t limit) {
    const char *path = test_shared(name);
    if (!path) skip();
    kv_task_params p = {
        .name = task, .path = path, .seed = 1, .n_ctx = n_ctx, .count = count4, .questions = questions, .limit = limit};
    return load(&p);
}

static void shared_longbench(void **state) {
    (void)state;
    static const struct {
        const char *task;
        uint32_t n;
    } counts[] = {{"lcc", 13},
                  {"repobench-p", 12},
                  {"multifieldqa_zh", 8},
                  {"passage_retrieval_en", 8},
                  {"samsum", 8},
                  {"2wikimqa", 7},
                  {"passage_retrieval_zh", 8},
                  {"hotpotqa", 7},
                  {"gov_report", 6},
                  {"multi_news", 6},
                  {"triviaqa", 6},
                  {"qasper", 5},
                  {"lsht", 4},
                  {"multifieldqa_en", 4},
                  {"musique", 4},
                  {"trec", 4},
                  {"dureader", 3},
                  {"narrativeqa", 3},
                  {"qmsum", 3},
                  {"vcsum", 3},
                  {"passage_count", 2}};
    kv_task_set *set = load_shared("longbench", "data/longbench/minilongbench.jsonl", 0, 0, 0);
    assert_int_equal(kv_task_count(set), 124);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        assert_int_equal(of_stratum(set, counts[i].task), counts[i].n);
    for (size_t i = 0; i < 124; i++) {
        const kv_sample *s = kv_task_at(set, i);
        /* The reference is its own best answer, as far as the metric allows: a class that holds another's name does not
         * reach 1, and neither do lines of code with # or //. */
        double own = kv_metric_score(s, 0, s->turns->answers[0]);
        assert_true(own > 0.99 || s->metric == KV_METRIC_CLASSES || s->metric == KV_METRIC_EDIT_SIM);
        assert_true(own >= 0.5 || s->metric == KV_METRIC_EDIT_SIM);
        assert_float_equal(kv_metric_score(s, 0, ""), 0, 0);
        assert_true(strlen(s->context) > 4 * strlen(s->turns->question));
    }
    kv_task_free(&set);
    set = load_shared("longbench", "data/longbench/minilongbench.jsonl", 4096, 0, 42);
    assert_int_equal(kv_task_count(set), 42);
    for (size_t i = 0; i < 42; i++) assert_true(total_tokens(kv_task_at(set, i)) <= 4096 - 60);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) assert_true(of_stratum(set, counts[i].task) >= 1);
    kv_task_free(&set);
}

static void shared_others(void **state) {
    (void)state;
    kv_task_set *set = load_shared("kvretrieval", "data/kv-retrieval/kv-retrieval-75_keys.jsonl.gz", 0, 0, 0);
    assert_int_equal(of_stratum(set, "keys-75"), 500);
    kv_task_free(&set);
    set = load_shared("longeval", "data/longeval/200_lines.jsonl", 0, 5, 0);
    assert_int_equal(of_stratum(set, "lines-200"), 50);
    kv_task_free(&set);
    set = load_shared("longeval", "data/longeval/600_lines.jsonl", 2048, 0, 0);
    assert_int_equal(kv_task_count(set), 50);
    for (size_t i = 0; i < 50; i++) assert_true(total_tokens(kv_task_at(set, i)) <= 2048);
    kv_task_free(&set);
    set = load_shared("longeval", "data/longeval/5_topics.jsonl", 0, 5, 0);
    assert_int_equal(of_stratum(set, "topics-5"), 50);
    kv_task_free(&set);
    set = load_shared("longeval", "data/longeval/10_topics.jsonl", 4096, 2, 0);
    assert_int_equal(kv_task_count(set), 50);
    kv_task_free(&set);
    set = load_shared("gsm8k", "data/gsm8k/test.jsonl", 4096, 0, 0);
    assert_int_equal(kv_task_count(set), 1319);
    kv_task_free(&set);
    set = load_shared("needle", "data/text/pg2600_war_and_peace.txt", 16384, 0, 0);
    assert_int_equal(kv_task_count(set), 24);
    kv_task_free(&set);
    set = load_shared("repeat", "data/text/pg2600_war_and_peace.txt", 4096, 0, 60);
    assert_int_equal(kv_task_count(set), 60);
    kv_task_free(&set);
}

static void registry(void **state) {
    (void)state;
    uint32_t n = 0;
    const char *line, *name;
    for (; (name = kv_task_name_at(n, &line)); n++) {
        assert_string_equal(name, task_names[n]);
        assert_true(line[0]);
    }
    assert_int_equal(n, 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registry),         cmocka_unit_test(longbench_errors), cmocka_unit_test(subsets),
        cmocka_unit_test(independent),      cmocka_unit_test(any_file),         cmocka_unit_test(no_memory),
        cmocka_unit_test(shared_longbench), cmocka_unit_test(shared_others),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
