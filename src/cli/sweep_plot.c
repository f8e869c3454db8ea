/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Pareto plot: ratio to full against true bytes, a panel a task and one of the means, a line a method, a dashed
 * step for the front. pareto.dat (a block a line, its name in the first row: share in %, ratio, low, high) and
 * pareto.gp stay in the folder: `bench/plots/pareto FOLDER` draws them again. gnuplot is asked for the SVG and the PNG
 * apart, since a build of it may lack one of them.
 */
#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "cli/sweep.h"

extern char **environ;

typedef struct plot {
    const sweep *s;
    FILE *dat, *gp;
    uint32_t n_blocks;
} plot;

/* Panel k: task k, or the means when there is more than one task (k = n_tasks). */
static uint32_t panels(const sweep *s) { return s->n_tasks > 1 ? s->n_tasks + 1 : 1; }

typedef struct mark {
    double share, ratio, low, high;
    bool front;
} mark;

static mark mark_of(const sweep *s, uint32_t panel, uint32_t point) {
    mark m;
    if (panel < s->n_tasks) {
        const kv_sweep_cell *c = kv_sweep_at(&s->table, point, panel);
        m = (mark){c->share, c->ratio, c->ratio_low, c->ratio_high, c->front};
    } else {
        const kv_sweep_row *r = &s->table.rows[point];
        m = (mark){r->share, r->ratio, r->ratio_low, r->ratio_high, r->front};
    }
    if (isnan(m.low)) m.low = m.high = m.ratio; /* too few samples for an interval */
    return m;
}

static bool drawn(const mark *m) { return !isnan(m->ratio) && m->share > 0; }

static void title(FILE *f, const char *name) {
    fputc('"', f);
    for (; *name; name++) fputc(*name == '"' ? '\'' : *name, f);
    fputs("\"\n", f);
}

static void point_row(FILE *f, const mark *m) {
    fprintf(f, "%.6g %.6g %.6g %.6g\n", 100 * m->share, m->ratio, m->low, m->high);
}

/* A block a method, in the order of the points; true when it has a point to draw. */
static bool method_block(plot *p, uint32_t panel, uint32_t first) {
    const sweep *s = p->s;
    bool any = false;
    for (uint32_t i = 0; i < first; i++)
        if (!strcmp(s->points[i].method, s->points[first].method)) return false; /* drawn with its first point */
    for (uint32_t i = first; i < s->n_points; i++) {
        if (strcmp(s->points[i].method, s->points[first].method) != 0) continue;
        mark m = mark_of(s, panel, i);
        if (!drawn(&m)) continue;
        if (!any) title(p->dat, s->points[first].method);
        any = true;
        point_row(p->dat, &m);
    }
    if (any) {
        fputs("\n\n", p->dat);
        p->n_blocks++;
    }
    return any;
}

/* The points of the front by falling share. */
static void front_block(plot *p, uint32_t panel) {
    const sweep *s = p->s;
    double above = INFINITY;
    title(p->dat, "front");
    for (;;) {
        mark next = {.share = 0};
        for (uint32_t i = 0; i < s->n_points; i++) {
            mark m = mark_of(s, panel, i);
            if (m.front && drawn(&m) && m.share < above && m.share > next.share) next = m;
        }
        if (next.share <= 0) break;
        point_row(p->dat, &next);
        above = next.share;
    }
    fputs("\n\n", p->dat);
    p->n_blocks++;
}

static void panel(plot *p, uint32_t k) {
    const sweep *s = p->s;
    uint32_t first = p->n_blocks;
    for (uint32_t i = 0; i < s->n_points; i++) method_block(p, k, i);
    uint32_t front = p->n_blocks;
    if (front == first) return; /* nothing has a ratio here */
    front_block(p, k);
    fprintf(p->gp, "set title \"");
    for (const char *c = k < s->n_tasks ? s->tasks[k].name : "mean of the tasks"; *c; c++)
        if (*c != '"' && *c != '\\') fputc(*c, p->gp);
    fprintf(p->gp,
            "\" noenhanced\nplot for [i=%u:%u] data index i using 1:2:3:4 with yerrorlines linewidth 1.2 title "
            "columnheader(1), \\\n     data index %u using 1:2 with steps linecolor rgb \"black\" dashtype 2 title "
            "\"front\"\n",
            first, front - 1, front);
}

static void write_script(plot *p) {
    const sweep *s = p->s;
    uint32_t n = panels(s);
    fprintf(p->gp,
            "# Ratio to full against true bytes of f16; out and term (svg or png) may be given with gnuplot -e.\n"
            "if (!exists(\"data\")) data = \"pareto.dat\"\n"
            "if (!exists(\"term\")) term = \"svg\"\n"
            "if (!exists(\"out\")) out = \"pareto.\".term\n"
            "if (term eq \"png\") set terminal png size 1000,%u; else set terminal svg size 1000,%u font \"sans,12\" "
            "background rgb \"white\"\n"
            "set output out\n"
            "set logscale x 2\nset xtics (100, 50, 25, 16, 7, 4, 2.5)\nset xlabel \"true bytes, %% of f16\"\n"
            "set ylabel \"ratio to full\"\nset grid\nset pointsize 0.6\nset key outside right top noenhanced\n"
            "set multiplot layout %u,1\n",
            420 * n, 420 * n, n);
    for (uint32_t k = 0; k < s->n_tasks; k++) panel(p, k);
    if (n > s->n_tasks) panel(p, s->n_tasks);
    fprintf(p->gp, "unset multiplot\n");
}

/* gnuplot -e "term='svg'" pareto.gp, in the folder. False when there is no such program; *status is its exit. */
static bool gnuplot(const char *folder, const char *term, int *status) {
    char set[32];
    snprintf(set, sizeof set, "term='%s'", term);
    char *argv[] = {"gnuplot", "-e", set, "pareto.gp", NULL};
    posix_spawn_file_actions_t fa;
    pid_t pid;
    if (posix_spawn_file_actions_init(&fa)) return false;
    posix_spawn_file_actions_addchdir_np(&fa, folder);
    int rc = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (rc) return false;
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR) return false;
    return WIFEXITED(*status) && WEXITSTATUS(*status) != 127;
}

static FILE *open_in(const sweep *s, const char *name) {
    char path[SWEEP_TEXT + 64];
    FILE *f = kv_sweep_path(s, name, path, sizeof path) ? fopen(path, "w") : NULL;
    if (!f) kv_cli_warn(s->o, "%s/%s cannot be written: no plot", s->o->sweep.out, name);
    return f;
}

void kv_sweep_plot(const sweep *s) {
    plot p = {.s = s, .dat = open_in(s, "pareto.dat")};
    if (p.dat) p.gp = open_in(s, "pareto.gp");
    if (p.gp) write_script(&p);
    bool ok = p.dat && p.gp && p.n_blocks;
    if (p.dat && fclose(p.dat)) ok = false;
    if (p.gp && fclose(p.gp)) ok = false;
    if (!ok) return;
    static const char *const terms[] = {"svg", "png"};
    for (int i = 0; i < 2; i++) {
        int status = 0;
        if (!gnuplot(s->o->sweep.out, terms[i], &status)) {
            kv_cli_warn(s->o,
                        "gnuplot is missing: no plot (Debian: apt-get install gnuplot-nox; then bench/plots/pareto "
                        "%s)",
                        s->o->sweep.out);
            return;
        }
        if (status) kv_cli_warn(s->o, "gnuplot drew no pareto.%s", terms[i]);
    }
}
