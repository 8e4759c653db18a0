// Number of ones of a word.
#pragma once

#include <cstdint>

namespace {

#if defined(__AVX2__)
// With -mavx2 this is the instruction popcnt.
inline uint64_t n_ones(uint64_t x) { return static_cast<uint64_t>(__builtin_popcountll(x)); }
#else
// Without the instruction the compiler would call a function; these operations are vectorized.
inline uint64_t n_ones(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  x += x >> 8;
  x += x >> 16;
  return (x + (x >> 32)) & 0xffu;
}
#endif

}  // namespace
