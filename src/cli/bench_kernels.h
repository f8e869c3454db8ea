/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist bench --kernels, and what its parts share: a case (one piece of work, done by every instruction set level in
 * turn), the measuring of a case, test data. The parts (bench_kernels_*.c) know the shapes of real use and the
 * backend's operations; only bench_kernels.c knows levels, clocks and tables. Measured with one thread, through the backend's
 * operations: what the model calls, so the cost of dispatch is in it.
 * Rates: GB/s of packed weights, of whole pages, of f16 keys and values encoded; multiply-adds of q.k and p.v.
 */
#ifndef KV_CLI_BENCH_KERNELS_H
#define KV_CLI_BENCH_KERNELS_H

#include "backend/backend.h"
#include "cli/common.h"

enum { KV_KB_REPS_MAX = 1001 };
/* Options --filter, --level (cpu), -r, -o, --list. Exit status. */
int kv_bench_kernels(const cli_options *o);

/* Where the work's data lies when a run starts. MEMORY: a ring larger than any cache is walked, as weights and pages
 * are in decoding. CACHE: the same few hundred KiB again, as in a prompt. */
typedef enum kb_place { KB_MEMORY, KB_CACHE } kb_place;
#define KB_RING_BYTES ((size_t)96 << 20) /* three times the 32 MiB last-level cache of the machines measured */

typedef enum kb_unit { KB_NONE, KB_GBYTES, KB_GMACS, KB_GVALUES, KB_US_PAGE, KB_UNITS } kb_unit;
typedef struct kb_rate {
    kb_unit unit;
    double amount; /* bytes, multiply-adds, values or pages of one run */
} kb_rate;

typedef struct kb_case {
    const char *section, *kernel;
    char name[64];
    kb_place place;
    bool precise;  /* on the execution context of precise = 1 */
    bool no_level; /* does not depend on the level: measured once */
    void (*run)(void *ctx, kv_exec *ex);
    void *ctx;
    kb_rate rate[2];
} kb_case;

typedef struct kb kb;
/* Whether c is to be measured, from its section, kernel and name alone: asked before costly preparation. When cases are
 * only listed it prints the name and says no. */
bool kv_kb_wants(kb *b, const kb_case *c);
/* Measures c at every level and prints its rows, if kb_wants says so. */
void kv_kb_measure(kb *b, const kb_case *c);
/* The context of the best level measured, for preparing data. */
kv_exec *kv_kb_best(const kb *b);

/* The largest sizes a part may ask of an execution context. */
enum {
    KB_ROWS = 512,
    KB_MAX_K = 1536,
    KB_MAX_N = 1536,
    KB_N_Q = 9,
    KB_N_KV = 3,
    KB_HEAD_DIM = 64,
    KB_MAX_CTX = 1 << 17
};

/* SmolLM2-135M's shapes: where most of the kernels' time goes on small machines. */
enum { KB_EMBED = 576, KB_FFN = 1536 };

/* Aligned memory or the end of the program (a benchmark has nobody to report to). */
void *kv_kb_alloc(size_t bytes);
void kv_kb_must(kv_status st, const kv_error *err);
/* y[n]: sums of four uniform numbers, mean 0, deviation about 1. */
void kv_kb_fill(float *y, size_t n, uint64_t seed);
void kv_kb_fill_f16(uint16_t *y, size_t n, uint64_t seed);

/* One per section; bench_kernels.c holds the list. */
void kv_kb_machine(kb *b);
void kv_kb_matmul(kb *b);
void kv_kb_attn(kb *b);
void kv_kb_encode(kb *b);
void kv_kb_elem(kb *b);

#endif
