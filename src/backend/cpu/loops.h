/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels ask of the compiler. Owns: the two words for it, one meaning in every file.
 * KV_UNROLL before a loop of a constant number of rounds, at most 16: all of them stand side by side, so that an array it indexes lives in
 * registers. gcc unrolls such loops by itself too late, and copies or stores the array in every round.
 * KV_INLINE before a function of constant arguments: each call is a loop of its own.
 */
#ifndef KV_BACKEND_CPU_LOOPS_H
#define KV_BACKEND_CPU_LOOPS_H

#if defined(__clang__)
#define KV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KV_UNROLL _Pragma("GCC unroll 16")
#endif
#define KV_INLINE static inline __attribute__((always_inline))

#endif
