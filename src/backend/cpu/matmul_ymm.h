/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels on 256-bit registers (AVX2 and FMA), the body of two files: matmul_avx2.c and matmul_avxvnni.c,
 * which define KV_YMM_TABLE, the name of the table, and whether the compiler may use vpdpbusd (__AVXVNNI__).
 * Owns: level 1. Must not know: threads.
 * Without vpdpbusd, vpmaddubsw adds pairs of u8 x s8 products in int16. With codes up to 2^b - 1 and |q| <= 127 a quad
 * adds at most 2 * 127 * (2^b - 1) to a lane: 8 quads of 4-bit codes (30480), 4 of 5 bits (31496) and 2 of 6 bits (32004)
 * stay below 2^15 before widening. Codes of 8 bits are taken as signed (code - 128, the zero point being 128): |w| <= 128
 * times the activation with w's sign, one quad at most 32512. So every sum is exact, as in the reference.
 */
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

/* Quads whose int16 sums can be widened together; codes taken as signed. */
#if defined(__AVXVNNI__)
#define WIDE(code) 8
#define IS_SIGNED(code) false
#else
#define WIDE(code)                                                                                                     \
    ((code) == KV_CODE_6 ? 2 : (code) == KV_CODE_5 ? 4 : (code) == KV_CODE_8 || (code) == KV_CODE_4T ? 1 : 8)
#define IS_SIGNED(code) ((code) == KV_CODE_8 || (code) == KV_CODE_4T)
#endif

/* ---- activations */

static void put(uint8_t *act, uint32_t offset, const void *word) { memcpy(act + offset, word, 4); }

/* The greatest |x| of a block as bits: NaN above inf above numbers. */
KV_INLINE uint32_t max_bits(const __m256 *x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_and_si256(_mm256_castps_si256(x[0]), mask);
    for (int i = 1; i < 4; i++) a = _mm256_max_epu32(a, _mm256_and_si256(_mm256_castps_si256(x[i]), mask));
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* Quantizes one block and leaves in x what its codes do not say. */
KV_INLINE void quantize_block(__m256 *x, uint32_t T, uint32_t r, uint8_t *act) {
    const uint32_t top = max_bits(x);
    float amax, d = 0, id = 0;
    memcpy(&amax, &top, 4);
    if (top >= 0x7f800000u) {
        d = NAN;
    } else if (amax > KV_ACT_TINY) {
        d = amax / 127.0f;
        id = 127.0f / amax;
    }
    const __m256i some = _mm256_set1_epi32(id > 0 ? -1 : 0); /* inf times 0 is no code */
    __m256i q[4];
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(x[i], _mm256_set1_ps(id))), some);
        x[i] = _mm256_sub_ps(x[i], _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(q[i])));
    }
    /* Dword v of lane l: values 4 l .. 4 l + 3 of vector v, which is quad 2 v + l. */
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i sums =
        _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)); /* lanes 0, 2: the two halves */
    const int32_t s0 = _mm_cvtsi128_si32(half), s1 = _mm_extract_epi32(half, 2);
    _Alignas(32) uint32_t quad[8];
    _mm256_store_si256((void *)quad, bytes);
    for (uint32_t j = 0; j < 8; j++) put(act, 4 * T * j + 4 * r, &quad[4 * (j & 1) + (j >> 1)]);
    kv_act_put_sums(act, T, r, d, s0, s1);
}

static void quantize(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act) {
    for (uint32_t b = 0; b < k / 32; b++, act += KV_ACT_BYTES(T), x += 32) {
        __m256 v[4];
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
        quantize_block(v, T, r, act);
        if (wide) quantize_block(v, T, r + 1, act);
    }
}

/* ---- codes and scales of one block, constant kinds; h: half of the panel (8 outputs) */

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

