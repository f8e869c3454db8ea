/* SPDX-License-Identifier: Apache-2.0 */
/* The cache as a small text map: a row a layer, a cell a KV head, shaded by how much of the history it stores. */
#ifndef KV_CLI_KVMAP_H
#define KV_CLI_KVMAP_H

#include <stdio.h>

#include "kvist/kvist.h"

/* streams[n] in layer, head order; tokens_seen: what a full cache would store. Layers that look the same are not
 * merged. */
void kv_cli_map_print(const kvist_stream_report *streams, size_t n, uint64_t tokens_seen, FILE *out);
/* One cell: " " nothing, "░" up to a quarter, "▒" a half, "▓" three quarters, "█" more. */
const char *kv_cli_map_shade(uint64_t stored, uint64_t seen);

#endif
