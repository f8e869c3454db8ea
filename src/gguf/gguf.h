/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GGUF v2/v3: typed metadata and tensors over a read-only mapping, and a writer (for generated models).
 * Owns: parsing, tensor types, dequantization of one row. Must not know: architectures, backends.
 * Invariant: after kv_gguf_open succeeds every tensor's [data, data+bytes) lies inside the mapping.
 */
#ifndef KV_GGUF_GGUF_H
#define KV_GGUF_GGUF_H

#include "base/err.h"
#include "base/os.h"

/* ggml's numbers. */
enum kv_type {
    KV_TYPE_F32 = 0,
    KV_TYPE_F16 = 1,
    KV_TYPE_Q4_0 = 2,
    KV_TYPE_Q4_1 = 3,
    KV_TYPE_Q5_0 = 6,
    KV_TYPE_Q5_1 = 7,
    KV_TYPE_Q8_0 = 8,
    KV_TYPE_Q2_K = 10,
    KV_TYPE_Q3_K = 11,
    KV_TYPE_Q4_K = 12,
    KV_TYPE_Q5_K = 13,
    KV_TYPE_Q6_K = 14,
    KV_TYPE_IQ4_NL = 20,
    KV_TYPE_IQ4_XS = 23,
    KV_TYPE_BF16 = 30
};

typedef struct kv_type_info {
    const char *name;
    uint32_t block; /* values a block */
    uint32_t bytes; /* bytes a block (sizeof the block struct) */
    /* y[n] = decoded x, n a multiple of block. Portable, exact (f32). */
    void (*dequant)(const void *x, float *y, size_t n);
    /* Nearest-by-range encoder for generated models and tests; NULL where there is none. */
    void (*quant)(const float *x, void *y, size_t n);
} kv_type_info;
const kv_type_info *kv_type_get(uint32_t type); /* NULL: unknown */

typedef struct kv_tensor {
    const char *name; /* terminated, owned by the kv_gguf */
    uint32_t type, n_dims;
    uint64_t ne[4]; /* ne[0] is contiguous (columns, k); unused dims 1 */
    const uint8_t *data;
    uint64_t bytes, offset; /* offset in the file */
} kv_tensor;

typedef struct kv_gguf kv_gguf;

kv_status kv_gguf_open(const char *path, kv_gguf **out, kv_error *err) KV_WARN_UNUSED;
/* From memory (tests, fuzzers); data stays the caller's and must outlive it. */
kv_status kv_gguf_open_memory(const void *data, size_t size, kv_gguf **out, kv_error *err) KV_WARN_UNUSED;
void kv_gguf_close(kv_gguf **g);
const kv_file_map *kv_gguf_map(const kv_gguf *g);

size_t kv_gguf_tensor_count(const kv_gguf *g);
const kv_tensor *kv_gguf_tensor_at(const kv_gguf *g, size_t i);
const kv_tensor *kv_gguf_tensor(const kv_gguf *g, const char *name); /* NULL: absent */

/* Metadata. has: key exists. The getters fail with the key's name on absence or a wrong type; integer getters
 * accept any integer width that fits. */
bool kv_gguf_has(const kv_gguf *g, const char *key);
kv_status kv_gguf_u32(const kv_gguf *g, const char *key, uint32_t *out, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_u64(const kv_gguf *g, const char *key, uint64_t *out, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_f32(const kv_gguf *g, const char *key, float *out, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_bool(const kv_gguf *g, const char *key, bool *out, kv_error *err) KV_WARN_UNUSED;
/* Terminated, owned by the kv_gguf. *len may be NULL. */
kv_status kv_gguf_str(const kv_gguf *g, const char *key, const char **out, size_t *len, kv_error *err) KV_WARN_UNUSED;
/* Arrays: strings are terminated copies with lengths; numbers are converted. Owned by the kv_gguf. */
kv_status kv_gguf_str_array(const kv_gguf *g, const char *key, const char *const **out, const uint32_t **lens,
                            size_t *n, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_f32_array(const kv_gguf *g, const char *key, const float **out, size_t *n,
                            kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_i32_array(const kv_gguf *g, const char *key, const int32_t **out, size_t *n,
                            kv_error *err) KV_WARN_UNUSED;
/* For `kvist info`: i-th key in file order with a short printable value (arrays: type, count, first items). NULL past
 * the end. */
const char *kv_gguf_key_at(const kv_gguf *g, size_t i, char *value, size_t cap);

/* ---- writer */
typedef struct kv_gguf_writer kv_gguf_writer;
kv_status kv_gguf_writer_create(kv_gguf_writer **out, kv_error *err) KV_WARN_UNUSED;
void kv_gguf_writer_free(kv_gguf_writer **w);
kv_status kv_gguf_put_u32(kv_gguf_writer *w, const char *key, uint32_t v, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_f32(kv_gguf_writer *w, const char *key, float v, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_bool(kv_gguf_writer *w, const char *key, bool v, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_str(kv_gguf_writer *w, const char *key, const char *v, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_str_array(kv_gguf_writer *w, const char *key, const char *const *v, size_t n,
                                kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_i32_array(kv_gguf_writer *w, const char *key, const int32_t *v, size_t n,
                                kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_put_f32_array(kv_gguf_writer *w, const char *key, const float *v, size_t n,
                                kv_error *err) KV_WARN_UNUSED;
/* Encodes x[rows][cols] f32 as type; ne = {cols, rows} (rows 1: one dimension). */
kv_status kv_gguf_put_tensor(kv_gguf_writer *w, const char *name, uint32_t type, uint64_t cols, uint64_t rows,
                             const float *x, kv_error *err) KV_WARN_UNUSED;
kv_status kv_gguf_write(const kv_gguf_writer *w, const char *path, kv_error *err) KV_WARN_UNUSED;

#endif
