/* The clock, and times of which the median is wanted. */
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

struct times {
  double *at;
  size_t size, room;
};

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void note(struct times *of, uint64_t since_ns) {
  if (of->size == of->room) of->at = realloc(of->at, (of->room = 2 * of->room + 1024) * sizeof(double));
  of->at[of->size++] = (double)(now_ns() - since_ns) / 1e6;
}

static inline int in_order(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static inline double quantile(struct times *of, double q) {
  if (!of->size) return 0;
  qsort(of->at, of->size, sizeof(double), in_order);
  return of->at[(size_t)(q * (double)(of->size - 1))];
}
