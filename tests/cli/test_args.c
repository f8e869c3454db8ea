/* SPDX-License-Identifier: Apache-2.0 */
/* The option parser alone: forms, ranges, hints, help. */
#include "support/support.h"

#include "cli/args.c" /* the program's own file; it is in no library */

static const cli_opt opts[] = {
    {"-m,--model", "FILE", CLI_STR, offsetof(cli_options, model), 0, 0, "model"},
    {"-n,--predict", "N", CLI_I32, offsetof(cli_options, n_predict), -1, 100, "tokens\nand more"},
    {"-ub,--ubatch-size", "N", CLI_U32, offsetof(cli_options, ubatch), 1, 65536, "rows"},
    {"--temp", "X", CLI_F32, offsetof(cli_options, temp), 0, 2, "temperature"},
    {"--kv", "POLICY", CLI_LIST, offsetof(cli_options, kv), 0, 0, "policy"},
    {"--kv-mem", "SIZE", CLI_BYTES, offsetof(cli_options, kv_mem), 0, 0, "memory"},
    {"-d", "N,...", CLI_U32S, offsetof(cli_options, depth), 0, 9000, "depths"},
    {"--precise", "all", CLI_OPT, offsetof(cli_options, precise), 0, 0, "f32"},
    {"--raw", NULL, CLI_FLAG, offsetof(cli_options, raw), 0, 0, "raw"},
    {"-s,--seed", "N", CLI_I64, offsetof(cli_options, seed), -1, 9e15, "seed"},
    {0}};
static const cli_opt *const groups[] = {opts, NULL};
static const cli_command cmd = {"test", "[options]", "A command.", groups, "examples:\n  kvist test\n", 1, NULL};

static cli_options o;
static char why[256];

static int parse(const char *first, ...) {
    char *argv[32];
    int n = 0;
    va_list ap;
    va_start(ap, first);
    for (const char *s = first; s; s = va_arg(ap, const char *)) argv[n++] = (char *)s;
    va_end(ap);
    memset(&o, 0, sizeof o);
    why[0] = 0;
    return kv_cli_parse(&cmd, n, argv, &o, why, sizeof why);
}

static void forms(void **state) {
    (void)state;
    assert_int_equal(parse("-m", "a.gguf", "-n", "5", "-ub", "128", "--raw", NULL), KV_CLI_OK);
    assert_string_equal(o.model, "a.gguf");
    assert_int_equal(o.n_predict, 5);
    assert_int_equal(o.ubatch, 128);
    assert_true(o.raw);
    assert_int_equal(parse("--model=b=c", "--predict=-1", "--temp=0.5", "--seed", "-1", NULL), KV_CLI_OK);
    assert_string_equal(o.model, "b=c");
    assert_int_equal(o.n_predict, -1);
    assert_float_equal(o.temp, 0.5f, 0);
    assert_int_equal(o.seed, -1);
    assert_int_equal(parse("--kv", "full", "--kv=minikv,keep=0.3", "-d", "0,2048", "-d", "8192", NULL), KV_CLI_OK);
    assert_int_equal(o.kv.n, 2);
    assert_string_equal(o.kv.v[1], "minikv,keep=0.3");
    assert_int_equal(o.depth.n, 3);
    assert_int_equal(o.depth.v[2], 8192);
    assert_int_equal(parse("--precise", "file", NULL), KV_CLI_OK); /* takes no following word */
    assert_string_equal(o.precise, "");
    assert_string_equal(o.positional.v[0], "file");
    assert_int_equal(parse("--precise=all", "--", "-m", NULL), KV_CLI_OK);
    assert_string_equal(o.precise, "all");
    assert_string_equal(o.positional.v[0], "-m");
    assert_int_equal(parse("-", NULL), KV_CLI_OK);
    assert_string_equal(o.positional.v[0], "-");
    assert_int_equal(parse(NULL), KV_CLI_OK);
}

static void refuse(const char *expected, int rc) {
    assert_int_equal(rc, KV_CLI_USAGE);
    assert_string_equal(why, expected);
}

