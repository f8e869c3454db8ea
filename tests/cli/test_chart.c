/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page of `kvist chart`, read back: its data are what the library says of a session of its own, its text is the
 * prompt's bytes, and nothing in the prompt gets out of its element. (test_chart.sh looks at it in a browser.)
 */
#include "json_rows.h"
#include "spawn.h"

#include <math.h>

#include "kvist/kvist.h"

enum { LAYERS = 2, HEADS = 2, CTX = 4096 };
static const char *const policies[] = {"snapkv,tokens=96", "full,format=q2s", "kvcompress,rate=4,format=q8,sink=8"};
enum { POLICIES = sizeof policies / sizeof *policies };

static kvist_model *model;
static kvist_engine *engine;
static char text_path[96], page_path[96];
static char *page;
static size_t page_len;
static spawned made;
static json_t *data;

/* What a prompt may hold at worst, and how it must read on the page. 0xff, a lone lead byte and a lone continuation are
 * no UTF-8. */
static const char nasty[] =
    "</script><script>alert(1)</script><!-- <script> ]]> &amp; \"quoted\" back\\slash\n"
    "\ttab \x01 control \x7f \xff \xc3( \x80 \xe2\x80\xa8 line \xf0\x9f\x90\x8b whale \xe6\xb5\xb7 sea\r\n";
static const char clean[] = "</script><script>alert(1)</script><!-- <script> ]]> &amp; \"quoted\" back\\slash\n"
                            "\ttab \x01 control \x7f \xef\xbf\xbd \xef\xbf\xbd( \xef\xbf\xbd \xe2\x80\xa8 line "
                            "\xf0\x9f\x90\x8b whale \xe6\xb5\xb7 sea\r\n";

static void write_text(void) {
    FILE *f = fopen(text_path, "wb");
    assert_non_null(f);
    fwrite(nasty, 1, sizeof nasty - 1, f);
    uint64_t rng = 8;
    for (int i = 0; i < 700; i++) fputc(test_rand(&rng) % 6 ? 'a' + (int)(test_rand(&rng) % 26) : ' ', f);
    fclose(f);
}

static int setup(void **state) {
    kvist_error err;
    if (spawn_setup(state)) return -1;
    in_work_dir(text_path, sizeof text_path, "text");
    in_work_dir(page_path, sizeof page_path, "page.html");
    write_text();
    kvist_engine_params p = {.n_ctx = CTX, .threads = 1};
    if (kvist_model_open(model_path, NULL, &model, &err) || kvist_engine_create(model, &p, &engine, &err)) return -1;
    if (!binary()) return 0;
    made = RUN(NULL, "chart", "-m", model_path, "--raw", "-f", text_path, "--kv", policies[0], "--kv", policies[1],
               "--kv", policies[2], "-o", page_path, "--json", "-q");
    page = test_read(page_path, &page_len);
    return 0;
}

static int teardown(void **state) {
    json_decref(data);
    free(page);
    spawned_free(&made);
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    unlink(page_path);
    return spawn_teardown(state);
}

static json_t *page_data(void) {
    static const char open[] = "<script type=\"application/json\" id=\"data\">";
    if (!binary()) skip();
    if (made.rc) fail_msg("chart: %s", made.err);
    assert_non_null(page);
    if (data) return data;
    char *from = strstr(page, open), *to = from ? strstr(from, "</script") : NULL;
    assert_non_null(to);
    from += sizeof open - 1;
    json_error_t e;
    data = json_loadb(from, (size_t)(to - from), 0, &e);
    if (!data) fail_msg("the data: %s", e.text);
    return data;
}

static uint32_t occurrences(const char *s, const char *what) {
    uint32_t n = 0;
    for (; (s = strstr(s, what)); s++) n++;
    return n;
}

static void stays_in_its_element(void **state) {
    (void)state;
    page_data();
    assert_int_equal(strlen(page), page_len); /* no NUL */
    assert_int_equal(occurrences(page, "<script"), 2);
    assert_int_equal(occurrences(page, "</script"), 2);
    const char *d = strstr(page, "id=\"data\">") + 10;
    assert_null(memchr(d, '<', (size_t)(strstr(d, "</script") - d)));
    static const char *const outside[] = {"http:", "https:", " src=", "url(", "@import", "<link", "@TITLE@", "@DATA@"};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        if (strstr(page, outside[i])) fail_msg("the page has '%s'", outside[i]);
}

