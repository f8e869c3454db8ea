/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the data file of a task, the first naming the task: refused with a message, or samples that can be
 * scored. */
#include "measure/task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t count(void *user, const char *text, size_t len) {
    (void)user;
    (void)text;
    return (len + 2) / 3;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    char path[64];
    int fd = memfd_create("tasks", 0);
    if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)(size - 1)) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    kv_task_params p = {.name = kv_task_name_at(data[0] % 6, NULL), .path = path, .count = count};
    p.n_ctx = data[0] & 8 ? 400 : data[0] & 16 ? 2000 : 0;
    p.questions = data[0] & 32 ? 2 : 0;
    p.limit = data[0] & 64 ? 3 : 0;
    kv_task_set *set;
    kv_error err = {0};
    if (kv_task_load(&p, &set, &err)) {
        if (!err.status || !err.message[0] || set) abort();
    } else {
        for (size_t i = 0; i < kv_task_count(set); i++) {
            const kv_sample *s = kv_task_at(set, i);
            if (!s->id || !s->context || !s->n_turns || !s->turns->n_answers || !s->max_new) abort();
            if (s->metric == KV_METRIC_NLL) continue;
            double v = kv_metric_score(s, 0, s->context);
            if (!(v >= 0 && v <= 1)) abort();
        }
        kv_task_free(&set);
    }
    close(fd);
    return 0;
}
