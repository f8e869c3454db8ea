/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3: each head of q and k is RMS-normalised before RoPE; no biases. */
#include "model/arch/arch.h"

const kv_arch kv_arch_qwen3 = {
    .version = KV_ARCH_VERSION, .name = "qwen3", .neox = true, .qkv_bias = false, .qk_norm = true};
