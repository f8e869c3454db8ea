/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader against files built byte by byte here (not by our writer), and hostile input: every truncation, seeded
 * mutations, a page that must not be touched right behind the buffer, every allocation failing once.
 */
#include "support/support.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "gguf/gguf.h"
#include "support/genmodel.h"

/* ---- a file by hand */

typedef struct bytes {
    uint8_t p[8192];
    size_t n;
} bytes;

static void raw(bytes *b, const void *p, size_t n) {
    assert_true(b->n + n <= sizeof b->p);
    memcpy(b->p + b->n, p, n);
    b->n += n;
}
static void le(bytes *b, uint64_t v, int n) {
    for (int i = 0; i < n; i++) {
        uint8_t c = (uint8_t)(v >> (8 * i));
        raw(b, &c, 1);
    }
}
static void text(bytes *b, const char *s) {
    le(b, strlen(s), 8);
    raw(b, s, strlen(s));
}
static void head(bytes *b, uint32_t version, uint64_t tensors, uint64_t keys) {
    b->n = 0;
    raw(b, "GGUF", 4);
    le(b, version, 4);
    le(b, tensors, 8);
    le(b, keys, 8);
}
static void key(bytes *b, const char *name, uint32_t type) {
    text(b, name);
    le(b, type, 4);
}
static void array(bytes *b, const char *name, uint32_t elem, uint64_t n) {
    key(b, name, 9);
    le(b, elem, 4);
    le(b, n, 8);
}
static void tensor(bytes *b, const char *name, uint32_t dims, uint64_t ne0, uint64_t ne1, uint32_t type,
                   uint64_t offset) {
    text(b, name);
    le(b, dims, 4);
    for (uint32_t d = 0; d < dims && d < 6; d++) le(b, d == 0 ? ne0 : d == 1 ? ne1 : 1, 8);
    le(b, type, 4);
    le(b, offset, 8);
}
static void align(bytes *b, size_t a) {
    while (b->n % a) le(b, 0, 1);
}

static kv_error err;

static int try_open(const bytes *b) {
    kv_gguf *g = (kv_gguf *)1;
    err = (kv_error){0};
    int st = kv_gguf_open_memory(b->p, b->n, &g, &err);
    if (st) assert_null(g);
    kv_gguf_close(&g);
    return st;
}

static void refused(const bytes *b, int status, const char *why, int line) {
    int st = try_open(b);
    if (st != status || !strstr(err.message, why))
        fail_msg("line %d: %d '%s' (wanted %d '%s')", line, st, err.message, status, why);
}
#define REFUSED(b, status, why) refused(b, KVIST_E_##status, why, __LINE__)

/* Every value type once, all array types, two tensors. */
static void sample(bytes *b, uint32_t version) {
    head(b, version, 2, 22);
    key(b, "u8", 0);
    le(b, 200, 1);
    key(b, "i8", 1);
    le(b, (uint8_t)-5, 1);
    key(b, "u16", 2);
    le(b, 60000, 2);
    key(b, "i16", 3);
    le(b, (uint16_t)-300, 2);
    key(b, "u32", 4);
    le(b, 4000000000u, 4);
    key(b, "i32", 5);
    le(b, 7, 4);
    key(b, "f32", 6);
    le(b, 0x3fc00000, 4);
    key(b, "bool", 7);
    le(b, 1, 1);
    key(b, "str", 8);
    text(b, "hi \xc3\xa9\x01");
    key(b, "u64", 10);
    le(b, 1ull << 40, 8);
    key(b, "i64", 11);
    le(b, 9, 8);
    key(b, "f64", 12);
    le(b, 0x4004000000000000ull, 8); /* 2.5 */
    array(b, "a.str", 8, 3);
    text(b, "x");
    text(b, "");
    text(b, "yz");
    array(b, "a.u8", 0, 3);
    le(b, 0x030201, 3);
    array(b, "a.i16", 3, 2);
    le(b, 0xfffe0005, 4);
    array(b, "a.f32", 6, 2);
    le(b, 0x3f800000bf000000ull, 8); /* -.5, 1 */
    array(b, "a.f64", 12, 1);
    le(b, 0x4004000000000000ull, 8);
    array(b, "a.u32.big", 4, 1);
    le(b, 0x80000000u, 4);
    array(b, "a.bool", 7, 2);
    le(b, 0x0001, 2);
    array(b, "a.empty", 5, 0);
    array(b, "a.i64", 11, 1);
    le(b, (uint64_t)-7, 8);
    key(b, "general.alignment", 4);
    le(b, 64, 4);
    tensor(b, "first", 2, 3, 2, KV_TYPE_F32, 0);
    tensor(b, "second", 1, 32, 1, KV_TYPE_Q8_0, 64);
    align(b, 64);
    for (int i = 0; i < 6; i++) le(b, 0x3f800000, 4);
    align(b, 64);
    le(b, 0x3c00, 2);
    for (int i = 0; i < 32; i++) le(b, (uint64_t)i, 1);
}

