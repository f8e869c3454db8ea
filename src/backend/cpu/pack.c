/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds packed weights from a tensor, panel by panel in parallel, and reads them back plainly.
 * Owns: kv_weight's memory, which lies in regions of the backend. Must not know: the block formats of the file (pack_types.c), kernels.
 * Invariant: unpacking gives the bits the file's type decodes to; padding outputs of the last panel have scale 0.
 */
#include <assert.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/pack.h"
#include "base/alloc.h"
#include "base/half.h"
#include "base/os.h"

static size_t align64(size_t x) { return (x + 63) & ~(size_t)63; }

static bool type_kinds(uint32_t type, kv_weight *w) {
    switch (type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        w->code = C;                                                                                                   \
        w->scale = S;                                                                                                  \
        w->zshift = Z;                                                                                                 \
        return true;
        KV_PACK_TYPES(X)
#undef X
    case KV_TYPE_F32:
    case KV_TYPE_F16:
    case KV_TYPE_BF16:
        w->code = KV_CODE_DENSE;
        w->scale = KV_SC_NONE;
        w->zshift = -1;
        return true;
    default:
        return false;
    }
}

static size_t dense_size(uint32_t type) { return type == KV_TYPE_F32 ? 4 : 2; }

/* Plane offsets and panel size from type and k. */
static void lay_out(kv_weight *w) {
    if (w->code == KV_CODE_DENSE) {
        w->panel_bytes = align64((size_t)w->k * KV_PANEL * dense_size(w->type));
        return;
    }
    size_t nb = w->nb, super = kv_scale_is_k(w->scale) ? nb / 8 : nb, at = nb * kv_code_lo_bytes(w->code);
    w->off_hi = (uint32_t)at;
    at += nb * kv_code_hi_bytes(w->code);
    w->off_d = (uint32_t)at;
    at = align64(at + super * 2 * KV_PANEL);
    w->off_m = (uint32_t)at;
    if (kv_scale_has_min(w->scale)) at = align64(at + super * 2 * KV_PANEL);
    w->off_sc = (uint32_t)at;
    if (kv_scale_is_k(w->scale)) at = align64(at + nb * (kv_scale_is_g16(w->scale) ? 2 : 1) * KV_PANEL);
    w->off_scm = (uint32_t)at;
    if (w->scale == KV_SC_KM) at = align64(at + nb * KV_PANEL);
    w->panel_bytes = at;
}

/* ---- writing */

/* One block of a panel as it is gathered: quad j of output o, and the scales. */
typedef struct pack_block {
    uint32_t quad[8][KV_PANEL];
    uint16_t d[KV_PANEL], m[KV_PANEL];
    uint8_t sc[2][KV_PANEL], scm[KV_PANEL];
} pack_block;

static void gather_block(const kv_weight *w, const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t b,
                         pack_block *p) {
    for (uint32_t o = 0; o < n; o++) {
        kv_pack_row r;
        uint32_t q[8];
        kv_pack_decode(w->type, rows + o * row_bytes, b, &r);
        memcpy(q, r.codes, sizeof q);
        for (uint32_t j = 0; j < 8; j++) p->quad[j][o] = q[j];
        p->d[o] = r.d;
        p->m[o] = r.m;
        p->sc[0][o] = r.sc[0];
        p->sc[1][o] = r.sc[1];
        p->scm[o] = r.scm;
    }
}

/* dst[o] = the masked bits of `per` quads from quad j0, each `step` bits above the one before. */
static void put_plane(uint8_t *dst, const pack_block *p, uint32_t j0, uint32_t per, uint32_t step, uint32_t shift,
                      uint32_t mask) {
    uint32_t line[KV_PANEL];
    for (uint32_t o = 0; o < KV_PANEL; o++) line[o] = (p->quad[j0][o] >> shift) & mask;
    for (uint32_t j = 1; j < per; j++)
        for (uint32_t o = 0; o < KV_PANEL; o++) line[o] |= ((p->quad[j0 + j][o] >> shift) & mask) << (step * j);
    memcpy(dst, line, sizeof line);
}

