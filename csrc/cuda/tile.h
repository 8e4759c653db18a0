// Every limit by which rows are cut into tiles: threads of a block, launch bounds, shared memory
// and largest sizes. tile.cpp computes the tiling of a call from them.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define W2S_SIZE __host__ __device__
#else
#define W2S_SIZE
#endif

namespace {

// Launch bounds: most threads of a block, and blocks that share an SM.
constexpr int kRowsThreads = 512, kRowsBlocks = 2;    // 64 registers
constexpr int kOtherThreads = 256, kOtherBlocks = 4;  // 64 registers
constexpr int kQuantileThreads = 256, kQuantileBlocks = 2;

constexpr int kGradientThreads = 256;
constexpr int kGradientTile = 4 * kGradientThreads;  // chunks of one block: 16 KB
constexpr int kFixupThreads = 128;
constexpr int kQuantilePacks = 4;  // packs that a thread loads ahead

constexpr int64_t kChunkBytes = 16;                 // of logits: one load, one store
constexpr int64_t kSharedBytes = 1536;              // of struct Shared, rounded up
constexpr int64_t kDefaultSharedBytes = 48 * 1024;  // without an opt-in
constexpr int kMaxCluster = 8;
constexpr int64_t kAloneBytes = 112 * 1024;  // from here on a row is split: two blocks fit an SM
constexpr int64_t kPartBytes = 74 * 1024;    // of a block of a cluster: three fit an SM

constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int64_t kMaxClasses = 0x7fffffff - 64;  // columns are 32-bit, offsets of rows 64-bit
constexpr int64_t kMaxScores = 0x7fffffff - 64;   // positions are 32-bit

// Dynamic shared memory before the tile: Shared, z - M of the top-k classes.
W2S_SIZE inline int64_t shared_bytes(int64_t k) { return kSharedBytes + (k + 3) / 4 * 16; }

}  // namespace
