// Reads scores of any dtype, and reduces results of threads under a lock.
#pragma once

#include <mutex>

#include "../parallel.h"
#include "../w2s.h"
#include "vec.h"

namespace w2s {
namespace {

constexpr int64_t kGrain = 1 << 16;

inline bool is_counted(const Scores& s, int64_t i) { return s.keep == nullptr || s.keep[i] != 0; }

// Calls f(x) with the scores under their own type.
template <class F>
auto typed(const Scores& s, const F& f) {
  switch (s.dtype) {
    case kF32:
      return f(static_cast<const float*>(s.x));
    case kBF16:
      return f(static_cast<const BF16*>(s.x));
    default:
      return f(static_cast<const F16*>(s.x));
  }
}

// f(begin, end) over disjoint ranges, on several threads where it pays; its result is passed to
// add(total, part), one at a time, in any order.
template <class Part, class F, class Add>
Part reduce(int64_t n, const F& f, const Add& add) {
  Part total{};
  std::mutex lock;
  auto body = [&](int64_t lo, int64_t hi) {
    const Part part = f(lo, hi);
    const std::lock_guard<std::mutex> hold(lock);
    add(total, part);
  };
  parallel_rows(n, kGrain, body);
  return total;
}

}  // namespace
}  // namespace w2s
