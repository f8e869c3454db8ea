/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the end of a prompt settles in a policy (sinks, recent tokens), and `when=always` and `when=pressure`: which
 * policies can go on evicting after it, and how their scores do. Must not know: pages, masses. A score is continued by a
 * rule of its own or refused by name, never silently left as it was.
 */
#include "policy/allocate/allocate.h"
#include "policy/policy.h"
#include "policy/score/score.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *score;
    uint8_t rule;
} goes_on[] = {
    {"position", KV_GOES_BY_POSITION},  {"attn", KV_GOES_BY_SUM},  {"vote", KV_GOES_BY_SQUARES},
    {"vote2", KV_GOES_BY_SQUARES},      {"tova", KV_GOES_BY_LAST},
};
/* Allocators whose budgets are a function of the number of tokens, or of prices. */
static const char *const allocs[] = {"uniform", "pyramid", "global"};

uint8_t kv_score_goes_on(uint8_t score) {
    const char *name = kv_score_at(score)->name;
    for (size_t i = 0; i < sizeof goes_on / sizeof *goes_on; i++)
        if (!strcmp(goes_on[i].score, name)) return goes_on[i].rule;
    return KV_GOES_NOT;
}

bool kv_policy_by_token(const kv_policy *p) {
    return p->when == KV_WHEN_ALWAYS && (p->base.format & 15) == KV_F16;
}

uint32_t kv_policy_local(const kv_policy *p, uint32_t n) {
    double kept = p->budget_kind == KV_BUDGET_SHARE ? p->budget * n : n; /* as many f16 tokens as the share's bytes hold */
    double local = p->local_of_kept > 0 ? p->local_of_kept * kept : p->local < 1 ? p->local * n : p->local;
    local = floor(local * (1 + 1e-12)); /* 0.3 x 1000 is 300, as in plan.c */
    return local < n ? (uint32_t)local : n;
}

double kv_policy_tokens(const kv_policy *p, double n) {
    return p->budget_kind == KV_BUDGET_KEEP || p->budget_kind == KV_BUDGET_SHARE ? p->budget * n
           : p->budget_kind == KV_BUDGET_RATE                                    ? n / p->budget
           : p->budget_kind == KV_BUDGET_TOKENS                                  ? p->budget
                                                                                 : INFINITY;
}

void kv_policy_for_prompt(const kv_policy *p, uint32_t n, kv_policy *out) {
    *out = *p;
    /* The slots of an f16 page before the first recent token are there whether used or not. */
    if (p->base.recent_page && p->budget_kind != KV_BUDGET_ALL && n > p->base.recent)
        out->base.recent += (n - p->base.recent) % KV_PAGE_F16_TOKENS;
    if (kv_policy_tokens(p, n) < (double)p->base.sink * p->base.sink_room) out->base.sink = 0;
    if (!out->base.sink || n < KV_REST_TOKENS) out->rest = 0;
    out->base.sink -= out->rest > 0;
    if (!kv_policy_by_token(p)) return;
    uint32_t local = kv_policy_local(p, n);
    if (local > out->base.recent) out->base.recent = local;
    out->local = out->local_of_kept = 0;
}

void kv_plan_count_scores(const kv_policy *p, kv_plan_layer *layers, kv_plan_input *in) {
    if (p->when == KV_WHEN_PREFILL) return;
    if (kv_policy_by_token(p)) in->page_overhead += layers[0].f16_tokens * (uint32_t)sizeof(float);
    for (uint32_t l = 0; l < in->n_layers && !kv_policy_by_token(p); l++)
        layers[l].q2_bytes += p->base.recent * (uint32_t)sizeof(float);
}

static kv_status check_layer(const kv_policy *p, const kv_layer_policy *lp, const char *when, kv_error *err) {
    if (kv_score_goes_on(lp->score) == KV_GOES_NOT)
        KV_FAIL(err, POLICY, "policy key 'when': %s needs a score that goes on while decoding, '%s' does not "
                "(attn, vote, vote2, position, tova)", when, kv_score_at(lp->score)->name);
    if (p->when == KV_WHEN_ALWAYS && ((lp->format & 15) == KV_F16) != ((p->base.format & 15) == KV_F16))
        KV_FAIL(err, POLICY, "policy key 'when': always evicts tokens of f16 pages or whole sealed pages; layers of both "
                "kinds in one policy are not built");
    return KVIST_OK;
}

kv_status kv_policy_check_when(const kv_policy *p, kv_error *err) {
    if (p->when == KV_WHEN_PREFILL) return KVIST_OK;
    const char *when = p->when == KV_WHEN_ALWAYS ? "always" : "pressure", *alloc = kv_alloc_at(p->alloc)->name;
    bool spread = false;
    if (p->when == KV_WHEN_ALWAYS && p->budget_kind == KV_BUDGET_ALL)
        KV_FAIL(err, POLICY, "policy key 'when': always needs a budget (keep, tokens, rate, share) to evict down to");
    if (p->base.recent_page)
        KV_FAIL(err, POLICY, "policy key 'recent': N+ is filled up at the end of a prompt; with when=%s it is not built", when);
    if (p->base.sink_room)
        KV_FAIL(err, POLICY, "policy key 'sink': N/M is decided at the end of a prompt; with when=%s it is not built", when);
    if (p->rest)
        KV_FAIL(err, POLICY, "policy key 'rest': a token is fitted at the end of a prompt; with when=%s it is not built", when);
    if (p->guard > 0)
        KV_FAIL(err, POLICY, "policy key 'when': a guard holds at the end of a prompt; with %s it is not built", when);
    for (size_t i = 0; i < sizeof allocs / sizeof *allocs; i++) spread |= !strcmp(allocs[i], alloc);
    if (!spread)
        KV_FAIL(err, POLICY, "policy key 'when': %s is built for alloc=uniform, pyramid and global, not '%s'", when, alloc);
    KV_TRY(check_layer(p, &p->base, when, err));
    for (uint32_t i = 0; i < p->n_overrides; i++) {
        kv_layer_policy lp;
        kv_policy_layer(p, p->over[i].first, &lp);
        KV_TRY(check_layer(p, &lp, when, err));
        kv_policy_layer(p, p->over[i].last, &lp);
        KV_TRY(check_layer(p, &lp, when, err));
        if (p->over[i].last == UINT32_MAX) continue;
        kv_policy_layer(p, p->over[i].last + 1, &lp); /* where another one shows through again */
        KV_TRY(check_layer(p, &lp, when, err));
    }
    return KVIST_OK;
}
