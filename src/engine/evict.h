/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Evicting after the prompt (DESIGN 5, docs/policies.md "While decoding"): what attention of generated rows adds to scores
 * and prices, budgets at the tokens seen now, and the pages dropped when the pool runs short. Owns a session's scratch for
 * it. Must not know how attention is computed. Invariants: what a row changes is a function of the session's own history,
 * so a replay changes the same; sinks, recent and local tokens are never evicted; nothing is allocated a token.
 */
#ifndef KV_ENGINE_EVICT_H
#define KV_ENGINE_EVICT_H

#include "engine/job.h"
#include "engine/sealer.h"

/* Of a session whose policy evicts after the prompt. */
typedef struct kv_evict {
    float *mass, *lse;      /* of one row and layer: [n_q][cap_pages][slots], [n_q] */
    uint32_t cap_pages, slots;
    uint32_t policy;        /* index of the policy that `layers` is for */
    kv_plan_layer *layers;  /* [n_layers] */
    uint32_t page_overhead; /* of a plan for it */
    kv_plan plan;           /* budgets, made again for every token */
    float *price;           /* [n_streams] of the next page a stream would free; NaN: not known */
    uint64_t charged;
} kv_evict;

/* Scratch and scores for `policy` are there (once; cheap afterwards). No-op for when=prefill. */
kv_status kv_evict_ready(kvist_session *s, const kv_policy *policy, kv_error *err) KV_WARN_UNUSED;
void kv_evict_free(kvist_session *s);
/* What a generated row's attention has to say of layer `layer`; p NULL: nothing. */
kv_attn_mass kv_evict_wants(const kvist_session *s, const kv_policy *policy, uint32_t layer);
/* It was said: scores and prices of the layer move on. */
void kv_evict_note(kvist_session *s, const kv_policy *policy, uint32_t layer);
/* Pages were sealed from the tail, whose tokens sink .. are still there: prices of the last `pages` handles, P tokens each. */
void kv_evict_sealed_tail(const kvist_session *s, kv_stream *st, const kv_layer_policy *lp, uint32_t sink, uint32_t pages, uint32_t P);
/* Down to the budget of s->n tokens (when=always). */
kv_status kv_evict_settle(kvist_session *s, const kv_policy *policy, kv_error *err) KV_WARN_UNUSED;
/* Upper bound of pages that settling after a row may acquire. */
uint32_t kv_evict_pages_needed(const kvist_session *s, const kv_policy *policy);

/* ---- prompts */
/* The candidates' scores of a stream are in the job's `score`: adds what carried tokens had earned before. */
void kv_evict_carried(kv_job_target *t, const kv_stream *st, uint32_t cand0, uint32_t n_cand);
/* The page just pushed, of candidates order[0 .. p->n) whose scores are in the job's `score`: its price, and its tokens'
 * scores. cand0: run index of candidate 0. */
void kv_evict_sealed(kv_job_target *t, kv_stream *st, const uint32_t *order, const kv_page_plan *p, uint32_t cand0);
/* The tail that stays, whose scores by this sync's rows are in the job's `score`. */
void kv_evict_tail(kv_job_target *t, kv_stream *st);
/* The job is through: what its streams keep at least under pressure. */
void kv_evict_point(kv_job_target *t);

/* ---- pressure */
/* Drops the cheapest pages of when=pressure sessions until `bytes` of pages are free; false: none was left to drop. */
bool kv_evict_under_pressure(kvist_engine *e, uint64_t bytes);

#endif
