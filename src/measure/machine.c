/* SPDX-License-Identifier: Apache-2.0 */
/* See machine.h. */
#include "measure/machine.h"

#include <string.h>

#include "backend/cpu/probe.h"
#include "base/cpu.h"
#include "base/os.h"
#include "base/threads.h"
#include "measure/stats.h"
#include "model/model.h"

/* 256 MiB: several times the last-level cache of a server slice; smaller buffers measured the cache. Pieces of 1 MiB
 * keep threads busy to the end. */
enum { READ_BYTES = 256 << 20, PIECE = 1 << 20, PASSES = 9 };
/* A loop's piece lasts about a millisecond; pieces of all threads run at once, eight a thread a pass. */
enum { LOOP_PIECES = 8, LOOP_PASSES = 5 };
#define PIECE_SECONDS 0.001

typedef struct reading {
    const kv_probe *probe;
    const uint8_t *data;
    uint64_t sums[READ_BYTES / PIECE];
} reading;

static void read_piece(void *ctx, uint32_t item, uint32_t thread) {
    reading *r = ctx;
    (void)thread;
    r->sums[item] = r->probe->read(r->data + (size_t)item * PIECE, PIECE);
}

static double seconds_since(uint64_t t0) { return (double)(kv_os_now_ns() - t0) * 1e-9; }

static void measure_bandwidth(const kv_probe *probe, kv_threads *t, kv_machine *out) {
    static const uint32_t pieces = READ_BYTES / PIECE;
    double rate[PASSES];
    void *data;
    kv_error err;
    reading r = {.probe = probe};
    if (kv_os_reserve(READ_BYTES, true, &data, &err) != KVIST_OK) return;
    memset(data, 1, READ_BYTES); /* untouched pages would all be the same page of zeros */
    r.data = data;
    kv_threads_run(t, read_piece, &r, pieces);
    for (int i = 0; i < PASSES; i++) {
        uint64_t t0 = kv_os_now_ns();
        kv_threads_run(t, read_piece, &r, pieces);
        rate[i] = (double)READ_BYTES / seconds_since(t0);
    }
    kv_os_unreserve(data, READ_BYTES);
    out->bandwidth = kv_measure_median(rate, PASSES); /* sorts */
    out->bandwidth_best = rate[PASSES - 1];
}

typedef struct looping {
    const kv_probe_loop *loop;
    uint32_t rounds;
    volatile double sink;
} looping;

static void loop_piece(void *ctx, uint32_t item, uint32_t thread) {
    looping *l = ctx;
    double got = l->loop->run(l->rounds);
    (void)item;
    (void)thread;
    if (got != got) l->sink = got; /* never: but the compiler must keep the result for it */
}

/* Multiply-adds a second of all threads together, the median of a few passes. */
static double measure_loop(const kv_probe_loop *loop, kv_threads *t, uint32_t threads) {
    if (!loop->run) return 0;
    looping l = {.loop = loop, .rounds = 1024};
    uint32_t pieces = threads * LOOP_PIECES;
    double rate[LOOP_PASSES];
    for (;;) { /* rounds that last a piece; also the warm-up */
        uint64_t t0 = kv_os_now_ns();
        l.sink = loop->run(l.rounds);
        double s = seconds_since(t0);
        if (s >= PIECE_SECONDS / 2 || l.rounds >= 1u << 28) break;
        l.rounds *= 2;
    }
    for (int i = 0; i < LOOP_PASSES; i++) {
        uint64_t t0 = kv_os_now_ns();
        kv_threads_run(t, loop_piece, &l, pieces);
        rate[i] = loop->macs * l.rounds * pieces / seconds_since(t0);
    }
    return kv_measure_median(rate, LOOP_PASSES);
}

