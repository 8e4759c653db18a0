// A long row in parts: several threads share it where there are fewer rows than threads.
//
// The borders of the parts depend on the length of the row alone, and what is summed part by part
// is merged in their order. So the result is that of one thread, to the last bit.
#pragma once

#include "../parallel.h"
#include "../w2s.h"

namespace {

// Calls f(from, to) for every part of [0, v); on the threads of the pool if `share`.
template <class F>
inline void for_parts(int64_t v, bool share, const F& f) {
  struct Range {
    const F* f;
    int64_t v;
  } range = {&f, v};
  const auto body = [](int64_t begin, int64_t end, void* context) {
    const Range& r = *static_cast<const Range*>(context);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i * w2s::kPart, rest = r.v - from;
      (*r.f)(from, from + (rest < w2s::kPart ? rest : w2s::kPart));
    }
  };
  const int64_t parts = (v + w2s::kPart - 1) / w2s::kPart;
  if (share) {
    w2s::parallel_for(parts, 1, body, &range);
  } else {
    body(0, parts, &range);
  }
}

// The same where no part depends on the borders: without sharing, the whole row is one part.
template <class F>
inline void for_ranges(int64_t v, bool share, const F& f) {
  if (share) {
    for_parts(v, true, f);
  } else {
    f(int64_t{0}, v);
  }
}

}  // namespace
