// Exact order statistics of any number of scores, without sorting them.
//
// Many scores: a sample gives two pivots between which the target rank lies, with a margin. One
// pass counts the scores around the pivots and copies out the few between them, where the search
// goes on (Floyd and Rivest, "Expected time bounds for selection", CACM 18, 1975). The counts are
// exact, so a misleading sample is detected, and three rounds of histograms are used instead.
// Few scores: a radix select in place.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../row_math.h"
#include "scores.h"

namespace w2s {
namespace {

constexpr int64_t kFew = 4096;  // up to here a radix select is faster than a sample and a pass
constexpr int64_t kSmall = 64;  // up to here a selection by comparison is faster
constexpr int64_t kBlock = 4096;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Either a fraction of the kept scores or a rank among them.
struct Target {
  double q;
  int64_t rank;  // -1: q

  double position(int64_t kept) const {
    return rank >= 0 ? static_cast<double>(rank) : q * static_cast<double>(kept - 1);
  }
};

// Order statistics `rank` and `rank + 1` (the same one twice if there is no next).
struct Pair {
  float at, next;
};

struct Selected {
  int64_t kept;
  bool nan;
  Pair pair;  // valid if there is a score of the target rank and no NaN
};

Selected select(const Scores& s, const Target& target);

// The target rank, or -1 where it does not exist.
int64_t rank_in(const Target& target, int64_t kept) {
  const double position = target.position(kept);
  return position >= 0 && position < static_cast<double>(kept) ? static_cast<int64_t>(position)
                                                               : -1;
}

// Keys of a few scores, narrowed to the bin of the target rank in place.
Pair narrow(uint32_t* keys, int64_t m, int64_t rank) {
  struct Round {
    int shift, bits;
  };
  uint32_t after = 0xffffffffu;  // smallest key above the bins chosen so far
  for (const Round round : {Round{21, 11}, Round{10, 11}, Round{0, 10}}) {
    if (m <= kSmall) break;
    int32_t counts[kBins] = {};
    const uint32_t mask = (1u << round.bits) - 1;
    for (int64_t i = 0; i < m; ++i) ++counts[(keys[i] >> round.shift) & mask];
    uint32_t bin = 0;
    while (counts[bin] <= rank) rank -= counts[bin++];
    int64_t left = 0;
    for (int64_t i = 0; i < m; ++i) {
      const uint32_t key = keys[i], digit = (key >> round.shift) & mask;
      after = digit > bin && key < after ? key : after;
      keys[left] = key;
      left += digit == bin ? 1 : 0;
    }
    m = left;
  }
  std::nth_element(keys, keys + rank, keys + m);
  const uint32_t at = keys[rank];
  uint32_t next = rank + 1 < m ? *std::min_element(keys + rank + 1, keys + m) : after;
  if (next == 0xffffffffu) next = at;
  return {score_of(at), score_of(next)};
}

template <class T>
Selected select_few(const Scores& s, const T* x, const Target& target) {
  uint32_t keys[kFew];
  Selected r{0, false, {0, 0}};
  for (int64_t i = 0; i < s.n; ++i) {
    const float f = widen(x[i]) + 0.0f;  // -0 and +0 are one score
    const bool in = is_counted(s, i);
    keys[r.kept] = key_of(f);
    r.kept += in ? 1 : 0;
    r.nan |= in && f != f;
  }
  const int64_t rank = rank_in(target, r.kept);
  if (!r.nan && rank >= 0) r.pair = narrow(keys, r.kept, rank);
  return r;
}

struct Bracket {
  float low, high;
  int64_t room;  // more scores than should lie between them
};

// Position in a shuffled order, the same in every run.
uint64_t mix(uint64_t i) {
  i = (i ^ (i >> 31)) * 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 29)) * 0xbf58476d1ce4e5b9u;
  return i ^ (i >> 32);
}

// One score from each of many equal stretches, from a scrambled place in it.
template <class T>
std::vector<float> sample_of(const Scores& s, const T* x, int64_t size) {
  std::vector<float> sample;
  sample.reserve(static_cast<std::size_t>(size));
  const int64_t stretch = s.n / size;
  for (int64_t j = 0; j < size; ++j) {
    const auto offset = mix(static_cast<uint64_t>(j)) % static_cast<uint64_t>(stretch);
    const int64_t i = j * stretch + static_cast<int64_t>(offset);
    const float f = widen(x[i]);
    if (is_counted(s, i) && f == f) sample.push_back(f);
  }
  return sample;
}

