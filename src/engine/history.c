/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session remembers of how it came to be: runs of rows by kind, snapshots at sync starts and ends. Truncation
 * either is free (no page sealed since) or returns to a snapshot and replays each row by its own kind; both equal never
 * having been there.
 */
#include "engine/evict.h"

#include "base/alloc.h"

#include <string.h>

kv_status kv_session_push_run(kvist_session *s, uint32_t end, uint8_t kind, uint16_t policy, kv_error *err) {
    if (s->n_runs && kind == KV_ROWS_GENERATED && s->runs[s->n_runs - 1].kind == kind &&
        s->runs[s->n_runs - 1].policy == policy) {
        s->runs[s->n_runs - 1].end = end;
        return KVIST_OK;
    }
    if (s->n_runs == s->cap_runs) { /* once per sync or change of kind, never per token */
        uint32_t cap = s->cap_runs ? 2 * s->cap_runs : 16;
        kv_run *r = kv_realloc(s->runs, cap * sizeof *r);
        if (!r) KV_FAIL(err, MEMORY, "session history");
        s->runs = r;
        s->cap_runs = cap;
    }
    s->runs[s->n_runs++] = (kv_run){.end = end, .kind = kind, .policy = policy};
    return KVIST_OK;
}

static void drop_saved(kvist_session *s, kv_saved *v) {
    if (!v->snap) return;
    kv_snapshot_free(&v->snap);
    if (v->logits) kv_pool_discharge(s->e->pool, s->e->m->hp.n_vocab * sizeof(float));
    kv_free64(v->logits);
    memset(v, 0, sizeof *v);
}

kv_saved *kv_session_find_saved(kvist_session *s, uint32_t at_most) {
    kv_saved *best = NULL;
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS; i++) {
        kv_saved *v = &s->saved[i];
        if (v->snap && kv_snapshot_length(v->snap) <= at_most &&
            (!best || kv_snapshot_length(v->snap) > kv_snapshot_length(best->snap)))
            best = v;
    }
    return best;
}

void kv_session_drop_saved_above(kvist_session *s, uint32_t n) {
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS; i++)
        if (s->saved[i].snap && kv_snapshot_length(s->saved[i].snap) > n) drop_saved(s, &s->saved[i]);
}

static kv_saved *oldest(kvist_session *s) {
    kv_saved *o = NULL;
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS; i++)
        if (s->saved[i].snap && (!o || s->saved[i].used < o->used)) o = &s->saved[i];
    return o;
}

/* Not the snapshot a running job would come back to. */
static bool droppable(const kvist_session *s, const kv_saved *v) {
    return !s->reading || kv_snapshot_length(v->snap) != s->n;
}

bool kv_engine_drop_oldest_snapshot(kvist_engine *e) {
    kv_saved *o = NULL;
    kvist_session *owner = NULL;
    for (kvist_session *s = e->sessions; s; s = s->next)
        for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS; i++) {
            kv_saved *v = &s->saved[i];
            if (!v->snap || !droppable(s, v) || (o && v->used >= o->used)) continue;
            o = v;
            owner = s;
        }
    if (!o) return false;
    drop_saved(owner, o);
    return true;
}

kv_status kv_engine_room(kvist_engine *e, uint64_t pages, uint64_t bytes, kv_error *err) {
    for (;;) {
        kv_pool_stats st;
        kv_pool_get_stats(e->pool, &st);
        uint64_t need = pages * (kv_pool_page_bytes(e->pool) + sizeof(kv_page_entry)) + bytes;
        if (st.bytes_used + st.bytes_charged + need <= st.bytes_budget) return KVIST_OK;
        if (!kv_engine_drop_oldest_snapshot(e) &&
            !kv_evict_under_pressure(e, st.bytes_used + st.bytes_charged + need - st.bytes_budget))
            KV_FAIL(err, BUDGET, "KV memory: %llu bytes needed, %llu of %llu in use (raise --kv-mem or compress more)",
                    (unsigned long long)need, (unsigned long long)(st.bytes_used + st.bytes_charged),
                    (unsigned long long)st.bytes_budget);
    }
}

