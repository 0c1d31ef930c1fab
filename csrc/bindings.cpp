// The only file that knows Python: checks what comes in, hands contiguous rows to Decoder.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
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

std::string shape_text(const std::int64_t* dims, std::size_t count) {
  std::string text = "(";
  for (std::size_t d = 0; d < count; ++d) text += (d ? ", " : "") + std::to_string(dims[d]);
  return text + (count == 1 ? ",)" : ")");
}

class PyDecoder {
 public:
  PyDecoder(std::vector<double> coefficients, std::size_t k, std::size_t r,
            std::vector<std::int64_t> shape, py::dtype dtype, DType stored)
      : shape_(std::move(shape)),
        dtype_(std::move(dtype)),
        stored_(stored),
        decoder_(std::move(coefficients), k, r, length_of(shape_), stored),
        release_gil_(decoder_.length() * size_of(stored) >= kReleaseGilBytes) {}

  void push(py::handle slot, py::handle embedding) {
    const std::size_t index = slot_index(slot, decoder_.n());
    if (py::detail::npy_api::get().PyArray_Check_(embedding.ptr())) {
      push_array(index, embedding);
    } else {
      push_dlpack(index, embedding);
    }
  }

  bool ready() const { return decoder_.ready(); }
  std::vector<std::size_t> missing() const { return decoder_.missing(); }

  py::array estimate(py::handle slot) const {
    const std::size_t index = slot_index(slot, decoder_.k());
    Decoder::Row row = without_gil([&] { return decoder_.estimate(index); });
    return to_array(std::move(row));
  }

  py::dict recover() const {
    auto rows = without_gil([&] { return decoder_.recover(); });
    py::dict result;
    for (auto& [slot, row] : rows) result[py::int_(slot)] = to_array(std::move(row));
    return result;
  }

  py::array_t<double> residual() const {
    const auto norms = without_gil([&] { return decoder_.residual(); });
    return py::array_t<double>(static_cast<py::ssize_t>(norms.size()), norms.data());
  }

  py::array syndrome(const py::object& out) const {
    std::vector<std::int64_t> shape = shape_;
    shape.insert(shape.begin(), static_cast<std::int64_t>(decoder_.r()));
    const py::dtype wide = stored_ == DType::f64 ? py::dtype::of<double>() : py::dtype::of<float>();
    py::array rows = out.is_none() ? py::array(wide, shape) : checked_out(out, wide, shape);
    void* data = rows.mutable_data();
    without_gil([&] { decoder_.syndrome(data); });
    return rows;
  }

  void reset() {
    without_gil([&] { decoder_.reset(); });
  }

  py::tuple shape() const { return py::tuple(py::cast(shape_)); }
  py::dtype dtype() const { return dtype_; }

