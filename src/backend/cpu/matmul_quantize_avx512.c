/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Activations to 8 bits for AVX-512: one row at a time (a step's single row, the rest of a tile), or a tile of six rows
 * at once, whose reductions and stores its rows share. Owns: the rounding of matmul.h, bit for bit the reference's.
 */
#if defined(__AVX512VNNI__)
#include "backend/cpu/matmul_avx512.h"

KV_INLINE __m512i magnitudes(const __m512 *v) {
    const __m512i abs_mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[0]), abs_mask),
                            _mm512_and_si512(_mm512_castps_si512(v[1]), abs_mask));
}

/* What the largest magnitudes of blocks or rows say, lane by lane. */
typedef struct steps {
    __m512 d, id; /* step and its inverse: both 0 for zeros; NaN and 0 with inf or NaN inside */
} steps;

KV_INLINE steps steps_of(__m512i m) {
    const __m512 amax = _mm512_castsi512_ps(m), most = _mm512_set1_ps(127.0f), part = _mm512_set1_ps(1.0f / 127.0f);
    const __mmask16 wild = _mm512_cmpge_epu32_mask(m, _mm512_set1_epi32(0x7f800000));
    const __mmask16 use = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(KV_ACT_TINY), _CMP_GT_OQ) & ~wild;
    /* amax / 127 without the divider, which takes as long as all else here: corrected by its remainder the product is
     * the rounded quotient, for every float above KV_ACT_TINY (tried one by one). */
    const __m512 near = _mm512_mul_ps(amax, part), rest = _mm512_fnmadd_ps(near, most, amax);
    return (steps){.d = _mm512_mask_mov_ps(_mm512_maskz_fmadd_ps(use, rest, part, near), wild,
                                           _mm512_set1_ps(__builtin_nanf(""))),
                   .id = _mm512_maskz_div_ps(use, most, amax)};
}

/* ---- one row */

/* N blocks side by side (1 or 2): their reductions share instructions. x: two vectors a block. Lanes of a vector of
 * "blocks": those of block b are its lanes 8 b and up (N = 2) or all (N = 1). */
typedef struct quantized {
    __m512i q[4]; /* codes, 16 a vector */
    __m512 d;     /* lanes of blocks */
} quantized;

KV_INLINE __m512 of_block(__m512 v, const int b, const int N) {
    return N == 1 ? v : b ? _mm512_shuffle_f32x4(v, v, 0xaa) : _mm512_shuffle_f32x4(v, v, 0x00);
}

