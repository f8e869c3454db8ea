/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a GGUF file to packed weights, tensor by tensor: each source tensor's pages are given back as soon as it is
 * packed, so that the peak of loading stays near the file's size.
 */
#include "model/model.h"

#include "base/alloc.h"
#include "base/half.h"
#include "base/hash.h"
#include "text/chat.h"

#include <stdio.h>
#include <string.h>

typedef struct loader {
    kv_model *m;
    kv_threads *threads;
    kv_error *err;
    uint64_t type_bytes[64];
} loader;

static kv_status find(loader *ld, const char *name, uint64_t cols, uint64_t rows, bool required,
                      const kv_tensor **out) {
    const kv_tensor *t = kv_gguf_tensor(ld->m->gguf, name);
    *out = t;
    if (!t) {
        if (required) KV_FAIL(ld->err, FORMAT, "tensor '%s' is missing", name);
        return KVIST_OK;
    }
    if (t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1)
        KV_FAIL(ld->err, FORMAT, "tensor '%s' at offset %llu: shape %llu x %llu, expected %llu x %llu", name,
                (unsigned long long)t->offset, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                (unsigned long long)cols, (unsigned long long)rows);
    return KVIST_OK;
}

static void release(loader *ld, const kv_tensor *t) {
    const kv_file_map *map = kv_gguf_map(ld->m->gguf);
    if (map && map->data) kv_os_release_mapped(map, t->offset, t->bytes);
}

static kv_status load_matrix(loader *ld, const char *name, uint64_t cols, uint64_t rows, bool required,
                             kv_weight **out) {
    const kv_tensor *t;
    *out = NULL;
    KV_TRY(find(ld, name, cols, rows, required, &t));
    if (!t) return KVIST_OK;
    KV_TRY(ld->m->be->ops->weight_create(ld->m->be, t, ld->threads, out, ld->err));
    ld->m->bytes_weights += ld->m->be->ops->weight_bytes(*out);
    ld->m->n_params += cols * rows;
    if (t->type < 64) ld->type_bytes[t->type] += t->bytes;
    release(ld, t);
    return KVIST_OK;
}

/* Small vectors (norms, biases, RoPE factors) as f32. */
static kv_status load_vector(loader *ld, const char *name, uint64_t n, bool required, float **out) {
    const kv_tensor *t;
    *out = NULL;
    KV_TRY(find(ld, name, n, 1, required, &t));
    if (!t) return KVIST_OK;
    const kv_type_info *ti = kv_type_get(t->type);
    if (!ti || n % ti->block) KV_FAIL(ld->err, UNSUPPORTED, "tensor '%s': type %u for a vector", name, t->type);
    float *v = kv_malloc64(n * sizeof(float));
    if (!v) KV_FAIL(ld->err, MEMORY, "tensor '%s'", name);
    ti->dequant(t->data, v, n);
    ld->m->bytes_weights += n * sizeof(float);
    ld->m->n_params += n;
    *out = v;
    return KVIST_OK;
}

static kv_status load_layer(loader *ld, uint32_t i, kv_layer *l) {
    const kv_hparams *hp = &ld->m->hp;
    const kv_arch *a = ld->m->arch;
    uint64_t nq = (uint64_t)hp->n_q * hp->dk, nk = (uint64_t)hp->n_kv * hp->dk, nv = (uint64_t)hp->n_kv * hp->dv;
    char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%u." suffix, i), name)
    KV_TRY(load_vector(ld, NAME("attn_norm.weight"), hp->n_embd, true, &l->attn_norm));
    KV_TRY(load_matrix(ld, NAME("attn_q.weight"), hp->n_embd, nq, true, &l->wq));
    KV_TRY(load_matrix(ld, NAME("attn_k.weight"), hp->n_embd, nk, true, &l->wk));
    KV_TRY(load_matrix(ld, NAME("attn_v.weight"), hp->n_embd, nv, true, &l->wv));
    KV_TRY(load_matrix(ld, NAME("attn_output.weight"), (uint64_t)hp->n_q * hp->dv, hp->n_embd, true, &l->wo));
    KV_TRY(load_vector(ld, NAME("attn_q.bias"), nq, a->qkv_bias, &l->bq));
    KV_TRY(load_vector(ld, NAME("attn_k.bias"), nk, a->qkv_bias, &l->bk));
    KV_TRY(load_vector(ld, NAME("attn_v.bias"), nv, a->qkv_bias, &l->bv));
    KV_TRY(load_vector(ld, NAME("attn_output.bias"), hp->n_embd, false, &l->bo));
    if (a->qk_norm) {
        KV_TRY(load_vector(ld, NAME("attn_q_norm.weight"), hp->dk, true, &l->q_norm));
        KV_TRY(load_vector(ld, NAME("attn_k_norm.weight"), hp->dk, true, &l->k_norm));
    }
    KV_TRY(load_vector(ld, NAME("ffn_norm.weight"), hp->n_embd, true, &l->ffn_norm));
    KV_TRY(load_matrix(ld, NAME("ffn_gate.weight"), hp->n_embd, hp->n_ff, true, &l->gate));
    KV_TRY(load_matrix(ld, NAME("ffn_up.weight"), hp->n_embd, hp->n_ff, true, &l->up));
    return load_matrix(ld, NAME("ffn_down.weight"), hp->n_ff, hp->n_embd, true, &l->down);
#undef NAME
}

