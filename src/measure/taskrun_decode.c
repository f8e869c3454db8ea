/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Greedy answers of several sessions as one batch, and where each of them ends. Invariant: an answer is a function of
 * its own session alone. Nothing is allocated per token.
 */
#include <string.h>

#include "base/alloc.h"
#include "measure/taskrun_parts.h"
#include "text/utf8.h"

static bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

/* Follows the text of one more token; true: it holds the newline that ends a first line. *text_before: so does it hold
 * text of that line. */
static bool ends_line(kv_task_answer *a, const char *bytes, size_t n, bool *text_before) {
    *text_before = false;
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == '\n' && !a->blank) return true;
        if (is_blank(bytes[i])) continue;
        a->blank = false;
        *text_before = true;
    }
    return false;
}

/* Counts, per period, how far back the newest tokens repeat; the period of a loop, 0: none. */
static uint32_t loop_period(kv_task_answer *a) {
    uint32_t found = 0, n = a->n;
    for (uint32_t p = 1; p <= KV_TASK_LOOP_PERIOD && p < n; p++) {
        uint16_t *m = &a->match[p - 1];
        *m = a->ids[n - 1] == a->ids[n - 1 - p] ? (uint16_t)(*m + 1) : 0;
        if (!found && *m + p >= KV_TASK_LOOP_TOKENS) found = p; /* the shortest */
    }
    return found;
}

void kv_task_take(const kv_task_decode *d, kv_task_answer *a, int32_t id) {
    if (kvist_token_is_end(d->model, id)) {
        a->ended = a->done = true;
        return;
    }
    a->ids[a->n++] = id;
    a->keep = a->n;
    size_t len = 0;
    const char *bytes = kvist_token_bytes(d->model, id, false, &len);
    bool text;
    if (d->first_line && ends_line(a, bytes ? bytes : "", bytes ? len : 0, &text)) {
        if (!text) a->keep--;
        a->ended = a->done = true;
        return;
    }
    uint32_t period = d->loops ? loop_period(a) : 0;
    if (period && a->n < d->max_new) {
        for (; a->n < d->max_new; a->n++) a->ids[a->n] = a->ids[a->n - period];
        a->keep = a->n;
        a->looped = true;
    }
    a->done = a->n >= d->max_new;
}

kv_status kv_task_answer_all(kv_task_decode *d, kv_error *err) {
    for (uint32_t i = 0; i < d->n; i++) {
        int32_t *ids = d->answers[i].ids;
        d->answers[i] = (kv_task_answer){.ids = ids, .blank = true, .done = d->max_new == 0};
    }
    for (uint32_t step = 1;; step++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < d->n; i++) {
            kv_task_answer *a = &d->answers[i];
            int32_t id;
            if (a->done) continue;
            KV_TRY(kvist_session_sample(d->sessions[i], NULL, &id, err));
            kv_task_take(d, a, id);
            if (a->done) continue; /* the logits after the last token would choose nothing */
            d->batch[n] = d->sessions[i];
            d->batch_ids[n++] = id;
        }
        if (!n) return KVIST_OK;
        if (d->step && !d->step(d->user, step)) KV_FAIL(err, CANCELLED, "stopped while answering");
        KV_TRY(kvist_decode_batch(d->batch, d->batch_ids, n, err));
    }
}

char *kv_task_answer_text(const kvist_model *model, const kv_task_answer *a, bool first_line) {
    size_t total = 0, len, at = 0;
    for (uint32_t i = 0; i < a->n; i++)
        if (kvist_token_bytes(model, a->ids[i], false, &len)) total += len;
    char *raw = kv_malloc(total + 1), *out = kv_malloc(3 * total + 1);
    for (uint32_t i = 0; raw && out && i < a->n; i++) {
        const char *bytes = kvist_token_bytes(model, a->ids[i], false, &len);
        if (!bytes) continue;
        memcpy(raw + at, bytes, len);
        at += len;
    }
    if (raw && out) {
        const char *from = raw;
        size_t n = at;
        for (size_t i = 0; first_line && i < at; i++) { /* lines of nothing but white space do not count */
            if (is_blank(raw[i])) {
                if (raw[i] == '\n') from = raw + i + 1;
                continue;
            }
            break;
        }
        n = at - (size_t)(from - raw);
        const char *end = first_line ? memchr(from, '\n', n) : NULL;
        kv_utf8_clean(from, end ? (size_t)(end - from) : n, out);
    } else {
        kv_free(out);
        out = NULL;
    }
    kv_free(raw);
    return out;
}
