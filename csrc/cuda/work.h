// What a row kernel computes, chosen at compile time: an instruction an element is 4 % of a pass.
//
// Every combination of entropy, smoothing and soft-cap would be eight kernels for each pair of
// types. Three are built: loss and gradient alone, entropy too, and one that tests for the rest at
// run time, which few calls ask for.
#pragma once

#include "../w2s.h"

namespace {

constexpr int kLossOnly = 0, kWithEntropy = 1, kEverything = 2;

inline int work_of(const w2s::RowCall& c) {
  if (c.params.smoothing != 0 || c.params.softcap > 0) return kEverything;
  return c.entropy ? kWithEntropy : kLossOnly;
}

// NEAR: the exponent of an element is one fma of its logit (see Origin in sums.h). Dense targets
// need z - M itself, and so does a mean of logits.
template <int WORK, bool DENSE_>
struct Work {
  static constexpr bool DENSE = DENSE_, ENTROPY = WORK != kLossOnly, MEAN = WORK == kEverything;
  static constexpr bool CAP = WORK == kEverything, NEAR = !DENSE && WORK != kEverything;
};

// Sums over the classes outside the top k: of their exponentials alone.
struct Outside {
  static constexpr bool DENSE = false, ENTROPY = false, MEAN = false, NEAR = false;
};

}  // namespace
