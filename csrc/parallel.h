// Loops over rows on a borrowed thread pool. Without one they run on the calling thread.
#pragma once

#include <cstdint>

namespace w2s {

// Same signature as torch_parallel_for, exported by libtorch since 2.10.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void*), void* context);

// Same signature as torch_get_num_threads.
using NumThreads = int32_t (*)(uint32_t* threads);

void set_parallel_for(ParallelFor pool, NumThreads threads);
int64_t max_threads();  // of the pool, 1 without one
void parallel_for(int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// Calls f(begin, end) on disjoint ranges that cover [0, end).
template <class F>
void parallel_rows(int64_t end, int64_t grain, F& f) {
  parallel_for(
      end, grain,
      [](int64_t lo, int64_t hi, void* context) { (*static_cast<F*>(context))(lo, hi); }, &f);
}

}  // namespace w2s
