/* SPDX-License-Identifier: Apache-2.0 */
/* kv_decode_ref against the naive decoder, on pages of random bytes (every bit of the payload matters) and on encoded
 * ones. */
#include "test_format_naive.h"

static const int shapes[][2] = {{64, 64}, {72, 72}, {80, 80}, {128, 128}, {256, 256}, {64, 128}, {128, 64}, {17, 33}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Relative to the sum of magnitudes of the terms: f32 arithmetic of a few operations. */
static void check_decode(const kv_page_layout *l, const naive_layout *n, const uint8_t *page, const kv_page_entry *e) {
    size_t nk = (size_t)e->n * l->dk, nv = (size_t)e->n * l->dv;
    float *k = naive_guarded(4 * nk), *v = naive_guarded(4 * nv);
    double *dk = test_calloc(nk, sizeof *dk), *dv = test_calloc(nv, sizeof *dv);
    kv_decode_ref(l, page, e, k, v);
    naive_decode(n, page, e, dk, dv);
    for (size_t i = 0; i < nk; i++) {
        int c = (int)(i % l->dk);
        double size = fabs(dk[i]);
        if (n->kind == 'l') { /* m and s code may cancel: the bound is on the terms */
            for (int r = 0; r < n->dkp; r++)
                if (page[n->order + r] == c) {
                    int w = naive_width(e, r / 8);
                    size = fabs(naive_half(page + n->triples + 6 * w + 2)) +
                           255 * fabs(naive_half(page + n->triples + 6 * w + 4)) +
                           (w ? 63 * fabs(naive_half(page + n->triples + 6 * w)) : 0);
                }
        } else if (n->kind != 'f') {
            long at = 2L * (n->kind == 'g' ? (int)(i / l->dk) / n->g * n->dkp + c : c);
            size = fabs(naive_half(page + n->km + at)) + 255 * fabs(naive_half(page + n->ks + at));
        }
        if (!(fabs(k[i] - dk[i]) <= 4e-7 * size)) fail_msg("k[%zu]: %g, naive %g", i, (double)k[i], dk[i]);
    }
    for (size_t i = 0; i < nv; i++) {
        double size = fabs(dv[i]);
        if (n->kind == 'l')
            size = naive_a(n, page, (int)(i / l->dv)) *
                   (fabs(naive_half(page + n->triples + 44)) + 255 * fabs(naive_half(page + n->triples + 46)) +
                    15 * fabs(naive_half(page + n->triples + 42)));
        else if (n->kind != 'f') {
            long t = (long)(i / l->dv), at = 2 * (n->kind == 'g' ? t * n->gv + (long)(i % l->dv) / n->g : t);
            size = fabs(naive_half(page + n->vm + at)) + 255 * fabs(naive_half(page + n->vs + at));
        }
        if (!(fabs(v[i] - dv[i]) <= 4e-7 * size)) fail_msg("v[%zu]: %g, naive %g", i, (double)v[i], dv[i]);
    }
    test_free(dk);
    test_free(dv);
}

/* Random bytes; f16 values finite, widths within the budget, the order a permutation, E0 in range. */
static void random_page(const naive_layout *n, uint64_t *seed, uint8_t *page, kv_page_entry *e) {
    for (long i = 0; i < n->end; i++) page[i] = (uint8_t)test_rand(seed);
    memset(e, 0, sizeof *e);
    e->n = (uint16_t)(1 + test_rand(seed) % (uint64_t)n->P);
    long from = n->kind == 'f' ? n->k : n->kind == 'l' ? n->triples : n->ks, to = n->kind == 'l' ? n->ks : n->end;
    for (long i = from; i < to; i += 2)
        if ((page[i + 1] & 0x7c) == 0x7c) page[i + 1] ^= 0x40;
    if (n->kind != 'l') return;
    for (int b = 0; b < n->B; b++) {
        int at = (int)(test_rand(seed) % (uint64_t)(n->dkp / 8));
        if (naive_width(e, at) < 6) e->k_widths[at / 2] = (uint8_t)(e->k_widths[at / 2] + (at % 2 ? 16 : 1));
    }
    for (int i = 0; i < n->dkp; i++) page[n->order + i] = (uint8_t)i;
    for (int i = n->dkp - 1; i > 0; i--) {
        int j = (int)(test_rand(seed) % (uint64_t)(i + 1));
        uint8_t x = page[n->order + i];
        page[n->order + i] = page[n->order + j];
        page[n->order + j] = x;
    }
    page[n->e0] = (uint8_t)(-64 + (int)(test_rand(seed) % 70));
}

static void test_random_pages(void **state) {
    uint64_t seed = 1;
    for (int kf = 0; kf < KV_FORMATS; kf++)
        for (int vf = 0; vf < KV_FORMATS; vf++) {
            if (kf != vf && (naive_formats[kf].kind != 'l' || naive_formats[vf].kind != 'l')) continue;
            for (int s = 0; s < N_SHAPES; s++) {
                kv_page_layout l;
                kv_error err;
                uint32_t dk = (uint32_t)shapes[s][0], dv = (uint32_t)shapes[s][1];
                size_t bytes = kv_page_bytes_for(dk, dv);
                assert_int_equal(kv_page_layout_get(kv_format_pair((uint8_t)kf, (uint8_t)vf), dk, dv, bytes, &l, &err),
                                 0);
                naive_layout n = naive_fit_page(kf, vf, (int)dk, (int)dv, (long)bytes);
                uint8_t *page = naive_guarded((size_t)n.end);
                kv_page_entry e;
                random_page(&n, &seed, page, &e);
                check_decode(&l, &n, page, &e);
            }
        }
}

/* Single bits where the specification says they are: a page of zeros but one bit decodes to one code. */
static void test_single_bits(void **state) {
    kv_page_layout l;
    kv_error err;
    assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q2S, KV_Q2S), 64, 64, 4096, &l, &err), 0);
    static uint8_t page[4096];
    float k[112 * 64], v[112 * 64];
    kv_page_entry e = {.n = 112, .k_widths = {0x02, 0x05}}; /* blocks 0, 2: 2 and 5 bits */
    for (uint32_t i = 0; i < 64; i++) page[l.k_order_off + i] = (uint8_t)(63 - i);
    for (uint32_t i = 0; i < 64; i++) page[l.k_scale_off + i] = page[l.v_scale_off + i] = 255;
    for (uint32_t i = 0; i < 8; i++) page[l.triples_off + 6 * i + 1] = 0x3c; /* smax 1.0 */
    page[l.e0_off] = 3;                                                      /* a = 8 */
    /* K: block 2 begins after block 0's 112 x 2 bytes; tokens 16..23, plane 4, channel 5 of the block, token 18 */
    page[224 + 8 * (2 * 5 + 4) + (32 + 4 * 2 + 1) / 8] = 1 << ((32 + 4 * 2 + 1) % 8);
    /* V: token 30, channel 43, plane 1 */
    page[l.v_off + 8 * ((3 * 8 + 5) * 2 + 1) + (32 + 4 * 3 + 2) / 8] = 1 << ((32 + 4 * 3 + 2) % 8);
    kv_decode_ref(&l, page, &e, k, v);
    for (int t = 0; t < 112; t++)
        for (int c = 0; c < 64; c++) {
            assert_float_equal(k[t * 64 + c], t == 18 && c == 63 - 21 ? 16 : 0, 0);
            assert_float_equal(v[t * 64 + c], t == 30 && c == 43 ? 8 * 2 : 0, 0);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_pages), cmocka_unit_test(test_single_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
