/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LADDER pages for AVX-512, included by attn_avx512.c and, with KV_ATTN_VBMI, by attn_vbmi_avx512.c, which differ in pair_codes alone:
 * with VBMI and GFNI two instructions transpose the bits of any width. Owns the folding of a run of pages; attn_ref.c defines every rounding.
 *
 * The phases go over all pages of the run, so that the long chains of one page (a maximum, a quotient, codes, dot products) hide behind the
 * others': query codes, dot products and scores, page by page; one softmax; probability codes and dot products, page by page.
 * Two tiles side by side are 16 tokens (K) or 16 channels (V): vpdpbusd then takes the same four query or probability codes in every lane,
 * a broadcast, and its lanes are the tokens or channels in order. Codes of 64 channels or tokens are kept as they come out of vpacks:
 * quad j (four codes) is dword 4 (j & 3) + (j >> 2).
 */
#ifdef KV_ATTN_VBMI
#define LADDER_TARGET __attribute__((target("gfni,avx512vbmi")))
#else
#define LADDER_TARGET
#endif
#define LADDER_OP static inline __attribute__((always_inline)) LADDER_TARGET

enum { QB = KV_ATTN_QBLOCK };

/* What a run carries from phase to phase; rows of floats by page i and query q. */
typedef struct ladder_run {
    const kv_attn_page *a; /* [n] */
    kv_attn_work *w;
    uint32_t n, q0;
    uint32_t P16, d64;                  /* tokens rounded up to 16, channels to 64 */
    float top[KV_ATTN_RUN][QB], sum[KV_ATTN_RUN][QB]; /* largest |x| of what is to become codes, its sum of products with the midpoints */
    float keep[QB];
} ladder_run;

/* {sum of a, of b, of c, of d} by halves, quarters, ... */
LADDER_OP __m128 sums4(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 x = v_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 y = v_add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 z = v_add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    z = v_add(z, _mm512_permute_ps(z, 0x4e));
    z = v_add(z, _mm512_permute_ps(z, 0xb1));
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), z));
}
LADDER_OP __m128 most4(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 x = v_max(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 y = v_max(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 z = v_max(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    z = v_max(z, _mm512_permute_ps(z, 0x4e));
    z = v_max(z, _mm512_permute_ps(z, 0xb1));
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), z));
}
LADDER_OP __m128i isums4(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i x = n_add(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    __m512i y = n_add(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee));
    __m512i z = n_add(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd));
    z = n_add(z, _mm512_shuffle_epi32(z, 0x4e));
    z = n_add(z, _mm512_shuffle_epi32(z, 0xb1));
    return _mm512_castsi512_si128(_mm512_permutexvar_epi32(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), z));
}

LADDER_OP int32_t load32(const void *p)
{
    int32_t x;
    memcpy(&x, p, 4);
    return x;
}

/* Steps of the codes of largest |x| = top, and what makes them; 0 where all is 0. */
LADDER_OP void steps4(const float *top, float limit, __m128 *step, float *inv)
{
    __m128 x = _mm_loadu_ps(top), most = _mm_set1_ps(limit);
    __mmask8 some = _mm_cmp_ps_mask(x, _mm_set1_ps(KV_ATTN_TINY), _CMP_GT_OQ);
    *step = _mm_maskz_div_ps(some, x, most);
    _mm_storeu_ps(inv, _mm_maskz_div_ps(some, most, x));
}