KV_INLINE quantized codes_of(const __m512 *x, const int N) {
    __m512i a[2], m;
    KV_UNROLL
    for (int b = 0; b < N; b++) a[b] = magnitudes(x + 2 * b);
    if (N == 2)
        m = _mm512_max_epu32(_mm512_shuffle_i32x4(a[0], a[N - 1], 0x88), _mm512_shuffle_i32x4(a[0], a[N - 1], 0xdd));
    else
        m = _mm512_max_epu32(a[0], _mm512_shuffle_i32x4(a[0], a[0], 0x4e));
    m = _mm512_max_epu32(m, _mm512_shuffle_i32x4(m, m, 0xb1));
    m = _mm512_max_epu32(m, _mm512_shuffle_epi32(m, 0x4e));
    m = _mm512_max_epu32(m, _mm512_shuffle_epi32(m, 0xb1));
    const steps s = steps_of(m);
    const __mmask16 use = _mm512_cmp_ps_mask(s.id, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    quantized r = {.d = s.d};
    KV_UNROLL
    for (int i = 0; i < 2 * N; i++) {
        const __mmask16 of = use >> (8 * (i / 2)) & 1 ? 0xffff : 0; /* inf times 0 is no code */
        r.q[i] = _mm512_maskz_cvtps_epi32(of, _mm512_mul_ps(x[i], of_block(s.id, i / 2, N)));
    }
    return r;
}

/* Writes N blocks of row r of a tile of T rows. */
KV_INLINE void put_blocks(const quantized *c, uint32_t T, uint32_t r, uint8_t *act, const int N) {
    const __m512i zero = _mm512_setzero_si512();
    _Alignas(64) uint32_t quad[16];
    /* Dword 4 l + v of the bytes: values 4 l .. 4 l + 3 of vector v. */
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(c->q[0], c->q[1]),
                                       N == 2 ? _mm512_packs_epi32(c->q[2], c->q[3]) : zero);
    _mm512_store_si512(quad, bytes);
    __m512i sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(1), bytes);
    sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4(sums, sums, 0x4e));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4(sums, sums, 0xb1));
    const __m128i half = _mm512_castsi512_si128(sums), all = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    const __m128 d = _mm512_castps512_ps128(N == 1 ? c->d : _mm512_permutexvar_ps(_mm512_set_epi32(
                         0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0), c->d));
    _Alignas(16) uint32_t f[5][4]; /* d, d sum, -sum of 32; d sum, -sum of 16: by half */
    _mm_store_ps((float *)(void *)f[0], d);
    _mm_store_ps((float *)(void *)f[1], _mm_mul_ps(d, _mm_cvtepi32_ps(all)));
    _mm_store_si128((void *)f[2], _mm_sub_epi32(_mm_setzero_si128(), all));
    _mm_store_ps((float *)(void *)f[3], _mm_mul_ps(d, _mm_cvtepi32_ps(half)));
    _mm_store_si128((void *)f[4], _mm_sub_epi32(_mm_setzero_si128(), half));
    KV_UNROLL
    for (uint32_t b = 0; b < (uint32_t)N; b++, act += KV_ACT_BYTES(T)) {
        KV_UNROLL
        for (uint32_t j = 0; j < 8; j++) memcpy(act + 4 * T * j + 4 * r, &quad[4 * (j & 3) + (j >> 2) + 2 * b], 4);
        memcpy(act + KV_ACT_D(T) + 4 * r, &f[0][2 * b], 4);
        memcpy(act + KV_ACT_DSUM(T) + 4 * r, &f[1][2 * b], 4);
        memcpy(act + KV_ACT_NSUM(T) + 4 * r, &f[2][2 * b], 4);
        for (uint32_t g = 0; g < 2; g++) {
            memcpy(act + KV_ACT_DSUM16(T) + 4 * (g * T + r), &f[3][2 * b + g], 4);
            memcpy(act + KV_ACT_NSUM16(T) + 4 * (g * T + r), &f[4][2 * b + g], 4);
        }
    }
}

KV_INLINE void quantize_blocks(const float *x, uint32_t T, uint32_t r, bool wide, uint8_t *act, const int N) {
    __m512 v[4];
    KV_UNROLL
    for (int i = 0; i < 2 * N; i++) v[i] = _mm512_loadu_ps(x + 16 * i);
    quantized c = codes_of(v, N);
    put_blocks(&c, T, r, act, N);
    if (!wide) return;
    KV_UNROLL
    for (int i = 0; i < 2 * N; i++)
        v[i] = _mm512_sub_ps(v[i], _mm512_mul_ps(of_block(c.d, i / 2, N), _mm512_cvtepi32_ps(c.q[i])));
    c = codes_of(v, N);
    put_blocks(&c, T, r + 1, act, N);
}

void kv_matmul_quantize_avx512(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act) {
    uint32_t b = 0;
    for (; b + 2 <= k / 32; b += 2, act += 2 * KV_ACT_BYTES(T)) quantize_blocks(x + 32 * b, T, r, wide, act, 2);
    if (b < k / 32) quantize_blocks(x + 32 * b, T, r, wide, act, 1);
}

/* ---- a tile of six rows, a block at a time */

/* a[r]: the larger magnitudes of row r's two vectors, as integers. Lane group r of the result: row r's largest. */
KV_INLINE __m512i largest(__m512i a0, __m512i a1, __m512i a2, __m512i a3) {
    __m512i low = _mm512_max_epu32(_mm512_shuffle_i32x4(a0, a1, 0x88), _mm512_shuffle_i32x4(a0, a1, 0xdd));
    __m512i high = _mm512_max_epu32(_mm512_shuffle_i32x4(a2, a3, 0x88), _mm512_shuffle_i32x4(a2, a3, 0xdd));
    __m512i m = _mm512_max_epu32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
    m = _mm512_max_epu32(m, _mm512_shuffle_epi32(m, 0x4e));
    return _mm512_max_epu32(m, _mm512_shuffle_epi32(m, 0xb1));
}

KV_INLINE __m512 row_lane(__m512 v, const int r) {
    return r == 0   ? _mm512_shuffle_f32x4(v, v, 0x00)
           : r == 1 ? _mm512_shuffle_f32x4(v, v, 0x55)
           : r == 2 ? _mm512_shuffle_f32x4(v, v, 0xaa)
                    : _mm512_shuffle_f32x4(v, v, 0xff);
}

