/* SPDX-License-Identifier: Apache-2.0 */
/* One status type, one way to fail, one way to forward. */
#ifndef KV_BASE_ERR_H
#define KV_BASE_ERR_H

#include "kvist/kvist.h"

typedef kvist_status kv_status;
typedef kvist_error kv_error;

#define KV_WARN_UNUSED __attribute__((warn_unused_result))

/* Fills err (which may be NULL) and returns status, so that a caller can `return kv_fail(...)`. */
kv_status kv_fail(kv_error *err, kv_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Returns from the caller with a formatted reason: KV_FAIL(err, FORMAT, "tensor '%s': ...", name). */
#define KV_FAIL(err, code, ...) return kv_fail((err), KVIST_E_##code, __VA_ARGS__)
/* Forwards a failure as it is. */
#define KV_TRY(expr)                                                                                                   \
    do {                                                                                                               \
        kv_status kv_try_status_ = (expr);                                                                             \
        if (kv_try_status_ != KVIST_OK) return kv_try_status_;                                                         \
    } while (0)

#endif