/* Codes of up to 64 floats (nv vectors, the rest 0) at y: 8 bits, or high and low bytes of 15 with the low ones at y + stride. */
LADDER_OP void codes64(const float *x, float inv, int nv, const bool wide, int8_t *y, size_t stride)
{
    __m512i c[4];
    for (int k = 0; k < 4; k++) c[k] = k < nv ? n_round(v_mul(v_load(x + 16 * k), v_set(inv))) : n_zero();
    __m512i a = _mm512_packs_epi32(c[0], c[1]), b = _mm512_packs_epi32(c[2], c[3]);
    if (wide) {
        const __m512i low = _mm512_set1_epi16(127);
        _mm512_storeu_si512(y, _mm512_packs_epi16(_mm512_srai_epi16(a, 7), _mm512_srai_epi16(b, 7)));
        _mm512_storeu_si512(y + stride, _mm512_packs_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
    } else {
        _mm512_storeu_si512(y, _mm512_packs_epi16(a, b));
    }
}

/* ------------------------------------------------------------------ codes of a page */
/* Where the four broadcast codes of quad j of a row lie; j + 1 (j is even) is 16 bytes on. */
LADDER_OP size_t quad_at(uint32_t j) { return 64 * (size_t)(j / 16) + 16 * (j & 3) + (j / 4 & 3) * 4; }

/* acc[r] += 64 codes with the quads at `codes` of nr rows. */
LADDER_OP void codes_dot(__m512i *acc, __m512i c, const int8_t *codes, size_t stride, const int nr)
{
    for (int r = 0; r < nr; r++) acc[r] = _mm512_dpbusd_epi32(acc[r], c, n_set(load32(codes + (size_t)r * stride)));
}

#ifdef KV_ATTN_VBMI
/* Two tiles of w planes become 2 x 64 codes, s = 0: the first quads, 1: the second. Byte j of plane b goes to byte 7 - b of qword j (qwords 4-7:
 * the second tile's), unused planes to 0; the affine product of the unit matrix with it transposes 8 x 8 bits. */
LADDER_OP __m512i planes_at(uint32_t w, int s)
{
    const __m512i plane = _mm512_set1_epi64(0x0008101820283038), ones = _mm512_set1_epi64(0x0101010101010101);
    const __m512i byte = _mm512_set_epi64(3, 2, 1, 0, 3, 2, 1, 0), tile = _mm512_set_epi64(8, 8, 8, 8, 0, 0, 0, 0);
    __m512i from = _mm512_add_epi64(_mm512_add_epi64(byte, _mm512_set1_epi64(4 * s)), _mm512_mullo_epi64(tile, _mm512_set1_epi64(w)));
    return _mm512_add_epi64(_mm512_mullo_epi64(from, ones), plane);
}
LADDER_OP __mmask64 planes_used(uint32_t w) { return 0x0101010101010101ull * (uint64_t)(0xff & ~(0xff >> w)); }
#define TRANSPOSE_BITS(x) _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64((long long)0x8040201008040201ull), x, 0)

/* acc[i][r] += the codes of np pairs of tiles from p with quads j, j + 1 of nr rows. 64 bytes are read, 128 for more than 4 planes: behind the
 * planes of a page lie more than 64 bytes of scales. */
LADDER_OP void pairs_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, uint32_t w, __m512i at0, __m512i at1, __mmask64 used,
                         const int nr, const int np)
{
    for (int i = 0; i < np; i++, p += 16 * w) {
        __m512i x = _mm512_loadu_si512(p);
        codes_dot(acc[i], TRANSPOSE_BITS(_mm512_maskz_permutexvar_epi8(used, at0, x)), codes, stride, nr);
        codes_dot(acc[i], TRANSPOSE_BITS(_mm512_maskz_permutexvar_epi8(used, at1, x)), codes + 16, stride, nr);
    }
}
LADDER_OP void wide_pairs_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, uint32_t w, __m512i at0, __m512i at1, __mmask64 used,
                              const int nr, const int np)
{
    for (int i = 0; i < np; i++, p += 16 * w) {
        __m512i x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(p + 64);
        codes_dot(acc[i], TRANSPOSE_BITS(_mm512_maskz_permutex2var_epi8(used, x, at0, y)), codes, stride, nr);
        codes_dot(acc[i], TRANSPOSE_BITS(_mm512_maskz_permutex2var_epi8(used, x, at1, y)), codes + 16, stride, nr);
    }
}

