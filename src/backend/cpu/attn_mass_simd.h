/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Masses: how one row's attention lies over its pages: part of attn_simd.h, which includes it. A page's probabilities are known when the row's
 * log-sum-exp is, after its last page; until then the tap of each page keeps enough of the scores (struct kv_attn_kernels says what), so that keys are read
 * once. Must not change what attention computes. Sums over 16 lanes as in attn_ref.c; query heads are added in ascending order.
 */

/* Lanes of the vector at slot g that lie in [lo, hi); the others -inf, also where nothing was computed. */
KV_INLINE v16 seen(const float *x, uint32_t g, uint32_t lo, uint32_t hi)
{
    if (g + 16 <= lo || g >= hi) return v_set(-INFINITY);
    if (g >= lo && g + 16 <= hi) return v_load(x + g);
    return v_keep(v_load(x + g), g < lo ? (int)(lo - g) : 0, hi - g < 16 ? (int)(hi - g) : 16, -INFINITY);
}

KV_INLINE void tap_page(const float *x, uint32_t lo, uint32_t hi, float *y)
{
    v16 most = v_set(-INFINITY), sum = v_set(0.0f), squares = v_set(0.0f);
    for (uint32_t g = lo & ~15u; g < hi; g += 16) most = v_max(most, seen(x, g, lo, hi));
    float m = v_hmax(most), from = m == -INFINITY ? 0.0f : m;
    for (uint32_t g = lo & ~15u; g < hi; g += 16) {
        v16 p = v_exp2(v_sub(seen(x, g, lo, hi), v_set(from)));
        sum = v_add(sum, p);
        squares = v_fma(p, p, squares);
    }
    y[0] = m;
    y[1] = v_hsum(sum);
    y[2] = v_hsum(squares);
}

static __attribute__((noinline)) void tap(const kv_attn_page *a, uint32_t n, const float *scores, size_t row, size_t step, uint32_t q0, int nq)
{
    for (uint32_t i = 0; i < n; i++)
        for (int q = 0; q < nq; q++) {
            const float *x = scores + (size_t)q * row + i * step;
            float *y = a[i].tap + (q0 + (uint32_t)q) * a[i].tap_stride;
            if (a[i].layout->kind == KV_KIND_F16)
                for (uint32_t g = 0; g < a[i].tap_stride; g += 16) v_store(y + g, seen(x, g, a[i].lo, a[i].hi));
            else
                tap_page(x, a[i].lo, a[i].hi, y);
        }
}

static void mass(float *y, uint32_t slots, uint32_t group, bool f16, const float *lse2, bool square)
{
    if (!f16) {
        float sum = 0.0f;
        for (uint32_t g = 0; g < group; g++) {
            const float *x = y + (size_t)g * slots;
            float p = v_first(v_exp2(v_set(x[0] - lse2[g])));
            sum += square ? x[2] * (p * p) : x[1] * p;
        }
        y[0] = sum;
        return;
    }
    for (uint32_t t = 0; t < slots; t += 16) {
        v16 sum = v_set(0.0f);
        for (uint32_t g = 0; g < group; g++) {
            v16 p = v_exp2(v_sub(v_load(y + (size_t)g * slots + t), v_set(lse2[g])));
            sum = v_add(sum, square ? v_mul(p, p) : p);
        }
        v_store(y + t, sum);
    }
}