 private:
  static std::size_t length_of(const std::vector<std::int64_t>& shape) {
    std::size_t length = 1;
    for (std::int64_t dim : shape) {
      if (dim < 1) {
        throw py::value_error("shape: expected sizes of 1 or more, got " +
                              shape_text(shape.data(), shape.size()));
      }
      length *= static_cast<std::size_t>(dim);
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

  void push_row(std::size_t slot, const void* row) {
    without_gil([&] { decoder_.push(slot, row); });
  }

  void push_array(std::size_t slot, py::handle embedding) {
    const auto* array = py::detail::array_proxy(embedding.ptr());
    if (array->descr != dtype_.ptr() && !dtype_.equal(py::handle(array->descr))) {
      throw_dtype(py::str(py::handle(array->descr)));
    }
    // npy_intp is 64 bits wide wherever this builds (checked below).
    const auto* dims = reinterpret_cast<const std::int64_t*>(array->dimensions);
    check_shape(dims, static_cast<std::size_t>(array->nd));
    if ((array->flags & kContiguousAligned) == kContiguousAligned) {
      push_row(slot, array->data);
      return;
    }
    const py::object copy = embedding.attr("copy")("C");
    push_row(slot, py::detail::array_proxy(copy.ptr())->data);
  }

  void push_dlpack(std::size_t slot, py::handle embedding) {
    const dlpack::Borrowed tensor(embedding);
    if (tensor.dtype() != stored_) throw_dtype(tensor.dtype_text());
    check_shape(tensor->shape, static_cast<std::size_t>(tensor->ndim));
    if (tensor.contiguous()) {
      push_row(slot, tensor.data());
      return;
    }
    const std::vector<unsigned char> copy = tensor.packed();
    push_row(slot, copy.data());
  }

  // `out` if it is an array of this dtype and shape that can be written row after row.
  static py::array checked_out(const py::object& out, const py::dtype& dtype,
                               const std::vector<std::int64_t>& shape) {
    const std::string wanted = "out: expected a writeable, contiguous array of " +
                               py::str(dtype).cast<std::string>() + " and shape " +
                               shape_text(shape.data(), shape.size()) + ", got ";
    if (!py::isinstance<py::array>(out)) {
      throw py::type_error(wanted +
                           py::str(py::type::handle_of(out).attr("__name__")).cast<std::string>());
    }
    const auto array = py::reinterpret_borrow<py::array>(out);
    const auto* dims = reinterpret_cast<const std::int64_t*>(array.shape());
    const std::size_t rank = static_cast<std::size_t>(array.ndim());
    const bool same_shape = rank == shape.size() && std::equal(shape.begin(), shape.end(), dims);
    const bool flat = (array.flags() & kContiguousAligned) == kContiguousAligned;
    if (!same_shape || !flat || !array.writeable() || !array.dtype().equal(dtype)) {
      throw py::value_error(
          wanted + (array.writeable() ? "" : "read-only ") + (flat ? "" : "strided or unaligned ") +
          py::str(array.dtype()).cast<std::string>() + " of shape " + shape_text(dims, rank));
    }
    return array;
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

  py::array to_array(Decoder::Row row) const {
    unsigned char* data = row.get();
    py::capsule owner(data, [](void* bytes) { delete[] static_cast<unsigned char*>(bytes); });
    row.release();
    return py::array(dtype_, shape_, {}, data, owner);
  }

  const std::vector<std::int64_t> shape_;
  const py::dtype dtype_;
  const DType stored_;
  Decoder decoder_;
  const bool release_gil_;
};

static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "codedinv builds on 64-bit machines");

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : compiled_kernels()) {
    if (kernels->supported()) names.emplace_back(kernels->name);
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_decoder, module) {
  module.doc() = "C++ core of codedinv.coding.StreamingDecoder.";
  py::enum_<DType>(module, "Stored")
      .value("f32", DType::f32)
      .value("f64", DType::f64)
      .value("f16", DType::f16)
      .value("bf16", DType::bf16);
  py::class_<PyDecoder>(module, "Decoder")
      .def(py::init<std::vector<double>, std::size_t, std::size_t, std::vector<std::int64_t>,
                    py::dtype, DType>(),
           py::arg("coefficients"), py::arg("k"), py::arg("r"), py::arg("shape"), py::arg("dtype"),
           py::arg("stored"))
      .def("push", &PyDecoder::push, py::arg("slot"), py::arg("embedding"))
      .def_property_readonly("ready", &PyDecoder::ready)
      .def_property_readonly("missing", &PyDecoder::missing)
      .def("estimate", &PyDecoder::estimate, py::arg("slot"))
      .def("recover", &PyDecoder::recover)
      .def("residual", &PyDecoder::residual)
      .def("syndrome", &PyDecoder::syndrome, py::arg("out") = py::none())
      .def("reset", &PyDecoder::reset)
      .def_property_readonly("shape", &PyDecoder::shape)
      .def_property_readonly("dtype", &PyDecoder::dtype);
  module.def(
      "instruction_set", [] { return std::string(active_kernels().name); },
      "Name of the variant of the inner loops in use.");
  module.def("instruction_sets", &instruction_sets,
             "Names of the variants that this build has and this machine supports, best first.");
}

}  // namespace codedinv
