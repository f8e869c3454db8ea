/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes policies and reads and writes the contract's numbers, without the locale. Owns the canonical text: the preset
 * and every key that differs from it. Invariant: kv_policy_parse(text of p) = p for every p that kv_policy_parse made.
 */
#include "policy/policy_keys.h"
#include "policy/presets.h"
#include "policy/score/score.h"
#include "policy/allocate/allocate.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* 10^15 < 2^53 and 10^15 is exact: digits / 10^k is then the correctly rounded value of the decimal text. */
#define DIGITS_MAX 15

bool kv_number_parse(const char *text, size_t len, double *out) {
    double digits = 0, unit = 1;
    uint32_t n_digits = 0, n_significant = 0, n_after = 0;
    bool point = false, minus = len && text[0] == '-';
    for (size_t i = minus; i < len; i++) {
        char c = text[i];
        if (c == '.' && !point) {
            point = true;
            continue;
        }
        if (c < '0' || c > '9') return false;
        n_digits++;
        n_after += point;
        if (digits > 0 || c != '0') n_significant++;
        if (n_significant > DIGITS_MAX || n_after > DIGITS_MAX) return false;
        digits = digits * 10 + (c - '0');
        if (point) unit *= 10;
    }
    if (!n_digits) return false;
    *out = minus ? -digits / unit : digits / unit;
    return true;
}

void kv_number_print(double x, char *buf, size_t cap) {
    double unit = 1;
    for (int after = 0; after <= DIGITS_MAX; after++, unit *= 10) {
        double digits = floor(x * unit + .5);
        if (digits >= 1e15) break;
        if (digits / unit != x) continue;
        uint64_t d = (uint64_t)digits, u = (uint64_t)unit;
        if (after)
            (void)snprintf(buf, cap, "%llu.%0*llu", (unsigned long long)(d / u), after, (unsigned long long)(d % u));
        else
            (void)snprintf(buf, cap, "%llu", (unsigned long long)d);
        return;
    }
    (void)snprintf(buf, cap, "%.17g", x); /* never for a parsed number */
}

typedef struct writer {
    char *buf;
    size_t cap, len;
} writer;

static void put(writer *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(w->len < w->cap ? w->buf + w->len : NULL, w->len < w->cap ? w->cap - w->len : 0, fmt, args);
    va_end(args);
    if (n > 0) w->len += (size_t)n;
}

static void put_key(writer *w, char mark, uint32_t key, const char *value) {
    put(w, "%c%s=%s", mark, kv_policy_key_names[key], value);
}

static void put_number(writer *w, char mark, uint32_t key, double x) {
    char text[40];
    kv_number_print(x, text, sizeof text);
    put_key(w, mark, key, text);
}

static void put_format(writer *w, char mark, uint8_t format) {
    char text[40];
    kv_format_print(format, text, sizeof text);
    put_key(w, mark, KV_KEY_FORMAT, text);
}

static void put_base(writer *w, const kv_layer_policy *v, kv_layer_policy own) {
    if (v->score != own.score) {
        put_key(w, ',', KV_KEY_SCORE, kv_score_at(v->score)->name);
        kv_policy_set_score(&own, v->score);
    }
    if (v->window != own.window) put_number(w, ',', KV_KEY_WINDOW, v->window);
    if (v->pool != own.pool) put_number(w, ',', KV_KEY_POOL, v->pool);
    if (v->stride != own.stride) put_number(w, ',', KV_KEY_STRIDE, v->stride);
    if (v->format != own.format) put_format(w, ',', v->format);
    if (v->sink != own.sink || v->sink_room) {
        put_number(w, ',', KV_KEY_SINK, v->sink);
        if (v->sink_room) put(w, "/%u", v->sink_room);
    }
    if (v->recent != own.recent || v->recent_page) {
        put_number(w, ',', KV_KEY_RECENT, v->recent);
        if (v->recent_page) put(w, "+");
    }
}

static void put_overrides(writer *w, const kv_policy *p) {
    for (uint32_t i = 0; i < p->n_overrides; i++) {
        const kv_layer_policy *v = &p->over[i].v;
        uint32_t set = p->over[i].set, first = p->over[i].first, last = p->over[i].last;
        put(w, ";layers=%u", first);
        if (last == UINT32_MAX)
            put(w, "-");
        else if (last != first)
            put(w, "-%u", last);
        char mark = ':';
        for (uint32_t k = 0; k < KV_KEYS_LAYER; k++) {
            if (!(set & kv_key_bit(k))) continue;
            if (k == KV_KEY_SCORE)
                put_key(w, mark, k, kv_score_at(v->score)->name);
            else if (k == KV_KEY_FORMAT)
                put_format(w, mark, v->format);
            else
                put_number(w, mark, k, k == KV_KEY_WINDOW ? v->window : k == KV_KEY_POOL ? v->pool : v->stride);
            mark = ',';
        }
    }
}

void kv_policy_print(const kv_policy *p, char *buf, size_t cap) {
    writer w = {buf, cap, 0};
    if (cap) buf[0] = 0;
    kv_policy own;
    const kv_preset *preset = kv_preset_find(p->preset, strlen(p->preset));
    kv_preset_policy(preset, &own);
    put(&w, "%s", p->preset);
    kv_layer_policy base = own.base;
    /* A preset that evicts nothing takes a budget, or pressure, only together with a score, even if it is the one it has by name. */
    bool needs_score = p->budget_kind != KV_BUDGET_ALL || p->when == KV_WHEN_PRESSURE;
    if (own.budget_kind == KV_BUDGET_ALL && needs_score && p->base.score == base.score)
        put_key(&w, ',', KV_KEY_SCORE, kv_score_at(p->base.score)->name);
    put_base(&w, &p->base, base);
    if (p->alloc != own.alloc) put_key(&w, ',', KV_KEY_ALLOC, kv_alloc_at(p->alloc)->name);
    if (p->delta != own.delta) put_number(&w, ',', KV_KEY_DELTA, p->delta);
    if (p->floor != own.floor) put_number(&w, ',', KV_KEY_FLOOR, p->floor);
    if (p->budget_kind != own.budget_kind || p->budget != own.budget)
        put_number(&w, ',', KV_KEY_KEEP + (uint32_t)p->budget_kind - KV_BUDGET_KEEP, p->budget);
    kv_policy scaled = *p;
    kv_policy_scale_local(&scaled);
    if (p->local != scaled.local || p->local_of_kept != scaled.local_of_kept)
        put_number(&w, ',', KV_KEY_LOCAL, p->local);
    if (p->when != own.when) put_key(&w, ',', KV_KEY_WHEN, kv_policy_when_names[p->when]);
    if (p->guard != own.guard) put_number(&w, ',', KV_KEY_GUARD, p->guard);
    if (p->guard_max != own.guard_max) put_number(&w, ',', KV_KEY_GUARD_MAX, p->guard_max);
    if (p->rest != own.rest) put_number(&w, ',', KV_KEY_REST, p->rest);
    put_overrides(&w, p);
}
