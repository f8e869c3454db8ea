/* SPDX-License-Identifier: Apache-2.0 */
/* The machine's rates are sane at every level; the work of a model equals counts written out here from its shapes. */
#include <math.h>
#include <unistd.h>

#include "backend/cpu/probe.h"
#include "base/alloc.h"
#include "base/cpu.h"
#include "measure/machine.h"
#include "support/genmodel.h"
#include "support/support.h"

/* The reads of a level see every byte: a changed byte anywhere changes what is returned (xor or sum of words). */
static void reads_see_all(void **state) {
    (void)state;
    enum { BYTES = 8 * KV_PROBE_STEP };
    uint8_t *data = kv_malloc64(BYTES);
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        const kv_probe *p = kv_cpu_probe(level);
        for (size_t at = 0; at < BYTES; at += 8) {
            memset(data, 0, BYTES);
            uint64_t before = p->read(data, BYTES);
            data[at] = 1;
            uint64_t after = p->read(data, BYTES);
            assert_int_not_equal(before, after);
        }
    }
    kv_free64(data);
}

/* Loops do their rounds: twice as many take about twice the multiply-adds, which shows in the sums they return. */
static void loops_return_their_sums(void **state) {
    (void)state;
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        const kv_probe *p = kv_cpu_probe(level);
        double one = p->int8.run(1), eight = p->int8.run(8);
        assert_true(one != 0 && isfinite(one));
        assert_float_equal(eight, 8 * one, 1e-9);
        assert_true(isfinite(p->f32.run(4096)) && p->f32.run(4096) > 0);
        assert_true(p->int8.macs >= 1 && p->f32.macs >= 1);
    }
    kv_probe_loop bf16 = kv_cpu_probe_bf16();
    assert_int_equal(bf16.run != NULL, kv_cpu_has_bf16());
    /* a.a = 2 x 0.25 x 0.25 a lane and round, 16 lanes, chains begin at 0, 1, 2, ... */
    if (bf16.run) assert_float_equal(bf16.run(3) - bf16.run(1), 2 * bf16.macs * 0.0625, 1e-3);
}

static void rates(void **state) {
    (void)state;
    kv_machine m[KV_CPU_LEVELS];
    for (int level = 0; level <= kv_cpu_detect(); level++) {
        kv_machine_probe(1, level, &m[level]);
        const kv_machine *x = &m[level];
        assert_int_equal(x->threads, 1);
        assert_true(isfinite(x->bandwidth) && x->bandwidth > 1e8 && x->bandwidth < 1e13);
        assert_true(x->bandwidth_best >= x->bandwidth);
        assert_true(x->int8 > 1e7 && x->int8 < 1e14);
        assert_true(x->f32 > 1e7 && x->f32 < 1e13);
        assert_int_equal(x->bf16 > 0, level == KV_CPU_AVX512 && kv_cpu_has_bf16());
        /* A vector holds four times as many 8-bit values; a busy machine may slow either while it is measured. */
        if (level) assert_true(x->int8 > x->f32 / 4);
    }
    if (kv_cpu_detect()) assert_true(m[kv_cpu_detect()].int8 > 2 * m[0].int8);
}

/* SmolLM2-135M's shapes. */
static const kvist_model_info smollm2 = {.n_layers = 30,
                                         .n_embd = 576,
                                         .n_heads = 9,
                                         .n_kv_heads = 3,
                                         .head_dim_k = 64,
                                         .head_dim_v = 64,
                                         .n_ff = 1536,
                                         .n_vocab = 49152,
                                         .n_params = 134515008,
                                         .bytes_weights = 100000000};

