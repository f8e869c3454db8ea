/* SPDX-License-Identifier: Apache-2.0 */
/* The attention drivers: prompt rows, column sums and decode against double precision; the same bits for any threads, batch and split. */
#include "backend/test_attn_common.h"

#include "base/cpu.h"

#define PAIR(f) ((f) | (f) << 4)
#define Q4 PAIR(KV_Q4)
#define Q2S PAIR(KV_Q2S)
#define F16 PAIR(KV_F16)
#define MINIKV2 PAIR(KV_MINIKV2)

/* Relative error of outputs where keys are exact: in f32, in integers. */
static double tolerance_of(const world *w) { return kv_attn_scratch_of(&w->ex)->tiles ? 5e-4 : 1e-5; }

static void check_rows(const world *w, uint32_t first, uint32_t n, const float *q, const float *out, const float *lse, double tolerance)
{
    uint32_t n_q = w->p.n_q, dk = w->p.dk, dv = w->p.dv;
    for (uint32_t r = 0; r < n; r += n > 40 ? 7 : 1)
        for (uint32_t h = 0; h < n_q; h++) {
            const float *row = q + ((size_t)r * n_q + h) * dk;
            uint32_t kv = h * w->p.n_kv / n_q;
            double want[256], l = dense_attention(w, kv, row, first + r, want);
            double e = distance(out + ((size_t)r * n_q + h) * dv, want, dv);
            if (!(e <= tolerance)) fail_msg("row %u head %u: %g", r, h, e);
            if (!lse) continue;
            float got = lse[r * n_q + h];
            double allowed = tolerance > 5e-4 ? 0.05 : score_error(w, row, kv) * (1 + fabs(l));
            if (!(fabs(got - l) <= allowed)) fail_msg("row %u head %u: lse %.8g, not %.8g", r, h, got, l);
        }
}

/* f16 only: no history, a tail, windows, unequal and odd dims, several group sizes. */
static void prefill_against_dense(void **state)
{
    UNUSED_STATE;
    static const struct { uint16_t n_q, n_kv, dk, dv; uint32_t tail, rows, window; } cases[] = {
        {9, 3, 64, 64, 0, 200, 0}, {4, 4, 64, 64, 1, 1, 0}, {4, 1, 80, 80, 17, 67, 0}, {7, 1, 128, 64, 63, 66, 0}, {8, 1, 64, 128, 64, 3, 0},
        {2, 1, 256, 256, 100, 30, 0}, {9, 3, 64, 64, 0, 300, 40}, {4, 2, 64, 64, 150, 70, 64}, {4, 2, 64, 64, 150, 70, 1}, {3, 1, 72, 100, 5, 129, 100},
        {9, 3, 64, 64, 31, 2, 0}, {1, 1, 64, 64, 0, 1, 0}, {14, 2, 64, 64, 0, 90, 0}, {5, 1, 96, 96, 10, 70, 0}, {6, 1, 192, 128, 0, 65, 0}, {4, 2, 71, 33, 9, 80, 30},
    };
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t k = 0; k < 2 * (sizeof cases / sizeof *cases); k++) {
            world w;
            const size_t i = k / 2;
            uint32_t tail = cases[i].tail, n = cases[i].rows;
            world_init(&w, level, 1, cases[i].n_q, cases[i].n_kv, cases[i].dk, cases[i].dv, tail + n, k % 2);
            w.p.window = cases[i].window;
            world_tail(&w, 0, tail);
            world_rows(&w, tail, tail + n);
            float *q = random_queries(&w, n), *out = must(malloc(sizeof(float) * n * w.p.n_q * w.p.dv)), *lse = must(malloc(sizeof(float) * n * w.p.n_q));
            kv_attn_chunk c = chunk_of(&w, tail, 0, n, q, out, lse);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            check_rows(&w, tail, n, q, out, lse, tolerance_of(&w));
            free(q);
            free(out);
            free(lse);
            world_free(&w);
        }
}

