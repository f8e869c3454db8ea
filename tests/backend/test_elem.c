/* SPDX-License-Identifier: Apache-2.0 */
/* Elementwise operations against double precision, at every level of this CPU, and bit for bit between levels and
 * thread counts. */
#include <math.h>

#include "backend/cpu/elem.h"
#include "base/half.h"
#include "support/support.h"

typedef struct context {
    kv_cpu_backend be;
    kv_cpu_exec ex;
} context;

static void context_open(context *c, int level, uint32_t threads) {
    kv_error err;
    memset(c, 0, sizeof *c);
    c->be.level = level;
    c->be.elem = kv_elem_kernels_get(level);
    c->ex.base.be = &c->be.base;
    c->ex.be = &c->be;
    assert_int_equal(kv_threads_create(threads, &c->ex.threads, &err), 0);
}

static float *random_floats(size_t n, float scale, uint64_t *seed) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = test_normal(seed) * scale;
    return x;
}

/* Runs `call` at every level with 1..3 threads; y must be the same bits each time. y is restored from `init` before
 * each call. */
#define AT_ALL_LEVELS(y, first, init, bytes, call)                                                                     \
    for (int level = 0, run = 0; level <= kv_cpu_detect(); level++)                                                    \
        for (uint32_t threads = 1; threads <= 3; threads++, run++) {                                                   \
            context c;                                                                                                 \
            context_open(&c, level, threads);                                                                          \
            kv_exec *ex = &c.ex.base;                                                                                  \
            memcpy(y, init, bytes);                                                                                    \
            call;                                                                                                      \
            if (run == 0) memcpy(first, y, bytes);                                                                     \
            assert_memory_equal(y, first, bytes);                                                                      \
            kv_threads_free(&c.ex.threads);                                                                            \
        }

static const uint32_t sizes[] = {1, 2, 3, 15, 16, 17, 64, 100, 576, 1537};
#define N_SIZES (sizeof sizes / sizeof *sizes)

static void test_rmsnorm(void **state) {
    uint64_t seed = 1;
    for (size_t s = 0; s < N_SIZES; s++)
        for (uint32_t rows = 1; rows <= 70; rows += 69) {
            uint32_t n = sizes[s];
            size_t bytes = (size_t)rows * n * sizeof(float);
            float *x = random_floats((size_t)rows * n, 3, &seed), *w = random_floats(n, 1, &seed), *y = malloc(bytes),
                  *first = malloc(bytes);
            AT_ALL_LEVELS(y, first, x, bytes, kv_cpu_rmsnorm(ex, y, w, 1e-5f, rows, n, y))
            AT_ALL_LEVELS(y, first, first, bytes, kv_cpu_rmsnorm(ex, x, w, 1e-5f, rows, n, y))
            for (uint32_t r = 0; r < rows; r++) {
                double sum = 0;
                for (uint32_t i = 0; i < n; i++) sum += (double)x[(size_t)r * n + i] * (double)x[(size_t)r * n + i];
                double scale = 1 / sqrt(sum / n + 1e-5);
                for (uint32_t i = 0; i < n; i++) {
                    double e = (double)x[(size_t)r * n + i] * scale * (double)w[i];
                    assert_true(fabs((double)y[(size_t)r * n + i] - e) <= 1e-6 * fabs(e));
                }
            }
            free(x);
            free(w);
            free(y);
            free(first);
        }
}

