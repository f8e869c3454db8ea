/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, sequences and snapshots against a naive map: random operations on two sequences that share pages, with a
 * small budget and failing allocations; after each, contents, positions, references and bytes are compared with plain
 * arrays.
 */
#include "support/support.h"

#include "base/alloc.h"
#include "cache/stream.h"

#include <math.h>

enum { LAYERS = 3, STREAMS = 5, MAXH = 64, MAXT = 400, SNAPS = 3, PB = 2048 };
#define COST (PB + sizeof(kv_page_entry))

static const uint32_t layer_first[LAYERS + 1] = {0, 2, 3, 5};
/* Head dims that need padding, K and V unequal, tokens a page as 2048 bytes give them (multiples of 8). */
static const kv_stream_shape shapes[LAYERS] = {{5, 3, 32, 2}, {32, 32, 16, 1}, {17, 16, 16, 3}};

typedef struct nhandle {
    uint32_t page, birth, n, tag;
    float price;
} nhandle;
typedef struct nstream {
    nhandle h[MAXH];
    uint32_t n_h, next_birth, sealed_at, tail_pos, tail_len;
    uint32_t salt[MAXT]; /* of each tail token */
    uint32_t tail_page[MAXT];
    uint32_t n_tail;
    double q2_rows[64][32]; /* rows by position, never folded here */
    uint32_t q2_n;
} nstream;
typedef struct nseq {
    nstream st[STREAMS];
    uint32_t length;
} nseq;

static uint16_t kval(uint32_t salt, uint32_t pos, uint32_t c) { return (uint16_t)(salt * 31 + pos * 7 + c + 1); }
static uint16_t vval(uint32_t salt, uint32_t pos, uint32_t c) { return (uint16_t)(salt * 17 + pos * 5 + c + 9); }

typedef struct world {
    kv_pool *pool;
    kv_seq *seq[2];
    nseq model[2];
    kv_snapshot *snap[SNAPS];
    nseq snap_model[SNAPS];
    uint64_t seed;
    uint32_t n_budget, n_memory; /* failures met */
} world;

static void note(world *w, kv_status s) {
    assert_true(s == KVIST_E_BUDGET || s == KVIST_E_MEMORY);
    w->n_budget += s == KVIST_E_BUDGET;
    w->n_memory += s == KVIST_E_MEMORY;
}

static void read_tail_pages(const kv_stream *st, nstream *m) {
    m->n_tail = st->n_tail;
    if (st->n_tail) memcpy(m->tail_page, st->tail, st->n_tail * sizeof *st->tail);
}

static void compare_stream(const kv_seq *s, const kv_stream *st, const nstream *m) {
    assert_int_equal(st->n_handles, m->n_h);
    uint32_t sealed = 0;
    for (uint32_t i = 0; i < m->n_h; i++) {
        assert_int_equal(st->handles[i].page, m->h[i].page);
        assert_int_equal(st->handles[i].birth, m->h[i].birth);
        assert_true(st->handles[i].price == m->h[i].price);
        const uint32_t *data = (const uint32_t *)(const void *)kv_pool_data(s->pool, m->h[i].page);
        assert_int_equal(data[0], m->h[i].tag);
        assert_int_equal(data[PB / 4 - 1], m->h[i].tag);
        sealed += m->h[i].n;
    }
    assert_int_equal(st->tokens_sealed, sealed);
    assert_int_equal(st->tail_len, m->tail_len);
    assert_int_equal(st->tail_pos, m->tail_pos);
    for (uint32_t i = 0; i < m->tail_len; i++) {
        uint16_t k[32], v[32];
        kv_tail_get(s, st, i, k, v);
        for (uint32_t c = 0; c < st->shape->dk; c++) assert_int_equal(k[c], kval(m->salt[i], m->tail_pos + i, c));
        for (uint32_t c = 0; c < st->shape->dv; c++) assert_int_equal(v[c], vval(m->salt[i], m->tail_pos + i, c));
        /* The layout the kernels read: K [dkp][P16], V [P16][dvp], padding 0. */
        uint32_t p16 = st->shape->f16_tokens, slot = st->tail_start + i, t = slot % p16;
        uint32_t dkp = (st->shape->dk + 15u) / 16 * 16, dvp = (st->shape->dv + 15u) / 16 * 16;
        const uint16_t *page = (const uint16_t *)(const void *)kv_pool_data(s->pool, st->tail[slot / p16]);
        assert_int_equal(t, (m->tail_pos + i) % p16);
        assert_int_equal(page[(st->shape->dk - 1u) * p16 + t], k[st->shape->dk - 1]);
        assert_int_equal(page[dkp * p16 + t * dvp], v[0]);
        for (uint32_t c = st->shape->dk; c < dkp; c++) assert_int_equal(page[c * p16 + t], 0);
        for (uint32_t c = st->shape->dv; c < dvp; c++) assert_int_equal(page[dkp * p16 + t * dvp + c], 0);
    }
}

