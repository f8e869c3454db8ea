/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page of `kvist chart`: the template (chart.html, embedded by the build) with the title and the data in place of
 * its two marks. Owns escaping: whatever bytes the prompt has, the data are valid UTF-8 and JSON, and no '<' stands in
 * them, so that no text can end their <script> element or begin another one. Must not know sessions.
 */
#include "cli/chart.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/err.h"
#include "text/utf8.h"
#include "policy/format.h"

extern const char kv_cli_chart_page[];

/* Text that grows; after a failed allocation it stays as it is and says so at the end. */
typedef struct text {
    char *p;
    size_t n, cap;
    bool failed;
} text;

static void add(text *t, const char *s, size_t n) {
    if (t->failed) return;
    if (t->n + n + 1 > t->cap) {
        size_t cap = 2 * t->cap > t->n + n + 1 ? 2 * t->cap : t->n + n + 65536;
        char *p = kv_realloc(t->p, cap);
        if (!p) {
            t->failed = true;
            return;
        }
        t->p = p;
        t->cap = cap;
    }
    memcpy(t->p + t->n, s, n);
    t->n += n;
    t->p[t->n] = 0;
}

static void puts_text(text *t, const char *s) { add(t, s, strlen(s)); }

__attribute__((format(printf, 2, 3))) static void putf(text *t, const char *fmt, ...) {
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (n > 0) add(t, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

/* A JSON string of any bytes: U+FFFD for what is no UTF-8; '<', '>' and '&' escaped for the element around it. */
static void put_string(text *t, const char *s, size_t n) {
    char *clean = kv_malloc(3 * n + 1);
    if (!clean) {
        t->failed = true;
        return;
    }
    n = kv_utf8_clean(s, n, clean);
    add(t, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)clean[i];
        if (c == '"' || c == '\\')
            putf(t, "\\%c", c);
        else if (c < 32 || c == 127 || c == '<' || c == '>' || c == '&')
            putf(t, "\\u%04x", c);
        else
            add(t, clean + i, 1);
    }
    add(t, "\"", 1);
    kv_free(clean);
}

static void put_html(text *t, const char *s) {
    for (; *s; s++) {
        if (*s == '<')
            puts_text(t, "&lt;");
        else if (*s == '&')
            puts_text(t, "&amp;");
        else
            add(t, s, 1);
    }
}

/* JSON knows no infinity and no NaN. */
static void put_real(text *t, double v) {
    if (isfinite(v))
        putf(t, "%.9g", v);
    else
        puts_text(t, "null");
}

static void put_base64(text *t, const void *data, size_t n) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *b = data;
    add(t, "\"", 1);
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)b[i] << 16 | (i + 1 < n ? (uint32_t)b[i + 1] << 8 : 0) | (i + 2 < n ? b[i + 2] : 0u);
        char four[4] = {digit[v >> 18], digit[v >> 12 & 63], i + 1 < n ? digit[v >> 6 & 63] : '=',
                        i + 2 < n ? digit[v & 63] : '='};
        add(t, four, 4);
    }
    add(t, "\"", 1);
}

/* Maps that are equal (all heads of a policy that evicts nothing, sinks and recent tokens everywhere) are written once:
 * {"maps": [...], "of": [map of stream 0, ...]}. */
static void put_maps(text *t, const chart_run *r, const uint8_t *maps) {
    uint32_t *of = kv_malloc(r->n_streams * sizeof *of), n = 0;
    if (!of) {
        t->failed = true;
        return;
    }
    puts_text(t, "{\"maps\":[");
    for (uint32_t s = 0; s < r->n_streams; s++) {
        uint32_t same = 0;
        while (same < s && memcmp(maps + same * r->map_bytes, maps + s * r->map_bytes, r->map_bytes) != 0) same++;
        if (same < s) {
            of[s] = of[same];
            continue;
        }
        if (n) add(t, ",", 1);
        put_base64(t, maps + s * r->map_bytes, r->map_bytes);
        of[s] = n++;
    }
    puts_text(t, "],\"of\":[");
    for (uint32_t s = 0; s < r->n_streams; s++) putf(t, "%s%u", s ? "," : "", of[s]);
    puts_text(t, "]}");
    kv_free(of);
}

