/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist bench beside other programs: what their outputs say (rows in the layout llama.cpp and ik_llama.cpp print),
 * child processes, and the whole path with a stand-in for llama-bench: a script that logs how it was called and answers
 * with fixed figures, so that ratios and verdicts are known.
 */
#include "json_rows.h"
#include "spawn.h"

#include <math.h>
#include <sys/stat.h>

#include "cli/bench_spawn.c"

/* ---------------------------------------------------------------- rows */

/* llama-bench -o json: strings, numbers and arrays as its printer writes them; only some of the fields. */
static const char llama_rows[] =
    "[\n"
    "  {\n"
    "    \"build_commit\": \"eb0eac67\",\n    \"build_number\": 9999,\n    \"cpu_info\": \"A \\\"quoted\\\" CPU\",\n"
    "    \"n_threads\": 2,\n    \"type_k\": \"f16\",\n    \"flash_attn\": 1,\n    \"tensor_split\": \"0.00\",\n"
    "    \"n_prompt\": 512,\n    \"n_gen\": 0,\n    \"n_depth\": 8192,\n    \"test_time\": \"2026-11-21T15:00:00Z\",\n"
    "    \"avg_ns\": 4000000000,\n    \"stddev_ns\": 0,\n    \"avg_ts\": 128.000000,\n    \"stddev_ts\": 0.000000,\n"
    "    \"samples_ns\": [ 4000000000 ],\n    \"samples_ts\": [ 128 ]\n  },\n"
    "  {\n"
    "    \"n_prompt\": 0,\n    \"n_gen\": 32,\n    \"n_depth\": 8192,\n    \"avg_ns\": 2000000000,\n"
    "    \"avg_ts\": 16.250000,\n    \"samples_ns\": [ 1000000000, 3000000000 ],\n    \"samples_ts\": [ 32, 10.6667 "
    "]\n  }\n"
    "]\n";
/* ik_llama.cpp: no n_depth; "test" at the end; -gp rows carry the prompt's length. */
static const char ik_rows[] =
    "[\n  {\n    \"build_commit\": \"8337e4cd\",\n    \"cuda\": false,\n    \"ser\": \"-1,0.00\",\n    \"n_prompt\": "
    "8192,\n"
    "    \"n_gen\": 32,\n    \"avg_ns\": 1280000000,\n    \"avg_ts\": 25.000000,\n    \"test\": \"tg32@pp8192\",\n"
    "    \"samples_ns\": [ 1280000000 ],\n    \"samples_ts\": [ 25 ]\n  }\n]\n";

