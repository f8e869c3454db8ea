/* SPDX-License-Identifier: Apache-2.0 */
/* qwen2: Qwen 2 and 2.5; biases on q, k and v. */
#include "model/arch/arch.h"

const kv_arch kv_arch_qwen2 = {
    .version = KV_ARCH_VERSION, .name = "qwen2", .neox = true, .qkv_bias = true, .qk_norm = false};
