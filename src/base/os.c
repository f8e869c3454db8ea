/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only door to the operating system (Linux, other POSIX with mmap). Every failure names the path and errno's text.
 * Must not know: what is in the files. Invariant: a kv_file_map that was given out is never written through.
 */
#include "base/os.h"

#include "base/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Text, grammars, JSON: nothing that is read whole is larger; a mistyped device or model file fails instead of filling
 * memory. */
#define READ_FILE_MAX ((size_t)1 << 30)
#define HUGE_PAGE ((size_t)2 << 20)

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }
static uintptr_t round_up(uintptr_t x, size_t unit) { return (x + unit - 1) / unit * unit; }

kv_status kv_os_map_file(const char *path, kv_file_map *out, kv_error *err) {
    *out = (kv_file_map){NULL, 0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        KV_FAIL(err, IO, "%s: not a regular file", path);
    }
    if (st.st_size == 0) { /* mmap refuses length 0; a valid empty range lets the parser say what is missing */
        close(fd);
        *out = (kv_file_map){(const uint8_t *)"", 0};
        return KVIST_OK;
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int saved = errno;
    close(fd);
    if (p == MAP_FAILED) KV_FAIL(err, IO, "%s: mmap: %s", path, strerror(saved));
    *out = (kv_file_map){p, (size_t)st.st_size};
    return KVIST_OK;
}

void kv_os_unmap_file(kv_file_map *map) {
    if (map->size) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (kv_file_map){NULL, 0};
}

void kv_os_release_mapped(const kv_file_map *map, size_t offset, size_t len) {
    if (offset > map->size) return;
    if (len > map->size - offset) len = map->size - offset;
    size_t page = page_size();
    uintptr_t from = round_up((uintptr_t)map->data + offset, page);
    uintptr_t to = ((uintptr_t)map->data + offset + len) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

kv_status kv_os_reserve(size_t size, bool huge, void **out, kv_error *err) {
    *out = NULL;
    size_t page = page_size();
    if (!size || size > SIZE_MAX / 2) KV_FAIL(err, ARG, "cannot reserve %zu bytes", size);
    size = round_up(size, page);
    /* Huge pages need 2 MiB alignment: map more and give the ends back. */
    size_t extra = huge && size >= HUGE_PAGE ? HUGE_PAGE : 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *base = mmap(NULL, size + extra, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (base == MAP_FAILED) KV_FAIL(err, MEMORY, "cannot reserve %zu bytes: %s", size, strerror(errno));
    uint8_t *p = base;
    if (extra) {
        p = (uint8_t *)round_up((uintptr_t)base, HUGE_PAGE);
        size_t head = (size_t)(p - base), tail = extra - head;
        if (head) munmap(base, head);
        if (tail) munmap(p + size, tail);
        madvise(p, size, MADV_HUGEPAGE); /* a wish: failure only costs speed */
    }
    *out = p;
    return KVIST_OK;
}

void kv_os_unreserve(void *p, size_t size) {
    if (p && size) munmap(p, round_up(size, page_size()));
}

void kv_os_decommit(void *p, size_t size) {
    if (!p || !size) return;
    size_t page = page_size();
    uintptr_t begin = (uintptr_t)p, end = begin + size, from = round_up(begin, page), to = end / page * page;
    if (to <= from || madvise((void *)from, to - from, MADV_DONTNEED) != 0) {
        memset(p, 0, size);
        return;
    }
    memset(p, 0, from - begin);
    memset((void *)to, 0, end - to);
}

/* Reads until the end; *buf has cap >= *len + 1 bytes. */
static kv_status read_all(int fd, const char *path, char **buf, size_t cap, size_t *len, kv_error *err) {
    for (;;) {
        if (*len + 1 >= cap) {
            if (cap > READ_FILE_MAX) KV_FAIL(err, IO, "%s: larger than %zu bytes", path, READ_FILE_MAX);
            char *more = kv_realloc(*buf, cap * 2);
            if (!more) KV_FAIL(err, MEMORY, "%s: no memory for %zu bytes", path, cap * 2);
            *buf = more;
            cap *= 2;
        }
        ssize_t n = read(fd, *buf + *len, cap - 1 - *len);
        if (n == 0) return KVIST_OK;
        if (n > 0)
            *len += (size_t)n;
        else if (errno != EINTR)
            KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
    }
}

kv_status kv_os_read_file(const char *path, char **out, size_t *len, kv_error *err) {
    *out = NULL;
    *len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
    struct stat st;
    /* Room for the size the file says it has; pipes and /proc files grow from 4 KiB. */
    bool sized = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && (uint64_t)st.st_size < READ_FILE_MAX;
    size_t cap = sized ? (size_t)st.st_size + 2 : 4096;
    char *buf = kv_malloc(cap);
    kv_status status = buf ? read_all(fd, path, &buf, cap, len, err)
                           : kv_fail(err, KVIST_E_MEMORY, "%s: no memory for %zu bytes", path, cap);
    close(fd);
    if (status != KVIST_OK) {
        kv_free(buf);
        *len = 0;
        return status;
    }
    buf[*len] = 0;
    *out = buf;
    return KVIST_OK;
}

static kv_status write_all(int fd, const char *path, const kv_os_part *parts, size_t n, kv_error *err) {
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = parts[i].data;
        for (size_t left = parts[i].len; left;) {
            ssize_t w = write(fd, p, left);
            if (w < 0 && errno == EINTR) continue;
            if (w < 0) KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
            p += w;
            left -= (size_t)w;
        }
    }
    return KVIST_OK;
}

kv_status kv_os_write_file(const char *path, const kv_os_part *parts, size_t n, kv_error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
    kv_status status = write_all(fd, path, parts, n, err);
    if (close(fd) != 0 && status == KVIST_OK) status = kv_fail(err, KVIST_E_IO, "%s: %s", path, strerror(errno));
    if (status != KVIST_OK) unlink(path);
    return status;
}

kv_status kv_os_append_open(const char *path, kv_os_append *out, kv_error *err) {
    *out = (kv_os_append){-1, path};
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) KV_FAIL(err, IO, "%s: %s", path, strerror(errno));
    struct stat st;
    bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode), locked = regular && flock(fd, LOCK_EX | LOCK_NB) == 0;
    int why = errno;
    if (locked) {
        out->fd = fd;
        return KVIST_OK;
    }
    close(fd);
    if (!regular) KV_FAIL(err, IO, "%s: not a regular file", path);
    if (why == EWOULDBLOCK) KV_FAIL(err, STATE, "%s: another process is writing to it", path);
    KV_FAIL(err, IO, "%s: cannot be locked: %s", path, strerror(why));
}

