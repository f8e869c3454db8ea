/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of evaluation tasks, the set of samples with the memory it owns, and the choice of a subset. Which
 * samples a limit picks depends on their names and the seed alone: not on the order of the file, the model, or n_ctx.
 * Must not know: what any task holds.
 */
#include "measure/task.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "measure/task_build.h"

static const kv_task_kind *const kinds[] = {&kv_task_longbench, &kv_task_longeval, &kv_task_kvretrieval,
                                            &kv_task_needle,    &kv_task_gsm8k,    &kv_task_repeat};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* Memory comes in chunks of at least this size; a long context has one of its own. */
enum { CHUNK_BYTES = 1 << 16 };

typedef struct chunk {
    struct chunk *next;
    size_t size, used;
    max_align_t data[];
} chunk;

typedef struct candidate {
    const char *id, *stratum;
    uint32_t index; /* as the task counts */
    uint64_t key;   /* order of choice inside its stratum */
    bool chosen;
} candidate;

struct kv_task_set {
    chunk *chunks;
    kv_sample *samples;
    size_t n;
    candidate *candidates; /* [n_candidates]; freed when the samples are made */
    uint32_t n_candidates, cap;
};

void *kv_task_alloc(kv_task_build *b, size_t size) {
    kv_task_set *set = b->set;
    size = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    chunk *c = set->chunks;
    if (!c || c->size - c->used < size) {
        size_t room = size > CHUNK_BYTES ? size : CHUNK_BYTES;
        c = kv_malloc(sizeof *c + room);
        if (!c) return NULL;
        *c = (chunk){set->chunks, room, 0};
        set->chunks = c;
    }
    void *p = (char *)c->data + c->used;
    c->used += size;
    return p;
}

char *kv_task_strndup(kv_task_build *b, const char *s, size_t n) {
    char *p = kv_task_alloc(b, n + 1);
    if (!p) return NULL;
    if (n) memcpy(p, s, n);
    p[n] = 0;
    return p;
}

char *kv_task_printf(kv_task_build *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : kv_task_alloc(b, (size_t)n + 1);
    if (p) vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

kv_status kv_task_turns(kv_task_build *b, kv_sample *s, uint32_t n, kv_error *err) {
    s->turns = kv_task_alloc(b, n * sizeof *s->turns);
    KV_TASK_NEW(err, s->turns);
    for (uint32_t i = 0; i < n; i++) s->turns[i] = (kv_turn){"", "", NULL, 0};
    s->n_turns = n;
    return KVIST_OK;
}

kv_status kv_task_answers(kv_task_build *b, kv_turn *t, uint32_t n, const char *const *answers, kv_error *err) {
    const char **a = kv_task_alloc(b, n * sizeof *a);
    KV_TASK_NEW(err, a);
    for (uint32_t i = 0; i < n; i++) {
        KV_TASK_NEW(err, answers[i]);
        a[i] = answers[i];
    }
    t->answers = a;
    t->n_answers = n;
    return KVIST_OK;
}

uint64_t kv_task_rand(uint64_t *state) { return kv_mix64(*state += 0x9e3779b97f4a7c15ull); }

uint32_t kv_task_below(uint64_t *state, uint32_t n) {
    return (uint32_t)((kv_task_rand(state) >> 32) * n >> 32); /* uneven by less than n / 2^32 */
}

uint64_t kv_task_seed(const kv_task_build *b, const char *name, uint64_t salt) {
    return kv_hash64(name, strlen(name), kv_mix64(b->p->seed + 1) ^ kv_mix64(salt + 0x5bd1e995));
}

void kv_task_shuffle(uint64_t *state, uint32_t *v, uint32_t n) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = kv_task_below(state, i), swap = v[i - 1];
        v[i - 1] = v[j];
        v[j] = swap;
    }
}

kv_status kv_task_candidate(kv_task_build *b, const char *id, const char *stratum, kv_error *err) {
    kv_task_set *set = b->set;
    if (set->n_candidates == set->cap) {
        uint32_t cap = set->cap ? 2 * set->cap : 256;
        candidate *more = kv_realloc(set->candidates, cap * sizeof *more);
        KV_TASK_NEW(err, more);
        set->candidates = more;
        set->cap = cap;
    }
    candidate c = {.id = kv_task_strndup(b, id, strlen(id)), .index = set->n_candidates, .key = kv_task_seed(b, id, 0)};
    /* Strata are few and follow each other: most often the last one's string serves. */
    const char *last = set->n_candidates ? set->candidates[set->n_candidates - 1].stratum : "";
    c.stratum = set->n_candidates && !strcmp(last, stratum) ? last : kv_task_strndup(b, stratum, strlen(stratum));
    if (!c.id || !c.stratum) KV_FAIL(err, MEMORY, "no memory for the samples of a task");
    set->candidates[set->n_candidates++] = c;
    return KVIST_OK;
}