/* Every page's reference count is the number of sequences and snapshots of the model that have it; pages in use are
 * those. */
static void compare_world(const world *w) {
    kv_error err = {0};
    static uint32_t refs[4096];
    memset(refs, 0, sizeof refs);
    const nseq *all[2 + SNAPS] = {&w->model[0], &w->model[1]};
    uint32_t n_all = 2, used = 0;
    uint64_t charged = 0;
    for (int i = 0; i < SNAPS; i++)
        if (w->snap[i]) all[n_all++] = &w->snap_model[i];
    for (uint32_t a = 0; a < n_all; a++)
        for (uint32_t i = 0; i < STREAMS; i++) {
            const nstream *m = &all[a]->st[i];
            for (uint32_t h = 0; h < m->n_h; h++) refs[m->h[h].page]++;
            for (uint32_t t = 0; t < m->n_tail; t++) refs[m->tail_page[t]]++;
        }
    for (uint32_t p = 0; p < 4096; p++) {
        used += refs[p] > 0;
        if (refs[p]) assert_int_equal(kv_pool_entry(w->pool, p)->refs, refs[p]);
    }
    for (int s = 0; s < 2; s++) {
        const kv_seq *seq = w->seq[s];
        const nseq *m = &w->model[s];
        assert_int_equal(seq->length, m->length);
        for (uint32_t i = 0; i < STREAMS; i++) compare_stream(seq, &seq->streams[i], &m->st[i]);
        if (!kv_seq_check(seq, &err)) fail_msg("%s", err.message);
        charged += seq->charged;
        kv_seq_bytes got;
        kv_seq_count(seq, NULL, &got);
        uint64_t pages = 0, unique = 0, list = 0, tokens = 0, q2 = 0;
        for (uint32_t i = 0; i < STREAMS; i++) {
            const nstream *n = &m->st[i];
            pages += n->n_h + n->n_tail;
            list += 12 * n->n_h + 4 * n->n_tail;
            tokens += n->tail_len;
            for (uint32_t h = 0; h < n->n_h; h++) unique += refs[n->h[h].page] == 1, tokens += n->h[h].n;
            for (uint32_t t = 0; t < n->n_tail; t++) unique += refs[n->tail_page[t]] == 1;
            const kv_q2 *q = &seq->streams[i].q2;
            if (q->sum) q2 += 4u * seq->streams[i].shape->dk * (1 + q->n_rows);
        }
        assert_int_equal(got.pages, pages);
        assert_int_equal(got.bytes_true, pages * COST + list + q2);
        assert_int_equal(got.bytes_unique, unique * COST + list + q2);
        assert_int_equal(got.tokens_stored_sum, tokens);
    }
    kv_pool_stats st;
    kv_pool_get_stats(w->pool, &st);
    assert_int_equal(st.pages_used, used);
    for (int i = 0; i < SNAPS; i++) {
        if (!w->snap[i]) continue;
        uint64_t own = 0, bytes = kv_snapshot_bytes(w->snap[i]);
        for (uint32_t k = 0; k < STREAMS; k++) {
            const nstream *m = &w->snap_model[i].st[k];
            for (uint32_t h = 0; h < m->n_h; h++) own += refs[m->h[h].page] == 1;
            for (uint32_t t = 0; t < m->n_tail; t++) own += refs[m->tail_page[t]] == 1;
        }
        assert_true(bytes >= own * COST);
        charged += bytes - own * COST;
        assert_int_equal(kv_snapshot_length(w->snap[i]), w->snap_model[i].length);
    }
    assert_int_equal(st.bytes_charged, charged);
    if (!kv_pool_check(w->pool, &err)) fail_msg("%s", err.message);
}

