/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations by lane that the NEON files share. Owns: switches over the lane, since the instructions want a constant
 * where loops are not unrolled; with constant arguments nothing is left of them. Included by *_neon.c and *_neon.h only.
 */
#ifndef KV_BACKEND_CPU_LANE_NEON_H
#define KV_BACKEND_CPU_LANE_NEON_H

#include "backend/cpu/loops.h"

#include <arm_neon.h>

/* acc[i] += sum of w's four bytes i times the four bytes of lane `lane` of a. */
KV_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t a, const int lane) {
    switch (lane) {
    case 0:
        return vdotq_laneq_s32(acc, w, a, 0);
    case 1:
        return vdotq_laneq_s32(acc, w, a, 1);
    case 2:
        return vdotq_laneq_s32(acc, w, a, 2);
    default:
        return vdotq_laneq_s32(acc, w, a, 3);
    }
}
KV_INLINE float32x4_t mul_lane(float32x4_t x, float32x4_t y, const int lane) {
    switch (lane) {
    case 0:
        return vmulq_laneq_f32(x, y, 0);
    case 1:
        return vmulq_laneq_f32(x, y, 1);
    case 2:
        return vmulq_laneq_f32(x, y, 2);
    default:
        return vmulq_laneq_f32(x, y, 3);
    }
}
KV_INLINE float32x4_t fma_lane(float32x4_t acc, float32x4_t x, float32x4_t y, const int lane) {
    switch (lane) {
    case 0:
        return vfmaq_laneq_f32(acc, x, y, 0);
    case 1:
        return vfmaq_laneq_f32(acc, x, y, 1);
    case 2:
        return vfmaq_laneq_f32(acc, x, y, 2);
    default:
        return vfmaq_laneq_f32(acc, x, y, 3);
    }
}
KV_INLINE int32x4_t dup_lane(int32x4_t x, const int lane) {
    switch (lane) {
    case 0:
        return vdupq_laneq_s32(x, 0);
    case 1:
        return vdupq_laneq_s32(x, 1);
    case 2:
        return vdupq_laneq_s32(x, 2);
    default:
        return vdupq_laneq_s32(x, 3);
    }
}

#endif
