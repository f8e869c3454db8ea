/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels for AVX2 and FMA.
 * Owns: level 1. Must not know: threads.
 * vpmaddubsw adds pairs of u8 x s8 products in int16. With codes up to 2^b - 1 and |q| <= 127 a quad adds at most 2 *
 * 127 * (2^b - 1) to a lane: 8 quads of 4-bit codes (30480), 4 of 5 bits (31496) and 2 of 6 bits (32004) stay below
 * 2^15 before widening. Codes of 8 bits are taken as signed (code - 128, the zero point being 128): |w| <= 128 times
 * the activation with w's sign, one quad at most 32512. So every sum is exact, as in the reference.
 */
#if defined(__AVX2__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "backend/cpu/matmul.h"

KV_INLINE __m256i bcast32(const void *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}
KV_INLINE __m256 bcastf(const void *p) {
    float v;
    memcpy(&v, p, 4);
    return _mm256_set1_ps(v);
}
KV_INLINE __m256i load(const void *p) { return _mm256_loadu_si256(p); }
KV_INLINE __m256 f16x8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
KV_INLINE __m256i u8x8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
KV_INLINE __m256i i8x8(const uint8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)); }

/* Quads whose int16 sums can be widened together. */
#define WIDE(code)                                                                                                     \
    ((code) == KV_CODE_6 ? 2 : (code) == KV_CODE_5 ? 4 : (code) == KV_CODE_8 || (code) == KV_CODE_4T ? 1 : 8)
#define IS_SIGNED(code) ((code) == KV_CODE_8 || (code) == KV_CODE_4T)

/* ---- activations */

static void put(uint8_t *act, uint32_t offset, const void *word) { memcpy(act + offset, word, 4); }

static uint32_t max_bits(const float *x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_and_si256(load(x), mask);
    for (int i = 8; i < 32; i += 8) a = _mm256_max_epu32(a, _mm256_and_si256(load(x + i), mask));
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

static void quantize(const float *x, uint32_t k, uint32_t T, uint32_t r, uint8_t *act) {
    for (uint32_t b = 0; b < k / 32; b++, act += KV_ACT_BYTES(T), x += 32) {
        uint32_t top = max_bits(x);
        float amax, d = 0, id = 0;
        memcpy(&amax, &top, 4);
        if (top >= 0x7f800000u) {
            d = NAN;
        } else if (amax > KV_ACT_TINY) {
            d = amax / 127.0f;
            id = 127.0f / amax;
        }
        int32_t q[32], sum[2] = {0, 0};
        for (int i = 0; i < 32; i += 8) {
            __m256 v = id > 0 ? _mm256_loadu_ps(x + i) : _mm256_setzero_ps();
            _mm256_storeu_si256((void *)(q + i), _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(id))));
        }
        for (uint32_t i = 0; i < 32; i++) {
            sum[i / 16] += q[i];
            act[(i / 4) * 4 * T + 4 * r + i % 4] = (uint8_t)q[i];
        }
        int32_t n[3] = {-(sum[0] + sum[1]), -sum[0], -sum[1]};
        float f[4] = {d, d * (float)(sum[0] + sum[1]), d * (float)sum[0], d * (float)sum[1]};
        put(act, KV_ACT_D(T) + 4 * r, &f[0]);
        put(act, KV_ACT_DSUM(T) + 4 * r, &f[1]);
        put(act, KV_ACT_NSUM(T) + 4 * r, &n[0]);
        for (uint32_t g = 0; g < 2; g++) {
            put(act, KV_ACT_DSUM16(T) + 4 * (g * T + r), &f[2 + g]);
            put(act, KV_ACT_NSUM16(T) + 4 * (g * T + r), &n[1 + g]);
        }
    }
}

/* ---- codes and scales of one block, constant kinds; h: half of the panel (8 outputs) */

typedef struct planes {
    const uint8_t *lo, *hi, *d, *m, *sc, *scm;
} planes;

KV_INLINE planes planes_of(const kv_weight *w, uint32_t panel) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    return (planes){p, p + w->off_hi, p + w->off_d, p + w->off_m, p + w->off_sc, p + w->off_scm};
}

KV_INLINE __m256i shift_right(__m256i v, const int n) {
    return n >= 0 ? _mm256_srli_epi16(v, n >= 0 ? n : 0) : _mm256_slli_epi16(v, n >= 0 ? 0 : -n);
}

