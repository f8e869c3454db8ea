/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One prompt, or one document with several questions, under several policies, on the same tokens. The first policy is
 * the base: its greedy answer is decoded token by token under each of the others (teacher forced) and the logits
 * compared; each policy's own greedy answer follows that path until its choice differs, and goes on from there after a
 * truncate. Works on the public interface only.
 */
#ifndef KV_MEASURE_COMPARE_H
#define KV_MEASURE_COMPARE_H

#include "measure/stats.h"
#include "measure/watch.h"

typedef struct kv_compare_item {
    const int32_t *ids;
    size_t n;
} kv_compare_item; /* a question's tokens after the shared prefix */

typedef struct kv_compare_params {
    const kvist_model *model;
    uint32_t n_vocab;
    const int32_t *prefix; /* read once per policy */
    size_t n_prefix;
    const kv_compare_item *items; /* n_items 0: the prompt is the prefix alone, and there is one answer */
    uint32_t n_items;
    uint32_t n_predict; /* tokens an answer at most */
    bool ignore_end;    /* answers go on past an end token */
    uint32_t shadow;    /* kvist_session_set_shadow's `every`; 0: no shadow */
    uint32_t min_timed; /* decode steps that the speed rests on at least (the answer is repeated) */
    kv_watch watch;
} kv_compare_params;

typedef struct kv_compare_answer {
    int32_t *ids;
    uint32_t n;
} kv_compare_answer;

typedef struct kv_compare_result {
    kvist_report report; /* right after the prefix was read: the compression point; the shadow's part: at the end */
    kvist_stream_report *streams; /* [n_streams] at the same point */
    size_t n_streams;
    double prefill_tps;         /* of the prefix */
    double decode_tps;          /* over the base's answers, teacher forced */
    double decode_ms[2];        /* least and greatest time of a decode step; NaN when none */
    kv_compare_answer *answers; /* [max(n_items, 1)] the policy's own greedy answers */
    uint32_t n_answers;
    uint32_t compared;                   /* predictions compared with the base's */
    double kld_mean, kld_p99, same_top1; /* NaN when nothing was compared */
} kv_compare_result;

typedef struct kv_compare kv_compare; /* the base's answers and logits */

/* Runs the base policy and keeps its answers' logits: answers x n_predict x n_vocab floats. */
kv_status kv_compare_base(kvist_engine *e, const kv_compare_params *p, const char *policy, kv_compare **out,
                          kv_compare_result *result, kv_error *err) KV_WARN_UNUSED;
/* Runs another policy against it. */
kv_status kv_compare_policy(kv_compare *c, const char *policy, kv_compare_result *result, kv_error *err) KV_WARN_UNUSED;
void kv_compare_free(kv_compare **c);
void kv_compare_result_free(kv_compare_result *r);

/* Does text contain one of the alternatives of `expected` ("Paris|Lutetia"), letter case apart (ASCII)? Spaces around
 * an alternative do not count; an empty expectation is never found. */
bool kv_compare_found(const char *text, const char *expected);

#endif
