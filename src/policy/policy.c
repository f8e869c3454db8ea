/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the policy contract (docs/policies.md). Owns keys, ranges and refusals.
 * Must not know: what a policy does. Invariants: the text is user input, of any bytes and length; every refusal names
 * the key and the text; what the contract names but is not built is refused by name; the result is pure data.
 */
#include "policy/policy.h"

#include "policy/allocate/allocate.h"
#include "policy/policy_keys.h"
#include "policy/presets.h"
#include "policy/score/score.h"

#include <math.h>
#include <string.h>

/* Larger than any context; keeps sums of counts far from 32 bits. */
#define TOKENS_MAX 1e9
#define POOL_MAX 1023.0
#define REST_MAX 65535.0

const char *const kv_policy_key_names[KV_KEYS] = {
    [KV_KEY_SCORE] = "score",         [KV_KEY_WINDOW] = "window", [KV_KEY_POOL] = "pool",
    [KV_KEY_STRIDE] = "stride",       [KV_KEY_FORMAT] = "format", [KV_KEY_SINK] = "sink",
    [KV_KEY_RECENT] = "recent",       [KV_KEY_ALLOC] = "alloc",   [KV_KEY_DELTA] = "delta",
    [KV_KEY_FLOOR] = "floor",         [KV_KEY_KEEP] = "keep",     [KV_KEY_TOKENS] = "tokens",
    [KV_KEY_RATE] = "rate",           [KV_KEY_SHARE] = "share",   [KV_KEY_MASS] = "mass",
    [KV_KEY_LOCAL] = "local",         [KV_KEY_WHEN] = "when",     [KV_KEY_GUARD] = "guard",
    [KV_KEY_GUARD_MAX] = "guard_max", [KV_KEY_REST] = "rest",
};

#define BUDGETS                                                                                                        \
    (kv_key_bit(KV_KEY_KEEP) | kv_key_bit(KV_KEY_TOKENS) | kv_key_bit(KV_KEY_RATE) | kv_key_bit(KV_KEY_SHARE) |        \
     kv_key_bit(KV_KEY_MASS))
enum { NAMES = 128 }; /* room for a list of scores or allocators in a message */
const char *const kv_policy_when_names[KV_WHENS] = {
    [KV_WHEN_PREFILL] = "prefill", [KV_WHEN_ALWAYS] = "always", [KV_WHEN_PRESSURE] = "pressure"};

/* A piece of the text. */
typedef struct slice {
    const char *at;
    size_t len;
} slice;
/* For "%.*s": long input is cut, the message has room for the reason. */
#define SHOW(s) (int)((s).len < 60 ? (s).len : 60), (s).at

static bool is(slice s, const char *word) { return s.len == strlen(word) && !memcmp(s.at, word, s.len); }

/* Cuts the text before the first `mark` off *rest; false when *rest is used up. "a," gives "a" and "". */
static bool next(slice *rest, char mark, slice *out) {
    if (!rest->at) return false;
    const char *end = rest->len ? memchr(rest->at, mark, rest->len) : NULL;
    *out = (slice){rest->at, end ? (size_t)(end - rest->at) : rest->len};
    *rest = end ? (slice){end + 1, rest->len - out->len - 1} : (slice){NULL, 0};
    return true;
}

static kv_status number(const char *key, slice text, double min, bool min_open, double max, bool whole, double *out,
                        kv_error *err) {
    if (!kv_number_parse(text.at, text.len, out))
        KV_FAIL(err, POLICY, "policy key '%s': '%.*s' is not a number", key, SHOW(text));
    if (whole && *out != floor(*out))
        KV_FAIL(err, POLICY, "policy key '%s': '%.*s' is not a whole number", key, SHOW(text));
    if (*out < min || (min_open && *out == min) || *out > max)
        KV_FAIL(err, POLICY, "policy key '%s': '%.*s' is not %s %g and at most %g", key, SHOW(text),
                min_open ? "above" : "at least", min, max);
    return KVIST_OK;
}

static kv_status count(const char *key, slice text, double min, double max, uint32_t *out, kv_error *err) {
    double x;
    KV_TRY(number(key, text, min, false, max, true, &x, err));
    *out = (uint32_t)x;
    return KVIST_OK;
}

static kv_status set_score(slice v, kv_layer_policy *p, kv_error *err) {
    const kv_score_method *m = kv_score_find(v.at, v.len);
    char names[NAMES];
    if (!m)
        KV_FAIL(err, POLICY, "policy key 'score': '%.*s' is not known (built: %s)", SHOW(v),
                kv_score_names(names, sizeof names, false));
    kv_policy_set_score(p, m->id);
    return KVIST_OK;
}

