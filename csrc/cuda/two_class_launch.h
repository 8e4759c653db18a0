// From a call over two classes to the kernel of its dtypes; needs launch_two_class<T, U>() and
// launch_two_class_gradient<T, U>().
#pragma once

#include "two_class.h"

namespace w2s {
namespace cuda {

struct LaunchTwoClass {
  template <class T, class U>
  static int run(const TwoClass& c, Stream stream) {
    return launch_two_class<T, U>(c, stream);
  }
};
struct LaunchTwoClassGradient {
  template <class T, class U>
  static int run(const TwoClass& c, Stream stream) {
    return launch_two_class_gradient<T, U>(c, stream);
  }
};

template <class L, class T>
int two_class_of(const TwoClass& c, Stream stream) {
  if (c.rows.ids != nullptr) return L::template run<T, None>(c, stream);
  if (c.rows.probs_dtype == kF32) return L::template run<T, float>(c, stream);
  return L::template run<T, T>(c, stream);
}

template <class L>
int two_class_of(const TwoClass& c, Stream stream) {
  if (c.rows.v != 2 || c.rows.n > kMaxScores) return 1;  // cudaErrorInvalidValue
  switch (c.rows.dtype) {
    case kF32:
      return two_class_of<L, float>(c, stream);
    case kBF16:
      return two_class_of<L, BF16>(c, stream);
    default:
      return two_class_of<L, F16>(c, stream);
  }
}

int two_class(const TwoClass& c, Stream stream) { return two_class_of<LaunchTwoClass>(c, stream); }
int two_class_gradient(const TwoClass& c, Stream stream) {
  return two_class_of<LaunchTwoClassGradient>(c, stream);
}

}  // namespace cuda
}  // namespace w2s