static void put_codes(const kv_weight *w, uint8_t *panel, uint32_t b, const pack_block *p) {
    const uint32_t all = 0xffffffffu, nibble = 0x0f0f0f0fu, pair = 0x03030303u, bit = 0x01010101u;
    uint8_t *lo = panel + (size_t)b * kv_code_lo_bytes(w->code);
    uint8_t *hi = panel + w->off_hi + (size_t)b * kv_code_hi_bytes(w->code);
    switch (w->code) {
    case KV_CODE_8:
        for (uint32_t j = 0; j < 8; j++) put_plane(lo + 64 * j, p, j, 1, 0, 0, all);
        break;
    case KV_CODE_2:
    case KV_CODE_3:
        for (uint32_t j = 0; j < 8; j += 4) put_plane(lo + 16 * j, p, j, 4, 2, 0, pair);
        if (w->code == KV_CODE_3) put_plane(hi, p, 0, 8, 1, 2, bit);
        break;
    default:
        for (uint32_t j = 0; j < 8; j += 2) put_plane(lo + 32 * j, p, j, 2, 4, 0, nibble);
        if (w->code == KV_CODE_5) put_plane(hi, p, 0, 8, 1, 4, bit);
        if (w->code == KV_CODE_6)
            for (uint32_t j = 0; j < 8; j += 4) put_plane(hi + 16 * j, p, j, 4, 2, 4, pair);
    }
}

static void put_scales(const kv_weight *w, uint8_t *panel, uint32_t b, const pack_block *p) {
    bool k = kv_scale_is_k(w->scale);
    size_t at = (size_t)(k ? b / 8 : b) * KV_PANEL * 2, one = (size_t)b * KV_PANEL;
    memcpy(panel + w->off_d + at, p->d, sizeof p->d);
    if (kv_scale_has_min(w->scale)) memcpy(panel + w->off_m + at, p->m, sizeof p->m);
    if (kv_scale_is_g16(w->scale))
        memcpy(panel + w->off_sc + 2 * one, p->sc, sizeof p->sc);
    else if (k)
        memcpy(panel + w->off_sc + one, p->sc[0], KV_PANEL);
    if (w->scale == KV_SC_KM) memcpy(panel + w->off_scm + one, p->scm, KV_PANEL);
}

typedef struct pack_job {
    kv_weight *w;
    const uint8_t *src;
    size_t row_bytes;
} pack_job;

static void pack_dense(const pack_job *job, uint8_t *panel, const uint8_t *rows, uint32_t n) {
    const kv_weight *w = job->w;
    size_t es = dense_size(w->type);
    if (n < KV_PANEL) memset(panel, 0, w->panel_bytes);
    for (size_t k = 0; k < w->k; k++)
        for (uint32_t o = 0; o < n; o++) memcpy(panel + (k * KV_PANEL + o) * es, rows + o * job->row_bytes + k * es, es);
}

/* Planes end where they end: the few bytes up to the next multiple of 64 stay as the memory came, zeros. */
static void pack_panel(void *ctx, uint32_t p, uint32_t thread) {
    const pack_job *job = ctx;
    kv_weight *w = job->w;
    uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
    const uint8_t *rows = job->src + (size_t)p * KV_PANEL * job->row_bytes;
    uint32_t n = w->n - p * KV_PANEL < KV_PANEL ? w->n - p * KV_PANEL : KV_PANEL;
    (void)thread;
    if (w->code == KV_CODE_DENSE) {
        pack_dense(job, panel, rows, n);
        return;
    }
    pack_block block;
    memset(&block, 0, sizeof block);
    for (uint32_t b = 0; b < w->nb; b++) {
        gather_block(w, rows, job->row_bytes, n, b, &block);
        put_codes(w, panel, b, &block);
        put_scales(w, panel, b, &block);
    }
}

/* ---- where weights lie */

/* Address space a region reserves: memory is taken as it is written, in huge pages where the system has them, so that a
 * step that streams all weights misses the TLB once in 2 MiB. */
#define REGION_BYTES ((size_t)256 << 20)

struct kv_weight_region {
    kv_weight_region *next;
    void *data;
    size_t size, used;
};

