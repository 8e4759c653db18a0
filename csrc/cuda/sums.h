// The sums of one row, and how a block and a cluster add them up.
//
// Every thread keeps its sums relative to the largest logit that it has seen, and moves them when
// that changes; merging moves them to the larger of two. Partial sums are merged in one order,
// in every block: all blocks of a row hold the same bits.
#pragma once

#include "segment.h"
#include "work.h"

namespace {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int kNowhere = 0x7fffffff;
constexpr int kMaxWarps = 16;

W2S_DEVICE float exp_fast(float d) { return block::exp2_fast(d * kLog2E); }

// What exponentials are taken relative to: 2^y, y = (z - a) log2 e - b. NEAR: where the maximum M
// is small, a is 0 and b is M log2 e, rounded: then y is one fma of z, rounded once, and its value
// at z = M is not 0 but `exponent_of(M)`, by which all sums are divided in the end. Beyond kNear
// that number loses the precision of an entropy, and a is M.
struct Origin {
  float a, b;
};
constexpr float kNear = 4096;

// Beside an infinite maximum any number is right: sum e^d is then +inf, or NaN where there is a
// NaN.
template <class W>
W2S_DEVICE Origin origin_of(float max) {
  if (fabsf(max) == INFINITY) return {0, 0};
  // Added to 0, so that no compiler leaves the rounding out by making one fma of two operations.
  if (W::NEAR && fabsf(max) < kNear) return {0, fmaf(max, kLog2E, 0.0f)};
  return {max, 0};
}
W2S_DEVICE float exponent_of(float z, const Origin& o) { return fmaf(z - o.a, kLog2E, -o.b); }

struct Sums {
  float max, exp, exp_y;  // M; sum 2^y, sum 2^y y
  float d;                // sum d / V, d = z - M: a sum of masked logits would overflow
  float seen;             // elements / V
  float mass, linear;     // sum q, sum q d: dense targets
  float q_max;
  int at, q_at;  // first element with the maximum
};
constexpr int kSumsWords = 10;

W2S_DEVICE Sums no_sums() { return {-INFINITY, 0, 0, 0, 0, 0, 0, -INFINITY, kNowhere, kNowhere}; }

// Moves sums to a larger maximum. Sums over nothing but -inf and NaN stay as they are.
template <class W>
W2S_DEVICE void move(Sums& s, float to) {
  const float by = s.max == -INFINITY || to == INFINITY ? 0 : s.max - to;
  if (by != 0) {
    const Origin from = origin_of<W>(s.max), o = origin_of<W>(to);
    const float shift = fmaf(from.a - o.a, kLog2E, from.b - o.b);
    const float factor = block::exp2_fast(shift);
    // From a class that is masked by the smallest number the product would be infinite: 0 * inf.
    if (W::ENTROPY) s.exp_y = factor == 0 ? 0 : factor * fmaf(shift, s.exp, s.exp_y);
    s.exp *= factor;
    if (W::MEAN) s.d = fmaf(by, s.seen, s.d);
    if (W::DENSE) s.linear = fmaf(by, s.mass, s.linear);
  }
  s.max = to;
}

template <class W>
W2S_DEVICE void merge(Sums& a, Sums b) {
  const float top = fmaxf(a.max, b.max);
  if (b.max > a.max) {
    a.at = b.at;
  } else if (b.max == a.max) {
    a.at = b.at < a.at ? b.at : a.at;
  }
  if (a.max < top) move<W>(a, top);
  if (b.max < top) move<W>(b, top);
  a.exp += b.exp, a.exp_y += b.exp_y, a.d += b.d, a.seen += b.seen;
  if (!W::DENSE) return;
  a.mass += b.mass, a.linear += b.linear;
  if (b.q_max > a.q_max) {
    a.q_max = b.q_max, a.q_at = b.q_at;
  } else if (b.q_max == a.q_max) {
    a.q_at = b.q_at < a.q_at ? b.q_at : a.q_at;
  }
}

// State that the blocks of a row share, at the start of the dynamic shared memory.
struct Final {
  Slope slope;
  float max;
  float self_diff;  // z - M of the self-target
  int self;
  int zero;  // nothing but zeros is written
};
struct Shared {
  Sums warp[kMaxWarps];
  Sums part[2];  // of this block, read by its cluster; two, so that none is overwritten while read
  Final final;
  Record record;
  float share;              // of the top-k classes in the sum of e^d
  int again;                // the rest has to be summed itself
  uint32_t repeats;         // a class occurs more than once
  uint32_t topk_bits[128];  // bit c % 4096: a top-k class may lie in chunk c
};

template <class W>
W2S_DEVICE Sums down(const Sums& s, int by) {
  Sums o = no_sums();
  o.max = block::down(s.max, by), o.exp = block::down(s.exp, by), o.at = block::down(s.at, by);
  if (W::ENTROPY) o.exp_y = block::down(s.exp_y, by);
  if (W::MEAN) o.d = block::down(s.d, by), o.seen = block::down(s.seen, by);
  if (W::DENSE) {
    o.mass = block::down(s.mass, by), o.linear = block::down(s.linear, by);
    o.q_max = block::down(s.q_max, by), o.q_at = block::down(s.q_at, by);
  }
  return o;
}

// Lane 0 gets the sums of its warp.
template <class W>
W2S_DEVICE Sums reduce_warp(Sums s) {
  W2S_NO_UNROLL
  for (int by = 16; by > 0; by /= 2) merge<W>(s, down<W>(s, by));
  return s;
}

W2S_DEVICE Sums remote(const Sums& local, int rank) {
  Sums s;
  uint32_t words[kSumsWords];
  W2S_UNROLL
  for (int w = 0; w < kSumsWords; ++w) {
    words[w] = block::remote_word(reinterpret_cast<const uint32_t*>(&local) + w, rank);
  }
  memcpy(&s, words, sizeof s);
  return s;
}

// Lane 0 of warp 0 gets the sums of the row, in every block of its cluster.
template <class W>
W2S_DEVICE Sums reduce_row(Shared& shared, Sums s, int cluster, int slot) {
  static_assert(sizeof(Sums) == kSumsWords * sizeof(uint32_t), "read remotely word by word");
  const int lane = block::thread() % 32, warp = block::thread() / 32;
  s = reduce_warp<W>(s);
  if (lane == 0) shared.warp[warp] = s;
  block::sync();
  if (warp == 0) {
    s = lane < block::threads() / 32 ? shared.warp[lane] : no_sums();
    s = reduce_warp<W>(s);
    if (lane == 0) shared.part[slot] = s;
  }
  if (cluster == 1) return s;
  block::cluster_sync();
  if (warp == 0) {
    s = lane < cluster ? remote(shared.part[slot], lane) : no_sums();
    s = reduce_warp<W>(s);
  }
  return s;
}

// One thread's sums, and the origin of its loop: of NEAR only b, which is NaN where a is not 0.
struct Running {
  Sums s = no_sums();
  float a = 0, b = 0;
};

template <class W>
W2S_DEVICE void raise(Running& r, float top) {
  move<W>(r.s, top);
  const Origin o = origin_of<W>(top);
  r.a = o.a;
  r.b = W::NEAR && o.a != 0 ? NAN : o.b;
}

// What one chunk adds to the sums.
struct Terms {
  float exp = 0, exp_y = 0, mass = 0, linear = 0;
};

W2S_DEVICE int earlier(int a, int b) { return b < a ? b : a; }

template <class W, int E>
W2S_DEVICE Terms terms_of(const float* x, const float* q, const Running& r) {
  Terms t;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) {
    const float d = W::NEAR ? 0 : x[e] - r.a;
    const float y = W::NEAR ? fmaf(x[e], kLog2E, -r.b) : d * kLog2E, p = block::exp2_fast(y);
    // The first is no sum: adding it to 0 is an instruction.
    t.exp = e == 0 ? p : t.exp + p;
    if (W::ENTROPY) t.exp_y = e == 0 ? p * y : fmaf(p, y, t.exp_y);
    if constexpr (W::DENSE) {
      t.mass = e == 0 ? q[e] : t.mass + q[e];
      t.linear = e == 0 ? q[e] * d : fmaf(q[e], d, t.linear);
    }
  }
  return t;
}

