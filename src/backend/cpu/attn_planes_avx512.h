/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LADDER's integer loops over bit planes for AVX-512, included by attn_avx512.c and, with KV_ATTN_VBMI, by attn_vbmi_avx512.c, which differ in
 * plane_codes alone: a 64-bit plane of a tile is one mask register and codes are masked additions, or VBMI and GFNI transpose the bits
 * in two instructions for any width. vpdpbusd takes 8 channels x 8 tokens at once (dword lane 8 (c >> 2) + t for K, 8 (t >> 2) + c for V);
 * the two halves of the sum are folded last.
 */
#ifdef KV_ATTN_VBMI
#define PLANES_TARGET __attribute__((target("gfni,avx512vbmi")))
#else
#define PLANES_TARGET
#endif
#define PLANES_OP static inline __attribute__((always_inline)) PLANES_TARGET

/* Groups of 8 codes as operands of vpdpbusd: the first four in dwords 0-7, the others in 8-15. wide[group][8 rows][64]. */
PLANES_OP void expand(const int8_t *codes, size_t stride, uint32_t g0, uint32_t g1, int rows, int8_t *wide)
{
    const __m512i at = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    for (uint32_t g = g0; g < g1; g++)
        for (int r = 0; r < rows; r++) {
            __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(codes + (size_t)r * stride + 8 * g));
            _mm512_store_si512(wide + (g * 8 + (uint32_t)r) * 64, _mm512_permutexvar_epi32(at, _mm512_castsi128_si512(x)));
        }
}

/* The codes of a tile from its w planes of 64 bits. */
PLANES_OP __m512i plane_codes(const uint8_t *p, const int w)
{
#ifdef KV_ATTN_VBMI
    /* Byte j of plane b goes to byte 7 - b of qword j; the affine product of the unit matrix with it transposes 8 x 8 bits. 64 bytes are
     * read: behind the planes of a page lie more than 64 bytes of scales. */
    const __m512i qword = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i at = _mm512_add_epi64(_mm512_mullo_epi64(qword, _mm512_set1_epi64(0x0101010101010101)), _mm512_set1_epi64(0x0008101820283038));
    const __mmask64 used = 0x0101010101010101ull * (uint64_t)(0xff & ~(0xff >> w));
    __m512i x = _mm512_maskz_permutexvar_epi8(used, at, _mm512_loadu_si512(p));
    return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64((long long)0x8040201008040201ull), x, 0);
#else
    __m512i v = _mm512_maskz_mov_epi8(_load_mask64((__mmask64 *)(uintptr_t)p), _mm512_set1_epi8(1));
    for (int b = 1; b < w; b++)
        v = _mm512_mask_add_epi8(v, _load_mask64((__mmask64 *)(uintptr_t)(p + 8 * b)), v, _mm512_set1_epi8((char)(1 << b)));
    return v;
#endif
}

/* Two tiles' sums, halves folded, as one store: what is loaded as a vector later must have been stored as one. */
PLANES_OP void fold_store(int32_t *y, __m512i a, __m512i b)
{
    _mm512_storeu_si512(y, _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee)));
}

PLANES_OP void plane_tiles(__m512i acc[4][8], const uint8_t *p, const int8_t *wide, const int w, const int nr, const int nt)
{
    for (int i = 0; i < nt; i++) {
        __m512i code = plane_codes(p + 8 * w * i, w);
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_dpbusd_epi32(acc[i][r], code, _mm512_load_si512(wide + 64 * r));
    }
}

/* isum[r][8 t ..] of nt token tiles from t: sums over all blocks of channels. */
PLANES_OP void k_tiles(const kv_attn_page *a, const kv_attn_work *w, uint32_t t, size_t stride, const int nr, const int nt)
{
    const kv_page_layout *L = a->layout;
    const uint8_t *p = a->data + L->k_off;
    const int8_t *wide = w->wide;
    __m512i acc[4][8];
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_setzero_si512();
    for (uint32_t b = 0; b < L->dkp / 8u; b++, wide += 512) {
        uint32_t width = kv_page_width(a->entry, b);
        switch (width) {
        case 1: plane_tiles(acc, p + 8 * t, wide, 1, nr, nt); break;
        case 2: plane_tiles(acc, p + 16 * t, wide, 2, nr, nt); break;
        case 3: plane_tiles(acc, p + 24 * t, wide, 3, nr, nt); break;
        case 4: plane_tiles(acc, p + 32 * t, wide, 4, nr, nt); break;
        case 5: plane_tiles(acc, p + 40 * t, wide, 5, nr, nt); break;
        case 6: plane_tiles(acc, p + 48 * t, wide, 6, nr, nt); break;
        default: break;
        }
        p += width * L->tokens;
    }
    for (int i = 0; i < nt; i += 2)
        for (int r = 0; r < nr; r++) fold_store(w->isum + (size_t)r * stride + 8 * (t + (uint32_t)i), acc[i][r], acc[i + 1][r]);
}

