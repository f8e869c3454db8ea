/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the attention drivers share: the choice of kernels, the scratch of an execution context, what is refused, one page for
 * queries of either kind of row. Owns all memory of the section: after kv_attn_exec_init nothing is allocated.
 */
#include "backend/cpu/attn.h"
#include "base/alloc.h"
#include "base/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const struct kv_attn_kernels *kv_attn_kernels_get(int level)
{
#if defined(__x86_64__)
    if (level >= KV_CPU_AVX512) return &kv_attn_kernels_avx512;
    if (level >= KV_CPU_AVX2) return &kv_attn_kernels_avx2;
#elif defined(__aarch64__)
    if (level == KV_CPU_NEON) return &kv_attn_kernels_neon;
#endif
    (void)level;
    return &kv_attn_kernels_ref;
}

const kv_tile_ops *kv_tile_ops_get(int level)
{
#if defined(__x86_64__)
    if (level >= KV_CPU_AVX512) return &kv_tile_ops_avx512;
#endif
    (void)level;
    return NULL;
}

kv_status kv_cpu_attn_supported(kv_backend *be, const kv_attn_params *p, kv_error *err)
{
    int level = ((const kv_cpu_backend *)be)->level;
    if (!p->causal) KV_FAIL(err, UNSUPPORTED, "attention: causal=false is not built");
    if (p->head_sink) KV_FAIL(err, UNSUPPORTED, "attention: head_sink (learned sink logits) is not built");
    if (p->softcap != 0.0f && level != KV_CPU_REF)
        KV_FAIL(err, UNSUPPORTED, "attention: softcap=%g is built at the reference level only (KVIST_CPU=ref)", (double)p->softcap);
    if (!p->n_kv || !p->n_q || p->n_q % p->n_kv) KV_FAIL(err, UNSUPPORTED, "attention: %u query heads do not divide over %u KV heads", p->n_q, p->n_kv);
    if (!p->dk || !p->dv || p->dk > 256 || p->dv > 256) KV_FAIL(err, UNSUPPORTED, "attention: head dimensions %u (K), %u (V) exceed 256", p->dk, p->dv);
    return KVIST_OK;
}

/* Hands out 64-byte aligned pieces of one block; with base NULL only adds up. */
typedef struct { uint8_t *base; size_t used; } carver;
static void *carve(carver *c, size_t n, size_t size)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (n * size + 63) & ~(size_t)63;
    return p;
}

/* q_stride: a multiple of 32 with 16 floats to spare, so that pairs of vectors can be read. */
static void carve_work(carver *c, const kv_exec_params *p, const kv_attn_scratch *s, kv_attn_work *w)
{
    uint32_t slots = w->slots, d = w->d, wide = slots > d ? slots : d, rows = s->rows > p->max_rows ? s->rows : p->max_rows;
    w->scores = carve(c, (size_t)KV_ATTN_QBLOCK * KV_ATTN_RUN * slots, 4);
    w->weighted = carve(c, (size_t)KV_ATTN_QBLOCK * slots, 4);
    w->token_a = carve(c, slots, 4);
    w->token_b = carve(c, slots, 4);
    w->group_a = carve(c, (size_t)KV_ATTN_RUN * w->group_stride, 4);
    w->group_b = carve(c, (size_t)KV_ATTN_RUN * w->group_stride, 4);
    w->isum = carve(c, (size_t)2 * KV_ATTN_QBLOCK * wide, 4);
    w->wide = carve(c, (size_t)2 * KV_ATTN_QBLOCK * (w->codes_stride + 64) + 64 * (size_t)d, 1);
    w->codes = carve(c, (size_t)2 * KV_ATTN_QBLOCK * w->codes_stride, 1);
    w->k_scale = carve(c, d, 4);
    w->k_mid = carve(c, d, 4);
    w->k_levels = carve(c, d, 4);
    w->v_scale = carve(c, d, 4);
    w->v_mid = carve(c, d, 4);
    w->qs = carve(c, (size_t)KV_ATTN_RUN * KV_ATTN_QBLOCK * ((d + 63u) & ~63u), 4);
    w->kt = carve(c, (size_t)d * 64, 4);
    w->v = carve(c, (size_t)d * 64, 4);
    w->s = carve(c, 6 * 64, 4);
    if (s->tiles) {
        w->keys = (kv_tile_codes){carve(c, (size_t)d / 2 * 64, 4), carve(c, 64, 4), carve(c, (size_t)32 * d, 4), carve(c, 64, 4)};
        w->tile.q = carve(c, (size_t)s->rows * d / 2, 4);
        w->tile.q_step = carve(c, s->rows, 4);
        w->tile.o = carve(c, (size_t)s->rows * d, 4);
        w->tile.s = carve(c, 64 * KV_TILE_BLOCK, 4);
        w->codes_of = carve(c, rows, sizeof *w->codes_of);
        w->row_step = carve(c, rows, 4);
    }
    if (p->precise == 2 || s->tiles) {
        w->page_k = carve(c, (size_t)slots * d, 4);
        w->page_v = carve(c, (size_t)slots * d, 4);
    }
    w->q = carve(c, (size_t)(s->tiles ? p->max_heads : s->rows) * s->q_stride, 4);
    if (!s->tiles) w->o = carve(c, (size_t)s->rows * s->o_stride, 4);
    w->m = w->tile.m = carve(c, s->rows, 4);
    w->l = w->tile.l = carve(c, s->rows, 4);
    w->lo = w->tile.lo = carve(c, rows + 16, 1);
    w->hi = w->tile.hi = carve(c, rows + 16, 1);
    w->use = carve(c, rows, 1);
    w->ptr = carve(c, rows, sizeof *w->ptr);
    w->row_lse = carve(c, rows, 4);
    w->row_sum = carve(c, rows, 4);
    w->rows = carve(c, rows, 4);
}

