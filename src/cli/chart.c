/* SPDX-License-Identifier: Apache-2.0 */
/* kvist chart: one prompt read under one or more policies, and what each cache holds of it as an HTML page. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/chart.h"
#include "cli/common.h"
#include "text/utf8.h"

/* ---------------------------------------------------------------- one cache */

void kv_chart_run_free(chart_run *r) {
    kv_free(r->streams);
    kv_free(r->kept);
    kv_free(r->always);
    kv_free(r->by_format);
    kv_free(r->price);
    memset(r, 0, sizeof *r);
}

/* Room for the tokens of one stream at a time. */
typedef struct kept_room {
    uint32_t *positions, *ranked; /* [n]; ranked: streams that ranked and keep a token */
    float *prices;
    uint8_t *formats;
    double *sum; /* [n] of prices */
} kept_room;

static void gather_stream(const kvist_session *s, uint32_t i, size_t n, kept_room *k, chart_run *out) {
    const kvist_stream_report *sr = &out->streams[i];
    uint8_t *kept = out->kept + i * out->map_bytes, *always = out->always + i * out->map_bytes;
    size_t have = kvist_session_kept(s, sr->layer, sr->head, k->positions, k->prices, k->formats, n);
    for (size_t t = 0; t < have && t < n; t++) {
        uint32_t p = k->positions[t];
        uint8_t bit = (uint8_t)(1u << (p & 7));
        kept[p >> 3] |= bit;
        out->by_format[i * 256 + k->formats[t]]++;
        if (isfinite(k->prices[t])) {
            k->sum[p] += (double)k->prices[t];
            k->ranked[p]++;
        } else {
            always[p >> 3] |= bit;
        }
    }
}

int kv_chart_gather(const kvist_session *s, uint32_t n_layers, uint32_t n_heads, size_t n, chart_run *out,
                    kvist_error *err) {
    uint32_t streams = n_layers * n_heads;
    kept_room k = {.positions = kv_malloc(n * sizeof *k.positions),
                   .ranked = kv_calloc(n, sizeof *k.ranked),
                   .prices = kv_malloc(n * sizeof *k.prices),
                   .formats = kv_malloc(n),
                   .sum = kv_calloc(n, sizeof *k.sum)};
    *out = (chart_run){.n_streams = streams, .map_bytes = (n + 7) / 8};
    out->streams = kv_calloc(streams, sizeof *out->streams);
    out->kept = kv_calloc(streams, out->map_bytes);
    out->always = kv_calloc(streams, out->map_bytes);
    out->by_format = kv_calloc(streams, 256 * sizeof *out->by_format);
    out->price = kv_malloc(n * sizeof *out->price);
    bool room = k.positions && k.ranked && k.prices && k.formats && k.sum && out->streams && out->kept && out->always &&
                out->by_format && out->price;
    if (room) {
        kvist_session_report(s, &out->report);
        kvist_session_streams(s, out->streams, streams);
        for (uint32_t i = 0; i < streams; i++) gather_stream(s, i, n, &k, out);
        bool ranks = out->report.tokens_stored < (double)n; /* nothing evicted: nothing was ranked */
        for (size_t p = 0; p < n; p++) out->price[p] = ranks && k.ranked[p] ? (float)(k.sum[p] / k.ranked[p]) : NAN;
    }
    kv_free(k.positions);
    kv_free(k.ranked);
    kv_free(k.prices);
    kv_free(k.formats);
    kv_free(k.sum);
    if (!room) KV_FAIL(err, MEMORY, "no memory for the positions of %u heads and %zu tokens", streams, n);
    return KVIST_OK;
}

/* ---------------------------------------------------------------- the command */

typedef struct reader {
    const cli_options *o;
    const cli_engine *e;
    chart_doc *d;
    kvist_session *s[KV_CLI_MAX_LIST + 1]; /* those open at present */
    uint32_t n_open;
} reader;

static void close_all(reader *r) {
    for (uint32_t i = 0; i < r->n_open; i++) kvist_session_close(&r->s[i]);
    r->n_open = 0;
}

