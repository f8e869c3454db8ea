/* SPDX-License-Identifier: Apache-2.0 */
#include "support/naive.h"

#include "base/half.h"
#include "gguf/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct net {
    kv_gguf *g;
    char arch[32];
    uint32_t layers, embd, nq, nkv, dk, dv, ff, vocab, rot, window;
    double eps, base, factor, scale;
    int scaling; /* 0 none, 1 linear, 2 yarn */
    uint32_t ctx_orig;
    double *freq_factors;
    naive_probe probe;
    naive_states states;
    naive_visible visible;
    void *user;
} net;

static uint32_t meta_u32(const net *m, const char *suffix, uint32_t fallback) {
    char key[128];
    uint32_t v;
    kv_error err;
    snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    return kv_gguf_has(m->g, key) && !kv_gguf_u32(m->g, key, &v, &err) ? v : fallback;
}

static double meta_f32(const net *m, const char *suffix, double fallback) {
    char key[128];
    float v;
    kv_error err;
    snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    return kv_gguf_has(m->g, key) && !kv_gguf_f32(m->g, key, &v, &err) ? (double)v : fallback;
}

/* A whole tensor as doubles; NULL when absent. */
static double *tensor(const net *m, const char *name) {
    const kv_tensor *t = kv_gguf_tensor(m->g, name);
    if (!t) return NULL;
    size_t n = (size_t)(t->ne[0] * t->ne[1]);
    float *f = malloc(n * sizeof *f);
    double *d = malloc(n * sizeof *d);
    kv_type_get(t->type)->dequant(t->data, f, n);
    for (size_t i = 0; i < n; i++) d[i] = f[i];
    free(f);
    return d;
}

static double *layer_tensor(const net *m, uint32_t l, const char *suffix) {
    char name[96];
    snprintf(name, sizeof name, "blk.%u.%s", l, suffix);
    return tensor(m, name);
}

static void project(const double *w, const double *bias, const double *x, uint32_t rows, uint32_t k, uint32_t n,
                    double *y) {
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t o = 0; o < n; o++) {
            double s = bias ? bias[o] : 0;
            for (uint32_t i = 0; i < k; i++) s += x[(size_t)r * k + i] * w[(size_t)o * k + i];
            y[(size_t)r * n + o] = s;
        }
}

static void norm(const double *x, const double *w, double eps, uint32_t rows, uint32_t n, double *y) {
    for (uint32_t r = 0; r < rows; r++) {
        double ss = 0;
        for (uint32_t i = 0; i < n; i++) ss += x[(size_t)r * n + i] * x[(size_t)r * n + i];
        double s = 1.0 / sqrt(ss / n + eps);
        for (uint32_t i = 0; i < n; i++) y[(size_t)r * n + i] = x[(size_t)r * n + i] * s * w[i];
    }
}

static double frequency(const net *m, uint32_t i, double *magnitude) {
    double f = pow(m->base, -2.0 * i / m->rot);
    *magnitude = 1;
    if (m->freq_factors) f /= m->freq_factors[i];
    if (m->scaling == 1) return f / m->factor;
    if (m->scaling == 2) {
        double lo = floor(m->rot * log(m->ctx_orig / (32.0 * 2 * M_PI)) / (2 * log(m->base)));
        double hi = ceil(m->rot * log(m->ctx_orig / (1.0 * 2 * M_PI)) / (2 * log(m->base)));
        if (lo < 0) lo = 0;
        if (hi > m->rot - 1.0) hi = m->rot - 1.0;
        double span = hi - lo < 0.001 ? 0.001 : hi - lo, ramp = (i - lo) / span;
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        *magnitude = 1 + 0.1 * log(m->factor);
        return f * (1 - ramp) + f / m->factor * ramp;
    }
    return f;
}

static void rotate(const net *m, double *x, uint32_t rows, uint32_t heads, uint32_t d, bool neox) {
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t i = 0; i < m->rot / 2; i++) {
                double mag, a = r * frequency(m, i, &mag), *v = x + ((size_t)r * heads + h) * d;
                uint32_t p = neox ? i : 2 * i, q = neox ? i + m->rot / 2 : 2 * i + 1;
                double c = cos(a) * mag, s = sin(a) * mag, u = v[p], w = v[q];
                v[p] = u * c - w * s;
                v[q] = u * s + w * c;
            }
}

static void round_f16(double *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = kv_f16_f32(kv_f32_f16((float)x[i]));
}