static void op_append(world *w, int which) {
    kv_seq *s = w->seq[which];
    nseq *m = &w->model[which];
    kv_error err = {0};
    uint32_t salt = (uint32_t)test_rand(&w->seed) & 0xffff, pos = m->length;
    uint32_t done = 0;
    kv_status rc = KVIST_OK;
    if (m->st[0].tail_len + 1 >= MAXT) return;
    for (; done < STREAMS; done++) {
        kv_stream *st = &s->streams[done];
        uint16_t k[32], v[32];
        for (uint32_t c = 0; c < 32; c++) k[c] = kval(salt + done, pos, c), v[c] = vval(salt + done, pos, c);
        rc = kv_tail_append(s, st, k, v, &err);
        if (rc) break;
        m->st[done].salt[m->st[done].tail_len++] = salt + done;
        read_tail_pages(st, &m->st[done]);
    }
    if (rc) { /* as an engine does: those that had room forget the token again */
        note(w, rc);
        for (uint32_t i = 0; i < done; i++) {
            kv_tail_drop_back(s, &s->streams[i], 1);
            m->st[i].tail_len--;
            read_tail_pages(&s->streams[i], &m->st[i]);
        }
        return;
    }
    s->length = ++m->length;
}

static void op_q2(world *w, int which) {
    kv_seq *s = w->seq[which];
    nseq *m = &w->model[which];
    kv_error err = {0};
    for (uint32_t i = 0; i < STREAMS; i++) {
        nstream *n = &m->st[i];
        if (n->q2_n >= 64 || n->q2_n >= m->length) continue;
        float row[32];
        for (uint32_t c = 0; c < 32; c++) row[c] = (float)((test_rand(&w->seed) & 1023) / 16.0);
        kv_status rc = kv_q2_push(s, &s->streams[i], row, &err);
        if (rc) {
            note(w, rc);
            continue;
        }
        for (uint32_t c = 0; c < 32; c++) n->q2_rows[n->q2_n][c] = row[c];
        n->q2_n++;
    }
}

/* The mean over the first min(end, collected) rows; folding must not forget any. */
static void check_q2_mean(world *w, int which, uint32_t i, uint32_t end) {
    kv_stream *st = &w->seq[which]->streams[i];
    const nstream *n = &w->model[which].st[i];
    float mean[32];
    if (end < st->q2.covered) end = st->q2.covered;
    kv_q2_mean(st, end, mean);
    uint32_t rows = end < n->q2_n ? end : n->q2_n;
    for (uint32_t c = 0; c < st->shape->dk; c++) {
        double sum = 0;
        for (uint32_t r = 0; r < rows; r++) sum += n->q2_rows[r][c];
        double want = rows ? sum / (rows * (double)st->shape->group) : 1;
        assert_true(fabs(mean[c] - want) <= 1e-5 * (1 + want));
    }
}

