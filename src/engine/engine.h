/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's own structures. One caller at a time is the leader: it runs steps for all sessions with pending work
 * until its own is done, then hands over; there is no extra thread. A step = one batch of generated rows (one per
 * session that wants one), then one micro-step of the oldest prompt job.
 *
 * Locks: `mu` guards the queue and who leads. `work` is held during a step; reports take it too, so they see whole
 * steps. Everything below a session (seq, snapshots, job) and the pool is touched only by the leader or under `work`.
 */
#ifndef KV_ENGINE_ENGINE_H
#define KV_ENGINE_ENGINE_H

#include "model/model.h"
#include "policy/plan.h"

#include <pthread.h>
#include <stdatomic.h>

enum { KV_SEAL_TOKENS = 512 }; /* upper bound of any format's tokens a page */
/* Rows of one piece of an echo (job.h): bounds its memory, its attention and how far positions run past the context. */
enum { KV_ECHO_ROWS = 512 };
enum { KV_SEAL_JOBS = 64 };    /* pages encoded in one backend call: enough to keep every thread busy */
enum {
    KV_MAX_SNAPSHOTS = 6
}; /* a session: start and end of the last few syncs; enough for /undo and per-question rollback */

/* A run of rows of one kind: [start of the previous run's end, end). PROMPT: one sync. */
enum kv_row_kind { KV_ROWS_PROMPT, KV_ROWS_GENERATED };
typedef struct kv_run {
    uint32_t end;
    uint8_t kind;
    uint16_t policy;
} kv_run;

typedef struct kv_job kv_job;

/* State that a compression point decided and a snapshot restores beside the pages. */
typedef struct kv_point {
    bool share_met;
    char share_note[128];
    uint64_t mass_position;
    uint32_t floor_pages; /* when=pressure: pages a stream keeps */
} kv_point;

typedef struct kv_saved {
    kv_snapshot *snap;
    uint64_t used;
    kv_point point;
    float *logits;
} kv_saved;

struct kvist_session {
    kvist_engine *e;
    struct kvist_session *next; /* engine's list */
    kv_policy *policies;        /* [n_policies]; the last is in force */
    uint32_t n_policies, cap_policies;
    kv_seq *seq;
    int32_t *tokens; /* [n_ctx] */
    uint32_t n;      /* logical length */
    kv_run *runs;
    uint32_t n_runs, cap_runs;
    kv_saved saved[KV_MAX_SNAPSHOTS];
    float *logits; /* [n_vocab] */
    bool logits_valid;
    void *sample_scratch;
    kv_point point;
    struct kv_shadow *shadow; /* shadow.h; NULL: none */
    bool track;               /* kvist_session_track; seq->track where the shadow needs positions too */
    uint64_t bytes_peak;
    uint64_t pages_dropped_pressure;
    struct kv_evict *evict; /* scratch of a policy that evicts after the prompt; NULL: none yet */
    double prefill_seconds, decode_seconds, score_seconds, seal_seconds;
    uint64_t prefill_tokens, decode_tokens;
    atomic_bool cancel;
    kvist_progress_fn progress;
    void *progress_user;

    /* the pending operation; owned by the leader while `busy` */
    bool busy, done;
    kv_status status;
    kv_error err;
    kv_run *todo; /* runs to execute in order */
    uint32_t n_todo, cap_todo, at_todo;
    bool reading;      /* a prompt run is under way: its start's snapshot must stay */
    kv_job *job;       /* of the current PROMPT run; of several sessions: held by the first */
    size_t rows_first; /* hand out logits from this position on */
    kvist_row_fn rows_fn;
    void *rows_user;
    uint32_t n_replay;         /* the first runs of todo are replays: not counted as work done */
    kvist_session *const *fan; /* the sessions that read this prompt together, this one first, in the caller's array;
                                  NULL: alone. Only the first is queued and holds the job. */
    uint32_t n_fan;
    struct kvist_session *queue_next;
};

struct kvist_engine {
    kv_model *m;
    kvist_engine_params p; /* defaults filled in */
    kv_pool *pool;
    kv_forward f;
    float *x;                  /* [max_sessions][n_embd] residual of a decode batch */
    float *batch_logits;       /* [max_sessions][n_vocab] */
    kv_attn_decode_row *rows;  /* [max_sessions] */
    kv_attn_mass *masses;      /* [max_sessions] */
    uint16_t *row_k, *row_v;   /* [max(ubatch, sessions)][n_kv][d] f16 staging of new rows */
    float *row_q2;             /* [max(...)][n_kv][dk] */
    uint16_t *seal_k, *seal_v; /* gathered tokens of the pages being sealed */
    size_t seal_tokens;        /* room in seal_k, seal_v */
    kv_seal_job *seal_jobs;
    float *seal_q2; /* [jobs][dk] */
    uint32_t max_seal_jobs;
    double step_slowness; /* measured over expected time of prompt micro-steps, a running mean; 0: none made yet */
    uint64_t fixed_bytes; /* scratch of the engine, charged to the pool */
    bool fixed_charged;

