/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist: language models over long contexts with a small, fast KV cache.
 *
 * Nouns and lifetimes
 *   kvist_model    immutable weights and vocabulary of one GGUF file. Usable from any thread.
 *                  Outlives every engine opened on it.
 *   kvist_engine   one page pool (one memory budget), one batch loop, its worker threads.
 *                  Internally locked. Outlives its sessions.
 *   kvist_session  one conversation: token history and compressed cache. One caller at a time;
 *                  different sessions may be driven from different threads and are batched.
 *   kvist_error    caller's storage; filled when a call returns a status other than KVIST_OK.
 *
 * Example (compiled and run by `make check`): examples/minimal.c
 *
 *   kvist_error err; kvist_model *m; kvist_engine *e; kvist_session *s;
 *   if (kvist_model_open("model.gguf", NULL, &m, &err)) ...            // err.message says why
 *   if (kvist_engine_create(m, NULL, &e, &err)) ...
 *   if (kvist_session_create(e, "minikv,share=0.14", &s, &err)) ...    // any policy text
 *   int32_t ids[512]; size_t n;
 *   kvist_tokenize(m, "Once upon a time", 16, KVIST_TOK_SPECIAL, ids, 512, &n, &err);
 *   kvist_session_sync(s, ids, n, &err);                               // read the prompt
 *   for (int i = 0; i < 64; i++) {
 *       int32_t id;
 *       kvist_session_sample(s, NULL, &id, &err);                      // NULL: greedy
 *       if (kvist_token_is_end(m, id)) break;
 *       kvist_session_decode(s, id, &err);                             // one generated token
 *   }
 *   kvist_session_close(&s); kvist_engine_close(&e); kvist_model_close(&m);
 *
 * Rules: every call returns 0 (KVIST_OK) or a negative status; nothing exits, nothing prints except
 * through the log callback; close(T **) frees and nulls and accepts NULL; strings are UTF-8.
 */
#ifndef KVIST_H
#define KVIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default) /* the library hides everything else */
#endif

#define KVIST_VERSION "0.1.0"

/* Status families: name, value, default message. One list, used for names and messages. */
#define KVIST_STATUS_LIST(X)                                                                                           \
    X(OK, 0, "ok")                                                                                                     \
    X(E_ARG, -1, "bad argument")                                                                                       \
    X(E_IO, -2, "input/output error")                                                                                  \
    X(E_FORMAT, -3, "malformed data")                                                                                  \
    X(E_UNSUPPORTED, -4, "not supported")                                                                              \
    X(E_MEMORY, -5, "out of memory")                                                                                   \
    X(E_BUDGET, -6, "KV memory budget exceeded")                                                                       \
    X(E_CONTEXT, -7, "context is full")                                                                                \
    X(E_CANCELLED, -8, "cancelled")                                                                                    \
    X(E_STATE, -9, "call not valid in this state")                                                                     \
    X(E_POLICY, -10, "bad or unsupported KV policy")

typedef enum kvist_status {
#define X(name, value, text) KVIST_##name = value,
    KVIST_STATUS_LIST(X)
#undef X
} kvist_status;

typedef struct kvist_error {
    kvist_status status;
    char message[480]; /* names what is wrong and where; always terminated */
} kvist_error;

const char *kvist_status_name(kvist_status status);
const char *kvist_version(void);

typedef void (*kvist_log_fn)(void *user, int level /* 0 error .. 3 debug */, const char *text);
/* Called during long work; return false to stop it (KVIST_E_CANCELLED). done/total in tokens x layers. */
typedef bool (*kvist_progress_fn)(void *user, uint64_t done, uint64_t total);

/* ------------------------------------------------------------------ model */

typedef struct kvist_model kvist_model;

typedef struct kvist_model_params {
    uint32_t threads;  /* for loading; 0: all processors */
    int32_t cpu_level; /* -1: best this CPU has; 0 reference, 1 AVX2, 2 AVX-512 VNNI */
    kvist_log_fn log;  /* may be NULL */
    void *log_user;
} kvist_model_params;

