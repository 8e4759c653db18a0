// The write pass over one row: its gradient from the logits and a few numbers of the row.
#pragma once

#include "row_sums.h"

namespace {

template <int64_t N, class T>
inline void prefetch_all(const T* p) {
  for (size_t b = 0; b < N * sizeof(T); b += 64) prefetch(reinterpret_cast<const char*>(p) + b);
}

// Elements before the first cache line that starts inside p[0..v), v if there is none.
template <class T>
inline int64_t to_line(const T* p, int64_t v) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % 64 / sizeof(T));
  const int64_t left = past == 0 ? 0 : static_cast<int64_t>(64 / sizeof(T)) - past;
  return left < v ? left : v;
}

// g = prob e^(z - max) - weak q - flat for a whole row; g may be z. STREAM writes past the caches.
// Otherwise `next`, the row this thread reads after this one, is prefetched during the arithmetic,
// which pays only while there is no second read or write stream.
template <bool DENSE, bool STREAM, bool EXACT, class T, class U>
inline void write_gradient_of(const T* z, const U* q, T* g, int64_t v, Point at, float prob,
                              float weak, float flat, const T* next, const U* next_q) {
  constexpr bool split = Split<T, U>::value;
  constexpr bool fetch = !STREAM && !(DENSE && sizeof(U) == sizeof(float));
  const float top = exp2_at<Degree<T>::grad>(at.lo);
  const Vec p = set(prob / top), w = set(-weak), c = set(-flat);
  const auto one = [&](Vec x, Vec t) {
    const Vec e = exp2_of<Degree<T>::grad>(exponent<EXACT>(x, at));
    return fma(e, p, DENSE ? fma(t, w, c) : c);
  };
  const auto edge = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += Vec::W) {
      const int64_t n = to - i < Vec::W ? to - i : Vec::W;
      store(g + i, one(load(z + i, n, at.at), DENSE ? load(q + i, n, 0) : c), n);
    }
  };
  constexpr int64_t step = 4 * Vec::W;
  Vec za, zb, qa = c, qb = c;
  int64_t i = STREAM ? to_line(g, v) : 0;
  edge(0, i);
  for (; i + step <= v; i += step) {
    if (fetch) prefetch_all<step>(next + i);
    if (fetch && DENSE) prefetch_all<step>(next_q + i);
    for (int64_t j = i; j < i + step; j += 2 * Vec::W) {
      load_two<split>(z + j, za, zb);
      if (DENSE) load_two<split>(q + j, qa, qb);
      store_two<split, STREAM>(g + j, one(za, qa), one(zb, qb));
    }
  }
  edge(i, v);
  if (STREAM) end_stream();
}

template <bool DENSE, bool STREAM, class T, class U>
inline void write_gradient(const T* z, const U* q, T* g, int64_t v, float max, float prob,
                           float weak, float flat, const T* next, const U* next_q) {
  if (prob != prob) {  // all of the row is NaN
    for (int64_t i = 0; i < v; ++i) narrow_to(g[i], NAN);
    return;
  }
  const Point at = point(max);
  const auto write = kFused && !at.exact ? write_gradient_of<DENSE, STREAM, !kFused, T, U>
                                         : write_gradient_of<DENSE, STREAM, true, T, U>;
  write(z, q, g, v, at, prob, weak, flat, next, next_q);
}

// Multiplies a finished row, when a gate closes late and the targets do not sum to 1.
template <class T>
inline void rescale(T* g, int64_t v, float by) {
  for (int64_t i = 0; i < v; i += Vec::W) {
    const int64_t n = v - i < Vec::W ? v - i : Vec::W;
    store(g + i, plain_nan(load(g + i, n, 0) * set(by)), n);
  }
}

}  // namespace
