/* SPDX-License-Identifier: Apache-2.0 */
/* Final norm and output projection. */
#include "model/model.h"

void kv_part_head(kv_forward *f, const float *x, uint32_t rows, float *logits) {
    const kv_hparams *hp = &f->m->hp;
    f->m->be->ops->rmsnorm(f->ex, x, f->m->output_norm, hp->eps, rows, hp->n_embd, f->xn);
    kv_matmul_out out = {.w = f->m->output, .y = logits, .y_stride = hp->n_vocab, .wide = true};
    f->m->be->ops->matmul(f->ex, f->xn, rows, hp->n_embd, &out, 1);
}