/* Codes of row r of s: q[2], 16 a vector. */
KV_INLINE void row_codes(const steps *s, const int r, const __m512 *v, __m512i *q) {
    const __m512 id = row_lane(s->id, r);
    q[0] = _mm512_cvtps_epi32(_mm512_mul_ps(v[0], id));
    q[1] = _mm512_cvtps_epi32(_mm512_mul_ps(v[1], id));
}

/* Dword 4 l + i + 2 b of the result: values 4 l .. 4 l + 3 of vector i of row b. */
KV_INLINE __m512i pair_bytes(const __m512i *q0, const __m512i *q1) {
    return _mm512_packs_epi16(_mm512_packs_epi32(q0[0], q0[1]), _mm512_packs_epi32(q1[0], q1[1]));
}

/* Writes a block of six rows: pair[p] holds rows 2 p and 2 p + 1; d0: steps of rows 0 .. 3 by lane group, d1: of 4, 5.
 * Stores of eight lanes in ascending order: the two too many are the next store's, the last ones padding. */
KV_INLINE void put_tile(const __m512i *pair, __m512 d0, __m512 d1, uint8_t *act) {
#define AT(j, r) (4 * ((j) & 3) + ((j) >> 2) + 2 * ((r) & 1) + 16 * ((r) >> 1 & 1)) /* of rows 0 .. 3; 4, 5: as 0, 1 */
#define SIX(j) AT(j, 0), AT(j, 1), AT(j, 2), AT(j, 3), AT(j, 0), AT(j, 1)
    static const uint32_t from[3][16] = {{SIX(0), SIX(1), AT(2, 0), AT(2, 1), AT(2, 2), AT(2, 3)},
                                         {AT(2, 0), AT(2, 1), SIX(3), SIX(4), AT(5, 0), AT(5, 1)},
                                         {AT(5, 2), AT(5, 3), AT(5, 0), AT(5, 1), SIX(6), SIX(7)}};
#undef SIX
#undef AT
    static const __mmask16 last_pair[3] = {0x0c30, 0x30c3, 0xc30c}; /* lanes of rows 4 and 5 */
    KV_UNROLL
    for (int i = 0; i < 3; i++) {
        const __m512i at = _mm512_loadu_si512(from[i]), v = _mm512_permutex2var_epi32(pair[0], at, pair[1]);
        _mm512_storeu_si512(act + 64 * i, _mm512_mask_permutexvar_epi32(v, last_pair[i], at, pair[2]));
    }
    __m512i sum[3];
    KV_UNROLL
    for (int p = 0; p < 3; p++) sum[p] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), pair[p]);
    __m512i low = _mm512_add_epi32(_mm512_shuffle_i32x4(sum[0], sum[1], 0x88), _mm512_shuffle_i32x4(sum[0], sum[1], 0xdd));
    __m512i high = _mm512_add_epi32(sum[2], _mm512_shuffle_i32x4(sum[2], sum[2], 0x4e));
    low = _mm512_add_epi32(low, _mm512_shuffle_i32x4(low, low, 0xb1));     /* groups 0 and 2: pairs 0 and 1 */
    high = _mm512_add_epi32(high, _mm512_shuffle_i32x4(high, high, 0xb1)); /* any group: pair 2 */
    const __m512i half0 = _mm512_setr_epi32(0, 2, 8, 10, 16, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                  half1 = _mm512_setr_epi32(1, 3, 9, 11, 17, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                  rows = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i zero = _mm256_setzero_si256(), h0 = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, half0, high)),
                  h1 = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, half1, high)), all = _mm256_add_epi32(h0, h1);
    const __m256 d = _mm512_castps512_ps256(_mm512_permutex2var_ps(d0, rows, d1));
    enum { T = KV_TILE_ROWS };
    _mm256_storeu_ps((float *)(void *)(act + KV_ACT_D(T)), d);
    _mm256_storeu_ps((float *)(void *)(act + KV_ACT_DSUM(T)), _mm256_mul_ps(d, _mm256_cvtepi32_ps(all)));
    _mm256_storeu_si256((void *)(act + KV_ACT_NSUM(T)), _mm256_sub_epi32(zero, all));
    _mm256_storeu_ps((float *)(void *)(act + KV_ACT_DSUM16(T)), _mm256_mul_ps(d, _mm256_cvtepi32_ps(h0)));
    _mm256_storeu_ps((float *)(void *)(act + KV_ACT_DSUM16(T) + 4 * T), _mm256_mul_ps(d, _mm256_cvtepi32_ps(h1)));
    _mm256_storeu_si256((void *)(act + KV_ACT_NSUM16(T)), _mm256_sub_epi32(zero, h0));
    _mm256_storeu_si256((void *)(act + KV_ACT_NSUM16(T) + 4 * T), _mm256_sub_epi32(zero, h1));
}

