// Exact order statistics of any number of scores in one launch, without sorting them.
//
// Scores become 32-bit keys in the same order (row_math.h). Three rounds count the keys by 11, 11
// and 10 bits; between rounds the whole grid waits, and every block continues in the bin that holds
// the target rank. The third round also keeps the smallest key above the bins of the second, so the
// successor of the k-th score costs no fourth read. Counters are integers: the order of the atomics
// does not matter.
//
// Reads N scores (and masks) three times: H200, N = 1e8 fp32: 1.2 GB, 0.27 ms at 4.5 TB/s; counting
// into shared memory, about 40 instructions a score, is of the same size. Estimate 0.5 ms, from L2
// below N = 1e7: 30 us. Not measured.
#pragma once

#include "pack.h"
#include "tile.h"
#include "w2s_cuda.h"

namespace {

constexpr int kBins = 2048;
constexpr int kAbove = 3 * kBins, kUnordered = kAbove + 1;

struct Walk {  // where the target rank lies, after some rounds
  uint32_t prefix, rank, same, total;
};

struct QuantileShared {
  uint32_t bins[kBins];
  uint32_t warp[kQuantileThreads / 32];
  Walk walk;
  uint32_t next;  // smallest digit above the target one that occurs
};

// Shift and width of a round's digit.
W2S_DEVICE int shift_of(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
W2S_DEVICE int bits_of(int round) { return round == 2 ? 10 : 11; }

// Counts one key a lane. Called by whole warps: the lanes that share the digit of the first one
// count as one, since scores concentrate in few bins.
W2S_DEVICE void count_key(uint32_t* bins, uint32_t digit, bool valid) {
  const uint32_t counted = block::ballot(valid);
  if (counted == 0) return;
  int leader = 0;
  while ((counted >> leader & 1u) == 0) ++leader;
  const uint32_t leading = block::from_lane(digit, leader);  // every lane must take part
  const bool same = valid && digit == leading;
  const uint32_t alike = block::ballot(same);
  if (block::thread() % 32 == leader) {
    uint32_t n = 0;
    for (uint32_t m = alike; m != 0; m &= m - 1) ++n;
    block::atomic_add(&bins[digit], n);
  } else if (valid && !same) {
    block::atomic_add(&bins[digit], 1u);
  }
}

// Bit e: score first + e exists and is kept. Masks are bytes; the aligned four of four scores are
// one load.
template <int E>
W2S_DEVICE uint32_t kept_bits(const w2s::cuda::Quantile& c, int64_t first) {
  uint32_t bits = 0;
  const bool inside = first >= 0 && first + E <= c.n;
  if (inside && c.keep == nullptr) return (1u << E) - 1;
  if (inside && reinterpret_cast<uintptr_t>(c.keep + first) % 4 == 0) {
    W2S_UNROLL
    for (int e = 0; e < E; e += 4) {
      const uint32_t four = block::load1(reinterpret_cast<const uint32_t*>(c.keep + first + e));
      W2S_UNROLL
      for (int b = 0; b < 4; ++b) bits |= ((four >> (8 * b) & 0xffu) != 0 ? 1u : 0u) << (e + b);
    }
    return bits;
  }
  W2S_UNROLL
  for (int e = 0; e < E; ++e) {
    const int64_t i = first + e;
    const bool inside = i >= 0 && i < c.n && (c.keep == nullptr || c.keep[i] != 0);
    bits |= (inside ? 1u : 0u) << e;
  }
  return bits;
}

// Calls f(score, kept) for kQuantilePacks chunks a thread at a time, in step for whole warps.
template <class T, class F>
W2S_DEVICE void for_each_score(const w2s::cuda::Quantile& c, const F& f) {
  constexpr int E = Format<T>::kCount;
  const Line<T> line(c.scores, 0, 0, c.n);
  const int chunks = line.chunk_of(line.length - 1) + 1;
  const int step = block::threads() * static_cast<int>(block::blocks());
  const int own = static_cast<int>(block::index()) * block::threads() + block::thread();
  const int warp = own / 32 * 32;
  Pack loaded[kQuantilePacks];
  for (int64_t at = 0; at + warp < chunks; at += static_cast<int64_t>(kQuantilePacks) * step) {
    W2S_UNROLL
    for (int j = 0; j < kQuantilePacks; ++j) {
      const int64_t chunk = at + static_cast<int64_t>(j) * step + own;
      if (chunk < chunks && line.full(static_cast<int>(chunk))) {
        loaded[j] = block::load16(line.at(static_cast<int>(chunk)));
      }
    }
    W2S_UNROLL
    for (int j = 0; j < kQuantilePacks; ++j) {
      const int64_t chunk = at + static_cast<int64_t>(j) * step + own;
      const bool inside = chunk < chunks;
      float x[E];
      if (inside && line.full(static_cast<int>(chunk))) {
        unpack<T>(loaded[j], x);
      } else if (inside) {
        line.read(static_cast<int>(chunk), 0, x);
      }
      const uint32_t kept = inside ? kept_bits<E>(c, chunk * E - line.lead) : 0;
      W2S_UNROLL
      for (int e = 0; e < E; ++e) f(inside ? x[e] : 0.0f, (kept >> e & 1u) != 0);
    }
  }
}

// Sum over the threads before this one; `total` gets the sum over all.
W2S_DEVICE uint32_t before_me(QuantileShared& shared, uint32_t mine, uint32_t& total) {
  const int lane = block::thread() % 32, warp = block::thread() / 32;
  uint32_t sum = mine;
  for (int by = 1; by < 32; by *= 2) {
    const uint32_t other = block::up(sum, by);
    if (lane >= by) sum += other;
  }
  if (lane == 31) shared.warp[warp] = sum;
  block::sync();
  uint32_t before = 0;
  total = 0;
  for (int w = 0; w < block::threads() / 32; ++w) {
    if (w < warp) before += shared.warp[w];
    total += shared.warp[w];
  }
  block::sync();
  return before + sum - mine;
}

W2S_DEVICE double position_of(const w2s::cuda::Quantile& c, uint32_t count) {
  const double q = *c.q;
  return q >= 0 && q <= 1 && count > 0 ? q * (count - 1.0) : 0.0;
}

// The target rank, 0 where there is none; `finish` returns NaN.
W2S_DEVICE uint32_t rank_of(const w2s::cuda::Quantile& c, uint32_t count) {
  if (c.rank == nullptr) return static_cast<uint32_t>(position_of(c, count));
  return *c.rank >= 0 && *c.rank < count ? static_cast<uint32_t>(*c.rank) : 0;
}

// One round further: all blocks have counted, each finds the digit of the target rank for itself.
W2S_DEVICE void walk(const w2s::cuda::Quantile& c, QuantileShared& shared, int round) {
  constexpr int each = kBins / kQuantileThreads;
  const uint64_t* counts = c.counters + round * kBins;
  const int first = block::thread() * each;
  uint32_t bins[each], mine = 0, total = 0;
  W2S_UNROLL
  for (int b = 0; b < each; ++b) {
    bins[b] = block::blocks() == 1 ? shared.bins[first + b]
                                   : static_cast<uint32_t>(block::load_fresh(counts + first + b));
    mine += bins[b];
  }
  Walk w = shared.walk;  // before the barriers in before_me(), after which it may be written
  uint32_t below = before_me(shared, mine, total);
  if (round == 0) w.total = total, w.prefix = 0, w.rank = rank_of(c, total);
  if (block::thread() == 0) shared.next = kBins, shared.walk.total = w.total;
  block::sync();
  W2S_UNROLL
  for (int b = 0; b < each; ++b) {
    if (bins[b] != 0 && below <= w.rank && w.rank - below < bins[b]) {
      const uint32_t digit = static_cast<uint32_t>(first + b);
      shared.walk = {w.prefix << bits_of(round) | digit, w.rank - below, bins[b], w.total};
    }
    // The thread that holds the first key above the target bin: the rank falls between below and
    // it.
    if (bins[b] != 0 && below > w.rank) {
      block::atomic_min(&shared.next, static_cast<uint32_t>(first + b));
    }
    below += bins[b];
  }
  block::sync();
}

W2S_DEVICE float finish(const w2s::cuda::Quantile& c, const QuantileShared& shared) {
  const Walk w = shared.walk;
  if (block::load_fresh(c.counters + kUnordered) != 0) return NAN;
  if (c.rank != nullptr) {
    return *c.rank >= 0 && *c.rank < w.total ? value_of(w.prefix) : NAN;
  }
  if (!(*c.q >= 0 && *c.q <= 1)) return NAN;
  if (w.total == 0) return INFINITY;
  const double position = position_of(c, w.total);
  const float f =
      static_cast<float>(position - static_cast<double>(static_cast<uint32_t>(position)));
  uint32_t high = w.prefix;
  if (w.rank + 1 >= w.same) {  // no equal score follows
    const uint64_t above = block::load_fresh(c.counters + kAbove);
    if (shared.next < 1024) {
      high = (w.prefix & ~1023u) | shared.next;
    } else if (above != 0) {
      high = static_cast<uint32_t>((uint64_t{1} << 32) - above);
    }
  }
  return between(value_of(w.prefix), value_of(high), f);
}

// What a thread meets in a round besides the bins of its scores.
struct Met {
  bool unordered = false;  // a NaN
  uint64_t least = 0;      // 2^32 - key of the smallest key above the prefix
};

// Before the first round: no counter has a defined value, and no block may add to one before all
// blocks have passed a grid barrier.
W2S_DEVICE void start(const w2s::cuda::Quantile& c, QuantileShared& shared) {
  const int64_t step = block::blocks() * block::threads();
  const int64_t first = block::blocks() == 1 ? kAbove : 0;  // one block keeps its bins to itself
  for (int64_t i = first + block::index() * block::threads() + block::thread(); i <= kUnordered;
       i += step) {
    c.counters[i] = 0;
  }
  if (block::thread() == 0) shared.walk = {0, 0, 0, 0};
}

W2S_DEVICE void clear_bins(QuantileShared& shared) {
  for (int b = block::thread(); b < kBins; b += block::threads()) shared.bins[b] = 0;
  block::sync();
}

// Counts one score a lane. Called by whole warps.
W2S_DEVICE void count_score(QuantileShared& shared, int round, float x, bool kept, Met& met) {
  const int shift = shift_of(round), above = shift + bits_of(round);
  const uint32_t mask = (1u << bits_of(round)) - 1, prefix = shared.walk.prefix;
  const uint32_t key = key_of(x);
  met.unordered |= kept && x != x;
  const uint32_t lead = round == 0 ? 0 : key >> above;
  count_key(shared.bins, key >> shift & mask, kept && lead == prefix);
  if (round == 2 && kept && lead > prefix) {
    const uint64_t from_top = (uint64_t{1} << 32) - key;
    met.least = from_top > met.least ? from_top : met.least;
  }
}

// Adds what this block has counted to the counters of the grid.
W2S_DEVICE void add_counts(const w2s::cuda::Quantile& c, const QuantileShared& shared, int round,
                           const Met& met) {
  block::sync();
  for (int b = block::thread(); b < kBins && block::blocks() > 1; b += block::threads()) {
    if (shared.bins[b] != 0)
      block::atomic_add(c.counters + round * kBins + b, uint64_t{shared.bins[b]});
  }
  if (met.unordered) block::atomic_max(c.counters + kUnordered, 1);
  if (met.least != 0) block::atomic_max(c.counters + kAbove, met.least);
}

template <class T>
struct QuantileKernel {
  W2S_DEVICE static void run(const w2s::cuda::Quantile& c) {
    QuantileShared& shared = *block::shared<QuantileShared>();
    start(c, shared);
    for (int round = 0; round < 3; ++round) {
      Met met;
      clear_bins(shared);
      for_each_score<T>(c, [&](float x, bool kept) { count_score(shared, round, x, kept, met); });
      if (round == 0) block::grid_sync();  // the counters are zero
      add_counts(c, shared, round, met);
      block::grid_sync();
      walk(c, shared, round);
    }
    if (block::index() == 0 && block::thread() == 0) *c.out = finish(c, shared);
  }
};

}  // namespace
