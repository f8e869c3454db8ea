/* SPDX-License-Identifier: Apache-2.0 */
/* The page encoder in portable C: level 0, and the oracle of the others (equal bytes). */
#define KV_ENCODE_NAME kv_encode_ref
#include "policy/encode/encode_impl.inc"
