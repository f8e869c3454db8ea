/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prompt job: rows [start, start + n_rows) of one session read layer by layer (DESIGN 2.4), each layer compressed as
 * soon as its last row is through, so that one layer's f16 K/V exists at a time. Owns its scratch and charges it to the
 * pool. The order of work inside is a function of the rows alone; how it is cut into micro-steps changes nothing.
 */
#ifndef KV_ENGINE_JOB_H
#define KV_ENGINE_JOB_H

#include "engine/engine.h"

/* One page that a global selection may still drop. */
typedef struct kv_job_page {
    uint32_t birth;
    bool sealed;
} kv_job_page;

/* Per stream: what the compression point must remember until the last layer. mass arrays are [group]. */
typedef struct kv_job_stream {
    kv_job_page *pages; /* [n_pages], global selection only */
    float *page_mass;   /* [n_pages][group] */
    uint32_t n_pages;
    double *all, *evicted; /* [group] */
} kv_job_stream;

enum kv_job_phase { KV_JOB_EMBED, KV_JOB_ROWS, KV_JOB_COMPRESS, KV_JOB_HEAD, KV_JOB_DONE };

struct kv_job {
    kvist_session *s;
    kvist_engine *e;
    kv_policy policy;
    bool last; /* the operation's last run: its logits are wanted */
    uint32_t start, n_rows;
    enum kv_job_phase phase;
    uint32_t layer, row;
    float *x;          /* [n_rows][n_embd] residual */
    uint16_t *kf, *vf; /* [n_kv][n_rows][dk or dv], this layer's new rows */
    float *q2;         /* [q2_rows][n_kv][dk] */
    uint32_t q2_rows;  /* rows below KV_Q2_POSITIONS; 0 when no layer's format weighs channels */
    kv_plan plan;
    kv_gsel *gsel;
    size_t stride;      /* floats between query heads in sums, mass */
    float *sums, *mass; /* [n_q][stride] over the f16 run of the present layer */
    float *sink_mass;   /* [n_q] */
    float *score, *score_scratch;
    uint32_t *order;
    kv_page_plan *cuts;
    void *cut_scratch;
    uint32_t mass_rows;     /* W: queries that the retained mass is taken over */
    kv_job_stream *streams; /* [n_streams] when evicting */
    kv_layer_policy lp;     /* of the present layer */
    kv_page_layout layout;
    kv_score_need need;
    uint64_t charged;
    double score_seconds, seal_seconds; /* of the step just made */
};

/* ---- compress.c: seals and evicts the present layer's streams; finishes masses after the last layer */
kv_status kv_job_compress_layer(kv_job *j, kv_error *err);
void kv_job_finish_masses(kv_job *j);

#endif
