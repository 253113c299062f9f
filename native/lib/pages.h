#include <stddef.h>
#include <stdint.h>

/* Mark which pages of a buffer hold anything but zeros: map[i] becomes 1 or 0. Returns how many
 * do. */
size_t sk_nonzero_pages(const uint8_t *buffer, size_t pages, size_t page_size, uint8_t *map);

/* Move the pages that the map marks to the front of the buffer. Returns how many there are. */
size_t sk_squeeze_pages(uint8_t *buffer, size_t pages, size_t page_size, const uint8_t *map);

/* How many pages of a mapping are in memory, mincore(2), or a negative errno. */
long sk_resident_pages(const uint8_t *address, size_t length);

/* Byte transposition of elements of `width` bytes (2, 4, 8): all first bytes, then all second
 * bytes, and so on; what does not fill an element is copied to the end. Numbers compress better
 * that way. */
void sk_shuffle(const uint8_t *from, uint8_t *to, size_t length, size_t width);

/* Undo sk_shuffle. */
void sk_unshuffle(const uint8_t *from, uint8_t *to, size_t length, size_t width);
