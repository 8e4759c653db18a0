// Writing a row's gradient: the dense part by chunks, then the few special entries.
#pragma once

#include "targets.h"

namespace {

// How the dense part of a gradient follows from logits: post (slope 2^y - weak q - flat), y as in
// exponent_of. The upstream factor is folded into the slopes, and the loop is the fast one, where
// that does not overflow: then post is 1.
struct Fill {
  Origin origin;
  float slope, weak, flat, post;
  bool fast;
};
constexpr float kMostSlope = 1e30f;

template <class W>
W2S_DEVICE Fill fill_of(const Final& f) {
  const Slope& s = f.slope;
  const float max = W::DENSE ? f.max : f.max + s.shift;
  Fill fill;
  fill.origin = origin_of<W>(max);
  // Where 2^y is not 1 at the maximum.
  const float unit = W::NEAR ? block::exp2_fast(exponent_of(max, fill.origin)) : 1;
  fill.slope = (W::DENSE ? s.inside : s.outside) / unit;
  fill.weak = s.weak, fill.flat = s.flat, fill.post = s.g;
  const bool lossy = fabsf(s.g * fill.slope) >= kMostSlope;  // not of a NaN: it is one either way
  if (!lossy) fill.slope *= s.g, fill.weak *= s.g, fill.flat *= s.g, fill.post = 1;
  fill.fast = !lossy && !(W::NEAR && fabsf(fill.origin.a) > 0);
  return fill;
}

// Gradient entries of E neighbouring classes outside the top k. FAST: fill.fast holds.
template <class W, bool FAST, int E>
W2S_DEVICE void chunk_gradient(const Fill& f, float softcap, const float* z, const float* q,
                               float* g) {
  W2S_UNROLL
  for (int e = 0; e < E; ++e) {
    const float y = FAST && W::NEAR ? fmaf(z[e], kLog2E, -f.origin.b)
                    : W::NEAR       ? exponent_of(z[e], f.origin)
                                    : (z[e] - f.origin.a) * kLog2E;
    const float p = block::exp2_fast(y);
    if constexpr (W::DENSE) {
      // As in entry(): the target is rounded before it is subtracted, so p = q = 1 leaves 0.
      g[e] = fmaf(f.slope, p, -fmaf(f.weak, q[e], f.flat));
    } else {
      g[e] = W::MEAN ? fmaf(f.slope, p, -f.flat) : f.slope * p;
    }
    if (!FAST) g[e] *= f.post;
  }
  if constexpr (W::CAP) {
    if (!(softcap > 0)) return;
    W2S_UNROLL
    for (int e = 0; e < E; ++e) g[e] *= cap_slope(z[e], softcap);
  }
}

template <class T>
W2S_DEVICE void write_zeros(const Line<T>& out, int lo, int hi) {
  float g[Line<T>::kCount];
  W2S_UNROLL
  for (int e = 0; e < Line<T>::kCount; ++e) g[e] = 0;
  if (lo >= hi) return;
  for (int c = out.chunk_of(lo) + block::thread(); c <= out.chunk_of(hi - 1);
       c += block::threads()) {
    if (out.first(c) >= lo && out.first(c) + Line<T>::kCount <= hi) {
      block::store16(out.at(c), pack<T>(g));
    } else {
      out.write_some(out.first(c), lo, hi, g);
    }
  }
}

// Whole chunks that a thread has loaded ahead of their use, from global memory; COUNT of them, or
// 0.
template <class S, int COUNT_>
struct Ahead {
  static constexpr int COUNT = COUNT_;
  Pack z[COUNT + 1], q[COUNT * S::PACKS + 1];

