/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shadow check: a full f16 copy of a session's K and V, kept beside its cache for evaluation only, and one layer's
 * attention computed over it at every N-th generated position, so that what the report estimates (retained mass at the
 * compression point) stands beside what happens. Changes no token: nothing reads it but this file.
 */
#ifndef KV_ENGINE_SHADOW_H
#define KV_ENGINE_SHADOW_H

#include "engine/engine.h"

typedef struct kv_shadow kv_shadow;

/* Charged to the pool: K and V of the engine's whole context, and scratch. */
kv_status kv_shadow_create(kvist_engine *e, uint32_t every, kv_shadow **out, kv_error *err);
void kv_shadow_free(kvist_engine *e, kv_shadow **sh);

/* Rows of one layer at positions first .. first + n - 1: k[n_kv][head_stride][dk], v[n_kv][head_stride][dv] f16. A
 * later row of the same position takes the place of the earlier one, so rollback needs nothing. */
void kv_shadow_rows(kv_shadow *sh, uint32_t layer, uint32_t first, uint32_t n, size_t head_stride, const uint16_t *k,
                    const uint16_t *v);
/* Is this generated row of this layer one to check? The layer moves on with each check. */
bool kv_shadow_due(const kv_shadow *sh, uint32_t layer, uint32_t position);
/* q[n_q][dk] after RoPE, out[n_q][dv] the attention's output of the row, already among the layer's rows here and in s.
 */
void kv_shadow_check(kvist_session *s, uint32_t layer, uint32_t position, const float *q, const float *out);
/* Masses as DESIGN 5 defines them, with the checked rows in place of the prompt's last queries. Returns the bytes of the
 * copy; 0 without a shadow. */
uint64_t kv_shadow_get(const kvist_session *s, kvist_shadow_report *out);

#endif
