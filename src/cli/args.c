/* SPDX-License-Identifier: Apache-2.0 */
/* The option parser; see args.h. Invariant: every refusal names the argument as the user wrote it. */
#include "cli/args.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 64, MAX_NAMES = 256 };

/* Next name of a comma separated list into buf; NULL at its end. */
static const char *next_name(const char *list, char *buf, size_t cap) {
    if (!list || !*list) return NULL;
    size_t n = strcspn(list, ",");
    if (n >= cap) n = cap - 1;
    memcpy(buf, list, n);
    buf[n] = 0;
    list += strcspn(list, ",");
    return *list == ',' ? list + 1 : list;
}

static const cli_opt *find_opt(const cli_command *cmd, const char *name, size_t len) {
    for (const cli_opt *const *g = cmd->groups; *g; g++)
        for (const cli_opt *o = *g; o->names; o++) {
            char buf[MAX_NAME];
            for (const char *p = o->names; (p = next_name(p, buf, sizeof buf));)
                if (strlen(buf) == len && !memcmp(buf, name, len)) return o;
        }
    return NULL;
}

/* Levenshtein distance, two rows; names are short. */
static size_t edit_distance(const char *a, const char *b) {
    size_t na = strlen(a), nb = strlen(b), row[MAX_NAME];
    if (na >= MAX_NAME || nb >= MAX_NAME) return MAX_NAME;
    for (size_t j = 0; j <= nb; j++) row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diag = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = diag + (a[i - 1] != b[j - 1]);
            diag = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[nb];
}

const char *kv_cli_nearest(const char *text, const char *const *list, size_t n) {
    const char *best = NULL;
    size_t least = 3;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(text, list[i]);
        if (d < least && d * 2 < strlen(list[i])) {
            least = d;
            best = list[i];
        }
    }
    return best;
}

static int unknown_option(const cli_command *cmd, const char *name, size_t len, char *why, size_t cap) {
    char text[MAX_NAME], store[MAX_NAMES][MAX_NAME];
    const char *names[MAX_NAMES];
    size_t n = 0;
    snprintf(text, sizeof text, "%.*s", (int)len, name);
    for (const cli_opt *const *g = cmd->groups; *g; g++)
        for (const cli_opt *o = *g; o->names; o++)
            for (const char *p = o->names; n < MAX_NAMES && (p = next_name(p, store[n], MAX_NAME));) {
                names[n] = store[n];
                n++;
            }
    const char *near = kv_cli_nearest(text, names, n);
    snprintf(why, cap, "unknown option '%s'%s%s%s", text, near ? "; did you mean '" : "", near ? near : "",
             near ? "'?" : "");
    return KV_CLI_USAGE;
}

bool kv_cli_bytes(const char *text, uint64_t *out) {
    char *end;
    errno = 0;
    if (*text < '0' || *text > '9') return false;
    double v = strtod(text, &end);
    if (end != text + strspn(text, "0123456789.")) return false; /* no hexadecimal, no exponent */
    unsigned shift = 0;
    switch (*end) {
    case 'k':
    case 'K':
        shift = 10;
        break;
    case 'm':
    case 'M':
        shift = 20;
        break;
    case 'g':
    case 'G':
        shift = 30;
        break;
    case 't':
    case 'T':
        shift = 40;
        break;
    default:
        break;
    }
    if (shift) {
        end++;
        if (!strcmp(end, "iB") || !strcmp(end, "B")) end += strlen(end);
    }
    v = v * (double)(1ull << shift);
    if (errno || *end || !(v < 9.2e18)) return false;
    *out = (uint64_t)v;
    return true;
}

static bool parse_int(const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end) return false;
    *out = v;
    return true;
}

static bool in_range(const cli_opt *o, double v) { return v >= o->min && v <= o->max; }

static bool parse_u32s(const cli_opt *o, const char *text, cli_u32s *out) {
    while (*text) {
        char item[32];
        int64_t v;
        text = next_name(text, item, sizeof item);
        if (!text || out->n == KV_CLI_MAX_LIST || !parse_int(item, &v) || !in_range(o, (double)v)) return false;
        out->v[out->n++] = (uint32_t)v;
    }
    return out->n > 0;
}

