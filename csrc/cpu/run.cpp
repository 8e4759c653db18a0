// Runs kernels over all rows: instruction set, threads, and for two classes the steps around the
// threshold.
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../parallel.h"
#include "../w2s.h"

namespace w2s {
namespace {

#if defined(__x86_64__)
// clang before 16 does not know the name "f16c".
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Kernels& choose() {
#if defined(__x86_64__)
  const char* requested = std::getenv("W2S_CPU_CAPABILITY");
  const bool base = requested != nullptr && std::strcmp(requested, "base") == 0;
  const bool avx2 = requested != nullptr && std::strcmp(requested, "avx2") == 0;
  if (has_avx512() && !avx2 && !base) return kernels_avx512;
  if (has_avx2() && !base) return kernels_avx2;
#endif
  return kernels_base;
}

std::atomic<const Kernels*> forced{nullptr};

// Rows of one task: enough elements that the hand-over is cheap relative to the work.
int64_t grain(const RowCall& c) {
  constexpr int64_t elements = 1 << 15;
  return c.v >= elements ? 1 : elements / c.v;
}

// Whether the rows, one after the other and each over all threads, take less time than a row a
// thread; in elements.
bool better_shared(const RowCall& c, int64_t threads) {
  constexpr int64_t wake = 2 * kPart;  // threads are woken twice a row, for about 2 us each
  const int64_t parts = (c.v + kPart - 1) / kPart;
  const int64_t in_turn = c.n * ((parts + threads - 1) / threads * kPart + wake);
  const int64_t apart = (c.n + threads - 1) / threads * c.v;
  return threads > 1 && in_turn < apart / 10 * 9;
}

bool is_ignored(const RowCall& c, int64_t i) {
  return c.ids != nullptr && c.ids[i] == c.ignore_index;
}

double sum_weights(const RowCall& c) {
  double total = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    if (!is_ignored(c, i)) total += c.weight == nullptr ? 1.0 : static_cast<double>(c.weight[i]);
  }
  return total;
}

// In row order, independent of the number of threads.
double sum_losses(const RowCall& c) {
  double total = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    const double w = c.weight == nullptr ? 1.0 : static_cast<double>(c.weight[i]);
    if (w != 0) total += w * static_cast<double>(c.scratch[i]);
  }
  return total;
}

// Of the scratch that Kernels::two_class left, in row order.
void sum_statistics(const RowCall& c) {
  const float *entropy = c.scratch + c.n, *top = c.scratch + 2 * c.n;
  double rows = 0, agreement = 0, max_prob = 0, entropies = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    rows += top[i] != 0;
    agreement += top[i] > 0;
    max_prob += std::fabs(static_cast<double>(top[i]));
    entropies += static_cast<double>(entropy[i]);
  }
  const double sums[] = {rows, agreement, max_prob, entropies};
  for (int i = 0; i < 4; ++i) c.sums[i] = static_cast<float>(sums[i]);
}

// The scratch is filled by Kernels::margins; the kept margins are moved to the front of its first
// row.
float select_margin(const RowCall& c, Select select) {
  float *margins = c.scratch, *weak = c.scratch + c.n, *kept = c.scratch + 2 * c.n;
  double one = 0;
  int64_t m = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    if (kept[i] == 0) continue;
    one += static_cast<double>(weak[i]);
    margins[m++] = margins[i];
  }
  double q = 0.5;
  if (select == kThresholdPrior && m > 0) {
    q = one / static_cast<double>(m);
    q = q < 0 ? 0 : q > 1 ? 1 : q;
  }
  return quantile({margins, kF32, nullptr, m}, q);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  const Kernels* const other = forced.load(std::memory_order_acquire);
  return other == nullptr ? chosen : *other;
}

bool use_isa(const char* name) {
  const Kernels* match = std::strcmp(name, kernels_base.isa) == 0 ? &kernels_base : nullptr;
#if defined(__x86_64__)
  if (has_avx2() && std::strcmp(name, kernels_avx2.isa) == 0) match = &kernels_avx2;
  if (has_avx512() && std::strcmp(name, kernels_avx512.isa) == 0) match = &kernels_avx512;
#endif
  if (match != nullptr) forced.store(match, std::memory_order_release);
  return match != nullptr;
}

int64_t run(Kernel kernel, const RowCall& c) {
  const bool shares = kernel == kernels().rows || kernel == kernels().gradient;
  if (shares && better_shared(c, max_threads())) {
    RowCall shared = c;
    shared.share_rows = true;
    return kernel(shared, 0, c.n);
  }
  std::atomic<int64_t> bad{-1};
  auto body = [&](int64_t lo, int64_t hi) {
    const int64_t row = kernel(c, lo, hi);
    if (row >= 0) bad = row;
  };
  parallel_rows(c.n, grain(c), body);
  return bad;
}

TwoClassResult two_class(RowCall c, Select select, bool mean) {
  constexpr int64_t on_stack = 256;
  float small[3 * on_stack];
  std::vector<float> large(c.n > on_stack ? static_cast<std::size_t>(3 * c.n) : 0);
  c.scratch = large.empty() ? small : large.data();
  TwoClassResult r{-1, 0, 0, c.params.threshold};
  if (select != kThresholdGiven) {
    r.bad_row = run(kernels().margins, c);
    if (r.bad_row >= 0) return r;
    c.params.threshold = r.threshold = select_margin(c, select);
  }
  const double total = sum_weights(c);
  const double scale = !mean ? 1.0 : total > 0 ? 1.0 / total : 0.0;
  c.scale = static_cast<float>(scale);
  r.bad_row = run(kernels().two_class, c);
  // Divided, not multiplied by the reciprocal: the mean of one row is that row, to the last bit.
  const double divisor = mean ? total : 1.0;
  r.loss = divisor > 0 && r.bad_row < 0 ? static_cast<float>(sum_losses(c) / divisor) : 0.0f;
  r.normaliser = static_cast<float>(total);
  if (c.sums != nullptr && r.bad_row < 0) sum_statistics(c);
  return r;
}

}  // namespace w2s
