// A few fp32 lanes and the arithmetic the row kernels need, once for each instruction set.
//
// Everything is in an anonymous namespace and free of the standard library's templates: code
// compiled for a wide ISA must not become the copy that the linker keeps for all ISAs.
//
// Each vec_<isa>.h defines: Vec with W lanes; kFused, whether fma rounds only once; load and store
// of fp32, bf16 and fp16, whole or the first n; load_split and store_split (2 W bf16 as even and
// odd elements); + - * /, fma, vmax and vmin (the second operand where either is NaN);
// where_nonzero(t, a) = a where t != 0, else 0; sum, max_of, first_equal; fraction(t) = t -
// floor(t) and scale2(p, t) = p 2^floor(t); raised(t), clamped to a number whose 2^t is 0;
// finite(t), t but for -inf; plain_nan(a), a with one kind of NaN, needed before a store in bf16:
// the bits of another could carry over into the sign; prefetch; one bit a lane from less, equal and
// nonzero, their number from ones, and compress, which stores the chosen lanes next to each other.
// stream and stream_split are store and store_split to an aligned address past the caches, visible
// to other threads after end_stream.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(BF16 h) {
  const uint32_t u = static_cast<uint32_t>(h.bits) << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
inline float widen(F16 h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  const uint32_t rest = h.bits & 0x7fff;
  uint32_t u;
  if (rest >= 0x7c00) {
    u = sign | 0x7f800000 | ((rest & 0x3ff) << 13);
  } else if (rest >= 0x400) {
    u = sign | ((rest + (112 << 10)) << 13);
  } else {
    const float f = static_cast<float>(rest) * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
    memcpy(&u, &f, sizeof u);
    u |= sign;
  }
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

inline void narrow_to(float& out, float x) { out = x; }
inline void narrow_to(BF16& out, float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  out.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x8000) >> 16);
}
inline void narrow_to(F16& out, float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u >= 0x47800000) {  // 65536 and up, infinity, NaN
    out.bits = static_cast<uint16_t>(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
  } else if (u < 0x38800000) {  // subnormal: let the adder round at 2^-24
    float f;
    memcpy(&f, &u, sizeof f);
    f += 0.5f;
    memcpy(&u, &f, sizeof u);
    out.bits = static_cast<uint16_t>(sign | (u - 0x3f000000));
  } else {
    u += 0xfff + ((u >> 13) & 1);
    out.bits = static_cast<uint16_t>(sign | ((u - (112u << 23)) >> 13));
  }
}

}  // namespace

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#else
#include "vec_base.h"
#endif

namespace {

// Two vectors in the cheapest order; targets must use the order of their logits.
template <bool SPLIT, class T>
inline void load_two(const T* p, Vec& a, Vec& b) {
  a = load(p);
  b = load(p + Vec::W);
}
template <bool SPLIT>
inline void load_two(const BF16* p, Vec& a, Vec& b) {
  if (SPLIT) {
    load_split(p, a, b);
  } else {
    a = load(p);
    b = load(p + Vec::W);
  }
}
template <bool SPLIT, bool STREAM, class T>
inline void store_two(T* p, Vec a, Vec b) {
  if (STREAM) {
    stream(p, a);
    stream(p + Vec::W, b);
  } else {
    store(p, a);
    store(p + Vec::W, b);
  }
}
template <bool SPLIT, bool STREAM>
inline void store_two(BF16* p, Vec a, Vec b) {
  if (!SPLIT) {
    store_two<false, STREAM, BF16>(p, a, b);
  } else if (STREAM) {
    stream_split(p, a, b);
  } else {
    store_split(p, a, b);
  }
}

constexpr float kLog2E = 1.44269504088896341f;

// 2^t for t <= 0 by a minimax polynomial on [0, 1) with p(0) = 1, so that exp(0) is exactly 1.
// Largest relative error: 1.6e-7 (degree 5), 3.0e-6 (4), 8.6e-5 (3).
template <int DEGREE>
inline Vec exp2_of(Vec t) {
  const Vec f = fraction(t);
  Vec p;
  if (DEGREE == 5) {
    p = fma(set(0.001867130515165627f), f, set(0.009017029777169228f));
    p = fma(p, f, set(0.05579991266131401f));
    p = fma(p, f, set(0.24016444385051727f));
    p = fma(p, f, set(0.6931512951850891f));
  } else if (DEGREE == 4) {
    p = fma(set(0.013426687568426132f), f, set(0.0522424690425396f));
    p = fma(p, f, set(0.2412802129983902f));
    p = fma(p, f, set(0.6930448412895203f));
  } else {
    p = fma(set(0.077067069709301f), f, set(0.22764496505260468f));
    p = fma(p, f, set(0.6951168179512024f));
  }
  return scale2(fma(p, f, set(1.0f)), t);
}

}  // namespace
