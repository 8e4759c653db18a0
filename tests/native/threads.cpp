// Calls of the core on a pool of std::thread, for a sanitizer of threads: cases, seed, threads.
#include <atomic>
#include <random>
#include <thread>

#include "../../csrc/parallel.h"
#include "calls.h"

namespace {
int n_threads = 4;

// As torch's pool: disjoint ranges of at least `grain`, taken by whichever thread is free.
int32_t pool(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
             void* context) {
  std::atomic<int64_t> next{begin};
  const int64_t step = grain > 0 ? grain : 1;
  auto work = [&] {
    for (int64_t lo; (lo = next.fetch_add(step)) < end;) {
      body(lo, lo + step < end ? lo + step : end, context);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < n_threads; ++i) threads.emplace_back(work);
  work();
  for (auto& t : threads) t.join();
  return 0;
}

int32_t threads_of_pool(uint32_t* threads) {
  *threads = static_cast<uint32_t>(n_threads);
  return 0;
}
}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 200;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
  if (argc > 3) n_threads = std::atoi(argv[3]);
  w2s::set_parallel_for(pool, threads_of_pool);
  std::vector<uint8_t> data(4096);
  for (long i = 0; i < cases; ++i) {
    for (auto& byte : data) byte = static_cast<uint8_t>(random());
    calls::Bytes b(data.data(), data.size());
    b.word(1);
    switch (i % 5) {  // large enough that rows and scores are divided
      case 0:
        calls::row_phases(b, 40, b.between(1500, 3000));
        break;
      case 1:
        calls::two_classes(b, b.between(20000, 50000));
        break;
      case 2:  // rows that all threads share
        calls::row_phases(b, b.between(1, 3), b.between(60000, 70000));
        break;
      case 3:
        calls::votes(b, b.between(600, 900), b.between(40, 80));
        break;
      default:
        calls::order_statistics(b, b.between(50000, 65000));
        break;
    }
  }
  std::printf("%ld cases\n", cases);
}
