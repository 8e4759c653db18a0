// Calls of the compiled core made of bytes: shapes, strides, alignments, labels, values, options.
//
// Every buffer is allocated with exactly the size that w2s.h states, so that a sanitizer sees an
// access beside it. The gaps between rows hold a pattern that no kernel may change.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/w2s.h"

namespace calls {

// The bytes of a case; behind its end, bytes of a generator that all of them seed: a short case
// chooses shapes and options, and still has data.
class Bytes {
 public:
  Bytes(const uint8_t* data, std::size_t size) : data_(data), size_(size) {
    for (std::size_t i = 0; i < size; ++i) digest_ = (digest_ ^ data[i]) * 0x100000001b3u;
    digest_ ^= digest_ >> 29;
    state_ = digest_;
  }

  // Of all bytes: the share of cases with a property of it stays what it is, whichever cases a
  // fuzzer prefers.
  uint64_t digest() const { return digest_; }

  uint32_t word(int bytes = 4) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | byte();
    return value;
  }
  // From low to high, both included.
  int64_t between(int64_t low, int64_t high) {
    const auto span = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int64_t>(word(span > 256 ? 2 : 1) % span);
  }
  bool one_in(int n) { return word(1) % static_cast<uint32_t>(n) == 0; }

  // Mostly ordinary numbers, else special ones or any bits.
  float number() {
    static const float special[] = {0.0f,   -0.0f, 1.0f,   -1.0f,      INFINITY, -INFINITY, NAN,
                                    1e-45f, 1e38f, -1e38f, 3.4028e38f, 65504.0f, 1e-8f,     0.5f};
    const uint32_t kind = word(1);
    if (kind < 200) return (static_cast<float>(word(1)) - 128.0f) / 16.0f;
    if (kind < 240) return special[word(1) % (sizeof(special) / sizeof(special[0]))];
    const uint32_t bits = word(4);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  float share() { return static_cast<float>(word(1)) / 255.0f; }

 private:
  uint8_t byte() {
    if (at_ < size_) return data_[at_++];
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint8_t>(state_ >> 56);
  }

  const uint8_t* data_;
  std::size_t size_, at_ = 0;
  uint64_t digest_ = 0xcbf29ce484222325u, state_;
};

inline std::size_t size_of(w2s::DType dtype) { return dtype == w2s::kF32 ? 4 : 2; }

// A matrix whose memory ends with its last entry and begins `offset` entries into the allocation.
class Matrix {
 public:
  Matrix(w2s::DType dtype, int64_t rows, int64_t columns, int64_t stride, int64_t offset)
      : dtype_(dtype), rows_(rows), columns_(columns), stride_(stride), offset_(offset) {
    const int64_t entries = offset + (rows > 0 ? (rows - 1) * stride + columns : 0);
    bytes_ = static_cast<std::size_t>(entries) * size_of(dtype);
    memory_.reset(static_cast<uint8_t*>(std::malloc(bytes_ > 0 ? bytes_ : 1)));
    std::memset(memory_.get(), kPattern, bytes_);
  }
  void* data() { return memory_.get() + static_cast<std::size_t>(offset_) * size_of(dtype_); }
  int64_t stride() const { return stride_; }
  w2s::DType dtype() const { return dtype_; }

  void set(int64_t row, int64_t column, float value) {
    uint8_t* const at = static_cast<uint8_t*>(data()) +
                        static_cast<std::size_t>(row * stride_ + column) * size_of(dtype_);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (dtype_ == w2s::kF32) {
      std::memcpy(at, &bits, 4);
    } else {  // upper half: bf16 of the value, and some fp16 number
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(at, &half, 2);
    }
  }
  // Millions of columns repeat the first ones, at a place of their own in every vector and block.
  void fill(Bytes& bytes) {
    constexpr int64_t distinct = 10007;
    std::vector<float> first;
    for (int64_t i = 0; i < rows_; ++i) {
      first.clear();
      for (int64_t j = 0; j < columns_ && j < distinct; ++j) first.push_back(bytes.number());
      for (int64_t j = 0; j < columns_; ++j)
        set(i, j, first[static_cast<std::size_t>(j % distinct)]);
    }
  }
  // Ends the program if a byte outside the entries has changed.
  void check_gaps(const char* name) const {
    check_gap(0, offset_, name);
    for (int64_t i = 0; i + 1 < rows_; ++i) {
      check_gap(offset_ + i * stride_ + columns_, offset_ + (i + 1) * stride_, name);
    }
  }