static const struct { uint64_t at[2][7][8], used[7]; } by_width = {
#define ROW(w, s) {0x0008101820283038 + ONES(4 * s), 0x0008101820283038 + ONES(4 * s + 1), 0x0008101820283038 + ONES(4 * s + 2), 0x0008101820283038 + ONES(4 * s + 3), \
                   0x0008101820283038 + ONES(4 * s + 8 * w), 0x0008101820283038 + ONES(4 * s + 8 * w + 1), 0x0008101820283038 + ONES(4 * s + 8 * w + 2), 0x0008101820283038 + ONES(4 * s + 8 * w + 3)}
#define ONES(n) 0x0101010101010101 * (n)
    {{ROW(0, 0), ROW(1, 0), ROW(2, 0), ROW(3, 0), ROW(4, 0), ROW(5, 0), ROW(6, 0)}, {ROW(0, 1), ROW(1, 1), ROW(2, 1), ROW(3, 1), ROW(4, 1), ROW(5, 1), ROW(6, 1)}},
    {0, ONES(0x80ull), ONES(0xc0ull), ONES(0xe0ull), ONES(0xf0ull), ONES(0xf8ull), ONES(0xfcull)},
#undef ONES
#undef ROW
};

/* The same for a width that differs from block to block. */
LADDER_OP void block_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, uint32_t w, const int nr, const int np)
{
    __m512i at0 = _mm512_loadu_si512(by_width.at[0][w]), at1 = _mm512_loadu_si512(by_width.at[1][w]);
    if (w <= 4) pairs_dot(acc, p, codes, stride, w, at0, at1, by_width.used[w], nr, np);
    else wide_pairs_dot(acc, p, codes, stride, w, at0, at1, by_width.used[w], nr, np);
}
LADDER_OP void bits_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, const int w, const int nr, const int np)
{
    pairs_dot(acc, p, codes, stride, (uint32_t)w, planes_at((uint32_t)w, 0), planes_at((uint32_t)w, 1), planes_used((uint32_t)w), nr, np);
}
#else
LADDER_OP void bits_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, const int w, const int nr, const int np)
{
    for (int i = 0; i < np; i++, p += 16 * w)
        for (int s = 0; s < 2; s++) {
            __m512i c = n_zero();
            for (int b = 0; b < w; b++) {
                const uint8_t *q = p + 8 * b + 4 * s;
                __mmask64 bits = _mm512_kunpackd((__mmask64)(uint32_t)load32(q + 8 * w), (__mmask64)(uint32_t)load32(q));
                c = _mm512_mask_add_epi8(c, bits, c, _mm512_set1_epi8((char)(1 << b)));
            }
            codes_dot(acc[i], c, codes + 16 * s, stride, nr);
        }
}
LADDER_OP void block_dot(__m512i acc[4][8], const uint8_t *p, const int8_t *codes, size_t stride, uint32_t w, const int nr, const int np)
{
    switch (w) {
    case 1: bits_dot(acc, p, codes, stride, 1, nr, np); break;
    case 2: bits_dot(acc, p, codes, stride, 2, nr, np); break;
    case 3: bits_dot(acc, p, codes, stride, 3, nr, np); break;
    case 4: bits_dot(acc, p, codes, stride, 4, nr, np); break;
    case 5: bits_dot(acc, p, codes, stride, 5, nr, np); break;
    default: bits_dot(acc, p, codes, stride, 6, nr, np); break;
    }
}
#endif

/* Integer sums of query q: one row, or two of 15 bits. */
LADDER_OP __m512 row_sum(const __m512i *acc, int q, const bool wide)
{
    return n_float(wide ? n_add(n_shl(acc[2 * q], 7), acc[2 * q + 1]) : acc[q]);
}

