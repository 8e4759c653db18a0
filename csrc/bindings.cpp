// The only file that uses Python. Addresses arrive as integers; the GIL is released while the
// rows run. Python has checked shapes, dtypes and strides (w2s_fast/ops/targets.py).
#include "bind_contrastive.h"
#include "bind_row_call.h"
#include "bind_votes.h"
#include "memory.h"
#include "parallel.h"
#include "w2s.h"

namespace py = pybind11;

namespace {

using w2s::Address;
using w2s::at;
using w2s::RowCall;

w2s::Scores scores(Address x, int dtype, Address keep, int64_t n) {
  return {at<void>(x), static_cast<w2s::DType>(dtype), at<uint8_t>(keep), n};
}

using Kernel = int64_t (*w2s::Kernels::*)(const RowCall&, int64_t, int64_t);

// Binds one kernel: runs it over all rows, returns the first bad row or -1.
void bind(py::module_& m, const char* name, Kernel kernel) {
  m.def(name, [kernel](const RowCall& c) {
    const py::gil_scoped_release free;
    return w2s::run(w2s::kernels().*kernel, c);
  });
}

// Arguments in the order of two_class in w2s_fast/ops/cross_entropy/cpp.py.
py::tuple two_class(int64_t n, Address logits, int64_t logits_stride, int dtype, Address ids,
                    Address probs, int64_t probs_stride, int probs_dtype, Address weight,
                    int64_t ignore_index, int rule, int select, float aux, float threshold,
                    float smoothing, float focal_gamma, float max_confidence, bool mean,
                    Address stats, Address index, Address sums, Address grad, int64_t grad_stride,
                    Address loss) {
  RowCall c{};
  c.n = n, c.v = 2, c.k = ids == 0 ? 0 : 1;
  c.logits = at<void>(logits), c.logits_stride = logits_stride;
  c.dtype = static_cast<w2s::DType>(dtype);
  c.ids = at<int64_t>(ids), c.probs = at<void>(probs), c.probs_stride = probs_stride;
  c.probs_dtype = static_cast<w2s::DType>(probs_dtype);
  c.weight = at<float>(weight), c.ignore_index = ignore_index;
  c.params = {
      static_cast<w2s::Rule>(rule), aux, threshold, smoothing, focal_gamma, max_confidence, 0, 0};
  c.stats = at<float>(stats), c.index = at<int64_t>(index), c.sums = at<float>(sums);
  c.grad = at<void>(grad), c.grad_stride = grad_stride;
  w2s::TwoClassResult r;
  {
    const py::gil_scoped_release free;
    r = w2s::two_class(c, static_cast<w2s::Select>(select), mean);
  }
  *at<float>(loss) = r.loss;
  return py::make_tuple(r.bad_row, r.normaliser, r.threshold);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Torch-free kernels of w2s_fast. Call them through w2s_fast.ops.";
  m.def("isa", [] { return w2s::kernels().isa; });
  m.def("use_isa", &w2s::use_isa);
  m.def("set_parallel_for", [](Address pool, Address threads) {
    w2s::set_parallel_for(reinterpret_cast<w2s::ParallelFor>(pool),
                          reinterpret_cast<w2s::NumThreads>(threads));
  });
  m.def("advise_huge", &w2s::advise_huge);
  w2s::bind_row_call(m);
  bind(m, "rows", &w2s::Kernels::rows);
  bind(m, "fixup", &w2s::Kernels::fixup);
  bind(m, "gradient", &w2s::Kernels::gradient);
  m.def("two_class", &two_class);
  m.def("quantile", [](Address x, int dtype, Address keep, int64_t n, double q) {
    const py::gil_scoped_release free;
    return w2s::quantile(scores(x, dtype, keep, n), q);
  });
  m.def("kth_value", [](Address x, int dtype, Address keep, int64_t n, int64_t rank) {
    const py::gil_scoped_release free;
    return w2s::kth_value(scores(x, dtype, keep, n), rank);
  });
  m.def("histogram", [](Address x, int dtype, Address keep, int64_t n, uint32_t prefix, int round,
                        Address counts) {
    const py::gil_scoped_release free;
    w2s::histogram(scores(x, dtype, keep, n), prefix, round, at<int64_t>(counts));
  });
  m.def("successor", [](Address x, int dtype, Address keep, int64_t n, float from) {
    const py::gil_scoped_release free;
    return w2s::successor(scores(x, dtype, keep, n), from);
  });
  m.def("count_at", [](Address x, int dtype, Address keep, int64_t n, float from) {
    w2s::CountAt t;
    {
      const py::gil_scoped_release free;
      t = w2s::count_at(scores(x, dtype, keep, n), from);
    }
    return py::make_tuple(t.above, t.equal);
  });
  m.def("threshold_mask",
        [](Address x, int dtype, Address keep, int64_t n, float from, int64_t ties, Address mask) {
          const py::gil_scoped_release free;
          w2s::threshold_mask(scores(x, dtype, keep, n), from, ties, at<uint8_t>(mask));
        });
  w2s::bind_votes(m);
  w2s::bind_contrastive(m);
  m.def("contrastive_rows", [](const w2s::Contrastive& c) {
    const py::gil_scoped_release free;
    w2s::contrastive_rows(c);
  });
  m.def("balance", [](Address logits, int64_t n, int64_t k, Address counts, Address bias,
                      Address hard) {
    const py::gil_scoped_release free;
    w2s::balance(at<float>(logits), n, k, at<int64_t>(counts), at<double>(bias), at<int64_t>(hard));
  });
}
