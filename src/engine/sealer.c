/* SPDX-License-Identifier: Apache-2.0 */
/* Gathering and sealing; sealing of the tail while decoding; trimming of sliding windows. */
#include "engine/evict.h"

#include "cache/positions.h"

#include <math.h>
#include <string.h>

_Static_assert(KV_PAGE_TOKENS_MAX <= KV_POSITIONS_MAX, "a page's positions fit one list");

kv_run_source kv_run_source_of(const kv_seq *seq, kv_stream *st, const uint16_t *k, const uint16_t *v) {
    return (kv_run_source){
        .seq = seq, .st = st, .k = k, .v = v, .tail = st->tail_len, .dk = st->shape->dk, .dv = st->shape->dv};
}

kv_status kv_layer_layout(const kv_model *m, const kv_layer_policy *lp, uint32_t layer, kv_page_layout *out,
                          kv_error *err) {
    return kv_page_layout_get(lp->format, m->shapes[layer].dk, m->shapes[layer].dv, m->page_bytes, out, err);
}

kv_status kv_sealer_init(kv_sealer *se, kvist_session *s, uint32_t layer, kv_error *err) {
    const kv_model *m = s->e->m;
    memset(se, 0, sizeof *se);
    se->s = s;
    return kv_page_layout_get(kv_format_pair(KV_F16, KV_F16), m->shapes[layer].dk, m->shapes[layer].dv, m->page_bytes,
                              &se->f16, err);
}

float *kv_sealer_q2(kv_sealer *se) { return se->s->e->seal_q2 + (size_t)se->n_q2++ * se->s->e->m->hp.dk; }

static void gather(const kv_run_source *src, uint32_t token, uint16_t *k, uint16_t *v) {
    if (token < src->tail) {
        kv_tail_get(src->seq, src->st, token, k, v);
        return;
    }
    uint32_t r = token - src->tail;
    if (k) memcpy(k, src->k + (size_t)r * src->dk, src->dk * sizeof *k);
    if (v) memcpy(v, src->v + (size_t)r * src->dv, src->dv * sizeof *v);
}

void kv_run_rows(const void *run, uint32_t first, uint32_t n, uint16_t *k, uint16_t *v) {
    const kv_run_source *src = run;
    for (uint32_t i = 0; i < n; i++)
        gather(src, first + i, k ? k + (size_t)i * src->dk : NULL, v ? v + (size_t)i * src->dv : NULL);
}

kv_status kv_sealer_page(kv_sealer *se, const kv_run_source *src, const kv_page_layout *lay, uint32_t at,
                         const uint32_t *idx, uint32_t n, float price, uint8_t flags, const float *q2, kv_error *err) {
    kvist_engine *e = se->s->e;
    kv_stream *st = src->st;
    uint32_t page;
    bool track = se->s->seq->track && idx;
    KV_TRY(kv_engine_room(e, 1, track ? kv_positions_bound(n) : 0, err));
    KV_TRY(kv_stream_push(se->s->seq, st, price, &page, err));
    kv_page_entry *entry = kv_pool_entry(e->pool, page);
    entry->flags = flags;
    entry->first_pos = st->tail_pos + at + (idx ? idx[0] : 0);
    if (track) KV_TRY(kv_positions_put(e->pool, page, st->tail_pos + at, idx, n, err));
    uint16_t *k = e->seal_k + se->tokens * src->dk, *v = e->seal_v + se->tokens * src->dv;
    for (uint32_t i = 0; i < n; i++)
        gather(src, at + (idx ? idx[i] : i), k + (size_t)i * src->dk, v + (size_t)i * src->dv);
    st->tokens_sealed += n;
    se->layouts[se->n_jobs] = *lay;
    e->seal_jobs[se->n_jobs] = (kv_seal_job){.layout = &se->layouts[se->n_jobs],
                                             .n = n,
                                             .k = k,
                                             .v = v,
                                             .q2 = q2,
                                             .page = kv_pool_data(e->pool, page),
                                             .entry = entry};
    se->n_jobs++;
    se->tokens += n;
    if (se->n_jobs == e->max_seal_jobs || se->tokens + KV_SEAL_TOKENS > e->seal_tokens) return kv_sealer_flush(se, err);
    return KVIST_OK;
}

kv_status kv_sealer_flush(kv_sealer *se, kv_error *err) {
    kvist_engine *e = se->s->e;
    if (se->n_jobs) e->m->be->ops->seal(e->f.ex, e->seal_jobs, se->n_jobs);
    se->n_jobs = se->n_q2 = 0;
    se->tokens = 0;
    (void)err;
    return KVIST_OK;
}

kv_status kv_sealer_sinks(kv_sealer *se, const kv_run_source *src, uint32_t n, kv_error *err) {
    for (uint32_t i = 0; i < n; i += se->f16.tokens) {
        uint32_t m = n - i < se->f16.tokens ? n - i : se->f16.tokens;
        KV_TRY(kv_sealer_page(se, src, &se->f16, i, NULL, m, INFINITY, KV_PAGE_SINK, NULL, err));
    }
    return KVIST_OK;
}

