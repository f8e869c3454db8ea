/* SPDX-License-Identifier: Apache-2.0 */
/* Elementwise kernels, AVX-512 level. Owns: the instance of elem_body.h compiled with AVX-512. Must not know: other
 * levels. */
#if defined(__AVX512F__)
#include <immintrin.h>

#define ELEM_TABLE kv_elem_avx512
#define ELEM_NAME "avx512"
#define ELEM_F16_8(x, y)                                                                                               \
    _mm_storeu_si128((void *)(y), _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#include "backend/cpu/elem_body.h"
#endif
typedef int kv_elem_avx512_unit; /* a translation unit is never empty */
