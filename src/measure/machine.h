/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's limits, measured: what memory streams and how many multiply-adds a second the processor does with a
 * given number of threads; and the work of one step of a model, so that a speed can be said as a share of the limit
 * that binds it. Knows the public interface, the CPU's probe loops, and of a
 * loaded model whether its head is its embedding table.
 */
#ifndef KV_MEASURE_MACHINE_H
#define KV_MEASURE_MACHINE_H

#include "kvist/kvist.h"

typedef struct kv_machine {
    char cpu[96];
    int level; /* of base/cpu.h, the one probed */
    uint32_t threads;
    double bandwidth, bandwidth_best; /* bytes/s of reading memory: median and best pass. 0: no memory for the probe */
    double int8, int16, f32, bf16;    /* multiply-adds/s, all threads; int16, bf16: 0 where the level has none */
} kv_machine;
/* About half a second; medians of several passes. threads 0: all processors. */
void kv_machine_probe(uint32_t threads, int level, kv_machine *out);

/* ---- what a model must do */

/* Counts of a model's parts, from its public description. */
typedef struct kv_shape {
    uint32_t n_layers, n_q, dk, dv;
    double layer_weights; /* of all layers' matrices: multiply-adds a row */
    double kv_weights;    /* of one layer's K and V */
    double head_weights;  /* of the output matrix, n_vocab x n_embd */
    double bytes_step; /* weights that one step reads, once whatever its rows: all but an embedding table of its own */
} kv_shape;
/* table_bytes: of an embedding table beside the head, of which a step reads a row a token (0: the head is the table).
 */
kv_shape kv_shape_of(const kvist_model_info *info, uint64_t table_bytes);
uint64_t kv_table_bytes(const kvist_model *model);

/* Least work of one decode step or one prompt. */
typedef struct kv_work {
    double bytes;     /* weights once (a prompt: once), caches read */
    double int8;      /* multiply-adds: matrix products, and attention on codes */
    double f32;       /* steps of blocks in products; attention on f16 while decoding */
    double int16;     /* attention on f16 in prompts: at the rate of f32 where a machine has no other */
} kv_work;
/* One step of `rows` sequences whose caches hold `stored` tokens a head (mean) in cache_bytes each. codes: pages hold
 * integer codes, so that attention's products are the integer unit's. */
kv_work kv_work_decode(const kv_shape *s, uint32_t rows, double stored, double cache_bytes, bool codes);
/* A prompt of n rows over a cache of `stored` tokens: all rows see it, and each other causally. The last layer owes
 * keys and values of all rows, the rest of it and the head are for one row. */
kv_work kv_work_prompt(const kv_shape *s, uint32_t n, double stored, double cache_bytes, bool codes);

typedef struct kv_limit {
    double seconds;   /* no machine with these rates does the work faster */
    const char *unit; /* what binds: "memory", "int8", "int16", "f32"; "" when nothing was measured */
} kv_limit;
/* Memory and arithmetic overlap, the kinds of arithmetic do not (they share the same ports): the limit is the longer of
 * bytes/bandwidth and the sum of each kind's work over its rate; the largest part of the latter gives its name. */
kv_limit kv_machine_limit(const kv_machine *m, const kv_work *w);

#endif
