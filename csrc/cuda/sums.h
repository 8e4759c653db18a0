// The sums of one row, and how a block and a cluster add them up.
//
// Every thread keeps its sums relative to the largest logit that it has seen, and moves them when
// that changes; merging moves them to the larger of two. Partial sums are merged in one order,
// in every block: all blocks of a row hold the same bits.
#pragma once

#include "segment.h"

namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kNowhere = 0x7fffffff;
constexpr int kMaxWarps = 16;

W2S_DEVICE float exp_fast(float d) { return block::exp2_fast(d * kLog2E); }

struct Sums {
  float max, exp, exp_d;  // M; sum e^d, sum e^d d with d = z - M
  float d;                // sum d / V, with label smoothing: a sum of masked logits would overflow
  float seen;             // elements / V
  float mass, linear;     // sum q, sum q d: dense targets
  float q_max;
  int at, q_at;  // first element with the maximum
};
constexpr int kSumsWords = 10;

W2S_DEVICE Sums no_sums() { return {-INFINITY, 0, 0, 0, 0, 0, 0, -INFINITY, kNowhere, kNowhere}; }

// What logits are taken relative to. Beside an infinite maximum any number is right: sum e^d is
// then +inf, or NaN where there is a NaN.
W2S_DEVICE float origin_of(float max) { return fabsf(max) == INFINITY ? 0 : max; }

// Moves sums to a larger maximum. Sums over nothing but -inf and NaN stay as they are.
template <bool DENSE>
W2S_DEVICE void move(Sums& s, float to) {
  const float shift = s.max == -INFINITY || to == INFINITY ? 0 : s.max - to;
  s.max = to;
  if (shift == 0) return;
  const float factor = exp_fast(shift);
  // From a class that is masked by the smallest number the product would be infinite: 0 * inf.
  s.exp_d = factor == 0 ? 0 : factor * fmaf(shift, s.exp, s.exp_d);
  s.exp *= factor;
  s.d = fmaf(shift, s.seen, s.d);
  if (DENSE) s.linear = fmaf(shift, s.mass, s.linear);
}

template <bool DENSE>
W2S_DEVICE void merge(Sums& a, Sums b) {
  const float top = fmaxf(a.max, b.max);
  if (b.max > a.max) {
    a.at = b.at;
  } else if (b.max == a.max) {
    a.at = b.at < a.at ? b.at : a.at;
  }
  if (a.max < top) move<DENSE>(a, top);
  if (b.max < top) move<DENSE>(b, top);
  a.exp += b.exp, a.exp_d += b.exp_d, a.d += b.d, a.seen += b.seen;
  if (!DENSE) return;
  a.mass += b.mass, a.linear += b.linear;
  if (b.q_max > a.q_max) {
    a.q_max = b.q_max, a.q_at = b.q_at;
  } else if (b.q_max == a.q_max) {
    a.q_at = b.q_at < a.q_at ? b.q_at : a.q_at;
  }
}

// State that the blocks of a row share, at the start of the dynamic shared memory.
struct Final {
  Slope slope;
  float max;
  float self_diff;  // z - M of the self-target
  int self;
  int zero;  // nothing but zeros is written
};
struct Shared {
  Sums warp[kMaxWarps];
  Sums part[2];  // of this block, read by its cluster; two, so that none is overwritten while read
  Final final;
  Record record;
  float share;              // of the top-k classes in the sum of e^d
  int again;                // the rest has to be summed itself
  uint32_t repeats;         // a class occurs more than once
  uint32_t topk_bits[128];  // bit c % 4096: a top-k class may lie in chunk c
};

template <bool DENSE>
W2S_DEVICE Sums down(const Sums& s, int by) {
  Sums o = no_sums();
  o.max = block::down(s.max, by), o.exp = block::down(s.exp, by);
  o.exp_d = block::down(s.exp_d, by), o.d = block::down(s.d, by);
  o.seen = block::down(s.seen, by), o.at = block::down(s.at, by);
  if (DENSE) {
    o.mass = block::down(s.mass, by), o.linear = block::down(s.linear, by);
    o.q_max = block::down(s.q_max, by), o.q_at = block::down(s.q_at, by);
  }
  return o;
}

// Lane 0 gets the sums of its warp.
template <bool DENSE>
W2S_DEVICE Sums reduce_warp(Sums s) {
  W2S_NO_UNROLL
  for (int by = 16; by > 0; by /= 2) merge<DENSE>(s, down<DENSE>(s, by));
  return s;
}

W2S_DEVICE Sums remote(const Sums& local, int rank) {
  Sums s;
  uint32_t words[kSumsWords];
  W2S_UNROLL
  for (int w = 0; w < kSumsWords; ++w) {
    words[w] = block::remote_word(reinterpret_cast<const uint32_t*>(&local) + w, rank);
  }
  memcpy(&s, words, sizeof s);
  return s;
}

