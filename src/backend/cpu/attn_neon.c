/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention kernels for NEON with SDOT. Owns the vector operations, 16 floats in four registers, and the integer loops; the kernels
 * themselves are in attn_simd.h. A tile of 8 x 8 codes is four registers: 32 bits of a plane are 4 channels (K) or 4 tokens (V), which one
 * SDOT adds up, of 8 tokens or channels.
 */
#include "backend/cpu/attn.h"
#include "base/half.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "backend/cpu/lane_neon.h"

#include <string.h>

typedef struct { float32x4_t a, b, c, d; } v16;
typedef struct { int32x4_t a, b, c, d; } n16;
#define VOP static inline __attribute__((always_inline))
#define EACH(f, x) {f((x).a), f((x).b), f((x).c), f((x).d)}
#define EACH2(f, x, y) {f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)}
#define TILE_NV 1
#define COLS_ROW static __attribute__((noinline))

VOP v16 v_load(const float *p) { return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
VOP void v_store(float *p, v16 x) { vst1q_f32(p, x.a); vst1q_f32(p + 4, x.b); vst1q_f32(p + 8, x.c); vst1q_f32(p + 12, x.d); }
VOP v16 v_set(float x) { float32x4_t y = vdupq_n_f32(x); return (v16){y, y, y, y}; }
VOP v16 v_pair(float x, float y) { float32x4_t a = vdupq_n_f32(x), b = vdupq_n_f32(y); return (v16){a, a, b, b}; }
VOP v16 v_add(v16 x, v16 y) { return (v16)EACH2(vaddq_f32, x, y); }
VOP v16 v_sub(v16 x, v16 y) { return (v16)EACH2(vsubq_f32, x, y); }
VOP v16 v_mul(v16 x, v16 y) { return (v16)EACH2(vmulq_f32, x, y); }
VOP v16 v_div(v16 x, v16 y) { return (v16)EACH2(vdivq_f32, x, y); }
VOP v16 v_min(v16 x, v16 y) { return (v16)EACH2(vminq_f32, x, y); }
VOP v16 v_max(v16 x, v16 y) { return (v16)EACH2(vmaxq_f32, x, y); }
VOP v16 v_fma(v16 x, v16 y, v16 z) { return (v16){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)}; }
VOP v16 v_f16(const uint16_t *p)
{
    float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p)), y = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return (v16){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
/* 16 bytes as int32. */
VOP n16 n_wide(uint8x16_t x)
{
    uint16x8_t lo = vmovl_u8(vget_low_u8(x)), hi = vmovl_high_u8(x);
    return (n16){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo))), vreinterpretq_s32_u32(vmovl_high_u16(lo)),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi))), vreinterpretq_s32_u32(vmovl_high_u16(hi))};
}
VOP n16 n_u8(const uint8_t *p) { return n_wide(vld1q_u8(p)); }
VOP v16 n_float(n16 x) { return (v16)EACH(vcvtq_f32_s32, x); }
VOP v16 v_u8(const uint8_t *p) { return n_float(n_u8(p)); }
VOP float32x4_t scale2_4(float32x4_t p, float32x4_t t) { return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vreinterpretq_s32_f32(t), 23))); }
VOP v16 v_scale2(v16 p, v16 t) { return (v16)EACH2(scale2_4, p, t); }
VOP float32x4_t where_4(uint32x4_t m, float32x4_t p) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(p))); }
VOP v16 v_keep_ge(v16 x, float t, v16 p)
{
    float32x4_t y = vdupq_n_f32(t);
    return (v16){where_4(vcgeq_f32(x.a, y), p.a), where_4(vcgeq_f32(x.b, y), p.b), where_4(vcgeq_f32(x.c, y), p.c), where_4(vcgeq_f32(x.d, y), p.d)};
}
VOP float32x4_t keep_4(float32x4_t x, int lo, int hi, float32x4_t other)
{
    static const int32_t count[4] = {0, 1, 2, 3};
    int32x4_t at = vld1q_s32(count);
    return vbslq_f32(vandq_u32(vcgeq_s32(at, vdupq_n_s32(lo)), vcltq_s32(at, vdupq_n_s32(hi))), x, other);
}
VOP v16 v_keep(v16 x, int lo, int hi, float other)
{
    float32x4_t y = vdupq_n_f32(other);
    return (v16){keep_4(x.a, lo, hi, y), keep_4(x.b, lo - 4, hi - 4, y), keep_4(x.c, lo - 8, hi - 8, y), keep_4(x.d, lo - 12, hi - 12, y)};
}
VOP float v_first(v16 x) { return vgetq_lane_f32(x.a, 0); }
VOP float v_hmax(v16 x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.c), vmaxq_f32(x.b, x.d))); }
VOP float v_hsum(v16 x)
{
    float32x4_t a = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
VOP v16 v_bits(n16 x) { return (v16)EACH(vreinterpretq_f32_s32, x); }
VOP n16 n_set(int x) { int32x4_t y = vdupq_n_s32(x); return (n16){y, y, y, y}; }
VOP n16 n_zero(void) { return n_set(0); }
VOP n16 n_load(const int32_t *p) { return (n16){vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
VOP void n_store(int32_t *p, n16 x) { vst1q_s32(p, x.a); vst1q_s32(p + 4, x.b); vst1q_s32(p + 8, x.c); vst1q_s32(p + 12, x.d); }
VOP n16 n_round(v16 x) { return (n16)EACH(vcvtnq_s32_f32, x); }
VOP n16 n_add(n16 x, n16 y) { return (n16)EACH2(vaddq_s32, x, y); }
VOP n16 n_sub(n16 x, n16 y) { return (n16)EACH2(vsubq_s32, x, y); }
VOP n16 n_mul(n16 x, n16 y) { return (n16)EACH2(vmulq_s32, x, y); }
VOP n16 n_shl(n16 x, int n) { return (n16){vshlq_s32(x.a, vdupq_n_s32(n)), vshlq_s32(x.b, vdupq_n_s32(n)), vshlq_s32(x.c, vdupq_n_s32(n)), vshlq_s32(x.d, vdupq_n_s32(n))}; }
VOP n16 n_shl19(n16 x) { return n_shl(x, 19); }
VOP n16 n_shr7(n16 x) { return (n16){vshrq_n_s32(x.a, 7), vshrq_n_s32(x.b, 7), vshrq_n_s32(x.c, 7), vshrq_n_s32(x.d, 7)}; }
VOP n16 n_low7(n16 x) { n16 y = n_set(127); return (n16)EACH2(vandq_s32, x, y); }
VOP int32_t n_hsum(n16 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.c), vaddq_s32(x.b, x.d))); }
VOP int16x8_t words_8(int32x4_t x, int32x4_t y) { return vcombine_s16(vmovn_s32(x), vmovn_s32(y)); }
/* Low bytes; the values fit int8. */
VOP void n_bytes(int8_t *p, n16 x) { vst1q_s8(p, vcombine_s8(vmovn_s16(words_8(x.a, x.b)), vmovn_s16(words_8(x.c, x.d)))); }
/* Low halves; the values fit int16. */
VOP void n_words(int16_t *p, n16 x) { vst1q_s16(p, words_8(x.a, x.b)); vst1q_s16(p + 8, words_8(x.c, x.d)); }

