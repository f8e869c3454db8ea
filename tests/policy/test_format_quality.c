/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a format costs: relative squared error of attention outputs ("outerr") when all tokens are decoded from pages,
 * in double precision, on keys, values and queries of a real model (shared golden data) and on synthetic ones. Asserts
 * the order of the ladder and that K of q2s stays below half the error of a plain 2-bit min/max quantizer per channel.
 * Prints the table.
 */
#include "base/half.h"
#include "test_format_naive.h"

enum { D_HEAD = 64, MAX_TOKENS = 512, GROUP = 3 };

/* One KV head: k, v [n][64] f16, q [n][3][64]. Query t sees keys 0..t. */
typedef struct head {
    int n, first_query;
    uint16_t k[MAX_TOKENS * D_HEAD], v[MAX_TOKENS * D_HEAD];
    float q[MAX_TOKENS * GROUP * D_HEAD], q2[D_HEAD];
} head;

static void exact(const head *h, double *k, double *v) {
    for (int i = 0; i < h->n * D_HEAD; i++) k[i] = (double)kv_f16_f32(h->k[i]), v[i] = (double)kv_f16_f32(h->v[i]);
}

static void through_pages(const head *h, int kf, int vf, double *k, double *v) {
    static uint8_t page[4096] __attribute__((aligned(64)));
    static float fk[MAX_TOKENS * D_HEAD], fv[MAX_TOKENS * D_HEAD];
    kv_page_layout l;
    kv_page_entry e;
    assert_int_equal(kv_page_layout_get(kv_format_pair((uint8_t)kf, (uint8_t)vf), D_HEAD, D_HEAD, 4096, &l, NULL), 0);
    void *scratch = aligned_alloc(64, (kv_encode_scratch(&l) + 63) & ~(size_t)63);
    for (int t = 0; t < h->n; t += l.tokens) {
        int n = h->n - t < l.tokens ? h->n - t : l.tokens;
        kv_encode_ref(&l, (uint32_t)n, h->k + t * D_HEAD, h->v + t * D_HEAD, h->q2, page, &e, scratch);
        kv_decode_ref(&l, page, &e, fk + t * D_HEAD, fv + t * D_HEAD);
    }
    for (int i = 0; i < h->n * D_HEAD; i++) k[i] = (double)fk[i], v[i] = (double)fv[i];
    free(scratch);
}

/* K per channel over `run` tokens, 2 bits, min/max. */
static void plain_keys(const head *h, int run, double *k) {
    for (int t0 = 0; t0 < h->n; t0 += run)
        for (int c = 0; c < D_HEAD; c++) {
            int t1 = t0 + run < h->n ? t0 + run : h->n;
            double lo = INFINITY, hi = -INFINITY;
            for (int t = t0; t < t1; t++)
                lo = fmin(lo, (double)kv_f16_f32(h->k[t * D_HEAD + c])),
                hi = fmax(hi, (double)kv_f16_f32(h->k[t * D_HEAD + c]));
            double s = (hi - lo) / 3;
            for (int t = t0; t < t1; t++)
                k[t * D_HEAD + c] = s > 0 ? lo + s * rint(((double)kv_f16_f32(h->k[t * D_HEAD + c]) - lo) / s) : lo;
        }
}

static void attend(const head *h, const float *q, int last, const double *k, const double *v, double *out) {
    double s[MAX_TOKENS], max = -INFINITY, sum = 0;
    for (int t = 0; t <= last; t++) {
        s[t] = 0;
        for (int c = 0; c < D_HEAD; c++) s[t] += (double)q[c] * k[t * D_HEAD + c] / 8;
        max = fmax(max, s[t]);
    }
    memset(out, 0, D_HEAD * sizeof *out);
    for (int t = 0; t <= last; t++) sum += s[t] = exp(s[t] - max);
    for (int t = 0; t <= last; t++)
        for (int c = 0; c < D_HEAD; c++) out[c] += s[t] / sum * v[t * D_HEAD + c];
}

static double outerr(const head *h, const double *k, const double *v) {
    static double k0[MAX_TOKENS * D_HEAD], v0[MAX_TOKENS * D_HEAD];
    double total = 0, a[D_HEAD], b[D_HEAD];
    int count = 0;
    exact(h, k0, v0);
    for (int t = h->first_query; t<h->n; t += h->n> 100 ? 3 : 1)
        for (int g = 0; g < GROUP; g++, count++) {
            const float *q = h->q + (t * GROUP + g) * D_HEAD;
            double num = 0, den = 0;
            attend(h, q, t, k0, v0, a);
            attend(h, q, t, k, v, b);
            for (int c = 0; c < D_HEAD; c++) num += (a[c] - b[c]) * (a[c] - b[c]), den += a[c] * a[c];
            total += num / den;
        }
    return total / count;
}

static void query_squares(head *h) {
    for (int c = 0; c < D_HEAD; c++) {
        double s = 0;
        for (int i = 0; i < h->n * GROUP; i++) s += (double)h->q[i * D_HEAD + c] * (double)h->q[i * D_HEAD + c];
        h->q2[c] = (float)(s / (h->n * GROUP));
    }
}

static const int ladder[] = {KV_F16, KV_Q8, KV_Q4, KV_Q3, KV_Q2, KV_Q2S, KV_Q1};
enum { N_LADDER = 7 };

