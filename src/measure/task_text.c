/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tasks read and measure: files (gzip undone), JSON lines with errors that name file, line and field, prose for
 * haystacks, and pieces of a text of a given length in tokens. Must not know: samples' meaning, tokenizers.
 */
#include <string.h>
#include <zlib.h>

#include "base/alloc.h"
#include "base/os.h"
#include "measure/metric.h"
#include "measure/task_build.h"

/* As kv_os_read_file's own limit: a small file must not unpack into all memory. */
enum { UNPACKED_BYTES_MAX = 1 << 30 };

static void *z_alloc(void *user, unsigned n, unsigned size) { return kv_calloc(n, size); }
static void z_free(void *user, void *p) { kv_free(p); }

static kv_status grow(const char *path, char **buf, size_t *cap, kv_error *err) {
    if (*cap >= UNPACKED_BYTES_MAX) KV_FAIL(err, FORMAT, "%s: unpacks to more than %d bytes", path, UNPACKED_BYTES_MAX);
    size_t more = 2 * *cap;
    char *p = kv_realloc(*buf, more + 1);
    if (!p) KV_FAIL(err, MEMORY, "%s: no memory for %zu bytes", path, more);
    *buf = p;
    *cap = more;
    return KVIST_OK;
}

/* All members of a gzip file one after another. */
static kv_status inflate_all(const char *path, z_stream *z, char **buf, size_t *cap, size_t *len, kv_error *err) {
    for (;;) {
        if (*len == *cap) KV_TRY(grow(path, buf, cap, err));
        size_t room = *cap - *len;
        z->next_out = (Bytef *)*buf + *len;
        z->avail_out = (uInt)(room < UNPACKED_BYTES_MAX ? room : UNPACKED_BYTES_MAX);
        uInt before = z->avail_out;
        int r = inflate(z, Z_NO_FLUSH);
        *len += before - z->avail_out;
        if (r == Z_STREAM_END) {
            if (!z->avail_in) return KVIST_OK;
            if (inflateReset(z) != Z_OK) KV_FAIL(err, FORMAT, "%s: malformed gzip data", path);
        } else if (r == Z_MEM_ERROR) {
            KV_FAIL(err, MEMORY, "%s: no memory to unpack it", path);
        } else if (r != Z_OK || (z->avail_out && !z->avail_in)) {
            KV_FAIL(err, FORMAT, "%s: %s gzip data", path, r == Z_OK || r == Z_BUF_ERROR ? "truncated" : "malformed");
        }
    }
}

static kv_status unpack(const char *path, const char *data, size_t size, char **out, size_t *len, kv_error *err) {
    z_stream z = {.zalloc = z_alloc, .zfree = z_free, .next_in = (Bytef *)data, .avail_in = (uInt)size};
    size_t cap = 4 * size + 64;
    char *buf = kv_malloc(cap + 1);
    if (!buf) KV_FAIL(err, MEMORY, "%s: no memory for %zu bytes", path, cap);
    *len = 0;
    if (inflateInit2(&z, 15 + 16) != Z_OK) { /* the largest window; 16: a gzip header */
        kv_free(buf);
        KV_FAIL(err, MEMORY, "%s: no memory to unpack it", path);
    }
    kv_status status = inflate_all(path, &z, &buf, &cap, len, err);
    inflateEnd(&z);
    if (status != KVIST_OK) {
        kv_free(buf);
        return status;
    }
    buf[*len] = 0;
    *out = buf;
    return KVIST_OK;
}

kv_status kv_task_read(const char *path, char **text, size_t *len, kv_error *err) {
    char *data;
    size_t size;
    *text = NULL;
    KV_TRY(kv_os_read_file(path, &data, &size, err));
    if (size < 2 || (unsigned char)data[0] != 0x1f || (unsigned char)data[1] != 0x8b) {
        *text = data;
        *len = size;
        return KVIST_OK;
    }
    kv_status status = unpack(path, data, size, text, len, err);
    kv_free(data);
    return status;
}

