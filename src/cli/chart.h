/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `kvist chart` gathers from the sessions of one prompt, and the page made of it. Knows numbers, not how they are
 * drawn: that is chart.html's.
 */
#ifndef KV_CLI_CHART_H
#define KV_CLI_CHART_H

#include "kvist/kvist.h"

/* One policy's cache of the prompt. Streams are (layer, KV head) in layer, head order; maps have a bit a position:
 * position p of stream s is bit p & 7 of maps[s * map_bytes + (p >> 3)]. */
typedef struct chart_run {
    kvist_report report;
    uint32_t n_streams;
    size_t map_bytes;
    kvist_stream_report *streams; /* [n_streams] */
    uint8_t *kept, *always;       /* [n_streams][map_bytes]; always: kept whatever their score */
    uint32_t *by_format;          /* [n_streams][256] tokens by format pair */
    float *price;                 /* [n] mean price over the streams that ranked and keep the token; NaN: none */
} chart_run;

typedef struct chart_doc {
    const kvist_model *model;
    kvist_model_info info;
    const char *source; /* what the prompt is called: a file's name */
    const int32_t *ids;
    size_t n;
    chart_run *runs;
    uint32_t n_runs;
} chart_doc;

/* The cache of a tracked session that holds n tokens. The caller frees, on error too. */
int kv_chart_gather(const kvist_session *s, uint32_t n_layers, uint32_t n_heads, size_t n, chart_run *out,
                    kvist_error *err);
void kv_chart_run_free(chart_run *r);

/* The whole page, kv_malloc'd and terminated. KVIST_E_MEMORY. */
int kv_chart_html(const chart_doc *d, char **out, size_t *len, kvist_error *err);

#endif
