/* SPDX-License-Identifier: Apache-2.0 */
/* See line.h. libedit's readline interface keeps its state in globals; this is the only file that touches them. */
#include "cli/line.h"

#include <editline/readline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *prefill_text; /* for the start-up hook, which takes no argument */

static int insert_prefill(void) {
    if (prefill_text) rl_insert_text(prefill_text);
    return 0;
}

bool kv_cli_line_is_terminal(void) { return isatty(STDIN_FILENO) && isatty(STDERR_FILENO); }

char *kv_cli_line_read(const char *prompt, const char *prefill) {
    if (!kv_cli_line_is_terminal()) {
        char *line = NULL;
        size_t cap = 0;
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0) {
            free(line);
            return NULL;
        }
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        return line;
    }
    static bool ready;
    if (!ready) {
        rl_outstream = stderr; /* standard output carries answers only */
        rl_readline_name = "kvist";
        rl_initialize();
        using_history();
        stifle_history(1000);
        ready = true;
    }
    prefill_text = prefill;
    rl_pre_input_hook = insert_prefill;
    char *line = readline(prompt);
    prefill_text = NULL;
    if (line && *line) add_history(line);
    return line;
}
