/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status names, the version, and the one function that fills an error object.
 * Must not know: any module above. Invariant: err->message is always terminated, err->status is what is returned.
 */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

#define KV_API __attribute__((visibility("default")))

KV_API const char *kvist_version(void) { return KVIST_VERSION; }

KV_API const char *kvist_status_name(kvist_status status) {
    switch (status) {
#define X(name, value, text)                                                                                           \
    case KVIST_##name:                                                                                                 \
        return #name;
        KVIST_STATUS_LIST(X)
#undef X
    }
    return "E_UNKNOWN";
}

static const char *default_message(kv_status status) {
    switch (status) {
#define X(name, value, text)                                                                                           \
    case KVIST_##name:                                                                                                 \
        return text;
        KVIST_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

kv_status kv_fail(kv_error *err, kv_status status, const char *fmt, ...) {
    if (!err) return status;
    err->status = status;
    int n = -1;
    if (fmt) {
        va_list ap;
        va_start(ap, fmt);
        n = vsnprintf(err->message, sizeof err->message, fmt, ap);
        va_end(ap);
    }
    if (n <= 0) snprintf(err->message, sizeof err->message, "%s", default_message(status));
    return status;
}