static void attend(const net *m, uint32_t l, const double *q, const double *k, const double *v, uint32_t n,
                   double *out) {
    double *p = malloc(n * sizeof *p);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t h = 0; h < m->nq; h++) {
            uint32_t kh = h / (m->nq / m->nkv), from = m->window && i + 1 > m->window ? i + 1 - m->window : 0;
            double best = -INFINITY, sum = 0, *o = out + ((size_t)i * m->nq + h) * m->dv;
            for (uint32_t t = from; t <= i; t++) {
                double s = 0;
                for (uint32_t c = 0; c < m->dk; c++)
                    s += q[((size_t)i * m->nq + h) * m->dk + c] * k[((size_t)t * m->nkv + kh) * m->dk + c];
                p[t] = s * m->scale;
                if (m->visible && !m->visible(m->user, l, i, kh, t)) p[t] = -INFINITY;
                if (p[t] > best) best = p[t];
            }
            for (uint32_t t = from; t <= i; t++) sum += p[t] = exp(p[t] - best);
            for (uint32_t t = 0; t <= i; t++) p[t] = t < from ? 0 : p[t] / sum;
            if (m->probe) m->probe(m->user, l, i, h, p);
            for (uint32_t c = 0; c < m->dv; c++) o[c] = 0;
            for (uint32_t t = from; t <= i; t++)
                for (uint32_t c = 0; c < m->dv; c++) o[c] += p[t] * v[((size_t)t * m->nkv + kh) * m->dv + c];
        }
    free(p);
}

static void layer(const net *m, uint32_t l, double *x, uint32_t n) {
    bool neox = strcmp(m->arch, "llama") != 0;
    double *w[12] = {layer_tensor(m, l, "attn_norm.weight"),   layer_tensor(m, l, "attn_q.weight"),
                     layer_tensor(m, l, "attn_k.weight"),      layer_tensor(m, l, "attn_v.weight"),
                     layer_tensor(m, l, "attn_output.weight"), layer_tensor(m, l, "ffn_norm.weight"),
                     layer_tensor(m, l, "ffn_gate.weight"),    layer_tensor(m, l, "ffn_up.weight"),
                     layer_tensor(m, l, "ffn_down.weight"),    layer_tensor(m, l, "attn_q.bias"),
                     layer_tensor(m, l, "attn_k.bias"),        layer_tensor(m, l, "attn_v.bias")};
    double *qn = layer_tensor(m, l, "attn_q_norm.weight"), *kn = layer_tensor(m, l, "attn_k_norm.weight");
    size_t N = n;
    double *h = malloc(N * m->embd * 8), *q = malloc(N * m->nq * m->dk * 8), *k = malloc(N * m->nkv * m->dk * 8),
           *v = malloc(N * m->nkv * m->dv * 8);
    double *a = malloc(N * m->nq * m->dv * 8), *o = malloc(N * m->embd * 8), *g = malloc(N * m->ff * 8),
           *u = malloc(N * m->ff * 8);
    norm(x, w[0], m->eps, n, m->embd, h);
    project(w[1], w[9], h, n, m->embd, m->nq * m->dk, q);
    project(w[2], w[10], h, n, m->embd, m->nkv * m->dk, k);
    project(w[3], w[11], h, n, m->embd, m->nkv * m->dv, v);
    if (qn) norm(q, qn, m->eps, n * m->nq, m->dk, q);
    if (kn) norm(k, kn, m->eps, n * m->nkv, m->dk, k);
    double *before = NULL;
    if (m->states) {
        before = malloc(N * m->nq * m->dk * 8);
        memcpy(before, q, N * m->nq * m->dk * 8);
    }
    rotate(m, q, n, m->nq, m->dk, neox);
    rotate(m, k, n, m->nkv, m->dk, neox);
    round_f16(k, N * m->nkv * m->dk);
    round_f16(v, N * m->nkv * m->dv);
    if (m->states) m->states(m->user, l, before, k, v);
    free(before);
    attend(m, l, q, k, v, n, a);
    project(w[4], NULL, a, n, m->nq * m->dv, m->embd, o);
    for (size_t i = 0; i < N * m->embd; i++) x[i] += o[i];
    norm(x, w[5], m->eps, n, m->embd, h);
    project(w[6], NULL, h, n, m->embd, m->ff, g);
    project(w[7], NULL, h, n, m->embd, m->ff, u);
    for (size_t i = 0; i < N * m->ff; i++) g[i] = g[i] / (1 + exp(-g[i])) * u[i];
    project(w[8], NULL, g, n, m->ff, m->embd, o);
    for (size_t i = 0; i < N * m->embd; i++) x[i] += o[i];
    double *all[] = {h, q, k, v, a, o, g, u, qn, kn};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    for (size_t i = 0; i < 12; i++) free(w[i]);
}

