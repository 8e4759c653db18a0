// One pass of a selection: scores are counted around two pivots, and the few strictly between them
// are copied out. Comparisons take -0 and +0 as one score and NaN as none.
#pragma once

#include "../w2s.h"
#include "vec.h"

namespace {

template <bool KEEP, class T>
inline int64_t partition_of(const w2s::Scores& s, int64_t begin, int64_t end, float low, float high,
                            w2s::Parts& parts, float* inside) {
  const T* x = static_cast<const T*>(s.x);
  const Vec l = set(low), h = set(high);
  constexpr unsigned all = (1u << Vec::W) - 1;
  w2s::Parts p{};
  int64_t i = begin, n = 0;
  for (; i + Vec::W <= end; i += Vec::W) {
    const Vec v = load(x + i);
    const unsigned in = KEEP ? nonzero(s.keep + i) : all;
    p.below += ones(less(v, l) & in);
    p.at_low += ones(equal(v, l) & in);
    p.at_high += ones(equal(v, h) & in);
    p.above += ones(less(h, v) & in);
    n += compress(inside + n, v, less(l, v) & less(v, h) & in);
    if (KEEP) p.kept += ones(in);
  }
  if (!KEEP) p.kept += i - begin;
  for (; i < end; ++i) {
    if (KEEP && s.keep[i] == 0) continue;
    const float v = widen(x[i]);
    p.below += v<low, p.at_low += v == low, p.at_high += v == high, p.above += v> high;
    if (low < v && v < high) inside[n++] = v;
    ++p.kept;
  }
  parts.below += p.below, parts.at_low += p.at_low, parts.kept += p.kept;
  parts.at_high += p.at_high, parts.above += p.above;
  return n;
}

template <bool KEEP>
inline int64_t partition_dtype(const w2s::Scores& s, int64_t begin, int64_t end, float low,
                               float high, w2s::Parts& parts, float* inside) {
  switch (s.dtype) {
    case w2s::kF32:
      return partition_of<KEEP, float>(s, begin, end, low, high, parts, inside);
    case w2s::kBF16:
      return partition_of<KEEP, BF16>(s, begin, end, low, high, parts, inside);
    default:
      return partition_of<KEEP, F16>(s, begin, end, low, high, parts, inside);
  }
}

int64_t partition(const w2s::Scores& s, int64_t begin, int64_t end, float low, float high,
                  w2s::Parts& parts, float* inside) {
  return s.keep == nullptr ? partition_dtype<false>(s, begin, end, low, high, parts, inside)
                           : partition_dtype<true>(s, begin, end, low, high, parts, inside);
}

}  // namespace