KV_INLINE __m256i quad(const int code, const uint8_t *lo, const uint8_t *hi, const int j, const int h) {
    const __m256i m4 = _mm256_set1_epi8(15);
    if (code == KV_CODE_8) return load(lo + 64 * j + 32 * h);
    if (code == KV_CODE_2 || code == KV_CODE_3) {
        __m256i q = _mm256_and_si256(shift_right(load(lo + 64 * (j >> 2) + 32 * h), 2 * (j & 3)), _mm256_set1_epi8(3));
        if (code == KV_CODE_2) return q;
        return _mm256_or_si256(q, _mm256_and_si256(shift_right(load(hi + 32 * h), j - 2), _mm256_set1_epi8(4)));
    }
    __m256i q = _mm256_and_si256(shift_right(load(lo + 64 * (j >> 1) + 32 * h), 4 * (j & 1)), m4);
    if (code == KV_CODE_5)
        return _mm256_or_si256(q, _mm256_and_si256(shift_right(load(hi + 32 * h), j - 4), _mm256_set1_epi8(16)));
    if (code == KV_CODE_6)
        return _mm256_or_si256(
            q, _mm256_and_si256(shift_right(load(hi + 64 * (j >> 2) + 32 * h), 2 * (j & 3) - 4), _mm256_set1_epi8(48)));
    if (code == KV_CODE_4T)
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)kv_pack_iq4)), q);
    return q;
}

KV_INLINE void scales(const int scale, const planes *p, uint32_t b, const int g, const int h, __m256 *s, __m256 *m) {
    size_t at = (size_t)(kv_scale_is_k(scale) ? b >> 3 : b) * 32 + 16 * (size_t)h;
    size_t group = (size_t)(kv_scale_is_g16(scale) ? 2 * b + (uint32_t)g : b) * 16 + 8 * (size_t)h;
    __m256 d = f16x8(p->d + at), dm = kv_scale_has_min(scale) ? f16x8(p->m + at) : _mm256_setzero_ps();
    const __m256 neg = _mm256_set1_ps(-0.0f);
    *s = d;
    *m = dm;
    if (scale == KV_SC_K || scale == KV_SC_K16) *s = _mm256_mul_ps(d, _mm256_cvtepi32_ps(i8x8(p->sc + group)));
    if (scale == KV_SC_KM) {
        *s = _mm256_mul_ps(d, _mm256_cvtepi32_ps(u8x8(p->sc + group)));
        *m = _mm256_xor_ps(_mm256_mul_ps(dm, _mm256_cvtepi32_ps(u8x8(p->scm + group))), neg);
    }
    if (scale == KV_SC_K16M) {
        __m256i sc = u8x8(p->sc + group);
        *s = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_and_si256(sc, _mm256_set1_epi32(15))));
        *m = _mm256_xor_ps(_mm256_mul_ps(dm, _mm256_cvtepi32_ps(_mm256_srli_epi32(sc, 4))), neg);
    }
}

KV_INLINE void unpack_body(const int code, const int scale, const kv_weight *w, uint32_t panel, uint32_t b0,
                           uint32_t nb, uint8_t *rec, size_t stride) {
    const planes p = planes_of(w, panel);
    const int groups = kv_scale_is_g16(scale) ? 2 : 1;
    for (uint32_t b = b0; b < b0 + nb; b++, rec += stride) {
        const uint8_t *lo = p.lo + (size_t)b * kv_code_lo_bytes(code), *hi = p.hi + (size_t)b * kv_code_hi_bytes(code);
        KV_UNROLL
        for (int j = 0; j < 8; j++)
            for (int h = 0; h < 2; h++) _mm256_storeu_si256((void *)(rec + 64 * j + 32 * h), quad(code, lo, hi, j, h));
        KV_UNROLL
        for (int g = 0; g < groups; g++)
            for (int h = 0; h < 2; h++) {
                __m256 s, m;
                scales(scale, &p, b, g, h, &s, &m);
                _mm256_storeu_ps((void *)(rec + KV_REC_S + 64 * g + 32 * h), s);
                if (kv_scale_has_min(scale)) _mm256_storeu_ps((void *)(rec + KV_REC_M + 64 * g + 32 * h), m);
            }
    }
}

static void unpack(const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    switch (w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        unpack_body(C, S, w, panel, b0, nb, rec, stride);                                                              \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}

/* ---- integer products */

/* int16 partial sums of one quad of eight outputs. */
KV_INLINE __m256i products(const int code, __m256i w, __m256i a) {
    if (!IS_SIGNED(code)) return _mm256_maddubs_epi16(w, a);
    __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(a, s));
}