// Five standard deviations of the sample's rank on either side. Reading a sampled score costs some
// fifteen times as much as one in sequence, and so does each score left between the pivots.
Bracket bracket(const Scores& s, const Target& target) {
  const double n = static_cast<double>(s.n);
  const int64_t size = static_cast<int64_t>(0.4 * std::pow(n, 2.0 / 3.0));
  std::vector<float> sample = typed(s, [&](auto x) { return sample_of(s, x, size); });
  const int64_t m = static_cast<int64_t>(sample.size());
  if (m < kSmall) return {-kInfinity, kInfinity, s.n / 16};
  const double kept = n * static_cast<double>(m) / static_cast<double>(size);
  double q = target.rank >= 0 ? static_cast<double>(target.rank) / kept : target.q;
  q = std::min(1.0, std::max(0.0, q));
  double spread = std::sqrt(static_cast<double>(m) * q * (1 - q));
  // A rank counts kept scores, whose number is an estimate too.
  if (target.rank >= 0 && s.keep != nullptr) spread += q * std::sqrt(static_cast<double>(m));
  const int64_t middle = static_cast<int64_t>(q * static_cast<double>(m - 1));
  const int64_t margin = static_cast<int64_t>(5 * spread) + 4;
  const int64_t low = middle - margin, high = middle + margin + 1;
  const auto begin = sample.begin(), end = sample.end();
  Bracket b{-kInfinity, kInfinity, 0};
  if (low >= 0) {
    std::nth_element(begin, begin + low, end);
    b.low = sample[low];
  }
  if (high < m) {
    std::nth_element(begin + std::max<int64_t>(low, 0), begin + high, end);
    b.high = sample[high];
  }
  b.room = static_cast<int64_t>(3 * static_cast<double>(margin) * kept / static_cast<double>(m));
  b.room = std::min(s.n, b.room + kBlock);
  return b;
}

// All scores around the pivots; those between them in `inside` as far as there is room, and their
// number.
Parts split(const Scores& s, const Bracket& b, float* inside, std::atomic<int64_t>& n_inside) {
  const auto range = [&](int64_t lo, int64_t hi) {
    Parts mine{};
    float buffer[kBlock + 16];
    for (int64_t at = lo; at < hi; at += kBlock) {
      const int64_t end = std::min(hi, at + kBlock);
      const int64_t n = kernels().partition(s, at, end, b.low, b.high, mine, buffer);
      const int64_t to = n == 0 ? 0 : n_inside.fetch_add(n);
      if (n > 0 && to + n <= b.room) {
        std::memcpy(inside + to, buffer, static_cast<std::size_t>(n) * sizeof(float));
      }
    }
    return mine;
  };
  return reduce<Parts>(s.n, range, [](Parts& sum, const Parts& part) {
    sum.below += part.below, sum.at_low += part.at_low, sum.kept += part.kept;
    sum.at_high += part.at_high, sum.above += part.above;
  });
}

// Rank and rank + 1 by three rounds of histograms: exact for any input, at three times the
// cost.
Pair by_histograms(const Scores& s, int64_t kept, int64_t rank) {
  uint32_t prefix = 0;
  int64_t below = 0, inside = 0;
  std::vector<int64_t> counts(kBins + 1);
  for (int round = 0; round < 3; ++round) {
    histogram(s, prefix, round, counts.data());
    uint32_t bin = 0;
    while (below + counts[bin] <= rank) below += counts[bin++];
    inside = counts[bin];
    prefix = (prefix << (round == 2 ? 10 : 11)) | bin;
  }
  const float at = score_of(prefix);
  const bool shared = rank + 1 < below + inside || rank + 1 >= kept;
  return {at, shared ? at : successor(s, at)};
}

Selected select_many(const Scores& s, const Target& target) {
  const Bracket b = bracket(s, target);
  const std::unique_ptr<float[]> inside(new float[static_cast<std::size_t>(b.room)]);
  std::atomic<int64_t> n_inside{0};
  Parts p = split(s, b, inside.get(), n_inside);
  if (b.low == b.high) p.at_high = 0;
  const int64_t between = n_inside;
  Selected r{p.kept, p.below + p.at_low + between + p.at_high + p.above < p.kept, {0, 0}};
  const int64_t rank = rank_in(target, r.kept);
  if (r.nan || rank < 0) return r;
  // Ranks at which the scores between the pivots, those at the upper one and those above begin.
  const int64_t first = p.below + p.at_low, high = first + between, above = high + p.at_high;
  if (rank < p.below || rank >= above || between > b.room) {
    r.pair = by_histograms(s, r.kept, rank);
    return r;
  }
  const int64_t start = std::max(rank, first);
  Pair in{0, 0};
  if (start < high) {
    in = select({inside.get(), kF32, nullptr, between}, {0, start - first}).pair;
  }
  const auto at = [&](int64_t i) {
    if (i < first) return b.low + 0.0f;
    if (i < high) return i == start ? in.at : in.next;
    return i < above ? b.high + 0.0f : successor(s, b.high);
  };
  r.pair.at = at(rank);
  r.pair.next = rank + 1 < r.kept ? at(rank + 1) : r.pair.at;
  return r;
}

Selected select(const Scores& s, const Target& target) {
  if (s.n > kFew) return select_many(s, target);
  return typed(s, [&](auto x) { return select_few(s, x, target); });
}

}  // namespace

float quantile(const Scores& s, double q) {
  if (q != q) return std::numeric_limits<float>::quiet_NaN();
  const Target target{q, -1};
  const Selected r = select(s, target);
  if (r.nan) return std::numeric_limits<float>::quiet_NaN();
  if (r.kept == 0) return kInfinity;
  const double position = target.position(r.kept);
  return between(r.pair.at, r.pair.next, static_cast<float>(position - std::floor(position)));
}

float kth_value(const Scores& s, int64_t rank) {
  const Selected r = rank < 0 ? Selected{0, true, {0, 0}} : select(s, {0, rank});
  return r.nan || rank >= r.kept ? std::numeric_limits<float>::quiet_NaN() : r.pair.at;
}

}  // namespace w2s
