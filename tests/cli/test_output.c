/* SPDX-License-Identifier: Apache-2.0 */
/* Tables, units, JSON lines, UTF-8 streams, questions and the cache map: what the program prints, without the program.
 */
#include "support/support.h"

#include "cli/kvmap.c"
#include "cli/output.c"
#include "cli/questions.c"
#include "text/utf8.c"

const char *kvist_format_name(uint32_t format) {
    return format == 0 ? "f16" : format == 4 ? "q2" : NULL;
} /* the engine's is not linked */

static char *text;
static size_t text_len;
static FILE *begin(void) { return open_memstream(&text, &text_len); }
static void expect(FILE *f, const char *expected) {
    fclose(f);
    assert_string_equal(text, expected);
    free(text);
}

static void tables(void **state) {
    (void)state;
    out_table t;
    kv_out_table_init(&t);
    kv_out_column(&t, "policy", true);
    kv_out_column(&t, "x", false);
    kv_out_cell(&t, "%s", "full");
    kv_out_cell(&t, "%.1f", 1.25);
    kv_out_cell(&t, "café, \"q\"");
    kv_out_cell(&t, "%d ± %d", 12345, 6);
    FILE *f = begin();
    kv_out_table_print(&t, f);
    expect(f, "| policy    |         x |\n"
              "|:----------|----------:|\n"
              "| full      |       1.2 |\n"
              "| café, \"q\" | 12345 ± 6 |\n");
    f = begin();
    kv_out_table_csv(&t, f);
    expect(f, "policy,x\nfull,1.2\n\"café, \"\"q\"\"\",12345 ± 6\n");
    kv_out_table_free(&t);
}

static void long_cells(void **state) {
    (void)state;
    out_table t;
    char s[300];
    for (int i = 0; i < 298; i += 2) memcpy(s + i, "é", 2);
    s[298] = 0;
    kv_out_table_init(&t);
    kv_out_column(&t, "a", true);
    for (int i = 0; i < 40; i++)
        kv_out_cell(&t, "%s%s", i & 1 ? "" : "x", s); /* growth, and a cut inside a character */
    assert_int_equal(t.n_rows, 40);
    for (int i = 0; i < 40; i++) {
        size_t n = strlen(t.cells[i]);
        assert_in_range(n, OUT_CELL - 3, OUT_CELL - 1);
        assert_int_equal(kv_utf8_complete(t.cells[i], n), n);
    }
    kv_out_table_free(&t);
}

static void units(void **state) {
    (void)state;
    char b[32];
    assert_string_equal(kv_out_bytes(b, sizeof b, 0), "0 B");
    assert_string_equal(kv_out_bytes(b, sizeof b, 1023), "1023 B");
    assert_string_equal(kv_out_bytes(b, sizeof b, 1024), "1.00 KiB");
    assert_string_equal(kv_out_bytes(b, sizeof b, 15 << 20), "15.0 MiB");
    assert_string_equal(kv_out_bytes(b, sizeof b, 3ull << 40), "3.00 TiB");
    assert_string_equal(kv_out_count(b, sizeof b, 0), "0");
    assert_string_equal(kv_out_count(b, sizeof b, 999), "999");
    assert_string_equal(kv_out_count(b, sizeof b, 1000), "1,000");
    assert_string_equal(kv_out_count(b, sizeof b, 1234567), "1,234,567");
    assert_string_equal(kv_out_duration(b, sizeof b, 0.4), "0 s");
    assert_string_equal(kv_out_duration(b, sizeof b, 89.4), "89 s");
    assert_string_equal(kv_out_duration(b, sizeof b, 90), "2 min");
    assert_string_equal(kv_out_duration(b, sizeof b, 3600), "60 min");
    assert_string_equal(kv_out_duration(b, sizeof b, 5400), "1.5 h");
    assert_float_equal(kv_out_rate(10, 0), 0, 0);
    assert_float_equal(kv_out_rate(10, 4), 2.5, 0);
}

