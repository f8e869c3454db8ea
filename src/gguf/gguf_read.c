/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GGUF parser. Owns: the kv_gguf and its arena. Must not know: what keys and tensors mean (only general.alignment).
 * The bytes are hostile until proven otherwise: every read goes through one kv_cursor, every count is compared with the
 * bytes that are left before anything is allocated, every message names the key or tensor and the offset.
 */
#include "base/alloc.h"
#include "base/cursor.h"
#include "base/hash.h"
#include "gguf/gguf_impl.h"

#include <string.h>

#define MAGIC 0x46554747u /* "GGUF" */
/* Real files have a few dozen keys, a few hundred to some ten thousand tensors, vocabularies below 300,000. The limits
 * keep the memory of a hostile file within a small multiple of its size. */
#define MAX_KEYS 65536u
#define MAX_TENSORS (1u << 20)
#define MAX_ITEMS (1u << 24)
#define MAX_NAME 65535u
/* Least bytes of an entry: key (8 + 1), type 4, value 1; name (8 + 1), n_dims 4, ne 8, type 4, offset 8. */
#define MIN_KEY_BYTES 14u
#define MIN_TENSOR_BYTES 33u

/* ---- arena: everything is freed at once */

typedef struct kv_gguf_chunk {
    struct kv_gguf_chunk *next;
    size_t used, cap;
} chunk;
#define CHUNK_BYTES ((size_t)64 << 10)

static void *arena_alloc(kv_gguf *g, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    chunk *c = g->arena;
    if (!c || c->cap - c->used < bytes) {
        size_t cap = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES, head = (sizeof *c + 15) & ~(size_t)15;
        c = kv_malloc(head + cap);
        if (!c) return NULL;
        *c = (chunk){g->arena, 0, cap};
        g->arena = c;
    }
    void *p = (uint8_t *)c + ((sizeof *c + 15) & ~(size_t)15) + c->used;
    c->used += bytes;
    return p;
}

static char *arena_text(kv_gguf *g, const uint8_t *s, size_t len) {
    char *p = arena_alloc(g, len + 1, 1);
    if (!p) return NULL;
    memcpy(p, s, len);
    p[len] = 0;
    return p;
}

/* ---- index */

static kv_status index_create(kv_gguf *g, kv_gguf_index *index, size_t n, kv_error *err) {
    size_t slots = 8;
    while (slots < 2 * n) slots *= 2;
    index->slots = arena_alloc(g, slots, sizeof *index->slots);
    if (!index->slots) KV_FAIL(err, MEMORY, "no memory for an index of %zu names", n);
    memset(index->slots, 0, slots * sizeof *index->slots);
    index->mask = slots - 1;
    return KVIST_OK;
}

/* The slot that holds the name, or the empty one where it belongs. base[i * stride] begins with the name's pointer. */
static uint32_t *index_slot(const kv_gguf_index *index, const void *base, size_t stride, const char *name) {
    for (size_t h = kv_hash64(name, strlen(name), 0);; h++) {
        uint32_t *slot = &index->slots[h & index->mask];
        if (!*slot) return slot;
        const char *const *entry = (const void *)((const char *)base + (*slot - 1) * stride);
        if (!strcmp(*entry, name)) return slot;
    }
}

_Static_assert(offsetof(kv_gguf_value, key) == 0 && offsetof(kv_tensor, name) == 0, "index_slot reads the name first");

const kv_gguf_value *kv_gguf_find(const kv_gguf *g, const char *key) {
    uint32_t slot = *index_slot(&g->value_index, g->values, sizeof *g->values, key);
    return slot ? &g->values[slot - 1] : NULL;
}

const kv_tensor *kv_gguf_tensor(const kv_gguf *g, const char *name) {
    uint32_t slot = *index_slot(&g->tensor_index, g->tensors, sizeof *g->tensors, name);
    return slot ? &g->tensors[slot - 1] : NULL;
}

/* ---- values */

