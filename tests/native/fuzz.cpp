// libFuzzer's entry, and without libFuzzer (-DW2S_DRIVER) a loop over random bytes: cases, seed.
#include "calls.h"

// A quarantine of 256 MB and the stack of every allocation cost more than the calls.
extern "C" const char* __asan_default_options() {
  return "quarantine_size_mb=16:malloc_context_size=5";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  calls::run_case(data, size);
  return 0;
}

#ifdef W2S_DRIVER
#include <random>

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 1000;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
  std::vector<uint8_t> data;
  for (long i = 0; i < cases; ++i) {
    data.resize(random() % 4 == 0 ? 4096 : 256);
    for (auto& byte : data) byte = static_cast<uint8_t>(random());
    calls::run_case(data.data(), data.size());
  }
  std::printf("%ld cases\n", cases);
}
#endif