/* The prompt in pieces of whole characters: one token each, unless several share one. "joined": [piece, tokens] of
 * those; "control": tokens that are no text. */
static void put_pieces(text *t, const chart_doc *d) {
    text joined = {0}, control = {0}, piece = {0};
    uint32_t n_pieces = 0, tokens = 0;
    puts_text(t, "\"pieces\":[");
    for (size_t i = 0; i < d->n; i++) {
        size_t len = 0, plain = 0;
        const char *bytes = kvist_token_bytes(d->model, d->ids[i], true, &len);
        const char *as_text = kvist_token_bytes(d->model, d->ids[i], false, &plain);
        if (bytes) add(&piece, bytes, len);
        if ((!as_text || !plain) && len) putf(&control, "%s%zu", control.n ? "," : "", i);
        tokens++;
        if (kv_utf8_complete(piece.p ? piece.p : "", piece.n) != piece.n && i + 1 < d->n) continue;
        if (n_pieces) add(t, ",", 1);
        put_string(t, piece.p ? piece.p : "", piece.n);
        if (tokens > 1) putf(&joined, "%s[%u,%u]", joined.n ? "," : "", n_pieces, tokens);
        n_pieces++;
        tokens = 0;
        piece.n = 0;
    }
    puts_text(t, "],\n\"joined\":[");
    if (joined.n) add(t, joined.p, joined.n);
    puts_text(t, "],\n\"control\":[");
    if (control.n) add(t, control.p, control.n);
    puts_text(t, "]");
    if (joined.failed || control.failed || piece.failed) t->failed = true;
    kv_free(joined.p);
    kv_free(control.p);
    kv_free(piece.p);
}

/* Lists over the streams. */
static void put_streams(text *t, const chart_run *r) {
    const kvist_stream_report *s = r->streams;
    puts_text(t, "\"tokens\":[");
    for (uint32_t i = 0; i < r->n_streams; i++) putf(t, "%s%u", i ? "," : "", s[i].tokens_stored);
    puts_text(t, "],\"page_count\":[");
    for (uint32_t i = 0; i < r->n_streams; i++) putf(t, "%s%u", i ? "," : "", s[i].pages);
    puts_text(t, "],\"bytes\":[");
    for (uint32_t i = 0; i < r->n_streams; i++)
        putf(t, "%s%llu", i ? "," : "", (unsigned long long)(s[i].bytes_true - s[i].bytes_positions));
    puts_text(t, "],\"mass\":[");
    for (uint32_t i = 0; i < r->n_streams; i++) putf(t, "%s%.4g", i ? "," : "", (double)s[i].mass);
    puts_text(t, "],\n\"formats\":[");
    uint8_t used[256];
    uint32_t n_used = 0;
    for (uint32_t f = 0; f < 256; f++) {
        uint64_t tokens = 0;
        char name[32];
        for (uint32_t i = 0; i < r->n_streams; i++) tokens += r->by_format[i * 256 + f];
        if (!tokens) continue;
        kv_format_print((uint8_t)f, name, sizeof name);
        if (n_used) add(t, ",", 1);
        put_string(t, name, strlen(name));
        used[n_used++] = (uint8_t)f;
    }
    puts_text(t, "],\"by\":[");
    for (uint32_t i = 0; i < r->n_streams; i++) {
        puts_text(t, i ? ",[" : "[");
        for (uint32_t f = 0; f < n_used; f++) putf(t, "%s%u", f ? "," : "", r->by_format[i * 256 + used[f]]);
        puts_text(t, "]");
    }
    puts_text(t, "]");
}

