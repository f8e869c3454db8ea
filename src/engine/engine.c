/* SPDX-License-Identifier: Apache-2.0 */
/* Engine and model handles: what is allocated once, and sized before it is allocated. */
#include "engine/engine.h"

#include "base/alloc.h"
#include "text/chat.h"

#include <string.h>

enum { DEFAULT_UBATCH = 512, DEFAULT_SESSIONS = 64, MAX_SESSIONS = 256, MAX_UBATCH = 4096, MAX_CONTEXT = 1 << 24 };

int kvist_model_open(const char *path, const kvist_model_params *params, kvist_model **out, kvist_error *err) {
    if (!path || !out) KV_FAIL(err, ARG, "model_open: NULL path or result");
    return kv_model_load(path, params, out, err);
}

void kvist_model_close(kvist_model **model) {
    if (model) kv_model_free(model);
}

void kvist_model_get_info(const kvist_model *m, kvist_model_info *out) {
    const kv_hparams *hp = &m->hp;
    *out = (kvist_model_info){.arch = m->arch->name,
                              .name = m->name ? m->name : m->arch->name,
                              .type = m->type_name,
                              .pre = kv_tokenizer_pre(m->tok),
                              .n_layers = hp->n_layers,
                              .n_embd = hp->n_embd,
                              .n_heads = hp->n_q,
                              .n_kv_heads = hp->n_kv,
                              .head_dim_k = hp->dk,
                              .head_dim_v = hp->dv,
                              .n_ff = hp->n_ff,
                              .n_vocab = hp->n_vocab,
                              .n_ctx_train = hp->n_ctx_train,
                              .n_params = m->n_params,
                              .bytes_file = m->bytes_file,
                              .bytes_weights = m->bytes_weights,
                              .page_bytes = (uint32_t)m->page_bytes,
                              .bytes_f16_token = 2ull * hp->n_layers * hp->n_kv * (hp->dk + hp->dv),
                              .chat_family = m->chat_family};
}

/* Default budget: one full f16 context with its open pages and entries, one snapshot's copies, and the scratch of
 * reading it at once. */
static uint64_t default_budget(const kvist_engine *e) {
    const kv_hparams *hp = &e->m->hp;
    uint64_t streams = (uint64_t)hp->n_layers * hp->n_kv, ctx = e->p.n_ctx;
    uint64_t page_tokens = e->m->shapes[0].f16_tokens, pages = streams * (ctx / page_tokens + 4);
    uint64_t cache = pages * (e->m->page_bytes + sizeof(kv_page_entry) + 2 * sizeof(kv_handle));
    uint64_t q2 = streams * (KV_Q2_POSITIONS + 1) * hp->dk * 4;
    uint64_t job = ctx * (hp->n_embd * 4ull + 2ull * hp->n_kv * (hp->dk + hp->dv) + 8ull * hp->n_q + 64) + (1ull << 20);
    uint64_t snapshots =
        KV_MAX_SNAPSHOTS * (pages * 16 + hp->n_vocab * 4ull + streams * (sizeof(kv_stream) + e->m->page_bytes));
    uint64_t shadow = e->p.shadows * (ctx * (2ull * streams * (hp->dk + hp->dv) + 5ull * hp->n_q) + (1ull << 20));
    return cache + q2 + job + snapshots + shadow + e->fixed_bytes + (16ull << 20);
}

static kv_status fill_defaults(kvist_engine *e, const kvist_engine_params *params, kv_error *err) {
    if (params) e->p = *params;
    kvist_engine_params *p = &e->p;
    if (!p->n_ctx) p->n_ctx = e->m->hp.n_ctx_train;
    if (!p->threads) p->threads = kv_os_processors();
    if (!p->ubatch) p->ubatch = DEFAULT_UBATCH;
    if (!p->max_sessions) p->max_sessions = DEFAULT_SESSIONS;
    if (p->n_ctx > MAX_CONTEXT) KV_FAIL(err, ARG, "context of %u tokens (at most %d)", p->n_ctx, MAX_CONTEXT);
    if (p->threads > 1024) KV_FAIL(err, ARG, "%u threads (at most 1024)", p->threads);
    if (p->ubatch > MAX_UBATCH) KV_FAIL(err, ARG, "micro-batch of %u rows (at most %d)", p->ubatch, MAX_UBATCH);
    if (p->max_sessions > MAX_SESSIONS) KV_FAIL(err, ARG, "%u sessions (at most %d)", p->max_sessions, MAX_SESSIONS);
    if (p->precise < 0 || p->precise > 2) KV_FAIL(err, ARG, "precise=%d (0, 1 or 2)", p->precise);
    return KVIST_OK;
}

static void *counted(kvist_engine *e, size_t bytes) {
    void *p = kv_malloc64(bytes);
    if (p) e->fixed_bytes += bytes;
    return p;
}

