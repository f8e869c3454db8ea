/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounded little-endian reads. Owns nothing; bytes are assembled, so that neither alignment nor the host's byte order
 * matters. Invariant: pos <= size, and a failed cursor never succeeds again.
 */
#include "base/cursor.h"

#include <string.h>

const uint8_t *kv_cursor_bytes(kv_cursor *c, uint64_t n) {
    if (c->failed || n > c->size - c->pos) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->data + c->pos;
    c->pos += (size_t)n;
    return p;
}

static uint64_t read_le(kv_cursor *c, unsigned n) {
    const uint8_t *p = kv_cursor_bytes(c, n);
    uint64_t v = 0;
    if (p)
        for (unsigned i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t kv_cursor_u8(kv_cursor *c) { return (uint8_t)read_le(c, 1); }
uint16_t kv_cursor_u16(kv_cursor *c) { return (uint16_t)read_le(c, 2); }
uint32_t kv_cursor_u32(kv_cursor *c) { return (uint32_t)read_le(c, 4); }
uint64_t kv_cursor_u64(kv_cursor *c) { return read_le(c, 8); }

float kv_cursor_f32(kv_cursor *c) {
    uint32_t u = kv_cursor_u32(c);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

double kv_cursor_f64(kv_cursor *c) {
    uint64_t u = kv_cursor_u64(c);
    double f;
    memcpy(&f, &u, sizeof f);
    return f;
}
