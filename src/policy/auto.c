/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table behind `auto`: which policy is best known for a share of the f16 cache's bytes. Must not know: how text is
 * parsed. Each row is a policy in the contract's own words, to which the share is added as its budget, so that reports
 * show what is in force. Invariant: rows fall in share and the last is for any.
 *
 * Quantize first, evict last: the richest format that holds every token, and below the smallest one worth holding
 * (2.29 bits) eviction by squared votes, pages chosen by price over all layers and heads with a floor of half the mean.
 * Shares of the formats' pages: q4 28.6 %, q3 22.2 %, q2 16.7 %, q2s 14.3 %; sinks, recent tokens and what fills no
 * page come on top, so a short prompt evicts a little even above these shares, and is told so.
 */
#include "policy/presets.h"

typedef struct auto_row {
    double from; /* least share */
    const char *text;
} auto_row;

static const auto_row rows[] = {
    {.29, "full,score=vote2,format=q4,alloc=global"},
    {.22, "full,score=vote2,format=q3,alloc=global"},
    {.17, "full,score=vote2,format=q2,alloc=global"},
    {0, "full,score=vote2,format=q2s,alloc=global"},
};

const char *kv_auto_text(double share) {
    uint32_t i = 0;
    while (share < rows[i].from) i++;
    return rows[i].text;
}
