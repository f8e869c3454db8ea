/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of loading: source pages are given back as each tensor is packed, so the peak stays near one copy of the
 * weights. Each model is opened in a forked child: a process's peak never falls, and a sibling test's must not count.
 */
#include "support/genmodel.h"
#include "support/support.h"

#include "base/os.h"
#include "kvist/kvist.h"

#include <sys/wait.h>
#include <unistd.h>

/* Sanitizers keep freed memory: under them only the weights are checked. */
#ifdef __has_feature
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

typedef struct loaded {
    int status;
    uint64_t before, peak;
    kvist_model_info info;
    kvist_error err;
} loaded;

static uint64_t resident(void) {
    unsigned long long all = 0, now = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    int n = fscanf(f, "%llu %llu", &all, &now);
    fclose(f);
    return n == 2 ? (uint64_t)now * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static loaded open_in_child(const char *path) {
    int fd[2];
    loaded out = {.status = -1};
    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        loaded l = {.before = resident()};
        kvist_model *m;
        l.status = kvist_model_open(path, NULL, &m, &l.err);
        l.peak = kv_os_peak_rss();
        if (!l.status) kvist_model_get_info(m, &l.info);
        kvist_model_close(&m);
        _exit(write(fd[1], &l, sizeof l) == (ssize_t)sizeof l ? 0 : 1);
    }
    close(fd[1]);
    ssize_t n = read(fd[0], &out, sizeof out);
    close(fd[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(n == (ssize_t)sizeof out && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (out.status) fail_msg("%s: %s", path, out.err.message);
    return out;
}

/* More than the file: tokenizer, the tensor in hand, the allocator's slack. */
static void check(const char *path, uint64_t slack) {
    loaded l = open_in_child(path);
    const double mib = 1 << 20;
    uint64_t file = l.info.bytes_file;
    print_message("file %.1f MiB, weights %.1f MiB, resident at the start %.1f MiB, peak %.1f MiB\n",
                  (double)file / mib, (double)l.info.bytes_weights / mib, (double)l.before / mib, (double)l.peak / mib);
    assert_true(l.info.bytes_weights * 10 <= file * 11);
    assert_true(l.before > 0 && l.peak > l.before);
    if (!SANITIZED) assert_true((double)(l.peak - l.before) < 1.35 * (double)file + (double)slack);
}

/* Wide enough that one copy too many of the weights exceeds the bound. */
static void generated(void **state) {
    (void)state;
    gen_spec g = gen_spec_default();
    char path[128];
    g.n_layers = 8;
    g.n_embd = 1024;
    g.n_heads = 16;
    g.n_kv = 4;
    g.head_dim = 64;
    g.n_ff = 2816;
    g.n_vocab = 4096;
    g.type = KV_TYPE_Q4_1;
    assert_int_equal(gen_temp_path(path, sizeof path), 0);
    pid_t pid = fork(); /* the generator's memory is not the test's */
    assert_true(pid >= 0);
    if (!pid) _exit(gen_model(&g, path) ? 1 : 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check(path, 12u << 20);
    unlink(path);
}

static void real(void **state) {
    (void)state;
    const char *path = test_model();
    if (!path) skip();
    check(path, 40u << 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(generated), cmocka_unit_test(real)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
