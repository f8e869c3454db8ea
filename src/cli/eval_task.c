/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvist eval TASK: loads the samples, opens an engine that holds all policies at once, runs them, prints. What a run is
 * (model, data, parameters) is written down here, so that a file of results is only ever continued by the same run.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "base/os.h"
#include "cli/eval.h"
#include "policy/policy.h"

/* Where neither -c nor the model asks for less: prompts of most tasks at a bearable time on a CPU. */
enum { DEFAULT_CTX = 8192, DEFAULT_SEED = 1 };

/* What -f must name. */
static const char *const formats[][2] = {
    {"longbench", "JSON lines {task, idx, prompt, answers[, all_classes]}"},
    {"longeval", "LongEval's JSON lines (200_lines.jsonl, 10_topics.jsonl)"},
    {"kvretrieval", "JSON lines {ordered_kv_records, key, value}, plain or gzip"},
    {"needle", "a long text (UTF-8) to hide facts in"},
    {"gsm8k", "JSON lines {question, answer}"},
    {"repeat", "a long text (UTF-8) with passages to repeat"},
};

const char *kv_eval_task_option(const cli_options *o) {
    return o->task.agnostic     ? "--agnostic"
           : o->task.limit      ? "--limit"
           : o->task.only       ? "--only"
           : o->task.turns      ? "--questions"
           : o->task.lengths    ? "--lengths"
           : o->task.depths     ? "--depths"
           : o->task.results    ? "--out"
           : o->task.likelihood ? "--likelihood"
           : o->task.by_stratum ? "--by-stratum"
                                : NULL;
}

static uint64_t seed_of(const cli_options *o) { return o->seed < 0 ? DEFAULT_SEED : (uint64_t)o->seed; }

static int check(const cli_options *o, const char *task) {
    const char *wanted = "a data file";
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(formats[i][0], task)) wanted = formats[i][1];
    if (o->prompt) return kv_cli_usage_error("eval", "%s takes no -p: -f FILE names its data (%s)", task, wanted);
    if (o->files.n != 1) return kv_cli_usage_error("eval", "%s needs one -f FILE: %s", task, wanted);
    if (o->rows || o->chunks)
        return kv_cli_usage_error("eval", "%s is for ppl and kld, not for %s", o->rows ? "--rows" : "--chunks", task);
    if (o->output && strcmp(o->output, "csv") && strcmp(o->output, "json") && strcmp(o->output, "md"))
        return kv_cli_usage_error("eval", "-o: '%s' is none of md, csv, json", o->output);
    return KV_CLI_OK;
}

/* ---------------------------------------------------------------- policies */

/* full, then the others in their order, each once; a policy that is one of them in other words is left out. */
static void order_policies(const cli_options *o, cli_policies *out) {
    cli_policies given;
    char(*canonical)[256] = kv_calloc(KV_CLI_MAX_LIST + 2, sizeof *canonical);
    kv_cli_policies(o, &given);
    memset(out, 0, sizeof *out);
    out->v[out->n++] = "full";
    if (canonical) strcpy(canonical[0], "full");
    for (uint32_t i = 0; i < given.n; i++) {
        kv_policy p;
        kvist_error err;
        uint32_t at = 0;
        if (!canonical || kv_policy_parse(given.v[i], &p, &err) != KVIST_OK) continue; /* kv_cli_check passed it */
        kv_policy_print(&p, canonical[out->n], sizeof *canonical);
        while (strcmp(canonical[at], canonical[out->n]) != 0) at++;
        if (at < out->n && at) kv_cli_warn(o, "--kv %s is %s once more: it is run once", given.v[i], out->v[at]);
        if (at == out->n) out->v[out->n++] = given.v[i] == given.cache_types ? o->kv.v[0] : given.v[i];
    }
    kv_free(canonical);
}

/* ---------------------------------------------------------------- what the run is */

typedef struct text {
    char *s;
    size_t n, cap;
    bool failed;
} text;