/* Offset of the line after the first one in text[0..n) that begins with `mark`; n when there is none. */
static size_t after_line(const char *text, size_t n, const char *mark, size_t *line) {
    const char *at = memmem(text, n, mark, strlen(mark));
    while (at && at > text && at[-1] != '\n') at = memmem(at + 1, n - (size_t)(at + 1 - text), mark, strlen(mark));
    if (!at) return *line = n;
    *line = (size_t)(at - text);
    const char *end = memchr(at, '\n', n - *line);
    return end ? (size_t)(end + 1 - text) : n;
}

kv_status kv_task_read_prose(const char *path, char **text, size_t *len, kv_error *err) {
    char *t;
    size_t n, line, from = 0, to = 0, breaks = 2;
    KV_TRY(kv_task_read(path, &t, &n, err));
    size_t start = after_line(t, n, "*** START OF", &line);
    if (line < n) from = start;
    (void)after_line(t + from, n - from, "*** END OF", &line);
    n = from + line;
    if (!from && n >= 3 && !memcmp(t, "\xef\xbb\xbf", 3)) from = 3;
    for (; from < n; from++) {
        if (t[from] == '\r' || t[from] == 0) continue; /* a NUL would end the text for whoever reads it next */
        breaks = t[from] == '\n' ? breaks + 1 : 0;
        if (breaks <= 2) t[to++] = t[from];
    }
    t[to] = 0;
    if (!to) {
        kv_free(t);
        KV_FAIL(err, FORMAT, "%s: no text in it", path);
    }
    *text = t;
    *len = to;
    return KVIST_OK;
}

/* ---- JSON lines ---- */

kv_status kv_jsonl_open(const char *path, kv_jsonl *out, kv_error *err) {
    *out = (kv_jsonl){.path = path};
    size_t len;
    KV_TRY(kv_task_read(path, &out->text, &len, err));
    uint32_t cap = 0, number = 0;
    for (size_t from = 0, to; from < len; from = to + 1) {
        const char *end = memchr(out->text + from, '\n', len - from);
        to = end ? (size_t)(end - out->text) : len;
        number++;
        if (strspn(out->text + from, " \t\r") >= to - from) continue;
        if (out->n == cap) {
            cap = cap ? 2 * cap : 256;
            void *more = kv_realloc(out->lines, cap * sizeof *out->lines);
            if (!more) {
                kv_jsonl_close(out);
                KV_FAIL(err, MEMORY, "%s: no memory for its lines", path);
            }
            out->lines = more;
        }
        out->lines[out->n++] = (struct kv_jsonl_line){from, to - from, number};
    }
    return KVIST_OK;
}

void kv_jsonl_close(kv_jsonl *j) {
    kv_free(j->text);
    kv_free(j->lines);
    *j = (kv_jsonl){0};
}

kv_status kv_jsonl_at(const kv_jsonl *j, uint32_t i, json_t **out, kv_error *err) {
    json_error_t e;
    *out = json_loadb(j->text + j->lines[i].at, j->lines[i].len, JSON_REJECT_DUPLICATES, &e);
    if (!*out) KV_FAIL(err, FORMAT, "%s: line %u: column %d: %s", j->path, j->lines[i].number, e.column, e.text);
    if (json_is_object(*out)) return KVIST_OK;
    json_decref(*out);
    *out = NULL;
    KV_FAIL(err, FORMAT, "%s: line %u: not a JSON object", j->path, j->lines[i].number);
}

kv_status kv_jsonl_fail(const kv_jsonl *j, uint32_t i, const char *field, const char *what, kv_error *err) {
    KV_FAIL(err, FORMAT, "%s: line %u: field '%s' %s", j->path, j->lines[i].number, field, what);
}

kv_status kv_jsonl_string(const kv_jsonl *j, uint32_t i, const json_t *o, const char *field, bool must,
                          const char **out, kv_error *err) {
    const json_t *v = json_object_get(o, field);
    *out = json_string_value(v);
    if (*out || (!v && !must)) return KVIST_OK;
    return kv_jsonl_fail(j, i, field, v ? "is not a string" : "is missing", err);
}