static kv_status make_shapes(kv_model *m, kv_error *err) {
    const kv_hparams *hp = &m->hp;
    m->shapes = kv_calloc(hp->n_layers, sizeof *m->shapes);
    m->layer_first = kv_calloc(hp->n_layers + 1, sizeof *m->layer_first);
    if (!m->shapes || !m->layer_first) KV_FAIL(err, MEMORY, "stream shapes");
    m->page_bytes = kv_page_bytes_for(hp->dk, hp->dv);
    kv_page_layout f16;
    KV_TRY(kv_page_layout_get(kv_format_pair(KV_F16, KV_F16), hp->dk, hp->dv, m->page_bytes, &f16, err));
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        m->shapes[i] = (kv_stream_shape){.dk = (uint16_t)hp->dk,
                                         .dv = (uint16_t)hp->dv,
                                         .f16_tokens = f16.tokens,
                                         .group = (uint16_t)(hp->n_q / hp->n_kv)};
        m->layer_first[i + 1] = m->layer_first[i] + hp->n_kv;
    }
    m->attn = (kv_attn_params){.scale = hp->attn_scale,
                               .window = hp->window,
                               .n_q = (uint16_t)hp->n_q,
                               .n_kv = (uint16_t)hp->n_kv,
                               .dk = (uint16_t)hp->dk,
                               .dv = (uint16_t)hp->dv,
                               .causal = true};
    return m->be->ops->attn_supported(m->be, &m->attn, err);
}

static kv_status load_text(kv_model *m, kv_error *err) {
    KV_TRY(kv_tokenizer_create(m->gguf, &m->tok, err));
    if (kv_gguf_has(m->gguf, "general.name")) KV_TRY(kv_gguf_str(m->gguf, "general.name", &m->name, NULL, err));
    if (kv_gguf_has(m->gguf, "tokenizer.chat_template"))
        KV_TRY(kv_gguf_str(m->gguf, "tokenizer.chat_template", &m->jinja, NULL, err));
    if (m->jinja) m->chat_family = kv_chat_detect(m->jinja);
    return KVIST_OK;
}

static kv_status load_shape(loader *ld) {
    kv_model *m = ld->m;
    const char *arch, *const *words;
    const uint32_t *lens;
    size_t n_words;
    KV_TRY(kv_gguf_str(m->gguf, "general.architecture", &arch, NULL, ld->err));
    m->arch = kv_arch_find(arch);
    if (!m->arch) KV_FAIL(ld->err, UNSUPPORTED, "architecture '%s' (built: %s)", arch, kv_arch_names());
    KV_TRY(kv_hparams_read(m->gguf, m->arch, &m->hp, &m->rope, ld->err));
    KV_TRY(kv_gguf_str_array(m->gguf, "tokenizer.ggml.tokens", &words, &lens, &n_words, ld->err));
    if (n_words > INT32_MAX / 2) KV_FAIL(ld->err, FORMAT, "tokenizer.ggml.tokens: %zu tokens", n_words);
    m->hp.n_vocab = (uint32_t)n_words;
    return make_shapes(m, ld->err);
}

