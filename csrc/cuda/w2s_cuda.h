// Torch-free interface of the CUDA kernels: device addresses, sizes, strides and a stream.
//
// As csrc/w2s.h, but scalars that a step computes stand in device memory, so that no launch waits
// for the host. Launchers neither allocate nor synchronise and may be captured into a CUDA graph.
// They return a cudaError_t as int (0 is success); a label outside the classes, or listed twice,
// turns its row NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace w2s {
namespace cuda {

struct Call {
  int64_t n, v, k;
  const void* logits;  // [in] (N, V), may be the same memory as grad
  int64_t logits_stride;
  void* grad;  // [out] (N, V), or null
  int64_t grad_stride;
  const int64_t* ids;  // [in] (N, K), null for dense targets
  const void* probs;   // [in] (N, K) fp32 or (N, V) probs_dtype; null for hard labels
  int64_t probs_stride;
  const float* rest;       // [in] (N), null for none
  const float* weight;     // [in] (N), null for 1
  const float* aux;        // [in] 0-d, null for aux_value
  const float* threshold;  // [in] 0-d, null: every gate open
  const float* scale;      // [in] 0-d factor of the gradient besides the row weight, null for 1
  const float* row_scale;  // [in] (N), gradient only: replaces scale and weight
  int64_t row_scale_stride;
  float* stats;    // [out] (12, N)
  int64_t* index;  // [out] (3, N)
  float* listed;   // [out] (N, K) z_id - max, or null; fixup reads it
  int64_t ignore_index;
  float aux_value, smoothing, gamma, cap, softcap, z_loss;
  int32_t rule;                // w2s::Rule
  int32_t dtype, probs_dtype;  // w2s::DType
};

// What a device offers to one row.
struct Limits {
  int64_t shared;   // bytes that one block may ask for
  int32_t cluster;  // blocks that may share their memory; 1 without clusters
  int64_t alone;    // a row is split over a cluster from this many bytes on: two blocks fit an SM
  int64_t part;     // bytes of a block of a cluster, where enough blocks may be had: three fit
};

// How the rows of a call are laid over threads.
struct Shape {
  int32_t threads;   // of a block
  int32_t cluster;   // blocks of a row (rows), or 1
  int32_t tile;      // 16-byte chunks of logits of one block
  int32_t blocks;    // blocks of a row
  int32_t resident;  // whether a block keeps its tile in shared memory
  int64_t shared;    // bytes of dynamic shared memory
};

using Stream = void*;  // cudaStream_t

// Layouts, without a device. A shape with shared > limits.shared cannot run: too many listed.
Shape shape_of_rows(const Call& c, const Limits& limits);
Shape shape_of_gradient(const Call& c);

// Record, and with grad the gradient: one read and one write of every row.
int rows(const Call& c, Stream stream);
// Closes the gate of rows below the threshold: record, and with grad the entries that change.
int fixup(const Call& c, Stream stream);
// Gradient from the record.
int gradient(const Call& c, Stream stream);
// grad (N, V) times *by in place; 1 is seen on the device and touches nothing.
int scale(void* grad, int64_t grad_stride, int64_t n, int64_t v, int32_t dtype, const float* by,
          Stream stream);

// 8-byte counters that quantile() needs, zero before every call.
constexpr int64_t kQuantileCounters = 3 * 2048 + 8;

struct Quantile {
  int64_t n;
  const void* scores;  // [in] (N) dtype
  int32_t dtype;
  const uint8_t* keep;  // [in] (N) bytes, null for all
  const double* q;      // [in] 0-d share of the scores below, or null for rank
  const int64_t* rank;  // [in] 0-d, 0-based
  uint64_t* counters;   // [in/out] kQuantileCounters zeros
  float* out;           // [out] 0-d
};

// Exact order statistic: with q interpolated, +inf if nothing is kept; with rank the score itself,
// NaN if there is none. NaN for a NaN score or q. One cooperative launch.
int quantile(const Quantile& c, Stream stream);

// Why kernels cannot run on a device: a cudaError_t as int, 0 if they can.
int probe(int device);
const char* error_string(int error);
int runtime_version();

}  // namespace cuda
}  // namespace w2s
