// One pass over similarities of queries to documents, and the arithmetic of one query, in fp32,
// shared by every compiled backend. The formula is in w2s_fast/ops/info_nce/api.py and ref.py, the
// record's layout in w2s_fast/ops/info_nce/call.py; a test compares the two.
#pragma once

#include "row_math.h"

namespace w2s {

// Rows of the record.
enum ContrastiveStat : int32_t {
  kPairLoss,
  kPairLse,
  kPairPositive,
  kPairHardest,
  kPairNegatives,
  kPairFocal,
  kPairStats
};

// N queries, M documents. All pointers of a GPU call are device addresses.
struct Contrastive {
  int64_t n, m;
  float* similarities;  // [in/out] (N, M)
  int64_t stride;
  const int64_t* positives;        // [in] (N), negative: the query does not count
  const int64_t* query_groups;     // [in] (N), null for no groups
  const int64_t* document_groups;  // [in] (M)
  const uint8_t* mask;             // [in] (N, M) contiguous, 0: no negative; null for none
  bool within;                     // negatives are of the own group, else of the others
  float margin;                    // inf for none
  float scale;                     // 1 / temperature
  float focal_gamma;
  const float* weight;  // [in] (N), null for 1
  float* stats;         // [out] (6, N)
  int64_t stats_stride;
  void* grad;  // [out] (N, M), may be `similarities`, or null
  int64_t grad_stride;
  DType dtype;  // of grad
};

}  // namespace w2s

namespace {

using w2s::Contrastive;

// What remains of a row: its record, and the factors of its gradient.
struct PairRow {
  float loss, lse, positive, hardest, negatives, focal;
  float slope;  // minus the gradient of the positive, without the row weight
  float share;  // of every e^(scaled - hardest) in the gradient
};

// From the similarity of the positive, the largest one of the negatives, the sum over negatives of
// e^(scale (s - origin)), origin being `hardest` or 0 where that is -inf, and their number.
W2S_HD inline PairRow pair_row(const Contrastive& c, float positive, float hardest, float sum,
                               float negatives) {
  const float scaled = positive * c.scale;
  const float rest = hardest * c.scale + logf(sum);
  // An infinite similarity that no rule excludes has no probability.
  const float r = scaled == INFINITY ? NAN : rest - scaled;
  const float e = expf(-fabsf(r)), more = log1pf(e);
  const float miss = r > 0 ? 1 / (1 + e) : e / (1 + e);  // 1 - p
  const float focal = c.focal_gamma == 0 ? 1 : powf(miss, c.focal_gamma);
  PairRow row;
  row.loss = focal * ((r > 0 ? r : 0) + more);
  row.lse = (r > 0 ? rest : scaled) + more;
  row.positive = positive, row.hardest = hardest, row.negatives = negatives, row.focal = focal;
  row.slope = focal * miss;
  row.share = sum == 0 ? 0 : row.slope / sum;
  return row;
}

// The row of a query whose positive is no document.
W2S_HD inline PairRow broken_row() { return {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}; }

W2S_HD inline void write_pair_stats(const Contrastive& c, int64_t i, const PairRow& row) {
  const float values[w2s::kPairStats] = {row.loss,    row.lse,       row.positive,
                                         row.hardest, row.negatives, row.focal};
  for (int k = 0; k < w2s::kPairStats; ++k) c.stats[k * c.stats_stride + i] = values[k];
}

}  // namespace
