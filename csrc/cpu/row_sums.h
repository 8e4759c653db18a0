// The read pass over one row: its sums relative to a reference point.
//
// Exponentials are taken as 2^t with t = z log2(e) - hi, one fused multiply-add. hi is `at` log2(e)
// rounded, for a reference point `at` near the row's maximum; the rounding error (`lo`) scales
// every exponential of the row alike, so it cancels from softmax and costs nothing at |z| = 1e4.
// Two cases use t = (z - at) log2(e) instead: far from 0, where `lo` grows until 2^lo overflows,
// and without a fused multiply-add, where the product would be rounded first.
//
// A class of logit -inf, or one that is masked by the smallest number, costs no extra work: its t
// is raised to a finite number before any product, so 0 t is 0. Sums in which such a class has weak
// mass are computed again, exactly; they are infinite, or nearly so.
#pragma once

#include <math.h>

#include "parts.h"
#include "vec.h"

namespace {

constexpr int64_t kBlock = 4096;  // elements summed before the running sums are updated
constexpr float kLn2 = 0.693147180559945309f;
// How far the maximum may run ahead of the reference point before a block is summed again.
constexpr float kSlack = 4.0f;

// Reference points up to here keep `lo` below 2^-4.
constexpr float kFar = 1 << 20;
// Sums of t beyond this came from a class that is masked: no model's logits are so far apart.
constexpr float kMasked = 1e10f;

struct Point {
  float at, hi, lo;
  bool exact;  // t is (z - at) log2(e), and lo is 0
};

template <bool EXACT>
inline Vec exponent(Vec z, const Point& p) {
  return EXACT ? (z - set(p.at)) * set(kLog2E) : fma(z, set(kLog2E), set(-p.hi));
}

inline float first_lane(Vec a) {
  float lanes[Vec::W];
  store(lanes, a);
  return lanes[0];
}

inline float exponent(float z, const Point& p) {
  return first_lane(p.exact ? exponent<true>(set(z), p) : exponent<false>(set(z), p));
}

inline Point point(float at) {
  Point p = {at, at * kLog2E, 0, !kFused || !(fabsf(at) <= kFar)};
  p.lo = exponent(at, p);
  return p;
}

// The vector polynomial at one point.
template <int DEGREE>
inline float exp2_at(float t) {
  return first_lane(exp2_of<DEGREE>(set(t)));
}

// Properties of the dtypes: degrees of the exponential that the precision of sums and gradient
// needs, and whether logits and targets can both be read as even and odd elements.
template <class T>
struct Degree {
  static constexpr int sum = 5, grad = 5;
};
template <>
struct Degree<BF16> {
  static constexpr int sum = 5, grad = 3;
};
template <>
struct Degree<F16> {
  static constexpr int sum = 5, grad = 4;
};
template <class T, class U>
struct Split {
  static constexpr bool value = false;
};
template <>
struct Split<BF16, BF16> {
  static constexpr bool value = true;
};

// Sums over classes of one row relative to a Point; exponentials carry its factor 2^lo.
struct Sums {
  float exp = 0;     // sum 2^t
  float exp_t = 0;   // sum 2^t t
  float t = 0;       // sum t, with label smoothing
  float weak_t = 0;  // sum q t, dense targets
  float weak = 0;    // sum q, dense targets
  float max = -INFINITY, weak_max = -INFINITY;
};

struct Lanes {
  Vec exp = set(0), exp_t = set(0), t = set(0), weak_t = set(0), weak = set(0);
  Vec max = set(-INFINITY), weak_max = set(-INFINITY);
};

template <bool DENSE, bool MEAN, bool EXACT, int DEGREE>
inline void add(Lanes& s, Vec z, const Point& p, Vec q) {
  const Vec t = exponent<EXACT>(z, p);
  const Vec e = exp2_of<DEGREE>(t);
  s.max = vmax(s.max, z);
  s.exp = s.exp + e;
  s.exp_t = fma(e, raised(t), s.exp_t);
  if (MEAN) s.t = s.t + t;
  if (DENSE) {
    s.weak_t = fma(q, finite(t), s.weak_t);
    s.weak = s.weak + q;
    s.weak_max = vmax(s.weak_max, q);
  }
}

inline Sums total(const Lanes& a) {
  return {sum(a.exp),  sum(a.exp_t),  sum(a.t),          sum(a.weak_t),
          sum(a.weak), max_of(a.max), max_of(a.weak_max)};
}

inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return {a.exp + b.exp,
          a.exp_t + b.exp_t,
          a.t + b.t,
          a.weak_t + b.weak_t,
          a.weak + b.weak,
          vmax(a.max, b.max),
          vmax(a.weak_max, b.weak_max)};
}

