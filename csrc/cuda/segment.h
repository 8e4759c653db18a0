// The part of a row that one block works on: where its logits and dense targets are read from.
//
// RESIDENT: the block copies its part to shared memory once and reads it from there, so a row costs
// one read of global memory. Otherwise every pass reads global memory again, at best from L2.
//
// Loops over the whole chunks of a row test nothing. The rest are apart: the ends of the row, and
// all chunks where dense targets do not lie in step with the logits.
#pragma once

#include "pack.h"
#include "w2s_cuda.h"

namespace {

using w2s::RowCall;
using w2s::cuda::Tiling;

constexpr int kStages = 4;  // groups of copies, each awaited when it is first read

// Not inlined: 25 instructions an element in every loop, and few models cap their logits.
W2S_OUTLINED float capped_outlined(float u, float softcap) { return capped(u, softcap); }

template <class T_, class U_, bool RESIDENT_, bool CAP>
struct Segment {
  using T = T_;
  using U = U_;
  static constexpr bool RESIDENT = RESIDENT_;
  static constexpr int E = Format<T>::kCount, EQ = Format<U>::kCount;
  static constexpr bool DENSE = sizeof(U) != sizeof(None);
  static constexpr int PACKS = DENSE ? E / EQ : 0;  // of targets beside one of logits
  Line<T> z;
  Line<U> q;
  int begin, end;    // chunks
  int inner, outer;  // whole chunks: all but up to one before and one behind, or none
  int lo, hi;        // elements
  int q_begin;       // chunk of q at the start of its tile
  int q_step;        // chunk of q under chunk 0, where they lie in step
  bool q_aligned;    // chunks of logits and of targets start at the same elements
  float softcap;
  Pack *tile, *q_tile;              // in shared memory
  Pack *whole_tile, *whole_q_tile;  // of whole chunk 0

  W2S_DEVICE Segment(const RowCall& c, const Tiling& s, int64_t row, int part, Pack* shared)
      : z(c.logits, c.logits_stride, row, c.v), q(c.probs, c.probs_stride, row, c.v) {
    const int chunks = z.chunk_of(z.length - 1) + 1;
    begin = part * s.tile < chunks ? part * s.tile : chunks;
    end = begin + s.tile < chunks ? begin + s.tile : chunks;
    const int first = z.first_full(), last = z.end_full();
    inner = begin > first ? begin : first < end ? first : end;
    outer = end < last ? end : last > inner ? last : inner;
    lo = z.first(begin) < 0 ? 0 : z.first(begin);
    hi = z.first(end) < z.length ? z.first(end) : z.length;
    if (lo > hi) lo = hi;
    softcap = CAP ? c.params.softcap : 0;
    tile = shared;
    q_tile = shared + s.tile;
    q_begin = q_step = 0;
    q_aligned = true;
    if constexpr (DENSE) {
      q_aligned = (q.lead - z.lead) % EQ == 0;
      q_step = (q.lead - z.lead) / EQ;
      q_begin = q.chunk_of(lo);
    }
    if (!q_aligned) outer = inner = begin;
    whole_tile = tile + (inner - begin);
    whole_q_tile = q_tile + (inner * PACKS + q_step - q_begin);
  }

  // The first of the other chunks that this thread works on, then the one after c; -1 for none. The
  // chunk before the whole ones belongs to the first thread, the one behind them to the last.
  W2S_DEVICE int edge() const {
    if (!q_aligned) return begin + block::thread() < end ? begin + block::thread() : -1;
    if (block::thread() == 0 && begin < inner) return begin;
    if (block::thread() == block::threads() - 1 && outer < end) return end - 1;
    return -1;
  }
  W2S_DEVICE int next_edge(int c) const {
    return !q_aligned && c + block::threads() < end ? c + block::threads() : -1;
  }