/* 16 packed codes as floats: each byte goes to the lanes it holds, then down by the lane's shift. */
VOP v16 v_codes(uint8x16_t x, uint64_t at_lo, uint64_t at_hi, uint64_t by, uint8_t mask)
{
    uint8x16_t at = vcombine_u8(vcreate_u8(at_lo), vcreate_u8(at_hi));
    int8x16_t down = vcombine_s8(vcreate_s8(by), vcreate_s8(by));
    return n_float(n_wide(vandq_u8(vshlq_u8(vqtbl1q_u8(x, at), down), vdupq_n_u8(mask))));
}
VOP v16 v_codes2(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return v_codes(vreinterpretq_u8_u32(vdupq_n_u32(x)), 0x0101010100000000u, 0x0303030302020202u, 0xfafcfe00fafcfe00u, 3);
}
VOP v16 v_codes4(const uint8_t *p)
{
    uint8x8_t x = vld1_u8(p);
    return v_codes(vcombine_u8(x, x), 0x0303020201010000u, 0x0707060605050404u, 0xfc00fc00fc00fc00u, 15);
}

VOP v16 v_rank(const float *q, uint32_t n, const uint8_t *order)
{
    float y[16];
    (void)n;
    for (uint32_t r = 0; r < 16; r++) y[r] = q[order[r]];
    return v_load(y);
}

