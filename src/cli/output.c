/* SPDX-License-Identifier: Apache-2.0 */
/* Tables, progress, units and JSON lines; see output.h. */
#include "cli/output.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/os.h"
#include "text/utf8.h"

/* ---------------------------------------------------------------- tables */

void kv_out_table_init(out_table *t) { memset(t, 0, sizeof *t); }

void kv_out_table_free(out_table *t) {
    kv_free(t->cells);
    t->cells = NULL;
}

void kv_out_column(out_table *t, const char *title, bool left) {
    if (t->n_columns == OUT_MAX_COLUMNS) return;
    t->title[t->n_columns] = title;
    t->left[t->n_columns++] = left;
}

void kv_out_cell(out_table *t, const char *fmt, ...) {
    if (t->column == 0) {
        if (t->n_rows == t->cap_rows) {
            uint32_t cap = t->cap_rows ? 2 * t->cap_rows : 16;
            void *p = kv_realloc(t->cells, (size_t)cap * t->n_columns * OUT_CELL);
            if (!p) return; /* a table short of memory loses rows, never crashes */
            t->cells = p;
            t->cap_rows = cap;
        }
        t->n_rows++;
    }
    char *cell = t->cells[(size_t)(t->n_rows - 1) * t->n_columns + t->column];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cell, OUT_CELL, fmt, ap);
    va_end(ap);
    cell[kv_utf8_complete(cell, strlen(cell))] = 0;
    t->column = (t->column + 1) % t->n_columns;
}

size_t kv_out_width(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void print_padded(FILE *out, const char *s, size_t width, bool left) {
    size_t pad = width - kv_out_width(s);
    fprintf(out, " %*s%s%*s |", left ? 0 : (int)pad, "", s, left ? (int)pad : 0, "");
}

void kv_out_table_print(const out_table *t, FILE *out) {
    size_t width[OUT_MAX_COLUMNS];
    for (uint32_t c = 0; c < t->n_columns; c++) {
        width[c] = kv_out_width(t->title[c]);
        if (width[c] < 3) width[c] = 3; /* Markdown wants three dashes */
        for (uint32_t r = 0; r < t->n_rows; r++) {
            size_t w = kv_out_width(t->cells[(size_t)r * t->n_columns + c]);
            if (w > width[c]) width[c] = w;
        }
    }
    fputc('|', out);
    for (uint32_t c = 0; c < t->n_columns; c++) print_padded(out, t->title[c], width[c], t->left[c]);
    fputs("\n|", out);
    for (uint32_t c = 0; c < t->n_columns; c++) {
        fputc(t->left[c] ? ':' : '-', out);
        for (size_t i = 0; i < width[c]; i++) fputc('-', out);
        fputs(t->left[c] ? "-|" : ":|", out);
    }
    fputc('\n', out);
    for (uint32_t r = 0; r < t->n_rows; r++) {
        fputc('|', out);
        for (uint32_t c = 0; c < t->n_columns; c++)
            print_padded(out, t->cells[(size_t)r * t->n_columns + c], width[c], t->left[c]);
        fputc('\n', out);
    }
}

static void csv_cell(FILE *out, const char *s) {
    if (!strpbrk(s, ",\"\n")) {
        fputs(s, out);
        return;
    }
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"') fputc('"', out);
        fputc(*s, out);
    }
    fputc('"', out);
}

void kv_out_table_csv(const out_table *t, FILE *out) {
    for (uint32_t r = 0; r <= t->n_rows; r++) {
        for (uint32_t c = 0; c < t->n_columns; c++) {
            if (c) fputc(',', out);
            csv_cell(out, r ? t->cells[(size_t)(r - 1) * t->n_columns + c] : t->title[c]);
        }
        fputc('\n', out);
    }
}

/* ---------------------------------------------------------------- progress */

void kv_out_progress_init(out_progress *p, bool quiet) {
    memset(p, 0, sizeof *p);
    p->on = !quiet && isatty(STDERR_FILENO);
}

