/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The standing table: what must be how fast, for SmolLM2-135M and for any other model. A ratio is to the better peer in
 * the same cell and run; a row is also met by a share of the machine's binding limit: 60 %, and 50 % for prompts and at
 * depth 0, where every unit of the machine takes part in turn.
 */
#include <string.h>

#include "cli/bench.h"

enum suite_stage { DECODE, PROMPT, SCORE, SEAL, LOAD };

#define SHARE_MAX 0.16 /* of f16, in true bytes: what counts as compressed */
/* Candidates for a compressed cache; those above SHARE_MAX do not count. */
#define COMPRESSED "minikv kvcompress full,format=q2s"

/* other: the rows of other models. policies: candidates, separated by blanks. */
static const struct suite_row {
    const char *work;
    bool other;
    enum suite_stage stage;
    uint32_t depth, n, batch;
    const char *policies;
    bench_against against;
    bench_target target;
} rows[] = {
    {"decode at 0", false, DECODE, 0, 64, 1, "full", AGAINST_F16, {.ratio = 1.6, .limit = .5}},
    {"decode at 2,048, f16", false, DECODE, 2048, 48, 1, "full", AGAINST_F16, {.ratio = 2, .limit = .6}},
    {"decode at 4,096, f16", false, DECODE, 4096, 48, 1, "full", AGAINST_F16, {.ratio = 2.5, .limit = .6}},
    {"decode at 8,192, f16", false, DECODE, 8192, 48, 1, "full", AGAINST_F16, {.ratio = 3.5, .limit = .6}},
    {"decode at 8,192, compressed, over quantized",
     false,
     DECODE,
     8192,
     48,
     1,
     COMPRESSED,
     AGAINST_QUANTIZED,
     {.ratio = 5, .limit = .6, .share_max = SHARE_MAX}},
    {"decode at 8,192, compressed, over f16",
     false,
     DECODE,
     8192,
     48,
     1,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 8, .limit = .6, .share_max = SHARE_MAX}},
    {"prefill 512", false, PROMPT, 0, 512, 1, "full", AGAINST_F16, {.ratio = 1.6, .limit = .5}},
    {"prefill 4,096", false, PROMPT, 0, 4096, 1, "full", AGAINST_F16, {.ratio = 2.5, .limit = .5}},
    {"prefill 512 at 8,192, f16", false, PROMPT, 8192, 512, 1, "full", AGAINST_F16, {.ratio = 2.5, .limit = .5}},
    {"prefill 512 at 8,192, compressed",
     false,
     PROMPT,
     8192,
     512,
     1,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 3, .limit = .5, .share_max = SHARE_MAX}},
    {"8 sequences of 2,048, f16", false, DECODE, 2048, 32, 8, "full", AGAINST_F16, {.ratio = 2.5, .limit = .6}},
    {"32 sequences of 2,048, f16", false, DECODE, 2048, 32, 32, "full", AGAINST_F16, {.ratio = 3.5, .limit = .6}},
    {"8 sequences of 2,048, compressed",
     false,
     DECODE,
     2048,
     32,
     8,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 8, .limit = .6, .share_max = SHARE_MAX}},
    {"32 sequences of 2,048, compressed",
     false,
     DECODE,
     2048,
     32,
     32,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 8, .limit = .6, .share_max = SHARE_MAX}},
    {"scoring 4,096, vote", false, SCORE, 0, 4096, 1, "snapkv", AGAINST_NONE, {.percent = 10}},
    {"scoring 4,096, vote2", false, SCORE, 0, 4096, 1, "kvcompress", AGAINST_NONE, {.percent = 10}},
    {"scoring 4,096, attn", false, SCORE, 0, 4096, 1, "minikv", AGAINST_NONE, {.percent = 35}},
    {"scoring 4,096, attn, stride 8", false, SCORE, 0, 4096, 1, "minikv,stride=8", AGAINST_NONE, {.percent = 12}},
    {"selecting and sealing 8,192, minikv", false, SEAL, 0, 8192, 1, "minikv", AGAINST_NONE, {.percent = 5}},
    {"selecting and sealing 8,192, q2s", false, SEAL, 0, 8192, 1, "full,format=q2s", AGAINST_NONE, {.percent = 5}},
    {"load to first token", false, LOAD, 0, 1, 1, "full", AGAINST_F16, {.ratio = 1}},

    {"decode at 0", true, DECODE, 0, 32, 1, "full", AGAINST_F16, {.ratio = 1}},
    {"decode at 8,192, f16", true, DECODE, 8192, 24, 1, "full", AGAINST_F16, {.ratio = 1}},
    {"decode at 8,192, compressed",
     true,
     DECODE,
     8192,
     24,
     1,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 1, .share_max = SHARE_MAX}},
    {"decode at 30,000, f16", true, DECODE, 30000, 16, 1, "full", AGAINST_F16, {.ratio = 1}},
    {"decode at 30,000, compressed",
     true,
     DECODE,
     30000,
     16,
     1,
     COMPRESSED,
     AGAINST_F16,
     {.ratio = 1, .share_max = SHARE_MAX}},
    {"prefill 512", true, PROMPT, 0, 512, 1, "full", AGAINST_F16, {.ratio = 1}},
    {"prefill 4,096", true, PROMPT, 0, 4096, 1, "full", AGAINST_F16, {.ratio = 1}},
    {"load to first token", true, LOAD, 0, 1, 1, "full", AGAINST_F16, {.ratio = 1}},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

