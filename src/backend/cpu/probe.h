/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread of this machine can do at most: loops of nothing but the instruction a kernel lives on, operands and
 * accumulators in registers, and a plain streaming read. One file per instruction set level. Knows no clock, no
 * threads. Invariants: no loop can be folded, hoisted or dropped by a compiler; each returns a value made of all its
 * results; accumulators stay in registers, one instruction each a round. An array over which a compiler unrolls late is
 * copied or stored in every round, and a rate of half the machine's makes every share of it twice too good: so all loops
 * over chains are KV_PROBE_CHAINS, and each sum passes through a KEEP of its file.
 */
#ifndef KV_BACKEND_CPU_PROBE_H
#define KV_BACKEND_CPU_PROBE_H

#include "backend/cpu/loops.h"

#include <stddef.h>
#include <stdint.h>

/* `rounds` passes over the accumulators of a loop of `macs` multiply-adds each. */
typedef struct kv_probe_loop {
    double (*run)(uint32_t rounds); /* NULL: the level has no such instruction */
    double macs;                    /* of one round */
} kv_probe_loop;

typedef struct kv_probe {
    kv_probe_loop int8, f32;
    kv_probe_loop int16; /* where prompt attention runs on it */
    /* Reads p[0..bytes), bytes a multiple of KV_PROBE_STEP, p 64-byte aligned. */
    uint64_t (*read)(const uint8_t *p, size_t bytes);
} kv_probe;
#define KV_PROBE_STEP 512u

#define KV_PROBE_CHAINS(j, n) KV_UNROLL for (int j = 0; j < (n); j++)

/* Of a level of base/cpu.h; levels without a file of their own: the portable one. */
const kv_probe *kv_cpu_probe(int level);
/* Dot products of bf16 pairs, where kv_cpu_has_bf16(); run is NULL elsewhere. */
kv_probe_loop kv_cpu_probe_bf16(void);

extern const kv_probe kv_cpu_probe_ref;
#if defined(__x86_64__)
extern const kv_probe kv_cpu_probe_avx2, kv_cpu_probe_avx512;
extern const kv_probe_loop kv_cpu_probe_bf16_avx512;
#elif defined(__aarch64__)
extern const kv_probe kv_cpu_probe_neon;
#endif

#endif