/* Snapshots are worth having but never worth failing for: when there is no room the session goes on without. */
kv_status kv_session_save(kvist_session *s, kv_error *err) {
    kv_saved *slot = NULL;
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS && !slot; i++)
        if (s->saved[i].snap && kv_snapshot_length(s->saved[i].snap) == s->n) {
            s->saved[i].used = ++s->e->clock;
            return KVIST_OK;
        }
    for (uint32_t i = 0; i < KV_MAX_SNAPSHOTS && !slot; i++)
        if (!s->saved[i].snap) slot = &s->saved[i];
    if (!slot) {
        slot = oldest(s);
        drop_saved(s, slot);
    }
    kv_error ignored;
    kv_status st = kv_snapshot_take(s->seq, &slot->snap, &ignored);
    if (st) {
        slot->snap = NULL;
        if (s->e->p.log) s->e->p.log(s->e->p.log_user, 2, "no room for a snapshot; rollback will replay more");
        return st == KVIST_E_BUDGET ? KVIST_OK : kv_fail(err, st, "snapshot: %s", ignored.message);
    }
    slot->used = ++s->e->clock;
    slot->point = s->point;
    size_t bytes = s->e->m->hp.n_vocab * sizeof(float);
    if (s->logits_valid && !kv_pool_charge(s->e->pool, bytes, &ignored)) {
        slot->logits = kv_malloc64(bytes);
        if (slot->logits)
            memcpy(slot->logits, s->logits, bytes);
        else
            kv_pool_discharge(s->e->pool, bytes);
    }
    return KVIST_OK;
}

kv_status kv_session_add_todo(kvist_session *s, uint32_t end, uint8_t kind, uint16_t policy, kv_error *err) {
    if (s->n_todo == s->cap_todo) {
        uint32_t cap = s->cap_todo ? 2 * s->cap_todo : 8;
        kv_run *r = kv_realloc(s->todo, cap * sizeof *r);
        if (!r) KV_FAIL(err, MEMORY, "session replay");
        s->todo = r;
        s->cap_todo = cap;
    }
    s->todo[s->n_todo++] = (kv_run){.end = end, .kind = kind, .policy = policy};
    return KVIST_OK;
}

/* Cuts the log at n; the part of it after `from` becomes work to do again. */
static kv_status replay_runs(kvist_session *s, uint32_t from, uint32_t n, kv_error *err) {
    uint32_t kept = 0, start = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        kv_run r = s->runs[i];
        uint32_t end = r.end < n ? r.end : n;
        if (end > from && end > start) KV_TRY(kv_session_add_todo(s, end, r.kind, r.policy, err));
        if (r.end <= from)
            kept = i + 1;
        else if (start < from) { /* a snapshot inside a run of generated rows: its first part stays in the log */
            s->runs[i].end = from;
            kept = i + 1;
        }
        start = r.end;
        if (start >= n) break;
    }
    s->n_runs = kept;
    return KVIST_OK;
}

void kv_session_cut_runs(kvist_session *s, uint32_t n) {
    while (s->n_runs && (s->n_runs > 1 ? s->runs[s->n_runs - 2].end : 0) >= n) s->n_runs--;
    if (s->n_runs && s->runs[s->n_runs - 1].end > n) s->runs[s->n_runs - 1].end = n;
    s->point.mass_position = 0; /* the last compression point that is still in the past */
    for (uint32_t i = 0; i < s->n_runs; i++)
        if (s->runs[i].kind == KV_ROWS_PROMPT) s->point.mass_position = s->runs[i].end;
}

void kv_session_forget(kvist_session *s) {
    kv_seq_clear(s->seq);
    s->n = s->seq->length = 0;
    memset(&s->point, 0, sizeof s->point);
    s->point.share_met = true;
}

kv_status kv_session_rewind(kvist_session *s, uint32_t at_most, uint32_t n, kv_error *err) {
    kv_saved *v = kv_session_find_saved(s, at_most);
    s->logits_valid = false;
    kv_session_forget(s);
    if (v) {
        KV_TRY(kv_snapshot_restore(v->snap, s->seq, err));
        s->n = s->seq->length = kv_snapshot_length(v->snap);
        v->used = ++s->e->clock;
        s->point = v->point;
        if (s->n == n && v->logits) {
            memcpy(s->logits, v->logits, s->e->m->hp.n_vocab * sizeof(float));
            s->logits_valid = true;
        }
    }
    return replay_runs(s, s->n, n, err);
}

kv_status kv_session_truncate_to(kvist_session *s, uint32_t n, kv_error *err) {
    if (n == s->n) return KVIST_OK;
    kv_session_drop_saved_above(s, n);
    s->logits_valid = false;
    kv_saved *v = kv_session_find_saved(s, n);
    bool exact = v && kv_snapshot_length(v->snap) == n; /* has its logits too */
    if (n && !exact && kv_seq_truncate_free(s->seq, n)) {
        kv_session_cut_runs(s, n);
        s->n = s->seq->length = n;
        return KVIST_OK;
    }
    if (n == 0) s->n_runs = 0;
    return kv_session_rewind(s, n, n, err);
}
