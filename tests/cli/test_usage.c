/* SPDX-License-Identifier: Apache-2.0 */
/* The program's contract with shells: exit status 0, 1, 2, what goes to which stream, exact usage errors, help for
 * every command. */
#include "spawn.h"

static const char *const commands[] = {"run", "chat", "compare", "bench", "eval", "sweep", "info", "tokenize"};

static void version(void **state) {
    (void)state;
    spawned s = RUN(NULL, "--version");
    assert_int_equal(s.rc, 0);
    assert_string_equal(s.out, "kvist " KVIST_VERSION "\n");
    assert_string_equal(s.err, "");
    spawned_free(&s);
}

static void help(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char first[64];
        snprintf(first, sizeof first, "usage: kvist %s ", commands[i]);
        spawned s = RUN(NULL, commands[i], "--help"), t = RUN(NULL, "help", commands[i]),
                u = RUN(NULL, commands[i], "--nonsense", "-h");
        assert_int_equal(s.rc, 0);
        assert_int_equal(strncmp(s.out, first, strlen(first)), 0);
        assert_non_null(strstr(s.out, "\nexamples:\n"));
        assert_non_null(strstr(s.out, "-h, --help"));
        assert_string_equal(s.err, "");
        assert_string_equal(s.out, t.out);
        assert_string_equal(s.out, u.out);
        for (const char *line = s.out; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
            assert_in_range(strcspn(line, "\n"), 0, 125); /* fits a terminal */
        spawned_free(&s);
        spawned_free(&t);
        spawned_free(&u);
    }
    spawned s = RUN(NULL, "--help");
    assert_int_equal(s.rc, 0);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) assert_non_null(strstr(s.out, commands[i]));
    assert_non_null(strstr(s.out, "kvcompress")); /* the presets are listed */
    spawned_free(&s);
}

static const struct {
    const char *args[8];
    const char *err;
} usage[] = {
    {{"rnu"}, "kvist: unknown command 'rnu'\ntry: kvist --help\n"},
    {{"benhc"}, "kvist: unknown command 'benhc'; did you mean 'bench'?\ntry: kvist --help\n"},
    {{"--kv", "full"}, "kvist: unknown option '--kv'; options follow the command\ntry: kvist --help\n"},
    {{"run", "--tmep", "1"}, "kvist run: unknown option '--tmep'; did you mean '--temp'?\ntry: kvist run --help\n"},
    {{"run", "-p", "x"}, "kvist run: no model: -m FILE (or KVIST_MODEL)\ntry: kvist run --help\n"},
    {{"run", "-m"}, "kvist run: -m needs a value (FILE)\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "extra"}, "kvist run: unexpected argument 'extra'\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "-n", "many"},
     "kvist run: -n: 'many' is no whole number from -1 to 1000000000\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "-p", "x", "--cpu", "sse"},
     "kvist run: --cpu: 'sse' is none of ref, avx2, avx512\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "--precise=some"}, "kvist run: --precise: 'some' is not 'all'\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "-ctk", "q5_1"},
     "kvist run: -ctk: 'q5_1' has no counterpart here; f16, q8_0 and q4_0 have, and --kv full,format=... has "
     "more\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "-ctk", "f16", "--kv", "full"},
     "kvist run: -ctk/-ctv and --kv say the same thing: give one of them\ntry: kvist run --help\n"},
    {{"run", "-m", "m", "--kv", "full", "--kv", "minikv"},
     "kvist run: one --kv here; kvist compare takes several\ntry: kvist run --help\n"},
    {{"compare", "-m", "m", "-n", "0"}, "kvist compare: -n must be at least 1 here\ntry: kvist compare --help\n"},
    {{"eval", "-m", "m"},
     "kvist eval: say what to measure, one of ppl, kld, longbench, longeval, kvretrieval, needle, gsm8k, repeat\n"
     "try: kvist eval --help\n"},
    {{"eval", "mmlu", "-m", "m"},
     "kvist eval: 'mmlu' is none of ppl, kld, longbench, longeval, kvretrieval, needle, gsm8k, repeat\n"
     "try: kvist eval --help\n"},
    {{"eval", "gsm8k", "-m", "m"},
     "kvist eval: gsm8k needs one -f FILE: JSON lines {question, answer}\ntry: kvist eval --help\n"},
    {{"eval", "needle", "-m", "m", "-p", "x"},
     "kvist eval: needle takes no -p: -f FILE names its data (a long text (UTF-8) to hide facts in)\n"
     "try: kvist eval --help\n"},
    {{"eval", "gsm8k", "-m", "m", "-f", "x", "--chunks=1"},
     "kvist eval: --chunks is for ppl and kld, not for gsm8k\ntry: kvist eval --help\n"},
    {{"eval", "kld", "-m", "m", "-p", "x", "--agnostic"},
     "kvist eval: --agnostic is for tasks, not for kld\ntry: kvist eval --help\n"},
    {{"eval", "kld", "-m", "m", "-p", "x", "--rows=all"},
     "kvist eval: --rows: 'all' is neither prompt nor generated\ntry: kvist eval --help\n"},
    {{"bench", "-m", "m", "-o", "xml"}, "kvist bench: -o: 'xml' is none of md, csv, json\ntry: kvist bench --help\n"},
    {{"bench", "-m", "m", "-r", "0"},
     "kvist bench: -r: '0' is no whole number from 1 to 1001\ntry: kvist bench --help\n"},
    {{"tokenize", "-m", "m", "-p", "a", "b"},
     "kvist tokenize: the text is given twice: -p and 'b'\ntry: kvist tokenize --help\n"},
    {{"run", "-m", "m", "-p", "-", "-f", "-"},
     "kvist run: -p - and -f - both want standard input\ntry: kvist run --help\n"},
};

