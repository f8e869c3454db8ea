/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/questions.h"

#include <string.h>

#include "base/alloc.h"

void kv_cli_questions_free(cli_questions *q) {
    kv_free(q->v);
    kv_free(q->storage);
    memset(q, 0, sizeof *q);
}

static kv_status parse_line(char *line, const char *name, uint32_t number, cli_questions *out, kv_error *err) {
    size_t n = strlen(line);
    while (n && (line[n - 1] == '\r' || line[n - 1] == ' ')) line[--n] = 0;
    if (!n || line[0] == '#') return KVIST_OK;
    char *tab = strchr(line, '\t');
    if (!tab || tab == line || !tab[1]) KV_FAIL(err, FORMAT, "%s:%u: not 'question<TAB>expected'", name, number);
    *tab = 0;
    cli_question *v = kv_realloc(out->v, ((size_t)out->n + 1) * sizeof *v);
    if (!v) KV_FAIL(err, MEMORY, "no memory for the questions of %s", name);
    out->v = v;
    v[out->n++] = (cli_question){line, tab + 1};
    return KVIST_OK;
}

kv_status kv_cli_questions_parse(char *text, const char *name, cli_questions *out, kv_error *err) {
    memset(out, 0, sizeof *out);
    out->storage = text;
    uint32_t number = 0;
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        kv_status st = parse_line(line, name, ++number, out, err);
        if (st != KVIST_OK) {
            kv_cli_questions_free(out);
            return st;
        }
        line = end ? end + 1 : NULL;
    }
    if (out->n) return KVIST_OK;
    kv_cli_questions_free(out);
    KV_FAIL(err, FORMAT, "%s has no questions", name);
}
