// 4 fp32 lanes in the compiler's own vector type: SSE2 on any x86-64, NEON on ARM.
// vec.h specifies each function.
#pragma once

namespace {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int W = 4;
  F4 x;
};

inline F4 as_float(I4 i) {
  F4 f;
  memcpy(&f, &i, sizeof f);
  return f;
}
inline I4 as_int(F4 f) {
  I4 i;
  memcpy(&i, &f, sizeof i);
  return i;
}

constexpr bool kFused = false;  // fma rounds once

inline Vec set(float f) { return {F4{f, f, f, f}}; }
inline Vec load(const float* p) {
  Vec a;
  memcpy(&a.x, p, sizeof a.x);
  return a;
}
inline Vec load(const BF16* p) { return {F4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}}; }
inline Vec load(const F16* p) { return {F4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}}; }

inline void store(float* p, Vec a) { memcpy(p, &a.x, sizeof a.x); }
template <class T>
inline void store(T* p, Vec a) {
  for (int i = 0; i < 4; ++i) narrow_to(p[i], a.x[i]);
}

inline void load_split(const BF16* p, Vec& even, Vec& odd) {
  I4 u;
  memcpy(&u, p, sizeof u);
  even.x = as_float(u << 16);
  odd.x = as_float(u & -65536);
}
inline void store_split(BF16* p, Vec even, Vec odd) {
  typedef uint32_t U4 __attribute__((vector_size(16)));
  U4 a, b;
  memcpy(&a, &even.x, sizeof a);
  memcpy(&b, &odd.x, sizeof b);
  a = ((a + 0x8000u) >> 16) | ((b + 0x8000u) & 0xffff0000u);
  memcpy(static_cast<void*>(p), &a, sizeof a);
}

// No instruction for it that every CPU has.
template <class T>
inline void stream(T* p, Vec a) {
  store(p, a);
}
inline void stream_split(BF16* p, Vec even, Vec odd) { store_split(p, even, odd); }
inline void end_stream() {}

inline Vec operator+(Vec a, Vec b) { return {a.x + b.x}; }
inline Vec operator-(Vec a, Vec b) { return {a.x - b.x}; }
inline Vec operator*(Vec a, Vec b) { return {a.x * b.x}; }
inline Vec operator/(Vec a, Vec b) { return {a.x / b.x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.x * b.x + c.x}; }
// Both return b where either side is NaN, as the x86 instructions do.
inline Vec vmax(Vec a, Vec b) { return {a.x > b.x ? a.x : b.x}; }
inline Vec vmin(Vec a, Vec b) { return {a.x < b.x ? a.x : b.x}; }
inline Vec plain_nan(Vec a) {
  for (int i = 0; i < 4; ++i) a.x[i] = a.x[i] == a.x[i] ? a.x[i] : NAN;
  return a;
}
inline Vec finite(Vec t) { return vmax(set(-FLT_MAX), t); }
inline Vec where_nonzero(Vec t, Vec a) {
  const F4 zero = {0, 0, 0, 0};
  return {t.x != zero ? a.x : zero};
}
inline float sum(Vec a) { return (a.x[0] + a.x[1]) + (a.x[2] + a.x[3]); }
inline float max_of(Vec a) {
  const float l = a.x[0] > a.x[1] ? a.x[0] : a.x[1], h = a.x[2] > a.x[3] ? a.x[2] : a.x[3];
  return l > h ? l : h;
}
inline int first_equal(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) {
    if (a.x[i] == b.x[i]) return i;
  }
  return -1;
}

inline F4 floor4(F4 t) {
  const F4 n = __builtin_convertvector(__builtin_convertvector(t, I4), F4);
  const F4 one = {1, 1, 1, 1}, zero = {0, 0, 0, 0};
  return n - (n > t ? one : zero);
}
inline F4 clamped(F4 t) {
  const F4 low = {-126.99f, -126.99f, -126.99f, -126.99f};
  return low > t ? low : t;  // NaN compares false and stays
}
// t, or any number of which 2^t is 0 if t is lower.
inline Vec raised(Vec t) { return {clamped(t.x)}; }
inline Vec fraction(Vec t) {
  const F4 c = clamped(t.x);
  return {c - floor4(c)};
}
inline Vec scale2(Vec p, Vec t) {
  const I4 e = __builtin_convertvector(floor4(clamped(t.x)), I4) + 127;
  return {p.x * as_float(e << 23)};
}

// One bit a lane. NaN is neither less nor equal.
inline unsigned bits_of(I4 m) {
#if defined(__SSE__)
  return static_cast<unsigned>(__builtin_ia32_movmskps(as_float(m)));
#else
  const I4 lane = {1, 2, 4, 8};
  const I4 b = m & lane;
  return static_cast<unsigned>((b[0] | b[1]) | (b[2] | b[3]));
#endif
}
inline unsigned less(Vec a, Vec b) { return bits_of(a.x < b.x); }
inline unsigned equal(Vec a, Vec b) { return bits_of(a.x == b.x); }
inline unsigned nonzero(const uint8_t* p) {
  unsigned bits = 0;
  for (unsigned i = 0; i < 4; ++i) bits |= p[i] != 0 ? 1u << i : 0u;
  return bits;
}
// Sixteen nibbles: the bits in 0, 1, ..., 15. Not every CPU counts them in one instruction.
inline int64_t ones(unsigned bits) { return 0x4332322132212110 >> (4 * bits) & 15; }

// The lanes of `bits` from p[0] on; up to p[W - 1] may be written. Returns their number.
inline int64_t compress(float* p, Vec a, unsigned bits) {
  int64_t n = 0;
  for (int i = 0; i < 4; ++i) {
    p[n] = a.x[i];
    n += bits >> i & 1;
  }
  return n;
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace

#include "vec_partial.h"