  W2S_DEVICE void load(const S& segment, int first) {
    W2S_UNROLL
    for (int n = 0; n < COUNT; ++n) {
      const int i = first + n * block::threads();
      if (i >= segment.whole()) return;
      z[n] = segment.load(i);
      W2S_UNROLL
      for (int p = 0; p < S::PACKS; ++p) q[n * S::PACKS + p] = segment.load_targets(i, p);
    }
  }
};

// The gradient lies in step with the logits: a chunk of one is a chunk of the other; f.fast, or
// CAP. `ahead` holds the first chunks, if any are loaded ahead.
template <class W, class T, class S, class A>
W2S_DEVICE void write_whole(const S& segment, const Fill& f, const Line<T>& out, A& ahead) {
  Pack* const to = reinterpret_cast<Pack*>(out.at(segment.inner));
  const int step = block::threads(), whole = segment.whole();
  const auto write = [&](int i, const Pack& logits, const Pack* targets) {
    float z[S::E], q[S::E], g[S::E];
    unpack<T>(logits, z);
    if constexpr (S::DENSE) {
      W2S_UNROLL
      for (int p = 0; p < S::PACKS; ++p) unpack<typename S::U>(targets[p], q + p * S::EQ);
    }
    segment.cap_all(segment.inner + i, z);
    chunk_gradient<W, !W::CAP, S::E>(f, segment.softcap, z, q, g);
    block::store16(to + i, pack<T>(g));
  };
  int i = block::thread();
  if constexpr (A::COUNT == 0) {
    W2S_NO_UNROLL
    for (; i < whole; i += step) {
      Pack targets[S::DENSE ? S::PACKS : 1];
      W2S_UNROLL
      for (int p = 0; p < S::PACKS; ++p) targets[p] = segment.load_targets(i, p);
      write(i, segment.load(i), targets);
    }
  } else {
    W2S_NO_UNROLL
    while (i < whole) {
      W2S_UNROLL
      for (int n = 0; n < A::COUNT; ++n, i += step) {
        if (i >= whole) return;
        write(i, ahead.z[n], ahead.q + n * S::PACKS);
      }
      ahead.load(segment, i);
    }
  }
}

template <class W, class T, class S, class A>
W2S_DEVICE void write_in_step(const S& segment, const Fill& f, const Line<T>& out, A& ahead) {
  write_whole<W>(segment, f, out, ahead);
  W2S_NO_UNROLL
  for (int c = segment.edge(); c >= 0; c = segment.next_edge(c)) {
    float z[S::E], q[S::E], g[S::E];
    segment.read(c, z);
    segment.read_targets(c, q);
    chunk_gradient<W, false, S::E>(f, segment.softcap, z, q, g);
    out.write(c, g);
  }
}

// Otherwise, and where f.fast does not hold, the stores are wide and the reads are single elements.
template <class W, class T, class S>
W2S_DEVICE void write_shifted(const S& segment, const Final& final, const Fill& f,
                              const Line<T>& out) {
  constexpr int E = S::E;
  float z[E], q[E], g[E];
  if (segment.lo >= segment.hi) return;
  const int last = out.chunk_of(segment.hi - 1);
  W2S_NO_UNROLL
  for (int c = out.chunk_of(segment.lo) + block::thread(); c <= last; c += block::threads()) {
    const int from = out.first(c);
    W2S_UNROLL
    for (int e = 0; e < E; ++e) {
      const bool mine = from + e >= segment.lo && from + e < segment.hi;
      z[e] = mine ? segment.logit_at(from + e) : final.max;
      if constexpr (S::DENSE) q[e] = mine ? segment.target_at(from + e) : 0;
    }
    chunk_gradient<W, false, E>(f, segment.softcap, z, q, g);
    if (from >= segment.lo && from + E <= segment.hi) {
      block::store16(out.at(c), pack<T>(g));
    } else {
      out.write_some(from, segment.lo, segment.hi, g);
    }
  }
}

// Overwrites the self-target and the top-k entries of this segment from fp32 values; `diffs` holds
// z - M of the top-k classes. A self-target among them is written last with both parts.
template <class T, class S>
W2S_DEVICE void write_entries(const RowCall& c, int64_t row, const S& segment, const Final& f,
                              const float* diffs, const Line<T>& out) {
  const auto put = [&](int id, float g, float diff) {
    block::store1(out.p + id, Format<T>::narrow(g * cap_slope(diff + f.max, c.params.softcap)));
  };
  const Slope& s = f.slope;
  const auto mine = [&](int id) { return id >= segment.lo && id < segment.hi; };
  if (s.own != 0 && mine(f.self) && block::thread() == 0) {
    if constexpr (S::DENSE) {
      const float q = segment.target_at(f.self);
      put(f.self, entry(s, s.inside, f.self_diff, q, true), f.self_diff);
    } else {
      put(f.self, entry(s, s.outside, f.self_diff - s.shift, 0, true), f.self_diff);
    }
  }
  if constexpr (!S::DENSE) {
    block::sync();
    for (int64_t j = block::thread(); j < c.k; j += block::threads()) {
      const TopkEntry l = topk_at(c, row, j);
      if (!l.inside || !mine(l.id)) continue;
      put(l.id, entry(s, s.inside, diffs[j], l.q, l.id == f.self), diffs[j]);
    }
  }
}

// The gradient of one segment; `diffs` are complete, and no thread still needs the logits that
// this overwrites if the gradient takes their place. `ahead`: see write_whole.
template <class W, class T, class S, class A>
W2S_DEVICE void write_segment(const RowCall& c, int64_t row, const S& segment, const Final& f,
                              const float* diffs, A& ahead) {
  const Line<T> out(c.grad, c.grad_stride, row, c.v);
  if (f.zero != 0) {
    write_zeros(out, segment.lo, segment.hi);
    return;
  }
  const Fill fill = fill_of<W>(f);
  if (out.lead == segment.z.lead && (W::CAP || fill.fast)) {
    write_in_step<W>(segment, fill, out, ahead);
  } else {
    write_shifted<W>(segment, f, fill, out);
  }
  block::sync();
  write_entries(c, row, segment, f, diffs, out);
}

}  // namespace
