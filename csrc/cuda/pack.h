// Packs of 16 bytes, and a row as 16-byte chunks.
//
// A row may start anywhere. Its chunks are the aligned 16-byte pieces of memory that it touches:
// all but the first and the last lie inside it and move as one access; those two are peeled, one
// element at a time. So a vocabulary of 50257 keeps 128-bit accesses.
#pragma once

#include "../row_math.h"
#include "block.h"

namespace {

using block::Pack;

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct None {};  // no dense targets

W2S_DEVICE float widen(float x) { return x; }
W2S_DEVICE float widen(BF16 x) { return block::bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
W2S_DEVICE float widen(F16 x) { return block::half_to_float(x.bits); }

template <class T>
struct Format {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));  // in a chunk
  W2S_DEVICE static uint32_t two(float lo, float hi);
  W2S_DEVICE static uint32_t max(uint32_t x, uint32_t y);  // of each of two elements
  W2S_DEVICE static T narrow(float x) { return T{static_cast<uint16_t>(two(x, 0) & 0xffffu)}; }
};
template <>
struct Format<float> {
  static constexpr int kCount = 4;
  W2S_DEVICE static float narrow(float x) { return x; }
};
template <>
struct Format<None> {
  static constexpr int kCount = 4;
};
template <>
W2S_DEVICE uint32_t Format<BF16>::two(float lo, float hi) {
  return block::two_bf16(lo, hi);
}
template <>
W2S_DEVICE uint32_t Format<F16>::two(float lo, float hi) {
  return block::two_halves(lo, hi);
}
template <>
W2S_DEVICE uint32_t Format<BF16>::max(uint32_t x, uint32_t y) {
  return block::max_bf16(x, y);
}
template <>
W2S_DEVICE uint32_t Format<F16>::max(uint32_t x, uint32_t y) {
  return block::max_halves(x, y);
}

W2S_DEVICE void unpack_word(uint32_t w, float* x, const float*) { x[0] = block::bits_to_float(w); }
W2S_DEVICE void unpack_word(uint32_t w, float* x, const BF16*) {
  x[0] = block::bits_to_float(w << 16);
  x[1] = block::bits_to_float(w & 0xffff0000u);
}
W2S_DEVICE void unpack_word(uint32_t w, float* x, const F16*) {
  x[0] = block::half_to_float(static_cast<uint16_t>(w & 0xffffu));
  x[1] = block::half_to_float(static_cast<uint16_t>(w >> 16));
}

template <class T>
W2S_DEVICE void unpack(const Pack& p, float* x) {
  constexpr int step = Format<T>::kCount / 4;
  const T* form = nullptr;
  unpack_word(p.x, x, form);
  unpack_word(p.y, x + step, form);
  unpack_word(p.z, x + 2 * step, form);
  unpack_word(p.w, x + 3 * step, form);
}

// The largest element; NaN only if all are.
W2S_DEVICE float largest_of(const Pack& p, const float*) {
  const float a = fmaxf(block::bits_to_float(p.x), block::bits_to_float(p.y));
  return fmaxf(a, fmaxf(block::bits_to_float(p.z), block::bits_to_float(p.w)));
}
template <class T>
W2S_DEVICE float largest_of(const Pack& p, const T* form) {
  float x[2];
  unpack_word(Format<T>::max(Format<T>::max(p.x, p.y), Format<T>::max(p.z, p.w)), x, form);
  return fmaxf(x[0], x[1]);
}
template <class T>
W2S_DEVICE float largest(const Pack& p) {
  return largest_of(p, static_cast<const T*>(nullptr));
}

W2S_DEVICE uint32_t pack_word(const float* x, const float*) { return block::float_to_bits(x[0]); }
template <class T>
W2S_DEVICE uint32_t pack_word(const float* x, const T*) {
  return Format<T>::two(x[0], x[1]);
}

template <class T>
W2S_DEVICE Pack pack(const float* x) {
  constexpr int step = Format<T>::kCount / 4;
  const T* form = nullptr;
  Pack p;
  p.x = pack_word(x, form);
  p.y = pack_word(x + step, form);
  p.z = pack_word(x + 2 * step, form);
  p.w = pack_word(x + 3 * step, form);
  return p;
}

// One row in global memory.
template <class T>
struct Line {
  static constexpr int kCount = Format<T>::kCount;
  T* p;
  int length;
  int lead;  // elements of the first chunk that lie before the row

  W2S_DEVICE Line(const void* base, int64_t stride, int64_t row, int64_t v) {
    p = const_cast<T*>(static_cast<const T*>(base)) + row * stride;
    length = static_cast<int>(v);
    lead = static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
  }
  // First element of a chunk; negative in chunk 0 of a row that starts inside it.
  W2S_DEVICE int first(int chunk) const { return chunk * kCount - lead; }
  W2S_DEVICE int chunk_of(int element) const { return (element + lead) / kCount; }
  W2S_DEVICE bool holds(int element) const { return element >= 0 && element < length; }
  W2S_DEVICE bool full(int chunk) const {
    return first(chunk) >= 0 && first(chunk) + kCount <= length;
  }
  // Full chunks are [first_full(), end_full()), or none where that is empty.
  W2S_DEVICE int first_full() const { return lead > 0 ? 1 : 0; }
  W2S_DEVICE int end_full() const { return (length + lead) / kCount; }
  // Elements of a chunk that are of this row.
  W2S_DEVICE int count(int chunk) const {
    const int lo = first(chunk) < 0 ? 0 : first(chunk);
    const int end = first(chunk) + kCount, hi = end < length ? end : length;
    return hi - lo;
  }
  W2S_DEVICE T* at(int chunk) const { return p + first(chunk); }

  // The chunk as fp32, `outside` for elements that are not of this row.
  W2S_DEVICE void read(int chunk, float outside, float* x) const {
    if (full(chunk)) {
      unpack<T>(block::load16(at(chunk)), x);
      return;
    }
    const int from = first(chunk);
    W2S_UNROLL
    for (int e = 0; e < kCount; ++e) {
      x[e] = holds(from + e) ? widen(block::load1(p + from + e)) : outside;
    }
  }
  W2S_DEVICE void write(int chunk, const float* x) const {
    if (full(chunk)) {
      block::store16(at(chunk), pack<T>(x));
      return;
    }
    write_some(first(chunk), 0, length, x);
  }
  // x[e] goes to element from + e where that is in [lo, hi).
  W2S_DEVICE void write_some(int from, int lo, int hi, const float* x) const {
    W2S_UNROLL
    for (int e = 0; e < kCount; ++e) {
      if (from + e >= lo && from + e < hi) block::store1(p + from + e, Format<T>::narrow(x[e]));
    }
  }
  // One chunk to shared memory: asynchronously if it is full, else by element.
  W2S_DEVICE void fetch(int chunk, float outside, Pack* shared) const {
    if (full(chunk)) {
      block::copy16(shared, at(chunk));
      return;
    }
    T* to = reinterpret_cast<T*>(shared);
    const int from = first(chunk);
    W2S_UNROLL
    for (int e = 0; e < kCount; ++e) {
      to[e] = holds(from + e) ? block::load1(p + from + e) : Format<T>::narrow(outside);
    }
  }
};

template <>
struct Line<None> {
  W2S_DEVICE Line(const void*, int64_t, int64_t, int64_t) {}
};

}  // namespace