static void refusals(void **state) {
    (void)state;
    refuse("unknown option '--tmep'; did you mean '--temp'?", parse("--tmep", "1", NULL));
    refuse("unknown option '--frobnicate'", parse("--frobnicate", NULL));
    refuse("unknown option '--modle'; did you mean '--model'?", parse("--modle=x", NULL));
    refuse("-n needs a value (N)", parse("-n", NULL));
    refuse("--raw takes no value", parse("--raw=1", NULL));
    refuse("-n: '101' is no whole number from -1 to 100", parse("-n", "101", NULL));
    refuse("-n: '5x' is no whole number from -1 to 100", parse("-n", "5x", NULL));
    refuse("-n: '' is no whole number from -1 to 100", parse("-n", "", NULL));
    refuse("-ub: '0' is no whole number from 1 to 65536", parse("-ub", "0", NULL));
    refuse("-ub: '99999999999999999999' is no whole number from 1 to 65536",
           parse("-ub", "99999999999999999999", NULL));
    refuse("--temp: 'nan' is no number from 0 to 2", parse("--temp", "nan", NULL));
    refuse("--temp: '2.01' is no number from 0 to 2", parse("--temp=2.01", NULL));
    refuse("-d: '1,,2' is no list of whole numbers from 0 to 9000 (512 or 128,512)", parse("-d", "1,,2", NULL));
    refuse("-d: '' is no list of whole numbers from 0 to 9000 (512 or 128,512)", parse("-d", "", NULL));
    refuse("-d: '1,9001' is no list of whole numbers from 0 to 9000 (512 or 128,512)", parse("-d", "1,9001", NULL));
    refuse("--kv-mem: 'lots' is no size (512M, 2G, or bytes)", parse("--kv-mem", "lots", NULL));
    refuse("unexpected argument 'two'", parse("one", "two", NULL));
}

static void sizes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"1", 1},
                {"4096", 4096},
                {"512K", 524288},
                {"64M", 67108864},
                {"1.5G", 1610612736},
                {"2GiB", 2147483648},
                {"2gB", 2147483648},
                {"1T", 1099511627776}};
    static const char *const bad[] = {"", "M", "-1", "5x", "1Mi", "1e30", "1MM", " 1", "99999999999T", "0x10"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t v = 1;
        assert_true(kv_cli_bytes(good[i].text, &v));
        assert_int_equal(v, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t v;
        if (kv_cli_bytes(bad[i], &v)) fail_msg("'%s' taken for a size", bad[i]);
    }
}

static void too_many(void **state) {
    (void)state;
    char *argv[2 * KV_CLI_MAX_LIST + 2];
    for (int i = 0; i <= KV_CLI_MAX_LIST; i++) {
        argv[2 * i] = "--kv";
        argv[2 * i + 1] = "full";
    }
    memset(&o, 0, sizeof o);
    assert_int_equal(kv_cli_parse(&cmd, 2 * KV_CLI_MAX_LIST, argv, &o, why, sizeof why), KV_CLI_OK);
    assert_int_equal(o.kv.n, KV_CLI_MAX_LIST);
    memset(&o, 0, sizeof o);
    assert_int_equal(kv_cli_parse(&cmd, 2 * KV_CLI_MAX_LIST + 2, argv, &o, why, sizeof why), KV_CLI_USAGE);
    assert_non_null(strstr(why, "one too many"));
}

/* Distances by the plain recursive definition, on short words. */
static size_t naive_distance(const char *a, const char *b) {
    if (!*a) return strlen(b);
    if (!*b) return strlen(a);
    size_t s = naive_distance(a + 1, b + 1) + (*a != *b), d = naive_distance(a + 1, b) + 1,
           i = naive_distance(a, b + 1) + 1;
    size_t m = s < d ? s : d;
    return m < i ? m : i;
}

static void distances(void **state) {
    (void)state;
    static const char *const words[] = {"",     "a",   "ab",    "ba",   "run",  "rnu",
                                        "chat", "cat", "bench", "eval", "evla", "info"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        for (size_t j = 0; j < sizeof words / sizeof *words; j++)
            assert_int_equal(edit_distance(words[i], words[j]), naive_distance(words[i], words[j]));
    assert_null(kv_cli_nearest("xy", words, sizeof words / sizeof *words));
    assert_string_equal(kv_cli_nearest("bencj", words, sizeof words / sizeof *words), "bench");
}

static void help_text(void **state) {
    (void)state;
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    kv_cli_help(&cmd, f);
    fclose(f);
    static const char expected[] = "usage: kvist test [options]\n\nA command.\n\n"
                                   "  -m, --model FILE            model\n"
                                   "  -n, --predict N             tokens\n"
                                   "                              and more\n"
                                   "  -ub, --ubatch-size N        rows\n"
                                   "  --temp X                    temperature\n"
                                   "  --kv POLICY                 policy\n"
                                   "  --kv-mem SIZE               memory\n"
                                   "  -d N,...                    depths\n"
                                   "  --precise[=all]             f32\n"
                                   "  --raw                       raw\n"
                                   "  -s, --seed N                seed\n"
                                   "\nexamples:\n  kvist test\n";
    assert_string_equal(text, expected);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(forms),     cmocka_unit_test(refusals),
                                       cmocka_unit_test(sizes),     cmocka_unit_test(too_many),
                                       cmocka_unit_test(distances), cmocka_unit_test(help_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
