/* SPDX-License-Identifier: Apache-2.0 */
/* A generated model and scripts of operations whose logits are hashed, for tests of the engine. */
#ifndef KV_TESTS_ENGINE_FIXTURE_H
#define KV_TESTS_ENGINE_FIXTURE_H

#include "support/genmodel.h"
#include "support/support.h"

#include "base/hash.h"
#include "kvist/kvist.h"

#include <unistd.h>

typedef struct fixture {
    char path[128];
    kvist_model *m;
    kvist_model_info info;
} fixture;

static inline void fixture_open(fixture *f, const gen_spec *spec) {
    kvist_error err;
    assert_int_equal(gen_temp_path(f->path, sizeof f->path), 0);
    assert_int_equal(gen_model(spec, f->path), 0);
    if (kvist_model_open(f->path, NULL, &f->m, &err)) fail_msg("%s", err.message);
    kvist_model_get_info(f->m, &f->info);
}

static inline void fixture_close(fixture *f) {
    kvist_model_close(&f->m);
    unlink(f->path);
}

/* Two layers, GQA of 3, head_dim 64 as SmolLM2's: pages of 4 KiB. */
static inline gen_spec fixture_spec(void) {
    gen_spec g = gen_spec_default();
    g.n_layers = 3;
    g.n_embd = 96;
    g.n_heads = 6;
    g.n_kv = 2;
    g.head_dim = 64;
    g.n_ff = 128;
    g.n_ctx = 2048;
    g.type = KV_TYPE_Q4_1;
    g.seed = 5;
    return g;
}

static inline kvist_engine *fixture_engine(const fixture *f, kvist_engine_params p) {
    kvist_error err;
    kvist_engine *e;
    if (!p.max_sessions) p.max_sessions = 16;
    if (kvist_engine_create(f->m, &p, &e, &err)) fail_msg("%s", err.message);
    return e;
}

static inline kvist_session *fixture_session(kvist_engine *e, const char *policy) {
    kvist_error err;
    kvist_session *s;
    if (kvist_session_create(e, policy, &s, &err)) fail_msg("%s: %s", policy ? policy : "default", err.message);
    return s;
}

static inline void fixture_ids(int32_t *ids, uint32_t n, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(test_rand(&seed) % 256);
}

static inline void must_sync(kvist_session *s, const int32_t *ids, size_t n) {
    kvist_error err;
    if (kvist_session_sync(s, ids, n, &err)) fail_msg("sync to %zu: %s", n, err.message);
}

static inline void must_decode(kvist_session *s, const int32_t *ids, size_t from, size_t to) {
    kvist_error err;
    for (size_t i = from; i < to; i++)
        if (kvist_session_decode(s, ids[i], &err)) fail_msg("decode %zu: %s", i, err.message);
}

static inline void must_truncate(kvist_session *s, size_t n) {
    kvist_error err;
    if (kvist_session_truncate(s, n, &err)) fail_msg("truncate to %zu: %s", n, err.message);
}

static inline uint64_t logits_hash(const fixture *f, const kvist_session *s) {
    const float *l = kvist_session_logits(s);
    assert_non_null(l);
    return kv_hash64(l, f->info.n_vocab * sizeof *l, 1);
}

/* Every kind of cache: uncompressed, sealed in order, evicted uniformly, over layers, over everything; with and without
 * sinks. */
static const char *const fixture_policies[] = {
    "full",
    "full,format=q8",
    "full,format=q4",
    "full,format=q2s",
    "full,format=q4/q2",
    "kivi",
    "streaming",
    "snapkv,tokens=96",
    "h2o",
    "minikv",
    "minikv,share=0.2",
    "kvcompress,rate=3",
    "kvcompress,share=0.3,format=q2s,sink=16,floor=0.5",
    "snapkv,keep=0.4,format=q3;layers=1-1:format=q4,window=8",
    "pyramidkv,tokens=90",
    "adakv,tokens=100",
    "adakv,share=0.3,format=q2s",
    "tova,tokens=70",
    "knorm",
    "keydiff,format=q4,recent=32",
    "expected",
    "expected,alloc=head,share=0.2,format=q2s,recent=4+",
    "adakv,share=0.1,format=q3,sink=16/6,recent=4+",
    "auto,share=0.1",
    "snapkv,alloc=mass,mass=0.9",
    "full,score=recon,keep=0.4,format=q4",
    "full,score=reconq,keep=0.4,format=q2s",
    "auto,share=0.2",
    "full,score=random,keep=0.3",
    "snapkv,tokens=90,score=vote2v;layers=0:score=expected;layers=2:score=knorm",

    "snapkv,tokens=96,guard=0.7,guard_max=3",
    "kvcompress,rate=3,floor=0.2,guard=0.8,guard_max=1.5",
    "kvcompress,share=0.3,format=q2s,when=always",
    "kvcompress,rate=3,sink=16,when=always",
    "minikv,keep=0.3,when=always",
    "snapkv,format=q4,when=pressure"};
enum { FIXTURE_POLICIES = sizeof fixture_policies / sizeof *fixture_policies };

#endif
