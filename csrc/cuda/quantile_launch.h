// From a call to the kernel of its dtype; needs launch_quantile<T>().
#pragma once

#include "quantile.h"

namespace w2s {
namespace cuda {

int quantile(const Quantile& c, Stream stream) {
  if (c.n <= 0 || c.n > kMaxScores) return 1;  // cudaErrorInvalidValue
  switch (c.dtype) {
    case kF32:
      return launch_quantile<float>(c, stream);
    case kBF16:
      return launch_quantile<BF16>(c, stream);
    default:
      return launch_quantile<F16>(c, stream);
  }
}

}  // namespace cuda
}  // namespace w2s
