// Two classes in one launch: normaliser, threshold, loss and gradient of a batch.
//
// A thread takes a row at a time. The first pass sums what the rows count and counts the margins
// z_0 - z_1 in the bins of their leading digit; where the threshold is a statistic of the batch,
// two more passes complete the radix select of quantile.h; the last pass computes every row from
// its two logits and writes it. Between passes the grid waits. Sums are added in fp64 in an order
// that depends on the number of blocks alone.
//
// Reads the rows four times, after the first time from L2: 2^20 rows of fp32 logits and soft labels
// are 16 MB.
#pragma once

#include <type_traits>

#include "quantile.h"
#include "targets.h"

namespace {

constexpr int kTwoClassRows = 4;      // rows that a thread loads ahead
constexpr int kTwoClassResident = 3;  // blocks that share an SM: 80 registers

// Blocks that have rows for every thread to load ahead; up to 1024 rows one.
inline int64_t two_class_blocks(int64_t n) {
  constexpr int64_t each = kTwoClassRows * kQuantileThreads, most = w2s::cuda::kTwoClassBlocks;
  const int64_t useful = (n + each - 1) / each;
  return useful < 1 ? 1 : useful < most ? useful : most;
}

struct TwoClassShared {
  QuantileShared quantile;
  double warp[kQuantileThreads / 32];
  double share;  // of the margins below the threshold
};

// Logits of a row after the soft-cap, and its weak mass.
struct Pair {
  float z0, z1, q0, q1;
  bool counted;
};

template <class T, class U>
W2S_DEVICE Pair read_pair(const RowCall& c, int64_t row) {
  const T* z = static_cast<const T*>(c.logits) + row * c.logits_stride;
  Pair x;
  x.z0 = capped(widen(block::load1(z)), c.params.softcap);
  x.z1 = capped(widen(block::load1(z + 1)), c.params.softcap);
  x.counted = is_counted(c, row);
  if constexpr (std::is_same<U, None>::value) {
    const TopkEntry l = topk_at(c, row, 0);
    x.q0 = l.id == 0 ? l.q : 0;
    x.q1 = l.id == 1 || (l.real && !l.inside) ? l.q : 0;  // NaN for a label that is no class
  } else {
    const U* q = static_cast<const U*>(c.probs) + row * c.probs_stride;
    x.q0 = widen(block::load1(q)), x.q1 = widen(block::load1(q + 1));
  }
  return x;
}

// Calls f(row, pair) for kTwoClassRows rows a thread at a time, in step for whole warps; a row past
// the end does not count.
template <class T, class U, class F>
W2S_DEVICE void for_each_row(const RowCall& c, const F& f) {
  const int64_t step = block::threads() * block::blocks();
  const int64_t own = block::index() * block::threads() + block::thread();
  for (int64_t at = 0; at + own / 32 * 32 < c.n; at += kTwoClassRows * step) {
    Pair x[kTwoClassRows];
    W2S_UNROLL
    for (int j = 0; j < kTwoClassRows; ++j) {
      const int64_t row = at + j * step + own;
      x[j] = row < c.n ? read_pair<T, U>(c, row) : Pair{0, 0, 0, 0, false};
    }
    W2S_UNROLL
    for (int j = 0; j < kTwoClassRows; ++j) f(at + j * step + own, x[j]);
  }
}

W2S_DEVICE double down(double x, int by) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  const uint32_t low = block::down(static_cast<uint32_t>(u), by);
  const uint32_t high = block::down(static_cast<uint32_t>(u >> 32), by);
  u = static_cast<uint64_t>(high) << 32 | low;
  memcpy(&x, &u, sizeof x);
  return x;
}

// The sum of x over the threads of the block, in a fixed order; valid in every thread.
W2S_DEVICE double sum_over_block(TwoClassShared& shared, double x) {
  for (int by = 16; by > 0; by /= 2) x += down(x, by);
  block::sync();  // the sum before this one has been read
  if (block::thread() % 32 == 0) shared.warp[block::thread() / 32] = x;
  block::sync();
  double sum = 0;
  for (int w = 0; w < block::threads() / 32; ++w) sum += shared.warp[w];
  return sum;
}

// What every block leaves for the others: sums over its rows.
enum Sum : int { kWeights, kKept, kOne, kLosses };
static_assert(kLosses + 1 == w2s::cuda::kTwoClassSums, "see w2s_cuda.h");

