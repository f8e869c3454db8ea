/* SPDX-License-Identifier: Apache-2.0 */
/* SwiGLU feed-forward. */
#include "model/model.h"

void kv_part_ffn(kv_forward *f, const kv_layer *l, float *x, uint32_t rows) {
    const kv_backend_ops *ops = f->m->be->ops;
    const kv_hparams *hp = &f->m->hp;
    ops->rmsnorm(f->ex, x, l->ffn_norm, hp->eps, rows, hp->n_embd, f->xn);
    kv_matmul_out outs[2] = {{.w = l->gate, .y = f->gate, .y_stride = hp->n_ff},
                             {.w = l->up, .y = f->up, .y_stride = hp->n_ff}};
    ops->matmul(f->ex, f->xn, rows, hp->n_embd, outs, 2);
    ops->silu_mul(f->ex, f->gate, f->up, rows, hp->n_ff, f->gate);
    kv_matmul_out down = {.w = l->down, .y = x, .y_stride = hp->n_embd, .accumulate = true};
    ops->matmul(f->ex, f->gate, rows, hp->n_ff, &down, 1);
}