static void op_seal(world *w, int which) {
    kv_seq *s = w->seq[which];
    nseq *m = &w->model[which];
    kv_error err = {0};
    uint32_t i = (uint32_t)(test_rand(&w->seed) % STREAMS);
    nstream *n = &m->st[i];
    kv_stream *st = &s->streams[i];
    if (!n->tail_len || n->n_h == MAXH) return;
    uint32_t take = 1 + (uint32_t)(test_rand(&w->seed) % (n->tail_len < 40 ? n->tail_len : 40)), page,
             tag = (uint32_t)test_rand(&w->seed);
    if (test_rand(&w->seed) % 4 == 0) take = n->tail_len;
    float price = test_uniform(&w->seed);
    kv_status rc = kv_stream_push(s, st, price, &page, &err);
    if (rc) {
        note(w, rc);
        assert_int_equal(page, KV_NO_PAGE);
        return;
    }
    check_q2_mean(w, which, i, n->tail_pos + take);
    uint32_t *data = (uint32_t *)(void *)kv_pool_data(s->pool, page);
    for (uint32_t j = 0; j < PB / 4; j++) data[j] = tag;
    kv_page_entry *e = kv_pool_entry(s->pool, page);
    e->n = (uint16_t)(take + 2);
    e->start = 2;
    st->tokens_sealed += take;
    st->sealed_at = s->length;
    kv_tail_drop_front(s, st, take);
    if (test_rand(&w->seed) % 2) kv_q2_trim(s, st);
    n->h[n->n_h++] = (nhandle){page, n->next_birth++, take, tag, price};
    n->sealed_at = m->length;
    n->tail_pos += take;
    n->tail_len -= take;
    memmove(n->salt, n->salt + take, n->tail_len * sizeof *n->salt);
    read_tail_pages(st, n);
}

static void op_remove(world *w, int which) {
    uint32_t i = (uint32_t)(test_rand(&w->seed) % STREAMS);
    nstream *n = &w->model[which].st[i];
    if (!n->n_h) return;
    uint32_t h = (uint32_t)(test_rand(&w->seed) % n->n_h);
    kv_stream_remove(w->seq[which], &w->seq[which]->streams[i], h);
    memmove(n->h + h, n->h + h + 1, (n->n_h - h - 1) * sizeof *n->h);
    n->n_h--;
}

static void op_truncate(world *w, int which) {
    nseq *m = &w->model[which];
    uint32_t back = (uint32_t)(test_rand(&w->seed) % 30), to = m->length > back ? m->length - back : 0;
    bool want = true;
    for (uint32_t i = 0; i < STREAMS; i++) want &= m->st[i].sealed_at <= to;
    assert_int_equal(kv_seq_truncate_free(w->seq[which], to), want);
    assert_false(kv_seq_truncate_free(w->seq[which], m->length + 1));
    if (!want) return;
    for (uint32_t i = 0; i < STREAMS; i++) {
        nstream *n = &m->st[i];
        n->tail_len -= m->length - to;
        if (n->q2_n > to) n->q2_n = to;
        read_tail_pages(&w->seq[which]->streams[i], n);
    }
    m->length = to;
}

static void op_snapshot(world *w, int which) {
    kv_error err = {0};
    int i = (int)(test_rand(&w->seed) % SNAPS);
    if (w->snap[i]) {
        kv_snapshot_free(&w->snap[i]);
        return;
    }
    kv_status rc = kv_snapshot_take(w->seq[which], &w->snap[i], &err);
    if (rc) {
        note(w, rc);
        assert_null(w->snap[i]);
        return;
    }
    w->snap_model[i] = w->model[which];
}

static void op_restore(world *w, int which) { /* to itself or to the other sequence: a fork */
    kv_error err = {0};
    int i = (int)(test_rand(&w->seed) % SNAPS);
    if (!w->snap[i]) return;
    kv_status rc = kv_snapshot_restore(w->snap[i], w->seq[which], &err);
    if (rc) {
        note(w, rc);
        return;
    }
    w->model[which] = w->snap_model[i];
}

static void op_clear(world *w, int which) {
    kv_seq_clear(w->seq[which]);
    memset(&w->model[which], 0, sizeof w->model[which]);
}

