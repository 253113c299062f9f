#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RUNS_AT_ONCE = 512 };

long sk_read_runs(int mem_fd, const uint64_t *runs, size_t count, uint8_t *buffer,
                  uint64_t *failed) {
  for (size_t i = 0; i < count; i++) {
    uint64_t address = runs[2 * i], rest = runs[2 * i + 1];
    while (rest) {
      ssize_t moved = pread(mem_fd, buffer, rest, (off_t)address);
      if (moved <= 0) {
        *failed = address;
        return moved < 0 ? -(long)errno : -EIO;
      }
      buffer += moved;
      address += (uint64_t)moved;
      rest -= (uint64_t)moved;
    }
  }
  return 0;
}

/* One remote iovec per run. process_vm_writev stops at the first page that it cannot access and
 * reports what it did; that page then goes by /proc/PID/mem, which may access what the process
 * itself may not. */
long sk_write_runs(int pid, int mem_fd, const uint64_t *runs, size_t count, const uint8_t *buffer,
                   uint64_t *failed) {
  struct iovec remote[RUNS_AT_ONCE];
  size_t done = 0;   /* runs that are complete */
  uint64_t skip = 0; /* bytes of the next run that are done */
  while (done < count) {
    size_t batch = count - done < RUNS_AT_ONCE ? count - done : RUNS_AT_ONCE, length = 0;
    for (size_t i = 0; i < batch; i++) {
      const uint64_t *run = runs + 2 * (done + i);
      uint64_t offset = i == 0 ? skip : 0;
      remote[i].iov_base = (void *)(uintptr_t)(run[0] + offset);
      remote[i].iov_len = run[1] - offset;
      length += remote[i].iov_len;
    }
    struct iovec local = {(void *)(uintptr_t)buffer, length};
    ssize_t moved = process_vm_writev(pid, &local, 1, remote, batch, 0);
    if (moved <= 0) {
      uint64_t address = runs[2 * done] + skip, rest = runs[2 * done + 1] - skip;
      uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), piece = page - address % page;
      moved = pwrite(mem_fd, buffer, piece < rest ? piece : rest, (off_t)address);
      if (moved <= 0) {
        *failed = address;
        return moved < 0 ? -(long)errno : -EIO;
      }
    }
    buffer += moved;
    while (moved > 0) {
      uint64_t rest = runs[2 * done + 1] - skip;
      if ((uint64_t)moved >= rest) {
        moved -= (ssize_t)rest;
        done++;
        skip = 0;
      } else {
        skip += (uint64_t)moved;
        moved = 0;
      }
    }
  }
  return 0;
}

long sk_write_changed(int pid, int mem_fd, const uint64_t *runs, size_t count,
                      const uint8_t *buffer, uint64_t *failed) {
  uint8_t there[65536];
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < count; i++) {
    for (uint64_t at = 0; at < runs[2 * i + 1];) {
      uint64_t rest = runs[2 * i + 1] - at, size = rest < sizeof there ? rest : sizeof there;
      uint64_t found[2] = {runs[2 * i] + at, size};
      long result = sk_read_runs(mem_fd, found, 1, there, failed);
      for (uint64_t from = 0; result == 0 && from < size;) {
        uint64_t to = from;
        while (to < size && memcmp(there + to, buffer + to, size - to < page ? size - to : page))
          to = to + page < size ? to + page : size;
        if (to > from) {
          uint64_t changed[2] = {found[0] + from, to - from};
          result = sk_write_runs(pid, mem_fd, changed, 1, buffer + from, failed);
        }
        from = to + page;
      }
      if (result < 0)
        return result;
      buffer += size;
      at += size;
    }
  }
  return 0;
}

/* PAGEMAP_SCAN (Documentation/admin-guide/mm/pagemap.rst), spelled out: the headers of many
 * systems are older than their kernels. */
struct page_region {
  uint64_t start, end, categories;
};
struct pm_scan_arg {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct pm_scan_arg)
enum {
  IS_FILE = 1 << 2,
  IS_PRESENT = 1 << 3,
  IS_SWAPPED = 1 << 4,
  IS_PFNZERO = 1 << 5,
  IS_GUARD = 1 << 8
};