/* A key or tensor name: 1..MAX_NAME bytes without a zero byte. what: "key 3" for the message. */
static kv_status read_name(kv_gguf *g, kv_cursor *c, const char *kind, size_t i, const char **out, kv_error *err) {
    size_t at = c->pos;
    uint64_t len = kv_cursor_u64(c);
    if (c->failed) KV_FAIL(err, FORMAT, "%s %zu at offset %zu: the file ends in its name", kind, i, at);
    if (len < 1 || len > MAX_NAME)
        KV_FAIL(err, FORMAT, "%s %zu at offset %zu: name of %llu bytes", kind, i, at, (unsigned long long)len);
    const uint8_t *s = kv_cursor_bytes(c, len);
    if (!s) KV_FAIL(err, FORMAT, "%s %zu at offset %zu: the file ends in its name", kind, i, at);
    if (memchr(s, 0, (size_t)len)) KV_FAIL(err, FORMAT, "%s %zu at offset %zu: zero byte in its name", kind, i, at);
    *out = arena_text(g, s, (size_t)len);
    if (!*out) KV_FAIL(err, MEMORY, "no memory for the name of %s %zu", kind, i);
    return KVIST_OK;
}

static const uint8_t vtype_bytes[KV_VT_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; /* 0: not fixed */

/* Reads one number; false: a bool that is neither 0 nor 1. The caller has checked that the bytes are there. */
static bool read_number(kv_cursor *c, uint32_t type, kv_gguf_value *v) {
    switch (type) {
    case KV_VT_U8:
        v->scalar.u = kv_cursor_u8(c);
        return true;
    case KV_VT_I8:
        v->scalar.i = (int8_t)kv_cursor_u8(c);
        return true;
    case KV_VT_U16:
        v->scalar.u = kv_cursor_u16(c);
        return true;
    case KV_VT_I16:
        v->scalar.i = (int16_t)kv_cursor_u16(c);
        return true;
    case KV_VT_U32:
        v->scalar.u = kv_cursor_u32(c);
        return true;
    case KV_VT_I32:
        v->scalar.i = (int32_t)kv_cursor_u32(c);
        return true;
    case KV_VT_U64:
        v->scalar.u = kv_cursor_u64(c);
        return true;
    case KV_VT_I64:
        v->scalar.i = (int64_t)kv_cursor_u64(c);
        return true;
    case KV_VT_F32:
        v->scalar.f = kv_cursor_f32(c);
        return true;
    case KV_VT_F64:
        v->scalar.f = kv_cursor_f64(c);
        return true;
    default:
        v->scalar.u = kv_cursor_u8(c);
        return v->scalar.u <= 1;
    }
}

static bool is_signed(uint32_t t) { return t == KV_VT_I8 || t == KV_VT_I16 || t == KV_VT_I32 || t == KV_VT_I64; }
static bool is_float(uint32_t t) { return t == KV_VT_F32 || t == KV_VT_F64; }

static kv_status truncated(const kv_gguf_value *v, kv_error *err) {
    KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: the file ends in its value", v->key,
            (unsigned long long)v->offset);
}

static kv_status no_memory(const kv_gguf_value *v, kv_error *err) {
    KV_FAIL(err, MEMORY, "key '%.100s' at offset %llu: no memory for its value", v->key, (unsigned long long)v->offset);
}

static kv_status read_string(kv_gguf *g, kv_cursor *c, kv_gguf_value *v, kv_error *err) {
    uint64_t len = kv_cursor_u64(c);
    const uint8_t *s = kv_cursor_bytes(c, len);
    if (!s) return truncated(v, err);
    v->n = (size_t)len;
    v->str = arena_text(g, s, v->n);
    return v->str ? KVIST_OK : no_memory(v, err);
}

/* Two passes: the first proves every length and adds them up, the second copies into one block. */
static kv_status read_strings(kv_gguf *g, kv_cursor *c, kv_gguf_value *v, kv_error *err) {
    kv_cursor start = *c;
    size_t total = 0;
    for (size_t i = 0; i < v->n; i++) {
        uint64_t len = kv_cursor_u64(c);
        if (!kv_cursor_bytes(c, len)) return truncated(v, err);
        if (len > UINT32_MAX)
            KV_FAIL(err, FORMAT, "key '%.100s': item %zu has %llu bytes", v->key, i, (unsigned long long)len);
        total += (size_t)len + 1;
    }
    const char **strs = arena_alloc(g, v->n, sizeof *strs);
    uint32_t *lens = arena_alloc(g, v->n, sizeof *lens);
    char *text = arena_alloc(g, total, 1);
    if (!strs || !lens || !text) return no_memory(v, err);
    for (size_t i = 0; i < v->n; i++) {
        lens[i] = (uint32_t)kv_cursor_u64(&start);
        const uint8_t *s = kv_cursor_bytes(&start, lens[i]);
        memcpy(text, s, lens[i]);
        text[lens[i]] = 0;
        strs[i] = text;
        text += lens[i] + 1;
    }
    v->strs = strs;
    v->lens = lens;
    return KVIST_OK;
}

