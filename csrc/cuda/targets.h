// One warp completes a row: its top-k classes, its self-target, its record.
#pragma once

#include "sums.h"

namespace {

// The parameters of a call, with the scalars that are in device memory.
W2S_DEVICE RowParams params_of(const RowCall& c) {
  RowParams p = c.params;
  if (c.aux_ptr != nullptr) p.aux = *c.aux_ptr;
  if (c.threshold_ptr != nullptr) p.threshold = *c.threshold_ptr;
  return p;
}

W2S_DEVICE bool is_counted(const RowCall& c, int64_t row) {
  if (c.ids != nullptr && c.probs == nullptr && c.ids[row] == c.ignore_index) return false;
  return c.weight == nullptr || c.weight[row] != 0;
}

W2S_DEVICE float rest_of(const RowCall& c, int64_t row) {
  return c.rest == nullptr ? 0 : c.rest[row];
}

// The upstream factor of a row, without the row's own factor.
W2S_DEVICE float upstream(const RowCall& c, int64_t row) {
  if (c.row_scale != nullptr) return c.row_scale[row * c.row_scale_stride];
  const float scale = c.scale_ptr == nullptr ? c.scale : *c.scale_ptr;
  return c.weight == nullptr ? scale : scale * c.weight[row];
}

// One top-k class. Padding is not real; a label outside the classes is real, not inside, and its
// mass NaN: it turns its row into NaN and is not used as an address. A repeated class does so
// too (find_repeats in kernels.h).
struct TopkEntry {
  bool real, inside;
  int id;
  float q;
};

W2S_DEVICE TopkEntry topk_at(const RowCall& c, int64_t row, int64_t j) {
  const int64_t id = c.ids[row * c.k + j];
  TopkEntry l;
  l.real = c.probs == nullptr ? id != c.ignore_index : id >= 0;
  l.inside = l.real && id >= 0 && id < c.v;
  l.id = l.inside ? static_cast<int>(id) : 0;
  l.q = 0;
  if (l.real) {
    l.q = c.probs == nullptr ? 1 : static_cast<const float*>(c.probs)[row * c.k + j];
    if (!l.inside) l.q = NAN;
  }
  return l;
}

// Sums over top-k classes.
struct TopkSums {
  float mass, linear, exp;
  float best, chosen;  // largest q and its z - M
  int at;              // its position among the top k
  int weak;            // its class
};

W2S_DEVICE void merge(TopkSums& a, const TopkSums& b) {
  a.mass += b.mass, a.linear += b.linear, a.exp += b.exp;
  if (b.best > a.best || (b.best == a.best && b.at < a.at)) {
    a.best = b.best, a.chosen = b.chosen, a.at = b.at, a.weak = b.weak;
  }
}

// Called by a whole warp; lane 0 gets the sums. `diffs` (K) receives z - M.
template <class T>
W2S_DEVICE TopkSums topk_sums(const RowCall& c, int64_t row, const Line<T>& z, float max,
                              float* diffs, bool publish) {
  TopkSums s = {0, 0, 0, -1, 0, kNowhere, 0};
  for (int64_t j = block::thread() % 32; j < c.k; j += 32) {
    const TopkEntry l = topk_at(c, row, j);
    const float d = capped(widen(block::load1(z.p + l.id)), c.params.softcap) - max;
    diffs[j] = d;
    if (publish && c.topk_diffs != nullptr) c.topk_diffs[row * c.k + j] = d;
    if (!l.real) continue;
    TopkSums one = {
        l.q, l.q != 0 && d != 0 ? l.q * d : 0, l.inside ? expf(d) : 0, l.q, d, static_cast<int>(j),
        l.id};
    merge(s, one);
  }
  W2S_NO_UNROLL
  for (int by = 16; by > 0; by /= 2) {
    TopkSums o;
    o.mass = block::down(s.mass, by), o.linear = block::down(s.linear, by);
    o.exp = block::down(s.exp, by), o.best = block::down(s.best, by);
    o.chosen = block::down(s.chosen, by), o.at = block::down(s.at, by);
    o.weak = block::down(s.weak, by);
    merge(s, o);
  }
  return s;
}

W2S_DEVICE void write_record(const RowCall& c, int64_t i, const Record& r) {
  const int64_t n = c.n;
  float* s = c.stats + i;
  s[w2s::kLoss * n] = r.loss, s[w2s::kMax * n] = r.max, s[w2s::kLogS * n] = r.logs;
  s[w2s::kEntropy * n] = r.entropy, s[w2s::kMass * n] = r.mass, s[w2s::kLinear * n] = r.linear;
  s[w2s::kMean * n] = r.mean, s[w2s::kChosen * n] = r.chosen, s[w2s::kTail * n] = r.tail;
  s[w2s::kCoef * n] = r.coef, s[w2s::kFactor * n] = r.factor, s[w2s::kScore * n] = r.score;
  int64_t* x = c.index + i;
  x[w2s::kArgmaxClass * n] = r.argmax, x[w2s::kWeakClass * n] = r.weak;
  x[w2s::kSelfClass * n] = r.self;
}

W2S_DEVICE Record read_record(const RowCall& c, int64_t i) {
  const int64_t n = c.n;
  const float* s = c.stats + i;
  const int64_t* x = c.index + i;
  Record r;
  r.loss = s[w2s::kLoss * n], r.max = s[w2s::kMax * n], r.logs = s[w2s::kLogS * n];
  r.entropy = s[w2s::kEntropy * n], r.mass = s[w2s::kMass * n], r.linear = s[w2s::kLinear * n];
  r.mean = s[w2s::kMean * n], r.chosen = s[w2s::kChosen * n], r.tail = s[w2s::kTail * n];
  r.coef = s[w2s::kCoef * n], r.factor = s[w2s::kFactor * n], r.score = s[w2s::kScore * n];
  r.argmax = x[w2s::kArgmaxClass * n], r.weak = x[w2s::kWeakClass * n];
  r.self = x[w2s::kSelfClass * n];
  return r;
}

// The numbers from which a block writes its part of a row's gradient.
W2S_DEVICE Final finish(const RowCall& c, int64_t row, const RowParams& params, const Record& r,
                        float self_diff) {
  Final f;
  const float up = upstream(c, row);
  f.zero = r.factor == 0 || up == 0;
  f.slope = row_slope(params, rest_of(c, row), c.v, r, up * r.factor);
  f.max = r.max;
  f.self_diff = self_diff;
  f.self = static_cast<int>(r.self);
  return f;
}

// The record but for the tail, from the sums of the pass (in nats) and of the top k; by one thread.
template <class W, class T>
W2S_DEVICE Record make_record(const RowCall& c, int64_t row, const Line<T>& z, const Sums& s,
                              const TopkSums& l) {
  Record r{};
  // A NaN is in the sum, but not in the maximum.
  const bool nan = s.exp != s.exp;
  r.max = nan ? NAN : s.max;
  r.logs = fabsf(s.max) == INFINITY ? NAN : logf(s.exp);
  r.entropy = W::ENTROPY ? r.logs - s.exp_y / s.exp : 0;
  r.mean = s.d;
  r.argmax = nan || s.at == kNowhere ? 0 : s.at;
  const auto logit = [&](int64_t v) {
    return capped(widen(block::load1(z.p + v)), c.params.softcap);
  };
  r.score = c.v == 2 ? logit(0) - logit(1) : expf(-r.logs);
  if (W::DENSE) {
    r.mass = s.mass, r.linear = s.linear;
    r.weak = s.q_at == kNowhere ? 0 : s.q_at;
    r.chosen = logit(r.weak) - r.max;
  } else {
    r.mass = l.mass + rest_of(c, row), r.linear = l.linear;
    r.weak = l.weak;
    r.chosen = l.best < 0 ? logit(0) - r.max : l.chosen;
  }
  check_weak(r);
  return r;
}

// The self-target, the row's factor and its loss; z - M of the self-target.
template <class T>
W2S_DEVICE float complete(const RowCall& c, int64_t row, const Line<T>& z, const RowParams& params,
                          Record& r) {
  choose_self_target(params, r);
  row_factor(params, is_counted(c, row), r);
  const float own = r.self == r.argmax
                        ? 0.0f
                        : capped(widen(block::load1(z.p + r.self)), c.params.softcap) - r.max;
  row_loss(params, rest_of(c, row), own, r);
  return own;
}

}  // namespace
