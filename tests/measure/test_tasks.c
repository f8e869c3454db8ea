/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The evaluation tasks on small files written here: what a sample holds is checked against the file as this test wrote
 * it, and lengths by this test's own count of tokens.
 */
#include "task_files.h"

#include <math.h>

/* ---- kvretrieval ---- */

static void kvretrieval(void **state) {
    (void)state;
    write_pairs(5, 30, true);
    kv_task_params p = params("kvretrieval", 100000);
    for (int pass = 0; pass < 3; pass++) {
        p.questions = pass == 1 ? 4 : 0;
        if (pass == 2) p.n_ctx = 420; /* fewer than all pairs */
        kv_task_set *set = load(&p);
        assert_int_equal(kv_task_count(set), 5);
        uint32_t keep = 0;
        for (uint32_t r = 0; r < 5; r++) {
            const kv_sample *s = kv_task_at(set, r);
            assert_int_equal(s->n_turns, pass == 1 ? 4 : 1);
            assert_int_equal(s->metric, KV_METRIC_SUBSTRING);
            assert_true(isnan(s->depth));
            /* what the context holds: pairs of the record, in its order, each once */
            uint32_t held = 0;
            const char *before = NULL;
            for (uint32_t i = 0; i < 30; i++) {
                char k[32], v[32], both[80];
                key_of(k, r, i, 'k');
                key_of(v, r, i, 'v');
                sprintf(both, "\"%s\": \"%s\"", k, v);
                const char *at = strstr(s->context, both);
                if (!at) continue;
                assert_true(!before || at > before);
                before = at;
                held++;
            }
            assert_int_equal(occurrences(s->context, "\": \""), held);
            if (r == 0) keep = held;
            assert_int_equal(held, keep);
            char stratum[32];
            sprintf(stratum, "keys-%u", held);
            assert_string_equal(s->stratum, stratum);
            for (uint32_t t = 0; t < s->n_turns; t++) {
                char both[80];
                sprintf(both, "%s%s\"", s->turns[t].lead, s->turns[t].answers[0]);
                assert_non_null(strstr(s->context, both));
                assert_non_null(strstr(s->turns[t].question, s->turns[t].answers[0][0] == 'v' ? "\"k" : "?"));
                for (uint32_t u = 0; u < t; u++) assert_string_not_equal(s->turns[t].lead, s->turns[u].lead);
            }
            char first[32];
            key_of(first, r, r % 30, 'v');
            assert_string_equal(s->turns[0].answers[0], first);
            assert_true(total_tokens(s) <= p.n_ctx);
            assert_float_equal(kv_metric_score(s, 0, "\n\"x\""), 0, 0);
            assert_float_equal(kv_metric_score(s, 0, first), 1, 0);
        }
        if (pass < 2)
            assert_int_equal(keep, 30);
        else
            assert_in_range(keep, 18, 29); /* 420 - 64 - 40 - the question's about 50 tokens, 12 a pair */
        kv_task_free(&set);
        assert_null(set);
    }
    p.n_ctx = 120;
    refused(&p, KVIST_E_CONTEXT, file, "120 tokens");
    p.n_ctx = 100000;
    p.questions = 31;
    refused(&p, KVIST_E_ARG, "31 questions", "30 pairs");
}

/* ---- longeval ---- */

static uint32_t lines_named(const char *lead) {
    uint32_t n = 0;
    for (int i = 0; i < 22; i++)
        n += !strncmp(lead + 5, line_names[i], strlen(line_names[i])) && lead[5 + strlen(line_names[i])] == ':';
    return n;
}