static kv_status read_numbers(kv_gguf *g, kv_cursor *c, kv_gguf_value *v, kv_error *err) {
    float *f = arena_alloc(g, v->n, sizeof *f);
    int32_t *q = kv_gguf_is_integer(v->elem) ? arena_alloc(g, v->n, sizeof *q) : NULL;
    if (!f || (!q && kv_gguf_is_integer(v->elem))) return no_memory(v, err);
    bool fits = true;
    for (size_t i = 0; i < v->n; i++) {
        kv_gguf_value item;
        size_t at = c->pos;
        if (!read_number(c, v->elem, &item))
            KV_FAIL(err, FORMAT, "key '%.100s': bool item %zu at offset %zu is not 0 or 1", v->key, i, at);
        if (is_float(v->elem)) {
            f[i] = (float)item.scalar.f;
        } else if (is_signed(v->elem)) {
            f[i] = (float)item.scalar.i;
            fits = fits && item.scalar.i >= INT32_MIN && item.scalar.i <= INT32_MAX;
            q[i] = (int32_t)(uint32_t)item.scalar.u; /* two's complement cut; unused when it does not fit */
        } else {
            f[i] = (float)item.scalar.u;
            fits = fits && item.scalar.u <= INT32_MAX;
            q[i] = (int32_t)(uint32_t)item.scalar.u;
        }
    }
    v->f32 = f;
    v->i32 = fits ? q : NULL;
    return KVIST_OK;
}

static kv_status read_array(kv_gguf *g, kv_cursor *c, kv_gguf_value *v, kv_error *err) {
    v->elem = kv_cursor_u32(c);
    uint64_t n = kv_cursor_u64(c);
    if (c->failed) return truncated(v, err);
    if (v->elem == KV_VT_ARRAY)
        KV_FAIL(err, UNSUPPORTED, "key '%.100s' at offset %llu: array of arrays", v->key,
                (unsigned long long)v->offset);
    if (v->elem >= KV_VT_COUNT)
        KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: unknown item type %u", v->key, (unsigned long long)v->offset,
                v->elem);
    uint32_t least = v->elem == KV_VT_STRING ? 8 : vtype_bytes[v->elem];
    if (n > kv_cursor_left(c) / least || n > MAX_ITEMS)
        KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: array of %llu items, %zu bytes are left", v->key,
                (unsigned long long)v->offset, (unsigned long long)n, kv_cursor_left(c));
    v->n = (size_t)n;
    return v->elem == KV_VT_STRING ? read_strings(g, c, v, err) : read_numbers(g, c, v, err);
}

static kv_status read_value(kv_gguf *g, kv_cursor *c, kv_gguf_value *v, kv_error *err) {
    v->type = kv_cursor_u32(c);
    if (c->failed) return truncated(v, err);
    if (v->type >= KV_VT_COUNT)
        KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: unknown value type %u", v->key,
                (unsigned long long)v->offset, v->type);
    if (v->type == KV_VT_STRING) return read_string(g, c, v, err);
    if (v->type == KV_VT_ARRAY) return read_array(g, c, v, err);
    if (kv_cursor_left(c) < vtype_bytes[v->type]) return truncated(v, err);
    if (!read_number(c, v->type, v))
        KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: bool %u is not 0 or 1", v->key,
                (unsigned long long)v->offset, (unsigned)v->scalar.u);
    return KVIST_OK;
}

static kv_status read_values(kv_gguf *g, kv_cursor *c, size_t n, kv_error *err) {
    g->values = arena_alloc(g, n, sizeof *g->values);
    if (!g->values) KV_FAIL(err, MEMORY, "no memory for %zu keys", n);
    KV_TRY(index_create(g, &g->value_index, n, err));
    for (size_t i = 0; i < n; i++) {
        kv_gguf_value *v = &g->values[i];
        *v = (kv_gguf_value){.offset = c->pos};
        KV_TRY(read_name(g, c, "key", i, &v->key, err));
        uint32_t *slot = index_slot(&g->value_index, g->values, sizeof *g->values, v->key);
        if (*slot)
            KV_FAIL(err, FORMAT, "key '%.100s' at offset %llu: given twice", v->key, (unsigned long long)v->offset);
        KV_TRY(read_value(g, c, v, err));
        *slot = (uint32_t)i + 1;
        g->n_values = i + 1;
    }
    return KVIST_OK;
}

