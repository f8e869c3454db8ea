/* SPDX-License-Identifier: Apache-2.0 */
/* Hyperparameters out of GGUF metadata: validated here once, trusted everywhere else. */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Bounds that keep every later size product inside 64 bits and reject nonsense by name. */
enum {
    MAX_LAYERS = 1024,
    MAX_EMBD = 1 << 17,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 256,
    MIN_HEAD_DIM = 16,
    MAX_FF = 1 << 20
};

typedef struct reader {
    const kv_gguf *g;
    const char *arch;
    kv_error *err;
    char key[160];
} reader;

static const char *key_of(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, suffix);
    return r->key;
}

static kv_status need_u32(reader *r, const char *suffix, uint32_t lo, uint32_t hi, uint32_t *out) {
    const char *key = key_of(r, suffix);
    KV_TRY(kv_gguf_u32(r->g, key, out, r->err));
    if (*out < lo || *out > hi) KV_FAIL(r->err, FORMAT, "key '%s': %u is outside %u..%u", key, *out, lo, hi);
    return KVIST_OK;
}

static kv_status maybe_u32(reader *r, const char *suffix, uint32_t lo, uint32_t hi, uint32_t fallback, uint32_t *out) {
    *out = fallback;
    if (!kv_gguf_has(r->g, key_of(r, suffix))) return KVIST_OK;
    return need_u32(r, suffix, lo, hi, out);
}

static kv_status maybe_f32(reader *r, const char *suffix, float fallback, float *out) {
    *out = fallback;
    if (!kv_gguf_has(r->g, key_of(r, suffix))) return KVIST_OK;
    KV_TRY(kv_gguf_f32(r->g, r->key, out, r->err));
    if (!isfinite(*out)) KV_FAIL(r->err, FORMAT, "key '%s' is not finite", r->key);
    return KVIST_OK;
}

static kv_status read_rope(reader *r, const kv_arch *arch, const kv_hparams *hp, kv_rope_params *rope) {
    memset(rope, 0, sizeof *rope);
    rope->neox = arch->neox;
    KV_TRY(maybe_f32(r, "rope.freq_base", 10000.0f, &rope->base));
    if (rope->base <= 1.0f)
        KV_FAIL(r->err, FORMAT, "key '%s': base %g must be above 1", key_of(r, "rope.freq_base"), (double)rope->base);
    KV_TRY(maybe_f32(r, "rope.scaling.factor", 1.0f, &rope->factor));
    if (rope->factor == 1.0f) { /* files of early converters: 1/factor under another name */
        KV_TRY(maybe_f32(r, "rope.scale_linear", 1.0f, &rope->factor));
        if (rope->factor != 1.0f) rope->scaling = KV_ROPE_LINEAR;
    }
    if (rope->factor <= 0.0f) KV_FAIL(r->err, FORMAT, "key '%s': factor must be positive", r->key);
    KV_TRY(maybe_f32(r, "rope.scaling.attn_factor", 1.0f, &rope->attn_factor));
    KV_TRY(maybe_f32(r, "rope.scaling.yarn_beta_fast", 32.0f, &rope->beta_fast));
    KV_TRY(maybe_f32(r, "rope.scaling.yarn_beta_slow", 1.0f, &rope->beta_slow));
    KV_TRY(maybe_u32(r, "rope.scaling.original_context_length", 1, UINT32_MAX, hp->n_ctx_train, &rope->n_ctx_orig));
    if (!kv_gguf_has(r->g, key_of(r, "rope.scaling.type"))) return KVIST_OK;
    const char *type;
    KV_TRY(kv_gguf_str(r->g, r->key, &type, NULL, r->err));
    if (!strcmp(type, "none"))
        rope->scaling = KV_ROPE_NONE;
    else if (!strcmp(type, "linear"))
        rope->scaling = KV_ROPE_LINEAR;
    else if (!strcmp(type, "yarn"))
        rope->scaling = KV_ROPE_YARN;
    else
        KV_FAIL(r->err, UNSUPPORTED, "key '%s': RoPE scaling '%s' (built: none, linear, yarn, Llama-3 factors)", r->key,
                type);
    return KVIST_OK;
}

kv_status kv_hparams_read(const kv_gguf *g, const kv_arch *arch, kv_hparams *hp, kv_rope_params *rope, kv_error *err) {
    reader r = {.g = g, .arch = arch->name, .err = err};
    memset(hp, 0, sizeof *hp);
    KV_TRY(need_u32(&r, "block_count", 1, MAX_LAYERS, &hp->n_layers));
    KV_TRY(need_u32(&r, "context_length", 1, 1u << 30, &hp->n_ctx_train));
    KV_TRY(need_u32(&r, "embedding_length", 1, MAX_EMBD, &hp->n_embd));
    KV_TRY(need_u32(&r, "feed_forward_length", 1, MAX_FF, &hp->n_ff));
    KV_TRY(need_u32(&r, "attention.head_count", 1, MAX_HEADS, &hp->n_q));
    KV_TRY(maybe_u32(&r, "attention.head_count_kv", 1, MAX_HEADS, hp->n_q, &hp->n_kv));
    if (hp->n_q % hp->n_kv)
        KV_FAIL(err, FORMAT, "%s: %u query heads are not a multiple of %u KV heads", arch->name, hp->n_q, hp->n_kv);
    KV_TRY(maybe_u32(&r, "attention.key_length", MIN_HEAD_DIM, MAX_HEAD_DIM, hp->n_embd / hp->n_q, &hp->dk));
    KV_TRY(maybe_u32(&r, "attention.value_length", MIN_HEAD_DIM, MAX_HEAD_DIM, hp->dk, &hp->dv));
    if (hp->dk < MIN_HEAD_DIM || hp->dk > MAX_HEAD_DIM || hp->dk % 2)
        KV_FAIL(err, UNSUPPORTED, "%s: head dimension %u (even, %d to %d)", arch->name, hp->dk, MIN_HEAD_DIM,
                MAX_HEAD_DIM);
    KV_TRY(maybe_u32(&r, "rope.dimension_count", 2, hp->dk, hp->dk, &hp->n_rot));
    if (hp->n_rot % 2) KV_FAIL(err, FORMAT, "%s.rope.dimension_count: %u is odd", arch->name, hp->n_rot);
    KV_TRY(maybe_u32(&r, "attention.sliding_window", 0, UINT32_MAX, 0, &hp->window));
    if (hp->window >= hp->n_ctx_train) hp->window = 0; /* never reached inside the trained context */
    KV_TRY(maybe_f32(&r, "attention.layer_norm_rms_epsilon", 1e-5f, &hp->eps));
    hp->attn_scale = 1.0f / sqrtf((float)hp->dk);
    if (kv_gguf_has(g, key_of(&r, "expert_count"))) {
        uint32_t experts;
        KV_TRY(kv_gguf_u32(g, r.key, &experts, err));
        if (experts) KV_FAIL(err, UNSUPPORTED, "key '%s': mixtures of experts are not built", r.key);
    }
    return read_rope(&r, arch, hp, rope);
}