static void work_of_a_model(void **state) {
    (void)state;
    kv_shape s = kv_shape_of(&smollm2, 0), t = kv_shape_of(&smollm2, 12345678);
    double layers = 30.0 * (576 * 576 * 2 + 2 * 576 * 192 + 3 * 576 * 1536), head = 49152.0 * 576;
    assert_float_equal(s.layer_weights, layers, 0);
    assert_float_equal(s.head_weights, head, 0);
    assert_float_equal(s.bytes_step, 1e8, 0);
    assert_float_equal(t.bytes_step, 1e8 - 12345678, 0);
    kv_work w = kv_work_decode(&s, 4, 1000, 5e6, false);
    assert_float_equal(w.bytes, 1e8 + 4 * 5e6, 0);
    assert_float_equal(w.int8, 4 * (layers + head), 0);
    const double attention = 4.0 * 30 * 9 * 1000 * 128, steps = 2.0 * 4 * (layers + head) / 32; /* two a block of 32 */
    assert_float_equal(w.f32, attention + steps, 1e-3);
    kv_work c = kv_work_decode(&s, 4, 1000, 5e6, true);
    assert_float_equal(c.int8, w.int8 + attention, 0);
    assert_float_equal(c.f32, steps, 1e-3);
    /* A prompt layer by layer and row by row: row i sees the cache and rows 0 .. i. In the last layer all rows make
     * keys and values, and only the last row goes on, to the head. */
    double int16 = 0, int8 = head, kv = 2 * 576 * 192, layer = layers / 30;
    for (int l = 0; l < 30; l++)
        for (int i = 0; i < 77; i++) {
            bool whole = l < 29 || i == 76;
            int8 += whole ? layer : kv;
            int16 += whole ? 9.0 * 128 * (200 + i + 1) : 0;
        }
    w = kv_work_prompt(&s, 77, 200, 3e6, false);
    assert_float_equal(w.int16, int16, 1e-3);
    assert_float_equal(w.int8, int8, 1e-3);
    assert_float_equal(w.f32, 2 * int8 / 32, 1e-3);
    c = kv_work_prompt(&s, 77, 200, 3e6, true);
    assert_float_equal(c.int8 - w.int8, 9.0 * 128 * 200 * (29 * 77 + 1), 1e-3);
    assert_float_equal(c.int8 + c.int16, w.int8 + w.int16, 1e-3);
    assert_float_equal(w.bytes, 1e8 + 3e6, 0);
}

/* A table beside the head counts its own bytes, packed: a little more than its values. */
static void tables(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        char path[64];
        kvist_model *m;
        kvist_error err;
        gen_spec spec = gen_spec_default();
        spec.tied = tied;
        if (gen_temp_path(path, sizeof path) || gen_model(&spec, path) || kvist_model_open(path, NULL, &m, &err))
            fail_msg("no model");
        double values = 4.0 * spec.n_vocab * spec.n_embd, bytes = (double)kv_table_bytes(m);
        if (tied)
            assert_true(bytes == 0);
        else
            assert_true(bytes >= values && bytes <= 1.1 * values);
        kvist_model_close(&m);
        unlink(path);
    }
}

static void limits(void **state) {
    (void)state;
    const kv_machine m = {.threads = 2, .bandwidth = 2e10, .bandwidth_best = 3e10, .int8 = 4e11, .f32 = 1e11};
    const struct {
        kv_work w;
        double seconds;
        const char *unit;
    } cases[] = {{{1e8, 1e8, 0, 0}, 0.005, "memory"},
                 {{1e8, 4e9, 1e8, 0}, 0.011, "int8"},
                 {{1e6, 4e8, 1e9, 0}, 0.011, "f32"},
                 {{2e8, 2e9, 5e8, 0}, 0.01, "memory"}}; /* equal: memory */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_limit l = kv_machine_limit(&m, &cases[i].w);
        assert_float_equal(l.seconds, cases[i].seconds, 1e-12);
        assert_string_equal(l.unit, cases[i].unit);
    }
    /* A machine with 16-bit products reads prompts at their rate, another at that of f32. */
    kv_machine with = m;
    with.int16 = 2e11;
    const kv_work prompt = {.int8 = 4e8, .int16 = 1e9};
    assert_float_equal(kv_machine_limit(&m, &prompt).seconds, 0.011, 1e-12);
    assert_string_equal(kv_machine_limit(&m, &prompt).unit, "f32");
    assert_float_equal(kv_machine_limit(&with, &prompt).seconds, 0.006, 1e-12);
    assert_string_equal(kv_machine_limit(&with, &prompt).unit, "int16");
    const kv_machine none = {0};
    assert_string_equal(kv_machine_limit(&none, &cases[0].w).unit, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_see_all), cmocka_unit_test(loops_return_their_sums),
                                       cmocka_unit_test(rates),         cmocka_unit_test(work_of_a_model),
                                       cmocka_unit_test(tables),        cmocka_unit_test(limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