static void longeval_lines(void **state) {
    (void)state;
    write_lines();
    kv_task_params p = params("longeval", 4096);
    for (int pass = 0; pass < 2; pass++) {
        p.questions = 3;
        if (pass) p.n_ctx = 350;
        kv_task_set *set = load(&p);
        assert_int_equal(kv_task_count(set), 4);
        bool moved = false;
        for (uint32_t r = 0; r < 4; r++) {
            const kv_sample *s = kv_task_at(set, r);
            assert_string_equal(s->stratum, pass ? "lines-10" : "lines-22");
            assert_int_equal(occurrences(s->context, "line "), pass ? 10 : 22);
            assert_int_equal(s->metric, KV_METRIC_NUMBER);
            assert_true(s->first_line && s->chat);
            for (uint32_t t = 0; t < 3; t++) {
                char line[80], answer[32];
                sprintf(line, "%s%s>\n", s->turns[t].lead, s->turns[t].answers[0]);
                assert_int_equal(occurrences(s->context, line), 1);
                assert_int_equal(lines_named(line), 1); /* a name that stands twice is never asked for */
                sprintf(answer, "%s>\nline x: <7>", s->turns[t].answers[0]);
                assert_float_equal(kv_metric_score(s, t, answer), 1, 0);
                sprintf(answer, "%s9>", s->turns[t].answers[0]);
                assert_float_equal(kv_metric_score(s, t, answer), 0, 0);
            }
            char first[32];
            sprintf(first, "%u", 100 * r + 1000 + r);
            assert_string_equal(s->turns[0].answers[0], first);
            moved |= strstr(s->context, "odd-fox") > strstr(s->context, "dry-oak") && strstr(s->context, "dry-oak");
            assert_true(total_tokens(s) <= p.n_ctx);
        }
        if (!pass) assert_true(moved);
        kv_task_free(&set);
    }
}

static void longeval_topics(void **state) {
    (void)state;
    static const char text[] =
        "{\"topics\": [\"The sea\", \"Old clocks\", \"The art of tea\"], \"prompt\": \"Below is a record. 'I would "
        "like to "
        "discuss the topic of <TOPIC>'. Now the record start. USER: I would like to discuss the topic of the sea. \\n "
        "ASSISTANT: Sure! \\n USER: I would like to discuss the topic of old clocks. \\n ASSISTANT: Fine. \\n USER: I "
        "would "
        "like to discuss the topic of the art of tea. \\n ASSISTANT: Good. \\n USER: Great, let's talk about the next "
        "topic. "
        "Now the record ends. What is the first topic we discussed?\"}\n";
    write_file(text, sizeof text - 1);
    kv_task_params p = params("longeval", 0);
    p.questions = 2;
    kv_task_set *set = load(&p);
    const kv_sample *s = kv_task_at(set, 0);
    assert_string_equal(s->stratum, "topics-3");
    assert_string_equal(s->id, "topics3-0");
    assert_non_null(strstr(s->context, "the art of tea. \n ASSISTANT: Good."));
    assert_null(strstr(s->context, "first topic"));
    assert_null(strstr(s->context, "Now the record"));
    assert_non_null(strstr(s->turns[0].question, "first"));
    assert_non_null(strstr(s->turns[1].question, "second"));
    assert_float_equal(kv_metric_score(s, 0, "the Sea"), 1, 0);
    assert_float_equal(kv_metric_score(s, 0, "Sea"), 1, 0); /* with or without its article */
    assert_float_equal(kv_metric_score(s, 1, "the sea"), 0, 0);
    assert_float_equal(kv_metric_score(s, 1, "old clocks."), 1, 0);
    kv_task_free(&set);
    p.questions = 4;
    refused(&p, KVIST_E_ARG, "4 questions", "line 1");
}

/* ---- texts ---- */

/* A book: sentences of words with their own numbers, lines of about 70 columns, head and foot of Project Gutenberg. */
static void write_book(uint32_t sentences) {
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fprintf(
        f,
        "\xef\xbb\xbfThe Project Gutenberg EBook\r\nLicence words\r\n*** START OF THIS EBOOK ***\r\n\r\n\r\n\r\n\r\n");
    for (uint32_t i = 0; i < sentences; i++)
        fprintf(f, "The man named m%u walked along street s%u.%s", i, i * 7 % 1000, i % 3 == 2 ? "\r\n" : " ");
    fprintf(f, "\r\n*** END OF THIS EBOOK ***\r\nlicence again\r\n");
    assert_int_equal(fclose(f), 0);
}

