/* SPDX-License-Identifier: Apache-2.0 */
/* The encode section of the CPU backend: one encoder of pages a level. All give equal bytes
 * (policy/encode/encode_impl.inc). */
#ifndef KV_BACKEND_CPU_ENCODE_H
#define KV_BACKEND_CPU_ENCODE_H

#include "backend/cpu/cpu.h"

/* As kv_encode_ref. */
typedef void (*kv_encode_fn)(const kv_page_layout *l, uint32_t n, const uint16_t *k, const uint16_t *v, const float *q2,
                             uint8_t *page, kv_page_entry *e, void *scratch);

typedef struct kv_encode_kernels {
    const char *name;
    kv_encode_fn encode;
} kv_encode_kernels;

void kv_encode_avx2(const kv_page_layout *l, uint32_t n, const uint16_t *k, const uint16_t *v, const float *q2,
                    uint8_t *page, kv_page_entry *e, void *scratch);
void kv_encode_avx512(const kv_page_layout *l, uint32_t n, const uint16_t *k, const uint16_t *v, const float *q2,
                      uint8_t *page, kv_page_entry *e, void *scratch);
void kv_encode_neon(const kv_page_layout *l, uint32_t n, const uint16_t *k, const uint16_t *v, const float *q2,
                    uint8_t *page, kv_page_entry *e, void *scratch);

#endif