 private:
  void check_gap(int64_t from, int64_t to, const char* name) const {
    const auto width = static_cast<int64_t>(size_of(dtype_));
    for (int64_t i = from * width; i < to * width; ++i) {
      if (memory_.get()[i] != kPattern) {
        std::fprintf(stderr, "%s: byte %lld outside of its entries was written\n", name,
                     (long long)i);
        std::abort();
      }
    }
  }
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  static constexpr uint8_t kPattern = 0x5a;
  w2s::DType dtype_;
  int64_t rows_, columns_, stride_, offset_;
  std::size_t bytes_;
  std::unique_ptr<uint8_t, Free> memory_;
};

template <class T>
T* address(std::vector<T>& v, bool present = true) {
  return present ? v.data() : nullptr;
}

// A call of the row kernels and the memory that it works on.
struct Rows {
  w2s::RowCall c{};
  std::unique_ptr<Matrix> logits, probs, grad;
  std::vector<int64_t> ids, index;
  std::vector<float> rest, weight, row_scale, stats, topk_diffs, topk_probs;
  bool dense = false;

  Rows(Bytes& b, int64_t n, int64_t v) {
    static const w2s::DType dtypes[] = {w2s::kF32, w2s::kBF16, w2s::kF16};
    c.n = n, c.v = v;
    c.dtype = dtypes[b.word(1) % 3];
    logits = matrix(b, c.dtype, v);
    logits->fill(b);
    c.logits = logits->data(), c.logits_stride = logits->stride();
    c.ignore_index = b.one_in(4) ? 0 : -100;
    targets(b);
    options(b);
    outputs(b);
  }

  // Of a divided vocabulary: the largest logit or the self-target of a row is another shard's.
  void move_classes_to_other_shards(Bytes& b) {
    for (const int32_t row : {w2s::kArgmaxClass, w2s::kSelfClass}) {
      for (int64_t i = 0; i < c.n; ++i) {
        if (b.one_in(2)) index[static_cast<std::size_t>(row * c.n + i)] = -1;
      }
    }
  }

  void check_gaps() const {
    logits->check_gaps("logits");
    if (probs) probs->check_gaps("probs");
    if (grad) grad->check_gaps("grad");
  }

 private:
  std::unique_ptr<Matrix> matrix(Bytes& b, w2s::DType dtype, int64_t columns) {
    const int64_t stride = columns + (b.one_in(2) ? 0 : b.between(1, 9));
    return std::make_unique<Matrix>(dtype, c.n, columns, stride, b.between(0, 9));
  }

  int64_t label(Bytes& b) {
    static const int64_t outside[] = {-1, -100, INT64_MIN, INT64_MAX, int64_t{1} << 32};
    if (b.one_in(60)) return b.one_in(2) ? outside[b.word(1) % 5] : c.v;
    return b.one_in(9) ? c.ignore_index : b.between(0, c.v - 1);
  }