static kv_status load_tensors(loader *ld) {
    kv_model *m = ld->m;
    m->layers = kv_calloc(m->hp.n_layers, sizeof *m->layers);
    if (!m->layers) KV_FAIL(ld->err, MEMORY, "%u layers", m->hp.n_layers);
    KV_TRY(load_matrix(ld, "token_embd.weight", m->hp.n_embd, m->hp.n_vocab, true, &m->embed));
    KV_TRY(load_vector(ld, "output_norm.weight", m->hp.n_embd, true, &m->output_norm));
    KV_TRY(load_matrix(ld, "output.weight", m->hp.n_embd, m->hp.n_vocab, false, &m->output));
    if (!m->output) m->output = m->embed;
    KV_TRY(load_vector(ld, "rope_freqs.weight", m->hp.n_rot / 2, false, &m->rope_factors));
    m->rope.factors = m->rope_factors;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) KV_TRY(load_layer(ld, i, &m->layers[i]));
    uint32_t best = 0;
    for (uint32_t t = 1; t < 64; t++)
        if (ld->type_bytes[t] > ld->type_bytes[best]) best = t;
    const kv_type_info *ti = kv_type_get(best);
    snprintf(m->type_name, sizeof m->type_name, "%s", ti ? ti->name : "?");
    return KVIST_OK;
}

/* The vocabulary's index is one thread's work of about a quarter of the loading: it is made while weights are packed. */
typedef struct parts {
    loader *ld;
    kv_status text, tensors;
    kv_error text_err;
} parts;

static void load_part(void *ctx, uint32_t item, uint32_t thread) {
    parts *p = ctx;
    (void)thread;
    if (item == 0)
        p->text = load_text(p->ld->m, &p->text_err);
    else
        p->tensors = load_tensors(p->ld);
}

static kv_status load_all(loader *ld) {
    kv_threads *two;
    KV_TRY(load_shape(ld));
    KV_TRY(kv_threads_create(kv_threads_count(ld->threads) > 1 ? 2 : 1, &two, ld->err));
    parts p = {.ld = ld};
    kv_threads_run(two, load_part, &p, 2);
    kv_threads_free(&two);
    if (!p.text) return p.tensors;
    if (ld->err) *ld->err = p.text_err;
    return p.text;
}

/* Identity for snapshots and save files: header and the first MiB say enough to tell two models apart, sizes the rest.
 */
static uint64_t hash_file(const kv_file_map *map) {
    size_t n = map->size < (1u << 20) ? map->size : (1u << 20);
    return kv_hash64(map->data, n, map->size);
}

kv_status kv_model_load(const char *path, const kvist_model_params *params, kv_model **out, kv_error *err) {
    static const kvist_model_params defaults = {.cpu_level = -1};
    if (!params) params = &defaults;
    *out = NULL;
    kv_model *m = kv_calloc(1, sizeof *m);
    if (!m) KV_FAIL(err, MEMORY, "model '%s'", path);
    m->log = params->log;
    m->log_user = params->log_user;
    loader ld = {.m = m, .err = err};
    kv_status st = kv_gguf_open(path, &m->gguf, err);
    if (!st) st = kv_backend_cpu_open(params->cpu_level, &m->be, err);
    if (!st) st = kv_threads_create(params->threads ? params->threads : kv_os_processors(), &ld.threads, err);
    if (!st) {
        m->hash = hash_file(kv_gguf_map(m->gguf));
        m->bytes_file = kv_gguf_map(m->gguf)->size;
        st = load_all(&ld);
    }
    kv_threads_free(&ld.threads);
    if (st) {
        kv_model_free(&m);
        return st;
    }
    *out = m;
    return KVIST_OK;
}

static void free_layer(kv_model *m, kv_layer *l) {
    kv_weight *w[] = {l->wq, l->wk, l->wv, l->wo, l->gate, l->up, l->down};
    float *v[] = {l->attn_norm, l->ffn_norm, l->bq, l->bk, l->bv, l->bo, l->q_norm, l->k_norm};
    for (size_t i = 0; i < sizeof w / sizeof *w; i++)
        if (w[i]) m->be->ops->weight_free(m->be, w[i]);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) kv_free64(v[i]);
}

void kv_model_free(kv_model **pm) {
    kv_model *m = *pm;
    *pm = NULL;
    if (!m) return;
    if (m->layers)
        for (uint32_t i = 0; i < m->hp.n_layers; i++) free_layer(m, &m->layers[i]);
    kv_free(m->layers);
    if (m->output && m->output != m->embed) m->be->ops->weight_free(m->be, m->output);
    if (m->embed) m->be->ops->weight_free(m->be, m->embed);
    kv_free64(m->output_norm);
    kv_free64(m->rope_factors);
    kv_free(m->shapes);
    kv_free(m->layer_first);
    kv_tokenizer_free(&m->tok);
    if (m->be) m->be->ops->close(m->be);
    kv_gguf_close(&m->gguf);
    kv_free(m);
}
