/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers of the forward pass, sized once: nothing is allocated per token or per micro-step. */
#include "model/model.h"

#include "base/alloc.h"

#include <string.h>

static size_t round16(size_t n) { return (n + 15) & ~(size_t)15; }

kv_status kv_forward_init(kv_forward *f, const kv_model *m, const kv_exec_params *params, kv_error *err) {
    memset(f, 0, sizeof *f);
    const kv_hparams *hp = &m->hp;
    kv_exec_params p = *params;
    size_t R = p.max_rows;
    f->m = m;
    f->max_rows = p.max_rows;
    uint32_t nq = hp->n_q * hp->dk, no = hp->n_q * hp->dv;
    p.max_k = hp->n_embd > hp->n_ff ? hp->n_embd : hp->n_ff;
    if (p.max_k < no) p.max_k = no;
    p.max_n = hp->n_vocab > p.max_k ? hp->n_vocab : p.max_k;
    if (p.max_n < nq) p.max_n = nq;
    p.max_heads = hp->n_q;
    p.max_head_dim = hp->dk > hp->dv ? hp->dk : hp->dv;
    p.page_bytes = m->page_bytes;
    KV_TRY(m->be->ops->exec_create(m->be, &p, &f->ex, err));
    KV_TRY(kv_rope_build(&m->rope, hp->n_rot, p.max_ctx, &f->rope, &f->rope_tables, err));
    size_t sizes[] = {R * hp->n_embd, R * nq,       R * hp->n_kv * hp->dk, R * hp->n_kv * hp->dv,
                      R * no,         R * hp->n_ff, R * hp->n_ff,          R * hp->n_q};
    float **ptrs[] = {&f->xn, &f->q, &f->k, &f->v, &f->att, &f->gate, &f->up, &f->lse};
    size_t total = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) total += round16(sizes[i]);
    f->block = kv_malloc64(total * sizeof(float));
    if (!f->block) KV_FAIL(err, MEMORY, "buffers for %u rows", p.max_rows);
    memset(f->block, 0, total * sizeof(float));
    float *at = f->block;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *ptrs[i] = at;
        at += round16(sizes[i]);
    }
    f->positions = kv_calloc(R, sizeof *f->positions);
    if (!f->positions) KV_FAIL(err, MEMORY, "positions of %u rows", p.max_rows);
    f->bytes = total * sizeof(float) + R * sizeof *f->positions;
    return KVIST_OK;
}

void kv_forward_free(kv_forward *f) {
    if (f->ex) f->ex->be->ops->exec_free(f->ex);
    kv_free64(f->rope_tables);
    kv_free64(f->block);
    kv_free(f->positions);
    memset(f, 0, sizeof *f);
}
