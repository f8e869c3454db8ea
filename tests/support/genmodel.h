/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small complete models for tests: random weights in real shapes, metadata and tensor names as llama.cpp writes them, a
 * byte-level BPE tokenizer with ChatML. Activations and logits stay sane (logits with a standard deviation near 3) and
 * attention is far from uniform (scores with a deviation near 2.5), so that evicting and quantizing have an effect.
 */
#ifndef KV_TESTS_GENMODEL_H
#define KV_TESTS_GENMODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "gguf/gguf.h"

typedef struct gen_spec {
    const char *arch; /* "llama", "qwen2", "qwen3" */
    uint32_t n_layers, n_embd, n_heads, n_kv, head_dim;
    uint32_t head_dim_v; /* 0: head_dim */
    uint32_t n_ff;
    uint32_t n_vocab; /* at least GEN_VOCAB_MIN; the tokens past the real ones are "<extra_I>" */
    uint32_t n_ctx;
    uint32_t type;   /* weights (enum kv_type); rows that are not whole blocks of it become F16 */
    uint32_t type_v; /* attn_v and ffn_down, as mixed files have it; used when mixed */
    bool mixed;
    bool tied; /* no output.weight */
    const char
        *rope_scaling; /* NULL, "linear" (factor 2), "yarn" (factor 4 over n_ctx / 4), "llama3" (rope_freqs.weight) */
    float rope_base;   /* 0: 10000 */
    uint32_t window;   /* sliding window of every layer; 0: none */
    uint64_t seed;
} gen_spec;

/* 256 bytes, 8 merges, <|endoftext|> <|im_start|> <|im_end|>: ids 0-255, 256-263, 264-266. */
enum { GEN_MERGES = 8, GEN_EOT = 256 + GEN_MERGES, GEN_IM_START, GEN_IM_END, GEN_VOCAB_MIN };

/* llama, 2 layers, n_embd 64, 4 heads on 2 KV heads of 16, n_ff 128, vocabulary 320, context 4096, F32, untied. */
gen_spec gen_spec_default(void);

/* Writes the model; 0, or -1 after saying why on stderr. The same spec gives the same file. */
int gen_model(const gen_spec *spec, const char *path);

/* A new empty file "kvist-test-XXXXXX" in $TMPDIR or /tmp for a generated model; its path in buf (cap >= 64). 0 or -1.
 * The caller unlinks it. */
int gen_temp_path(char *buf, int cap);

#endif
