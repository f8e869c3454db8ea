/* SPDX-License-Identifier: Apache-2.0 */
/* How a measurement tells its caller where it is, and how the caller stops it. */
#ifndef KV_MEASURE_WATCH_H
#define KV_MEASURE_WATCH_H

#include "base/err.h"

/* what: the stage ("q4: chunk 2 of 4"); false stops the measurement with KVIST_E_CANCELLED. fn may be NULL. */
typedef struct kv_watch {
    bool (*fn)(void *user, const char *what, uint64_t done, uint64_t total);
    void *user;
} kv_watch;

/* One stage of it: carries a session's own progress on under the stage's name. `done` of the session is added to base,
 * out of total; total 0: the session's own figures. */
typedef struct kv_watch_stage {
    const kv_watch *watch;
    char what[96];
    uint64_t base, total;
} kv_watch_stage;

static inline bool kv_watch_tell(const kv_watch *w, const char *what, uint64_t done, uint64_t total) {
    return !w || !w->fn || w->fn(w->user, what, done, total);
}
static inline bool kv_watch_progress(void *user, uint64_t done, uint64_t total) {
    const kv_watch_stage *s = user;
    return kv_watch_tell(s->watch, s->what, done, total);
}

#endif
