/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The points of one task through the engine. Points go in groups that fit the memory, each with the base, so that a
 * prompt is read once a group; the base's bits are the same in every group. A group that turns out too large is halved.
 * Files of a task are named by what was asked (LABEL-HASH.jsonl), so that another question never meets old rows.
 */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "base/os.h"
#include "cli/sweep.h"
#include "measure/sweep_kld.h"
#include "measure/taskrun.h"

enum { DEFAULT_CTX = 4096, DEFAULT_CHUNKS = 8, DEFAULT_NEXT = 256, RUN_ID = 2048 };

typedef struct group_run {
    sweep *s;
    const sweep_spec *spec;
    kv_sweep_task *task;
    uint32_t ctx;
    uint64_t memory; /* bytes that a group's caches may take */
    char run_id[RUN_ID];
    cli_progress progress;
    const kv_task_set *set; /* task sets only */
    /* kld only */
    int32_t *tokens;
    size_t n_tokens;
    uint32_t *at; /* [task->n] first tokens of the chunks */
    uint32_t next;
    kv_os_append log; /* -1: none */
    char log_path[SWEEP_TEXT + KV_SWEEP_NAME + 64];
    uint32_t first; /* of the group at hand */
} group_run;

/* ---------------------------------------------------------------- groups */

static uint32_t context_of(const sweep *s, const sweep_spec *spec) {
    uint32_t train = s->e.info.n_ctx_train, ctx = spec->ctx ? spec->ctx : s->o->n_ctx;
    if (ctx > train)
        kv_cli_warn(s->o, "%s: %u tokens are above the %u this model was trained on", spec->label, ctx, train);
    return ctx ? ctx : train < DEFAULT_CTX ? train : DEFAULT_CTX;
}

/* Base and points first..end-1. */
static uint32_t policies_of(const sweep *s, uint32_t first, uint32_t end, const char **out) {
    uint32_t n = 0;
    out[n++] = s->points[0].policy;
    for (uint32_t i = first; i < end; i++) out[n++] = s->points[i].policy;
    return n;
}

static bool fits(void *user, uint32_t first, uint32_t end) {
    group_run *g = user;
    const char *policies[SWEEP_GROUP + 1];
    kvist_error err;
    uint64_t bytes;
    uint32_t n = policies_of(g->s, first, end, policies);
    return kv_taskrun_kv_bytes(&g->s->e.info, policies, n, g->ctx, &bytes, &err) == KVIST_OK && bytes <= g->memory;
}

/* Half of the machine's memory: the weights, the logits of a chunk and the system take the rest. */
static uint64_t default_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size / 2 : 4ull << 30;
}

/* An engine for base and points first..end-1. */
static int open_engine(group_run *g, uint32_t first, uint32_t end) {
    const char *policies[SWEEP_GROUP + 1];
    kvist_error err;
    uint32_t n = policies_of(g->s, first, end, policies);
    cli_options o = *g->s->o;
    if (!o.kv_mem && kv_taskrun_kv_bytes(&g->s->e.info, policies, n, g->ctx, &o.kv_mem, &err) != KVIST_OK)
        return kv_cli_error(&err);
    return kv_cli_open_engine(&o, g->ctx, n, &g->s->e);
}

typedef kv_status (*run_fn)(group_run *g, uint32_t first, uint32_t end, kv_error *err);

static int run_group(group_run *g, uint32_t first, uint32_t end, run_fn run) {
    kvist_error err;
    int rc = open_engine(g, first, end);
    if (rc) return rc;
    kv_status st = run(g, first, end, &err);
    kvist_engine_close(&g->s->e.engine);
    kv_out_progress_clear(&g->progress.bar);
    if (st == KVIST_OK) return KV_CLI_OK;
    if (st != KVIST_E_BUDGET || end - first < 2) return kv_cli_error(&err);
    kv_cli_warn(g->s->o, "%s: %u policies do not fit the memory together (%s): halved", g->spec->label, end - first,
                err.message);
    uint32_t mid = first + (end - first) / 2;
    rc = run_group(g, first, mid, run);
    return rc ? rc : run_group(g, mid, end, run);
}