static kv_status take_region(kv_cpu_backend *be, size_t bytes, uint8_t **out, kv_error *err) {
    kv_weight_region *r = be->weights;
    if (!r || r->size - r->used < bytes) {
        r = kv_calloc(1, sizeof *r);
        if (!r) KV_FAIL(err, MEMORY, "weights");
        r->size = bytes > REGION_BYTES ? bytes : REGION_BYTES;
        kv_status st = kv_os_reserve(r->size, true, &r->data, err);
        if (st) {
            kv_free(r);
            return st;
        }
        r->next = be->weights;
        be->weights = r;
    }
    *out = (uint8_t *)r->data + r->used;
    r->used += align64(bytes);
    if (r->used > r->size) r->used = r->size;
    return KVIST_OK;
}

void kv_cpu_weights_unmap(kv_cpu_backend *be) {
    for (kv_weight_region *r = be->weights, *next; r; r = next) {
        next = r->next;
        kv_os_unreserve(r->data, r->size);
        kv_free(r);
    }
    be->weights = NULL;
}

kv_status kv_cpu_weight_create(kv_backend *be, const kv_tensor *src, kv_threads *threads, kv_weight **out,
                               kv_error *err) {
    const char *name = src->name ? src->name : "?";
    const kv_type_info *ti = kv_type_get(src->type);
    kv_weight tmp = {.type = src->type};
    *out = NULL;
    if (!ti || !type_kinds(src->type, &tmp))
        KV_FAIL(err, UNSUPPORTED, "tensor '%s': type %u has no packed form", name, src->type);
    if (src->ne[2] > 1 || src->ne[3] > 1) KV_FAIL(err, UNSUPPORTED, "tensor '%s': more than two dimensions", name);
    uint64_t k = src->ne[0], n = src->n_dims < 2 ? 1 : src->ne[1];
    if (k == 0 || n == 0 || k > (1u << 24) || n > (1u << 28) || k % ti->block)
        KV_FAIL(err, FORMAT, "tensor '%s': %llu x %llu does not fit type %s", name, (unsigned long long)k,
                (unsigned long long)n, ti->name);
    size_t row_bytes = (size_t)(k / ti->block) * ti->bytes;
    if (src->bytes / row_bytes < n)
        KV_FAIL(err, FORMAT, "tensor '%s': %llu bytes are too few", name, (unsigned long long)src->bytes);
    tmp.n = (uint32_t)n;
    tmp.k = (uint32_t)k;
    tmp.nb = tmp.code == KV_CODE_DENSE ? 0 : (uint32_t)(k / KV_PACK_BLOCK);
    tmp.panels = (uint32_t)((n + KV_PANEL - 1) / KV_PANEL);
    lay_out(&tmp);
    tmp.bytes = (uint64_t)tmp.panels * tmp.panel_bytes;
    kv_weight *w = kv_malloc(sizeof *w);
    if (!w) KV_FAIL(err, MEMORY, "tensor '%s'", name);
    *w = tmp;
    if (be) {
        kv_status st = take_region((kv_cpu_backend *)be, (size_t)w->bytes, &w->data, err);
        if (st) {
            kv_free(w);
            return st;
        }
    } else if ((w->data = kv_malloc64((size_t)w->bytes))) {
        memset(w->data, 0, (size_t)w->bytes);
    } else {
        kv_free(w);
        KV_FAIL(err, MEMORY, "tensor '%s': %llu bytes", name, (unsigned long long)tmp.bytes);
    }
    pack_job job = {w, src->data, row_bytes};
    kv_threads_run(threads, pack_panel, &job, w->panels);
    *out = w;
    return KVIST_OK;
}

void kv_cpu_weight_free(kv_backend *be, kv_weight *w) {
    if (!w) return;
    if (!be) kv_free64(w->data);
    kv_free(w);
}

uint64_t kv_cpu_weight_bytes(const kv_weight *w) { return w->bytes; }

/* ---- plain reading */

static uint32_t word_at(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static float f16_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return kv_f16_f32(h);
}

