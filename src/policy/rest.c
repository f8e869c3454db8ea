/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fit of a rest token; see rest.h. For a query q with the sum of exponentials Z over kept tokens and theirs with a rest token of
 * weight w = exp(scale q.k): attention is (Z o_kept + w v) / (Z + w), all in units of the sum over every token, so that 1 - Z is the
 * share that was evicted. First k such that scale q.k is the log of that share (least squares, weighed by its square), v its mean; then
 * the squared error of the outputs themselves falls by Gauss-Newton steps, v and k in turn. Ridges hold k where queries say nothing.
 */
#include "policy/rest.h"

#include "base/half.h"
#include "policy/scores.h"

#include <math.h>
#include <string.h>

/* Ridge of the first key and of the steps from it, as parts of the mean diagonal; measured on both models of docs/fidelity.md, where a
 * tenth or ten times as much is as good. */
#define KEY_RIDGE 1e-2
#define STEP_RIDGE 1e-1
#define VALUE_RIDGE 1e-2f
#define DAMPING_LEAST 1e-4
enum { STEPS = 8, TRIES = 4, JUDGE = 4, BLOCK = 16 };
#define GAIN 0.75 /* of the judging queries' squared error: what is nearer to it helps no text (docs/decisions.md) */
#define LOG_MOST 20.0f
enum { QUERIES = 1536, ROWS_MOST = 512, APART = 16 };

typedef struct fit {
    uint32_t n, dk, dv; /* queries */
    float *q;           /* [n][dk] scaled */
    float *want;        /* [n][dv] over every token */
    float *part;        /* [n][dv] Z o_kept */
    float *z;           /* [n] */
    float *lse;         /* [n] of every token */
    float *out;         /* [n][dv] with the rest token */
    float *y;           /* [n] its share of the weight */
    double *a, *l;      /* [dk][dk] lower triangles: normal equations, their factor */
    double *b, *step;   /* [dk] */
    float *first, *try; /* [dk] keys: where the steps began, the next */
    struct {
        const float *q;
        float w, x;
    } block[BLOCK];
    uint32_t waiting;
} fit;

static size_t floats_of(size_t n, size_t dk, size_t dv) { return n * (dk + 3 * dv + 3) + 2 * dk; }

size_t kv_rest_scratch(const kv_rest_input *in) {
    size_t n = (size_t)in->group * in->rows, d = in->dk;
    return (2 * d * d + 2 * d) * sizeof(double) + floats_of(n, d, in->dv) * sizeof(float);
}

uint32_t kv_rest_rows(uint32_t n, uint32_t group) {
    uint32_t rows = QUERIES / group, most = n / APART;
    if (rows > ROWS_MOST) rows = ROWS_MOST;
    return rows < most ? rows : most;
}

uint64_t kv_rest_bytes(uint32_t n, uint32_t n_layers, uint32_t n_q, uint32_t n_kv, uint32_t dk, uint32_t dv) {
    const kv_rest_input one = {.group = n_q / n_kv, .rows = kv_rest_rows(n, n_q / n_kv), .dk = dk, .dv = dv};
    uint64_t now = (uint64_t)one.rows * n_q;
    return n_layers * (now * (2ull * (dk + dv) + sizeof(float)) + (uint64_t)n_kv * dk * sizeof(float)) + now * (dk + dv + 1ull) * sizeof(float) + kv_rest_scratch(&one);
}

static void carve(fit *f, void *scratch) {
    size_t n = f->n, d = f->dk;
    f->a = scratch;
    f->l = f->a + d * d;
    f->b = f->l + d * d;
    f->step = f->b + d;
    f->q = (float *)(void *)(f->step + d);
    f->want = f->q + n * d;
    f->part = f->want + n * f->dv;
    f->out = f->part + n * f->dv;
    f->z = f->out + n * f->dv;
    f->lse = f->z + n;
    f->y = f->lse + n;
    f->first = f->y + n;
    f->try = f->first + d;
}

static void load(fit *f, const kv_rest_input *in) {
    for (uint32_t i = 0; i < f->n; i++) {
        size_t at = (size_t)(i % in->rows) * in->stride + i / in->rows, d = f->dk, dv = f->dv;
        float over = in->kept_lse[at] - in->whole_lse[i];
        f->lse[i] = in->whole_lse[i];
        f->z[i] = expf(over < LOG_MOST ? over : LOG_MOST);
        for (uint32_t c = 0; c < d; c++) f->q[i * d + c] = kv_f16_f32(in->q[i * d + c]) * in->scale;
        for (uint32_t c = 0; c < dv; c++) {
            f->want[i * dv + c] = kv_f16_f32(in->whole[i * dv + c]);
            f->part[i * dv + c] = f->z[i] > 0 ? f->z[i] * in->kept[at * dv + c] : 0.0f;
        }
    }
}

