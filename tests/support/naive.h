/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plain transformer in double precision, straight from a GGUF file: no blocks, no tiles, no cache. The independent
 * oracle of the forward pass. K and V are rounded to f16 as the cache stores them; nothing else is.
 */
#ifndef KV_TESTS_NAIVE_H
#define KV_TESTS_NAIVE_H

#include <stdbool.h>
#include <stdint.h>

/* logits[n][n_vocab] after each of the n tokens; n_vocab is returned, 0 on failure (said on stderr). */
uint32_t naive_forward(const char *path, const int32_t *ids, uint32_t n, double **logits);

/* The same, calling probe with the probabilities p[0..row] of every layer, row and query head. */
typedef void (*naive_probe)(void *user, uint32_t layer, uint32_t row, uint32_t head, const double *p);
uint32_t naive_forward_probed(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                              void *user);
/* And states with each layer's q[n][n_q][dk] before RoPE, k[n][n_kv][dk] after it and v[n][n_kv][dv], the latter two as
 * stored in f16. */
typedef void (*naive_states)(void *user, uint32_t layer, const double *q, const double *k, const double *v);
uint32_t naive_forward_watched(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                               naive_states states, void *user);

/* And visible: whether a row sees a token (0..row) in the heads that share KV head kv_head, asked in order of rows. */
typedef bool (*naive_visible)(void *user, uint32_t layer, uint32_t row, uint32_t kv_head, uint32_t token);
uint32_t naive_forward_seen(const char *path, const int32_t *ids, uint32_t n, double **logits, naive_probe probe,
                            naive_states states, naive_visible visible, void *user);

/* KL(p || q) in nats of two logit rows, and whether their best tokens agree. */
double naive_kl(const double *p, const double *q, uint32_t n);
double naive_kl_f32(const float *p, const float *q, uint32_t n);
uint32_t naive_argmax_f32(const float *x, uint32_t n);

#endif
