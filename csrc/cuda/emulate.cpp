#include "emulate.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

namespace emulate {
namespace {

constexpr std::size_t kStack = 48 * 1024;
constexpr std::size_t kRedZone = 256;  // behind shared memory
constexpr unsigned char kPoison = 0xff;
constexpr int kPatience = 10000;  // rounds without progress

struct Thread {
  Fiber fiber;
  jmp_buf at;
  bool started, done;
};

struct Stage {
  int threads = 0, together = 0;
  int64_t blocks = 0, first = 0;
  std::size_t shared = 0;
  std::vector<Thread> crew;
  std::vector<std::vector<char>> memory;
  std::vector<Barrier> block, warp;
  std::vector<uint32_t> words;
  Barrier cluster;
  const std::function<void()>* body = nullptr;
  std::string error;
  int64_t steps = 0;
};

Stage stage;
Thread* current = nullptr;
jmp_buf director;
std::unique_ptr<char[]> stacks;  // left uninitialised: most of it is never touched
std::size_t stacked = 0;
Order order = kForward;
std::mt19937_64 dice;
Traffic moved{};

[[noreturn]] void leave() { _longjmp(director, 1); }

void enter() {
  (*stage.body)();
  current->done = true;
  leave();
}

// Runs one thread until it waits or ends.
void step(std::size_t i) {
  current = &stage.crew[i];
  if (_setjmp(director) != 0) return;
  if (current->started) _longjmp(current->at, 1);
  current->started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks.get() + i * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

void set_stage(std::size_t n) {
  stage.crew.assign(n, Thread{});
  stage.block.assign(static_cast<std::size_t>(stage.together), Barrier{stage.threads});
  stage.warp.assign(n / 32, Barrier{32});
  stage.words.assign(n, 0);
  stage.cluster = Barrier{static_cast<int>(n)};
  for (auto& m : stage.memory) std::fill(m.begin(), m.end(), static_cast<char>(kPoison));
  for (std::size_t i = 0; i < n; ++i) {
    Fiber& f = stage.crew[i].fiber;
    f.thread = static_cast<int>(i) % stage.threads;
    f.block = static_cast<int>(i) / stage.threads;
  }
}

void check_red_zones() {
  for (const auto& m : stage.memory) {
    const bool clean = std::all_of(m.end() - static_cast<std::ptrdiff_t>(kRedZone), m.end(),
                                   [](char c) { return static_cast<unsigned char>(c) == kPoison; });
    if (!clean) stage.error = "write behind shared memory";
  }
}

// One turn for each thread of cast[from, to); false when all of them have ended.
bool turn(const std::vector<std::size_t>& cast, std::size_t from, std::size_t to) {
  bool alive = false;
  for (std::size_t at = from; at < to && stage.error.empty(); ++at) {
    const std::size_t i = cast[at];
    if (stage.crew[i].done) continue;
    alive = true;
    step(i);
    stage.steps += stage.crew[i].done ? 1 : 0;
  }
  return alive;
}

void play(std::vector<std::size_t>& cast) {
  const bool alone = order == kAlone || order == kAloneReverse;
  const std::size_t part = alone ? static_cast<std::size_t>(stage.threads) : cast.size();
  int idle = 0;
  for (bool alive = true; alive && stage.error.empty();) {
    if (order == kRandom) std::shuffle(cast.begin(), cast.end(), dice);
    const int64_t before = stage.steps;
    alive = false;
    for (std::size_t from = 0; from < cast.size(); from += part) {
      int64_t last = stage.steps - 1;
      while (alone && stage.steps != last && stage.error.empty()) {
        last = stage.steps;
        turn(cast, from, from + part);
      }
      alive |= turn(cast, from, from + part);
    }
    idle = stage.steps == before ? idle + 1 : 0;
    if (idle > kPatience) stage.error = "deadlock: a thread waits for one that never arrives";
  }
}

}  // namespace

Fiber& self() { return current->fiber; }
int threads() { return stage.threads; }
int64_t blocks() { return stage.blocks; }
int64_t first_block() { return stage.first; }
char* shared_of(int block) { return stage.memory[static_cast<std::size_t>(block)].data(); }
Barrier& block_barrier() { return stage.block[static_cast<std::size_t>(self().block)]; }
Barrier& warp_barrier() {
  return stage.warp[static_cast<std::size_t>(current - stage.crew.data()) / 32];
}
Barrier& cluster_barrier() { return stage.cluster; }
uint32_t* exchange() {
  return stage.words.data() + static_cast<std::size_t>(current - stage.crew.data()) / 32 * 32;
}
Traffic& traffic() { return moved; }
void progress() { ++stage.steps; }

__attribute__((noinline)) void pause() {
  if (_setjmp(current->at) == 0) leave();
}

__attribute__((noinline)) void wait(Barrier& barrier) {
  const int64_t generation = barrier.generation;
  progress();
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) pause();
}

void fail(const char* what) {
  stage.error = what;
  leave();
}

void set_order(Order chosen, uint64_t seed) {
  order = chosen;
  dice.seed(seed);
}

std::string run(int64_t blocks, int threads, int together, std::size_t shared,
                const std::function<void()>& body) {
  if (threads % 32 != 0 || blocks % together != 0) return "threads or blocks do not divide";
  const std::size_t n = static_cast<std::size_t>(threads) * static_cast<std::size_t>(together);
  stage.error.clear();
  stage.threads = threads, stage.together = together, stage.blocks = blocks;
  stage.body = &body;
  stage.memory.assign(static_cast<std::size_t>(together), std::vector<char>(shared + kRedZone));
  if (stacked < n) stacks.reset(new char[n * kStack]), stacked = n;
  std::vector<std::size_t> cast(n);
  for (std::size_t i = 0; i < n; ++i) {
    cast[i] = order == kReverse || order == kAloneReverse ? n - 1 - i : i;
  }
  for (stage.first = 0; stage.first < blocks && stage.error.empty(); stage.first += together) {
    set_stage(n);
    play(cast);
    if (stage.error.empty()) check_red_zones();
  }
  return stage.error;
}

}  // namespace emulate
