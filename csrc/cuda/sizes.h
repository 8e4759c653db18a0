// Sizes that host and device agree on.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define W2S_SIZE __host__ __device__
#else
#define W2S_SIZE
#endif

namespace {

constexpr int kRowsThreads = 512;  // most threads of a block of the sweep
constexpr int kGradientThreads = 256;
constexpr int kGradientTile = 4 * kGradientThreads;  // chunks of one block: 16 KB
constexpr int kFixupThreads = 128;
constexpr int64_t kSharedBytes = 1536;  // of struct Shared, rounded up

// Dynamic shared memory before the tile: Shared, z - M of the listed classes.
W2S_SIZE inline int64_t shared_bytes(int64_t k) { return kSharedBytes + (k + 3) / 4 * 16; }

}  // namespace