kv_status kv_os_append_cut(kv_os_append *a, uint64_t size, kv_error *err) {
    if (ftruncate(a->fd, (off_t)size) != 0) KV_FAIL(err, IO, "%s: cannot be shortened: %s", a->path, strerror(errno));
    return KVIST_OK;
}

kv_status kv_os_append_write(kv_os_append *a, const void *data, size_t len, kv_error *err) {
    return write_all(a->fd, a->path, &(kv_os_part){data, len}, 1, err);
}

void kv_os_append_close(kv_os_append *a) {
    if (a->fd >= 0) close(a->fd); /* gives the lock up too */
    a->fd = -1;
}

uint64_t kv_os_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint32_t kv_os_processors(void) {
    cpu_set_t set; /* honours taskset and cgroup cpusets, which the count of online processors does not */
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return (uint32_t)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

/* "cpu  user nice system idle iowait irq softirq steal ...": the first line counts all processors. */
double kv_os_stolen_of(const char *stat, double hz) {
    unsigned long long steal = 0;
    if (sscanf(stat, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &steal) != 1 || !(hz > 0)) return 0;
    return (double)steal / hz;
}

double kv_os_stolen_seconds(void) {
    char line[512];
    FILE *f = fopen("/proc/stat", "r");
    bool read = f && fgets(line, sizeof line, f);
    if (f) fclose(f);
    return read ? kv_os_stolen_of(line, (double)sysconf(_SC_CLK_TCK)) : 0;
}

kv_os_host kv_os_host_now(void) { return (kv_os_host){kv_os_stolen_seconds(), kv_os_now_ns()}; }

double kv_os_host_took(kv_os_host at) {
    double seconds = (double)(kv_os_now_ns() - at.ns) * 1e-9;
    return seconds > 0 ? (kv_os_stolen_seconds() - at.stolen) / (seconds * kv_os_processors()) : 0;
}

int kv_os_current_cpu(void) { return sched_getcpu(); }

void kv_os_leave_cpu(int cpu) {
    cpu_set_t
        set; /* of the process's first thread: what the user allowed, whatever this thread was limited to before */
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(getpid(), sizeof set, &set) != 0) return;
    CPU_CLR((size_t)cpu, &set);
    if (CPU_COUNT(&set) > 0) sched_setaffinity(0, sizeof set, &set);
}

uint64_t kv_os_peak_rss(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (uint64_t)u.ru_maxrss * 1024u : 0;
}
