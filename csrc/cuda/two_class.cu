// Launches the kernel of two classes: one block alone, or blocks that wait for one another, which a
// cooperative launch keeps resident together. Either may be captured into a graph.
#include <cuda_runtime.h>

#include "two_class.h"

namespace w2s {
namespace cuda {
namespace {

template <class T, class U>
__global__ void __launch_bounds__(kQuantileThreads, kTwoClassResident)
    two_class_kernel(const __grid_constant__ TwoClass c) {
  TwoClassKernel<T, U>::run(c);
}

template <class T, class U>
__global__ void __launch_bounds__(kQuantileThreads, kTwoClassResident)
    two_class_gradient_kernel(const __grid_constant__ TwoClass c) {
  TwoClassGradientKernel<T, U>::run(c);
}

// Most blocks that are resident together.
template <class T, class U>
int resident_blocks(int64_t& blocks) {
  int device = 0, processors = 0, each = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  if (const int error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  const int error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &each, two_class_kernel<T, U>, kQuantileThreads, sizeof(TwoClassShared));
  blocks = int64_t{processors} * each;
  return error;
}

template <class T, class U>
int launch_two_class(const TwoClass& c, Stream stream) {
  int64_t blocks = two_class_blocks(c.rows.n);
  if (blocks > 1) {
    int64_t most = 0;
    if (const int error = resident_blocks<T, U>(most)) return error;
    blocks = blocks < most ? blocks : most;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kQuantileThreads);
  config.dynamicSmemBytes = sizeof(TwoClassShared);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, two_class_kernel<T, U>, c);
}

template <class T, class U>
int launch_two_class_gradient(const TwoClass& c, Stream stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(two_class_blocks(c.rows.n)));
  config.blockDim = dim3(kQuantileThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, two_class_gradient_kernel<T, U>, c);
}

}  // namespace
}  // namespace cuda
}  // namespace w2s

#include "two_class_launch.h"