static void bench_json(void **state) {
    (void)state;
    double tps, s;
    assert_true(kv_peer_bench_row(llama_rows, 512, 0, 8192, &tps, &s));
    assert_float_equal(tps, 128, 1e-9);
    assert_float_equal(s, 4, 1e-9);
    assert_true(kv_peer_bench_row(llama_rows, 0, 32, 8192, &tps, &s)); /* the last repetition, not the mean */
    assert_float_equal(tps, 10.6667, 1e-9);
    assert_float_equal(s, 3, 1e-9);
    assert_false(kv_peer_bench_row(llama_rows, 0, 32, 0, &tps, &s));
    assert_false(kv_peer_bench_row(llama_rows, 511, 0, 8192, &tps, &s));
    assert_true(kv_peer_bench_row(ik_rows, 8192, 32, -1, &tps, &s));
    assert_float_equal(tps, 25, 1e-9);
    char noise[sizeof ik_rows + 64];
    snprintf(noise, sizeof noise, "warning: something\n%s\ntrailing", ik_rows);
    assert_true(kv_peer_bench_row(noise, 8192, 32, -1, &tps, &s));
    static const char *const bad[] = {"",
                                      "[",
                                      "[]",
                                      "[1]",
                                      "{}",
                                      "nonsense",
                                      "[{\"n_prompt\": 1, \"n_gen\": 0}]",
                                      "[{\"n_prompt\": 1, \"n_gen\": 0, \"avg_ts\": \"7\"}]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(kv_peer_bench_row(bad[i], 1, 0, -1, &tps, &s));
}

static void tables_of_siblings(void **state) {
    (void)state;
    static const char batched[] =
        "\nmain: n_kv_max = 73728, n_batch = 2048, n_ubatch = 512\n\n"
        "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
        "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n"
        "|  2048 |     32 |    8 |  16640 |   20.000 |   819.20 |    8.000 |    32.00 |   28.000 |   594.29 |\n"
        "|  2048 |     32 |   32 |  66560 |   80.000 |   819.20 |   16.000 |    64.00 |   96.000 |   693.33 |\n";
    static const char sweep[] = "|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |\n"
                                "|-------|--------|--------|----------|----------|----------|----------|\n"
                                "|   512 |      1 |      0 |    0.400 |  1280.00 |    0.006 |   166.67 |\n"
                                "|   512 |      1 |   8192 |    1.600 |   320.00 |    0.040 |    25.00 |\n";
    double tps = 0;
    assert_true(kv_peer_batched_row(batched, 2048, 32, 8, &tps));
    assert_float_equal(tps, 32, 1e-9);
    assert_true(kv_peer_batched_row(batched, 2048, 32, 32, &tps));
    assert_float_equal(tps, 64, 1e-9);
    assert_false(kv_peer_batched_row(batched, 2048, 32, 16, &tps));
    assert_false(kv_peer_batched_row(sweep, 512, 1, 8192, &tps)); /* too few columns */
    assert_true(kv_peer_sweep_row(sweep, 512, 8192, 0, &tps));
    assert_float_equal(tps, 320, 1e-9);
    assert_true(kv_peer_sweep_row(sweep, 512, 8192, 1, &tps));
    assert_float_equal(tps, 25, 1e-9);
    assert_false(kv_peer_sweep_row(sweep, 512, 8192, 32, &tps));
    assert_false(kv_peer_sweep_row(sweep, 256, 8192, 0, &tps));
    assert_false(kv_peer_sweep_row("", 256, 8192, 0, &tps));
    assert_false(kv_peer_sweep_row("| 512 | 1 | 8192 | 1 | nan | 1 | 1 |", 512, 8192, 0, &tps));
}

/* ---------------------------------------------------------------- processes */

static peer_output shell(const char *script) {
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    peer_output o;
    kv_peer_spawn(argv, 0, &o);
    return o;
}

static void processes(void **state) {
    (void)state;
    peer_output o = shell("echo out; echo '| 1 | 2 |' >&2; echo 'error: no model' >&2; echo later >&2; exit 3");
    assert_int_equal(o.status, 3);
    assert_string_equal(o.out, "out\n| 1 | 2 |\n"); /* tables on standard error are kept too */
    assert_string_equal(o.last, "error: no model"); /* the reason, not the chatter after it */
    kv_peer_output_free(&o);
    o = shell("echo first >&2; printf 'last ' >&2; kill -9 $$");
    assert_int_equal(o.status, 128 + 9);
    assert_string_equal(o.last, "last");
    kv_peer_output_free(&o);
    o = shell(
        "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2"); /* both pipes fill */
    assert_int_equal(o.status, 0);
    assert_int_equal(strlen(o.out), 1 << 20);
    kv_peer_output_free(&o);
    o = shell("read x; echo \"[$x]\"; echo log > llama.log; pwd"); /* standard input is empty; a folder of its own */
    assert_int_equal(strncmp(o.out, "[]\n/tmp/kvist-bench-", 20), 0);
    o.out[strcspn(o.out + 3, "\n") + 3] = 0;
    assert_int_equal(access(o.out + 3, F_OK), -1); /* ... that is gone */
    assert_true(o.seconds > 0);
    kv_peer_output_free(&o);
    const char *none[] = {"/nonexistent/program", NULL};
    kv_peer_spawn(none, 0, &o);
    assert_true(o.status == -1 || o.status == 127);
    kv_peer_output_free(&o);
}

/* ---------------------------------------------------------------- the whole path */

#define CALM "--stolen-max", "100" /* how often a peer is called must not hang on the host */

static char fake_path[96], calls_path[96];

/* A llama-bench that answers every row asked for with `tps`, and writes its arguments to a file. gp: like ik_llama.cpp.
 */
static void write_fake(const char *name, const char *tps, bool gp, const char *more) {
    char help[64];
    snprintf(help, sizeof help, "%s", gp ? "  -gp <pp,tg>  -w, --warmup <0|1>" : "  -d, --n-depth <n>  --no-warmup");
    in_work_dir(fake_path, sizeof fake_path, name);
    in_work_dir(calls_path, sizeof calls_path, "calls");
    unlink(calls_path);
    FILE *f = fopen(fake_path, "w");
    assert_non_null(f);
    fprintf(f,
            "#!/bin/sh\n"
            "case \"$*\" in --help) echo '%s'; exit 0 ;; esac\n"
            "echo \"$*\" >>%s\n"
            "%s\n"
            "p=0 n=0 d=0\n"
            "while [ $# -gt 0 ]; do\n"
            "  case $1 in -p) p=$2 ;; -n) n=$2 ;; -d) d=$2 ;; -gp) p=${2%%,*} n=${2#*,} ;; esac; shift\n"
            "done\n"
            "row() { printf '{\"n_prompt\": %%s, \"n_gen\": %%s, \"n_depth\": %%s, \"avg_ns\": %%s000000000, "
            "\"avg_ts\": %s}' "
            "$1 $n $d $2; }\n"
            "case $p in *,*) printf '[%%s,\\n%%s]' \"$(row ${p%%,*} 4)\" \"$(row ${p#*,} 6)\" ;; *) echo \"[$(row $p "
            "1)]\" ;; "
            "esac\n",
            help, calls_path, more, tps);
    fclose(f);
    assert_int_equal(chmod(fake_path, 0700), 0);
}

static char *calls(void) { return test_read(calls_path, NULL); }


/* Ratios are ours over theirs, the better of a row's peers counts, hopeless ones are not repeated. */
static void beside_peers(void **state) {
    (void)state;
    char slow[128], fast[128];
    write_fake("fast", "1000000", false, "");
    snprintf(fast, sizeof fast, "fast=%s", fake_path);
    write_fake("slow", "1", true, "");
    snprintf(slow, sizeof slow, "slow=%s", fake_path);
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "24", "-n", "4", "-d", "0,48", "-r", "3", "--kv",
                    "full", "--vs", slow, "--vs", fast, "--vs-arg", "slow=-extra", "--no-probe", CALM, "-o", "json", "-q");
    assert_string_equal(s.err, "");
    assert_int_equal(s.rc, 0);
    for (size_t i = 0; i < 4; i++) {
        json_t *o = row(s.out, i), *peers = json_object_get(o, "peers");
        double tps = num(o, i % 2 ? "decode_tps" : "prefill_tps");
        assert_int_equal(json_array_size(peers), 2);
        json_t *a = json_array_get(peers, 0), *b = json_array_get(peers, 1);
        assert_string_equal(json_string_value(json_object_get(a, "name")), "slow");
        /* Far behind at depth 0, so not run at 48. */
        assert_int_equal(num(a, "reps"), i < 2);
        if (i < 2)
            assert_float_equal(num(a, "tps"), 1, 1e-9);
        else
            assert_non_null(strstr(json_string_value(json_object_get(a, "note")), "not run"));
        assert_float_equal(num(b, "tps"), 1e6, 1e-3);
        assert_int_equal(num(b, "reps"), 3);
        assert_float_equal(num(o, "ratio"), tps / 1e6, 1e-9);
        json_decref(o);
    }
    char *c = calls(); /* both wrote to one file: 2 cells of the slow one once, 4 of the fast one three times */
    size_t lines = 0, extra = 0;
    for (char *p = c; *p; p++) lines += *p == '\n';
    for (char *p = c; (p = strstr(p, "-extra -m /")); p++) extra++;
    assert_int_equal(lines, 2 + 12);
    assert_int_equal(extra, 2);
    assert_non_null(strstr(c, "-t 1 -fa 1 -o json -r 1 -p 0 -n 4 -d 48\n"));
    assert_non_null(strstr(c, "-t 1 -fa 1 -o json -r 2 -p 24 -n 0\n"));
    assert_non_null(strstr(c, "-t 1 -fa 1 -o json -r 1 -p 24 -n 0 -d 48\n"));
    free(c);
    spawned_free(&s);
    /* A program without -d: a prompt at a depth is the difference of two, 24 tokens in 6 - 4 s; decoding there is -gp. */
    s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "24", "-n", "4", "-d", "48", "-r", "1", "--kv", "full",
            "--vs", slow, "--no-probe", CALM, "-o", "json", "-q");
    assert_int_equal(s.rc, 0);
    for (size_t i = 0; i < 2; i++) {
        json_t *o = row(s.out, i);
        assert_float_equal(num(json_array_get(json_object_get(o, "peers"), 0), "tps"), i ? 1 : 12, 1e-9);
        json_decref(o);
    }
    c = calls();
    assert_non_null(strstr(c, "-t 1 -fa 1 -o json -r 1 -p 0 -n 0 -gp 48,4\n"));
    assert_non_null(strstr(c, "-t 1 -fa 1 -o json -r 1 -p 48,72 -n 0\n"));
    free(c);
    spawned_free(&s);
    /* A compressed cache is compared with the peer's quantized ones too; sequences need a sibling that is not there. */
    s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-npl", "1,2", "-r", "1", "--kv",
            "minikv", "--vs", fast, "--no-probe", CALM, "-o", "md");
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.err, "fast: there is no llama-batched-bench beside it: absent"));
    assert_non_null(strstr(s.out, "tg4 x2"));
    assert_non_null(strstr(s.out, " absent |"));
    c = calls();
    assert_non_null(strstr(c, "-fa 1 -ctk q8_0 -ctv q8_0 "));
    assert_non_null(strstr(c, "-fa 1 -ctk q4_0 -ctv q4_0 "));
    assert_null(strstr(c, "q6_0"));
    free(c);
    spawned_free(&s);
}