/* ---- tensors */

#define TENSOR_FAIL(code, fmt, ...) KV_FAIL(err, code, "tensor '%.100s' at offset %zu: " fmt, t->name, at, __VA_ARGS__)

static kv_status read_tensor(kv_gguf *g, kv_cursor *c, size_t i, kv_tensor *t, kv_error *err) {
    size_t at = c->pos;
    *t = (kv_tensor){.ne = {1, 1, 1, 1}};
    KV_TRY(read_name(g, c, "tensor", i, &t->name, err));
    t->n_dims = kv_cursor_u32(c);
    if (!c->failed && (t->n_dims < 1 || t->n_dims > 4)) TENSOR_FAIL(FORMAT, "%u dimensions", t->n_dims);
    for (uint32_t d = 0; d < t->n_dims; d++) t->ne[d] = kv_cursor_u64(c);
    t->type = kv_cursor_u32(c);
    t->offset = kv_cursor_u64(c); /* from the start of the data section, made absolute in place_tensors */
    if (c->failed) TENSOR_FAIL(FORMAT, "%s", "the file ends in its description");
    const kv_type_info *info = kv_type_get(t->type);
    if (!info) TENSOR_FAIL(UNSUPPORTED, "tensor type %u", t->type);
    uint64_t values = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (!t->ne[d]) TENSOR_FAIL(FORMAT, "dimension %u is 0", d);
        if (__builtin_mul_overflow(values, t->ne[d], &values)) TENSOR_FAIL(FORMAT, "%s", "too many values");
    }
    if (t->ne[0] % info->block)
        TENSOR_FAIL(FORMAT, "rows of %llu values are not whole %s blocks of %u", (unsigned long long)t->ne[0],
                    info->name, info->block);
    if (__builtin_mul_overflow(values / info->block, (uint64_t)info->bytes, &t->bytes))
        TENSOR_FAIL(FORMAT, "%s", "too many values");
    uint32_t *slot = index_slot(&g->tensor_index, g->tensors, sizeof *g->tensors, t->name);
    if (*slot) TENSOR_FAIL(FORMAT, "%s", "given twice");
    *slot = (uint32_t)i + 1;
    return KVIST_OK;
}

/* Data lie behind the descriptions: proves that each tensor is inside the file and makes offset and data absolute. */
static kv_status place_tensors(kv_gguf *g, size_t end_of_head, kv_error *err) {
    uint64_t pad = (g->alignment - end_of_head % g->alignment) % g->alignment, total = 0;
    g->data_start = end_of_head + pad;
    if (!g->n_tensors) return KVIST_OK;
    uint64_t room = g->data_start <= g->map.size ? g->map.size - g->data_start : 0;
    for (size_t i = 0; i < g->n_tensors; i++) {
        kv_tensor *t = &g->tensors[i];
        if (t->offset % g->alignment)
            KV_FAIL(err, FORMAT, "tensor '%.100s': data offset %llu is not a multiple of %llu", t->name,
                    (unsigned long long)t->offset, (unsigned long long)g->alignment);
        if (t->offset > room || t->bytes > room - t->offset)
            KV_FAIL(err, FORMAT, "tensor '%.100s': %llu bytes at offset %llu + %llu lie outside the file of %zu bytes",
                    t->name, (unsigned long long)t->bytes, (unsigned long long)g->data_start,
                    (unsigned long long)t->offset, g->map.size);
        total += t->bytes; /* cannot wrap: each is at most room, and there are at most 2^20 */
        t->offset += g->data_start;
        t->data = g->map.data + t->offset;
    }
    if (total > room)
        KV_FAIL(err, FORMAT, "tensors overlap: they add up to %llu bytes, the file has room for %llu at offset %llu",
                (unsigned long long)total, (unsigned long long)room, (unsigned long long)g->data_start);
    return KVIST_OK;
}