W2S_DEVICE double* sums_of(const w2s::cuda::TwoClass& call, Sum which) {
  double* sums = reinterpret_cast<double*>(call.scratch + w2s::cuda::kQuantileCounters);
  return sums + which * block::blocks();
}
W2S_DEVICE void leave_sum(const w2s::cuda::TwoClass& call, TwoClassShared& shared, Sum which,
                          double mine) {
  const double sum = sum_over_block(shared, mine);
  if (block::thread() == 0) sums_of(call, which)[block::index()] = sum;
}
// Over the blocks, after a grid barrier.
W2S_DEVICE double total_of(const w2s::cuda::TwoClass& call, TwoClassShared& shared, Sum which) {
  const double* sums = sums_of(call, which);
  double mine = 0;
  for (int64_t b = block::thread(); b < block::blocks(); b += block::threads()) mine += sums[b];
  return sum_over_block(shared, mine);
}

// z - max of both classes.
struct Diffs {
  float d0, d1;
  W2S_DEVICE float of(int64_t k) const { return k == 0 ? d0 : d1; }
};

// The record but for the self-target, factor and loss.
W2S_DEVICE Record record_of(const Pair& x, Diffs& d) {
  Record r{};
  const bool nan = x.z0 != x.z0 || x.z1 != x.z1;
  r.score = x.z0 - x.z1;
  r.max = nan ? NAN : fmaxf(x.z0, x.z1);
  d.d0 = x.z0 - r.max, d.d1 = x.z1 - r.max;
  const float below = fminf(d.d0, d.d1), e = expf(below);
  r.logs = nan || fabsf(r.max) == INFINITY ? NAN : log1pf(e);
  // -inf times a mass of 0 is 0; a row without a softmax has no entropy.
  r.entropy = r.logs - (e != 0 ? e / (1 + e) * below : 0);
  r.mean = 0.5f * (d.d0 + d.d1);
  r.argmax = x.z1 > x.z0 ? 1 : 0;
  r.mass = x.q0 + x.q1;
  r.linear =
      (x.q0 != 0 && d.d0 != 0 ? x.q0 * d.d0 : 0) + (x.q1 != 0 && d.d1 != 0 ? x.q1 * d.d1 : 0);
  r.weak = x.q1 > x.q0 ? 1 : 0;
  r.chosen = d.of(r.weak);
  check_weak(r);
  return r;
}

// What a gradient needs: the record but for the loss, once threshold and coefficient are known.
W2S_DEVICE Record finished_record(const RowParams& params, const Pair& x, Diffs& d) {
  Record r = record_of(x, d);
  choose_self_target(params, r);
  row_factor(params, x.counted, r);
  return r;
}

W2S_DEVICE float weight_of(const RowCall& c, int64_t row) {
  return c.weight == nullptr ? 1 : c.weight[row];
}

template <class T>
W2S_DEVICE void write_pair(const RowCall& c, int64_t row, const RowParams& params, const Pair& x,
                           const Record& r, const Diffs& d, float up) {
  T* g = static_cast<T*>(c.grad) + row * c.grad_stride;
  const bool zero = !x.counted || r.factor == 0 || up == 0;
  const Slope s = row_slope(params, 0, 2, r, up * r.factor);
  const float g0 = entry(s, s.inside, d.d0, x.q0, r.self == 0);
  const float g1 = entry(s, s.inside, d.d1, x.q1, r.self == 1);
  const float slope0 = cap_slope(x.z0, params.softcap), slope1 = cap_slope(x.z1, params.softcap);
  block::store1(g, Format<T>::narrow(zero ? 0 : g0 * slope0));
  block::store1(g + 1, Format<T>::narrow(zero ? 0 : g1 * slope1));
}

template <class T_, class U_>
struct TwoClassKernel {
  using T = T_;
  using U = U_;

