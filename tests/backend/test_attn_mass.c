/* SPDX-License-Identifier: Apache-2.0 */
/* Masses of generated rows: against a softmax in double precision over what the pages decode to, their total, and independence of the company. */
#include "backend/test_attn_common.h"

#include "base/cpu.h"

#define PAIR(k, v) ((uint8_t)((k) | (v) << 4))
static const uint8_t pairs[] = {PAIR(KV_F16, KV_F16), PAIR(KV_Q8, KV_Q8), PAIR(KV_Q4, KV_Q4), PAIR(KV_Q3, KV_Q3), PAIR(KV_Q2, KV_Q2), PAIR(KV_Q2S, KV_Q2S),
                                PAIR(KV_Q1, KV_Q1), PAIR(KV_Q4, KV_Q2), PAIR(KV_Q2S, KV_Q4), PAIR(KV_KIVI4, KV_KIVI4), PAIR(KV_KIVI2, KV_KIVI2),
                                PAIR(KV_MINIKV2, KV_MINIKV2)};
#define N_PAIRS (sizeof pairs / sizeof *pairs)
enum { SEALED = 613, END = 650, CAP = 64 };

/* Sinks in f16, a first page of which slots are no longer valid, pages of the format, a tail. */
static void build(world *w, int level, uint32_t n_q, uint32_t n_kv, uint32_t dk, uint32_t dv, uint8_t pair, int precise, uint32_t threads)
{
    kv_page_layout L;
    kv_error err;
    world_init(w, level, threads, n_q, n_kv, dk, dv, 700, precise);
    ok(kv_page_layout_get(pair, dk, dv, kv_pool_page_bytes(w->pool), &L, &err), &err);
    for (uint32_t h = 0; h < n_kv; h++) {
        world_seal(w, h, 0, 0, 8, 0, KV_PAGE_SINK);
        world_seal(w, h, pair, 8, L.tokens < 40 ? L.tokens : 40, 3 + h, 0);
    }
    world_seal_all(w, pair, 8 + (L.tokens < 40 ? L.tokens : 40), SEALED);
    world_tail(w, SEALED, END);
}

static float *masses_of(world *w, const float *q, float *out, bool square, float *lse, kv_attn_mass *m)
{
    size_t n = (size_t)w->p.n_q * CAP * kv_attn_mass_slots(&w->shape);
    float *p = must(malloc(n * sizeof *p));
    for (size_t i = 0; i < n; i++) p[i] = NAN; /* nothing may be read that was not written */
    *m = (kv_attn_mass){.p = p, .cap_pages = CAP, .slots = kv_attn_mass_slots(&w->shape), .square = square, .lse = lse};
    kv_attn_decode_row row = {kv_seq_stream(w->seq, 0, 0), q, out, END - 1};
    kv_cpu_attn_decode_mass(&w->ex.base, &w->p, w->pool, &row, m, 1);
    return p;
}

/* The place of page i of KV head h. */
static const float *place(const world *w, const kv_attn_mass *m, uint32_t h, uint32_t i)
{
    return m->p + ((size_t)h * m->cap_pages + i) * (w->p.n_q / w->p.n_kv) * m->slots;
}

/* want[i]: sum over the group of p or p^2 of key i of head h, in double precision. */
static void dense_masses(const world *w, uint32_t h, const float *q, bool square, double *want)
{
    const dense_head *d = &w->heads[h];
    uint32_t G = w->p.n_q / w->p.n_kv;
    memset(want, 0, d->n * sizeof *want);
    for (uint32_t g = 0; g < G; g++) {
        const float *row = q + (h * G + g) * w->p.dk;
        double none[256], lse = dense_attention(w, h, row, END - 1, none);
        for (uint32_t i = 0; i < d->n; i++) {
            double p = dense_sees(w, &d->keys[i], END - 1) ? exp(dense_score(w, row, &d->keys[i]) - lse) : 0;
            want[i] += square ? p * p : p;
        }
    }
}

/* Walks the pages of head h beside the keys; the largest difference beyond `tolerance` of the value, and the total. */
static double compare(const world *w, const kv_attn_mass *m, uint32_t h, const double *want, double tolerance, double *total)
{
    const kv_stream *st = kv_seq_stream(w->seq, 0, h);
    uint32_t key = 0;
    double worst = 0;
    *total = 0;
    for (uint32_t i = 0; i < st->n_handles + st->n_tail; i++) {
        const float *p = place(w, m, h, i);
        uint32_t lo, hi;
        bool f16 = true;
        if (i < st->n_handles) {
            const kv_page_entry *e = kv_pool_entry(w->pool, st->handles[i].page);
            lo = e->start;
            hi = e->n;
            f16 = e->format == 0;
        } else {
            kv_attn_tail_page(st, i - st->n_handles, w->shape.f16_tokens, &lo, &hi);
        }
        double sum = 0;
        for (uint32_t t = 0; f16 && t < m->slots; t++) {
            double x = t >= lo && t < hi ? want[key + t - lo] : 0;
            worst = fmax(worst, fabs(p[t] - x) - tolerance * x);
            *total += p[t];
        }
        for (uint32_t t = lo; t < hi; t++) sum += want[key++];
        if (f16) continue;
        worst = fmax(worst, fabs(p[0] - sum) - tolerance * sum);
        *total += p[0];
    }
    assert_int_equal(key, w->heads[h].n);
    return worst;
}

