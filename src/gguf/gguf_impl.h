/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the reader (gguf_read.c), the getters (gguf_meta.c) and the writer share. Everything a kv_gguf points to lies in
 * its arena or in the mapping; after open nothing changes, so any thread may read.
 */
#ifndef KV_GGUF_IMPL_H
#define KV_GGUF_IMPL_H

#include "gguf/gguf.h"

/* Value types of the metadata, as the file numbers them. */
enum kv_gguf_vtype {
    KV_VT_U8,
    KV_VT_I8,
    KV_VT_U16,
    KV_VT_I16,
    KV_VT_U32,
    KV_VT_I32,
    KV_VT_F32,
    KV_VT_BOOL,
    KV_VT_STRING,
    KV_VT_ARRAY,
    KV_VT_U64,
    KV_VT_I64,
    KV_VT_F64,
    KV_VT_COUNT
};

typedef struct kv_gguf_value {
    const char *key;     /* terminated */
    uint32_t type, elem; /* vtype; elem: of an array's items */
    uint64_t offset;     /* of the key in the file, for messages */
    union {
        uint64_t u;
        int64_t i;
        double f;
    } scalar;                /* u: unsigned and bool, i: signed, f: floats */
    const char *str;         /* string, terminated */
    size_t n;                /* bytes of the string or items of the array */
    const char *const *strs; /* [n] */
    const uint32_t *lens;    /* [n] */
    const int32_t *i32;      /* [n], integer and bool arrays; NULL when an item does not fit */
    const float *f32;        /* [n], every array of numbers */
} kv_gguf_value;

/* Open addressing, a power of two slots, at most half full; slot = index + 1, 0 empty. */
typedef struct kv_gguf_index {
    uint32_t *slots;
    size_t mask;
} kv_gguf_index;

struct kv_gguf {
    kv_file_map map;
    bool owns_map;
    uint32_t version;
    uint64_t alignment, data_start;
    kv_gguf_value *values;
    kv_tensor *tensors;
    size_t n_values, n_tensors;
    kv_gguf_index value_index, tensor_index;
    struct kv_gguf_chunk *arena;
};

const char *kv_gguf_vtype_name(uint32_t vtype);
bool kv_gguf_is_integer(uint32_t vtype);                              /* bool too */
const kv_gguf_value *kv_gguf_find(const kv_gguf *g, const char *key); /* NULL: absent */

#endif
