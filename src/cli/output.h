/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands print: tables, a progress bar, numbers with units, JSON lines. Results go to stdout, everything
 * else to stderr; the bar appears on a terminal only. Knows reports, not how they came about.
 */
#ifndef KV_CLI_OUTPUT_H
#define KV_CLI_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "kvist/kvist.h"

/* ---- tables: Markdown with aligned columns, which reads well on a terminal and pastes into a document */
enum { OUT_MAX_COLUMNS = 24, OUT_CELL = 96 };
typedef struct out_table {
    uint32_t n_columns, n_rows, cap_rows;
    const char *title[OUT_MAX_COLUMNS];
    bool left[OUT_MAX_COLUMNS];
    char (*cells)[OUT_CELL]; /* [n_rows][n_columns] */
    uint32_t column;         /* next cell of the row being filled */
} out_table;
void kv_out_table_init(out_table *t);
void kv_out_table_free(out_table *t);
void kv_out_column(out_table *t, const char *title, bool left);
/* Appends a cell; rows begin and end by themselves. Text longer than a cell is cut at a character. */
void kv_out_cell(out_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void kv_out_table_print(const out_table *t, FILE *out);
void kv_out_table_csv(const out_table *t, FILE *out);
/* Columns that UTF-8 text takes on a terminal, one a character. */
size_t kv_out_width(const char *s);

/* ---- progress: drawn on stderr when that is a terminal and not quiet, at most ten times a second */
typedef struct out_progress {
    bool on, shown;
    uint64_t last_ns;
    /* what the time left is told from: since when this total is worked on, and what was done then */
    uint64_t start_ns, start_done, total;
} out_progress;
void kv_out_progress_init(out_progress *p, bool quiet);
void kv_out_progress(out_progress *p, const char *what, uint64_t done, uint64_t total);
void kv_out_progress_clear(out_progress *p);

/* ---- values */
double kv_out_mib(uint64_t bytes);
/* "1.5 GiB", "620 KiB"; returns buf. */
const char *kv_out_bytes(char *buf, size_t cap, uint64_t bytes);
/* 5932 -> "5,932"; returns buf. */
const char *kv_out_count(char *buf, size_t cap, uint64_t n);
double kv_out_rate(uint64_t tokens, double seconds); /* tokens/s, 0 when no time passed */
/* "45 s", "12 min", "2.5 h"; returns buf. */
const char *kv_out_duration(char *buf, size_t cap, double seconds);

/* ---- JSON lines (keys of DESIGN 6). out_json_line consumes the object. */
json_t *kv_out_json_report(const kvist_report *r);
void kv_out_json_line(json_t *o, FILE *out);
/* NaN and infinities become null: JSON has none. */
void kv_out_json_real(json_t *o, const char *key, double v);
/* Not valid UTF-8: U+FFFD in its place. */
void kv_out_json_text(json_t *o, const char *key, const char *s, size_t len);

/* "guard_heads": the KV heads that the guard widened or that retain less than it asks; nothing without a guard. */
void kv_out_json_guard_heads(json_t *o, const kvist_report *r, const kvist_stream_report *v, size_t n);

/* The closing report of run and chat, for people. */
void kv_out_report(const kvist_report *r, FILE *out);
/* Its lines about the guard and the shadow check; nothing where there is neither. */
void kv_out_guard(const kvist_report *r, FILE *out);
/* The same heads by name, the first few of each kind. */
void kv_out_guard_heads(const kvist_report *r, const kvist_stream_report *v, size_t n, FILE *out);

#endif
