/* SPDX-License-Identifier: Apache-2.0 */
/* The policy contract: presets, keys, refusals by name, overrides, and canonical text that parses back to the same
 * policy. */
#include "support/support.h"

#include "policy/policy.h"

#include <math.h>

static kv_policy parse(const char *text) {
    kv_policy p;
    kv_error err = {0};
    if (kv_policy_parse(text, &p, &err)) fail_msg("'%s': %s", text, err.message);
    return p;
}

static void refuse(const char *text, const char *part1, const char *part2) {
    kv_policy p;
    kv_error err = {0};
    assert_int_equal(kv_policy_parse(text, &p, &err), KVIST_E_POLICY);
    if (!strstr(err.message, part1) || !strstr(err.message, part2))
        fail_msg("'%s' is refused with '%s'", text, err.message);
}

#define PAIR(f) ((f) | (f) << 4)

static void presets(void **state) {
    static const struct {
        const char *name;
        uint32_t score, alloc, kind;
        double budget, local;
        uint32_t format, sink, recent, window, pool;
        double delta, floor;
    } rows[] = {
        {"full", KV_SCORE_POSITION, KV_ALLOC_UNIFORM, KV_BUDGET_ALL, 0, 0, KV_F16, 16, 64, 32, 1, 7, .5},
        {"auto", KV_SCORE_RECONQ, KV_ALLOC_GLOBAL, KV_BUDGET_SHARE, .14, 0, KV_Q4, 16, 4, 32, 1, 7, .5},
        {"streaming", KV_SCORE_POSITION, KV_ALLOC_UNIFORM, KV_BUDGET_KEEP, .25, 0, KV_F16, 4, 64, 32, 1, 7, .5},
        {"kivi", KV_SCORE_POSITION, KV_ALLOC_UNIFORM, KV_BUDGET_ALL, 0, 0, KV_KIVI2, 0, 128, 32, 1, 7, .5},
        {"kivi4", KV_SCORE_POSITION, KV_ALLOC_UNIFORM, KV_BUDGET_ALL, 0, 0, KV_KIVI4, 0, 128, 32, 1, 7, .5},
        {"snapkv", KV_SCORE_VOTE, KV_ALLOC_UNIFORM, KV_BUDGET_TOKENS, 1024, 0, KV_F16, 0, 32, 32, 7, 7, .5},
        {"pyramidkv", KV_SCORE_VOTE, KV_ALLOC_PYRAMID, KV_BUDGET_TOKENS, 2048, 0, KV_F16, 0, 8, 8, 7, 20, .5},
        {"adakv", KV_SCORE_VOTE, KV_ALLOC_HEAD, KV_BUDGET_TOKENS, 1024, 0, KV_F16, 0, 32, 32, 7, 7, .2},
        {"h2o", KV_SCORE_ATTN, KV_ALLOC_UNIFORM, KV_BUDGET_KEEP, .2, .1, KV_F16, 0, 0, 32, 1, 7, .5},
        {"minikv", KV_SCORE_ATTN, KV_ALLOC_PYRAMID, KV_BUDGET_KEEP, .5, .25, KV_MINIKV2, 0, 0, 32, 1, 7, .5},
        {"kvcompress", KV_SCORE_VOTE2, KV_ALLOC_GLOBAL, KV_BUDGET_RATE, 8, 0, KV_F16, 0, 32, 32, 7, 7, 0},
        {"tova", KV_SCORE_TOVA, KV_ALLOC_UNIFORM, KV_BUDGET_TOKENS, 512, 0, KV_F16, 0, 1, 1, 1, 7, .5},
        {"knorm", KV_SCORE_KNORM, KV_ALLOC_UNIFORM, KV_BUDGET_KEEP, .5, 0, KV_F16, 0, 0, 32, 1, 7, .5},
        {"keydiff", KV_SCORE_KEYDIFF, KV_ALLOC_UNIFORM, KV_BUDGET_KEEP, .5, 0, KV_F16, 0, 0, 32, 1, 7, .5},
        {"expected", KV_SCORE_EXPECTED, KV_ALLOC_UNIFORM, KV_BUDGET_KEEP, .5, 0, KV_F16, 4, 0, 32, 1, 7, .5},
        {"kvzip", KV_SCORE_RECON, KV_ALLOC_GLOBAL, KV_BUDGET_KEEP, .3, 0, KV_F16, 4, 0, 32, 1, 7, 0},
    };
    char list[300] = "";
    for (uint32_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kv_policy p = parse(rows[i].name);
        const char *description = NULL;
        assert_string_equal(kv_policy_preset_at(i, &description), rows[i].name);
        assert_non_null(description);
        bool resolved = !strcmp(rows[i].name, "auto");
        assert_string_equal(p.preset, resolved ? "full" : rows[i].name);
        assert_int_equal(p.base.score, rows[i].score);
        assert_int_equal(p.alloc, rows[i].alloc);
        assert_int_equal(p.budget_kind, rows[i].kind);
        assert_true(p.budget == rows[i].budget && p.local == rows[i].local && p.local_of_kept == 0);
        assert_int_equal(p.base.format, PAIR(rows[i].format));
        assert_int_equal(p.base.sink, rows[i].sink);
        assert_int_equal(p.base.recent, rows[i].recent);
        assert_int_equal(p.base.window, rows[i].window);
        assert_int_equal(p.base.pool, rows[i].pool);
        assert_int_equal(p.base.stride, 1);
        assert_true(p.delta == rows[i].delta && p.floor == rows[i].floor && p.guard == 0 && p.guard_max == 2 &&
                    p.when == (!strcmp(rows[i].name, "h2o") ? KV_WHEN_ALWAYS : KV_WHEN_PREFILL)); /* h2o evicts while decoding, as its paper */
        assert_int_equal(p.base.pool_all, rows[i].score == KV_SCORE_VOTE2);
        assert_int_equal(p.base.group_after_pool, rows[i].score == KV_SCORE_VOTE2);
        assert_int_equal(kv_policy_evicts(&p), rows[i].kind != KV_BUDGET_ALL);
        char text[96];
        kv_policy_print(&p, text, sizeof text);
        assert_string_equal(text, resolved ? "full,score=reconq,format=q4,sink=16/10,recent=4+,alloc=global,share=0.14,rest=4" : rows[i].name);
        if (i) strcat(list, ", ");
        strcat(list, rows[i].name);
    }
    assert_string_equal(kv_policy_presets(), list);
    assert_null(kv_policy_preset_at(sizeof rows / sizeof *rows, NULL));
    kv_policy p;
    assert_int_equal(kv_policy_parse(NULL, &p, NULL), 0);
    assert_string_equal(p.preset, "full");
}

