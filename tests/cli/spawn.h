/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the built kvist program (found beside the test binary) and captures what it prints. */
#ifndef KV_TESTS_CLI_SPAWN_H
#define KV_TESTS_CLI_SPAWN_H

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/genmodel.h"
#include "support/support.h"

typedef struct spawned {
    int rc;
    char *out, *err;
    size_t out_len;
} spawned;

static char model_path[80], work_dir[64];

/* $KVIST_BIN, or BUILD/kvist for a test in BUILD/tests/cli/. NULL when it was not built. */
static const char *binary(void) {
    static char path[PATH_MAX + 16];
    char self[PATH_MAX];
    if (getenv("KVIST_BIN")) return getenv("KVIST_BIN");
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return NULL;
    self[n] = 0;
    snprintf(path, sizeof path, "%s/../../kvist", dirname(self));
    return access(path, X_OK) == 0 ? path : NULL;
}

static void in_work_dir(char *buf, size_t cap, const char *name) { snprintf(buf, cap, "%s/%s", work_dir, name); }

/* argv after the program's name, NULL at the end; input may be NULL (empty). Skips the test when there is no program.
 */
static spawned run_argv(const char *input, const char *const *args) {
    char in[96], out[96], err[96];
    const char *argv[64] = {binary()};
    if (!argv[0]) skip();
    for (int i = 0; args[i] && i < 62; i++) argv[i + 1] = args[i];
    in_work_dir(in, sizeof in, "in");
    in_work_dir(out, sizeof out, "out");
    in_work_dir(err, sizeof err, "err");
    FILE *f = fopen(in, "w");
    assert_non_null(f);
    if (input) fputs(input, f);
    fclose(f);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(open(in, O_RDONLY), 0);
        dup2(open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
        dup2(open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        unsetenv("KVIST_MODEL");
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    spawned s = {.rc = WEXITSTATUS(status)};
    s.out = test_read(out, &s.out_len);
    s.err = test_read(err, NULL);
    return s;
}

static void spawned_free(spawned *s) {
    free(s->out);
    free(s->err);
}

/* run_argv with a literal list. */
#define RUN(input, ...) run_argv(input, (const char *const[]){__VA_ARGS__, NULL})

static int spawn_setup(void **state) {
    (void)state;
    strcpy(work_dir, "/tmp/kvist-cli-XXXXXX");
    if (!mkdtemp(work_dir)) return -1;
    snprintf(model_path, sizeof model_path, "%s/model.gguf", work_dir);
    gen_spec spec = gen_spec_default();
    return gen_model(&spec, model_path);
}

static int spawn_teardown(void **state) {
    (void)state;
    static const char *const names[] = {"in", "out", "err", "model.gguf", "text", "facts.tsv"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[96];
        in_work_dir(path, sizeof path, names[i]);
        unlink(path);
    }
    return rmdir(work_dir);
}

#endif
