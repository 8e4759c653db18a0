// The row kernels: pass, gradient from the record, late fix-up, upstream factor.
#pragma once

#include <type_traits>

#include "gradient.h"
#include "tile.h"

namespace {

static_assert(sizeof(Shared) <= kSharedBytes && kMaxWarps * 32 == kRowsThreads, "see tile.h");

W2S_DEVICE float* diffs_of(void* shared) {
  return reinterpret_cast<float*>(static_cast<char*>(shared) + kSharedBytes);
}
W2S_DEVICE Pack* tile_of(void* shared, int64_t k) {
  return reinterpret_cast<Pack*>(static_cast<char*>(shared) + shared_bytes(k));
}

// The row of this block, and which of its `parts` blocks it is. In 32 bits: the first loads wait
// for this division.
struct Part {
  int64_t row;
  int part;
};
W2S_DEVICE Part part_of(int32_t parts) {
  const uint32_t at = static_cast<uint32_t>(block::index()), by = static_cast<uint32_t>(parts);
  return {at / by, static_cast<int>(at % by)};
}

// max and sum e^(z - max) of this thread's classes outside the top k.
template <class S>
W2S_DEVICE Sums sum_outside(const RowCall& c, int64_t row, const S& segment, Shared& shared) {
  constexpr int E = S::E;
  Sums s = no_sums();
  float x[E];
  for (int w = block::thread(); w < 128; w += block::threads()) shared.topk_bits[w] = 0;
  block::sync();
  for (int64_t j = block::thread(); j < c.k; j += block::threads()) {
    const TopkEntry l = topk_at(c, row, j);
    if (!l.inside) continue;
    const uint32_t bit = static_cast<uint32_t>(segment.z.chunk_of(l.id)) % 4096;
    block::atomic_or(&shared.topk_bits[bit / 32], 1u << (bit % 32));
  }
  block::sync();
  W2S_NO_UNROLL
  for (int at = segment.begin + block::thread(); at < segment.end; at += block::threads()) {
    segment.read(at, x);
    const int bit = at % 4096, from = segment.z.first(at);
    if ((shared.topk_bits[bit / 32] >> (bit % 32) & 1u) != 0) {
      for (int64_t j = 0; j < c.k; ++j) {
        const TopkEntry l = topk_at(c, row, j);
        W2S_UNROLL
        for (int e = 0; e < E; ++e) x[e] = l.inside && l.id == from + e ? -INFINITY : x[e];
      }
    }
    float top = -INFINITY;
    W2S_UNROLL
    for (int e = 0; e < E; ++e) top = fmaxf(top, x[e]);
    if (top > s.max) move<Outside>(s, top);
    const float origin = origin_of<Outside>(s.max).a;
    W2S_UNROLL
    for (int e = 0; e < E; ++e) s.exp += exp_fast(x[e] - origin);
  }
  return s;
}

// A row's record, and with grad its gradient.
//
// Bytes of global memory a row: V (b + b_q) read, V b written, b and b_q the widths of logits and
// dense targets: the minimum. A resident block reads the logits again from shared memory.
// Instructions an element of bf16 on sm_90, two of them exponentials: hard labels 12.8, with
// entropy 14.0, dense labels and entropy 23.7, with branches for all the rest 18.4 and 27.0. Tests
// hold them to that (docs/machine_model.md). H200, 8192 x 128256 bf16, predicted, not measured: 4.2
// GB, 0.88 ms at 4.8 TB/s; 0.61 and 0.67 ms of instructions at 75 % of the issue slots. 3 blocks of
// 64 KB an SM load, compute and store at different times.
template <class T_, class U_, bool RESIDENT_, int WORK>
struct RowsKernel {
  using T = T_;
  using U = U_;
  static constexpr bool RESIDENT = RESIDENT_;
  using W = Work<WORK, sizeof(U) != sizeof(None)>;
  using S = Segment<T, U, RESIDENT, W::CAP>;