/* A program beside the fake one, with its own --help and output; its arguments are written down too. */
static void write_sibling(const char *name, const char *help, const char *says) {
    char path[96];
    in_work_dir(path, sizeof path, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#!/bin/sh\ncase \"$*\" in --help) echo '%s'; exit 0 ;; esac\necho \"${0##*/} $*\" >>%s\n%s\n", help,
            calls_path, says);
    fclose(f);
    assert_int_equal(chmod(path, 0700), 0);
}

/* One process that fills a context serves prompts and generations of a round at all depths of one cache; a prompt is
 * copied to all sequences where the program keeps their caches apart. */
static void siblings(void **state) {
    (void)state;
    char slow[128], path[96];
    write_fake("slow", "1", true, "");
    write_sibling("llama-sweep-bench", "", "echo '| 512 | 4 | 512 | 1 | 70 | 1 | 30 |'; echo '| 512 | 4 | 1024 | 1 | 60 | 1 | 20 |'");
    write_sibling("llama-batched-bench", "-kvu, --kv-unified", "echo '| 512 | 4 | 2 | 1 | 1 | 9 | 1 | 44 | 1 | 1 |'");
    snprintf(slow, sizeof slow, "slow=%s", fake_path);
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "512", "-n", "4", "-d", "0,512,1024", "-r", "2",
                    "--kv", "full", "--vs", slow, "--no-probe", CALM, "-o", "json", "-q");
    static const double want[] = {1, 1, 70, 30, 60, 20}; /* prompt, then generation, at each depth */
    assert_string_equal(s.err, "");
    for (size_t i = 0; i < 6; i++) {
        json_t *o = row(s.out, i), *p = json_array_get(json_object_get(o, "peers"), 0);
        assert_float_equal(num(p, "tps"), want[i], 1e-9);
        assert_int_equal(num(p, "reps"), 2);
        json_decref(o);
    }
    char *c = calls(); /* one process a round */
    static const char sweep[] = "llama-sweep-bench -m ", rest[] = " -t 1 -fa 1 -c 1536 -ub 512 -n 4 --sweep-stride 1\n";
    size_t n = 0;
    for (char *at = c; *at; at = strchr(at, '\n') + 1) {
        if (strncmp(at, sweep, sizeof sweep - 1)) continue; /* depth 0, by itself */
        assert_non_null(strstr(at, rest));
        n++;
    }
    assert_int_equal(n, 2);
    free(c);
    spawned_free(&s);
    s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-d", "512", "-npl", "2", "-r", "1",
            "--kv", "full", "--vs", slow, "--no-probe", CALM, "-o", "json", "-q");
    json_t *o = row(s.out, 0);
    assert_float_equal(num(json_array_get(json_object_get(o, "peers"), 0), "tps"), 44, 1e-9);
    json_decref(o);
    spawned_free(&s);
    c = calls();
    assert_non_null(strstr(c, " -npp 512 -ntg 4 -npl 2 -c 1536 -pps\n"));
    free(c);
    write_sibling("llama-batched-bench", "", "echo '| 512 | 4 | 2 | 1 | 1 | 9 | 1 | 44 | 1 | 1 |'");
    s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-d", "512", "-npl", "2", "-r", "1",
            "--kv", "full", "--vs", slow, "--no-probe", CALM, "-o", "json", "-q");
    spawned_free(&s);
    c = calls();
    assert_non_null(strstr(c, " -npp 512 -ntg 4 -npl 2 -c 1536\n"));
    free(c);
    static const char *const names[] = {"llama-sweep-bench", "llama-batched-bench"};
    for (size_t i = 0; i < 2; i++) {
        in_work_dir(path, sizeof path, names[i]);
        unlink(path);
    }
}

