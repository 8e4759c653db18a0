// From a call to kernels: dtypes become types, shapes become grids. Needs launch<Kernel>() and
// limits_here(), which cross_entropy.cu has for devices and emulated.cpp for the host.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace w2s {
namespace cuda {

constexpr int kInvalid = 1;  // cudaErrorInvalidValue

template <class T>
struct Tag {
  using type = T;
};

// Calls f with tags of the dtypes of logits and dense targets.
template <class F>
int by_types(const RowCall& c, const F& f) {
  const bool dense = c.ids == nullptr, same = c.probs_dtype == c.dtype;
  switch (c.dtype) {
    case kF32:
      return dense ? f(Tag<float>{}, Tag<float>{}) : f(Tag<float>{}, Tag<None>{});
    case kBF16:
      if (!dense) return f(Tag<BF16>{}, Tag<None>{});
      return same ? f(Tag<BF16>{}, Tag<BF16>{}) : f(Tag<BF16>{}, Tag<float>{});
    default:
      if (!dense) return f(Tag<F16>{}, Tag<None>{});
      return same ? f(Tag<F16>{}, Tag<F16>{}) : f(Tag<F16>{}, Tag<float>{});
  }
}

template <template <class> class K>
int by_type(const RowCall& c, const Tiling& s, int64_t blocks, Stream stream) {
  switch (c.dtype) {
    case kF32:
      return launch<K<float>>(c, s, blocks, stream);
    case kBF16:
      return launch<K<BF16>>(c, s, blocks, stream);
    default:
      return launch<K<F16>>(c, s, blocks, stream);
  }
}

inline bool fits(const RowCall& c, const Tiling& s, const Limits& limits) {
  return c.v <= kMaxClasses && c.n * s.blocks <= kMaxBlocks && s.shared <= limits.shared;
}

// What is built where instructions limit. Rows of dense targets and rows that are read twice wait
// for memory while they sum an entropy that nobody asked for, and where both holds while they test
// for all the rest.
template <class T, class U, bool RESIDENT>
int launch_rows(const RowCall& c, const Tiling& s, Stream stream) {
  constexpr bool DENSE = !std::is_same_v<U, None>;
  const int work = work_of(c);
  const int64_t blocks = c.n * s.blocks;
  if constexpr (RESIDENT && !DENSE) {
    if (work == kLossOnly) return launch<RowsKernel<T, U, true, kLossOnly>>(c, s, blocks, stream);
  }
  if constexpr (RESIDENT || !DENSE) {
    if (work != kEverything)
      return launch<RowsKernel<T, U, RESIDENT, kWithEntropy>>(c, s, blocks, stream);
  }
  return launch<RowsKernel<T, U, RESIDENT, kEverything>>(c, s, blocks, stream);
}

int rows(const RowCall& c, Stream stream) {
  Limits limits{};
  if (const int error = limits_here(limits)) return error;
  const Tiling s = tiling_of_rows(c, limits);
  if (!fits(c, s, limits)) return kInvalid;
  return by_types(c, [&](auto t, auto u) {
    using T = typename decltype(t)::type;
    using U = typename decltype(u)::type;
    return s.resident != 0 ? launch_rows<T, U, true>(c, s, stream)
                           : launch_rows<T, U, false>(c, s, stream);
  });
}

int gradient(const RowCall& c, Stream stream) {
  Limits limits{};
  if (const int error = limits_here(limits)) return error;
  const Tiling s = tiling_of_gradient(c);
  if (!fits(c, s, limits)) return kInvalid;
  return by_types(c, [&](auto t, auto u) {
    using T = typename decltype(t)::type;
    using U = typename decltype(u)::type;
    if constexpr (std::is_same_v<U, None>) {
      if (work_of(c) != kEverything) {
        return launch<GradientKernel<T, U, kLossOnly>>(c, s, c.n * s.blocks, stream);
      }
    }
    return launch<GradientKernel<T, U, kEverything>>(c, s, c.n * s.blocks, stream);
  });
}

int fixup(const RowCall& c, Stream stream) {
  const Tiling s{kFixupThreads, 1, 0, 1, 0, 0};
  if (c.v > kMaxClasses || c.n > kMaxBlocks) return kInvalid;
  return by_type<FixupKernel>(c, s, c.n, stream);
}

int scale(void* grad, int64_t grad_stride, int64_t n, int64_t v, DType dtype, const float* by,
          Stream stream) {
  RowCall c{};
  c.n = n, c.v = v, c.grad = grad, c.grad_stride = grad_stride, c.dtype = dtype, c.scale_ptr = by;
  Tiling s = tiling_of_gradient(c);
  s.shared = 0;
  if (v > kMaxClasses || n * s.blocks > kMaxBlocks) return kInvalid;
  return by_type<ScaleKernel>(c, s, n * s.blocks, stream);
}

}  // namespace cuda
}  // namespace w2s
