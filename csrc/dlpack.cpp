#include "dlpack.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace py = pybind11;

namespace codedinv::dlpack {
namespace {

constexpr std::int32_t kCpu = 1, kCuda = 2, kCudaHost = 3;  // device types
constexpr std::uint8_t kFloat = 2, kBfloat = 4;             // data type codes

const Tensor* tensor_of(const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return &static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* managed = static_cast<ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->major == 1) return &managed->tensor;
    throw py::value_error("embedding: expected DLPack version 1, got " +
                          std::to_string(managed->major));
  }
  throw py::value_error("embedding: __dlpack__ returned no unused DLPack capsule");
}

std::vector<std::int64_t> strides_of(const Tensor& tensor) {
  const std::size_t rank = static_cast<std::size_t>(tensor.ndim);
  if (tensor.strides != nullptr) return {tensor.strides, tensor.strides + rank};
  std::vector<std::int64_t> strides(rank, 1);
  for (std::size_t d = rank; d-- > 1;) strides[d - 1] = strides[d] * tensor.shape[d];
  return strides;
}

// Raises ValueError with the producer's reason, the current Python error, as its cause.
[[noreturn]] void refuse(py::error_already_set& error) {
  const std::string why = py::str(error.value()).cast<std::string>();
  py::raise_from(error, PyExc_ValueError, ("embedding: cannot be read: " + why).c_str());
  throw py::error_already_set();
}

void check_device(int type) {
  if (type == kCpu || type == kCudaHost) return;
  throw py::value_error("embedding: expected memory of the CPU, got DLPack device type " +
                        std::to_string(type) + (type == kCuda ? " (CUDA)" : ""));
}

// What is asked of every tensor of a type: looking it up costs as much as an export.
struct Known {
  py::object type;
  const ExchangeApi* api = nullptr;  // null where it has none
  py::object is_neg;                 // torch's method, None or null where there is none
};

Known looked_up(const py::object& type) {
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return {type, nullptr, {}};
  const auto* api =
      static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api->major != 1 || api->export_borrowed == nullptr) return {type, nullptr, {}};
  return {type, api, py::getattr(type, "is_neg", py::none())};
}

// The types met first are remembered for good, so that no other can take the address of one;
// `other` holds what is said of any further type.
const Known& known_of(PyTypeObject* type, Known& other) {
  static auto* const remembered = new Known[8];  // guarded by the GIL; outlives the interpreter
  auto* object = reinterpret_cast<PyObject*>(type);
  Known* entry = remembered;
  for (; entry != remembered + 8 && entry->type; ++entry) {
    if (entry->type.ptr() == object) return *entry;
  }
  other = looked_up(py::reinterpret_borrow<py::object>(object));
  // The look-up runs Python, which may have remembered a type meanwhile.
  while (entry != remembered + 8 && entry->type) ++entry;
  if (entry != remembered + 8) *entry = other;
  return other;
}

// Result of a method without arguments; null, with no error set, where the object has none.
py::object call_if_there(py::handle object, PyObject* name) {
  PyObject* result = PyObject_CallMethodNoArgs(object.ptr(), name);
  if (result != nullptr) return py::reinterpret_steal<py::object>(result);
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
  PyErr_Clear();
  return {};
}

// Does the process have memory at this address?
bool mapped(std::uintptr_t address) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  return msync(reinterpret_cast<void*>(address / page * page), 1, MS_ASYNC) == 0;
}

std::int64_t elements_of(const Tensor& tensor) {
  std::int64_t count = 1;
  for (std::int32_t d = 0; d < tensor.ndim; ++d) count *= tensor.shape[d];
  return count;
}

}  // namespace

Borrowed::Borrowed(py::handle object) {
  if (borrow_by_exchange_api(object)) {
    tensor_ = &own_;
    check_device(own_.device.type);
  } else {
    borrow_by_capsule(object);
  }
  check_memory(object);
}

bool Borrowed::borrow_by_exchange_api(py::handle object) {
  Known other;
  const Known& known = known_of(Py_TYPE(object.ptr()), other);
  if (known.api == nullptr) return false;
  if (known.api->export_borrowed(object.ptr(), &own_) != 0) {
    py::error_already_set error;
    refuse(error);
  }
  if (!known.is_neg || known.is_neg.is_none()) return true;
  // torch 2.13 exports a lazily negated tensor, such as z.conj().imag, with the wrong sign.
  PyObject* arguments[] = {object.ptr()};
  const auto negated = py::reinterpret_steal<py::object>(
      PyObject_Vectorcall(known.is_neg.ptr(), arguments, 1, nullptr));
  if (!negated) throw py::error_already_set();
  if (negated.ptr() != Py_False) {
    throw py::value_error("embedding: expected a tensor without negative bit: call resolve_neg()");
  }
  return true;
}