/* ------------------------------------------------------------------ scores */
/* qs = q scale by rank; sums of q mid, largest |q scale|. */
LADDER_OP void fold_queries(ladder_run *R, uint32_t i, const int nq)
{
    const kv_attn_page *a = R->a + i;
    const kv_page_layout *L = a->layout;
    const uint16_t *halves = (const uint16_t *)(const void *)(a->data + L->triples_off);
    const __m512i nibble = _mm512_set_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i at3 = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 21, 18, 15, 12, 9, 6, 3, 0), one = n_set(1);
    const __m512 half_levels = _mm512_set_ps(0, 0, 0, 0, 0, 0, 0, 0, 0, 31.5f, 15.5f, 7.5f, 3.5f, 1.5f, .5f, 0);
    /* {smax, lo, step} of the widths 0 to 6; what follows in the page is not used. No bits: the value is the minimum. */
    __m512 t0 = v_f16(halves), t1 = v_f16(halves + 16);
    __m512 unit = _mm512_maskz_div_ps(0xfffe, _mm512_permutex2var_ps(t0, at3, t1), v_set(255.0f));
    __m512 lo = _mm512_permutex2var_ps(t0, n_add(at3, one), t1), step = _mm512_permutex2var_ps(t0, n_add(at3, n_set(2)), t1);
    __m512 top[QB], sum[QB];
    float *qs = R->w->qs + (size_t)i * QB * R->d64;
    for (int q = 0; q < QB; q++) top[q] = sum[q] = v_set(0.0f);
    for (uint32_t r = 0; r < L->dkp; r += 16) {
        __m512i width = _mm512_srlv_epi32(_mm512_set1_epi8((char)a->entry->k_widths[r / 16]), nibble); /* low 4 bits are used */
        __m512 s = v_mul(v_u8(a->data + L->k_scale_off + r), _mm512_permutexvar_ps(width, unit));
        __m512 min = v_fma(v_u8(a->data + L->k_min_off + r), _mm512_permutexvar_ps(width, step), _mm512_permutexvar_ps(width, lo));
        __m512 mid = v_fma(s, _mm512_permutexvar_ps(width, half_levels), min);
        __m512i at = n_u8(a->data + L->k_order_off + r), part = _mm512_srli_epi32(at, 5);
        for (int q = 0; q < nq; q++) {
            const float *query = a->q + (R->q0 + (uint32_t)q) * a->q_stride;
            __m512 x = _mm512_permutex2var_ps(v_load(query), at, v_load(query + 16));
            for (uint32_t c = 32; c < L->dkp; c += 32)
                x = _mm512_mask_mov_ps(x, _mm512_cmpeq_epi32_mask(part, n_set((int)(c / 32))), _mm512_permutex2var_ps(v_load(query + c), at, v_load(query + c + 16)));
            __m512 y = v_mul(x, s);
            sum[q] = v_fma(x, mid, sum[q]);
            top[q] = _mm512_range_ps(top[q], y, 11); /* the larger size */
            v_store(qs + (size_t)q * R->d64 + r, y);
        }
    }
    _mm_storeu_ps(R->top[i], most4(top[0], top[1], top[2], top[3]));
    _mm_storeu_ps(R->sum[i], sums4(sum[0], sum[1], sum[2], sum[3]));
}

