/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode attention: generated rows over their streams' pages. The pages of a KV head (handles in birth order, then the tail's) are cut into
 * chunks of KV_ATTN_CHUNK; a work item is one chunk of one (row, KV head) and folds its pages in order, in runs of KV_ATTN_RUN at most of one
 * format, into a fresh state; the partial states are joined left to right. So the bits follow from the pages alone, whatever the threads
 * or the batch. Where masses are wanted, each page leaves its tap behind on the way, and taps become masses at the end.
 * Work is done in waves of as many items as the scratch holds; a (row, head) may span waves.
 */
#include "backend/cpu/attn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

typedef struct decode_job {
    kv_cpu_exec *ex;
    const kv_attn_params *p;
    const kv_pool *pool;
    const kv_attn_decode_row *rows;
    const kv_attn_layouts *layouts;
    const kv_attn_item *items;
    uint32_t group, n_items;
    const kv_attn_mass *mass; /* [rows]; NULL: none wanted */
} decode_job;

static uint32_t page_count(const kv_stream *st) { return st->n_handles + st->n_tail; }

/* Page i of a stream as the row at `position` sees it. */
static void page_of(const decode_job *j, const kv_stream *st, uint32_t i, uint32_t position, kv_attn_page *p)
{
    uint32_t first;
    if (i < st->n_handles) {
        uint32_t page = st->handles[i].page;
        const kv_page_entry *e = kv_pool_entry(j->pool, page);
        p->layout = &j->layouts->by_pair[e->format];
        p->entry = e;
        p->data = kv_pool_data(j->pool, page);
        kv_attn_visible(e->first_pos, e->start, e->n, j->p->window, position, &p->lo, &p->hi);
        return;
    }
    uint32_t t = i - st->n_handles;
    p->layout = &j->layouts->by_pair[0];
    p->entry = NULL;
    p->data = kv_pool_data(j->pool, st->tail[t]);
    kv_attn_tail_page(st, t, p->layout->tokens, &p->lo, &p->hi);
    first = st->tail_pos + t * p->layout->tokens - st->tail_start; /* position of slot 0, may wrap for unused slots */
    if (j->p->window && position >= j->p->window) {
        uint32_t from = position - j->p->window + 1;
        if ((int32_t)(from - first) > (int32_t)p->lo) p->lo = from - first;
    }
}

/* Pages [at, end) of a stream, run by run. */
typedef struct run_cursor {
    const decode_job *j;
    const kv_stream *st;
    uint32_t position, at, end;
    float *tap; /* of page 0 of the head; NULL: no masses wanted */
    size_t tap_page, tap_query;
} run_cursor;

/* The next pages of one format, KV_ATTN_RUN at most; pages of which nothing is seen count for nothing. */
static uint32_t take_run(run_cursor *c, const kv_attn_page *model, kv_attn_page *p)
{
    uint32_t n = 0;
    for (; c->at < c->end && n < KV_ATTN_RUN; c->at++) {
        p[n] = *model;
        page_of(c->j, c->st, c->at, c->position, &p[n]);
        if (p[n].lo >= p[n].hi) continue;
        if (n && p[n].layout != p[0].layout) break;
        if (c->tap) {
            p[n].tap = c->tap + c->at * c->tap_page;
            p[n].tap_stride = c->tap_query;
        }
        n++;
    }
    return n;
}

static run_cursor cursor_of(const decode_job *j, const kv_attn_item *it)
{
    const kv_attn_decode_row *row = &j->rows[it->row];
    run_cursor c = {.j = j, .st = &row->streams[it->head], .position = row->position, .at = it->first, .end = it->first + it->count};
    if (j->mass && j->mass[it->row].p) {
        const kv_attn_mass *m = &j->mass[it->row];
        c.tap_query = m->slots;
        c.tap_page = (size_t)j->group * m->slots;
        c.tap = m->p + (size_t)it->head * m->cap_pages * c.tap_page;
    }
    return c;
}

static void fetch_later(kv_attn_page *p, const kv_attn_page *next)
{
    const kv_page_layout *L = next->layout;
    p->next = next->data;
    p->next_keys = L->v_off;
    p->next_bytes = L->bytes_used;
    p->next_scales = L->kind == KV_KIND_F16 ? L->bytes_used : L->kind == KV_KIND_LADDER ? L->triples_off : L->k_scale_off;
}

static void run_item(void *ctx, uint32_t index, uint32_t thread)
{
    const decode_job *j = ctx;
    kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    kv_attn_work *w = &s->work[thread];
    const kv_attn_item *it = &j->items[index];
    const kv_attn_decode_row *row = &j->rows[it->row];
    uint32_t G = j->group, base = index * G;
    for (uint32_t g = 0; g < G; g++) {
        kv_attn_load_query(j->ex->be->attn, row->q + (size_t)(it->head * G + g) * j->p->dk, j->p->dk, j->p->scale, w->q + g * s->q_stride, s->q_stride);
        s->part_m[base + g] = -INFINITY;
        s->part_l[base + g] = 0.0f;
    }
    memset(s->part_o + (size_t)base * s->o_stride, 0, (size_t)G * s->o_stride * sizeof(float));
    kv_attn_page page[2 * KV_ATTN_RUN], *now = page, *next = page + KV_ATTN_RUN;
    const kv_attn_page model = {.nq = G, .q = w->q, .q_stride = s->q_stride, .m = s->part_m + base, .l = s->part_l + base,
                                .o = s->part_o + (size_t)base * s->o_stride, .o_stride = s->o_stride, .softcap = j->p->softcap};
    run_cursor c = cursor_of(j, it), ahead;
    uint32_t n = take_run(&c, &model, now);
    while (n) {
        uint32_t then = take_run(&c, &model, next), known = then;
        if (!then && index + s->n_threads < j->n_items) { /* the item that this thread will probably take next */
            ahead = cursor_of(j, &j->items[index + s->n_threads]);
            known = take_run(&ahead, &model, next);
        }
        for (uint32_t i = 0; i < n && i < known; i++) fetch_later(&now[i], &next[i]);
        kv_attn_fold_pages(j->ex, now, n, w);
        kv_attn_page *t = now;
        now = next;
        next = t;
        n = then;
    }
}

