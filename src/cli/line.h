/* SPDX-License-Identifier: Apache-2.0 */
/* One line from the user: edited and remembered (libedit) on a terminal, plain from a pipe. */
#ifndef KV_CLI_LINE_H
#define KV_CLI_LINE_H

#include <stdbool.h>

/* prompt is shown on a terminal only; prefill (may be NULL) is put into the line to be edited. The line has no newline
 * and is free()d by the caller; NULL at the end of input or on Ctrl-C. */
char *kv_cli_line_read(const char *prompt, const char *prefill);
bool kv_cli_line_is_terminal(void);

#endif
