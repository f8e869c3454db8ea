/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A loaded model: hyperparameters, tokenizer, packed weights, stream shapes; and the forward pass composed of layer
 * parts. Owns the GGUF mapping (metadata; weight pages are released after packing) and the backend. Must not know
 * sessions or batches. Immutable after kv_model_load, so any thread may read it.
 */
#ifndef KV_MODEL_MODEL_H
#define KV_MODEL_MODEL_H

#include "backend/backend.h"
#include "text/tokenizer.h"

typedef struct kv_hparams {
    uint32_t n_layers, n_embd, n_q, n_kv, dk, dv, n_ff, n_vocab, n_ctx_train;
    uint32_t n_rot;
    uint32_t window; /* sliding window of every layer, 0: none */
    float eps, attn_scale;
} kv_hparams;

enum kv_rope_scaling { KV_ROPE_NONE, KV_ROPE_LINEAR, KV_ROPE_YARN };

/* Frequencies: base^(-2i/n_rot) / factors[i], then the scaling (linear: position / factor; YaRN: arXiv 2309.00071,
 * section 3.4). */
typedef struct kv_rope_params {
    float base, factor, attn_factor, beta_fast, beta_slow;
    uint32_t n_ctx_orig;
    uint8_t scaling;
    bool neox;
    const float *factors; /* [n_rot/2] Llama-3 per-frequency divisors, or NULL; owned by the model */
} kv_rope_params;

/* An architecture is a row of this table: which optional parts its layers have. One file and one registry line each. */
#define KV_ARCH_VERSION 1u
typedef struct kv_arch {
    uint32_t version;
    const char *name; /* general.architecture and prefix of its keys */
    bool neox;        /* RoPE rotates halves (else adjacent pairs) */
    bool qkv_bias;    /* bias tensors of q, k, v are required */
    bool qk_norm;     /* RMS norm of each head of q and k before RoPE */
} kv_arch;
const kv_arch *kv_arch_find(const char *name); /* NULL: unknown */
const char *kv_arch_names(void);               /* comma separated, for messages */

typedef struct kv_layer {
    kv_weight *wq, *wk, *wv, *wo, *gate, *up, *down;
    float *attn_norm, *ffn_norm; /* [n_embd] */
    float *bq, *bk, *bv, *bo;    /* [n_q*dk] [n_kv*dk] [n_kv*dv] [n_embd], or NULL */
    float *q_norm, *k_norm;      /* [dk], or NULL */
} kv_layer;

struct kvist_model {
    kv_gguf *gguf;
    kv_tokenizer *tok;
    kv_backend *be;
    const kv_arch *arch;
    kv_hparams hp;
    kv_rope_params rope;
    float *rope_factors;
    kv_layer *layers;          /* [n_layers] */
    kv_weight *embed, *output; /* output == embed when tied */
    float *output_norm;        /* [n_embd] */
    kv_stream_shape *shapes;   /* [n_layers] */
    uint32_t *layer_first;     /* [n_layers + 1] */
    kv_attn_params attn;       /* the same in every layer of the architectures built so far */
    size_t page_bytes;
    uint64_t n_params, bytes_file, bytes_weights, hash;
    const char *name, *jinja; /* owned by gguf; jinja NULL when absent */
    const char *chat_family;  /* static or NULL */
    char type_name[16];       /* type of most weight bytes */
    kvist_log_fn log;
    void *log_user;
};
typedef struct kvist_model kv_model;

kv_status kv_model_load(const char *path, const kvist_model_params *params, kv_model **out,
                        kv_error *err) KV_WARN_UNUSED;
void kv_model_free(kv_model **m);

/* Hyperparameters and RoPE of an open file (also for `kvist info`, which loads nothing). */
kv_status kv_hparams_read(const kv_gguf *g, const kv_arch *arch, kv_hparams *hp, kv_rope_params *rope,
                          kv_error *err) KV_WARN_UNUSED;

/* cos/sin tables for n_positions, angles in double. Caller kv_free64()s *tables (one block). */
kv_status kv_rope_build(const kv_rope_params *p, uint32_t n_rot, uint32_t n_positions, kv_rope *out, float **tables,
                        kv_error *err) KV_WARN_UNUSED;

/* ---- forward: buffers for up to max_rows rows and the layer parts over them */

typedef struct kv_forward {
    const kv_model *m;
    kv_exec *ex;
    kv_rope rope;
    float *rope_tables;
    uint32_t max_rows;
    float *block;        /* one allocation behind all buffers below */
    float *xn;           /* [max_rows][n_embd] normalised input */
    float *q;            /* [max_rows][n_q][dk] */
    float *k, *v;        /* [max_rows][n_kv][dk], [..][dv] */
    float *att;          /* [max_rows][n_q][dv] */
    float *gate, *up;    /* [max_rows][n_ff] */
    float *lse;          /* [max_rows][n_q] */
    uint32_t *positions; /* [max_rows] */
    uint64_t bytes;      /* of the buffers, for accounting */
} kv_forward;

kv_status kv_forward_init(kv_forward *f, const kv_model *m, const kv_exec_params *p, kv_error *err) KV_WARN_UNUSED;
void kv_forward_free(kv_forward *f);

/* Layer parts. x[rows][n_embd] is the residual stream; positions in f->positions. */
void kv_part_project(kv_forward *f, const kv_layer *l, const float *x,
                     uint32_t rows);            /* norm, projections, QK norm → f->q, k, v */
void kv_part_rotate(kv_forward *f, uint32_t rows); /* RoPE of f->q, k */
void kv_part_qkv(kv_forward *f, const kv_layer *l, const float *x, uint32_t rows); /* both */
void kv_part_attn_out(kv_forward *f, const kv_layer *l, float *x, uint32_t rows); /* x += f->att · woᵀ */
void kv_part_ffn(kv_forward *f, const kv_layer *l, float *x,
                 uint32_t rows); /* x += down(silu(gate(n(x))) * up(n(x))) */
void kv_part_head(kv_forward *f, const float *x, uint32_t rows, float *logits); /* logits[rows][n_vocab] */

#endif