kv_status kv_jsonl_strings(kv_task_build *b, const kv_jsonl *j, uint32_t i, const json_t *o, const char *field,
                           const char *const **out, uint32_t *n, kv_error *err) {
    const json_t *a = json_object_get(o, field);
    if (!a) return kv_jsonl_fail(j, i, field, "is missing", err);
    if (!json_is_array(a)) return kv_jsonl_fail(j, i, field, "is not an array", err);
    size_t count = json_array_size(a);
    if (!count || count > UINT32_MAX) return kv_jsonl_fail(j, i, field, "is empty", err);
    const char **v = kv_task_alloc(b, count * sizeof *v);
    KV_TASK_NEW(err, v);
    for (size_t k = 0; k < count; k++) {
        const char *s = json_string_value(json_array_get(a, k));
        if (!s || !*s)
            return kv_jsonl_fail(j, i, field, s ? "holds an empty string" : "holds what is not a string", err);
        v[k] = kv_task_strndup(b, s, strlen(s));
        KV_TASK_NEW(err, v[k]);
    }
    *out = v;
    *n = (uint32_t)count;
    return KVIST_OK;
}

/* ---- lengths ---- */

size_t kv_task_tokens(const kv_task_build *b, const char *text, size_t len) {
    return len ? b->p->count(b->p->count_user, text, len) : 0;
}

static bool inside_char(const char *text, size_t len, size_t at) {
    return at > 0 && at < len && ((unsigned char)text[at] & 0xc0) == 0x80;
}

/* `bytes`, at the head or the tail of text, less those that would be a part of a character. */
static size_t whole_chars(const char *text, size_t len, size_t bytes, bool tail) {
    while (bytes && inside_char(text, len, tail ? len - bytes : bytes)) bytes--;
    return bytes;
}

/* By false position on bytes a token, which varies little along a text, and every third time by halving: three or four
 * counts for a book. `fits`: the longest piece known to fit; `over`: the shortest known not to. */
size_t kv_task_fit(const kv_task_build *b, const char *text, size_t len, size_t tokens, bool tail) {
    if (len <= tokens) return len; /* no tokenizer makes more tokens than bytes */
    size_t fits = 0, fits_tokens = 0, over = len + 1, over_tokens = 0;
    /* Eight bytes a token are rare: the first count is near the answer even in a book of a million tokens. */
    size_t at = len / 8 > tokens ? 8 * tokens : len;
    for (int round = 1; tokens - fits_tokens > tokens / 200; round++) {
        size_t bytes = whole_chars(text, len, at, tail);
        if (bytes <= fits) break; /* a character's width apart */
        size_t n = kv_task_tokens(b, tail ? text + len - bytes : text, bytes);
        if (n <= tokens)
            fits = bytes, fits_tokens = n;
        else
            over = bytes, over_tokens = n;
        if (fits == len || over - fits <= 1) break;
        if (over > len)
            at = fits + 8 * (tokens - fits_tokens) < len ? fits + 8 * (tokens - fits_tokens) : len;
        else if (round % 3 == 0)
            at = fits + (over - fits) / 2;
        else
            at = fits +
                 (size_t)((double)(over - fits) * (double)(tokens - fits_tokens) / (double)(over_tokens - fits_tokens));
        if (at >= over) at = over - 1;
    }
    return fits;
}

kv_status kv_task_room(const kv_task_build *b, const char *id, size_t used, size_t least, size_t *room, kv_error *err) {
    *room = SIZE_MAX;
    if (!b->p->n_ctx) return KVIST_OK;
    used += KV_TASK_SPARE_TOKENS;
    if (b->p->n_ctx < used + least)
        KV_FAIL(err, CONTEXT,
                "%s: %s: a context of %u tokens does not hold it: %zu for question, answer and template, at "
                "least %zu for what is read",
                b->p->path, id, b->p->n_ctx, used, least);
    *room = b->p->n_ctx - used;
    return KVIST_OK;
}
