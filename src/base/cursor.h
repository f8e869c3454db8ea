/* SPDX-License-Identifier: Apache-2.0 */
/* Bounded little-endian reader: the only way untrusted bytes are read. Never reads outside [data, data+size). */
#ifndef KV_BASE_CURSOR_H
#define KV_BASE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_cursor {
    const uint8_t *data;
    size_t size, pos;
    bool failed;
} kv_cursor;

static inline kv_cursor kv_cursor_make(const void *data, size_t size) {
    return (kv_cursor){(const uint8_t *)data, size, 0, false};
}
/* NULL (and failed, pos unmoved) when fewer than n bytes are left. Sticky: after a failure all reads fail. */
const uint8_t *kv_cursor_bytes(kv_cursor *c, uint64_t n);
uint8_t kv_cursor_u8(kv_cursor *c); /* 0 on failure */
uint16_t kv_cursor_u16(kv_cursor *c);
uint32_t kv_cursor_u32(kv_cursor *c);
uint64_t kv_cursor_u64(kv_cursor *c);
float kv_cursor_f32(kv_cursor *c);
double kv_cursor_f64(kv_cursor *c);
static inline size_t kv_cursor_left(const kv_cursor *c) { return c->size - c->pos; }

#endif
