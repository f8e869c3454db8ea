/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A generated model, samples of every shape and runs over them, for tests of task runs. The samples are the test's own:
 * this stands in for the task registry.
 */
#ifndef KV_TESTS_MEASURE_TASKRUN_FIXTURE_H
#define KV_TESTS_MEASURE_TASKRUN_FIXTURE_H

#include <math.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvist/kvist.h"
#include "measure/taskrun_parts.h"
#include "support/genmodel.h"
#include "support/support.h"

enum { N_CTX = 2048, MAX_SAMPLES = 16, MAX_TEXT = 1200 };

struct kv_task_set {
    kv_sample *samples;
    size_t n;
};
size_t kv_task_count(const kv_task_set *set) { return set->n; }
const kv_sample *kv_task_at(const kv_task_set *set, size_t i) { return &set->samples[i]; }
/* Depends on every byte of the answer and on the turn. */
double kv_metric_score(const kv_sample *s, uint32_t turn, const char *answer) {
    uint32_t sum = turn + (uint32_t)strlen(s->id);
    for (; *answer; answer++) sum = sum * 31 + (unsigned char)*answer;
    return (sum % 997) / 996.0;
}

static char model_path[64];
static kvist_model *model;
static kvist_engine *engine;
static kvist_error err;
static kv_sample samples[MAX_SAMPLES];
static kv_turn turns[MAX_SAMPLES][3];
static char contexts[MAX_SAMPLES][MAX_TEXT];
static kv_task_set set = {samples, 0};
static const char *const policies[] = {"full", "full,format=q2s", "minikv,keep=0.4", "snapkv,tokens=64,recent=16"};
enum { N_POLICIES = sizeof policies / sizeof *policies };

static void make_text(char *out, size_t n, uint64_t seed) {
    static const char *const words[] = {"the ",   "red ", "kite ", "over ",    "a ",
                                        "hill, ", "so ",  "it ",   "falls.\n", "1887 "};
    size_t at = 0;
    while (at + 12 < n) at += (size_t)sprintf(out + at, "%s", words[test_rand(&seed) % 10]);
}

/* Chat and plain, one turn and three, first lines, references to read, no context, a long answer that may loop. */
static void make_set(void) {
    static const char *const references[] = {"and so the red kite falls over a hill, in 1887", "x"}, *const answers[] =
                                                                                                         {"unused"};
    static const char *const ids[] = {"chat", "plain", "line",  "three", "plain-3", "nll",  "nll-2",
                                      "none", "long",  "line2", "line3", "line4",   "empty"};
    set.n = sizeof ids / sizeof *ids;
    for (size_t i = 0; i < set.n; i++) {
        kv_sample *s = &samples[i];
        make_text(contexts[i], 300 + 60 * i, i + 1);
        *s = (kv_sample){.id = ids[i],
                         .stratum = i % 3 ? "b" : "a",
                         .context = contexts[i],
                         .turns = turns[i],
                         .n_turns = strchr(ids[i], '3') || !strcmp(ids[i], "three") ? 3 : 1,
                         .metric = strncmp(ids[i], "nll", 3) ? KV_METRIC_F1 : KV_METRIC_NLL,
                         .max_new = 24,
                         .chat = i % 2 == 0,
                         .first_line = !strncmp(ids[i], "line", 4),
                         .depth = NAN};
        for (uint32_t t = 0; t < 3; t++)
            turns[i][t] = (kv_turn){.question = t ? "And then?" : "Who fell?",
                                    .lead = i % 4 < 2 ? "It was" : "",
                                    .answers = s->metric == KV_METRIC_NLL ? references : answers,
                                    .n_answers = 1};
    }
    samples[6].turns[0].answers = references + 1; /* one token */
    samples[7].context = "";
    samples[8].max_new = 400;
    samples[12].max_new = 0;
}

static int setup(void **state) {
    (void)state;
    gen_spec spec = gen_spec_default();
    make_set();
    kvist_engine_params p = {.n_ctx = N_CTX, .threads = 1, .max_sessions = 16, .kv_bytes = 256u << 20};
    if (gen_temp_path(model_path, sizeof model_path) || gen_model(&spec, model_path) ||
        kvist_model_open(model_path, NULL, &model, &err) || kvist_engine_create(model, &p, &engine, &err))
        return -1;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return unlink(model_path);
}

static kv_task_results *run(const char *const *pol, uint32_t n, bool agnostic, const char *path) {
    kv_taskrun_params p = {.set = &set,
                           .policies = pol,
                           .n_policies = n,
                           .n_ctx = N_CTX,
                           .agnostic = agnostic,
                           .out_path = path,
                           .run_id = "model=made up\nlimit=7"};
    kv_task_results *r;
    if (kv_taskrun(model, engine, &p, &r, &err)) fail_msg("%s", err.message);
    return r;
}

static void same_rows(const kv_task_row *a, const kv_task_row *b) {
    assert_string_equal(a->id, b->id);
    assert_string_equal(a->stratum, b->stratum);
    assert_string_equal(a->text, b->text);
    assert_true(a->score == b->score && a->share == b->share && a->mass_min == b->mass_min);
    assert_true(a->bytes_true == b->bytes_true && a->tokens == b->tokens && a->n_prompt == b->n_prompt);
    assert_true(a->ended == b->ended && a->looped == b->looped && a->share_met == b->share_met && a->turn == b->turn);
}

#endif