template <bool DENSE, bool MEAN, bool EXACT, class T, class U>
inline Sums sum_block_of(const T* z, const U* q, int64_t n, const Point& p) {
  constexpr int degree = Degree<T>::sum;
  constexpr bool split = Split<T, U>::value;
  Lanes a, b;
  Vec za, zb, qa = set(0), qb = set(0);
  int64_t i = 0;
  for (; i + 2 * Vec::W <= n; i += 2 * Vec::W) {
    load_two<split>(z + i, za, zb);
    if (DENSE) load_two<split>(q + i, qa, qb);
    add<DENSE, MEAN, EXACT, degree>(a, za, p, qa);
    add<DENSE, MEAN, EXACT, degree>(b, zb, p, qb);
  }
  Lanes last;
  float padding = 0;
  for (; i < n; i += Vec::W) {
    const int64_t left = n - i < Vec::W ? n - i : Vec::W;
    add<DENSE, false, EXACT, degree>(last, load(z + i, left, -INFINITY), p,
                                     DENSE ? load(q + i, left, 0) : qa);
    // Lanes past the end read as the reference point, whose t is lo.
    if (MEAN) last.t = last.t + exponent<EXACT>(load(z + i, left, p.at), p);
    padding += static_cast<float>(Vec::W - left) * p.lo;
  }
  Sums s = total(a + b + last);
  if (MEAN) s.t -= padding;
  return s;
}

template <bool DENSE, bool MEAN, class T, class U>
inline Sums sum_block(const T* z, const U* q, int64_t n, const Point& p) {
  return kFused && !p.exact ? sum_block_of<DENSE, MEAN, !kFused>(z, q, n, p)
                            : sum_block_of<DENSE, MEAN, true>(z, q, n, p);
}

template <class T>
inline float block_max(const T* z, int64_t n) {
  Vec m = set(-INFINITY);
  for (int64_t i = 0; i < n; i += Vec::W) {
    m = vmax(m, load(z + i, n - i < Vec::W ? n - i : Vec::W, -INFINITY));
  }
  return max_of(m);
}

// A whole row.
struct Row {
  float max, logs;  // largest logit M, log sum e^(z - M)
  float entropy;
  float mean;          // mean of z - M, with label smoothing
  float weak, linear;  // sum q, sum q (z - M): dense targets
  float weak_max;
  int64_t max_block, weak_block;
};

// Moves sums over `seen` classes from one reference point to another.
inline void move(Sums& s, const Point& from, const Point& to, int64_t seen) {
  // t falls by this much for every class.
  const float by =
      !to.exact && !from.exact ? to.hi - from.hi : (to.at - from.at) * kLog2E + (from.lo - to.lo);
  const float factor = s.exp == 0 ? 0 : exp2f(-by);
  s.exp_t = factor == 0 ? 0 : factor * (s.exp_t - s.exp * by);
  s.exp *= factor;
  s.t -= static_cast<float>(seen) * by;
  s.weak_t -= s.weak * by;
}