static void rope_case(uint32_t rows, uint32_t heads, uint32_t d, uint32_t n_rot, bool neox, uint64_t *seed) {
    const uint32_t n_pos = 50, half = n_rot / 2;
    size_t total = (size_t)rows * heads * d, bytes = total * sizeof(float);
    float *x = random_floats(total, 1, seed), *y = malloc(bytes), *first = malloc(bytes),
          *cs = malloc(n_pos * half * sizeof *cs), *sn = malloc(n_pos * half * sizeof *sn);
    uint32_t *pos = malloc(rows * sizeof *pos);
    for (uint32_t p = 0; p < n_pos; p++)
        for (uint32_t i = 0; i < half; i++) {
            double angle = p * pow(10000, -2.0 * i / n_rot);
            cs[p * half + i] = (float)cos(angle);
            sn[p * half + i] = (float)sin(angle);
        }
    for (uint32_t r = 0; r < rows; r++) pos[r] = (r * 7 + 3) % n_pos;
    kv_rope rope = {cs, sn, n_rot, neox, n_pos};
    AT_ALL_LEVELS(y, first, x, bytes, kv_cpu_rope(ex, &rope, y, rows, heads, d, pos))
    for (size_t v = 0; v < total; v += d)
        for (uint32_t i = 0; i < d; i++) {
            double e = x[v + i];
            uint32_t p = pos[v / d / heads];
            if (i < n_rot) {
                uint32_t pair = neox ? i % half : i / 2;
                bool second = neox ? i >= half : i % 2;
                double a = x[v + (neox ? pair : 2 * pair)], b = x[v + (neox ? pair + half : 2 * pair + 1)],
                       angle = p * pow(10000, -2.0 * pair / n_rot);
                e = second ? a * sin(angle) + b * cos(angle) : a * cos(angle) - b * sin(angle);
                assert_true(fabs((double)y[v + i] - e) < 3e-7 * (fabs(a) + fabs(b)));
            } else {
                assert_true((double)y[v + i] == e);
            }
        }
    free(x);
    free(y);
    free(first);
    free(cs);
    free(sn);
    free(pos);
}

static void test_rope(void **state) {
    uint64_t seed = 2;
    for (int neox = 0; neox < 2; neox++) {
        rope_case(1, 1, 2, 2, neox, &seed);
        rope_case(3, 2, 64, 64, neox, &seed);
        rope_case(70, 9, 64, 64, neox, &seed);
        rope_case(5, 3, 80, 52, neox, &seed);
    }
}

static void test_silu(void **state) {
    uint64_t seed = 3;
    for (size_t s = 0; s < N_SIZES; s++)
        for (uint32_t rows = 1; rows <= 40; rows += 39) {
            size_t n = (size_t)rows * sizes[s], bytes = n * sizeof(float);
            float *g = random_floats(n, 12, &seed), *u = random_floats(n, 2, &seed), *y = malloc(bytes),
                  *first = malloc(bytes);
            AT_ALL_LEVELS(y, first, g, bytes, kv_cpu_silu_mul(ex, y, u, rows, sizes[s], y))
            for (size_t i = 0; i < n; i++) {
                double e = (double)g[i] / (1 + exp(-(double)g[i])) * (double)u[i];
                assert_true(fabs((double)y[i] - e) <= 4e-7 * fabs(e));
            }
            free(g);
            free(u);
            free(y);
            free(first);
        }
    float g[4] = {-1000, 1000, NAN, 0}, u[4] = {1, 1, 1, 1}, y[4];
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        kv_elem_kernels_get(level)->silu_mul(g, u, 4, y);
        assert_true(fabsf(y[0]) < 1e-30f && y[1] == 1000 && isnan(y[2]) && y[3] == 0);
    }
}

/* Nearest f16 by exhaustion over the neighbours of a double: independent of half.h's rounding. */
static void check_f16(float x, uint16_t h) {
    double got = kv_f16_f32(h), best = fabs(got - (double)x);
    if (fabs((double)x) >= 65520) {
        assert_true(isinf(got) && (got > 0) == (x > 0));
        return;
    }
    uint16_t near[2] = {(uint16_t)(h + 1), (uint16_t)(h - 1)};
    for (int i = 0; i < 2; i++) {
        if ((near[i] & 0x7c00) == 0x7c00 || ((near[i] ^ h) & 0x8000)) continue;
        double other = fabs((double)kv_f16_f32(near[i]) - (double)x);
        assert_true(best < other || (best == other && !(h & 1)));
    }
}