/* Bytes without the lists of positions, which are there for this page only. */
static void put_run(text *t, const chart_run *r, size_t n) {
    const kvist_report *k = &r->report;
    uint64_t bytes = k->bytes_true - k->bytes_positions;
    puts_text(t, "{\"policy\":");
    put_string(t, k->policy, strlen(k->policy));
    puts_text(t, ",\"note\":");
    put_string(t, k->share_met ? "" : k->share_note, k->share_met ? 0 : strlen(k->share_note));
    putf(t, ",\"bytes_true\":%llu,\"bytes_f16\":%llu,\"positions\":%llu", (unsigned long long)bytes,
         (unsigned long long)k->bytes_f16, (unsigned long long)k->bytes_positions);
    puts_text(t, ",\"share\":");
    put_real(t, k->bytes_f16 ? (double)bytes / (double)k->bytes_f16 : 0);
    puts_text(t, ",\"stored\":");
    put_real(t, k->tokens_stored);
    puts_text(t, ",\"mass_mean\":");
    put_real(t, k->mass_mean);
    puts_text(t, ",\"mass_min\":");
    put_real(t, k->mass_min);
    putf(t, ",\"mass_layer\":%u,\"mass_head\":%u,\"pages\":[", k->mass_min_layer, k->mass_min_head);
    for (uint32_t f = 0, any = 0; f < KVIST_MAX_FORMATS; f++)
        if (k->pages_by_format[f] && kvist_format_name(f))
            putf(t, "%s[\"%s\",%llu]", any++ ? "," : "", kvist_format_name(f),
                 (unsigned long long)k->pages_by_format[f]);
    puts_text(t, "],\n");
    put_streams(t, r);
    puts_text(t, ",\n\"kept\":");
    put_maps(t, r, r->kept);
    puts_text(t, ",\n\"always\":");
    put_maps(t, r, r->always);
    puts_text(t, ",\n\"price\":");
    put_base64(t, r->price, n * sizeof *r->price); /* f32, little-endian as every machine kvist runs on */
    puts_text(t, "}");
}

static void put_data(text *t, const chart_doc *d) {
    const kvist_model_info *m = &d->info;
    puts_text(t, "{\"version\":");
    put_string(t, kvist_version(), strlen(kvist_version()));
    puts_text(t, ",\"model\":");
    put_string(t, m->name, strlen(m->name));
    puts_text(t, ",\"source\":");
    put_string(t, d->source, strlen(d->source));
    putf(t, ",\"n\":%zu,\"layers\":%u,\"heads\":%u,\"head_values\":%u,\"page_bytes\":%u,\n", d->n, m->n_layers,
         m->n_kv_heads, m->head_dim_k + m->head_dim_v, m->page_bytes);
    put_pieces(t, d);
    puts_text(t, ",\n\"runs\":[");
    for (uint32_t i = 0; i < d->n_runs; i++) {
        if (i) add(t, ",\n", 2);
        put_run(t, &d->runs[i], d->n);
    }
    puts_text(t, "]}");
}

int kv_chart_html(const chart_doc *d, char **out, size_t *len, kvist_error *err) {
    static const char title[] = "@TITLE@", data[] = "@DATA@";
    const char *a = strstr(kv_cli_chart_page, title), *b = a ? strstr(a, data) : NULL;
    text t = {0};
    *out = NULL;
    if (!b) KV_FAIL(err, STATE, "the page's template has lost its marks");
    add(&t, kv_cli_chart_page, (size_t)(a - kv_cli_chart_page));
    put_html(&t, "kvist: what the cache keeps of ");
    put_html(&t, d->source);
    a += sizeof title - 1;
    add(&t, a, (size_t)(b - a));
    put_data(&t, d);
    puts_text(&t, b + sizeof data - 1);
    if (t.failed) {
        kv_free(t.p);
        KV_FAIL(err, MEMORY, "no memory for a page of %zu bytes", t.n);
    }
    *out = t.p;
    *len = t.n;
    return KVIST_OK;
}
