/* SPDX-License-Identifier: Apache-2.0 */
/* kvist sweep: methods x byte shares x tasks on one model; which policy is best at which size. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "cli/sweep.h"
#include "measure/task.h"

#define DEFAULT_SHARES ".5,.25,.16,.14,.07,.04,.025"
#define DEFAULT_FLOOR .97
enum { DEFAULT_SEED = 1 }; /* as kvist eval's: the same samples */

/* ---------------------------------------------------------------- what is asked for */

bool kv_sweep_shares(const char *text, double *shares, uint32_t *n) {
    *n = 0;
    while (*text) {
        char *end;
        if (!isdigit((unsigned char)*text) && *text != '.') return false;
        double v = strtod(text, &end);
        if (end == text || (*end && *end != ',') || (*end == ',' && !end[1]) || *n == SWEEP_SHARES) return false;
        if (!(v >= .001 && v <= 1)) return false;
        for (uint32_t i = 0; i < *n; i++)
            if (shares[i] == v) return false;
        shares[(*n)++] = v;
        text = *end ? end + 1 : end;
    }
    return *n > 0;
}

static bool spec_number(const char *value, uint32_t max, uint32_t *out) {
    char *end;
    if (!isdigit((unsigned char)*value)) return false;
    unsigned long v = strtoul(value, &end, 10);
    if (*end || !v || v > max) return false;
    *out = (uint32_t)v;
    return true;
}

static bool spec_key(sweep_spec *s, char *item, char *why, size_t cap) {
    static const struct {
        const char *key;
        size_t at;
        uint32_t max;
    } numbers[] = {{"limit", offsetof(sweep_spec, limit), 1000000},
                   {"ctx", offsetof(sweep_spec, ctx), 16777216},
                   {"next", offsetof(sweep_spec, next), 65536},
                   {"questions", offsetof(sweep_spec, questions), 64},
                   {"lengths", offsetof(sweep_spec, lengths), 64},
                   {"depths", offsetof(sweep_spec, depths), 64},
                   {"repeats", offsetof(sweep_spec, repeats), 1001}};
    char *eq = strchr(item, '=');
    if (!eq || !eq[1]) {
        snprintf(why, cap, "'%.80s' is not key=value", item);
        return false;
    }
    *eq++ = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(item, numbers[i].key)) {
            if (spec_number(eq, numbers[i].max, (uint32_t *)((char *)s + numbers[i].at))) return true;
            snprintf(why, cap, "%s=%.60s is no whole number from 1 to %u", item, eq, numbers[i].max);
            return false;
        }
    if (!strcmp(item, "only")) {
        s->only = eq;
        return true;
    }
    if (!strcmp(item, "metric")) {
        s->likelihood = !strcmp(eq, "nll");
        if (!s->likelihood) snprintf(why, cap, "metric=%.60s: nll, or left out for the task's own", eq);
        return s->likelihood;
    }
    if (!strcmp(item, "label") && strlen(eq) < sizeof s->label) {
        snprintf(s->label, sizeof s->label, "%s", eq);
        for (char *c = s->label; *c; c++)
            if (!isalnum((unsigned char)*c) && !strchr("-_.", *c)) *c = '-'; /* it names files */
        return true;
    }
    snprintf(why, cap, "key '%.60s' is none of limit, ctx, next, questions, lengths, depths, repeats, only, metric, label",
             item);
    return false;
}

static bool known_task(const char *name) {
    if (!strcmp(name, "kld")) return true;
    const char *n;
    for (uint32_t i = 0; (n = kv_task_name_at(i, NULL)); i++)
        if (!strcmp(n, name)) return true;
    return false;
}

