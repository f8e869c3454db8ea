/* SPDX-License-Identifier: Apache-2.0 */
/* Data files that the tests of the evaluation tasks write, and loading them with a count of tokens of their own. */
#ifndef KV_TESTS_TASK_FILES_H
#define KV_TESTS_TASK_FILES_H

#include "support/support.h"

#include <unistd.h>
#include <zlib.h>

#include "measure/task.h"

static char file[64];

/* A token every four bytes, begun ones too. */
static inline size_t count4(void *user, const char *text, size_t len) {
    (void)user;
    (void)text;
    return (len + 3) / 4;
}
static inline size_t tokens(const char *text) { return count4(NULL, text, strlen(text)); }

static inline int setup(void **state) {
    (void)state;
    strcpy(file, "/tmp/kvist-tasks-XXXXXX");
    int fd = mkstemp(file);
    return fd < 0 ? -1 : close(fd);
}
static inline int teardown(void **state) {
    (void)state;
    return unlink(file);
}

static inline void write_file(const char *text, size_t len) {
    FILE *f = fopen(file, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static inline kv_task_params params(const char *name, uint32_t n_ctx) {
    return (kv_task_params){.name = name, .path = file, .seed = 1, .n_ctx = n_ctx, .count = count4};
}

static inline kv_task_set *load(const kv_task_params *p) {
    kv_task_set *set = NULL;
    kv_error err = {0};
    if (kv_task_load(p, &set, &err)) fail_msg("%s: %s", p->name, err.message);
    return set;
}

static inline void refused(const kv_task_params *p, kv_status status, const char *a, const char *b) {
    kv_task_set *set = (kv_task_set *)1;
    kv_error err = {0};
    assert_int_equal(kv_task_load(p, &set, &err), status);
    assert_null(set);
    if (!strstr(err.message, a) || !strstr(err.message, b)) fail_msg("'%s' lacks '%s' or '%s'", err.message, a, b);
}

static inline size_t total_tokens(const kv_sample *s) {
    size_t n = tokens(s->context);
    for (uint32_t t = 0; t < s->n_turns; t++) n += tokens(s->turns[t].question) + tokens(s->turns[t].lead) + s->max_new;
    return n;
}

static inline uint32_t occurrences(const char *text, const char *what) {
    uint32_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

static inline void key_of(char *out, uint32_t record, uint32_t i, char kind) {
    sprintf(out, "%c%03u-%04u-abcdef", kind, record, i);
}

static inline void write_pairs(uint32_t records, uint32_t pairs, bool gzip) {
    gzFile f = gzopen(file, gzip ? "wb" : "wbT");
    assert_non_null(f);
    for (uint32_t r = 0; r < records; r++) {
        char k[32], v[32];
        gzprintf(f, "{\"ordered_kv_records\": [");
        for (uint32_t i = 0; i < pairs; i++) {
            key_of(k, r, i, 'k');
            key_of(v, r, i, 'v');
            gzprintf(f, "%s[\"%s\", \"%s\"]", i ? ", " : "", k, v);
        }
        key_of(k, r, r % pairs, 'k');
        key_of(v, r, r % pairs, 'v');
        gzprintf(f, "], \"key\": \"%s\", \"value\": \"%s\"}\n", k, v);
    }
    assert_int_equal(gzclose(f), Z_OK);
}

/* The last eight are four names that stand twice. */
static const char *const line_names[] = {"odd-fox", "new-sea", "red lamp", "dry-oak", "low-key", "top-hat",
                                         "raw-egg", "wet-dog", "big-cat",  "old-owl", "sad-bee", "hot-pan",
                                         "shy-elk", "icy-lid", "twin",     "twin",    "duo",     "duo",
                                         "pair",    "pair",    "both",     "both"};

static inline void write_lines(void) {
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    for (int r = 0; r < 4; r++) {
        fprintf(
            f,
            "{\"random_idx\": [\"%s\", %d], \"correct_line\": \"line %s: REGISTER_CONTENT is <%d>\\n\", \"prompt\": "
            "\"Below is a record. Each line has '<REGISTER_CONTENT>'. Start:\\n\\n",
            line_names[r], r, line_names[r], 100 * r + 1000 + r);
        for (int i = 0; i < 22; i++)
            fprintf(f, "line %s: REGISTER_CONTENT is <%d>\\n", line_names[i], 100 * r + 1000 + i);
        fprintf(f, "\\nNow tell me the <REGISTER_CONTENT> in line %s?\"}\n", line_names[r]);
    }
    assert_int_equal(fclose(f), 0);
}

#endif
