// The softmax of a row: dense targets that are given as logits.
#pragma once

#include "row_sums.h"

namespace {

// q = e^(t - p.at), with the factor 2^lo of the point; returns the sum.
template <bool EXACT, class T>
inline float exp_row(const T* t, float* q, int64_t v, const Point& p) {
  float total = 0;
  for (int64_t b = 0; b < v; b += kBlock) {
    const int64_t end = v - b < kBlock ? v : b + kBlock;
    Vec s0 = set(0), s1 = set(0);
    int64_t i = b;
    for (; i + 2 * Vec::W <= end; i += 2 * Vec::W) {
      const Vec e0 = exp2_of<5>(exponent<EXACT>(load(t + i), p));
      const Vec e1 = exp2_of<5>(exponent<EXACT>(load(t + i + Vec::W), p));
      store(q + i, e0);
      store(q + i + Vec::W, e1);
      s0 = s0 + e0, s1 = s1 + e1;
    }
    for (; i < end; i += Vec::W) {
      const int64_t n = end - i < Vec::W ? end - i : Vec::W;
      const Vec e = exp2_of<5>(exponent<EXACT>(load(t + i, n, -INFINITY), p));
      store(q + i, e, n);
      s0 = s0 + e;
    }
    total += sum(s0 + s1);
  }
  return total;
}

// q = softmax(t), of sum 1 to the rounding of a sum; NaN where a logit is NaN or none is finite.
template <class T>
inline void softmax_row(const T* t, float* q, int64_t v) {
  const Point p = point(block_max(t, v));
  const float total = kFused && !p.exact ? exp_row<!kFused>(t, q, v, p) : exp_row<true>(t, q, v, p);
  const Vec share = set(1 / total);
  for (int64_t i = 0; i < v; i += Vec::W) {
    const int64_t n = v - i < Vec::W ? v - i : Vec::W;
    store(q + i, load(q + i, n, 0) * share, n);
  }
}

}  // namespace
