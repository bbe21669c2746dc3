/* A growing piece of memory. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct bytes {
  char *at;
  size_t size, room;
};

static inline void append(struct bytes *to, const char *from, size_t size) {
  if (to->size + size + 1 > to->room) {
    to->room = 2 * (to->size + size + 1);
    to->at = realloc(to->at, to->room);
  }
  memcpy(to->at + to->size, from, size);
  to->at[to->size += size] = 0;
}