/* A sample that the host disturbed is taken again, ours and theirs; of 0 % on, every one is disturbed. A program that
 * takes long is spared. */
static void taken_again(void **state) {
    (void)state;
    char fake[128];
    for (int spared = 0; spared < 2; spared++) {
        write_fake("fast", "5", false, spared ? "sleep 1.2" : "");
        snprintf(fake, sizeof fake, "fast=%s", fake_path);
        spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-r", "2", "--vs", fake,
                        "--vs-once", "1", "--no-probe", "--stolen-max", "0", "-o", "md");
        assert_int_equal(s.rc, 0);
        char *c = calls();
        size_t lines = 0;
        for (const char *at = c; (at = strchr(at, '\n')); at++) lines++;
        assert_int_equal(lines, spared ? 2 : 2 * 3); /* ... of a second try in a round, not of the next round's */
        free(c);
        assert_non_null(strstr(s.err, "4 at 0, 1 sequence, full: "));
        assert_non_null(strstr(s.err, ", the host took "));
        spawned_free(&s);
    }
}

/* A program that takes long is measured once where that is asked for. */
static void measured_once(void **state) {
    (void)state;
    char slow[128];
    for (int once = 0; once < 2; once++) {
        write_fake("slow", "1", false, "sleep 1.2");
        snprintf(slow, sizeof slow, "slow=%s", fake_path);
        spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-r", "2", "--vs", slow,
                        "--vs-once", once ? "1" : "0", "--no-probe", CALM, "-o", "md");
        assert_int_equal(s.rc, 0);
        assert_true(once == (strstr(s.out, " n=1 |") != NULL));
        char *c = calls();
        size_t lines = 0;
        for (const char *at = c; (at = strchr(at, '\n')); at++) lines++;
        assert_int_equal(lines, once ? 1 : 2);
        free(c);
        spawned_free(&s);
    }
}

