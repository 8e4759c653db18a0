// 8 fp32 lanes on AVX2 with FMA and F16C. vec.h specifies each function.
#pragma once

#include <immintrin.h>

namespace {

struct Vec {
  static constexpr int W = 8;
  __m256 x;
};

constexpr bool kFused = true;  // fma rounds once

inline Vec set(float f) { return {_mm256_set1_ps(f)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const BF16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
inline Vec load(const F16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

inline __m128i narrow(__m256i u) {
  return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}
// Round to nearest, ties away from zero: one addition, and the largest error is still half a unit.
inline __m256i rounded(__m256 f) {
  return _mm256_add_epi32(_mm256_castps_si256(f), _mm256_set1_epi32(0x8000));
}
inline __m128i to_bf16(__m256 f) { return narrow(_mm256_srli_epi32(rounded(f), 16)); }
inline __m128i to_f16(__m256 f) { return _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT); }

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.x); }
inline void store(BF16* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(a.x)); }
inline void store(F16* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(a.x)); }

// 16 elements as even and odd ones: two instructions to widen them, two to put them back.
inline void load_split(const BF16* p, Vec& even, Vec& odd) {
  const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even.x = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
  odd.x = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(-65536)));
}
inline __m256i split(Vec even, Vec odd) {
  const __m256i low = _mm256_srli_epi32(rounded(even.x), 16);
  return _mm256_blend_epi16(low, rounded(odd.x), 0xaa);
}
inline void store_split(BF16* p, Vec even, Vec odd) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), split(even, odd));
}

inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a.x); }
inline void stream(BF16* p, Vec a) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bf16(a.x));
}
inline void stream(F16* p, Vec a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_f16(a.x)); }
inline void stream_split(BF16* p, Vec even, Vec odd) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), split(even, odd));
}
inline void end_stream() { _mm_sfence(); }

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.x, b.x)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.x, b.x)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.x, b.x)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.x, b.x)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
inline Vec vmax(Vec a, Vec b) { return {_mm256_max_ps(a.x, b.x)}; }
inline Vec vmin(Vec a, Vec b) { return {_mm256_min_ps(a.x, b.x)}; }
inline Vec plain_nan(Vec a) {
  return {_mm256_blendv_ps(_mm256_set1_ps(NAN), a.x, _mm256_cmp_ps(a.x, a.x, _CMP_ORD_Q))};
}
inline Vec finite(Vec t) { return vmax(set(-FLT_MAX), t); }
inline Vec where_nonzero(Vec t, Vec a) {
  return {_mm256_and_ps(_mm256_cmp_ps(t.x, _mm256_setzero_ps(), _CMP_NEQ_UQ), a.x)};
}
inline float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float max_of(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline int first_equal(Vec a, Vec b) {
  const int m = _mm256_movemask_ps(_mm256_cmp_ps(a.x, b.x, _CMP_EQ_OQ));
  return m == 0 ? -1 : __builtin_ctz(static_cast<unsigned>(m));
}

// t, or any number of which 2^t is 0 if t is lower. The operand order keeps NaN. Below 2^-127 the
// result is 0, and -127 survives the floor.
inline Vec raised(Vec t) { return vmax(set(-126.99f), t); }
inline Vec fraction(Vec t) {
  const __m256 c = raised(t).x;
  return {_mm256_sub_ps(c, _mm256_floor_ps(c))};
}
inline Vec scale2(Vec p, Vec t) {
  const __m256 floor = _mm256_floor_ps(raised(t).x);
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(floor), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(p.x, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)))};
}

// One bit a lane. NaN is neither less nor equal.
inline unsigned bits_of(__m256 m) { return static_cast<unsigned>(_mm256_movemask_ps(m)); }
inline unsigned less(Vec a, Vec b) { return bits_of(_mm256_cmp_ps(a.x, b.x, _CMP_LT_OQ)); }
inline unsigned equal(Vec a, Vec b) { return bits_of(_mm256_cmp_ps(a.x, b.x, _CMP_EQ_OQ)); }
inline unsigned nonzero(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const int zero = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
  return ~static_cast<unsigned>(zero) & 0xff;
}
inline int64_t ones(unsigned bits) { return __builtin_popcount(bits); }

// For every set of lanes, which lane goes to each place.
struct Places {
  uint8_t to[256][8];
  constexpr Places() : to() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int lane = 0, n = 0; lane < 8; ++lane) {
        if ((bits >> lane & 1) != 0) to[bits][n++] = static_cast<uint8_t>(lane);
      }
    }
  }
};
constexpr Places kPlaces;

// The lanes of `bits` from p[0] on; up to p[W - 1] may be written. Returns their number.
inline int64_t compress(float* p, Vec a, unsigned bits) {
  const __m128i to = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.to[bits]));
  _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(a.x, _mm256_cvtepu8_epi32(to)));
  return ones(bits);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace

#include "vec_partial.h"