  // Whole chunks are counted from `inner` on.
  W2S_DEVICE int whole() const { return outer - inner; }
  // Of them in one of the kStages groups; a multiple of the number of threads.
  W2S_DEVICE int group() const {
    const uint32_t threads = static_cast<uint32_t>(block::threads());
    const uint32_t each = (static_cast<uint32_t>(whole()) + threads - 1) / threads;
    return static_cast<int>((each + kStages - 1) / kStages * threads);
  }

  // Starts all copies of the tile.
  W2S_DEVICE void fetch() const {
    if constexpr (RESIDENT) {
      const int size = group(), threads = block::threads();
      W2S_NO_UNROLL
      for (int g = 0; g < kStages; ++g) {
        const int to = (g + 1) * size < whole() ? (g + 1) * size : whole();
        W2S_NO_UNROLL
        for (int i = g * size + block::thread(); i < to; i += 4 * threads) {
          W2S_UNROLL
          for (int n = 0; n < 4; ++n) {
            if (i + n * threads < to) fetch_whole(i + n * threads);
          }
        }
        block::copy_commit();
      }
      W2S_NO_UNROLL
      for (int c = edge(); c >= 0; c = next_edge(c)) {
        z.fetch(c, -INFINITY, tile + (c - begin));
        if constexpr (DENSE) {
          if (q_aligned) fetch_targets_of(c);
        }
      }
      block::copy_commit();
      if constexpr (DENSE) {
        if (!q_aligned) fetch_targets();
      }
    }
  }

  // Waits for one group of this thread's copies, kStages for its other chunks; for targets that
  // do not lie in step with the logits, which one thread copies and another reads, for all of them
  // at once.
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
      if (stage == 0) block::copy_wait<4>();
      if (stage == 1) block::copy_wait<3>();
      if (stage == 2) block::copy_wait<2>();
      if (stage == 3) block::copy_wait<1>();
      if (stage == 4) block::copy_wait<0>();
    }
  }

  // A whole chunk as it is stored.
  W2S_DEVICE Pack load(int i) const {
    if constexpr (RESIDENT) {
      return block::load16_shared(whole_tile + i);
    } else {
      return block::load16(packs_of(z.at(inner)) + i);
    }
  }
  // Its targets.
  W2S_DEVICE Pack load_targets(int i, int part) const {
    if constexpr (!DENSE) {
      return Pack{};
    } else if constexpr (RESIDENT) {
      return block::load16_shared(whole_q_tile + i * PACKS + part);
    } else {
      return block::load16(packs_of(q.at(inner * PACKS + q_step)) + i * PACKS + part);
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
    if (!CAP || !(softcap > 0)) return;
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
      W2S_UNROLL
      for (int e = 0; e < E; ++e) x[e] = q.holds(from + e) ? target_at(from + e) : 0;
    }
  }

  // Single elements of this segment.
  W2S_DEVICE float logit_at(int element) const {
    const float u = RESIDENT ? widen(reinterpret_cast<const T*>(tile)[element - z.first(begin)])
                             : widen(block::load1(z.p + element));
    return CAP ? capped(u, softcap) : u;
  }
  W2S_DEVICE float target_at(int element) const {
    if constexpr (RESIDENT) {
      return widen(reinterpret_cast<const U*>(q_tile)[element - q.first(q_begin)]);
    } else {
      return widen(block::load1(q.p + element));
    }
  }

 private:
  template <class X>
  W2S_DEVICE static const Pack* packs_of(const X* at) {
    return reinterpret_cast<const Pack*>(at);
  }
  W2S_DEVICE void fetch_whole(int i) const {
    block::copy16(whole_tile + i, packs_of(z.at(inner)) + i);
    if constexpr (DENSE) {
      W2S_UNROLL
      for (int p = 0; p < PACKS; ++p) {
        const int at = i * PACKS + p;
        block::copy16(whole_q_tile + at, packs_of(q.at(inner * PACKS + q_step)) + at);
      }
    }
  }
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