static void carve_all(carver *c, const kv_cpu_exec *ex, kv_attn_scratch *s)
{
    const kv_exec_params *p = &ex->params;
    s->work = carve(c, s->n_threads, sizeof *s->work);
    const bool vbmi = kv_cpu_has_vbmi_gfni();
    kv_attn_work none;
    for (uint32_t i = 0; i < s->n_threads; i++) {
        kv_attn_work *w = s->work ? &s->work[i] : &none;
        memset(w, 0, sizeof *w);
        uint32_t most = (uint32_t)(p->page_bytes / 8 < KV_PAGE_TOKENS_MAX ? p->page_bytes / 8 : KV_PAGE_TOKENS_MAX); /* a token takes 8 bytes at least */
        w->slots = kv_pad16(most < 16 ? 16 : most);
        w->d = kv_pad16(p->max_head_dim);
        w->codes_stride = ((w->slots > w->d ? w->slots : w->d) + 63u) & ~63u;
        w->group_stride = (uint32_t)p->page_bytes / 8 + 16; /* 4 bytes of a scale and a minimum go with 4 of codes at least */
        w->vbmi = vbmi;
        carve_work(c, p, s, w);
    }
    if (s->tiles) {
        s->q_codes = carve(c, (size_t)p->max_rows * p->max_heads * kv_pad16(p->max_head_dim), 2);
        s->q_step = carve(c, (size_t)p->max_rows * p->max_heads, 4);
    }
    s->layouts = carve(c, KV_ATTN_LAYOUT_SETS, sizeof *s->layouts);
    s->items = carve(c, s->cap_items, sizeof *s->items);
    s->part_m = carve(c, s->cap_rows, 4);
    s->part_l = carve(c, s->cap_rows, 4);
    s->part_o = carve(c, (size_t)s->cap_rows * s->o_stride, 4);
    s->run_m = carve(c, p->max_heads, 4);
    s->run_l = carve(c, p->max_heads, 4);
    s->run_o = carve(c, (size_t)p->max_heads * s->o_stride, 4);
}

kv_status kv_attn_exec_init(kv_cpu_exec *ex, kv_error *err)
{
    const kv_exec_params *p = &ex->params;
    kv_attn_scratch *s = kv_calloc(1, sizeof *s);
    if (!s) KV_FAIL(err, MEMORY, "attention scratch");
    s->n_threads = ex->threads ? kv_threads_count(ex->threads) : 1;
    if (p->precise == 0) s->tiles = kv_tile_ops_get(ex->be->level);
    uint32_t item_rows = s->tiles ? KV_ATTN_ITEM_BYTES / (6 * kv_pad16(p->max_head_dim)) : KV_ATTN_ITEM_ROWS;
    s->rows = ((p->max_heads > item_rows ? p->max_heads : item_rows) + KV_TILE_BLOCK - 1) / KV_TILE_BLOCK * KV_TILE_BLOCK;
    s->o_stride = kv_pad16(p->max_head_dim);
    s->q_stride = (p->max_head_dim + 31u) & ~31u;
    /* One row at full depth in 16-token pages with all heads, in one wave; more rows or shorter pages take more waves. */
    uint32_t chunks = p->max_ctx / (16 * KV_ATTN_CHUNK) + 2;
    s->cap_rows = chunks * p->max_heads;
    s->cap_items = s->cap_rows;
    carver count = {0};
    carve_all(&count, ex, s);
    s->memory = kv_malloc64(count.used);
    if (!s->memory) {
        kv_free(s);
        KV_FAIL(err, MEMORY, "attention scratch of %zu bytes", count.used);
    }
    memset(s->memory, 0, count.used);
    carver real = {s->memory, 0};
    carve_all(&real, ex, s);
    ex->attn_scratch = s;
    return KVIST_OK;
}

void kv_attn_exec_free(kv_cpu_exec *ex)
{
    kv_attn_scratch *s = ex->attn_scratch;
    if (!s) return;
    kv_free64(s->memory);
    kv_free(s);
    ex->attn_scratch = NULL;
}

