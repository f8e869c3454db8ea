/* SPDX-License-Identifier: Apache-2.0 */
/* JSON lines as the program prints them: one object a row. A row or key that is not there fails the test. */
#ifndef KV_TESTS_CLI_JSON_ROWS_H
#define KV_TESTS_CLI_JSON_ROWS_H

#include <jansson.h>
#include <string.h>

#include "support/support.h"

/* The i-th line, the caller's. */
static json_t *row(const char *lines, size_t i) {
    for (; i; i--) {
        lines = strchr(lines, '\n');
        assert_non_null(lines);
        lines++;
    }
    json_error_t e;
    json_t *o = json_loads(lines, JSON_DISABLE_EOF_CHECK, &e);
    if (!o) fail_msg("no JSON row: %s", e.text);
    return o;
}

static double num(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) fail_msg("key '%s' is no number", key);
    return json_number_value(v);
}

#endif