static double tolerance_of(uint8_t pair, int precise)
{
    const kv_format *f = &kv_formats[pair & 15];
    return precise == 2 || f->kind == KV_KIND_F16 || f->kind == KV_KIND_GROUP ? 2e-5 : f->kind == KV_KIND_LADDER && f->code_bits == 8 ? 3e-2 : 1e-3;
}

static void check(int level, uint8_t pair, uint32_t n_q, uint32_t n_kv, uint32_t dk, uint32_t dv, uint32_t window, int precise)
{
    world w;
    build(&w, level, n_q, n_kv, dk, dv, pair, precise, 1);
    w.p.window = window;
    float *q = random_queries(&w, 1), *out = must(malloc(sizeof(float) * n_q * dv)), *plain = must(malloc(sizeof(float) * n_q * dv)), lse[16];
    kv_attn_decode_row row = {kv_seq_stream(w.seq, 0, 0), q, plain, END - 1};
    kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &row, 1);
    for (int square = 0; square < 2; square++) {
        kv_attn_mass m;
        float *p = masses_of(&w, q, out, square, lse, &m);
        assert_memory_equal(out, plain, sizeof(float) * n_q * dv);
        for (uint32_t h = 0; h < n_kv; h++) {
            double want[700], total, tolerance = tolerance_of(pair, precise);
            dense_masses(&w, h, q, square, want);
            double worst = compare(&w, &m, h, want, (1 + square) * tolerance, &total);
            if (!(worst <= 0.02 * tolerance)) /* absolute: beside a large neighbour a small one takes its error */
                fail_msg("level %d %s/%s d %u,%u group %u window %u square %d head %u: %g over", level, kv_formats[pair & 15].name,
                         kv_formats[pair >> 4].name, dk, dv, n_q / n_kv, window, square, h, worst);
            if (!square && fabs(total - n_q / n_kv) > 1e-5 * n_q) fail_msg("probabilities of %u heads add up to %.8g", n_q / n_kv, total);
        }
        free(p);
    }
    for (uint32_t h = 0; h < n_q; h++) {
        double none[256];
        assert_true(fabs(lse[h] - dense_attention(&w, h * n_kv / n_q, q + h * dk, END - 1, none)) <= 5 * tolerance_of(pair, precise));
    }
    free(q);
    free(out);
    free(plain);
    world_free(&w);
}

static void formats_and_levels(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t f = 0; f < N_PAIRS; f++) {
            check(level, pairs[f], 6, 2, 64, 64, 0, 0);
            check(level, pairs[f], 14, 2, 64, 64, 0, 0);
            check(level, pairs[f], 5, 1, 80, 128, 0, 0);
        }
}

static void windows(void **state)
{
    UNUSED_STATE;
    static const uint32_t at[] = {1, 20, 37, 38, 300, 640};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t f = 0; f < N_PAIRS; f++)
            for (size_t i = 0; i < sizeof at / sizeof *at; i++) check(level, pairs[f], 6, 2, 64, 64, at[i], 0);
}

static void precise(void **state)
{
    UNUSED_STATE;
    for (size_t f = 0; f < N_PAIRS; f++) check(kv_cpu_detect(), pairs[f], 6, 2, 64, 80, 0, 2);
}

/* The same bits alone, in a batch where not every row asks, and with threads. */
static void company_changes_nothing(void **state)
{
    UNUSED_STATE;
    enum { N = 5 };
    for (size_t f = 0; f < N_PAIRS; f++) {
        world w;
        build(&w, kv_cpu_detect(), 9, 3, 64, 64, pairs[f], 0, 3);
        size_t n = (size_t)9 * CAP * kv_attn_mass_slots(&w.shape);
        float *q = random_queries(&w, N), out[N][9 * 64], lse[N][9], alone_lse[9], *p[N] = {NULL};
        kv_attn_mass m[N];
        kv_attn_decode_row rows[N];
        for (uint32_t i = 0; i < N; i++) {
            p[i] = must(calloc(n, sizeof(float)));
            m[i] = (kv_attn_mass){.p = i == 2 ? NULL : p[i], .cap_pages = CAP, .slots = kv_attn_mass_slots(&w.shape), .square = i & 1, .lse = lse[i]};
            rows[i] = (kv_attn_decode_row){kv_seq_stream(w.seq, 0, 0), q + i * 9 * 64, out[i], END - 1};
        }
        kv_cpu_attn_decode_mass(&w.ex.base, &w.p, w.pool, rows, m, N);
        kv_threads *threads = w.ex.threads;
        w.ex.threads = NULL;
        for (uint32_t i = 0; i < N; i++) {
            float one[9 * 64], *mine = must(calloc(n, sizeof(float)));
            kv_attn_mass single = m[i];
            single.p = m[i].p ? mine : NULL;
            single.lse = alone_lse;
            kv_attn_decode_row row = rows[i];
            row.out = one;
            kv_cpu_attn_decode_mass(&w.ex.base, &w.p, w.pool, &row, &single, 1);
            assert_memory_equal(one, out[i], sizeof one);
            assert_memory_equal(alone_lse, lse[i], sizeof alone_lse);
            if (m[i].p) assert_memory_equal(mine, p[i], n * sizeof(float));
            else for (size_t k = 0; k < n; k++) assert_true(p[i][k] == 0);
            free(mine);
        }
        w.ex.threads = threads;
        for (uint32_t i = 0; i < N; i++) free(p[i]);
        free(q);
        world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats_and_levels),
        cmocka_unit_test(windows),
        cmocka_unit_test(precise),
        cmocka_unit_test(company_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