static int run_groups(group_run *g, run_fn run) {
    sweep *s = g->s;
    uint32_t *group = kv_calloc(s->n_points, sizeof *group);
    if (!group) return KV_CLI_FAILED;
    kv_cli_progress_init(&g->progress, s->o, "");
    g->memory = s->o->kv_mem ? s->o->kv_mem : default_memory();
    uint32_t n = kv_sweep_groups(s->n_points, SWEEP_GROUP, fits, g, group);
    int rc = s->n_points == 1 ? run_group(g, 1, 1, run) : KV_CLI_OK;
    for (uint32_t k = 0, first = 1; rc == KV_CLI_OK && k < n && first < s->n_points; k++) {
        uint32_t end = first;
        while (end < s->n_points && group[end] == k) end++;
        rc = run_group(g, first, end, run);
        first = end;
    }
    kv_free(group);
    return rc;
}

/* ---------------------------------------------------------------- files */

/* What must be equal for rows to be the same rows: whatever can change one but for the policies. Not a limit, nor which
 * parts are taken: other samples or chunks, whose rows are the same. */
static int make_run_id(group_run *g) {
    const sweep *s = g->s;
    const sweep_spec *p = g->spec;
    const char *slash = strrchr(p->path, '/');
    kvist_error err;
    kv_file_map data;
    if (kv_os_map_file(p->path, &data, &err) != KVIST_OK) return kv_cli_error(&err);
    uint64_t hash = kv_hash64(data.data, data.size, 0);
    snprintf(g->run_id, sizeof g->run_id,
             "kvist=%s\nmodel=%.300s, %" PRIu64 " bytes\ntask=%s\ndata=%.200s, %zu bytes, hash %016" PRIx64
             "\nseed=%" PRIu64 "\nctx=%u\nnext=%u\nquestions=%u\ngrid=%ux%ux%u\ncpu=%s\nprecise=%s\n%s",
             kvist_version(), s->model, s->e.info.bytes_file, p->name, slash ? slash + 1 : p->path, data.size, hash,
             s->seed, g->ctx, g->next, p->questions, p->lengths, p->depths,
             p->repeats, s->o->cpu ? s->o->cpu : "best",
             !s->o->precise   ? "no"
             : *s->o->precise ? "all"
                              : "yes",
             p->likelihood ? "metric=nll\n" : "");
    kv_os_unmap_file(&data);
    return KV_CLI_OK;
}

/* FOLDER/LABEL-HASH.jsonl, which all policies share; NULL without a folder. */
static const char *rows_path(const group_run *g, char *buf, size_t cap) {
    if (!g->s->o->sweep.out) return NULL;
    char name[KV_SWEEP_NAME + 32];
    uint64_t h = kv_hash64(g->run_id, strlen(g->run_id), g->s->agnostic && g->set);
    snprintf(name, sizeof name, "%s-%016" PRIx64 ".jsonl", g->spec->label, h);
    return kv_sweep_path(g->s, name, buf, cap) ? buf : NULL;
}

/* ---------------------------------------------------------------- task sets */

static size_t count_tokens(void *user, const char *text, size_t len) {
    size_t n = 0;
    kvist_error err;
    return kvist_tokenize(user, text, len, 0, NULL, 0, &n, &err) == KVIST_OK ? n : len;
}

static uint32_t sample_index(const group_run *g, const char *id, uint32_t from) {
    for (uint32_t k = 0; k < g->task->n; k++) {
        uint32_t i = (from + k) % g->task->n;
        if (!strcmp(kv_task_at(g->set, i)->id, id)) return i;
    }
    return UINT32_MAX;
}