/* The prompt read once for the n policies from `at` on, each with its own cache; gathers and closes them. */
static int read_many(reader *r, const cli_policies *pol, uint32_t at, uint32_t n, kvist_error *err) {
    cli_progress progress;
    int st = KVIST_OK;
    kv_cli_progress_init(&progress, r->o, "reading the prompt");
    for (uint32_t i = 0; i < n && !st; i++) {
        st = kvist_session_create(r->e->engine, pol->v[at + i], &r->s[i], err);
        if (st) break;
        r->n_open = i + 1;
        st = kvist_session_track(r->s[i], true, err);
    }
    if (!st) {
        kvist_session_on_progress(r->s[0], kv_cli_session_progress, &progress);
        st = kvist_sync_many(r->s, n, r->d->ids, r->d->n, err);
        kv_out_progress_clear(&progress.bar);
    }
    for (uint32_t i = 0; i < n && !st; i++) {
        st = kv_chart_gather(r->s[i], r->e->info.n_layers, r->e->info.n_kv_heads, r->d->n, &r->d->runs[at + i], err);
        r->d->n_runs = at + i + 1;
    }
    close_all(r);
    return st;
}

/* All at once when the caches fit into the memory together, else one after the other. */
static int read_all(reader *r, const cli_policies *pol) {
    kvist_error err;
    int st = read_many(r, pol, 0, pol->n, &err);
    if (st == KVIST_E_BUDGET && pol->n > 1) {
        st = KVIST_OK;
        for (uint32_t i = 0; i < pol->n && !st; i++) st = read_many(r, pol, i, 1, &err);
    }
    if (st == KVIST_E_CANCELLED) fprintf(stderr, "kvist: stopped; nothing was written\n");
    return !st ? KV_CLI_OK : st == KVIST_E_CANCELLED ? KV_CLI_FAILED : kv_cli_error(&err);
}

static void tell(const cli_options *o, const chart_doc *d, size_t bytes) {
    char a[32], b[32];
    for (uint32_t i = 0; i < d->n_runs; i++) {
        const kvist_report *r = &d->runs[i].report;
        if (o->json) {
            json_t *row = kv_out_json_report(r);
            json_object_set_new(row, "bytes_positions", json_integer((json_int_t)r->bytes_positions));
            kv_out_json_text(row, "file", o->output, strlen(o->output));
            kv_out_json_line(row, stdout);
        } else if (!o->quiet) {
            uint64_t cache = r->bytes_true - r->bytes_positions;
            fprintf(stderr, "%s: %.1f of %s tokens a head in %s, %.1f %% of f16\n", r->policy, r->tokens_stored,
                    kv_out_count(a, sizeof a, r->tokens_seen), kv_out_bytes(b, sizeof b, cache),
                    100 * (double)cache / (double)r->bytes_f16);
        }
    }
    if (!o->quiet && !o->json && strcmp(o->output, "-") != 0)
        fprintf(stderr, "%s: %s; open it in a browser\n", o->output, kv_out_bytes(a, sizeof a, bytes));
}

static int write_page(const cli_options *o, const chart_doc *d) {
    kvist_error err;
    char *page;
    size_t len;
    if (kv_chart_html(d, &page, &len, &err)) return kv_cli_error(&err);
    int rc = KV_CLI_OK;
    if (!strcmp(o->output, "-")) {
        fwrite(page, 1, len, stdout); /* main() sees an error */
    } else if (kv_os_write_file(o->output, &(kv_os_part){page, len}, 1, &err)) {
        rc = kv_cli_error(&err);
    }
    kv_free(page);
    if (rc == KV_CLI_OK) tell(o, d, len);
    return rc;
}