static bool store_value(const cli_opt *o, const char *text, cli_options *opts) {
    void *at = (char *)opts + o->offset;
    int64_t i;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)at = true;
        return true;
    case CLI_STR:
    case CLI_OPT:
        *(const char **)at = text;
        return true;
    case CLI_LIST: {
        cli_list *l = at;
        if (l->n == KV_CLI_MAX_LIST) return false;
        l->v[l->n++] = text;
        return true;
    }
    case CLI_I32:
    case CLI_U32:
    case CLI_I64:
        if (!parse_int(text, &i) || !in_range(o, (double)i)) return false;
        if (o->kind == CLI_I32)
            *(int32_t *)at = (int32_t)i;
        else if (o->kind == CLI_U32)
            *(uint32_t *)at = (uint32_t)i;
        else
            *(int64_t *)at = i;
        return true;
    case CLI_F32: {
        char *end;
        double d = strtod(text, &end);
        if (end == text || *end || !isfinite(d) || !in_range(o, d)) return false;
        *(float *)at = (float)d;
        return true;
    }
    case CLI_BYTES:
        return kv_cli_bytes(text, at);
    case CLI_U32S:
        return parse_u32s(o, text, at);
    }
    return false;
}

static void refuse_value(const cli_opt *o, const char *name, size_t len, const char *text, char *why, size_t cap) {
    int n = snprintf(why, cap, "%.*s: '%s' ", (int)len, name, text);
    if (n < 0 || (size_t)n >= cap) return;
    why += n;
    cap -= (size_t)n;
    switch (o->kind) {
    case CLI_BYTES:
        snprintf(why, cap, "is no size (512M, 2G, or bytes)");
        break;
    case CLI_U32S:
        snprintf(why, cap, "is no list of whole numbers from %.0f to %.0f (512 or 128,512)", o->min, o->max);
        break;
    case CLI_F32:
        snprintf(why, cap, "is no number from %g to %g", o->min, o->max);
        break;
    case CLI_LIST:
        snprintf(why, cap, "is one too many (%d at most)", KV_CLI_MAX_LIST);
        break;
    default:
        snprintf(why, cap, "is no whole number from %.0f to %.0f", o->min, o->max);
        break;
    }
}

int kv_cli_parse(const cli_command *cmd, int argc, char **argv, cli_options *o, char *why, size_t cap) {
    bool options_end = false;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (options_end || a[0] != '-' || !a[1]) { /* "-" alone is a file name */
            if (o->positional.n >= cmd->max_positional || o->positional.n == KV_CLI_MAX_LIST) {
                snprintf(why, cap, "unexpected argument '%s'", a);
                return KV_CLI_USAGE;
            }
            o->positional.v[o->positional.n++] = a;
            continue;
        }
        if (!strcmp(a, "--")) {
            options_end = true;
            continue;
        }
        const char *eq = a[1] == '-' ? strchr(a, '=') : NULL;
        size_t len = eq ? (size_t)(eq - a) : strlen(a);
        const cli_opt *opt = find_opt(cmd, a, len);
        if (!opt) return unknown_option(cmd, a, len, why, cap);
        const char *value = eq ? eq + 1 : "";
        if (opt->kind == CLI_FLAG && eq) {
            snprintf(why, cap, "%.*s takes no value", (int)len, a);
            return KV_CLI_USAGE;
        }
        if (opt->kind != CLI_FLAG && opt->kind != CLI_OPT && !eq) {
            if (i + 1 >= argc) {
                snprintf(why, cap, "%s needs a value (%s)", a, opt->arg);
                return KV_CLI_USAGE;
            }
            value = argv[++i];
        }
        if (!store_value(opt, value, o)) {
            refuse_value(opt, a, len, value, why, cap);
            return KV_CLI_USAGE;
        }
    }
    return KV_CLI_OK;
}

/* "  -m, --model FILE" then the help text from column 30 on, wrapped at its own newlines. */
static void help_line(const cli_opt *o, FILE *out) {
    char left[96], name[MAX_NAME];
    size_t n = 0;
    left[0] = 0;
    for (const char *p = o->names; (p = next_name(p, name, sizeof name));)
        n += (size_t)snprintf(left + n, sizeof left - n, "%s%s", n ? ", " : "", name);
    if (o->arg) snprintf(left + n, sizeof left - n, o->kind == CLI_OPT ? "[=%s]" : " %s", o->arg);
    fprintf(out, "  %-27s ", left);
    if (strlen(left) > 27) fprintf(out, "\n%30s", "");
    for (const char *p = o->help; *p; p++) {
        fputc(*p, out);
        if (*p == '\n') fprintf(out, "%30s", "");
    }
    fputc('\n', out);
}

void kv_cli_help(const cli_command *cmd, FILE *out) {
    fprintf(out, "usage: kvist %s %s\n\n%s\n\n", cmd->name, cmd->usage, cmd->summary);
    for (const cli_opt *const *g = cmd->groups; *g; g++)
        for (const cli_opt *o = *g; o->names; o++) help_line(o, out);
    if (cmd->more) fprintf(out, "\n%s", cmd->more);
}
