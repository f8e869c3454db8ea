/* SPDX-License-Identifier: Apache-2.0 */
/* The table of tensor types. Block sizes come from the structs; a new type is one line here and its two functions. */
#include "gguf/blocks.h"
#include "gguf/gguf.h"

const int8_t kv_iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

#define TYPE(number, text, values, size, f) [number] = {text, values, size, kv_gguf_dequant_##f, kv_gguf_quant_##f}

static const kv_type_info types[] = {
    TYPE(KV_TYPE_F32, "F32", 1, 4, f32),
    TYPE(KV_TYPE_F16, "F16", 1, 2, f16),
    TYPE(KV_TYPE_BF16, "BF16", 1, 2, bf16),
    TYPE(KV_TYPE_Q4_0, "Q4_0", 32, sizeof(kv_q4_0), q4_0),
    TYPE(KV_TYPE_Q4_1, "Q4_1", 32, sizeof(kv_q4_1), q4_1),
    TYPE(KV_TYPE_Q5_0, "Q5_0", 32, sizeof(kv_q5_0), q5_0),
    TYPE(KV_TYPE_Q5_1, "Q5_1", 32, sizeof(kv_q5_1), q5_1),
    TYPE(KV_TYPE_Q8_0, "Q8_0", 32, sizeof(kv_q8_0), q8_0),
    TYPE(KV_TYPE_Q2_K, "Q2_K", 256, sizeof(kv_q2_k), q2_k),
    TYPE(KV_TYPE_Q3_K, "Q3_K", 256, sizeof(kv_q3_k), q3_k),
    TYPE(KV_TYPE_Q4_K, "Q4_K", 256, sizeof(kv_q4_k), q4_k),
    TYPE(KV_TYPE_Q5_K, "Q5_K", 256, sizeof(kv_q5_k), q5_k),
    TYPE(KV_TYPE_Q6_K, "Q6_K", 256, sizeof(kv_q6_k), q6_k),
    TYPE(KV_TYPE_IQ4_NL, "IQ4_NL", 32, sizeof(kv_iq4_nl), iq4_nl),
    TYPE(KV_TYPE_IQ4_XS, "IQ4_XS", 256, sizeof(kv_iq4_xs), iq4_xs),
};

const kv_type_info *kv_type_get(uint32_t type) {
    if (type >= sizeof types / sizeof *types || !types[type].name) return NULL;
    return &types[type];
}
