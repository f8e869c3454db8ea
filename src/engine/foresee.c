/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a prompt's queries say of queries to come, for scores that foresee them (policy/scores.h): moments of the
 * present layer's queries before RoPE, the mean rotation of the positions ahead, and the logits they give a stream's
 * keys. Must not know what a score makes of them. Invariant: a function of the sync's rows alone; micro-steps and
 * targets change no bit.
 */
#include "engine/job.h"

#include "base/os.h"

#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t group_of(const kv_hparams *hp) { return hp->n_q / hp->n_kv; }

size_t kv_foresee_floats(const kv_hparams *hp, size_t stride) {
    size_t d = hp->dk, g = group_of(hp);
    return hp->n_q * d * (d + 2) + g * d * (d + 1) + g * stride + hp->n_rot;
}

/* Mean of each rotation pair's cosine and sine over the next positions; as far as the context goes, at least one. */
static void mean_rotation(const kv_job *j, kv_foresight *f) {
    const kv_rope *rope = &j->e->f.rope;
    uint32_t half = rope->n_rot / 2, n_ctx = j->e->p.n_ctx, at = min_u32(j->start + j->n_rows, n_ctx - 1);
    uint32_t n = min_u32(KV_SCORE_FUTURE, n_ctx - at);
    for (uint32_t i = 0; i < half; i++) {
        double c = 0, s = 0;
        for (uint32_t p = at; p < at + n; p++) {
            c += (double)rope->cos[(size_t)p * half + i];
            s += (double)rope->sin[(size_t)p * half + i];
        }
        f->cos[i] = (float)(c / n);
        f->sin[i] = (float)(s / n);
    }
}

void kv_foresee_open(kv_job *j, float *floats, kv_score_moments *moments) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_foresight *f = &j->foresight;
    size_t d = hp->dk, g = group_of(hp);
    f->moments = moments;
    f->sums = floats;
    for (uint32_t h = 0; h < hp->n_q; h++, floats += d * (d + 2))
        moments[h] = (kv_score_moments){.pivot = floats, .sum = floats + d, .outer = floats + 2 * d};
    f->linear = floats;
    f->square = f->linear + g * d;
    f->logits = f->square + g * d * d;
    f->cos = f->logits + g * j->stride;
    f->sin = f->cos + hp->n_rot / 2;
    mean_rotation(j, f);
}

void kv_foresee_begin(kv_job *j) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_foresight *f = &j->foresight;
    if (!f->wanted) return;
    memset(f->sums, 0, (size_t)hp->n_q * hp->dk * (hp->dk + 2) * sizeof(float));
    for (uint32_t h = 0; h < hp->n_q; h++) f->moments[h].n = 0;
}

void kv_foresee_rows(kv_job *j, uint32_t row0, uint32_t n) {
    const kv_hparams *hp = &j->e->m->hp;
    uint32_t position = j->start + row0, skip = position < KV_SCORE_MOMENTS_FROM ? KV_SCORE_MOMENTS_FROM - position : 0;
    if (!j->foresight.wanted || skip >= n) return;
    uint64_t t0 = kv_os_now_ns();
    j->e->m->be->ops->q_moments(j->e->f.ex, j->e->f.q + (size_t)skip * hp->n_q * hp->dk, n - skip, hp->n_q, hp->dk,
                                j->foresight.moments);
    double seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
    j->score_seconds += seconds;
    for (uint32_t i = 0; i < j->n_targets; i++)
        if (j->targets[i].plan.evict && j->targets[i].need.forms) j->targets[i].score_seconds += seconds;
}

/* Logits of keys k[n][dk], the run's from `first` on. */
static void add_logits(const kv_job *j, const uint16_t *k, uint32_t first, uint32_t n) {
    const kv_hparams *hp = &j->e->m->hp;
    const kv_foresight *f = &j->foresight;
    kv_key_forms keys = {.k = k,
                         .n = n,
                         .dk = hp->dk,
                         .group = group_of(hp),
                         .linear = f->linear,
                         .square = f->square,
                         .y = f->logits + first,
                         .y_stride = j->stride};
    j->e->m->be->ops->key_forms(j->e->f.ex, &keys);
}

const float *kv_foresee_logits(kv_job *j, const kv_run_source *run, uint32_t head) {
    const kv_hparams *hp = &j->e->m->hp;
    kv_foresight *f = &j->foresight;
    kv_score_rotation r = {f->cos, f->sin, j->e->f.rope.n_rot, j->e->f.rope.neox};
    uint32_t g = group_of(hp);
    size_t d = hp->dk;
    for (uint32_t i = 0; i < g; i++)
        kv_score_forms(&f->moments[head * g + i], &r, hp->dk, j->e->m->attn.scale, f->linear + i * d,
                       f->square + i * d * d);
    uint16_t keys[64 * KV_SCORE_MAX_DIM];
    for (uint32_t i = 0; i < run->tail; i += 64) {
        uint32_t n = min_u32(64, run->tail - i);
        kv_run_rows(run, i, n, keys, NULL);
        add_logits(j, keys, i, n);
    }
    add_logits(j, run->k, run->tail, j->n_rows);
    return f->logits;
}
