// InfoNCE's row pass: rules, sum over the negatives, record, and the gradient in place.
#pragma once

#include "../contrastive.h"
#include "pack.h"
#include "tile.h"
#include "w2s_cuda.h"

namespace {

constexpr int kPairThreads = 256, kPairBlocks = 4;  // 64 registers

// Of some negatives: the largest similarity, the sum of 2^(by (s - top)), and their number.
struct PairSums {
  float top, sum, count;
};

struct PairShared {
  PairSums warp[kPairThreads / 32];
  PairRow row;
};

W2S_DEVICE float pair_origin(float top) { return top == -INFINITY ? 0 : top; }

W2S_DEVICE void move_pair(PairSums& s, float top, float by) {
  if (s.top != -INFINITY && s.top != top) s.sum *= block::exp2_fast((s.top - top) * by);
  s.top = top;
}

W2S_DEVICE PairSums merge_pairs(PairSums a, PairSums b, float by) {
  const float top = fmaxf(a.top, b.top);
  move_pair(a, top, by);
  move_pair(b, top, by);
  return {top, a.sum + b.sum, a.count + b.count};
}

W2S_DEVICE PairSums reduce_pairs(PairSums s, float by) {
  W2S_NO_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    const PairSums other = {block::down(s.top, step), block::down(s.sum, step),
                            block::down(s.count, step)};
    s = merge_pairs(s, other, by);
  }
  return s;
}

// What the rules leave of a query's similarities: -inf for what is no negative.
struct PairRules {
  const Contrastive& c;
  const uint8_t* mask;
  int64_t own;
  int at;
  float most;

  W2S_DEVICE PairRules(const Contrastive& c, int64_t row, int at, float positive)
      : c(c),
        mask(c.mask == nullptr ? nullptr : c.mask + row * c.m),
        own(c.query_groups == nullptr ? 0 : c.query_groups[row]),
        at(at),
        most(positive + c.margin) {}

  W2S_DEVICE float negative(int j, float s) const {
    if (j < 0 || j >= c.m || j == at) return -INFINITY;
    if (c.query_groups != nullptr && (c.document_groups[j] == own) != c.within) return -INFINITY;
    if (mask != nullptr && mask[j] == 0) return -INFINITY;
    return c.margin != INFINITY && s > most ? -INFINITY : s;  // NaN stays
  }
};

// A query's record, and with grad its gradient, in T.
//
// Bytes of global memory a query: 4 M read, 8 M of group ids and M of a mask from cache, and with a
// gradient 4 M read again from cache and M b written. Arithmetic: about 6 instructions an element
// for the sum and 5 for the gradient, an exponential each. 1024 x 8192: 34 MB of similarities,
// 0.02 ms at 4.8 TB/s predicted, not measured.
template <class T>
struct ContrastiveKernel {
  W2S_DEVICE static void run(const Contrastive& c) {
    PairShared& shared = *block::shared<PairShared>();
    const int64_t row = block::index();
    const Line<float> line(c.similarities, c.stride, row, c.m);
    const int64_t wanted = c.positives[row];
    const bool known = wanted >= 0 && wanted < c.m;
    const int at = known ? static_cast<int>(wanted) : 0;
    const float positive = block::load1(line.p + at), by = c.scale * 1.44269504f;
    const PairRules rules(c, row, at, positive);
    const PairSums sums = sum_row(shared, line, rules, by);
    if (block::thread() == 0) {
      PairRow r = known ? pair_row(c, positive, sums.top, sums.sum, sums.count) : broken_row();
      if (wanted < 0) r = PairRow{};
      write_pair_stats(c, row, r);
      // The gradient is made from where the exponentials have their origin.
      r.hardest = sums.top;
      shared.row = r;
    }
    block::sync();  // every thread has read the positive, which may be overwritten now
    if (c.grad != nullptr) write_row(c, row, line, rules, shared.row, by, wanted >= 0);
  }

  // Thread 0 gets the sums of the row.
  W2S_DEVICE static PairSums sum_row(PairShared& shared, const Line<float>& line,
                                     const PairRules& rules, float by) {
    PairSums s = {-INFINITY, 0, 0};
    const int chunks = line.chunk_of(line.length - 1) + 1;
    W2S_NO_UNROLL
    for (int k = block::thread(); k < chunks; k += block::threads()) {
      float x[4];
      line.read(k, -INFINITY, x);
      float top = -INFINITY;
      W2S_UNROLL
      for (int e = 0; e < 4; ++e) {
        x[e] = rules.negative(line.first(k) + e, x[e]);
        top = fmaxf(top, x[e]);
      }
      if (top > s.top) move_pair(s, top, by);
      W2S_UNROLL
      for (int e = 0; e < 4; ++e) {
        s.sum += block::exp2_fast((x[e] - pair_origin(s.top)) * by);
        s.count += x[e] != -INFINITY ? 1 : 0;
      }
    }
    const int lane = block::thread() % 32, warp = block::thread() / 32;
    s = reduce_pairs(s, by);
    if (lane == 0) shared.warp[warp] = s;
    block::sync();
    if (warp != 0) return s;
    s = lane < block::threads() / 32 ? shared.warp[lane] : PairSums{-INFINITY, 0, 0};
    return reduce_pairs(s, by);
  }

  W2S_DEVICE static void write_row(const Contrastive& c, int64_t row, const Line<float>& line,
                                   const PairRules& rules, const PairRow& r, float by,
                                   bool counted) {
    constexpr int E = Format<T>::kCount;
    const Line<T> out(c.grad, c.grad_stride, row, c.m);
    const float weight = !counted ? 0 : c.weight == nullptr ? 1 : c.weight[row];
    const float share = r.share * weight, pull = -r.slope * weight, origin = pair_origin(r.hardest);
    const int chunks = out.chunk_of(out.length - 1) + 1;
    W2S_NO_UNROLL
    for (int k = block::thread(); k < chunks; k += block::threads()) {
      const int from = out.first(k);
      float x[E];
      read_some<E>(line, from, out.full(k), x);
      W2S_UNROLL
      for (int e = 0; e < E; ++e) {
        const float p = block::exp2_fast((rules.negative(from + e, x[e]) - origin) * by);
        // A select, not a product: 0 times a NaN would be NaN.
        x[e] = !counted ? 0 : from + e == rules.at ? pull : p * share;
      }
      out.write(k, x);
    }
  }

  // E similarities from element `from` on: wide where the row's memory allows it.
  template <int E>
  W2S_DEVICE static void read_some(const Line<float>& line, int from, bool full, float* x) {
    if (full && reinterpret_cast<uintptr_t>(line.p + from) % 16 == 0) {
      W2S_UNROLL
      for (int e = 0; e < E; e += 4) unpack<float>(block::load16(line.p + from + e), x + e);
      return;
    }
    W2S_UNROLL
    for (int e = 0; e < E; ++e) {
      x[e] = line.holds(from + e) ? block::load1(line.p + from + e) : -INFINITY;
    }
  }
};

}  // namespace
