/* SPDX-License-Identifier: Apache-2.0 */
/* Integer tiles of prompt attention: unpacked pages, the bounds of codes, sums at the edge of 32 bits, channels a hundred times larger. */
#include "backend/test_attn_common.h"

#include "base/cpu.h"

#define PAIR(f) ((f) | (f) << 4)

/* Each level that has integer tiles. */
static const kv_tile_ops *next_ops(int *level)
{
    while (++*level <= kv_cpu_detect())
        if (kv_tile_ops_get(*level)) return kv_tile_ops_get(*level);
    return NULL;
}

/* Every format and odd sizes: the floats of kv_decode_ref, bit for bit, and zeros where channels are padding. */
static void unpack_equals_decoder(void **state)
{
    UNUSED_STATE;
    static const uint8_t pairs[] = {PAIR(KV_F16), PAIR(KV_Q8), PAIR(KV_Q4), PAIR(KV_Q3), PAIR(KV_Q2), PAIR(KV_Q2S), PAIR(KV_Q1), PAIR(KV_KIVI4),
                                    PAIR(KV_KIVI2), PAIR(KV_MINIKV2), KV_Q4 | KV_Q2 << 4};
    static const uint32_t dims[][2] = {{64, 64}, {72, 80}, {128, 64}, {33, 100}, {96, 192}, {256, 256}};
    int level = -1;
    for (const kv_tile_ops *ops; (ops = next_ops(&level));)
        for (size_t f = 0; f < sizeof pairs; f++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
                uint32_t dk = dims[d][0], dv = dims[d][1];
                world w;
                world_init(&w, level, 1, 1, 1, dk, dv, 1024, 0);
                kv_page_layout L;
                kv_error err;
                ok(kv_page_layout_get(pairs[f], dk, dv, kv_pool_page_bytes(w.pool), &L, &err), &err);
                const uint32_t counts[] = {L.tokens, 1, 9, L.tokens - 3u};
                const size_t stride = kv_pad16(L.tokens);
                float *k = must(kv_malloc64((stride + 16) * 256 * 4)), *v = must(kv_malloc64((stride + 16) * 256 * 4));
                float *want_k = must(malloc(stride * 256 * 4)), *want_v = must(malloc(stride * 256 * 4));
                for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                    uint32_t n = counts[i] < L.tokens ? counts[i] : L.tokens, page;
                    world_seal(&w, 0, pairs[f], 0, n, 0, 0);
                    page = kv_seq_stream(w.seq, 0, 0)->handles[i].page;
                    const kv_page_entry *e = kv_pool_entry(w.pool, page);
                    kv_decode_ref(&L, kv_pool_data(w.pool, page), e, want_k, want_v);
                    memset(k, 0xff, stride * 256 * 4);
                    memset(v, 0xff, stride * 256 * 4);
                    ops->unpack(&L, kv_pool_data(w.pool, page), e, stride, k, v);
                    for (uint32_t t = 0; t < n; t++) {
                        for (uint32_t c = 0; c < dk; c++) assert_memory_equal(&k[c * stride + t], &want_k[t * dk + c], 4);
                        for (uint32_t c = 0; c < L.dvp; c++) {
                            float want = c < dv ? want_v[t * dv + c] : 0.0f;
                            assert_memory_equal(&v[t * L.dvp + c], &want, 4);
                        }
                    }
                }
                kv_free64(k);
                kv_free64(v);
                free(want_k);
                free(want_v);
                world_free(&w);
            }
}

/* A token's codes are its value within half a step, its own whatever stands beside it, and short enough for a sum of products. */
static void codes_of_tokens(void **state)
{
    UNUSED_STATE;
    enum { DK = 71, DV = 80 };
    uint64_t seed = 5;
    float kt[DK * 64], v[64 * DV], alone_k[DK * 64] = {0}, alone_v[64 * DV] = {0};
    int32_t k[2][36 * 64], vc[2][32 * DV];
    float step[4][64];
    for (int i = 0; i < DK * 64; i++) kt[i] = test_normal(&seed) * (i / 64 == 7 ? 300.0f : 1.0f) * (i % 64 == 9 ? 0.0f : 1.0f);
    for (int i = 0; i < DV * 64; i++) v[i] = test_normal(&seed) * (float)(i / DV % 5);
    for (int c = 0; c < DK; c++) alone_k[c * 64 + 21] = kt[c * 64 + 21];
    memcpy(alone_v + 21 * DV, v + 21 * DV, DV * sizeof(float));
    int level = -1;
    for (const kv_tile_ops *ops; (ops = next_ops(&level));) {
        kv_tile_codes all = {k[0], step[0], vc[0], step[1]}, one = {k[1], step[2], vc[1], step[3]};
        ops->keys(kt, DK, v, DV, &all);
        ops->keys(alone_k, DK, alone_v, DV, &one);
        for (int t = 0; t < 64; t++) {
            double norm = 0;
            for (int c = 0; c < DK + 1; c++) {
                int code = (int16_t)(k[0][c / 2 * 64 + t] >> (16 * (c % 2))), other = (int16_t)(k[1][c / 2 * 64 + t] >> (16 * (c % 2)));
                norm += (double)code * code;
                assert_true(t == 21 ? code == other : other == 0);
                if (c < DK) assert_true(fabs((double)code * step[0][t] - kt[c * 64 + t]) <= 0.505 * step[0][t]);
                else assert_int_equal(code, 0);
            }
            assert_true(sqrt(norm) < sqrt(2147483647.0));
            for (int c = 0; c < DV; c++) {
                int code = (int16_t)(vc[0][t / 2 * DV + c] >> (16 * (t % 2)));
                assert_true(abs(code) <= 16383 && fabs((double)code * step[1][t] - v[t * DV + c]) <= 0.505 * step[1][t]);
                if (t == 21) assert_int_equal((int16_t)(vc[1][t / 2 * DV + c] >> 16), code);
            }
        }
        assert_memory_equal(&step[0][21], &step[2][21], 4);
        assert_memory_equal(&step[1][21], &step[3][21], 4);
    }
}