static bool judges(uint32_t i) { return i % JUDGE == JUDGE - 1; }

static float dot(const float *a, const float *b, uint32_t n) {
    float s[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (uint32_t c = 0; c < 8; c++) s[c] += a[i + c] * b[i + c];
    for (; i < n; i++) s[0] += a[i] * b[i];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

/* Outputs and shares with a rest token; the squared error of the queries that are fitted to, or of those that judge. */
static double outputs(fit *f, const float *k, const float *v, bool judging) {
    double error = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        if (judges(i) != judging) continue;
        const float *part = f->part + (size_t)i * f->dv, *want = f->want + (size_t)i * f->dv;
        float *out = f->out + (size_t)i * f->dv, logit = dot(f->q + (size_t)i * f->dk, k, f->dk) - f->lse[i];
        float w = expf(logit < LOG_MOST ? logit : LOG_MOST), sum = f->z[i] + w, sq = 0;
        if (!(sum > 0)) sum = 1;
        f->y[i] = w / sum;
        for (uint32_t c = 0; c < f->dv; c++) {
            out[c] = (part[c] + w * v[c]) / sum;
            sq += (out[c] - want[c]) * (out[c] - want[c]);
        }
        error += (double)sq;
    }
    return error;
}

/* The same of the kept tokens alone. */
static double dropped_error(const fit *f) {
    double error = 0;
    for (uint32_t i = JUDGE - 1; i < f->n; i += JUDGE)
        for (uint32_t c = 0; c < f->dv; c++) {
            size_t at = (size_t)i * f->dv + c;
            double e = (double)(f->z[i] > 0 ? f->part[at] / f->z[i] : 0.0f) - (double)f->want[at];
            error += e * e;
        }
    return error;
}

/* Queries that wait to be added: a block's products are summed in f32. */
static void flush_equations(fit *f) {
    float row[KV_SCORE_MAX_DIM];
    for (uint32_t r = 0; f->waiting && r < f->dk; r++) {
        double *a = f->a + (size_t)r * f->dk;
        memset(row, 0, (r + 1) * sizeof *row);
        for (uint32_t i = 0; i < f->waiting; i++) {
            const float *q = f->block[i].q, wr = f->block[i].w * q[r];
            for (uint32_t c = 0; c <= r; c++) row[c] += wr * q[c];
            f->b[r] += (double)(f->block[i].x * q[r]);
        }
        for (uint32_t c = 0; c <= r; c++) a[c] += (double)row[c];
    }
    f->waiting = 0;
}

/* a += w q q^T, b += x q; all are there after flush_equations. */
static void add_equation(fit *f, const float *q, float w, float x) {
    f->block[f->waiting].q = q;
    f->block[f->waiting].w = w;
    f->block[f->waiting++].x = x;
    if (f->waiting == BLOCK) flush_equations(f);
}

static void clear_equations(fit *f) {
    memset(f->a, 0, (size_t)f->dk * f->dk * sizeof *f->a);
    memset(f->b, 0, f->dk * sizeof *f->b);
}

static double mean_diagonal(const fit *f) {
    double sum = 0;
    for (uint32_t i = 0; i < f->dk; i++) sum += f->a[(size_t)i * f->dk + i];
    return sum / f->dk;
}

/* step = (a + ridge I)^-1 b by Cholesky. */
static void solve(fit *f, double ridge) {
    uint32_t n = f->dk;
    double *l = f->l, *x = f->step;
    memcpy(l, f->a, (size_t)n * n * sizeof *l);
    for (uint32_t i = 0; i < n; i++) {
        double *row = l + (size_t)i * n;
        row[i] += ridge;
        for (uint32_t c = 0; c <= i; c++) {
            const double *other = l + (size_t)c * n;
            double s = row[c];
            for (uint32_t k = 0; k < c; k++) s -= row[k] * other[k];
            if (c < i) row[c] = s / other[c];
            else row[i] = sqrt(s > 1e-30 ? s : 1e-30);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        x[i] = f->b[i];
        for (uint32_t k = 0; k < i; k++) x[i] -= l[(size_t)i * n + k] * x[k];
        x[i] /= l[(size_t)i * n + i];
    }
    for (uint32_t i = n; i-- > 0;) {
        for (uint32_t k = i + 1; k < n; k++) x[i] -= l[(size_t)k * n + i] * x[k];
        x[i] /= l[(size_t)i * n + i];
    }
}

/* The key whose logits are nearest to the logs of what was evicted, the value that is its mean; false: nothing was. */
static bool begin(fit *f, const float *mean, float *k, float *v) {
    double sum = 0;
    clear_equations(f);
    memset(v, 0, f->dv * sizeof *v);
    for (uint32_t i = 0; i < f->n; i++) {
        float m = 1.0f - f->z[i];
        if (judges(i) || !(m > 1e-4f)) continue;
        const float *q = f->q + (size_t)i * f->dk;
        add_equation(f, q, m * m, m * m * (f->lse[i] + logf(m) - dot(q, mean, f->dk)));
        sum += (double)(m * m);
        for (uint32_t c = 0; c < f->dv; c++) {
            size_t at = (size_t)i * f->dv + c;
            v[c] += m * (f->want[at] - f->part[at]);
        }
    }
    flush_equations(f);
    if (!(sum > 0)) return false;
    for (uint32_t c = 0; c < f->dv; c++) v[c] = (float)((double)v[c] / sum);
    solve(f, KEY_RIDGE * mean_diagonal(f) + 1e-12);
    for (uint32_t c = 0; c < f->dk; c++) k[c] = f->first[c] = mean[c] + (float)f->step[c];
    return true;
}

static void step_value(const fit *f, float *v) {
    double yy = 0;
    float add[KV_SCORE_MAX_DIM] = {0};
    for (uint32_t i = 0; i < f->n; i++) {
        if (judges(i)) continue;
        yy += (double)(f->y[i] * f->y[i]);
        for (uint32_t c = 0; c < f->dv; c++) {
            size_t at = (size_t)i * f->dv + c;
            add[c] += f->y[i] * (f->want[at] - f->out[at]);
        }
    }
    float by = (float)(yy * (1.0 + (double)VALUE_RIDGE) + 1e-12);
    for (uint32_t c = 0; c < f->dv; c++) v[c] += add[c] / by;
}

/* One damped step of the key; outputs and shares are those of where it ends. */
static void step_key(fit *f, float *k, const float *v, double error, double *damping) {
    clear_equations(f);
    for (uint32_t i = 0; i < f->n; i++) {
        if (judges(i)) continue;
        const float *out = f->out + (size_t)i * f->dv, *want = f->want + (size_t)i * f->dv;
        float square = 0, along = 0;
        for (uint32_t c = 0; c < f->dv; c++) {
            float pull = v[c] - out[c];
            square += pull * pull;
            along += pull * (want[c] - out[c]);
        }
        add_equation(f, f->q + (size_t)i * f->dk, f->y[i] * f->y[i] * square, f->y[i] * along);
    }
    flush_equations(f);
    double mean = mean_diagonal(f), ridge = STEP_RIDGE * mean, held = 0;
    for (uint32_t c = 0; c < f->dk; c++) {
        double off = (double)(k[c] - f->first[c]);
        f->b[c] -= ridge * off;
        held += ridge * off * off;
    }
    for (int i = 0; i < TRIES; i++) {
        double would = 0;
        solve(f, ridge + *damping * mean + 1e-12);
        for (uint32_t c = 0; c < f->dk; c++) {
            f->try[c] = k[c] + (float)f->step[c];
            would += ridge * (double)((f->try[c] - f->first[c]) * (f->try[c] - f->first[c]));
        }
        double e = outputs(f, f->try, v, false);
        if (e + would < error + held) {
            memcpy(k, f->try, f->dk * sizeof *k);
            *damping = *damping * 0.3 > DAMPING_LEAST ? *damping * 0.3 : DAMPING_LEAST;
            return;
        }
        *damping *= 5;
    }
    (void)outputs(f, k, v, false);
}

bool kv_rest_fit(const kv_rest_input *in, float *k, float *v, void *scratch) {
    fit f = {.n = in->group * in->rows, .dk = in->dk, .dv = in->dv};
    carve(&f, scratch);
    load(&f, in);
    if (!begin(&f, in->mean, k, v)) return false;
    double damping = 1e-2;
    (void)outputs(&f, k, v, false);
    for (int i = 0; i < STEPS; i++) {
        step_value(&f, v);
        step_key(&f, k, v, outputs(&f, k, v, false), &damping);
    }
    for (uint32_t c = 0; c < f.dk; c++) k[c] = kv_f16_f32(kv_f32_f16(k[c]));
    for (uint32_t c = 0; c < f.dv; c++) v[c] = kv_f16_f32(kv_f32_f16(v[c]));
    double with = outputs(&f, k, v, true);
    return with < GAIN * dropped_error(&f); /* false where a value is no number */
}
