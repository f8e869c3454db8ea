/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of page formats, the byte layout of a page, format names. Owns where every part of a page lies; must not
 * know how codes are chosen (encode/). docs/page-formats.md is the specification in words.
 *
 * Invariants: a layout depends on (pair, dk, dv, page_bytes) only, never on the data; tokens is the largest legal count
 * that fits, computed; every offset of codes and of 16-bit values is a multiple of 8 (Q8: of 4).
 */
#include "policy/format.h"

#include <stdio.h>
#include <string.h>

const kv_format kv_formats[KV_FORMATS] = {
    /* name, kind, K bits x 2, V bits, group, code bits */
    [KV_F16] = {"f16", KV_KIND_F16, 32, 16, 0, 0},      [KV_Q8] = {"q8", KV_KIND_Q8, 16, 8, 0, 16},
    [KV_Q4] = {"q4", KV_KIND_LADDER, 8, 4, 0, 16},      [KV_Q3] = {"q3", KV_KIND_LADDER, 6, 3, 0, 8},
    [KV_Q2] = {"q2", KV_KIND_LADDER, 5, 2, 0, 8},       [KV_Q2S] = {"q2s", KV_KIND_LADDER, 4, 2, 0, 8},
    [KV_Q1] = {"q1", KV_KIND_LADDER, 3, 2, 0, 8},       [KV_KIVI4] = {"kivi4", KV_KIND_GROUP, 8, 4, 32, 0},
    [KV_KIVI2] = {"kivi2", KV_KIND_GROUP, 4, 2, 32, 0}, [KV_MINIKV2] = {"minikv2", KV_KIND_GROUP, 4, 2, 16, 0},
};

#define HEAD_DIM_MAX 256u /* the channel order is one byte, the widths of 32 blocks fit a page entry */

/* Places a part of `bytes` bytes at the end of what is placed so far. */
static uint32_t place(uint32_t *end, uint32_t bytes) {
    uint32_t at = *end;
    *end += bytes;
    return at;
}

/* Each fills the offsets of l for l->tokens slots; l->bytes_used is the sum. */
static void layout_f16(kv_page_layout *l) {
    uint32_t p = l->tokens, end = 0;
    l->k_off = place(&end, 2 * p * l->dkp);
    l->v_off = place(&end, 2 * p * l->dvp);
    l->bytes_used = end;
}

static void layout_q8(kv_page_layout *l) {
    uint32_t p = l->tokens, end = 0;
    l->k_off = place(&end, p * l->dkp);
    l->v_off = place(&end, p * l->dvp);
    l->k_scale_off = place(&end, 2u * l->dkp);
    l->k_min_off = place(&end, 2u * l->dkp);
    l->v_scale_off = place(&end, 2 * p);
    l->v_min_off = place(&end, 2 * p);
    l->bytes_used = end;
}

static void layout_ladder(kv_page_layout *l) {
    uint32_t p = l->tokens, end = 0;
    l->k_off = place(&end, p * l->k_block_bits); /* a block of 8 channels has one byte a token and plane */
    l->v_off = place(&end, p * l->dvp * l->v_bits / 8);
    l->triples_off = place(&end, 8 * 3 * 2);
    l->k_scale_off = place(&end, l->dkp);
    l->k_min_off = place(&end, l->dkp);
    l->k_order_off = place(&end, l->dkp);
    l->v_scale_off = place(&end, l->dvp);
    l->v_min_off = place(&end, l->dvp);
    l->a_off = place(&end, p);
    l->e0_off = place(&end, 1);
    l->bytes_used = end;
}

static void layout_group(kv_page_layout *l) {
    uint32_t p = l->tokens, end = 0, g = kv_formats[l->kf].group, k_bits = kv_formats[l->kf].k_bits2 / 2u;
    l->k_groups = (p + g - 1) / g;
    l->v_groups = (l->dvp + g - 1u) / g;
    l->k_off = place(&end, p * l->dkp * k_bits / 8);
    l->v_off = place(&end, p * l->dvp * l->v_bits / 8);
    l->k_scale_off = place(&end, 2 * l->k_groups * l->dkp);
    l->k_min_off = place(&end, 2 * l->k_groups * l->dkp);
    l->v_scale_off = place(&end, 2 * p * l->v_groups);
    l->v_min_off = place(&end, 2 * p * l->v_groups);
    l->bytes_used = end;
}

