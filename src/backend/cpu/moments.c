/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moments of queries and the forms of keys (policy/scores.h), split over threads. Must not know: instruction sets, what
 * a score makes of them. Invariant: a query head's moments are added by one thread in row order, a key's form is
 * computed alone, so threads and calls change no bit.
 */
#include "backend/cpu/elem.h"
#include "base/half.h"

#include <assert.h>
#include <string.h>

enum { KEYS = 16, KEYS_PER_ITEM = 64 }; /* side by side in a kernel; a work item */

typedef struct moments_job {
    const struct kv_elem_kernels *kn;
    const float *q;
    uint32_t rows, n_q, dk;
    kv_score_moments *m;
} moments_job;

static void add_head(void *ctx, uint32_t h, uint32_t thread) {
    const moments_job *j = ctx;
    kv_score_moments *m = &j->m[h];
    const float *q = j->q + (size_t)h * j->dk;
    if (!m->n) memcpy(m->pivot, q, j->dk * sizeof *q);
    j->kn->outer(q, (size_t)j->n_q * j->dk, j->rows, m->pivot, j->dk, m->sum, m->outer);
    m->n += j->rows;
}

void kv_cpu_q_moments(kv_exec *ex_, const float *q, uint32_t rows, uint32_t n_q, uint32_t dk, kv_score_moments *m) {
    kv_cpu_exec *ex = kv_cpu_exec_of(ex_);
    moments_job j = {ex->be->elem, q, rows, n_q, dk, m};
    assert(dk <= KV_ELEM_MAX_DIM);
    if (rows) kv_threads_run(ex->threads, add_head, &j, n_q);
}

typedef struct forms_job {
    const struct kv_elem_kernels *kn;
    const kv_key_forms *f;
} forms_job;

/* kt[dk][16] of keys [first, first + n); zeros beside them. */
static void transpose(const uint16_t *k, uint32_t n, uint32_t dk, float *kt) {
    for (uint32_t t = 0; t < KEYS; t++)
        for (uint32_t c = 0; c < dk; c++) kt[c * KEYS + t] = t < n ? kv_f16_f32(k[(size_t)t * dk + c]) : 0;
}

static void form_keys(void *ctx, uint32_t item, uint32_t thread) {
    const kv_key_forms *f = ((const forms_job *)ctx)->f;
    float kt[KV_ELEM_MAX_DIM * KEYS], y[KEYS];
    uint32_t end = (item + 1) * KEYS_PER_ITEM < f->n ? (item + 1) * KEYS_PER_ITEM : f->n;
    for (uint32_t i = item * KEYS_PER_ITEM; i < end; i += KEYS) {
        uint32_t n = end - i < KEYS ? end - i : KEYS;
        transpose(f->k + (size_t)i * f->dk, n, f->dk, kt);
        for (uint32_t g = 0; g < f->group; g++) {
            ((const forms_job *)ctx)
                ->kn->forms(kt, f->dk, f->linear + (size_t)g * f->dk, f->square + (size_t)g * f->dk * f->dk, y);
            memcpy(f->y + g * f->y_stride + i, y, n * sizeof *y);
        }
    }
}

void kv_cpu_key_forms(kv_exec *ex_, const kv_key_forms *f) {
    kv_cpu_exec *ex = kv_cpu_exec_of(ex_);
    forms_job j = {ex->be->elem, f};
    assert(f->dk <= KV_ELEM_MAX_DIM);
    if (f->n) kv_threads_run(ex->threads, form_keys, &j, (f->n + KEYS_PER_ITEM - 1) / KEYS_PER_ITEM);
}
