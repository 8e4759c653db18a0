// The call of InfoNCE's row pass from addresses, shared with cuda/bindings.cpp. Python has checked
// shapes, dtypes and strides (w2s_fast/ops/info_nce/inputs.py).
#pragma once

#include "bind_row_call.h"
#include "contrastive.h"

namespace w2s {

inline void bind_contrastive(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Contrastive>(m, "Contrastive", py::module_local())
      .def(py::init([](int64_t n, int64_t documents, Address similarities, int64_t stride,
                       Address positives, Address query_groups, Address document_groups,
                       Address mask, bool within, float margin, float scale, float focal_gamma,
                       Address weight, Address stats, int64_t stats_stride, Address grad,
                       int64_t grad_stride, int dtype) {
        return Contrastive{n,
                           documents,
                           at<float>(similarities),
                           stride,
                           at<int64_t>(positives),
                           at<int64_t>(query_groups),
                           at<int64_t>(document_groups),
                           at<uint8_t>(mask),
                           within,
                           margin,
                           scale,
                           focal_gamma,
                           at<float>(weight),
                           at<float>(stats),
                           stats_stride,
                           at<void>(grad),
                           grad_stride,
                           static_cast<DType>(dtype)};
      }));
}

}  // namespace w2s
