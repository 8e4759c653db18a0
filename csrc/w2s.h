// Torch-free interface of the compiled core: it takes addresses, sizes and strides and fills
// buffers.
//
// N rows, V classes, K top-k classes of a row. Matrices are row-major with column stride 1 and the
// row stride in elements. [in] is read, [out] is written, [in/out] both. The formula is in
// w2s_fast/ops/cross_entropy/api.py, the record's layout in w2s_fast/ops/loss_call.py.
#pragma once

#include <cstdint>

namespace w2s {

enum DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

// The self-target that a row takes: RowRule in w2s_fast/ops/loss_call.py.
enum Rule : int32_t { kNone = 0, kArgmax = 1, kGate = 2, kMargin = 3, kGiven = 4 };

// Rows of the record: Stat and Index in w2s_fast/ops/loss_call.py. A test compares the two.
enum Stat : int32_t {
  kLoss,
  kMax,
  kLogS,
  kEntropy,
  kMass,
  kLinear,
  kMean,
  kChosen,
  kTail,
  kCoef,
  kFactor,
  kScore,
  kStats
};
enum Index : int32_t { kArgmaxClass, kWeakClass, kSelfClass, kIndices };

// What shapes the loss of a row besides its targets: LossSpec in w2s_fast/ops/loss_call.py.
struct RowParams {
  Rule rule;
  float aux, threshold;  // threshold -inf: every gate is open
  float smoothing, focal_gamma, max_confidence;
  float softcap;  // logits are softcap tanh(u / softcap) of the stored u; 0 for none
  float z_loss;   // factor of lse^2
};

// One pass of a row kernel, on the CPU or on a GPU: RowCall in w2s_fast/ops/loss_call.py. All
// pointers of a GPU call are device addresses.
struct RowCall {
  int64_t n, v, k;
  const void* logits;  // [in] (N, V), may be the same memory as grad
  int64_t logits_stride;
  DType dtype;         // of logits and grad
  const int64_t* ids;  // [in] (N, K), null for dense targets
  const void* probs;   // [in] (N, K) fp32 or (N, V) probs_dtype; null for hard labels
  int64_t probs_stride;
  DType probs_dtype;      // kF32 or dtype
  bool probs_are_logits;  // dense targets are softmax(probs); CPU and V > 2 only
  bool entropy;           // whether kEntropy is wanted; a kernel may leave it 0 where it is not
  const float* rest;      // [in] (N), null for none
  const float* weight;    // [in] (N), null for 1
  int64_t ignore_index;
  RowParams params;
  float scale;             // factor of the gradient besides the row weight
  const float* row_scale;  // [in] (N), gradient only: replaces scale and weight
  int64_t row_scale_stride;
  // [in] 0-d, GPU only: replace params.aux, params.threshold and scale unless null. A step computes
  // them on the device, and no launch waits for the host.
  const float *aux_ptr, *threshold_ptr, *scale_ptr;
  float* stats;       // [out] (12, N), or null in two_class
  int64_t* index;     // [out] (3, N)
  float* topk_diffs;  // [out] (N, K) z_id - max, or null; fixup reads it
  float* scratch;     // [in/out] (3, N), allocated by two_class itself
  void* grad;         // [out] (N, V), or null
  int64_t grad_stride;
  bool share_rows;  // CPU, set by run(): several threads share each row
  // [out] (4,) of two_class on a CPU, or null: sums over the rows that count of 1, of whether the
  // student's class is the weak one, of its top probability and of its entropy.
  float* sums;
};

// Elements of a part of a long row that one thread takes: a few passes of microseconds.
constexpr int64_t kPart = 1 << 14;

// Scores of an order statistic. NaN is detected; -0 and +0 are one score.
struct Scores {
  const void* x;  // [in] (n)
  DType dtype;
  const uint8_t* keep;  // [in] (n), 0 excludes a score; null for all
  int64_t n;
};

// Kept scores below, at and above two pivots low <= high. With low == high both `at` count the same
// scores. What is missing to `kept` lies between the pivots or is NaN.
struct Parts {
  int64_t below, at_low, at_high, above, kept;
};

// Checked votes of m sources for n rows: classes 0 .. k - 1, and -1 for an abstention.
struct Votes {
  const void* votes;  // [in] (n, m) int8 or int16
  int32_t bytes;      // of a vote: 1 or 2
  int64_t stride, n, m, k;
};

// One pass of InfoNCE over similarities: csrc/contrastive.h.
struct Contrastive;

// Codes of n rows: `groups` of sources, each with `symbols` joint votes. Code 0: all of them
// abstain.
struct VoteCodes {
  const uint8_t* codes;  // [in] (n, groups) of 1 or 2 bytes each
  int32_t bytes;
  int64_t n, groups, symbols;
};

// Every function of a RowCall works on rows [begin, end) and returns the first row with a label
// outside the classes or with the same class twice, or -1.
struct Kernels {
  const char* isa;
  int64_t (*rows)(const RowCall&, int64_t begin, int64_t end);
  int64_t (*fixup)(const RowCall&, int64_t begin, int64_t end);
  int64_t (*gradient)(const RowCall&, int64_t begin, int64_t end);
  // Two classes, two steps around the threshold. margins fills scratch: row 0 z_0 - z_1, row 1 the
  // weak P(class 1), row 2 whether the row counts. two_class leaves the row losses in row 0 and,
  // where c.sums is not null, entropies in row 1 and top probabilities in row 2: negative where the
  // student's class is not the weak one; both are 0 on rows that do not count.
  int64_t (*margins)(const RowCall&, int64_t begin, int64_t end);
  int64_t (*two_class)(const RowCall&, int64_t begin, int64_t end);
  // Adds scores [begin, end) to the parts and writes those strictly between the pivots to `inside`,
  // which has room for end - begin + 16; returns their number.
  int64_t (*partition)(const Scores&, int64_t begin, int64_t end, float low, float high, Parts&,
                       float* inside);
  // words[j]: bit i is 1 where source j votes for class c in row begin + i; at most 64 rows.
  void (*pack_class)(const Votes&, int64_t begin, int64_t end, int64_t c, uint64_t* words);
  // Adds to counts[j] the ones that column a and column j of b (n_b, n_words) have in common.
  void (*count_pairs)(const uint64_t* a, const uint64_t* b, int64_t n_b, int64_t n_words,
                      double* counts);
  // Record of rows [begin, end), and their gradient where c.grad is not null.
  void (*contrastive)(const Contrastive& c, int64_t begin, int64_t end);
};

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The widest set this CPU runs; W2S_CPU_CAPABILITY=base|avx2|avx512 selects a narrower one.
const Kernels& kernels();

// Selects the set of this name for kernels(), for tests of the narrower ones in one process; false
// if this CPU does not run it. Not to be called while a kernel runs.
bool use_isa(const char* name);

using Kernel = int64_t (*)(const RowCall&, int64_t begin, int64_t end);

// Runs a kernel over all rows on torch's threads; returns the first bad row or -1.
int64_t run(Kernel kernel, const RowCall& c);

// Where the threshold of two classes comes from: given, or a quantile of the margins at the mean
// weak P(class 1) or at 1/2.
enum Select : int32_t { kThresholdGiven = 0, kThresholdPrior = 1, kThresholdMedian = 2 };

struct TwoClassResult {
  int64_t bad_row;  // -1 if every label is a class
  float loss;       // sum or mean over the rows that count
  float normaliser, threshold;
};

// Hard or dense targets over two classes in one call: threshold, loss, gradient, and the record and
// the sums where their addresses are not null.
TwoClassResult two_class(RowCall c, Select select, bool mean);

// Exact order statistic with linear interpolation. +inf if no score is kept, NaN if a kept score or
// q is NaN.
float quantile(const Scores& s, double q);

// The score of rank 0, 1, ... in ascending order; NaN if there is none or a kept score is NaN.
float kth_value(const Scores& s, int64_t rank);

// Rounds of a radix select over 32-bit keys, for scores in several places: round 0, 1, 2
// counts by the next 11, 11, 10 bits the keys whose leading bits equal `prefix`.
constexpr int kBins = 2048;
// counts[kBins] is the number of NaN, counted in round 0 only.
void histogram(const Scores& s, uint32_t prefix, int round, int64_t counts[kBins + 1]);
uint32_t key_of(float score);
float score_of(uint32_t key);

// Smallest kept score above `at`; +inf if there is none.
float successor(const Scores& s, float at);

// Kept scores above `at` and equal to it.
struct CountAt {
  int64_t above, equal;
};
CountAt count_at(const Scores& s, float at);

// mask[i] = 1 for the kept scores above `at` and the first `ties` of those equal to it, else 0.
void threshold_mask(const Scores& s, float at, int64_t ties, uint8_t* mask);

// Classes hard (n) for the logits (n, k), finite and row-major, such that class a gets counts[a]
// rows (sum n < 2^31) and the sum of the chosen logits is the largest possible; biases (k) of mean
// 0 under which they are the largest logit + bias, ties apart.
void balance(const float* logits, int64_t n, int64_t k, const int64_t* counts, double* bias,
             int64_t* hard);

// All rows on torch's threads.
void contrastive_rows(const Contrastive& c);

// Copies votes (n, m) of 1, 2, 4 or 8 bytes to `out`, contiguous, of 1 or 2 bytes, or null; returns
// whether all are -1 .. k - 1. If not, `out` has no meaning.
bool check_votes(const void* votes, int bytes, int64_t stride, int64_t n, int64_t m, int64_t k,
                 int out_bytes, void* out);

// Adds to counts (k, m) the votes of each source for each class, and to hashes (m) the votes of
// each source: equal votes have equal hashes. Returns the rows with a vote.
int64_t summarize_votes(const Votes& v, int64_t* counts, uint64_t* hashes);

// second (k m, k m), or (k, m, m) without pairs of different classes, zero at first: in how many
// rows source i votes for a class and source j for another or the same. Exact.
void second_moments(const Votes& v, bool across_classes, double* second);

// codes (n, ceil(m / size)) of 1 or 2 bytes: sum_i (vote of source g size + i, plus 1) (k + 1)^i.
void encode_votes(const Votes& v, int64_t size, int code_bytes, void* codes);

// out (n, c): the bias (c) plus the rows of `tables` (groups, symbols, c) that the codes select,
// and with `softmax` their softmax. Tables are zero for code 0.
void sum_tables(const VoteCodes& x, const double* tables, int64_t c, const double* bias,
                bool softmax, double* out);

// Adds the weights (n, c) of each row to sums (groups, symbols, c) at its codes; those of code 0
// have no meaning.
void sum_weights(const VoteCodes& x, const double* weights, int64_t c, double* sums);

}  // namespace w2s