/* Sinks, sealed pages with a late start, a tail, new rows: every kind of key in one call. */
static void prefill_over_pages(void **state)
{
    UNUSED_STATE;
    static const struct { uint8_t pair; uint32_t window; double tolerance; } cases[] = {
        {0, 0, 0}, {Q4, 0, 1e-3}, {Q2S, 0, 3e-2}, {MINIKV2, 0, 0}, {Q4, 90, 1e-3}, {0, 50, 0}, {Q2S, 130, 3e-2}};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t k = 0; k < 2 * (sizeof cases / sizeof *cases); k++) {
            world w;
            const size_t i = k / 2;
            world_init(&w, level, 1, 6, 2, 64, 80, 400, k % 2);
            w.p.window = cases[i].window;
            for (uint32_t h = 0; h < 2; h++) {
                world_seal(&w, h, F16, 0, 11, 0, KV_PAGE_SINK);
                if (cases[i].pair == F16) { /* 11 + 13 + 9 + 16 + 12 columns: the last page's padding goes past a tile's 64 */
                    world_seal(&w, h, F16, 11, 16, 3, 0);
                    world_seal(&w, h, F16, 27, 9, 0, 0);
                    world_seal(&w, h, F16, 36, 16, 0, 0);
                    world_seal(&w, h, F16, 52, 12, 0, 0);
                }
                else { world_seal(&w, h, cases[i].pair, 11, 40, 5, 0); world_seal(&w, h, cases[i].pair, 51, 33, 0, 0); world_seal(&w, h, cases[i].pair, 84, 48, 0, 0); }
            }
            world_tail(&w, 132, 171);
            world_rows(&w, 171, 240);
            float *q = random_queries(&w, 69), *out = must(malloc(sizeof(float) * 69 * 6 * 80)), *lse = must(malloc(sizeof(float) * 69 * 6));
            kv_attn_chunk c = chunk_of(&w, 171, 0, 69, q, out, lse);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            /* Integer tiles unpack every format: their error does not depend on it. */
            check_rows(&w, 171, 69, q, out, lse, kv_attn_scratch_of(&w.ex)->tiles || cases[i].tolerance == 0 ? tolerance_of(&w) : cases[i].tolerance);
            free(q);
            free(out);
            free(lse);
            world_free(&w);
        }
}

/* Rows apart from the run, each against the same query as the run's last row: bit for bit, in one call or in several. */
static void prefill_apart(void **state)
{
    UNUSED_STATE;
    enum { N = 37 };
    static const struct { uint8_t pair; uint32_t tail, rows; } cases[] = {{Q4, 23, 90}, {Q4, 23, 108}, {Q2S, 0, 64}, {Q2S, 20, 1}, {F16, 4, 70}};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            world w;
            uint32_t sync = 60 + cases[k].tail, n = cases[k].rows;
            world_init(&w, level, 3, 6, 2, 64, 80, 300, 0);
            world_seal_all(&w, cases[k].pair, 0, 60);
            world_tail(&w, 60, sync);
            world_rows(&w, sync, sync + n);
            float *q = random_queries(&w, N), *out[2], *lse[2];
            for (int i = 0; i < 2; i++) {
                out[i] = must(calloc(N * 6 * 80, sizeof(float)));
                lse[i] = must(calloc(N * 6, sizeof(float)));
            }
            for (uint32_t r = 0; r < N; r++) {
                kv_attn_chunk c = chunk_of(&w, sync, n - 1, 1, q, out[0], lse[0]);
                c.q = q + r * 6 * 64;
                c.out = out[0] + r * 6 * 80;
                c.lse = lse[0] + r * 6;
                kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            }
            for (uint32_t r = 0; r < N; r += 20) {
                kv_attn_chunk c = chunk_of(&w, sync, n, r + 20 < N ? 20 : N - r, q, out[1], lse[1]);
                c.apart = true;
                c.q = q + r * 6 * 64;
                c.out = out[1] + r * 6 * 80;
                c.lse = lse[1] + r * 6;
                kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            }
            assert_memory_equal(out[0], out[1], N * 6 * 80 * sizeof(float));
            assert_memory_equal(lse[0], lse[1], N * 6 * sizeof(float));
            for (int i = 0; i < 2; i++) {
                free(out[i]);
                free(lse[i]);
            }
            free(q);
            world_free(&w);
        }
}

