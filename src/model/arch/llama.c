/* SPDX-License-Identifier: Apache-2.0 */
/* llama: Llama 2/3, SmolLM, Mistral. GGUF stores its q and k so that adjacent pairs rotate together. */
#include "model/arch/arch.h"

const kv_arch kv_arch_llama = {
    .version = KV_ARCH_VERSION, .name = "llama", .neox = false, .qkv_bias = false, .qk_norm = false};
