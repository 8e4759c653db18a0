// Picks the widest kernels this CPU runs, once.
#include <cstdlib>
#include <cstring>

#include "../w2s.h"

namespace w2s {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("W2S_CPU_CAPABILITY");
  const bool base = wanted != nullptr && std::strcmp(wanted, "base") == 0;
  const bool avx2 = wanted != nullptr && std::strcmp(wanted, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && !avx2 && !base) return kernels_avx512;
  if (has_avx2 && !base) return kernels_avx2;
#endif
  return kernels_base;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace w2s