/* ------------------------------------------------------------------ LADDER: bit planes */
/* 16 codes less 2^(w-1), of register k (0..3) of a tile of w planes: each of two bytes of a plane goes to eight lanes, a test leaves all
 * bits or none, and of plane b the bits from b up are kept; the top plane, inverted, is the sign. */
VOP int8x16_t plane_codes(const uint8x16_t *plane, const uint32_t w, const int k)
{
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    const uint8x16_t at = vcombine_u8(vdup_n_u8((uint8_t)(2 * k)), vdup_n_u8((uint8_t)(2 * k + 1)));
    uint8x16_t v = vtstq_u8(vqtbl1q_u8(plane[0], at), bit);
    for (uint32_t b = 1; b < w; b++) v = vbslq_u8(vdupq_n_u8((uint8_t)((1u << b) - 1)), v, vtstq_u8(vqtbl1q_u8(plane[b], at), bit));
    return vreinterpretq_s8_u8(v);
}

VOP int32x4_t dot2(int32x4_t acc, int8x16_t w, int8x8_t a, const int lane) { return lane ? vdotq_lane_s32(acc, w, a, 1) : vdotq_lane_s32(acc, w, a, 0); }

/* acc[r][2 i ..] += the 8 sums of tile i with the 8 codes of row r, nr <= 4 rows; the two tiles lie one after the other at p. */
VOP void plane_tiles(int32x4_t acc[4][4], const uint8_t *p, const int8_t *codes, size_t stride, const uint32_t w, const int nr)
{
    int8x8_t x[4];
    for (int r = 0; r < nr; r++) x[r] = vld1_s8(codes + (size_t)r * stride);
    for (int i = 0; i < 2; i++, p += 8 * w) {
        uint8x16_t plane[8];
        for (uint32_t b = 0; b < w; b++) plane[b] = vreinterpretq_u8_u64(vld1q_dup_u64((const uint64_t *)(const void *)(p + 8 * b)));
        plane[w - 1] = vmvnq_u8(plane[w - 1]);
        for (int k = 0; k < 4; k++) {
            int8x16_t v = plane_codes(plane, w, k);
            for (int r = 0; r < nr; r++) acc[r][2 * i + (k & 1)] = dot2(acc[r][2 * i + (k & 1)], v, x[r], k >> 1);
        }
    }
}

/* What the codes of row r miss: 2^(w-1) times the row's codes of each block of 8 of width w. */
VOP void k_missing(const kv_attn_page *a, const int8_t *codes, size_t stride, int32_t *miss, const int nr)
{
    for (int r = 0; r < nr; r++) miss[r] = 0;
    for (uint32_t b = 0; b < a->layout->dkp / 8u; b++) {
        uint32_t half = (1u << kv_page_width(a->entry, b)) >> 1;
        for (int r = 0; r < nr; r++) miss[r] += (int32_t)half * vaddlv_s8(vld1_s8(codes + (size_t)r * stride + 8 * b));
    }
}

VOP void store_sums(int32_t *y, size_t stride, int32x4_t acc[4][4], const int nr)
{
    for (int r = 0; r < nr; r++)
        for (int i = 0; i < 4; i++) vst1q_s32(y + (size_t)r * stride + 4 * i, acc[r][i]);
}