KV_INLINE void scales(const int scale, const kv_planes *p, uint32_t b, const int g, const int h, __m256 *s, __m256 *m) {
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
    const kv_planes p = kv_planes_of(w, panel);
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
/* A sum of products of eight outputs on its way: `part` in int16 where vpdpbusd is missing. */
typedef struct dots {
    __m256i sum, part;
} dots;

KV_INLINE dots dots_from(__m256i sum) { return (dots){sum, _mm256_setzero_si256()}; }

/* Adds one quad. */
KV_INLINE void dots_add(const int code, dots *d, __m256i w, __m256i a) {
#if defined(__AVXVNNI__)
    (void)code;
    d->sum = _mm256_dpbusd_avx_epi32(d->sum, w, a);
#else
    if (IS_SIGNED(code)) {
        __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
        w = _mm256_abs_epi8(s);
        a = _mm256_sign_epi8(a, s);
    }
    d->part = _mm256_add_epi16(d->part, _mm256_maddubs_epi16(w, a));
#endif
}

/* After WIDE quads at most. */
KV_INLINE void dots_widen(dots *d) {
#if !defined(__AVXVNNI__)
    d->sum = _mm256_add_epi32(d->sum, _mm256_madd_epi16(d->part, _mm256_set1_epi16(1)));
    d->part = _mm256_setzero_si256();
#endif
}

/* Writes acc[h] of one panel to the panel's lanes of y: row of activations `row`. */
KV_INLINE void finish(const kv_matmul_out *out, uint32_t panel, uint32_t row, __m256 a0, __m256 a1) {
    const bool second = out->wide && row % 2, accumulate = out->accumulate || second;
    uint32_t lanes = kv_mm_lanes(out->w, panel);
    float *y = out->y + (out->wide ? row / 2 : row) * out->y_stride + (size_t)panel * KV_PANEL, v[KV_PANEL];
    const float *bias = out->bias && second == out->wide ? out->bias + (size_t)panel * KV_PANEL : NULL;
    if (lanes == KV_PANEL) {
        if (bias) {
            a0 = _mm256_add_ps(a0, _mm256_loadu_ps(bias));
            a1 = _mm256_add_ps(a1, _mm256_loadu_ps(bias + 8));
        }
        if (accumulate) {
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
        y[o] = accumulate ? f + y[o] : f;
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
            dots sum[MAX][2];
            for (int r = 0; r < R; r++)
                sum[r][0] = sum[r][1] =
                    dots_from(zshift >= 0 && !IS_SIGNED(code)
                                  ? _mm256_slli_epi32(bcast32(nsum + 4 * r), zshift >= 0 ? zshift : 0)
                                  : _mm256_setzero_si256());
            KV_UNROLL
            for (int j = 0; j < quads; j += wide)
                for (int h = 0; h < 2; h++)
                    for (int r = 0; r < R; r++) {
                        KV_UNROLL
                        for (int q = quads * g + j; q < quads * g + j + wide; q++)
                            dots_add(code, &sum[r][h], load(rec + 64 * q + 32 * h), bcast32(act + 4 * T * q + 4 * r));
                        dots_widen(&sum[r][h]);
                    }
            for (int h = 0; h < 2; h++) {
                __m256 s = _mm256_loadu_ps((const void *)(rec + KV_REC_S + 64 * g + 32 * h));
                for (int r = 0; r < R; r++)
                    acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h].sum),
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

/* ---- decode: few rows, panels streamed from the packed form */

/* Bytes ahead of the block being read, as in matmul_avx512.h. */
#define PREFETCH_AHEAD 12288

/* One panel x R rows of a tile of T; the first `rows` are stored. */
KV_INLINE void stream_body(const int code, const int scale, const int zshift, const uint32_t T, const int R,
                           const kv_matmul_out *out, uint32_t panel, const uint8_t *act, uint32_t row0, uint32_t rows) {
    enum { MAX = 3 };
    const kv_weight *w = out->w;
    const bool g16 = kv_scale_is_g16(scale), min = kv_scale_has_min(scale);
    const int groups = g16 ? 2 : 1, quads = 8 / groups, wide = WIDE(code) < quads ? WIDE(code) : quads;
    const kv_planes p = kv_planes_of(w, panel);
    const uint8_t *lo = p.lo, *hi = p.hi;
    __m256 acc[MAX][2];
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < w->nb;
         b++, act += KV_ACT_BYTES(T), lo += kv_code_lo_bytes(code), hi += kv_code_hi_bytes(code)) {
        for (uint32_t i = 0; i < kv_code_lo_bytes(code); i += 64)
            _mm_prefetch((const char *)lo + PREFETCH_AHEAD + i, _MM_HINT_T0);
        KV_UNROLL
        for (int g = 0; g < groups; g++) {
            const uint8_t *nsum = act + (g16 ? KV_ACT_NSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_NSUM(T));
            const uint8_t *dsum = act + (g16 ? KV_ACT_DSUM16(T) + 4 * T * (uint32_t)g : KV_ACT_DSUM(T));
            for (int h = 0; h < 2; h++) {
                dots sum[MAX];
                for (int r = 0; r < R; r++)
                    sum[r] = dots_from(zshift >= 0 && !IS_SIGNED(code)
                                           ? _mm256_slli_epi32(bcast32(nsum + 4 * r), zshift >= 0 ? zshift : 0)
                                           : _mm256_setzero_si256());
                KV_UNROLL
                for (int j = 0; j < quads; j += wide) {
                    KV_UNROLL
                    for (int q = quads * g + j; q < quads * g + j + wide; q++) {
                        const __m256i c = quad(code, lo, hi, q, h);
                        for (int r = 0; r < R; r++)
                            dots_add(code, &sum[r], c, bcast32(act + 4 * (int)T * q + 4 * r));
                    }
                    for (int r = 0; r < R; r++) dots_widen(&sum[r]);
                }
                __m256 s, m;
                scales(scale, &p, b, g, h, &s, &m);
                for (int r = 0; r < R; r++) {
                    acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r].sum),
                                                _mm256_mul_ps(s, bcastf(act + KV_ACT_D(T) + 4 * r)), acc[r][h]);
                    if (min) acc[r][h] = _mm256_fmadd_ps(m, bcastf(dsum + 4 * r), acc[r][h]);
                }
            }
        }
    }
    for (int r = 0; r < R; r++)
        if ((uint32_t)r < rows) finish(out, panel, row0 + (uint32_t)r, acc[r][0], acc[r][1]);
}