static int draw(const cli_options *o, const cli_engine *e, chart_doc *d) {
    cli_policies pol;
    reader r = {.o = o, .e = e, .d = d};
    kv_cli_policies(o, &pol);
    d->runs = kv_calloc(pol.n, sizeof *d->runs);
    if (!d->runs) {
        fprintf(stderr, "kvist: out of memory for %u policies\n", pol.n);
        return KV_CLI_FAILED;
    }
    kv_cli_interrupt_install();
    int rc = read_all(&r, &pol);
    if (rc == KV_CLI_OK) rc = write_page(o, d);
    for (uint32_t i = 0; i < d->n_runs; i++) kv_chart_run_free(&d->runs[i]);
    kv_free(d->runs);
    return rc;
}

/* The file's own name, without its folders: a page may be shown to others. */
static char *source_name(const cli_options *o) {
    const char *name = o->file && strcmp(o->file, "-") != 0 ? o->file : "a prompt", *slash = strrchr(name, '/');
    if (slash && slash[1]) name = slash + 1;
    char *clean = kv_malloc(3 * strlen(name) + 1);
    if (clean) kv_utf8_clean(name, strlen(name), clean);
    return clean;
}

static int chart(const cli_options *o) {
    if (!o->output) return kv_cli_usage_error("chart", "no file to write: -o FILE (-: standard output)");
    if (o->json && !strcmp(o->output, "-")) return kv_cli_usage_error("chart", "-o - and --json both write to stdout");
    int rc = kv_cli_check("chart", o);
    if (rc) return rc;
    char *prompt = NULL, *rendered = NULL, *source = source_name(o);
    size_t len;
    int32_t *ids = NULL;
    bool templated;
    cli_engine e = {0};
    chart_doc d = {0};
    rc = source ? kv_cli_prompt("chart", o, &prompt, &len) : KV_CLI_FAILED;
    if (rc == KV_CLI_OK) rc = kv_cli_open_model(o, &e);
    if (rc == KV_CLI_OK) rc = kv_cli_render(o, &e, prompt, &rendered, &templated);
    if (rc == KV_CLI_OK) rc = kv_cli_tokens(&e, rendered, strlen(rendered), true, true, &ids, &d.n);
    if (rc == KV_CLI_OK && !d.n) rc = kv_cli_usage_error("chart", "the prompt is empty");
    uint32_t n_ctx = rc == KV_CLI_OK ? kv_cli_context(o, &e.info, d.n, 1) : 0;
    if (rc == KV_CLI_OK && !n_ctx) rc = KV_CLI_FAILED;
    if (rc == KV_CLI_OK) rc = kv_cli_open_engine(o, n_ctx, 1, &e);
    d.model = e.model;
    d.info = e.info;
    d.source = source;
    d.ids = ids;
    if (rc == KV_CLI_OK) rc = draw(o, &e, &d);
    kv_cli_close(&e);
    kv_free(ids);
    kv_free(rendered);
    kv_free(prompt);
    kv_free(source);
    return rc;
}

static const cli_opt opts[] = {
    {"-o,--output", "FILE", CLI_STR, offsetof(cli_options, output), 0, 0, "the page to write (-: standard output)"},
    {0}};
static const cli_opt *const groups[] = {kv_cli_opts_model, kv_cli_opts_prompt,  kv_cli_opts_chat,   opts,
                                        kv_cli_opts_kv,    kv_cli_opts_precise, kv_cli_opts_output, NULL};

const cli_command kv_cli_chart = {
    "chart",
    "-m MODEL [-f FILE] [-p TEXT] [--kv POLICY]... -o PAGE.html [options]",
    "Draws what the cache keeps of a prompt: by layer and head, by position, in the text.",
    groups,
    "The page is one file that loads nothing: it works offline, in light and dark, by keyboard, and on paper. Several\n"
    "--kv are shown side by side; the page switches between them. Bytes are those of the cache alone; what it takes "
    "to\n"
    "remember positions while drawing is said beside them.\n\n"
    "examples:\n"
    "  kvist chart -m model.gguf -f report.txt --kv minikv,share=0.14 -o chart.html\n"
    "  kvist chart -m model.gguf -f examples/kestrel-sound.txt -p \"Who kept the light?\" --kv snapkv --kv kvcompress "
    "-o "
    "chart.html\n",
    0,
    chart};