static void layout_kind(kv_page_layout *l) {
    switch (l->kind) {
    case KV_KIND_F16:
        layout_f16(l);
        break;
    case KV_KIND_Q8:
        layout_q8(l);
        break;
    case KV_KIND_LADDER:
        layout_ladder(l);
        break;
    default:
        layout_group(l);
        break;
    }
}

static kv_status check_pair(uint32_t kf, uint32_t vf, kv_error *err) {
    if (kf >= KV_FORMATS || vf >= KV_FORMATS) KV_FAIL(err, POLICY, "page format id %u/%u is not known", kf, vf);
    if (kf != vf && (kv_formats[kf].kind != KV_KIND_LADDER || kv_formats[vf].kind != KV_KIND_LADDER))
        KV_FAIL(err, POLICY, "page format '%s/%s' is not built: K and V may differ only among q4, q3, q2, q2s and q1",
                kv_formats[kf].name, kv_formats[vf].name);
    return KVIST_OK;
}

kv_status kv_page_layout_get(uint8_t pair, uint32_t dk, uint32_t dv, size_t page_bytes, kv_page_layout *out,
                             kv_error *err) {
    memset(out, 0, sizeof *out);
    uint32_t kf = pair & 15u, vf = pair >> 4;
    KV_TRY(check_pair(kf, vf, err));
    if (!dk || !dv || dk > HEAD_DIM_MAX || dv > HEAD_DIM_MAX)
        KV_FAIL(err, POLICY, "head dimensions %u (K) and %u (V) are not in 1..%u", dk, dv, HEAD_DIM_MAX);
    if (page_bytes > UINT32_MAX) KV_FAIL(err, POLICY, "a page of %zu bytes is too large", page_bytes);
    const kv_format *k = &kv_formats[kf], *v = &kv_formats[vf];
    kv_page_layout l = {.kf = (uint8_t)kf,
                        .vf = (uint8_t)vf,
                        .kind = k->kind,
                        .v_bits = v->v_bits,
                        .dk = (uint16_t)dk,
                        .dv = (uint16_t)dv};
    l.page_bytes = (uint32_t)page_bytes;
    l.dkp = (uint16_t)((dk + 15) & ~15u);
    l.dvp = (uint16_t)((dv + 15) & ~15u);
    if (l.kind == KV_KIND_LADDER) l.k_block_bits = (uint16_t)(k->k_bits2 * (l.dkp / 8u) / 2u);
    uint32_t step = l.kind == KV_KIND_Q8 ? 4 : 8;
    for (uint32_t p = KV_PAGE_TOKENS_MAX; p >= 8; p -= step) {
        l.tokens = (uint16_t)p;
        layout_kind(&l);
        if (l.bytes_used <= page_bytes) {
            *out = l;
            return KVIST_OK;
        }
    }
    char name[24];
    kv_format_print(pair, name, sizeof name);
    KV_FAIL(err, POLICY, "a page of %zu bytes holds fewer than 8 tokens of format '%s' at head dimensions %u and %u",
            page_bytes, name, dk, dv);
}

static int find_format(const char *text, size_t len) {
    for (int i = 0; i < KV_FORMATS; i++)
        if (strlen(kv_formats[i].name) == len && !memcmp(kv_formats[i].name, text, len)) return i;
    return -1;
}

kv_status kv_format_parse(const char *text, size_t len, uint8_t *pair, kv_error *err) {
    const char *slash = len ? memchr(text, '/', len) : NULL;
    size_t k_len = slash ? (size_t)(slash - text) : len;
    int k = find_format(text, k_len), v = slash ? find_format(slash + 1, len - k_len - 1) : k;
    if (k < 0 || v < 0)
        KV_FAIL(err, POLICY,
                "page format '%.*s' is not known (f16 q8 q4 q3 q2 q2s q1 kivi4 kivi2 minikv2, or K/V such as q4/q2)",
                (int)(len > 64 ? 64 : len), text);
    KV_TRY(check_pair((uint32_t)k, (uint32_t)v, err));
    *pair = kv_format_pair((uint8_t)k, (uint8_t)v);
    return KVIST_OK;
}

void kv_format_print(uint8_t pair, char *buf, size_t cap) {
    uint32_t k = pair & 15u, v = pair >> 4;
    const char *kn = k < KV_FORMATS ? kv_formats[k].name : "?", *vn = v < KV_FORMATS ? kv_formats[v].name : "?";
    if (k == v)
        snprintf(buf, cap, "%s", kn);
    else
        snprintf(buf, cap, "%s/%s", kn, vn);
}
