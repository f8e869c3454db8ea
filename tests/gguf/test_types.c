/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor types: blocks of random bytes decoded by the Python package `gguf` 0.19.0 (an independent implementation)
 * against ours, bit for bit through a hash; encoders within their step; every field of every block in use.
 */
#include "support/support.h"

#include "gguf/gguf.h"

#include <math.h>

/* FNV-1a of the little-endian f32 results (after + 0, so that -0 and 0 are the same) and three of the values. Bytes:
 * splitmix64 (state: type + 1000), the top byte of each draw; bit 6 of the high byte of each float cleared (finite).
 * Blocks: 64 of 32 values, 8 of 256, 256 values of the plain types. */
static const struct golden {
    uint32_t type;
    const char *name;
    uint32_t block, bytes;
    uint64_t hash;
    float y[3]; /* 0, 17, last */
} golden[] = {
    {KV_TYPE_F32, "F32", 1, 4, 0x63681956f528f236ull, {0x1.8ba078p-96f, -0x1.54cbc0p-84f, -0x1.53c01ap-96f}},
    {KV_TYPE_F16, "F16", 1, 2, 0x5c6a28b73582e94full, {0x1.94c000p-1f, 0x1.930000p-5f, 0x1.67c000p-7f}},
    {KV_TYPE_BF16, "BF16", 1, 2, 0x3cf0cf5ead7d3741ull, {-0x1.280000p-93f, -0x1.3e0000p-83f, -0x1.f00000p-53f}},
    {KV_TYPE_Q4_0, "Q4_0", 32, 18, 0xa5fcc9d22dcb96eeull, {0x1.1ca000p-4f, 0x1.4c1000p-4f, -0x1.09c000p+0f}},
    {KV_TYPE_Q4_1, "Q4_1", 32, 20, 0x234c2ee8fec04700ull, {0x1.692000p-1f, 0x1.b85800p-1f, -0x1.abc2e0p+4f}},
    {KV_TYPE_Q5_0, "Q5_0", 32, 22, 0x256649f185ec7cf7ull, {0x1.d05800p-8f, 0x1.9cc000p-9f, -0x1.b14000p-2f}},
    {KV_TYPE_Q5_1, "Q5_1", 32, 24, 0x16e464e191dae561ull, {0x1.ada000p-4f, 0x1.653c00p-1f, -0x1.e72280p-4f}},
    {KV_TYPE_Q8_0, "Q8_0", 32, 34, 0x2b79fc04f5042e00ull, {0x1.6f4600p-8f, -0x1.0e4200p-8f, 0x1.b67000p-4f}},
    {KV_TYPE_Q2_K, "Q2_K", 256, 84, 0x818551e708297d95ull, {-0x1.2b8800p-3f, -0x1.6377c0p+2f, -0x1.248000p-5f}},
    {KV_TYPE_Q3_K, "Q3_K", 256, 110, 0xbfdaf875a5853d66ull, {0x1.a74000p-5f, -0x1.299900p+1f, 0x0.0p+0f}},
    {KV_TYPE_Q4_K, "Q4_K", 256, 144, 0x184f4a745f0ae161ull, {0x1.021f7cp+10f, 0x1.7971f0p+8f, 0x1.4d7d00p-3f}},
    {KV_TYPE_Q5_K, "Q5_K", 256, 176, 0xe0009f6809b98569ull, {0x1.e47140p+5f, 0x1.089d28p+8f, 0x1.84be04p-1f}},
    {KV_TYPE_Q6_K, "Q6_K", 256, 210, 0xb27510fb963c5231ull, {0x1.45b000p+5f, 0x1.d42d00p+3f, 0x1.6166a0p+7f}},
    {KV_TYPE_IQ4_NL, "IQ4_NL", 32, 18, 0x3ee4ff5a6028f841ull, {0x1.e14000p-11f, -0x1.810000p-12f, -0x1.c9e000p-10f}},
    {KV_TYPE_IQ4_XS, "IQ4_XS", 256, 136, 0xbdddc696b92c7796ull, {-0x1.078f98p+1f, -0x1.d27ac0p-2f, 0x1.264980p-2f}},
};
#define N_GOLDEN (sizeof golden / sizeof *golden)
#define MAX_VALUES 2048