/* Writes acc[h] of one panel to y + panel lanes. */
KV_INLINE void finish(const kv_matmul_out *out, uint32_t panel, size_t row, __m256 a0, __m256 a1) {
    uint32_t lanes = kv_mm_lanes(out->w, panel);
    float *y = out->y + row * out->y_stride + (size_t)panel * KV_PANEL, v[KV_PANEL];
    const float *bias = out->bias ? out->bias + (size_t)panel * KV_PANEL : NULL;
    if (lanes == KV_PANEL) {
        if (bias) {
            a0 = _mm256_add_ps(a0, _mm256_loadu_ps(bias));
            a1 = _mm256_add_ps(a1, _mm256_loadu_ps(bias + 8));
        }
        if (out->accumulate) {
            a0 = _mm256_add_ps(a0, _mm256_loadu_ps(y));
            a1 = _mm256_add_ps(a1, _mm256_loadu_ps(y + 8));
        }
        _mm256_storeu_ps(y, a0);
        _mm256_storeu_ps(y + 8, a1);
        return;
    }
    _mm256_storeu_ps(v, a0);
    _mm256_storeu_ps(v + 8, a1);
    for (uint32_t o = 0; o < lanes; o++) {
        float f = bias ? v[o] + bias[o] : v[o];
        y[o] = out->accumulate ? f + y[o] : f;
    }
}

/* One panel (p of the pair) x R rows, rows first .. first + R of a tile of 6. */
KV_INLINE void panel_body(const int code, const int scale, const int zshift, const kv_mm_tile *t, const uint8_t *act,
                          uint32_t row, uint32_t in, int p, const int R) {
    enum { T = KV_TILE_ROWS, MAX = 3 };
    const bool g16 = kv_scale_is_g16(scale), min = kv_scale_has_min(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups, wide = WIDE(code) < quads ? WIDE(code) : quads;
    const uint8_t *rec = t->rec + (size_t)p * KV_REC_BYTES;
    float *carry = t->acc + (size_t)row * 32 + 16 * p;
    __m256 acc[MAX][2];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++)
            acc[r][h] = t->first ? _mm256_setzero_ps() : _mm256_loadu_ps(carry + 32 * r + 8 * h);
    act += 4 * in;
    for (uint32_t b = 0; b < t->nb; b++, rec += 2 * KV_REC_BYTES, act += KV_ACT_BYTES(T)) {
        for (int g = 0; g < groups; g++) {
            const uint8_t *nsum = act + (g16 ? KV_ACT_NSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            __m256i sum[MAX][2];
            for (int r = 0; r < R; r++)
                sum[r][0] = sum[r][1] = zshift >= 0 && !IS_SIGNED(code)
                                            ? _mm256_slli_epi32(bcast32(nsum + 4 * r), zshift >= 0 ? zshift : 0)
                                            : _mm256_setzero_si256();
            for (int j = 0; j < quads; j += wide)
                for (int h = 0; h < 2; h++)
                    for (int r = 0; r < R; r++) {
                        __m256i s = _mm256_setzero_si256();
                        KV_UNROLL
                        for (int i = 0; i < wide; i++) {
                            const int q = quads * g + j + i;
                            s = _mm256_add_epi16(
                                s, products(code, load(rec + 64 * q + 32 * h), bcast32(act + 4 * T * q + 4 * r)));
                        }
                        sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
                    }
            for (int h = 0; h < 2; h++) {
                __m256 s = _mm256_loadu_ps((const void *)(rec + KV_REC_S + 64 * g + 32 * h));
                for (int r = 0; r < R; r++)
                    acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]),
                                                _mm256_mul_ps(s, bcastf(act + KV_ACT_D(T) + 4 * r)), acc[r][h]);
                if (!min) continue;
                __m256 m = _mm256_loadu_ps((const void *)(rec + KV_REC_M + 64 * g + 32 * h));
                for (int r = 0; r < R; r++) acc[r][h] = _mm256_fmadd_ps(m, bcastf(dsum + 4 * r), acc[r][h]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        if (t->last) {
            finish(t->out, t->panel + (uint32_t)p, t->row0 + row + (uint32_t)r, acc[r][0], acc[r][1]);
        } else {
            _mm256_storeu_ps(carry + 32 * r, acc[r][0]);
            _mm256_storeu_ps(carry + 32 * r + 8, acc[r][1]);
        }
    }
}

#define X(TY, C, S, Z)                                                                                                 \
    static void tile_##TY(const kv_mm_tile *t) {                                                                       \
        for (int p = 0; p < 2 && kv_mm_lanes(t->out->w, t->panel + (uint32_t)p); p++)                                  \
            for (uint32_t r = 0, n; r < t->rows; r += n) {                                                             \
                const uint8_t *act = t->act + r / KV_TILE_ROWS * t->act_stride;                                        \
                n = t->rows - r < 3 ? 1 : 3;                                                                           \
                if (n == 3)                                                                                            \
                    panel_body(C, S, Z, t, act, r, r % KV_TILE_ROWS, p, 3);                                            \
                else                                                                                                   \
                    panel_body(C, S, Z, t, act, r, r % KV_TILE_ROWS, p, 1);                                            \
            }                                                                                                          \
    }
