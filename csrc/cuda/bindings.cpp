// Python module of the CUDA kernels, and of their emulation (W2S_EMULATED). Addresses and the
// stream arrive as integers; Python has checked shapes, dtypes and strides.
#include <pybind11/pybind11.h>

#include "w2s_cuda.h"
#ifdef W2S_EMULATED
#include "emulate.h"
#endif

namespace py = pybind11;

namespace w2s {
namespace cuda {
void set_limits(const Limits& limits);
}  // namespace cuda
}  // namespace w2s

namespace {

using w2s::cuda::Call;
using w2s::cuda::Limits;
using Address = uintptr_t;

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

Call call(int64_t n, int64_t v, int64_t k, Address logits, int64_t logits_stride, int dtype,
          Address ids, Address probs, int64_t probs_stride, int probs_dtype, Address rest,
          Address weight, int64_t ignore_index, int rule, float aux_value, Address aux,
          Address threshold, float smoothing, float gamma, float cap, float softcap, float z_loss,
          Address scale, Address row_scale, int64_t row_scale_stride, Address stats, Address index,
          Address listed, Address grad, int64_t grad_stride) {
  Call c{};
  c.n = n, c.v = v, c.k = k;
  c.logits = at<void>(logits), c.logits_stride = logits_stride, c.dtype = dtype;
  c.ids = at<int64_t>(ids);
  c.probs = at<void>(probs), c.probs_stride = probs_stride, c.probs_dtype = probs_dtype;
  c.rest = at<float>(rest), c.weight = at<float>(weight), c.ignore_index = ignore_index;
  c.rule = rule, c.aux_value = aux_value;
  c.aux = at<float>(aux), c.threshold = at<float>(threshold);
  c.smoothing = smoothing, c.gamma = gamma, c.cap = cap, c.softcap = softcap, c.z_loss = z_loss;
  c.scale = at<float>(scale);
  c.row_scale = at<float>(row_scale), c.row_scale_stride = row_scale_stride;
  c.stats = at<float>(stats), c.index = at<int64_t>(index), c.listed = at<float>(listed);
  c.grad = at<void>(grad), c.grad_stride = grad_stride;
  return c;
}

using Launcher = int (*)(const Call&, w2s::cuda::Stream);

void bind(py::module_& m, const char* name, Launcher launcher) {
  m.def(name, [launcher](const Call& c, Address stream) {
    const py::gil_scoped_release free;
    return launcher(c, at<void>(stream));
  });
}

py::dict as_dict(const w2s::cuda::Shape& s) {
  py::dict d;
  d["threads"] = s.threads, d["cluster"] = s.cluster, d["tile"] = s.tile, d["blocks"] = s.blocks;
  d["resident"] = s.resident != 0, d["shared"] = s.shared;
  return d;
}

}  // namespace

#ifdef W2S_EMULATED
PYBIND11_MODULE(_cuda_emulated, m) {
  m.attr("emulated") = true;
  m.def("set_limits", [](int64_t shared, int cluster, int64_t alone, int64_t part) {
    w2s::cuda::set_limits({shared, cluster, alone, part});
  });
  m.def("set_order", [](int order, uint64_t seed) {
    emulate::set_order(static_cast<emulate::Order>(order), seed);
  });
  m.def("take_traffic", [] {
    const emulate::Traffic t = emulate::traffic();
    emulate::traffic() = {};
    return py::make_tuple(t.read_wide, t.read_narrow, t.written_wide, t.written_narrow);
  });
#else
PYBIND11_MODULE(_cuda, m) {
  m.attr("emulated") = false;
#endif
  m.doc() = "Torch-free CUDA kernels of w2s_fast. Call them through w2s_fast.ops.";
  // Local: the kernels and their emulation may live in one process.
  py::class_<Call>(m, "Call", py::module_local()).def(py::init(&call));
  bind(m, "rows", &w2s::cuda::rows);
  bind(m, "fixup", &w2s::cuda::fixup);
  bind(m, "gradient", &w2s::cuda::gradient);
  m.def("scale", [](Address grad, int64_t stride, int64_t n, int64_t v, int dtype, Address by,
                    Address stream) {
    const py::gil_scoped_release free;
    return w2s::cuda::scale(at<void>(grad), stride, n, v, dtype, at<float>(by), at<void>(stream));
  });
  m.def("shape_of_rows",
        [](const Call& c, int64_t shared, int cluster, int64_t alone, int64_t part) {
          return as_dict(w2s::cuda::shape_of_rows(c, {shared, cluster, alone, part}));
        });
  m.attr("QUANTILE_COUNTERS") = w2s::cuda::kQuantileCounters;
  m.def("quantile", [](int64_t n, Address scores, int dtype, Address keep, Address q, Address rank,
                       Address counters, Address out, Address stream) {
    const py::gil_scoped_release free;
    const w2s::cuda::Quantile c{n,
                                at<void>(scores),
                                dtype,
                                at<uint8_t>(keep),
                                at<double>(q),
                                at<int64_t>(rank),
                                at<uint64_t>(counters),
                                at<float>(out)};
    return w2s::cuda::quantile(c, at<void>(stream));
  });
  m.def("probe", &w2s::cuda::probe);
  m.def("error_string", &w2s::cuda::error_string);
  m.def("runtime_version", &w2s::cuda::runtime_version);
}
