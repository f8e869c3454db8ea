/* SPDX-License-Identifier: Apache-2.0 */
/* A file of questions about one document: a line is a question, a TAB, and what an answer must contain ("1887|eighteen
 * eighty"). Empty lines and lines that begin with # are skipped. */
#ifndef KV_CLI_QUESTIONS_H
#define KV_CLI_QUESTIONS_H

#include <stdint.h>

#include "base/err.h"

typedef struct cli_question {
    const char *text, *expected;
} cli_question;
typedef struct cli_questions {
    char *storage;
    cli_question *v;
    uint32_t n;
} cli_questions;

/* Takes text (kv_malloc'd, changed in place) over, on error too. The error names the line. */
kv_status kv_cli_questions_parse(char *text, const char *name, cli_questions *out, kv_error *err) KV_WARN_UNUSED;
void kv_cli_questions_free(cli_questions *q);

#endif
