// The soft-cap z = cap tanh(u / cap) of a row, and its derivative.
#pragma once

#include "vec.h"

namespace {

// tanh x, and t = e^(-2|x|) for its derivative 4 t / (1 + t)^2, which does not cancel where tanh is
// 1.
inline Vec tanh_of(Vec x, Vec& t) {
  constexpr float far_from = 0.625f;
  // The operand orders keep NaN.
  const Vec y = vmax(x, set(0.0f) - x);
  t = exp2_of<5>(vmax(set(-160.0f), y * set(-2 * kLog2E)));
  const Vec sign = vmax(set(-1.0f), vmin(set(1.0f), x * set(1e30f)));
  const Vec far = sign * (set(1.0f) - t) / (set(1.0f) + t);
  // Near 0, where 1 - t cancels, the odd polynomial of Cephes; further out it stays finite.
  const Vec c = vmax(set(-far_from), vmin(set(far_from), x)), w = c * c;
  Vec p = fma(set(-5.70498872745e-3f), w, set(2.06390887954e-2f));
  p = fma(p, w, set(-5.37397155531e-2f));
  p = fma(p, w, set(1.33314422036e-1f));
  p = fma(p, w, set(-3.33332819422e-1f));
  const Vec near = fma(p * w, c, c);
  // far - near is exact: both lie between a half and 1.
  return near + where_nonzero(vmax(set(0.0f), y - set(far_from)), far - near);
}

// z = cap tanh(u / cap).
template <class T>
inline void cap_row(const T* u, float* z, int64_t v, float cap) {
  Vec t;
  for (int64_t i = 0; i < v; i += Vec::W) {
    const int64_t n = v - i < Vec::W ? v - i : Vec::W;
    store(z + i, set(cap) * tanh_of(load(u + i, n, 0) / set(cap), t), n);
  }
}

// g dz/du for gradients g with respect to z. out may be u.
template <class T>
inline void uncap_row(const float* g, const T* u, T* out, int64_t v, float cap) {
  Vec t;
  for (int64_t i = 0; i < v; i += Vec::W) {
    const int64_t n = v - i < Vec::W ? v - i : Vec::W;
    tanh_of(load(u + i, n, 0) / set(cap), t);
    const Vec r = set(1.0f) / (set(1.0f) + t);
    const Vec gz = load(g + i, n, 0);
    // A row that does not count has gradient 0 for any logits.
    store(out + i, plain_nan(where_nonzero(gz, gz * (set(4.0f) * t * r * r))), n);
  }
}

}  // namespace
