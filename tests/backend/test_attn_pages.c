/* SPDX-License-Identifier: Apache-2.0 */
/* Page kernels: every level against the reference level, every format against double precision, and independence of the company. */
#include "backend/test_attn_common.h"

#include "base/cpu.h"

static const uint8_t pairs[] = {KV_F16 | KV_F16 << 4, KV_Q8 | KV_Q8 << 4, KV_Q4 | KV_Q4 << 4, KV_Q3 | KV_Q3 << 4, KV_Q2 | KV_Q2 << 4, KV_Q2S | KV_Q2S << 4,
                                KV_Q1 | KV_Q1 << 4, KV_Q4 | KV_Q2 << 4, KV_Q2S | KV_Q4 << 4, KV_KIVI4 | KV_KIVI4 << 4, KV_KIVI2 | KV_KIVI2 << 4, KV_MINIKV2 | KV_MINIKV2 << 4};
#define N_PAIRS (sizeof pairs / sizeof *pairs)
static const struct { uint16_t dk, dv; } dims[] = {{64, 64}, {80, 80}, {128, 64}, {72, 128}, {256, 256}};
#define N_DIMS (sizeof dims / sizeof *dims)

/* States after folding page 0 of head 0 for nq queries. */
typedef struct folded { float m[16], l[16], o[16 * 256]; } folded;

static void fold(world *w, const struct kv_attn_kernels *k, const float *q, uint32_t nq, uint32_t lo, uint32_t hi, uint32_t n_pages, folded *f)
{
    const kv_stream *st = kv_seq_stream(w->seq, 0, 0);
    kv_attn_scratch *s = kv_attn_scratch_of(&w->ex);
    const kv_attn_layouts *set = kv_attn_layouts_for(&w->ex, w->p.dk, w->p.dv);
    float *qp = must(calloc(16 * 256, 4));
    memset(f, 0, sizeof *f);
    for (uint32_t i = 0; i < nq; i++) {
        kv_attn_load_query(k, q + i * w->p.dk, w->p.dk, w->p.scale, qp + i * 256, 256);
        f->m[i] = -INFINITY;
    }
    kv_attn_page p[KV_ATTN_RUN];
    for (uint32_t i = 0; i < n_pages; i++) {
        const kv_page_entry *e = kv_pool_entry(w->pool, st->handles[i].page);
        p[i] = (kv_attn_page){.layout = &set->by_pair[e->format], .entry = e, .data = kv_pool_data(w->pool, st->handles[i].page), .lo = lo,
                              .hi = hi < e->n ? hi : e->n, .nq = nq, .q = qp, .q_stride = 256, .m = f->m, .l = f->l, .o = f->o, .o_stride = 256};
    }
    k->page[p->layout->kind](p, n_pages, &s->work[0]);
    free(qp);
}

static double relative(const float *a, const float *b, uint32_t n)
{
    double ref[256];
    for (uint32_t i = 0; i < n; i++) ref[i] = b[i];
    return distance(a, ref, n);
}

static void levels_agree(void **state)
{
    UNUSED_STATE;
    double worst = 0;
    for (size_t d = 0; d < N_DIMS; d++)
        for (size_t f = 0; f < N_PAIRS; f++) {
            world w;
            kv_page_layout L;
            world_init(&w, KV_CPU_REF, 1, 8, 1, dims[d].dk, dims[d].dv, 600, 0);
            if (kv_page_layout_get(pairs[f], dims[d].dk, dims[d].dv, kv_pool_page_bytes(w.pool), &L, NULL) != KVIST_OK) fail();
            world_seal_all(&w, pairs[f], 0, 2 * L.tokens + 5 < 600 ? 2 * L.tokens + 5 : 600);
            float *q = random_queries(&w, 1);
            uint32_t limits[][2] = {{0, L.tokens}, {0, 1}, {3, L.tokens - 1}, {7, 9}, {L.tokens - 1u, L.tokens}, {0, L.tokens / 2u + 3}};
            for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
                folded ref, got;
                uint32_t pages = limits[i][0] >= 5 ? 1 : 2;
                fold(&w, &kv_attn_kernels_ref, q, 8, limits[i][0], limits[i][1], pages, &ref);
                for (int level = KV_CPU_AVX2; level <= kv_cpu_detect(); level++) {
                    fold(&w, kv_attn_kernels_get(level), q, 8, limits[i][0], limits[i][1], pages, &got);
                    for (uint32_t h = 0; h < 8; h++) {
                        double e = relative(got.o + h * 256, ref.o + h * 256, dims[d].dv);
                        worst = e > worst ? e : worst;
                        if (!(e <= 1e-5) || !(fabs(got.l[h] - ref.l[h]) <= 1e-5 * ref.l[h]) || !(fabs(got.m[h] - ref.m[h]) <= 1e-5 * (1 + fabs(ref.m[h]))))
                            fail_msg("%s %s/%s d %u,%u slots %u..%u head %u: o %g l %g %g m %g %g", kv_cpu_level_name(level), kv_formats[L.kf].name,
                                     kv_formats[L.vf].name, dims[d].dk, dims[d].dv, limits[i][0], limits[i][1], h, e, got.l[h], ref.l[h], got.m[h], ref.m[h]);
                    }
                }
            }
            free(q);
            world_free(&w);
        }
    print_message("worst difference between levels: %.2g\n", worst);
}