  W2S_DEVICE static void run(const RowCall& c, const Tiling& tiling) {
    Shared& shared = *block::shared<Shared>();
    float* diffs = diffs_of(&shared);
    const int64_t row = part_of(tiling.cluster).row;
    const int rank = tiling.cluster == 1 ? 0 : block::cluster_rank();
    const S segment(c, tiling, row, rank, tile_of(&shared, c.k));
    segment.fetch();
    const bool leader = block::thread() == 0;
    if (leader) shared.repeats = 0;
    // In a cluster before the barriers of the sums: then another block may write it.
    const int64_t* const given = &c.index[w2s::kSelfClass * c.n + row];
    if (RESIDENT && leader && c.params.rule == w2s::kGiven)
      shared.final.self = static_cast<int>(*given);
    const float share = W::MEAN && c.params.smoothing != 0 ? 1 / static_cast<float>(c.v) : 0;
    const Sums mine = sum_segment<W>(segment, share);
    const Sums sums = in_nats<W>(reduce_row<W>(shared, mine, tiling.cluster, 0));
    // One warp of every block completes the row, all bitwise alike; one block writes the record.
    if (!S::DENSE && c.k > 1) find_repeats(c, row, shared);
    if (block::thread() < 32) {
      TopkSums topk = {0, 0, 0, -1, 0, kNowhere, 0};
      if constexpr (!S::DENSE) {
        const float max = block::from_lane(sums.max, 0);
        topk = topk_sums(c, row, segment.z, max, diffs, rank == 0);
      }
      if (leader) {
        if (shared.repeats != 0) topk.mass = NAN;
        shared.record = make_record<W>(c, row, segment.z, sums, topk);
        shared.share = topk.exp / sums.exp;
        shared.again = !(shared.share < kMaxTopkShare);
      }
    }
    if (!S::DENSE && c.rest != nullptr) find_tail(c, row, segment, shared, tiling.cluster);
    if (leader) {
      const RowParams params = params_of(c);
      Record r = shared.record;
      if (c.params.rule == w2s::kGiven) r.self = RESIDENT ? shared.final.self : *given;
      const float self_diff = complete(c, row, segment.z, params, r);
      if (rank == 0) write_record(c, row, r);
      if (c.grad != nullptr) shared.final = finish(c, row, params, r, self_diff);
    }
    // Every gather above is done before a block writes, and no block exits while another reads its
    // memory.
    if (tiling.cluster == 1) {
      block::sync();
    } else {
      block::cluster_sync();
    }
    if (c.grad == nullptr) return;
    const Final final = shared.final;
    Ahead<S, 0> ahead;
    write_segment<W, T>(c, row, segment, final, diffs, ahead);
  }

  // Whether a class occurs twice: the host has not checked targets in device memory.
  W2S_DEVICE static void find_repeats(const RowCall& c, int64_t row, Shared& shared) {
    const int64_t* ids = c.ids + row * c.k;
    W2S_NO_UNROLL
    for (int64_t j = block::thread(); j < c.k; j += block::threads()) {
      const int64_t id = ids[j];
      bool seen = false;
      W2S_NO_UNROLL
      for (int64_t l = 0; l < j; ++l) seen |= ids[l] == id;
      if (seen && id >= 0) block::atomic_or(&shared.repeats, 1u);
    }
    block::sync();
  }

  // log of the student's mass outside the top k; called by all threads, valid in the leader.
  W2S_DEVICE static void find_tail(const RowCall& c, int64_t row, const S& segment, Shared& shared,
                                   int cluster) {
    block::sync();
    const float logs = shared.record.logs;
    float tail = logs == logs ? log1pf(-shared.share) : NAN;
    if (shared.again != 0) {
      const Sums mine = sum_outside(c, row, segment, shared);
      const Sums s = reduce_row<Outside>(shared, mine, cluster, 1);
      tail = s.exp == 0 ? -INFINITY : logf(s.exp) + (s.max - shared.record.max);
      tail -= logs;
    }
    if (block::thread() == 0) shared.record.tail = tail;
  }
};

// A row's gradient from its record: one read, one write, no reduction.
// A thread has up to four chunks on the way before it reads anything else: 64 KB an SM. 6
// instructions an element of bf16 on sm_90. H200, 8192 x 128256 bf16: 4.2 GB, 0.88 ms at 4.8 TB/s;
// predicted, not measured.
template <class T_, class U_, int WORK>
struct GradientKernel {
  using T = T_;
  using U = U_;
  static constexpr bool RESIDENT = false;
  using W = Work<WORK, sizeof(U) != sizeof(None)>;
  using S = Segment<T, U, false, W::CAP>;