uint32_t kv_pack_quad(const kv_weight *w, const uint8_t *panel, uint32_t b, uint32_t j, uint32_t o) {
    const uint8_t *lo = panel + (size_t)b * kv_code_lo_bytes(w->code) + 4 * o;
    const uint8_t *hi = panel + w->off_hi + (size_t)b * kv_code_hi_bytes(w->code) + 4 * o;
    uint32_t q;
    switch (w->code) {
    case KV_CODE_8:
        return word_at(lo + 64 * j);
    case KV_CODE_2:
    case KV_CODE_3:
        q = (word_at(lo + 64 * (j >> 2)) >> (2 * (j & 3))) & 0x03030303u;
        return w->code == KV_CODE_2 ? q : q | ((word_at(hi) >> j) & 0x01010101u) << 2;
    default:
        break;
    }
    q = (word_at(lo + 64 * (j >> 1)) >> (4 * (j & 1))) & 0x0f0f0f0fu;
    if (w->code == KV_CODE_5) q |= ((word_at(hi) >> j) & 0x01010101u) << 4;
    if (w->code == KV_CODE_6) q |= ((word_at(hi + 64 * (j >> 2)) >> (2 * (j & 3))) & 0x03030303u) << 4;
    if (w->code == KV_CODE_4T)
        q = (uint32_t)kv_pack_iq4[q & 15] | (uint32_t)kv_pack_iq4[(q >> 8) & 15] << 8 |
            (uint32_t)kv_pack_iq4[(q >> 16) & 15] << 16 | (uint32_t)kv_pack_iq4[q >> 24] << 24;
    return q;
}

void kv_pack_scale(const kv_weight *w, const uint8_t *panel, uint32_t b, uint32_t g, uint32_t o, float *s, float *m) {
    size_t at = ((size_t)(kv_scale_is_k(w->scale) ? b / 8 : b) * KV_PANEL + o) * 2;
    size_t group = (kv_scale_is_g16(w->scale) ? 2 * (size_t)b + g : b) * KV_PANEL + o;
    float d = f16_at(panel + w->off_d + at), dm = kv_scale_has_min(w->scale) ? f16_at(panel + w->off_m + at) : 0;
    *s = d;
    *m = dm;
    uint8_t sc = kv_scale_is_k(w->scale) ? panel[w->off_sc + group] : 0;
    switch (w->scale) {
    case KV_SC_K:
    case KV_SC_K16:
        *s = d * (float)(int8_t)sc;
        break;
    case KV_SC_KM:
        *s = d * (float)sc;
        *m = -(dm * (float)panel[w->off_scm + group]);
        break;
    case KV_SC_K16M:
        *s = d * (float)(sc & 15);
        *m = -(dm * (float)(sc >> 4));
        break;
    default:
        break;
    }
}

static void unpack_dense(const kv_weight *w, const uint8_t *panel, uint32_t lane, float *y) {
    for (size_t i = 0; i < w->k; i++) {
        const uint8_t *p = panel + (i * KV_PANEL + lane) * dense_size(w->type);
        uint16_t h;
        if (w->type == KV_TYPE_F32) {
            memcpy(&y[i], p, 4);
        } else {
            memcpy(&h, p, 2);
            y[i] = w->type == KV_TYPE_F16 ? kv_f16_f32(h) : kv_bf16_f32(h);
        }
    }
}

void kv_pack_unpack_row(const kv_weight *w, uint32_t o, float *y) {
    assert(o < w->n);
    const uint8_t *panel = w->data + (size_t)(o / KV_PANEL) * w->panel_bytes;
    uint32_t lane = o % KV_PANEL;
    if (w->code == KV_CODE_DENSE) {
        unpack_dense(w, panel, lane, y);
        return;
    }
    bool min = kv_scale_has_min(w->scale);
    int32_t zero = w->zshift >= 0 ? 1 << w->zshift : 0;
    float s = 0, m = 0;
    for (uint32_t b = 0; b < w->nb; b++)
        for (uint32_t j = 0; j < 8; j++) {
            if ((j & 3) == 0) kv_pack_scale(w, panel, b, j >> 2, lane, &s, &m);
            uint32_t q = kv_pack_quad(w, panel, b, j, lane);
            for (uint32_t i = 0; i < 4; i++, q >>= 8) {
                float v = s * (float)((int32_t)(q & 255u) - zero);
                *y++ = min ? v + m : v;
            }
        }
}
