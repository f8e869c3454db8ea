/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all attention kernels of one instruction set share: powers over vectors of 16 floats, by the operations that attn_simd.h lists; fetching.
 */
#include "backend/cpu/loops.h"

#include <math.h>

/* exp(x) for x <= KV_ATTN_EXP_MAX by Cephes' expf: 2^n e^r, |r| <= ln 2 / 2, degree 5 in r beyond 1 + r; relative error below 1e-7,
 * exp(0) = 1. n comes out of the low bits of x log2(e) + 1.5 2^23 and is added to the exponent; lanes below the least x are garbage
 * until the end and then 0. */
KV_INLINE v16 v_exp(v16 x)
{
    const v16 magic = v_set(12582912.0f);
    v16 t = v_fma(x, v_set(1.44269504088896341f), magic), n = v_sub(t, magic);
    v16 r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    v16 p = v_fma(v_set(1.9875691500e-4f), r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_keep_ge(x, KV_ATTN_EXP_MIN, v_scale2(p, t));
}

/* 2^x for x <= 0 (and a little above): 2^n 2^r, |r| <= 1 / 2, minimax of degree 5 with 2^0 = 1; relative error below 2e-7. n is the nearest integer,
 * an instruction set may have a way to r and 2^n of its own. */
#ifndef KV_ATTN_OWN_EXP2
KV_INLINE v16 v_exp2(v16 x)
{
    const v16 magic = v_set(12582912.0f);
    v16 t = v_add(x, magic), r = v_sub(x, v_sub(t, magic));
    v16 p = v_fma(v_set(1.3264727313e-03f), r, v_set(9.6715129912e-03f));
    p = v_fma(p, r, v_set(5.5507335812e-02f));
    p = v_fma(p, r, v_set(2.4022242427e-01f));
    p = v_fma(p, r, v_set(6.9314700365e-01f));
    p = v_fma(p, r, v_set(1.0f));
    return v_keep_ge(x, KV_ATTN_EXP2_MIN, v_scale2(p, t));
}
#endif

/* Lines to fetch meanwhile, some at a time: all at once would wait for the few line buffers a core has. */
typedef struct fetch { const uint8_t *at, *end; } fetch;
KV_INLINE void fetch_some(fetch *f, const int lines)
{
    for (int k = 0; k < lines; k++) {
        __builtin_prefetch(f->at, 0, 3);
        f->at += f->at < f->end ? 64 : 0;
    }
}
KV_INLINE void fetch_all(fetch *f)
{
    for (; f->at < f->end; f->at += 64) __builtin_prefetch(f->at, 0, 3);
}
KV_INLINE void fetch_rest(fetch f) { fetch_all(&f); }
/* A page is K's codes, V's codes, scales. While keys are computed the page's own values are fetched, while values are computed the keys and
 * scales of the page that comes KV_ATTN_RUN later: what is on its way is half a run. */
KV_INLINE fetch fetch_values(const kv_attn_page *a)
{
    const kv_page_layout *L = a->layout;
    return (fetch){a->data + L->v_off, a->data + (L->kind == KV_KIND_F16 ? L->bytes_used : L->kind == KV_KIND_LADDER ? L->triples_off : L->k_scale_off)};
}
KV_INLINE fetch fetch_nothing(const kv_attn_page *a) { return (fetch){a->data, a->data}; }
KV_INLINE fetch fetch_next_keys(const kv_attn_page *a) { return a->next ? (fetch){a->next, a->next + a->next_keys} : fetch_nothing(a); }
KV_INLINE void fetch_next_scales(const kv_attn_page *a)
{
    if (a->next) fetch_rest((fetch){a->next + a->next_scales, a->next + a->next_bytes});
}
