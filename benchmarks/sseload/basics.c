// Failing, time, memory, and texts that grow.
#include "sseload.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  fputs("sseload: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  exit(2);
}

u64 now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (u64)time.tv_sec * SECOND + (u64)time.tv_nsec;
}

void* zeroed(size_t count, size_t size) {
  void* memory = calloc(count ? count : 1, size);
  if (!memory) fail("out of memory");
  return memory;
}

void append(struct text* text, const char* bytes, size_t size) {
  if (text->size + size + 1 > text->room) {
    text->room = 2 * (text->size + size + 1);
    text->bytes = realloc(text->bytes, text->room);
    if (!text->bytes) fail("out of memory");
  }
  if (size) memcpy(text->bytes + text->size, bytes, size);
  text->size += size;
  text->bytes[text->size] = 0;
}

void append_string(struct text* text, const char* string) { append(text, string, strlen(string)); }

void append_number(struct text* text, u64 number) {
  char digits[24];
  append(text, digits, (size_t)sprintf(digits, "%llu", (unsigned long long)number));
}
