/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a policy text: refused with a message, or accepted, printed and read again as the same text. */
#include "policy/policy.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    text[size] = 0;
    kv_policy p, q;
    kv_error err = {0};
    kv_status s = kv_policy_parse(text, &p, &err);
    if (s) {
        if (s != KVIST_E_POLICY || err.status != s || !err.message[0]) abort();
    } else {
        char printed[2048], again[2048];
        kv_layer_policy layer;
        kv_policy_print(&p, printed, sizeof printed);
        if (kv_policy_parse(printed, &q, &err)) abort();
        kv_policy_print(&q, again, sizeof again);
        if (strcmp(printed, again)) abort();
        for (uint32_t l = 0; l < 3; l++) kv_policy_layer(&p, l, &layer);
        (void)kv_policy_evicts(&p);
    }
    free(text);
    return 0;
}
