/* SPDX-License-Identifier: Apache-2.0 */
/* A child process with both its outputs read to the end, and what its tables and JSON say; see bench_peer.h. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/os.h"
#include "cli/bench_peer.h"

enum { KEEP = 1 << 20 }; /* a row is about 2 KiB; a program that prints more than this is no benchmark */

extern char **environ;

typedef struct reader {
    peer_output *o;
    size_t len;
    char line[512]; /* of standard error, being read */
    size_t at;
    bool reason; /* o->last holds a line that names an error: later chatter does not replace it */
} reader;

static void keep(reader *r, const char *s, size_t n) {
    if (n > KEEP - r->len) n = KEEP - r->len;
    memcpy(r->o->out + r->len, s, n);
    r->len += n;
    r->o->out[r->len] = 0;
}

static void end_line(reader *r) {
    size_t n = r->at;
    r->at = 0;
    while (n && (r->line[n - 1] == ' ' || r->line[n - 1] == '\r' || r->line[n - 1] == '\t')) n--;
    r->line[n] = 0;
    if (!n) return;
    if (r->line[0] == '|' || r->line[0] == '{') {
        keep(r, r->line, n);
        keep(r, "\n", 1);
    }
    static const char *const signs[] = {"error", "ERROR", "Error", "ASSERT", "failed", "fatal"};
    bool reason = false;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) reason |= strstr(r->line, signs[i]) != NULL;
    if (r->reason && !reason) return;
    r->reason = reason;
    snprintf(r->o->last, sizeof r->o->last, "%.*s", (int)sizeof r->o->last - 1, r->line);
}

static void read_errors(reader *r, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i] == '\n')
            end_line(r);
        else if (r->at < sizeof r->line - 1)
            r->line[r->at++] = s[i];
}

/* Both pipes to their ends, or false when the clock passes `end` (0: never). */
static bool drain(reader *r, int out, int err, uint64_t end) {
    struct pollfd p[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
    char buf[4096];
    while (p[0].fd >= 0 || p[1].fd >= 0) {
        uint64_t now = end ? kv_os_now_ns() : 0;
        if (end && now >= end) return false;
        if (poll(p, 2, end ? (int)((end - now) / 1000000 + 1) : -1) < 0 && errno != EINTR) break;
        for (int i = 0; i < 2; i++) {
            if (p[i].fd < 0 || !p[i].revents) continue;
            ssize_t n = read(p[i].fd, buf, sizeof buf);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0)
                p[i].fd = -1;
            else if (i == 0)
                keep(r, buf, (size_t)n);
            else
                read_errors(r, buf, (size_t)n);
        }
    }
    end_line(r);
    return true;
}

/* In a folder of its own: ik_llama.cpp's programs leave a llama.log where they stand. */
static int start(const char *const *argv, const char *dir, int out, int err, pid_t *pid) {
    posix_spawn_file_actions_t fa;
    if (posix_spawn_file_actions_init(&fa)) return ENOMEM;
    if (*dir) posix_spawn_file_actions_addchdir_np(&fa, dir);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, out, 1);
    posix_spawn_file_actions_adddup2(&fa, err, 2);
    int rc = posix_spawn(pid, argv[0], &fa, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    return rc;
}