/* The same bits for a query alone, in groups of 3, 4, 7, 8. */
static void company_changes_nothing(void **state)
{
    UNUSED_STATE;
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t f = 0; f < N_PAIRS; f++) {
            world w;
            kv_page_layout L;
            world_init(&w, level, 1, 8, 1, 80, 64, 600, 0);
            if (kv_page_layout_get(pairs[f], 80, 64, kv_pool_page_bytes(w.pool), &L, NULL) != KVIST_OK) fail();
            world_seal_all(&w, pairs[f], 0, 2 * L.tokens + 3 < 600 ? 2 * L.tokens + 3 : 600);
            float *q = random_queries(&w, 1);
            folded all, some;
            fold(&w, w.be.attn, q, 8, 0, L.tokens, 2, &all);
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
                for (uint32_t h = 0; h + groups[g] <= 8; h++) {
                    fold(&w, w.be.attn, q + h * 80, groups[g], 0, L.tokens, 2, &some);
                    for (uint32_t i = 0; i < groups[g]; i++) {
                        assert_memory_equal(&some.m[i], &all.m[h + i], 4);
                        assert_memory_equal(&some.l[i], &all.l[h + i], 4);
                        assert_memory_equal(some.o + i * 256, all.o + (h + i) * 256, 64 * 4);
                    }
                }
            free(q);
            world_free(&w);
        }
}

/* VBMI and GFNI are another way to the same bits. */
static void extras_change_nothing(void **state)
{
    UNUSED_STATE;
    if (kv_cpu_detect() < KV_CPU_AVX512 || !kv_cpu_has_vbmi_gfni()) skip();
    for (size_t d = 0; d < N_DIMS; d++)
        for (size_t f = 0; f < N_PAIRS; f++) {
            world w;
            kv_page_layout L;
            world_init(&w, KV_CPU_AVX512, 1, 8, 1, dims[d].dk, dims[d].dv, 600, 0);
            if (kv_page_layout_get(pairs[f], dims[d].dk, dims[d].dv, kv_pool_page_bytes(w.pool), &L, NULL) != KVIST_OK) fail();
            world_seal_all(&w, pairs[f], 0, 2 * L.tokens + 3 < 600 ? 2 * L.tokens + 3 : 600);
            float *q = random_queries(&w, 1);
            folded plain, extra;
            for (uint32_t nq = 1; nq <= 8; nq++) {
                kv_attn_work *work = &kv_attn_scratch_of(&w.ex)->work[0];
                work->vbmi = false;
                fold(&w, w.be.attn, q, nq, nq & 3, L.tokens - (nq & 2), 2, &plain);
                work->vbmi = true;
                fold(&w, w.be.attn, q, nq, nq & 3, L.tokens - (nq & 2), 2, &extra);
                assert_memory_equal(&plain, &extra, sizeof plain);
            }
            free(q);
            world_free(&w);
        }
}

static double tolerance(uint8_t pair)
{
    double k = kv_formats[pair & 15].kind == KV_KIND_LADDER && kv_formats[pair & 15].code_bits == 8 ? 3e-2 : 1e-3;
    double v = kv_formats[pair >> 4].kind == KV_KIND_LADDER && kv_formats[pair >> 4].code_bits == 8 ? 3e-2 : 1e-3;
    return k > v ? k : v;
}

/* Decode over several pages and a tail against double precision over what the pages decode to. */
static void decode_against_dense(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t d = 0; d < N_DIMS; d++)
            for (size_t f = 0; f < N_PAIRS; f++) {
                if (level == KV_CPU_REF && d > 2) continue;
                world w;
                world_init(&w, level, 1, d == 0 ? 6 : 8, 2, dims[d].dk, dims[d].dv, 700, 0);
                world_seal_all(&w, pairs[f], 0, 613);
                world_tail(&w, 613, 650);
                float *q = random_queries(&w, 1), *out = must(malloc(sizeof(float) * w.p.n_q * w.p.dv));
                kv_attn_decode_row row = {kv_seq_stream(w.seq, 0, 0), q, out, 649};
                kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &row, 1);
                double worst = 0;
                for (uint32_t h = 0; h < w.p.n_q; h++) {
                    double want[256];
                    dense_attention(&w, h * w.p.n_kv / w.p.n_q, q + h * w.p.dk, 649, want);
                    worst = fmax(worst, distance(out + h * w.p.dv, want, w.p.dv));
                }
                if (d == 0 && level == kv_cpu_detect())
                    print_message("%s/%s: %.2g\n", kv_formats[pairs[f] & 15].name, kv_formats[pairs[f] >> 4].name, worst);
                if (!(worst <= tolerance(pairs[f])))
                    fail_msg("level %d %s/%s d %u,%u: %g", level, kv_formats[pairs[f] & 15].name, kv_formats[pairs[f] >> 4].name, dims[d].dk, dims[d].dv, worst);
                free(q);
                free(out);
                world_free(&w);
            }
}

/* precise == 2 computes decoded pages in f32. */
static void precise_against_dense(void **state)
{
    UNUSED_STATE;
    for (size_t f = 0; f < N_PAIRS; f++) {
        world w;
        world_init(&w, kv_cpu_detect(), 1, 6, 2, 64, 80, 700, 2);
        world_seal_all(&w, pairs[f], 0, 613);
        world_tail(&w, 613, 650);
        float *q = random_queries(&w, 1), *out = must(malloc(sizeof(float) * w.p.n_q * w.p.dv));
        kv_attn_decode_row row = {kv_seq_stream(w.seq, 0, 0), q, out, 649};
        kv_cpu_attn_decode(&w.ex.base, &w.p, w.pool, &row, 1);
        for (uint32_t h = 0; h < w.p.n_q; h++) {
            double want[256];
            dense_attention(&w, h / 3, q + h * 64, 649, want);
            assert_true(distance(out + h * 80, want, 80) <= 1e-5);
        }
        free(q);
        free(out);
        world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_agree),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(extras_change_nothing),
        cmocka_unit_test(decode_against_dense),
        cmocka_unit_test(precise_against_dense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
