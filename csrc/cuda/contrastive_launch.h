// From a call to the kernel of its gradient's dtype; needs launch_contrastive<T>().
#pragma once

#include "contrastive.h"

namespace w2s {
namespace cuda {

int contrastive(const Contrastive& c, Stream stream) {
  if (c.m <= 0 || c.m > kMaxClasses || c.n > kMaxBlocks) return 1;  // cudaErrorInvalidValue
  switch (c.dtype) {
    case kF32:
      return launch_contrastive<float>(c, stream);
    case kBF16:
      return launch_contrastive<BF16>(c, stream);
    default:
      return launch_contrastive<F16>(c, stream);
  }
}

}  // namespace cuda
}  // namespace w2s
