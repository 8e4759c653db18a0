// Divides the rows of InfoNCE's pass over threads.
#include "../contrastive.h"

#include "../parallel.h"

namespace w2s {

void contrastive_rows(const Contrastive& c) {
  constexpr int64_t elements = 1 << 14;
  auto body = [&](int64_t lo, int64_t hi) { kernels().contrastive(c, lo, hi); };
  parallel_rows(c.n, c.m >= elements ? 1 : elements / c.m, body);
}

}  // namespace w2s
