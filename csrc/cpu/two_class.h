// Two classes: rows across lanes. A row has one degree of freedom, the margin s = z_0 - z_1:
//   e = exp(-|s|), log S = log(1 + e), p_small = e / (1 + e), p_big = 1 / (1 + e).
// A logit of +inf makes e NaN; from s alone it would look like certainty.
#pragma once

#include "cross_entropy.h"

namespace {

// Rows handled at once; a multiple of every vector width, and all columns fit in L1.
constexpr int64_t kRows = 256;

struct Columns {
  float z0[kRows], z1[kRows], q0[kRows], q1[kRows], kept[kRows], g[kRows];
  float logs[kRows], small[kRows], big[kRows], entropy[kRows];
  float margin[kRows], own1[kRows], factor[kRows], loss[kRows], g0[kRows], g1[kRows];
  float mass[kRows], linear[kRows], mean[kRows], max[kRows], chosen[kRows], coef[kRows];
};

// log(1 + e) for e in [0, 1] as 2 atanh(e / (2 + e)); largest relative error 1.5e-7.
inline Vec log1p_of(Vec e) {
  const Vec u = e / (e + set(2.0f)), w = u * u;
  Vec p = fma(set(2.0f / 13), w, set(2.0f / 11));
  p = fma(p, w, set(2.0f / 9));
  p = fma(p, w, set(2.0f / 7));
  p = fma(p, w, set(2.0f / 5));
  p = fma(p, w, set(2.0f / 3));
  p = fma(p, w, set(2.0f));
  return p * u;
}

template <class T>
inline void read_pair(const T* p, int64_t stride, int64_t n, float* a, float* b) {
  for (int64_t i = 0; i < n; ++i) {
    a[i] = widen(p[i * stride]);
    b[i] = widen(p[i * stride + 1]);
  }
}

// Weak P(class 0), P(class 1) and whether the row counts, for n rows from `at`; returns the first
// bad label or -1.
template <class U>
inline int64_t read_weak(const RowCall& c, int64_t at, int64_t n, float* q0, float* q1,
                         float* kept) {
  for (int64_t i = 0; i < n; ++i) kept[i] = is_counted(c, at + i) ? 1.0f : 0.0f;
  if (c.ids == nullptr) {
    read_pair(static_cast<const U*>(c.probs) + at * c.probs_stride, c.probs_stride, n, q0, q1);
    return -1;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t id = c.ids[at + i];
    if (id != c.ignore_index && (id < 0 || id > 1)) return at + i;
    q0[i] = id == 0 ? 1.0f : 0.0f;
    q1[i] = id == 1 ? 1.0f : 0.0f;
  }
  return -1;
}

// First step, for the selection: c.scratch row 0 margins, row 1 weak P(class 1), row 2 kept or 0.
struct Margins {
  template <class T, class U>
  static int64_t run(const RowCall& c, int64_t begin, int64_t end) {
    float a[kRows], b[kRows], *out = c.scratch;
    for (int64_t at = begin; at < end; at += kRows) {
      const int64_t n = end - at < kRows ? end - at : kRows;
      const T* z = static_cast<const T*>(c.logits) + at * c.logits_stride;
      read_pair(z, c.logits_stride, n, a, b);
      for (int64_t i = 0; i < n; ++i) out[at + i] = a[i] - b[i];
      const int64_t bad = read_weak<U>(c, at, n, a, out + c.n + at, out + 2 * c.n + at);
      if (bad >= 0) return bad;
    }
    return -1;
  }
};

inline void softmax(int64_t n, Columns& x) {
  for (int64_t i = 0; i < n; i += Vec::W) {
    const Vec z0 = load(x.z0 + i), z1 = load(x.z1 + i);
    const Vec s = z0 - z1, top = vmax(z0, z1);
    const Vec d = vmin(set(0) - s, s);                        // -|s|
    const Vec e = exp2_of<5>(d * set(kLog2E)) + (top - top);  // inf - inf: NaN
    const Vec logs = log1p_of(e), big = set(1) / (e + set(1)), small = e * big;
    store(x.margin + i, s);
    store(x.logs + i, logs);
    store(x.big + i, big);
    store(x.small + i, small);
    // e is exactly 0 where the margin is infinite; the clamp keeps 0 * inf out.
    store(x.entropy + i, logs - small * vmax(set(-1e30f), d));
  }
}

// Loss and both gradient entries of n rows. Every choice is a select between values that are
// computed either way, so the compiler runs rows across lanes here too.
inline void finish(const RowCall& c, int64_t n, Columns& x) {
  const float a = c.params.rule == w2s::kNone ? 0 : c.params.aux, keep = 1 - a,
              hard = 1 - c.params.smoothing;
  // Without a rule the hard class is only reported: that of the larger logit, threshold 0.
  const float threshold = c.params.rule == w2s::kMargin ? c.params.threshold : 0;
  for (int64_t j = 0; j < n; ++j) {
    const float s = x.margin[j], q0 = x.q0[j], q1 = x.q1[j], logs = x.logs[j];
    const float z0 = x.z0[j], z1 = x.z1[j];
    const float d0 = s < 0 ? s : 0, minus = -s, d1 = s < 0 ? 0 : minus;
    const float p0 = s < 0 ? x.small[j] : x.big[j], p1 = s < 0 ? x.big[j] : x.small[j];
    // One of d0 and d1 is 0: only the other counts, and only where its class has weak mass.
    const float lower = s < 0 ? q0 : q1, l = lower * (s < 0 ? s : minus);
    const float linear = lower != 0 ? l : 0, mass = q0 + q1;
    const float mean = 0.5f * (d0 + d1);
    const float h1 = s >= threshold ? 0.0f : 1.0f, h0 = 1 - h1;
    const float own = logs - (s >= threshold ? d0 : d1);
    const float weak = hard * (mass * logs - linear);
    const float even =
        c.params.smoothing != 0 ? c.params.smoothing * mass : 0;  // the mass may be infinite
    const float spread = even * (logs - mean);
    const float label = weak + (even != 0 ? spread : 0), some = keep * label;
    // A coefficient of 1 removes a weak label that is impossible (+inf), but no NaN.
    // mass * 0 is NaN where the mass is infinite.
    const float none = fabsf(label) == INFINITY ? mass * 0 : some;
    const float value = (keep == 0 ? none : some) + (a != 0 ? a * own : 0);
    const float dense = keep * mass + a, flat = 0.5f * keep * even, soft = keep * hard;
    const float t0 = soft * q0 + a * h0, t1 = soft * q1 + a * h1;
    const float u0 = dense * p0 - t0 - flat, u1 = dense * p1 - t1 - flat;
    const float g = x.g[j], v0 = g * u0, v1 = g * u1, v = x.factor[j] * value;
    x.own1[j] = h1, x.mass[j] = mass, x.linear[j] = linear, x.mean[j] = mean, x.coef[j] = a;
    x.max[j] = s < 0 ? z1 : z0;
    x.chosen[j] = q1 > q0 ? d1 : d0;
    // A factor of 0 excludes the row even where its weak label is impossible (value +inf).
    x.loss[j] = x.factor[j] != 0 ? v : 0;
    // Not v0 alone: NaN logits of a row that does not count must give exactly 0.
    x.g0[j] = g != 0 ? v0 : 0;
    x.g1[j] = g != 0 ? v1 : 0;
  }
}

// Focal and window factors, and the upstream factor of each row.
inline void factors(const RowCall& c, int64_t at, int64_t n, Columns& x) {
  for (int64_t j = 0; j < n; ++j) {
    float factor = 1;
    // A NaN must show in the loss, be it in a logit or in a weak label.
    const float mass = x.q0[j] + x.q1[j];
    if (c.params.focal_gamma != 0) {
      // 1 - p of the weak class is p of the other one: no cancellation.
      const bool weak1 = x.q1[j] > x.q0[j], top1 = x.margin[j] < 0;
      const float miss = weak1 == top1 ? x.small[j] : x.big[j];
      factor = mass == mass ? powf(miss, c.params.focal_gamma) : NAN;
    }
    const bool sure = c.params.max_confidence != INFINITY && x.big[j] >= c.params.max_confidence;
    if (sure && mass == mass) factor = 0;
    x.factor[j] = x.kept[j] != 0 ? factor : 0;
  }
  for (int64_t j = 0; j < n; ++j) {
    x.g[j] = x.factor[j] != 0 ? upstream(c, at + j) * x.factor[j] : 0;
  }
}

inline void write_columns(const RowCall& c, int64_t at, int64_t n, const Columns& x) {
  const auto put = [&](int32_t row, const float* from) {
    memcpy(c.stats + row * c.n + at, from, static_cast<size_t>(n) * sizeof(float));
  };
  put(w2s::kLoss, x.loss), put(w2s::kMax, x.max), put(w2s::kLogS, x.logs);
  put(w2s::kEntropy, x.entropy), put(w2s::kMass, x.mass), put(w2s::kLinear, x.linear);
  put(w2s::kMean, x.mean), put(w2s::kChosen, x.chosen), put(w2s::kCoef, x.coef);
  put(w2s::kFactor, x.factor), put(w2s::kScore, x.margin);
  for (int64_t j = 0; j < n; ++j) {
    // NaN is the maximum, as in torch.max; a weak label with a NaN in it has no top class.
    if (x.z1[j] != x.z1[j]) c.stats[w2s::kMax * c.n + at + j] = NAN;
    if (x.mass[j] != x.mass[j]) c.stats[w2s::kChosen * c.n + at + j] = NAN;
  }
  int64_t* index = c.index + at;
  for (int64_t j = 0; j < n; ++j) {
    index[w2s::kArgmaxClass * c.n + j] = x.margin[j] < 0;
    index[w2s::kWeakClass * c.n + j] = x.q1[j] > x.q0[j];
    index[w2s::kSelfClass * c.n + j] = x.own1[j] != 0;
  }
}

// What sum_statistics in run.cpp adds up. NaN agrees with no class.
inline void keep_statistics(const RowCall& c, int64_t at, int64_t n, const Columns& x) {
  float *entropy = c.scratch + c.n + at, *top = c.scratch + 2 * c.n + at;
  for (int64_t j = 0; j < n; ++j) {
    const bool kept = x.kept[j] != 0, agrees = (x.q1[j] > x.q0[j]) == (x.margin[j] < 0);
    const float signed_top = agrees && x.mass[j] == x.mass[j] ? x.big[j] : -x.big[j];
    entropy[j] = kept ? x.entropy[j] : 0;
    top[j] = kept ? signed_top : 0;
  }
}

// Second step. Row losses go to c.scratch row 0; the record and statistics only on request.
struct TwoClass {
  template <class T, class U>
  static int64_t run(const RowCall& c, int64_t begin, int64_t end) {
    Columns x;
    // The last vector of a short chunk computes on unused lanes, which must be numbers.
    memset(static_cast<void*>(x.z0), 0, 2 * sizeof x.z0);
    for (int64_t at = begin; at < end; at += kRows) {
      const int64_t n = end - at < kRows ? end - at : kRows;
      const T* z = static_cast<const T*>(c.logits) + at * c.logits_stride;
      read_pair(z, c.logits_stride, n, x.z0, x.z1);
      const int64_t bad = read_weak<U>(c, at, n, x.q0, x.q1, x.kept);
      if (bad >= 0) return bad;
      softmax(n, x);
      factors(c, at, n, x);
      finish(c, n, x);
      memcpy(c.scratch + at, x.loss, static_cast<size_t>(n) * sizeof(float));
      if (c.stats != nullptr) write_columns(c, at, n, x);
      if (c.sums != nullptr) keep_statistics(c, at, n, x);
      if (c.grad == nullptr) continue;
      T* out = static_cast<T*>(c.grad) + at * c.grad_stride;
      for (int64_t j = 0; j < n; ++j) {
        narrow_to(out[j * c.grad_stride], x.g0[j]);
        narrow_to(out[j * c.grad_stride + 1], x.g1[j]);
      }
    }
    return -1;
  }
};

}  // namespace