/* scores = step isum + bias of np pairs of tiles from token t. */
LADDER_OP void k_pairs(const kv_attn_page *a, const int8_t *codes, size_t stride, uint32_t t, const float *step, const float *bias, float *scores,
                       size_t row, fetch *f, const int nq, const bool wide, const int np)
{
    const int nr = wide ? 2 * nq : nq;
    const kv_page_layout *L = a->layout;
    const uint8_t *p = a->data + L->k_off;
    __m512i acc[4][8];
    for (int i = 0; i < np; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = n_zero();
    for (uint32_t b = 0; b < L->dkp / 8u; b++) {
        uint32_t width = kv_page_width(a->entry, b);
        fetch_some(f, 2);
        if (width) block_dot(acc, p + width * t, codes + quad_at(2 * b), stride, width, nr, np);
        p += width * L->tokens;
    }
    for (int i = 0; i < np; i++)
        for (int q = 0; q < nq; q++) v_store(scores + (size_t)q * row + t + 16 * i, v_fma(row_sum(acc[i], q, wide), v_set(step[q]), v_set(bias[q])));
}

/* Query codes of page i, its scores. */
LADDER_OP void k_page(ladder_run *R, uint32_t i, const int nq, const bool wide)
{
    const kv_attn_page *a = R->a + i;
    const kv_page_layout *L = a->layout;
    const float *qs = R->w->qs + (size_t)i * QB * R->d64;
    int8_t *codes = R->w->codes;
    const size_t stride = R->w->codes_stride, row = (size_t)KV_ATTN_RUN * R->P16;
    const __m512i levels_of = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0x3f3f3f3f, 0x1f1f1f1f, 0x0f0f0f0f, 0x07070707, 0x03030303, 0x01010101, 0);
    __m128 step;
    float inv[QB], steps[QB], bias[QB];
    __m512i total[QB];
    steps4(R->top[i], wide ? KV_ATTN_Q16_MAX : KV_ATTN_Q8_MAX, &step, inv);
    for (int q = 0; q < QB; q++) total[q] = n_zero();
    for (uint32_t c = 0; c < L->dkp; c += 64) {
        /* Dword 4 l + k has ranks 16 k + 4 l ..: of block 2 k + (l >> 1), nibble by nibble. */
        const __m512i shift = _mm512_set_epi32(28, 20, 12, 4, 28, 20, 12, 4, 24, 16, 8, 0, 24, 16, 8, 0);
        __m512i levels = _mm512_permutexvar_epi32(_mm512_srlv_epi32(n_set(load32(a->entry->k_widths + c / 16)), shift), levels_of);
        int nv = L->dkp - c < 64 ? (int)(L->dkp - c) / 16 : 4;
        for (int q = 0; q < nq; q++) {
            int8_t *y = codes + (size_t)q * (wide ? 2 : 1) * stride + c;
            codes64(qs + (size_t)q * R->d64 + c, inv[q], nv, wide, y, stride);
            __m512i t = _mm512_dpbusd_epi32(n_zero(), levels, _mm512_loadu_si512(y));
            total[q] = n_add(total[q], wide ? _mm512_dpbusd_epi32(n_shl(t, 7), levels, _mm512_loadu_si512(y + stride)) : t);
        }
    }
    __m128 all = _mm_cvtepi32_ps(isums4(total[0], total[1], total[2], total[3]));
    _mm_storeu_ps(steps, step);
    _mm_storeu_ps(bias, _mm_fmadd_ps(_mm_mul_ps(all, _mm_set1_ps(-0.5f)), step, _mm_loadu_ps(R->sum[i])));
    float *scores = R->w->scores + (size_t)i * R->P16;
    uint32_t t = a->lo & ~15u, left = (a->hi - t + 15) / 16;
    fetch f = fetch_values(a);
    const uint32_t most = nq * (wide ? 2 : 1) > 4 ? 2 : 4;
    while (left) {
        uint32_t np = left <= most ? left : most == 4 && left < 7 ? 3 : most; /* 5 = 3 + 2, 6 = 3 + 3 */
        switch (np) {
        case 1: k_pairs(a, codes, stride, t, steps, bias, scores, row, &f, nq, wide, 1); break;
        case 2: k_pairs(a, codes, stride, t, steps, bias, scores, row, &f, nq, wide, 2); break;
        case 3: if (most == 4) k_pairs(a, codes, stride, t, steps, bias, scores, row, &f, nq, wide, 3); break;
        default: if (most == 4) k_pairs(a, codes, stride, t, steps, bias, scores, row, &f, nq, wide, 4); break;
        }
        t += 16 * np;
        left -= np;
    }
    fetch_rest(f);
}