// Refuses tensors without memory. The address of a view into a freed storage is its offset there,
// so an address is asked after where it could be one: below 1 TiB.
void Borrowed::check_memory(py::handle object) const {
  const auto address = reinterpret_cast<std::uintptr_t>(data());
  if (elements_of(*tensor_) == 0 || address >= std::uintptr_t{1} << 40) return;
  static PyObject* const storage_offset = PyUnicode_InternFromString("storage_offset");
  const py::object offset = call_if_there(object, storage_offset);
  const std::uintptr_t element = tensor_->dtype.bits / 8;
  const bool freed =
      offset ? address == py::cast<std::uintptr_t>(offset) * element : !mapped(address);
  if (address != 0 && !freed) return;
  throw py::value_error(
      "embedding: expected a tensor with memory, got one of a freed storage, or a fake, functional "
      "or zero tensor");
}

void Borrowed::borrow_by_capsule(py::handle object) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) {
    throw py::type_error(
        "embedding: expected a numpy array, a torch CPU tensor or another DLPack object, got " +
        py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>());
  }
  try {
    // The device is asked first: exporting from an accelerator could synchronise with it.
    check_device(py::int_(py::tuple(object.attr("__dlpack_device__")())[0]));
    capsule_ = object.attr("__dlpack__")();
  } catch (py::error_already_set& error) {
    refuse(error);
  }
  tensor_ = tensor_of(capsule_);
}

std::optional<DType> Borrowed::dtype() const {
  const DataType type = tensor_->dtype;
  if (type.lanes != 1) return std::nullopt;
  if (type.code == kBfloat && type.bits == 16) return DType::bf16;
  if (type.code != kFloat) return std::nullopt;
  switch (type.bits) {
    case 16: return DType::f16;
    case 32: return DType::f32;
    case 64: return DType::f64;
    default: return std::nullopt;
  }
}

std::string Borrowed::dtype_text() const {
  static const char* const names[] = {"int",    "uint",    "float", "handle",
                                      "bfloat", "complex", "bool"};
  const DataType type = tensor_->dtype;
  const std::string name =
      type.code < 7 ? names[type.code] : "DLPack type " + std::to_string(type.code) + " x ";
  return type.code == 6 ? name : name + std::to_string(type.bits);
}

const unsigned char* Borrowed::data() const {
  return static_cast<const unsigned char*>(tensor_->data) + tensor_->byte_offset;
}

bool Borrowed::contiguous() const {
  const std::size_t element = tensor_->dtype.bits / 8;
  if (reinterpret_cast<std::uintptr_t>(data()) % element != 0) return false;
  if (tensor_->strides == nullptr) return true;
  std::int64_t expected = 1;
  for (std::int32_t d = tensor_->ndim; d-- > 0;) {
    if (tensor_->shape[d] != 1 && tensor_->strides[d] != expected) return false;
    expected *= tensor_->shape[d];
  }
  return true;
}

std::vector<unsigned char> Borrowed::packed() const {
  const std::size_t element = tensor_->dtype.bits / 8;
  const std::size_t rank = static_cast<std::size_t>(tensor_->ndim);
  std::size_t count = 1;
  for (std::size_t d = 0; d < rank; ++d) count *= static_cast<std::size_t>(tensor_->shape[d]);
  std::vector<unsigned char> copy(count * element);
  std::vector<std::int64_t> index(rank, 0);
  const std::vector<std::int64_t> strides = strides_of(*tensor_);
  std::int64_t offset = 0;  // of the element at `index`, in elements
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(&copy[i * element], data() + offset * static_cast<std::int64_t>(element), element);
    for (std::size_t d = rank; d-- > 0;) {
      offset += strides[d];
      if (++index[d] < tensor_->shape[d]) break;
      offset -= strides[d] * tensor_->shape[d];
      index[d] = 0;
    }
  }
  return copy;
}

}  // namespace codedinv::dlpack