/* Three rows a pass over a panel, from the second on out of L1. */
KV_INLINE void stream_type(const int code, const int scale, const int zshift, const kv_matmul_out *out, uint32_t p0,
                           uint32_t p1, const uint8_t *act, uint32_t rows) {
    enum { T = KV_TILE_ROWS, R = 3 };
    const size_t tile = (size_t)out->w->nb * KV_ACT_BYTES(T);
    for (uint32_t panel = p0; panel < p1; panel++) {
        if (rows == 1) {
            stream_body(code, scale, zshift, 1, 1, out, panel, act, 0, 1);
            continue;
        }
        for (uint32_t r = 0; r < rows; r += R)
            stream_body(code, scale, zshift, T, R, out, panel, act + r / T * tile + 4 * (r % T), r,
                        rows - r < R ? rows - r : R);
    }
}

#define X(TY, C, S, Z)                                                                                                 \
    static void gemv_##TY(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {     \
        stream_type(C, S, Z, out, p0, p1, act, rows);                                                                  \
    }
KV_PACK_TYPES(X)
#undef X

static void gemv(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    switch (out->w->type) {
#define X(T, C, S, Z)                                                                                                  \
    case KV_TYPE_##T:                                                                                                  \
        gemv_##T(out, p0, p1, act, rows);                                                                              \
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

const struct kv_matmul_kernels KV_YMM_TABLE = {
    KV_YMM_NAME, 2 * KV_TILE_ROWS, quantize, NULL, unpack, unpack_f32, tile, tile_f32, gemv, gemv_f32};