/* Rows lie sample by sample, policy by policy, turn by turn: a sample's value is the mean over its turns. */
static void take_results(group_run *g, const kv_task_results *r, uint32_t first) {
    kv_sweep_task *t = g->task;
    uint32_t sample = 0;
    for (size_t i = 0, n = kv_task_results_count(r); i < n;) {
        const kv_task_row *row = kv_task_results_at(r, i);
        uint32_t turns = 0;
        kv_sweep_sample v = {0, 0, 0, NAN, NAN};
        for (; i < n; i++, turns++) {
            const kv_task_row *next = kv_task_results_at(r, i);
            if (next->policy != row->policy || strcmp(next->id, row->id) != 0) break;
            v.value += next->score;
            v.share += next->share;
            v.mass_min += next->mass_min;
        }
        sample = sample_index(g, row->id, sample);
        if (sample == UINT32_MAX) return; /* not of this set: cannot be */
        v.value /= turns;
        v.share /= turns;
        v.mass_min /= turns;
        uint32_t point = row->policy ? first + row->policy - 1 : 0;
        t->v[(size_t)point * t->n + sample] = v;
    }
}

static kv_status run_set(group_run *g, uint32_t first, uint32_t end, kv_error *err) {
    const char *policies[SWEEP_GROUP + 1];
    char path[SWEEP_TEXT + KV_SWEEP_NAME + 64];
    kv_taskrun_params p = {.set = g->set,
                           .policies = policies,
                           .n_policies = policies_of(g->s, first, end, policies),
                           .n_ctx = g->ctx,
                           .agnostic = g->s->agnostic,
                           .run_id = g->run_id,
                           .watch = {kv_cli_watch, &g->progress}};
    p.out_path = rows_path(g, path, sizeof path);
    kv_task_results *r = NULL;
    kv_status st = kv_taskrun(g->s->e.model, g->s->e.engine, &p, &r, err);
    if (r) take_results(g, r, first);
    kv_task_results_free(&r);
    return st;
}

static int task_set(group_run *g, uint32_t limit) {
    sweep *s = g->s;
    kvist_error err;
    kv_task_set *set = NULL;
    kv_task_params p = {.name = g->spec->name,
                        .path = g->spec->path,
                        .only = g->spec->only,
                        .limit = limit,
                        .seed = s->seed,
                        .n_ctx = g->ctx,
                        .questions = g->spec->questions,
                        .n_lengths = g->spec->lengths,
                        .n_depths = g->spec->depths,
                        .repeats = g->spec->repeats,
                        .likelihood = g->spec->likelihood,
                        .count = count_tokens,
                        .count_user = s->e.model};
    if (kv_task_load(&p, &set, &err) != KVIST_OK) return kv_cli_error(&err);
    uint32_t n = (uint32_t)kv_task_count(set);
    bool nll = n && kv_task_at(set, 0)->metric == KV_METRIC_NLL;
    kv_status st =
        kv_sweep_task_init(g->task, g->spec->label, nll ? KV_SWEEP_NLL : KV_SWEEP_SCORE, s->n_points, n, &err);
    for (uint32_t i = 0; st == KVIST_OK && i < n; i++) {
        const kv_sample *sample = kv_task_at(set, i);
        snprintf(g->task->ids[i], sizeof *g->task->ids, "%s", sample->id);
        st = kv_sweep_task_stratum(g->task, i, sample->stratum, &err);
    }
    int rc = st == KVIST_OK ? KV_CLI_OK : kv_cli_error(&err);
    if (rc == KV_CLI_OK) s->n_tasks++;
    g->set = set;
    if (rc == KV_CLI_OK) rc = make_run_id(g);
    if (rc == KV_CLI_OK) rc = run_groups(g, run_set);
    kv_task_free(&set);
    return rc;
}

/* ---------------------------------------------------------------- kld */

static bool kld_known(void *user, uint32_t chunk, uint32_t policy) {
    const group_run *g = user;
    uint32_t point = policy ? g->first + policy - 1 : 0;
    return !isnan(g->task->v[(size_t)point * g->task->n + chunk].value);
}

static kv_status write_line(group_run *g, json_t *o, kv_error *err) {
    char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17));
    kv_status st = line ? KVIST_OK : kv_fail(err, KVIST_E_MEMORY, "no memory for a row");
    if (st == KVIST_OK) {
        size_t n = strlen(line);
        line[n] = '\n'; /* over the terminator: the line's end */
        st = kv_os_append_write(&g->log, line, n + 1, err);
    }
    free(line);
    return st;
}

