// Launches the row kernels. kernels.h has the kernels and their costs, launch.h how they are
// chosen, csrc/README.md for the rules of this folder.
#include <cuda_runtime.h>

#include <atomic>

#include "kernels.h"

namespace w2s {
namespace cuda {
namespace {

constexpr int kMostDevices = 64;

template <class K>
struct Bounds {
  static constexpr int threads = kOtherThreads, blocks = kOtherBlocks;
  static constexpr bool resident = false;
};
template <class T, class U, bool RESIDENT, int WORK>
struct Bounds<RowsKernel<T, U, RESIDENT, WORK>> {
  static constexpr int threads = kRowsThreads, blocks = kRowsBlocks;
  static constexpr bool resident = RESIDENT;
};

template <class K>
__global__ void __launch_bounds__(Bounds<K>::threads, Bounds<K>::blocks)
    kernel(const __grid_constant__ RowCall c, const __grid_constant__ Tiling s) {
  K::run(c, s);
}

// Queried once per device and cached: launches take microseconds.
template <class F>
int cached(std::atomic<int64_t>* known, int device, const F& query, int64_t& value) {
  if (device < 0 || device >= kMostDevices) return query(value);
  value = known[device].load(std::memory_order_relaxed) - 1;
  if (value >= 0) return 0;
  const int error = query(value);
  if (error == 0) known[device].store(value + 1, std::memory_order_relaxed);
  return error;
}

int limits_here(Limits& limits) {
  static std::atomic<int64_t> shared[kMostDevices], cluster[kMostDevices];
  int device = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  const auto query_shared = [&](int64_t& value) -> int {
    int bytes = 0;
    const int error =
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    value = bytes;
    return error;
  };
  // Depends on the loaded code: PTX of sm_80 has no clusters on any device.
  const auto query_cluster = [&](int64_t& value) -> int {
    cudaFuncAttributes a{};
    const int error = cudaFuncGetAttributes(&a, kernel<RowsKernel<float, None, true, kLossOnly>>);
    value = a.binaryVersion >= 90 && a.ptxVersion >= 90 ? kMaxCluster : 1;
    return error;
  };
  int64_t blocks = 1;
  if (const int error = cached(shared, device, query_shared, limits.shared)) return error;
  if (const int error = cached(cluster, device, query_cluster, blocks)) return error;
  limits.cluster = static_cast<int32_t>(blocks);
  limits.alone = kAloneBytes;
  limits.part = kPartBytes;
  return 0;
}

// Once per kernel and device: allows blocks of more than kDefaultSharedBytes. Where blocks keep
// rows, the SM's memory is asked for as shared memory: without that the driver may leave room for
// one block, and a block of a cluster is small enough for three.
template <class K>
int prepare(int64_t bytes) {
  static std::atomic<int64_t> prepared[kMostDevices];
  if (!Bounds<K>::resident && bytes <= kDefaultSharedBytes) return 0;
  int device = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  const bool known = device < kMostDevices;
  if (known && prepared[device].load(std::memory_order_relaxed) != 0) return 0;
  Limits limits{};
  if (const int error = limits_here(limits)) return error;
  int error = cudaFuncSetAttribute(kernel<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(limits.shared));
  if (error == 0 && Bounds<K>::resident) {
    error = cudaFuncSetAttribute(kernel<K>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  }
  if (error == 0 && known) prepared[device].store(1, std::memory_order_relaxed);
  return error;
}

template <class K>
int launch(const RowCall& c, const Tiling& s, int64_t blocks, Stream stream) {
  if (blocks == 0) return 0;
  if (const int error = prepare<K>(s.shared)) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(s.threads));
  config.dynamicSmemBytes = static_cast<size_t>(s.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(s.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = s.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel<K>, c, s);
}

}  // namespace
}  // namespace cuda
}  // namespace w2s

#include "launch.h"

namespace w2s {
namespace cuda {

int probe(int device) {
  int before = 0;
  if (const int error = cudaGetDevice(&before)) return error;
  if (const int error = cudaSetDevice(device)) return error;
  cudaFuncAttributes a{};
  // Fails where no code of this library fits the device.
  const int error = cudaFuncGetAttributes(&a, kernel<RowsKernel<float, None, true, kLossOnly>>);
  cudaSetDevice(before);
  return error;
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

}  // namespace cuda
}  // namespace w2s
