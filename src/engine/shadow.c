/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See shadow.h. Plain loops in double precision over rows by position: an instrument, not a path. Must not know how
 * pages are encoded, only which positions they hold. Allocates nothing after creation.
 */
#include "engine/shadow.h"

#include "base/alloc.h"
#include "base/half.h"
#include "cache/positions.h"
#include "policy/guard.h"

#include <math.h>
#include <string.h>

struct kv_shadow {
    uint32_t every, cap; /* positions between checks; rows there is room for */
    uint32_t n_layers, n_kv, dk, dv;
    uint64_t bytes;
    uint16_t *k, *v;       /* [n_layers][n_kv][cap][dk or dv] f16 */
    float *row;            /* [dk] a key */
    float *p;              /* [group][cap] scores, then probabilities */
    uint8_t *kept;         /* [cap] of the stream being checked */
    double *full;          /* [n_q][dv] output over all tokens */
    double *all, *evicted; /* [n_layers][n_q] sums over the checks; neither sinks nor recent ones */
    uint32_t *checks;      /* [n_layers] */
    uint64_t steps;
    double error_sum, error_max;
};

/* One allocation, cut up: sizes in bytes, each rounded to 64. */
static size_t carve(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += (bytes + 63) & ~(size_t)63;
    return here;
}

kv_status kv_shadow_create(kvist_engine *e, uint32_t every, kv_shadow **out, kv_error *err) {
    const kv_hparams *hp = &e->m->hp;
    size_t cap = e->p.n_ctx, L = hp->n_layers, at = 0, group = hp->n_q / hp->n_kv;
    size_t self = carve(&at, sizeof(kv_shadow)), k = carve(&at, L * hp->n_kv * cap * hp->dk * 2),
           v = carve(&at, L * hp->n_kv * cap * hp->dv * 2), row = carve(&at, hp->dk * sizeof(float)),
           p = carve(&at, group * cap * sizeof(float)), kept = carve(&at, cap),
           full = carve(&at, (size_t)hp->n_q * hp->dv * sizeof(double)), all = carve(&at, L * hp->n_q * sizeof(double)),
           evicted = carve(&at, L * hp->n_q * sizeof(double)), checks = carve(&at, L * sizeof(uint32_t));
    *out = NULL;
    KV_TRY(kv_engine_room(e, 0, at, err));
    KV_TRY(kv_pool_charge(e->pool, at, err));
    uint8_t *block = kv_malloc64(at);
    if (!block) {
        kv_pool_discharge(e->pool, at);
        KV_FAIL(err, MEMORY, "no memory for a shadow of %zu bytes", at);
    }
    memset(block + self, 0, sizeof(kv_shadow));
    memset(block + all, 0, at - all);
    kv_shadow *sh = (kv_shadow *)(void *)(block + self);
    *sh = (kv_shadow){.every = every,
                      .cap = (uint32_t)cap,
                      .n_layers = hp->n_layers,
                      .n_kv = hp->n_kv,
                      .dk = hp->dk,
                      .dv = hp->dv,
                      .bytes = at,
                      .k = (uint16_t *)(void *)(block + k),
                      .v = (uint16_t *)(void *)(block + v),
                      .row = (float *)(void *)(block + row),
                      .p = (float *)(void *)(block + p),
                      .kept = block + kept,
                      .full = (double *)(void *)(block + full),
                      .all = (double *)(void *)(block + all),
                      .evicted = (double *)(void *)(block + evicted),
                      .checks = (uint32_t *)(void *)(block + checks)};
    *out = sh;
    return KVIST_OK;
}

void kv_shadow_free(kvist_engine *e, kv_shadow **sh) {
    if (*sh) kv_pool_discharge(e->pool, (*sh)->bytes);
    kv_free64(*sh);
    *sh = NULL;
}

void kv_shadow_rows(kv_shadow *sh, uint32_t layer, uint32_t first, uint32_t n, size_t head_stride, const uint16_t *k,
                    const uint16_t *v) {
    for (uint32_t h = 0; h < sh->n_kv; h++) {
        size_t to = ((size_t)layer * sh->n_kv + h) * sh->cap + first;
        memcpy(sh->k + to * sh->dk, k + h * head_stride * sh->dk, (size_t)n * sh->dk * sizeof *k);
        memcpy(sh->v + to * sh->dv, v + h * head_stride * sh->dv, (size_t)n * sh->dv * sizeof *v);
    }
}

bool kv_shadow_due(const kv_shadow *sh, uint32_t layer, uint32_t position) {
    return position % sh->every == 0 && position / sh->every % sh->n_layers == layer;
}

/* Marks the positions that the stream holds. */
static void mark_kept(kv_shadow *sh, const kvist_session *s, const kv_stream *st, uint32_t n) {
    uint32_t at[KV_POSITIONS_MAX];
    memset(sh->kept, 0, n);
    for (uint32_t h = 0; h < st->n_handles; h++) {
        uint32_t page = st->handles[h].page, end = kv_positions_get(s->e->pool, page, at);
        for (uint32_t i = kv_pool_entry(s->e->pool, page)->start; i < end; i++)
            if (at[i] < n) sh->kept[at[i]] = 1;
    }
    for (uint32_t i = 0; i < st->tail_len && st->tail_pos + i < n; i++) sh->kept[st->tail_pos + i] = 1;
}