static void text_is_the_prompt(void **state) {
    (void)state;
    json_t *d = page_data(), *pieces = json_object_get(d, "pieces"), *joined = json_object_get(d, "joined");
    size_t n = (size_t)num(d, "n"), tokens = json_array_size(pieces), at = 0, len = 0;
    char *want = test_read(text_path, &len), *got = calloc(1, 3 * len + 1);
    for (size_t i = 0; i < json_array_size(joined); i++)
        tokens += (size_t)json_integer_value(json_array_get(json_array_get(joined, i), 1)) - 1;
    assert_int_equal(tokens, n);
    assert_true(json_array_size(joined) > 2); /* this model's tokens are bytes: characters share several */
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        const char *s = json_string_value(json_array_get(pieces, i));
        strcpy(got + at, s);
        at += strlen(s);
    }
    assert_memory_equal(got, clean, sizeof clean - 1);
    assert_string_equal(got + sizeof clean - 1, want + sizeof nasty - 1);
    free(got);
    free(want);
}

/* Plain base64, RFC 4648. */
static size_t unbase64(const char *s, uint8_t *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0, n_bits = 0;
    size_t n = 0;
    for (; *s && *s != '='; s++) {
        bits = bits << 6 | (uint32_t)(strchr(digits, *s) - digits);
        if ((n_bits += 6) >= 8) out[n++] = (uint8_t)(bits >> (n_bits -= 8));
    }
    return n;
}

static void read_map(json_t *run, const char *which, uint32_t s, uint8_t *map, size_t bytes) {
    json_t *m = json_object_get(run, which), *maps = json_object_get(m, "maps");
    size_t of = (size_t)json_integer_value(json_array_get(json_object_get(m, "of"), s));
    assert_int_equal(unbase64(json_string_value(json_array_get(maps, of)), map), bytes);
}

static double item(json_t *o, const char *list, size_t i) {
    return json_number_value(json_array_get(json_object_get(o, list), i));
}

static kvist_session *same_session(const char *policy, size_t *n) {
    static int32_t ids[CTX];
    kvist_error err;
    kvist_session *s;
    size_t len;
    char *text = test_read(text_path, &len);
    assert_int_equal(kvist_tokenize(model, text, len, KVIST_TOK_SPECIAL | KVIST_TOK_PARSE, ids, CTX, n, &err), 0);
    assert_int_equal(kvist_session_create(engine, policy, &s, &err), 0);
    assert_int_equal(kvist_session_track(s, true, &err), 0);
    assert_int_equal(kvist_session_sync(s, ids, *n, &err), 0);
    free(text);
    return s;
}

static void check_run(json_t *run, const char *policy) {
    static uint32_t pos[CTX], ranked[CTX];
    static float price[CTX], drawn[CTX];
    static double sum[CTX];
    static uint8_t formats[CTX], kept[CTX / 8], always[CTX / 8];
    kvist_stream_report sr[LAYERS * HEADS];
    size_t n;
    kvist_session *s = same_session(policy, &n);
    assert_int_equal(num(page_data(), "n"), n);
    assert_int_equal(kvist_session_streams(s, sr, LAYERS * HEADS), LAYERS * HEADS);
    memset(ranked, 0, sizeof ranked);
    memset(sum, 0, sizeof sum);
    bool evicts = false;
    for (uint32_t i = 0; i < LAYERS * HEADS; i++) {
        size_t have = kvist_session_kept(s, i / HEADS, i % HEADS, pos, price, formats, CTX);
        evicts |= have < n;
        read_map(run, "kept", i, kept, (n + 7) / 8);
        read_map(run, "always", i, always, (n + 7) / 8);
        size_t bits = 0;
        for (size_t t = 0; t < n; t++) bits += kept[t / 8] >> t % 8 & 1;
        assert_int_equal(bits, have);
        for (size_t t = 0; t < have; t++) {
            assert_true(kept[pos[t] / 8] >> pos[t] % 8 & 1);
            assert_int_equal(always[pos[t] / 8] >> pos[t] % 8 & 1, isinf(price[t]) ? 1 : 0);
            if (isinf(price[t])) continue;
            sum[pos[t]] += (double)price[t];
            ranked[pos[t]]++;
        }
        assert_int_equal(item(run, "tokens", i), have);
        assert_int_equal(item(run, "page_count", i), sr[i].pages);
        assert_int_equal(item(run, "bytes", i), sr[i].bytes_true - sr[i].bytes_positions);
        assert_true(fabs(item(run, "mass", i) - (double)sr[i].mass) < 1e-3);
    }
    assert_int_equal(unbase64(json_string_value(json_object_get(run, "price")), (uint8_t *)drawn), n * sizeof *drawn);
    for (size_t t = 0; t < n; t++) {
        bool has = evicts && ranked[t];
        if (has != !isnan(drawn[t]) || (has && fabs((double)drawn[t] - sum[t] / ranked[t]) > 1e-6 * fabs(sum[t])))
            fail_msg("%s: token %zu is drawn at price %g", policy, t, (double)drawn[t]);
    }
    kvist_session_close(&s);
}