/* With no rows in the run: what the streams hold, tail and all. */
static void prefill_apart_from_streams(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t tail = 0; tail <= 20; tail += 10) {
            world w;
            world_init(&w, level, 2, 6, 2, 64, 64, 120, 0);
            world_seal_all(&w, F16, 0, 16);
            world_seal_all(&w, F16, 16, 32);
            world_tail(&w, 32, 32 + tail);
            float *q = random_queries(&w, 5), *out = must(calloc(5 * 6 * 64, sizeof(float))), *lse = must(calloc(5 * 6, sizeof(float)));
            kv_attn_chunk c = chunk_of(&w, 32 + tail, 0, 5, q, out, lse);
            c.apart = true;
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            for (uint32_t r = 0; r < 5; r++) check_rows(&w, 31 + tail, 1, q + r * 6 * 64, out + r * 6 * 64, lse + r * 6, tolerance_of(&w));
            free(q);
            free(out);
            free(lse);
            world_free(&w);
        }
}

/* One call with one thread, against splits at odd places with three threads: among them single rows. */
static void prefill_splits(void **state)
{
    UNUSED_STATE;
    static const uint32_t cuts[] = {0, 1, 4, 67, 68, 131, 190, 201};
    static const struct { uint16_t n_q, n_kv, dk, dv; uint8_t pair; uint32_t window; } cases[] = {
        {9, 3, 64, 64, Q2S, 0}, {9, 3, 64, 64, Q2S, 70}, {7, 1, 64, 64, Q4, 0}, {4, 2, 96, 80, PAIR(KV_Q8), 0}, {6, 2, 128, 128, MINIKV2, 100}, {2, 1, 72, 256, F16, 0}};
    for (int level = kv_cpu_detect(); level >= 0; level--)
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            world w;
            float *q, *out[2], *lse[2];
            const size_t n = 201 * cases[k].n_q;
            world_init(&w, level, 3, cases[k].n_q, cases[k].n_kv, cases[k].dk, cases[k].dv, 330, 0);
            w.p.window = cases[k].window;
            world_seal_all(&w, cases[k].pair, 0, 60);
            world_tail(&w, 60, 83);
            q = random_queries(&w, 201);
            for (int i = 0; i < 2; i++) {
                out[i] = must(calloc(n * cases[k].dv, sizeof(float)));
                lse[i] = must(calloc(n, sizeof(float)));
            }
            kv_threads *threads = w.ex.threads;
            w.ex.threads = NULL;
            kv_attn_chunk c = chunk_of(&w, 83, 0, 201, q, out[0], lse[0]);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            w.ex.threads = threads;
            for (size_t i = 0; i + 1 < sizeof cuts / sizeof *cuts; i++) {
                c = chunk_of(&w, 83, cuts[i], cuts[i + 1] - cuts[i], q, out[1], lse[1]);
                kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            }
            assert_memory_equal(out[0], out[1], n * cases[k].dv * sizeof(float));
            assert_memory_equal(lse[0], lse[1], n * sizeof(float));
            for (int i = 0; i < 2; i++) {
                free(out[i]);
                free(lse[i]);
            }
            free(q);
            world_free(&w);
        }
}

