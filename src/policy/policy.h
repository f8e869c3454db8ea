/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A policy is a point in score x allocate x encode (DESIGN 2.2, 5). Parses and prints the contract's words, resolves
 * layer overrides, and refuses by name what is not built. Pure data: no memory beyond the struct.
 */
#ifndef KV_POLICY_POLICY_H
#define KV_POLICY_POLICY_H

#include "policy/format.h"

#define KV_POLICY_MAX_OVERRIDES 8
/* Shorter prompts have too few rows to fit a rest token to. */
#define KV_REST_TOKENS 512u

enum kv_budget_kind {
    KV_BUDGET_ALL,
    KV_BUDGET_KEEP,
    KV_BUDGET_TOKENS,
    KV_BUDGET_RATE,
    KV_BUDGET_SHARE,
    KV_BUDGET_MASS
};
enum kv_score_id {
    KV_SCORE_POSITION,
    KV_SCORE_ATTN,
    KV_SCORE_VOTE,
    KV_SCORE_VOTE2,
    KV_SCORE_VOTEV,
    KV_SCORE_VOTE2V,
    KV_SCORE_TOVA,
    KV_SCORE_KNORM,
    KV_SCORE_KEYDIFF,
    KV_SCORE_EXPECTED,
    KV_SCORE_RANDOM,
    KV_SCORE_RECON,
    KV_SCORE_RECONQ,
    KV_SCORES
};
enum kv_alloc_id { KV_ALLOC_UNIFORM, KV_ALLOC_PYRAMID, KV_ALLOC_GLOBAL, KV_ALLOC_HEAD, KV_ALLOC_MASS, KV_ALLOCS };

enum kv_when { KV_WHEN_PREFILL, KV_WHEN_ALWAYS, KV_WHEN_PRESSURE, KV_WHENS };

typedef struct kv_layer_policy {
    uint8_t format; /* pair; format of sealed pages */
    uint8_t score;  /* enum kv_score_id */
    uint32_t window, pool, stride;
    uint32_t sink, recent;
    uint32_t sink_room;    /* `sink=N/M`: none where they are more than 1/M of the budget; 0: always N */
    bool recent_page;      /* `recent=N+`: and the older ones in the same f16 page (kv_policy_for_prompt) */
    bool pool_all;         /* pool over all keys (KV-Compress) or over the candidates only (SnapKV) */
    bool group_after_pool; /* sum query heads after pooling (KV-Compress) or before (others) */
} kv_layer_policy;

typedef struct kv_policy {
    const char *preset; /* static */
    uint8_t alloc;      /* enum kv_alloc_id */
    uint8_t budget_kind;
    double budget; /* fraction, tokens, rate, share or mass */
    double local;  /* newest tokens sealed and never evicted: fraction (< 1) of tokens, or tokens (>= 1); 0: none */
    double local_of_kept; /* share: local as a fraction of the tokens a stream keeps (the preset's local/keep); 0:
                             `local` says it */
    double delta, floor;
    uint8_t when;            /* enum kv_when */
    uint32_t rest; /* the last sink makes room for a token that stands for what was evicted (rest.h), where so many query heads share a
                      KV head or more; 0: nowhere */
    double guard, guard_max; /* least retained mass of a head, 0: off; most times the budget may grow for it */
    kv_layer_policy base;
    uint32_t n_overrides;
    struct {
        uint32_t first, last;
        uint32_t set;
        kv_layer_policy v;
    } over[KV_POLICY_MAX_OVERRIDES]; /* set: bit per key */
} kv_policy;

/* Parses "PRESET[,key=value...][;layers=A-B:key=value,...]". Error names the key and the offending text. `auto` becomes
 * the preset and the keys that its table (auto.c) has for the share. */
kv_status kv_policy_parse(const char *text, kv_policy *out, kv_error *err) KV_WARN_UNUSED;
/* Canonical text: preset and every key that differs from it; parses back to the same policy. */
void kv_policy_print(const kv_policy *p, char *buf, size_t cap);
void kv_policy_layer(const kv_policy *p, uint32_t layer, kv_layer_policy *out);
bool kv_policy_evicts(const kv_policy *p);

/* ---- at the end of a prompt and while decoding (when.c) */
/* How a score goes on after the prompt, a generated row at a time: not at all; by position, the oldest goes first; by
 * adding p (H2O); by adding p^2 to what fades by 1/window a row (KV-Compress, DESIGN 5); as the last row's p averaged
 * over the heads of a layer (TOVA). */
enum kv_goes_on { KV_GOES_NOT, KV_GOES_BY_POSITION, KV_GOES_BY_SUM, KV_GOES_BY_SQUARES, KV_GOES_BY_LAST };
uint8_t kv_score_goes_on(uint8_t score);
/* when=always: single tokens are evicted (pages of f16), else whole pages. */
bool kv_policy_by_token(const kv_policy *p);
/* Tokens that the budget holds of n, a stream; of a share, as many as its bytes are in f16; infinity where it says no
 * number (all, mass). */
double kv_policy_tokens(const kv_policy *p, double n);
/* The newest of n tokens that `local` protects while decoding. */
uint32_t kv_policy_local(const kv_policy *p, uint32_t n);
/* The policy of a prompt that ends at n tokens: where single tokens are evicted, local ones wait in the tail, as recent
 * ones do; `recent=N+` is as many as lie in the f16 pages that N take anyway; `sink=N/M` is N or none; with `rest` one sink
 * less, where the prompt is long enough. */
void kv_policy_for_prompt(const kv_policy *p, uint32_t n, kv_policy *out);
/* Refuses by name what `when` cannot be combined with. */
kv_status kv_policy_check_when(const kv_policy *p, kv_error *err) KV_WARN_UNUSED;

const char *kv_policy_presets(void); /* comma separated, for messages */
/* i-th preset with a one-line description, for --help; NULL past the end. */
const char *kv_policy_preset_at(uint32_t i, const char **description);

#endif
