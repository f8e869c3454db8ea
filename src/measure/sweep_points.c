/* SPDX-License-Identifier: Apache-2.0 */
/* Which points a sweep has, and which of them share a reading of the prompt; see sweep.h. Knows policies as text and as
 * parsed words, never what they do. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "measure/sweep.h"
#include "policy/policy.h"

/* The ladder of formats over every token. */
static const char *const standing_defaults[] = {"full,format=q8", "full,format=q4", "full,format=q3", "full,format=q2",
                                                "full,format=q2s"};
enum { N_STANDING_DEFAULTS = sizeof standing_defaults / sizeof *standing_defaults, MAX_METHODS = 128 };

typedef struct list {
    kv_sweep_point *v;
    uint32_t n, cap;
} list;

static kv_status add(list *l, const char *method, const char *policy, double asked, kv_error *err) {
    for (uint32_t i = 0; i < l->n; i++)
        if (!strcmp(l->v[i].policy, policy)) {
            if (i == 0) return KVIST_OK; /* the base is there already */
            KV_FAIL(err, ARG, "'%s' is given twice", policy);
        }
    if (l->n == l->cap) {
        uint32_t cap = l->cap ? 2 * l->cap : 64;
        kv_sweep_point *p = kv_realloc(l->v, cap * sizeof *p);
        if (!p) KV_FAIL(err, MEMORY, "%u points", cap);
        l->v = p;
        l->cap = cap;
    }
    kv_sweep_point *p = &l->v[l->n++];
    memset(p, 0, sizeof *p);
    snprintf(p->method, sizeof p->method, "%s", method);
    snprintf(p->policy, sizeof p->policy, "%s", policy);
    p->asked = asked;
    return KVIST_OK;
}

/* The point that is this policy in other words, or in the words that a narrow share makes of both; NULL: none. */
static const kv_sweep_point *same_point(const list *l, const char *policy) {
    kv_policy p;
    char want[KV_SWEEP_POLICY], have[KV_SWEEP_POLICY];
    if (kv_policy_parse(policy, &p, NULL) != KVIST_OK) return NULL;
    kv_policy_print(&p, want, sizeof want);
    for (uint32_t i = 0; i < l->n; i++) {
        if (kv_policy_parse(l->v[i].policy, &p, NULL) != KVIST_OK) continue;
        kv_policy_print(&p, have, sizeof have);
        if (!strcmp(want, have)) return &l->v[i];
    }
    return NULL;
}

/* Whether a key stands in the part of a policy text that holds for all layers. */
static bool has_key(const char *text, const char *key) {
    size_t len = strcspn(text, ";"), n = strlen(key);
    for (const char *p = text; (p = memchr(p, ',', len - (size_t)(p - text)));) {
        p++;
        if (len - (size_t)(p - text) > n && !memcmp(p, key, n) && p[n] == '=') return true;
    }
    return false;
}

static bool has_budget(const char *text) {
    return has_key(text, "keep") || has_key(text, "tokens") || has_key(text, "rate") || has_key(text, "share") ||
           has_key(text, "mass");
}

/* The method at a share: ",share=X" (and the narrow recent) behind the keys that hold for all layers. */
static kv_status with_share(const char *method, double share, char *out, size_t cap, kv_error *err) {
    kv_policy p;
    char recent[24] = "";
    size_t head = strcspn(method, ";");
    KV_TRY(kv_policy_parse(method, &p, err));
    if (share < KV_SWEEP_NARROW && !has_key(method, "recent") && p.base.recent > KV_SWEEP_NARROW_RECENT)
        snprintf(recent, sizeof recent, ",recent=%d", KV_SWEEP_NARROW_RECENT);
    int n = snprintf(out, cap, "%.*s,share=%.10g%s%s", (int)head, method, share, recent, method + head);
    if (n < 0 || (size_t)n >= cap) KV_FAIL(err, ARG, "'%s' with a share has more than %zu bytes", method, cap - 1);
    return kv_policy_parse(out, &p, err);
}

static kv_status check_shares(const kv_sweep_ask *ask, double *falling, kv_error *err) {
    for (uint32_t i = 0; i < ask->n_shares; i++) {
        double s = ask->shares[i];
        if (!(s >= .001 && s <= 1)) KV_FAIL(err, ARG, "share %g is not from 0.001 to 1", s);
        uint32_t at = i;
        for (; at && falling[at - 1] < s; at--) falling[at] = falling[at - 1];
        falling[at] = s;
        if (at && falling[at - 1] == s) KV_FAIL(err, ARG, "share %g is given twice", s);
    }
    return KVIST_OK;
}

