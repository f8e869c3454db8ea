/* SPDX-License-Identifier: Apache-2.0 */
/* Reports: counted from the pages that are there, never estimated. */
#include "engine/shadow.h"

#include "base/alloc.h"
#include "cache/positions.h"
#include "policy/guard.h"

#include <math.h>
#include <string.h>

static void masses(const kvist_session *s, kvist_report *out) {
    double sum = 0;
    out->mass_min = 1.0;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        double m = s->seq->streams[i].mass;
        sum += m;
        if (m >= out->mass_min) continue;
        out->mass_min = m;
        for (uint32_t l = 0; l < s->seq->n_layers; l++)
            if (i >= s->seq->layer_first[l] && i < s->seq->layer_first[l + 1]) {
                out->mass_min_layer = l;
                out->mass_min_head = i - s->seq->layer_first[l];
            }
    }
    out->mass_mean = s->seq->n_streams ? sum / s->seq->n_streams : 1.0;
    out->mass_position = s->point.mass_position;
}

static uint32_t guard_pages(const kvist_session *s, const kv_stream *st) {
    uint32_t n = 0;
    for (uint32_t h = 0; h < st->n_handles; h++)
        n += (kv_pool_entry(s->e->pool, st->handles[h].page)->flags & KV_PAGE_GUARD) != 0;
    return n;
}

static bool guard_unmet(const kvist_session *s, const kv_stream *st) {
    double guard = s->policies[s->n_policies - 1].guard;
    return guard > 0 && !kv_guard_met(guard, st->mass);
}

static void fill_guard(const kvist_session *s, kvist_report *out) {
    out->guard = s->policies[s->n_policies - 1].guard;
    for (uint32_t i = 0; i < s->seq->n_streams; i++) {
        uint32_t pages = guard_pages(s, &s->seq->streams[i]);
        out->pages_guard += pages;
        out->guard_heads_widened += pages > 0;
        out->guard_heads_unmet += guard_unmet(s, &s->seq->streams[i]);
    }
    out->guard_met = out->guard_heads_unmet == 0;
}

/* Positions that only the shadow asked for are its bytes, not the cache's. */
static void uncount_positions(const kvist_session *s, kvist_report *out) {
    if (s->track) return;
    out->bytes_shadow += out->bytes_positions;
    out->bytes_true -= out->bytes_positions;
    out->bytes_unique -= out->bytes_positions < out->bytes_unique ? out->bytes_positions : out->bytes_unique;
    out->bytes_positions = 0;
}

/* References by the session's own snapshots: they share nothing with anybody. NULL (pages then count as shared) when
 * there is no memory. */
static uint32_t *own_refs(const kvist_session *s) {
    kv_pool_stats st;
    kv_pool_get_stats(s->e->pool, &st);
    uint32_t *refs = kv_calloc(st.pages_max, sizeof *refs);
    for (uint32_t i = 0; refs && i < KV_MAX_SNAPSHOTS; i++)
        if (s->saved[i].snap) kv_snapshot_add_refs(s->saved[i].snap, refs);
    return refs;
}

void kvist_session_report(const kvist_session *cs, kvist_report *out) {
    kvist_session *s = (kvist_session *)cs; /* the engine's lock is not part of what the report describes */
    memset(out, 0, sizeof *out);
    kv_engine_enter(s->e);
    kv_seq_bytes b;
    uint32_t *refs = own_refs(s);
    kv_seq_count(s->seq, refs, &b);
    kv_free(refs);
    kv_policy_print(&s->policies[s->n_policies - 1], out->policy, sizeof out->policy);
    out->tokens_seen = s->n;
    out->tokens_stored = s->seq->n_streams ? (double)b.tokens_stored_sum / s->seq->n_streams : 0;
    out->bytes_true = b.bytes_true;
    out->bytes_unique = b.bytes_unique;
    out->bytes_positions = b.bytes_positions;
    uncount_positions(s, out);
    const kv_hparams *hp = &s->e->m->hp;
    out->bytes_f16 = (uint64_t)s->n * 2 * hp->n_layers * hp->n_kv * (hp->dk + hp->dv);
    out->bytes_peak = s->bytes_peak;
    out->share = out->bytes_f16 ? (double)out->bytes_true / (double)out->bytes_f16 : 0;
    out->share_met = s->point.share_met;
    memcpy(out->share_note, s->point.share_note, sizeof out->share_note);
    masses(s, out);
    fill_guard(s, out);
    out->bytes_shadow += kv_shadow_get(s, &out->shadow);
    out->pages = b.pages;
    for (uint32_t i = 0; i < KVIST_MAX_FORMATS; i++) out->pages_by_format[i] = b.by_format[i];
    out->pages_dropped_pressure = s->pages_dropped_pressure;
    out->prefill_seconds = s->prefill_seconds;
    out->decode_seconds = s->decode_seconds;
    out->score_seconds = s->score_seconds;
    out->seal_seconds = s->seal_seconds;
    out->prefill_tokens = s->prefill_tokens;
    out->decode_tokens = s->decode_tokens;
    kv_engine_leave(s->e);
}