KV_PACK_TYPES(X)
#undef X

static void tile(const kv_mm_tile *t) {
    switch (t->out->w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        tile_##T(t);                                                                                                   \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}

/* ---- decode: one row, panels streamed from the packed form */

KV_INLINE void gemv_body(const int code, const int scale, const int zshift, const kv_matmul_out *out, uint32_t p0,
                         uint32_t p1, const uint8_t *act0) {
    const kv_weight *w = out->w;
    const bool g16 = kv_scale_is_g16(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups, wide = WIDE(code) < quads ? WIDE(code) : quads;
    for (uint32_t panel = p0; panel < p1; panel++) {
        const planes p = planes_of(w, panel);
        const uint8_t *act = act0, *lo = p.lo, *hi = p.hi;
        __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (uint32_t b = 0; b < w->nb;
             b++, act += KV_ACT_BYTES(1), lo += kv_code_lo_bytes(code), hi += kv_code_hi_bytes(code)) {
            KV_UNROLL
            for (int g = 0; g < groups; g++)
                for (int h = 0; h < 2; h++) {
                    __m256i sum = _mm256_setzero_si256();
                    if (zshift >= 0 && !IS_SIGNED(code))
                        sum = _mm256_slli_epi32(
                            bcast32(act + (g16 ? KV_ACT_NSUM16(1) + 4 * (uint32_t)g : KV_ACT_NSUM(1))),
                            zshift >= 0 ? zshift : 0);
                    KV_UNROLL
                    for (int j = 0; j < quads; j += wide) {
                        __m256i s = _mm256_setzero_si256();
                        KV_UNROLL
                        for (int i = 0; i < wide; i++) {
                            const int q = quads * g + j + i;
                            s = _mm256_add_epi16(s, products(code, quad(code, lo, hi, q, h), bcast32(act + 4 * q)));
                        }
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
                    }
                    __m256 s, m;
                    scales(scale, &p, b, g, h, &s, &m);
                    acc[h] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(s, bcastf(act + KV_ACT_D(1))), acc[h]);
                    if (kv_scale_has_min(scale))
                        acc[h] = _mm256_fmadd_ps(
                            m, bcastf(act + (g16 ? KV_ACT_DSUM16(1) + 4 * (uint32_t)g : KV_ACT_DSUM(1))), acc[h]);
                }
        }
        finish(out, panel, 0, acc[0], acc[1]);
    }
}

#define X(T, C, S, Z)                                                                                                  \
    static void gemv_##T(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act) {                     \
        gemv_body(C, S, Z, out, p0, p1, act);                                                                          \
    }
KV_PACK_TYPES(X)
#undef X

static void gemv(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    switch (out->w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        gemv_##T(out, p0, p1, act);                                                                                    \
        break;
        KV_PACK_TYPES(X)
#undef X
    default:
        break;
    }
}

/* ---- f32 */

KV_INLINE __m256 dense8(const uint32_t type, const uint8_t *panel, size_t i) {
    if (type == KV_TYPE_F32) return _mm256_loadu_ps((const void *)(panel + 4 * i));
    if (type == KV_TYPE_F16) return f16x8(panel + 2 * i);
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(panel + 2 * i))), 16));
}

