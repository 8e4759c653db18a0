// Assignment of rows to classes with given counts and the largest sum of logits, and the class
// biases under which every row chooses its class itself.
//
// Successive shortest paths (Ahuja, Magnanti and Orlin, "Network Flows", 1993, 9.7) on a graph of
// the classes: an edge a -> b costs what the cheapest row of a loses by moving to b. Rows start at
// their largest logit; every path takes one row out of a class with too many and puts one into a
// class with too few, so it ends after as many paths as there are rows too many.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "../w2s.h"

namespace w2s {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Move {
  double cost;
  int32_t row;
};
// Of equal moves the first row's is at the top.
bool later(const Move& a, const Move& b) {
  return a.cost > b.cost || (a.cost == b.cost && a.row > b.row);
}

class Classes {
 public:
  Classes(const float* z, int64_t n, int64_t k, int64_t* hard)
      : z_(z), k_(k), hard_(hard), heaps_(static_cast<std::size_t>(k * k)) {
    for (int64_t i = 0; i < n; ++i) {
      hard[i] = std::max_element(z + i * k, z + (i + 1) * k) - (z + i * k);
      for (int64_t b = 0; b < k; ++b) {
        if (b != hard[i]) heap(hard[i], b).push_back(move(i, hard[i], b));
      }
    }
    for (auto& h : heaps_) std::make_heap(h.begin(), h.end(), later);
  }

  // The cheapest row to move from a to b, or cost +inf if a is empty.
  Move cheapest(int64_t a, int64_t b) {
    auto& h = heap(a, b);
    // Rows that left a were not searched for.
    while (!h.empty() && hard_[h.front().row] != a) {
      std::pop_heap(h.begin(), h.end(), later);
      h.pop_back();
    }
    return h.empty() ? Move{kInfinity, -1} : h.front();
  }

  void take(int64_t row, int64_t to) {
    hard_[row] = to;
    for (int64_t b = 0; b < k_; ++b) {
      if (b == to) continue;
      auto& h = heap(to, b);
      h.push_back(move(row, to, b));
      std::push_heap(h.begin(), h.end(), later);
    }
  }

 private:
  std::vector<Move>& heap(int64_t a, int64_t b) {
    return heaps_[static_cast<std::size_t>(a * k_ + b)];
  }
  Move move(int64_t row, int64_t a, int64_t b) const {
    const float* z = z_ + row * k_;
    return {static_cast<double>(z[a]) - static_cast<double>(z[b]), static_cast<int32_t>(row)};
  }

  const float* z_;
  int64_t k_;
  int64_t* hard_;
  std::vector<std::vector<Move>> heaps_;
};

struct Path {
  std::vector<double> length;  // from the nearest class with too many rows
  std::vector<int64_t> before;
  int64_t end;  // nearest class with too few rows
};

// Dijkstra over reduced costs, which are never negative.
Path shortest(Classes& classes, const std::vector<int64_t>& excess,
              const std::vector<double>& bias) {
  const int64_t k = static_cast<int64_t>(excess.size());
  Path p{std::vector<double>(excess.size(), kInfinity), std::vector<int64_t>(excess.size(), -1),
         -1};
  std::vector<char> done(excess.size(), 0);
  for (int64_t a = 0; a < k; ++a) p.length[a] = excess[a] > 0 ? 0 : kInfinity;
  while (true) {
    int64_t a = 0;
    double nearest = kInfinity;
    for (int64_t c = 0; c < k; ++c) {
      if (done[c] == 0 && p.length[c] < nearest) a = c, nearest = p.length[c];
    }
    if (excess[a] < 0) {
      p.end = a;
      return p;
    }
    done[a] = 1;
    for (int64_t b = 0; b < k; ++b) {
      if (done[b] != 0) continue;
      const double cost = classes.cheapest(a, b).cost + bias[a] - bias[b];
      const double length = p.length[a] + std::max(cost, 0.0);
      if (length < p.length[b]) p.length[b] = length, p.before[b] = a;
    }
  }
}

// Least mean weight of a cycle of the complete graph (Karp 1978), +inf if there is none.
double least_mean_cycle(const std::vector<double>& weight, int64_t k) {
  const auto at = [k](int64_t i, int64_t j) { return static_cast<std::size_t>(i * k + j); };
  std::vector<double> walk(static_cast<std::size_t>((k + 1) * k), 0);
  for (int64_t m = 1; m <= k; ++m) {
    for (int64_t b = 0; b < k; ++b) {
      double best = kInfinity;
      for (int64_t a = 0; a < k; ++a) {
        if (a != b) best = std::min(best, walk[at(m - 1, a)] + weight[at(a, b)]);
      }
      walk[at(m, b)] = best;
    }
  }
  double least = kInfinity;
  for (int64_t b = 0; b < k; ++b) {
    if (walk[at(k, b)] == kInfinity) continue;
    double most = -kInfinity;
    for (int64_t m = 0; m < k; ++m) {
      if (walk[at(m, b)] == kInfinity) continue;
      most = std::max(most, (walk[at(k, b)] - walk[at(m, b)]) / static_cast<double>(k - m));
    }
    least = std::min(least, most);
  }
  return least;
}

// Biases under which every row prefers its class by as much as can be had for all rows at once.
void widest(const std::vector<double>& weight, int64_t k, double* bias) {
  const double margin = std::min(least_mean_cycle(weight, k), 1e30);
  const double off = margin == 1e30 ? 1.0 : std::max(margin, 0.0);
  std::fill(bias, bias + k, 0.0);
  for (int64_t round = 0; round < k; ++round) {
    for (int64_t a = 0; a < k; ++a) {
      for (int64_t b = 0; b < k; ++b) {
        if (a != b) bias[b] = std::min(bias[b], bias[a] + weight[a * k + b] - off);
      }
    }
  }
  double mean = 0;
  for (int64_t a = 0; a < k; ++a) mean += bias[a] / static_cast<double>(k);
  for (int64_t a = 0; a < k; ++a) bias[a] -= mean;
}

}  // namespace

void balance(const float* logits, int64_t n, int64_t k, const int64_t* counts, double* bias,
             int64_t* hard) {
  Classes classes(logits, n, k, hard);
  std::vector<int64_t> excess(static_cast<std::size_t>(k));
  for (int64_t i = 0; i < n; ++i) ++excess[hard[i]];
  int64_t left = 0;
  for (int64_t a = 0; a < k; ++a) {
    excess[a] -= counts[a];
    left += std::max<int64_t>(excess[a], 0);
  }
  std::vector<double> price(static_cast<std::size_t>(k), 0);
  for (; left > 0; --left) {
    const Path p = shortest(classes, excess, price);
    for (int64_t a = 0; a < k; ++a) price[a] += std::min(p.length[a], p.length[p.end]);
    // All rows are chosen before one moves: each edge has its own class's row.
    std::vector<std::pair<int64_t, int64_t>> moves;
    int64_t b = p.end;
    for (; p.before[b] >= 0; b = p.before[b]) {
      moves.emplace_back(classes.cheapest(p.before[b], b).row, b);
    }
    for (const auto& [row, to] : moves) classes.take(row, to);
    --excess[b], ++excess[p.end];
  }
  std::vector<double> weight(static_cast<std::size_t>(k * k));
  for (int64_t a = 0; a < k; ++a) {
    for (int64_t b = 0; b < k; ++b) {
      weight[static_cast<std::size_t>(a * k + b)] = a == b ? 0 : classes.cheapest(a, b).cost;
    }
  }
  widest(weight, k, bias);
}

}  // namespace w2s
