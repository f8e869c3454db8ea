/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See memory.h. The same arithmetic as a compression point (policy/plan.h) without pages: what each stream seals, what
 * stays in its f16 tail, and the overhead that bytes_true counts.
 */
#include "measure/memory.h"

#include <string.h>

#include "base/alloc.h"
#include "cache/stream.h"
#include "policy/plan.h"

static uint64_t pages_of(uint64_t tokens, uint64_t page) { return (tokens + page - 1) / page; }

/* Pages of a tail of `tokens` tokens that ends at position n: its slots are positions modulo the page. */
static uint64_t tail_pages_of(uint64_t n, uint64_t tokens, uint64_t page) {
    return tokens ? (n - 1) / page - (n - tokens) / page + 1 : 0;
}

typedef struct counts {
    uint64_t sealed_pages, tail_pages, tokens, tail_tokens, q2;
} counts;

/* Scores that a policy keeps while decoding: of tail tokens, and of slots where single tokens are evicted. */
static uint64_t score_bytes(const kv_policy *p, const counts *c, uint32_t f16_tokens) {
    if (p->when == KV_WHEN_PREFILL) return 0;
    return (c->tail_tokens + (kv_policy_by_token(p) ? c->sealed_pages * f16_tokens : 0)) * sizeof(float);
}

/* Squared queries: a sum a channel, and the rows of the first positions that no sealed page covers yet
 * (cache/stream.h). */
static uint64_t q2_bytes(const kv_plan_layer *l, uint64_t n, uint64_t tail) {
    uint64_t seen = n < KV_Q2_POSITIONS ? n : KV_Q2_POSITIONS, covered = n - tail < seen ? n - tail : seen;
    return l->n_streams * l->q2_bytes * (1 + seen - covered);
}

/* Streams that evict nothing seal whole pages between sinks and recent and leave the remainder in the tail; f16 is
 * never sealed. */
static void count_kept(const kv_plan *plan, const kv_plan_layer *l, uint32_t n, counts *c) {
    uint64_t sealed = l->page_tokens == l->f16_tokens ? 0 : plan->n_candidates / l->page_tokens;
    uint64_t sinks = sealed ? plan->n_sink : 0, tail = n - sinks - sealed * l->page_tokens;
    c->sealed_pages += l->n_streams * (pages_of(sinks, l->f16_tokens) + sealed);
    c->tail_pages += l->n_streams * tail_pages_of(n, tail, l->f16_tokens);
    c->tokens += (uint64_t)l->n_streams * n;
    c->tail_tokens += l->n_streams * tail;
    c->q2 += q2_bytes(l, n, tail);
}

static void count_evicted(const kv_plan *plan, const kv_plan_layer *l, uint32_t n, uint32_t layer,
                          uint32_t first_stream, counts *c) {
    uint64_t sinks = pages_of(plan->n_sink, l->f16_tokens), tail = tail_pages_of(n, plan->n_recent, l->f16_tokens);
    c->tail_pages += l->n_streams * tail;
    c->tokens += (uint64_t)l->n_streams * (plan->n_sink + plan->n_recent);
    c->tail_tokens += (uint64_t)l->n_streams * plan->n_recent;
    c->sealed_pages += l->n_streams * sinks;
    c->q2 += q2_bytes(l, n, 0); /* pages chosen over the whole prompt are weighed by all of it: no row waits */
    if (plan->global) return;
    for (uint32_t s = 0; s < l->n_streams; s++) {
        uint64_t tokens = plan->tokens[layer], local = plan->n_local < tokens ? plan->n_local : tokens;
        uint64_t pages = pages_of(tokens - local, l->page_tokens) + pages_of(local, l->page_tokens);
        if (plan->pages && plan->pages[first_stream + s] > pages) {
            pages = plan->pages[first_stream + s];
            tokens = pages * l->page_tokens;
        }
        if (tokens > plan->n_candidates) tokens = plan->n_candidates;
        c->sealed_pages += pages;
        c->tokens += tokens;
    }
}

kv_status kv_memory_estimate(const kv_memory_shape *shape, const char *policy, uint32_t n, kv_memory_need *out,
                             kv_error *err) {
    kv_policy given, pol;
    KV_TRY(kv_policy_parse(policy, &given, err));
    kv_policy_for_prompt(&given, n, &pol);
    size_t page_bytes = kv_page_bytes_for(shape->dk, shape->dv);
    kv_page_layout f16;
    KV_TRY(kv_page_layout_get(kv_format_pair(KV_F16, KV_F16), shape->dk, shape->dv, page_bytes, &f16, err));
    kv_plan_layer *layers = kv_calloc(shape->n_layers, sizeof *layers);
    if (!layers) KV_FAIL(err, MEMORY, "no memory for a plan of %u layers", shape->n_layers);
    kv_status st = KVIST_OK;
    uint64_t page_tokens_sum = 0;
    for (uint32_t i = 0; st == KVIST_OK && i < shape->n_layers; i++) {
        kv_layer_policy lp;
        kv_page_layout l;
        kv_policy_layer(&pol, i, &lp);
        st = kv_page_layout_get(lp.format, shape->dk, shape->dv, page_bytes, &l, err);
        if (st != KVIST_OK) break;
        layers[i] = (kv_plan_layer){shape->n_kv, f16.tokens, l.tokens,
                                    l.kind == KV_KIND_LADDER ? (uint32_t)(shape->dk * sizeof(float)) : 0,
                                    2ull * (shape->dk + shape->dv)};
        page_tokens_sum += l.tokens;
    }
    kv_plan plan;
    memset(&plan, 0, sizeof plan);
    uint32_t overhead = (uint32_t)(sizeof(kv_page_entry) + sizeof(kv_handle));
    kv_plan_input in = {.policy = &pol,
                        .n_layers = shape->n_layers,
                        .layers = layers,
                        .page_bytes = (uint32_t)page_bytes,
                        .page_overhead = overhead,
                        .n_seen = n,
                        .n_unsealed = n,
                        .first = true};
    uint32_t plain = layers[0].q2_bytes;
    if (st == KVIST_OK) kv_plan_count_scores(&pol, layers, &in);
    if (st == KVIST_OK) st = kv_plan_make(&in, &plan, err);
    if (st == KVIST_OK) {
        counts c = {0};
        uint32_t scores = layers[0].q2_bytes - plain;
        for (uint32_t i = 0; i < shape->n_layers; i++) {
            layers[i].q2_bytes -= scores; /* counted by score_bytes */
            if (plan.evict)
                count_evicted(&plan, &layers[i], n, i, i * shape->n_kv, &c);
            else
                count_kept(&plan, &layers[i], n, &c);
        }
        if (plan.evict && plan.global) {
            c.sealed_pages += plan.pages_global;
            c.tokens += plan.pages_global * (page_tokens_sum / shape->n_layers);
        }
        uint64_t streams = (uint64_t)shape->n_layers * shape->n_kv;
        out->bytes_true = (c.sealed_pages + c.tail_pages) * (page_bytes + sizeof(kv_page_entry)) +
                          c.sealed_pages * sizeof(kv_handle) + c.tail_pages * sizeof(uint32_t) + c.q2 +
                          score_bytes(&pol, &c, f16.tokens);
        out->bytes_f16 = streams * n * 2ull * (shape->dk + shape->dv);
        out->tokens_stored = streams ? (double)c.tokens / (double)streams : 0;
    }
    kv_plan_free(&plan);
    kv_free(layers);
    return st;
}