/* Several syncs instead of one: keys that were new rows lie in the tail. */
static void tail_equals_rows(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (uint32_t cut = 1; cut < 150; cut += cut < 20 ? 7 : 41) {
            world w;
            world_init(&w, level, 1, 4, 2, 80, 64, 150, 0);
            float *q = random_queries(&w, 150), *out[2], *lse[2];
            for (int i = 0; i < 2; i++) {
                out[i] = must(calloc(150 * 4 * 64, sizeof(float)));
                lse[i] = must(calloc(150 * 4, sizeof(float)));
            }
            kv_attn_chunk c = chunk_of(&w, 0, 0, 150, q, out[0], lse[0]);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            c = chunk_of(&w, 0, 0, cut, q, out[1], lse[1]);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            world_tail(&w, 0, cut);
            c = chunk_of(&w, cut, 0, 150 - cut, q + (size_t)cut * 4 * 80, out[1] + (size_t)cut * 4 * 64, lse[1] + (size_t)cut * 4);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            assert_memory_equal(out[0], out[1], 150 * 4 * 64 * sizeof(float));
            assert_memory_equal(lse[0], lse[1], 150 * 4 * sizeof(float));
            for (int i = 0; i < 2; i++) {
                free(out[i]);
                free(lse[i]);
            }
            free(q);
            world_free(&w);
        }
}

/* A head with nothing stored gives zeros; rows before any visible key likewise. */
static void no_keys(void **state)
{
    UNUSED_STATE;
    world w;
    world_init(&w, kv_cpu_detect(), 1, 4, 2, 64, 64, 40, 0);
    float *q = random_queries(&w, 1), out[4 * 64];
    memset(out, 0x7f, sizeof out);
    kv_attn_decode_row row = {kv_seq_stream(w.seq, 0, 0), q, out, 10};
    kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &row, 1);
    for (int i = 0; i < 4 * 64; i++) assert_true(out[i] == 0.0f);
    for (uint32_t h = 0; h < 2; h++) world_seal(&w, h, F16, 0, 16, 0, 0);
    w.p.window = 4;
    memset(out, 0x7f, sizeof out);
    row.position = 30;
    kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &row, 1);
    for (int i = 0; i < 4 * 64; i++) assert_true(out[i] == 0.0f);
    free(q);
    world_free(&w);
}

/* Rows of one sequence at several positions and windows, alone with one thread and all together with three: more pages than one wave. */
static void decode_company(void **state)
{
    UNUSED_STATE;
    static const uint8_t pairs[] = {F16, Q4, Q2S, MINIKV2, PAIR(KV_Q8)};
    for (size_t f = 0; f < sizeof pairs; f++)
        for (uint32_t window = 0; window < 1000; window += 500) {
            world w;
            enum { N = 8 };
            world_init(&w, kv_cpu_detect(), 3, 9, 3, 64, 64, 1500, 0);
            w.p.window = window;
            world_seal_all(&w, pairs[f], 0, 1400);
            world_tail(&w, 1400, 1450);
            float *q = random_queries(&w, N), alone[N][9 * 64], together[N][9 * 64];
            kv_attn_decode_row rows[N];
            kv_threads *threads = w.ex.threads;
            for (uint32_t i = 0; i < N; i++) rows[i] = (kv_attn_decode_row){kv_seq_stream(w.seq, 0, 0), q + i * 9 * 64, together[i], 1449};
            kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, rows, N);
            w.ex.threads = NULL;
            for (uint32_t i = 0; i < N; i++) {
                rows[i].out = alone[i];
                kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &rows[i], 1);
                assert_memory_equal(alone[i], together[i], sizeof alone[i]);
                check_rows(&w, 1449, 1, rows[i].q, alone[i], NULL, pairs[f] == Q2S ? 3e-2 : pairs[f] == Q4 || pairs[f] == PAIR(KV_Q8) ? 1e-3 : 1e-5);
            }
            w.ex.threads = threads;
            free(q);
            world_free(&w);
        }
}

typedef struct sums { float sums[6 * 400], mass[6 * 400], sink[6]; } sums;

/* Second pass over rows [0, n) cut at `cuts`. */
static void run_colsum(world *w, uint32_t first, const uint32_t *cuts, uint32_t n_cuts, const float *q, const float *lse, kv_attn_colsum proto, sums *s)
{
    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i + 1 < n_cuts; i++) {
        kv_attn_colsum c = proto;
        c.c = chunk_of(w, first, cuts[i], cuts[i + 1] - cuts[i], q, NULL, (float *)(uintptr_t)lse);
        c.sums = s->sums;
        c.mass = s->mass;
        c.sink_mass = s->sink;
        c.sums_stride = 400;
        kv_cpu_attn_colsum(&w->ex.base, &w->p, &c);
    }
}

