// Bindings of the functions of votes. Python has checked shapes and dtypes
// (w2s_fast/ops/votes/cpp.py).
#pragma once

#include "bind_row_call.h"
#include "w2s.h"

namespace w2s {

inline Votes votes_at(Address votes, int bytes, int64_t stride, int64_t n, int64_t m, int64_t k) {
  return {at<void>(votes), bytes, stride, n, m, k};
}

inline void bind_votes(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("check_votes", [](Address votes, int bytes, int64_t stride, int64_t n, int64_t sources,
                          int64_t k, int out_bytes, Address out) {
    const py::gil_scoped_release free;
    return check_votes(at<void>(votes), bytes, stride, n, sources, k, out_bytes, at<void>(out));
  });
  m.def("summarize_votes", [](Address votes, int bytes, int64_t stride, int64_t n, int64_t sources,
                              int64_t k, Address counts, Address hashes) {
    const py::gil_scoped_release free;
    return summarize_votes(votes_at(votes, bytes, stride, n, sources, k), at<int64_t>(counts),
                           at<uint64_t>(hashes));
  });
  m.def("second_moments", [](Address votes, int bytes, int64_t stride, int64_t n, int64_t sources,
                             int64_t k, bool across_classes, Address second) {
    const py::gil_scoped_release free;
    second_moments(votes_at(votes, bytes, stride, n, sources, k), across_classes,
                   at<double>(second));
  });
  m.def("encode_votes", [](Address votes, int bytes, int64_t stride, int64_t n, int64_t sources,
                           int64_t k, int64_t size, int code_bytes, Address codes) {
    const py::gil_scoped_release free;
    encode_votes(votes_at(votes, bytes, stride, n, sources, k), size, code_bytes, at<void>(codes));
  });
  m.def("sum_tables", [](Address codes, int bytes, int64_t n, int64_t groups, int64_t symbols,
                         Address tables, int64_t c, Address bias, bool softmax, Address out) {
    const py::gil_scoped_release free;
    sum_tables({at<uint8_t>(codes), bytes, n, groups, symbols}, at<double>(tables), c,
               at<double>(bias), softmax, at<double>(out));
  });
  m.def("sum_weights", [](Address codes, int bytes, int64_t n, int64_t groups, int64_t symbols,
                          Address weights, int64_t c, Address sums) {
    const py::gil_scoped_release free;
    sum_weights({at<uint8_t>(codes), bytes, n, groups, symbols}, at<double>(weights), c,
                at<double>(sums));
  });
}

}  // namespace w2s
