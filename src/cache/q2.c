/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mean squared query of a stream's channels: the weights of the page encoder. Owns the running sum and the rows that
 * wait. Must not know: formats. Invariant: what a page was encoded with is a function of the positions before its end,
 * so rows enter the sum in position order and only when a page that ends there asks; truncation can then forget the
 * waiting ones.
 */
#include "cache/array.h"

#include "base/alloc.h"

#include <assert.h>
#include <string.h>

kv_status kv_q2_room(kv_seq *s, kv_stream *st, uint32_t need, kv_error *err) {
    kv_q2 *q = &st->q2;
    size_t row = st->shape->dk * sizeof(float);
    if (!q->sum) {
        uint32_t none = 0;
        void *sum = NULL;
        KV_TRY(kv_cache_grow(s, &sum, &none, 1, row, true, err));
        memset(sum, 0, row);
        q->sum = sum;
    }
    void *rows = q->rows;
    kv_status rc = kv_cache_grow(s, &rows, &q->cap_rows, need, row, need > q->n_rows + 1, err);
    q->rows = rows;
    return rc;
}

kv_status kv_q2_push(kv_seq *s, kv_stream *st, const float *row, kv_error *err) {
    kv_q2 *q = &st->q2;
    if (q->covered + q->n_rows >= KV_Q2_POSITIONS) return KVIST_OK;
    KV_TRY(kv_q2_room(s, st, q->n_rows + 1, err));
    memcpy(q->rows + (size_t)q->n_rows * st->shape->dk, row, st->shape->dk * sizeof *row);
    q->n_rows++;
    return KVIST_OK;
}

void kv_q2_mean(kv_stream *st, uint32_t end, float *mean) {
    kv_q2 *q = &st->q2;
    uint32_t dk = st->shape->dk, fold = 0;
    if (end > KV_Q2_POSITIONS) end = KV_Q2_POSITIONS;
    if (end > q->covered) fold = end - q->covered < q->n_rows ? end - q->covered : q->n_rows;
    for (uint32_t r = 0; r < fold; r++)
        for (uint32_t c = 0; c < dk; c++) q->sum[c] += q->rows[(size_t)r * dk + c];
    if (fold) {
        memmove(q->rows, q->rows + (size_t)fold * dk, (size_t)(q->n_rows - fold) * dk * sizeof *q->rows);
        q->n_rows -= fold;
        q->covered += fold;
    }
    uint32_t n = (q->covered - q->start) * st->shape->group;
    for (uint32_t c = 0; c < dk; c++) mean[c] = n ? q->sum[c] / (float)n : 1.0f;
}

void kv_q2_trim(kv_seq *s, kv_stream *st) {
    kv_q2 *q = &st->q2;
    size_t row = st->shape->dk * sizeof(float);
    void *rows = q->rows;
    if (q->cap_rows == q->n_rows) return;
    if (!q->n_rows) {
        kv_cache_drop(s, &rows, &q->cap_rows, row);
    } else {
        void *less = kv_realloc(rows, q->n_rows * row);
        if (!less) return; /* the larger one stays, and stays charged */
        uint64_t bytes = (uint64_t)(q->cap_rows - q->n_rows) * row;
        kv_pool_discharge(s->pool, bytes);
        s->charged -= bytes;
        q->cap_rows = q->n_rows;
        rows = less;
    }
    q->rows = rows;
}

void kv_q2_reset(kv_seq *s, kv_stream *st) {
    kv_q2 *q = &st->q2;
    size_t row = st->shape->dk * sizeof(float);
    void *sum = q->sum, *rows = q->rows;
    uint32_t one = sum ? 1 : 0;
    kv_cache_drop(s, &sum, &one, row);
    kv_cache_drop(s, &rows, &q->cap_rows, row);
    *q = (kv_q2){0};
}
