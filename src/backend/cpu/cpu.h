/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU backend's own structures and its kernel table. Each section is filled by its own files, portable C first and
 * then overridden rung by rung: <section>_ref.c, <section>_avx2.c, <section>_avx512.c (compiled with their own flags,
 * chosen at run time). A kernel registered in kv_kernels is tested against level 0 and benchmarked by
 * `make bench-kernels`.
 */
#ifndef KV_BACKEND_CPU_CPU_H
#define KV_BACKEND_CPU_CPU_H

#include "backend/backend.h"
#include "base/cpu.h"

/* ---- matmul section (matmul_*.c, pack.c). Weights lie in panels of 16 outputs. Activations: per row and block of 32:
 * int8 + f32 scale (+ sum). */
typedef struct kv_act kv_act; /* quantized rows, defined in matmul.h */
struct kv_matmul_kernels;     /* defined in matmul.h */

/* ---- attention section (attn.h), encode section (encode.h), elementwise section (elem.h) */
struct kv_attn_kernels;
struct kv_encode_kernels;
struct kv_elem_kernels;

typedef struct kv_weight_region kv_weight_region; /* pack.c: where weights lie */

typedef struct kv_cpu_backend {
    kv_backend base;
    int level;
    kv_weight_region *weights; /* newest first; unmapped when the backend closes */
    const struct kv_matmul_kernels *matmul;
    const struct kv_attn_kernels *attn;
    const struct kv_encode_kernels *encode;
    const struct kv_elem_kernels *elem;
} kv_cpu_backend;

typedef struct kv_cpu_exec {
    kv_exec base;
    kv_cpu_backend *be;
    kv_exec_params params;
    kv_threads *threads;
    void *matmul_scratch; /* owned by the matmul section */
    void *attn_scratch;   /* owned by the attention section */
    void *encode_scratch; /* owned by the encode section */
} kv_cpu_exec;

static inline kv_cpu_exec *kv_cpu_exec_of(kv_exec *ex) { return (kv_cpu_exec *)ex; }

/* Each section: its kernels for a level (static const tables), its scratch, its operations. */
const struct kv_matmul_kernels *kv_matmul_kernels_get(int level);
kv_status kv_matmul_exec_init(kv_cpu_exec *ex, kv_error *err) KV_WARN_UNUSED;
void kv_matmul_exec_free(kv_cpu_exec *ex);
kv_status kv_cpu_weight_create(kv_backend *be, const kv_tensor *src, kv_threads *threads, kv_weight **out,
                               kv_error *err);
void kv_cpu_weight_free(kv_backend *be, kv_weight *w);
uint64_t kv_cpu_weight_bytes(const kv_weight *w);
void kv_cpu_weights_unmap(kv_cpu_backend *be);
void kv_cpu_embed(kv_exec *ex, const kv_weight *w, const int32_t *ids, uint32_t n, float *y);
void kv_cpu_matmul(kv_exec *ex, const float *x, uint32_t rows, uint32_t k, const kv_matmul_out *outs, uint32_t n_outs);

const struct kv_attn_kernels *kv_attn_kernels_get(int level);
kv_status kv_attn_exec_init(kv_cpu_exec *ex, kv_error *err) KV_WARN_UNUSED;
void kv_attn_exec_free(kv_cpu_exec *ex);
kv_status kv_cpu_attn_supported(kv_backend *be, const kv_attn_params *p, kv_error *err);
void kv_cpu_attn_prefill(kv_exec *ex, const kv_attn_params *p, const kv_attn_chunk *c);
void kv_cpu_attn_decode(kv_exec *ex, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows,
                        uint32_t n_rows);
void kv_cpu_attn_decode_mass(kv_exec *ex, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows,
                             const kv_attn_mass *mass, uint32_t n_rows);
void kv_cpu_attn_colsum(kv_exec *ex, const kv_attn_params *p, const kv_attn_colsum *c);

const struct kv_encode_kernels *kv_encode_kernels_get(int level);
kv_status kv_encode_exec_init(kv_cpu_exec *ex, kv_error *err) KV_WARN_UNUSED;
void kv_encode_exec_free(kv_cpu_exec *ex);
void kv_cpu_seal(kv_exec *ex, const kv_seal_job *jobs, uint32_t n_jobs);

const struct kv_elem_kernels *kv_elem_kernels_get(int level);
void kv_cpu_rmsnorm(kv_exec *ex, const float *x, const float *weight, float eps, uint32_t rows, uint32_t n, float *y);
void kv_cpu_rope(kv_exec *ex, const kv_rope *rope, float *x, uint32_t rows, uint32_t heads, uint32_t d,
                 const uint32_t *positions);
void kv_cpu_silu_mul(kv_exec *ex, const float *gate, const float *up, uint32_t rows, uint32_t n, float *y);
void kv_cpu_kv_to_f16(kv_exec *ex, const float *k, const float *v, uint32_t rows, uint32_t n_kv, uint32_t dk,
                      uint32_t dv, uint32_t row0, size_t head_stride, uint16_t *kf, uint16_t *vf);
void kv_cpu_q_squares(kv_exec *ex, const float *q, uint32_t rows, uint32_t n_q, uint32_t n_kv, uint32_t dk, float *q2);
void kv_cpu_q_moments(kv_exec *ex, const float *q, uint32_t rows, uint32_t n_q, uint32_t dk, kv_score_moments *m);
void kv_cpu_key_forms(kv_exec *ex, const kv_key_forms *f);

#endif