// Sums over a row in which masked classes have weak mass, or weak mass is infinite.
template <bool DENSE, bool MEAN, class T, class U>
void sum_exactly(const T* z, const U* q, int64_t v, Row& r) {
  const double max = static_cast<double>(r.max);
  double linear = 0, mean = 0;
  for (int64_t i = 0; i < v; ++i) {
    const double d = static_cast<double>(widen(z[i])) - max;
    const double mass = DENSE ? static_cast<double>(widen(q[i])) : 0;
    if (mass != 0 && d != 0) linear += mass * d;  // inf * 0 at the maximum: 0
    mean += d;
  }
  if (DENSE) r.linear = static_cast<float>(linear);
  if (MEAN) r.mean = static_cast<float>(mean / static_cast<double>(v));
}

template <class T>
bool has_nan(const T* z, int64_t v) {
  for (int64_t i = 0; i < v; ++i) {
    if (widen(z[i]) != widen(z[i])) return true;
  }
  return false;
}

// Sums over a part of a row, relative to its own reference point.
struct Part {
  Sums sums;
  Point at;
  int64_t seen, max_block, weak_block;
};

// The point at which the sums of every part start: near the maximum of the first block.
template <class T>
inline Point start_of(const T* z, int64_t v, bool& found) {
  const float m = block_max(z, v < kBlock ? v : kBlock);
  found = m > -INFINITY && m < INFINITY;
  return point(found ? m : 0.0f);
}

// Not inlined: within a loop over parts the compiler runs out of registers for the dense sums.
template <bool DENSE, bool MEAN, class T, class U>
__attribute__((noinline)) Part sum_part(const T* z, const U* q, int64_t from, int64_t to,
                                        const Point& start, bool found) {
  Part a = {Sums{}, start, to - from, 0, 0};
  Sums& s = a.sums;
  for (int64_t b = from; b < to; b += kBlock) {
    const int64_t n = to - b < kBlock ? to - b : kBlock;
    const U* qb = DENSE ? q + b : q;
    if (!found && s.max == -INFINITY) {
      // Nothing finite so far: any reference point is right for the sums so far.
      const float m = block_max(z + b, n);
      const Point next = point(m > -INFINITY && m < INFINITY ? m : 0.0f);
      move(s, a.at, next, b - from);
      a.at = next;
    }
    Sums add = sum_block<DENSE, MEAN>(z + b, qb, n, a.at);
    if (add.max > a.at.at + kSlack && add.max < INFINITY) {
      const Point next = point(add.max);
      move(s, a.at, next, b - from);
      a.at = next;
      add = sum_block<DENSE, MEAN>(z + b, qb, n, a.at);
    }
    s.exp += add.exp, s.exp_t += add.exp_t, s.t += add.t;
    s.weak_t += add.weak_t, s.weak += add.weak;
    if (add.max > s.max) s.max = add.max, a.max_block = b;
    if (add.weak_max > s.weak_max) s.weak_max = add.weak_max, a.weak_block = b;
  }
  return a;
}

// Adds the part that follows. Both are taken relative to the higher point of those that a finite
// logit has set.
inline void merge(Part& a, Part b) {
  const bool other = b.sums.max > -INFINITY && (a.sums.max == -INFINITY || b.at.at > a.at.at);
  if (other) {
    move(a.sums, a.at, b.at, a.seen);
    a.at = b.at;
  } else if (b.at.at != a.at.at) {
    move(b.sums, b.at, a.at, b.seen);
  }
  Sums& s = a.sums;
  s.exp += b.sums.exp, s.exp_t += b.sums.exp_t, s.t += b.sums.t;
  s.weak_t += b.sums.weak_t, s.weak += b.sums.weak;
  if (b.sums.max > s.max) s.max = b.sums.max, a.max_block = b.max_block;
  if (b.sums.weak_max > s.weak_max) s.weak_max = b.sums.weak_max, a.weak_block = b.weak_block;
  a.seen += b.seen;
}