static void add(text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (t->n + 1024 > t->cap) {
        size_t cap = 2 * t->cap + 2048;
        char *s = kv_realloc(t->s, cap);
        if (s) {
            t->s = s;
            t->cap = cap;
        } else {
            t->failed = true;
        }
    }
    int n = t->failed ? 0 : vsnprintf(t->s + t->n, t->cap - t->n, fmt, ap);
    va_end(ap);
    if (n > 0) t->n += (size_t)n < t->cap - t->n ? (size_t)n : t->cap - t->n - 1;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Lines "key=value" (taskrun.h): whatever can change an answer but for the policies. Threads and step sizes cannot, nor
 * can a limit or a choice of parts, which pick samples. */
static int describe(const cli_options *o, const cli_engine *e, const kv_task_params *p, char **out) {
    kvist_error err;
    kv_file_map data;
    text t = {0};
    if (kv_os_map_file(p->path, &data, &err)) return kv_cli_error(&err);
    add(&t, "kvist=%s\n", kvist_version());
    add(&t, "model=%.200s, %s, %llu bytes\n", e->info.name, e->info.type, (unsigned long long)e->info.bytes_file);
    add(&t, "task=%s\n", p->name);
    add(&t, "data=%.200s, %zu bytes, hash %016llx\n", base_name(p->path), data.size,
        (unsigned long long)kv_hash64(data.data, data.size, 0));
    kv_os_unmap_file(&data);
    add(&t, "seed=%llu\nctx=%u\nquestions=%u\n", (unsigned long long)p->seed, p->n_ctx, p->questions);
    add(&t, "grid=%u lengths, %u depths, %u repeats\n", p->n_lengths, p->n_depths, p->repeats);
    if (p->likelihood) add(&t, "metric=nll\n");
    add(&t, "cpu=%s\nprecise=%s\n", o->cpu ? o->cpu : "best", !o->precise ? "no" : *o->precise ? o->precise : "yes");
    *out = t.s;
    if (!t.failed) return KV_CLI_OK;
    fprintf(stderr, "kvist: out of memory\n");
    return KV_CLI_FAILED;
}

/* ---------------------------------------------------------------- the run */

static size_t count_tokens(void *user, const char *s, size_t len) {
    kvist_error err;
    size_t n = 0;
    if (kvist_tokenize(user, s, len, 0, NULL, 0, &n, &err)) return len; /* more than it can be: cut, not overrun */
    return n;
}

/* An engine whose cache holds a session of each policy. */
static int open_engine(const cli_options *o, const cli_policies *pol, uint32_t ctx, cli_engine *e) {
    kvist_error err;
    uint64_t need;
    char a[32], b[32];
    if (kv_taskrun_kv_bytes(&e->info, pol->v, pol->n, ctx, &need, &err)) return kv_cli_error(&err);
    if (o->kv_mem && o->kv_mem < need) {
        fprintf(
            stderr,
            "kvist: --kv-mem %s is too small: the caches of %u policies side by side at a context of %u tokens take "
            "up to %s (fewer --kv, a smaller -c, or no --kv-mem)\n",
            kv_out_bytes(a, sizeof a, o->kv_mem), pol->n, ctx, kv_out_bytes(b, sizeof b, need));
        return KV_CLI_FAILED;
    }
    cli_options with = *o;
    with.kv_mem = o->kv_mem ? o->kv_mem : need;
    return kv_cli_open_engine(&with, ctx, pol->n < 16 ? 16 : pol->n, e);
}

static int run(const cli_options *o, cli_engine *e, const kv_task_set *set, const kv_task_params *task) {
    cli_policies pol;
    char *id = NULL;
    kvist_error err;
    order_policies(o, &pol);
    int rc = open_engine(o, &pol, task->n_ctx, e);
    if (rc == KV_CLI_OK) rc = describe(o, e, task, &id);
    if (rc != KV_CLI_OK) return rc;
    cli_progress progress;
    kv_cli_progress_init(&progress, o, "");
    kv_cli_interrupt_install();
    kv_taskrun_params p = {.set = set,
                           .policies = pol.v,
                           .n_policies = pol.n,
                           .n_ctx = task->n_ctx,
                           .agnostic = o->task.agnostic,
                           .out_path = o->task.results,
                           .run_id = id,
                           .watch = {kv_cli_watch, &progress}};
    kv_task_results *results = NULL;
    kv_status st = kv_taskrun(e->model, e->engine, &p, &results, &err);
    kv_out_progress_clear(&progress.bar);
    kv_free(id);
    eval_outcome r = {o, task->name, set, results, pol.v, pol.n, task->seed, 0};
    if (results) {
        for (size_t i = 0; i < kv_task_results_count(results); i++) {
            const kv_task_row *row = kv_task_results_at(results, i);
            r.n_done += row->policy == 0 && row->turn == 0;
        }
        if (r.n_done) kv_eval_print(&r);
    }
    kv_task_results_free(&results);
    if (st == KVIST_E_CANCELLED)
        fprintf(stderr, "kvist: stopped after %zu of %zu samples%s%s\n", r.n_done, kv_task_count(set),
                o->task.results ? "; the same command goes on from " : "", o->task.results ? o->task.results : "");
    else if (st != KVIST_OK)
        return kv_cli_error(&err);
    return st == KVIST_OK ? KV_CLI_OK : KV_CLI_FAILED;
}

int kv_eval_task(const cli_options *o, const char *task) {
    int rc = check(o, task);
    if (rc) return rc;
    cli_engine e = {0};
    kvist_error err;
    kv_task_set *set = NULL;
    rc = kv_cli_open_model(o, &e);
    if (rc != KV_CLI_OK) return rc;
    uint32_t train = e.info.n_ctx_train, ctx = o->n_ctx ? o->n_ctx : train < DEFAULT_CTX ? train : DEFAULT_CTX;
    if (ctx > train) kv_cli_warn(o, "-c %u is above the %u tokens this model was trained on", ctx, train);
    kv_task_params p = {.name = task,
                        .path = o->files.v[0],
                        .only = o->task.only,
                        .limit = o->task.limit,
                        .seed = seed_of(o),
                        .n_ctx = ctx,
                        .questions = o->task.turns,
                        .n_lengths = o->task.lengths,
                        .n_depths = o->task.depths,
                        .repeats = o->reps,
                        .likelihood = o->task.likelihood,
                        .count = count_tokens,
                        .count_user = e.model};
    rc = kv_task_load(&p, &set, &err) ? kv_cli_error(&err) : run(o, &e, set, &p);
    kv_task_free(&set);
    kv_cli_close(&e);
    return rc;
}
