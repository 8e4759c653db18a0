// How rows are cut into tiles for threads, blocks and clusters: a rule over the limits of tile.h,
// not a tuning run, because a kernel that overwrites its input must run exactly once.
// test_shared_memory_budget in tests checks it against the memory of real devices.
#include "tile.h"

#include "w2s_cuda.h"

namespace w2s {
namespace cuda {
namespace {

int64_t width(int32_t dtype) { return dtype == 0 ? 4 : 2; }

// 16-byte chunks of a row that starts anywhere.
int64_t chunks_of(const RowCall& c) {
  const int64_t count = kChunkBytes / width(c.dtype);
  return (c.v + 2 * count - 2) / count;
}

int32_t threads_for(int64_t chunks, int64_t each, int32_t most) {
  int32_t threads = 32;
  while (threads < most && threads * each < chunks) threads *= 2;
  return threads;
}

// A few chunks a thread while that keeps all blocks small, then sixteen: 64 KB on 256 threads.
int32_t threads_of_tile(int64_t tile) {
  const int32_t few = threads_for(tile, 4, 128), many = threads_for(tile, 16, kRowsThreads);
  return few > many ? few : many;
}

int64_t resident_bytes(const RowCall& c, int64_t tile) {
  const int64_t dense = c.ids == nullptr ? width(c.probs_dtype) * kChunkBytes / width(c.dtype) : 0;
  return shared_bytes(c.k) + tile * (kChunkBytes + dense) + (dense != 0 ? kChunkBytes : 0);
}

}  // namespace

Tiling tiling_of_rows(const RowCall& c, const Limits& limits) {
  const int64_t chunks = chunks_of(c);
  Tiling s{};
  for (int32_t cluster = 1; cluster <= limits.cluster; cluster *= 2) {
    const int64_t tile = (chunks + cluster - 1) / cluster;
    const int64_t bytes = resident_bytes(c, tile);
    if (bytes > limits.shared) continue;
    s = {threads_of_tile(tile), cluster, static_cast<int32_t>(tile), cluster, 1, bytes};
    if (bytes <= (cluster == 1 ? limits.alone : limits.part)) break;
  }
  if (s.resident != 0) return s;
  return {threads_of_tile(chunks), 1, static_cast<int32_t>(chunks), 1, 0, shared_bytes(c.k)};
}

Tiling tiling_of_gradient(const RowCall& c) {
  const int64_t chunks = chunks_of(c);
  const int64_t tile = chunks < kGradientTile ? chunks : kGradientTile;
  const int64_t blocks = (chunks + tile - 1) / tile;
  return {threads_for(tile, 1, kGradientThreads), 1, static_cast<int32_t>(tile),
          static_cast<int32_t>(blocks),           0, shared_bytes(c.k)};
}

}  // namespace cuda
}  // namespace w2s
