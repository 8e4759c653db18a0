// Launches InfoNCE's row pass: one block a query.
#include <cuda_runtime.h>

#include "contrastive.h"

namespace w2s {
namespace cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kPairThreads, kPairBlocks)
    contrastive_kernel(const __grid_constant__ Contrastive c) {
  ContrastiveKernel<T>::run(c);
}

template <class T>
int launch_contrastive(const Contrastive& c, Stream stream) {
  if (c.n == 0) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(c.n));
  config.blockDim = dim3(kPairThreads);
  config.dynamicSmemBytes = sizeof(PairShared);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, contrastive_kernel<T>, c);
}

}  // namespace
}  // namespace cuda
}  // namespace w2s

#include "contrastive_launch.h"