static void test_kv_to_f16(void **state) {
    uint64_t seed = 4;
    const uint32_t rows = 37, n_kv = 3, dk = 20, dv = 12, row0 = 5;
    const size_t stride = 50, nk = n_kv * stride * dk, nv = n_kv * stride * dv;
    float *k = random_floats(rows * n_kv * dk, 1, &seed), *v = random_floats(rows * n_kv * dv, 1e-6f, &seed);
    k[0] = 1.00048828125f; /* halfway: to even */
    k[1] = 1.00146484375f;
    k[2] = 70000;
    uint16_t *init = malloc(2 * (nk + nv)), *out = malloc(2 * (nk + nv)), *first = malloc(2 * (nk + nv));
    for (size_t i = 0; i < nk + nv; i++) init[i] = 0x5a5a;
    AT_ALL_LEVELS(out, first, init, 2 * (nk + nv),
                  kv_cpu_kv_to_f16(ex, k, v, rows, n_kv, dk, dv, row0, stride, out, out + nk))
    for (uint32_t h = 0; h < n_kv; h++)
        for (uint32_t t = 0; t < stride; t++)
            for (uint32_t i = 0; i < dk; i++) {
                uint16_t kh = out[(h * stride + t) * dk + i], vh = i < dv ? out[nk + (h * stride + t) * dv + i] : 0;
                bool inside = t >= row0 && t < row0 + rows;
                size_t src = (size_t)(t - row0) * n_kv + h;
                if (inside)
                    check_f16(k[src * dk + i], kh);
                else
                    assert_int_equal(kh, 0x5a5a);
                if (i >= dv) continue;
                if (inside)
                    check_f16(v[src * dv + i], vh);
                else
                    assert_int_equal(vh, 0x5a5a);
            }
    free(k);
    free(v);
    free(init);
    free(out);
    free(first);
}

static void test_q_squares(void **state) {
    uint64_t seed = 5;
    const uint32_t rows = 41, n_q = 9, n_kv = 3, dk = 20;
    float *q = random_floats(rows * n_q * dk, 1, &seed), y[41 * 3 * 20], first[41 * 3 * 20], init[41 * 3 * 20] = {0};
    AT_ALL_LEVELS(y, first, init, sizeof y, kv_cpu_q_squares(ex, q, rows, n_q, n_kv, dk, y))
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t h = 0; h < n_kv; h++)
            for (uint32_t i = 0; i < dk; i++) {
                double e = 0;
                for (uint32_t g = 0; g < 3; g++) e += pow((double)q[((size_t)r * n_q + h * 3 + g) * dk + i], 2);
                assert_true(fabs((double)y[((size_t)r * n_kv + h) * dk + i] - e) <= 3e-7 * e);
            }
    free(q);
}

enum { NQ = 3, ROWS = 67 };

/* Rows [0, cut), then the others; y: pivot, sum and outer of each head. */
static void moments_in_two(kv_exec *ex, const float *q, uint32_t cut, uint32_t d, float *y, kv_score_moments m[NQ]) {
    for (uint32_t h = 0; h < NQ; h++) {
        float *at = y + (size_t)h * d * (d + 2);
        m[h] = (kv_score_moments){0, at, at + d, at + 2 * d};
    }
    kv_cpu_q_moments(ex, q, cut, NQ, d, m);
    kv_cpu_q_moments(ex, q + (size_t)cut * NQ * d, ROWS - cut, NQ, d, m);
}

/* Moments of three query heads, rows in two calls: the same bits at every level, with any threads and wherever the rows
 * are cut; against doubles. Biases far from zero are what the pivot is for. */
