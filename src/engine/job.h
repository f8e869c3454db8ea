/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prompt job: rows [start, start + n_rows) read layer by layer (DESIGN 2.4), each layer compressed as soon as its
 * last row is through, so that one layer's f16 K/V exists at a time. The rows belong to the job; what is kept of them
 * belongs to its targets, one a session: a layer's attention sees the layer's whole f16 run whatever a policy will keep
 * of it, so sessions that hold nothing yet and read the same tokens share one pass over the rows. A sync is a job of
 * one target. Where a score asks for it the rows are read once more in each layer, behind themselves (the echo), in
 * pieces that see all rows and themselves; nothing of an echo outlives its layer's sums. Owns its scratch and charges it
 * to the pool. The order of work inside is a function of the rows alone; neither how it is cut into micro-steps nor which
 * targets stand beside a target changes a bit of it.
 */
#ifndef KV_ENGINE_JOB_H
#define KV_ENGINE_JOB_H

#include "engine/engine.h"
#include "engine/sealer.h"

/* One page that a global selection may still drop. */
typedef struct kv_job_page {
    uint32_t birth;
    bool sealed;
} kv_job_page;

/* Per stream: what the compression point must remember until the last layer. mass arrays are [group]. */
typedef struct kv_job_stream {
    kv_job_page *pages;                 /* [n_pages], where a selection may drop some */
    float *page_mass;                   /* [n_pages][group] */
    uint32_t n_pages, cap_pages, n_own; /* the first n_own are the stream's whatever is selected */
    double *all, *evicted;              /* [group] */
    double queries;                     /* that all and evicted are sums over */
} kv_job_stream;

/* Column sums over the run of the present layer, added to as its rows go through. One for each distinct need of the
 * targets: those that need the same share it. */
typedef struct kv_job_pass {
    kv_score_need need; /* need.pass: `sums` is made, of these rows; else only `mass` */
    uint32_t mass_rows; /* newest rows whose p is added to `mass` and `sink_mass`; 0: none */
    float *sums, *mass; /* [n_q][stride] */
    float *sink_mass;   /* [n_q] */
} kv_job_pass;

/* Moments of the present layer's queries, for scores that foresee queries (foresee.c). */
typedef struct kv_foresight {
    bool wanted;                            /* by some target's score of the present layer */
    kv_score_moments *moments;              /* [n_q] */
    float *sums;                            /* what the moments point to */
    float *linear, *square, *logits;        /* of one KV head: [group][dk], [group][dk][dk], [group][stride] */
    float *cos, *sin;                       /* [n_rot / 2] mean rotation ahead */
} kv_foresight;

/* Rows that tokens for what is evicted are fitted to (rest.c). */
typedef struct kv_job_rest {
    bool wanted;          /* by some target */
    uint32_t rows, step;  /* rows of a layer; every step-th of the sync */
    uint32_t row, stream; /* the next to look, the next to fit */
    uint16_t *q, *whole;  /* f16 [n_layers][n_q][rows][dk or dv]: queries, and attention over the whole prompt */
    float *whole_lse;     /* [n_layers][n_q][rows] */
    float *mean;          /* [n_layers][n_kv][dk] mean keys */
    float *now, *out;     /* [rows][n_q][dk or dv] of the layer at hand */
    float *lse;           /* [rows][n_q] */
    void *scratch;        /* of a fit */
} kv_job_rest;

/* One session of the job: its policy, and what the present layer's compression needs of it. */
typedef struct kv_job_target {
    kv_job *j;
    kvist_session *s;
    kv_policy policy;     /* as kv_policy_for_prompt makes it of the session's */
    uint32_t kept_recent; /* recent tokens as the session's says: `policy` may keep local ones in the tail too */
    kv_plan plan;
    bool weighs; /* some layer's format weighs channels: squared queries are collected */
    bool echoes; /* some layer's score looks at an echo */
    bool rest;   /* every head gets a token for what it lost */
    kv_gsel *gsel;
    kv_job_stream *streams; /* [n_streams] when evicting */
    kv_layer_policy lp;     /* of the present layer, as the rest */
    kv_page_layout layout;
    kv_score_need need;
    uint32_t mass_rows;                 /* W: queries that the retained mass is taken over */
    uint32_t sums_pass, mass_pass;      /* of j->passes; sums_pass only where need.pass */
    double score_seconds, seal_seconds; /* of the step just made: passes it uses, its own compression */
} kv_job_target;

/* Pages are up for selection while the layers go by: all of a stream's where it is global, those that the guard may add
 * to a stream's own elsewhere. */
static inline bool kv_job_selects(const kv_job_target *t) { return t->plan.global || t->plan.guard_pages > 0; }

/* LOOK: the rows that rest tokens are fitted to attend to the layer's run; REST: the fits, after the last layer. */
enum kv_job_phase { KV_JOB_EMBED, KV_JOB_ROWS, KV_JOB_LOOK, KV_JOB_COMPRESS, KV_JOB_REST, KV_JOB_HEAD, KV_JOB_DONE };