/* Seconds left at the pace so far; NAN before that says anything. */
static double time_left(const out_progress *p, uint64_t now, uint64_t done) {
    const uint64_t least = 5000000000u; /* a pace from less than 5 s misleads */
    if (now - p->start_ns < least || done <= p->start_done || done >= p->total) return NAN;
    return (double)(now - p->start_ns) * 1e-9 * (double)(p->total - done) / (double)(done - p->start_done);
}

void kv_out_progress(out_progress *p, const char *what, uint64_t done, uint64_t total) {
    enum { CELLS = 28 };
    if (!p->on || !total) return;
    uint64_t now = kv_os_now_ns();
    if (total != p->total || done < p->start_done) { /* another piece of work */
        p->total = total;
        p->start_ns = now;
        p->start_done = done;
    }
    if (p->shown && done < total && now - p->last_ns < 100000000u) return;
    p->last_ns = now;
    p->shown = true;
    double part = (double)(done < total ? done : total) / (double)total;
    uint32_t full = (uint32_t)(part * CELLS);
    fprintf(stderr, "\r\033[K");
    for (uint32_t i = 0; i < CELLS; i++) fputs(i < full ? "█" : "░", stderr);
    char left[32];
    double seconds = time_left(p, now, done);
    fprintf(stderr, " %3.0f %%  %.60s", 100 * part, what);
    if (!isnan(seconds)) fprintf(stderr, "  %s left", kv_out_duration(left, sizeof left, seconds));
    fflush(stderr);
}

void kv_out_progress_clear(out_progress *p) {
    if (!p->shown) return;
    fprintf(stderr, "\r\033[K");
    fflush(stderr);
    p->shown = false;
}

/* ---------------------------------------------------------------- values */

double kv_out_mib(uint64_t bytes) { return (double)bytes / 1048576.0; }

const char *kv_out_bytes(char *buf, size_t cap, uint64_t bytes) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    uint32_t u = 0;
    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(buf, cap, u == 0 || v >= 100 ? "%.0f %s" : v >= 10 ? "%.1f %s" : "%.2f %s", v, unit[u]);
    return buf;
}