static void test_moments(void **state) {
    uint64_t seed = 6;
    static const uint32_t dims[] = {2, 16, 18, 64, 80};
    for (size_t s = 0; s < sizeof dims / sizeof *dims; s++) {
        const uint32_t d = dims[s];
        const size_t one = (size_t)d * (d + 2), bytes = NQ * one * sizeof(float);
        float *q = random_floats((size_t)ROWS * NQ * d, 1, &seed), *y = malloc(bytes), *first = malloc(bytes),
              *whole = malloc(bytes), *init = calloc(NQ, one * sizeof *init);
        for (size_t i = 0; i < (size_t)ROWS * NQ * d; i++) q[i] += 50.0f * (float)(i % d);
        for (uint32_t cut = 0; cut < 8; cut++) {
            kv_score_moments m[NQ];
            AT_ALL_LEVELS(y, first, init, bytes, moments_in_two(ex, q, cut, d, y, m))
            if (!cut) memcpy(whole, y, bytes);
            assert_memory_equal(y, whole, bytes);
            for (uint32_t h = 0; h < NQ; h++) {
                assert_int_equal(m[h].n, ROWS);
                for (uint32_t i = 0; i < d; i++) {
                    double mean = 0;
                    for (uint32_t r = 0; r < ROWS; r++) mean += (double)q[((size_t)r * NQ + h) * d + i] / ROWS;
                    assert_true(fabs((double)(m[h].pivot[i] + m[h].sum[i] / ROWS) - mean) < 1e-5 * (1 + fabs(mean)));
                    for (uint32_t j = 0; j <= i; j++) {
                        double cov = 0, mean_j = 0;
                        for (uint32_t r = 0; r < ROWS; r++) mean_j += (double)q[((size_t)r * NQ + h) * d + j] / ROWS;
                        for (uint32_t r = 0; r < ROWS; r++)
                            cov += ((double)q[((size_t)r * NQ + h) * d + i] - mean) *
                                   ((double)q[((size_t)r * NQ + h) * d + j] - mean_j) / ROWS;
                        double got = (double)m[h].outer[(size_t)i * d + j] / ROWS -
                                     (double)m[h].sum[i] / ROWS * (double)m[h].sum[j] / ROWS;
                        assert_true(fabs(got - cov) < 1e-3);
                    }
                }
            }
        }
        free(q);
        free(y);
        free(first);
        free(whole);
        free(init);
    }
}

static void test_key_forms(void **state) {
    uint64_t seed = 7;
    static const uint32_t dims[] = {2, 5, 16, 64, 66}, counts[] = {1, 15, 16, 17, 64, 65, 131};
    enum { G = 3, MAXN = 131 };
    for (size_t s = 0; s < sizeof dims / sizeof *dims; s++)
        for (size_t each = 0; each < sizeof counts / sizeof *counts; each++) {
            const uint32_t d = dims[s], n = counts[each];
            const size_t stride = n + 3, bytes = G * stride * sizeof(float);
            float *l = random_floats(G * d, 1, &seed), *sq = random_floats((size_t)G * d * d, .1f, &seed);
            uint16_t k[MAXN * 66];
            float y[G * (MAXN + 3)], first[G * (MAXN + 3)], init[G * (MAXN + 3)];
            for (uint32_t i = 0; i < n * d; i++) k[i] = kv_f32_f16(test_normal(&seed));
            for (uint32_t i = 0; i < G * stride; i++) init[i] = 77;
            for (uint32_t g = 0; g < G; g++)
                for (uint32_t i = 0; i < d; i++)
                    for (uint32_t j = i + 1; j < d; j++) sq[((size_t)g * d + i) * d + j] = 0;
            kv_key_forms f = {k, n, d, G, l, sq, y, stride};
            AT_ALL_LEVELS(y, first, init, bytes, kv_cpu_key_forms(ex, &f))
            for (uint32_t g = 0; g < G; g++) {
                for (uint32_t i = 0; i < n; i++) {
                    double e = 0, size = 0;
                    for (uint32_t a = 0; a < d; a++) {
                        double ka = (double)kv_f16_f32(k[i * d + a]), inner = (double)l[g * d + a];
                        for (uint32_t b = 0; b <= a; b++)
                            inner += (double)sq[((size_t)g * d + a) * d + b] * (double)kv_f16_f32(k[i * d + b]);
                        e += ka * inner;
                        size += fabs(ka * inner);
                    }
                    assert_true(fabs((double)y[g * stride + i] - e) <= 1e-5 * size);
                }
                for (size_t i = n; i < stride; i++) assert_true(y[g * stride + i] == 77);
            }
            free(l);
            free(sq);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rmsnorm), cmocka_unit_test(test_rope),
                                       cmocka_unit_test(test_silu), cmocka_unit_test(test_kv_to_f16),
                                       cmocka_unit_test(test_q_squares), cmocka_unit_test(test_moments),
                                       cmocka_unit_test(test_key_forms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