// Lane 0 of warp 0 gets the sums of the row, in every block of its cluster.
template <bool DENSE>
W2S_DEVICE Sums reduce_row(Shared& shared, Sums s, int cluster, int slot) {
  static_assert(sizeof(Sums) == kSumsWords * sizeof(uint32_t), "read remotely word by word");
  const int lane = block::thread() % 32, warp = block::thread() / 32;
  s = reduce_warp<DENSE>(s);
  if (lane == 0) shared.warp[warp] = s;
  block::sync();
  if (warp == 0) {
    s = lane < block::threads() / 32 ? shared.warp[lane] : no_sums();
    s = reduce_warp<DENSE>(s);
    if (lane == 0) shared.part[slot] = s;
  }
  if (cluster == 1) return s;
  block::cluster_sync();
  if (warp == 0) {
    s = lane < cluster ? remote(shared.part[slot], lane) : no_sums();
    s = reduce_warp<DENSE>(s);
  }
  return s;
}

// Adds one chunk. FULL: every element of it is of this row. `share` is 1 / V with label smoothing,
// else 0.
template <bool FULL, class S>
W2S_DEVICE void add_chunk(const S& segment, int chunk, float share, Sums& s) {
  constexpr int E = S::E;
  constexpr bool DENSE = S::DENSE;
  const int from = segment.z.first(chunk);
  float x[E], q[E];
  segment.read(chunk, x);
  if constexpr (DENSE) segment.read_targets(chunk, q);
  const auto holds = [&](int e) { return FULL || segment.z.holds(from + e); };
  float top = -INFINITY;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) top = fmaxf(top, x[e]);  // outside of the row: -inf
  if (top > s.max) {
    move<DENSE>(s, top);
    s.at = from;  // of the chunk, for now
  }
  const float origin = origin_of(s.max);
  float exp = 0, exp_d = 0, sum_d = 0, mass = 0, linear = 0;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) {
    const float d = x[e] - origin;
    const float p = exp_fast(d);
    exp += p;
    exp_d = fmaf(p, fmaxf(d, -1e4f), exp_d);  // 0 * -inf: no entropy; NaN is in p
    if (share != 0) sum_d += holds(e) ? d * share : 0;
    if constexpr (DENSE) {
      mass += q[e];  // 0 outside
      linear += q[e] != 0 && d != 0 ? q[e] * d : 0;
    }
  }
  s.exp += exp, s.exp_d += exp_d, s.d += sum_d, s.mass += mass, s.linear += linear;
  if (share != 0) s.seen += share * static_cast<float>(FULL ? E : segment.z.count(chunk));
  if constexpr (DENSE) {
    float q_top = -INFINITY;
    W2S_UNROLL
    for (int e = 0; e < E; ++e) q_top = fmaxf(q_top, holds(e) ? q[e] : -INFINITY);
    if (q_top > s.q_max) s.q_max = q_top, s.q_at = from;
  }
}

template <class S>
W2S_DEVICE void add(const S& segment, int chunk, float share, Sums& s) {
  if (segment.z.full(chunk)) {
    add_chunk<true>(segment, chunk, share, s);
  } else {
    add_chunk<false>(segment, chunk, share, s);
  }
}

// From the chunk that holds a thread's maximum to the element.
template <class S>
W2S_DEVICE void locate(const S& segment, Sums& s) {
  constexpr int E = S::E;
  float x[E];
  if (s.at != kNowhere) {
    segment.read(segment.z.chunk_of(s.at), x);
    int at = s.at + E - 1;
    W2S_UNROLL
    for (int e = E - 1; e >= 0; --e) at = x[e] == s.max ? s.at + e : at;
    s.at = at;
  }
  if constexpr (S::DENSE) {
    if (s.q_at == kNowhere) return;
    segment.read_targets(segment.z.chunk_of(s.q_at), x);
    int at = s.q_at + E - 1;
    W2S_UNROLL
    for (int e = E - 1; e >= 0; --e) {
      at = segment.z.holds(s.q_at + e) && x[e] == s.q_max ? s.q_at + e : at;
    }
    s.q_at = at;
  }
}

// The sums of this thread's chunks.
template <class S>
W2S_DEVICE Sums sum_segment(const S& segment, float share) {
  Sums s = no_sums();
  const int size = segment.group();
  W2S_NO_UNROLL
  for (int stage = 0; stage < kStages; ++stage) {
    segment.await(stage);
    const int from = segment.begin + stage * size;
    const int to = from + size < segment.end ? from + size : segment.end;
    W2S_NO_UNROLL
    for (int c = from + block::thread(); c < to; c += block::threads()) add(segment, c, share, s);
  }
  locate(segment, s);
  return s;
}

}  // namespace
