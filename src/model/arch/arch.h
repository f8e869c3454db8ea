/* SPDX-License-Identifier: Apache-2.0 */
/* The architectures' descriptors, one file each. */
#ifndef KV_MODEL_ARCH_H
#define KV_MODEL_ARCH_H
#include "model/model.h"
extern const kv_arch kv_arch_llama, kv_arch_qwen2, kv_arch_qwen3;
#endif
