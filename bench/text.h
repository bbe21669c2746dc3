/* What stands in a piece of JSON, found without reading all of it; good enough where both ends are ours. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static inline const char *value_of(const char *body, const char *name) {
  const char *at = strstr(body, name);
  if (!at) return NULL;
  for (at += strlen(name); *at == ' ' || *at == ':'; at++) {}
  return at;
}

static inline int number_of(const char *body, const char *name, int otherwise) {
  const char *at = value_of(body, name);
  return at ? atoi(at) : otherwise;
}

static inline bool is_true(const char *body, const char *name) {
  const char *at = value_of(body, name);
  return at && !strncmp(at, "true", 4);
}

static inline int count_of(const char *text, const char *what) {
  int count = 0;
  for (const char *at = text; at && (at = strstr(at, what)); at += strlen(what)) count++;
  return count;
}