/* Runs N prompt rows of tokens prepared in w and compares with double precision. */
static void run_rows(world *w, uint32_t n, float *q, double tolerance, double lse_tolerance)
{
    const uint32_t n_q = w->p.n_q, dv = w->p.dv;
    float *out = must(malloc(sizeof(float) * n * n_q * dv)), *lse = must(malloc(sizeof(float) * n * n_q));
    world_rows(w, 0, n);
    kv_attn_chunk c = chunk_of(w, 0, 0, n, q, out, lse);
    kv_cpu_attn_prefill(&w->ex.base, &w->p, &c);
    for (uint32_t r = 0; r < n; r += 3)
        for (uint32_t h = 0; h < n_q; h++) {
            double want[256], l = dense_attention(w, h * w->p.n_kv / n_q, q + ((size_t)r * n_q + h) * w->p.dk, r, want);
            double e = distance(out + ((size_t)r * n_q + h) * dv, want, dv);
            if (!(e <= tolerance)) fail_msg("row %u head %u: %g", r, h, e);
            if (!(fabs(lse[r * n_q + h] - l) <= lse_tolerance)) fail_msg("row %u head %u: lse %.8g, not %.8g", r, h, lse[r * n_q + h], l);
        }
    free(out);
    free(lse);
}

/* Query and keys along one direction and values all alike: the integer sums reach their bounds, 2^31 less a few. */
static void sums_at_their_bounds(void **state)
{
    UNUSED_STATE;
    static const uint32_t dims[] = {1, 2, 64, 128, 255, 256};
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (int sign = -1; sign <= 1; sign += 2) {
                enum { N = 130 };
                world w;
                world_init(&w, level, 1, 2, 1, dims[d], 64, N, 0);
                w.p.scale = 1.0f / (float)dims[d];
                float *q = random_queries(&w, N);
                for (uint32_t i = 0; i < N * dims[d]; i++) w.rows_k[i] = kv_f32_f16(i / dims[d] % 3 == 2 ? -2.0f : 2.0f);
                for (uint32_t i = 0; i < N * 64; i++) w.rows_v[i] = kv_f32_f16((float)sign);
                for (uint32_t i = 0; i < N * 2 * dims[d]; i++) q[i] = (float)sign * 0.25f;
                run_rows(&w, N, q, 2e-4, 3e-4);
                free(q);
                world_free(&w);
            }
}

/* Channels whose bias is a hundred times the others (Qwen2.5 has such keys), and tokens whose values are. What the largest channel costs the
 * others (half of 150 / 32,767) is an eighth of the rounding to f16 it has itself (half of 1 / 8). */
static void outliers(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        enum { N = 150 };
        world w;
        world_init(&w, level, 1, 7, 1, 64, 64, N, 0);
        float *q = random_queries(&w, N);
        for (uint32_t t = 0; t < N; t++)
            for (uint32_t c = 0; c < 64; c++) {
                float k = test_normal(&w.seed), v = test_normal(&w.seed);
                w.rows_k[t * 64 + c] = kv_f32_f16(c == 5 ? 150.0f + k : c == 40 ? -90.0f + k : k);
                w.rows_v[t * 64 + c] = kv_f32_f16(t % 17 == 3 ? 100.0f * v : v);
            }
        run_rows(&w, N, q, 3e-3, 5e-3);
        free(q);
        world_free(&w);
    }
}

/* Zero queries, zero keys, zero values, and values so small that their weights vanish. */
static void nothing_to_scale(void **state)
{
    UNUSED_STATE;
    for (int level = 0; level <= kv_cpu_detect(); level++)
        for (int kind = 0; kind < 3; kind++) {
            enum { N = 70 };
            world w;
            world_init(&w, level, 1, 2, 1, 64, 64, N, 0);
            float *q = random_queries(&w, N);
            if (kind == 0) memset(q, 0, N * 2 * 64 * sizeof(float));
            if (kind == 1) memset(w.rows_k, 0, N * 64 * 2);
            if (kind == 2) memset(w.rows_v, 0, N * 64 * 2);
            run_rows(&w, N, q, 2e-4, 3e-4);
            free(q);
            world_free(&w);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unpack_equals_decoder), cmocka_unit_test(codes_of_tokens), cmocka_unit_test(sums_at_their_bounds), cmocka_unit_test(outliers),
        cmocka_unit_test(nothing_to_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
