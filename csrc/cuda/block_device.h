// The block in CUDA's own instructions.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define W2S_DEVICE __device__ __forceinline__
#define W2S_OUTLINED __device__ __noinline__
#define W2S_UNROLL _Pragma("unroll")
#define W2S_NO_UNROLL _Pragma("unroll 1")
#define W2S_RARELY(x) __builtin_expect(!!(x), 0)

namespace {
namespace block {

using Pack = uint4;  // 16 bytes: one load, one store

W2S_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
W2S_DEVICE int threads() { return static_cast<int>(blockDim.x); }
W2S_DEVICE int64_t index() { return blockIdx.x; }
W2S_DEVICE int64_t blocks() { return gridDim.x; }
W2S_DEVICE void sync() { __syncthreads(); }

template <class T>
W2S_DEVICE T* shared() {
  extern __shared__ uint4 dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}

// Values of the lane `by` above in this warp; undefined past its end.
W2S_DEVICE float down(float x, int by) { return __shfl_down_sync(0xffffffffu, x, by); }
W2S_DEVICE int down(int x, int by) { return __shfl_down_sync(0xffffffffu, x, by); }
W2S_DEVICE uint32_t down(uint32_t x, int by) { return __shfl_down_sync(0xffffffffu, x, by); }
W2S_DEVICE uint32_t up(uint32_t x, int by) { return __shfl_up_sync(0xffffffffu, x, by); }
W2S_DEVICE float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
W2S_DEVICE uint32_t from_lane(uint32_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
W2S_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

// Clusters: blocks that read each other's shared memory. Before sm_90 a cluster is one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
W2S_DEVICE int cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return static_cast<int>(r);
}
// Not the aligned form: lanes of a warp may arrive one after the other.
W2S_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
// A word of the same variable in the block of that rank.
W2S_DEVICE uint32_t remote_word(const uint32_t* word, int rank) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(word));
  uint32_t there, value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(there) : "memory");
  return value;
}
#else
W2S_DEVICE int cluster_rank() { return 0; }
W2S_DEVICE void cluster_sync() { __syncthreads(); }
W2S_DEVICE uint32_t remote_word(const uint32_t* word, int) { return *word; }
#endif

// 16 bytes as one instruction, in assembly: the compiler splits vectors and does not always
// join them again. Rows may be overwritten by the kernel that reads them,
// so nothing goes through the read-only path.
W2S_DEVICE Pack load16(const void* p) {
  Pack x;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
W2S_DEVICE void store16(void* p, const Pack& x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}
W2S_DEVICE Pack load16_shared(const Pack* p) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  Pack x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
template <class T>
W2S_DEVICE T load1(const T* p) {
  return *p;
}
template <class T>
W2S_DEVICE void store1(T* p, T x) {
  *p = x;
}

// Global to shared memory, 16 bytes, without registers. A copy may be read by its own thread after
// copy_wait<n>() with at most n later commits, by others after a sync() too.
W2S_DEVICE void copy16(void* shared, const void* global) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
}
W2S_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER>
W2S_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

W2S_DEVICE void atomic_min(uint32_t* p, uint32_t x) { atomicMin(p, x); }
W2S_DEVICE void atomic_or(uint32_t* p, uint32_t x) { atomicOr(p, x); }
W2S_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
W2S_DEVICE void atomic_add(uint64_t* p, uint64_t x) {
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
W2S_DEVICE void atomic_max(uint64_t* p, uint64_t x) {
  atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
// What other blocks wrote before their grid barrier.
W2S_DEVICE uint64_t load_fresh(const uint64_t* p) {
  unsigned long long x;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(p) : "memory");
  return x;
}
// All threads of a cooperative launch, or of a launch of one block.
W2S_DEVICE void grid_sync() {
  if (gridDim.x == 1) {
    __syncthreads();
  } else {
    cooperative_groups::this_grid().sync();
  }
}

// Ends the context, with a message in its log.
W2S_DEVICE void fail(const char* what) { __assert_fail(what, "w2s_fast", 0, "kernel"); }

// 2^x; 0 below 2^-126, NaN stays NaN.
W2S_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger of each 16 bits, a number before a NaN.
W2S_DEVICE uint32_t max_bf16(uint32_t x, uint32_t y) {
  uint32_t top;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(top) : "r"(x), "r"(y));
  return top;
}
W2S_DEVICE uint32_t max_halves(uint32_t x, uint32_t y) {
  uint32_t top;
  asm("max.f16x2 %0, %1, %2;" : "=r"(top) : "r"(x), "r"(y));
  return top;
}

W2S_DEVICE float bits_to_float(uint32_t x) { return __uint_as_float(x); }
W2S_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
W2S_DEVICE float half_to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
W2S_DEVICE uint32_t two_halves(float lo, float hi) {
  const __half2 h = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&h);
}
W2S_DEVICE uint32_t two_bf16(float lo, float hi) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&h);
}

}  // namespace block
}  // namespace