  void targets(Bytes& b) {
    const auto n = static_cast<std::size_t>(c.n);
    const int64_t kind = b.between(0, 2);
    dense = kind == 2;
    if (kind == 0) {
      c.k = 1;
    } else if (kind == 1) {
      const int64_t most = b.one_in(16) ? 90 : 12;  // more than 64 are not on the stack
      c.k = b.between(1, c.v < most ? c.v : most);
    }
    if (!dense) {
      ids.resize(n * static_cast<std::size_t>(c.k));
      const int64_t first = b.between(0, c.v - 1);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        // Mostly distinct classes of a row; at times one twice, or one outside.
        const auto j = static_cast<int64_t>(i) % (c.k > 0 ? c.k : 1);
        ids[i] = kind == 1 && !b.one_in(40) ? (first + j) % c.v : label(b);
      }
      c.ids = address(ids);
    }
    if (kind == 1) {
      probs = matrix(b, w2s::kF32, c.k);
    } else if (dense) {
      probs = matrix(b, b.one_in(2) ? w2s::kF32 : c.dtype, c.v);
    }
    if (probs) {
      probs->fill(b);
      c.probs = probs->data(), c.probs_stride = probs->stride(), c.probs_dtype = probs->dtype();
    }
    rest.resize(n), weight.resize(n);
    for (auto& x : rest) x = b.one_in(8) ? b.number() : b.share();
    for (auto& x : weight) x = b.one_in(8) ? b.number() : b.share();
    c.rest = address(rest, kind == 1 && b.one_in(3));
    c.weight = address(weight, b.one_in(2));
  }

  void options(Bytes& b) {
    c.params.rule = static_cast<w2s::Rule>(c.v == 2 ? (b.one_in(2) ? 0 : 3) : b.between(0, 4));
    if (c.v != 2 && c.params.rule == w2s::kMargin) c.params.rule = w2s::kGate;
    c.params.aux = b.share();
    c.params.threshold = b.one_in(3) ? -INFINITY : b.number();
    c.params.smoothing = b.one_in(4) ? b.share() * 0.99f : 0.0f;
    c.params.focal_gamma = b.one_in(4) ? b.share() * 4.0f : 0.0f;
    c.params.max_confidence = b.one_in(4) ? b.share() : INFINITY;
    c.params.softcap = b.one_in(4) ? b.share() * 50.0f : 0.0f;
    c.params.z_loss = b.one_in(4) ? b.share() : 0.0f;
    c.scale = b.one_in(8) ? b.number() : 1.0f;
  }

  void outputs(Bytes& b) {
    const auto n = static_cast<std::size_t>(c.n);
    stats.resize(n * w2s::kStats), index.resize(n * w2s::kIndices);
    for (std::size_t i = 0; i < n; ++i) index[2 * n + i] = b.between(0, c.v - 1);  // rule kGiven
    c.stats = address(stats), c.index = address(index);
    if (b.one_in(4)) return;
    if (b.one_in(3)) {  // in place
      c.grad = logits->data(), c.grad_stride = logits->stride();
    } else {
      grad = matrix(b, c.dtype, c.v);
      c.grad = grad->data(), c.grad_stride = grad->stride();
    }
  }
};

// The phases in the order of w2s_fast/ops/cross_entropy/algorithm.py.
inline void row_phases(Bytes& b, int64_t n, int64_t v) {
  Rows r(b, n, v);
  w2s::RowCall& c = r.c;
  const w2s::Kernels& k = w2s::kernels();
  const bool repairable = !r.dense && c.rest == nullptr && c.params.smoothing == 0.0f;
  const bool late = c.params.rule == w2s::kGate && b.one_in(2);
  void* const grad = c.grad;
  const float threshold = c.params.threshold;
  if (late) {
    c.params.threshold = -INFINITY;
    if (!repairable) c.grad = nullptr;
    if (c.grad != nullptr && c.ids != nullptr) {
      r.topk_diffs.resize(static_cast<std::size_t>(n * c.k));
      c.topk_diffs = r.topk_diffs.data();
    }
  }
  if (w2s::run(k.rows, c) < 0) {
    if (late) {
      c.params.threshold = threshold;
      w2s::run(k.fixup, c);
    }
    // After an in-place gradient the logits are gone; backward never reads them again.
    if (grad != nullptr && (c.grad == nullptr || grad != c.logits)) {
      c.grad = grad;
      r.row_scale.resize(static_cast<std::size_t>(n));
      for (auto& x : r.row_scale) x = b.one_in(8) ? b.number() : b.share();
      c.row_scale = r.row_scale.data(), c.row_scale_stride = b.one_in(2) ? 1 : 0;
      if (b.one_in(8)) r.move_classes_to_other_shards(b);
      w2s::run(k.gradient, c);
    }
  }
  r.check_gaps();
}