/* Six rows x[k], x_stride floats apart. */
static void quantize_rows(const float *x, size_t x_stride, uint32_t k, uint8_t *act) {
    for (uint32_t b = 0; b < k / 32; b++, x += 32, act += KV_ACT_BYTES(KV_TILE_ROWS)) {
        __m512 v[6][2];
        __m512i a[6], q[6][2], pair[3];
        KV_UNROLL
        for (int r = 0; r < 6; r++) {
            v[r][0] = _mm512_loadu_ps(x + r * x_stride);
            v[r][1] = _mm512_loadu_ps(x + r * x_stride + 16);
            a[r] = magnitudes(v[r]);
        }
        /* One division for six: rows 4 and 5 in the odd lanes. */
        const steps s = steps_of(_mm512_mask_mov_epi32(largest(a[0], a[1], a[2], a[3]), 0xaaaa,
                                                       largest(a[4], a[5], a[4], a[5])));
        const steps s0 = {_mm512_moveldup_ps(s.d), _mm512_moveldup_ps(s.id)},
                    s1 = {_mm512_movehdup_ps(s.d), _mm512_movehdup_ps(s.id)};
        KV_UNROLL
        for (int r = 0; r < 6; r++) row_codes(r < 4 ? &s0 : &s1, r & 3, v[r], q[r]);
        KV_UNROLL
        for (int p = 0; p < 3; p++) pair[p] = pair_bytes(q[2 * p], q[2 * p + 1]);
        put_tile(pair, s0.d, s1.d, act);
    }
}

/* Three rows and what rounding leaves of each. */
static void quantize_wide(const float *x, size_t x_stride, uint32_t k, uint8_t *act) {
    const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 16, 16, 16, 16, 4, 4, 4, 4, 20, 20, 20, 20),
                  last = _mm512_setr_epi32(8, 8, 8, 8, 24, 24, 24, 24, 0, 0, 0, 0, 0, 0, 0, 0);
    for (uint32_t b = 0; b < k / 32; b++, x += 32, act += KV_ACT_BYTES(KV_TILE_ROWS)) {
        __m512 v[3][2];
        __m512i a[3], q[3][2][2], pair[3];
        steps s[2];
        KV_UNROLL
        for (int r = 0; r < 3; r++) {
            v[r][0] = _mm512_loadu_ps(x + r * x_stride);
            v[r][1] = _mm512_loadu_ps(x + r * x_stride + 16);
        }
        KV_UNROLL
        for (int i = 0; i < 2; i++) {
            KV_UNROLL
            for (int r = 0; r < 3; r++) a[r] = magnitudes(v[r]);
            s[i] = steps_of(largest(a[0], a[1], a[2], a[2]));
            KV_UNROLL
            for (int r = 0; r < 3; r++) row_codes(&s[i], r, v[r], q[r][i]);
            if (i) break;
            KV_UNROLL
            for (int r = 0; r < 3; r++)
                for (int j = 0; j < 2; j++)
                    v[r][j] = _mm512_sub_ps(v[r][j], _mm512_mul_ps(row_lane(s[0].d, r), _mm512_cvtepi32_ps(q[r][0][j])));
        }
        KV_UNROLL
        for (int p = 0; p < 3; p++) pair[p] = pair_bytes(q[p][0], q[p][1]);
        put_tile(pair, _mm512_permutex2var_ps(s[0].d, first, s[1].d), _mm512_permutex2var_ps(s[0].d, last, s[1].d), act);
    }
}

void kv_matmul_quantize_tile_avx512(const float *x, size_t x_stride, uint32_t k, bool wide, uint8_t *act) {
    if (wide)
        quantize_wide(x, x_stride, k, act);
    else
        quantize_rows(x, x_stride, k, act);
}
#endif
typedef int kv_matmul_quantize_avx512_unit; /* a translation unit is never empty */
