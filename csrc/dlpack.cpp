#include "dlpack.hpp"

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

}  // namespace

Borrowed::Borrowed(py::handle object) {
  if (borrow_by_exchange_api(object)) {
    tensor_ = &own_;
    check_device(own_.device.type);
  } else {
    borrow_by_capsule(object);
  }
}

bool Borrowed::borrow_by_exchange_api(py::handle object) {
  const py::object capsule =
      py::getattr(py::type::handle_of(object), "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return false;
  const auto* api =
      static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api->major != 1 || api->export_borrowed == nullptr) return false;
  if (api->export_borrowed(object.ptr(), &own_) != 0) {
    py::error_already_set error;
    refuse(error);
  }
  // torch 2.13 exports a lazily negated tensor, such as z.conj().imag, with the wrong sign.
  if (py::hasattr(object, "is_neg") && py::bool_(object.attr("is_neg")())) {
    throw py::value_error("embedding: expected a tensor without negative bit: call resolve_neg()");
  }
  return true;
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
