/* SPDX-License-Identifier: Apache-2.0 */
/* What test programs share: cmocka, where data lie, a small generator. */
#ifndef KV_TESTS_SUPPORT_H
#define KV_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Path of a file of the shared data ("data/text/wiki.test.raw", "golden/..."): $KVIST_DATA/../NAME when KVIST_DATA is
 * set (it names the data folder), else ../shared/NAME. NULL when absent: the test calls skip(). Static storage, valid
 * until the next call. */
const char *test_shared(const char *name);
/* $KVIST_MODEL or models/SmolLM2-135M-Instruct.Q4_1.gguf; NULL when absent. */
const char *test_model(void);
/* Whole file, malloc'd, terminated; NULL when absent. */
char *test_read(const char *path, size_t *len);

/* splitmix64; uniform in [-1, 1); standard normal. */
uint64_t test_rand(uint64_t *state);
float test_uniform(uint64_t *state);
float test_normal(uint64_t *state);

#endif