/* Mean over heads for every format: both, K alone, V alone; then the plain quantizer of K over the tokens of a q2s
 * page. */
static void measure(const char *name, head *heads, int n_heads, bool v_monotone) {
    static double k[MAX_TOKENS * D_HEAD], v[MAX_TOKENS * D_HEAD], k0[MAX_TOKENS * D_HEAD], v0[MAX_TOKENS * D_HEAD];
    double both[KV_FORMATS] = {0}, only_k[KV_FORMATS] = {0}, only_v[KV_FORMATS] = {0}, plain = 0;
    for (int i = 0; i < n_heads; i++) {
        exact(&heads[i], k0, v0);
        for (int f = 0; f < KV_FORMATS; f++) {
            through_pages(&heads[i], f, f, k, v);
            both[f] += outerr(&heads[i], k, v) / n_heads;
            only_k[f] += outerr(&heads[i], k, v0) / n_heads;
            only_v[f] += outerr(&heads[i], k0, v) / n_heads;
        }
        plain_keys(&heads[i], 112, k);
        plain += outerr(&heads[i], k, v0) / n_heads;
    }
    for (int f = 0; f < KV_FORMATS; f++)
        print_message("%-10s %-8s outerr %.6f   K alone %.6f   V alone %.6f\n", name, kv_formats[f].name, both[f],
                      only_k[f], only_v[f]);
    print_message("%-10s plain 2-bit K, min/max per channel %.6f\n", name, plain);
    assert_true(both[KV_F16] == 0);
    for (int i = 1; i < N_LADDER; i++)
        assert_true(both[ladder[i]] > both[ladder[i - 1]] && only_k[ladder[i]] > only_k[ladder[i - 1]]);
    assert_true(!v_monotone ||
                (only_v[KV_Q8] < only_v[KV_Q4] && only_v[KV_Q4] < only_v[KV_Q3] && only_v[KV_Q3] < only_v[KV_Q2]));
    assert_true(only_k[KV_Q2S] < plain / 2);
    assert_true(both[KV_Q2S] < both[KV_KIVI2]);
    assert_true(both[KV_Q8] < 1e-3 && both[KV_Q4] < 1e-2);
}

static float *golden(const char *what, int layer, size_t n) {
    char name[80];
    snprintf(name, sizeof name, "golden/smollm2_wiki64_%s_l%d.f32", what, layer);
    const char *path = test_shared(name);
    size_t len = 0;
    float *x = path ? (float *)(void *)test_read(path, &len) : NULL;
    if (x) assert_int_equal(len, 4 * n);
    return x;
}

static void test_real_model(void **state) {
    head *heads = test_calloc(6, sizeof *heads);
    for (int layer = 0; layer < 2; layer++) {
        float *q = golden("q", 29 * layer, 64 * 9 * 64), *k = golden("k", 29 * layer, 64 * 3 * 64),
              *v = golden("v", 29 * layer, 64 * 3 * 64);
        if (!q || !k || !v) {
            test_free(heads);
            skip();
        }
        for (int i = 0; i < 3; i++) {
            head *h = &heads[3 * layer + i];
            h->n = 64;
            h->first_query = 8;
            for (int t = 0; t < 64; t++) {
                for (int c = 0; c < 64; c++)
                    h->k[t * 64 + c] = kv_f32_f16(k[(t * 3 + i) * 64 + c]),
                                  h->v[t * 64 + c] = kv_f32_f16(v[(t * 3 + i) * 64 + c]);
                memcpy(h->q + t * GROUP * 64, q + (t * 9 + i * 3) * 64, sizeof(float) * GROUP * 64);
            }
            query_squares(h);
        }
        free(q);
        free(k);
        free(v);
    }
    measure("smollm2", heads, 6, true);
    test_free(heads);
}

/* Keys as RoPE leaves them: biases that turn with the position, fast in low pairs and slow in high ones, plus noise; a
 * few loud channels. */
static void test_synthetic(void **state) {
    uint64_t seed = 42;
    head *heads = test_calloc(2, sizeof *heads);
    for (int i = 0; i < 2; i++) {
        head *h = &heads[i];
        h->n = 448;
        h->first_query = 64;
        float amplitude[32], loud[64];
        for (int p = 0; p < 32; p++) amplitude[p] = expf(test_normal(&seed));
        for (int c = 0; c < 64; c++) loud[c] = .5f * expf(.7f * test_normal(&seed));
        for (int t = 0; t < h->n; t++) {
            float size = expf(.5f * test_normal(&seed));
            for (int c = 0; c < 64; c++) {
                float angle = (float)t * powf(1e5f, -(float)(c / 2) / 32), turn = c % 2 ? sinf(angle) : cosf(angle);
                h->k[t * 64 + c] = kv_f32_f16(amplitude[c / 2] * turn + loud[c] * test_normal(&seed));
                h->v[t * 64 + c] = kv_f32_f16(size * test_normal(&seed) * (1 + (float)(c % 4)));
                for (int g = 0; g < GROUP; g++)
                    h->q[(t * GROUP + g) * 64 + c] = amplitude[c / 2] * turn + .7f * test_normal(&seed);
            }
        }
        query_squares(h);
    }
    measure("synthetic", heads, 2, true);
    test_free(heads);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_real_model), cmocka_unit_test(test_synthetic)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
