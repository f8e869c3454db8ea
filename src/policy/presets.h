/* SPDX-License-Identifier: Apache-2.0 */
/* Named methods as points of score x allocate x encode, and the number reader of the contract. Internal to src/policy.
 */
#ifndef KV_POLICY_PRESETS_H
#define KV_POLICY_PRESETS_H

#include "policy/policy.h"

typedef struct kv_preset {
    const char *name, *description;
    kv_policy policy;
} kv_preset;
extern const kv_preset kv_presets[];
extern const uint32_t kv_n_presets;

/* The preset that a table stands behind: its keys depend on the share (auto.c). */
#define KV_PRESET_AUTO "auto"
#define KV_AUTO_SHARE "0.14" /* where none is given */
/* The policy text for a share of the f16 bytes, without the share itself. */
const char *kv_auto_text(double share);

const kv_preset *kv_preset_find(const char *name, size_t len); /* NULL when there is none */
/* The preset's policy with its score's own settings filled in. */
void kv_preset_policy(const kv_preset *preset, kv_policy *out);
/* Sets the score and what follows from it: pool's default, pooling order. */
void kv_policy_set_score(kv_layer_policy *p, uint8_t score);
/* What a budget other than the preset's makes of the preset's `local` (docs/policies.md): fills p->local and
 * p->local_of_kept. */
void kv_policy_scale_local(kv_policy *p);

/* Decimal digits with at most one point and a leading minus, 15 significant digits: exact and the same in every locale.
 * False on anything else. */
bool kv_number_parse(const char *text, size_t len, double *out);
/* The shortest text that kv_number_parse reads as x. */
void kv_number_print(double x, char *buf, size_t cap);

#endif