static kv_status read_tensors(kv_gguf *g, kv_cursor *c, size_t n, kv_error *err) {
    g->tensors = arena_alloc(g, n, sizeof *g->tensors);
    if (!g->tensors) KV_FAIL(err, MEMORY, "no memory for %zu tensors", n);
    KV_TRY(index_create(g, &g->tensor_index, n, err));
    for (size_t i = 0; i < n; i++) {
        KV_TRY(read_tensor(g, c, i, &g->tensors[i], err));
        g->n_tensors = i + 1;
    }
    return place_tensors(g, c->pos, err);
}

/* ---- file */

static kv_status read_alignment(kv_gguf *g, kv_error *err) {
    g->alignment = 32; /* the format's default */
    const kv_gguf_value *v = kv_gguf_find(g, "general.alignment");
    if (!v) return KVIST_OK;
    /* 8: the format's own least; with it every block's f16 and every f32 in a mapping is aligned. */
    if (v->type != KV_VT_U32 || v->scalar.u < 8 || (v->scalar.u & (v->scalar.u - 1)))
        KV_FAIL(err, FORMAT, "key 'general.alignment' at offset %llu: not a power of two of at least 8",
                (unsigned long long)v->offset);
    g->alignment = v->scalar.u;
    return KVIST_OK;
}

static kv_status read_file(kv_gguf *g, kv_error *err) {
    kv_cursor c = kv_cursor_make(g->map.data, g->map.size);
    uint32_t magic = kv_cursor_u32(&c);
    if (c.failed || magic != MAGIC) KV_FAIL(err, FORMAT, "not a GGUF file");
    g->version = kv_cursor_u32(&c);
    if (!c.failed && !(g->version & 0xffff)) KV_FAIL(err, UNSUPPORTED, "big-endian GGUF (version field at offset 4)");
    if (!c.failed && g->version != 2 && g->version != 3)
        KV_FAIL(err, UNSUPPORTED, "GGUF version %u at offset 4; 2 and 3 are known", g->version);
    uint64_t n_tensors = kv_cursor_u64(&c), n_values = kv_cursor_u64(&c);
    if (c.failed) KV_FAIL(err, FORMAT, "the file ends in its header at offset %zu", c.pos);
    if (n_values > MAX_KEYS || n_values > kv_cursor_left(&c) / MIN_KEY_BYTES)
        KV_FAIL(err, FORMAT, "%llu keys at offset 16, %zu bytes are left", (unsigned long long)n_values,
                kv_cursor_left(&c));
    if (n_tensors > MAX_TENSORS || n_tensors > kv_cursor_left(&c) / MIN_TENSOR_BYTES)
        KV_FAIL(err, FORMAT, "%llu tensors at offset 8, %zu bytes are left", (unsigned long long)n_tensors,
                kv_cursor_left(&c));
    KV_TRY(read_values(g, &c, (size_t)n_values, err));
    KV_TRY(read_alignment(g, err));
    return read_tensors(g, &c, (size_t)n_tensors, err);
}

/* Takes the mapping over when owns_map, also on failure. */
static kv_status open_map(kv_file_map map, bool owns_map, kv_gguf **out, kv_error *err) {
    *out = NULL;
    kv_gguf *g = kv_calloc(1, sizeof *g);
    if (!g) {
        if (owns_map) kv_os_unmap_file(&map);
        KV_FAIL(err, MEMORY, "no memory to open a GGUF file");
    }
    g->map = map;
    g->owns_map = owns_map;
    kv_status status = read_file(g, err);
    if (status != KVIST_OK) {
        kv_gguf_close(&g);
        return status;
    }
    *out = g;
    return KVIST_OK;
}

kv_status kv_gguf_open_memory(const void *data, size_t size, kv_gguf **out, kv_error *err) {
    return open_map((kv_file_map){data, size}, false, out, err);
}

kv_status kv_gguf_open(const char *path, kv_gguf **out, kv_error *err) {
    kv_file_map map;
    *out = NULL;
    KV_TRY(kv_os_map_file(path, &map, err));
    kv_error inner = {0};
    kv_status status = open_map(map, true, out, &inner);
    return status == KVIST_OK ? status : kv_fail(err, status, "%s: %s", path, inner.message);
}

void kv_gguf_close(kv_gguf **gguf) {
    kv_gguf *g = gguf ? *gguf : NULL;
    if (!g) return;
    *gguf = NULL;
    for (chunk *c = g->arena, *next; c; c = next) {
        next = c->next;
        kv_free(c);
    }
    if (g->owns_map) kv_os_unmap_file(&g->map);
    kv_free(g);
}
