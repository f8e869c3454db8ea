/* SPDX-License-Identifier: Apache-2.0 */
/* The projections around attention; attention itself is the backend's, called by the engine which owns the cache. */
#include "model/model.h"

void kv_part_project(kv_forward *f, const kv_layer *l, const float *x, uint32_t rows) {
    const kv_backend_ops *ops = f->m->be->ops;
    const kv_hparams *hp = &f->m->hp;
    ops->rmsnorm(f->ex, x, l->attn_norm, hp->eps, rows, hp->n_embd, f->xn);
    kv_matmul_out outs[3] = {
        {.w = l->wq, .y = f->q, .y_stride = (size_t)hp->n_q * hp->dk, .bias = l->bq, .wide = true},
        {.w = l->wk, .y = f->k, .y_stride = (size_t)hp->n_kv * hp->dk, .bias = l->bk, .wide = true},
        {.w = l->wv, .y = f->v, .y_stride = (size_t)hp->n_kv * hp->dv, .bias = l->bv, .wide = true},
    };
    ops->matmul(f->ex, f->xn, rows, hp->n_embd, outs, 3);
    if (l->q_norm) ops->rmsnorm(f->ex, f->q, l->q_norm, hp->eps, rows * hp->n_q, hp->dk, f->q);
    if (l->k_norm) ops->rmsnorm(f->ex, f->k, l->k_norm, hp->eps, rows * hp->n_kv, hp->dk, f->k);
}

void kv_part_rotate(kv_forward *f, uint32_t rows) {
    const kv_backend_ops *ops = f->m->be->ops;
    const kv_hparams *hp = &f->m->hp;
    ops->rope(f->ex, &f->rope, f->q, rows, hp->n_q, hp->dk, f->positions);
    ops->rope(f->ex, &f->rope, f->k, rows, hp->n_kv, hp->dk, f->positions);
}

void kv_part_qkv(kv_forward *f, const kv_layer *l, const float *x, uint32_t rows) {
    kv_part_project(f, l, x, rows);
    kv_part_rotate(f, rows);
}

void kv_part_attn_out(kv_forward *f, const kv_layer *l, float *x, uint32_t rows) {
    const kv_hparams *hp = &f->m->hp;
    kv_matmul_out out = {.w = l->wo, .y = x, .y_stride = hp->n_embd, .bias = l->bo, .accumulate = true};
    f->m->be->ops->matmul(f->ex, f->att, rows, hp->n_q * hp->dv, &out, 1);
}
