/* SPDX-License-Identifier: Apache-2.0 */
/* The only door to the operating system: files, mappings, clock, processors. */
#ifndef KV_BASE_OS_H
#define KV_BASE_OS_H

#include "base/err.h"

typedef struct kv_file_map {
    const uint8_t *data;
    size_t size;
} kv_file_map;
kv_status kv_os_map_file(const char *path, kv_file_map *out, kv_error *err) KV_WARN_UNUSED; /* read-only */
void kv_os_unmap_file(kv_file_map *map);
/* Gives the page-cache pages of map[offset..offset+len) back (whole pages inside the range only). */
void kv_os_release_mapped(const kv_file_map *map, size_t offset, size_t len);

/* Reserves size bytes of zero pages without committing them (pool); huge: ask for huge pages. */
kv_status kv_os_reserve(size_t size, bool huge, void **out, kv_error *err) KV_WARN_UNUSED;
void kv_os_unreserve(void *p, size_t size);
void kv_os_decommit(void *p, size_t size); /* contents become zero, memory goes back */

/* Whole file into malloc'd memory with a terminating 0 (not counted). Caller kv_free()s. */
kv_status kv_os_read_file(const char *path, char **out, size_t *len, kv_error *err) KV_WARN_UNUSED;
/* Creates or replaces path with the parts one after another; a file that could not be written whole is removed. */
typedef struct kv_os_part {
    const void *data;
    size_t len;
} kv_os_part;
kv_status kv_os_write_file(const char *path, const kv_os_part *parts, size_t n, kv_error *err) KV_WARN_UNUSED;

/* A file that lines are appended to and that no other process appends to meanwhile: created when it is not there,
 * locked (KVIST_E_STATE when somebody else holds it). What append returned has reached the system: a killed process
 * loses none of it. cut shortens the file to its first `size` bytes. */
typedef struct kv_os_append {
    int fd; /* -1: closed */
    const char *path;
} kv_os_append;
kv_status kv_os_append_open(const char *path, kv_os_append *out, kv_error *err) KV_WARN_UNUSED; /* path is kept */
kv_status kv_os_append_cut(kv_os_append *a, uint64_t size, kv_error *err) KV_WARN_UNUSED;
kv_status kv_os_append_write(kv_os_append *a, const void *data, size_t len, kv_error *err) KV_WARN_UNUSED;
void kv_os_append_close(kv_os_append *a);

uint64_t kv_os_now_ns(void); /* monotonic */
uint32_t kv_os_processors(void);
/* The processor the calling thread runs on, -1 when unknown; and moving it off one, for good, when the process may use
 * others. */
int kv_os_current_cpu(void);
void kv_os_leave_cpu(int cpu);
/* Processor seconds, of all processors together, that a host gave to others while this machine had work for them; 0 where
 * nothing says. In steps of 10 ms. */
double kv_os_stolen_seconds(void);
/* The same from the text of /proc/stat, whose counts are in 1/hz s. */
double kv_os_stolen_of(const char *stat, double hz);
/* The share of all processors' time that was taken so since `at`. */
typedef struct kv_os_host {
    double stolen;
    uint64_t ns;
} kv_os_host;
kv_os_host kv_os_host_now(void);
double kv_os_host_took(kv_os_host at);
uint64_t kv_os_peak_rss(void); /* bytes, 0 when unknown */

#endif