static void unpack_f32(const kv_weight *w, uint32_t panel, uint32_t k0, uint32_t nk, float *y) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    if (w->code == KV_CODE_DENSE) {
        for (uint32_t k = 0; k < nk; k++)
            for (uint32_t h = 0; h < 2; h++)
                _mm256_storeu_ps(y + 32 * k + 8 * h, dense8(w->type, p, (size_t)(k0 + k) * KV_PANEL + 8 * h));
        return;
    }
    const bool min = kv_scale_has_min(w->scale), g16 = kv_scale_is_g16(w->scale);
    const __m256i zero = _mm256_set1_epi32(w->zshift >= 0 ? 1 << w->zshift : 0), byte = _mm256_set1_epi32(255);
    for (uint32_t k = 0; k < nk; k += 32) {
        _Alignas(64) uint8_t rec[KV_REC_BYTES] = {0};
        unpack(w, panel, (k0 + k) / 32, 1, rec, 0);
        for (uint32_t j = 0; j < 8; j++, y += 128)
            for (uint32_t h = 0; h < 2; h++) {
                const uint8_t *at = rec + 64 * (g16 ? j / 4 : 0) + 32 * h;
                __m256 s = _mm256_loadu_ps((const void *)(at + KV_REC_S)),
                       m = _mm256_loadu_ps((const void *)(at + KV_REC_M));
                __m256i q = load(rec + 64 * j + 32 * h);
                for (uint32_t i = 0; i < 4; i++, q = _mm256_srli_epi32(q, 8)) {
                    __m256 v = _mm256_mul_ps(s, _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(q, byte), zero)));
                    _mm256_storeu_ps(y + 32 * i + 8 * h, min ? _mm256_add_ps(v, m) : v);
                }
            }
    }
}

/* Both panels (four vectors) x R rows. */
KV_INLINE void f32_body(const kv_mm_tile *t, uint32_t row, const int R) {
    __m256 acc[3][4];
    float *carry = t->acc + (size_t)row * 32;
    const float *w = (const float *)(const void *)t->rec, *x = t->x + row * t->x_stride;
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 4; v++)
            acc[r][v] = t->first ? _mm256_setzero_ps() : _mm256_loadu_ps(carry + 32 * r + 8 * v);
    for (size_t k = 0; k < t->nb; k++)
        for (int v = 0; v < 4; v++) {
            __m256 wv = _mm256_loadu_ps(w + 32 * k + 8 * v);
            for (int r = 0; r < R; r++)
                acc[r][v] = _mm256_fmadd_ps(_mm256_set1_ps(x[(size_t)r * t->x_stride + k]), wv, acc[r][v]);
        }
    for (int r = 0; r < R; r++) {
        if (t->last) {
            finish(t->out, t->panel, t->row0 + row + (uint32_t)r, acc[r][0], acc[r][1]);
            if (kv_mm_lanes(t->out->w, t->panel + 1))
                finish(t->out, t->panel + 1, t->row0 + row + (uint32_t)r, acc[r][2], acc[r][3]);
        } else {
            for (int v = 0; v < 4; v++) _mm256_storeu_ps(carry + 32 * r + 8 * v, acc[r][v]);
        }
    }
}

static void tile_f32(const kv_mm_tile *t) {
    uint32_t r = 0;
    for (; r + 3 <= t->rows; r += 3) f32_body(t, r, 3);
    for (; r < t->rows; r++) f32_body(t, r, 1);
}

/* Two panels side by side: each output lane is one chain of FMAs. */
KV_INLINE void gemv_f32_body(const uint32_t type, const int P, const kv_matmul_out *out, uint32_t panel,
                             const float *x) {
    const kv_weight *w = out->w;
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    __m256 acc[2][2];
    for (int i = 0; i < P; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < w->k; k++)
        for (int i = 0; i < P; i++)
            for (size_t h = 0; h < 2; h++)
                acc[i][h] =
                    _mm256_fmadd_ps(_mm256_set1_ps(x[k]),
                                    dense8(type, p + (size_t)i * w->panel_bytes, k * KV_PANEL + 8 * h), acc[i][h]);
    for (int i = 0; i < P; i++) finish(out, panel + (uint32_t)i, 0, acc[i][0], acc[i][1]);
}

KV_INLINE void gemv_f32_type(const uint32_t type, const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    for (; p0 + 2 <= p1; p0 += 2) gemv_f32_body(type, 2, out, p0, x);
    if (p0 < p1) gemv_f32_body(type, 1, out, p0, x);
}

static void gemv_f32(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    switch (out->w->type) {
    case KV_TYPE_F32:
        gemv_f32_type(KV_TYPE_F32, out, p0, p1, x);
        break;
    case KV_TYPE_F16:
        gemv_f32_type(KV_TYPE_F16, out, p0, p1, x);
        break;
    default:
        gemv_f32_type(KV_TYPE_BF16, out, p0, p1, x);
        break;
    }
}

const struct kv_matmul_kernels kv_matmul_avx2 = {"avx2", 1,        quantize, unpack,  unpack_f32,
                                                 tile,   tile_f32, gemv,     gemv_f32};
#endif
typedef int kv_matmul_avx2_unit; /* a translation unit is never empty */