inline void two_classes(Bytes& b, int64_t n) {
  Rows r(b, n, 2);
  if (r.c.k > 1 || (r.c.ids != nullptr && r.c.probs != nullptr)) return;  // not for sparse targets
  r.c.params.softcap = r.c.params.z_loss = 0.0f;
  if (b.one_in(3)) r.c.stats = nullptr, r.c.index = nullptr;
  float sums[4];
  if (b.one_in(2)) r.c.sums = sums;
  const auto select = static_cast<w2s::Select>(b.between(0, 2));
  w2s::two_class(r.c, select, b.one_in(2));
  r.check_gaps();
}

inline void order_statistics(Bytes& b, int64_t n) {
  static const w2s::DType dtypes[] = {w2s::kF32, w2s::kBF16, w2s::kF16};
  Matrix x(dtypes[b.word(1) % 3], 1, n, n > 0 ? n : 1, b.between(0, 9));
  if (b.one_in(2)) {
    x.fill(b);
  } else {  // few bytes, many scores
    uint32_t state = b.word();
    const bool ties = b.one_in(2);
    for (int64_t i = 0; i < n; ++i) {
      state = state * 1664525u + 1013904223u;
      x.set(0, i, static_cast<float>(ties ? state >> 30 : state >> 8) - 1.0f);
    }
  }
  std::vector<uint8_t> keep(static_cast<std::size_t>(n)), mask(static_cast<std::size_t>(n));
  for (auto& k : keep) k = b.one_in(3) ? 0 : 1;
  const w2s::Scores s{x.data(), x.dtype(), b.one_in(2) ? keep.data() : nullptr, n};
  w2s::quantile(s, b.one_in(6) ? static_cast<double>(b.number()) : b.share());
  const float at = w2s::kth_value(s, b.between(0, n));
  w2s::successor(s, at);
  const w2s::CountAt count = w2s::count_at(s, at);
  w2s::threshold_mask(s, at, b.one_in(2) ? count.equal : b.between(0, n), mask.data());
  std::vector<int64_t> bins(w2s::kBins + 1);
  if (b.one_in(32)) {  // each round clears thousands of bins
    for (int round = 0; round < 3; ++round) w2s::histogram(s, w2s::key_of(at), round, bins.data());
  }
  x.check_gaps("scores");
}

inline void balanced(Bytes& b, int64_t n, int64_t k) {
  std::vector<float> z(static_cast<std::size_t>(n * k));
  for (auto& x : z) {
    x = b.number();
    if (!(x > -1e30f && x < 1e30f)) x = 0.0f;  // w2s.h asks for finite logits
  }
  std::vector<int64_t> counts(static_cast<std::size_t>(k)), hard(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i) ++counts[static_cast<std::size_t>(b.between(0, k - 1))];
  std::vector<double> bias(static_cast<std::size_t>(k));
  w2s::balance(z.data(), n, k, counts.data(), bias.data(), hard.data());
  for (const int64_t h : hard) --counts[static_cast<std::size_t>(h)];
  for (const int64_t left : counts) {
    if (left != 0) {
      std::fprintf(stderr, "balance: a class has %lld rows too few\n", (long long)left);
      std::abort();
    }
  }
}

