/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of named methods. A preset is a row, never a code path. Must not know: text.
 * Invariant: a row names every value in which it differs from the defaults below; scores fill in their own pooling.
 */
#include "policy/presets.h"

#include "policy/score/score.h"

#include <math.h>
#include <string.h>

#define BOTH(f) ((uint8_t)((f) | ((f) << 4)))
/* What all rows share. delta 7: MiniKV's pyramid. floor .5: heads emptied below it lose more than their pages bring
 * elsewhere. window 32: SnapKV's and KV-Compress's. */
#define COMMON .delta = 7, .floor = .5, .guard_max = 2
#define LAYER .window = 32, .stride = 1

#define F16 .format = BOTH(KV_F16)

/* Sources of the defaults: docs/policies.md, "Presets". */
const kv_preset kv_presets[] = {
    {"full",
     "every token in f16; format= keeps every token in fewer bits",
     {COMMON, .base = {LAYER, F16, .score = KV_SCORE_POSITION, .sink = 16, .recent = 64}}},
    {KV_PRESET_AUTO,
     "the best known policy for a share of the f16 bytes (share=0.14)",
     {COMMON, .base = {LAYER, F16, .score = KV_SCORE_POSITION, .sink = 16, .recent = 64}}},
    {"streaming",
     "StreamingLLM: sinks and the newest quarter",
     {COMMON, .budget_kind = KV_BUDGET_KEEP, .budget = .25,
      .base = {LAYER, F16, .score = KV_SCORE_POSITION, .sink = 4, .recent = 64}}},
    {"kivi",
     "KIVI: every token in 2 bits, groups of 32",
     {COMMON, .base = {LAYER, .format = BOTH(KV_KIVI2), .score = KV_SCORE_POSITION, .sink = 0, .recent = 128}}},
    {"kivi4",
     "KIVI: every token in 4 bits, groups of 32",
     {COMMON, .base = {LAYER, .format = BOTH(KV_KIVI4), .score = KV_SCORE_POSITION, .sink = 0, .recent = 128}}},
    {"snapkv",
     "SnapKV: 1,024 tokens a head by the last window's votes",
     {COMMON, .budget_kind = KV_BUDGET_TOKENS, .budget = 1024,
      .base = {LAYER, F16, .score = KV_SCORE_VOTE, .sink = 0, .recent = 32}}},
    {"pyramidkv",
     "PyramidKV: 2,048 tokens a head on average, falling over the layers",
     {.delta = 20, .floor = .5, .guard_max = 2,
      .alloc = KV_ALLOC_PYRAMID, .budget_kind = KV_BUDGET_TOKENS, .budget = 2048,
      .base = {.window = 8, .stride = 1, F16, .score = KV_SCORE_VOTE, .sink = 0, .recent = 8}}},
    {"adakv",
     "Ada-KV: 1,024 tokens a head on average, spread over the heads of a layer",
     {.delta = 7, .floor = .2, .guard_max = 2,
      .alloc = KV_ALLOC_HEAD, .budget_kind = KV_BUDGET_TOKENS, .budget = 1024,
      .base = {LAYER, F16, .score = KV_SCORE_VOTE, .sink = 0, .recent = 32}}},
    {"h2o",
     "H2O: a tenth by attention sums and the newest tenth, also while decoding",
     {COMMON, .when = KV_WHEN_ALWAYS, .budget_kind = KV_BUDGET_KEEP, .budget = .2, .local = .1,
      .base = {LAYER, F16, .score = KV_SCORE_ATTN}}},
    {"minikv",
     "MiniKV: half of the tokens in 2 bits, heavy hitters in a pyramid over layers",
     {COMMON, .alloc = KV_ALLOC_PYRAMID, .budget_kind = KV_BUDGET_KEEP, .budget = .5, .local = .25,
      .base = {LAYER, .format = BOTH(KV_MINIKV2), .score = KV_SCORE_ATTN}}},
    {"kvcompress",
     "KV-Compress: an eighth by squared votes, pages chosen over all heads and layers",
     {.delta = 7, .floor = 0, .guard_max = 2,
      .alloc = KV_ALLOC_GLOBAL, .budget_kind = KV_BUDGET_RATE, .budget = 8,
      .base = {LAYER, F16, .score = KV_SCORE_VOTE2, .sink = 0, .recent = 32}}},
    {"tova",
     "TOVA: 512 tokens by the last query's attention, the same in all heads of a layer",
     {COMMON, .budget_kind = KV_BUDGET_TOKENS, .budget = 512,
      .base = {.window = 1, .stride = 1, F16, .score = KV_SCORE_TOVA, .sink = 0, .recent = 1}}},
    {"knorm",
     "key norm: half of the tokens, those whose keys are short",
     {COMMON, .budget_kind = KV_BUDGET_KEEP, .budget = .5, .base = {LAYER, F16, .score = KV_SCORE_KNORM}}},
    {"keydiff",
     "KeyDiff: half of the tokens, those whose keys differ most from the mean",
     {COMMON, .budget_kind = KV_BUDGET_KEEP, .budget = .5, .base = {LAYER, F16, .score = KV_SCORE_KEYDIFF}}},
    {"expected",
     "Expected Attention: half of the tokens, by what queries to come will look at",
     {COMMON, .budget_kind = KV_BUDGET_KEEP, .budget = .5,
      .base = {LAYER, F16, .score = KV_SCORE_EXPECTED, .sink = 4, .recent = 0}}},
    {"kvzip",
     "KVzip: three tenths of the tokens, those that saying the prompt again looks up",
     {.delta = 7, .floor = 0, .guard_max = 2,
      .alloc = KV_ALLOC_GLOBAL, .budget_kind = KV_BUDGET_KEEP, .budget = .3,
      .base = {LAYER, F16, .score = KV_SCORE_RECON, .sink = 4, .recent = 0}}},
};
const uint32_t kv_n_presets = sizeof kv_presets / sizeof *kv_presets;