static uint64_t fnv(const void *data, size_t n) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3ull;
    return h;
}

/* Random blocks of a type with finite floats, at p. Returns the number of values. */
static size_t random_blocks(const struct golden *g, uint8_t *p) {
    static const uint8_t f16_at[][3] = {
        /* offsets of f16 fields, 255: none */
        [KV_TYPE_Q4_0] = {0, 255, 255},   [KV_TYPE_Q4_1] = {0, 2, 255},     [KV_TYPE_Q5_0] = {0, 255, 255},
        [KV_TYPE_Q5_1] = {0, 2, 255},     [KV_TYPE_Q8_0] = {0, 255, 255},   [KV_TYPE_Q2_K] = {80, 82, 255},
        [KV_TYPE_Q3_K] = {108, 255, 255}, [KV_TYPE_Q4_K] = {0, 2, 255},     [KV_TYPE_Q5_K] = {0, 2, 255},
        [KV_TYPE_Q6_K] = {208, 255, 255}, [KV_TYPE_IQ4_NL] = {0, 255, 255}, [KV_TYPE_IQ4_XS] = {0, 255, 255}};
    size_t n_blocks = g->block == 32 ? 64 : g->block == 256 ? 8 : 256;
    uint64_t s = g->type + 1000;
    for (size_t i = 0; i < n_blocks * g->bytes; i++) p[i] = (uint8_t)(test_rand(&s) >> 56);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *q = p + b * g->bytes;
        if (g->block == 1)
            q[g->bytes - 1] &= 0xbf;
        else
            for (int k = 0; f16_at[g->type][k] != 255; k++) q[f16_at[g->type][k] + 1] &= 0xbf;
    }
    return n_blocks * g->block;
}

static void table(void **state) {
    size_t known = 0;
    for (uint32_t t = 0; t < 300; t++) known += kv_type_get(t) != NULL;
    assert_int_equal(known, N_GOLDEN);
    assert_null(kv_type_get(UINT32_MAX));
    for (size_t i = 0; i < N_GOLDEN; i++) {
        const kv_type_info *t = kv_type_get(golden[i].type);
        assert_non_null(t);
        assert_string_equal(t->name, golden[i].name);
        assert_int_equal(t->block, golden[i].block);
        assert_int_equal(t->bytes, golden[i].bytes);
    }
}

static void dequant_golden(void **state) {
    static uint8_t bytes[16384 + 1];
    static float y[MAX_VALUES + 1];
    for (size_t i = 0; i < N_GOLDEN; i++)
        for (int shift = 0; shift < 2; shift++) { /* also from an odd address */
            const struct golden *g = &golden[i];
            size_t n = random_blocks(g, bytes + shift);
            y[n] = 12345;
            kv_type_get(g->type)->dequant(bytes + shift, y, n);
            for (size_t j = 0; j < n; j++) y[j] += 0.0f;
            if (y[0] != g->y[0] || y[17] != g->y[1] || y[n - 1] != g->y[2] || fnv(y, n * 4) != g->hash)
                fail_msg("%s: %a %a %a", g->name, (double)y[0], (double)y[17], (double)y[n - 1]);
            assert_true(y[n] == 12345);
        }
}

/* The whole stays whole: decoding blocks one at a time is the same as all at once. */
static void dequant_block_by_block(void **state) {
    static uint8_t bytes[16384];
    static float all[MAX_VALUES], one[256];
    for (size_t i = 0; i < N_GOLDEN; i++) {
        const kv_type_info *t = kv_type_get(golden[i].type);
        size_t n = random_blocks(&golden[i], bytes);
        t->dequant(bytes, all, n);
        for (size_t b = 0; b < n / t->block; b++) {
            t->dequant(bytes + b * t->bytes, one, t->block);
            assert_memory_equal(one, all + b * t->block, t->block * 4);
        }
    }
}

/* Largest error of a decoded block over its range (max - min), by type: half a step of the code, plus what rounding the
 * group scales and minima to 4 or 6 bits adds. */