// Votes (n, m) in rows with gaps, and all passes over them.
inline void votes(Bytes& b, int64_t n, int64_t m) {
  const int32_t bytes = b.one_in(2) ? 1 : 2;
  const int64_t k = b.between(2, bytes == 1 ? 127 : (b.one_in(8) ? 300 : 6));
  const int64_t stride = m + (b.one_in(2) ? b.between(1, 70) : 0);
  std::vector<int8_t> narrow(static_cast<std::size_t>(bytes == 1 ? (n - 1) * stride + m : 0), 99);
  std::vector<int16_t> wide(static_cast<std::size_t>(bytes == 2 ? (n - 1) * stride + m : 0), 999);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const auto at = static_cast<std::size_t>(i * stride + j);
      const int64_t vote = b.one_in(2) ? -1 : b.between(0, k - 1);
      if (bytes == 1) {
        narrow[at] = static_cast<int8_t>(vote);
      } else {
        wide[at] = static_cast<int16_t>(vote);
      }
    }
  }
  const void* const data = bytes == 1 ? static_cast<void*>(narrow.data()) : wide.data();
  const w2s::Votes v{data, bytes, stride, n, m, k};
  std::vector<int16_t> checked(static_cast<std::size_t>(n * m));
  if (!w2s::check_votes(data, bytes, stride, n, m, k, 2, checked.data())) {
    std::fprintf(stderr, "votes: correct ones were refused\n");
    std::abort();
  }
  std::vector<int64_t> any(static_cast<std::size_t>(n * m));  // of any bits
  for (auto& x : any) x = b.one_in(4) ? static_cast<int64_t>(b.word(4)) << 32 : b.between(-3, 200);
  w2s::check_votes(any.data(), 8, m, n, m, k, 1, b.one_in(2) ? checked.data() : nullptr);

  std::vector<int64_t> counts(static_cast<std::size_t>(k * m));
  std::vector<uint64_t> hashes(static_cast<std::size_t>(m));
  w2s::summarize_votes(v, counts.data(), hashes.data());
  const bool across = k * m < 400 && b.one_in(2);
  std::vector<double> second(static_cast<std::size_t>(across ? k * m * k * m : k * m * m));
  w2s::second_moments(v, across, second.data());

  int64_t size = 1, symbols = k + 1;
  while (size < 8 && symbols * (k + 1) <= 256 && !b.one_in(4)) symbols *= k + 1, ++size;
  const int32_t code_bytes = symbols <= 256 ? 1 : 2;
  const int64_t groups = (m + size - 1) / size, c = b.between(1, 6);
  std::vector<uint8_t> codes(static_cast<std::size_t>(n * groups * code_bytes));
  w2s::encode_votes(v, size, code_bytes, codes.data());
  const w2s::VoteCodes x{codes.data(), code_bytes, n, groups, symbols};
  std::vector<double> tables(static_cast<std::size_t>(groups * symbols * c), 0.5);
  std::vector<double> bias(static_cast<std::size_t>(c)), out(static_cast<std::size_t>(n * c));
  w2s::sum_tables(x, tables.data(), c, bias.data(), b.one_in(2), out.data());
  w2s::sum_weights(x, out.data(), c, tables.data());
}

// Selects an instruction set; the narrowest where this processor does not have it.
inline void choose_isa(uint32_t number) {
  static const char* const sets[] = {"avx512", "avx2", "base"};
  static const bool present[] = {w2s::use_isa(sets[0]), w2s::use_isa(sets[1]), true};
  static uint32_t chosen = 3;
  if (!present[number]) number = 2;
  if (number != chosen) w2s::use_isa(sets[number]);  // asks the processor, which is slow
  chosen = number;
}

constexpr int64_t kStreamed = 1 << 22;  // two rows of it exceed kStreamBytes of cross_entropy.h

// One case: an instruction set of this processor, an op, its shape, its data. Most are tiny, where
// the edges are; some cross the blocks of the kernels, and very few are streamed past the caches.
inline void run_case(const uint8_t* data, std::size_t size) {
  Bytes b(data, size);
  choose_isa(b.word(1) % 3);
  const int64_t op = b.between(0, 10);
  const bool large = b.digest() % 128 == 0, streamed = b.digest() % (1 << 17) == 1;
  if (streamed) {
    row_phases(b, 2, kStreamed + b.between(0, 70));
  } else if (op < 5) {
    row_phases(b, b.between(0, large ? 2 : 3), large ? b.between(1, 9000) : b.between(1, 70));
  } else if (op < 7) {
    two_classes(b, large ? b.between(0, 700) : b.between(0, 40));
  } else if (op < 9) {
    order_statistics(b, large ? b.between(0, 20000) : b.between(0, 100));
  } else if (op < 10) {
    balanced(b, b.between(1, 24), b.between(2, 6));
  } else {
    votes(b, b.between(1, large ? 300 : 20), b.between(1, large ? 80 : 40));
  }
}

}  // namespace calls