static kv_status set_format(slice v, kv_layer_policy *p, kv_error *err) {
    kv_error why = {0};
    if (kv_format_parse(v.at, v.len, &p->format, &why)) KV_FAIL(err, POLICY, "policy key 'format': %s", why.message);
    return KVIST_OK;
}

/* Keys that layers may override. */
static kv_status set_layer_key(uint32_t key, slice v, kv_layer_policy *p, kv_error *err) {
    const char *name = kv_policy_key_names[key];
    switch (key) {
    case KV_KEY_SCORE:
        return set_score(v, p, err);
    case KV_KEY_WINDOW:
        return count(name, v, 1, TOKENS_MAX, &p->window, err);
    case KV_KEY_POOL:
        KV_TRY(count(name, v, 1, POOL_MAX, &p->pool, err));
        if (p->pool % 2 == 0)
            KV_FAIL(err, POLICY, "policy key 'pool': '%.*s' is even; a pooling width has a middle", SHOW(v));
        return KVIST_OK;
    case KV_KEY_STRIDE:
        return count(name, v, 1, TOKENS_MAX, &p->stride, err);
    default:
        return set_format(v, p, err);
    }
}

static kv_status set_budget(uint32_t key, slice v, kv_policy *p, kv_error *err) {
    const char *name = kv_policy_key_names[key];
    static const uint8_t kinds[] = {KV_BUDGET_KEEP, KV_BUDGET_TOKENS, KV_BUDGET_RATE, KV_BUDGET_SHARE, KV_BUDGET_MASS};
    p->budget_kind = kinds[key - KV_KEY_KEEP];
    switch (key) {
    case KV_KEY_TOKENS:
        return number(name, v, 1, false, TOKENS_MAX, true, &p->budget, err);
    case KV_KEY_RATE:
        return number(name, v, 1, false, TOKENS_MAX, false, &p->budget, err);
    default:
        return number(name, v, 0, true, 1, false, &p->budget, err);
    }
}

static kv_status set_alloc(slice v, kv_policy *p, kv_error *err) {
    const kv_alloc_method *m = kv_alloc_find(v.at, v.len);
    char names[NAMES];
    if (!m)
        KV_FAIL(err, POLICY, "policy key 'alloc': '%.*s' is not known (built: %s)", SHOW(v),
                kv_alloc_names(names, sizeof names));
    p->alloc = m->id;
    return KVIST_OK;
}

static kv_status set_when(slice v, kv_policy *p, kv_error *err) {
    for (uint8_t w = 0; w < KV_WHENS; w++)
        if (is(v, kv_policy_when_names[w])) {
            p->when = w;
            return KVIST_OK;
        }
    KV_FAIL(err, POLICY, "policy key 'when': '%.*s' is not known (prefill, always, pressure)", SHOW(v));
}

/* N or N/M. */
static kv_status set_sink(const char *name, slice v, kv_layer_policy *p, kv_error *err) {
    slice n = {0}, m = v;
    (void)next(&m, '/', &n);
    p->sink_room = 0;
    KV_TRY(count(name, n, 0, TOKENS_MAX, &p->sink, err));
    return n.len == v.len ? KVIST_OK : count(name, m, 1, TOKENS_MAX, &p->sink_room, err);
}

static kv_status set_key(uint32_t key, slice v, kv_policy *p, kv_error *err) {
    const char *name = kv_policy_key_names[key];
    if (key < KV_KEYS_LAYER) return set_layer_key(key, v, &p->base, err);
    switch (key) {
    case KV_KEY_SINK:
        return set_sink(name, v, &p->base, err);
    case KV_KEY_RECENT:
        p->base.recent_page = v.len && v.at[v.len - 1] == '+';
        v.len -= p->base.recent_page;
        return count(name, v, 0, TOKENS_MAX, &p->base.recent, err);
    case KV_KEY_ALLOC:
        return set_alloc(v, p, err);
    case KV_KEY_DELTA:
        return number(name, v, 1, false, TOKENS_MAX, false, &p->delta, err);
    case KV_KEY_FLOOR:
        return number(name, v, 0, false, 1, false, &p->floor, err);
    case KV_KEY_LOCAL:
        KV_TRY(number(name, v, 0, false, TOKENS_MAX, false, &p->local, err));
        if (p->local >= 1 && p->local != floor(p->local))
            KV_FAIL(err, POLICY,
                    "policy key 'local': '%.*s' is neither a fraction below 1 nor a whole number of tokens", SHOW(v));
        p->local_of_kept = 0;
        return KVIST_OK;
    case KV_KEY_WHEN:
        return set_when(v, p, err);
    case KV_KEY_GUARD:
        return number(name, v, 0, false, 1, false, &p->guard, err);
    case KV_KEY_GUARD_MAX:
        return number(name, v, 1, false, 1000, false, &p->guard_max, err);
    case KV_KEY_REST:
        return count(name, v, 0, REST_MAX, &p->rest, err);
    default:
        return set_budget(key, v, p, err);
    }
}