/* A method with a budget of its own stands by itself, and so does one that takes no share because it evicts nothing;
 * the others are kept in `sharing`. */
static kv_status place(const kv_sweep_ask *ask, const char *method, bool by_default, list *l, const char **sharing,
                       uint32_t *n_sharing, kv_error *err) {
    kv_policy p;
    kv_error why;
    char text[KV_SWEEP_POLICY];
    kv_status st = kv_policy_parse(method, &p, &why);
    if (st == KVIST_OK && strlen(method) >= sizeof text)
        KV_FAIL(err, ARG, "'%.60s...' has more than %zu bytes", method, sizeof text - 1);
    if (st == KVIST_OK && has_budget(method)) return add(l, method, method, NAN, err);
    if (st == KVIST_OK) {
        st = with_share(method, ask->n_shares ? ask->shares[0] : .5, text, sizeof text, &why);
        if (st != KVIST_OK && !kv_policy_evicts(&p)) return add(l, method, method, NAN, err);
    }
    if (st == KVIST_OK) {
        for (uint32_t i = 0; i < *n_sharing; i++)
            if (!strcmp(sharing[i], method)) KV_FAIL(err, ARG, "'%s' is given twice", method);
        if (*n_sharing == MAX_METHODS) KV_FAIL(err, ARG, "more than %d methods", MAX_METHODS);
        sharing[(*n_sharing)++] = method;
        return KVIST_OK;
    }
    if (!by_default) KV_FAIL(err, POLICY, "method '%s': %s", method, why.message);
    if (ask->note) ask->note(ask->note_user, method, why.message);
    return KVIST_OK;
}

static kv_status expand(const kv_sweep_ask *ask, list *l, double *shares, kv_error *err) {
    const char *sharing[MAX_METHODS], *name;
    uint32_t n_sharing = 0;
    char text[KV_SWEEP_POLICY];
    KV_TRY(check_shares(ask, shares, err));
    KV_TRY(add(l, "full", "full", NAN, err));
    for (uint32_t i = 0; i < ask->n_methods; i++)
        KV_TRY(place(ask, ask->methods[i], false, l, sharing, &n_sharing, err));
    for (uint32_t i = 0; !ask->n_methods && i < N_STANDING_DEFAULTS; i++)
        KV_TRY(place(ask, standing_defaults[i], true, l, sharing, &n_sharing, err));
    for (uint32_t i = 0; !ask->n_methods && (name = kv_policy_preset_at(i, NULL)); i++)
        KV_TRY(place(ask, name, true, l, sharing, &n_sharing, err));
    for (uint32_t s = 0; s < ask->n_shares; s++)
        for (uint32_t i = 0; i < n_sharing; i++) {
            KV_TRY(with_share(sharing[i], shares[s], text, sizeof text, err));
            const kv_sweep_point *same = same_point(l, text);
            char why[KV_SWEEP_POLICY + 8];
            if (!same) {
                KV_TRY(add(l, sharing[i], text, shares[s], err));
            } else if (ask->note) {
                snprintf(why, sizeof why, "it is %s", same->policy);
                ask->note(ask->note_user, text, why);
            }
        }
    return KVIST_OK;
}

kv_status kv_sweep_expand(const kv_sweep_ask *ask, kv_sweep_point **points, uint32_t *n, kv_error *err) {
    list l = {0};
    double *shares = kv_calloc(ask->n_shares + 1, sizeof *shares);
    kv_status st = shares ? expand(ask, &l, shares, err) : kv_fail(err, KVIST_E_MEMORY, "shares of a sweep");
    kv_free(shares);
    if (st != KVIST_OK) {
        kv_free(l.v);
        return st;
    }
    *points = l.v;
    *n = l.n;
    return KVIST_OK;
}

uint32_t kv_sweep_groups(uint32_t n, uint32_t max_points, kv_sweep_fits_fn fits, void *user, uint32_t *group) {
    uint32_t n_groups = 1, first = 1;
    if (max_points < 1) max_points = 1;
    group[0] = 0;
    for (uint32_t i = 1; i < n; i++) {
        bool alone = i == first;
        if (!alone && (i - first == max_points || !fits(user, first, i + 1))) {
            first = i;
            n_groups++;
        }
        group[i] = n_groups - 1;
    }
    return n_groups;
}
