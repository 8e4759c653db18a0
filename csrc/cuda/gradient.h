// Writing a row's gradient: the dense part by chunks, then the few special entries.
#pragma once

#include "targets.h"

namespace {

// Gradient entries of E neighbouring classes outside the top k.
template <class S>
W2S_DEVICE void chunk_gradient(const S& segment, const Final& f, const float* z, const float* q,
                               float* g) {
  const Slope& s = f.slope;
  const float origin = S::DENSE ? f.max : f.max + s.shift;
  W2S_UNROLL
  for (int e = 0; e < S::E; ++e) {
    const float p = exp_fast(z[e] - origin);
    if constexpr (S::DENSE) {
      // As in entry(): the target is rounded before it is subtracted, so p = q = 1 leaves 0.
      g[e] = s.g * fmaf(s.inside, p, -fmaf(s.weak, q[e], s.flat));
    } else {
      g[e] = s.g * fmaf(s.outside, p, -s.flat);
    }
  }
  if (!(segment.softcap > 0)) return;
  W2S_UNROLL
  for (int e = 0; e < S::E; ++e) g[e] *= cap_slope(z[e], segment.softcap);
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

// The gradient lies in step with the logits: a chunk of one is a chunk of the other.
template <class T, class S>
W2S_DEVICE void write_in_step(const S& segment, const Final& f, const Line<T>& out) {
  float z[S::E], q[S::E], g[S::E];
  W2S_NO_UNROLL
  for (int c = segment.begin + block::thread(); c < segment.end; c += block::threads()) {
    segment.read(c, z);
    segment.read_targets(c, q);
    chunk_gradient(segment, f, z, q, g);
    out.write(c, g);
  }
}

// Otherwise the stores are wide and the reads are single elements.
template <class T, class S>
W2S_DEVICE void write_shifted(const S& segment, const Final& f, const Line<T>& out) {
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
      z[e] = mine ? segment.logit_at(from + e) : f.max;
      if constexpr (S::DENSE) q[e] = mine ? segment.target_at(from + e) : 0;
    }
    chunk_gradient(segment, f, z, q, g);
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
// this overwrites if the gradient takes their place.
template <class T, class S>
W2S_DEVICE void write_segment(const RowCall& c, int64_t row, const S& segment, const Final& f,
                              const float* diffs) {
  const Line<T> out(c.grad, c.grad_stride, row, c.v);
  if (f.zero != 0) {
    write_zeros(out, segment.lo, segment.hi);
    return;
  }
  if (out.lead == segment.z.lead) {
    write_in_step(segment, f, out);
  } else {
    write_shifted(segment, f, out);
  }
  block::sync();
  write_entries(c, row, segment, f, diffs, out);
}

}  // namespace