/* n blocks of 8 ranks of one width, `step` bytes apart. Ranks come in order of weight, so equal widths are neighbours. */
VOP void k_run(int32x4_t acc[4][4], const uint8_t *p, uint32_t step, const int8_t *codes, size_t stride, uint32_t n, const uint32_t w, const int nr)
{
    for (uint32_t i = 0; i < n; i++, p += step, codes += 8) plane_tiles(acc, p, codes, stride, w, nr);
}

/* Pairs of tiles of 8 tokens; of a last half pair the other tile is what lies behind it in the page, and sums of slots nobody asks for. */
VOP void k_rows(const kv_attn_page *a, const int8_t *codes, int32_t *isum, size_t stride, const int nr)
{
    const kv_page_layout *L = a->layout;
    const uint32_t blocks = L->dkp / 8u;
    int32_t miss[4];
    k_missing(a, codes, stride, miss, nr);
    for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16) {
        const uint8_t *p = a->data + L->k_off;
        int32x4_t acc[4][4];
        for (int r = 0; r < nr; r++)
            for (int i = 0; i < 4; i++) acc[r][i] = vdupq_n_s32(miss[r]);
        for (uint32_t b = 0, n; b < blocks; b += n) {
            const uint32_t w = kv_page_width(a->entry, b), step = w * L->tokens;
            for (n = 1; b + n < blocks && kv_page_width(a->entry, b + n) == w; n++) {}
            switch (w) {
            case 0: break;
            case 1: k_run(acc, p + t, step, codes + 8 * b, stride, n, 1, nr); break;
            case 2: k_run(acc, p + 2 * t, step, codes + 8 * b, stride, n, 2, nr); break;
            case 3: k_run(acc, p + 3 * t, step, codes + 8 * b, stride, n, 3, nr); break;
            case 4: k_run(acc, p + 4 * t, step, codes + 8 * b, stride, n, 4, nr); break;
            case 5: k_run(acc, p + 5 * t, step, codes + 8 * b, stride, n, 5, nr); break;
            default: k_run(acc, p + 6 * t, step, codes + 8 * b, stride, n, 6, nr); break;
            }
            p += n * step;
        }
        store_sums(isum + t, stride, acc, nr);
    }
}

/* Pairs of tiles of 8 channels: the padded head dimension is a multiple of 16. */
VOP void v_rows_bits(const kv_attn_page *a, const int8_t *codes, int32_t *isum, size_t stride, const int nr, const uint32_t bits)
{
    const uint32_t n = a->layout->dvp / 8u, t0 = a->lo / 8, t1 = (a->hi + 7) / 8;
    int32_t miss[4] = {0};
    for (int r = 0; r < nr; r++) {
        for (uint32_t t = t0; t < t1; t++) miss[r] += vaddlv_s8(vld1_s8(codes + (size_t)r * stride + 8 * t));
        miss[r] *= (int32_t)(1u << (bits - 1));
    }
    for (uint32_t c = 0; c < n; c += 2) {
        int32x4_t acc[4][4];
        for (int r = 0; r < nr; r++)
            for (int i = 0; i < 4; i++) acc[r][i] = vdupq_n_s32(miss[r]);
        const uint8_t *p = a->data + a->layout->v_off + 8 * (size_t)bits * (t0 * n + c);
        for (uint32_t t = t0; t < t1; t++, p += 8 * (size_t)bits * n) plane_tiles(acc, p, codes + 8 * t, stride, bits, nr);
        store_sums(isum + 8 * c, stride, acc, nr);
    }
}