static kv_status make_buffers(kvist_engine *e, kv_error *err) {
    const kv_hparams *hp = &e->m->hp;
    size_t S = e->p.max_sessions, logits = S < 16 ? 16 : S;
    e->x = counted(e, S * hp->n_embd * sizeof(float));
    e->batch_logits = counted(e, logits * hp->n_vocab * sizeof(float));
    e->rows = counted(e, S * sizeof *e->rows);
    e->masses = counted(e, S * sizeof *e->masses);
    e->row_k = counted(e, S * hp->n_kv * hp->dk * 2);
    e->row_v = counted(e, S * hp->n_kv * hp->dv * 2);
    e->row_q2 = counted(e, S * hp->n_kv * hp->dk * sizeof(float));
    e->max_seal_jobs = KV_SEAL_JOBS;
    e->seal_tokens = 8192;
    e->seal_k = counted(e, e->seal_tokens * hp->dk * 2);
    e->seal_v = counted(e, e->seal_tokens * hp->dv * 2);
    e->seal_jobs = counted(e, KV_SEAL_JOBS * sizeof *e->seal_jobs);
    e->seal_q2 = counted(e, KV_SEAL_JOBS * hp->dk * sizeof(float));
    if (!e->x || !e->batch_logits || !e->rows || !e->masses || !e->row_k || !e->row_v || !e->row_q2 || !e->seal_k || !e->seal_v ||
        !e->seal_jobs || !e->seal_q2)
        KV_FAIL(err, MEMORY, "engine buffers");
    return KVIST_OK;
}

static kv_status init_engine(kvist_engine *e, const kvist_engine_params *params, kv_error *err) {
    KV_TRY(fill_defaults(e, params, err));
    uint32_t rows = e->p.ubatch > e->p.max_sessions ? e->p.ubatch : e->p.max_sessions;
    if (rows < 16) rows = 16;
    kv_exec_params ep = {.threads = e->p.threads, .precise = e->p.precise, .max_rows = rows, .max_ctx = e->p.n_ctx + KV_ECHO_ROWS};
    KV_TRY(kv_forward_init(&e->f, e->m, &ep, err));
    KV_TRY(make_buffers(e, err));
    e->fixed_bytes += e->f.bytes;
    if (!e->p.kv_bytes) e->p.kv_bytes = default_budget(e);
    KV_TRY(kv_pool_create(e->m->page_bytes, e->p.kv_bytes, &e->pool, err));
    KV_TRY(kv_pool_charge(e->pool, e->fixed_bytes, err));
    e->fixed_charged = true;
    return KVIST_OK;
}

int kvist_engine_create(kvist_model *model, const kvist_engine_params *params, kvist_engine **out, kvist_error *err) {
    if (!model || !out) KV_FAIL(err, ARG, "engine_create: NULL model or result");
    *out = NULL;
    kvist_engine *e = kv_calloc(1, sizeof *e);
    if (!e) KV_FAIL(err, MEMORY, "engine");
    e->m = model;
    pthread_mutex_init(&e->mu, NULL);
    pthread_mutex_init(&e->work, NULL);
    pthread_cond_init(&e->changed, NULL);
    pthread_cond_init(&e->reported, NULL);
    kv_status st = init_engine(e, params, err);
    if (st) {
        kvist_engine_close(&e);
        return st;
    }
    *out = e;
    return KVIST_OK;
}

void kvist_engine_close(kvist_engine **pe) {
    if (!pe || !*pe) return;
    kvist_engine *e = *pe;
    *pe = NULL;
    if (e->fixed_charged) kv_pool_discharge(e->pool, e->fixed_bytes);
    kv_pool_free(&e->pool);
    kv_forward_free(&e->f);
    kv_free64(e->x);
    kv_free64(e->batch_logits);
    kv_free64(e->rows);
    kv_free64(e->masses);
    kv_free64(e->row_k);
    kv_free64(e->row_v);
    kv_free64(e->row_q2);
    kv_free64(e->seal_k);
    kv_free64(e->seal_v);
    kv_free64(e->seal_jobs);
    kv_free64(e->seal_q2);
    pthread_mutex_destroy(&e->mu);
    pthread_mutex_destroy(&e->work);
    pthread_cond_destroy(&e->changed);
    pthread_cond_destroy(&e->reported);
    kv_free(e);
}

/* ---- text */

int kvist_tokenize(const kvist_model *m, const char *text, size_t len, unsigned flags, int32_t *ids, size_t cap,
                   size_t *n, kvist_error *err) {
    if (!m || (!text && len) || !n) KV_FAIL(err, ARG, "tokenize: NULL argument");
    return kv_tokenizer_encode(m->tok, text, len, flags & KVIST_TOK_SPECIAL, flags & KVIST_TOK_PARSE, ids, cap, n, err);
}

const char *kvist_token_bytes(const kvist_model *m, int32_t id, bool special, size_t *len) {
    return kv_tokenizer_bytes(m->tok, id, special, len);
}
bool kvist_token_is_end(const kvist_model *m, int32_t id) { return kv_tokenizer_is_end(m->tok, id); }

int kvist_chat_render(const kvist_model *m, const char *family, const kvist_message *messages, size_t n,
                      bool add_generation_prompt, char *buf, size_t cap, size_t *len, kvist_error *err) {
    if (!m || !messages || !len) KV_FAIL(err, ARG, "chat_render: NULL argument");
    if (family && !kv_chat_known(family))
        KV_FAIL(err, UNSUPPORTED, "chat template '%s' (built: %s)", family, kv_chat_families());
    if (!family) family = m->chat_family;
    if (!family)
        KV_FAIL(err, UNSUPPORTED, "%s; name a family with --chat-template (built: %s) or use --raw",
                m->jinja ? "the model's chat template is of no known family" : "the model has no chat template",
                kv_chat_families());
    size_t bos_len = 0, eos_len = 0;
    int32_t bos = kv_tokenizer_bos(m->tok), eos = kv_tokenizer_eos(m->tok);
    const char *b = bos >= 0 ? kv_tokenizer_bytes(m->tok, bos, true, &bos_len) : "",
               *s = eos >= 0 ? kv_tokenizer_bytes(m->tok, eos, true, &eos_len) : "";
    return kv_chat_format(family, m->jinja, b, s, messages, n, add_generation_prompt, buf, cap, len, err);
}