/* Bits of an entry of /proc/PID/pagemap. */
#define ENTRY_PRESENT (1ULL << 63)
#define ENTRY_SWAPPED (1ULL << 62)
#define ENTRY_FILE (1ULL << 61)
#define ENTRY_GUARD (1ULL << 58)

static int append(uint64_t *runs, size_t capacity, size_t *count, uint64_t start, uint64_t end) {
  if (*count && runs[2 * *count - 2] + runs[2 * *count - 1] == start) {
    runs[2 * *count - 1] += end - start;
    return 1;
  }
  if (*count == capacity)
    return 0;
  runs[2 * *count] = start;
  runs[2 * *count + 1] = end - start;
  (*count)++;
  return 1;
}

/* Read pagemap entry by entry: all kernels can. The zero page cannot be told from others; it is
 * dropped later, because its content is zero. */
static int64_t scan_entries(int fd, uint64_t start, uint64_t end, uint64_t page, int kind,
                            uint64_t *runs, size_t capacity, size_t *count) {
  uint64_t entries[4096];
  while (start < end) {
    size_t want = (end - start) / page;
    if (want > sizeof entries / sizeof *entries)
      want = sizeof entries / sizeof *entries;
    ssize_t got = pread(fd, entries, want * sizeof *entries, (off_t)(start / page * 8));
    if (got <= 0)
      return got < 0 ? -(int64_t)errno : -EIO;
    for (size_t i = 0; i < (size_t)got / sizeof *entries; i++, start += page) {
      uint64_t entry = entries[i];
      int guard = (entry & ENTRY_GUARD) != 0;
      int any = (entry & (ENTRY_PRESENT | ENTRY_SWAPPED)) && !guard;
      int wanted = kind == SK_GUARD ? guard : any && (kind == SK_ANY || !(entry & ENTRY_FILE));
      if (wanted && !append(runs, capacity, count, start, start + page))
        return (int64_t)start;
    }
  }
  return (int64_t)end;
}

int64_t sk_scan_pages(int fd, uint64_t start, uint64_t end, uint64_t page_size, int kind, int plain,
                      uint64_t *runs, size_t capacity, size_t *count) {
  enum { REGIONS = 512 };
  static _Thread_local struct page_region regions[REGIONS];
  int knows_guards = 1;
  while (!plain && start < end) {
    struct pm_scan_arg scan = {.size = sizeof scan,
                               .start = start,
                               .end = end,
                               .vec = (uint64_t)(uintptr_t)regions,
                               .vec_len = REGIONS};
    if (kind == SK_GUARD) {
      scan.category_mask = IS_GUARD;
    } else {
      if (kind == SK_PRIVATE)
        scan.category_mask = scan.category_inverted = IS_FILE | IS_PFNZERO;
      scan.category_anyof_mask = IS_PRESENT | IS_SWAPPED;
      scan.return_mask = knows_guards ? IS_GUARD : 0;
    }
    int found = ioctl(fd, SCAN_IOCTL, &scan);
    if (found < 0) {
      if (errno == EINVAL && knows_guards) { /* Linux before 6.15 has no IS_GUARD */
        if (kind == SK_GUARD)
          break;
        knows_guards = 0;
        continue;
      }
      if (errno == EINTR)
        continue;
      break; /* no PAGEMAP_SCAN */
    }
    for (int i = 0; i < found; i++) {
      if (kind != SK_GUARD && (regions[i].categories & IS_GUARD))
        continue;
      if (kind != SK_GUARD && !knows_guards) {
        /* A guard looks like a swapped page; the entries tell them apart. */
        int64_t got = scan_entries(fd, regions[i].start, regions[i].end, page_size, kind, runs,
                                   capacity, count);
        if (got < 0 || (uint64_t)got < regions[i].end)
          return got;
      } else if (!append(runs, capacity, count, regions[i].start, regions[i].end)) {
        return (int64_t)regions[i].start;
      }
    }
    start = scan.walk_end;
  }
  if (start >= end)
    return (int64_t)end;
  return scan_entries(fd, start, end, page_size, kind, runs, capacity, count);
}
