// A decoder as Python sees it: checks what comes in, hands contiguous rows to Decoder. Included by
// bindings.cpp alone, and of internal linkage like all there.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decoder.hpp"
#include "dlpack.hpp"

namespace py = pybind11;

namespace codedinv {
namespace {

// Rows of at least this many bytes are processed without the GIL. Below it the work takes less than
// about 5 us, while giving the GIL up and taking it back costs 0.1 us alone and milliseconds when
// another thread wants it.
constexpr std::size_t kReleaseGilBytes = 64 * 1024;

constexpr int kContiguousAligned =
    py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

constexpr const char* kNotMade = "StreamingDecoder: __init__ was not called";

std::string shape_text(const std::int64_t* dims, std::size_t count) {
  std::string text = "(";
  for (std::size_t d = 0; d < count; ++d) text += (d ? ", " : "") + std::to_string(dims[d]);
  return text + (count == 1 ? ",)" : ")");
}

// `out` if it is an array of this dtype and shape that can be written row after row; `or_more`
// permits more rows.
py::array writeable(const py::object& out, const py::dtype& dtype,
                    const std::vector<std::int64_t>& shape, bool or_more) {
  const auto wanted = [&] {
    return "out: expected a writeable, contiguous array of " + py::str(dtype).cast<std::string>() +
           " and shape " + shape_text(shape.data(), shape.size()) +
           (or_more ? " or more rows, got " : ", got ");
  };
  if (!py::isinstance<py::array>(out)) {
    throw py::type_error(wanted() +
                         py::str(py::type::handle_of(out).attr("__name__")).cast<std::string>());
  }
  const auto array = py::reinterpret_borrow<py::array>(out);
  const auto* dims = reinterpret_cast<const std::int64_t*>(array.shape());
  const std::size_t rank = static_cast<std::size_t>(array.ndim());
  const bool fits = rank == shape.size() && std::equal(shape.begin() + 1, shape.end(), dims + 1) &&
                    (dims[0] == shape[0] || (or_more && dims[0] > shape[0]));
  const bool flat = (array.flags() & kContiguousAligned) == kContiguousAligned;
  if (fits && flat && array.writeable() && array.dtype().equal(dtype)) return array;
  throw py::value_error(
      wanted() + (array.writeable() ? "" : "read-only ") + (flat ? "" : "strided or unaligned ") +
      py::str(array.dtype()).cast<std::string>() + " of shape " + shape_text(dims, rank));
}

class PyDecoder {
 public:
  PyDecoder(std::vector<double> coefficients, std::size_t k, std::size_t r,
            std::vector<std::int64_t> shape, py::dtype dtype, DType stored)
      : shape_(std::move(shape)),
        dtype_(std::move(dtype)),
        stored_(stored),
        decoder_(std::move(coefficients), k, r, length_of(shape_), stored),
        release_gil_(decoder_.length() * size_of(stored) >= kReleaseGilBytes),
        made_(true) {}