kv_status kv_sealer_in_order(kv_sealer *se, const kv_run_source *src, const kv_page_layout *lay, uint32_t sink,
                             uint32_t pages, uint32_t length, kv_error *err) {
    KV_TRY(kv_sealer_sinks(se, src, sink, err));
    for (uint32_t i = 0; i < pages; i++) {
        float *q2 = kv_sealer_q2(se);
        uint32_t at = sink + i * lay->tokens;
        kv_q2_mean(src->st, src->st->tail_pos + at + lay->tokens, q2);
        KV_TRY(kv_sealer_page(se, src, lay, at, NULL, lay->tokens, 0.0f, 0, q2, err));
    }
    KV_TRY(kv_sealer_flush(se, err));
    src->st->sealed_at = length;
    return KVIST_OK;
}

void kv_trim_window(kvist_session *s, kv_stream *st, uint32_t length) {
    uint32_t window = s->e->m->attn.window;
    if (!window || length <= window) return;
    uint32_t first = length - window + 1; /* the next row, at position `length`, sees positions > length - window */
    bool any = false;
    for (uint32_t h = st->n_handles; h-- > 0;) {
        const kv_page_entry *pe = kv_pool_entry(s->e->pool, st->handles[h].page);
        if (pe->first_pos + pe->n > first) continue;
        kv_stream_remove(s->seq, st, h);
        any = true;
    }
    if (st->tail_len > 1 && st->tail_pos < first) {
        uint32_t out = first - st->tail_pos, in_page = st->shape->f16_tokens - st->tail_start;
        if (out >= st->tail_len) out = st->tail_len - 1;
        if (out >= in_page) { /* whole pages only: the edge page is masked */
            uint32_t whole = in_page + (out - in_page) / st->shape->f16_tokens * st->shape->f16_tokens;
            kv_tail_drop_front(s->seq, st, whole);
            any = true;
        }
    }
    if (any) st->sealed_at = length;
}

/* How many whole pages the tail of a stream can seal now, and how many sinks go before them. */
static uint32_t sealable(const kv_stream *st, const kv_layer_policy *lp, uint32_t P, uint32_t *sink) {
    *sink = st->n_handles == 0 && st->tail_pos == 0 ? lp->sink : 0;
    uint32_t fixed = *sink + lp->recent;
    return st->tail_len >= fixed + P ? (st->tail_len - fixed) / P : 0;
}

static kv_status seal_stream(kv_sealer *se, kv_stream *st, const kv_layer_policy *lp, const kv_page_layout *lay,
                             kv_error *err) {
    kvist_session *s = se->s;
    uint32_t sink, pages = sealable(st, lp, lay->tokens, &sink);
    kv_run_source src = kv_run_source_of(s->seq, st, NULL, NULL);
    if (!pages) return KVIST_OK;
    KV_TRY(kv_sealer_in_order(se, &src, lay, sink, pages, s->n, err));
    kv_evict_sealed_tail(s, st, lp, sink, pages, lay->tokens);
    kv_tail_drop_front(s->seq, st, sink + pages * lay->tokens);
    return KVIST_OK;
}

kv_status kv_seal_tail(kvist_session *s, const kv_policy *policy, kv_error *err) {
    const kv_model *m = s->e->m;
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        kv_layer_policy lp;
        kv_policy_layer(policy, l, &lp);
        if (kv_seals(&lp)) {
            kv_sealer se;
            kv_page_layout lay;
            uint32_t sink;
            KV_TRY(kv_layer_layout(m, &lp, l, &lay, err));
            if (sealable(kv_seq_stream(s->seq, l, 0), &lp, lay.tokens, &sink)) {
                KV_TRY(kv_sealer_init(&se, s, l, err));
                for (uint32_t h = 0; h < m->hp.n_kv; h++)
                    KV_TRY(seal_stream(&se, kv_seq_stream(s->seq, l, h), &lp, &lay, err));
            }
        }
        if (m->attn.window)
            for (uint32_t h = 0; h < m->hp.n_kv; h++) kv_trim_window(s, kv_seq_stream(s->seq, l, h), s->n);
    }
    return KVIST_OK;
}

/* Each stream may open (or copy) a tail page and, when a page of its format is ready after this token, seal it and its
 * sinks. */
uint32_t kv_decode_pages_needed(const kvist_session *s, const kv_policy *policy) {
    const kv_model *m = s->e->m;
    uint32_t need = 0;
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        kv_layer_policy lp;
        kv_page_layout lay;
        kv_policy_layer(policy, l, &lp);
        const kv_stream *st = kv_seq_stream(s->seq, l, 0);
        uint32_t per = st->n_tail == 0 || (st->tail_start + st->tail_len) % st->shape->f16_tokens == 0 ||
                       kv_pool_entry(s->e->pool, st->tail[st->n_tail - 1])->refs > 1;
        if (kv_seals(&lp) && !kv_layer_layout(m, &lp, l, &lay, NULL)) {
            kv_stream next = *st;
            uint32_t sink, pages;
            next.tail_len++;
            pages = sealable(&next, &lp, lay.tokens, &sink);
            if (pages) per += pages + (sink + st->shape->f16_tokens - 1) / st->shape->f16_tokens;
        }
        need += per * m->hp.n_kv;
    }
    return need;
}
