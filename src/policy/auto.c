/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table behind `auto`: which policy is best known for a share of the f16 cache's bytes. Must not know: how text is
 * parsed. Each row is a policy in the contract's own words, to which the share is added as its budget, so that reports
 * show what is in force. Invariant: rows fall in share and the last is for any.
 *
 * Where every token fits, the richest format that holds them all. Below, the tokens go first that the model does not
 * look up when it says the prompt again, nor the prompt's last rows, where a question stands (`reconq`), pages chosen
 * by price over all layers and heads with a floor of half the mean: half of the tokens cost less than a bit of the
 * rest, so four bits are kept down to 11 %, three to 8 %, in keys, which want them more, to 5.5 % (docs/fidelity.md).
 * Shares of the formats' pages: q8 57 %, q4 28.6 %; sinks, recent tokens and what fills no page come on top. Where
 * tokens go the f16 tail is short: 64 recent ones would be the largest part of a small share. It is one page in most
 * prompts, four to 19 tokens, where 16 lie in two unless a prompt ends where a page does: at 4 % of 2,048 tokens a head
 * has five pages in all. There sinks have no page of their own either: the first tokens rank high by themselves.
 * Where four query heads or more share a KV head, each looks elsewhere and more of their attention is lost; a rest token
 * gives its mean back.
 */
#include "policy/presets.h"

typedef struct auto_row {
    double from; /* least share */
    const char *text;
} auto_row;

static const auto_row rows[] = {
    {.6, "full,score=reconq,format=q8,alloc=global"},
    {.29, "full,score=reconq,format=q4,alloc=global"},
    {.11, "full,score=reconq,format=q4,sink=16/10,recent=4+,rest=4,alloc=global"},
    {.08, "full,score=reconq,format=q3,sink=16/6,recent=4+,rest=4,alloc=global"},
    {.055, "full,score=reconq,format=q3/q2,sink=16/6,recent=4+,rest=4,alloc=global"},
    {.03, "full,score=reconq,format=q2,sink=16/6,recent=4+,rest=4,alloc=global"},
    {0, "full,score=reconq,format=q2s,sink=16/6,recent=4+,rest=4,alloc=global"},
};

const char *kv_auto_text(double share) {
    uint32_t i = 0;
    while (share < rows[i].from) i++;
    return rows[i].text;
}