static void needle(void **state) {
    (void)state;
    write_book(6000);
    kv_task_params p = params("needle", 4096);
    p.n_lengths = 3;
    p.n_depths = 5;
    p.repeats = 2;
    kv_task_set *set = load(&p);
    assert_int_equal(kv_task_count(set), 30);
    uint32_t different = 0;
    for (uint32_t i = 0; i < 30; i++) {
        const kv_sample *s = kv_task_at(set, i);
        char stratum[32], fact[128];
        assert_float_equal(s->depth, (double)(i / 2 % 5) / 4, 1e-12);
        sprintf(stratum, "needle-%u", s->length);
        assert_string_equal(s->stratum, stratum);
        assert_int_equal(s->length % 64, 0);
        assert_in_range(tokens(s->context), s->length - s->length / 30 - 2, s->length + 8);
        assert_true(total_tokens(s) + 32 <= 4096);
        /* the sentence: once, whole, where the depth says */
        sprintf(fact, "%s %s.", s->turns->lead, s->turns->answers[0]);
        assert_int_equal(occurrences(s->context, fact), 1);
        double at = (double)(strstr(s->context, fact) - s->context) / (double)strlen(s->context);
        assert_true(fabs(at - s->depth) < 0.06 + 120.0 / (double)strlen(s->context));
        if (s->depth == 1) assert_string_equal(s->context + strlen(s->context) - strlen(fact), fact);
        assert_null(strchr(s->context, '\r'));
        assert_null(strstr(s->context, "icence"));
        different += i && strcmp(s->turns->answers[0], kv_task_at(set, i - 1)->turns->answers[0]) != 0;
        assert_float_equal(kv_metric_score(s, 0, fact), 1, 0);
    }
    assert_int_equal(different, 29);
    kv_task_free(&set);
    p.n_lengths = 1000;
    refused(&p, KVIST_E_ARG, "1000 lengths", "64");
    p = params("needle", 0);
    refused(&p, KVIST_E_ARG, "how long", "n_ctx");
    p = params("needle", 100000);
    write_book(100);
    refused(&p, KVIST_E_ARG, file, "too short");
    p = params("repeat", 2048);
    p.n_depths = 2;
    refused(&p, KVIST_E_ARG, "repeat", "grid");
}

static void repeat(void **state) {
    (void)state;
    write_book(6000);
    kv_task_params p = params("repeat", 2048);
    kv_task_set *set = load(&p);
    assert_int_equal(kv_task_count(set), 24);
    for (uint32_t i = 0; i < 24; i++) {
        const kv_sample *s = kv_task_at(set, i);
        uint32_t want = (uint32_t)atoi(s->stratum + strlen("passage-"));
        char *passage = malloc(strlen(s->turns->question) + strlen(s->turns->answers[0]) + 1);
        sprintf(passage, "%s%s", s->turns->question, s->turns->answers[0]);
        assert_int_equal(s->metric, KV_METRIC_NLL);
        assert_false(s->chat);
        assert_in_range(tokens(passage), want - want / 8 - 4, want + 1);
        assert_in_range(tokens(s->turns->question), 30, 41);
        assert_int_equal(occurrences(s->context, passage), 1);
        assert_true(strstr(s->context, passage) - s->context < (long)strlen(s->context) / 2 + 200);
        assert_int_equal(s->max_new, tokens(s->turns->answers[0]));
        assert_true(total_tokens(s) <= 2048 && total_tokens(s) > 1700);
        free(passage);
    }
    kv_task_free(&set);
    p.n_ctx = 200;
    refused(&p, KVIST_E_CONTEXT, "repeat-", "200 tokens");
}

static void gsm8k(void **state) {
    (void)state;
    FILE *f = fopen(file, "w");
    for (int i = 0; i < 30; i++)
        fprintf(f,
                "{\"question\": \"What is %d and one?\", \"answer\": \"Add one to %d.\\nThat makes %d + 1 = "
                "<<%d+1=%d>>%d.\\n#### "
                "%d,%03d\"}\n",
                i, i, i, i, i + 1, i + 1, i + 1, 0);
    assert_int_equal(fclose(f), 0);
    kv_task_params p = params("gsm8k", 4096);
    kv_task_set *set = load(&p);
    assert_int_equal(kv_task_count(set), 30);
    for (int i = 0; i < 30; i++) {
        const kv_sample *s = kv_task_at(set, (size_t)i);
        char text[160], own[64];
        int shots = 0;
        for (int k = 0; k < 30; k++) {
            sprintf(text,
                    "Question: What is %d and one?\nAnswer: Add one to %d. That makes %d + 1 = %d. The answer is "
                    "%d,000.\n\n",
                    k, k, k, k + 1, k + 1);
            uint32_t n = occurrences(s->context, text);
            assert_true(n <= (k == i ? 0 : 1));
            shots += (int)n;
        }
        assert_int_equal(shots, 8);
        sprintf(own, "Question: What is %d and one?\nAnswer:", i);
        assert_string_equal(s->turns->question, own);
        sprintf(own, " It is %d,000.\nQuestion: 5", i + 1);
        assert_float_equal(kv_metric_score(s, 0, own), 1, 0);
    }
    kv_task_free(&set);
    p.n_ctx = 500;
    refused(&p, KVIST_E_CONTEXT, "gsm8k-0", "500 tokens");
    p.n_ctx = 4096;
    p.questions = 2;
    refused(&p, KVIST_E_ARG, "one question", "gsm8k");
}