// The terms of a chunk with products guarded: where a logit is -inf or the smallest number, where
// weak mass is infinite, and where logits are not NEAR.
template <class W, int E>
W2S_DEVICE Terms guarded_terms(const float* x, const float* q, float max) {
  const Origin o = origin_of<W>(max);
  Terms t;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) {
    const float y = exponent_of(x[e], o), p = block::exp2_fast(y);
    t.exp += p;
    if (W::ENTROPY) t.exp_y = fmaf(p, fmaxf(y, -1e4f), t.exp_y);  // 0 * -inf: no entropy
    if constexpr (W::DENSE) {
      const float d = x[e] - o.a;
      t.mass += q[e];
      t.linear += q[e] != 0 && d != 0 ? q[e] * d : 0;
    }
  }
  return t;
}

template <bool FULL, int E, class T>
W2S_DEVICE void add_mean(const Line<T>& z, int chunk, const float* x, float share, Running& r) {
  if (share == 0) return;
  const int from = z.first(chunk);
  float sum = 0;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) sum += FULL || z.holds(from + e) ? (x[e] - r.a) * share : 0;
  r.s.d += sum;
  r.s.seen += share * static_cast<float>(FULL ? E : z.count(chunk));
}

template <int E, class T>
W2S_DEVICE float largest_target(const Line<T>& z, int chunk, const float* q) {
  float top = -INFINITY;
  W2S_UNROLL
  for (int e = 0; e < E; ++e) top = fmaxf(top, z.holds(z.first(chunk) + e) ? q[e] : -INFINITY);
  return top;
}

