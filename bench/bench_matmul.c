/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Micro-benchmark of matrix products beside the machine's own limits: GB/s of weights for one row (against a plain read
 * of memory), G multiply-adds/s for many rows. Not built by default: bench_matmul [threads] [level]. Prints the best of
 * several runs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/matmul.h"
#include "base/alloc.h"
#include "base/os.h"

typedef struct bench {
    kv_cpu_backend be;
    kv_cpu_exec ex;
} bench;

/* Least seconds of fn: on a machine shared with other work the median measures the others. */
static double least(void (*fn)(void *), void *ctx, int runs) {
    double best = 1e30;
    fn(ctx);
    for (int i = 0; i < runs; i++) {
        uint64_t t0 = kv_os_now_ns();
        fn(ctx);
        double t = (double)(kv_os_now_ns() - t0) * 1e-9;
        best = t < best ? t : best;
    }
    return best;
}

typedef struct stream {
    kv_threads *threads;
    const uint64_t *data;
    size_t n, items;
    uint64_t sums[64];
} stream;

static void stream_item(void *ctx, uint32_t item, uint32_t thread) {
    stream *s = ctx;
    const uint64_t *p = s->data + item * (s->n / s->items);
    uint64_t a[8] = {0};
    for (size_t i = 0; i < s->n / s->items; i += 8)
        for (int j = 0; j < 8; j++) a[j] += p[i + (size_t)j];
    for (int j = 0; j < 8; j++) s->sums[item & 63] += a[j];
}

static void stream_run(void *ctx) {
    stream *s = ctx;
    kv_threads_run(s->threads, stream_item, s, (uint32_t)s->items);
}

static void report_stream(kv_threads *threads) {
    size_t bytes = (size_t)100 << 20;
    stream s = {.threads = threads, .data = kv_malloc64(bytes), .n = bytes / 8, .items = 64};
    if (!s.data) return;
    memset((void *)s.data, 1, bytes);
    printf("plain read of 100 MiB: %.1f GB/s\n", (double)bytes / least(stream_run, &s, 15) * 1e-9);
    kv_free64((void *)s.data);
}

/* `copies` weights of one shape in turn, so that one row streams from memory as in a model. */
typedef struct product {
    bench *b;
    kv_weight **w;
    uint32_t copies, rows, k, n;
    float *x, *y;
} product;

static void product_run(void *ctx) {
    product *p = ctx;
    for (uint32_t i = 0; i < p->copies; i++) {
        kv_matmul_out out = {p->w[i], p->y, p->n, NULL, false};
        kv_cpu_matmul(&p->b->ex.base, p->x, p->rows, p->k, &out, 1);
    }
}

static kv_weight *make_weight(uint32_t type, uint32_t n, uint32_t k, kv_threads *threads) {
    const kv_type_info *ti = kv_type_get(type);
    size_t bytes = (size_t)n * (k / ti->block) * ti->bytes;
    uint8_t *data = kv_malloc(bytes);
    kv_weight *w = NULL;
    kv_error err;
    if (!data) return NULL;
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)((i * 2654435761u) >> 13) & 0x3f;
    kv_tensor t = {"w", type, 2, {k, n, 1, 1}, data, bytes, 0};
    if (kv_cpu_weight_create(NULL, &t, threads, &w, &err)) fprintf(stderr, "%s\n", err.message);
    kv_free(data);
    return w;
}

static void report(bench *b, uint32_t type, uint32_t n, uint32_t k, const uint32_t *rows, uint32_t n_rows) {
    kv_weight *w[512];
    product p = {.b = b, .w = w, .k = k, .n = n};
    uint64_t one = 0;
    for (p.copies = 0; p.copies < 512 && (p.copies == 0 || one * p.copies < (100u << 20)); p.copies++) {
        if (!(w[p.copies] = make_weight(type, n, k, b->ex.threads))) return;
        one = kv_cpu_weight_bytes(w[0]);
    }
    uint32_t copies = p.copies;
    p.x = kv_malloc64((size_t)512 * k * 4);
    p.y = kv_malloc64((size_t)512 * n * 4);
    for (size_t i = 0; p.x && i < (size_t)512 * k; i++) p.x[i] = (float)((i * 7919) % 1001) / 500.0f - 1;
    printf("%-7s %6u x %-5u", kv_type_get(type)->name, n, k);
    for (uint32_t i = 0; p.x && p.y && i < n_rows; i++) {
        p.rows = rows[i];
        p.copies = rows[i] < 16 ? copies : 1;
        double s = least(product_run, &p, rows[i] < 16 ? 15 : 25);
        printf("  r%u: %.1f GB/s %.0f GMAC/s", rows[i], (double)one * p.copies / s * 1e-9,
               (double)n * k * rows[i] * p.copies / s * 1e-9);
    }
    printf("\n");
    for (uint32_t i = 0; i < copies; i++) kv_cpu_weight_free(NULL, w[i]);
    kv_free64(p.x);
    kv_free64(p.y);
}

int main(int argc, char **argv) {
    bench b = {0};
    kv_error err;
    uint32_t threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    b.be.level = argc > 2 ? atoi(argv[2]) : kv_cpu_detect();
    b.be.matmul = kv_matmul_kernels_get(b.be.level);
    b.ex.base.be = &b.be.base;
    b.ex.be = &b.be;
    b.ex.params =
        (kv_exec_params){.threads = threads, .precise = argc > 3 ? atoi(argv[3]) : 0, .max_rows = 512, .max_k = 5000};
    if (kv_threads_create(threads, &b.ex.threads, &err) || kv_matmul_exec_init(&b.ex, &err)) return 1;
    printf("level %s, %u threads\n", b.be.matmul->name, threads);
    report_stream(b.ex.threads);
    const uint32_t rows[] = {1, 2, 6, 512};
    report(&b, KV_TYPE_Q4_1, 576, 576, rows, 4);
    report(&b, KV_TYPE_Q4_1, 1536, 576, rows, 4);
    report(&b, KV_TYPE_Q4_1, 576, 1536, rows, 4);
    report(&b, KV_TYPE_Q4_1, 192, 576, rows, 4);
    report(&b, KV_TYPE_Q8_0, 49152, 576, rows, 3);
    const uint32_t others[] = {KV_TYPE_Q4_0, KV_TYPE_Q5_0, KV_TYPE_Q8_0, KV_TYPE_Q2_K,   KV_TYPE_Q3_K,
                               KV_TYPE_Q4_K, KV_TYPE_Q5_K, KV_TYPE_Q6_K, KV_TYPE_IQ4_NL, KV_TYPE_IQ4_XS,
                               KV_TYPE_F16,  KV_TYPE_BF16, KV_TYPE_F32};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) report(&b, others[i], 4096, 2048, rows, 4);
    kv_matmul_exec_free(&b.ex);
    kv_threads_free(&b.ex.threads);
    return 0;
}
