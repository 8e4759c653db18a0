// InfoNCE's pass over one query: rules, sum over the negatives, record, gradient in place.
//
// The rules and the positive are applied by writing -inf over the similarities; what follows needs
// no mask. Every step is a loop over a row that lies in the cache: all of them together cost a few
// per cent of the three products.
#pragma once

#include "../contrastive.h"
#include "row_sums.h"

namespace {

inline void exclude(const Contrastive& c, int64_t i, float positive, float* s) {
  if (c.query_groups != nullptr) {
    const int64_t own = c.query_groups[i];
    const int64_t* const groups = c.document_groups;
    if (c.within) {
      for (int64_t j = 0; j < c.m; ++j) s[j] = groups[j] == own ? s[j] : -INFINITY;
    } else {
      for (int64_t j = 0; j < c.m; ++j) s[j] = groups[j] == own ? -INFINITY : s[j];
    }
  }
  if (c.mask != nullptr) {
    const uint8_t* const mask = c.mask + i * c.m;
    for (int64_t j = 0; j < c.m; ++j) s[j] = mask[j] != 0 ? s[j] : -INFINITY;
  }
  if (c.margin != INFINITY) {
    const float most = positive + c.margin;
    for (int64_t j = 0; j < c.m; ++j) s[j] = s[j] > most ? -INFINITY : s[j];  // NaN stays
  }
}

// The largest similarity, and how many are not -inf.
inline float hardest_of(const float* s, int64_t m, int64_t& negatives) {
  const Vec none = set(-INFINITY);
  Vec top = none;
  int64_t gone = 0, j = 0;
  for (; j + Vec::W <= m; j += Vec::W) {
    const Vec x = load(s + j);
    top = vmax(top, x);
    gone += ones(equal(x, none));
  }
  if (j < m) {  // past the end: -inf, which is not counted below
    const Vec x = load(s + j, m - j, -INFINITY);
    top = vmax(top, x);
    gone += ones(equal(x, none)) - (Vec::W - (m - j));
  }
  negatives = m - gone;
  return max_of(top);
}

// Sum of e = 2^(by (s - origin)); with KEEP they replace s.
template <bool KEEP>
inline float exponentials(float* s, int64_t m, float origin, float by) {
  const Vec at = set(origin), factor = set(by);
  float total = 0;
  for (int64_t b = 0; b < m; b += kBlock) {
    const int64_t end = m - b < kBlock ? m : b + kBlock;
    Vec s0 = set(0), s1 = set(0);
    int64_t j = b;
    for (; j + 2 * Vec::W <= end; j += 2 * Vec::W) {
      const Vec e0 = exp2_of<5>((load(s + j) - at) * factor);
      const Vec e1 = exp2_of<5>((load(s + j + Vec::W) - at) * factor);
      if (KEEP) store(s + j, e0), store(s + j + Vec::W, e1);
      s0 = s0 + e0, s1 = s1 + e1;
    }
    for (; j < end; j += Vec::W) {
      const int64_t n = end - j < Vec::W ? end - j : Vec::W;
      const Vec e = exp2_of<5>((load(s + j, n, -INFINITY) - at) * factor);
      if (KEEP) store(s + j, e, n);
      s0 = s0 + e;
    }
    total += sum(s0 + s1);
  }
  return total;
}

template <class T>
inline void fill_row(T* g, int64_t m, float x) {
  for (int64_t j = 0; j < m; ++j) narrow_to(g[j], x);
}

template <class T>
inline void contrastive_row(const Contrastive& c, int64_t i) {
  T* const g = c.grad == nullptr ? nullptr : static_cast<T*>(c.grad) + i * c.grad_stride;
  const int64_t at = c.positives[i];
  if (at < 0 || at >= c.m) {
    const PairRow row = at < 0 ? PairRow{} : broken_row();
    write_pair_stats(c, i, row);
    if (g != nullptr) fill_row(g, c.m, row.slope);
    return;
  }
  float* const s = c.similarities + i * c.stride;
  const float positive = s[at];
  exclude(c, i, positive, s);
  s[at] = -INFINITY;
  int64_t negatives = 0;
  const float hardest = hardest_of(s, c.m, negatives);
  const float origin = hardest == -INFINITY ? 0 : hardest, by = c.scale * kLog2E;
  const float total = g != nullptr ? exponentials<true>(s, c.m, origin, by)
                                   : exponentials<false>(s, c.m, origin, by);
  const PairRow row = pair_row(c, positive, hardest, total, static_cast<float>(negatives));
  write_pair_stats(c, i, row);
  if (g == nullptr) return;
  const float weight = c.weight == nullptr ? 1 : c.weight[i];
  const Vec share = set(weight * row.share);
  for (int64_t j = 0; j < c.m; j += Vec::W) {
    const int64_t n = c.m - j < Vec::W ? c.m - j : Vec::W;
    if (n == Vec::W) {
      store(g + j, plain_nan(load(s + j) * share));
    } else {
      store(g + j, plain_nan(load(s + j, n, 0) * share), n);
    }
  }
  narrow_to(g[at], -weight * row.slope);
}

inline void contrastive_range(const Contrastive& c, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    switch (c.dtype) {
      case w2s::kF32:
        contrastive_row<float>(c, i);
        break;
      case w2s::kBF16:
        contrastive_row<BF16>(c, i);
        break;
      default:
        contrastive_row<F16>(c, i);
    }
  }
}

}  // namespace
