/* SPDX-License-Identifier: Apache-2.0 */
/* The registry: a new architecture is its file and one line here. */
#include "model/arch/arch.h"

#include <string.h>

static const kv_arch *const archs[] = {&kv_arch_llama, &kv_arch_qwen2, &kv_arch_qwen3};

const kv_arch *kv_arch_find(const char *name) {
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (!strcmp(archs[i]->name, name)) return archs[i];
    return NULL;
}

const char *kv_arch_names(void) { return "llama, qwen2, qwen3"; }
