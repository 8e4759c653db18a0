#include "parallel.h"

namespace w2s {
namespace {
ParallelFor borrowed = nullptr;
NumThreads threads_of_pool = nullptr;
}  // namespace

void set_parallel_for(ParallelFor pool, NumThreads threads) {
  borrowed = pool, threads_of_pool = threads;
}

int64_t max_threads() {
  uint32_t threads = 1;
  if (borrowed == nullptr || threads_of_pool == nullptr || threads_of_pool(&threads) != 0) return 1;
  return threads;
}

void parallel_for(int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (end <= 0) return;
  // One chunk: skip the pool, whose hand-over costs more than a small loop.
  if (borrowed == nullptr || end <= grain) {
    body(0, end, context);
    return;
  }
  borrowed(0, end, grain, body, context);
}

}  // namespace w2s
