// Losses, gradients and quantiles of fixed inputs, one number a line: platforms must agree.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/w2s.h"

namespace {

// The same inputs everywhere: <random> leaves distributions to the library.
struct Stream {
  uint64_t state = 88172645463325252u;
  uint32_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
  float logit() { return static_cast<float>(static_cast<int32_t>(next() % 4001) - 2000) / 256.0f; }
};

void print(const char* what, const std::vector<float>& values) {
  std::printf("%s:", what);
  for (const float value : values) std::printf(" %.9g", static_cast<double>(value));
  std::printf("\n");
}

uint16_t bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

w2s::RowCall call(int64_t n, int64_t v, const void* logits, w2s::DType dtype, const int64_t* ids,
                  void* grad, float* stats, int64_t* index) {
  w2s::RowCall c{};
  c.n = n, c.v = v, c.k = 1, c.logits = logits, c.logits_stride = v, c.dtype = dtype, c.ids = ids;
  c.entropy = true, c.ignore_index = -100, c.scale = 1.0f, c.grad = grad, c.grad_stride = v;
  c.params.max_confidence = std::numeric_limits<float>::infinity();
  c.stats = stats, c.index = index;
  return c;
}

}  // namespace

int main() {
  Stream random;
  constexpr int64_t n = 5, v = 517;
  std::vector<float> z(n * v), grad(n * v), stats(12 * n);
  std::vector<int64_t> ids(n), index(3 * n);
  for (auto& value : z) value = random.logit();
  for (auto& id : ids) id = random.next() % v;
  auto c =
      call(n, v, z.data(), w2s::DType::kF32, ids.data(), grad.data(), stats.data(), index.data());
  if (w2s::run(w2s::kernels().rows, c) != -1) return 1;
  print("rows", stats), print("gradient", grad);

  std::vector<uint16_t> half(n * v), half_grad(n * v);
  for (int64_t i = 0; i < n * v; ++i) half[i] = bf16(z[i]);
  c = call(n, v, half.data(), w2s::DType::kBF16, ids.data(), half_grad.data(), stats.data(),
           index.data());
  if (w2s::run(w2s::kernels().rows, c) != -1) return 1;
  print("rows of bf16", stats);

  std::vector<float> two(2 * 33), two_grad(2 * 33);
  std::vector<int64_t> classes(33);
  for (auto& value : two) value = random.logit();
  for (auto& id : classes) id = random.next() % 2;
  c = call(33, 2, two.data(), w2s::DType::kF32, classes.data(), two_grad.data(), nullptr, nullptr);
  const auto result = w2s::two_class(c, static_cast<w2s::Select>(0), true);
  print("two classes", {result.loss}), print("their gradient", two_grad);

  const w2s::Scores scores{z.data(), w2s::DType::kF32, nullptr, n * v};
  print("quantiles",
        {w2s::quantile(scores, 0.0), w2s::quantile(scores, 0.3), w2s::quantile(scores, 1.0)});
}