static void usage_errors(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof usage / sizeof *usage; i++) {
        spawned s = run_argv(NULL, usage[i].args);
        assert_string_equal(s.err, usage[i].err);
        assert_string_equal(s.out, "");
        assert_int_equal(s.rc, 2);
        spawned_free(&s);
    }
    spawned s = RUN(NULL, "run", "-m", "m", "-p", "x", "--kv", "minikv,keep=2");
    assert_int_equal(s.rc, 2);
    assert_non_null(strstr(s.err, "keep"));
    spawned_free(&s);
    s = run_argv(NULL, (const char *const[]){NULL});
    assert_int_equal(s.rc, 2); /* no command: help, but on standard error */
    assert_string_equal(s.out, "");
    assert_non_null(strstr(s.err, "commands:"));
    spawned_free(&s);
}

static void failures(void **state) {
    (void)state;
    char text[96];
    in_work_dir(text, sizeof text, "text");
    FILE *f = fopen(text, "w");
    fputs("GGUFxxxx not a model", f);
    fclose(f);
    static const char *const with_prompt[] = {"run", "compare", "tokenize"};
    for (size_t i = 0; i < 3; i++) {
        spawned s = RUN(NULL, with_prompt[i], "-m", "/nonexistent.gguf", "-p", "x"),
                t = RUN(NULL, with_prompt[i], "-m", text, "-p", "x"),
                u = RUN(NULL, with_prompt[i], "-m", model_path, "-f", "/nonexistent.txt");
        assert_int_equal(s.rc, 1);
        assert_non_null(strstr(s.err, "/nonexistent.gguf"));
        assert_int_equal(t.rc, 1);
        assert_int_equal(u.rc, 1);
        assert_non_null(strstr(u.err, "/nonexistent.txt"));
        assert_string_equal(s.out, "");
        spawned_free(&s);
        spawned_free(&t);
        spawned_free(&u);
    }
    spawned s = RUN(NULL, "run", "-m", model_path, "--raw", "-p", "a prompt that is too long for it", "-c", "4");
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "larger -c"));
    spawned_free(&s);
    s = RUN(NULL, "eval", "ppl", "-m", model_path, "-p", "short", "-c", "64");
    assert_int_equal(s.rc, 1);
    assert_non_null(strstr(s.err, "one chunk needs 64"));
    spawned_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(version), cmocka_unit_test(help),
                                       cmocka_unit_test(usage_errors), cmocka_unit_test(failures)};
    return cmocka_run_group_tests(tests, spawn_setup, spawn_teardown);
}
