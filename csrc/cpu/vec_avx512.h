// 16 fp32 lanes on AVX-512 (F, BW, DQ, VL). vec.h specifies each function.
#pragma once

// GCC 12's own AVX-512 headers start from deliberately undefined vectors and warn about them.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

namespace {

struct Vec {
  static constexpr int W = 16;
  __m512 x;
};

using Mask = __mmask16;

inline Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1); }

constexpr bool kFused = true;  // fma rounds once

inline Vec set(float f) { return {_mm512_set1_ps(f)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const BF16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
inline Vec load(const F16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec load(const float* p, int64_t n, float fill) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p)};
}
inline Vec load(const BF16* p, int64_t n, float fill) {
  const __m512i w = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  const __m512 f = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), f)};
}
inline Vec load(const F16* p, int64_t n, float fill) {
  const __m512 f = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), f)};
}

// Round to nearest, ties away from zero: one addition, and the largest error is still half a unit.
inline __m512i rounded(__m512 f) {
  return _mm512_add_epi32(_mm512_castps_si512(f), _mm512_set1_epi32(0x8000));
}
inline __m256i to_bf16(__m512 f) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(f), 16));
}
inline __m256i to_f16(__m512 f) { return _mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT); }

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.x); }
inline void store(BF16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a.x));
}
inline void store(F16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(a.x));
}
inline void store(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.x); }
inline void store(BF16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), to_bf16(a.x));
}
inline void store(F16* p, Vec a, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(a.x)); }

// 32 elements as even and odd ones: two instructions to widen them, two to put them back.
inline void load_split(const BF16* p, Vec& even, Vec& odd) {
  const __m512i u = _mm512_loadu_si512(p);
  even.x = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
  odd.x = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(-65536)));
}
inline __m512i split(Vec even, Vec odd) {
  const __m512i low = _mm512_srli_epi32(rounded(even.x), 16);
  return _mm512_mask_mov_epi16(low, 0xaaaaaaaau, rounded(odd.x));
}
inline void store_split(BF16* p, Vec even, Vec odd) { _mm512_storeu_si512(p, split(even, odd)); }

inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a.x); }
inline void stream(BF16* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(a.x));
}
inline void stream(F16* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_f16(a.x));
}
inline void stream_split(BF16* p, Vec even, Vec odd) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), split(even, odd));
}
inline void end_stream() { _mm_sfence(); }

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.x, b.x)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.x, b.x)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.x, b.x)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.x, b.x)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
inline Vec vmax(Vec a, Vec b) { return {_mm512_max_ps(a.x, b.x)}; }
inline Vec vmin(Vec a, Vec b) { return {_mm512_min_ps(a.x, b.x)}; }
inline Vec plain_nan(Vec a) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(NAN), _mm512_cmp_ps_mask(a.x, a.x, _CMP_ORD_Q), a.x)};
}
inline Vec finite(Vec t) { return vmax(set(-FLT_MAX), t); }
inline Vec where_nonzero(Vec t, Vec a) {
  const __mmask16 m = _mm512_cmp_ps_mask(t.x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  return {_mm512_maskz_mov_ps(m, a.x)};
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.x); }
inline float max_of(Vec a) { return _mm512_reduce_max_ps(a.x); }
inline int first_equal(Vec a, Vec b) {
  const unsigned m = _mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ);
  return m == 0 ? -1 : __builtin_ctz(m);
}

// t, or any number of which 2^t is 0 if t is lower.
inline Vec raised(Vec t) { return finite(t); }
// t - floor(t) in one instruction, then 2^floor(t) in another: no clamping, exact 0 at -inf.
inline Vec fraction(Vec t) { return {_mm512_reduce_ps(t.x, _MM_FROUND_TO_NEG_INF | 0x08)}; }
inline Vec scale2(Vec p, Vec t) { return {_mm512_scalef_ps(p.x, t.x)}; }

// One bit a lane. NaN is neither less nor equal.
inline unsigned less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_LT_OQ); }
inline unsigned equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ); }
inline unsigned nonzero(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_test_epi8_mask(bytes, bytes);
}
inline int64_t ones(unsigned bits) { return __builtin_popcount(bits); }

// The lanes of `bits` from p[0] on; up to p[W - 1] may be written. Returns their number.
// Compressing straight to memory would be microcoded on some processors.
inline int64_t compress(float* p, Vec a, unsigned bits) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(static_cast<Mask>(bits), a.x));
  return ones(bits);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
