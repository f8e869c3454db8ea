/* SPDX-License-Identifier: Apache-2.0 */
/* Names, pairs and layouts of page formats, against the byte tables of docs/page-formats.md computed a second time. */
#include "test_format_naive.h"

static const int dims[] = {1, 2, 3, 16, 17, 64, 65, 72, 80, 96, 112, 128, 192, 255, 256};
enum { N_DIMS = sizeof dims / sizeof *dims };

static void test_table(void **state) {
    for (int i = 0; i < KV_FORMATS; i++) {
        assert_string_equal(kv_formats[i].name, naive_formats[i].name);
        assert_int_equal(kv_formats[i].k_bits2, (int)(2 * naive_formats[i].k_bits));
        assert_int_equal(kv_formats[i].v_bits, naive_formats[i].v_bits);
        assert_int_equal(kv_formats[i].group, naive_formats[i].group);
    }
    static const int code_bits[] = {0, 16, 16, 8, 8, 8, 8, 0, 0, 0};
    for (int i = 0; i < KV_FORMATS; i++) assert_int_equal(kv_formats[i].code_bits, code_bits[i]);
}

static void test_published_counts(void **state) {
    static const int at64[] = {16, 28, 56, 72, 96, 112, 128, 48, 80, 64};
    static const int d[] = {64, 72, 80, 128, 256};
    for (int f = 0; f < KV_FORMATS; f++)
        for (int i = 0; i < 5; i++) {
            kv_page_layout l;
            kv_error err;
            assert_int_equal(kv_page_layout_get(kv_format_pair((uint8_t)f, (uint8_t)f), (uint32_t)d[i], (uint32_t)d[i],
                                                kv_page_bytes_for((uint32_t)d[i], (uint32_t)d[i]), &l, &err),
                             0);
            assert_int_equal(l.tokens, at64[f]);
        }
    assert_int_equal(kv_page_bytes_for(64, 64), 4096);
    assert_int_equal(kv_page_bytes_for(128, 128), 8192);
    assert_int_equal(kv_page_bytes_for(72, 64), 32 * (80 + 64));
}

static bool same_layout(const kv_page_layout *l, const naive_layout *n) {
    return l->tokens == n->P && l->dkp == n->dkp && l->dvp == n->dvp && l->k_block_bits == n->B && l->k_off == n->k &&
           l->v_off == n->v && l->triples_off == n->triples && l->k_scale_off == n->ks && l->k_min_off == n->km &&
           l->k_order_off == n->order && l->v_scale_off == n->vs && l->v_min_off == n->vm && l->a_off == n->a &&
           l->e0_off == n->e0 && l->bytes_used == n->end && l->k_groups == (uint32_t)n->gk &&
           l->v_groups == (uint32_t)n->gv && l->v_bits == n->vb;
}

static void test_layouts(void **state) {
    for (int kf = 0; kf < KV_FORMATS; kf++)
        for (int vf = 0; vf < KV_FORMATS; vf++)
            for (int i = 0; i < N_DIMS; i++)
                for (int j = 0; j < N_DIMS; j++) {
                    uint32_t dk = (uint32_t)dims[i], dv = (uint32_t)dims[j];
                    size_t own = kv_page_bytes_for(dk, dv);
                    for (size_t bytes = own; bytes <= 4 * own; bytes *= 4) {
                        kv_page_layout l;
                        kv_error err;
                        uint8_t pair = kv_format_pair((uint8_t)kf, (uint8_t)vf);
                        kv_status s = kv_page_layout_get(pair, dk, dv, bytes, &l, &err);
                        if (kf != vf && (naive_formats[kf].kind != 'l' || naive_formats[vf].kind != 'l')) {
                            assert_int_equal(s, KVIST_E_POLICY);
                            assert_non_null(strstr(err.message, kv_formats[kf].name));
                            continue;
                        }
                        naive_layout n = naive_fit_page(kf, vf, (int)dk, (int)dv, (long)bytes);
                        if (n.P < 8) {
                            assert_int_equal(s, KVIST_E_POLICY);
                            continue;
                        }
                        assert_int_equal(s, 0);
                        assert_true(same_layout(&l, &n));
                        assert_true(kv_encode_scratch(&l) <= kv_encode_scratch_bound(bytes, dk > dv ? dk : dv));
                    }
                }
}

static void test_refusals(void **state) {
    kv_page_layout l;
    kv_error err;
    assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q4, KV_Q4), 64, 64, 256, &l, &err), KVIST_E_POLICY);
    assert_non_null(strstr(err.message, "q4"));
    assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q4, KV_Q4), 0, 64, 4096, &l, &err), KVIST_E_POLICY);
    assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q4, KV_Q4), 64, 257, 1 << 20, &l, &err), KVIST_E_POLICY);
    assert_int_equal(kv_page_layout_get(0xff, 64, 64, 4096, &l, &err), KVIST_E_POLICY);
    assert_int_equal(kv_page_layout_get(kv_format_pair(KV_Q1, KV_Q1), 16, 16, 1u << 30, &l, NULL), 0);
    assert_int_equal(l.tokens, KV_PAGE_TOKENS_MAX);
}

static void test_names(void **state) {
    for (int k = 0; k < KV_FORMATS; k++)
        for (int v = 0; v < KV_FORMATS; v++) {
            char text[40], back[40];
            kv_error err;
            uint8_t pair = 0xff;
            snprintf(text, sizeof text, "%s/%s", naive_formats[k].name, naive_formats[v].name);
            kv_status s = kv_format_parse(text, strlen(text), &pair, &err);
            bool built = k == v || (naive_formats[k].kind == 'l' && naive_formats[v].kind == 'l');
            assert_int_equal(s, built ? KVIST_OK : KVIST_E_POLICY);
            if (!built) {
                assert_non_null(strstr(err.message, text));
                continue;
            }
            assert_int_equal(pair, k | v << 4);
            kv_format_print(pair, back, sizeof back);
            assert_string_equal(back, k == v ? naive_formats[k].name : text);
            pair = 0xff;
            assert_int_equal(kv_format_parse(back, strlen(back), &pair, &err), 0);
            assert_int_equal(pair, k | v << 4);
        }
    static const char *const bad[] = {"", "/", "q", "q22", "Q4", "q4/", "/q4", "q4/q2/q2", " q4", "q4 ", "q5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t pair;
        assert_int_equal(kv_format_parse(bad[i], strlen(bad[i]), &pair, NULL), KVIST_E_POLICY);
    }
    uint8_t pair;
    assert_int_equal(kv_format_parse("q2sXY", 3, &pair, NULL), 0); /* length counts, not the terminator */
    assert_int_equal(pair, KV_Q2S | KV_Q2S << 4);
    char tiny[3];
    kv_format_print(pair, tiny, sizeof tiny);
    assert_string_equal(tiny, "q2");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_published_counts),
                                       cmocka_unit_test(test_layouts), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
