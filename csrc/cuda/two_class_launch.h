// From a call over two classes to the kernel of its dtypes; needs launch_two_class<T, U>().
#pragma once

#include "two_class.h"

namespace w2s {
namespace cuda {

template <class T>
int two_class_of(const TwoClass& c, Stream stream) {
  if (c.rows.ids != nullptr) return launch_two_class<T, None>(c, stream);
  if (c.rows.probs_dtype == kF32) return launch_two_class<T, float>(c, stream);
  return launch_two_class<T, T>(c, stream);
}

int two_class(const TwoClass& c, Stream stream) {
  if (c.rows.v != 2 || c.rows.n > kMaxScores) return 1;  // cudaErrorInvalidValue
  switch (c.rows.dtype) {
    case kF32:
      return two_class_of<float>(c, stream);
    case kBF16:
      return two_class_of<BF16>(c, stream);
    default:
      return two_class_of<F16>(c, stream);
  }
}

}  // namespace cuda
}  // namespace w2s