/* "key=value" -> key id and value; refuses unknown and repeated keys and a second budget. */
static kv_status read_key(slice item, uint32_t *seen, uint32_t *key, slice *value, kv_error *err) {
    const char *eq = item.len ? memchr(item.at, '=', item.len) : NULL;
    if (!eq) KV_FAIL(err, POLICY, "policy text '%.*s' is not key=value", SHOW(item));
    slice name = {item.at, (size_t)(eq - item.at)};
    *value = (slice){eq + 1, item.len - name.len - 1};
    uint32_t k = 0;
    while (k < KV_KEYS && !is(name, kv_policy_key_names[k])) k++;
    if (k == KV_KEYS)
        KV_FAIL(err, POLICY,
                "policy key '%.*s' is not known (score window pool stride alloc delta floor keep tokens rate share "
                "mass format sink recent local when "
                "guard guard_max rest)",
                SHOW(name));
    if (*seen & kv_key_bit(k)) KV_FAIL(err, POLICY, "policy key '%s' is given twice", kv_policy_key_names[k]);
    for (uint32_t b = KV_KEY_KEEP; b <= KV_KEY_MASS && k >= KV_KEY_KEEP && k <= KV_KEY_MASS; b++)
        if (*seen & kv_key_bit(b))
            KV_FAIL(err, POLICY,
                    "policy keys '%s' and '%s' are both budgets: give one of keep, tokens, rate, share, mass",
                    kv_policy_key_names[b], kv_policy_key_names[k]);
    *seen |= kv_key_bit(k);
    *key = k;
    return KVIST_OK;
}

/* Collects all key=value of a list. They are set in the order of enum kv_policy_key, not as written: `score` sets
 * pool's default, a budget scales `local`. */
static kv_status read_items(slice list, uint32_t *seen, slice values[KV_KEYS], kv_error *err) {
    slice item = {0};
    while (next(&list, ',', &item)) {
        uint32_t key = 0;
        slice v = {0};
        KV_TRY(read_key(item, seen, &key, &v, err));
        if (!v.len) KV_FAIL(err, POLICY, "policy key '%s' has no value", kv_policy_key_names[key]);
        values[key] = v;
    }
    return KVIST_OK;
}

static kv_status read_layer_range(slice text, uint32_t *first, uint32_t *last, kv_error *err) {
    slice rest = text, a = {0}, b = {0};
    (void)next(&rest, '-', &a);
    bool dash = rest.at != NULL;
    if (dash) b = rest;
    double x, y;
    if (!kv_number_parse(a.at, a.len, &x) || x != floor(x) || x > 65535)
        KV_FAIL(err, POLICY, "policy layers '%.*s' are not A, A-B or A-", SHOW(text));
    y = dash ? 65535 : x;
    if (dash && b.len && (!kv_number_parse(b.at, b.len, &y) || y != floor(y) || y > 65535))
        KV_FAIL(err, POLICY, "policy layers '%.*s' are not A, A-B or A-", SHOW(text));
    if (y < x) KV_FAIL(err, POLICY, "policy layers '%.*s' end before they begin", SHOW(text));
    *first = (uint32_t)x;
    *last = dash && !b.len ? UINT32_MAX : (uint32_t)y;
    return KVIST_OK;
}