/* p[from, n) = softmax(scale q . k), of the group's query heads. */
static void probabilities(const kv_shadow *sh, const kv_attn_params *a, const uint16_t *k, const float *q,
                          uint32_t group, uint32_t from, uint32_t n) {
    for (uint32_t t = from; t < n; t++) {
        for (uint32_t d = 0; d < a->dk; d++) sh->row[d] = kv_f16_f32(k[(size_t)t * a->dk + d]);
        for (uint32_t g = 0; g < group; g++) {
            double dot = 0;
            for (uint32_t d = 0; d < a->dk; d++) dot += (double)q[g * a->dk + d] * sh->row[d];
            dot *= a->scale;
            if (a->softcap > 0) dot = a->softcap * tanh(dot / a->softcap);
            sh->p[(size_t)g * sh->cap + t] = (float)dot;
        }
    }
    for (uint32_t g = 0; g < group; g++) {
        float *p = sh->p + (size_t)g * sh->cap, most = -INFINITY;
        double sum = 0;
        for (uint32_t t = from; t < n; t++) most = p[t] > most ? p[t] : most;
        for (uint32_t t = from; t < n; t++) sum += p[t] = expf(p[t] - most);
        for (uint32_t t = from; t < n; t++) p[t] = (float)(p[t] / sum);
    }
}

/* full[group][dv] = sum over t of p[t] v[t]. */
static void outputs(const kv_shadow *sh, const kv_attn_params *a, const uint16_t *v, uint32_t group, uint32_t from,
                    uint32_t n, double *full) {
    memset(full, 0, (size_t)group * a->dv * sizeof *full);
    for (uint32_t t = from; t < n; t++)
        for (uint32_t d = 0; d < a->dv; d++) {
            double x = kv_f16_f32(v[(size_t)t * a->dv + d]);
            for (uint32_t g = 0; g < group; g++) full[g * a->dv + d] += sh->p[(size_t)g * sh->cap + t] * x;
        }
}

/* Sinks that a stream has: what the first compression point made of the policy, whatever a later one would. */
static uint32_t sinks_of(const kvist_session *s, const kv_stream *st) {
    uint32_t n = 0, pages = kv_region_first(s->seq, st);
    for (uint32_t i = 0; i < pages; i++) n += kv_page_end(kv_pool_entry(s->seq->pool, st->handles[i].page));
    return n;
}

/* Where the tokens end that the last compression point ranked. */
static uint64_t ranked_end(const kvist_session *s) {
    kv_policy p;
    uint64_t point = s->point.mass_position;
    kv_policy_for_prompt(&s->policies[s->n_policies - 1], (uint32_t)point, &p);
    return point > p.base.recent ? point - p.base.recent : 0;
}

/* Adds to the sums of the layer's query heads: [from, end), neither sinks nor recent, is what the estimate speaks of. */
static void add_masses(kv_shadow *sh, const kvist_session *s, uint32_t layer, uint32_t query, uint32_t group,
                       uint64_t from, uint64_t end) {
    for (uint32_t g = 0; g < group; g++) {
        const float *p = sh->p + (size_t)g * sh->cap;
        size_t at = (size_t)layer * s->e->m->hp.n_q + query + g;
        for (uint64_t t = from; t < end; t++) {
            sh->all[at] += p[t];
            if (!sh->kept[t]) sh->evicted[at] += p[t];
        }
    }
}

void kv_shadow_check(kvist_session *s, uint32_t layer, uint32_t position, const float *q, const float *out) {
    kv_shadow *sh = s->shadow;
    const kv_attn_params *a = &s->e->m->attn;
    uint32_t group = a->n_q / a->n_kv, n = position + 1, from = a->window && n > a->window ? n - a->window : 0;
    uint64_t end = ranked_end(s);
    for (uint32_t h = 0; h < a->n_kv; h++) {
        const kv_stream *st = kv_seq_stream(s->seq, layer, h);
        uint32_t sinks = sinks_of(s, st);
        size_t at = ((size_t)layer * a->n_kv + h) * sh->cap;
        mark_kept(sh, s, st, n);
        probabilities(sh, a, sh->k + at * a->dk, q + (size_t)h * group * a->dk, group, from, n);
        outputs(sh, a, sh->v + at * a->dv, group, from, n, sh->full + (size_t)h * group * a->dv);
        add_masses(sh, s, layer, h * group, group, from > sinks ? from : sinks, end);
    }
    double diff = 0, norm = 0;
    for (uint32_t i = 0; i < (uint32_t)a->n_q * a->dv; i++) {
        diff += (out[i] - sh->full[i]) * (out[i] - sh->full[i]);
        norm += sh->full[i] * sh->full[i];
    }
    double error = norm > 0 ? sqrt(diff / norm) : 0;
    sh->error_sum += error;
    if (error > sh->error_max) sh->error_max = error;
    sh->checks[layer]++;
    sh->steps++;
}

uint64_t kv_shadow_get(const kvist_session *s, kvist_shadow_report *out) {
    const kv_shadow *sh = s->shadow;
    const kv_attn_params *a = &s->e->m->attn;
    uint32_t group = a->n_q / a->n_kv, heads = 0;
    *out = (kvist_shadow_report){.mass_mean = 1, .mass_min = 1, .estimate_mean = 1, .estimate_min = 1};
    if (!sh) return 0;
    double mass = 0, estimate = 0;
    for (uint32_t l = 0; l < s->seq->n_layers; l++)
        for (uint32_t h = 0; sh->checks[l] && h < a->n_kv; h++, heads++) {
            size_t at = (size_t)l * a->n_q + (size_t)h * group;
            double m = kv_guard_retained(sh->all + at, sh->evicted + at, group, sh->checks[l]);
            double e = kv_seq_stream(s->seq, l, h)->mass;
            mass += m;
            estimate += e;
            if (m < out->mass_min) out->mass_min = m;
            if (e < out->estimate_min) out->estimate_min = e;
        }
    out->steps = sh->steps;
    if (heads) {
        out->mass_mean = mass / heads;
        out->estimate_mean = estimate / heads;
        out->error_mean = sh->error_sum / (double)sh->steps;
        out->error_max = sh->error_max;
    }
    return sh->bytes;
}