/* ---- longbench ---- */

static void longbench(void **state) {
    (void)state;
    static const char text[] =
        "{\"task\": \"hotpotqa\", \"idx\": 3, \"prompt\": \"Answer the question based on the given passages. The "
        "following.\\n"
        "Passage 1: a b c. \\n\\nAnswer the question based on the given passages. Only.\\n\\nQuestion: "
        "Who?\\nAnswer:\", "
        "\"answers\": [\"Ann\", \"Ann B.\"]}\n\n"
        "{\"task\": \"trec\", \"idx\": \"x\", \"prompt\": \"Types.\\n\\nQuestion: 1 ?\\nType: City\\nQuestion: 2 "
        "?\\nType:\", "
        "\"answers\": [\"City\"], \"all_classes\": [\"City\", \"Price\"]}\n"
        "{\"task\": \"lcc\", \"prompt\": \"Please complete the code given below. \\nint x;\\nNext line of code:\\n\", "
        "\"answers\": [\"int y;\"]}\n"
        "{\"task\": \"notes\", \"prompt\": \"One.\\n\\nTwo.\\n\\nWhat is it?\", \"answers\": [\"Two\"], \"metric\": "
        "\"substring\", \"max_new\": 7, \"chat\": false, \"first_line\": true}\r\n"
        "{\"task\": \"notes\", \"idx\": 9, \"context\": \"One.\", \"question\": \" What?\", \"answers\": [\"Two\"]}";
    write_file(text, sizeof text - 1);
    kv_task_params p = params("longbench", 0);
    kv_task_set *set = load(&p);
    assert_int_equal(kv_task_count(set), 5);
    const kv_sample *s = kv_task_at(set, 0);
    assert_string_equal(s->id, "hotpotqa-3");
    assert_string_equal(s->context,
                        "Answer the question based on the given passages. The following.\nPassage 1: a b c. ");
    assert_string_equal(s->turns->question,
                        "\n\nAnswer the question based on the given passages. Only.\n\nQuestion: Who?\nAnswer:");
    assert_int_equal(s->turns->n_answers, 2);
    assert_int_equal(s->metric, KV_METRIC_F1);
    assert_int_equal(s->max_new, 32);
    assert_true(s->chat && !s->first_line);
    s = kv_task_at(set, 1);
    assert_string_equal(s->id, "trec-x");
    assert_string_equal(s->turns->question, "\nQuestion: 2 ?\nType:");
    assert_int_equal(s->n_classes, 2);
    assert_true(!s->chat && s->first_line && s->metric == KV_METRIC_CLASSES && s->max_new == 64);
    s = kv_task_at(set, 2);
    assert_string_equal(s->id, "lcc-line4"); /* the empty line counts */
    assert_string_equal(s->turns->question, "Next line of code:\n");
    assert_true(s->metric == KV_METRIC_EDIT_SIM && !s->chat && !s->first_line);
    s = kv_task_at(set, 3);
    assert_string_equal(s->context, "One.\n\nTwo.");
    assert_string_equal(s->turns->question, "\n\nWhat is it?");
    assert_true(s->metric == KV_METRIC_SUBSTRING && s->max_new == 7 && !s->chat && s->first_line);
    s = kv_task_at(set, 4);
    assert_string_equal(s->context, "One.");
    assert_string_equal(s->turns->question, " What?");
    assert_true(s->metric == KV_METRIC_F1 && s->chat);
    kv_task_free(&set);
}