const char *kvist_format_name(uint32_t format) { return format < KV_FORMATS ? kv_formats[format].name : NULL; }

size_t kvist_session_streams(const kvist_session *cs, kvist_stream_report *out, size_t cap) {
    kvist_session *s = (kvist_session *)cs;
    size_t n = 0;
    kv_engine_enter(s->e);
    for (uint32_t l = 0; l < s->seq->n_layers; l++)
        for (uint32_t i = s->seq->layer_first[l]; i < s->seq->layer_first[l + 1]; i++, n++) {
            const kv_stream *st = &s->seq->streams[i];
            if (n >= cap) continue;
            kv_seq_bytes b = {0};
            kv_stream_count(s->seq, st, NULL, &b);
            out[n] = (kvist_stream_report){.layer = l,
                                           .head = i - s->seq->layer_first[l],
                                           .tokens_stored = st->tokens_sealed + st->tail_len,
                                           .pages = st->n_handles + st->n_tail,
                                           .mass = st->mass,
                                           .bytes_true = b.bytes_true - (s->track ? 0 : b.bytes_positions),
                                           .bytes_positions = s->track ? b.bytes_positions : 0,
                                           .pages_guard = guard_pages(s, st),
                                           .guard_unmet = guard_unmet(s, st)};
        }
    kv_engine_leave(s->e);
    return n;
}

int kvist_session_track(kvist_session *s, bool on, kvist_error *err) {
    if (!s) KV_FAIL(err, ARG, "track: NULL session");
    kv_engine_enter(s->e);
    uint32_t n = s->n;
    kv_status st = !n && on ? kv_positions_prepare(s->e->pool, err) : KVIST_OK;
    if (!n && !st) {
        s->track = on;
        s->seq->track = on || s->shadow;
    }
    kv_engine_leave(s->e);
    if (n) KV_FAIL(err, STATE, "track: the session holds %u tokens already", n);
    return st;
}

/* Where kvist_session_kept writes; n counts on past cap. */
typedef struct kept_list {
    uint32_t *positions;
    float *prices;
    uint8_t *formats;
    size_t n, cap;
} kept_list;

static void add_kept(kept_list *k, uint32_t position, float price, uint8_t format) {
    size_t i = k->n++;
    if (i >= k->cap) return;
    if (k->positions) k->positions[i] = position;
    if (k->prices) k->prices[i] = price;
    if (k->formats) k->formats[i] = format;
}

size_t kvist_session_kept(const kvist_session *cs, uint32_t layer, uint32_t head, uint32_t *positions, float *prices,
                          uint8_t *formats, size_t cap) {
    kvist_session *s = (kvist_session *)cs;
    kept_list k = {positions, prices, formats, 0, cap};
    uint32_t in_page[KV_POSITIONS_MAX];
    if (!s || layer >= s->seq->n_layers || head >= s->seq->layer_first[layer + 1] - s->seq->layer_first[layer])
        return 0;
    kv_engine_enter(s->e);
    const kv_stream *st = kv_seq_stream(s->seq, layer, head);
    for (uint32_t h = 0; s->track && h < st->n_handles; h++) {
        const kv_page_entry *e = kv_pool_entry(s->e->pool, st->handles[h].page);
        uint32_t n = kv_positions_get(s->e->pool, st->handles[h].page, in_page);
        for (uint32_t i = e->start; i < n; i++)
            add_kept(&k, in_page[i], st->handles[h].price / (float)(n - e->start), e->format);
    }
    for (uint32_t i = 0; s->track && i < st->tail_len; i++)
        add_kept(&k, st->tail_pos + i, INFINITY, kv_format_pair(KV_F16, KV_F16));
    kv_engine_leave(s->e);
    return k.n;
}