void kv_machine_probe(uint32_t threads, int level, kv_machine *out) {
    kv_threads *t = NULL;
    kv_error err;
    memset(out, 0, sizeof *out);
    out->threads = threads ? threads : kv_os_processors();
    out->level = level;
    kv_cpu_name(out->cpu, sizeof out->cpu);
    if (kv_threads_create(out->threads, &t, &err) != KVIST_OK) return;
    const kv_probe *probe = kv_cpu_probe(level);
    kv_probe_loop bf16 = level == KV_CPU_AVX512 ? kv_cpu_probe_bf16() : (kv_probe_loop){0};
    measure_bandwidth(probe, t, out);
    out->int8 = measure_loop(&probe->int8, t, out->threads);
    out->int16 = measure_loop(&probe->int16, t, out->threads);
    out->f32 = measure_loop(&probe->f32, t, out->threads);
    out->bf16 = measure_loop(&bf16, t, out->threads);
    kv_threads_free(&t);
}

/* ---------------------------------------------------------------- work */

uint64_t kv_table_bytes(const kvist_model *m) { return m->embed != m->output ? m->be->ops->weight_bytes(m->embed) : 0; }

kv_shape kv_shape_of(const kvist_model_info *m, uint64_t table_bytes) {
    double e = m->n_embd, q = (double)m->n_heads * m->head_dim_k, k = (double)m->n_kv_heads * m->head_dim_k;
    double v = (double)m->n_kv_heads * m->head_dim_v, o = (double)m->n_heads * m->head_dim_v;
    kv_shape s = {.n_layers = m->n_layers, .n_q = m->n_heads, .dk = m->head_dim_k, .dv = m->head_dim_v};
    s.layer_weights = m->n_layers * (e * (q + k + v + o) + 3 * e * m->n_ff);
    s.kv_weights = e * (k + v);
    s.head_weights = (double)m->n_vocab * e;
    s.bytes_step = (double)m->bytes_weights - (double)table_bytes;
    return s;
}

/* Multiply-adds of one query row against n keys and values, all layers and query heads. */
static double attention(const kv_shape *s, double n) { return (double)s->n_layers * s->n_q * n * (s->dk + s->dv); }

/* Products of blocks of 32 codes: a multiplication of two steps and an addition to the sum for each block, whatever the
 * type (a minimum is a third, not counted here). */
static double of_steps(double products) { return products * 2 / 32; }

kv_work kv_work_decode(const kv_shape *s, uint32_t rows, double stored, double cache_bytes, bool codes) {
    double a = rows * attention(s, stored);
    kv_work w = {.bytes = s->bytes_step + rows * cache_bytes, .int8 = rows * (s->layer_weights + s->head_weights)};
    w.f32 = of_steps(w.int8);
    *(codes ? &w.int8 : &w.f32) += a;
    return w;
}

kv_work kv_work_prompt(const kv_shape *s, uint32_t n, double stored, double cache_bytes, bool codes) {
    double layers = s->n_layers, one = s->layer_weights / layers, full = (layers - 1) / layers;
    kv_work w = {.bytes = s->bytes_step + cache_bytes};
    w.int8 = n * ((layers - 1) * one + s->kv_weights) + (one - s->kv_weights) + s->head_weights;
    w.f32 = of_steps(w.int8);
    w.int16 = full * attention(s, (double)n * (n + 1.0) / 2) + (1 - full) * attention(s, n);
    *(codes ? &w.int8 : &w.int16) += (full * n + 1 - full) * attention(s, stored);
    return w;
}

kv_limit kv_machine_limit(const kv_machine *m, const kv_work *w) {
    double memory = m->bandwidth > 0 ? w->bytes / m->bandwidth : 0;
    double rate16 = m->int16 > 0 ? m->int16 : m->f32;
    double int8 = m->int8 > 0 ? w->int8 / m->int8 : 0, int16 = rate16 > 0 ? w->int16 / rate16 : 0;
    double f32 = m->f32 > 0 ? w->f32 / m->f32 : 0, sum = int8 + int16 + f32;
    if (memory <= 0 && sum <= 0) return (kv_limit){0, ""};
    if (memory >= sum) return (kv_limit){memory, "memory"};
    if (m->int16 <= 0) f32 += int16, int16 = 0;
    return (kv_limit){sum, int8 >= int16 && int8 >= f32 ? "int8" : int16 >= f32 ? "int16" : "f32"};
}