const kv_preset *kv_preset_find(const char *name, size_t len) {
    for (uint32_t i = 0; i < kv_n_presets; i++)
        if (strlen(kv_presets[i].name) == len && !memcmp(kv_presets[i].name, name, len)) return &kv_presets[i];
    return NULL;
}

void kv_policy_set_score(kv_layer_policy *p, uint8_t score) {
    const kv_score_method *m = kv_score_at(score);
    p->score = score;
    p->pool = m->pool;
    p->pool_all = m->pool_all;
    p->group_after_pool = m->group_after_pool;
}

void kv_preset_policy(const kv_preset *preset, kv_policy *out) {
    *out = preset->policy;
    out->preset = preset->name;
    kv_policy_set_score(&out->base, out->base.score);
}

void kv_policy_scale_local(kv_policy *p) {
    const kv_policy *own = &kv_preset_find(p->preset, strlen(p->preset))->policy;
    p->local = own->local;
    p->local_of_kept = 0;
    if (own->local <= 0 || (p->budget_kind == own->budget_kind && p->budget == own->budget)) return;
    double ratio = own->local / own->budget; /* presets with `local` have keep= */
    p->local = 0;
    switch (p->budget_kind) {
    case KV_BUDGET_KEEP:
        p->local = ratio * p->budget;
        break;
    case KV_BUDGET_RATE:
        p->local = ratio / p->budget;
        break;
    case KV_BUDGET_TOKENS:
        p->local = floor(ratio * p->budget);
        break;
    case KV_BUDGET_SHARE:
        p->local_of_kept = ratio;
        break;
    case KV_BUDGET_MASS: /* says nothing of the count: local stays what it is */
        p->local = own->local;
        break;
    default:
        break;
    }
}

const char *kv_policy_presets(void) {
    return "full, auto, streaming, kivi, kivi4, snapkv, pyramidkv, adakv, h2o, minikv, kvcompress, tova, knorm, keydiff, "
           "expected, kvzip";
}

const char *kv_policy_preset_at(uint32_t i, const char **description) {
    if (i >= kv_n_presets) return NULL;
    if (description) *description = kv_presets[i].description;
    return kv_presets[i].name;
}
