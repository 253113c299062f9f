#include "pages.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

size_t sk_nonzero_pages(const uint8_t *buffer, size_t pages, size_t page_size, uint8_t *map) {
  size_t count = 0;
  for (size_t i = 0; i < pages; i++) {
    const uint8_t *page = buffer + i * page_size;
    /* Equal to itself shifted by one byte, and the first byte is zero: all are zero. */
    map[i] = page[0] != 0 || memcmp(page, page + 1, page_size - 1) != 0;
    count += map[i];
  }
  return count;
}

size_t sk_squeeze_pages(uint8_t *buffer, size_t pages, size_t page_size, const uint8_t *map) {
  size_t kept = 0;
  for (size_t i = 0; i < pages; i++)
    if (map[i]) {
      if (kept != i)
        memcpy(buffer + kept * page_size, buffer + i * page_size, page_size);
      kept++;
    }
  return kept;
}

long sk_resident_pages(const uint8_t *address, size_t length) {
  unsigned char found[4096];
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  long count = 0;
  for (size_t start = 0; start < length; start += sizeof(found) * page) {
    size_t part = length - start < sizeof(found) * page ? length - start : sizeof(found) * page;
    if (mincore((void *)(address + start), part, found) != 0)
      return -errno;
    for (size_t i = 0; i * page < part; i++)
      count += found[i] & 1;
  }
  return count;
}

/* The transposition halves elements until they are bytes: 8 -> 4+4 -> 2+2+2+2 -> single bytes.
 * Each step is a loop with a stride of two, which compilers turn into vector code on every
 * architecture. A block of elements and its halves stay in the first-level cache. */
enum { BLOCK = 512 };

#define SPLIT(TYPE)                                                                                \
  static inline void split_##TYPE(const TYPE *restrict from, TYPE *restrict even,                  \
                                  TYPE *restrict odd, size_t count) {                              \
    for (size_t i = 0; i < count; i++) {                                                           \
      even[i] = from[2 * i];                                                                       \
      odd[i] = from[2 * i + 1];                                                                    \
    }                                                                                              \
  }
SPLIT(uint32_t)
SPLIT(uint16_t)
SPLIT(uint8_t)

/* A block of any width; its part of each byte plane starts at to + plane * stride. */
static void shuffle_block(const uint8_t *from, uint8_t *to, size_t count, size_t stride,
                          size_t width) {
  uint32_t words[BLOCK * 2];
  uint16_t halves[2][BLOCK * 2], quarters[4][BLOCK];
  memcpy(words, from, count * width);
  if (width == 8) {
    uint32_t low[BLOCK], high[BLOCK];
    split_uint32_t(words, low, high, count);
    memcpy(halves[0], low, count * 4);
    memcpy(halves[1], high, count * 4);
  } else {
    memcpy(halves[0], words, count * width);
  }
  if (width == 2)
    memcpy(quarters[0], halves[0], count * 2);
  else
    for (size_t i = 0; i < width / 4; i++)
      split_uint16_t(halves[i], quarters[2 * i], quarters[2 * i + 1], count);
  for (size_t i = 0; i < width / 2; i++)
    split_uint8_t((const uint8_t *)quarters[i], to + 2 * i * stride, to + (2 * i + 1) * stride,
                  count);
}

void sk_shuffle(const uint8_t *from, uint8_t *to, size_t length, size_t width) {
  size_t count = length / width;
  for (size_t start = 0; start < count; start += BLOCK) {
    size_t part = count - start < BLOCK ? count - start : BLOCK;
    shuffle_block(from + start * width, to + start, part, count, width);
  }
  memcpy(to + count * width, from + count * width, length - count * width);
}

#define UNSHUFFLE(WIDTH)                                                                           \
  static void unshuffle##WIDTH(const uint8_t *restrict from, uint8_t *restrict to, size_t count) { \
    for (size_t start = 0; start < count; start += BLOCK) {                                        \
      size_t end = count - start < BLOCK ? count : start + BLOCK;                                  \
      for (size_t i = start; i < end; i++)                                                         \
        for (size_t byte = 0; byte < WIDTH; byte++)                                                \
          to[i * WIDTH + byte] = from[byte * count + i];                                           \
    }                                                                                              \
  }
UNSHUFFLE(2)
UNSHUFFLE(4)
UNSHUFFLE(8)

void sk_unshuffle(const uint8_t *from, uint8_t *to, size_t length, size_t width) {
  size_t count = length / width;
  if (width == 2)
    unshuffle2(from, to, count);
  else if (width == 4)
    unshuffle4(from, to, count);
  else
    unshuffle8(from, to, count);
  memcpy(to + count * width, from + count * width, length - count * width);
}