static void json_lines(void **state) {
    (void)state;
    kvist_report r = {.policy = "full",
                      .tokens_seen = 7,
                      .tokens_stored = 3.5,
                      .bytes_true = 10,
                      .bytes_unique = 9,
                      .bytes_f16 = 40,
                      .bytes_peak = 50,
                      .share = 0.25,
                      .share_met = true,
                      .mass_mean = 1,
                      .mass_min = 0.5,
                      .prefill_seconds = 2,
                      .prefill_tokens = 4};
    r.pages_by_format[4] = 3;
    json_t *o = kv_out_json_report(&r);
    kv_out_json_real(o, "ppl", (double)NAN);
    kv_out_json_text(o, "text", "a\xff\"", 3);
    FILE *f = begin();
    kv_out_json_line(o, f);
    expect(
        f,
        "{\"policy\":\"full\",\"tokens_seen\":7,\"tokens_stored\":3.5,\"bytes_true\":10,\"bytes_unique\":9,\"bytes_"
        "f16\":40,\"bytes_peak\":50,"
        "\"share\":0.25,\"share_met\":true,\"mass_mean\":1.0,\"mass_min\":0.5,\"prefill_tps\":2.0,\"decode_tps\":0.0,"
        "\"pages_dropped_pressure\":0,\"pages\":{\"q2\":3},\"ppl\":null,\"text\":\"a\xef\xbf\xbd\\\"\"}\n");
}

#define FFFD "\xef\xbf\xbd"
/* Well-formed and broken sequences, and what they become: a byte that starts no character is one U+FFFD (Unicode 15,
 * table 3-7). */
