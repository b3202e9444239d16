/* What the C programs check with: the line of the first surprise ends them. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moco.h"

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition);      \
      exit(1);                                                             \
    }                                                                      \
  } while (0)
#define OK(call) ok((call), __LINE__)
#define FAILS(call, code, part) fails((call), (code), (part), __LINE__)

static void ok(moco_error *error, int line) {
  if (error != NULL) {
    fprintf(stderr, "line %d: %s\n", line, moco_error_message(error));
    exit(1);
  }
}

static void fails(moco_error *error, moco_code code, const char *part, int line) {
  if (error == NULL || moco_error_code(error) != code || strstr(moco_error_message(error), part) == NULL) {
    fprintf(stderr, "line %d: expected code %u with `%s`, got %u: %s\n", line, (unsigned)code, part,
            (unsigned)moco_error_code(error), moco_error_message(error));
    exit(1);
  }
  moco_error_free(error);
}

static const char *in(const char *folder, const char *name) {
  static char path[8][4096];
  static int next = 0;
  next = (next + 1) % 8;
  snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
  return path[next];
}

#endif /* CHECK_H */