/* The i-th candidate of a row, in buf; NULL past the last. */
static const char *candidate(const char *list, uint32_t i, char *buf, size_t cap) {
    while (i && list) {
        list = strchr(list, ' ');
        list = list ? list + 1 : NULL;
        i--;
    }
    if (!list) return NULL;
    snprintf(buf, cap, "%.*s", (int)strcspn(list, " "), list);
    return buf;
}

/* Policies as cells hold them: pointers that live as long as the program. */
static const char *interned(const char *policy) {
    static const char *const all[] = {"full", "minikv", "kvcompress", "full,format=q2s", "snapkv", "minikv,stride=8"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i], policy)) return all[i];
    return "full";
}

static bool is_smollm2_135m(const kvist_model_info *m) {
    return m->n_layers == 30 && m->n_embd == 576 && m->n_heads == 9 && m->n_kv_heads == 3 && m->n_ff == 1536;
}

static void add_candidates(bench *b, const struct suite_row *r, uint32_t group) {
    char policy[64];
    for (uint32_t i = 0; candidate(r->policies, i, policy, sizeof policy); i++) {
        bench_cell cell = {.c = {.policy = interned(policy), .depth = r->depth, .n = r->n, .batch = r->batch}};
        cell.c.stage = r->stage == PROMPT  ? KV_BENCH_PROMPT
                       : r->stage == SCORE ? KV_BENCH_SCORE
                       : r->stage == SEAL  ? KV_BENCH_SEAL
                                           : KV_BENCH_DECODE;
        cell.load = r->stage == LOAD;
        bench_row *row = kv_bench_row_add(b, &cell, r->against);
        if (!row) return;
        row->work = r->work;
        row->group = group;
        row->target = r->target;
    }
}

void kv_bench_suite(bench *b, const char *filter) {
    bool other = !is_smollm2_135m(&b->e.info);
    for (uint32_t i = 0; i < N_ROWS; i++) {
        if (rows[i].other != other || (filter && !strstr(rows[i].work, filter))) continue;
        if (other && rows[i].depth + rows[i].n >= b->e.info.n_ctx_train) { /* SmolLM2 is measured beyond its 8,192 */
            kv_cli_warn(b->o, "%s: beyond the %u tokens of this model's context: left out", rows[i].work,
                        b->e.info.n_ctx_train);
            continue;
        }
        add_candidates(b, &rows[i], i + 1);
    }
}

void kv_bench_suite_list(const char *filter) {
    static const char *const against[] = {"", "f16", "quantized", "any"};
    out_table t;
    kv_out_table_init(&t);
    kv_out_column(&t, "work", true);
    kv_out_column(&t, "model", true);
    kv_out_column(&t, "policies", true);
    kv_out_column(&t, "peers' caches", true);
    kv_out_column(&t, "target", true);
    kv_out_column(&t, "or of limit", false);
    for (uint32_t i = 0; i < N_ROWS; i++) {
        const struct suite_row *r = &rows[i];
        if (filter && !strstr(r->work, filter)) continue;
        kv_out_cell(&t, "%s", r->work);
        kv_out_cell(&t, "%s", r->other ? "any other" : "SmolLM2-135M");
        kv_out_cell(&t, "%s", r->policies);
        kv_out_cell(&t, "%s", against[r->against]);
        if (r->target.percent > 0)
            kv_out_cell(&t, "<= %.0f %%", r->target.percent);
        else
            kv_out_cell(&t, ">= %.1fx", r->target.ratio);
        if (r->target.limit > 0)
            kv_out_cell(&t, "%.0f %%", 100 * r->target.limit);
        else
            kv_out_cell(&t, "-");
    }
    kv_out_table_print(&t, stdout);
    kv_out_table_free(&t);
}