static void check_colsum(const world *w, uint32_t first, uint32_t n, uint32_t run_first, const float *q, const kv_attn_colsum *c, const sums *got)
{
    double tolerance = 2e-5;
    for (uint32_t i = 0; i < n * w->p.n_q; i++) tolerance = fmax(tolerance, 2 * score_error(w, q + (size_t)i * w->p.dk, i % w->p.n_q * w->p.n_kv / w->p.n_q));
    for (uint32_t h = 0; h < w->p.n_q; h++) {
        const dense_head *d = &w->heads[h * w->p.n_kv / w->p.n_q];
        double want[400] = {0}, mass[400] = {0}, sink = 0;
        for (uint32_t r = 0; r < n; r++) {
            const float *row = q + ((size_t)r * w->p.n_q + h) * w->p.dk;
            double sum = 0;
            for (uint32_t i = 0; i < d->n; i++) sum += dense_sees(w, &d->keys[i], first + r) ? exp(dense_score(w, row, &d->keys[i])) : 0;
            for (uint32_t i = 0; i < d->n; i++) {
                double p = dense_sees(w, &d->keys[i], first + r) ? exp(dense_score(w, row, &d->keys[i])) / sum : 0;
                if (i < d->n_sink && r >= c->mass_from) sink += p;
                if (d->keys[i].position < run_first) continue;
                uint32_t j = d->keys[i].position - run_first;
                if (r >= c->row_from && (r - c->row_from) % c->stride == 0) want[j] += c->square ? p * p : p;
                if (r >= c->mass_from) mass[j] += p;
            }
        }
        for (uint32_t j = 0; j < first + n - run_first; j++) {
            assert_true(fabs(got->sums[h * 400 + j] - want[j]) <= 1e-6 + tolerance * want[j]);
            assert_true(fabs(got->mass[h * 400 + j] - mass[j]) <= 1e-6 + tolerance * mass[j]);
        }
        assert_true(fabs(got->sink[h] - sink) <= 1e-6 + tolerance * sink);
    }
}

static void colsum_against_naive(void **state)
{
    UNUSED_STATE;
    static const struct { uint32_t row_from, stride, mass_from, window; bool square; } cases[] = {
        {0, 1, 0, 0, false}, {118, 1, 118, 0, true}, {3, 5, 140, 0, false}, {149, 1, 149, 0, true}, {0, 1, 100, 75, true}};
    static const uint32_t one[] = {0, 150}, many[] = {0, 1, 13, 64, 65, 128, 149, 150};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t k = 0; k < 2 * (sizeof cases / sizeof *cases); k++) {
            world w;
            const size_t i = k / 2;
            world_init(&w, level, 3, 6, 2, 64, 64, 300, k % 2);
            w.p.window = cases[i].window;
            for (uint32_t h = 0; h < 2; h++) {
                world_seal(&w, h, F16, 0, 16, 0, KV_PAGE_SINK);
                world_seal(&w, h, F16, 16, 9, 2, KV_PAGE_SINK);
                world_seal(&w, h, F16, 25, 16, 0, 0);
            }
            world_tail(&w, 41, 80);
            world_rows(&w, 80, 230);
            float *q = random_queries(&w, 150), *out = must(malloc(sizeof(float) * 150 * 6 * 64)), *lse = must(malloc(sizeof(float) * 150 * 6));
            kv_attn_chunk c = chunk_of(&w, 80, 0, 150, q, out, lse);
            kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
            kv_attn_colsum proto = {.row_from = cases[i].row_from, .stride = cases[i].stride, .mass_from = cases[i].mass_from, .square = cases[i].square};
            sums *a = must(malloc(sizeof *a)), *b = must(malloc(sizeof *b));
            run_colsum(&w, 80, one, 2, q, lse, proto, a);
            check_colsum(&w, 80, 150, 41, q, &proto, a);
            kv_threads *threads = w.ex.threads;
            w.ex.threads = NULL;
            run_colsum(&w, 80, many, 8, q, lse, proto, b);
            w.ex.threads = threads;
            assert_memory_equal(a, b, sizeof *a);
            free(a);
            free(b);
            free(q);
            free(out);
            free(lse);
            world_free(&w);
        }
}

