// The Python module. This file, py_decoder.hpp and dlpack.cpp are all that knows Python.
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "py_decoder.hpp"

namespace py = pybind11;

namespace codedinv {
namespace {

static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "codedinv builds on 64-bit machines");

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : compiled_kernels()) {
    if (kernels->supported()) names.emplace_back(kernels->name);
  }
  return names;
}

// push(slot, embedding, *, check=True) by Python's own calling convention: pybind11's costs 0.15 us
// more, of a call that takes 0.3.
void parse_push(PyObject* const* arguments, Py_ssize_t count, PyObject* names, PyObject** parsed) {
  static PyObject* const known[] = {PyUnicode_InternFromString("slot"),
                                    PyUnicode_InternFromString("embedding"),
                                    PyUnicode_InternFromString("check")};
  if (count > 2) {
    throw py::type_error("push: expected slot and embedding, got " + std::to_string(count) +
                         " positional arguments");
  }
  std::copy(arguments, arguments + count, parsed);
  for (Py_ssize_t i = 0; names != nullptr && i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    const auto* at = std::find_if(std::begin(known), std::end(known), [&](PyObject* candidate) {
      return candidate == name || PyUnicode_Compare(candidate, name) == 0;
    });
    if (at == std::end(known) || parsed[at - known] != nullptr) {
      throw py::type_error("push: unexpected or repeated argument '" +
                           py::str(py::handle(name)).cast<std::string>() + "'");
    }
    parsed[at - known] = arguments[count + i];
  }
  for (int i = 0; i < 2; ++i) {
    if (parsed[i] != nullptr) continue;
    throw py::type_error("push: missing argument '" +
                         py::str(py::handle(known[i])).cast<std::string>() + "'");
  }
}

PyObject* push(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  try {
    // The method descriptor has checked the type of `self`.
    const auto* instance = reinterpret_cast<py::detail::instance*>(self);
    if (!instance->simple_layout || instance->simple_value_holder[0] == nullptr) {
      throw py::type_error(kNotMade);
    }
    auto* decoder = static_cast<PyDecoder*>(instance->simple_value_holder[0]);
    PyObject* parsed[3] = {};
    parse_push(arguments, count, names, parsed);
    const int check = parsed[2] == nullptr ? 1 : PyObject_IsTrue(parsed[2]);
    if (check < 0) return nullptr;
    decoder->push(parsed[0], parsed[1], check == 1);
    Py_RETURN_NONE;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Adds `push` to the class as the method that it would be in a type written in C.
void add_push(const py::object& type) {
  static PyMethodDef method = {
      "push", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&push)),
      METH_FASTCALL | METH_KEYWORDS,
      "push($self, /, slot, embedding, *, check=True)\n--\n\nTakes one result."};
  type.attr("push") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &method));
}

}  // namespace

PYBIND11_MODULE(_decoder, module) {
  module.doc() = "C++ core of codedinv.coding.StreamingDecoder.";
  module.attr("LARGEST_NOISE") = Decoder::kLargestNoise;
  py::enum_<DType>(module, "Stored")
      .value("f32", DType::f32)
      .value("f64", DType::f64)
      .value("f16", DType::f16)
      .value("bf16", DType::bf16);
  py::class_<PyDecoder> type(module, "Decoder");
  add_push(type);
  type.def(py::init<std::vector<double>, std::size_t, std::size_t, std::vector<std::int64_t>,
                    py::dtype, DType>(),
           py::arg("coefficients"), py::arg("k"), py::arg("r"), py::arg("shape"), py::arg("dtype"),
           py::arg("stored"))
      .def_property_readonly("ready", &PyDecoder::ready)
      .def_property_readonly("missing", &PyDecoder::missing)
      .def("estimate", &PyDecoder::estimate, py::arg("slot"))
      .def("recover", &PyDecoder::recover, py::arg("out") = py::none())
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
