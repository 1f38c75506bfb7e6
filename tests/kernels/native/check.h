// Reports a condition that does not hold, and goes on.
#pragma once

#include <cstdio>

inline int failures = 0;

inline void check(bool holds, const char* condition, const char* file, int line) {
  constexpr int kShown = 20;  // a loop over all bit patterns can fail many thousand times
  if (holds || ++failures > kShown) return;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, condition);
}
#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)