    pthread_mutex_t mu;
    pthread_cond_t changed;
    bool led;
    kvist_session *queue; /* sessions with pending work, oldest first */
    pthread_mutex_t work;
    pthread_cond_t reported;
    uint32_t reporters; /* callers waiting for `work` */
    kvist_session *sessions;
    uint64_t clock; /* for LRU */
    uint32_t n_sessions;
};

/* ---- steps (step.c): the leader's loop body; everything in the queue advances */
void kv_engine_step(kvist_engine *e, kvist_session *const *batch, uint32_t n);
/* Runs s's todo list to the end (any thread; leads or waits). */
kv_status kv_engine_run(kvist_session *s, kv_error *err);
kv_status kv_engine_run_many(kvist_session *const *s, uint32_t n, kv_error *err);
/* Exclusive access to pool and sessions between steps, for calls that are not queued. */
void kv_engine_enter(kvist_engine *e);
void kv_engine_leave(kvist_engine *e);

/* ---- generated rows (decode.c). One row per session; ids[i] is appended to s[i] */
void kv_decode_batch(kvist_engine *e, kvist_session *const *s, const int32_t *ids, const bool *want_logits, uint32_t n,
                     kv_status *status, kv_error *errs);

/* ---- prompt jobs (job.c, prefill.c): the present PROMPT run of n sessions, read once. n > 1: sessions that hold
 * nothing and are to read the same tokens, each under its own policy. */
kv_status kv_job_create(kvist_session *const *s, uint32_t n, kv_job **out, kv_error *err);
kv_status kv_job_step(kv_job *j, bool *done, kv_error *err); /* one micro-step */
void kv_job_free(kv_job **j);

/* ---- sealing (seal.c) */
/* Seals full pages of the tail while decoding: policy's format, after the sequence grew to s->n + 1 tokens. */
kv_status kv_seal_tail(kvist_session *s, const kv_policy *policy, kv_error *err);
/* Upper bound of pages a decode step of s may acquire. */
uint32_t kv_decode_pages_needed(const kvist_session *s, const kv_policy *policy);
kv_status kv_layer_layout(const kv_model *m, const kv_layer_policy *lp, uint32_t layer, kv_page_layout *out,
                          kv_error *err);
/* True when pages of this format are worth sealing: f16 tails stay as they are. */
static inline bool kv_seals(const kv_layer_policy *lp) { return (lp->format & 15) != KV_F16; }

/* ---- sessions (session.c, history.c) */
kv_status kv_session_save(kvist_session *s, kv_error *err);          /* snapshot at the present length */
kv_saved *kv_session_find_saved(kvist_session *s, uint32_t at_most); /* newest snapshot of at most that length */
void kv_session_drop_saved_above(kvist_session *s, uint32_t n);
bool kv_engine_drop_oldest_snapshot(kvist_engine *e); /* under memory pressure; false: none left */
kv_status kv_session_push_run(kvist_session *s, uint32_t end, uint8_t kind, uint16_t policy, kv_error *err);
kv_status kv_session_add_todo(kvist_session *s, uint32_t end, uint8_t kind, uint16_t policy, kv_error *err);
/* No tokens, no pages; the log and the snapshots stay. */
void kv_session_forget(kvist_session *s);
/* Cuts the log at n. */
void kv_session_cut_runs(kvist_session *s, uint32_t n);
/* Under kv_engine_enter. Back to n tokens; what must be replayed for it is left in s->todo. */
kv_status kv_session_truncate_to(kvist_session *s, uint32_t n, kv_error *err);
/* Under kv_engine_enter. Back to the newest snapshot of at most `at_most` tokens (or the start), the rest up to n left
 * in s->todo. */
kv_status kv_session_rewind(kvist_session *s, uint32_t at_most, uint32_t n, kv_error *err);
kv_status kv_engine_room(kvist_engine *e, uint64_t pages, uint64_t bytes,
                         kv_error *err); /* drops snapshots, then pages of when=pressure sessions, until there is room */

int32_t kv_sample_logits(const float *logits, uint32_t n, const kvist_sampling *p, const int32_t *history,
                         uint32_t n_history, void *scratch);
size_t kv_sample_scratch(uint32_t n);

#endif
