/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which column sums of attention the present layer's compression needs, for all targets of a prompt job, and their
 * making. Must not know what a score makes of them. Invariant: a pass adds the same numbers in the same order whoever
 * shares it, so a target's sums are those it would have alone.
 */
#include "engine/job.h"

#include "base/os.h"

#include <string.h>

/* Queries the retained mass is taken over where the score has no window of its own (DESIGN 5). */
enum { MASS_WINDOW = 32 };

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* First row of the sync that a score's sums count. */
static uint32_t votes_from(const kv_job *j, const kv_score_need *need) {
    if (!need->pass || (need->echo && !(need->votes > 0))) return j->n_rows;
    return need->all_rows ? 0 : j->n_rows - min_u32(j->n_rows, need->window);
}

static uint32_t step_of(const kv_score_need *need) { return need->stride ? need->stride : 1; }

static bool same_sums(const kv_job *j, const kv_score_need *a, const kv_score_need *b) {
    return a->pass && b->pass && a->echo == b->echo && a->square == b->square && step_of(a) == step_of(b) &&
           votes_from(j, a) == votes_from(j, b); /* which says whether there are votes beside an echo */
}

/* The passes that make a target's sums and mass: others' where they are the same, a new one for what is missing. */
static void add_target(kv_job *j, kv_job_target *t) {
    bool sums = t->need.pass, mass = true;
    for (uint32_t i = 0; i < j->n_passes; i++) {
        if (sums && same_sums(j, &j->passes[i].need, &t->need)) {
            t->sums_pass = i;
            sums = false;
        }
        if (mass && j->passes[i].mass_rows == t->mass_rows) {
            t->mass_pass = i;
            mass = false;
        }
    }
    if (!sums && !mass) return;
    if (sums) t->sums_pass = j->n_passes;
    if (mass) t->mass_pass = j->n_passes;
    j->n_sums += sums;
    j->n_mass += mass;
    kv_job_pass *p = &j->passes[j->n_passes++];
    *p = (kv_job_pass){.mass_rows = mass ? t->mass_rows : 0};
    if (sums) p->need = t->need;
}

void kv_job_plan_passes(kv_job *j) {
    j->n_passes = j->n_sums = j->n_mass = 0;
    j->foresight.wanted = false;
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        kv_policy_layer(&t->policy, j->layer, &t->lp);
        if (!t->plan.evict) continue;
        kv_score_needs(&t->lp, &t->need);
        j->foresight.wanted |= t->need.forms;
        t->mass_rows = min_u32(j->n_rows, t->need.window ? t->need.window : MASS_WINDOW);
        add_target(j, t);
    }
}

void kv_job_begin_passes(kv_job *j) {
    size_t n_q = j->e->m->hp.n_q, one = n_q * j->stride, sums = 0, mass = 0;
    for (uint32_t i = 0; i < j->n_passes; i++) {
        kv_job_pass *p = &j->passes[i];
        if (p->need.pass) p->sums = j->sums + one * sums++;
        if (!p->mass_rows) continue;
        p->mass = j->mass + one * mass;
        p->sink_mass = j->sink_mass + n_q * mass++;
    }
    if (sums) memset(j->sums, 0, one * sums * sizeof(float));
    if (!mass) return;
    memset(j->mass, 0, one * mass * sizeof(float));
    memset(j->sink_mass, 0, n_q * mass * sizeof(float));
}

static uint32_t first_of(const kv_job *j, const kv_job_pass *p) {
    return min_u32(votes_from(j, &p->need), j->n_rows - p->mass_rows);
}

uint32_t kv_job_first_scored(const kv_job *j) {
    uint32_t first = j->n_rows;
    for (uint32_t i = 0; i < j->n_passes; i++) first = min_u32(first, first_of(j, &j->passes[i]));
    return first;
}

/* A target's time is what it would take alone: passes whose sums it uses, and of others the chunks with its mass. */
static void count_seconds(kv_job *j, uint32_t pass, bool has_mass, double seconds) {
    j->score_seconds += seconds;
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        if (!t->plan.evict) continue;
        if ((t->need.pass && t->sums_pass == pass) || (has_mass && t->mass_pass == pass)) t->score_seconds += seconds;
    }
}

void kv_job_count_scored(kv_job *j, uint32_t end, double seconds) {
    j->score_seconds += seconds;
    for (uint32_t i = 0; i < j->n_targets; i++) {
        kv_job_target *t = &j->targets[i];
        if (t->plan.evict && min_u32(votes_from(j, &t->need), j->n_rows - t->mass_rows) < end) t->score_seconds += seconds;
    }
}

void kv_job_begin_echo(kv_job *j) {
    const uint32_t n_q = j->e->m->hp.n_q, group = n_q / j->e->m->hp.n_kv;
    for (uint32_t i = 0; i < j->n_passes; i++) {
        const kv_job_pass *p = &j->passes[i];
        for (uint32_t q = 0; p->need.votes > 0 && q < n_q; q++) {
            float *sums = p->sums + q * j->stride;
            size_t own = kv_seq_stream(j->targets[0].s->seq, j->layer, q / group)->tail_len + votes_from(j, &p->need);
            for (size_t k = 0; k < own; k++) sums[k] *= p->need.votes;
            memset(sums + own, 0, (j->stride - own) * sizeof *sums);
        }
    }
}

void kv_job_add_sums(kv_job *j, const kv_attn_chunk *c, bool echo) {
    for (uint32_t i = 0; i < j->n_passes; i++) {
        const kv_job_pass *p = &j->passes[i];
        uint32_t end = c->row0 + c->n_rows, mass_from = j->n_rows - p->mass_rows;
        if (echo ? !p->need.echo : end <= first_of(j, p)) continue;
        kv_attn_colsum cs = {.c = *c,
                             .row_from = votes_from(j, &p->need),
                             .stride = step_of(&p->need),
                             .square = p->need.square,
                             .sums = p->sums,
                             .sums_stride = j->stride,
                             .mass_from = mass_from,
                             .mass = echo ? NULL : p->mass,
                             .sink_mass = echo ? NULL : p->sink_mass};
        uint64_t t0 = kv_os_now_ns();
        j->e->m->be->ops->attn_colsum(j->e->f.ex, &j->e->m->attn, &cs);
        count_seconds(j, i, !echo && end > mass_from, (double)(kv_os_now_ns() - t0) * 1e-9);
    }
}
