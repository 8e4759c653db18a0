// Rows of the weak-to-strong cross-entropy: record, gradient, late fix-up. One include per ISA.
//
// Each function walks rows [begin, end) and is compiled for every pair of logits and target dtype.
// A row is summed in the same order for any number of threads.
#pragma once

#include "../row_math.h"
#include "../w2s.h"
#include "row_write.h"
#include "softcap.h"
#include "softmax.h"

namespace {

using w2s::RowCall;

inline float rest_of(const RowCall& c, int64_t i) { return c.rest == nullptr ? 0 : c.rest[i]; }

inline Record read_record(const RowCall& c, int64_t i) {
  const auto s = [&](int32_t r) { return c.stats[r * c.n + i]; };
  const auto x = [&](int32_t r) { return c.index[r * c.n + i]; };
  return {s(w2s::kMax),         s(w2s::kLogS),      s(w2s::kMass),     s(w2s::kLinear),
          s(w2s::kMean),        s(w2s::kChosen),    s(w2s::kTail),     s(w2s::kCoef),
          s(w2s::kFactor),      s(w2s::kScore),     s(w2s::kEntropy),  s(w2s::kLoss),
          x(w2s::kArgmaxClass), x(w2s::kWeakClass), x(w2s::kSelfClass)};
}

inline void write_record(const RowCall& c, int64_t i, const Record& r) {
  const auto s = [&](int32_t row, float value) { c.stats[row * c.n + i] = value; };
  const auto x = [&](int32_t row, int64_t value) { c.index[row * c.n + i] = value; };
  s(w2s::kLoss, r.loss), s(w2s::kMax, r.max), s(w2s::kLogS, r.logs), s(w2s::kEntropy, r.entropy);
  s(w2s::kMass, r.mass), s(w2s::kLinear, r.linear), s(w2s::kMean, r.mean);
  s(w2s::kChosen, r.chosen), s(w2s::kTail, r.tail), s(w2s::kCoef, r.coef);
  s(w2s::kFactor, r.factor), s(w2s::kScore, r.score);
  x(w2s::kArgmaxClass, r.argmax), x(w2s::kWeakClass, r.weak), x(w2s::kSelfClass, r.self);
}

inline bool is_counted(const RowCall& c, int64_t i) {
  if (c.ids != nullptr && c.probs == nullptr && c.ids[i] == c.ignore_index) return false;
  return c.weight == nullptr || c.weight[i] != 0;
}

inline const float* sparse_probs(const RowCall& c, int64_t i) {
  return c.probs == nullptr ? nullptr : static_cast<const float*>(c.probs) + i * c.k;
}

// A padding entry of a sparse row, or the label of an ignored row.
inline bool is_padding(const RowCall& c, int64_t id) {
  return c.probs == nullptr ? id == c.ignore_index : id < 0;
}

inline bool bad_ids(const RowCall& c, int64_t i) {
  const int64_t* ids = c.ids + i * c.k;
  for (int64_t j = 0; j < c.k; ++j) {
    if (is_padding(c, ids[j])) continue;
    if (ids[j] < 0 || ids[j] >= c.v) return true;
    for (int64_t l = 0; l < j; ++l) {
      if (ids[l] == ids[j]) return true;
    }
  }
  return false;
}

template <class T>
void topk_targets(const RowCall& c, int64_t i, const T* z, Record& r) {
  const int64_t* ids = c.ids + i * c.k;
  const float* probs = sparse_probs(c, i);
  float best = -1, inside = 0;
  for (int64_t j = 0; j < c.k; ++j) {
    if (is_padding(c, ids[j])) continue;
    const float q = probs == nullptr ? 1.0f : probs[j], d = widen(z[ids[j]]) - r.max;
    if (c.topk_diffs != nullptr) c.topk_diffs[i * c.k + j] = d;
    r.mass += q;
    if (q != 0 && d != 0) r.linear += q * d;
    inside += expf(d);
    if (q > best) {
      best = q;
      r.weak = ids[j];
      r.chosen = d;
    }
  }
  if (best < 0) r.chosen = widen(z[0]) - r.max;
  if (c.rest == nullptr) return;
  r.mass += c.rest[i];
  const float share = inside / expf(r.logs);
  const bool cancels = share >= kMaxTopkShare;  // false for NaN, which is kept
  r.tail = cancels ? log_outside(z, c.v, r.max, ids, c.k) - r.logs : log1pf(-share);
}

// Overwrites the entries where the gradient is more than its dense part, from fp32 values; with a
// softcap > 0 as gradients with respect to the uncapped logits.
template <class T>
void write_topk(const RowCall& c, int64_t i, const Record& r, const Slope& s, const float* diffs,
                float self_diff, float softcap, T* g) {
  const int64_t* ids = c.ids + i * c.k;
  const float* probs = sparse_probs(c, i);
  bool self_in_topk = false;
  for (int64_t j = 0; j < c.k; ++j) {
    if (is_padding(c, ids[j])) continue;
    const float q = probs == nullptr ? 1.0f : probs[j];
    const bool is_self = ids[j] == r.self;
    self_in_topk |= is_self;
    const float cap = cap_slope(diffs[j] + r.max, softcap);
    narrow_to(g[ids[j]], cap * entry(s, s.inside, diffs[j], q, is_self));
  }
  if (!self_in_topk && s.own != 0 && r.self >= 0) {
    narrow_to(g[r.self], entry(s, s.outside, self_diff - s.shift, 0, true));
  }
}

constexpr int64_t kTopkOnStack = 64;
// A gradient of this size in a separate buffer leaves the caches before it is read; a plain store
// would also fetch every line that it overwrites.
constexpr int64_t kStreamBytes = 1 << 24;

template <bool DENSE, class T, class U>
void write_dense_part(const RowCall& c, const T* z, const U* q, T* g, const Record& r,
                      const Slope& s, float slope, bool more) {
  const float weak = DENSE ? s.g * s.weak : 0;
  const T* next = z + (more ? c.logits_stride : 0);
  const U* next_q = q + (more ? c.probs_stride : 0);
  const auto write = g != z && c.n * c.v * static_cast<int64_t>(sizeof(T)) >= kStreamBytes
                         ? write_gradient<DENSE, true, T, U>
                         : write_gradient<DENSE, false, T, U>;
  for_ranges(c.v, c.share_rows, [&](int64_t from, int64_t to) {
    const U* targets = DENSE ? q + from : q;
    write(z + from, targets, g + from, to - from, r.max + s.shift, s.g * slope, weak, s.g * s.flat,
          next + from, DENSE ? next_q + from : next_q);
  });
}

// Difference to the maximum, 0 for a class of another vocabulary shard.
template <class T>
inline float diff_at(const T* z, int64_t id, const Record& r) {
  return id < 0 ? 0 : widen(z[id]) - r.max;
}

// z is the row of logits; out may be the same memory.
template <class T, class U>
void row_gradient(const RowCall& c, int64_t i, const Record& r, float g, const T* z, const U* q,
                  T* out, bool more) {
  if (!is_counted(c, i) || r.factor == 0 || g == 0) {
    memset(static_cast<void*>(out), 0, static_cast<size_t>(c.v) * sizeof(T));
    return;
  }
  const Slope s = row_slope(c.params, rest_of(c, i), c.v, r, g * r.factor);
  const float self_diff = diff_at(z, r.self, r);
  if (c.ids == nullptr) {
    const float top_diff = diff_at(z, r.argmax, r);
    const float at_self = r.self < 0 ? 0 : entry(s, s.inside, self_diff, widen(q[r.self]), true);
    write_dense_part<true>(c, z, q, out, r, s, s.inside, more);
    // p can be 1 only here: the vector product would leave a rounding error of the size of p.
    if (r.argmax >= 0) {
      const bool is_self = r.argmax == r.self;
      narrow_to(out[r.argmax], entry(s, s.inside, top_diff, widen(q[r.argmax]), is_self));
    }
    if (s.own != 0 && r.self >= 0) narrow_to(out[r.self], at_self);
    return;
  }
  // The write may overwrite the logits: read the top-k ones first.
  float stack[kTopkOnStack] = {};
  float* diffs = c.k <= kTopkOnStack ? stack : new float[static_cast<size_t>(c.k)];
  for (int64_t j = 0; j < c.k; ++j) {
    const int64_t id = c.ids[i * c.k + j];
    diffs[j] = is_padding(c, id) ? 0 : widen(z[id]) - r.max;
  }
  write_dense_part<false>(c, z, z, out, r, s, s.outside, more);
  write_topk(c, i, r, s, diffs, self_diff, 0, out);
  if (diffs != stack) delete[] diffs;
}

template <class T, class U>
Record make_record(const RowCall& c, int64_t i, const T* z, const U* q) {
  const bool dense = c.ids == nullptr, mean = c.params.smoothing != 0;
  // Without dense targets the logits take their place, so that both are read in the same order.
  const bool share = c.share_rows;
  const Row s = dense ? (mean ? sum_row<true, true>(z, q, c.v, share)
                              : sum_row<true, false>(z, q, c.v, share))
                      : (mean ? sum_row<false, true>(z, z, c.v, share)
                              : sum_row<false, false>(z, z, c.v, share));
  Record r{};
  r.max = s.max;
  r.logs = s.logs;
  r.entropy = s.entropy;
  r.mean = s.mean;
  r.argmax = find(z, s.max_block, c.v, s.max);
  r.score = c.v == 2 ? widen(z[0]) - widen(z[1]) : expf(-s.logs);
  if (dense) {
    r.mass = s.weak;
    r.linear = s.linear;
    r.weak = find(q, s.weak_block, c.v, s.weak_max);
    r.chosen = widen(z[r.weak]) - r.max;
  } else {
    topk_targets(c, i, z, r);
  }
  check_weak(r);
  if (c.params.rule == w2s::kGiven) r.self = c.index[w2s::kSelfClass * c.n + i];
  choose_self_target(c.params, r);
  row_factor(c.params, is_counted(c, i), r);
  row_loss(c.params, rest_of(c, i), widen(z[r.self]) - r.max, r);
  return r;
}

inline float upstream(const RowCall& c, int64_t i) {
  if (c.row_scale != nullptr) return c.row_scale[i * c.row_scale_stride];
  return c.weight == nullptr ? c.scale : c.scale * c.weight[i];
}

// The logits of a row and the place of its gradient. With a soft-cap both are a separate row of
// fp32: logits are capped on reading, the gradient is multiplied by the slope of the cap on
// writing.
template <class T>
struct Plain {
  using Logit = T;
  static constexpr bool kNext = true;  // the next row lies one stride further
  const RowCall& c;
  explicit Plain(const RowCall& call) : c(call) {}
  const T* logits(int64_t i) const { return static_cast<const T*>(c.logits) + i * c.logits_stride; }
  T* gradient(int64_t i) const { return static_cast<T*>(c.grad) + i * c.grad_stride; }
  void finish(int64_t) const {}
};

template <class T>
struct Capped {
  using Logit = float;
  static constexpr bool kNext = false;
  const RowCall& c;
  float* row;
  explicit Capped(const RowCall& call) : c(call), row(new float[static_cast<size_t>(call.v)]) {}
  Capped(const Capped&) = delete;
  Capped& operator=(const Capped&) = delete;
  ~Capped() { delete[] row; }
  const float* logits(int64_t i) const {
    const T* u = Plain<T>(c).logits(i);
    for_ranges(c.v, c.share_rows, [&](int64_t from, int64_t to) {
      cap_row(u + from, row + from, to - from, c.params.softcap);
    });
    return row;
  }
  float* gradient(int64_t) const { return row; }
  void finish(int64_t i) const {
    const T* u = Plain<T>(c).logits(i);
    T* g = Plain<T>(c).gradient(i);
    for_ranges(c.v, c.share_rows, [&](int64_t from, int64_t to) {
      uncap_row(row + from, u + from, g + from, to - from, c.params.softcap);
    });
  }
};

// The dense targets of a row, null for top-k classes.
template <class U>
struct Probabilities {
  using Prob = U;
  const RowCall& c;
  explicit Probabilities(const RowCall& call) : c(call) {}
  const U* row(int64_t i) const {
    return c.ids == nullptr ? static_cast<const U*>(c.probs) + i * c.probs_stride : nullptr;
  }
};

// The same from their logits: a row of fp32 that stays in the caches, so no pass over memory is
// added.
template <class U>
struct Softmax {
  using Prob = float;
  const RowCall& c;
  float* q;
  explicit Softmax(const RowCall& call) : c(call), q(new float[static_cast<size_t>(call.v)]) {}
  Softmax(const Softmax&) = delete;
  Softmax& operator=(const Softmax&) = delete;
  ~Softmax() { delete[] q; }
  const float* row(int64_t i) const {
    softmax_row(static_cast<const U*>(c.probs) + i * c.probs_stride, q, c.v);
    return q;
  }
};

template <class Access, class Targets>
int64_t read_rows(const RowCall& c, int64_t begin, int64_t end) {
  using Logit = typename Access::Logit;
  using Prob = typename Targets::Prob;
  const Access a(c);
  const Targets targets(c);
  for (int64_t i = begin; i < end; ++i) {
    if (c.ids != nullptr && bad_ids(c, i)) return i;
    const Logit* z = a.logits(i);
    const Prob* q = targets.row(i);
    const Record r = make_record<Logit, Prob>(c, i, z, q);
    write_record(c, i, r);
    if (c.grad == nullptr) continue;
    row_gradient<Logit, Prob>(c, i, r, upstream(c, i), z, q, a.gradient(i),
                              Access::kNext && i + 1 < end);
    a.finish(i);
  }
  return -1;
}

template <class Access, class Targets>
int64_t gradient_rows(const RowCall& c, int64_t begin, int64_t end) {
  const Access a(c);
  const Targets targets(c);
  for (int64_t i = begin; i < end; ++i) {
    row_gradient<typename Access::Logit, typename Targets::Prob>(
        c, i, read_record(c, i), upstream(c, i), a.logits(i), targets.row(i), a.gradient(i),
        Access::kNext && i + 1 < end);
    a.finish(i);
  }
  return -1;
}

struct Rows {
  template <class T, class U>
  static int64_t run(const RowCall& c, int64_t begin, int64_t end) {
    const bool capped = c.params.softcap != 0;
    if (c.probs_are_logits) {
      return capped ? read_rows<Capped<T>, Softmax<U>>(c, begin, end)
                    : read_rows<Plain<T>, Softmax<U>>(c, begin, end);
    }
    return capped ? read_rows<Capped<T>, Probabilities<U>>(c, begin, end)
                  : read_rows<Plain<T>, Probabilities<U>>(c, begin, end);
  }
};

struct Gradient {
  template <class T, class U>
  static int64_t run(const RowCall& c, int64_t begin, int64_t end) {
    const bool capped = c.params.softcap != 0;
    if (c.probs_are_logits) {
      return capped ? gradient_rows<Capped<T>, Softmax<U>>(c, begin, end)
                    : gradient_rows<Plain<T>, Softmax<U>>(c, begin, end);
    }
    return capped ? gradient_rows<Capped<T>, Probabilities<U>>(c, begin, end)
                  : gradient_rows<Plain<T>, Probabilities<U>>(c, begin, end);
  }
};

// Removes the self-target from rows below the threshold. Their dense part is rescaled only if
// the weak mass is not 1; the few other entries are written again.
struct Fixup {
  template <class T, class U>
  static int64_t run(const RowCall& c, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Record r = read_record(c, i);
      float by = 1;
      if (!close_gate(c.params, rest_of(c, i), r, by)) continue;
      write_record(c, i, r);
      const float g = upstream(c, i) * r.factor;
      if (c.grad == nullptr || !is_counted(c, i) || g == 0) continue;
      T* out = static_cast<T*>(c.grad) + i * c.grad_stride;
      if (by != 1) rescale(out, c.v, by);
      const Slope s = row_slope(c.params, rest_of(c, i), c.v, r, g);
      // The maximum's entry held the self-target: z - max is 0 there.
      narrow_to(out[r.argmax],
                entry(s, s.outside, 0, 0, false) * cap_slope(r.max, c.params.softcap));
      write_topk(c, i, r, s, c.topk_diffs + i * c.k, 0, c.params.softcap, out);
    }
    return -1;
  }
};

// Calls F::run<T, U> for the dtypes of the logits and of dense targets.
template <class F>
int64_t by_dtype(const RowCall& c, int64_t begin, int64_t end) {
  const bool same = c.probs_dtype == c.dtype;
  switch (c.dtype) {
    case w2s::kF32:
      return F::template run<float, float>(c, begin, end);
    case w2s::kBF16:
      return same ? F::template run<BF16, BF16>(c, begin, end)
                  : F::template run<BF16, float>(c, begin, end);
    default:
      return same ? F::template run<F16, F16>(c, begin, end)
                  : F::template run<F16, float>(c, begin, end);
  }
}

}  // namespace