/* A program that takes too long is ended, and not tried again. */
static void over_the_limit(void **state) {
    (void)state;
    char slow[128];
    write_fake("slow", "1", false, "exec sleep 60");
    snprintf(slow, sizeof slow, "slow=%s", fake_path);
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "0", "-n", "4", "-r", "2", "--vs", slow,
                    "--vs-limit", "1", "--no-probe", CALM, "-o", "md");
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.err, "ended after 1 s (--vs-limit)"));
    assert_non_null(strstr(s.out, " over the limit |"));
    char *c = calls();
    assert_int_equal(strcspn(c, "\n") + 1, strlen(c)); /* one call */
    free(c);
    spawned_free(&s);
}

static void loading(void **state) {
    (void)state;
    char fake[128];
    write_fake("fast", "5", false, "sleep 0.05");
    snprintf(fake, sizeof fake, "fast=%s", fake_path);
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "--stage", "load", "-r", "2", "--vs", fake,
                    "--no-probe", CALM, "-o", "json", "-q");
    assert_int_equal(s.rc, 0);
    json_t *o = row(s.out, 0), *p = json_array_get(json_object_get(o, "peers"), 0);
    assert_true(num(p, "seconds") >= 0.05);
    assert_float_equal(num(o, "ratio"), 1000 * num(p, "seconds") / num(o, "ttft_ms"), 1e-6);
    char *c = calls();
    assert_non_null(strstr(c, "-p 1 -n 0 --no-warmup\n"));
    free(c);
    json_decref(o);
    spawned_free(&s);
}

