/* SPDX-License-Identifier: Apache-2.0 */
/* Elementwise kernels, portable level. Owns: the instance of elem_body.h for level 0. Must not know: instruction sets.
 */
#define ELEM_TABLE kv_elem_ref
#define ELEM_NAME "ref"
#include "backend/cpu/elem_body.h"