PLANES_OP void k_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int nr)
{
    const int nt = nr <= 4 ? 4 : 2;
    uint32_t t = a->lo / 16 * 2, t1 = (a->hi + 15) / 16 * 2; /* a tile past the last is read as codes of no token and not used */
    for (; t + (uint32_t)nt <= t1; t += (uint32_t)nt) k_tiles(a, w, t, stride, nr, nt);
    for (; t < t1; t += 2) k_tiles(a, w, t, stride, nr, 2);
}

/* isum[r][8 c ..] of nt channel tiles from c: sums over the token tiles of [lo, hi). */
PLANES_OP void v_tiles(const kv_attn_page *a, const kv_attn_work *w, uint32_t c, size_t stride, const int bits, const int nr, const int nt)
{
    const kv_page_layout *L = a->layout;
    uint32_t t1 = (a->hi + 7) / 8, row = (uint32_t)L->dvp * (uint32_t)bits;
    const uint8_t *p = a->data + L->v_off + 8 * (size_t)bits * c;
    __m512i acc[4][8];
    for (int i = 0; i < nt; i++)
        for (int r = 0; r < nr; r++) acc[i][r] = _mm512_setzero_si512();
    for (uint32_t t = a->lo / 8; t < t1; t++) plane_tiles(acc, p + (size_t)t * row, w->wide + (size_t)t * 512, bits, nr, nt);
    for (int i = 0; i < nt; i += 2)
        for (int r = 0; r < nr; r++) fold_store(w->isum + (size_t)r * stride + 8 * (c + (uint32_t)i), acc[i][r], acc[i + 1][r]);
}

PLANES_OP void v_bits_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int bits, const int nr)
{
    const int nt = nr <= 4 ? 4 : 2;
    uint32_t c = 0, n = a->layout->dvp / 8u;
    for (; c + (uint32_t)nt <= n; c += (uint32_t)nt) v_tiles(a, w, c, stride, bits, nr, nt);
    for (; c < n; c += 2) v_tiles(a, w, c, stride, bits, nr, 2);
}

PLANES_OP void v_rows(const kv_attn_page *a, const kv_attn_work *w, size_t stride, const int nr)
{
    switch (a->layout->v_bits) {
    case 2: v_bits_rows(a, w, stride, 2, nr); break;
    case 3: v_bits_rows(a, w, stride, 3, nr); break;
    case 4: v_bits_rows(a, w, stride, 4, nr); break;
    default: v_bits_rows(a, w, stride, a->layout->v_bits, nr); break;
    }
}

#define BY_ROWS(nr, fn, ...)                                                   \
    switch (nr) {                                                              \
    case 1: fn(__VA_ARGS__, 1); break;                                         \
    case 2: fn(__VA_ARGS__, 2); break;                                         \
    case 3: fn(__VA_ARGS__, 3); break;                                         \
    case 4: fn(__VA_ARGS__, 4); break;                                         \
    case 6: fn(__VA_ARGS__, 6); break;                                         \
    default: fn(__VA_ARGS__, 8); break;                                        \
    }

static PLANES_TARGET void planes_k(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr)
{
    expand(w->codes, stride, 0, a->layout->dkp / 8u, nr, w->wide);
    BY_ROWS(nr, k_rows, a, w, stride)
}

static PLANES_TARGET void planes_v(const kv_attn_page *a, kv_attn_work *w, size_t stride, int nr)
{
    expand(w->codes, stride, a->lo / 8, (a->hi + 7) / 8, nr, w->wide);
    BY_ROWS(nr, v_rows, a, w, stride)
}