/* The rows of the standing table, on a model that is not SmolLM2: targets of 1, deep rows left out of a short context.
 */
static void standing_table(void **state) {
    (void)state;
    char fake[128];
    write_fake("fast", "0.001", false, "");
    snprintf(fake, sizeof fake, "fast=%s", fake_path);
    spawned s =
        RUN(NULL, "bench", "-m", model_path, "-t", "1", "--vs", fake, "--rows", "prefill 512", "-r", "1", "--no-probe", CALM);
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.out, "| prefill 512 |"));
    assert_non_null(strstr(s.out, "| ratio  |"));
    assert_non_null(strstr(s.out, "\n1 of 1 targets met\n"));
    spawned_free(&s);
    write_fake("fast", "1e12", false, "");
    s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "--vs", fake, "--rows", "prefill", "-r", "1", "--no-probe", CALM);
    assert_int_equal(s.rc, 0); /* targets are no errors */
    assert_non_null(strstr(s.err, "prefill 4,096: beyond the 4096 tokens"));
    assert_non_null(strstr(s.out, "\n0 of 1 targets met\n"));
    spawned_free(&s);
    s = RUN(NULL, "bench", "--list"); /* needs no model */
    assert_int_equal(s.rc, 0);
    assert_non_null(strstr(s.out, "| decode at 8,192, f16 "));
    assert_non_null(strstr(s.out, ">= 3.5x |"));
    spawned_free(&s);
}

static void refusals(void **state) {
    (void)state;
    char fake[128], text[256];
    write_fake("broken", "5", false, "echo chatter >&2; echo 'error: failed to load model' >&2; exit 1");
    snprintf(fake, sizeof fake, "broken=%s", fake_path);
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "-p", "8", "-n", "0", "-r", "3", "--kv", "full", "--vs",
                    fake, "--no-probe", CALM, "-q", "-o", "json");
    assert_int_equal(s.rc, 1);
    snprintf(text, sizeof text,
             "kvist: broken: %s (8 at 0, x1, cache f16): exit status 1: error: failed to load model\n", fake_path);
    assert_int_equal(strncmp(s.err, text, strlen(text)), 0);
    char *c = calls();
    size_t lines = 0;
    for (char *p = c; *p; p++) lines += *p == '\n';
    assert_int_equal(lines, 2); /* tried again once */
    free(c);
    json_t *o = row(s.out, 0); /* our own figure is there all the same */
    assert_true(num(o, "prefill_tps") > 0 && json_is_null(json_object_get(o, "ratio")));
    json_decref(o);
    spawned_free(&s);
    static const struct {
        const char *vs, *error;
        int rc;
    } bad[] = {{"ik=/nonexistent/llama-bench", "--vs ik: there is no program /nonexistent/llama-bench", 2},
               {"=/bin/true", "is no NAME=PATH of a llama-bench", 2},
               {"", "is no NAME=PATH of a llama-bench", 2},
               {"t=/bin/true", "--vs t: /bin/true is no llama-bench with -d or -gp", 1},
               {"f=/bin/false", "its --help fails", 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        s = RUN(NULL, "bench", "-m", model_path, "--vs", bad[i].vs);
        assert_int_equal(s.rc, bad[i].rc);
        if (!strstr(s.err, bad[i].error)) fail_msg("'%s' is not in: %s", bad[i].error, s.err);
        assert_string_equal(s.out, "");
        spawned_free(&s);
    }
    static const char *const usage[][4] = {
        {"--stage", "nonsense", NULL}, {"--stage", "", NULL}, {"-r", "65", NULL},
        {"--vs-arg", "x=-y", NULL},    {"-npl", "0", NULL},   {"--rows", "no such row", NULL}};
    for (size_t i = 0; i < sizeof usage / sizeof *usage; i++) {
        s = RUN(NULL, "bench", "-m", model_path, usage[i][0], usage[i][1]);
        assert_int_equal(s.rc, 2);
        assert_non_null(strstr(s.err, "try: kvist bench --help"));
        spawned_free(&s);
    }
}