static kv_status kld_take(void *user, const kv_sweep_kld_row *row, kv_error *err) {
    group_run *g = user;
    if (kld_known(user, row->chunk, row->policy)) return KVIST_OK; /* the base, read again for a later group */
    uint32_t point = row->policy ? g->first + row->policy - 1 : 0;
    g->task->v[(size_t)point * g->task->n + row->chunk] =
        (kv_sweep_sample){row->kld, row->share, row->mass_min, row->nll, row->same_top1};
    if (g->log.fd < 0) return KVIST_OK;
    json_t *o = json_object();
    json_object_set_new(o, "id", json_string(g->task->ids[row->chunk]));
    json_object_set_new(o, "policy", json_string(g->s->points[point].policy));
    json_object_set_new(o, "rows", json_integer(row->rows));
    kv_out_json_real(o, "kld", row->kld);
    kv_out_json_real(o, "nll", row->nll);
    kv_out_json_real(o, "same_top1", row->same_top1);
    kv_out_json_real(o, "share", row->share);
    json_object_set_new(o, "share_met", json_boolean(row->share_met));
    json_object_set_new(o, "bytes_true", json_integer((json_int_t)row->bytes_true));
    kv_out_json_real(o, "mass_min", row->mass_min);
    kv_status st = write_line(g, o, err);
    json_decref(o);
    return st;
}