/* Opens and repacks a GGUF file. params may be NULL. On success *out is the caller's to close. */
int kvist_model_open(const char *path, const kvist_model_params *params, kvist_model **out, kvist_error *err)
    __attribute__((warn_unused_result));
void kvist_model_close(kvist_model **model);

typedef struct kvist_model_info {
    const char *arch, *name, *type, *pre; /* owned by the model */
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim_k, head_dim_v, n_ff, n_vocab, n_ctx_train;
    uint64_t n_params, bytes_file, bytes_weights; /* bytes_weights: resident after repacking */
    uint32_t page_bytes;                          /* size of a KV page for this model */
    uint64_t bytes_f16_token;                     /* f16 KV bytes of one token, all layers */
    const char *chat_family;                      /* NULL when the model has no known template */
} kvist_model_info;
void kvist_model_get_info(const kvist_model *model, kvist_model_info *out);

/* ------------------------------------------------------------------ text */

enum {
    KVIST_TOK_SPECIAL = 1, /* add BOS/EOS as the model asks */
    KVIST_TOK_PARSE = 2
}; /* read special tokens written in the text */

/* Writes at most cap ids; *n is the number the text has (call again with more room if *n > cap). */
int kvist_tokenize(const kvist_model *model, const char *text, size_t len, unsigned flags, int32_t *ids, size_t cap,
                   size_t *n, kvist_error *err);
/* Bytes of one token (may be part of a UTF-8 character); owned by the model. special: render control tokens. */
const char *kvist_token_bytes(const kvist_model *model, int32_t id, bool special, size_t *len);
bool kvist_token_is_end(const kvist_model *model, int32_t id);

typedef struct kvist_message {
    const char *role, *content;
} kvist_message;
/* Renders a conversation with the model's template family (or `family` when not NULL) into buf;
 * *len is the length needed without the terminator. KVIST_E_UNSUPPORTED when none is known. */
int kvist_chat_render(const kvist_model *model, const char *family, const kvist_message *messages, size_t n,
                      bool add_generation_prompt, char *buf, size_t cap, size_t *len, kvist_error *err);

/* ------------------------------------------------------------------ engine */

typedef struct kvist_engine kvist_engine;

typedef struct kvist_engine_params {
    uint32_t n_ctx;        /* largest sequence in tokens; 0: the model's own */
    uint32_t threads;      /* 0: all processors */
    uint32_t ubatch;       /* prompt rows a micro-step at most; 0: 512. Never changes a result */
    uint32_t max_sessions; /* sessions decoded in one batch at most; 0: 64 */
    uint64_t kv_bytes;     /* --kv-mem: pages, snapshots, prefill scratch; 0: enough for one full f16 context */
    uint32_t shadows;      /* sessions that will have a shadow: room for them in the default kv_bytes */
    int32_t precise;       /* 0: 8-bit activations; 1: f32 matrix products; 2: attention in f32 too */
    kvist_log_fn log;
    void *log_user;
} kvist_engine_params;

int kvist_engine_create(kvist_model *model, const kvist_engine_params *params, kvist_engine **out, kvist_error *err)
    __attribute__((warn_unused_result));
void kvist_engine_close(kvist_engine **engine); /* all its sessions must be closed */

/* ------------------------------------------------------------------ session */

typedef struct kvist_session kvist_session;

/* policy: "PRESET[,key=value...][;layers=A-B:key=value,...]" (docs/policies.md); NULL: "full". */
int kvist_session_create(kvist_engine *engine, const char *policy, kvist_session **out, kvist_error *err)
    __attribute__((warn_unused_result));
void kvist_session_close(kvist_session **session);

/* Makes the session's history equal ids[0..n): keeps the longest common prefix, truncates, reads the
 * rest as prompt rows, compresses once at the end. Afterwards the logits of token n-1 are current. */
int kvist_session_sync(kvist_session *s, const int32_t *ids, size_t n, kvist_error *err);

/* As sync, and hands out the logits of every row whose position is >= first that this call reads.
 * logits[n_vocab] is valid during the callback only; positions come in order. */
