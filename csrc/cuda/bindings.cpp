// Python module of the CUDA kernels, and of their emulation (W2S_EMULATED). Addresses and the
// stream arrive as integers; Python has checked shapes, dtypes and strides.
#include "../bind_contrastive.h"
#include "../bind_row_call.h"
#include "tile.h"
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

using w2s::Address;
using w2s::at;
using w2s::RowCall;

using Launcher = int (*)(const RowCall&, w2s::cuda::Stream);

void bind(py::module_& m, const char* name, Launcher launcher) {
  m.def(name, [launcher](const RowCall& c, Address stream) {
    const py::gil_scoped_release free;
    return launcher(c, at<void>(stream));
  });
}

py::dict as_dict(const w2s::cuda::Tiling& s) {
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
  w2s::bind_row_call(m);
  bind(m, "rows", &w2s::cuda::rows);
  bind(m, "fixup", &w2s::cuda::fixup);
  bind(m, "gradient", &w2s::cuda::gradient);
  m.def("scale", [](Address grad, int64_t stride, int64_t n, int64_t v, int dtype, Address by,
                    Address stream) {
    const py::gil_scoped_release free;
    return w2s::cuda::scale(at<void>(grad), stride, n, v, static_cast<w2s::DType>(dtype),
                            at<float>(by), at<void>(stream));
  });
  m.def("tiling_of_rows",
        [](const RowCall& c, int64_t shared, int cluster, int64_t alone, int64_t part) {
          return as_dict(w2s::cuda::tiling_of_rows(c, {shared, cluster, alone, part}));
        });
  m.attr("QUANTILE_COUNTERS") = w2s::cuda::kQuantileCounters;
  m.attr("MAX_SCORES") = kMaxScores;
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
  m.attr("TWO_CLASS_SCRATCH") = w2s::cuda::kTwoClassScratch;
  m.def("two_class", [](const RowCall& c, int select, bool mean, Address scratch, Address out,
                        Address losses, bool check_weights, Address stream) {
    const py::gil_scoped_release free;
    w2s::cuda::TwoClass call{};
    call.rows = c, call.select = static_cast<w2s::Select>(select), call.mean = mean;
    call.scratch = at<uint64_t>(scratch), call.out = at<float>(out);
    call.losses = at<float>(losses), call.check_weights = check_weights;
    return w2s::cuda::two_class(call, at<void>(stream));
  });
  m.def("two_class_gradient", [](const RowCall& c, bool mean, Address out, Address upstream,
                                 int64_t upstream_stride, Address stream) {
    const py::gil_scoped_release free;
    w2s::cuda::TwoClass call{};
    call.rows = c, call.mean = mean, call.out = at<float>(out);
    call.upstream = at<float>(upstream), call.upstream_stride = upstream_stride;
    return w2s::cuda::two_class_gradient(call, at<void>(stream));
  });
  w2s::bind_contrastive(m);
  m.def("contrastive_rows", [](const w2s::Contrastive& c, Address stream) {
    const py::gil_scoped_release free;
    return w2s::cuda::contrastive(c, at<void>(stream));
  });
  m.def("probe", &w2s::cuda::probe);
  m.def("error_string", &w2s::cuda::error_string);
  m.def("runtime_version", &w2s::cuda::runtime_version);
}
