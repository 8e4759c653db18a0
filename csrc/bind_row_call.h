// Python's view of a RowCall, shared by the modules of the CPU core and of the CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

#include "w2s.h"

namespace w2s {

using Address = uintptr_t;  // pointers arrive as integers, 0 for null

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

// Arguments in the order of RowCall.packed in w2s_fast/ops/loss_call.py.
inline RowCall make_row_call(int64_t n, int64_t v, int64_t k, Address logits, int64_t logits_stride,
                             int dtype, Address ids, Address probs, int64_t probs_stride,
                             int probs_dtype, bool probs_are_logits, bool entropy, Address rest,
                             Address weight, int64_t ignore_index, int rule, float aux,
                             float threshold, float smoothing, float focal_gamma,
                             float max_confidence, float softcap, float z_loss, float scale,
                             Address row_scale, int64_t row_scale_stride, Address stats,
                             Address index, Address topk_diffs, Address grad, int64_t grad_stride,
                             Address aux_ptr, Address threshold_ptr, Address scale_ptr) {
  RowCall c{};
  c.n = n, c.v = v, c.k = k;
  c.logits = at<void>(logits), c.logits_stride = logits_stride;
  c.dtype = static_cast<DType>(dtype);
  c.ids = at<int64_t>(ids);
  c.probs = at<void>(probs), c.probs_stride = probs_stride;
  c.probs_dtype = static_cast<DType>(probs_dtype), c.probs_are_logits = probs_are_logits;
  c.entropy = entropy;
  c.rest = at<float>(rest), c.weight = at<float>(weight), c.ignore_index = ignore_index;
  c.params = {static_cast<Rule>(rule), aux,     threshold, smoothing, focal_gamma,
              max_confidence,          softcap, z_loss};
  c.scale = scale, c.row_scale = at<float>(row_scale), c.row_scale_stride = row_scale_stride;
  c.stats = at<float>(stats), c.index = at<int64_t>(index);
  c.topk_diffs = at<float>(topk_diffs);
  c.grad = at<void>(grad), c.grad_stride = grad_stride;
  c.aux_ptr = at<float>(aux_ptr), c.threshold_ptr = at<float>(threshold_ptr);
  c.scale_ptr = at<float>(scale_ptr);
  return c;
}

// Local to the module: the CUDA kernels and their emulation may live in one process.
inline void bind_row_call(pybind11::module_& m) {
  pybind11::class_<RowCall>(m, "RowCall", pybind11::module_local())
      .def(pybind11::init(&make_row_call));
}

}  // namespace w2s