/* "layers=A-B:key=value,..." */
static kv_status read_override(slice section, kv_policy *p, kv_error *err) {
    static const char lead[] = "layers=";
    size_t n_lead = sizeof lead - 1;
    if (section.len < n_lead || memcmp(section.at, lead, n_lead))
        KV_FAIL(err, POLICY, "policy text '%.*s' after ';' does not begin with layers=A-B:", SHOW(section));
    slice rest = {section.at + n_lead, section.len - n_lead}, range = {0};
    (void)next(&rest, ':', &range);
    if (!rest.at) KV_FAIL(err, POLICY, "policy layers '%.*s' have no ':' and keys", SHOW(section));
    if (p->n_overrides == KV_POLICY_MAX_OVERRIDES)
        KV_FAIL(err, POLICY, "more than %u layers= parts", KV_POLICY_MAX_OVERRIDES);
    uint32_t seen = 0, i = p->n_overrides;
    slice values[KV_KEYS] = {{0}};
    KV_TRY(read_layer_range(range, &p->over[i].first, &p->over[i].last, err));
    KV_TRY(read_items(rest, &seen, values, err));
    p->over[i].v = (kv_layer_policy){0};
    for (uint32_t k = 0; k < KV_KEYS; k++) {
        if (!values[k].at) continue;
        if (k >= KV_KEYS_LAYER)
            KV_FAIL(err, POLICY,
                    "policy key '%s' is the same for all layers (by layer: score window pool stride format)",
                    kv_policy_key_names[k]);
        KV_TRY(set_layer_key(k, values[k], &p->over[i].v, err));
    }
    if (seen & kv_key_bit(KV_KEY_SCORE)) seen |= kv_key_bit(KV_KEY_POOL);
    p->over[i].set = seen;
    p->n_overrides++;
    return KVIST_OK;
}

/* alloc=mass compares sums of a score: fractions of an attention mass. */
static kv_status check_mass(const kv_policy *p, kv_error *err) {
    char names[NAMES];
    if (p->budget_kind == KV_BUDGET_MASS && p->alloc != KV_ALLOC_MASS)
        KV_FAIL(err, POLICY, "policy key 'mass': the budget of alloc=mass, not of alloc=%s",
                kv_alloc_at(p->alloc)->name);
    if (!kv_alloc_at(p->alloc)->masses) return KVIST_OK;
    for (uint32_t i = 0; i <= p->n_overrides; i++) {
        if (i && !(p->over[i - 1].set & kv_key_bit(KV_KEY_SCORE))) continue;
        const kv_score_method *m = kv_score_at(i ? p->over[i - 1].v.score : p->base.score);
        if (!m->mass)
            KV_FAIL(err, POLICY, "policy key 'alloc': '%s' needs a score that is an attention mass (%s), not %s",
                    kv_alloc_at(p->alloc)->name, kv_score_names(names, sizeof names, true), m->name);
    }
    return KVIST_OK;
}

/* A rest token lies behind the sinks, in their last page. */
static kv_status check_rest(const kv_policy *p, kv_error *err) {
    if (p->rest && (p->base.sink < 2 || p->base.sink % KV_PAGE_F16_TOKENS == 1))
        KV_FAIL(err, POLICY, "policy key 'rest': takes the place of the last of two or more sinks in their page; sink=%u has none for it",
                p->base.sink);
    return KVIST_OK;
}

/* What only the whole tells. */
static kv_status check(const kv_policy *p, const kv_preset *preset, uint32_t seen, kv_error *err) {
    char names[NAMES];
    if ((seen & BUDGETS) && preset->policy.budget_kind == KV_BUDGET_ALL && !(seen & kv_key_bit(KV_KEY_SCORE)))
        KV_FAIL(
            err, POLICY,
            "nothing is evicted by '%s': a budget needs to know what to keep; add score= (%s) or take a preset that "
            "evicts (streaming, snapkv, h2o, minikv, kvcompress and more)",
            preset->name, kv_score_names(names, sizeof names, false));
    if (p->when == KV_WHEN_PRESSURE && preset->policy.budget_kind == KV_BUDGET_ALL && !(seen & kv_key_bit(KV_KEY_SCORE)))
        KV_FAIL(err, POLICY,
                "policy key 'when': pressure needs to know what to drop first; add score= to '%s' (attn, vote, vote2, "
                "position, tova)",
                preset->name);
    double kept = p->budget_kind == KV_BUDGET_KEEP     ? p->budget
                  : p->budget_kind == KV_BUDGET_RATE   ? 1 / p->budget
                  : p->budget_kind == KV_BUDGET_TOKENS ? p->budget
                                                       : 0;
    if (kept > 0 && (p->budget_kind == KV_BUDGET_TOKENS) == (p->local >= 1) && p->local > kept)
        KV_FAIL(err, POLICY, "policy key 'local': the %g newest never evicted are more than the budget of %g keeps",
                p->local, kept);
    return KVIST_OK;
}

/* A text in its parts: the preset, its keys, the rest from the first ';'. */
typedef struct parts {
    const kv_preset *preset;
    uint32_t seen;
    slice values[KV_KEYS], rest;
} parts;

