/* SPDX-License-Identifier: Apache-2.0 */
/* Elementwise kernels, NEON level. Owns: the instance of elem_body.h with the CPU's conversion to f16. Must not know:
 * other levels. */
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#define ELEM_TABLE kv_elem_neon
#define ELEM_NAME "neon"
#define ELEM_F16_8(x, y)                                                                                               \
    vst1q_u16(y, vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(vld1q_f32(x)), vcvt_f16_f32(vld1q_f32((x) + 4)))))
#include "backend/cpu/elem_body.h"
#endif
typedef int kv_elem_neon_unit; /* a translation unit is never empty */
