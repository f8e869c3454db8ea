/* SPDX-License-Identifier: Apache-2.0 */
#include "support/support.h"

#include <math.h>
#include <unistd.h>

const char *test_shared(const char *name) {
    static char path[1024];
    const char *data = getenv("KVIST_DATA");
    if (data && *data)
        snprintf(path, sizeof path, "%s/../%s", data, name);
    else
        snprintf(path, sizeof path, "../shared/%s", name);
    return access(path, R_OK) == 0 ? path : NULL;
}

const char *test_model(void) {
    const char *m = getenv("KVIST_MODEL");
    if (!m || !*m) m = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
    return access(m, R_OK) == 0 ? m : NULL;
}

char *test_read(const char *path, size_t *len) {
    FILE *f = path ? fopen(path, "rb") : NULL;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *buf = n < 0 ? NULL : malloc((size_t)n + 1);
    if (buf && fread(buf, 1, (size_t)n, f) != (size_t)n) {
        free(buf);
        buf = NULL;
    }
    fclose(f);
    if (!buf) return NULL;
    buf[n] = 0;
    if (len) *len = (size_t)n;
    return buf;
}

uint64_t test_rand(uint64_t *s) {
    uint64_t x = *s += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

float test_uniform(uint64_t *s) { return (float)(test_rand(s) >> 40) * (2.0f / 16777216.0f) - 1.0f; }

float test_normal(uint64_t *s) {
    double u = ((double)(test_rand(s) >> 11) + 0.5) / 9007199254740992.0,
           v = (double)(test_rand(s) >> 11) / 9007199254740992.0;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}