// All parts of a row; `share` gives them to several threads.
template <bool DENSE, bool MEAN, class T, class U>
inline Part sum_parts(const T* z, const U* q, int64_t v, bool share) {
  bool found;
  const Point start = start_of(z, v, found);
  if (v <= w2s::kPart) return sum_part<DENSE, MEAN>(z, q, 0, v, start, found);
  constexpr int64_t most = 64;  // parts at a time: their sums are on the stack
  Part all = {Sums{}, start, 0, 0, 0}, parts[most];
  for (int64_t base = 0; base < v; base += most * w2s::kPart) {
    const int64_t length = v - base < most * w2s::kPart ? v - base : most * w2s::kPart;
    for_parts(length, share, [&](int64_t from, int64_t to) {
      parts[from / w2s::kPart] = sum_part<DENSE, MEAN>(z, q, base + from, base + to, start, found);
    });
    for (int64_t i = 0; i * w2s::kPart < length; ++i) merge(all, parts[i]);
  }
  return all;
}

template <bool DENSE, bool MEAN, class T, class U>
inline Row sum_row(const T* z, const U* q, int64_t v, bool share) {
  const Part all = sum_parts<DENSE, MEAN>(z, q, v, share);
  const Sums& s = all.sums;
  const Point& p = all.at;
  Row r{};
  r.max_block = all.max_block, r.weak_block = all.weak_block;
  // Everything is now taken relative to the maximum's own t and its own 2^t: a row with one class
  // that matters gets log S = 0 and p = 1 exactly.
  const float top = exponent(s.max, p);
  r.max = s.max;
  r.logs = s.max == -INFINITY ? NAN : logf(s.exp / exp2_at<Degree<T>::sum>(top));
  r.entropy = r.logs - (s.exp_t / s.exp - top) * kLn2;
  r.mean = (s.t / static_cast<float>(v) - top) * kLn2;
  r.weak = s.weak;
  r.linear = (s.weak_t - top * s.weak) * kLn2;
  r.weak_max = s.weak_max;
  const bool masked = DENSE && !(fabsf(s.weak_t) < kMasked);
  if (masked || (MEAN && !(fabsf(s.t) < kMasked))) sum_exactly<DENSE, MEAN>(z, q, v, r);
  // The maximum above ignores NaN.
  if (r.logs != r.logs && has_nan(z, v)) r.max = NAN, r.max_block = 0;
  return r;
}

// First index in [from, v) within one block whose value equals `value`; `from` if there is none.
template <class T>
inline int64_t find(const T* z, int64_t from, int64_t v, float value) {
  const int64_t end = v - from < kBlock ? v : from + kBlock;
  const Vec target = set(value);
  for (int64_t i = from; i < end; i += Vec::W) {
    const int64_t n = end - i < Vec::W ? end - i : Vec::W;
    const int at = first_equal(load(z + i, n, NAN), target);
    if (at >= 0) return i + at;
  }
  return from;
}

// log of the sum of e^(z - max) over the classes outside the top k, without a difference that
// cancels and for masses far below the smallest float; -inf if there is no other class.
template <class T>
inline float log_outside(const T* z, int64_t v, float max, const int64_t* ids, int64_t k) {
  float all = 0, top = -INFINITY, buffer[kBlock];
  for (int64_t b = 0; b < v; b += kBlock) {
    const int64_t n = v - b < kBlock ? v - b : kBlock;
    for (int64_t i = 0; i < n; ++i) buffer[i] = widen(z[b + i]);
    for (int64_t j = 0; j < k; ++j) {
      if (ids[j] >= b && ids[j] < b + n) buffer[ids[j] - b] = -INFINITY;
    }
    const float block_top = block_max(buffer, n);
    if (block_top == -INFINITY) continue;
    if (block_top > top) {
      all *= expf(top - block_top);
      top = block_top;
    }
    const Point p = point(top);
    all += sum_block<false, false>(buffer, buffer, n, p).exp / exp2_at<Degree<float>::sum>(p.lo);
  }
  return top == -INFINITY ? top : (top - max) + logf(all);
}

}  // namespace