typedef void (*kvist_row_fn)(void *user, size_t position, const float *logits);
int kvist_session_sync_rows(kvist_session *s, const int32_t *ids, size_t n, size_t first, kvist_row_fn fn, void *user,
                            kvist_error *err);

/* Reads the same prompt into n different sessions of one engine that hold no tokens, each under its own policy: the
 * pass over the prompt and the column sums that several scores need are made once, then each layer is compressed for
 * every session. Each gets the bits that its own sync would have given. All caches exist at the same time: kv_bytes
 * must hold them. Stops when any session is cancelled or any progress callback says so; a failure of one is the failure
 * of all: they are left empty, and the message names the session where it is one's own. Reports: prefill_seconds of
 * each is the shared pass with its own scoring and sealing, about what its own sync would have taken, so the sum over
 * the sessions is more than the call took; bytes_peak is that of the call. */
int kvist_sync_many(kvist_session *const *sessions, size_t n, const int32_t *ids, size_t n_ids, kvist_error *err);

/* Appends one generated token; afterwards its logits are current. */
int kvist_session_decode(kvist_session *s, int32_t id, kvist_error *err);

/* Appends one generated token to each of n different sessions of one engine, as one batch that shares every weight
 * read; each gets the bits it would get alone. */
int kvist_decode_batch(kvist_session *const *sessions, const int32_t *ids, size_t n, kvist_error *err);

/* Logits [n_vocab] after the last token; NULL when there are none (new or truncated session). */
const float *kvist_session_logits(const kvist_session *s);

/* Forgets all tokens from position n on: bit for bit as if they had never been read. */
int kvist_session_truncate(kvist_session *s, size_t n, kvist_error *err);

/* Changes the policy for what follows; pages already sealed stay as they are. */
int kvist_session_set_policy(kvist_session *s, const char *policy, kvist_error *err);

/* The shadow check, an instrument: a full f16 copy of K and V is kept beside the cache, and at every generated position
 * that is a multiple of `every` one layer's attention (the layers in turn) is also computed over it. The report then
 * says what attention mass the cache really retains and how far the layer's output is off, beside the estimate. Costs
 * the bytes of an f16 cache of the engine's context (bytes_shadow: charged to kv_bytes, not part of bytes_true) and
 * changes no token. every 0: off. KVIST_E_STATE when the session holds tokens already. */
int kvist_session_set_shadow(kvist_session *s, uint32_t every, kvist_error *err);

size_t kvist_session_length(const kvist_session *s);         /* logical tokens */
const int32_t *kvist_session_tokens(const kvist_session *s); /* owned by the session */
void kvist_session_on_progress(kvist_session *s, kvist_progress_fn fn, void *user);

/* Any thread. The running call returns KVIST_E_CANCELLED within one micro-step; the session stays valid,
 * truncated to what was complete. */
void kvist_cancel(kvist_session *s);

typedef struct kvist_sampling {
    float temp;           /* <= 0: greedy */
    int32_t top_k;        /* 0: off */
    float top_p, min_p;   /* 1 and 0: off */
    float repeat_penalty; /* 1: off; over the last repeat_last_n tokens */
    int32_t repeat_last_n;
    uint64_t seed; /* the draw is a function of (seed, position) */
} kvist_sampling;
void kvist_sampling_default(kvist_sampling *p); /* llama.cpp's: temp .8, top_k 40, top_p .95, min_p .05 */

/* Picks a token from the current logits; p NULL: greedy (ties: lowest id). Does not append it. */
int kvist_session_sample(kvist_session *s, const kvist_sampling *p, int32_t *id, kvist_error *err);

/* ------------------------------------------------------------------ report */

#define KVIST_MAX_FORMATS 16

/* What the shadow check saw so far (kvist_session_set_shadow); masses over the KV heads of the layers it looked at. */
typedef struct kvist_shadow_report {
    uint64_t steps;                     /* 0: nothing checked */
    double mass_mean, mass_min;         /* retained mass, measured */
    double estimate_mean, estimate_min; /* of the same heads, as estimated at the compression point */
    double error_mean, error_max;       /* of a layer's attention output: |o - o_full| / |o_full| */
} kvist_shadow_report;

