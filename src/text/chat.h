/* SPDX-License-Identifier: Apache-2.0 */
/* Chat template families, recognised from the model's own template text. */
#ifndef KV_TEXT_CHAT_H
#define KV_TEXT_CHAT_H

#include "base/err.h"

/* Family name ("chatml", "llama2", "llama3", "mistral", "zephyr", "gemma", "phi3", and variants such as "smollm" when
 * the default system prompt differs) for a Jinja template; NULL: unknown. */
const char *kv_chat_detect(const char *jinja);
bool kv_chat_known(const char *family);
const char *kv_chat_families(void); /* comma separated, for messages */
/* jinja (may be NULL) supplies a template's own default system message where the family has one. bos/eos: text of
 * those tokens. Writes at most cap bytes, *len = needed. Text matches what the model's template would render. */
kv_status kv_chat_format(const char *family, const char *jinja, const char *bos, const char *eos,
                         const kvist_message *m, size_t n, bool add_generation_prompt, char *buf, size_t cap,
                         size_t *len, kv_error *err) KV_WARN_UNUSED;

#endif