/* Scores of the second pass are those of the first: a row's probabilities sum to 1 far closer than scores are exact. */
static void probabilities_sum_to_one(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        world w;
        enum { N = 200 };
        world_init(&w, level, 1, 6, 2, 64, 64, N, 0);
        float *q = random_queries(&w, N), *out = must(malloc(sizeof(float) * N * 6 * 64)), *lse = must(malloc(sizeof(float) * N * 6)), cols[6 * N];
        for (uint32_t i = 0; i < N * 6 * 64; i++) q[i] *= 4.0f;
        kv_attn_chunk c = chunk_of(&w, 0, 0, N, q, out, lse);
        kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
        for (uint32_t r = 0; r < N; r += 13) {
            memset(cols, 0, sizeof cols);
            kv_attn_colsum cs = {.c = c, .row_from = r, .stride = N, .sums = cols, .sums_stride = N, .mass_from = N};
            kv_cpu_attn_colsum(&w.ex.base, &w.p, &cs);
            for (uint32_t h = 0; h < 6; h++) {
                double sum = 0;
                for (uint32_t t = 0; t < N; t++) sum += cols[h * N + t];
                assert_true(fabs(sum - 1.0) <= 1e-5);
            }
        }
        free(q);
        free(out);
        free(lse);
        world_free(&w);
    }
}

/* Softcap is the reference level's; everything not built is refused by name. */
static void supported(void **state)
{
    UNUSED_STATE;
    kv_error err;
    world w;
    world_init(&w, KV_CPU_REF, 1, 6, 2, 64, 64, 100, 0);
    w.p.softcap = 3.0f;
    assert_int_equal(kv_cpu_attn_supported(&w.be.base, &w.p, &err), KVIST_OK);
    world_tail(&w, 0, 20);
    world_rows(&w, 20, 90);
    float *q = random_queries(&w, 70), *out = must(malloc(sizeof(float) * 70 * 6 * 64)), *lse = must(malloc(sizeof(float) * 70 * 6));
    for (uint32_t i = 0; i < 70 * 6 * 64; i++) q[i] *= 6.0f;
    kv_attn_chunk c = chunk_of(&w, 20, 0, 70, q, out, lse);
    kv_cpu_attn_prefill(&w.ex.base, &w.p, &c);
    check_rows(&w, 20, 70, q, out, lse, 1e-5);
    free(q);
    free(out);
    free(lse);
    w.be.level = KV_CPU_AVX2;
    assert_int_equal(kv_cpu_attn_supported(&w.be.base, &w.p, &err), KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "softcap"));
    w.p.softcap = 0.0f;
    assert_int_equal(kv_cpu_attn_supported(&w.be.base, &w.p, &err), KVIST_OK);
    w.p.causal = false;
    assert_int_equal(kv_cpu_attn_supported(&w.be.base, &w.p, &err), KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "causal"));
    w.p.causal = true;
    w.p.head_sink = &w.p.scale;
    assert_int_equal(kv_cpu_attn_supported(&w.be.base, &w.p, &err), KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "head_sink"));
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_against_dense), cmocka_unit_test(prefill_over_pages), cmocka_unit_test(prefill_apart), cmocka_unit_test(prefill_apart_from_streams), cmocka_unit_test(prefill_splits), cmocka_unit_test(tail_equals_rows),
        cmocka_unit_test(no_keys), cmocka_unit_test(decode_company), cmocka_unit_test(colsum_against_naive), cmocka_unit_test(probabilities_sum_to_one), cmocka_unit_test(supported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
