// Passes of EM over votes. Several sources share one code, so a row is a few table lookups instead
// of one for each vote.
//
// Both passes sum in the same order for any number of threads: rows are divided over threads where
// every row has its own sum, groups of sources where the sum runs over rows.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../parallel.h"
#include "../w2s.h"

namespace w2s {
namespace {

constexpr int64_t kOperations = 1 << 15;  // of one task, so that the hand-over is cheap

bool little_endian() {
  const uint16_t one = 1;
  uint8_t first;
  std::memcpy(&first, &one, 1);
  return first == 1;
}

// The code of eight bytes of votes: sum_i (vote i + 1) symbols^i over the first `size` of them. No
// byte of the product carries into the next, because symbols^size is at most 256.
class ByteCoder {
 public:
  ByteCoder(int64_t size, int64_t symbols) : shift_(8 * (size - 1)) {
    uint64_t power = 1;
    for (int64_t i = 0; i < size; ++i, power *= static_cast<uint64_t>(symbols)) {
      factors_ |= power << (8 * (size - 1 - i));
      used_ |= uint64_t{255} << (8 * i);
    }
  }
  uint8_t operator()(const void* votes) const {
    uint64_t x;
    std::memcpy(&x, votes, 8);
    x = ((x & 0x7f7f7f7f7f7f7f7fu) + 0x0101010101010101u) ^ (x & 0x8080808080808080u);
    return static_cast<uint8_t>((x & used_) * factors_ >> shift_);
  }

