/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Typed access to a parsed file. Reads only; every failure names the key, what was wanted and what the file has.
 */
#include "gguf/gguf_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const vtype_names[KV_VT_COUNT] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                     "bool", "string", "array", "u64", "i64", "f64"};

const char *kv_gguf_vtype_name(uint32_t t) { return t < KV_VT_COUNT ? vtype_names[t] : "?"; }

static bool is_signed(uint32_t t) { return t == KV_VT_I8 || t == KV_VT_I16 || t == KV_VT_I32 || t == KV_VT_I64; }
static bool is_unsigned(uint32_t t) { return t == KV_VT_U8 || t == KV_VT_U16 || t == KV_VT_U32 || t == KV_VT_U64; }
static bool is_float(uint32_t t) { return t == KV_VT_F32 || t == KV_VT_F64; }
bool kv_gguf_is_integer(uint32_t t) { return is_signed(t) || is_unsigned(t) || t == KV_VT_BOOL; }

const kv_file_map *kv_gguf_map(const kv_gguf *g) { return &g->map; }
size_t kv_gguf_tensor_count(const kv_gguf *g) { return g->n_tensors; }
const kv_tensor *kv_gguf_tensor_at(const kv_gguf *g, size_t i) { return i < g->n_tensors ? &g->tensors[i] : NULL; }
bool kv_gguf_has(const kv_gguf *g, const char *key) { return kv_gguf_find(g, key) != NULL; }

static kv_status find(const kv_gguf *g, const char *key, const kv_gguf_value **out, kv_error *err) {
    *out = kv_gguf_find(g, key);
    if (!*out) KV_FAIL(err, FORMAT, "key '%s' is missing", key);
    return KVIST_OK;
}

static kv_status mistyped(const kv_gguf_value *v, const char *wanted, kv_error *err) {
    bool array = v->type == KV_VT_ARRAY;
    KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: wanted %s, the file has %s%s", v->key,
            (unsigned long long)v->offset, wanted, array ? "an array of " : "",
            kv_gguf_vtype_name(array ? v->elem : v->type));
}

kv_status kv_gguf_u64(const kv_gguf *g, const char *key, uint64_t *out, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (is_signed(v->type) && v->scalar.i < 0)
        KV_FAIL(err, FORMAT, "key '%s' at offset %llu: %lld is negative", key, (unsigned long long)v->offset,
                (long long)v->scalar.i);
    if (!is_signed(v->type) && !is_unsigned(v->type)) return mistyped(v, "an integer", err);
    *out = v->scalar.u;
    return KVIST_OK;
}

kv_status kv_gguf_u32(const kv_gguf *g, const char *key, uint32_t *out, kv_error *err) {
    uint64_t wide = 0;
    KV_TRY(kv_gguf_u64(g, key, &wide, err));
    if (wide > UINT32_MAX) KV_FAIL(err, FORMAT, "key '%s': %llu does not fit 32 bits", key, (unsigned long long)wide);
    *out = (uint32_t)wide;
    return KVIST_OK;
}

kv_status kv_gguf_f32(const kv_gguf *g, const char *key, float *out, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (!is_float(v->type)) return mistyped(v, "a float", err);
    *out = (float)v->scalar.f;
    return KVIST_OK;
}

kv_status kv_gguf_bool(const kv_gguf *g, const char *key, bool *out, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (v->type != KV_VT_BOOL) return mistyped(v, "a bool", err);
    *out = v->scalar.u != 0;
    return KVIST_OK;
}

kv_status kv_gguf_str(const kv_gguf *g, const char *key, const char **out, size_t *len, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (v->type != KV_VT_STRING) return mistyped(v, "a string", err);
    *out = v->str;
    if (len) *len = v->n;
    return KVIST_OK;
}

kv_status kv_gguf_str_array(const kv_gguf *g, const char *key, const char *const **out, const uint32_t **lens,
                            size_t *n, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (!v->strs) return mistyped(v, "an array of strings", err);
    *out = v->strs;
    if (lens) *lens = v->lens;
    *n = v->n;
    return KVIST_OK;
}

kv_status kv_gguf_f32_array(const kv_gguf *g, const char *key, const float **out, size_t *n, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (!v->f32) return mistyped(v, "an array of numbers", err);
    *out = v->f32;
    *n = v->n;
    return KVIST_OK;
}

kv_status kv_gguf_i32_array(const kv_gguf *g, const char *key, const int32_t **out, size_t *n, kv_error *err) {
    const kv_gguf_value *v;
    KV_TRY(find(g, key, &v, err));
    if (!v->i32) return mistyped(v, "an array of integers that fit 32 bits", err);
    *out = v->i32;
    *n = v->n;
    return KVIST_OK;
}

/* ---- text for `kvist info` */

typedef struct text {
    char *buf;
    size_t cap, len;
} text;

static void put(text *t, const char *s, size_t n) {
    for (size_t i = 0; i < n && t->len + 1 < t->cap; i++) {
        unsigned char ch = (unsigned char)s[i];
        t->buf[t->len++] = ch < 32 || ch == 127 ? ' ' : (char)ch; /* no terminal control from a file */
    }
    if (t->cap) t->buf[t->len] = 0;
}

static void put_str(text *t, const char *s) { put(t, s, strlen(s)); }

static void put_scalar(text *t, const kv_gguf_value *v) {
    char b[40];
    if (v->type == KV_VT_BOOL)
        snprintf(b, sizeof b, "%s", v->scalar.u ? "true" : "false");
    else if (is_float(v->type))
        snprintf(b, sizeof b, "%.7g", v->scalar.f);
    else if (is_signed(v->type))
        snprintf(b, sizeof b, "%lld", (long long)v->scalar.i);
    else
        snprintf(b, sizeof b, "%llu", (unsigned long long)v->scalar.u);
    put_str(t, b);
}

static void put_array(text *t, const kv_gguf_value *v) {
    char b[64];
    snprintf(b, sizeof b, "%s[%zu] ", kv_gguf_vtype_name(v->elem), v->n);
    put_str(t, b);
    for (size_t i = 0; i < v->n && i < 6; i++) {
        if (i) put_str(t, ", ");
        if (v->strs) {
            put_str(t, "\"");
            put(t, v->strs[i], v->lens[i] < 24 ? v->lens[i] : 24);
            put_str(t, "\"");
        } else {
            if (v->i32)
                snprintf(b, sizeof b, "%d", v->i32[i]);
            else
                snprintf(b, sizeof b, "%.7g", (double)v->f32[i]);
            put_str(t, b);
        }
    }
    if (v->n > 6) put_str(t, ", ...");
}

const char *kv_gguf_key_at(const kv_gguf *g, size_t i, char *value, size_t cap) {
    if (i >= g->n_values) return NULL;
    const kv_gguf_value *v = &g->values[i];
    text t = {value, cap, 0};
    put_str(&t, "");
    if (v->type == KV_VT_STRING)
        put(&t, v->str, v->n);
    else if (v->type == KV_VT_ARRAY)
        put_array(&t, v);
    else
        put_scalar(&t, v);
    return v->key;
}
