#include "pages.h"

#include <string.h>

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

/* Blocks keep both sides of the transposition in the first-level cache. */
enum { BLOCK = 1024 };

#define TRANSPOSE(WIDTH)                                                                           \
  static void shuffle##WIDTH(const uint8_t *from, uint8_t *to, size_t count) {                     \
    for (size_t block = 0; block < count; block += BLOCK) {                                        \
      size_t end = block + BLOCK < count ? block + BLOCK : count;                                  \
      for (size_t byte = 0; byte < WIDTH; byte++)                                                  \
        for (size_t i = block; i < end; i++)                                                       \
          to[byte * count + i] = from[i * WIDTH + byte];                                           \
    }                                                                                              \
  }                                                                                                \
  static void unshuffle##WIDTH(const uint8_t *from, uint8_t *to, size_t count) {                   \
    for (size_t block = 0; block < count; block += BLOCK) {                                        \
      size_t end = block + BLOCK < count ? block + BLOCK : count;                                  \
      for (size_t i = block; i < end; i++)                                                         \
        for (size_t byte = 0; byte < WIDTH; byte++)                                                \
          to[i * WIDTH + byte] = from[byte * count + i];                                           \
    }                                                                                              \
  }
TRANSPOSE(2)
TRANSPOSE(4)
TRANSPOSE(8)

void sk_shuffle(const uint8_t *from, uint8_t *to, size_t length, size_t width) {
  size_t count = length / width;
  if (width == 2)
    shuffle2(from, to, count);
  else if (width == 4)
    shuffle4(from, to, count);
  else
    shuffle8(from, to, count);
  memcpy(to + count * width, from + count * width, length - count * width);
}

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
