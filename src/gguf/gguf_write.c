/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes GGUF v3 with the default alignment of 32. Collects keys and encoded tensors in memory: for generated models
 * and small conversions. Values are copied at once; nothing of the caller's is kept.
 */
#include "base/alloc.h"
#include "gguf/gguf_impl.h"

#include <string.h>

#define ALIGNMENT 32u
#define BUFFER_MAX ((size_t)1 << 32) /* metadata of one file: a vocabulary of a million long tokens is below 100 MB */

typedef struct buffer {
    uint8_t *data;
    size_t len, cap;
} buffer;
typedef struct entry {
    char *name;
    uint32_t type, n_dims;
    uint64_t ne[2], bytes, offset;
    void *data;
} entry;

struct kv_gguf_writer {
    buffer keys;
    uint64_t n_keys;
    entry *tensors;
    size_t n_tensors, cap_tensors;
    uint64_t data_bytes; /* of the data section so far, padding included */
};

static kv_status put(buffer *b, const void *data, size_t n, kv_error *err) {
    if (n > BUFFER_MAX - b->len) KV_FAIL(err, ARG, "GGUF metadata larger than %zu bytes", BUFFER_MAX);
    if (b->len + n > b->cap) {
        size_t cap = b->cap ? b->cap : 4096;
        while (cap < b->len + n) cap *= 2;
        uint8_t *more = kv_realloc(b->data, cap);
        if (!more) KV_FAIL(err, MEMORY, "no memory for %zu bytes of GGUF metadata", cap);
        b->data = more;
        b->cap = cap;
    }
    if (n) memcpy(b->data + b->len, data, n);
    b->len += n;
    return KVIST_OK;
}

static kv_status put_le(buffer *b, uint64_t v, unsigned bytes, kv_error *err) {
    uint8_t le[8];
    for (unsigned i = 0; i < bytes; i++) le[i] = (uint8_t)(v >> (8 * i));
    return put(b, le, bytes, err);
}

static kv_status put_text(buffer *b, const char *s, kv_error *err) {
    size_t n = strlen(s);
    KV_TRY(put_le(b, n, 8, err));
    return put(b, s, n, err);
}

kv_status kv_gguf_writer_create(kv_gguf_writer **out, kv_error *err) {
    *out = kv_calloc(1, sizeof **out);
    if (!*out) KV_FAIL(err, MEMORY, "no memory for a GGUF writer");
    return KVIST_OK;
}

void kv_gguf_writer_free(kv_gguf_writer **writer) {
    kv_gguf_writer *w = writer ? *writer : NULL;
    if (!w) return;
    *writer = NULL;
    for (size_t i = 0; i < w->n_tensors; i++) {
        kv_free(w->tensors[i].name);
        kv_free(w->tensors[i].data);
    }
    kv_free(w->tensors);
    kv_free(w->keys.data);
    kv_free(w);
}

/* Key and type; the entry counts once its value is complete (a failed put leaves the writer usable only for freeing).
 */
static kv_status put_key(kv_gguf_writer *w, const char *key, uint32_t vtype, kv_error *err) {
    if (!key || !*key) KV_FAIL(err, ARG, "empty GGUF key");
    KV_TRY(put_text(&w->keys, key, err));
    KV_TRY(put_le(&w->keys, vtype, 4, err));
    w->n_keys++;
    return KVIST_OK;
}

static kv_status put_array(kv_gguf_writer *w, const char *key, uint32_t elem, size_t n, kv_error *err) {
    KV_TRY(put_key(w, key, KV_VT_ARRAY, err));
    KV_TRY(put_le(&w->keys, elem, 4, err));
    return put_le(&w->keys, n, 8, err);
}

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

kv_status kv_gguf_put_u32(kv_gguf_writer *w, const char *key, uint32_t v, kv_error *err) {
    KV_TRY(put_key(w, key, KV_VT_U32, err));
    return put_le(&w->keys, v, 4, err);
}

kv_status kv_gguf_put_f32(kv_gguf_writer *w, const char *key, float v, kv_error *err) {
    KV_TRY(put_key(w, key, KV_VT_F32, err));
    return put_le(&w->keys, bits(v), 4, err);
}

kv_status kv_gguf_put_bool(kv_gguf_writer *w, const char *key, bool v, kv_error *err) {
    KV_TRY(put_key(w, key, KV_VT_BOOL, err));
    return put_le(&w->keys, v, 1, err);
}

kv_status kv_gguf_put_str(kv_gguf_writer *w, const char *key, const char *v, kv_error *err) {
    KV_TRY(put_key(w, key, KV_VT_STRING, err));
    return put_text(&w->keys, v, err);
}

kv_status kv_gguf_put_str_array(kv_gguf_writer *w, const char *key, const char *const *v, size_t n, kv_error *err) {
    KV_TRY(put_array(w, key, KV_VT_STRING, n, err));
    for (size_t i = 0; i < n; i++) KV_TRY(put_text(&w->keys, v[i], err));
    return KVIST_OK;
}