static bool open_net(net *m, const char *path) {
    kv_error err;
    const char *arch, *scaling;
    memset(m, 0, sizeof *m);
    if (kv_gguf_open(path, &m->g, &err) || kv_gguf_str(m->g, "general.architecture", &arch, NULL, &err)) {
        fprintf(stderr, "naive: %s\n", err.message);
        return false;
    }
    snprintf(m->arch, sizeof m->arch, "%s", arch);
    m->layers = meta_u32(m, "block_count", 0);
    m->embd = meta_u32(m, "embedding_length", 0);
    m->nq = meta_u32(m, "attention.head_count", 1);
    m->nkv = meta_u32(m, "attention.head_count_kv", m->nq);
    m->dk = meta_u32(m, "attention.key_length", m->embd / m->nq);
    m->dv = meta_u32(m, "attention.value_length", m->dk);
    m->ff = meta_u32(m, "feed_forward_length", 0);
    m->rot = meta_u32(m, "rope.dimension_count", m->dk);
    m->window = meta_u32(m, "attention.sliding_window", 0);
    m->eps = meta_f32(m, "attention.layer_norm_rms_epsilon", 1e-5);
    m->base = meta_f32(m, "rope.freq_base", 10000);
    m->factor = meta_f32(m, "rope.scaling.factor", 1);
    m->ctx_orig = meta_u32(m, "rope.scaling.original_context_length", meta_u32(m, "context_length", 0));
    m->scale = 1 / sqrt((double)m->dk);
    char key[96];
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->arch);
    if (kv_gguf_has(m->g, key) && !kv_gguf_str(m->g, key, &scaling, NULL, &err))
        m->scaling = !strcmp(scaling, "linear") ? 1 : !strcmp(scaling, "yarn") ? 2 : 0;
    m->freq_factors = tensor(m, "rope_freqs.weight");
    return true;
}

uint32_t naive_forward(const char *path, const int32_t *ids, uint32_t n, double **logits) {
    return naive_forward_probed(path, ids, n, logits, NULL, NULL);
}

uint32_t naive_forward_probed(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                              void *user) {
    return naive_forward_watched(path, ids, n, logits, probe, NULL, user);
}

uint32_t naive_forward_watched(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                               naive_states states, void *user) {
    return naive_forward_seen(path, ids, n, logits, probe, states, NULL, user);
}

uint32_t naive_forward_seen(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                            naive_states states, naive_visible visible, void *user) {
    net m;
    if (!open_net(&m, path)) return 0;
    m.probe = probe;
    m.states = states;
    m.visible = visible;
    m.user = user;
    const kv_tensor *te = kv_gguf_tensor(m.g, "token_embd.weight");
    m.vocab = (uint32_t)te->ne[1];
    double *embd = tensor(&m, "token_embd.weight"), *out = tensor(&m, "output.weight"),
           *on = tensor(&m, "output_norm.weight");
    double *x = malloc((size_t)n * m.embd * 8);
    for (uint32_t i = 0; i < n; i++) memcpy(x + (size_t)i * m.embd, embd + (size_t)ids[i] * m.embd, m.embd * 8);
    for (uint32_t l = 0; l < m.layers; l++) layer(&m, l, x, n);
    norm(x, on, m.eps, n, m.embd, x);
    *logits = malloc((size_t)n * m.vocab * 8);
    project(out ? out : embd, NULL, x, n, m.embd, m.vocab, *logits);
    free(x);
    free(embd);
    free(out);
    free(on);
    free(m.freq_factors);
    kv_gguf_close(&m.g);
    return m.vocab;
}

static double log_sum_exp(const double *x, uint32_t n) {
    double m = x[0], s = 0;
    for (uint32_t i = 1; i < n; i++) m = x[i] > m ? x[i] : m;
    for (uint32_t i = 0; i < n; i++) s += exp(x[i] - m);
    return m + log(s);
}

double naive_kl(const double *p, const double *q, uint32_t n) {
    double a = log_sum_exp(p, n), b = log_sum_exp(q, n), kl = 0;
    for (uint32_t i = 0; i < n; i++) kl += exp(p[i] - a) * ((p[i] - a) - (q[i] - b));
    return kl;
}

double naive_kl_f32(const float *p, const float *q, uint32_t n) {
    double *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b);
    for (uint32_t i = 0; i < n; i++) {
        a[i] = p[i];
        b[i] = q[i];
    }
    double kl = naive_kl(a, b, n);
    free(a);
    free(b);
    return kl;
}

uint32_t naive_argmax_f32(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}