static void step(world *w) {
    uint64_t r = test_rand(&w->seed);
    int which = (int)(r >> 20) & 1;
    uint32_t op = (uint32_t)(r % 64);
    kv_error err = {0};
    if (op < 36)
        op_append(w, which);
    else if (op < 42)
        op_q2(w, which);
    else if (op < 50)
        op_seal(w, which);
    else if (op < 53)
        op_remove(w, which);
    else if (op < 56)
        op_truncate(w, which);
    else if (op < 58)
        op_snapshot(w, which);
    else if (op < 60)
        op_restore(w, which);
    else if (op < 62) {
        kv_status rc = kv_seq_reserve(w->seq[which], (uint32_t)(r >> 32) % 40, &err);
        if (rc) note(w, rc);
    } else if (op == 62 && (r >> 40) % 8 == 0)
        op_clear(w, which);
}

static kv_status world_open(world *w, uint64_t budget, uint64_t seed) {
    kv_error err = {0};
    memset(w, 0, sizeof *w);
    w->seed = seed;
    kv_status rc = kv_pool_create(PB, budget, &w->pool, &err);
    for (int i = 0; !rc && i < 2; i++) rc = kv_seq_create(w->pool, LAYERS, layer_first, shapes, &w->seq[i], &err);
    return rc;
}

static void world_close(world *w) {
    kv_pool_stats st;
    for (int i = 0; i < SNAPS; i++) kv_snapshot_free(&w->snap[i]);
    for (int i = 0; i < 2; i++) kv_seq_free(&w->seq[i]);
    if (!w->pool) return;
    kv_pool_get_stats(w->pool, &st);
    assert_int_equal(st.pages_used, 0);
    assert_int_equal(st.bytes_charged, 0);
    kv_pool_free(&w->pool);
}

static void random_sequences(void **state) {
    world *w = calloc(1, sizeof *w);
    static const uint32_t budgets[] = {60, 100, 2000};
    uint32_t budget_failures = 0;
    for (uint32_t b = 0; b < 3; b++)
        for (uint64_t seed = 1; seed <= 3; seed++) {
            assert_int_equal(world_open(w, budgets[b] * COST, seed * 77 + b), KVIST_OK);
            for (int i = 0; i < 1500; i++) {
                step(w);
                compare_world(w);
            }
            budget_failures += w->n_budget;
            world_close(w);
        }
    assert_true(budget_failures > 20);
    free(w);
}

static void every_allocation_may_fail(void **state) {
    world *w = calloc(1, sizeof *w);
    uint32_t failures = 0;
    for (uint64_t n = 1; n < 10000; n++) {
        kv_alloc_test_fail_at(n);
        uint64_t before = kv_alloc_count();
        kv_status rc = world_open(w, 300 * COST, 99);
        if (rc) assert_int_equal(rc, KVIST_E_MEMORY), failures++;
        for (int i = 0; !rc && i < 300; i++) step(w);
        kv_alloc_test_fail_at(0);
        uint64_t used = kv_alloc_count() - before;
        if (!rc) compare_world(w), failures += w->n_memory;
        world_close(w);
        if (used < n) break; /* the n-th was never asked for */
    }
    assert_true(failures > 20);
    free(w);
}

/* The tail of a fork is copied before it is written, and only then. */
static void copy_on_write(void **state) {
    world *w = calloc(1, sizeof *w);
    kv_error err = {0};
    assert_int_equal(world_open(w, 300 * COST, 3), KVIST_OK);
    for (int i = 0; i < 37; i++) op_append(w, 0);
    uint32_t page = w->seq[0]->streams[0].tail[1], first = w->seq[0]->streams[0].tail[0];
    op_append(w, 0);
    assert_int_equal(w->seq[0]->streams[0].tail[1], page); /* not shared: written in place */
    assert_int_equal(kv_snapshot_take(w->seq[0], &w->snap[0], &err), KVIST_OK);
    w->snap_model[0] = w->model[0];
    assert_int_equal(kv_snapshot_restore(w->snap[0], w->seq[1], &err), KVIST_OK);
    w->model[1] = w->model[0];
    op_append(w, 0);
    assert_true(w->seq[0]->streams[0].tail[1] != page);
    assert_int_equal(w->seq[0]->streams[0].tail[0], first);
    op_append(w, 1);
    assert_true(w->seq[1]->streams[0].tail[1] != page);
    compare_world(w);
    assert_int_equal(kv_snapshot_restore(w->snap[0], w->seq[0], &err), KVIST_OK);
    w->model[0] = w->snap_model[0];
    assert_int_equal(w->seq[0]->streams[0].tail[1], page);
    compare_world(w);
    world_close(w);
    free(w);
}

