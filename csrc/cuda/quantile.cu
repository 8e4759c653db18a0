// Launches the radix select. All blocks must be resident at once, because they wait for one
// another: a cooperative launch guarantees it or fails, and may be captured into a graph.
#include <cuda_runtime.h>

#include "quantile.h"

namespace w2s {
namespace cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuantileThreads, kQuantileBlocks)
    quantile_kernel(const __grid_constant__ Quantile c) {
  QuantileKernel<T>::run(c);
}

template <class T>
int launch_quantile(const Quantile& c, Stream stream) {
  int device = 0, processors = 0, resident = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  if (const int error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (const int error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
          &resident, quantile_kernel<T>, kQuantileThreads, sizeof(QuantileShared))) {
    return error;
  }
  const int64_t each = kQuantileThreads * kQuantilePacks * Format<T>::kCount;
  const int64_t useful = (c.n + each - 1) / each, most = int64_t{processors} * resident;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(useful < most ? useful : most));
  config.blockDim = dim3(kQuantileThreads);
  config.dynamicSmemBytes = sizeof(QuantileShared);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, quantile_kernel<T>, c);
}

}  // namespace
}  // namespace cuda
}  // namespace w2s

#include "quantile_launch.h"