static void data_are_the_cache(void **state) {
    (void)state;
    json_t *d = page_data(), *runs = json_object_get(d, "runs");
    assert_int_equal(json_array_size(runs), POLICIES);
    assert_int_equal(num(d, "layers"), LAYERS);
    assert_int_equal(num(d, "heads"), HEADS);
    for (size_t i = 0; i < POLICIES; i++) {
        json_t *run = json_array_get(runs, i), *printed = row(made.out, i);
        check_run(run, policies[i]);
        assert_string_equal(json_string_value(json_object_get(run, "policy")),
                            json_string_value(json_object_get(printed, "policy")));
        double bytes = num(printed, "bytes_true") - num(printed, "bytes_positions");
        assert_true(num(run, "bytes_true") == bytes);
        assert_true(fabs(num(run, "share") - bytes / num(printed, "bytes_f16")) < 1e-6);
        assert_true(fabs(num(run, "mass_min") - num(printed, "mass_min")) < 1e-6);
        double tokens = 0;
        for (uint32_t s = 0; s < LAYERS * HEADS; s++) tokens += item(run, "tokens", s);
        assert_true(fabs(tokens / (LAYERS * HEADS) - num(run, "stored")) < 1e-6);
        json_decref(printed);
    }
}

static spawned with_memory(uint32_t kib, bool both, const char *out) {
    char mem[16];
    snprintf(mem, sizeof mem, "%uK", kib);
    return RUN(NULL, "chart", "-m", model_path, "--raw", "-f", text_path, "-o", out, "-q", "--kv-mem", mem, "--kv",
               "full", both ? "--kv" : NULL, "full,format=q8");
}

/* Caches that do not fit into the memory together are made one after the other, and the page is the same. */
static void little_memory(void **state) {
    (void)state;
    page_data();
    uint32_t no = 64, yes = 1 << 20;
    while (yes - no > 8) { /* the least that one full cache needs */
        uint32_t mid = no + (yes - no) / 2;
        spawned s = with_memory(mid, false, page_path);
        if (s.rc)
            no = mid;
        else
            yes = mid;
        spawned_free(&s);
    }
    spawned s = with_memory(yes, true, page_path), rich = with_memory(1 << 20, true, "-");
    if (s.rc) fail_msg("%s", s.err);
    size_t len;
    char *small = test_read(page_path, &len);
    assert_int_equal(len, rich.out_len);
    assert_memory_equal(small, rich.out, len);
    free(small);
    spawned_free(&s);
    spawned_free(&rich);
    s = with_memory(no, true, page_path);
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "KV memory"));
    spawned_free(&s);
}

static void refusals(void **state) {
    (void)state;
    page_data();
    spawned s = RUN(NULL, "chart", "-m", model_path, "-p", "x");
    assert_int_equal(s.rc, 2);
    assert_non_null(strstr(s.err, "-o"));
    spawned_free(&s);
    s = RUN(NULL, "chart", "-m", model_path, "-p", "x", "-o", "-", "--json");
    assert_int_equal(s.rc, 2);
    spawned_free(&s);
    s = RUN(NULL, "chart", "-m", model_path, "-p", "x", "--kv", "rubbish", "-o", page_path);
    assert_int_equal(s.rc, 2);
    assert_non_null(strstr(s.err, "rubbish"));
    spawned_free(&s);
    s = RUN(NULL, "chart", "-m", model_path, "--raw", "-p", "some words", "-o", "/nonexistent/page.html");
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "/nonexistent/page.html"));
    spawned_free(&s);
    s = RUN(NULL, "chart", "-m", model_path, "--raw", "-p", "<some> & words", "-o", "-");
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.out, "<title>kvist: what the cache keeps of a prompt</title>"));
    spawned_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(stays_in_its_element), cmocka_unit_test(text_is_the_prompt),
                                       cmocka_unit_test(data_are_the_cache), cmocka_unit_test(little_memory),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