static double bound(uint32_t type) {
    switch (type) {
    case KV_TYPE_F32:
        return 0;
    case KV_TYPE_F16:
        return 1.0 / 2048;
    case KV_TYPE_BF16:
        return 1.0 / 256;
    case KV_TYPE_Q8_0:
        return 1.0 / 250;
    case KV_TYPE_Q6_K:
        return 1.0 / 50;
    case KV_TYPE_Q5_0:
    case KV_TYPE_Q5_1:
    case KV_TYPE_Q5_K:
        return 1.0 / 16;
    case KV_TYPE_Q3_K:
        return 1.0 / 4;
    case KV_TYPE_Q2_K:
        return 1.0 / 3;
    default:
        return 1.0 / 8; /* 4 bits; a symmetric block has only half its codes on the short side */
    }
}

static void encode(void **state) {
    static float x[MAX_VALUES], y[MAX_VALUES];
    static uint8_t bytes[16384];
    for (size_t i = 0; i < N_GOLDEN; i++) {
        const kv_type_info *t = kv_type_get(golden[i].type);
        uint64_t s = 77;
        for (int j = 0; j < MAX_VALUES; j++)
            x[j] = test_uniform(&s) * (j % 512 < 256 ? 1.0f : 0.01f) + (j > 1024 ? 0.3f : 0);
        memset(bytes, 0xaa, sizeof bytes);
        t->quant(x, bytes, MAX_VALUES);
        size_t used = MAX_VALUES / t->block * t->bytes;
        assert_int_equal(bytes[used], 0xaa);
        t->dequant(bytes, y, MAX_VALUES);
        for (int b = 0; b < MAX_VALUES; b += 256) {
            float lo = 0, hi = 0; /* ranges include 0: a minimum is never positive */
            for (int j = b; j < b + 256; j++) lo = fminf(lo, x[j]), hi = fmaxf(hi, x[j]);
            for (int j = b; j < b + 256; j++)
                if (!(fabs((double)y[j] - (double)x[j]) <= bound(golden[i].type) * (double)(hi - lo) + 1e-12))
                    fail_msg("%s value %d: %g for %g in %g..%g", t->name, j, (double)y[j], (double)x[j], (double)lo,
                             (double)hi);
        }
    }
}

static void encode_constant_groups(void **state) {
    static float x[MAX_VALUES], y[MAX_VALUES];
    static uint8_t bytes[16384];
    static const float constants[] = {0, 1, -1, 1e-30f, -3e-6f, 1000};
    for (size_t i = 0; i < N_GOLDEN; i++)
        for (size_t k = 0; k < sizeof constants / sizeof *constants; k++) {
            const kv_type_info *t = kv_type_get(golden[i].type);
            for (int j = 0; j < 256; j++) x[j] = constants[k];
            t->quant(x, bytes, 256);
            t->dequant(bytes, y, 256);
            for (int j = 0; j < 256; j++)
                if (!(fabsf(y[j] - x[j]) <= 0.12f * fabsf(x[j]) + 3e-6f))
                    fail_msg("%s: %g for %g", t->name, (double)y[j], (double)x[j]);
        }
}

/* Generated models must exercise all of a block: no byte of it may be the same in 256 blocks of random values. */
static void encoders_use_every_byte(void **state) {
    static float x[256 * 256];
    uint8_t *bytes = malloc(sizeof x);
    uint64_t s = 5;
    for (size_t j = 0; j < 256 * 256; j++) x[j] = test_normal(&s) * expf(test_normal(&s));
    for (size_t i = 0; i < N_GOLDEN; i++) {
        const kv_type_info *t = kv_type_get(golden[i].type);
        if (t->block == 1) continue;
        t->quant(x, bytes, 256 * t->block);
        for (uint32_t o = 0; o < t->bytes; o++) {
            uint8_t ones = 0, zeros = 0;
            for (int b = 0; b < 256; b++)
                ones |= bytes[(size_t)b * t->bytes + o], zeros |= (uint8_t)~bytes[(size_t)b * t->bytes + o];
            /* Scales are small and of one sign here and there: at least half of each byte's bits must move. */
            if (__builtin_popcount(ones & zeros) < 4)
                fail_msg("%s: byte %u hardly varies (%02x)", t->name, o, ones & zeros);
        }
    }
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table),  cmocka_unit_test(dequant_golden),         cmocka_unit_test(dequant_block_by_block),
        cmocka_unit_test(encode), cmocka_unit_test(encode_constant_groups), cmocka_unit_test(encoders_use_every_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
