/* SPDX-License-Identifier: Apache-2.0 */
/* kvist: finds the subcommand, parses its options, runs it. Exit status 0, 1 (failed), 2 (usage). */
#include <stdlib.h>
#include <string.h>

#include "cli/common.h"
#include "cli/sweep.h"
#include "policy/policy.h"

static const cli_command *const commands[] = {&kv_cli_run,   &kv_cli_chat,  &kv_cli_compare,
                                              &kv_cli_chart, &kv_cli_bench, &kv_cli_eval,
                                              &kv_cli_sweep, &kv_cli_info,  &kv_cli_tokenize};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help(FILE *out) {
    fprintf(out,
            "kvist %s: language models over long contexts with a small, fast KV cache\n\nusage: kvist COMMAND "
            "[options]\n\ncommands:\n",
            kvist_version());
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n  kvist COMMAND --help    options and examples of a command\n  kvist --version\n\ncache policies "
                 "(--kv PRESET[,key=value...]):\n");
    const char *name, *about;
    for (uint32_t i = 0; (name = kv_policy_preset_at(i, &about)); i++) fprintf(out, "  %-10s %s\n", name, about);
    fprintf(out, "\nexamples:\n"
                 "  kvist run -m model.gguf -f report.txt -p \"What was decided?\" --kv minikv,share=0.14\n"
                 "  kvist compare -m model.gguf -f report.txt -p \"What was decided?\" --kv minikv --kv kvcompress\n");
}

static int unknown_command(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++) names[i] = commands[i]->name;
    const char *near = kv_cli_nearest(name, names, N_COMMANDS);
    if (near) return kv_cli_usage_error(NULL, "unknown command '%s'; did you mean '%s'?", name, near);
    return kv_cli_usage_error(NULL, "unknown command '%s'", name);
}

static int dispatch(const cli_command *c, int argc, char **argv) {
    cli_options o;
    char why[512];
    kv_cli_options_default(&o);
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            kv_cli_help(c, stdout);
            return KV_CLI_OK;
        }
    if (kv_cli_parse(c, argc, argv, &o, why, sizeof why) != KV_CLI_OK) return kv_cli_usage_error(c->name, "%s", why);
    if (!o.model) o.model = getenv("KVIST_MODEL");
    if (o.model && !*o.model) o.model = NULL;
    int rc = c->run(&o);
    if (fflush(stdout) || ferror(stdout)) { /* a full disk or a closed pipe is a failure, not silence */
        fprintf(stderr, "kvist: cannot write to standard output\n");
        return KV_CLI_FAILED;
    }
    return rc;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        help(stderr);
        return KV_CLI_USAGE;
    }
    const char *a = argv[1];
    if (!strcmp(a, "--version") || !strcmp(a, "-V") || !strcmp(a, "version")) {
        printf("kvist %s\n", kvist_version());
        return KV_CLI_OK;
    }
    if (!strcmp(a, "help") && argc > 2) {
        for (int i = 0; i < N_COMMANDS; i++)
            if (!strcmp(argv[2], commands[i]->name)) {
                kv_cli_help(commands[i], stdout);
                return KV_CLI_OK;
            }
        return unknown_command(argv[2]);
    }
    if (!strcmp(a, "--help") || !strcmp(a, "-h") || !strcmp(a, "help")) {
        help(stdout);
        return KV_CLI_OK;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(a, commands[i]->name)) return dispatch(commands[i], argc - 2, argv + 2);
    if (a[0] == '-') return kv_cli_usage_error(NULL, "unknown option '%s'; options follow the command", a);
    return unknown_command(a);
}
