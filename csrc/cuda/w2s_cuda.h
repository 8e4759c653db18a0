// Torch-free interface of the CUDA kernels: device addresses, sizes, strides and a stream.
//
// As csrc/w2s.h, but scalars that a step computes are in device memory, so that no launch waits for
// the host. Launchers neither allocate nor synchronise and may be captured into a CUDA graph.
// They return a cudaError_t as int (0 is success); a label outside the classes, or listed twice,
// turns its row NaN.
#pragma once

#include "../w2s.h"

namespace w2s {
namespace cuda {

// Device limits for one row.
struct Limits {
  int64_t shared;   // bytes that one block may use
  int32_t cluster;  // blocks that may share their memory; 1 without clusters
  int64_t alone;    // a row is split over a cluster from this many bytes on: two blocks fit an SM
  int64_t part;     // bytes of a block of a cluster, where there are enough blocks: three fit
};

// How the rows of a call are cut into tiles for threads, blocks and clusters.
struct Tiling {
  int32_t threads;   // of a block
  int32_t cluster;   // blocks of a row (rows), or 1
  int32_t tile;      // 16-byte chunks of logits of one block
  int32_t blocks;    // blocks of a row
  int32_t resident;  // whether a block keeps its tile in shared memory
  int64_t shared;    // bytes of dynamic shared memory
};

using Stream = void*;  // cudaStream_t

// Both work without a device. A tiling with shared > limits.shared cannot run: K is too large.
Tiling tiling_of_rows(const RowCall& c, const Limits& limits);
Tiling tiling_of_gradient(const RowCall& c);

// Record, and with grad the gradient: one read and one write of every row.
int rows(const RowCall& c, Stream stream);
// Closes the gate of rows below the threshold: record, and with grad the entries that change.
int fixup(const RowCall& c, Stream stream);
// Gradient from the record.
int gradient(const RowCall& c, Stream stream);
// grad (N, V) times *by in place; a factor of 1 is detected on the device and writes nothing.
int scale(void* grad, int64_t grad_stride, int64_t n, int64_t v, DType dtype, const float* by,
          Stream stream);

// 8-byte words that quantile() works in; they need no value.
constexpr int64_t kQuantileCounters = 3 * 2048 + 2;

struct Quantile {
  int64_t n;
  const void* scores;  // [in] (N) dtype
  int32_t dtype;
  const uint8_t* keep;  // [in] (N) bytes, null for all
  const double* q;      // [in] 0-d share of the scores below, or null for rank
  const int64_t* rank;  // [in] 0-d, 0-based
  uint64_t* counters;   // [out] kQuantileCounters, scratch
  float* out;           // [out] 0-d
};

// Exact order statistic: with q interpolated, +inf if nothing is kept; with rank the score itself,
// NaN if there is none. NaN for a NaN score or q. One cooperative launch.
int quantile(const Quantile& c, Stream stream);

// Most blocks of two_class(), and the 8-byte words that it works in; they need no value.
constexpr int64_t kTwoClassBlocks = 1024;
constexpr int64_t kTwoClassSums = 4;  // that a block leaves for the others
constexpr int64_t kTwoClassScratch = kQuantileCounters + kTwoClassSums * kTwoClassBlocks;

// A call over two classes with hard or dense targets: rows.scale, scale_ptr and topk_diffs are not
// read, rows.stats and rows.index may be null.
struct TwoClass {
  RowCall rows;
  Select select;            // where the threshold comes from
  int32_t mean;             // whether the loss is the mean over the rows that count
  uint64_t* scratch;        // [out] kTwoClassScratch
  float* out;               // [out] (3): loss, sum of the weights of the rows that count, threshold
  float* losses;            // [out] (N) weighted losses of the rows, or null
  const float* upstream;    // [in] two_class_gradient only: (N) factors of the rows,
  int64_t upstream_stride;  // or one of stride 0
  int32_t check_weights;    // whether a weight that is negative or NaN ends the context
};

// Threshold, normaliser, loss, gradient, and the record on request: one launch, a
// cooperative one where several blocks share the rows.
int two_class(const TwoClass& c, Stream stream);
// The gradient of a finished call, whose `out` it reads, times the upstream factors.
int two_class_gradient(const TwoClass& c, Stream stream);

// InfoNCE's pass over similarities: csrc/contrastive.h.
int contrastive(const Contrastive& c, Stream stream);

// Why kernels cannot run on a device: a cudaError_t as int, 0 if they can.
int probe(int device);
const char* error_string(int error);
int runtime_version();

}  // namespace cuda
}  // namespace w2s