/* ---- choosing ---- */

/* By stratum, then by key; the name decides between equal keys. */
static int by_choice(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    int d = strcmp(x->stratum, y->stratum);
    if (d) return d;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return strcmp(x->id, y->id);
}

static int by_index(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

static int by_id(const void *a, const void *b) {
    return strcmp((*(const candidate *const *)a)->id, (*(const candidate *const *)b)->id);
}

typedef struct stratum {
    const char *name;
    uint32_t from, n, take; /* candidates [from, from + n) in choice order; of which the first `take` are chosen */
    bool wanted;
} stratum;

typedef struct strata {
    stratum *s;
    uint32_t n;
} strata;

static kv_status split_strata(candidate *c, uint32_t n, strata *out, kv_error *err) {
    qsort(c, n, sizeof *c, by_choice);
    out->s = kv_malloc((n + 1) * sizeof *out->s);
    KV_TASK_NEW(err, out->s);
    for (uint32_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(c[i].stratum, c[i - 1].stratum)) out->s[out->n++] = (stratum){c[i].stratum, i, 0, 0, true};
        out->s[out->n - 1].n++;
    }
    return KVIST_OK;
}

/* Marks the strata that `only` names. */
static kv_status filter(const char *task, const char *only, strata *st, kv_error *err) {
    if (!only || !*only) return KVIST_OK;
    for (uint32_t i = 0; i < st->n; i++) st->s[i].wanted = false;
    for (const char *at = only; *at;) {
        size_t len = strcspn(at, ",");
        uint32_t hits = 0;
        for (uint32_t i = 0; i < st->n; i++)
            if (strlen(st->s[i].name) == len && !memcmp(st->s[i].name, at, len)) st->s[i].wanted = true, hits++;
        if (!hits) {
            char list[512];
            size_t used = 0;
            for (uint32_t i = 0; i < st->n && used + 4 < sizeof list; i++)
                used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", st->s[i].name);
            KV_FAIL(err, ARG, "%s: no part named '%.*s'; there are: %s", task, (int)(len < 64 ? len : 64), at, list);
        }
        at += len;
        at += *at == ',';
    }
    return KVIST_OK;
}

/* Shares `limit` over the wanted strata by their sizes: one each as far as it goes (larger strata first), the rest in
 * proportion by largest remainders; ties by name. */
static void apportion(strata *st, uint32_t limit) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < st->n; i++)
        if (st->s[i].wanted) total += st->s[i].n;
    if (limit == 0 || limit >= total) {
        for (uint32_t i = 0; i < st->n; i++) st->s[i].take = st->s[i].wanted ? st->s[i].n : 0;
        return;
    }
    for (uint32_t left = limit; left; left--) {
        /* The stratum furthest below its share n limit / total comes next, one that has nothing before any other. */
        uint32_t best = UINT32_MAX;
        double best_lack = 0;
        for (uint32_t i = 0; i < st->n; i++) {
            const stratum *s = st->s + i;
            if (!s->wanted || s->take == s->n) continue;
            double lack = (double)s->n * limit / (double)total - s->take + (s->take ? 0 : (double)total + limit);
            if (best == UINT32_MAX || lack > best_lack) best = i, best_lack = lack;
        }
        st->s[best].take++;
    }
}

/* Candidates to keep, in the task's order, come first; returns how many. */
static kv_status choose(kv_task_build *b, const kv_task_kind *kind, uint32_t *n_chosen, kv_error *err) {
    kv_task_set *set = b->set;
    strata st = {0};
    kv_status status = split_strata(set->candidates, set->n_candidates, &st, err);
    if (status == KVIST_OK) status = filter(kind->name, b->p->only, &st, err);
    if (status == KVIST_OK) {
        apportion(&st, b->p->limit);
        *n_chosen = 0;
        for (uint32_t i = 0; i < st.n; i++)
            for (uint32_t k = 0; k < st.s[i].take; k++)
                set->candidates[(*n_chosen)++] = set->candidates[st.s[i].from + k];
        qsort(set->candidates, *n_chosen, sizeof *set->candidates, by_index);
    }
    kv_free(st.s);
    return status;
}

/* Resuming and pairing go by the id. */
static kv_status check_unique(const kv_task_params *p, const kv_task_set *set, kv_error *err) {
    const candidate **v = kv_malloc((set->n_candidates + 1) * sizeof *v);
    KV_TASK_NEW(err, v);
    for (uint32_t i = 0; i < set->n_candidates; i++) v[i] = set->candidates + i;
    qsort(v, set->n_candidates, sizeof *v, by_id);
    const char *twice = NULL;
    for (uint32_t i = 1; i < set->n_candidates && !twice; i++)
        if (!strcmp(v[i]->id, v[i - 1]->id)) twice = v[i]->id;
    kv_free(v);
    if (twice) KV_FAIL(err, FORMAT, "%s: two samples have the name '%s'", p->path, twice);
    return KVIST_OK;
}