const char *kv_out_count(char *buf, size_t cap, uint64_t n) {
    char digits[24];
    size_t len = (size_t)snprintf(digits, sizeof digits, "%llu", (unsigned long long)n), at = 0;
    for (size_t i = 0; i < len && at + 2 < cap; i++) {
        if (i && (len - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    if (cap) buf[at] = 0;
    return buf;
}

double kv_out_rate(uint64_t tokens, double seconds) { return seconds > 0 ? (double)tokens / seconds : 0; }

const char *kv_out_duration(char *buf, size_t cap, double seconds) {
    if (seconds < 90)
        snprintf(buf, cap, "%.0f s", seconds);
    else if (seconds < 90 * 60)
        snprintf(buf, cap, "%.0f min", seconds / 60);
    else
        snprintf(buf, cap, "%.1f h", seconds / 3600);
    return buf;
}

/* ---------------------------------------------------------------- JSON */

void kv_out_json_real(json_t *o, const char *key, double v) {
    json_object_set_new(o, key, isfinite(v) ? json_real(v) : json_null());
}

void kv_out_json_text(json_t *o, const char *key, const char *s, size_t len) {
    json_t *text = json_stringn(s, len);
    if (!text) { /* invalid UTF-8 */
        char *clean = kv_malloc(3 * len + 1);
        if (clean) text = json_stringn(clean, kv_utf8_clean(s, len, clean));
        kv_free(clean);
    }
    json_object_set_new(o, key, text ? text : json_null());
}

static void set_u64(json_t *o, const char *key, uint64_t v) {
    json_object_set_new(o, key, json_integer((json_int_t)v));
}

static void set_guard(json_t *o, const kvist_report *r) {
    kv_out_json_real(o, "guard", r->guard);
    json_object_set_new(o, "guard_met", json_boolean(r->guard_met));
    set_u64(o, "guard_heads_widened", r->guard_heads_widened);
    set_u64(o, "guard_heads_unmet", r->guard_heads_unmet);
    set_u64(o, "pages_guard", r->pages_guard);
}

static void set_shadow(json_t *o, const kvist_report *r) {
    set_u64(o, "bytes_shadow", r->bytes_shadow);
    set_u64(o, "shadow_steps", r->shadow.steps);
    if (!r->shadow.steps) return;
    kv_out_json_real(o, "shadow_mass_mean", r->shadow.mass_mean);
    kv_out_json_real(o, "shadow_mass_min", r->shadow.mass_min);
    kv_out_json_real(o, "shadow_estimate_mean", r->shadow.estimate_mean);
    kv_out_json_real(o, "shadow_estimate_min", r->shadow.estimate_min);
    kv_out_json_real(o, "shadow_output_error_mean", r->shadow.error_mean);
    kv_out_json_real(o, "shadow_output_error_max", r->shadow.error_max);
}

json_t *kv_out_json_report(const kvist_report *r) {
    json_t *o = json_object();
    kv_out_json_text(o, "policy", r->policy, strlen(r->policy));
    set_u64(o, "tokens_seen", r->tokens_seen);
    kv_out_json_real(o, "tokens_stored", r->tokens_stored);
    set_u64(o, "bytes_true", r->bytes_true);
    set_u64(o, "bytes_unique", r->bytes_unique);
    set_u64(o, "bytes_f16", r->bytes_f16);
    set_u64(o, "bytes_peak", r->bytes_peak);
    kv_out_json_real(o, "share", r->share);
    json_object_set_new(o, "share_met", json_boolean(r->share_met));
    if (!r->share_met) kv_out_json_text(o, "share_note", r->share_note, strlen(r->share_note));
    kv_out_json_real(o, "mass_mean", r->mass_mean);
    kv_out_json_real(o, "mass_min", r->mass_min);
    if (r->guard > 0) set_guard(o, r);
    if (r->bytes_shadow) set_shadow(o, r);
    kv_out_json_real(o, "prefill_tps", kv_out_rate(r->prefill_tokens, r->prefill_seconds));
    kv_out_json_real(o, "decode_tps", kv_out_rate(r->decode_tokens, r->decode_seconds));
    set_u64(o, "pages_dropped_pressure", r->pages_dropped_pressure);
    json_t *pages = json_object();
    for (uint32_t f = 0; f < KVIST_MAX_FORMATS; f++)
        if (r->pages_by_format[f] && kvist_format_name(f)) set_u64(pages, kvist_format_name(f), r->pages_by_format[f]);
    json_object_set_new(o, "pages", pages);
    return o;
}

void kv_out_json_guard_heads(json_t *o, const kvist_report *r, const kvist_stream_report *v, size_t n) {
    if (r->guard <= 0) return;
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        if (!v[i].pages_guard && !v[i].guard_unmet) continue;
        json_t *head = json_object();
        set_u64(head, "layer", v[i].layer);
        set_u64(head, "head", v[i].head);
        kv_out_json_real(head, "mass", v[i].mass);
        set_u64(head, "pages_guard", v[i].pages_guard);
        json_object_set_new(head, "met", json_boolean(!v[i].guard_unmet));
        json_array_append_new(list, head);
    }
    json_object_set_new(o, "guard_heads", list);
}

void kv_out_json_line(json_t *o, FILE *out) {
    json_dumpf(o, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    fflush(out);
    json_decref(o);
}

/* ---------------------------------------------------------------- the closing report */

static void report_guard(const kvist_report *r, FILE *out) {
    fprintf(out, "guard   %g ", r->guard);
    if (r->guard_met)
        fprintf(out, "met by every head");
    else
        fprintf(out, "not met by %u head%s", r->guard_heads_unmet, r->guard_heads_unmet == 1 ? "" : "s");
    fprintf(out, "; %u widened, by %llu pages\n", r->guard_heads_widened, (unsigned long long)r->pages_guard);
}

static void report_shadow(const kvist_report *r, FILE *out) {
    char a[32];
    kv_out_bytes(a, sizeof a, r->bytes_shadow);
    if (!r->shadow.steps) {
        fprintf(out, "shadow  nothing checked; %s aside\n", a);
        return;
    }
    fprintf(out,
            "shadow  mass %.3f, least %.3f (estimate %.3f, %.3f); output off by %.3f, at most %.3f; %llu checks, %s "
            "aside\n",
            r->shadow.mass_mean, r->shadow.mass_min, r->shadow.estimate_mean, r->shadow.estimate_min,
            r->shadow.error_mean, r->shadow.error_max, (unsigned long long)r->shadow.steps, a);
}

/* One line: the heads of one kind, at most eight by name. */
static void name_heads(const kvist_stream_report *v, size_t n, bool unmet, FILE *out) {
    enum { NAMED = 8 };
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (unmet ? !v[i].guard_unmet : !v[i].pages_guard) continue;
        if (count++ >= NAMED) continue;
        fprintf(out, "%s %u/%u",
                count > 1 ? ","
                : unmet   ? "        not met (layer/head):"
                          : "        widened (layer/head):",
                v[i].layer, v[i].head);
        if (unmet)
            fprintf(out, " %.3f", (double)v[i].mass);
        else
            fprintf(out, " +%u", v[i].pages_guard);
    }
    if (count > NAMED) fprintf(out, ", %zu more", count - NAMED);
    if (count) fputc('\n', out);
}

void kv_out_guard_heads(const kvist_report *r, const kvist_stream_report *v, size_t n, FILE *out) {
    if (r->guard <= 0) return;
    name_heads(v, n, false, out);
    name_heads(v, n, true, out);
}

void kv_out_guard(const kvist_report *r, FILE *out) {
    if (r->guard > 0) report_guard(r, out);
    if (r->bytes_shadow) report_shadow(r, out);
}

void kv_out_report(const kvist_report *r, FILE *out) {
    char a[32], b[32], c[32];
    fprintf(out, "policy  %s\n", r->policy);
    fprintf(out, "speed   %s prompt tokens at %.1f tok/s, %s generated at %.1f tok/s\n",
            kv_out_count(a, sizeof a, r->prefill_tokens), kv_out_rate(r->prefill_tokens, r->prefill_seconds),
            kv_out_count(b, sizeof b, r->decode_tokens), kv_out_rate(r->decode_tokens, r->decode_seconds));
    fprintf(out, "cache   %s true, %.1f %% of f16's %s; peak %s\n", kv_out_bytes(a, sizeof a, r->bytes_true),
            100 * r->share, kv_out_bytes(b, sizeof b, r->bytes_f16), kv_out_bytes(c, sizeof c, r->bytes_peak));
    fprintf(out, "tokens  %s seen, %.1f stored a head; pages", kv_out_count(a, sizeof a, r->tokens_seen),
            r->tokens_stored);
    for (uint32_t f = 0; f < KVIST_MAX_FORMATS; f++)
        if (r->pages_by_format[f] && kvist_format_name(f))
            fprintf(out, " %s %s", kvist_format_name(f), kv_out_count(b, sizeof b, r->pages_by_format[f]));
    fputc('\n', out);
    if (r->mass_min < 1)
        fprintf(out, "mass    %.3f of attention kept, least %.3f (layer %u, head %u), at token %s\n", r->mass_mean,
                r->mass_min, r->mass_min_layer, r->mass_min_head, kv_out_count(a, sizeof a, r->mass_position));
    kv_out_guard(r, out);
    if (!r->share_met) fprintf(out, "share   not met: %s\n", r->share_note);
    if (r->pages_dropped_pressure)
        fprintf(out, "pressure dropped %s pages\n", kv_out_count(a, sizeof a, r->pages_dropped_pressure));
}
