/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fork-join pool. Owns: worker threads and the one running job. Must not know: what the items compute.
 *
 * A job is published by one 64-bit word: job number (high 32 bits) and items left to take (low 32). An item is taken by
 * a compare-and-swap on the whole word, so a worker that comes late to a finished job can take nothing from the next
 * one by mistake, and the caller waits for *items*, never for workers: with every worker asleep or descheduled it
 * simply does all the work itself. That is what keeps small jobs fast with more threads than processors.
 *
 * Invariants: fn, ctx and n_items change only while the word says 0 left (so a worker whose swap from a word with items
 * left succeeded has read the job's own values: never decide from n_items, it may be the next job's already); done
 * counts finished items of the current job; run returns at done == n_items.
 */
#include "base/threads.h"

#include "base/alloc.h"
#include "base/os.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Between the small serial steps of a decoded token lie a few microseconds, of a batch of 32 up to a hundred; a futex
 * wake-up costs 5 to 50, on a virtual machine more: spinning this long catches the next job. With more threads than
 * processors a spinner only keeps the working ones away. */
#define SPIN_NS 150000u
#define SPIN_CHECK 32u /* relaxes between looks at the clock: about 1 us */
#define THREADS_MAX 1024u

struct kv_threads {
    _Atomic uint64_t state __attribute__((aligned(64))); /* job << 32 | items left */
    _Atomic(kv_task_fn) fn;
    _Atomic(void *) ctx;
    _Atomic uint32_t n_items;
    _Atomic int caller_cpu; /* at the last publish; -1: do not care */
    _Atomic uint32_t done __attribute__((aligned(64)));
    _Atomic uint32_t sleepers __attribute__((aligned(64)));
    _Atomic bool caller_sleeps, stop;
    pthread_mutex_t lock;
    pthread_cond_t work, finished;
    uint32_t n, n_started;
    uint64_t spin_ns;
    struct kv_worker {
        struct kv_threads *pool;
        pthread_t id;
        uint32_t index;
    } * workers;
};

static inline uint32_t job_of(uint64_t state) { return (uint32_t)(state >> 32); }

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The scheduler likes to wake a thread on the processor of the one that woke it, and while other programs keep every
 * processor busy its balancing leaves both there: two threads then take turns on one processor (seen: 104 us for a job
 * of 103 us, against 52 after moving). With no more threads than processors a worker that finds itself there moves
 * away. */
static void leave_callers_cpu(kv_threads *t) {
    int cpu = atomic_load_explicit(&t->caller_cpu, memory_order_relaxed);
    if (cpu >= 0 && cpu == kv_os_current_cpu()) kv_os_leave_cpu(cpu);
}

/* Runs items of the current job until none is left to take; returns that job's number. */
static uint32_t drain(kv_threads *t, uint32_t thread) {
    uint64_t s = atomic_load_explicit(&t->state, memory_order_acquire);
    while ((uint32_t)s) {
        kv_task_fn fn = atomic_load_explicit(&t->fn, memory_order_relaxed);
        void *ctx = atomic_load_explicit(&t->ctx, memory_order_relaxed);
        uint32_t n = atomic_load_explicit(&t->n_items, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&t->state, &s, s - 1, memory_order_acq_rel, memory_order_acquire))
            continue;
        fn(ctx, n - (uint32_t)s, thread);
        /* seq_cst pairs with the caller's store to caller_sleeps: one of the two sees the other. */
        if (atomic_fetch_add(&t->done, 1) + 1 == n && atomic_load(&t->caller_sleeps)) {
            pthread_mutex_lock(&t->lock);
            pthread_cond_signal(&t->finished);
            pthread_mutex_unlock(&t->lock);
        }
        s = atomic_load_explicit(&t->state, memory_order_acquire);
    }
    return job_of(s);
}

/* True when a job other than seen was published (or the pool stops) within the spinning time. */
static bool spin_for_job(kv_threads *t, uint32_t seen) {
    if (!t->spin_ns) return false;
    uint64_t end = kv_os_now_ns() + t->spin_ns;
    do {
        for (uint32_t i = 0; i < SPIN_CHECK; i++) {
            if (job_of(atomic_load_explicit(&t->state, memory_order_relaxed)) != seen) return true;
            relax();
        }
    } while (kv_os_now_ns() < end);
    return false;
}