kv_status kv_gguf_put_i32_array(kv_gguf_writer *w, const char *key, const int32_t *v, size_t n, kv_error *err) {
    KV_TRY(put_array(w, key, KV_VT_I32, n, err));
    for (size_t i = 0; i < n; i++) KV_TRY(put_le(&w->keys, (uint32_t)v[i], 4, err));
    return KVIST_OK;
}

kv_status kv_gguf_put_f32_array(kv_gguf_writer *w, const char *key, const float *v, size_t n, kv_error *err) {
    KV_TRY(put_array(w, key, KV_VT_F32, n, err));
    for (size_t i = 0; i < n; i++) KV_TRY(put_le(&w->keys, bits(v[i]), 4, err));
    return KVIST_OK;
}

static uint64_t pad(uint64_t n) { return (ALIGNMENT - n % ALIGNMENT) % ALIGNMENT; }

kv_status kv_gguf_put_tensor(kv_gguf_writer *w, const char *name, uint32_t type, uint64_t cols, uint64_t rows,
                             const float *x, kv_error *err) {
    const kv_type_info *info = kv_type_get(type);
    if (!name || !*name) KV_FAIL(err, ARG, "empty tensor name");
    if (!info || !info->quant) KV_FAIL(err, UNSUPPORTED, "tensor '%s': no encoder for type %u", name, type);
    if (!cols || !rows || cols % info->block)
        KV_FAIL(err, ARG, "tensor '%s': %llu x %llu values are not whole %s blocks of %u", name,
                (unsigned long long)rows, (unsigned long long)cols, info->name, info->block);
    uint64_t bytes;
    if (__builtin_mul_overflow(rows, cols / info->block * info->bytes, &bytes) || bytes > SIZE_MAX / 2)
        KV_FAIL(err, ARG, "tensor '%s': too many values", name);
    if (w->n_tensors == w->cap_tensors) {
        size_t cap = w->cap_tensors ? 2 * w->cap_tensors : 64;
        entry *more = kv_realloc(w->tensors, cap * sizeof *more);
        if (!more) KV_FAIL(err, MEMORY, "no memory for %zu tensors", cap);
        w->tensors = more;
        w->cap_tensors = cap;
    }
    entry t = {kv_strndup(name, SIZE_MAX), type, rows > 1 ? 2 : 1, {cols, rows}, bytes, w->data_bytes,
               kv_malloc((size_t)bytes)};
    if (!t.name || !t.data) {
        kv_free(t.name);
        kv_free(t.data);
        KV_FAIL(err, MEMORY, "tensor '%s': no memory for %llu bytes", name, (unsigned long long)bytes);
    }
    info->quant(x, t.data, (size_t)(rows * cols));
    w->tensors[w->n_tensors++] = t;
    w->data_bytes += bytes + pad(bytes);
    return KVIST_OK;
}

static kv_status build_head(const kv_gguf_writer *w, buffer *b, kv_error *err) {
    KV_TRY(put(b, "GGUF", 4, err));
    KV_TRY(put_le(b, 3, 4, err));
    KV_TRY(put_le(b, w->n_tensors, 8, err));
    KV_TRY(put_le(b, w->n_keys, 8, err));
    KV_TRY(put(b, w->keys.data, w->keys.len, err));
    for (size_t i = 0; i < w->n_tensors; i++) {
        const entry *t = &w->tensors[i];
        KV_TRY(put_text(b, t->name, err));
        KV_TRY(put_le(b, t->n_dims, 4, err));
        for (uint32_t d = 0; d < t->n_dims; d++) KV_TRY(put_le(b, t->ne[d], 8, err));
        KV_TRY(put_le(b, t->type, 4, err));
        KV_TRY(put_le(b, t->offset, 8, err));
    }
    static const uint8_t zeros[ALIGNMENT];
    return put(b, zeros, pad(b->len), err);
}

kv_status kv_gguf_write(const kv_gguf_writer *w, const char *path, kv_error *err) {
    static const uint8_t zeros[ALIGNMENT];
    buffer head = {0};
    kv_status status = build_head(w, &head, err);
    kv_os_part *parts = status == KVIST_OK ? kv_calloc(1 + 2 * w->n_tensors, sizeof *parts) : NULL;
    if (status == KVIST_OK && !parts) status = kv_fail(err, KVIST_E_MEMORY, "%s: no memory to write", path);
    if (status == KVIST_OK) {
        size_t n = 0;
        parts[n++] = (kv_os_part){head.data, head.len};
        for (size_t i = 0; i < w->n_tensors; i++) {
            parts[n++] = (kv_os_part){w->tensors[i].data, (size_t)w->tensors[i].bytes};
            parts[n++] = (kv_os_part){zeros, (size_t)pad(w->tensors[i].bytes)};
        }
        status = kv_os_write_file(path, parts, n, err);
    }
    kv_free(parts);
    kv_free(head.data);
    return status;
}
