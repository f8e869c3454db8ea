/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one thread of the machine does at most, beside which the kernels stand: memory read plainly and as each level
 * reads it best, and the multiply-adds of each level's own instructions.
 */
#include <stdio.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/probe.h"
#include "base/alloc.h"
#include "cli/bench_kernels.h"

typedef struct reader {
    const uint64_t *data;
    size_t words, at;
    volatile uint64_t sum;
} reader;

#define READ_WORDS ((size_t)1 << 18) /* 2 MiB a run */

static void step(reader *r) { r->at = (r->at + READ_WORDS) % r->words; }

static void read_plain(void *ctx, kv_exec *ex) {
    reader *r = ctx;
    const uint64_t *p = r->data + r->at;
    uint64_t a[16] = {0};
    (void)ex;
    for (size_t i = 0; i < READ_WORDS; i += 16)
        for (int j = 0; j < 16; j++) a[j] += p[i + (size_t)j];
    for (int j = 0; j < 16; j++) r->sum += a[j];
    step(r);
}

static const kv_probe *probe_of(kv_exec *ex) { return kv_cpu_probe(kv_cpu_exec_of(ex)->be->level); }

static void read_best(void *ctx, kv_exec *ex) {
    reader *r = ctx;
    r->sum += probe_of(ex)->read((const uint8_t *)(r->data + r->at), READ_WORDS * 8);
    step(r);
}

static void measure_reads(kb *b) {
    kb_case c = {.section = "machine", .kernel = "read", .name = "plain read, 64-bit words", .place = KB_MEMORY,
                 .no_level = true, .run = read_plain, .rate = {{KB_GBYTES, READ_WORDS * 8.0}}};
    kb_case best = c;
    best.no_level = false;
    best.run = read_best;
    snprintf(best.name, sizeof best.name, "widest loads, prefetched");
    bool wanted = kv_kb_wants(b, &c), wanted_best = kv_kb_wants(b, &best);
    if (!wanted && !wanted_best) return;
    size_t words = KB_RING_BYTES / 8;
    uint64_t *data = kv_kb_alloc(words * 8);
    memset(data, 1, words * 8);
    reader r = {.data = data, .words = words};
    c.ctx = best.ctx = &r;
    kv_kb_measure(b, &c);
    kv_kb_measure(b, &best);
    kv_free64(data);
}

/* Every level's loop does its own number of multiply-adds a round: the rate wants one number a case, so rounds are as
 * many as give it. */
#define LOOP_MACS 67108864.0 /* 0.2 ms and more: the first 20 us of wide instructions run at half speed */

static volatile double sink;
static void run_loop(const kv_probe_loop *l) { sink = l->run((uint32_t)(LOOP_MACS / l->macs)); }
static void run_int8(void *ctx, kv_exec *ex) { run_loop(&probe_of(ex)->int8); }
static void run_f32(void *ctx, kv_exec *ex) { run_loop(&probe_of(ex)->f32); }
static void run_bf16(void *ctx, kv_exec *ex) { run_loop(ctx); }

static void measure_loops(kb *b) {
    kv_probe_loop bf16 = kv_cpu_probe_bf16();
    kb_case c = {.section = "machine", .kernel = "int8", .name = "multiply-adds in registers", .place = KB_CACHE,
                 .run = run_int8, .rate = {{KB_GMACS, LOOP_MACS}}};
    kv_kb_measure(b, &c);
    c.kernel = "f32";
    c.run = run_f32;
    kv_kb_measure(b, &c);
    if (!bf16.run) return;
    c.kernel = "bf16";
    c.run = run_bf16;
    c.ctx = &bf16;
    c.no_level = true;
    kv_kb_measure(b, &c);
}

void kv_kb_machine(kb *b) {
    measure_reads(b);
    measure_loops(b);
}
