// Loads and stores of fewer than W elements where the ISA has no masks: through a small buffer.
#pragma once

namespace {

template <class T>
inline Vec load(const T* p, int64_t n, float fill) {
  float buffer[Vec::W];
  for (int64_t i = 0; i < Vec::W; ++i) buffer[i] = i < n ? widen(p[i]) : fill;
  return load(buffer);
}
template <class T>
inline void store(T* p, Vec a, int64_t n) {
  float buffer[Vec::W];
  store(buffer, a);
  for (int64_t i = 0; i < n; ++i) narrow_to(p[i], buffer[i]);
}

}  // namespace
