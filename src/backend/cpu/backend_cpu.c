/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU backend: chooses kernels by level, makes execution contexts, fills the table of operations.
 * Owns: kv_cpu_backend, kv_cpu_exec. Must not know: what the sections compute.
 */
#include "backend/cpu/cpu.h"
#include "base/alloc.h"

static void backend_close(kv_backend *be) {
    kv_cpu_weights_unmap((kv_cpu_backend *)be);
    kv_free(be);
}

static void exec_free(kv_exec *ex_) {
    kv_cpu_exec *ex = kv_cpu_exec_of(ex_);
    if (!ex) return;
    kv_encode_exec_free(ex);
    kv_attn_exec_free(ex);
    kv_matmul_exec_free(ex);
    kv_threads_free(&ex->threads);
    kv_free(ex);
}

static kv_status exec_fill(kv_cpu_exec *ex, kv_error *err) {
    KV_TRY(kv_threads_create(ex->params.threads, &ex->threads, err));
    KV_TRY(kv_matmul_exec_init(ex, err));
    KV_TRY(kv_attn_exec_init(ex, err));
    return kv_encode_exec_init(ex, err);
}

static kv_status exec_create(kv_backend *be, const kv_exec_params *p, kv_exec **out, kv_error *err) {
    *out = NULL;
    kv_cpu_exec *ex = kv_calloc(1, sizeof *ex);
    if (!ex) KV_FAIL(err, MEMORY, "execution context");
    ex->base.be = be;
    ex->be = (kv_cpu_backend *)be;
    ex->params = *p;
    if (ex->params.threads == 0) ex->params.threads = 1;
    kv_status st = exec_fill(ex, err);
    if (st != KVIST_OK) {
        exec_free(&ex->base);
        return st;
    }
    *out = &ex->base;
    return KVIST_OK;
}

static const kv_backend_ops cpu_ops = {
    .version = KV_BACKEND_VERSION,
    .name = "cpu",
    .close = backend_close,
    .weight_create = kv_cpu_weight_create,
    .weight_free = kv_cpu_weight_free,
    .weight_bytes = kv_cpu_weight_bytes,
    .exec_create = exec_create,
    .exec_free = exec_free,
    .embed = kv_cpu_embed,
    .rmsnorm = kv_cpu_rmsnorm,
    .matmul = kv_cpu_matmul,
    .rope = kv_cpu_rope,
    .silu_mul = kv_cpu_silu_mul,
    .kv_to_f16 = kv_cpu_kv_to_f16,
    .q_squares = kv_cpu_q_squares,
    .q_moments = kv_cpu_q_moments,
    .key_forms = kv_cpu_key_forms,
    .attn_supported = kv_cpu_attn_supported,
    .attn_prefill = kv_cpu_attn_prefill,
    .attn_decode = kv_cpu_attn_decode,
    .attn_decode_mass = kv_cpu_attn_decode_mass,
    .attn_colsum = kv_cpu_attn_colsum,
    .seal = kv_cpu_seal,
};

kv_status kv_backend_cpu_open(int level, kv_backend **out, kv_error *err) {
    int best = kv_cpu_detect();
    *out = NULL;
    if (level < -1 || level >= KV_CPU_LEVELS) KV_FAIL(err, ARG, "CPU level %d does not exist", level);
    if (level > best)
        KV_FAIL(err, UNSUPPORTED, "CPU level %s is not available here; the best is %s", kv_cpu_level_name(level),
                kv_cpu_level_name(best));
    if (level < 0) level = best;
    kv_cpu_backend *be = kv_calloc(1, sizeof *be);
    if (!be) KV_FAIL(err, MEMORY, "CPU backend");
    be->base.ops = &cpu_ops;
    be->level = level;
    be->matmul = kv_matmul_kernels_get(level);
    be->attn = kv_attn_kernels_get(level);
    be->encode = kv_encode_kernels_get(level);
    be->elem = kv_elem_kernels_get(level);
    *out = &be->base;
    return KVIST_OK;
}

int kv_backend_cpu_level(const kv_backend *be) { return ((const kv_cpu_backend *)be)->level; }
