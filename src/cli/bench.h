/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of `kvist bench`: cells (pieces of work, ours), peer cells (the same work by another program), rows (a cell
 * beside the peer cells it is compared with), and the rotation that gives each of them one sample a round.
 *   bench.c        options; builds the rows of a grid
 *   bench_suite.c  builds the rows of the standing table
 *   bench_run.c    runs the rounds
 *   bench_print.c  medians, ratios, shares of limits; md, csv, json
 *   bench_peer.c   the other programs
 */
#ifndef KV_CLI_BENCH_H
#define KV_CLI_BENCH_H

#include "cli/bench_peer.h"
#include "cli/common.h"
#include "measure/machine.h"
#include "measure/throughput.h"

enum { BENCH_ROUNDS = 64, BENCH_CELLS = 512, BENCH_ROW_PEERS = 16 };

/* A sample during which a host took too much of the processors (--stolen-max) is taken again so often at most; the least
 * disturbed one counts. */
enum { BENCH_AGAIN = 2 };

typedef struct bench_series {
    double v[BENCH_ROUNDS];
    uint32_t n;
} bench_series;
void kv_bench_add(bench_series *s, double v);
/* NaN when empty. */
double kv_bench_median(const bench_series *s);
/* Whether so large a share of the processors' time is too much for a sample. What is taken is counted in 10 ms: of a short
 * sample it may be more than all, so 100 needs a rule of its own. */
static inline bool kv_bench_disturbed(const cli_options *o, double stolen) {
    return o->stolen_max < 100 && 100 * stolen >= o->stolen_max;
}
void kv_bench_range(const bench_series *s, double *min, double *max);

/* Samples of a cell: tokens/s; percent (score, seal); seconds (load). */
typedef struct bench_cell {
    kv_bench_cell c;
    bool load; /* a fresh process of this program, start to exit, one token */
    bench_series s;
    kv_machine at[BENCH_ROUNDS]; /* measured right before each sample; threads 0: not */
    bench_series stolen;         /* share of the processors' time that a host took away during each */
    kv_bench_sample last;
    char why[256]; /* not empty: it failed, and is not tried again */
} bench_cell;

typedef struct bench_peer_cell {
    uint32_t peer, cell; /* which program; the cell after which it runs */
    peer_work w;
    bench_series s; /* tokens/s, or seconds (load) */
    bench_series stolen; /* as a cell's, over the whole process */
    bool dropped, absent, failed, slow; /* slow: ended at the limit */
    uint32_t failures;
    peer_result last;
} bench_peer_cell;

/* What a cell is compared with: peers' f16 caches, their quantized ones, the best of both. */
typedef enum bench_against { AGAINST_NONE, AGAINST_F16, AGAINST_QUANTIZED, AGAINST_ANY } bench_against;

/* What is asked of a row; all 0 in a grid. */
typedef struct bench_target {
    double ratio;     /* times the better bench_peer */
    double limit;     /* or this share of the binding limit */
    double percent;   /* at most (score, seal) */
    double share_max; /* the cache's true share must not be above; 0: any */
} bench_target;

typedef struct bench_row {
    const char *work; /* of the standing table; NULL in a grid */
    uint32_t group;   /* rows of one group are candidates for one target: the best one counts */
    uint32_t cell;
    bench_against against;
    bench_target target;
    uint32_t peers[BENCH_ROW_PEERS], n_peers; /* peer cells */
} bench_row;

typedef struct bench {
    const cli_options *o;
    cli_engine e;
    char model[PEER_PATH]; /* whole path of the file */
    uint32_t threads, rounds;
    bool json, csv, suite, kept; /* kept: every cell's sessions stay alive */
    kv_shape shape;
    kv_machine machine; /* medians over all samples; threads 0: not probed */
    kv_machine now;     /* the last measured */
    uint64_t now_ns;    /* when */
    int32_t *tokens;
    size_t n_tokens;
    bench_peer peers[PEER_MAX];
    uint32_t n_peers;
    bench_cell cells[BENCH_CELLS];
    bench_peer_cell peer_cells[BENCH_CELLS];
    bench_row rows[BENCH_CELLS];
    uint32_t n_cells, n_peer_cells, n_rows;
    uint32_t again; /* samples taken again, because a host took too much of the processors */
    bool failed;    /* a cell or a peer did */
} bench;

/* Adds a row, its cell and its peer cells unless there are such; against: which of the peers' caches. */
bench_row *kv_bench_row_add(bench *b, const bench_cell *cell, bench_against against);

/* The standing table's rows whose name contains `filter` (NULL: all), for the model that is open. */
void kv_bench_suite(bench *b, const char *filter);
/* Its rows in words, for both families of models. */
void kv_bench_suite_list(const char *filter);

/* Opens the engine and runs all rounds; what was measured stays valid when it is stopped. */
int kv_bench_rounds(bench *b);
void kv_bench_print(bench *b);

/* Median speed of a row's cell over that of a peer cell, > 1: ours is faster. NaN without both. */
double kv_bench_ratio(const bench *b, const bench_row *r, const bench_peer_cell *p);

#endif
