/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page encoder against the specification: what it stores is read with the naive decoder, its fits are compared with
 * a double-precision fit, its bits with exhaustive search; every n of a page, odd head dimensions, hostile values,
 * unreadable memory behind every buffer.
 */
#include "policy/encode/encode.h"
#include "test_format_naive.h"

static const int shapes[][2] = {{64, 64}, {72, 72}, {80, 80}, {128, 128}, {256, 256}, {64, 128}, {128, 64}, {17, 33}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static uint16_t half_of(double x) { /* nearest f16, by trying the two neighbours */
    double lo = naive_half_bound(x, false), hi = naive_half_bound(x, true), y = x - lo < hi - x ? lo : hi;
    for (int h = 0; h < 65536; h++) {
        uint8_t b[2] = {(uint8_t)h, (uint8_t)(h >> 8)};
        if ((h & 0x7c00) != 0x7c00 && naive_half(b) == y) return (uint16_t)h;
    }
    return 0;
}
static double value_of(uint16_t h) {
    static double table[65536];
    if (!table[1])
        for (int i = 0; i < 65536; i++) {
            uint8_t b[2] = {(uint8_t)i, (uint8_t)(i >> 8)};
            table[i] = naive_half(b);
        }
    return table[h];
}

/* One page with everything around it guarded. */
typedef struct fixture {
    kv_page_layout l;
    naive_layout n;
    uint16_t *k, *v; /* [P][dk], [P][dv]: filled from the end, see input() */
    float *q2;
    uint8_t *page, *scratch;
    kv_page_entry e;
    double *dk, *dv; /* decoded */
} fixture;

static void fixture_make(fixture *f, int kf, int vf, int dk, int dv) {
    memset(f, 0, sizeof *f);
    size_t bytes = kv_page_bytes_for((uint32_t)dk, (uint32_t)dv);
    assert_int_equal(
        kv_page_layout_get(kv_format_pair((uint8_t)kf, (uint8_t)vf), (uint32_t)dk, (uint32_t)dv, bytes, &f->l, NULL),
        0);
    f->n = naive_fit_page(kf, vf, dk, dv, (long)bytes);
    f->page = naive_guarded(bytes);
    f->scratch = naive_guarded((kv_encode_scratch(&f->l) + 63) & ~(size_t)63);
    f->q2 = naive_guarded(sizeof(float) * (size_t)dk);
    f->dk = test_calloc((size_t)f->l.tokens * (size_t)dk, sizeof(double));
    f->dv = test_calloc((size_t)f->l.tokens * (size_t)dv, sizeof(double));
}
static void fixture_free(fixture *f) {
    test_free(f->dk);
    test_free(f->dv);
}

/* Half precision random values: channels of different spread, some with a bias far above it, tokens of different size
 * in V. */
static void input(fixture *f, uint32_t n, uint64_t *seed) {
    static uint16_t
        table[4096]; /* a few thousand f16 values near a normal law, so that conversion is not the test's cost */
    static bool made;
    if (!made)
        for (int i = 0; i < 4096; i++) {
            float x = test_normal(seed) * (i % 7 ? 1 : 8);
            int e;
            float m = frexpf(x, &e); /* 11 significant bits, exponent well inside */
            int man = (int)lrintf(fabsf(m) * 2048);
            if (man == 2048) man = 1024, e++;
            table[i] = e < -13 ? 0 : (uint16_t)((x < 0 ? 0x8000 : 0) | (e + 14) << 10 | (man - 1024));
        }
    made = true;
    f->k = naive_guarded(2ul * n * f->l.dk);
    f->v = naive_guarded(2ul * n * f->l.dv);
    for (uint32_t i = 0; i < n * f->l.dk; i++) {
        uint32_t c = i % f->l.dk;
        uint16_t h = table[test_rand(seed) % 4096];
        if (c % 5 == 1 && (h & 0x7c00) > 0x0c00) h = (uint16_t)(h - 0x0c00); /* an eighth */
        if (c % 11 == 3) h = (uint16_t)(0x5800 | (h & 0x3ff));               /* 128..256 */
        f->k[i] = h;
    }
    for (uint32_t i = 0; i < n * f->l.dv; i++) {
        uint16_t h = table[test_rand(seed) % 4096];
        if (i / f->l.dv % 9 == 4 && (h & 0x7c00) > 0x1400) h = (uint16_t)(h - 0x1400);
        f->v[i] = h;
    }
    for (uint32_t c = 0; c < f->l.dk; c++) f->q2[c] = 0.01f + (float)(test_rand(seed) % 1000) / 100;
}

static void encode(fixture *f, uint32_t n) {
    memset(f->page, 0xa5, f->l.page_bytes);
    memset(f->scratch, 0xff, kv_encode_scratch(&f->l));
    memset(&f->e, 0xa5, sizeof f->e);
    kv_encode_ref(&f->l, n, f->k, f->v, f->q2, f->page, &f->e, f->scratch);
    assert_int_equal(f->e.n, n);
    assert_int_equal(f->e.start, 0);
    assert_int_equal(f->e.format, f->l.kf | f->l.vf << 4);
    naive_decode(&f->n, f->page, &f->e, f->dk, f->dv);
}

/* ---- what every page must be: spare bytes and unused slots 0, widths in the budget, finite values. */
static void check_hygiene(const fixture *f) {
    const naive_layout *n = &f->n;
    for (uint32_t i = (uint32_t)n->end; i < f->l.page_bytes; i++) assert_int_equal(f->page[i], 0);
    for (size_t i = 0; i < (size_t)f->e.n * f->l.dk; i++) assert_true(isfinite(f->dk[i]));
    for (size_t i = 0; i < (size_t)f->e.n * f->l.dv; i++) assert_true(isfinite(f->dv[i]));
    for (int t = f->e.n; t < n->P; t++) {
        for (int c = 0; n->kind == '8' && c < n->dkp; c++) assert_int_equal(f->page[n->k + c * n->P + t], 0);
        for (int c = 0; n->kind == '8' && c < n->dvp; c++) assert_int_equal(f->page[n->v + t * n->dvp + c], 0);
        if (n->kind != 'l') continue;
        for (int c = 0; c < n->dkp; c++) assert_int_equal(naive_k_code(n, f->page, &f->e, c, t), 0);
        for (int c = 0; c < n->dvp; c++) assert_int_equal(naive_v_code(n, f->page, c, t), 0);
        assert_int_equal(f->page[n->a + t], 0);
    }
    int bits = 0, seen[256] = {0};
    for (int b = 0; b < 32; b++) {
        assert_true(naive_width(&f->e, b) <= 6);
        if (n->kind != 'l' || b >= n->dkp / 8) assert_int_equal(naive_width(&f->e, b), 0);
        bits += naive_width(&f->e, b);
    }
    assert_true(bits <= n->B);
    for (int i = 0; n->kind == 'l' && i < n->dkp; i++) assert_int_equal(seen[f->page[n->order + i]]++, 0);
}

/* ---- LADDER, K: ranks and widths follow from weights computed in double; each channel's error is within the
 * metadata's rounding of the double-precision fit. */
static const double D[7] = {1, .3634, .1175, .03454, .009497, .0026, .0007};

static double naive_fit_error(const double *x, int n, int bits) {
    double mean = 0, S = 0, lo = x[0], hi = x[0];
    for (int t = 0; t < n; t++) mean += x[t] / n, lo = fmin(lo, x[t]), hi = fmax(hi, x[t]);
    for (int t = 0; t < n; t++) S += (x[t] - mean) * (x[t] - mean);
    if (bits == 0 || S == 0) return sqrt(S);
    double best = INFINITY, top = pow(2, bits) - 1, R[3] = {1, bits >= 4 ? .9 : .85, .7};
    for (int r = 0; r < (bits == 1 ? 1 : bits >= 4 ? 2 : 3); r++) {
        double s = bits == 1 ? 1.5958 * sqrt(S / n) : (hi - lo) * R[r] / top;
        double m = bits == 1 ? mean - .7979 * sqrt(S / n) : (lo + hi) / 2 - (hi - lo) / 2 * R[r], E = 0;
        for (int round = 0; round < 3; round++) {
            double c1 = 0, c2 = 0, cx = 0;
            E = 0;
            for (int t = 0; t < n; t++) {
                double c = fmin(fmax(rint((x[t] - m) / s), 0), top);
                c1 += c, c2 += c * c, cx += c * (x[t] - mean);
                E += (x[t] - m - s * c) * (x[t] - m - s * c);
            }
            double var = c2 - c1 * c1 / n;
            if (bits == 1) break;
            s = round < 2 ? cx / var : sqrt(S / var);
            m = mean - s * c1 / n;
            if (round == 2) E = S - 2 * s * cx + s * s * var;
        }
        best = fmin(best, E);
    }
    return sqrt(fmax(best, 0));
}

static void check_ladder_k(const fixture *f) {
    const naive_layout *n = &f->n;
    int T = f->e.n, dk = n->dk, blocks = n->dkp / 8;
    double w[256] = {0}, gain_of[32] = {0}, x[1024];
    for (int c = 0; c < dk; c++) {
        double mean = 0, S = 0;
        for (int t = 0; t < T; t++) mean += value_of(f->k[t * dk + c]) / T;
        for (int t = 0; t < T; t++) S += pow(value_of(f->k[t * dk + c]) - mean, 2);
        w[c] = (double)f->q2[c] * S / T;
    }
    for (int i = 1; i < n->dkp; i++) {
        int a = f->page[n->order + i - 1], b = f->page[n->order + i];
        if (!(w[a] >= w[b] * (1 - 1e-5))) fail_msg("rank %d: weight %g before %g", i, w[a], w[b]);
        if (w[a] == w[b]) assert_true(a < b);
    }
    int widths[32] = {0};
    for (int i = 0; i < n->dkp; i++) gain_of[i / 8] += w[f->page[n->order + i]] / 8;
    for (int left = n->B; left > 0; left--) {
        int at = -1;
        for (int b = 0; b < blocks; b++)
            if (widths[b] < 6 && gain_of[b] > 0 &&
                (at < 0 ||
                 gain_of[b] * (D[widths[b]] - D[widths[b] + 1]) > gain_of[at] * (D[widths[at]] - D[widths[at] + 1])))
                at = b;
        if (at >= 0) widths[at]++;
    }
    for (int b = 0; b < blocks; b++) assert_int_equal(widths[b], naive_width(&f->e, b));
    for (int i = 0; i < n->dkp; i++) {
        int c = f->page[n->order + i], b = naive_width(&f->e, i / 8);
        if (c >= dk) continue;
        double err = 0;
        for (int t = 0; t < T; t++) {
            x[t] = value_of(f->k[t * dk + c]);
            err += pow(x[t] - f->dk[t * dk + c], 2);
        }
        double slack = naive_half(f->page + n->triples + 6 * b + 4) +
                       (b ? (pow(2, b) - 1) * naive_half(f->page + n->triples + 6 * b) / 255 : 0);
        double bound = naive_fit_error(x, T, b) * 1.002 + .505 * slack * sqrt(T);
        if (!(sqrt(err) <= bound)) fail_msg("channel %d, %d bits, n %d: error %g, bound %g", c, b, T, sqrt(err), bound);
        if (b) assert_true(f->page[n->ks + i] >= 1);
    }
}

/* ---- LADDER, V: each channel of W = V / (first token scale) within the metadata's rounding of the double-precision
 * fit; the decoded token has the true token's length up to the 4-bit mantissa. */
static double naive_token_scale(double x,
                                double max) { /* x rounded as the specification says, max the largest of the page */
    int e = 0, e0 = 0;
    if (max <= 0) return ldexp(1, -64);
    for (int i = 0; i < 2; i++) {
        double y = i ? x : max;
        if (y <= 0) return ldexp(1, e0 - 15);
        e = (int)floor(log2(y));
        double k = nearbyint((y / ldexp(1, e) - 1) * 16);
        if (k == 16) k = 0, e++;
        if (!i)
            e0 = e;
        else
            x = e < e0 - 15 ? ldexp(1, e0 - 15) : ldexp(1 + k / 16, e);
    }
    return x;
}

static void check_ladder_v(const fixture *f) {
    const naive_layout *n = &f->n;
    int dv = n->dv, T = f->e.n;
    static double first[1024], x[1024];
    double max = 0, slack = .505 * sqrt(T) *
                            (naive_half(f->page + n->triples + 46) +
                             (pow(2, n->vb) - 1) * naive_half(f->page + n->triples + 42) / 255);
    for (int t = 0; t < T; t++) {
        double a = 0, b = 0;
        for (int c = 0; c < dv; c++) a += pow(value_of(f->v[t * dv + c]), 2), b += pow(f->dv[t * dv + c], 2);
        first[t] = sqrt(a / dv);
        max = fmax(max, first[t]);
        if (f->page[n->a + t] >= 16 && dv >= 64 && fabs(sqrt(b / a) - 1) > 1 / 31.)
            fail_msg("token %d of %d: %g of the true length", t, T, sqrt(b / a));
    }
    for (int t = 0; t < T; t++) first[t] = naive_token_scale(first[t], max);
    for (int c = 0; c < dv; c++) {
        double err = 0;
        for (int t = 0; t < T; t++) {
            x[t] = value_of(f->v[t * dv + c]) / first[t];
            err += pow(x[t] - f->dv[t * dv + c] / naive_a(n, f->page, t), 2);
        }
        double bound = naive_fit_error(x, T, n->vb) * 1.002 + slack;
        if (!(sqrt(err) <= bound)) fail_msg("V channel %d, n %d: error %g, bound %g", c, T, sqrt(err), bound);
        assert_true(f->page[n->vs + c] >= 1);
    }
}

/* ---- Q8 and GROUP: minimum exact, scale as promised, every value within half a step. */
static void check_minmax(const fixture *f) {
    const naive_layout *n = &f->n;
    int gk = n->kind == '8' ? n->P : n->g, gv = n->kind == '8' ? n->dv : n->g;
    for (int side = 0; side < 2; side++) {
        int d = side ? n->dv : n->dk, top = (1 << (side ? n->vb : n->kb)) - 1;
        const uint16_t *src = side ? f->v : f->k;
        const double *got = side ? f->dv : f->dk;
        for (int t0 = 0; t0 < f->e.n; t0 += side ? 1 : gk)
            for (int c0 = 0; c0 < d; c0 += side ? gv : 1) {
                int t1 = side               ? t0 + 1
                         : t0 + gk < f->e.n ? t0 + gk
                                            : f->e.n,
                    c1 = side ? (c0 + gv < d ? c0 + gv : d) : c0 + 1;
                double lo = INFINITY, hi = -INFINITY;
                for (int t = t0; t < t1; t++)
                    for (int c = c0; c < c1; c++)
                        lo = fmin(lo, value_of(src[t * d + c])), hi = fmax(hi, value_of(src[t * d + c]));
                long i = n->kind == '8' ? (side ? t0 : c0) : side ? t0 * n->gv + c0 / gv : t0 / gk * n->dkp + c0;
                double s = naive_half(f->page + (side ? n->vs : n->ks) + 2 * i),
                       m = naive_half(f->page + (side ? n->vm : n->km) + 2 * i), want = (hi - lo) / top;
                assert_true(m == lo);
                if (n->kind == '8')
                    assert_true(s >= want * (1 - 1e-7) && s <= want * (1 + 1.001 / 1024) + 6e-8);
                else
                    assert_true(fabs(s - want) <= want / 2047 + 3e-8);
                double bound = fmax(s / 2 * (1 + 1e-4), hi - lo - top * s + 1e-6 * (hi - lo)) + 1e-7 * fabs(lo);
                for (int t = t0; t < t1; t++)
                    for (int c = c0; c < c1; c++)
                        if (!(fabs(got[t * d + c] - value_of(src[t * d + c])) <= bound))
                            fail_msg("%s token %d channel %d: %g instead of %g, step %g", side ? "V" : "K", t, c,
                                     got[t * d + c], value_of(src[t * d + c]), s);
            }
    }
}

static void check_page(const fixture *f) {
    check_hygiene(f);
    if (f->n.kind == 'l') {
        check_ladder_k(f);
        check_ladder_v(f);
    } else if (f->n.kind != 'f')
        check_minmax(f);
    else {
        for (int i = 0; i < f->e.n * f->n.dk; i++) assert_true(f->dk[i] == value_of(f->k[i]));
        for (int i = 0; i < f->e.n * f->n.dv; i++) assert_true(f->dv[i] == value_of(f->v[i]));
    }
}

/* Every count of tokens at head dimension 64; a few counts at the other shapes; mixed pairs. */
static void test_random_input(void **state) {
    uint64_t seed = 7;
    for (int kf = 0; kf < KV_FORMATS; kf++)
        for (int s = 0; s < N_SHAPES; s++) {
            fixture f;
            fixture_make(&f, kf, kf, shapes[s][0], shapes[s][1]);
            uint32_t P = f.l.tokens, counts[] = {1, 2, 3, 7, 8, 9, 13, P - 1, P};
            for (uint32_t i = 0; i<(s ? 9 : P); i += s> 3 ? 2 : 1) {
                uint32_t n = s ? counts[i] : i + 1;
                input(&f, n, &seed);
                encode(&f, n);
                check_page(&f);
            }
            fixture_free(&f);
        }
    for (int kf = KV_Q4; kf <= KV_Q1; kf++)
        for (int vf = KV_Q4; vf <= KV_Q1; vf++) {
            fixture f;
            fixture_make(&f, kf, vf, 64, 64);
            for (uint32_t n = f.l.tokens; n > 40; n -= 11) {
                input(&f, n, &seed);
                encode(&f, n);
                check_page(&f);
            }
            fixture_free(&f);
        }
}

/* Equal input, equal bytes, whatever lay in page, scratch and entry before. */
static void test_deterministic(void **state) {
    uint64_t seed = 3;
    for (int kf = 0; kf < KV_FORMATS; kf++) {
        fixture f;
        fixture_make(&f, kf, kf, 80, 72);
        input(&f, f.l.tokens - 3u, &seed);
        encode(&f, f.l.tokens - 3u);
        uint8_t *first = test_malloc(f.l.page_bytes);
        memcpy(first, f.page, f.l.page_bytes);
        kv_page_entry e = f.e;
        memset(f.page, 0, f.l.page_bytes);
        memset(f.scratch, 0, kv_encode_scratch(&f.l));
        kv_encode_ref(&f.l, f.l.tokens - 3u, f.k, f.v, f.q2, f.page, &f.e, f.scratch);
        assert_memory_equal(first, f.page, f.l.page_bytes);
        assert_memory_equal(e.k_widths, f.e.k_widths, sizeof e.k_widths);
        test_free(first);
        fixture_free(&f);
    }
}

/* Zeros and one constant stay exact; constants of their own a channel within half a step of the metadata; grids stay
 * exact. */
static void test_constants(void **state) {
    for (int kf = 0; kf < KV_FORMATS; kf++) {
        fixture f;
        fixture_make(&f, kf, kf, 72, 72);
        uint32_t P = f.l.tokens, counts[] = {1, 2, P - 1, P};
        for (int i = 0; i < 4; i++) {
            uint32_t n = counts[i];
            f.k = naive_guarded(2ul * n * 72);
            f.v = naive_guarded(2ul * n * 72);
            for (int value = 0; value < 3; value++) {
                static const uint16_t values[3] = {0, 0x4200, 0xfbff}; /* 0, 3, -65504 */
                for (uint32_t j = 0; j < n * 72; j++) f.k[j] = f.v[j] = values[value];
                for (int c = 0; c < 72; c++) f.q2[c] = 1;
                encode(&f, n);
                check_hygiene(&f);
                double x = value_of(values[value]);
                for (uint32_t j = 0; j < n * 72; j++) {
                    assert_true(f.dk[j] == x);
                    assert_true(fabs(f.dv[j] - x) <= fabs(x) * (f.n.kind == 'l' ? 1 / 31. : 0));
                }
            }
            for (uint32_t j = 0; j < n * 72; j++) f.k[j] = (uint16_t)(0x3c00 + 16 * (j % 72)); /* 1 .. 3.2 by channel */
            encode(&f, n);
            for (uint32_t j = 0; j < n * 72; j++)
                assert_true(fabs(f.dk[j] - value_of(f.k[j])) <= (f.n.kind == 'l' ? 2.2 / 500 : 0));
        }
        fixture_free(&f);
    }
}

static void test_grid_is_exact(void **state) {
    static const int formats[] = {KV_Q8, KV_KIVI4, KV_KIVI2, KV_MINIKV2};
    for (int i = 0; i < 4; i++) {
        fixture f;
        fixture_make(&f, formats[i], formats[i], 64, 64);
        uint32_t P = f.l.tokens, levels = 1u << f.n.vb;
        f.k = naive_guarded(2ul * P * 64);
        f.v = naive_guarded(2ul * P * 64);
        for (uint32_t t = 0; t < P; t++)
            for (uint32_t c = 0; c < 64; c++) { /* -2 + code / 4; both ends in every group */
                uint32_t end = c % 16 < 2 || t % 8 < 2,
                         code = end ? ((c + t) % 2 ? levels - 1 : 0) : (t * 7 + c * 5) % levels;
                f.k[t * 64 + c] = f.v[t * 64 + c] = half_of(-2 + code / 4.);
            }
        for (int c = 0; c < 64; c++) f.q2[c] = 1;
        encode(&f, P);
        for (uint32_t j = 0; j < P * 64; j++) {
            assert_true(f.dk[j] == value_of(f.k[j]));
            assert_true(f.dv[j] == value_of(f.v[j]));
        }
        fixture_free(&f);
    }
}

/* NaN counts as 0, infinity as 65504, -0 as 0; q2 may be anything. */
static void test_hostile_values(void **state) {
    uint64_t seed = 11;
    for (int kf = 0; kf < KV_FORMATS; kf++) {
        fixture f;
        fixture_make(&f, kf, kf, 64, 80);
        for (uint32_t n = f.l.tokens; n > 0; n = n > 20 ? n - 17 : n / 2) {
            input(&f, n, &seed);
            for (uint32_t i = 0; i < n * 64; i++) f.k[i] = (uint16_t)test_rand(&seed);
            for (uint32_t i = 0; i < n * 80; i++) f.v[i] = (uint16_t)test_rand(&seed);
            f.k[0] = 0x7e00, f.v[0] = 0xfc00, f.v[1] = 0x7c01, f.k[1] = 0x8000, f.k[2] = 0x7c00;
            f.q2[0] = NAN, f.q2[1] = INFINITY, f.q2[2] = -1, f.q2[3] = 0, f.q2[4] = 3e38f;
            encode(&f, n);
            check_hygiene(&f);
            uint8_t *dirty = test_malloc(f.l.page_bytes);
            memcpy(dirty, f.page, f.l.page_bytes);
            for (int side = 0; side < 2; side++)
                for (uint32_t i = 0; i < n * (side ? 80 : 64); i++) {
                    uint16_t *h = side ? &f.v[i] : &f.k[i];
                    if ((*h & 0x7fff) > 0x7c00 || *h == 0x8000) *h = 0;
                    if ((*h & 0x7fff) == 0x7c00) *h = (uint16_t)(*h - 1);
                }
            f.q2[0] = f.q2[2] = 0, f.q2[1] = f.q2[4] = 1e20f;
            encode(&f, n);
            assert_memory_equal(dirty, f.page, f.l.page_bytes);
            if (f.n.kind != 'l') check_page(&f);
            test_free(dirty);
        }
        fixture_free(&f);
    }
}

/* Widths: no allocation of the same number of bits has less distortion (exhaustive), ties go to the lower block, zero
 * weight gets none. */
static void test_fill_is_optimal(void **state) {
    uint64_t seed = 5;
    uint8_t order[32], widths[4];
    for (int i = 0; i < 32; i++) order[i] = (uint8_t)i;
    for (int trial = 0; trial < 300; trial++) {
        float w[32];
        double mean[4] = {0};
        for (int i = 0; i < 32; i++) {
            w[i] = expf(test_normal(&seed) * 3 - (float)(i / 8));
            mean[i / 8] += (double)w[i] / 8;
        }
        uint32_t budget = (uint32_t)(test_rand(&seed) % 25);
        kv_encode_fill(w, order, 4, budget, widths);
        double got = 0, best = INFINITY;
        for (int b = 0; b < 4; b++) got += mean[b] * D[widths[b]];
        assert_int_equal(widths[0] + widths[1] + widths[2] + widths[3], budget);
        for (int all = 0; all < 7 * 7 * 7 * 7; all++) {
            int u[4] = {all % 7, all / 7 % 7, all / 49 % 7, all / 343};
            if (u[0] + u[1] + u[2] + u[3] != (int)budget) continue;
            best = fmin(best, mean[0] * D[u[0]] + mean[1] * D[u[1]] + mean[2] * D[u[2]] + mean[3] * D[u[3]]);
        }
        assert_true(got <= best * (1 + 1e-12));
    }
    float flat[32];
    for (int i = 0; i < 32; i++) flat[i] = 1;
    kv_encode_fill(flat, order, 4, 6, widths);
    assert_true(widths[0] == 2 && widths[1] == 2 && widths[2] == 1 && widths[3] == 1);
    for (int i = 0; i < 32; i++) flat[i] = i < 8;
    kv_encode_fill(flat, order, 4, 20, widths);
    assert_true(widths[0] == 6 && widths[1] == 0 && widths[2] == 0 && widths[3] == 0);
    float tied[8] = {1, 3, 3, 0, 3, 0, 1, 5};
    static const uint8_t want[8] = {7, 1, 2, 4, 0, 6, 3, 5};
    kv_encode_rank(tied, 8, order);
    assert_memory_equal(order, want, 8);
}

/* f16 neighbours against trying all 65,536. */
static void test_half_bounds(void **state) {
    static const float xs[] = {0,     1,      -1,    1.0001f, -1.0001f, 65504, 65505,   -65505, 70000,
                               1e-9f, -1e-9f, 6e-8f, 3.1e-5f, .1f,      -.1f,  6.1e-5f, 2047.5f};
    for (size_t i = 0; i < sizeof xs / sizeof *xs; i++) {
        double up = xs[i] > 65504 ? 65504 : naive_half_bound(xs[i], true),
               down = xs[i] < -65504 ? -65504 : naive_half_bound(xs[i], false);
        assert_true(value_of(kv_f16_up(xs[i])) == up);
        assert_true(value_of(kv_f16_down(xs[i])) == down);
    }
}

/* Token scales: relative rounding at most 1/32 within the 16 exponents, the largest always representable. */
static void test_token_scales(void **state) {
    uint64_t seed = 9;
    for (int trial = 0; trial < 200; trial++) {
        float a[40], was[40], max = 0;
        uint8_t u[40];
        for (int i = 0; i < 40; i++) {
            was[i] = a[i] = i == 7 ? 0 : ldexpf(1 + fabsf(test_uniform(&seed)), (int)(test_rand(&seed) % 20) - 12);
            if (a[i] > max) max = a[i];
        }
        int8_t e0 = kv_encode_token_scales(a, 40, u);
        for (int i = 0; i < 40; i++) {
            assert_true(a[i] == ldexpf(1 + (float)(u[i] & 15) / 16, e0 + (u[i] >> 4)));
            if (was[i] >= ldexpf(1, e0))
                assert_true(fabsf(a[i] - was[i]) <= was[i] / 32);
            else
                assert_int_equal(u[i], 0);
        }
        assert_true(max < ldexpf(2, e0 + 15) && max >= ldexpf(31 / 32.f, e0 + 15));
    }
    float zero[2] = {0, 0};
    uint8_t u[2] = {1, 1};
    assert_int_equal(kv_encode_token_scales(zero, 2, u), -64);
    assert_true(u[0] == 0 && u[1] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_half_bounds),     cmocka_unit_test(test_token_scales),
                                       cmocka_unit_test(test_fill_is_optimal), cmocka_unit_test(test_random_input),
                                       cmocka_unit_test(test_deterministic),   cmocka_unit_test(test_constants),
                                       cmocka_unit_test(test_grid_is_exact),   cmocka_unit_test(test_hostile_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
