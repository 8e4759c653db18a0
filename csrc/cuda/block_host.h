// The block as emulated on the host.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "emulate.h"

#define W2S_DEVICE inline
#define W2S_OUTLINED inline
#define W2S_UNROLL
#define W2S_NO_UNROLL
#define W2S_RARELY(x) (x)

namespace {
namespace block {

struct alignas(16) Pack {
  uint32_t x, y, z, w;
};

inline int thread() { return emulate::self().thread; }
inline int threads() { return emulate::threads(); }
inline int64_t index() { return emulate::first_block() + emulate::self().block; }
inline int64_t blocks() { return emulate::blocks(); }
inline void sync() { emulate::wait(emulate::block_barrier()); }

template <class T>
inline T* shared() {
  return reinterpret_cast<T*>(emulate::shared_of(emulate::self().block));
}

inline uint32_t float_to_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
inline float bits_to_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Every lane must take part, as with the full mask on the device.
inline uint32_t from_lane(uint32_t x, int lane) {
  uint32_t* words = emulate::exchange();
  words[thread() % 32] = x;
  emulate::wait(emulate::warp_barrier());
  const uint32_t y = words[lane];
  emulate::wait(emulate::warp_barrier());
  return y;
}
inline float from_lane(float x, int lane) {
  return bits_to_float(from_lane(float_to_bits(x), lane));
}
inline uint32_t down(uint32_t x, int by) {
  const int lane = thread() % 32;
  return from_lane(x, lane + by < 32 ? lane + by : lane);
}
inline uint32_t up(uint32_t x, int by) {
  const int lane = thread() % 32;
  return from_lane(x, lane >= by ? lane - by : lane);
}
inline float down(float x, int by) { return bits_to_float(down(float_to_bits(x), by)); }
inline int down(int x, int by) { return static_cast<int>(down(static_cast<uint32_t>(x), by)); }
inline uint32_t ballot(bool x) {
  uint32_t* words = emulate::exchange();
  words[thread() % 32] = x;
  emulate::wait(emulate::warp_barrier());
  uint32_t all = 0;
  for (int i = 0; i < 32; ++i) all |= (words[i] & 1u) << i;
  emulate::wait(emulate::warp_barrier());
  return all;
}

inline int cluster_rank() { return emulate::self().block; }
inline void cluster_sync() { emulate::wait(emulate::cluster_barrier()); }
inline uint32_t remote_word(const uint32_t* word, int rank) {
  const char* base = emulate::shared_of(emulate::self().block);
  const char* there = emulate::shared_of(rank) + (reinterpret_cast<const char*>(word) - base);
  uint32_t x;
  memcpy(&x, there, sizeof x);
  return x;
}

inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulate::fail("misaligned 16-byte access");
}
inline Pack load16(const void* p) {
  check_aligned(p);
  emulate::traffic().read_wide += 16;
  Pack x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline void store16(void* p, const Pack& x) {
  check_aligned(p);
  emulate::traffic().written_wide += 16;
  memcpy(p, &x, sizeof x);
}
inline Pack load16_shared(const Pack* p) {
  check_aligned(p);
  return *p;
}
template <class T>
inline T load1(const T* p) {
  emulate::traffic().read_narrow += sizeof(T);
  return *p;
}
template <class T>
inline void store1(T* p, T x) {
  emulate::traffic().written_narrow += sizeof(T);
  *p = x;
}

inline void copy16(void* shared, const void* global) {
  check_aligned(shared), check_aligned(global);
  emulate::traffic().read_wide += 16;
  emulate::Fiber& f = emulate::self();
  if (f.pending == emulate::kPending) emulate::fail("too many copies in flight");
  f.copies[f.pending++] = {shared, global, f.commits};
}
inline void copy_commit() { ++emulate::self().commits; }
template <int LATER>
inline void copy_wait() {
  emulate::Fiber& f = emulate::self();
  int left = 0;
  for (int i = 0; i < f.pending; ++i) {
    const emulate::Copy c = f.copies[i];
    if (c.group + LATER < f.commits) {
      memcpy(c.to, c.from, 16);
    } else {
      f.copies[left++] = c;
    }
  }
  f.pending = left;
}

inline void atomic_min(uint32_t* p, uint32_t x) { *p = x < *p ? x : *p; }
inline void atomic_or(uint32_t* p, uint32_t x) { *p |= x; }
inline uint32_t atomic_add(uint32_t* p, uint32_t x) {
  const uint32_t before = *p;
  *p += x;
  return before;
}
inline void atomic_add(uint64_t* p, uint64_t x) { *p += x; }
inline void atomic_max(uint64_t* p, uint64_t x) { *p = x > *p ? x : *p; }
inline uint64_t load_fresh(const uint64_t* p) { return *p; }
inline void grid_sync() { emulate::wait(emulate::cluster_barrier()); }  // all are resident

[[noreturn]] inline void fail(const char* what) { emulate::fail(what); }

inline float exp2_fast(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;  // as ftz; NaN stays
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = ldexpf(static_cast<float>(fraction), -24);
  return sign != 0 ? -tiny : tiny;
}

// To nearest, ties to even.
inline uint16_t float_to_half(float x) {
  const uint32_t u = float_to_bits(x), sign = (u >> 16) & 0x8000u;
  const float a = fabsf(x);
  if (x != x) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a < 6.103515625e-05f) {
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(nearbyintf(ldexpf(a, 24))));
  }
  const uint32_t m = (u & 0x7fffffffu) - (112u << 23);
  return static_cast<uint16_t>(sign | ((m + 0xfffu + ((m >> 13) & 1u)) >> 13));
}

inline uint16_t float_to_bf16(float x) {
  if (x != x) return 0x7fc0u;
  const uint32_t u = float_to_bits(x);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline uint32_t max_bf16(uint32_t x, uint32_t y) {
  const float lo = fmaxf(bits_to_float(x << 16), bits_to_float(y << 16));
  const float hi = fmaxf(bits_to_float(x & 0xffff0000u), bits_to_float(y & 0xffff0000u));
  return float_to_bf16(lo) | static_cast<uint32_t>(float_to_bf16(hi)) << 16;
}
inline uint32_t max_halves(uint32_t x, uint32_t y) {
  const auto half = [](uint32_t w, int by) {
    return half_to_float(static_cast<uint16_t>(w >> by & 0xffffu));
  };
  const float lo = fmaxf(half(x, 0), half(y, 0)), hi = fmaxf(half(x, 16), half(y, 16));
  return float_to_half(lo) | static_cast<uint32_t>(float_to_half(hi)) << 16;
}

inline uint32_t two_halves(float lo, float hi) {
  return float_to_half(lo) | static_cast<uint32_t>(float_to_half(hi)) << 16;
}
inline uint32_t two_bf16(float lo, float hi) {
  return float_to_bf16(lo) | static_cast<uint32_t>(float_to_bf16(hi)) << 16;
}

}  // namespace block
}  // namespace
