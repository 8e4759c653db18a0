// The part of a row that one block works on: where its logits and dense targets are read from.
//
// RESIDENT: the block copies its part to shared memory once and reads it from there, so a row costs
// one read of global memory. Otherwise every pass reads global memory again, at best from L2.
#pragma once

#include "pack.h"
#include "w2s_cuda.h"

namespace {

using w2s::RowCall;
using w2s::cuda::Tiling;

constexpr int kStages = 4;  // groups of copies, each awaited when it is first read

// Not inlined: 25 instructions an element in every loop, and few models cap their logits.
W2S_OUTLINED float capped_outlined(float u, float softcap) { return capped(u, softcap); }

template <class T, class U, bool RESIDENT>
struct Segment {
  static constexpr int E = Format<T>::kCount, EQ = Format<U>::kCount;
  static constexpr bool DENSE = sizeof(U) != sizeof(None);
  Line<T> z;
  Line<U> q;
  int begin, end;  // chunks
  int lo, hi;      // elements
  int q_begin;     // chunk of q at the start of its tile
  bool q_aligned;  // chunks of logits and of targets start at the same elements
  float softcap;
  Pack *tile, *q_tile;

  W2S_DEVICE Segment(const RowCall& c, const Tiling& s, int64_t row, int part, Pack* shared)
      : z(c.logits, c.logits_stride, row, c.v), q(c.probs, c.probs_stride, row, c.v) {
    const int chunks = z.chunk_of(z.length - 1) + 1;
    begin = part * s.tile < chunks ? part * s.tile : chunks;
    end = begin + s.tile < chunks ? begin + s.tile : chunks;
    lo = z.first(begin) < 0 ? 0 : z.first(begin);
    hi = z.first(end) < z.length ? z.first(end) : z.length;
    if (lo > hi) lo = hi;
    softcap = c.params.softcap;
    tile = shared;
    q_tile = shared + s.tile;
    q_begin = 0;
    q_aligned = true;
    if constexpr (DENSE) {
      q_aligned = (q.lead - z.lead) % EQ == 0;
      q_begin = q.chunk_of(lo);
    }
  }

  // Chunks of one thread in one of the kStages groups: first, step is the number of threads.
  W2S_DEVICE int group() const {
    const int each = (end - begin + block::threads() - 1) / block::threads();
    return (each + kStages - 1) / kStages * block::threads();
  }

  // Starts all copies of the tile.
  W2S_DEVICE void fetch() const {
    if constexpr (RESIDENT) {
      const int size = group();
      W2S_NO_UNROLL
      for (int g = 0; g < kStages; ++g) {
        const int from = begin + g * size, to = from + size < end ? from + size : end;
        for (int c = from + block::thread(); c < to; c += block::threads()) {
          z.fetch(c, -INFINITY, tile + (c - begin));
          if constexpr (DENSE) {
            if (q_aligned) fetch_targets_of(c);
          }
        }
        block::copy_commit();
      }
      if constexpr (DENSE) {
        if (!q_aligned) fetch_targets();
      }
    }
  }

  // Waits for one group of this thread's copies; for targets that do not lie in step with the
  // logits, which one thread copies and another reads, for all of them at once.
  W2S_DEVICE void await(int stage) const {
    if constexpr (RESIDENT) {
      if constexpr (DENSE) {
        if (!q_aligned) {
          if (stage != 0) return;
          block::copy_wait<0>();
          block::sync();
          return;
        }
      }
      static_assert(kStages == 4, "one case a stage");
      if (stage == 0) block::copy_wait<3>();
      if (stage == 1) block::copy_wait<2>();
      if (stage == 2) block::copy_wait<1>();
      if (stage == 3) block::copy_wait<0>();
    }
  }

  // Logits of one chunk, soft-capped; -inf outside of the row.
  W2S_DEVICE void read(int chunk, float* x) const {
    if constexpr (RESIDENT) {
      unpack<T>(block::load16_shared(tile + (chunk - begin)), x);
    } else {
      z.read(chunk, -INFINITY, x);
    }
    cap_all(chunk, x);
  }

  W2S_DEVICE void cap_all(int chunk, float* x) const {
    if (!(softcap > 0)) return;
    const bool full = z.full(chunk);
    W2S_UNROLL
    for (int e = 0; e < E; ++e) {
      const float y = capped_outlined(x[e], softcap);
      x[e] = full || z.holds(z.first(chunk) + e) ? y : x[e];
    }
  }

  // Targets of the elements of one chunk of logits; 0 outside of the row.
  W2S_DEVICE void read_targets(int chunk, float* x) const {
    if constexpr (DENSE) {
      const int from = z.first(chunk);
      if (q_aligned && z.full(chunk)) {
        W2S_UNROLL
        for (int e = 0; e < E; e += EQ) {
          const int at = q.chunk_of(from + e);
          if constexpr (RESIDENT) {
            unpack<U>(block::load16_shared(q_tile + (at - q_begin)), x + e);
          } else {
            unpack<U>(block::load16(q.at(at)), x + e);
          }
        }
        return;
      }
      W2S_UNROLL
      for (int e = 0; e < E; ++e) x[e] = q.holds(from + e) ? target_at(from + e) : 0;
    }
  }

  // Single elements of this segment.
  W2S_DEVICE float logit_at(int element) const {
    const float u = RESIDENT ? widen(reinterpret_cast<const T*>(tile)[element - z.first(begin)])
                             : widen(block::load1(z.p + element));
    return capped(u, softcap);
  }
  W2S_DEVICE float target_at(int element) const {
    if constexpr (RESIDENT) {
      return widen(reinterpret_cast<const U*>(q_tile)[element - q.first(q_begin)]);
    } else {
      return widen(block::load1(q.p + element));
    }
  }

 private:
  // Chunks of targets under one chunk of logits: read by the thread that reads those logits.
  W2S_DEVICE void fetch_targets_of(int chunk) const {
    const int from = z.first(chunk), first = from < 0 ? 0 : from;
    const int last = from + E < z.length ? from + E - 1 : z.length - 1;
    for (int at = q.chunk_of(first); at <= q.chunk_of(last); ++at) {
      q.fetch(at, 0, q_tile + (at - q_begin));
    }
  }
  W2S_DEVICE void fetch_targets() const {
    if (lo >= hi) return;
    const int last = q.chunk_of(hi - 1);
    for (int at = q_begin + block::thread(); at <= last; at += block::threads()) {
      q.fetch(at, 0, q_tile + (at - q_begin));
    }
    block::copy_commit();
  }
};

}  // namespace
