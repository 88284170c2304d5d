// Prefetching memory that is needed later.
#pragma once

#include <cstddef>

#include "simd.h"

constexpr size_t kLineBytes = 64;  // of a cache line

// Prefetches a little at each step of a loop that works on something else.
struct Fetch {
  const char* next;
  size_t step;  // bytes
};
NASH_INLINE void fetch(Fetch& ahead) {
  __builtin_prefetch(ahead.next, 0, 2);
  ahead.next += ahead.step;
}