static kv_status read_parts(slice text, parts *out, kv_error *err) {
    slice head = {0}, name = {0};
    *out = (parts){.rest = text};
    (void)next(&out->rest, ';', &head);
    (void)next(&head, ',', &name);
    out->preset = kv_preset_find(name.at, name.len);
    if (!out->preset && memchr(name.at, '=', name.len))
        KV_FAIL(err, POLICY, "policy '%.*s' does not begin with a preset (%s)", SHOW(name), kv_policy_presets());
    if (!out->preset) KV_FAIL(err, POLICY, "policy preset '%.*s' is not known (%s)", SHOW(name), kv_policy_presets());
    return read_items(head, &out->seen, out->values, err);
}

/* `auto`: its table's preset and keys for the share; keys given beside it win. more: the table's own layers= parts. */
static kv_status resolve_auto(parts *given, slice *more, kv_error *err) {
    static const char share[] = KV_AUTO_SHARE;
    parts row;
    double x;
    for (uint32_t k = KV_KEY_KEEP; k <= KV_KEY_MASS; k++)
        if (k != KV_KEY_SHARE && given->values[k].at)
            KV_FAIL(err, POLICY, "policy key '%s': auto chooses by share=, the fraction of the f16 cache's bytes",
                    kv_policy_key_names[k]);
    if (!given->values[KV_KEY_SHARE].at) given->values[KV_KEY_SHARE] = (slice){share, sizeof share - 1};
    KV_TRY(number("share", given->values[KV_KEY_SHARE], 0, true, 1, false, &x, err));
    const char *text = kv_auto_text(x);
    KV_TRY(read_parts((slice){text, strlen(text)}, &row, err));
    /* A rest token goes with what the row's score keeps (docs/decisions.md), and other sinks may leave no room for it. */
    if (given->values[KV_KEY_SCORE].at || given->values[KV_KEY_SINK].at) row.values[KV_KEY_REST] = (slice){0};
    for (uint32_t k = 0; k < KV_KEYS; k++)
        if (!given->values[k].at) given->values[k] = row.values[k];
    given->preset = row.preset;
    given->seen |= row.seen;
    *more = row.rest;
    return KVIST_OK;
}

kv_status kv_policy_parse(const char *text, kv_policy *out, kv_error *err) {
    parts t;
    slice more = {0}, v = {0};
    *out = (kv_policy){0};
    kv_policy p;
    KV_TRY(read_parts((slice){text ? text : "full", strlen(text ? text : "full")}, &t, err));
    if (!strcmp(t.preset->name, KV_PRESET_AUTO)) KV_TRY(resolve_auto(&t, &more, err));
    kv_preset_policy(t.preset, &p);
    for (uint32_t k = 0; k < KV_KEY_LOCAL; k++)
        if (t.values[k].at) KV_TRY(set_key(k, t.values[k], &p, err));
    kv_policy_scale_local(&p);
    for (uint32_t k = KV_KEY_LOCAL; k < KV_KEYS; k++)
        if (t.values[k].at) KV_TRY(set_key(k, t.values[k], &p, err));
    KV_TRY(check(&p, t.preset, t.seen, err));
    while (next(&more, ';', &v)) KV_TRY(read_override(v, &p, err));
    while (next(&t.rest, ';', &v)) KV_TRY(read_override(v, &p, err));
    KV_TRY(check_mass(&p, err));
    KV_TRY(check_rest(&p, err));
    KV_TRY(kv_policy_check_when(&p, err));
    *out = p;
    return KVIST_OK;
}

void kv_policy_layer(const kv_policy *p, uint32_t layer, kv_layer_policy *out) {
    *out = p->base;
    for (uint32_t i = 0; i < p->n_overrides; i++) {
        if (layer < p->over[i].first || layer > p->over[i].last) continue;
        const kv_layer_policy *v = &p->over[i].v;
        uint32_t set = p->over[i].set;
        if (set & kv_key_bit(KV_KEY_SCORE)) kv_policy_set_score(out, v->score);
        if (set & kv_key_bit(KV_KEY_WINDOW)) out->window = v->window;
        if (set & kv_key_bit(KV_KEY_POOL)) out->pool = v->pool;
        if (set & kv_key_bit(KV_KEY_STRIDE)) out->stride = v->stride;
        if (set & kv_key_bit(KV_KEY_FORMAT)) out->format = v->format;
    }
}

bool kv_policy_evicts(const kv_policy *p) {
    if (p->budget_kind == KV_BUDGET_ALL) return false;
    bool fraction = p->budget_kind == KV_BUDGET_KEEP || p->budget_kind == KV_BUDGET_RATE;
    return !((fraction || p->budget_kind == KV_BUDGET_MASS) && p->budget == 1);
}