VOP void v_rows(const kv_attn_page *a, const int8_t *codes, int32_t *isum, size_t stride, const int nr)
{
    switch (a->layout->v_bits) {
    case 2: v_rows_bits(a, codes, isum, stride, nr, 2); break;
    case 3: v_rows_bits(a, codes, isum, stride, nr, 3); break;
    case 4: v_rows_bits(a, codes, isum, stride, nr, 4); break;
    default: v_rows_bits(a, codes, isum, stride, nr, a->layout->v_bits); break; /* no format has it: right, not fast */
    }
}

#define BY_ROWS(n, fn)                                                         \
    for (int r_ = 0; r_ < (n); r_ += 4) {                                      \
        const int8_t *codes_ = w->codes + (size_t)r_ * stride;                 \
        int32_t *isum_ = w->isum + (size_t)r_ * stride;                        \
        switch ((n) - r_) {                                                    \
        case 1: fn(a, codes_, isum_, stride, 1); break;                        \
        case 2: fn(a, codes_, isum_, stride, 2); break;                        \
        case 3: fn(a, codes_, isum_, stride, 3); break;                        \
        default: fn(a, codes_, isum_, stride, 4); break;                       \
        }                                                                      \
    }

static void ladder_k(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr) { BY_ROWS(nr, k_rows) }
static void ladder_v(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr) { BY_ROWS(nr, v_rows) }

/* ------------------------------------------------------------------ Q8: codes of 16 bits times bytes */
/* Two rows of bytes a query, `pitch` apart: code = 128 hi + lo, lo in 0..127. total[q]: 128 times the sum of n codes (n a multiple of 4;
 * 16 can be read). */
VOP void split_codes(const int16_t *codes, size_t stride, uint32_t n, int8_t *y, size_t pitch, int32_t *total, const int nq)
{
    for (int q = 0; q < nq; q++) {
        int8_t *hi = y + 2 * (size_t)q * pitch, *lo = hi + pitch;
        int32_t sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += codes[(size_t)q * stride + i];
        for (uint32_t i = 0; i < n; i += 8) {
            int16x8_t x = vld1q_s16(codes + (size_t)q * stride + i);
            vst1_s8(hi + i, vshrn_n_s16(x, 7));
            vst1_s8(lo + i, vmovn_s16(vandq_s16(x, vdupq_n_s16(127))));
        }
        total[q] = 128 * sum;
    }
}

/* Signed bytes of 4 rows of 8 columns as [column][row]: y[0] columns 0..3, y[1] columns 4..7. */
VOP void turn_4x8(const uint8_t *p, size_t step, int8x16_t y[2])
{
    uint8x16_t a = vcombine_u8(vld1_u8(p), vld1_u8(p + 2 * step)), b = vcombine_u8(vld1_u8(p + step), vld1_u8(p + 3 * step));
    uint16x8_t low = vreinterpretq_u16_u8(vzip1q_u8(a, b)), high = vreinterpretq_u16_u8(vzip2q_u8(a, b)); /* rows 0, 1; rows 2, 3 */
    const uint8x16_t flip = vdupq_n_u8(0x80);
    y[0] = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u16(vzip1q_u16(low, high)), flip));
    y[1] = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u16(vzip2q_u16(low, high)), flip));
}

/* acc[q][half][2] += the 8 column sums of 4 rows at p with lane k of x[q][half]. */
VOP void byte_quad(int32x4_t acc[KV_ATTN_QBLOCK][2][2], const uint8_t *p, size_t step, int8x16_t x[KV_ATTN_QBLOCK][2], const int k, const int nq)
{
    int8x16_t y[2];
    turn_4x8(p, step, y);
    for (int q = 0; q < nq; q++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 2; i++) acc[q][h][i] = dot(acc[q][h][i], y[i], x[q][h], k);
}

