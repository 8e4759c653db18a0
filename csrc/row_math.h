// The arithmetic of one row, in fp32, shared by every compiled backend.
//
// Plain inline functions: the CPU kernels call them per row, the CUDA kernels from device code, and
// the tests compile them for the host. Formulas are in w2s_fast/ops/cross_entropy/api.py, the
// record in w2s_fast/ops/loss_call.py. Anonymous namespace and C headers only, see csrc/README.md.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "w2s.h"

#ifdef __CUDACC__
#define W2S_HD __host__ __device__
#else
#define W2S_HD
#endif

namespace {

using w2s::RowParams;

// The record of one row.
struct Record {
  float max, logs, mass, linear, mean, chosen, tail, coef, factor, score, entropy, loss;
  int64_t argmax, weak, self;
};

// softcap tanh(u / softcap), or u itself without a cap.
W2S_HD inline float capped(float u, float softcap) {
  return softcap > 0 ? softcap * tanhf(u / softcap) : u;
}

// Its derivative at the value z it took.
W2S_HD inline float cap_slope(float z, float softcap) {
  if (!(softcap > 0)) return 1;
  const float t = z / softcap;
  return fmaf(-t, t, 1.0f);
}

W2S_HD inline void choose_self_target(const RowParams& p, Record& r) {
  if (p.rule != w2s::kGiven) r.self = r.argmax;
  r.coef = p.rule == w2s::kNone ? 0 : p.aux;
  if (p.rule == w2s::kGate && !(r.score >= p.threshold)) r.coef = 0;
  if (p.rule == w2s::kMargin) r.self = r.score >= p.threshold ? 0 : 1;
}

W2S_HD inline void row_factor(const RowParams& p, bool kept, Record& r) {
  r.factor = kept ? 1 : 0;
  if (p.focal_gamma != 0) {
    const float miss = -expm1f(r.chosen - r.logs);
    r.factor *= powf(miss < 0 ? 0 : miss, p.focal_gamma);  // keeps NaN
  }
  // Not `<`: a NaN must show in the loss, be it in a logit or in a weak label.
  const bool sure = p.max_confidence != INFINITY && expf(-r.logs) >= p.max_confidence;
  if (sure && r.mass == r.mass) r.factor = 0;
  if (!kept) r.factor = 0;
}

// A weak label with a NaN in it has no top class.
W2S_HD inline void check_weak(Record& r) {
  if (r.mass != r.mass) r.weak = 0, r.chosen = NAN;
}

W2S_HD inline void row_loss(const RowParams& p, float rest, float self_diff, Record& r) {
  float weak = (r.mass - rest) * r.logs - r.linear;
  if (rest != 0) weak -= rest * r.tail;
  if (p.smoothing != 0) {
    const float even = p.smoothing * r.mass;
    weak = (1 - p.smoothing) * weak + (even != 0 ? even * (r.logs - r.mean) : 0);
  }
  // A coefficient of 1 removes a weak label that is impossible (+inf), but no NaN.
  if (r.coef == 1 && fabsf(weak) == INFINITY && fabsf(r.mass) < INFINITY) weak = 0;
  const float own = r.coef != 0 ? r.coef * (r.logs - self_diff) : 0;
  const float lse = r.max + r.logs;
  const float z_loss = p.z_loss != 0 ? p.z_loss * lse * lse : 0;
  // A factor of 0 excludes the row even where its weak label is impossible (loss +inf).
  r.loss = r.factor != 0 ? r.factor * ((1 - r.coef) * weak + own + z_loss) : 0;
}

// Factor of p in the gradient besides the targets' mass.
W2S_HD inline float z_loss_slope(const RowParams& p, const Record& r) {
  return p.z_loss != 0 ? 2 * p.z_loss * (r.max + r.logs) : 0;
}

// Up to this top-k share the mass outside is 1 minus the share; above it the difference cancels,
// and the mass outside has to be summed itself.
constexpr float kMaxTopkShare = 0.75f;

// Coefficients of one row's gradient. Targets are added up before the upstream factor is applied:
// where p and the target are both 1 the difference is exactly 0.
struct Slope {
  float g;                // upstream factor of this row
  float inside, outside;  // of e^(z - max) for top-k classes, of e^(z - max - shift) for others
  float shift;
  float weak, own, flat;
};

// Where the mass outside the top k is smaller than e to this, its slope would overflow:
// the exponentials of the other classes are then taken relative to that mass.
constexpr float kFarBelow = -60.0f;

W2S_HD inline Slope row_slope(const RowParams& p, float rest, int64_t classes, const Record& r,
                              float g) {
  const float keep = 1 - r.coef, hard = 1 - p.smoothing;
  Slope s;
  s.g = g;
  // fmaf here and in entry(): the same rounding on both sides of a difference that may be 0.
  const float dense = fmaf(keep, r.mass, r.coef) + z_loss_slope(p, r);
  s.inside = dense * expf(-r.logs);
  s.outside = s.inside;
  s.shift = 0;
  const float pull = keep * hard * rest;
  if (pull != 0) {
    const float tail = r.logs + r.tail;
    if (tail < kFarBelow) {
      s.shift = (r.max + tail) - r.max;
      s.outside = dense * expf(s.shift - r.logs);
    }
    s.outside -= pull * expf(s.shift - tail);
  }
  s.weak = keep * hard;
  s.own = r.coef;
  const float even = p.smoothing != 0 ? p.smoothing * r.mass : 0;  // the mass may be infinite
  s.flat = keep * even / static_cast<float>(classes);
  return s;
}

// One entry: `slope` is inside or outside, diff z - max for the former, z - max - shift for the
// latter, q the weak mass of the class.
W2S_HD inline float entry(const Slope& s, float slope, float diff, float q, bool is_self) {
  const float target = fmaf(s.weak, q, is_self ? s.own : 0.0f);
  return s.g * (slope * expf(diff) - target - s.flat);
}

// Removes the self-target from a row that was passed with its gate open and whose score is below
// the threshold. False if nothing changes. `rescale` is the factor for its dense part:
// exactly 1 where the weak mass is 1 up to rounding (two units in the last place).
W2S_HD inline bool close_gate(const RowParams& p, float rest, Record& r, float& rescale) {
  const float flat = z_loss_slope(p, r), closed = r.mass + flat;
  const float open = (1 - r.coef) * r.mass + r.coef + flat;
  const bool had_self = r.coef != 0;
  choose_self_target(p, r);
  if (r.coef != 0 || !had_self) return false;
  row_loss(p, rest, 0, r);
  rescale = fabsf(open - closed) > 2.5e-7f * fabsf(closed) ? closed / open : 1.0f;
  return true;
}

// fp32 bits as an unsigned number in the same order: negative floats reversed, positive above them.
// -0 and +0 are one score.
W2S_HD inline uint32_t key_of(float f) {
  f += 0.0f;
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

W2S_HD inline float value_of(uint32_t key) {
  const uint32_t u = (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

// Between two neighbouring order statistics a <= b, as torch.lerp: from the nearer end.
W2S_HD inline float between(float a, float b, float f) {
  if (f == 0 || a == b) return a;
  const float gap = b - a;
  if (gap == INFINITY) {
    // Beside an infinity, the upper neighbour: as many scores are at or above it as for any number
    // in between.
    const bool open = a == -INFINITY || b == INFINITY;
    return open ? b : a * (1 - f) + b * f;
  }
  return f < 0.5f ? a + f * gap : b - gap * (1 - f);
}

}  // namespace