  W2S_DEVICE static void run(const w2s::cuda::TwoClass& call) {
    const RowCall& c = call.rows;
    TwoClassShared& shared = *block::shared<TwoClassShared>();
    const bool select = call.select != w2s::kThresholdGiven;
    const w2s::cuda::Quantile target{c.n,           nullptr, w2s::kF32,    nullptr,
                                     &shared.share, nullptr, call.scratch, nullptr};
    start(target, shared.quantile);
    clear_bins(shared.quantile);
    const Met met = count_rows(call, shared, select);
    block::grid_sync();  // the sums are there, and the counters zero
    const double weights = total_of(call, shared, kWeights);
    RowParams params = params_of(c);
    if (select) params.threshold = find_threshold(call, shared, target, met);
    const double divisor = call.mean != 0 ? weights : 1;
    const double mine =
        finish_rows(call, params, divisor > 0 ? static_cast<float>(1 / divisor) : 0);
    leave_sum(call, shared, kLosses, mine);
    block::grid_sync();
    if (block::index() != 0) return;
    const double loss = total_of(call, shared, kLosses);
    if (block::thread() != 0) return;
    call.out[0] = static_cast<float>(divisor > 0 ? loss / divisor : 0);
    call.out[1] = static_cast<float>(weights);
    call.out[2] = params.threshold;
  }

  // The first pass: sums over the rows, and the first digit of the margins.
  W2S_DEVICE static Met count_rows(const w2s::cuda::TwoClass& call, TwoClassShared& shared,
                                   bool select) {
    const RowCall& c = call.rows;
    Met met;
    double weights = 0, kept = 0, one = 0;
    for_each_row<T, U>(c, [&](int64_t row, const Pair& x) {
      if (select) count_score(shared.quantile, 0, x.z0 - x.z1, x.counted, met);
      if (!x.counted) return;
      const float weight = weight_of(c, row);
      if (call.check_weights != 0 && !(weight >= 0)) {
        block::fail("w2s_fast: a row weight is negative or NaN");
      }
      weights += static_cast<double>(weight);
      kept += 1;
      one += static_cast<double>(x.q1);
    });
    leave_sum(call, shared, kWeights, weights);
    leave_sum(call, shared, kKept, kept);
    leave_sum(call, shared, kOne, one);
    return met;
  }

  W2S_DEVICE static float find_threshold(const w2s::cuda::TwoClass& call, TwoClassShared& shared,
                                         const w2s::cuda::Quantile& target, Met met) {
    const double kept = total_of(call, shared, kKept), one = total_of(call, shared, kOne);
    double share = 0.5;
    if (call.select == w2s::kThresholdPrior && kept > 0) {
      share = one / kept;
      share = share < 0 ? 0 : share > 1 ? 1 : share;  // NaN stays
    }
    if (block::thread() == 0) shared.share = share;
    for (int round = 0; round < 3; ++round) {
      if (round > 0) {
        met = Met{};
        clear_bins(shared.quantile);
        for_each_row<T, U>(call.rows, [&](int64_t, const Pair& x) {
          count_score(shared.quantile, round, x.z0 - x.z1, x.counted, met);
        });
      }
      add_counts(target, shared.quantile, round, met);
      block::grid_sync();
      walk(target, shared.quantile, round);
    }
    return finish(target, shared.quantile);
  }

  // The last pass; returns the sum of this thread's losses.
  W2S_DEVICE static double finish_rows(const w2s::cuda::TwoClass& call, const RowParams& params,
                                       float scale) {
    const RowCall& c = call.rows;
    double losses = 0;
    for_each_row<T, U>(c, [&](int64_t row, const Pair& x) {
      if (row >= c.n) return;
      Diffs d;
      Record r = finished_record(params, x, d);
      row_loss(params, 0, d.of(r.self), r);
      const float weight = weight_of(c, row);
      losses += static_cast<double>(weight) * static_cast<double>(r.loss);
      if (call.losses != nullptr) call.losses[row] = weight * r.loss;
      if (c.stats != nullptr) write_record(c, row, r);
      if (c.grad != nullptr) write_pair<T>(c, row, params, x, r, d, scale * weight);
    });
    return losses;
  }
};

// The gradient of a finished call times the upstream factors: rows are independent, no block waits.
template <class T_, class U_>
struct TwoClassGradientKernel {
  using T = T_;
  using U = U_;

  W2S_DEVICE static void run(const w2s::cuda::TwoClass& call) {
    const RowCall& c = call.rows;
    RowParams params = params_of(c);
    params.threshold = call.out[2];
    const float divisor = call.mean != 0 ? call.out[1] : 1;
    const float scale = divisor > 0 ? 1 / divisor : 0;
    for_each_row<T, U>(c, [&](int64_t row, const Pair& x) {
      if (row >= c.n) return;
      Diffs d;
      Record r = finished_record(params, x, d);
      const float weight = weight_of(c, row);
      const float up = call.upstream[row * call.upstream_stride];
      write_pair<T>(c, row, params, x, r, d, up * scale * weight);
    });
  }
};

}  // namespace