/* isum[q][i] = sum_r row[r][i] codes[q][r] for columns [from, to) (multiples of 8) of n rows (a multiple of 4) of bytes. */
VOP void byte_sums(kv_attn_work *w, const uint8_t *base, size_t step, uint32_t n, uint32_t from, uint32_t to, const int16_t *codes, size_t stride, const int nq)
{
    int32_t total[KV_ATTN_QBLOCK];
    int8_t *split = w->wide; /* 64 bytes for each of `stride` values: 8 and the reading behind are used */
    const size_t pitch = stride + 16;
    split_codes(codes, stride, n, split, pitch, total, nq);
    for (uint32_t i = from; i < to; i += 8) {
        int32x4_t acc[KV_ATTN_QBLOCK][2][2];
        int8x16_t x[KV_ATTN_QBLOCK][2];
        const uint8_t *p = base + i;
        for (int q = 0; q < nq; q++) acc[q][0][0] = acc[q][0][1] = acc[q][1][0] = acc[q][1][1] = vdupq_n_s32(0);
        uint32_t r = 0;
        for (; r + 16 <= n; r += 16, p += 16 * step) {
            for (int q = 0; q < 2 * nq; q++) x[q / 2][q & 1] = vld1q_s8(split + (size_t)q * pitch + r);
            byte_quad(acc, p, step, x, 0, nq);
            byte_quad(acc, p + 4 * step, step, x, 1, nq);
            byte_quad(acc, p + 8 * step, step, x, 2, nq);
            byte_quad(acc, p + 12 * step, step, x, 3, nq);
        }
        for (; r < n; r += 4, p += 4 * step) {
            for (int q = 0; q < 2 * nq; q++) x[q / 2][q & 1] = vld1q_s8(split + (size_t)q * pitch + r);
            byte_quad(acc, p, step, x, 0, nq);
        }
        for (int q = 0; q < nq; q++)
            for (int h = 0; h < 2; h++) {
                int32x4_t s = vaddq_s32(vshlq_n_s32(acc[q][0][h], 7), acc[q][1][h]);
                vst1q_s32(w->isum + (size_t)q * stride + i + 4 * h, vaddq_s32(s, vdupq_n_s32(total[q])));
            }
    }
}

VOP void q8_k(const kv_attn_page *a, kv_attn_work *w, uint32_t t0, uint32_t t1, const int16_t *codes, size_t stride, const int nq)
{
    byte_sums(w, a->data + a->layout->k_off, a->layout->tokens, a->layout->dkp, t0, t1, codes, stride, nq);
}

VOP void q8_v(const kv_attn_page *a, kv_attn_work *w, const int16_t *codes, size_t stride, const int nq)
{
    uint32_t t0 = a->lo & ~7u, dvp = a->layout->dvp;
    byte_sums(w, a->data + a->layout->v_off + (size_t)t0 * dvp, dvp, ((a->hi + 3) & ~3u) - t0, 0, dvp, codes + t0, stride, nq);
}

#define PAGE_LOOPS "backend/cpu/attn_floats_neon.h"
#include "backend/cpu/attn_simd.h"

static void pack_k(const uint16_t *rows, size_t stride, uint32_t n, uint32_t dk, uint32_t col0, float *kt)
{
    const uint32_t n4 = n & ~3u, dk4 = dk & ~3u;
    for (uint32_t c = 0; c < dk4; c += 4)
        for (uint32_t t = 0; t < n4; t += 4) {
            const uint16_t *x = rows + (size_t)t * stride + c;
            float *y = kt + (size_t)c * 64 + col0 + t;
            float32x4_t r[4];
            for (uint32_t i = 0; i < 4; i++) r[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i * stride)));
            float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
            for (uint32_t i = 0; i < 2; i++) {
                vst1q_f32(y + 64 * i, vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i])));
                vst1q_f32(y + 64 * (i + 2), vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i])));
            }
        }
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = t < n4 ? dk4 : 0; c < dk; c++) kt[(size_t)c * 64 + col0 + t] = kv_f16_f32(rows[t * stride + c]);
}

const struct kv_attn_kernels kv_attn_kernels_neon = {"neon", {page_f16, page_q8, page_ladder, page_group}, tile, cols, pack_k, widen, scale, join, tap, mass};
#endif
typedef int kv_attn_neon_unit; /* a translation unit is never empty */
