// The mask of the largest scores once their threshold is known: ties are taken from the front.
#include <algorithm>
#include <numeric>
#include <vector>

#include "scores.h"

namespace w2s {
namespace {

constexpr int64_t kBlock = 1 << 14;

template <class T>
CountAt count_at_of(const Scores& s, const T* x, int64_t lo, int64_t hi, float at) {
  CountAt t{0, 0};
  for (int64_t b = lo; b < hi; b += kBlock) {
    int32_t above = 0, equal = 0;  // as wide as the scores, so the compiler counts across lanes
    const int64_t end = std::min(hi, b + kBlock);
    for (int64_t i = b; i < end; ++i) {
      const float f = widen(x[i]);
      const int32_t in = is_counted(s, i) ? 1 : 0;
      above += f > at ? in : 0;
      equal += f == at ? in : 0;
    }
    t.above += above, t.equal += equal;
  }
  return t;
}

// Marks scores [lo, hi), of which `equal` tie with the threshold; the first `ties` of them are
// included.
template <class T>
void threshold_mask_of(const Scores& s, const T* x, int64_t lo, int64_t hi, float at, int64_t equal,
                       int64_t ties, uint8_t* mask) {
  if (ties <= 0 || ties >= equal) {
    const uint8_t tie = ties > 0 ? 1 : 0;
    for (int64_t i = lo; i < hi; ++i) {
      const float f = widen(x[i]);
      mask[i] = (f > at ? uint8_t{1} : uint8_t{0}) | (f == at ? tie : uint8_t{0});
    }
    for (int64_t i = lo; s.keep != nullptr && i < hi; ++i) mask[i] &= s.keep[i] != 0 ? 1 : 0;
    return;
  }
  for (int64_t i = lo; i < hi; ++i) {
    const float f = widen(x[i]);
    const bool tie = f == at && is_counted(s, i);
    mask[i] = (f > at && is_counted(s, i)) || (tie && ties > 0) ? 1 : 0;
    ties -= tie ? 1 : 0;
  }
}

}  // namespace

CountAt count_at(const Scores& s, float at) {
  return reduce<CountAt>(
      s.n,
      [&](int64_t lo, int64_t hi) {
        return typed(s, [&](auto x) { return count_at_of(s, x, lo, hi, at); });
      },
      [](CountAt& sum, CountAt part) { sum.above += part.above, sum.equal += part.equal; });
}

void threshold_mask(const Scores& s, float at, int64_t ties, uint8_t* mask) {
  // A block needs the number of ties before it, on any thread.
  const int64_t blocks = (s.n + kBlock - 1) / kBlock;
  std::vector<int64_t> equal(static_cast<std::size_t>(blocks));
  const auto end_of = [&](int64_t b) { return std::min(s.n, (b + 1) * kBlock); };
  auto count = [&](int64_t lo, int64_t hi) {
    typed(s, [&](auto x) {
      for (int64_t b = lo; b < hi; ++b) {
        equal[b] = count_at_of(s, x, b * kBlock, end_of(b), at).equal;
      }
    });
  };
  parallel_rows(blocks, kGrain / kBlock, count);
  std::vector<int64_t> before(equal.size());
  std::partial_sum(equal.begin(), equal.end(), before.begin());
  auto write = [&](int64_t lo, int64_t hi) {
    typed(s, [&](auto x) {
      for (int64_t b = lo; b < hi; ++b) {
        const int64_t left = ties - (before[b] - equal[b]);
        threshold_mask_of(s, x, b * kBlock, end_of(b), at, equal[b], left, mask);
      }
    });
  };
  parallel_rows(blocks, kGrain / kBlock, write);
}

}  // namespace w2s