static void stages_and_batches(void **state) {
    (void)state;
    spawned s = RUN(NULL, "bench", "-m", model_path, "-t", "1", "--stage", "decode,score,seal", "-p", "200", "-n", "3",
                    "-d", "0,40", "-npl", "1,3", "-r", "2", "--kv", "full", "--kv", "minikv", "--json", "-q");
    assert_int_equal(s.rc, 0);
    size_t i = 0;
    for (int depth = 0; depth <= 40; depth += 40)
        for (int kv = 0; kv < 2; kv++)
            for (int batch = 1; batch <= 3; batch += 2) {
                json_t *o = row(s.out, i++);
                assert_int_equal(num(o, "depth"), depth);
                assert_int_equal(num(o, "batch"), batch);
                assert_true(num(o, "decode_tps") > 0 && num(o, "bytes_token") > 0);
                assert_true(num(o, "bandwidth") > 0 && num(o, "int8_macs") > 0 && num(o, "f32_macs") > 0);
                assert_true(num(o, "limit_share") > 0); /* above 1 where a small model lies in a cache */
                json_decref(o);
            }
    static const char *const stage[] = {"score", "seal"};
    for (int k = 0; k < 4; k++) {
        json_t *o = row(s.out, i++);
        assert_string_equal(json_string_value(json_object_get(o, "stage")), stage[k % 2]);
        assert_string_equal(json_string_value(json_object_get(o, "kv")), k < 2 ? "full" : "minikv");
        assert_true(num(o, "percent") >= num(o, "percent_min") && num(o, "percent") <= num(o, "percent_max"));
        json_decref(o);
    }
    spawned_free(&s);
}

static void kernels(void **state) {
    (void)state;
    spawned s = RUN(NULL, "bench", "--kernels", "--filter", "elem/rmsnorm", "-r", "3", "-o", "json");
    assert_int_equal(s.rc, 0);
    json_t *o = row(s.out, 0);
    assert_string_equal(json_string_value(json_object_get(o, "level")), "ref");
    assert_true(num(o, "time_us") > 0);
    json_decref(o);
    spawned_free(&s);
    s = RUN(NULL, "bench", "--kernels", "--level", "ref", "--filter", "elem/rmsnorm", "-r", "1", "-o", "csv");
    assert_int_equal(s.rc, 0);
    assert_int_equal(strncmp(s.out, "section,kernel,case,data,level,", 31), 0);
    size_t lines = 0;
    for (char *p = s.out; *p; p++) lines += *p == '\n';
    assert_int_equal(lines, 3);
    spawned_free(&s);
    s = RUN(NULL, "bench", "--kernels", "--list");
    assert_int_equal(s.rc, 0);
    static const char *const sections[] = {"machine/read/", "matmul/matmul/", "attn/decode/", "encode/seal/",
                                           "elem/rope/"};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) assert_non_null(strstr(s.out, sections[i]));
    spawned_free(&s);
    s = RUN(NULL, "bench", "--kernels", "--filter", "no such kernel");
    assert_int_equal(s.rc, 1);
    spawned_free(&s);
    s = RUN(NULL, "bench", "--kernels", "--level", "mmx");
    assert_int_equal(s.rc, 2);
    spawned_free(&s);
}

static int teardown(void **state) {
    static const char *const names[] = {"fast", "slow", "broken", "calls"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[96];
        in_work_dir(path, sizeof path, names[i]);
        unlink(path);
    }
    return spawn_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bench_json), cmocka_unit_test(tables_of_siblings),
                                       cmocka_unit_test(processes),  cmocka_unit_test(beside_peers),  cmocka_unit_test(siblings),
                                       cmocka_unit_test(measured_once), cmocka_unit_test(taken_again),
        cmocka_unit_test(over_the_limit), cmocka_unit_test(loading),    cmocka_unit_test(standing_table),
                                       cmocka_unit_test(refusals),   cmocka_unit_test(stages_and_batches),
                                       cmocka_unit_test(kernels)};
    return cmocka_run_group_tests(tests, spawn_setup, teardown);
}