// Adds one chunk: whole chunk `i`, or with FULL false chunk `i`, of which elements may lie outside
// of the row. `share` is 1 / V with label smoothing, else 0.
template <class W, bool FULL, class S>
W2S_DEVICE void add_chunk(const S& segment, int i, float share, Running& r) {
  constexpr int E = S::E;
  const int chunk = FULL ? segment.inner + i : i;
  float x[E], q[E], top = -INFINITY, q_top = -INFINITY;
  if constexpr (FULL) {
    const Pack stored = segment.load(i);
    unpack<typename S::T>(stored, x);
    segment.cap_all(chunk, x);
    if (!W::CAP) top = largest<typename S::T>(stored);
    if constexpr (W::DENSE) {
      W2S_UNROLL
      for (int p = 0; p < S::PACKS; ++p) {
        const Pack targets = segment.load_targets(i, p);
        unpack<typename S::U>(targets, q + p * S::EQ);
        q_top = fmaxf(q_top, largest<typename S::U>(targets));
      }
    }
  } else {
    segment.read(chunk, x);
    segment.read_targets(chunk, q);
    if constexpr (W::DENSE) q_top = largest_target<E>(segment.z, chunk, q);
  }
  if constexpr (W::CAP || !FULL) {
    W2S_UNROLL
    for (int e = 0; e < E; ++e) top = fmaxf(top, x[e]);  // outside of the row: -inf
  }
  if (W2S_RARELY(top > r.s.max)) {
    raise<W>(r, top);
    r.s.at = segment.z.first(chunk);  // of the chunk, for now
  } else if (!FULL && top == r.s.max && top > -INFINITY) {
    r.s.at = earlier(r.s.at, segment.z.first(chunk));
  }
  Terms t;
  if constexpr (FULL) t = terms_of<W, E>(x, q, r);
  // One test a chunk instead of one an element.
  const float product = W::ENTROPY ? t.exp_y : t.exp;
  if (!FULL || W2S_RARELY(!(fabsf(W::DENSE ? product + t.linear : product) < INFINITY))) {
    t = guarded_terms<W, E>(x, q, r.s.max);
  }
  Sums& s = r.s;
  s.exp += t.exp;
  if (W::ENTROPY) s.exp_y += t.exp_y;
  if constexpr (W::DENSE) s.mass += t.mass, s.linear += t.linear;
  if constexpr (W::MEAN) add_mean<FULL, E>(segment.z, chunk, x, share, r);
  if constexpr (W::DENSE) {
    if (W2S_RARELY(q_top > s.q_max)) {
      s.q_max = q_top, s.q_at = segment.z.first(chunk);
    } else if (!FULL && q_top == s.q_max && q_top > -INFINITY) {
      s.q_at = earlier(s.q_at, segment.z.first(chunk));
    }
  }
}

// From the chunk that holds a thread's maximum to the element.
template <class S>
W2S_DEVICE void locate(const S& segment, Sums& s) {
  constexpr int E = S::E;
  float x[E];
  if (s.at != kNowhere) {
    segment.read(segment.z.chunk_of(s.at), x);
    int at = s.at + E - 1;
    W2S_UNROLL
    for (int e = E - 1; e >= 0; --e) at = x[e] == s.max ? s.at + e : at;
    s.at = at;
  }
  if constexpr (S::DENSE) {
    if (s.q_at == kNowhere) return;
    segment.read_targets(segment.z.chunk_of(s.q_at), x);
    int at = s.q_at + E - 1;
    W2S_UNROLL
    for (int e = E - 1; e >= 0; --e) {
      at = segment.z.holds(s.q_at + e) && x[e] == s.q_max ? s.q_at + e : at;
    }
    s.q_at = at;
  }
}

// The sums of this thread's chunks.
template <class W, class S>
W2S_DEVICE Sums sum_segment(const S& segment, float share) {
  Running r;
  const int size = segment.group();
  int i = block::thread();
  W2S_NO_UNROLL
  for (int stage = 0; stage < kStages; ++stage) {
    segment.await(stage);
    const int to = earlier(segment.whole(), (stage + 1) * size);
    W2S_NO_UNROLL
    for (; i < to; i += block::threads()) add_chunk<W, true>(segment, i, share, r);
  }
  segment.await(kStages);
  W2S_NO_UNROLL
  for (int c = segment.edge(); c >= 0; c = segment.next_edge(c)) {
    add_chunk<W, false>(segment, c, share, r);
  }
  locate(segment, r.s);
  return r.s;
}

// To units of e: sum e^d and sum e^d d.
template <class W>
W2S_DEVICE Sums in_nats(Sums s) {
  if (W::NEAR && fabsf(s.max) < INFINITY) {
    const float y = exponent_of(s.max, origin_of<W>(s.max)), unit = block::exp2_fast(y);
    s.exp_y = fmaf(-y, s.exp, s.exp_y) / unit;
    s.exp /= unit;
  }
  s.exp_y *= kLn2;
  return s;
}

}  // namespace
