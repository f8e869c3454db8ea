/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second implementation of docs/page-formats.md, naive on purpose: positions computed one part after the other from
 * the byte tables, one bit at a time, double precision. Shares nothing with src/policy but the structures it fills.
 */
#ifndef KV_TESTS_FORMAT_NAIVE_H
#define KV_TESTS_FORMAT_NAIVE_H

#include "policy/format.h"
#include "support/support.h"

#include <math.h>
#include <sys/mman.h>

static inline double naive_half(const uint8_t *p) {
    int h = p[0] | p[1] << 8, e = h >> 10 & 31, m = h & 1023;
    double x = e ? (1024 + m) * (double)(1ull << e) / 33554432.0 : m / 16777216.0; /* (1024 + m) 2^(e - 25), m 2^-24 */
    return h >> 15 ? -x : x;
}

/* The nearest f16 below or at (up: above or at) x, by trying all of them. */
static inline double naive_half_bound(double x, bool up) {
    double best = up ? 65504 : -65504;
    for (int h = 0; h < 65536; h++) {
        if ((h & 0x7c00) == 0x7c00) continue;
        uint8_t b[2] = {(uint8_t)h, (uint8_t)(h >> 8)};
        double v = naive_half(b);
        if (up ? v >= x && v < best : v <= x && v > best) best = v;
    }
    return best;
}

typedef struct naive_format {
    const char *name;
    int kind;
    double k_bits;
    int v_bits, group;
} naive_format;
static const naive_format naive_formats[] = {
    {"f16", 'f', 16, 16, 0},  {"q8", '8', 8, 8, 0},       {"q4", 'l', 4, 4, 0},   {"q3", 'l', 3, 3, 0},
    {"q2", 'l', 2.5, 2, 0},   {"q2s", 'l', 2, 2, 0},      {"q1", 'l', 1.5, 2, 0}, {"kivi4", 'g', 4, 4, 32},
    {"kivi2", 'g', 2, 2, 32}, {"minikv2", 'g', 2, 2, 16},
};
enum { NAIVE_FORMATS = 10 };

/* Where the parts begin, in the order of the byte tables. */
typedef struct naive_layout {
    int kind, P, dk, dv, dkp, dvp, B, kb, vb, g, gk, gv;
    long k, v, triples, ks, km, order, vs, vm, a, e0, end;
} naive_layout;

static inline naive_layout naive_place(int kf, int vf, int dk, int dv, int P) {
    naive_layout n = {.kind = naive_formats[kf].kind,
                      .P = P,
                      .dk = dk,
                      .dv = dv,
                      .dkp = (dk + 15) / 16 * 16,
                      .dvp = (dv + 15) / 16 * 16};
    n.vb = naive_formats[vf].v_bits;
    n.kb = (int)naive_formats[kf].k_bits;
    n.g = naive_formats[kf].group;
    long at = 0;
#define PART(field, bytes) n.field = at, at += (bytes)
    if (n.kind == 'f') {
        PART(k, 2L * n.dkp * P);
        PART(v, 2L * n.dvp * P);
    } else if (n.kind == '8') {
        PART(k, n.dkp * P);
        PART(v, n.dvp * P);
        PART(ks, 2 * n.dkp);
        PART(km, 2 * n.dkp);
        PART(vs, 2 * P);
        PART(vm, 2 * P);
    } else if (n.kind == 'l') {
        n.B = (int)(naive_formats[kf].k_bits * n.dkp / 8);
        PART(k, n.B * P);
        PART(v, n.vb * n.dvp * P / 8);
        PART(triples, 48);
        PART(ks, n.dkp);
        PART(km, n.dkp);
        PART(order, n.dkp);
        PART(vs, n.dvp);
        PART(vm, n.dvp);
        PART(a, P);
        PART(e0, 1);
    } else {
        n.gk = (P + n.g - 1) / n.g;
        n.gv = (dv + n.g - 1) / n.g;
        PART(k, n.kb * n.dkp * P / 8);
        PART(v, n.vb * n.dvp * P / 8);
        PART(ks, 2 * n.gk * n.dkp);
        PART(km, 2 * n.gk * n.dkp);
        PART(vs, 2 * P * n.gv);
        PART(vm, 2 * P * n.gv);
    }
#undef PART
    n.end = at;
    return n;
}

/* P by counting up from 8: the last multiple that fits. */
static inline naive_layout naive_fit_page(int kf, int vf, int dk, int dv, long page_bytes) {
    int step = naive_formats[kf].kind == '8' ? 4 : 8, best = 0;
    for (int P = step; P <= 1024; P += step)
        if (naive_place(kf, vf, dk, dv, P).end <= page_bytes) best = P;
    return naive_place(kf, vf, dk, dv, best);
}

