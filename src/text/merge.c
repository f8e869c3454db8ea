/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining neighbouring symbols in order of priority, shared by SPM (scores) and BPE (ranks).
 * Must not know: what a symbol means; the caller's pair function says what joins and how early.
 * Invariant: always the lowest key, and of equal keys the leftmost, is joined next; both ways below do the same.
 */
#include "text/vocab.h"

#include "base/alloc.h"

#include <string.h>

/* Words up to this length are scanned for the best pair each time: below it that is faster than a heap. */
#define SHORT_WORD 48

static size_t merge_short(const kv_tokenizer *t, const char *text, kv_symbol *s, size_t n, kv_pair_fn pair) {
    uint32_t key[SHORT_WORD], id[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++) key[i] = pair(t, text, &s[i], &s[i + 1], &id[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (key[i] < key[best]) best = i;
        if (key[best] == UINT32_MAX) break;
        s[best].id = id[best];
        s[best].len += s[best + 1].len;
        n--;
        memmove(s + best + 1, s + best + 2, (n - best - 1) * sizeof *s);
        if (best + 1 < n) { /* pairs after the joined one move down; its own is asked again below */
            memmove(key + best + 1, key + best + 2, (n - best - 2) * sizeof *key);
            memmove(id + best + 1, id + best + 2, (n - best - 2) * sizeof *id);
            key[best] = pair(t, text, &s[best], &s[best + 1], &id[best]);
        }
        if (best) key[best - 1] = pair(t, text, &s[best - 1], &s[best], &id[best - 1]);
    }
    return n;
}

/* len: bytes of both sides when it was pushed; an entry whose neighbours have changed since no longer agrees. */
typedef struct entry {
    uint64_t order;
    uint32_t id, len;
} entry; /* order = key << 32 | left index */
typedef struct links {
    uint32_t prev, next;
} links;
typedef struct heap {
    entry *e;
    size_t n;
} heap;

static void push(heap *h, entry x) {
    size_t i = h->n++;
    for (; i; i = (i - 1) / 2) {
        if (h->e[(i - 1) / 2].order <= x.order) break;
        h->e[i] = h->e[(i - 1) / 2];
    }
    h->e[i] = x;
}

static entry pop(heap *h) {
    entry top = h->e[0], x = h->e[--h->n];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < h->n; i = c) {
        if (c + 1 < h->n && h->e[c + 1].order < h->e[c].order) c++;
        if (x.order <= h->e[c].order) break;
        h->e[i] = h->e[c];
    }
    h->e[i] = x;
    return top;
}

static void push_pair(heap *h, const kv_encoder *e, const char *text, kv_pair_fn pair, uint32_t a, uint32_t b) {
    const kv_symbol *s = e->sym;
    uint32_t id, key = pair(e->t, text, &s[a], &s[b], &id);
    if (key != UINT32_MAX) push(h, (entry){(uint64_t)key << 32 | a, id, s[a].len + s[b].len});
}

static size_t merge_long(kv_encoder *e, const char *text, size_t n, kv_pair_fn pair, heap *h, links *l) {
    kv_symbol *s = e->sym;
    for (size_t i = 0; i < n; i++) l[i] = (links){(uint32_t)i - 1, i + 1 < n ? (uint32_t)i + 1 : UINT32_MAX};
    for (size_t i = 0; i + 1 < n; i++) push_pair(h, e, text, pair, (uint32_t)i, (uint32_t)i + 1);
    while (h->n) {
        entry x = pop(h);
        uint32_t a = (uint32_t)x.order, b = l[a].next;
        if (!s[a].len || b == UINT32_MAX || s[a].len + s[b].len != x.len) continue;
        s[a].id = x.id;
        s[a].len = x.len;
        s[b].len = 0;
        uint32_t next = l[a].next = l[b].next;
        if (next != UINT32_MAX) l[next].prev = a;
        if (l[a].prev != UINT32_MAX) push_pair(h, e, text, pair, l[a].prev, a);
        if (next != UINT32_MAX) push_pair(h, e, text, pair, a, next);
    }
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].len) s[m++] = s[i];
    return m;
}

kv_status kv_text_merge(kv_encoder *e, const char *text, size_t n, kv_pair_fn pair, size_t *left) {
    *left = n;
    if (n < 2) return KVIST_OK;
    if (n <= SHORT_WORD) {
        *left = merge_short(e->t, text, e->sym, n, pair);
        return KVIST_OK;
    }
    /* n - 1 pairs at first; each of at most n - 1 joins takes one out and puts in two at most: 2n entries suffice. */
    KV_TRY(kv_encoder_reserve(e, &e->work, &e->cap_work, 2 * n * sizeof(entry) + n * sizeof(links)));
    heap h = {e->work, 0};
    *left = merge_long(e, text, n, pair, &h, (links *)(h.e + 2 * n));
    return KVIST_OK;
}