static void every_key(void **state) {
    kv_policy p = parse("minikv,score=vote,window=16,pool=5,stride=2,alloc=global,delta=20,floor=0.2,tokens=512,format="
                        "q4/q2,sink=8,recent=128,local=100,when=prefill,guard=0.9,"
                        "guard_max=3,rest=4");
    assert_int_equal(p.rest, 4);
    assert_int_equal(p.base.score, KV_SCORE_VOTE);
    assert_int_equal(p.base.window, 16);
    assert_int_equal(p.base.pool, 5);
    assert_int_equal(p.base.stride, 2);
    assert_int_equal(p.alloc, KV_ALLOC_GLOBAL);
    assert_true(p.delta == 20 && p.floor == .2 && p.local == 100 && p.guard == .9 && p.guard_max == 3 &&
                p.budget == 512);
    assert_int_equal(p.budget_kind, KV_BUDGET_TOKENS);
    assert_int_equal(p.base.format, KV_Q4 | KV_Q2 << 4);
    assert_int_equal(p.base.sink, 8);
    assert_int_equal(p.base.recent, 128);
    assert_int_equal(parse("kivi,format=kivi4").base.format, PAIR(KV_KIVI4));
    assert_int_equal(parse("full,format=q2s").base.format, PAIR(KV_Q2S));
    /* A score brings its own pooling, wherever it is written; an explicit width wins. */
    assert_int_equal(parse("minikv,score=vote").base.pool, 7);
    assert_int_equal(parse("snapkv,score=attn").base.pool, 1);
    assert_int_equal(parse("minikv,pool=3,score=vote").base.pool, 3);
    assert_true(parse("minikv,score=vote2").base.pool_all);
    assert_false(kv_policy_evicts(&(kv_policy){.budget_kind = KV_BUDGET_KEEP, .budget = 1}));
    p = parse("snapkv,alloc=mass,mass=0.9");
    assert_true(p.budget_kind == KV_BUDGET_MASS && p.budget == .9 && p.alloc == KV_ALLOC_MASS && kv_policy_evicts(&p));
    assert_false(kv_policy_evicts(&(kv_policy){.budget_kind = KV_BUDGET_MASS, .budget = 1}));
    assert_int_equal(parse("expected,alloc=head,share=0.1").alloc, KV_ALLOC_HEAD);
}

