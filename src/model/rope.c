/* SPDX-License-Identifier: Apache-2.0 */
/* RoPE tables. Angles in double: at position 100,000 an f32 product is off by whole milliradians. */
#include "model/model.h"

#include "base/alloc.h"

#include <math.h>

/* Dimension at which a wavelength completes `rotations` turns in n_ctx positions (YaRN, arXiv 2309.00071, equation 17
 * ff.). */
static double yarn_dim(double n_rot, double n_ctx, double rotations, double base) {
    return n_rot * log(n_ctx / (rotations * 2.0 * M_PI)) / (2.0 * log(base));
}

kv_status kv_rope_build(const kv_rope_params *p, uint32_t n_rot, uint32_t n_positions, kv_rope *out, float **tables,
                        kv_error *err) {
    uint32_t half = n_rot / 2;
    size_t n = (size_t)half * n_positions;
    float *t = kv_malloc64(2 * n * sizeof(float));
    double *freq = kv_malloc(half * sizeof(double));
    if (!t || !freq) {
        kv_free64(t);
        kv_free(freq);
        KV_FAIL(err, MEMORY, "RoPE tables for %u positions", n_positions);
    }
    double magnitude = 1.0, low = 0, high = 0;
    if (p->scaling == KV_ROPE_YARN) {
        low = fmax(0.0, floor(yarn_dim(n_rot, p->n_ctx_orig, p->beta_fast, p->base)));
        high = fmin(n_rot - 1.0, ceil(yarn_dim(n_rot, p->n_ctx_orig, p->beta_slow, p->base)));
        magnitude = p->attn_factor * (1.0 + 0.1 * log((double)p->factor));
    }
    for (uint32_t i = 0; i < half; i++) {
        double f = pow((double)p->base, -2.0 * i / n_rot);
        if (p->factors) f /= p->factors[i];
        if (p->scaling == KV_ROPE_LINEAR) f /= p->factor;
        if (p->scaling == KV_ROPE_YARN) { /* fast dimensions extrapolate, slow ones interpolate */
            double ramp = fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low)));
            f = f / p->factor * ramp + f * (1.0 - ramp);
        }
        freq[i] = f;
    }
    for (uint32_t pos = 0; pos < n_positions; pos++)
        for (uint32_t i = 0; i < half; i++) {
            double a = pos * freq[i];
            t[(size_t)pos * half + i] = (float)(cos(a) * magnitude);
            t[n + (size_t)pos * half + i] = (float)(sin(a) * magnitude);
        }
    kv_free(freq);
    *tables = t;
    *out = (kv_rope){.cos = t, .sin = t + n, .n_rot = n_rot, .neox = p->neox, .n_positions = n_positions};
    return KVIST_OK;
}