/* ---- loading ---- */

const char *kv_task_name_at(uint32_t i, const char **description) {
    if (i >= N_KINDS) return NULL;
    if (description) *description = kinds[i]->description;
    return kinds[i]->name;
}

static kv_status find_kind(const kv_task_params *p, const kv_task_kind **out, kv_error *err) {
    char list[256];
    size_t used = 0;
    for (uint32_t i = 0; i < N_KINDS; i++) {
        if (p->name && !strcmp(kinds[i]->name, p->name)) {
            *out = kinds[i];
            return KVIST_OK;
        }
        if (used < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", kinds[i]->name);
    }
    KV_FAIL(err, ARG, "no task named '%s'; there are: %s", p->name ? p->name : "", list);
}

static kv_status check_params(const kv_task_params *p, const kv_task_kind *kind, kv_error *err) {
    if (!p->path || !*p->path) KV_FAIL(err, ARG, "%s: which file?", kind->name);
    if (!p->count) KV_FAIL(err, ARG, "%s: no function that counts tokens", kind->name);
    if (p->questions > 1 && !kind->multi_turn)
        KV_FAIL(err, ARG, "%s asks one question a sample, not %u", kind->name, p->questions);
    if ((p->n_lengths || p->n_depths || p->repeats) && !kind->grid)
        KV_FAIL(err, ARG, "%s has no grid of lengths and depths", kind->name);
    return KVIST_OK;
}

/* Words are written apart: what the model would begin its answer with behind "Answer:", but not behind a quote. */
static bool parts_words(const char *before, const char *after) {
    size_t n = strlen(before);
    char last = n ? before[n - 1] : ' ';
    return (isalnum((unsigned char)last) || last == ':') && isalnum((unsigned char)*after);
}

/* The first reference will be read where an answer would be written. */
static kv_status by_likelihood(kv_task_build *b, kv_sample *s, kv_error *err) {
    if (s->metric == KV_METRIC_NLL) return KVIST_OK;
    s->metric = KV_METRIC_NLL;
    for (uint32_t t = 0; t < s->n_turns; t++) {
        kv_turn *turn = &s->turns[t];
        if (!turn->n_answers) continue; /* whoever would read it says so */
        const char *before = *turn->lead ? turn->lead : s->chat ? "" : *turn->question ? turn->question : s->context;
        const char *text = turn->answers[0];
        if (parts_words(before, text)) text = kv_task_printf(b, " %s", text);
        KV_TRY(kv_task_answers(b, turn, 1, &text, err));
    }
    return KVIST_OK;
}

static kv_status build(kv_task_build *b, const kv_task_kind *kind, kv_error *err) {
    kv_task_set *set = b->set;
    KV_TRY(kind->open(b, err));
    if (!set->n_candidates) KV_FAIL(err, FORMAT, "%s: holds no sample of %s", b->p->path, kind->name);
    KV_TRY(check_unique(b->p, set, err));
    uint32_t n;
    KV_TRY(choose(b, kind, &n, err));
    set->samples = kv_calloc(n, sizeof *set->samples);
    KV_TASK_NEW(err, set->samples);
    for (uint32_t i = 0; i < n; i++) {
        kv_sample *s = set->samples + i;
        *s = (kv_sample){.id = set->candidates[i].id, .stratum = set->candidates[i].stratum, .depth = NAN};
        KV_TRY(kind->make(b, set->candidates[i].index, s, err));
        if (b->p->likelihood) KV_TRY(by_likelihood(b, s, err));
        set->n++;
    }
    return KVIST_OK;
}

kv_status kv_task_load(const kv_task_params *p, kv_task_set **out, kv_error *err) {
    *out = NULL;
    const kv_task_kind *kind = NULL;
    KV_TRY(find_kind(p, &kind, err));
    KV_TRY(check_params(p, kind, err));
    kv_task_build b = {.p = p, .set = kv_calloc(1, sizeof *b.set)};
    KV_TASK_NEW(err, b.set);
    kv_status status = build(&b, kind, err);
    kind->close(&b);
    kv_free(b.set->candidates);
    b.set->candidates = NULL;
    if (status != KVIST_OK)
        kv_task_free(&b.set);
    else
        *out = b.set;
    return status;
}

void kv_task_free(kv_task_set **set) {
    if (!set || !*set) return;
    for (chunk *c = (*set)->chunks; c;) {
        chunk *next = c->next;
        kv_free(c);
        c = next;
    }
    kv_free((*set)->samples);
    kv_free((*set)->candidates);
    kv_free(*set);
    *set = NULL;
}

size_t kv_task_count(const kv_task_set *set) { return set->n; }
const kv_sample *kv_task_at(const kv_task_set *set, size_t i) { return i < set->n ? set->samples + i : NULL; }