/* After reserve, appending and sealing that many tokens allocates nothing. */
static void reserve_is_enough(void **state) {
    world *w = calloc(1, sizeof *w);
    kv_error err = {0};
    assert_int_equal(world_open(w, 3000 * COST, 4), KVIST_OK);
    for (uint32_t n = 1; n <= 65; n += 16) {
        assert_int_equal(kv_seq_reserve(w->seq[0], n, &err), KVIST_OK);
        uint64_t before = kv_alloc_count();
        for (uint32_t i = 0; i < n; i++) op_append(w, 0);
        for (uint32_t i = 0; i < STREAMS; i++) {
            kv_stream *st = &w->seq[0]->streams[i];
            nstream *m = &w->model[0].st[i];
            while (m->tail_len >= st->shape->f16_tokens) {
                uint32_t page, take = st->shape->f16_tokens;
                assert_int_equal(kv_stream_push(w->seq[0], st, 1, &page, &err), KVIST_OK);
                kv_pool_entry(w->pool, page)->n = (uint16_t)take;
                memset(kv_pool_data(w->pool, page), 0, PB);
                st->tokens_sealed += take;
                st->sealed_at = w->seq[0]->length;
                kv_tail_drop_front(w->seq[0], st, take);
                m->h[m->n_h++] = (nhandle){page, m->next_birth++, take, 0, 1};
                m->tail_pos += take;
                m->tail_len -= take;
                memmove(m->salt, m->salt + take, m->tail_len * sizeof *m->salt);
                read_tail_pages(st, m);
            }
        }
        assert_int_equal(kv_alloc_count(), before);
        compare_world(w);
    }
    world_close(w);
    free(w);
}

/* Positions past KV_Q2_POSITIONS are ignored; trim gives memory back. */
static void q2_ends(void **state) {
    world *w = calloc(1, sizeof *w);
    kv_error err = {0};
    assert_int_equal(world_open(w, 3000 * COST, 4), KVIST_OK);
    kv_stream *st = &w->seq[0]->streams[2];
    float row[32], mean[32];
    kv_q2_mean(st, 10, mean);
    for (int c = 0; c < 32; c++) assert_true(mean[c] == 1);
    for (uint32_t p = 0; p < KV_Q2_POSITIONS + 10; p++) {
        for (int c = 0; c < 32; c++) row[c] = p < KV_Q2_POSITIONS ? (float)(p % 8 + c) : 1e9f;
        assert_int_equal(kv_q2_push(w->seq[0], st, row, &err), KVIST_OK);
    }
    assert_int_equal(st->q2.n_rows, KV_Q2_POSITIONS);
    kv_q2_mean(st, 8, mean);
    for (int c = 0; c < 32; c++) assert_true(fabs(mean[c] - (3.5 + c)) < 1e-5);
    assert_int_equal(st->q2.covered, 8);
    kv_q2_mean(st, UINT32_MAX, mean);
    for (int c = 0; c < 32; c++) assert_true(fabs(mean[c] - (3.5 + c)) < 1e-4);
    uint64_t charged = w->seq[0]->charged;
    kv_q2_trim(w->seq[0], st);
    assert_true(w->seq[0]->charged + 1024 * 32 * 4 <= charged);
    assert_int_equal(st->q2.cap_rows, 0);
    kv_q2_mean(st, 2000, mean);
    assert_true(fabs(mean[0] - 3.5) < 1e-4);
    world_close(w);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sequences), cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(copy_on_write),    cmocka_unit_test(reserve_is_enough),
        cmocka_unit_test(q2_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