bool kv_sweep_spec(const char *text, sweep_spec *out, char *why, size_t cap) {
    memset(out, 0, sizeof *out);
    if (strlen(text) >= sizeof out->text) {
        snprintf(why, cap, "it has more than %zu bytes", sizeof out->text - 1);
        return false;
    }
    memcpy(out->text, text, strlen(text) + 1);
    char *item = out->text, *next = strchr(item, ';');
    if (next) *next++ = 0;
    char *eq = strchr(item, '=');
    if (!eq || eq == item || !eq[1]) {
        snprintf(why, cap, "it is not NAME=FILE");
        return false;
    }
    *eq = 0;
    out->name = item;
    out->path = eq + 1;
    if (!known_task(out->name)) {
        size_t len = (size_t)snprintf(why, cap, "'%.40s' is none of kld", out->name);
        const char *n;
        for (uint32_t i = 0; (n = kv_task_name_at(i, NULL)) && len < cap; i++)
            len += (size_t)snprintf(why + len, cap - len, ", %s", n);
        return false;
    }
    snprintf(out->label, sizeof out->label, "%s", out->name);
    while ((item = next)) {
        next = strchr(item, ';');
        if (next) *next++ = 0;
        if (!spec_key(out, item, why, cap)) return false;
    }
    if (out->next && strcmp(out->name, "kld")) {
        snprintf(why, cap, "next= belongs to kld");
        return false;
    }
    if (out->likelihood && !strcmp(out->name, "kld")) {
        snprintf(why, cap, "metric= is for tasks, not for kld");
        return false;
    }
    if ((out->lengths || out->depths || out->repeats) && strcmp(out->name, "needle")) {
        snprintf(why, cap, "lengths=, depths= and repeats= belong to needle");
        return false;
    }
    return true;
}

/* Labels name rows and files: the second of a kind is "kld-2". */
static void tell_apart(sweep *s) {
    for (uint32_t i = 1; i < s->n_specs; i++) {
        char base[KV_SWEEP_NAME - 8];
        snprintf(base, sizeof base, "%.*s", (int)sizeof base - 1, s->specs[i].label);
        for (uint32_t k = 2, j = 0; j < i; j++)
            if (!strcmp(s->specs[j].label, s->specs[i].label)) {
                snprintf(s->specs[i].label, sizeof s->specs[i].label, "%s-%u", base, k++);
                j = UINT32_MAX; /* from the start */
            }
    }
}

static int read_asked(sweep *s) {
    const cli_options *o = s->o;
    char why[512];
    if (!kv_sweep_shares(o->sweep.shares ? o->sweep.shares : DEFAULT_SHARES, s->shares, &s->n_shares))
        return kv_cli_usage_error("sweep", "--share: '%s' is no list of at most %d different shares from 0.001 to 1",
                                  o->sweep.shares, SWEEP_SHARES);
    if (!o->sweep.tasks.n)
        return kv_cli_usage_error("sweep", "no task: --task NAME=FILE, for example --task kld=book.txt");
    if (o->sweep.tasks.n > SWEEP_TASKS) return kv_cli_usage_error("sweep", "more than %d tasks", SWEEP_TASKS);
    for (uint32_t i = 0; i < o->sweep.tasks.n; i++)
        if (!kv_sweep_spec(o->sweep.tasks.v[i], &s->specs[s->n_specs++], why, sizeof why))
            return kv_cli_usage_error("sweep", "--task %s: %s", o->sweep.tasks.v[i], why);
    tell_apart(s);
    return KV_CLI_OK;
}

static void left_out(void *user, const char *policy, const char *why) {
    kv_cli_warn(user, "%s is left out: %s", policy, why);
}

static int expand(sweep *s) {
    kvist_error err;
    kv_sweep_ask ask = {.methods = s->o->sweep.methods.v,
                        .n_methods = s->o->sweep.methods.n,
                        .shares = s->shares,
                        .n_shares = s->n_shares,
                        .note = left_out,
                        .note_user = (void *)s->o};
    if (kv_sweep_expand(&ask, &s->points, &s->n_points, &err) != KVIST_OK)
        return kv_cli_usage_error("sweep", "%s", err.message);
    return KV_CLI_OK;
}

/* ---------------------------------------------------------------- the order of work */

bool kv_sweep_path(const sweep *s, const char *name, char *buf, size_t cap) {
    int n = snprintf(buf, cap, "%s/%s", s->o->sweep.out, name);
    return n > 0 && (size_t)n < cap;
}