  W2S_DEVICE static void run(const RowCall& c, const Tiling& tiling) {
    float* diffs = diffs_of(block::shared<Shared>());
    const auto [row, part] = part_of(tiling.blocks);
    const S segment(c, tiling, row, part, nullptr);
    // On their way before anything else is read.
    // As many as registers hold; fp16 takes some for its conversions.
    constexpr bool tight = S::PACKS != 1 || (W::CAP && std::is_same<T, F16>::value);
    Ahead<S, !S::DENSE ? 4 : tight ? 1 : 2> ahead;
    const Line<T> out(c.grad, c.grad_stride, row, c.v);
    if (out.lead == segment.z.lead) ahead.load(segment, block::thread());
    const Record r = read_record(c, row);
    const bool own = r.self >= segment.lo && r.self < segment.hi;
    const float self_diff = own ? segment.logit_at(static_cast<int>(r.self)) - r.max : 0;
    Final f = finish(c, row, c.params, r, self_diff);
    f.zero |= !is_counted(c, row);
    if (!S::DENSE) {
      for (int64_t j = block::thread(); j < c.k; j += block::threads()) {
        const TopkEntry l = topk_at(c, row, j);
        if (l.inside && l.id >= segment.lo && l.id < segment.hi) {
          diffs[j] = segment.logit_at(l.id) - r.max;
        }
      }
    }
    block::sync();  // in place: the gathers come first
    write_segment<W, T>(c, row, segment, f, diffs, ahead);
  }
};

// Multiplies elements of a row.
template <class T>
W2S_DEVICE void rescale(const Line<T>& out, float by, int first, int step) {
  float g[Line<T>::kCount];
  const int chunks = out.chunk_of(out.length - 1) + 1;
  W2S_NO_UNROLL
  for (int c = first; c < chunks; c += step) {
    out.read(c, 0, g);
    W2S_UNROLL
    for (int e = 0; e < Line<T>::kCount; ++e) g[e] *= by;
    out.write(c, g);
  }
}

// Rows whose gate turns out closed: their record, and the entries that change. A row that stays
// open costs its few numbers of record; one that closes K + 1 entries, or a read and a write of the
// row where its weak mass is not 1.
template <class T_>
struct FixupKernel {
  using T = T_;

  W2S_DEVICE static void run(const RowCall& c, const Tiling&) {
    const int64_t row = block::index();
    const RowParams params = params_of(c);
    Record r = read_record(c, row);
    float by = 1;
    const bool closes = close_gate(params, rest_of(c, row), r, by);
    block::sync();  // all threads have read what one now writes
    if (!closes) return;
    if (block::thread() == 0) write_record(c, row, r);
    const float up = upstream(c, row) * r.factor;
    if (c.grad == nullptr || !is_counted(c, row) || up == 0) return;
    const Line<T> out(c.grad, c.grad_stride, row, c.v);
    if (by != 1) rescale(out, by, block::thread(), block::threads());
    block::sync();
    const Slope s = row_slope(params, rest_of(c, row), c.v, r, up);
    // The largest entry held the self-target: z - M is 0 there.
    if (block::thread() == 0) {
      const float g = entry(s, s.outside, 0, 0, false) * cap_slope(r.max, c.params.softcap);
      block::store1(out.p + r.self, Format<T>::narrow(g));
    }
    block::sync();
    for (int64_t j = block::thread(); j < c.k; j += block::threads()) {
      const TopkEntry l = topk_at(c, row, j);
      if (!l.inside) continue;
      const float d = c.topk_diffs[row * c.k + j];
      const float g = entry(s, s.inside, d, l.q, false) * cap_slope(d + r.max, c.params.softcap);
      block::store1(out.p + l.id, Format<T>::narrow(g));
    }
  }
};

// grad *= *scale, unless that is 1: then one number is read.
template <class T_>
struct ScaleKernel {
  using T = T_;

  W2S_DEVICE static void run(const RowCall& c, const Tiling& tiling) {
    const float by = *c.scale_ptr;
    if (by == 1) return;
    const auto [row, part] = part_of(tiling.blocks);
    const Line<T> out(c.grad, c.grad_stride, row, c.v);
    rescale(out, by, part * block::threads() + block::thread(), tiling.blocks * block::threads());
  }
};

}  // namespace