void kv_peer_spawn(const char *const *argv, uint32_t limit_s, peer_output *o) {
    int out[2], err[2], rc, status = 0;
    pid_t pid;
    char dir[] = "/tmp/kvist-bench-XXXXXX", log[64];
    memset(o, 0, sizeof *o);
    o->status = -1;
    o->out = kv_malloc(KEEP + 1);
    if (!o->out) return;
    o->out[0] = 0;
    if (pipe2(out, O_CLOEXEC)) return;
    if (pipe2(err, O_CLOEXEC)) {
        close(out[0]);
        close(out[1]);
        return;
    }
    if (!mkdtemp(dir)) dir[0] = 0;
    uint64_t t0 = kv_os_now_ns();
    rc = start(argv, dir, out[1], err[1], &pid);
    close(out[1]);
    close(err[1]);
    if (rc)
        snprintf(o->last, sizeof o->last, "%s", strerror(rc));
    else {
        reader r = {.o = o};
        o->stopped = !drain(&r, out[0], err[0], limit_s ? t0 + (uint64_t)limit_s * 1000000000 : 0);
        if (o->stopped) kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        o->seconds = (double)(kv_os_now_ns() - t0) * 1e-9;
        o->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    close(out[0]);
    close(err[0]);
    if (!dir[0]) return;
    snprintf(log, sizeof log, "%s/llama.log", dir);
    unlink(log);
    rmdir(dir);
}

void kv_peer_spawn_warm(const char *const *argv, uint32_t limit_s, peer_output *o) {
    kv_peer_spawn(argv, limit_s, o);
    if (o->status) return;
    kv_peer_output_free(o);
    kv_peer_spawn(argv, limit_s, o);
}

void kv_peer_output_free(peer_output *o) {
    kv_free(o->out);
    o->out = NULL;
}

/* ---------------------------------------------------------------- llama-bench -o json */

static int64_t count_of(const json_t *row, const char *key) {
    const json_t *v = json_object_get(row, key);
    return json_is_integer(v) ? json_integer_value(v) : -1;
}

/* Last number of an array, else the number under `mean`. */
static double last_of(const json_t *row, const char *samples, const char *mean) {
    const json_t *a = json_object_get(row, samples);
    size_t n = json_array_size(a);
    return json_number_value(n ? json_array_get(a, n - 1) : json_object_get(row, mean));
}

bool kv_peer_bench_row(const char *text, uint32_t n_prompt, uint32_t n_gen, int64_t depth, double *tps,
                       double *seconds) {
    const char *at = strchr(text, '[');
    json_t *rows = at ? json_loads(at, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    bool found = false;
    for (size_t i = 0; i < json_array_size(rows) && !found; i++) {
        const json_t *row = json_array_get(rows, i);
        if (count_of(row, "n_prompt") != n_prompt || count_of(row, "n_gen") != n_gen) continue;
        if (depth >= 0 && count_of(row, "n_depth") != depth) continue;
        *tps = last_of(row, "samples_ts", "avg_ts");
        *seconds = last_of(row, "samples_ns", "avg_ns") * 1e-9;
        found = *tps > 0;
    }
    json_decref(rows);
    return found;
}

/* ---------------------------------------------------------------- tables of the siblings */

/* Numbers between the bars of a line "| 1 | 2.5 | ..."; how many. */
static uint32_t numbers(const char *line, double *v, uint32_t max) {
    uint32_t n = 0;
    while (*line == '|' && n < max) {
        double x;
        int used = 0;
        if (sscanf(line + 1, " %lf %n", &x, &used) != 1 || !used) break;
        v[n++] = x;
        line += 1 + used;
    }
    return n;
}

/* The number in column `want` of the first table row of at least `columns` numbers whose columns key[i] are value[i].
 */
static bool table_row(const char *text, const uint32_t *key, const uint32_t *value, uint32_t n_keys, uint32_t columns,
                      uint32_t want, double *out) {
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        double v[16];
        bool same = numbers(line, v, 16) >= columns;
        for (uint32_t i = 0; same && i < n_keys; i++) same = v[key[i]] >= value[i] && v[key[i]] <= value[i];
        if (!same || !(v[want] > 0)) continue;
        *out = v[want];
        return true;
    }
    return false;
}

/* | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s | */
bool kv_peer_batched_row(const char *text, uint32_t pp, uint32_t tg, uint32_t pl, double *tps) {
    return table_row(text, (const uint32_t[]){0, 1, 2}, (const uint32_t[]){pp, tg, pl}, 3, 10, 7, tps);
}

/* | PP | TG | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | */
bool kv_peer_sweep_row(const char *text, uint32_t pp, uint32_t n_kv, uint32_t tg, double *tps) {
    return table_row(text, (const uint32_t[]){0, 2, 1}, (const uint32_t[]){pp, n_kv, tg}, tg ? 3 : 2, 7, tg ? 6 : 4, tps);
}
