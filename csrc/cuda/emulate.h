// Blocks of threads on the host, for tests: every thread is a fiber that runs until it waits.
//
// One block (or one cluster, or one cooperative grid) is resident at a time. Between two barriers
// the order of the threads is free, and the emulator varies it: as numbered, reversed, at random,
// or one block as far as it gets before the next one runs. A missing barrier shows as a result that
// depends on the order; a barrier that some thread never reaches as a deadlock; a misaligned
// 16-byte access as an error; shared memory starts as NaN; a copy into shared memory arrives no
// earlier than its wait. Accesses to rows are counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace emulate {

enum Order : int { kForward = 0, kReverse = 1, kRandom = 2, kAlone = 3, kAloneReverse = 4 };

// Bytes of rows moved since the last reset.
struct Traffic {
  int64_t read_wide, read_narrow, written_wide, written_narrow;
};

struct Barrier {
  int size = 0, arrived = 0;
  int64_t generation = 0;
};

constexpr int kPending = 64;  // asynchronous copies of one thread in flight

struct Copy {
  void* to;
  const void* from;
  int group;
};

// One thread.
struct Fiber {
  int thread, block;
  int commits;
  int pending;
  Copy copies[kPending];
};

Fiber& self();
int threads();
int64_t blocks();
int64_t first_block();
char* shared_of(int block);
Barrier& block_barrier();
Barrier& warp_barrier();
Barrier& cluster_barrier();
uint32_t* exchange();  // 32 words of this warp
Traffic& traffic();

void wait(Barrier& barrier);
void pause();  // lets the others run
void progress();
[[noreturn]] void fail(const char* what);

void set_order(Order order, uint64_t seed);
// Runs `body` as every thread of `blocks` blocks of which `together` are resident at a time.
// Returns an empty string or what went wrong.
std::string run(int64_t blocks, int threads, int together, std::size_t shared,
                const std::function<void()>& body);

}  // namespace emulate