static inline int naive_bit(const uint8_t *page, long bit) { return page[bit / 8] >> (bit % 8) & 1; }

static inline int naive_width(const kv_page_entry *e, int block) {
    return block % 2 ? e->k_widths[block / 2] / 16 : e->k_widths[block / 2] % 16;
}

/* K code of (rank, token), V code of (channel, token). */
static inline int naive_k_code(const naive_layout *n, const uint8_t *page, const kv_page_entry *e, int rank, int t) {
    long plane = n->k * 8;
    for (int b = 0; b < rank / 8; b++) plane += 8L * n->P * naive_width(e, b);
    int w = naive_width(e, rank / 8), code = 0, i = rank % 8;
    for (int p = 0; p < w; p++)
        code += naive_bit(page, plane + 64L * (t / 8 * w + p) + (i / 4) * 32 + (t % 8) * 4 + i % 4) << p;
    return code;
}
static inline int naive_v_code(const naive_layout *n, const uint8_t *page, int c, int t) {
    int code = 0;
    for (int p = 0; p < n->vb; p++) {
        long plane = n->v * 8 + 64L * ((t / 8 * (n->dvp / 8) + c / 8) * n->vb + p);
        code += naive_bit(page, plane + (t % 8 / 4) * 32 + (c % 8) * 4 + t % 4) << p;
    }
    return code;
}
static inline double naive_s(const naive_layout *n, const uint8_t *page, int triple, int u) {
    return u * naive_half(page + n->triples + 6 * triple) / 255;
}
static inline double naive_m(const naive_layout *n, const uint8_t *page, int triple, int u) {
    return naive_half(page + n->triples + 6 * triple + 2) + u * naive_half(page + n->triples + 6 * triple + 4);
}
static inline double naive_a(const naive_layout *n, const uint8_t *page, int t) {
    int u = page[n->a + t];
    return ldexp(1 + u % 16 / 16.0, (int8_t)page[n->e0] + u / 16);
}

/* k[n][dk], v[n][dv] in double. */
static inline void naive_decode(const naive_layout *n, const uint8_t *page, const kv_page_entry *e, double *k,
                                double *v) {
    for (int t = 0; t < e->n; t++) {
        for (int c = 0; c < n->dk; c++) {
            double *x = &k[t * n->dk + c];
            if (n->kind == 'f')
                *x = naive_half(page + n->k + 2 * (c * n->P + t));
            else if (n->kind == '8')
                *x = naive_half(page + n->km + 2 * c) + naive_half(page + n->ks + 2 * c) * page[n->k + c * n->P + t];
            else if (n->kind == 'g') {
                int code = 0;
                for (int p = 0; p < n->kb; p++)
                    code += naive_bit(page, 8 * n->k + ((long)c * n->P + t) * n->kb + p) << p;
                long i = 2 * (t / n->g * n->dkp + c);
                *x = naive_half(page + n->km + i) + naive_half(page + n->ks + i) * code;
            }
        }
        for (int c = 0; c < n->dv; c++) {
            double *x = &v[t * n->dv + c];
            if (n->kind == 'f')
                *x = naive_half(page + n->v + 2 * (t * n->dvp + c));
            else if (n->kind == '8')
                *x = naive_half(page + n->vm + 2 * t) + naive_half(page + n->vs + 2 * t) * page[n->v + t * n->dvp + c];
            else if (n->kind == 'g') {
                int code = 0;
                for (int p = 0; p < n->vb; p++)
                    code += naive_bit(page, 8 * n->v + ((long)t * n->dvp + c) * n->vb + p) << p;
                long i = 2 * (t * n->gv + c / n->g);
                *x = naive_half(page + n->vm + i) + naive_half(page + n->vs + i) * code;
            } else
                *x = naive_a(n, page, t) * (naive_m(n, page, 7, page[n->vm + c]) +
                                            naive_s(n, page, 7, page[n->vs + c]) * naive_v_code(n, page, c, t));
        }
        for (int i = 0; n->kind == 'l' && i < n->dkp; i++) {
            int w = naive_width(e, i / 8), c = page[n->order + i];
            if (c < n->dk)
                k[t * n->dk + c] = naive_m(n, page, w, page[n->km + i]) +
                                   (w ? naive_s(n, page, w, page[n->ks + i]) : 0) * naive_k_code(n, page, e, i, t);
        }
    }
}

/* `size` bytes that end at an unreadable page. Never freed: tests are short. */
static inline void *naive_guarded(size_t size) {
    size_t whole = (size + 4095) / 4096 * 4096;
    uint8_t *p = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + whole, 4096, PROT_NONE), 0);
    return p + whole - size;
}

#endif