/* ------------------------------------------------------------------ softmax */
/* Scores become probabilities times the token's scale; m, l, keep; sums and largest of the weighted by page. */
LADDER_OP void softmax_run(ladder_run *R, const int nq)
{
    const uint32_t P16 = R->P16;
    const size_t row = (size_t)KV_ATTN_RUN * P16;
    __m512 most[QB], base[QB], sum[QB];
    float top[QB], part[QB];
    for (int q = 0; q < QB; q++) {
        most[q] = v_set(-INFINITY);
        sum[q] = v_set(0.0f);
    }
    for (uint32_t i = 0; i < R->n; i++) {
        uint32_t lo = R->a[i].lo, hi = R->a[i].hi, g0 = lo & ~15u, g1 = (hi + 15) & ~15u;
        float *s = R->w->scores + (size_t)i * P16;
        if ((lo | hi) & 15)
            for (int q = 0; q < nq; q++) {
                float *x = s + (size_t)q * row;
                if (lo & 15) v_store(x + g0, v_keep(v_load(x + g0), (int)(lo & 15), 16, -INFINITY));
                if (hi & 15) v_store(x + g1 - 16, v_keep(v_load(x + g1 - 16), 0, (int)(hi & 15), -INFINITY));
            }
        for (uint32_t t = g0; t < g1; t += 16)
            for (int q = 0; q < nq; q++) most[q] = v_max(most[q], v_load(s + (size_t)q * row + t));
    }
    _mm_storeu_ps(top, most4(most[0], most[1], most[2], most[3]));
    float *m = R->a->m + R->q0, *l = R->a->l + R->q0;
    for (int q = 0; q < nq; q++) {
        float before = m[q], now = before > top[q] ? before : top[q], from = now == -INFINITY ? 0.0f : now;
        base[q] = v_set(from);
        R->keep[q] = v_first(v_exp2(v_set(before - from)));
        m[q] = now;
    }
    for (uint32_t i = 0; i < R->n; i++) {
        const kv_attn_page *a = R->a + i;
        const kv_page_layout *L = a->layout;
        float *s = R->w->scores + (size_t)i * P16;
        const uint8_t *u = a->data + L->a_off;
        int e0 = (int8_t)a->data[L->e0_off];
        e0 = e0 < -100 ? -100 : e0 > 100 ? 100 : e0;
        const __m512i bias = n_set((int)((uint32_t)(e0 + 127) << 23));
        __m512 big[QB], all[QB];
        for (int q = 0; q < QB; q++) big[q] = all[q] = v_set(0.0f);
        for (uint32_t t = a->lo & ~15u; t < a->hi; t += 16) {
            /* 2^(exponent + e0) (1 + mantissa / 16): the bytes go in above the 19 low bits of a float of exponent e0. The page may end behind its last 8 slots. */
            __m128i bytes = L->tokens - t >= 16 ? _mm_loadu_si128((const __m128i *)(const void *)(u + t)) : _mm_loadl_epi64((const __m128i *)(const void *)(u + t));
            __m512 scale = v_bits(n_add(n_shl19(_mm512_cvtepu8_epi32(bytes)), bias));
            for (int q = 0; q < nq; q++) {
                float *x = s + (size_t)q * row + t;
                __m512 p = v_exp2(v_sub(v_load(x), base[q])), y = v_mul(p, scale);
                sum[q] = v_add(sum[q], p);
                all[q] = v_add(all[q], y);
                big[q] = v_max(big[q], y);
                v_store(x, y);
            }
        }
        _mm_storeu_ps(R->top[i], most4(big[0], big[1], big[2], big[3]));
        _mm_storeu_ps(R->sum[i], sums4(all[0], all[1], all[2], all[3]));
    }
    _mm_storeu_ps(part, sums4(sum[0], sum[1], sum[2], sum[3]));
    for (int q = 0; q < nq; q++) l[q] = l[q] * R->keep[q] + part[q];
}