  // Where a Python class skips this class's __init__, pybind11 hands out memory that no constructor
  // has seen: zeroed, it is known by `made_`, instead of holding a mutex that never opens.
  static void* operator new(std::size_t size) {
    void* memory = std::calloc(1, size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  static void operator delete(void* memory) { std::free(memory); }

  void push(py::handle slot, py::handle embedding, bool check) {
    const std::size_t index = slot_index(slot, decoder().n());
    if (py::detail::npy_api::get().PyArray_Check_(embedding.ptr())) {
      push_array(index, embedding, check);
    } else {
      push_dlpack(index, embedding, check);
    }
  }

  bool ready() const { return decoder().ready(); }
  Slots missing() const { return decoder().missing(); }

  py::array estimate(py::handle slot) const {
    const std::size_t index = slot_index(slot, decoder().k());
    py::array row(dtype_, shape_);
    void* data = row.mutable_data();
    without_gil([&] { decoder_.estimate(index, data); });
    return row;
  }

  py::dict recover(const py::object& out) const {
    for (;;) {
      const Slots slots = decoder().missing();
      const std::vector<py::array> arrays = rows_for(slots.size(), out);
      std::vector<void*> data;
      for (const py::array& array : arrays) data.push_back(const_cast<void*>(array.data()));
      // Results may have come since the rows were counted, and their slots be missing no more.
      if (!without_gil([&] { return decoder_.recover(slots, data.data()); })) continue;
      py::dict result;
      for (std::size_t m = 0; m < slots.size(); ++m) result[py::int_(slots[m])] = arrays[m];
      return result;
    }
  }

  py::array_t<double> residual() const {
    const auto norms = without_gil([&] { return decoder().residual(); });
    return py::array_t<double>(static_cast<py::ssize_t>(norms.size()), norms.data());
  }

  py::array syndrome(const py::object& out) const {
    const std::vector<std::int64_t> shape = shape_of(decoder().r());
    const py::dtype wide = stored_ == DType::f64 ? py::dtype::of<double>() : py::dtype::of<float>();
    py::array rows = out.is_none() ? py::array(wide, shape) : writeable(out, wide, shape, false);
    void* data = rows.mutable_data();
    without_gil([&] { decoder_.syndrome(data); });
    return rows;
  }

  void reset() {
    without_gil([&] { decoder().reset(); });
  }

  py::tuple shape() const {
    decoder();
    return py::tuple(py::cast(shape_));
  }
  py::dtype dtype() const {
    decoder();
    return dtype_;
  }

 private:
  const Decoder& decoder() const {
    if (!made_) throw py::type_error(kNotMade);
    return decoder_;
  }
  Decoder& decoder() { return const_cast<Decoder&>(std::as_const(*this).decoder()); }

  static std::size_t length_of(const std::vector<std::int64_t>& shape) {
    std::size_t length = 1;
    for (std::int64_t dim : shape) {
      if (dim < 1) {
        throw py::value_error("shape: expected sizes of 1 or more, got " +
                              shape_text(shape.data(), shape.size()));
      }
      if (__builtin_mul_overflow(length, static_cast<std::size_t>(dim), &length)) {
        throw py::value_error("shape: expected fewer than 2**64 elements, got " +
                              shape_text(shape.data(), shape.size()));
      }
    }
    return length;
  }

  static std::size_t slot_index(py::handle slot, std::size_t count) {
    // A null exception makes an integer too large for the type saturate, so it is out of range too.
    const Py_ssize_t index = PyNumber_AsSsize_t(slot.ptr(), nullptr);
    if (index == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (index < 0 || static_cast<std::size_t>(index) >= count) {
      throw py::value_error("slot: expected 0 to " + std::to_string(count - 1) + ", got " +
                            py::str(slot).cast<std::string>());
    }
    return static_cast<std::size_t>(index);
  }

  // A decoder's rows have one size, so either all its calls hold the GIL, and never wait for its
  // lock, or none does: no thread ever waits for the lock while it holds the GIL.
  template <class Work>
  auto without_gil(Work work) const -> decltype(work()) {
    std::optional<py::gil_scoped_release> release;
    if (release_gil_) release.emplace();
    return work();
  }

  void push_row(std::size_t slot, const void* row, bool check) {
    without_gil([&] { decoder_.push(slot, row, check); });
  }

  void push_array(std::size_t slot, py::handle embedding, bool check) {
    const auto* array = py::detail::array_proxy(embedding.ptr());
    if (array->descr != dtype_.ptr() && !dtype_.equal(py::handle(array->descr))) {
      throw_dtype(py::str(py::handle(array->descr)));
    }
    // npy_intp is 64 bits wide wherever this builds (checked below).
    const auto* dims = reinterpret_cast<const std::int64_t*>(array->dimensions);
    check_shape(dims, static_cast<std::size_t>(array->nd));
    const bool plain = Py_TYPE(embedding.ptr()) ==
                       reinterpret_cast<PyTypeObject*>(py::detail::npy_api::get().PyArray_Type_);
    if (!plain && py::hasattr(embedding, "mask")) {
      throw py::value_error("embedding: expected an array without mask, got a masked array");
    }
    if ((array->flags & kContiguousAligned) == kContiguousAligned) {
      push_row(slot, array->data, check);
      return;
    }
    const py::object copy = embedding.attr("copy")("C");
    push_row(slot, py::detail::array_proxy(copy.ptr())->data, check);
  }

  void push_dlpack(std::size_t slot, py::handle embedding, bool check) {
    const dlpack::Borrowed tensor(embedding);
    if (tensor.dtype() != stored_) throw_dtype(tensor.dtype_text());
    check_shape(tensor->shape, static_cast<std::size_t>(tensor->ndim));
    if (tensor.contiguous()) {
      push_row(slot, tensor.data(), check);
      return;
    }
    const std::vector<unsigned char> copy = tensor.packed();
    push_row(slot, copy.data(), check);
  }

  void check_shape(const std::int64_t* dims, std::size_t count) const {
    if (count == shape_.size() && std::equal(shape_.begin(), shape_.end(), dims)) return;
    throw py::value_error("embedding: expected shape " + shape_text(shape_.data(), shape_.size()) +
                          ", got " + shape_text(dims, count));
  }

  [[noreturn]] void throw_dtype(const std::string& got) const {
    throw py::value_error("embedding: expected dtype " + py::str(dtype_).cast<std::string>() +
                          ", got " + got);
  }

  std::vector<std::int64_t> shape_of(std::size_t rows) const {
    std::vector<std::int64_t> shape = shape_;
    shape.insert(shape.begin(), static_cast<std::int64_t>(rows));
    return shape;
  }

  // Arrays for `count` recovered rows: new ones, or the first of `out`.
  std::vector<py::array> rows_for(std::size_t count, const py::object& out) const {
    std::vector<py::array> arrays;
    if (out.is_none()) {
      for (std::size_t m = 0; m < count; ++m) arrays.emplace_back(dtype_, shape_);
      return arrays;
    }
    py::array rows = writeable(out, dtype_, shape_of(count), true);
    auto* data = static_cast<unsigned char*>(rows.mutable_data());
    const std::size_t bytes = decoder_.length() * size_of(stored_);
    for (std::size_t m = 0; m < count; ++m) {
      arrays.emplace_back(dtype_, shape_, std::vector<std::int64_t>{}, data + m * bytes, rows);
    }
    return arrays;
  }

  const std::vector<std::int64_t> shape_;
  const py::dtype dtype_;
  const DType stored_;
  Decoder decoder_;
  const bool release_gil_;
  const bool made_;
};

}  // namespace
}  // namespace codedinv
