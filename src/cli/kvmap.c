/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/kvmap.h"

const char *kv_cli_map_shade(uint64_t stored, uint64_t seen) {
    if (!seen || !stored) return " ";
    uint64_t quarter = (4 * stored + seen - 1) / seen; /* rounded up: a trace still shows */
    return quarter <= 1 ? "░" : quarter == 2 ? "▒" : quarter == 3 ? "▓" : "█";
}

void kv_cli_map_print(const kvist_stream_report *streams, size_t n, uint64_t tokens_seen, FILE *out) {
    fprintf(out, "layer  heads (░ a quarter of %llu tokens stored, █ all)\n", (unsigned long long)tokens_seen);
    for (size_t i = 0; i < n;) {
        uint32_t layer = streams[i].layer;
        size_t end = i;
        uint64_t stored = 0, pages = 0;
        double mass = 0;
        float least = 1;
        uint32_t least_head = 0;
        fprintf(out, "%5u  ", layer);
        for (; end < n && streams[end].layer == layer; end++) {
            const kvist_stream_report *s = &streams[end];
            const char *shade = kv_cli_map_shade(s->tokens_stored, tokens_seen);
            fprintf(out, "%s%s", shade, shade);
            stored += s->tokens_stored;
            pages += s->pages;
            mass += (double)s->mass;
            if (s->mass < least) {
                least = s->mass;
                least_head = s->head;
            }
        }
        size_t heads = end - i;
        fprintf(out, "  %6.0f tokens a head, %4llu pages", (double)stored / (double)heads, (unsigned long long)pages);
        if (least < 1)
            fprintf(out, ", mass %.3f, least %.3f (head %u)", mass / (double)heads, (double)least, least_head);
        fputc('\n', out);
        i = end;
    }
}
