#include <stddef.h>
#include <stdint.h>

/* Memory of another process. A run is a pair of words: address, length. All functions return 0 or
 * -errno; after a failure failed[0] is the address that could not be read or written. */

/* Copy the runs, one after the other, into the buffer, by /proc/PID/mem (descriptor mem_fd), which
 * reads what the process itself may not, such as PROT_NONE areas. Not by process_vm_readv(2): that
 * pins pages, and a pinned page of a forked process is copied first. */
long sk_read_runs(int mem_fd, const uint64_t *runs, size_t count, uint8_t *buffer,
                  uint64_t *failed);

/* The reverse: process_vm_writev(2), and /proc/PID/mem for pages that are not writable. */
long sk_write_runs(int pid, int mem_fd, const uint64_t *runs, size_t count, const uint8_t *buffer,
                   uint64_t *failed);

/* The same, for those pages only that differ from what is there. */
long sk_write_changed(int pid, int mem_fd, const uint64_t *runs, size_t count,
                      const uint8_t *buffer, uint64_t *failed);

/* Kinds of pages:
 *   SK_PRIVATE: pages of its own that the process has (present or swapped, not of a file, not the
 *               zero page, not a guard): their content is nowhere else
 *   SK_GUARD:   guard pages (MADV_GUARD_INSTALL, Linux 6.13)
 *   SK_ANY:     all that its page table holds */
enum { SK_PRIVATE = 0, SK_GUARD = 1, SK_ANY = 2 };

/* Find pages in [start, end) by /proc/PID/pagemap (descriptor pagemap_fd).
 * Appends runs to `runs` (at most `capacity`), *count says how many there are; returns the
 * address up to which it got, or -errno. PAGEMAP_SCAN (Linux 6.7) where the kernel has it, unless
 * `plain`. */
int64_t sk_scan_pages(int pagemap_fd, uint64_t start, uint64_t end, uint64_t page_size, int kind,
                      int plain, uint64_t *runs, size_t capacity, size_t *count);