static const char *const utf8_pairs[][2] = {
    {"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82z", "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82z"},
    {"b\xff\xc3(", "b" FFFD FFFD "("},
    {"\xe2\x82(", FFFD FFFD "("},
    {"\xed\xa0\x80", FFFD FFFD FFFD}, /* a surrogate */
    {"\xed\x9f\xbf", "\xed\x9f\xbf"},
    {"\xf4\x90\x80\x80", FFFD FFFD FFFD FFFD}, /* past U+10FFFF */
    {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    {"\xc0\x80\xe0\x9f\xbf\xf0\x8f\xbf\xbf", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD}, /* overlong */
    {"\xe2\x82\xf0\x9f\x99\x82", FFFD FFFD "\xf0\x9f\x99\x82"},
    {"\xe2\x82\xe2\x82\xac\xf0\x9f", FFFD FFFD "\xe2\x82\xac" FFFD FFFD},
};

/* Every split of a text, and byte by byte: the same characters, never half a one. */
static void utf8_split(const char *s, const char *expected) {
    char piece[256], joined[256];
    size_t n = strlen(s);
    kv_utf8_stream u;
    for (size_t a = 0; a <= n; a++)
        for (size_t b = a; b <= n; b++) {
            size_t at = 0, cut[4] = {0, a, b, n};
            memset(&u, 0, sizeof u);
            for (int i = 0; i < 3; i++) {
                size_t k = kv_utf8_push(&u, s + cut[i], cut[i + 1] - cut[i], piece);
                assert_int_equal(kv_utf8_complete(piece, k), k);
                memcpy(joined + at, piece, k);
                at += k;
            }
            at += kv_utf8_finish(&u, joined + at);
            joined[at] = 0;
            assert_string_equal(joined, expected);
        }
    size_t at = 0;
    memset(&u, 0, sizeof u);
    for (size_t i = 0; i < n; i++) at += kv_utf8_push(&u, s + i, 1, joined + at);
    kv_utf8_finish(&u, joined + at);
    assert_string_equal(joined, expected);
}

static void utf8_streams(void **state) {
    (void)state;
    char clean[256], all[256] = "", want[256] = "";
    for (size_t i = 0; i < sizeof utf8_pairs / sizeof *utf8_pairs; i++) {
        const char *s = utf8_pairs[i][0], *expected = utf8_pairs[i][1];
        assert_int_equal(kv_utf8_clean(s, strlen(s), clean), strlen(expected));
        assert_string_equal(clean, expected);
        utf8_split(s, expected);
        strcat(strcat(all, s), "."); /* separated, since the last one is cut off */
        strcat(strcat(want, expected), ".");
    }
    utf8_split(all, want);
}

static void questions(void **state) {
    (void)state;
    kvist_error err;
    cli_questions q;
    char *copy = kv_strndup("# facts\nWho?\tAnn|Anna\r\n\nWhen?\t1887", 100);
    assert_int_equal(kv_cli_questions_parse(copy, "f.tsv", &q, &err), KVIST_OK);
    assert_int_equal(q.n, 2);
    assert_string_equal(q.v[0].text, "Who?");
    assert_string_equal(q.v[0].expected, "Ann|Anna");
    assert_string_equal(q.v[1].expected, "1887");
    kv_cli_questions_free(&q);
    static const char *const bad[][2] = {{"Who?\tAnn\nWhen? 1887\n", "f.tsv:2: not 'question<TAB>expected'"},
                                         {"Who?\t\n", "f.tsv:1: not 'question<TAB>expected'"},
                                         {"\tx\n", "f.tsv:1: not 'question<TAB>expected'"},
                                         {"# none\n", "f.tsv has no questions"},
                                         {"", "f.tsv has no questions"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kv_cli_questions_parse(kv_strndup(bad[i][0], 100), "f.tsv", &q, &err), KVIST_E_FORMAT);
        assert_string_equal(err.message, bad[i][1]);
    }
}

static void cache_map(void **state) {
    (void)state;
    assert_string_equal(kv_cli_map_shade(0, 100), " ");
    assert_string_equal(kv_cli_map_shade(1, 100), "░");
    assert_string_equal(kv_cli_map_shade(25, 100), "░");
    assert_string_equal(kv_cli_map_shade(26, 100), "▒");
    assert_string_equal(kv_cli_map_shade(75, 100), "▓");
    assert_string_equal(kv_cli_map_shade(76, 100), "█");
    const kvist_stream_report s[] = {{.tokens_stored = 100, .pages = 7, .mass = 1},
                                     {.head = 1, .tokens_stored = 50, .pages = 4, .mass = 1},
                                     {.layer = 1, .tokens_stored = 10, .pages = 1, .mass = 0.5f},
                                     {.layer = 1, .head = 1, .tokens_stored = 30, .pages = 2, .mass = 0.25f}};
    FILE *f = begin();
    kv_cli_map_print(s, 4, 100, f);
    expect(f, "layer  heads (░ a quarter of 100 tokens stored, █ all)\n"
              "    0  ██▒▒      75 tokens a head,   11 pages\n"
              "    1  ░░▒▒      20 tokens a head,    3 pages, mass 0.375, least 0.250 (head 1)\n");
}

static void closing_report(void **state) {
    (void)state;
    kvist_report r = {.policy = "minikv,share=0.14",
                      .tokens_seen = 6000,
                      .tokens_stored = 900.5,
                      .bytes_true = 1 << 20,
                      .bytes_f16 = 8 << 20,
                      .bytes_peak = 16 << 20,
                      .share = 0.125,
                      .mass_mean = 0.9,
                      .mass_min = 0.7,
                      .mass_min_layer = 3,
                      .mass_min_head = 1,
                      .mass_position = 5932,
                      .prefill_seconds = 2,
                      .prefill_tokens = 5932,
                      .decode_seconds = 1,
                      .decode_tokens = 68};
    strcpy(r.share_note, "sinks and recent tokens take more");
    r.pages_by_format[0] = 1200;
    FILE *f = begin();
    kv_out_report(&r, f);
    expect(f, "policy  minikv,share=0.14\n"
              "speed   5,932 prompt tokens at 2966.0 tok/s, 68 generated at 68.0 tok/s\n"
              "cache   1.00 MiB true, 12.5 % of f16's 8.00 MiB; peak 16.0 MiB\n"
              "tokens  6,000 seen, 900.5 stored a head; pages f16 1,200\n"
              "mass    0.900 of attention kept, least 0.700 (layer 3, head 1), at token 5,932\n"
              "share   not met: sinks and recent tokens take more\n");
}

static void guard_and_shadow(void **state) {
    (void)state;
    kvist_report r = {.policy = "kvcompress,guard=0.97",
                      .share_met = true,
                      .mass_mean = 1,
                      .mass_min = 1,
                      .guard = 0.97,
                      .guard_heads_widened = 10,
                      .guard_heads_unmet = 1,
                      .pages_guard = 21,
                      .bytes_shadow = 3 << 20,
                      .shadow.steps = 12,
                      .shadow.mass_mean = 0.95,
                      .shadow.mass_min = 0.5,
                      .shadow.estimate_mean = 0.96,
                      .shadow.estimate_min = 0.625,
                      .shadow.error_mean = 0.03125,
                      .shadow.error_max = 0.25};
    kvist_stream_report v[12] = {{0}};
    for (uint32_t i = 0; i < 12; i++) {
        v[i] = (kvist_stream_report){.layer = i / 2, .head = i % 2, .mass = 0.98f, .pages_guard = i < 10 ? i + 1 : 0};
    }
    v[11].guard_unmet = true;
    v[11].mass = 0.5f;
    FILE *f = begin();
    kv_out_report(&r, f);
    kv_out_guard_heads(&r, v, 12, f);
    expect(f, "policy  kvcompress,guard=0.97\n"
              "speed   0 prompt tokens at 0.0 tok/s, 0 generated at 0.0 tok/s\n"
              "cache   0 B true, 0.0 % of f16's 0 B; peak 0 B\n"
              "tokens  0 seen, 0.0 stored a head; pages\n"
              "guard   0.97 not met by 1 head; 10 widened, by 21 pages\n"
              "shadow  mass 0.950, least 0.500 (estimate 0.960, 0.625); output off by 0.031, at most 0.250; 12 checks, "
              "3.00 MiB aside\n"
              "        widened (layer/head): 0/0 +1, 0/1 +2, 1/0 +3, 1/1 +4, 2/0 +5, 2/1 +6, 3/0 +7, 3/1 +8, 2 more\n"
              "        not met (layer/head): 5/1 0.500\n");
    json_t *o = json_object();
    kv_out_json_guard_heads(o, &r, v + 9, 3);
    f = begin();
    kv_out_json_line(o, f);
    expect(f, "{\"guard_heads\":[{\"layer\":4,\"head\":1,\"mass\":0.980000019,\"pages_guard\":10,\"met\":true},"
              "{\"layer\":5,\"head\":1,\"mass\":0.5,\"pages_guard\":0,\"met\":false}]}\n");
    o = kv_out_json_report(&r);
    assert_true(json_is_false(json_object_get(o, "guard_met")));
    assert_int_equal(json_integer_value(json_object_get(o, "guard_heads_unmet")), 1);
    assert_int_equal(json_integer_value(json_object_get(o, "pages_guard")), 21);
    assert_int_equal(json_integer_value(json_object_get(o, "shadow_steps")), 12);
    assert_true(json_real_value(json_object_get(o, "shadow_estimate_min")) == 0.625);
    json_decref(o);
    r.guard = 0;
    o = json_object();
    kv_out_json_guard_heads(o, &r, v, 12);
    assert_int_equal(json_object_size(o), 0);
    json_decref(o);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(guard_and_shadow), cmocka_unit_test(tables),
                                       cmocka_unit_test(long_cells),       cmocka_unit_test(units),
                                       cmocka_unit_test(json_lines),       cmocka_unit_test(utf8_streams),
                                       cmocka_unit_test(questions),        cmocka_unit_test(cache_map),
                                       cmocka_unit_test(closing_report)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