static void reads_every_type(void **state) {
    bytes b;
    for (uint32_t version = 2; version <= 3; version++) {
        sample(&b, version);
        kv_gguf *g;
        assert_int_equal(kv_gguf_open_memory(b.p, b.n, &g, &err), 0);
        uint32_t u;
        uint64_t w;
        float f;
        bool t;
        const char *s;
        size_t n;
        assert_int_equal(kv_gguf_u32(g, "u8", &u, &err), 0);
        assert_int_equal(u, 200);
        assert_int_equal(kv_gguf_u32(g, "u16", &u, &err), 0);
        assert_int_equal(u, 60000);
        assert_int_equal(kv_gguf_u32(g, "u32", &u, &err), 0);
        assert_int_equal(u, 4000000000u);
        assert_int_equal(kv_gguf_u32(g, "i32", &u, &err), 0);
        assert_int_equal(u, 7);
        assert_int_equal(kv_gguf_u32(g, "i64", &u, &err), 0);
        assert_int_equal(u, 9);
        assert_int_equal(kv_gguf_u64(g, "u64", &w, &err), 0);
        assert_true(w == 1ull << 40);
        assert_int_equal(kv_gguf_f32(g, "f32", &f, &err), 0);
        assert_true(f == 1.5f);
        assert_int_equal(kv_gguf_f32(g, "f64", &f, &err), 0);
        assert_true(f == 2.5f);
        assert_int_equal(kv_gguf_bool(g, "bool", &t, &err), 0);
        assert_true(t);
        assert_int_equal(kv_gguf_str(g, "str", &s, &n, &err), 0);
        assert_string_equal(s, "hi \xc3\xa9\x01");
        assert_int_equal(n, 6);
        /* what does not fit or is of another kind names the key */
        assert_int_equal(kv_gguf_u32(g, "u64", &u, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "'u64'"));
        assert_int_equal(kv_gguf_u32(g, "i8", &u, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "-5"));
        assert_int_equal(kv_gguf_u64(g, "i16", &w, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_u32(g, "f32", &u, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_u32(g, "bool", &u, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_f32(g, "u32", &f, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "u32"));
        assert_int_equal(kv_gguf_str(g, "a.str", &s, NULL, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "array of string"));
        assert_int_equal(kv_gguf_bool(g, "none", &t, &err), KVIST_E_FORMAT);
        assert_non_null(strstr(err.message, "'none'"));
        assert_false(kv_gguf_has(g, "none"));
        assert_true(kv_gguf_has(g, "a.empty"));

        const char *const *strs;
        const uint32_t *lens;
        const float *fs;
        const int32_t *is;
        assert_int_equal(kv_gguf_str_array(g, "a.str", &strs, &lens, &n, &err), 0);
        assert_int_equal(n, 3);
        assert_string_equal(strs[0], "x");
        assert_string_equal(strs[1], "");
        assert_string_equal(strs[2], "yz");
        assert_int_equal(lens[2], 2);
        assert_int_equal(kv_gguf_i32_array(g, "a.u8", &is, &n, &err), 0);
        assert_int_equal(n, 3);
        assert_int_equal(is[2], 3);
        assert_int_equal(kv_gguf_f32_array(g, "a.u8", &fs, &n, &err), 0);
        assert_true(fs[1] == 2);
        assert_int_equal(kv_gguf_i32_array(g, "a.i16", &is, &n, &err), 0);
        assert_int_equal(is[0], 5);
        assert_int_equal(is[1], -2);
        assert_int_equal(kv_gguf_f32_array(g, "a.f32", &fs, &n, &err), 0);
        assert_true(fs[0] == -0.5f && fs[1] == 1);
        assert_int_equal(kv_gguf_f32_array(g, "a.f64", &fs, &n, &err), 0);
        assert_true(fs[0] == 2.5f);
        assert_int_equal(kv_gguf_i32_array(g, "a.f32", &is, &n, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_i32_array(g, "a.u32.big", &is, &n, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_i32_array(g, "a.bool", &is, &n, &err), 0);
        assert_int_equal(is[0], 1);
        assert_int_equal(is[1], 0);
        assert_int_equal(kv_gguf_i32_array(g, "a.i64", &is, &n, &err), 0);
        assert_int_equal(is[0], -7);
        assert_int_equal(kv_gguf_i32_array(g, "a.empty", &is, &n, &err), 0);
        assert_int_equal(n, 0);
        assert_int_equal(kv_gguf_f32_array(g, "a.str", &fs, &n, &err), KVIST_E_FORMAT);
        assert_int_equal(kv_gguf_str_array(g, "str", &strs, NULL, &n, &err), KVIST_E_FORMAT);

        assert_int_equal(kv_gguf_tensor_count(g), 2);
        const kv_tensor *first = kv_gguf_tensor(g, "first"), *second = kv_gguf_tensor_at(g, 1);
        assert_non_null(first);
        assert_int_equal(first->n_dims, 2);
        assert_int_equal(first->ne[0], 3);
        assert_int_equal(first->ne[1], 2);
        assert_int_equal(first->ne[2], 1);
        assert_int_equal(first->bytes, 24);
        assert_ptr_equal(first->data, b.p + first->offset);
        assert_string_equal(second->name, "second");
        assert_int_equal(second->bytes, 34);
        assert_int_equal(second->data[2 + 31], 31);
        assert_int_equal(second->offset, b.n - 34);
        assert_null(kv_gguf_tensor(g, "third"));
        assert_null(kv_gguf_tensor_at(g, 2));

        char v[80];
        size_t keys = 0;
        while (kv_gguf_key_at(g, keys, v, sizeof v)) keys++;
        assert_int_equal(keys, 22);
        assert_string_equal(kv_gguf_key_at(g, 1, v, sizeof v), "i8");
        assert_string_equal(v, "-5");
        kv_gguf_key_at(g, 8, v, sizeof v);
        assert_string_equal(v, "hi \xc3\xa9 "); /* no control bytes on a terminal */
        kv_gguf_key_at(g, 12, v, sizeof v);
        assert_string_equal(v, "string[3] \"x\", \"\", \"yz\"");
        kv_gguf_key_at(g, 12, v, 9);
        assert_string_equal(v, "string[3");
        kv_gguf_close(&g);
        kv_gguf_close(&g);
    }
}

/* ---- refusals: the key or tensor and the offset in each message */

static void refuses_bad_heads(void **state) {
    bytes b;
    sample(&b, 3);
    b.p[0] = 'g';
    REFUSED(&b, FORMAT, "not a GGUF");
    sample(&b, 1);
    REFUSED(&b, UNSUPPORTED, "version 1");
    sample(&b, 4);
    REFUSED(&b, UNSUPPORTED, "version 4");
    sample(&b, 0x03000000);
    REFUSED(&b, UNSUPPORTED, "big-endian");
    head(&b, 3, 0, 0);
    assert_int_equal(try_open(&b), 0);
    head(&b, 3, 0, 1);
    REFUSED(&b, FORMAT, "1 keys at offset 16");
    head(&b, 3, 1, 0);
    REFUSED(&b, FORMAT, "1 tensors at offset 8");
    head(&b, 3, UINT64_MAX, 0);
    REFUSED(&b, FORMAT, "tensors");
    head(&b, 3, 0, UINT64_MAX);
    REFUSED(&b, FORMAT, "keys");
}

static void refuses_bad_keys(void **state) {
    bytes b;
    head(&b, 3, 0, 1);
    le(&b, 0, 8);
    le(&b, 4, 4);
    le(&b, 1, 4);
    REFUSED(&b, FORMAT, "key 0 at offset 24: name of 0 bytes");
    head(&b, 3, 0, 1);
    le(&b, UINT64_MAX, 8);
    le(&b, 0, 8);
    REFUSED(&b, FORMAT, "key 0 at offset 24");
    head(&b, 3, 0, 1);
    le(&b, 3, 8);
    raw(&b, "a\0b", 3);
    le(&b, 4, 4);
    le(&b, 1, 4);
    REFUSED(&b, FORMAT, "zero byte");
    head(&b, 3, 0, 2);
    key(&b, "one", 4);
    le(&b, 1, 4);
    key(&b, "one", 4);
    le(&b, 1, 4);
    REFUSED(&b, FORMAT, "'one' at offset 43: given twice");
    head(&b, 3, 0, 1);
    key(&b, "flag", 7);
    le(&b, 2, 1);
    REFUSED(&b, FORMAT, "'flag'");
    head(&b, 3, 0, 1);
    key(&b, "odd", 13);
    le(&b, 2, 8);
    REFUSED(&b, FORMAT, "'odd' at offset 24: unknown value type 13");
    head(&b, 3, 0, 1);
    array(&b, "nest", 9, 1);
    le(&b, 0, 8);
    REFUSED(&b, UNSUPPORTED, "'nest'");
    head(&b, 3, 0, 1);
    array(&b, "what", 99, 1);
    le(&b, 0, 8);
    REFUSED(&b, FORMAT, "'what'");
    head(&b, 3, 0, 1);
    array(&b, "many", 4, 1ull << 62);
    le(&b, 0, 8);
    REFUSED(&b, FORMAT, "'many'");
    head(&b, 3, 0, 1);
    array(&b, "few", 4, 3);
    le(&b, 0, 8);
    REFUSED(&b, FORMAT, "'few' at offset 24: array of 3 items, 8 bytes");
    head(&b, 3, 0, 1);
    array(&b, "strs", 8, 2);
    le(&b, 1ull << 63, 8);
    le(&b, 0, 8);
    REFUSED(&b, FORMAT, "'strs'");
    head(&b, 3, 0, 1);
    array(&b, "flags", 7, 3);
    le(&b, 0x020001, 3);
    REFUSED(&b, FORMAT, "'flags': bool item 2");
    head(&b, 3, 0, 1);
    key(&b, "long", 8);
    le(&b, UINT64_MAX - 3, 8);
    REFUSED(&b, FORMAT, "'long'");
    head(&b, 3, 0, 1);
    key(&b, "cut", 10);
    le(&b, 1, 7);
    REFUSED(&b, FORMAT, "'cut' at offset 24");
    static const uint32_t bad[] = {0, 1, 4, 24, 33, 96, 0x80000001};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        head(&b, 3, 0, 1);
        key(&b, "general.alignment", 4);
        le(&b, bad[i], 4);
        REFUSED(&b, FORMAT, "general.alignment");
    }
    head(&b, 3, 0, 1);
    key(&b, "general.alignment", 10);
    le(&b, 32, 8);
    REFUSED(&b, FORMAT, "general.alignment");
}

static void one_tensor(bytes *b, uint32_t dims, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
    head(b, 3, 1, 0);
    tensor(b, "w", dims, ne0, ne1, type, offset);
    align(b, 32);
    for (int i = 0; i < 64; i++) le(b, 0, 1);
}

static void refuses_bad_tensors(void **state) {
    bytes b;
    one_tensor(&b, 1, 16, 1, 0, 0);
    assert_int_equal(try_open(&b), 0);
    one_tensor(&b, 1, 8, 1, 0, 32);
    assert_int_equal(try_open(&b), 0);
    one_tensor(&b, 0, 16, 1, 0, 0);
    REFUSED(&b, FORMAT, "'w' at offset 24: 0 dimensions");
    one_tensor(&b, 5, 16, 1, 0, 0);
    REFUSED(&b, FORMAT, "'w' at offset 24: 5 dimensions");
    one_tensor(&b, 0xffffffff, 16, 1, 0, 0);
    REFUSED(&b, FORMAT, "'w'");
    one_tensor(&b, 2, 0, 4, 0, 0);
    REFUSED(&b, FORMAT, "'w' at offset 24: dimension 0 is 0");
    one_tensor(&b, 2, 1ull << 33, 1ull << 33, 0, 0);
    REFUSED(&b, FORMAT, "too many values");
    one_tensor(&b, 2, 1ull << 32, (1ull << 31) + 1, 0, 0);
    REFUSED(&b, FORMAT, "too many values"); /* bytes overflow, values do not */
    one_tensor(&b, 1, 16, 1, 4, 0);
    REFUSED(&b, UNSUPPORTED, "'w' at offset 24: tensor type 4");
    one_tensor(&b, 1, 16, 1, 0xffffffff, 0);
    REFUSED(&b, UNSUPPORTED, "'w'");
    one_tensor(&b, 1, 33, 1, KV_TYPE_Q8_0, 0);
    REFUSED(&b, FORMAT, "whole Q8_0 blocks of 32");
    one_tensor(&b, 2, 16, 32, KV_TYPE_Q8_0, 0);
    REFUSED(&b, FORMAT, "whole Q8_0 blocks");
    one_tensor(&b, 1, 17, 1, 0, 0);
    REFUSED(&b, FORMAT, "'w': 68 bytes");
    one_tensor(&b, 1, 16, 1, 0, 32);
    REFUSED(&b, FORMAT, "outside the file");
    one_tensor(&b, 1, 1, 1, 0, 1ull << 63);
    REFUSED(&b, FORMAT, "outside the file");
    one_tensor(&b, 1, 1, 1, 0, 0ull - 32);
    REFUSED(&b, FORMAT, "outside the file");
    one_tensor(&b, 1, 1, 1, 0, 4);
    REFUSED(&b, FORMAT, "not a multiple of 32");
    head(&b, 3, 2, 0);
    tensor(&b, "w", 1, 1, 1, 0, 0);
    tensor(&b, "w", 1, 1, 1, 0, 32);
    le(&b, 0, 8);
    align(&b, 32);
    for (int i = 0; i < 64; i++) le(&b, 0, 1);
    REFUSED(&b, FORMAT, "'w' at offset 57: given twice");
    head(&b, 3, 2, 0);
    tensor(&b, "w", 1, 16, 1, 0, 0);
    tensor(&b, "v", 1, 16, 1, 0, 0);
    align(&b, 32);
    for (int i = 0; i < 64; i++) le(&b, 0, 1);
    REFUSED(&b, FORMAT, "overlap");
}

/* ---- hostile bytes, at the end of a page that is followed by one without access */

typedef struct guarded {
    uint8_t *base, *end;
    size_t size;
} guarded;

static guarded guard_make(size_t room) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (room + page - 1) / page * page + page;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    assert_int_equal(mprotect(base + size - page, page, PROT_NONE), 0);
    return (guarded){base, base + size - page, size};
}

static uint64_t touch_all; /* keeps the reads */

/* Opens and, when that succeeds, uses everything: what lies outside would fault. */
static int open_and_walk(const uint8_t *p, size_t n) {
    kv_gguf *g;
    int st = kv_gguf_open_memory(p, n, &g, &err);
    if (st) {
        assert_true(st == KVIST_E_FORMAT || st == KVIST_E_UNSUPPORTED);
        assert_true(strlen(err.message) > 5);
        return st;
    }
    char v[64];
    const char *const *strs;
    const uint32_t *lens;
    const int32_t *is;
    const float *fs;
    const char *name;
    size_t count;
    for (size_t i = 0; (name = kv_gguf_key_at(g, i, v, sizeof v)); i++) {
        if (!kv_gguf_str_array(g, name, &strs, &lens, &count, &err))
            for (size_t k = 0; k < count; k++) touch_all += strlen(strs[k]) <= lens[k];
        if (!kv_gguf_i32_array(g, name, &is, &count, &err))
            for (size_t k = 0; k < count; k++) touch_all += (uint32_t)is[k];
        if (!kv_gguf_f32_array(g, name, &fs, &count, &err))
            for (size_t k = 0; k < count; k++) touch_all += fs[k] > 0;
    }
    for (size_t i = 0; i < kv_gguf_tensor_count(g); i++) {
        const kv_tensor *t = kv_gguf_tensor_at(g, i);
        assert_ptr_equal(kv_gguf_tensor(g, t->name), t);
        for (uint64_t k = 0; k < t->bytes; k++) touch_all += t->data[k];
    }
    kv_gguf_close(&g);
    return 0;
}

static void every_truncation(void **state) {
    bytes b;
    sample(&b, 3);
    guarded m = guard_make(b.n);
    memcpy(m.end - b.n, b.p, b.n);
    assert_int_equal(open_and_walk(m.end - b.n, b.n), 0);
    for (size_t n = 0; n < b.n; n++) {
        memcpy(m.end - n, b.p, n);
        assert_true(open_and_walk(m.end - n, n) != 0);
    }
    munmap(m.base, m.size);
}

static void mutations(void **state) {
    bytes b;
    sample(&b, 3);
    guarded m = guard_make(b.n);
    uint8_t *p = m.end - b.n;
    static const uint8_t nasty[] = {0, 1, 0x7f, 0x80, 0xff, 9, 8, 0x20};
    uint64_t s = 42;
    unsigned opened = 0, refused_ = 0;
    for (int i = 0; i < 40000; i++) {
        memcpy(p, b.p, b.n);
        unsigned edits = 1 + (unsigned)(test_rand(&s) % 4);
        for (unsigned e = 0; e < edits; e++) {
            size_t at = (size_t)(test_rand(&s) % b.n);
            uint64_t r = test_rand(&s);
            p[at] = r & 1   ? (uint8_t)(r >> 8)
                    : r & 2 ? nasty[(r >> 8) % sizeof nasty]
                            : (uint8_t)(p[at] ^ (1u << ((r >> 8) & 7)));
        }
        if (open_and_walk(p, b.n))
            refused_++;
        else
            opened++;
    }
    assert_true(opened > 1000 && refused_ > 10000); /* both sides were reached */
    munmap(m.base, m.size);
}

static void every_allocation_fails_once(void **state) {
    bytes b;
    sample(&b, 3);
    uint64_t n = 1;
    for (;; n++) {
        kv_gguf *g;
        kv_alloc_test_fail_at(n);
        int st = kv_gguf_open_memory(b.p, b.n, &g, &err);
        kv_alloc_test_fail_at(0);
        kv_gguf_close(&g);
        if (!st) break;
        assert_int_equal(st, KVIST_E_MEMORY);
    }
    assert_true(n > 2);
    char path[64];
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    gen_spec spec = gen_spec_default();
    spec.n_layers = 1;
    assert_int_equal(gen_model(&spec, path), 0);
    for (n = 1;; n++) {
        kv_gguf *g;
        kv_alloc_test_fail_at(n);
        int st = kv_gguf_open(path, &g, &err);
        kv_alloc_test_fail_at(0);
        kv_gguf_close(&g);
        if (!st) break;
        assert_int_equal(st, KVIST_E_MEMORY);
        assert_non_null(strstr(err.message, path));
    }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_type),
        cmocka_unit_test(refuses_bad_heads),
        cmocka_unit_test(refuses_bad_keys),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(mutations),
        cmocka_unit_test(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
