// Order statistics in rounds, for scores that lie in several places (data-parallel ranks).
//
// Scores become 32-bit keys in the same order. Three rounds count the keys by 11, 11 and 10 bits;
// the holder of the summed counts continues in the bin of the target rank. The counts of a round
// do not depend on how many threads made them.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "scores.h"

namespace w2s {
namespace {

// Scores fall into few bins, and an addition to a counter waits for the one before it, so
// neighbours are counted in different copies.
constexpr int kCopies = 4;
constexpr int kDump = kBins;  // keys with another prefix, and excluded scores
constexpr int kRow = kBins + 16;
constexpr int64_t kFlush = int64_t{1} << 30;  // the copies are 32 bits wide

struct Round {
  int shift, bits;
};
constexpr Round kRounds[3] = {{21, 11}, {10, 11}, {0, 10}};
static_assert(kBins == 1 << kRounds[0].bits, "a bin for every value of a round");

template <class T>
void count(const Scores& s, const T* x, int64_t lo, int64_t hi, uint32_t prefix, int round,
           uint32_t* copies, int64_t& nan) {
  const Round r = kRounds[round];
  const uint32_t mask = (1u << r.bits) - 1;
  const int above = r.shift + r.bits;
  for (int64_t i = lo; i < hi; ++i) {
    const float f = widen(x[i]) + 0.0f;  // -0 and +0 are one score
    const uint32_t key = key_of(f);
    const bool in = is_counted(s, i) && (round == 0 || key >> above == prefix);
    nan += in && f != f ? 1 : 0;
    ++copies[(i % kCopies) * kRow + (in ? key >> r.shift & mask : kDump)];
  }
}

std::vector<int64_t> count_range(const Scores& s, int64_t lo, int64_t hi, uint32_t prefix,
                                 int round) {
  std::vector<int64_t> mine(kBins + 1, 0);
  std::vector<uint32_t> copies(static_cast<std::size_t>(kCopies) * kRow);
  for (int64_t at = lo; at < hi; at += kFlush) {
    std::fill(copies.begin(), copies.end(), 0u);
    const int64_t end = std::min(hi, at + kFlush);
    typed(s, [&](auto x) { count(s, x, at, end, prefix, round, copies.data(), mine[kBins]); });
    for (int b = 0; b < kBins; ++b) {
      for (int c = 0; c < kCopies; ++c) mine[b] += copies[c * kRow + b];
    }
  }
  return mine;
}

// Branchless: the processor cannot predict which score is the next smaller one.
template <class T>
float least_above(const Scores& s, const T* x, int64_t lo, int64_t hi, float at) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr int64_t width = 8;  // independent minima
  float least[width];
  std::fill(least, least + width, inf);
  for (int64_t i = lo; i < hi; i += width) {
    const int64_t n = std::min(width, hi - i);
    float f[width];
    for (int64_t j = 0; j < width; ++j)
      f[j] = j < n && is_counted(s, i + j) ? widen(x[i + j]) : inf;
    for (int64_t j = 0; j < width; ++j) {
      const float candidate = f[j] > at ? f[j] : inf;
      least[j] = candidate < least[j] ? candidate : least[j];
    }
  }
  return *std::min_element(least, least + width);
}

}  // namespace

// Order-preserving: negative floats are reversed, positive ones moved above them.
uint32_t key_of(float score) {
  uint32_t u;
  std::memcpy(&u, &score, sizeof u);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

float score_of(uint32_t key) {
  const uint32_t u = (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

void histogram(const Scores& s, uint32_t prefix, int round, int64_t counts[kBins + 1]) {
  using Bins = std::vector<int64_t>;
  const Bins total = reduce<Bins>(
      s.n, [&](int64_t lo, int64_t hi) { return count_range(s, lo, hi, prefix, round); },
      [](Bins& sum, const Bins& part) {
        sum.resize(part.size(), 0);
        for (std::size_t b = 0; b < part.size(); ++b) sum[b] += part[b];
      });
  for (int b = 0; b <= kBins; ++b) counts[b] = total.empty() ? 0 : total[b];
  if (round != 0) counts[kBins] = 0;
}

float successor(const Scores& s, float at) {
  struct Least {
    float value = std::numeric_limits<float>::infinity();
  };
  const auto least = [&](int64_t lo, int64_t hi) {
    return typed(s, [&](auto x) { return Least{least_above(s, x, lo, hi, at)}; });
  };
  return reduce<Least>(s.n, least, [](Least& a, Least b) { a.value = std::min(a.value, b.value); })
      .value;
}

}  // namespace w2s