 private:
  uint64_t factors_ = 0, used_ = 0;
  int64_t shift_;
};

template <class T, class Code>
void encode_as(const Votes& v, int64_t size, Code* codes) {
  const ByteCoder shared(size, v.k + 1);
  // Groups of which eight bytes can be read: neither beyond the row, nor with less than `size`
  // votes.
  const bool bytes = sizeof(T) == 1 && sizeof(Code) == 1 && little_endian();
  const int64_t fast = bytes && v.m >= 8 ? (v.m - 8) / size + 1 : 0;
  auto body = [&](int64_t lo, int64_t hi) {
    // Copies: a byte that is written might otherwise be part of them.
    const ByteCoder coder = shared;
    const int64_t groups = (v.m + size - 1) / size, in_bytes = fast, step = size;
    const T* row = static_cast<const T*>(v.votes) + lo * v.stride;
    Code* to = codes + lo * groups;
    for (int64_t i = lo; i < hi; ++i, row += v.stride, to += groups) {
      for (int64_t g = 0; g < in_bytes; ++g) to[g] = coder(row + g * step);
      for (int64_t g = in_bytes; g < groups; ++g) {
        const int64_t first = g * size, last = first + size < v.m ? first + size : v.m;
        int64_t code = 0;
        for (int64_t j = last; j-- > first;) code = code * (v.k + 1) + row[j] + 1;
        to[g] = static_cast<Code>(code);
      }
    }
  };
  parallel_rows(v.n, 1 + kOperations / v.m, body);
}

template <class T>
void encode_from(const Votes& v, int64_t size, int code_bytes, void* codes) {
  if (code_bytes == 1) {
    encode_as<T>(v, size, static_cast<uint8_t*>(codes));
  } else {
    encode_as<T>(v, size, static_cast<uint16_t*>(codes));
  }
}

void softmax_of(double* x, int64_t c) {
  double most = x[0], total = 0;
  for (int64_t k = 1; k < c; ++k) most = x[k] > most ? x[k] : most;
  for (int64_t k = 0; k < c; ++k) total += x[k] = x[k] == most ? 1.0 : std::exp(x[k] - most);
  for (int64_t k = 0; k < c; ++k) x[k] /= total;
}

// The first group from g whose code is not 0; rare votes are skipped eight codes at a time.
template <class Code>
int64_t next_vote(const Code* row, int64_t g, int64_t groups) {
  constexpr int64_t together = 8 / sizeof(Code);
  while (g < groups && row[g] == 0) {
    uint64_t word = 1;
    if (g + together <= groups) std::memcpy(&word, row + g, 8);
    g += word == 0 ? together : 1;
  }
  return g;
}

// C columns in registers, or c of them in memory for C = 0.
template <int64_t C, class Code>
void sum_row(const Code* row, int64_t groups, int64_t symbols, const double* tables, int64_t c,
             double* out) {
  if constexpr (C > 0) {
    double sum[C];
    for (int64_t k = 0; k < C; ++k) sum[k] = out[k];
    for (int64_t g = 0; g < groups; ++g) {
      const double* const t = tables + (g * symbols + row[g]) * C;
      for (int64_t k = 0; k < C; ++k) sum[k] += t[k];
    }
    for (int64_t k = 0; k < C; ++k) out[k] = sum[k];
  } else {
    for (int64_t g = next_vote(row, 0, groups); g < groups; g = next_vote(row, g + 1, groups)) {
      const double* const t = tables + (g * symbols + row[g]) * c;
      for (int64_t k = 0; k < c; ++k) out[k] += t[k];
    }
  }
}

template <int64_t C, class Code>
void tables_as(const VoteCodes& x, const double* tables, int64_t c, const double* bias,
               bool softmax, double* out) {
  auto body = [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) {
      double* const to = out + i * c;
      for (int64_t k = 0; k < c; ++k) to[k] = bias[k];
      const Code* const row = reinterpret_cast<const Code*>(x.codes) + i * x.groups;
      sum_row<C>(row, x.groups, x.symbols, tables, c, to);
      if (softmax) softmax_of(to, c);
    }
  };
  parallel_rows(x.n, 1 + kOperations / (x.groups * c), body);
}

template <int64_t C, class Code>
void weights_as(const VoteCodes& x, const double* weights, int64_t c, double* sums) {
  auto body = [&](int64_t lo, int64_t hi) {
    for (int64_t i = 0; i < x.n; ++i) {
      const Code* const row = reinterpret_cast<const Code*>(x.codes) + i * x.groups;
      const double* const w = weights + i * c;
      if constexpr (C > 0) {
        for (int64_t g = lo; g < hi; ++g) {
          double* const to = sums + (g * x.symbols + row[g]) * C;
          for (int64_t k = 0; k < C; ++k) to[k] += w[k];
        }
      } else {
        for (int64_t g = next_vote(row, lo, hi); g < hi; g = next_vote(row, g + 1, hi)) {
          double* const to = sums + (g * x.symbols + row[g]) * c;
          for (int64_t k = 0; k < c; ++k) to[k] += w[k];
        }
      }
    }
  };
  parallel_rows(x.groups, 1 + kOperations / (x.n * c), body);
}

// Calls f with the number of columns as a constant, 0 for many, and a value of the code's type.
template <class F>
void by_columns(const VoteCodes& x, int64_t c, F f) {
  auto by_code = [&](auto columns) {
    if (x.bytes == 1) {
      f(columns, uint8_t{});
    } else {
      f(columns, uint16_t{});
    }
  };
  switch (c) {
    case 1:
      return by_code(std::integral_constant<int64_t, 1>{});
    case 2:
      return by_code(std::integral_constant<int64_t, 2>{});
    case 3:
      return by_code(std::integral_constant<int64_t, 3>{});
    case 4:
      return by_code(std::integral_constant<int64_t, 4>{});
    default:
      return by_code(std::integral_constant<int64_t, 0>{});
  }
}

}  // namespace

void encode_votes(const Votes& v, int64_t size, int code_bytes, void* codes) {
  if (v.bytes == 1) {
    encode_from<int8_t>(v, size, code_bytes, codes);
  } else {
    encode_from<int16_t>(v, size, code_bytes, codes);
  }
}

void sum_tables(const VoteCodes& x, const double* tables, int64_t c, const double* bias,
                bool softmax, double* out) {
  by_columns(x, c, [&](auto columns, auto code) {
    tables_as<columns(), decltype(code)>(x, tables, c, bias, softmax, out);
  });
}

void sum_weights(const VoteCodes& x, const double* weights, int64_t c, double* sums) {
  by_columns(x, c, [&](auto columns, auto code) {
    weights_as<columns(), decltype(code)>(x, weights, c, sums);
  });
}

}  // namespace w2s