/* What this model refuses of the points: with --method an error, of the default list left out. */
static int check_points(sweep *s) {
    kvist_error err;
    cli_engine probe = {.model = s->e.model, .info = s->e.info};
    int rc = kv_cli_open_engine(s->o, 64, 1, &probe);
    uint32_t kept = 0;
    for (uint32_t i = 0; rc == KV_CLI_OK && i < s->n_points; i++) {
        kvist_session *session = NULL;
        if (kvist_session_create(probe.engine, s->points[i].policy, &session, &err) == KVIST_OK) {
            kvist_session_close(&session);
            s->points[kept++] = s->points[i];
        } else if (i == 0 || s->o->sweep.methods.n) {
            rc = kv_cli_error(&err);
        } else {
            left_out((void *)s->o, s->points[i].policy, err.message);
        }
    }
    s->n_points = kept;
    kvist_engine_close(&probe.engine);
    return rc;
}

static int analyse(sweep *s) {
    kvist_error err;
    kv_sweep_rules rules = {s->shares, s->n_shares, s->floor, s->seed};
    kv_sweep_table_free(&s->table);
    return kv_sweep_analyse(s->points, s->n_points, s->tasks, s->n_tasks, &rules, &s->table, &err) == KVIST_OK
               ? KV_CLI_OK
               : kv_cli_error(&err);
}

/* After each task, so that what is done shows even when the rest is stopped. */
static int keep(sweep *s) {
    int rc = analyse(s);
    return rc == KV_CLI_OK && s->o->sweep.out ? kv_sweep_save(s) : rc;
}

static int run_all(sweep *s) {
    int rc = kv_cli_open_model(s->o, &s->e);
    if (rc) return rc;
    const char *slash = strrchr(s->o->model, '/');
    snprintf(s->model, sizeof s->model, "%.200s, %.40s", slash ? slash + 1 : s->o->model, s->e.info.type);
    rc = check_points(s);
    kv_cli_interrupt_install();
    for (uint32_t i = 0; rc == KV_CLI_OK && i < s->n_specs; i++) {
        rc = kv_sweep_run_task(s, i);
        if (s->n_tasks == i + 1) {
            int kept = keep(s);
            if (rc == KV_CLI_OK) rc = kept;
        }
    }
    return rc;
}

static int show(sweep *s) {
    kv_sweep_print(s);
    if (s->o->sweep.out) kv_sweep_plot(s);
    return KV_CLI_OK;
}

static int make_folder(const char *dir) {
    struct stat st;
    if (mkdir(dir, 0777) == 0 || (stat(dir, &st) == 0 && S_ISDIR(st.st_mode))) return KV_CLI_OK;
    fprintf(stderr, "kvist: %s: cannot be made a folder\n", dir);
    return KV_CLI_FAILED;
}

static int check(const cli_options *o) {
    const char *form = o->output;
    if (form && strcmp(form, "md") && strcmp(form, "json") && strcmp(form, "csv"))
        return kv_cli_usage_error("sweep", "-o: '%s' is none of md, json, csv", form);
    if (o->sweep.report && !o->sweep.out) return kv_cli_usage_error("sweep", "--report needs --out FOLDER");
    return o->sweep.report ? KV_CLI_OK : kv_cli_check("sweep", o);
}

static int sweep_command(const cli_options *o) {
    int rc = check(o);
    if (rc) return rc;
    sweep *s = kv_calloc(1, sizeof *s);
    if (!s) return KV_CLI_FAILED;
    s->o = o;
    s->floor = o->sweep.floor > 0 ? round((double)o->sweep.floor * 1e6) / 1e6 : DEFAULT_FLOOR; /* .95f is .949999988 */
    s->seed = o->seed < 0 ? DEFAULT_SEED : (uint64_t)o->seed;
    s->agnostic = o->sweep.agnostic;
    if (o->sweep.report) {
        rc = kv_sweep_load(s);
        if (rc == KV_CLI_OK) rc = analyse(s);
        if (rc == KV_CLI_OK) rc = show(s);
    } else {
        rc = read_asked(s);
        if (rc == KV_CLI_OK) rc = expand(s);
        if (rc == KV_CLI_OK && o->sweep.out) rc = make_folder(o->sweep.out);
        if (rc == KV_CLI_OK) {
            rc = run_all(s);
            if (s->table.n_points) show(s); /* what was measured before a stop is worth printing */
        }
    }
    kv_cli_close(&s->e);
    kv_sweep_table_free(&s->table);
    for (uint32_t i = 0; i < s->n_tasks; i++) kv_sweep_task_free(&s->tasks[i]);
    kv_free(s->points);
    kv_free(s);
    return rc;
}

