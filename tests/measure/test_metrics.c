/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metrics of the evaluation tasks against: values of the published definitions computed apart with Python (its own
 * difflib for the edit similarity); brute force over all subsequences for ROUGE-L; counting by hand for F1; a naive
 * transcription of the matching-block definition on random strings.
 */
#include "support/support.h"

#include <math.h>

#include "measure/metric.h"
#include "measure/task.h"

static double score(kv_metric m, const char *answer, const char *reference) {
    kv_turn turn = {"", "", &reference, 1};
    kv_sample s = {.turns = &turn, .n_turns = 1, .metric = m};
    return kv_metric_score(&s, 0, answer);
}

typedef struct fact {
    const char *answer, *reference;
    double value;
} fact;

static void f1_facts(void **state) {
    (void)state;
    static const fact facts[] = {
        {"The Lord of the Rings", "Lord of Rings", 1.0},
        {"a cat, an apple and the dog.", "Cat apple dog", 0.857142857143},
        {"don't stop", "dont stop", 1.0},
        {"Paris", "London", 0.0},
        {"", "Paris", 0.0},
        {"yes yes yes no", "yes no no", 0.571428571429},
        {"in 1984 \342\200\223 the a\342\200\223b war", "1984 ab war b", 0.444444444444},
        {"\303\211COLE Normale Sup\303\251rieure", "\303\251cole normale sup\303\251rieure", 1.0},
        {"theatre another answer", "the an a", 0.0},
        {"Stra\303\237e\302\240Nord\343\200\200S\303\274d", "stra\303\237e nord s\303\274d", 1.0},
        {"1,234.5 km", "12345 km", 1.0},
        {"the", "a", 0.0},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        assert_float_equal(score(KV_METRIC_F1, facts[i].answer, facts[i].reference), facts[i].value, 1e-11);
}

/* Words "a".."e", by counting each. */
static void f1_random(void **state) {
    (void)state;
    uint64_t rng = 3;
    for (int rep = 0; rep < 500; rep++) {
        char text[2][64];
        uint32_t count[2][5] = {{0}}, n[2], shared = 0;
        for (int k = 0; k < 2; k++) {
            n[k] = test_rand(&rng) % 12;
            text[k][0] = 0;
            for (uint32_t i = 0; i < n[k]; i++) {
                uint32_t w = test_rand(&rng) % 5;
                count[k][w]++;
                sprintf(text[k] + strlen(text[k]), "%s%c%c", i ? " " : "", 'b' + (int)w, 'B' + (int)w);
            }
        }
        for (int w = 0; w < 5; w++) shared += count[0][w] < count[1][w] ? count[0][w] : count[1][w];
        double p = n[0] ? (double)shared / n[0] : 0, r = n[1] ? (double)shared / n[1] : 0;
        double want = shared ? 2 * p * r / (p + r) : 0;
        assert_float_equal(score(KV_METRIC_F1, text[0], text[1]), want, 1e-12);
    }
}

static void rouge_facts(void **state) {
    (void)state;
    static const fact facts[] = {
        {"the cat sat on the mat", "the cat is on the mat", 0.799999995000},
        {"One two three. Four five six.", "one two three. Four six seven. ", 0.615384610414},
        {"police killed the gunman", "police kill the gunman", 0.749999995000},
        {"w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 0.615384610651}, /* the union of Lin's own example */
        {"a b c d e f g", "g f e d c b a", 0.142857137857},
        {"x y x y x", "y x y", 0.999999995000},
        {"...", "abc", 0.0},
        {"", "abc", 0.0},
        {"end. \n", "end.", 0.666666662222},
        {"The summary covers costs. It names 3.5 percent growth. Risks stay high",
         "Costs are covered by the summary. Growth of 3.5 percent is named. Risks remain", 0.357142852168},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        assert_float_equal(score(KV_METRIC_ROUGE_L, facts[i].answer, facts[i].reference), facts[i].value, 1e-11);
}

/* Longest common subsequence of two sequences of different letters, over all 2^n choices from the first. */
static uint32_t brute_lcs(const char *x, const char *y) {
    uint32_t n = (uint32_t)strlen(x), best = 0;
    for (uint32_t set = 0; set < 1u << n; set++) {
        uint32_t size = 0;
        const char *at = y;
        for (uint32_t i = 0; i < n && at; i++)
            if (set >> i & 1) {
                at = strchr(at, x[i]);
                if (at) at++, size++;
            }
        if (at && size > best) best = size;
    }
    return best;
}

static void rouge_brute_force(void **state) {
    (void)state;
    uint64_t rng = 5;
    for (int rep = 0; rep < 300; rep++) {
        char letters[2][12], text[2][32];
        uint32_t n[2];
        for (int k = 0; k < 2; k++) {
            char all[] = "abcdefghijklmn";
            n[k] = 1 + test_rand(&rng) % 10;
            for (uint32_t i = 0; i < n[k]; i++) {
                uint32_t j = i + test_rand(&rng) % (14 - i);
                char c = all[j];
                all[j] = all[i];
                all[i] = c;
                letters[k][i] = c;
                text[k][2 * i] = c;
                text[k][2 * i + 1] = ' ';
            }
            letters[k][n[k]] = text[k][2 * n[k]] = 0;
        }
        uint32_t common = brute_lcs(letters[0], letters[1]);
        double p = (double)common / n[0], r = (double)common / n[1];
        double want = common ? 2 * p * r / (p + r) : 0;
        assert_float_equal(score(KV_METRIC_ROUGE_L, text[0], text[1]), want, 1e-7);
    }
}

static void chinese(void **state) {
    (void)state;
    /* Six characters each, five of them shared; punctuation does not count, white space neither. */
    assert_float_equal(score(KV_METRIC_F1_ZH, "北京在中国南。", "北京， 在中国北"), 2.0 * 5 / 12, 1e-12);
    /* Latin words and numbers are units: NOVA = nova, 3.5% = 3.5%, 12 is not 1 and 2. */
    assert_float_equal(score(KV_METRIC_F1_ZH, "nova增长3.5%", "NOVA 增长 3.5%"), 1.0, 1e-12);
    assert_float_equal(score(KV_METRIC_F1_ZH, "12", "1 2"), 0.0, 1e-12);
    /* Characters in order: 我 爱 你 of four and four. */
    assert_float_equal(score(KV_METRIC_ROUGE_L_ZH, "我很爱你", "我爱着你"), 0.75, 1e-7);
    assert_float_equal(score(KV_METRIC_ROUGE_L_ZH, "你爱我", "我爱你"), 1.0 / 3, 1e-7);
}

static void edit_facts(void **state) {
    (void)state;
    static const fact facts[] = {
        {"    int x = 1;\n    return x;", "    int x = 10;", 0.97},
        {"# comment\n// more\n```\nfoo(bar)\n", "foo(baz)", 0.88},
        {"\n\nreturn self.value", "return self._value", 0.97},
        {"`all`\n# commented", "x", 0.00},
        {"abcd", "bcde", 0.75},
        {"private Thread currentThread;", "private volatile Thread currentThread;", 0.87},
        {"qabxcd", "abycdf", 0.67},
        {"", "x = 1", 0.00},
        {"same", "same", 1.00},
        {"tide", "diet", 0.25}, /* blocks, not the longest common subsequence, which would give 0.5 */
        {"na\303\257ve caf\303\251", "naive caf\303\251", 0.90},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        assert_float_equal(score(KV_METRIC_EDIT_SIM, facts[i].answer, facts[i].reference), facts[i].value, 1e-12);
    /* 288 characters of eight equal pieces: every character is frequent, and none but 'd' starts a block. */
    char a[512] = "", b[512] = "";
    for (int i = 0; i < 8; i++) {
        strcat(a, "value = compute(alpha, beta, gamma)");
        strcat(b, "value = calculate(alpha, beta, delta)");
    }
    assert_float_equal(kv_text_ratio(a, strlen(a), b, strlen(b)), 0.03125, 1e-12);
}

/* The definition, with every block compared at every place. */
static uint32_t naive_blocks(const char *a, uint32_t na, const char *b, uint32_t nb) {
    uint32_t best = 0, x = 0, y = 0;
    for (uint32_t i = 0; i < na; i++)
        for (uint32_t j = 0; j < nb; j++) {
            uint32_t k = 0;
            while (i + k < na && j + k < nb && a[i + k] == b[j + k]) k++;
            if (k > best) best = k, x = i, y = j;
        }
    if (!best) return 0;
    return best + naive_blocks(a, x, b, y) + naive_blocks(a + x + best, na - x - best, b + y + best, nb - y - best);
}

static void edit_random(void **state) {
    (void)state;
    uint64_t rng = 7;
    for (int rep = 0; rep < 400; rep++) {
        char t[2][64];
        uint32_t n[2], letters = 1 + test_rand(&rng) % 6;
        for (int k = 0; k < 2; k++) {
            n[k] = test_rand(&rng) % 60;
            for (uint32_t i = 0; i < n[k]; i++) t[k][i] = (char)('a' + test_rand(&rng) % letters);
        }
        double want = n[0] + n[1] ? 2.0 * naive_blocks(t[0], n[0], t[1], n[1]) / (n[0] + n[1]) : 1;
        assert_float_equal(kv_text_ratio(t[0], n[0], t[1], n[1]), want, 1e-12);
    }
}

static double class_score(const char *const *classes, uint32_t n, bool first_line, const char *answer,
                          const char *reference) {
    kv_turn turn = {"", "", &reference, 1};
    kv_sample s = {.turns = &turn,
                   .n_turns = 1,
                   .metric = KV_METRIC_CLASSES,
                   .classes = classes,
                   .n_classes = n,
                   .first_line = first_line};
    return kv_metric_score(&s, 0, answer);
}

static void classes(void **state) {
    (void)state;
    static const char *const c[] = {"City", "Location", "Other location", "Price"};
    assert_float_equal(class_score(c, 4, false, "City", "City"), 1, 0);
    assert_float_equal(class_score(c, 4, false, "City or Price", "City"), 0.5, 0);
    assert_float_equal(class_score(c, 4, false, "Price", "City"), 0, 0);
    assert_float_equal(class_score(c, 4, false, "none of them", "City"), 0, 0);
    assert_float_equal(class_score(c, 4, true, "\n City\nPrice", "City"), 1, 0); /* the first line alone */
    assert_float_equal(class_score(c, 4, false, "\n City\nPrice", "City"), 0.5, 0);
    /* "a" is a part of the right name and goes; its going skips "b"; "ab" goes: two are left. */
    static const char *const parts[] = {"a", "b", "ab", "ab c"};
    assert_float_equal(class_score(parts, 4, false, "ab c", "ab c"), 0.5, 0);
}

static void numbers(void **state) {
    (void)state;
    assert_float_equal(score(KV_METRIC_RETRIEVAL, "Paragraph 12", "Paragraph 12"), 1, 0);
    assert_float_equal(score(KV_METRIC_RETRIEVAL, "12 or 13", "Paragraph 12"), 0.5, 0);
    assert_float_equal(score(KV_METRIC_RETRIEVAL, "Paragraph 2", "Paragraph 12"), 0, 0);
    assert_float_equal(score(KV_METRIC_RETRIEVAL, "no number", "Paragraph 12"), 0, 0);
    assert_float_equal(score(KV_METRIC_RETRIEVAL_ZH, "段落24", "段落24"), 1, 0);
    assert_float_equal(score(KV_METRIC_RETRIEVAL_ZH, "段落2 段落4", "段落24"), 0, 0);
    assert_float_equal(score(KV_METRIC_COUNT, "The answer is 46", "46"), 1, 0);
    assert_float_equal(score(KV_METRIC_COUNT, "46 of 50, so 46 and 4", "46"), 0.5, 0);
    assert_float_equal(score(KV_METRIC_COUNT, "046", "46"), 0, 0);
    static const struct {
        const char *answer, *reference;
        int right;
    } last[] = {
        {"so 3 + 4 = 7. The answer is 18.", "18", 1},
        {"$1,018", "1018", 1},
        {"1018.00 dollars", "1,018", 1},
        {"18 of 20", "18", 0},
        {"-5 degrees", "-5", 1},
        {"10-5", "5", 1},
        {"5", "-5", 0},
        {"no", "0", 0},
        {"0.50", "0.5", 1},
        {".5", "5", 1},
        {"007", "7", 1},
        {"2416>", "2416", 1},
        {"24166>", "2416", 0},
        {"-0", "0", 1},
        {"0", "0.0", 1},
        {"1.25", "1.2", 0},
        {"", "1", 0},
    };
    for (size_t i = 0; i < sizeof last / sizeof *last; i++)
        assert_float_equal(score(KV_METRIC_NUMBER, last[i].answer, last[i].reference), last[i].right, 0);
    char digits[300];
    memset(digits, '7', 299);
    digits[299] = 0;
    assert_float_equal(score(KV_METRIC_NUMBER, digits, digits), 0, 0); /* longer than any number is */
    assert_float_equal(score(KV_METRIC_SUBSTRING, "it is D1FF29BE-4e2a, I think", "d1ff29be-4E2A"), 1, 0);
    assert_float_equal(score(KV_METRIC_SUBSTRING, "d1ff29be-4e2", "d1ff29be-4e2a"), 0, 0);
}

static void best_of_answers(void **state) {
    (void)state;
    const char *refs[] = {"London", "Paris, France", "Paris"};
    kv_turn turns[2] = {{"", "", refs, 1}, {"", "", refs, 3}};
    kv_sample s = {.turns = turns, .n_turns = 2, .metric = KV_METRIC_F1};
    assert_float_equal(kv_metric_score(&s, 0, "paris"), 0, 0);
    assert_float_equal(kv_metric_score(&s, 1, "paris"), 1, 0);
    assert_true(isnan(kv_metric_score(&s, 2, "paris")));
    s.first_line = true;
    assert_float_equal(kv_metric_score(&s, 1, "\n\nParis\nis in France"), 1, 0);
}

static void names(void **state) {
    (void)state;
    for (kv_metric m = 0; m < KV_METRICS; m++) assert_int_equal(kv_metric_find(kv_metric_name(m)), m);
    assert_int_equal(kv_metric_find("bleu"), KV_METRICS);
}

/* Any bytes: a score in [0, 1], and 1 for a reference against itself where it has anything to compare. */
static void any_bytes(void **state) {
    (void)state;
    uint64_t rng = 11;
    for (int rep = 0; rep < 3000; rep++) {
        char a[80], b[80];
        for (int k = 0; k < 2; k++) {
            char *t = k ? b : a;
            uint32_t n = test_rand(&rng) % 79;
            /* bytes, or pieces of characters and marks that the metrics know */
            static const char some[] = "a. 1,-\n\t`#/\xe6\xae\xb5\xe8\x90\xbd\xe3\x80\x82\xc8\xba\xf0\x9f\x98\x82";
            for (uint32_t i = 0; i < n; i++)
                t[i] = rep & 1 ? some[test_rand(&rng) % (sizeof some - 1)] : (char)(1 + test_rand(&rng) % 255);
            t[n] = 0;
        }
        for (kv_metric m = 0; m < KV_METRIC_NLL; m++) {
            double v = m == KV_METRIC_CLASSES ? class_score((const char *[]){b, a}, 2, rep & 2, a, b) : score(m, a, b);
            assert_true(v >= 0 && v <= 1);
        }
        assert_float_equal(kv_text_ratio(a, strlen(a), a, strlen(a)), 1, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f1_facts),          cmocka_unit_test(f1_random), cmocka_unit_test(rouge_facts),
        cmocka_unit_test(rouge_brute_force), cmocka_unit_test(chinese),   cmocka_unit_test(edit_facts),
        cmocka_unit_test(edit_random),       cmocka_unit_test(classes),   cmocka_unit_test(numbers),
        cmocka_unit_test(best_of_answers),   cmocka_unit_test(names),     cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