static double real(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* A row of an earlier run, if its chunk and policy are asked for again. */
static void kld_remember(group_run *g, json_t *o) {
    const char *id = json_string_value(json_object_get(o, "id"));
    const char *policy = json_string_value(json_object_get(o, "policy"));
    if (!id || !policy) return;
    for (uint32_t p = 0; p < g->s->n_points; p++)
        for (uint32_t i = 0; !strcmp(g->s->points[p].policy, policy) && i < g->task->n; i++)
            if (!strcmp(g->task->ids[i], id))
                g->task->v[(size_t)p * g->task->n + i] = (kv_sweep_sample){
                    real(o, "kld"), real(o, "share"), real(o, "mass_min"), real(o, "nll"), real(o, "same_top1")};
}

/* Opens the file of this kld task, reads its rows, cuts a torn last line, and writes the header of a new one. */
static kv_status kld_resume(group_run *g, kv_error *err) {
    const char *path = rows_path(g, g->log_path, sizeof g->log_path);
    char *text = NULL;
    size_t len = 0, at = 0;
    if (!path) return KVIST_OK;
    KV_TRY(kv_os_append_open(path, &g->log, err));
    KV_TRY(kv_os_read_file(path, &text, &len, err));
    kv_status st = KVIST_OK;
    for (uint32_t line = 1; st == KVIST_OK && at < len; line++) {
        const char *end = memchr(text + at, '\n', len - at);
        if (!end) break; /* torn */
        json_t *o = json_loadb(text + at, (size_t)(end - text) - at, 0, NULL);
        const char *run = line == 1 ? json_string_value(json_object_get(o, "run")) : NULL;
        if (!json_is_object(o) || (line == 1 && (!run || strcmp(run, g->run_id) != 0)))
            st = kv_fail(err, KVIST_E_FORMAT, "%s:%u: not a row of this run", path, line);
        else if (line > 1)
            kld_remember(g, o);
        json_decref(o);
        at = (size_t)(end - text) + 1;
    }
    kv_free(text);
    if (st == KVIST_OK && at < len) st = kv_os_append_cut(&g->log, at, err);
    if (st == KVIST_OK && !at) {
        json_t *o = json_object();
        json_object_set_new(o, "run", json_string(g->run_id));
        st = write_line(g, o, err);
        json_decref(o);
    }
    return st;
}

static kv_status run_kld(group_run *g, uint32_t first, uint32_t end, kv_error *err) {
    const char *policies[SWEEP_GROUP + 1];
    g->first = first;
    kv_sweep_kld_params p = {.tokens = g->tokens,
                             .n_tokens = g->n_tokens,
                             .at = g->at,
                             .n_chunks = g->task->n,
                             .ctx = g->ctx,
                             .next = g->next,
                             .n_vocab = g->s->e.info.n_vocab,
                             .threads = g->s->o->threads ? g->s->o->threads : kv_os_processors(),
                             .policies = policies,
                             .n_policies = policies_of(g->s, first, end, policies),
                             .known = kld_known,
                             .take = kld_take,
                             .user = g,
                             .watch = {kv_cli_watch, &g->progress}};
    return kv_sweep_kld(g->s->e.engine, &p, err);
}

/* n of the text's chunks, seeded, in the text's order. */
static int choose_chunks(group_run *g, uint32_t total, uint32_t n) {
    g->at = kv_calloc(total, sizeof *g->at);
    if (!g->at) return KV_CLI_FAILED;
    uint32_t left = n, kept = 0;
    uint64_t state = g->s->seed;
    for (uint32_t c = 0; c < total && left; c++) { /* of the total - c that follow, `left` are taken */
        state += 0x9e3779b97f4a7c15ull;
        if ((kv_mix64(state) >> 32) * (total - c) >> 32 < left) {
            g->at[kept++] = c * g->ctx;
            left--;
        }
    }
    return KV_CLI_OK;
}

static int kld(group_run *g, uint32_t limit) {
    sweep *s = g->s;
    kvist_error err;
    char *text = NULL;
    size_t len;
    g->next = g->spec->next ? g->spec->next : g->ctx / 2 < DEFAULT_NEXT ? g->ctx / 2 : DEFAULT_NEXT;
    if (g->next < 2 || g->next >= g->ctx) {
        fprintf(stderr, "kvist: %s: a continuation of %u tokens in chunks of %u\n", g->spec->label, g->next, g->ctx);
        return KV_CLI_FAILED;
    }
    if (kv_os_read_file(g->spec->path, &text, &len, &err) != KVIST_OK) return kv_cli_error(&err);
    int rc = kv_cli_tokens(&s->e, text, len, false, false, &g->tokens, &g->n_tokens);
    kv_free(text);
    uint32_t total = (uint32_t)(g->n_tokens / g->ctx), n = limit ? limit : DEFAULT_CHUNKS;
    if (rc == KV_CLI_OK && !total) {
        fprintf(stderr, "kvist: %s: %s has %zu tokens, one chunk needs %u (ctx=)\n", g->spec->label, g->spec->path,
                g->n_tokens, g->ctx);
        rc = KV_CLI_FAILED;
    }
    if (n > total) n = total;
    if (rc == KV_CLI_OK) rc = choose_chunks(g, total, n);
    if (rc == KV_CLI_OK && kv_sweep_task_init(g->task, g->spec->label, KV_SWEEP_KLD, s->n_points, n, &err) != KVIST_OK)
        rc = kv_cli_error(&err);
    if (rc == KV_CLI_OK) {
        for (uint32_t i = 0; i < n; i++) snprintf(g->task->ids[i], sizeof *g->task->ids, "token-%u", g->at[i]);
        s->n_tasks++;
        rc = make_run_id(g);
    }
    if (rc == KV_CLI_OK) rc = kld_resume(g, &err) == KVIST_OK ? run_groups(g, run_kld) : kv_cli_error(&err);
    kv_os_append_close(&g->log);
    kv_free(g->tokens);
    kv_free(g->at);
    return rc;
}

int kv_sweep_run_task(sweep *s, uint32_t i) {
    group_run g = {.s = s, .spec = &s->specs[i], .task = &s->tasks[i], .log = {.fd = -1}};
    uint32_t limit = g.spec->limit ? g.spec->limit : s->o->sweep.limit;
    g.ctx = context_of(s, g.spec);
    return !strcmp(g.spec->name, "kld") ? kld(&g, limit) : task_set(&g, limit);
}