const kv_attn_layouts *kv_attn_layouts_for(kv_cpu_exec *ex, uint32_t dk, uint32_t dv)
{
    kv_attn_scratch *s = kv_attn_scratch_of(ex);
    for (uint32_t i = 0; i < s->n_layouts; i++)
        if (s->layouts[i].dk == dk && s->layouts[i].dv == dv) return &s->layouts[i];
    kv_attn_layouts *set = &s->layouts[s->next_layout];
    s->next_layout = (s->next_layout + 1) % KV_ATTN_LAYOUT_SETS;
    if (s->n_layouts < KV_ATTN_LAYOUT_SETS) s->n_layouts++;
    set->dk = dk;
    set->dv = dv;
    for (uint32_t pair = 0; pair < 256; pair++)
        if (kv_page_layout_get((uint8_t)pair, dk, dv, ex->params.page_bytes, &set->by_pair[pair], NULL) != KVIST_OK) set->by_pair[pair].kind = 255;
    return set;
}

/* precise == 2: the page is decoded to f32 and folded as key tiles of 64 slots. */
static void fold_decoded(const struct kv_attn_kernels *k, const kv_attn_page *p, kv_attn_work *w)
{
    const kv_page_layout *L = p->layout;
    kv_page_entry e = p->entry ? *p->entry : (kv_page_entry){0};
    e.n = (uint16_t)p->hi;
    kv_decode_ref(L, p->data, &e, w->page_k, w->page_v);
    for (uint32_t q = 0; p->tap && q < p->nq; q++) {
        for (uint32_t t = p->lo; t < p->hi; t++) {
            w->scores[t] = 0.0f;
            for (uint32_t c = 0; c < L->dk; c++) w->scores[t] += p->q[q * p->q_stride + c] * w->page_k[t * L->dk + c];
        }
        k->tap(p, 1, w->scores, 0, 0, q, 1);
    }
    for (uint32_t t0 = p->lo; t0 < p->hi; t0 += 64) {
        uint32_t n = p->hi - t0 < 64 ? p->hi - t0 : 64;
        memset(w->kt, 0, sizeof(float) * 64 * L->dk);
        memset(w->v, 0, sizeof(float) * 64 * L->dvp);
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t c = 0; c < L->dk; c++) w->kt[c * 64 + t] = w->page_k[(t0 + t) * L->dk + c];
            memcpy(w->v + (size_t)t * L->dvp, w->page_v + (t0 + t) * L->dv, sizeof(float) * L->dv);
        }
        uint8_t lo[KV_ATTN_QBLOCK] = {0}, hi[KV_ATTN_QBLOCK];
        memset(hi, (int)n, sizeof hi);
        for (uint32_t q = 0; q < p->nq; q += KV_ATTN_QBLOCK) {
            kv_attn_tile t = {.kt = w->kt, .v = w->v, .dk = L->dk, .dvp = L->dvp, .n = n, .q = p->q + q * p->q_stride, .q_stride = p->q_stride,
                              .nq = p->nq - q < KV_ATTN_QBLOCK ? p->nq - q : KV_ATTN_QBLOCK, .m = p->m + q, .l = p->l + q,
                              .o = p->o + q * p->o_stride, .o_stride = p->o_stride, .lo = lo, .hi = hi, .s = w->s, .softcap = p->softcap};
            k->tile(&t);
        }
    }
}

void kv_attn_fold_pages(const kv_cpu_exec *ex, const kv_attn_page *p, uint32_t n, kv_attn_work *w)
{
    const struct kv_attn_kernels *k = ex->be->attn;
    assert(n >= 1 && n <= KV_ATTN_RUN && p->layout->kind < 4 && p->layout->tokens <= w->slots);
    if (ex->params.precise == 2 && p->layout->kind != KV_KIND_F16)
        for (uint32_t i = 0; i < n; i++) fold_decoded(k, p + i, w);
    else k->page[p->layout->kind](p, n, w);
}

void kv_attn_fold_page(const kv_cpu_exec *ex, kv_attn_page *p, kv_attn_work *w)
{
    if (p->lo < p->hi) kv_attn_fold_pages(ex, p, 1, w);
}

void kv_attn_load_query(const struct kv_attn_kernels *k, const float *x, uint32_t dk, float scale, float *y, size_t stride)
{
    k->scale(x, dk, scale * KV_ATTN_LOG2E, y);
    if (stride > dk) memset(y + dk, 0, (stride - dk) * sizeof *y);
}

float kv_attn_finish(float m, float l, const float *o, uint32_t dv, float *out)
{
    if (m == -INFINITY || l == 0.0f) {
        memset(out, 0, dv * sizeof *out);
        return -INFINITY;
    }
    float inv = 1.0f / l;
    for (uint32_t c = 0; c < dv; c++) out[c] = o[c] * inv;
    return m * KV_ATTN_LN2 + logf(l);
}
