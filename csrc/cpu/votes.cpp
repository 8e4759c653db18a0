// Vote matrices: range check with conversion, summary, exact second moments.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../parallel.h"
#include "../w2s.h"
#include "bits.h"

namespace w2s {
namespace {

constexpr int64_t kWordRows = 64;
constexpr int64_t kPlaneBytes = 1 << 19;  // columns of a block of rows, which stay in L2
constexpr int64_t kMostWords = 256;       // of a column in a block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Converts entries and returns whether all of them are -1 .. k - 1. Branches would keep the
// compiler from vectorizing: the bits of v + 1 above the output's are collected, and the largest
// of its lower ones.
template <class In, class Out>
bool narrow(const In* in, int64_t n, int64_t k, Out* out) {
  using Wide = std::conditional_t<sizeof(In) == 8, uint64_t, uint32_t>;
  using Low = std::make_unsigned_t<Out>;
  Wide bits = 0;
  Low most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Wide symbol = static_cast<Wide>(in[i]) + 1;
    if (sizeof(In) > sizeof(Out)) bits |= symbol;
    const Low low = static_cast<Low>(symbol);
    most = low > most ? low : most;
    if (out != nullptr) out[i] = static_cast<Out>(low - 1);
  }
  return bits <= std::numeric_limits<Low>::max() && most <= k;
}

template <class In, class Out>
bool narrow_rows(const void* votes, int64_t stride, int64_t n, int64_t m, int64_t k, void* out) {
  const In* const in = static_cast<const In*>(votes);
  Out* const to = static_cast<Out*>(out);
  constexpr int64_t kBlock = 1 << 14;
  bool good = true;
  if (stride == m) {
    for (int64_t i = 0; i < n * m; i += kBlock) {
      const int64_t size = n * m - i < kBlock ? n * m - i : kBlock;
      good &= narrow<In, Out>(in + i, size, k, to == nullptr ? nullptr : to + i);
    }
    return good;
  }
  for (int64_t i = 0; i < n; ++i) {
    good &= narrow<In, Out>(in + i * stride, m, k, to == nullptr ? nullptr : to + i * m);
  }
  return good;
}

template <class Out>
bool narrow_from(const void* votes, int bytes, int64_t stride, int64_t n, int64_t m, int64_t k,
                 void* out) {
  switch (bytes) {
    case 1:
      return narrow_rows<int8_t, Out>(votes, stride, n, m, k, out);
    case 2:
      return narrow_rows<int16_t, Out>(votes, stride, n, m, k, out);
    case 4:
      return narrow_rows<int32_t, Out>(votes, stride, n, m, k, out);
    default:
      return narrow_rows<int64_t, Out>(votes, stride, n, m, k, out);
  }
}

// A block of rows as bits, and what its columns contribute to the moments.
class Planes {
 public:
  Planes(const Votes& votes, int64_t n_classes)
      : votes_(votes),
        columns_(n_classes * votes.m),
        n_words_(words_of(columns_, votes.n)),
        bits_(static_cast<std::size_t>(columns_ * n_words_)) {}

  int64_t rows() const { return n_words_ * kWordRows; }

  // Columns of the classes [first, first + n_classes) for rows from `begin`.
  void pack(int64_t begin, int64_t first) {
    auto body = [&](int64_t lo, int64_t hi) {
      std::vector<uint64_t> words(static_cast<std::size_t>(votes_.m));
      for (int64_t w = lo; w < hi; ++w) {
        const int64_t from = begin + w * kWordRows;
        const int64_t to = from + kWordRows < votes_.n ? from + kWordRows : votes_.n;
        for (int64_t p = 0; p < columns_; p += votes_.m) {
          if (from < to) {
            kernels().pack_class(votes_, from, to, first + p / votes_.m, words.data());
          } else {
            words.assign(words.size(), 0);
          }
          for (int64_t j = 0; j < votes_.m; ++j) at(p + j)[w] = words[static_cast<std::size_t>(j)];
        }
      }
    };
    parallel_rows(n_words_, 8, body);
  }

  // Adds the counts of pairs to the upper triangle of a matrix (columns, columns).
  void count(double* second) {
    auto body = [&](int64_t lo, int64_t hi) {
      for (int64_t p = lo; p < hi; ++p) {
        kernels().count_pairs(at(p), at(p), columns_ - p, n_words_, second + p * columns_ + p);
      }
    };
    const int64_t operations = columns_ * n_words_ / 2 + 1;  // of a row of the matrix, on average
    parallel_rows(columns_, ceil_div(1 << 15, operations), body);
  }

 private:
  static int64_t words_of(int64_t columns, int64_t n) {
    int64_t words = kPlaneBytes / (columns * 8);
    words = words > kMostWords ? kMostWords : words < 32 ? 32 : words;
    const int64_t needed = ceil_div(n, kWordRows);
    return words < needed ? words : needed;
  }
  uint64_t* at(int64_t column) { return bits_.data() + column * n_words_; }

  const Votes& votes_;
  int64_t columns_, n_words_;
  std::vector<uint64_t> bits_;
};

void mirror(double* second, int64_t columns) {
  for (int64_t i = 1; i < columns; ++i) {
    for (int64_t j = 0; j < i; ++j) second[i * columns + j] = second[j * columns + i];
  }
}

}  // namespace

bool check_votes(const void* votes, int bytes, int64_t stride, int64_t n, int64_t m, int64_t k,
                 int out_bytes, void* out) {
  return out_bytes == 1 ? narrow_from<int8_t>(votes, bytes, stride, n, m, k, out)
                        : narrow_from<int16_t>(votes, bytes, stride, n, m, k, out);
}

int64_t summarize_votes(const Votes& v, int64_t* counts, uint64_t* hashes) {
  std::vector<uint64_t> words(static_cast<std::size_t>(v.m));
  int64_t covered = 0;
  for (int64_t begin = 0; begin < v.n; begin += kWordRows) {
    const int64_t end = begin + kWordRows < v.n ? begin + kWordRows : v.n;
    uint64_t any = 0;
    for (int64_t c = 0; c < v.k; ++c) {
      kernels().pack_class(v, begin, end, c, words.data());
      for (int64_t j = 0; j < v.m; ++j) {
        const uint64_t word = words[static_cast<std::size_t>(j)];
        any |= word;
        counts[c * v.m + j] += static_cast<int64_t>(n_ones(word));
        hashes[j] = (hashes[j] ^ word) * 0x9e3779b97f4a7c15u;
        hashes[j] ^= hashes[j] >> 29;
      }
    }
    covered += static_cast<int64_t>(n_ones(any));
  }
  return covered;
}

void second_moments(const Votes& v, bool across_classes, double* second) {
  const int64_t n_classes = across_classes ? v.k : 1, columns = n_classes * v.m;
  Planes planes(v, n_classes);
  for (int64_t first = 0; first < v.k; first += n_classes) {
    double* const block = second + first * v.m * v.m;
    for (int64_t begin = 0; begin < v.n; begin += planes.rows()) {
      planes.pack(begin, first);
      planes.count(block);
    }
    mirror(block, columns);
  }
}

}  // namespace w2s