static const cli_opt opts[] = {
    {"--method", "POLICY", CLI_LIST, offsetof(cli_options, sweep.methods), 0, 0,
     "policy without a budget; each is run at every share. One that evicts\nnothing, or has a budget, stands at its "
     "own "
     "share (default: all presets\nand full in every format)"},
    {"--share", "LIST", CLI_STR, offsetof(cli_options, sweep.shares), 0, 0,
     "fractions of the f16 cache's true bytes (" DEFAULT_SHARES ")"},
    {"--task", "NAME=FILE", CLI_LIST, offsetof(cli_options, sweep.tasks), 0, 0,
     "what is measured: kld=TEXT, longeval=JSONL, repeat=TEXT, ...;\nkeys behind it: ';limit=N;ctx=N;only=A,B;"
     "questions=N;next=N;label=L';\nneedle: lengths=N;depths=N;repeats=N too; tasks: metric=nll, how likely the "
     "reference is"},
    {"--limit", "N", CLI_U32, offsetof(cli_options, sweep.limit), 1, 1e6,
     "samples a task: a seeded subset, stratified (all; kld: 8 chunks)"},
    {"-s,--seed", "N", CLI_I64, offsetof(cli_options, seed), 0, 9e15, "of the subset and the intervals (1)"},
    {"--agnostic", NULL, CLI_FLAG, offsetof(cli_options, sweep.agnostic), 0, 0,
     "contexts are compressed before the question is seen"},
    {"--floor", "X", CLI_F32, offsetof(cli_options, sweep.floor), 0.01, 1,
     "non-inferiority: the ratio to full that its lower bound must reach (0.97)"},
    {"--by-stratum", NULL, CLI_FLAG, offsetof(cli_options, sweep.by_stratum), 0, 0,
     "the ratio of every stratum of each task too"},
    {"--out", "FOLDER", CLI_STR, offsetof(cli_options, sweep.out), 0, 0,
     "keeps every sample there; run again, it goes on where it was stopped"},
    {"--report", NULL, CLI_FLAG, offsetof(cli_options, sweep.report), 0, 0,
     "prints what --out FOLDER holds; runs nothing"},
    {"-o,--output", "FORM", CLI_STR, offsetof(cli_options, output), 0, 0, "md, json or csv (md)"},
    {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model, opts, kv_cli_opts_precise, kv_cli_opts_output, NULL};

const cli_command kv_cli_sweep = {
    "sweep",
    "-m MODEL --task NAME=FILE... [--method POLICY]... [--share LIST] [--out FOLDER]",
    "Measures methods over byte shares and tasks, and recommends a policy for each share.",
    groups,
    "Every point (a method at a share) answers the same samples; a prompt is read once for as many points as the\n"
    "memory holds (--kv-mem, default half of the machine's). ratio: a point's score over full's; for kld exp(-KLD), "
    "for\n"
    "repeat the ratio of perplexities. Intervals: 95 %, paired bootstrap over samples. * is on the Pareto front.\n"
    "Below 7 % recent=32, where a method keeps more. kld: the context is compressed, then the next tokens (256) are\n"
    "read on top of it and compared with full's.\n\n"
    "Recommended at a share: of the points that keep to it, those aside that another one certainly beats in some task\n"
    "without certainly losing in any, the one with the highest mean ratio over the tasks.\n\n"
    "examples:\n"
    "  kvist sweep -m model.gguf --task kld=book.txt --task 'longeval=200_lines.jsonl;ctx=2048' --limit 20 --out "
    "sweep\n"
    "  kvist sweep --report --out sweep --floor 0.95\n",
    0,
    sweep_command};