/* `auto` is its table's row in ordinary words: the report says what is in force. */
static void auto_is_ordinary_words(void **state) {
    static const struct {
        const char *text, *printed;
    } rows[] = {
        {"auto,share=1", "full,score=reconq,format=q8,alloc=global,share=1"},
        {"auto,share=0.6", "full,score=reconq,format=q8,alloc=global,share=0.6"},
        {"auto,share=0.599", "full,score=reconq,format=q4,alloc=global,share=0.599"},
        {"auto,share=0.29", "full,score=reconq,format=q4,alloc=global,share=0.29"},
        {"auto,share=0.2899", "full,score=reconq,format=q4,sink=16/10,recent=4+,alloc=global,share=0.2899,rest=4"},
        {"auto,share=0.11", "full,score=reconq,format=q4,sink=16/10,recent=4+,alloc=global,share=0.11,rest=4"},
        {"auto,share=0.109", "full,score=reconq,format=q3,sink=16/6,recent=4+,alloc=global,share=0.109,rest=4"},
        {"auto,share=0.08", "full,score=reconq,format=q3,sink=16/6,recent=4+,alloc=global,share=0.08,rest=4"},
        {"auto,share=0.0799", "full,score=reconq,format=q3/q2,sink=16/6,recent=4+,alloc=global,share=0.0799,rest=4"},
        {"auto,share=0.055", "full,score=reconq,format=q3/q2,sink=16/6,recent=4+,alloc=global,share=0.055,rest=4"},
        {"auto,share=0.0549", "full,score=reconq,format=q2,sink=16/6,recent=4+,alloc=global,share=0.0549,rest=4"},
        {"auto,share=0.03", "full,score=reconq,format=q2,sink=16/6,recent=4+,alloc=global,share=0.03,rest=4"},
        {"auto,share=0.0299", "full,score=reconq,format=q2s,sink=16/6,recent=4+,alloc=global,share=0.0299,rest=4"},
        {"auto,share=0.001", "full,score=reconq,format=q2s,sink=16/6,recent=4+,alloc=global,share=0.001,rest=4"},
        {"auto,share=0.07,recent=32,floor=0.25", "full,score=reconq,format=q3/q2,sink=16/6,recent=32,alloc=global,floor=0.25,share=0.07,rest=4"},
        {"auto,format=q3,score=attn", "full,score=attn,format=q3,sink=16/10,recent=4+,alloc=global,share=0.14"},
        {"auto;layers=0-1:format=q3", "full,score=reconq,format=q4,sink=16/10,recent=4+,alloc=global,share=0.14,rest=4;layers=0-1:format=q3"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kv_policy p = parse(rows[i].text);
        char text[200];
        kv_policy_print(&p, text, sizeof text);
        assert_string_equal(text, rows[i].printed);
    }
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-12 * (1 + fabs(b)); }

static void budgets_scale_local(void **state) {
    assert_true(near(parse("minikv,keep=0.3").local, .15));
    assert_true(near(parse("h2o,keep=0.1").local, .05));
    assert_true(near(parse("minikv,rate=4").local, .125));
    assert_true(parse("minikv,tokens=1001").local == 500);
    assert_true(parse("minikv,tokens=1").local == 0);
    kv_policy p = parse("minikv,share=0.14");
    assert_true(p.local == 0 && near(p.local_of_kept, .5));
    p = parse("minikv,share=0.14,local=0.1");
    assert_true(p.local == .1 && p.local_of_kept == 0);
    p = parse("minikv,local=0,share=.14");
    assert_true(p.local == 0 && p.local_of_kept == 0);
    assert_true(parse("snapkv,share=0.2").local_of_kept == 0);
    assert_true(parse("minikv,keep=0.5").local == .25);
    assert_true(parse("minikv,alloc=mass,mass=0.5").local == .25);
}

static void layers(void **state) {
    kv_policy p = parse("minikv;layers=0:format=f16;layers=2-4:score=vote,window=8;layers=4-:format=q8,pool=3");
    assert_int_equal(p.n_overrides, 3);
    kv_layer_policy l;
    kv_policy_layer(&p, 0, &l);
    assert_int_equal(l.format, PAIR(KV_F16));
    assert_int_equal(l.score, KV_SCORE_ATTN);
    kv_policy_layer(&p, 1, &l);
    assert_memory_equal(&l, &p.base, sizeof l);
    kv_policy_layer(&p, 3, &l);
    assert_int_equal(l.score, KV_SCORE_VOTE);
    assert_int_equal(l.window, 8);
    assert_int_equal(l.pool, 7);
    assert_int_equal(l.format, PAIR(KV_MINIKV2));
    kv_policy_layer(&p, 4, &l);
    assert_int_equal(l.score, KV_SCORE_VOTE);
    assert_int_equal(l.pool, 3);
    assert_int_equal(l.format, PAIR(KV_Q8));
    kv_policy_layer(&p, 5, &l);
    assert_int_equal(l.score, KV_SCORE_ATTN);
    kv_policy_layer(&p, 70000, &l);
    assert_int_equal(l.format, PAIR(KV_Q8));
    kv_policy_layer(&p, UINT32_MAX, &l);
    assert_int_equal(l.pool, 3);
}

static void refusals(void **state) {
    refuse("", "preset", "minikv");
    refuse("nonsense", "'nonsense'", "not known");
    refuse("share=0.14", "does not begin with a preset", "share=0.14");
    refuse("minikv-uniform", "'minikv-uniform'", "pyramidkv, adakv");
    refuse("auto,keep=0.2", "'keep'", "share=");
    refuse("auto,share=0", "'share'", "above 0");
    refuse("auto,share=x", "'share'", "not a number");
    refuse("auto,share=0.2,share=0.3", "'share'", "twice");
    refuse("snapkv,mass=0.9", "'mass'", "alloc=uniform");
    refuse("snapkv,alloc=mass,mass=0", "'mass'", "above 0");
    refuse("snapkv,alloc=mass,mass=0.5,keep=0.5", "'mass' and 'keep'", "both budgets");
    refuse("snapkv,alloc=mass,keep=0.5,mass=0.5", "'keep' and 'mass'", "both budgets");
    refuse("knorm,alloc=mass", "'mass'", "not knorm");
    refuse("snapkv,alloc=mass;layers=3:score=random", "attention mass", "not random");
    refuse("full,alloc=mass,score=position,keep=0.5", "attn, vote", "not position");
    refuse("Minikv", "'Minikv'", "minikv");
    refuse("minikv,", "''", "key=value");
    refuse("minikv,keep", "'keep'", "key=value");
    refuse("minikv,keep=", "'keep'", "no value");
    refuse("minikv,=3", "''", "not known");
    refuse("minikv,kep=0.3", "'kep'", "not known");
    refuse("minikv,sink=3,sink=4", "'sink'", "twice");
    refuse("minikv,keep=0.3,keep=0.3", "'keep'", "twice");
    refuse("minikv,keep=0.3,tokens=100", "'keep' and 'tokens'", "both budgets");
    refuse("minikv,share=0.3,rate=2", "'share' and 'rate'", "both budgets");
    refuse("minikv,keep=0.3,share=0.1", "'keep' and 'share'", "both budgets");
    refuse("minikv,keep=0", "'keep'", "'0'");
    refuse("minikv,keep=1.01", "'keep'", "'1.01'");
    refuse("minikv,keep=-0.5", "'keep'", "above 0");
    refuse("minikv,keep=nan", "'keep'", "'nan'");
    refuse("minikv,keep=inf", "'keep'", "not a number");
    refuse("minikv,keep=0.3x", "'keep'", "'0.3x'");
    refuse("minikv,keep=0x1", "'keep'", "'0x1'");
    refuse("minikv,keep= 0.3", "'keep'", "' 0.3'");
    refuse("minikv,keep=.", "'keep'", "not a number");
    refuse("minikv,keep=1.2.3", "'keep'", "not a number");
    refuse("minikv,keep=-", "'keep'", "not a number");
    refuse("minikv,tokens=10.5", "'tokens'", "whole");
    refuse("minikv,tokens=0", "'tokens'", "'0'");
    refuse("minikv,tokens=99999999999", "'tokens'", "at most");
    refuse("minikv,rate=0.9", "'rate'", "at least 1");
    refuse("minikv,share=2", "'share'", "'2'");
    refuse("minikv,sink=-1", "'sink'", "'-1'");
    refuse("minikv,recent=1.5", "'recent'", "whole");
    refuse("minikv,recent=+", "'recent'", "");
    refuse("minikv,recent=4++", "'recent'", "");
    refuse("snapkv,recent=4+,when=always", "'recent'", "always");
    refuse("snapkv,sink=16/,share=0.1", "'sink'", "not a number");
    refuse("snapkv,sink=/6,share=0.1", "'sink'", "not a number");
    refuse("snapkv,sink=16/0,share=0.1", "'sink'", "'0'");
    refuse("snapkv,sink=16/6/2,share=0.1", "'sink'", "'6/2'");
    refuse("snapkv,sink=16/6,share=0.1,when=always", "'sink'", "always");
    refuse("minikv,rest=-1", "'rest'", "'-1'");
    refuse("full,score=recon,keep=0.5,sink=1,rest=1", "'rest'", "sink=1 ");
    refuse("full,score=recon,keep=0.5,sink=17,rest=1", "'rest'", "sink=17 ");
    refuse("snapkv,rest=1", "'rest'", "sink=0 ");
    refuse("snapkv,sink=16,rest=1,when=always", "'rest'", "always");
    refuse("minikv,window=0", "'window'", "'0'");
    refuse("minikv,pool=4", "'pool'", "even");
    refuse("minikv,pool=0", "'pool'", "'0'");
    refuse("minikv,stride=0", "'stride'", "'0'");
    refuse("minikv,delta=0.5", "'delta'", "'0.5'");
    refuse("minikv,floor=1.5", "'floor'", "'1.5'");
    refuse("minikv,local=1.5", "'local'", "'1.5'");
    refuse("minikv,keep=0.2,local=0.3", "'local'", "0.3");
    refuse("minikv,tokens=100,local=101", "'local'", "101");
    refuse("minikv,format=q9", "'format'", "q9");
    refuse("minikv,score=foo", "'foo'", "attn, vote, vote2, votev, vote2v, tova, knorm, keydiff, expected, random");
    refuse("minikv,score=foo", "'foo'", "not known");
    refuse("minikv,alloc=foo", "'foo'", "not known (built: uniform, pyramid, global, head, mass)");
    refuse("full,when=always", "'when'", "budget");
    refuse("full,when=pressure", "'when'", "score=");
    refuse("kivi,when=pressure", "'when'", "'kivi'");
    refuse("h2o;layers=0-1:format=q4", "'when'", "layers of both kinds");
    refuse("minikv,when=always;layers=3-:format=f16", "'when'", "layers of both kinds");
    refuse("minikv,when=never", "'never'", "prefill, always, pressure");
    refuse("adakv,when=always", "'when'", "not 'head'");
    refuse("adakv,when=pressure", "'when'", "not 'head'");
    refuse("knorm,when=always", "'when'", "knorm");
    refuse("h2o,guard=0.5", "'when'", "guard");
    refuse("minikv,guard=2", "'guard'", "at most 1");
    refuse("minikv,guard_max=0.5", "'guard_max'", "'0.5'");
    refuse("full,share=0.14", "nothing is evicted by 'full'", "score=");
    refuse("kivi,keep=0.5", "nothing is evicted by 'kivi'", "score=");
    refuse("full,alloc=global,share=0.14", "nothing is evicted by 'full'", "score=");
    refuse("minikv;", "layers=", "''");
    refuse("minikv;format=q4", "layers=", "'format=q4'");
    refuse("minikv;layers=0-3", "no ':'", "layers=0-3");
    refuse("minikv;layers=:format=q4", "''", "A-B");
    refuse("minikv;layers=3-1:format=q4", "'3-1'", "end before");
    refuse("minikv;layers=a-b:format=q4", "'a-b'", "A-B");
    refuse("minikv;layers=-3:format=q4", "'-3'", "A-B");
    refuse("minikv;layers=1-2-3:format=q4", "'1-2-3'", "A-B");
    refuse("minikv;layers=1.5:format=q4", "'1.5'", "A-B");
    refuse("minikv;layers=0:", "''", "key=value");
    refuse("minikv;layers=0:sink=4", "'sink'", "same for all layers");
    refuse("minikv;layers=0:keep=.4", "'keep'", "same for all layers");
    refuse("minikv;layers=0:pool=2", "'pool'", "even");
    refuse("minikv;layers=0:score=foo", "'foo'", "not known");
    refuse("minikv;layers=0:mass=0.5", "'mass'", "same for all layers");
    char many[400] = "minikv";
    for (int i = 0; i <= KV_POLICY_MAX_OVERRIDES; i++) strcat(many, ";layers=1:format=q4");
    refuse(many, "more than", "layers=");
    char *longer = malloc(100001);
    memset(longer, 'x', 100000);
    longer[100000] = 0;
    refuse(longer, "xxx", "not known");
    free(longer);
    assert_int_equal(parse("full,score=vote2,share=0.14").base.score, KV_SCORE_VOTE2);
    assert_int_equal(parse("full,score=position,keep=0.5").budget_kind, KV_BUDGET_KEEP);
    kv_policy p;
    assert_int_equal(kv_policy_parse("bad", &p, NULL), KVIST_E_POLICY);
}

static bool same_layer(const kv_layer_policy *a, const kv_layer_policy *b) {
    return a->format == b->format && a->score == b->score && a->window == b->window && a->pool == b->pool &&
           a->stride == b->stride && a->sink == b->sink && a->sink_room == b->sink_room &&
           a->recent == b->recent && a->recent_page == b->recent_page && a->pool_all == b->pool_all &&
           a->group_after_pool == b->group_after_pool;
}

static bool same(const kv_policy *a, const kv_policy *b) {
    if (a->preset != b->preset || a->alloc != b->alloc || a->budget_kind != b->budget_kind || a->budget != b->budget ||
        a->local != b->local || a->local_of_kept != b->local_of_kept || a->delta != b->delta || a->floor != b->floor ||
        a->when != b->when || a->guard != b->guard || a->guard_max != b->guard_max || !same_layer(&a->base, &b->base) ||
        a->n_overrides != b->n_overrides)
        return false;
    for (uint32_t i = 0; i < a->n_overrides; i++)
        if (a->over[i].first != b->over[i].first || a->over[i].last != b->over[i].last ||
            a->over[i].set != b->over[i].set || !same_layer(&a->over[i].v, &b->over[i].v))
            return false;
    return true;
}

static uint64_t seed = 41;
static uint32_t pick(uint32_t n) { return (uint32_t)(test_rand(&seed) % n); }

static void random_layer_keys(char *at, char mark) {
    static const char *const scores[] = {"attn",  "vote",    "vote2",    "position", "tova",  "knorm",
                                         "votev", "keydiff", "expected", "random",   "vote2v", "recon", "reconq"},
                      *const formats[] = {"f16", "q8", "q4", "q3/q2", "q2s", "kivi4", "minikv2"};
    if (!pick(2)) at += sprintf(at, "%cscore=%s", mark, scores[pick(13)]), mark = ',';
    if (!pick(2)) at += sprintf(at, "%cpool=%u", mark, 1 + 2 * pick(8)), mark = ',';
    if (!pick(2)) at += sprintf(at, "%cwindow=%u", mark, 1 + pick(200)), mark = ',';
    if (!pick(2)) at += sprintf(at, "%cstride=%u", mark, 1 + pick(5)), mark = ',';
    (void)sprintf(at, "%cformat=%s", mark, formats[pick(7)]);
}

static void random_policies_print_and_parse(void **state) {
    uint32_t accepted = 0;
    for (int round = 0; round < 20000; round++) {
        char text[600], *at = text;
        at += sprintf(at, "%s", kv_policy_preset_at(pick(16), NULL));
        if (!pick(3)) random_layer_keys(at, ','), at += strlen(at);
        static const char *const allocs[] = {"uniform", "pyramid", "global", "head", "mass"};
        if (!pick(4)) at += sprintf(at, ",alloc=%s", allocs[pick(5)]);
        if (!pick(4)) at += sprintf(at, ",delta=%u.%u", 1 + pick(30), pick(1000));
        if (!pick(4)) at += sprintf(at, ",floor=0.%u", pick(100000));
        switch (pick(7)) {
        case 5:
            at += sprintf(at, ",mass=0.%u", 1 + pick(1000000));
            break;
        case 0:
            at += sprintf(at, ",keep=0.%u", 1 + pick(1000000));
            break;
        case 1:
            at += sprintf(at, ",tokens=%u", 1 + pick(100000));
            break;
        case 2:
            at += sprintf(at, ",rate=%u.%02u", 1 + pick(60), pick(100));
            break;
        case 3:
            at += sprintf(at, ",share=0.%09u", 1 + pick(1000000));
            break;
        default:
            break;
        }
        if (!pick(5)) at += sprintf(at, pick(2) ? ",local=0.0%u" : ",local=%u", pick(300));
        if (!pick(4)) at += sprintf(at, ",sink=%u", pick(40));
        if (!pick(4)) at += sprintf(at, ",recent=%u%s", pick(400), pick(3) ? "" : "+");
        if (round % 5 == 0) at += sprintf(at, ",guard=0.%u", (unsigned)round % 97);
        if (!pick(5)) at += sprintf(at, ",when=%s", pick(2) ? "always" : pick(2) ? "pressure" : "prefill");
        if (!pick(6)) at += sprintf(at, ",guard_max=%u.5", 1 + pick(9));
        for (uint32_t n = pick(4) ? 0 : 1 + pick(3); n; n--) {
            uint32_t a = pick(40);
            at += pick(2)   ? sprintf(at, ";layers=%u-%u", a, a + pick(9))
                  : pick(2) ? sprintf(at, ";layers=%u-", a)
                            : sprintf(at, ";layers=%u", a);
            random_layer_keys(at, ':');
            at += strlen(at);
        }
        kv_policy p, q;
        kv_error err = {0};
        if (kv_policy_parse(text, &p, &err)) continue; /* a local above the budget, a budget without a score */
        accepted++;
        char printed[600], again[600];
        kv_policy_print(&p, printed, sizeof printed);
        if (kv_policy_parse(printed, &q, &err)) fail_msg("'%s' prints as '%s': %s", text, printed, err.message);
        if (!same(&p, &q)) fail_msg("'%s' prints as '%s', which is another policy", text, printed);
        kv_policy_print(&q, again, sizeof again);
        assert_string_equal(printed, again);
        assert_true(strlen(printed) <= strlen(text) + 90);
        char small[20];
        memset(small, 7, sizeof small);
        kv_policy_print(&p, small, 10);
        assert_true(strlen(small) <= 9 && small[10] == 7);
        assert_memory_equal(small, printed, strlen(small));
    }
    assert_true(accepted > 8000);
}

/* What a policy does after the prompt, by the words of docs/policies.md. */
static void while_decoding(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint8_t when, rule;
        bool by_token;
        uint32_t local; /* of 1,000 tokens */
        uint32_t recent_of_prompt, local_of_prompt;
    } rows[] = {
        {"h2o", KV_WHEN_ALWAYS, KV_GOES_BY_SUM, true, 100, 100, 0},
        {"h2o,recent=150", KV_WHEN_ALWAYS, KV_GOES_BY_SUM, true, 100, 150, 0},
        {"h2o,tokens=300", KV_WHEN_ALWAYS, KV_GOES_BY_SUM, true, 150, 150, 0},
        {"h2o,share=0.4", KV_WHEN_ALWAYS, KV_GOES_BY_SUM, true, 200, 200, 0},
        {"h2o,when=prefill", KV_WHEN_PREFILL, KV_GOES_BY_SUM, false, 100, 0, 100},
        {"h2o,format=q4", KV_WHEN_ALWAYS, KV_GOES_BY_SUM, false, 100, 0, 100},
        {"snapkv,when=always", KV_WHEN_ALWAYS, KV_GOES_BY_SQUARES, true, 0, 32, 0},
        {"kvcompress,format=q2s,when=always", KV_WHEN_ALWAYS, KV_GOES_BY_SQUARES, false, 0, 32, 0},
        {"streaming,when=always", KV_WHEN_ALWAYS, KV_GOES_BY_POSITION, true, 0, 64, 0},
        {"full,score=attn,when=pressure", KV_WHEN_PRESSURE, KV_GOES_BY_SUM, false, 0, 64, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kv_policy p = parse(rows[i].text), prompt;
        assert_int_equal(p.when, rows[i].when);
        assert_int_equal(kv_score_goes_on(p.base.score), rows[i].rule);
        assert_true(kv_policy_by_token(&p) == rows[i].by_token);
        assert_int_equal(kv_policy_local(&p, 1000), rows[i].local);
        kv_policy_for_prompt(&p, 1000, &prompt);
        assert_int_equal(prompt.base.recent, rows[i].recent_of_prompt);
        assert_int_equal(kv_policy_local(&prompt, 1000), rows[i].local_of_prompt);
    }
    char text[200];
    kv_policy p = parse("h2o,when=prefill");
    kv_policy_print(&p, text, sizeof text);
    assert_string_equal(text, "h2o,when=prefill");
    p = parse("full,score=position,when=pressure");
    kv_policy_print(&p, text, sizeof text);
    assert_string_equal(text, "full,score=position,when=pressure");
    p = parse("h2o,when=always");
    kv_policy_print(&p, text, sizeof text);
    assert_string_equal(text, "h2o");
}

/* `recent=N+`: as many as the f16 pages of N hold; never a page more, never fewer than N. Without the sign, or where
 * nothing is evicted and pages lie at fixed places: N. */
static void recent_to_its_page(void **state) {
    (void)state;
    for (uint32_t n = 1; n < 70; n++)
        for (uint32_t want = 0; want < 40; want++) {
            char text[64];
            snprintf(text, sizeof text, "snapkv,recent=%u", want);
            kv_policy p = parse(text), at;
            kv_policy_for_prompt(&p, n, &at);
            assert_int_equal(at.base.recent, want);
            snprintf(text, sizeof text, "full,format=q4,recent=%u+", want);
            p = parse(text);
            kv_policy_for_prompt(&p, n, &at);
            assert_int_equal(at.base.recent, want);
            snprintf(text, sizeof text, "snapkv,recent=%u+", want);
            p = parse(text);
            kv_policy_for_prompt(&p, n, &at);
            assert_true(at.base.recent >= want);
            if (n <= want) continue;
            assert_int_equal((n - at.base.recent) % 16, 0); /* it begins where a page does ... */
            assert_int_equal((n - at.base.recent) / 16, (n - want) / 16); /* ... the page that N begin in */
        }
}

/* `sink=N/M`: N where they are at most 1/M of the bytes that the share holds, else none. */
static void sinks_where_there_is_room(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint32_t n, sink;
    } rows[] = {{"auto,share=0.025", 2048, 0},  {"auto,share=0.025", 3839, 0},           {"auto,share=0.025", 3840, 15},
                {"auto,share=0.14", 1142, 0},   {"auto,share=0.14", 1143, 15},           {"auto,share=0.07", 2048, 15},
                {"snapkv,tokens=99,sink=16/6", 5000, 16}, {"snapkv,tokens=95,sink=16/6", 5000, 0},
                {"snapkv,keep=0.1,sink=16/6", 959, 0}, {"snapkv,keep=0.1,sink=16/6", 960, 16},
                {"snapkv,rate=4,sink=16/6", 383, 0}, {"snapkv,rate=4,sink=16/6", 384, 16},
                {"full,format=q4,sink=16/6", 20, 16}, {"snapkv,alloc=mass,mass=0.9,sink=16/6", 20, 16},
                {"auto,share=0.07,sink=0", 9000, 0}, {"auto,share=0.07,sink=16", 40, 16}, {"snapkv,share=0.5,sink=4/2", 15, 0},
                {"snapkv,share=0.5,sink=4/2", 16, 4},
                /* a rest token takes the last one's place, in prompts that are long enough */
                {"full,score=recon,keep=0.5,rest=1", 511, 16}, {"full,score=recon,keep=0.5,rest=1", 512, 15},
                {"snapkv,sink=2,rest=8", 600, 1}, {"auto,share=0.07,rest=0", 9000, 16}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kv_policy p = parse(rows[i].text), at;
        kv_policy_for_prompt(&p, rows[i].n, &at);
        assert_int_equal(at.rest, at.base.sink % 16 && p.rest && at.base.sink + 1 == p.base.sink ? p.rest : 0);
        if (at.base.sink != rows[i].sink) fail_msg("%s at %u: %u sinks", rows[i].text, rows[i].n, at.base.sink);
    }
    char text[200];
    kv_policy p = parse("snapkv,share=0.5,sink=4/2,recent=8+");
    kv_policy_print(&p, text, sizeof text);
    assert_string_equal(text, "snapkv,sink=4/2,recent=8+,share=0.5");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sinks_where_there_is_room),
        cmocka_unit_test(recent_to_its_page),
        cmocka_unit_test(presets), cmocka_unit_test(every_key), cmocka_unit_test(budgets_scale_local), cmocka_unit_test(auto_is_ordinary_words),
        cmocka_unit_test(layers),  cmocka_unit_test(refusals),  cmocka_unit_test(random_policies_print_and_parse), cmocka_unit_test(while_decoding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