/* ------------------------------------------------------------------ values */
/* o += v_scale (step isum + off) + v_mid sum for np vectors of channels from c. */
LADDER_OP void v_pairs(const kv_attn_page *a, uint32_t q0, const int8_t *codes, size_t stride, uint32_t c, const float *step, const float *off,
                       const float *sum, fetch *f, const int nq, const bool wide, const int bits, const int np)
{
    const int nr = wide ? 2 * nq : nq;
    const kv_page_layout *L = a->layout;
    const uint32_t t1 = (a->hi + 7) / 8, tile_row = (uint32_t)L->dvp * (uint32_t)bits, first = a->lo / 16 * 4;
    const uint8_t *p = a->data + L->v_off + (size_t)bits * c;
    __m512i acc[4][8];
    for (int i = 0; i < np; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = n_zero();
    for (uint32_t t = a->lo / 8; t < t1; t++) {
        fetch_some(f, 2);
        bits_dot(acc, p + (size_t)t * tile_row, codes + quad_at(2 * t - first), stride, bits, nr, np);
    }
    /* the triple of V is the eighth */
    __m512 triple = v_f16((const uint16_t *)(const void *)(a->data + L->triples_off) + 16);
    __m512 unit = _mm512_permutexvar_ps(n_set(5), v_div(triple, v_set(255.0f)));
    __m512 lo = _mm512_permutexvar_ps(n_set(6), triple), inc = _mm512_permutexvar_ps(n_set(7), triple);
    const __m512 half = v_set(0.5f * (float)((1 << bits) - 1));
    for (int i = 0; i < np; i++) {
        uint32_t at = c + 16 * (uint32_t)i;
        __m512 s = v_mul(v_u8(a->data + L->v_scale_off + at), unit), mid = v_fma(s, half, v_fma(v_u8(a->data + L->v_min_off + at), inc, lo));
        for (int q = 0; q < nq; q++) {
            float *o = a->o + (q0 + (uint32_t)q) * a->o_stride + at;
            __m512 d = v_fma(row_sum(acc[i], q, wide), v_set(step[q]), v_set(off[q]));
            v_store(o, v_fma(s, d, v_fma(mid, v_set(sum[q]), v_load(o))));
        }
    }
}

/* Probability codes of page i, its values. */
LADDER_OP void v_page(ladder_run *R, uint32_t i, const int nq, const bool wide, const int bits)
{
    const kv_attn_page *a = R->a + i;
    const float *x = R->w->scores + (size_t)i * R->P16;
    int8_t *codes = R->w->codes;
    const size_t stride = R->w->codes_stride, row = (size_t)KV_ATTN_RUN * R->P16;
    const __m512i ones = _mm512_set1_epi8(1);
    __m128 step;
    float inv[QB], steps[QB], off[QB];
    __m512i total[QB];
    steps4(R->top[i], wide ? KV_ATTN_P16_MAX : KV_ATTN_Q8_MAX, &step, inv);
    for (int q = 0; q < QB; q++) total[q] = n_zero();
    const uint32_t t0 = a->lo & ~15u, t1 = (a->hi + 15u) & ~15u;
    for (uint32_t t = t0; t < t1; t += 64) {
        int nv = t1 - t < 64 ? (int)(t1 - t) / 16 : 4;
        for (int q = 0; q < nq; q++) {
            int8_t *y = codes + (size_t)q * (wide ? 2 : 1) * stride + (t - t0);
            codes64(x + (size_t)q * row + t, inv[q], nv, wide, y, stride);
            __m512i s = _mm512_dpbusd_epi32(n_zero(), ones, _mm512_loadu_si512(y));
            total[q] = n_add(total[q], wide ? _mm512_dpbusd_epi32(n_shl(s, 7), ones, _mm512_loadu_si512(y + stride)) : s);
        }
    }
    __m128 all = _mm_cvtepi32_ps(isums4(total[0], total[1], total[2], total[3]));
    _mm_storeu_ps(steps, step);
    _mm_storeu_ps(off, _mm_mul_ps(_mm_mul_ps(all, _mm_set1_ps(-0.5f * (float)((1 << bits) - 1))), step));
    uint32_t c = 0, n = a->layout->dvp;
    fetch f = fetch_next_keys(a);
    fetch_next_scales(a);
    if (nq * (wide ? 2 : 1) <= 4)
        for (; c + 64 <= n; c += 64) v_pairs(a, R->q0, codes, stride, c, steps, off, R->sum[i], &f, nq, wide, bits, 4);
    else
        for (; c + 32 <= n; c += 32) v_pairs(a, R->q0, codes, stride, c, steps, off, R->sum[i], &f, nq, wide, bits, 2);
    for (; c < n; c += 16) v_pairs(a, R->q0, codes, stride, c, steps, off, R->sum[i], &f, nq, wide, bits, 1);
    fetch_rest(f);
}

LADDER_OP void keep_values(const ladder_run *R, const int nq)
{
    for (int q = 0; q < nq; q++) {
        float *o = R->a->o + (R->q0 + (uint32_t)q) * R->a->o_stride;
        for (uint32_t c = 0; c < R->a->layout->dvp; c += 16) v_store(o + c, v_mul(v_load(o + c), v_set(R->keep[q])));
    }
}

/* ------------------------------------------------------------------ a run */
#define BY_QUERIES(fn, ...)                                                    \
    switch (nq) {                                                              \
    case 1: fn(__VA_ARGS__ 1); break;                                          \
    case 2: fn(__VA_ARGS__ 2); break;                                          \
    case 3: fn(__VA_ARGS__ 3); break;                                          \
    default: fn(__VA_ARGS__ 4); break;                                         \
    }

static LADDER_TARGET void run_queries(ladder_run *R, const int nq)
{
    for (uint32_t i = 0; i < R->n; i++) BY_QUERIES(fold_queries, R, i, )
}
static LADDER_TARGET void run_softmax(ladder_run *R, const int nq)
{
    BY_QUERIES(softmax_run, R, )
    BY_QUERIES(keep_values, R, )
}
static LADDER_TARGET void k_page_any(ladder_run *R, uint32_t i, const int nq, const bool wide)
{
    switch (nq | (wide ? 8 : 0)) {
    case 1: k_page(R, i, 1, false); break;
    case 2: k_page(R, i, 2, false); break;
    case 3: k_page(R, i, 3, false); break;
    case 4: k_page(R, i, 4, false); break;
    case 9: k_page(R, i, 1, true); break;
    case 10: k_page(R, i, 2, true); break;
    case 11: k_page(R, i, 3, true); break;
    default: k_page(R, i, 4, true); break;
    }
}
LADDER_OP void v_page_bits(ladder_run *R, uint32_t i, const int nq, const bool wide, const int bits)
{
    switch (nq) {
    case 1: v_page(R, i, 1, wide, bits); break;
    case 2: v_page(R, i, 2, wide, bits); break;
    case 3: v_page(R, i, 3, wide, bits); break;
    default: v_page(R, i, 4, wide, bits); break;
    }
}
/* V has 2 or 3 bits with codes of 8, 4 with codes of 16. */
static LADDER_TARGET void v_page_any(ladder_run *R, uint32_t i, const int nq, const bool wide)
{
    if (wide) v_page_bits(R, i, nq, true, 4);
    else if (R->a->layout->v_bits == 3) v_page_bits(R, i, nq, false, 3);
    else v_page_bits(R, i, nq, false, 2);
}

static LADDER_TARGET void ladder_pages(const kv_attn_page *a, uint32_t n, kv_attn_work *w)
{
    const kv_page_layout *L = a->layout;
    const bool kwide = kv_formats[L->kf].code_bits == 16, vwide = kv_formats[L->vf].code_bits == 16;
    ladder_run R = {.a = a, .w = w, .n = n, .P16 = kv_pad16(L->tokens), .d64 = (L->dkp + 63u) & ~63u};
    for (; R.q0 < a->nq; R.q0 += QB) {
        int nq = a->nq - R.q0 < QB ? (int)(a->nq - R.q0) : QB;
        run_queries(&R, nq);
        for (uint32_t i = 0; i < n; i++) k_page_any(&R, i, nq, kwide);
        if (a->tap) kv_attn_kernels_avx512.tap(a, n, w->scores, (size_t)KV_ATTN_RUN * R.P16, R.P16, R.q0, nq);
        run_softmax(&R, nq);
        for (uint32_t i = 0; i < n; i++) v_page_any(&R, i, nq, vwide);
    }
}
