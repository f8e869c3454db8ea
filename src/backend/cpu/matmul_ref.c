/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix product kernels in portable C: the arithmetic of matmul.h as it reads.
 * Owns: level 0. Must not know: instruction sets. Slow, and the same bits as the other levels.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/matmul.h"
#include "base/half.h"

/* One block; rest[32] = x - d q, which is 0 or NaN where x counts as zeros or is not finite. */
static void quantize_block(const float *x, uint32_t T, uint32_t r, uint8_t *act, float *rest) {
    uint32_t top = 0; /* greatest |x| as bits: NaN above inf above numbers, whatever the order */
    for (int i = 0; i < 32; i++) {
        uint32_t u = kv_f32_bits(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    float amax = kv_bits_f32(top), d = 0, id = 0;
    if (top >= 0x7f800000u) {
        d = NAN;
    } else if (amax > KV_ACT_TINY) {
        d = amax / 127.0f;
        id = 127.0f / amax;
    }
    int32_t sum[2] = {0, 0};
    for (uint32_t i = 0; i < 32; i++) {
        int8_t q = id > 0 ? (int8_t)rintf(x[i] * id) : 0;
        sum[i / 16] += q;
        act[(i / 4) * 4 * T + 4 * r + i % 4] = (uint8_t)q;
        rest[i] = x[i] - d * (float)q;
    }
    kv_act_put_sums(act, T, r, d, sum[0], sum[1]);
}

static void quantize(const float *x, uint32_t k, uint32_t T, uint32_t r, bool wide, uint8_t *act) {
    float rest[32], unused[32];
    for (uint32_t b = 0; b < k / 32; b++, act += KV_ACT_BYTES(T), x += 32) {
        quantize_block(x, T, r, act, rest);
        if (wide) quantize_block(rest, T, r + 1, act, unused);
    }
}

static void unpack(const kv_weight *w, uint32_t panel, uint32_t b0, uint32_t nb, uint8_t *rec, size_t stride) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    for (uint32_t b = b0; b < b0 + nb; b++, rec += stride) {
        for (uint32_t j = 0; j < 8; j++)
            for (uint32_t o = 0; o < KV_PANEL; o++) {
                uint32_t q = kv_pack_quad(w, p, b, j, o);
                memcpy(rec + 64 * j + 4 * o, &q, 4);
            }
        for (uint32_t g = 0; g < 2; g++)
            for (uint32_t o = 0; o < KV_PANEL; o++) {
                float s, m;
                kv_pack_scale(w, p, b, g, o, &s, &m);
                memcpy(rec + KV_REC_S + 64 * g + 4 * o, &s, 4);
                memcpy(rec + KV_REC_M + 64 * g + 4 * o, &m, 4);
            }
    }
}

static float dense_at(const kv_weight *w, const uint8_t *panel, size_t i) {
    uint16_t h;
    float f;
    if (w->type == KV_TYPE_F32) {
        memcpy(&f, panel + 4 * i, 4);
        return f;
    }
    memcpy(&h, panel + 2 * i, 2);
    return w->type == KV_TYPE_F16 ? kv_f16_f32(h) : kv_bf16_f32(h);
}

static void unpack_f32(const kv_weight *w, uint32_t panel, uint32_t k0, uint32_t nk, float *y) {
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    bool min = kv_scale_has_min(w->scale);
    int32_t zero = w->zshift >= 0 ? 1 << w->zshift : 0;
    for (uint32_t k = k0; k < k0 + nk; k++, y += 32)
        for (uint32_t o = 0; o < KV_PANEL; o++) {
            if (w->code == KV_CODE_DENSE) {
                y[o] = dense_at(w, p, (size_t)k * KV_PANEL + o);
                continue;
            }
            float s, m;
            kv_pack_scale(w, p, k / 32, (k / 16) & 1, o, &s, &m);
            uint32_t q = kv_pack_quad(w, p, k / 32, (k % 32) / 4, o) >> (8 * (k % 4));
            float v = s * (float)((int32_t)(q & 255u) - zero);
            y[o] = min ? v + m : v;
        }
}

/* Row of activations `row`, output o. */
static void finish(const kv_matmul_out *out, uint32_t row, uint32_t o, float acc) {
    bool second = out->wide && row % 2;
    float *y = out->y + (out->wide ? row / 2 : row) * out->y_stride + o;
    if (out->bias && second == out->wide) acc += out->bias[o];
    *y = out->accumulate || second ? acc + *y : acc;
}

static float f32_at(const uint8_t *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}
static int32_t i32_at(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* One record times one row of a tile of T rows, output lane o. */
static float block_dot(const uint8_t *rec, const uint8_t *act, uint32_t T, uint32_t r, uint32_t o, int32_t zshift,
                       bool min, bool g16, float acc) {
    uint32_t groups = g16 ? 2 : 1;
    float d = f32_at(act + KV_ACT_D(T) + 4 * r);
    for (uint32_t g = 0; g < groups; g++) {
        int32_t t = 0;
        for (uint32_t j = g * 4; j < (g16 ? 4 * g + 4 : 8); j++)
            for (uint32_t i = 0; i < 4; i++) t += (int32_t)rec[64 * j + 4 * o + i] * (int8_t)act[4 * T * j + 4 * r + i];
        if (zshift >= 0)
            t += i32_at(act + (g16 ? KV_ACT_NSUM16(T) + 4 * g * T : KV_ACT_NSUM(T)) + 4 * r) * (1 << zshift);
        acc = fmaf((float)t, f32_at(rec + KV_REC_S + 64 * g + 4 * o) * d, acc);
        if (min)
            acc = fmaf(f32_at(rec + KV_REC_M + 64 * g + 4 * o),
                       f32_at(act + (g16 ? KV_ACT_DSUM16(T) + 4 * g * T : KV_ACT_DSUM(T)) + 4 * r), acc);
    }
    return acc;
}

/* Calls the dot product of lane o (0..31 of the pair) and row r, over this range of k. */
static float lane_dot(const kv_mm_tile *t, uint32_t r, uint32_t o, float acc) {
    if (t->x) {
        const float *w = (const float *)(const void *)t->rec + o, *x = t->x + r * t->x_stride;
        for (uint32_t k = 0; k < t->nb; k++) acc = fmaf(x[k], w[32 * k], acc);
        return acc;
    }
    const uint8_t *act = t->act + r / KV_TILE_ROWS * t->act_stride;
    const uint8_t *rec = t->rec + o / KV_PANEL * KV_REC_BYTES;
    for (uint32_t b = 0; b < t->nb; b++, rec += 2 * KV_REC_BYTES, act += KV_ACT_BYTES(KV_TILE_ROWS))
        acc = block_dot(rec, act, KV_TILE_ROWS, r % KV_TILE_ROWS, o % KV_PANEL, t->zshift, t->min, t->g16, acc);
    return acc;
}

static void tile(const kv_mm_tile *t) {
    uint32_t lanes = kv_mm_lanes(t->out->w, t->panel) + kv_mm_lanes(t->out->w, t->panel + 1);
    for (uint32_t r = 0; r < t->rows; r++)
        for (uint32_t o = 0; o < lanes; o++) {
            float acc = lane_dot(t, r, o, t->first ? 0.0f : t->acc[32 * r + o]);
            if (t->last)
                finish(t->out, t->row0 + r, t->panel * KV_PANEL + o, acc);
            else
                t->acc[32 * r + o] = acc;
        }
}

static void gemv(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const uint8_t *act, uint32_t rows) {
    const kv_weight *w = out->w;
    (void)rows; /* 1: stream_rows */
    for (uint32_t p = p0; p < p1; p++) {
        float acc[KV_PANEL] = {0};
        for (uint32_t b = 0; b < w->nb; b++) {
            _Alignas(64) uint8_t rec[KV_REC_BYTES];
            unpack(w, p, b, 1, rec, 0);
            for (uint32_t o = 0; o < KV_PANEL; o++)
                acc[o] = block_dot(rec, act + KV_ACT_BYTES(1) * b, 1, 0, o, w->zshift, kv_scale_has_min(w->scale),
                                   kv_scale_is_g16(w->scale), acc[o]);
        }
        for (uint32_t o = 0; o < kv_mm_lanes(w, p); o++) finish(out, 0, p * KV_PANEL + o, acc[o]);
    }
}

static void gemv_f32(const kv_matmul_out *out, uint32_t p0, uint32_t p1, const float *x) {
    const kv_weight *w = out->w;
    for (uint32_t p = p0; p < p1; p++)
        for (uint32_t o = 0; o < kv_mm_lanes(w, p); o++) {
            const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
            float acc = 0;
            for (uint32_t k = 0; k < w->k; k++) acc = fmaf(x[k], dense_at(w, panel, (size_t)k * KV_PANEL + o), acc);
            finish(out, 0, p * KV_PANEL + o, acc);
        }
}

const struct kv_matmul_kernels kv_matmul_ref = {"ref", 1, quantize, NULL, unpack, unpack_f32, tile, tile, gemv, gemv_f32};