struct kv_job {
    kvist_engine *e;
    kv_job_target *targets; /* [n_targets]; the first one's tokens and streams stand for all while rows are read */
    uint32_t n_targets;
    bool last;  /* the operation's last run: its logits are wanted */
    bool evict; /* some target evicts */
    uint32_t start, n_rows;
    uint32_t n_echo; /* n_rows or 0: rows n_rows .. n_rows + n_echo of a layer are an echo */
    uint32_t n_kept; /* rows that kf, vf have room for: n_rows and one piece of the echo */
    enum kv_job_phase phase;
    uint32_t layer, row;
    uint32_t target;     /* of the compression under way */
    float *x;            /* [n_rows + n_echo][n_embd] residual */
    uint16_t *kf, *vf;   /* [n_kv][n_kept][dk or dv], this layer's new rows, then the echo's piece */
    float *q2;           /* [q2_rows][n_kv][dk] */
    uint32_t q2_rows;    /* rows below KV_Q2_POSITIONS; 0 when no target's format weighs channels */
    uint32_t keys;       /* longest run: the tail and the rows */
    size_t stride;       /* floats between query heads in sums, mass; at least the keys that any row sees */
    kv_job_pass *passes; /* [n_targets], n_passes of them in the present layer */
    uint32_t n_passes, n_sums, n_mass;
    float *sums, *mass; /* [n_sums or n_mass of the neediest layer][n_q][stride] */
    float *sink_mass;   /* [n_mass][n_q] */
    kv_foresight foresight;
    float *foresight_floats;
    kv_job_rest rest;
    /* Scratch of one target's compression after the other. order and cuts have room for all heads of a layer where a
     * selection is global (it settles once all were cut), score where a layer's scores decide the counts, for one
     * elsewhere. */
    float *score, *score_scratch, *price;
    void *guard_scratch;
    uint32_t *order;    /* [heads][keys] */
    kv_page_plan *cuts; /* [heads][cap_cuts] */
    uint32_t cap_cuts;
    void *cut_scratch, *settle_scratch;
    uint64_t charged;
    double score_seconds, seal_seconds; /* of the step just made, all targets */
};

/* ---- job.c */
/* st, and where it is a failure of one target among several, err says which. */
kv_status kv_job_named(const kv_job_target *t, kv_status st, kv_error *err);

/* ---- sums.c: the passes of the present layer */
/* Finds each target's policy of j->layer and the passes all need together (j->passes without their arrays). */
void kv_job_plan_passes(kv_job *j);
/* Gives the passes their arrays, cleared. */
void kv_job_begin_passes(kv_job *j);
/* Before a layer's first row of the echo: votes that stand in its sums get their weight, those for the voting rows' own
 * keys none. */
void kv_job_begin_echo(kv_job *j);
/* Adds a chunk whose attention was just computed; echo: its rows are the echo's. */
void kv_job_add_sums(kv_job *j, const kv_attn_chunk *c, bool echo);
/* Seconds spent on rows below `end` of the sync for nothing but their scores. */
void kv_job_count_scored(kv_job *j, uint32_t end, double seconds);
/* First row of the sync that a pass of the layer looks at; n_rows: none. */
uint32_t kv_job_first_scored(const kv_job *j);

/* ---- foresee.c: moments of queries */
size_t kv_foresee_floats(const kv_hparams *hp, size_t stride); /* room that open takes */
/* floats and moments[n_q] are the job's. */
void kv_foresee_open(kv_job *j, float *floats, kv_score_moments *moments);
void kv_foresee_begin(kv_job *j); /* of a layer */
/* Queries before RoPE of rows [row0, row0 + n) are in the forward buffers. */
void kv_foresee_rows(kv_job *j, uint32_t row0, uint32_t n);
/* [group][stride] logits of a stream's run; until the next call. */
const float *kv_foresee_logits(kv_job *j, const kv_run_source *run, uint32_t head);

/* ---- rest.c: tokens that stand for what was evicted */
/* Finds out who wants them and how many rows that takes. */
void kv_job_rest_plan(kv_job *j);
/* What a fit of a KV head reads; without arrays (their sizes) before they are there. */
struct kv_rest_input kv_job_rest_input(const kv_job *j, uint32_t layer, uint32_t head);
/* Queries before RoPE of rows [row0, row0 + n) are in the forward buffers. */
void kv_job_rest_rows(kv_job *j, uint32_t row0, uint32_t n);
/* After a layer's last row, while the run is there: some rows look; true after the last. */
bool kv_job_rest_look(kv_job *j);
/* After the last layer's compression: fits and writes the token of one KV head. Heads of a layer one after the other. */
void kv_job_rest_fit(kv_job_target *t, uint32_t layer, uint32_t head);

/* ---- compress.c: seals and evicts one target's streams of the present layer; finishes masses after the last layer */
kv_status kv_job_compress_layer(kv_job_target *t, kv_error *err);
kv_status kv_job_finish_masses(kv_job_target *t, kv_error *err);

#endif