/* Joins the partials of items[i0, i1), all of one (row, head), to the running state of that head. */
static void join_items(const decode_job *j, uint32_t i0, uint32_t i1)
{
    kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    uint32_t dvp = kv_pad16(j->p->dv);
    for (uint32_t i = i0; i < i1; i++)
        for (uint32_t g = 0; g < j->group; g++) {
            uint32_t from = i * j->group + g, h = j->items[i].head * j->group + g;
            float *o = s->run_o + (size_t)h * s->o_stride;
            const float *po = s->part_o + (size_t)from * s->o_stride;
            if (j->items[i].first == 0) {
                s->run_m[h] = s->part_m[from];
                s->run_l[h] = s->part_l[from];
                memcpy(o, po, dvp * sizeof *o);
            } else {
                j->ex->be->attn->join(&s->run_m[h], &s->run_l[h], o, s->part_m[from], s->part_l[from], po, dvp);
            }
        }
}

static void finish_head(const decode_job *j, uint32_t row, uint32_t head)
{
    kv_attn_scratch *s = kv_attn_scratch_of(j->ex);
    for (uint32_t h = head * j->group; h < (head + 1) * j->group; h++) {
        float lse = kv_attn_finish(s->run_m[h], s->run_l[h], s->run_o + (size_t)h * s->o_stride, j->p->dv, j->rows[row].out + (size_t)h * j->p->dv);
        if (j->mass && j->mass[row].lse) j->mass[row].lse[h] = lse;
    }
}

/* Taps of one (row, KV head) to masses, now that its log-sum-exps are known. */
static void run_masses(void *ctx, uint32_t index, uint32_t thread)
{
    const decode_job *j = ctx;
    const uint32_t r = index / j->p->n_kv, head = index % j->p->n_kv, G = j->group;
    const kv_attn_mass *m = &j->mass[r];
    const kv_stream *st = &j->rows[r].streams[head];
    float *lse2 = kv_attn_scratch_of(j->ex)->work[thread].row_lse;
    if (!m->p) return;
    for (uint32_t g = 0; g < G; g++) lse2[g] = m->lse[head * G + g] * KV_ATTN_LOG2E;
    for (uint32_t i = 0; i < page_count(st); i++) {
        float *p = m->p + ((size_t)head * m->cap_pages + i) * G * m->slots;
        kv_attn_page page;
        page_of(j, st, i, j->rows[r].position, &page);
        const bool f16 = page.layout->kind == KV_KIND_F16;
        if (page.lo < page.hi) j->ex->be->attn->mass(p, m->slots, G, f16, lse2, m->square);
        else memset(p, 0, (f16 ? m->slots : 1) * sizeof *p);
    }
}

/* Runs the items gathered so far and joins them; a head is finished by the item that holds its last page. */
static void run_wave(decode_job *j, uint32_t n)
{
    j->n_items = n;
    kv_threads_run(j->ex->threads, run_item, j, n);
    for (uint32_t i = 0; i < n; i++) {
        const kv_attn_item *it = &j->items[i];
        join_items(j, i, i + 1);
        if (it->first + it->count == page_count(&j->rows[it->row].streams[it->head])) finish_head(j, it->row, it->head);
    }
}

void kv_cpu_attn_decode(kv_exec *base, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows, uint32_t n_rows)
{
    kv_cpu_attn_decode_mass(base, p, pool, rows, NULL, n_rows);
}

void kv_cpu_attn_decode_mass(kv_exec *base, const kv_attn_params *p, const kv_pool *pool, const kv_attn_decode_row *rows, const kv_attn_mass *mass,
                             uint32_t n_rows)
{
    kv_cpu_exec *ex = kv_cpu_exec_of(base);
    kv_attn_scratch *s = kv_attn_scratch_of(ex);
    uint32_t group = p->n_q / p->n_kv, cap = s->cap_rows / group, n = 0;
    decode_job j = {ex, p, pool, rows, kv_attn_layouts_for(ex, p->dk, p->dv), s->items, group, 0, mass};
    bool wanted = false;
    assert(cap >= 1);
    for (uint32_t r = 0; mass && r < n_rows; r++) {
        assert(!mass[r].p || (mass[r].lse && mass[r].slots >= rows[r].streams->shape->f16_tokens));
        wanted |= mass[r].p != NULL;
    }
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t h = 0; h < p->n_kv; h++) {
            uint32_t pages = page_count(&rows[r].streams[h]);
            if (!pages) memset(rows[r].out + (size_t)h * group * p->dv, 0, (size_t)group * p->dv * sizeof(float));
            for (uint32_t g = 0; mass && mass[r].lse && g < group; g++) mass[r].lse[h * group + g] = -INFINITY;
            assert(!mass || !mass[r].p || pages <= mass[r].cap_pages);
            for (uint32_t first = 0; first < pages; first += KV_ATTN_CHUNK) {
                if (n == cap) {
                    run_wave(&j, n);
                    n = 0;
                }
                s->items[n++] = (kv_attn_item){r, h, first, pages - first < KV_ATTN_CHUNK ? pages - first : KV_ATTN_CHUNK};
            }
        }
    if (n) run_wave(&j, n);
    if (wanted) kv_threads_run(ex->threads, run_masses, &j, n_rows * p->n_kv);
}