/* Of every task the first reference, word apart from word, and room for it instead of for an answer. */
static void likelihood(void **state) {
    (void)state;
    static const char text[] =
        "{\"task\": \"hotpotqa\", \"prompt\": \"Text.\\n\\nAnswer the question based on the passages. Who?\\nAnswer:\", "
        "\"answers\": [\"Ann and somebody\", \"Ann B.\"]}\n"
        "{\"task\": \"trec\", \"prompt\": \"Types.\\n\\nQuestion: 1 ?\\nType:\", \"answers\": [\"City\"], "
        "\"all_classes\": [\"City\", \"Price\"]}\n"
        "{\"task\": \"lcc\", \"prompt\": \"int x;\\nNext line of code:\\n\", \"answers\": [\"int y;\"]}\n"
        "{\"task\": \"notes\", \"prompt\": \"One.\\n\\nWhat (\", \"answers\": [\"Two\"], \"chat\": false}\n"
        "{\"task\": \"notes\", \"prompt\": \"One.\\n\\nWhat is\", \"answers\": [\"Two\"], \"chat\": false}\n"
        "{\"task\": \"notes\", \"prompt\": \"One.\\n\\nWhat is\", \"answers\": [\"-2\"], \"chat\": false}\n";
    static const char *const want[] = {"Ann and somebody", " City", "int y;", "Two", " Two", "-2"};
    write_file(text, sizeof text - 1);
    kv_task_params p = params("longbench", 0);
    p.likelihood = true;
    kv_task_set *set = load(&p);
    assert_int_equal(kv_task_count(set), 6);
    for (size_t i = 0; i < 6; i++) {
        const kv_sample *s = kv_task_at(set, i);
        assert_int_equal(s->metric, KV_METRIC_NLL);
        assert_int_equal(s->turns->n_answers, 1);
        assert_string_equal(s->turns->answers[0], want[i]);
        assert_true(s->max_new <= tokens("Ann and somebody"));
    }
    kv_task_free(&set);
    write_pairs(2, 8, false);
    p = params("kvretrieval", 4096);
    p.likelihood = true;
    set = load(&p);
    for (size_t i = 0; i < 2; i++) {
        const kv_sample *s = kv_task_at(set, i);
        char pair[96]; /* as the context has it: nothing between the quote and the value */
        sprintf(pair, "%s%s\"", s->turns->lead, s->turns->answers[0]);
        assert_int_equal(occurrences(s->context, pair), 1);
        assert_int_equal(s->metric, KV_METRIC_NLL);
    }
    kv_task_free(&set);
}

/* Contexts lose their middle: what is left is a prefix and a suffix of like length, characters whole. */
static void truncation(void **state) {
    (void)state;
    enum { CHARS = 4000 };
    char *text = malloc(4 * CHARS + 512), *context = malloc(4 * CHARS);
    size_t n = 0;
    uint64_t rng = 2;
    for (int i = 0; i < CHARS; i++) {
        uint64_t r = test_rand(&rng);
        n += (size_t)sprintf(context + n, "%s", r % 3 == 0 ? "\xe6\xae\xb5" : r % 3 == 1 ? "a" : "\xc3\xa9");
    }
    sprintf(text,
            "{\"task\": \"qmsum\", \"prompt\": \"%s\\n\\nNow, answer the query. Query: what?\", \"answers\": [\"x\"]}",
            context);
    write_file(text, strlen(text));
    for (uint32_t n_ctx = 700; n_ctx < 3200; n_ctx += 431) {
        kv_task_params p = params("longbench", n_ctx);
        kv_task_set *set = load(&p);
        const kv_sample *s = kv_task_at(set, 0);
        size_t len = strlen(s->context), head = 0;
        assert_string_equal(s->turns->question, "\n\nNow, answer the query. Query: what?");
        size_t room = n_ctx - 64 - 512 - tokens(s->turns->question);
        if (room >= tokens(context)) {
            assert_string_equal(s->context, context);
        } else {
            while (s->context[head] == context[head]) head++;
            size_t tail = len - head;
            assert_memory_equal(s->context + head, context + n - tail, tail);
            /* the first difference may lie a little behind the cut */
            assert_true(head + 64 >= tail && head <= tail + 64);
            assert_true(tokens(s->context) <= room && tokens(s->context) + room / 50 + 6 >= room);
        }
        for (size_t i = 0; i < len;) { /* whole characters */
            unsigned char c = (unsigned char)s->context[i];
            assert_true(c < 0x80 || c >= 0xc0);
            for (i++; ((unsigned char)s->context[i] & 0xc0) == 0x80;) i++;
        }
        kv_task_free(&set);
    }
    kv_task_params p = params("longbench", 580);
    refused(&p, KVIST_E_CONTEXT, "qmsum-line1", "580");
    free(text);
    free(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kvretrieval), cmocka_unit_test(longeval_lines), cmocka_unit_test(longeval_topics),
        cmocka_unit_test(needle),      cmocka_unit_test(repeat),         cmocka_unit_test(gsm8k),
        cmocka_unit_test(longbench),   cmocka_unit_test(likelihood),     cmocka_unit_test(truncation),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
