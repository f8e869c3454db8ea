/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Other engines' benchmark programs, run as child processes (never through a shell) and read: llama-bench of llama.cpp
 * and of ik_llama.cpp, their siblings llama-batched-bench and llama-sweep-bench where those lie beside it. What a
 * program can do is read from its own --help. One llama-sweep-bench process serves all pieces of work of a round that
 * stand at a depth of the same cache. Knows nothing of kvist's engine.
 */
#ifndef KV_CLI_BENCH_PEER_H
#define KV_CLI_BENCH_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PEER_MAX = 4, PEER_PATH = 1024, PEER_ARGS = 16, PEER_SWEEPS = 8 };
enum { PEER_SWEEP_STEP = 512 }; /* tokens a micro-batch while a context is filled: the programs' own default */

typedef struct peer_output {
    int status;     /* exit status, 128 + signal; -1: not started */
    char *out;      /* kv_malloc'd, terminated */
    char last[256]; /* last line of its standard error that names an error, else that says something */
    double seconds;
    bool stopped; /* ended at the limit */
} peer_output;

/* A context filled once in steps of `step` tokens; every `every` steps that many prompt tokens and n_gen generated ones
 * (0: none planned) are timed. */
typedef struct peer_sweep {
    const char *cache;
    uint32_t step, every, deepest, n_gen;
    bool ran; /* in this round; o: what it said */
    peer_output o;
    double stolen; /* as in peer_result */
} peer_sweep;

typedef struct bench_peer {
    char name[24], path[PEER_PATH];
    const char *args[PEER_ARGS]; /* the user's own for llama-bench (its siblings' differ), before ours */
    uint32_t n_args;
    uint32_t limit_s; /* a process that takes longer is ended; 0: none */
    bool has_depth;      /* -d N (llama.cpp) */
    bool has_gp;         /* -gp P,N: generation alone is timed (ik_llama.cpp) */
    bool warm_flag;      /* --no-warmup, and its warm-up is a whole prompt; else -w 0, and it is one token */
    bool batched, sweep; /* siblings are there */
    bool copies_prompt;  /* llama-batched-bench can copy one prompt to sequences that have caches of their own */
    peer_sweep sweeps[PEER_SWEEPS];
    uint32_t n_sweeps;
} bench_peer;

/* text: NAME=PATH or PATH (its name: the word of the path that tells it, "ik" or "llama"). 0; or 1 or 2 (exit status)
 * with one line in why. Asks the program for its options. */
int kv_peer_open(const char *text, bench_peer *out, char *why, size_t cap);

typedef enum peer_kind { PEER_PROMPT, PEER_DECODE, PEER_BATCH, PEER_LOAD } peer_kind;
typedef struct peer_work {
    peer_kind kind;
    uint32_t depth, n, batch;
    const char *cache; /* type of K and V: "f16", "q8_0", ... */
} peer_work;

typedef enum peer_outcome { PEER_OK, PEER_ABSENT, PEER_FAILED, PEER_SLOW /* ended at the limit */ } peer_outcome;
typedef struct peer_result {
    double value;    /* tokens/s over all sequences, or seconds (load) */
    double seconds;  /* that the process took which said so */
    double stolen;   /* share of the processors' time that a host took meanwhile */
    const char *how; /* which program and options (static), also when absent */
    char why[512];   /* one line when it failed */
} peer_result;

/* Before a round: forgets what sweeps said; then names each piece of work the round will ask for. Work that no sweep
 * serves needs no plan. */
void kv_peer_plan_clear(bench_peer *p);
void kv_peer_plan(bench_peer *p, const peer_work *w);
/* One repetition, in a fresh process or out of a planned sweep that ran in this round. */
peer_outcome kv_peer_run(bench_peer *p, const peer_work *w, const char *model, uint32_t threads, peer_result *r);

/* ---- what kv_peer_run is made of, for tests */
/* argv ends with NULL. Standard output is kept (1 MiB at most), of standard error its last line; tables that programs
 * print there are kept too (lines that begin with '|' or '{'). limit_s: as in bench_peer. */
void kv_peer_spawn(const char *const *argv, uint32_t limit_s, peer_output *o);
/* The second of two such processes, one after the other: the first, not counted unless it fails, warms the page cache and
 * has the host back the memory that the second gets again (touching memory a host has taken back costs tenths of a
 * second, whoever comes first). */
void kv_peer_spawn_warm(const char *const *argv, uint32_t limit_s, peer_output *o);
void kv_peer_output_free(peer_output *o);

/* tokens/s and seconds of llama-bench's -o json row with these counts; depth: -1 when rows have no n_depth. The last
 * repetition counts (the first one of several warms up). false: no such row. */
bool kv_peer_bench_row(const char *json, uint32_t n_prompt, uint32_t n_gen, int64_t depth, double *tps,
                       double *seconds);
/* S_TG t/s of llama-batched-bench's table for pp, tg, pl. */
bool kv_peer_batched_row(const char *text, uint32_t pp, uint32_t tg, uint32_t pl, double *tps);
/* Of llama-sweep-bench's table at n_kv tokens: S_TG t/s of tg tokens generated, or S_PP t/s where tg is 0. */
bool kv_peer_sweep_row(const char *text, uint32_t pp, uint32_t n_kv, uint32_t tg, double *tps);

#endif
