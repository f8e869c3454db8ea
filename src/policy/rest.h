/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token that stands for all that a head has lost (`rest`). What attention gave to evicted tokens goes to the others when they are
 * gone: where a head looks widely, a quarter of its weight. One more key and value can take that weight and give back its mean, and the
 * page of the sinks has a slot for it. Fitted to queries that the prompt's rows really made, so that attention over what is kept
 * and this token comes as near as it can to attention over everything. Numbers in, numbers out: no pages, no models.
 *
 * Of kin: LESS (Dong et al. 2024: a learned low-rank state beside an evicting cache); here nothing is trained
 * and the kernels see an ordinary token.
 */
#ifndef KV_POLICY_REST_H
#define KV_POLICY_REST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of one KV head: `group` query heads with `rows` queries each; query head g's row r is number g rows + r. `kept` rows lie `stride`
 * query heads apart: row r of query head g at r stride + g. log-sum-exps are natural, of scaled scores. */
typedef struct kv_rest_input {
    uint32_t group, rows, dk, dv; /* dk, dv: at most KV_SCORE_MAX_DIM */
    float scale;
    const uint16_t *q;      /* f16 [group][rows][dk] after RoPE */
    const uint16_t *whole;  /* f16 [group][rows][dv]: attention over every token */
    const float *whole_lse; /* [group][rows] */
    const float *mean;      /* [dk] mean of all keys but the sinks: where the key is looked for */
    const float *kept;      /* [rows][stride][dv]: over the tokens that are kept */
    const float *kept_lse;  /* [rows][stride] */
    size_t stride;
} kv_rest_input;

/* Rows of a prompt of n that a layer's fits rest on: 1,536 queries a KV head, of shorter prompts a sixteenth of the rows. */
uint32_t kv_rest_rows(uint32_t n, uint32_t group);
/* Bytes of those rows' queries and attention while a prompt is read, and of a fit. */
uint64_t kv_rest_bytes(uint32_t n, uint32_t n_layers, uint32_t n_q, uint32_t n_kv, uint32_t dk, uint32_t dv);
size_t kv_rest_scratch(const kv_rest_input *in); /* bytes, for doubles */
/* k[dk], v[dv]. Every fourth query is not fitted to and judges: false where the token does not take a quarter of these queries' squared
 * error off; then there shall be none. */
bool kv_rest_fit(const kv_rest_input *in, float *k, float *v, void *scratch);

#endif