static void *worker_main(void *arg) {
    struct kv_worker *w = arg;
    kv_threads *t = w->pool;
    uint32_t seen = 0;
    for (;;) {
        if (!spin_for_job(t, seen)) {
            pthread_mutex_lock(&t->lock);
            atomic_fetch_add(&t->sleepers, 1); /* seq_cst: pairs with publish() */
            while (job_of(atomic_load(&t->state)) == seen && !atomic_load(&t->stop))
                pthread_cond_wait(&t->work, &t->lock);
            atomic_fetch_sub(&t->sleepers, 1);
            pthread_mutex_unlock(&t->lock);
        }
        if (atomic_load_explicit(&t->stop, memory_order_acquire)) return NULL;
        leave_callers_cpu(t);
        seen = drain(t, w->index);
    }
}

/* Publishes the next job and wakes as many sleepers as it can use. */
static void publish(kv_threads *t, kv_task_fn fn, void *ctx, uint32_t n_items) {
    atomic_store_explicit(&t->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&t->ctx, ctx, memory_order_relaxed);
    atomic_store_explicit(&t->n_items, n_items, memory_order_relaxed);
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    atomic_store_explicit(&t->caller_cpu, t->spin_ns ? kv_os_current_cpu() : -1, memory_order_relaxed);
    uint32_t job = job_of(atomic_load_explicit(&t->state, memory_order_relaxed)) + 1;
    atomic_store(&t->state, (uint64_t)job << 32 | n_items);
    uint32_t sleepers = atomic_load(&t->sleepers);
    if (!sleepers) return;
    pthread_mutex_lock(&t->lock);
    if (n_items - 1 >= sleepers)
        pthread_cond_broadcast(&t->work);
    else
        for (uint32_t i = 0; i < n_items - 1; i++) pthread_cond_signal(&t->work);
    pthread_mutex_unlock(&t->lock);
}

static void wait_for_items(kv_threads *t, uint32_t n_items) {
    uint64_t end = 0;
    for (uint32_t i = 0; atomic_load_explicit(&t->done, memory_order_acquire) != n_items; i++) {
        if (i % SPIN_CHECK == 0) {
            uint64_t now = t->spin_ns ? kv_os_now_ns() : 0;
            if (!end) end = now + t->spin_ns;
            if (now >= end) break;
        }
        relax();
    }
    if (atomic_load_explicit(&t->done, memory_order_acquire) == n_items) return;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->caller_sleeps, true);
    while (atomic_load(&t->done) != n_items) pthread_cond_wait(&t->finished, &t->lock);
    atomic_store(&t->caller_sleeps, false);
    pthread_mutex_unlock(&t->lock);
}

void kv_threads_run(kv_threads *t, kv_task_fn fn, void *ctx, uint32_t n_items) {
    if (!t || t->n == 1 || n_items <= 1) {
        for (uint32_t i = 0; i < n_items; i++) fn(ctx, i, 0);
        return;
    }
    publish(t, fn, ctx, n_items);
    drain(t, 0);
    wait_for_items(t, n_items);
}

uint32_t kv_threads_count(const kv_threads *t) { return t ? t->n : 1; }

kv_status kv_threads_create(uint32_t n, kv_threads **out, kv_error *err) {
    *out = NULL;
    if (n < 1 || n > THREADS_MAX) KV_FAIL(err, ARG, "thread count %u is not in 1..%u", n, THREADS_MAX);
    kv_threads *t = kv_malloc64(sizeof *t);
    if (!t) KV_FAIL(err, MEMORY, "no memory for a thread pool");
    memset(t, 0, sizeof *t);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->work, NULL);
    pthread_cond_init(&t->finished, NULL);
    t->n = n;
    t->spin_ns = n <= kv_os_processors() ? SPIN_NS : 0;
    t->workers = kv_calloc(n, sizeof *t->workers);
    if (!t->workers) {
        kv_threads_free(&t);
        KV_FAIL(err, MEMORY, "no memory for %u threads", n);
    }
    for (uint32_t i = 0; i + 1 < n; i++) {
        t->workers[i].pool = t;
        t->workers[i].index = i + 1;
        int e = pthread_create(&t->workers[i].id, NULL, worker_main, &t->workers[i]);
        if (e) {
            kv_threads_free(&t);
            KV_FAIL(err, MEMORY, "cannot start thread %u of %u: %s", i + 2, n, strerror(e));
        }
        t->n_started++;
    }
    *out = t;
    return KVIST_OK;
}

void kv_threads_free(kv_threads **pool) {
    kv_threads *t = pool ? *pool : NULL;
    if (!t) return;
    *pool = NULL;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->stop, true);
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->lock);
    for (uint32_t i = 0; i < t->n_started; i++) pthread_join(t->workers[i].id, NULL);
    pthread_cond_destroy(&t->finished);
    pthread_cond_destroy(&t->work);
    pthread_mutex_destroy(&t->lock);
    kv_free(t->workers);
    kv_free64(t);
}
