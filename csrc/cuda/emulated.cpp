// The same kernels on the host, for tests: launches are emulated, device limits are set by tests.
#include "contrastive.h"
#include "emulate.h"
#include "kernels.h"
#include "quantile.h"
#include "two_class.h"

namespace w2s {
namespace cuda {
namespace {

Limits chosen{232448, kMaxCluster, kAloneBytes, kPartBytes};
std::string problem;

int limits_here(Limits& limits) {
  limits = chosen;
  return 0;
}

template <class F>
int play(int64_t blocks, int threads, int together, int64_t shared, const F& body) {
  problem = emulate::run(blocks, threads, together, static_cast<std::size_t>(shared), body);
  return problem.empty() ? 0 : 999;
}

template <class K>
int launch(const RowCall& c, const Tiling& s, int64_t blocks, Stream) {
  return play(blocks, s.threads, s.cluster, s.shared, [&] { K::run(c, s); });
}

template <class T>
int launch_contrastive(const Contrastive& c, Stream) {
  return play(c.n, kPairThreads, 1, sizeof(PairShared), [&] { ContrastiveKernel<T>::run(c); });
}

// A grid of up to three blocks, all resident.
template <class T>
int launch_quantile(const Quantile& c, Stream) {
  const int64_t useful = c.n / 512 + 1, blocks = useful < 3 ? useful : 3;
  return play(blocks, kQuantileThreads, static_cast<int>(blocks), sizeof(QuantileShared),
              [&] { QuantileKernel<T>::run(c); });
}

template <class T, class U>
int launch_two_class(const TwoClass& c, Stream) {
  const int64_t useful = two_class_blocks(c.rows.n), blocks = useful < 3 ? useful : 3;
  return play(blocks, kQuantileThreads, static_cast<int>(blocks), sizeof(TwoClassShared),
              [&] { TwoClassKernel<T, U>::run(c); });
}

template <class T, class U>
int launch_two_class_gradient(const TwoClass& c, Stream) {
  return play(two_class_blocks(c.rows.n), kQuantileThreads, 1, 0,
              [&] { TwoClassGradientKernel<T, U>::run(c); });
}

}  // namespace
}  // namespace cuda
}  // namespace w2s

#include "contrastive_launch.h"
#include "launch.h"
#include "quantile_launch.h"
#include "two_class_launch.h"

namespace w2s {
namespace cuda {

int probe(int) { return 0; }
const char* error_string(int error) {
  return error == kInvalid ? "invalid argument" : problem.c_str();
}
int runtime_version() { return 0; }

void set_limits(const Limits& limits) { chosen = limits; }

}  // namespace cuda
}  // namespace w2s
