// Picks the widest kernels this CPU runs, once, unless the caller asks for others by name.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "../w2s.h"

namespace w2s {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Kernels& choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("W2S_CPU_CAPABILITY");
  const bool base = wanted != nullptr && std::strcmp(wanted, "base") == 0;
  const bool avx2 = wanted != nullptr && std::strcmp(wanted, "avx2") == 0;
  if (has_avx512() && !avx2 && !base) return kernels_avx512;
  if (has_avx2() && !base) return kernels_avx2;
#endif
  return kernels_base;
}

std::atomic<const Kernels*> asked{nullptr};

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  const Kernels* const other = asked.load(std::memory_order_acquire);
  return other == nullptr ? chosen : *other;
}

bool use_isa(const char* name) {
  const Kernels* found = std::strcmp(name, kernels_base.isa) == 0 ? &kernels_base : nullptr;
#if defined(__x86_64__)
  if (has_avx2() && std::strcmp(name, kernels_avx2.isa) == 0) found = &kernels_avx2;
  if (has_avx512() && std::strcmp(name, kernels_avx512.isa) == 0) found = &kernels_avx512;
#endif
  if (found != nullptr) asked.store(found, std::memory_order_release);
  return found != nullptr;
}

}  // namespace w2s
