// Votes as bits: 64 rows of a class and a source are a word, and a second moment is the number of
// ones in the AND of two such columns.
#pragma once

#include <string.h>

#include "../w2s.h"
#include "bits.h"
#include "vec.h"

namespace {

constexpr int64_t kTile = 32;  // sources that are packed together

// Lanes of the compiler, which it divides into the registers of the instruction set.
using Bytes = uint8_t __attribute__((vector_size(32)));
using Words = uint64_t __attribute__((vector_size(32)));

// 255 where a vote of the tile is the symbol, else 0.
inline void equals(const int8_t* votes, int8_t symbol, Bytes& equal) {
  using Votes = int8_t __attribute__((vector_size(32)));
  Votes v;
  memcpy(&v, votes, sizeof v);
  equal = (Bytes)(v == symbol);
}
inline void equals(const int16_t* votes, int16_t symbol, Bytes& equal) {
  for (int j = 0; j < kTile; ++j) equal[j] = votes[j] == symbol ? 255 : 0;
}

// In every 8 x 8 block of bytes, swaps the high half of a with the low half of b.
template <int BITS>
inline void swap_halves(Words& a, Words& b, uint64_t low) {
  const Words t = ((a >> BITS) ^ b) & low;
  b ^= t;
  a ^= t << BITS;
}

// x[b] holds the b-th byte of every word; afterwards lane l of x[r] is the word of source 8 l + r.
inline void transpose_bytes(Words x[8]) {
  for (int i = 0; i < 4; ++i) swap_halves<32>(x[i], x[i + 4], 0x00000000ffffffffu);
  for (int i = 0; i < 8; i += i % 2 == 0 ? 1 : 3) {
    swap_halves<16>(x[i], x[i + 2], 0x0000ffff0000ffffu);
  }
  for (int i = 0; i < 8; i += 2) swap_halves<8>(x[i], x[i + 1], 0x00ff00ff00ff00ffu);
}

template <class T>
inline void pack_tile(const T* votes, int64_t stride, int64_t n_rows, T symbol, uint64_t* words) {
  Words x[8] = {};
  for (int64_t i = 0; i < n_rows; ++i) {
    Bytes equal;
    equals(votes + i * stride, symbol, equal);
    const auto bit = static_cast<uint8_t>(1u << i % 8);
    x[i / 8] |= (Words)(equal & bit);
  }
  transpose_bytes(x);
  for (int r = 0; r < 8; ++r) {
    for (int l = 0; l < 4; ++l) words[8 * l + r] = x[r][l];
  }
}

// A tile of fewer sources.
template <class T>
void pack_few(const T* votes, int64_t stride, int64_t n_rows, int64_t m, T symbol,
              uint64_t* words) {
  for (int64_t j = 0; j < m; ++j) words[j] = 0;
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      words[j] |= static_cast<uint64_t>(votes[i * stride + j] == symbol) << i;
    }
  }
}

template <class T>
void pack_as(const w2s::Votes& v, int64_t begin, int64_t end, int64_t c, uint64_t* words) {
  const T* const votes = static_cast<const T*>(v.votes) + begin * v.stride;
  const T symbol = static_cast<T>(c);
  if (v.m < kTile) return pack_few(votes, v.stride, end - begin, v.m, symbol, words);
  for (int64_t j = 0; j < v.m; j += kTile) {
    const int64_t at = j + kTile <= v.m ? j : v.m - kTile;  // the last tile overlaps
    pack_tile(votes + at, v.stride, end - begin, symbol, words + at);
  }
}

void pack_class(const w2s::Votes& v, int64_t begin, int64_t end, int64_t c, uint64_t* words) {
  if (v.bytes == 1) {
    pack_as<int8_t>(v, begin, end, c, words);
  } else {
    pack_as<int16_t>(v, begin, end, c, words);
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Four words at a time: a table holds the ones of half a byte. Returns the words counted.
template <int COLUMNS>
inline int64_t count_nibbles(const uint64_t* a, const uint64_t* b, int64_t n_words,
                             uint64_t* sums) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  const int64_t end = n_words / 4 * 4;
  __m256i total[COLUMNS];
  for (int j = 0; j < COLUMNS; ++j) total[j] = zero;
  for (int64_t w = 0; w < end;) {
    const int64_t stop = end - w < 4 * 31 ? end : w + 4 * 31;  // sums of 31 x 8 fit into a byte
    __m256i bytes[COLUMNS];
    for (int j = 0; j < COLUMNS; ++j) bytes[j] = zero;
    for (; w < stop; w += 4) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + w));
      for (int j = 0; j < COLUMNS; ++j) {
        const uint64_t* const column = b + j * n_words + w;
        const __m256i y =
            _mm256_and_si256(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column)));
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(y, 4), low);
        const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(y, low)),
                                             _mm256_shuffle_epi8(table, high));
        bytes[j] = _mm256_add_epi8(bytes[j], ones);
      }
    }
    for (int j = 0; j < COLUMNS; ++j) {
      total[j] = _mm256_add_epi64(total[j], _mm256_sad_epu8(bytes[j], zero));
    }
  }
  for (int j = 0; j < COLUMNS; ++j) {
    uint64_t lanes[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), total[j]);
    sums[j] += lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }
  return end;
}
#endif

// The loop is inlined into functions with other instructions. COLUMNS share the loads of a.
template <int COLUMNS>
__attribute__((always_inline)) inline void count_columns(const uint64_t* a, const uint64_t* b,
                                                         int64_t n_words, double* counts) {
  uint64_t sums[COLUMNS] = {};
  int64_t w = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  w = count_nibbles<COLUMNS>(a, b, n_words, sums);
#endif
  for (; w < n_words; ++w) {
    for (int j = 0; j < COLUMNS; ++j) sums[j] += n_ones(a[w] & b[j * n_words + w]);
  }
  for (int j = 0; j < COLUMNS; ++j) counts[j] += static_cast<double>(sums[j]);
}

__attribute__((always_inline)) inline void count_pairs_loop(const uint64_t* a, const uint64_t* b,
                                                            int64_t n_b, int64_t n_words,
                                                            double* counts) {
  int64_t j = 0;
  for (; j + 4 <= n_b; j += 4) count_columns<4>(a, b + j * n_words, n_words, counts + j);
  for (; j < n_b; ++j) count_columns<1>(a, b + j * n_words, n_words, counts + j);
}

#if defined(__AVX512F__)
__attribute__((target("avx512vpopcntdq"))) void count_pairs_vpopcnt(const uint64_t* a,
                                                                    const uint64_t* b, int64_t n_b,
                                                                    int64_t n_words,
                                                                    double* counts) {
  count_pairs_loop(a, b, n_b, n_words, counts);
}
#endif

void count_pairs(const uint64_t* a, const uint64_t* b, int64_t n_b, int64_t n_words,
                 double* counts) {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512vpopcntdq")) {
    count_pairs_vpopcnt(a, b, n_b, n_words, counts);
    return;
  }
#endif
  count_pairs_loop(a, b, n_b, n_words, counts);
}

}  // namespace