typedef struct kvist_report {
    char policy[256];      /* the policy in force, canonical text */
    uint64_t tokens_seen;  /* logical length */
    double tokens_stored;  /* mean over streams */
    uint64_t bytes_true;   /* referenced pages x page size + handles, page entries, positions, q2 */
    uint64_t bytes_unique; /* the same without pages that others hold too */
    uint64_t bytes_f16;    /* what an f16 cache of every token seen would take */
    uint64_t bytes_peak;   /* highest use during the last sync, scratch included */
    double share;          /* bytes_true / bytes_f16 */
    bool share_met;        /* false: the asked share was not reachable; share_note says why */
    char share_note[128];
    double mass_mean, mass_min; /* retained attention mass, 0..1, over KV heads */
    uint64_t mass_position;     /* token count at the compression point the masses come from */
    uint32_t mass_min_layer, mass_min_head;
    double guard;                 /* least retained mass the policy asks of every head; 0: no guard */
    bool guard_met;               /* every head retains it */
    uint32_t guard_heads_widened; /* KV heads that keep pages beyond their budget for it */
    uint32_t guard_heads_unmet;   /* KV heads that retain less; kvist_session_streams names both */
    uint64_t pages_guard;         /* of pages: kept for the guard only */
    uint64_t pages;               /* referenced */
    uint64_t pages_by_format[KVIST_MAX_FORMATS];
    uint64_t pages_dropped_pressure;
    uint64_t bytes_positions;               /* of bytes_true: positions of kept tokens (kvist_session_track) */
    double prefill_seconds, decode_seconds; /* spent inside sync and decode calls */
    double score_seconds; /* of prefill_seconds: column sums of attention, for scores and retained mass */
    double seal_seconds;  /* of prefill_seconds: ranking, selecting, encoding pages, settling tails */
    uint64_t prefill_tokens, decode_tokens;
    uint64_t bytes_shadow; /* 0: no shadow */
    kvist_shadow_report shadow;
} kvist_report;
/* Any thread. */
void kvist_session_report(const kvist_session *s, kvist_report *out);
const char *kvist_format_name(uint32_t format); /* NULL past the last */

/* One (layer, KV head): for maps and charts. */
typedef struct kvist_stream_report {
    uint32_t layer, head;
    uint32_t tokens_stored, pages;
    float mass;                           /* retained mass at the compression point */
    uint64_t bytes_true, bytes_positions; /* its part of the report's */
    uint32_t pages_guard;                 /* of pages: kept for the guard only; above 0: the head was widened */
    bool guard_unmet;                     /* the policy's guard asks for more than mass */
} kvist_stream_report;
/* Fills at most cap entries in layer, head order; returns how many there are. */
size_t kvist_session_streams(const kvist_session *s, kvist_stream_report *out, size_t cap);

/* Whether the session remembers which positions its sealed pages hold, for kvist_session_kept. Off by default: it costs
 * a byte or two a kept token where something was evicted (bytes_positions of the report, charged to the budget, on top
 * of a `share`), and changes no result. KVIST_E_STATE when the session holds tokens already. */
int kvist_session_track(kvist_session *s, bool on, kvist_error *err);
/* The tokens that the cache of one (layer, KV head) holds: fills at most cap items of each array that is not NULL and
 * returns how many there are (tokens_stored of its kvist_stream_report); 0 for a layer or head the model does not have,
 * or when the session does not track.
 *
 * positions: 0-based in kvist_session_tokens, in the order in which attention reads them: sealed pages by age, inside a
 * page as they lie (ascending unless tokens were moved), then the f16 tail. No position stands twice.
 *
 * prices: mean score of the tokens in its page (the page's price / its tokens), in units of the policy's score; 0 in
 * pages that no score ranked; INFINITY for tokens that are never evicted (sinks, local and recent ones).
 *
 * formats: of its page; format of K in the low 4 bits (kvist_format_name), of V in the high 4. */
size_t kvist_session_kept(const kvist_session *s, uint32_t layer, uint32_t head, uint32_t *positions, float *prices,
                          uint8_t *formats, size_t cap);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
