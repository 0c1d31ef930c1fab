// Borrowing a tensor through the DLPack protocol (dmlc/dlpack, ABI of versions 0.x and 1.x).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "axpy.hpp"

namespace codedinv::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null for contiguous
  std::uint64_t byte_offset;
};

struct ManagedTensor {  // capsule "dltensor"
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};

struct ManagedTensorVersioned {  // capsule "dltensor_versioned"
  std::uint32_t major;
  std::uint32_t minor;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// The producer's C functions, capsule "dlpack_exchange_api" of its type (DLPack 1.3; torch since
// 2.10): 0.2 us a tensor, where torch's Python methods take 4 us.
struct ExchangeApi {
  std::uint32_t major;
  std::uint32_t minor;
  void* previous;
  void* allocate;
  void* export_managed;
  void* import_managed;
  int (*export_borrowed)(void* object, Tensor* out);  // may be null
  void* current_stream;
};

// A view of `object`'s memory, valid while both `object` and this live. The capsule keeps its name,
// so it stays the producer's to free. Throws TypeError if `object` does not speak DLPack,
// ValueError if its memory is not the CPU's, it has none, or it refuses to export.
class Borrowed {
 public:
  explicit Borrowed(pybind11::handle object);

  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  const Tensor* operator->() const { return tensor_; }
  std::optional<DType> dtype() const;  // none for a type that is no embedding's
  std::string dtype_text() const;      // such as "int64"
  const unsigned char* data() const;
  bool contiguous() const;                    // in row-major order, and aligned
  std::vector<unsigned char> packed() const;  // a row-major copy

 private:
  bool borrow_by_exchange_api(pybind11::handle object);
  void borrow_by_capsule(pybind11::handle object);
  void check_memory(pybind11::handle object) const;

  Tensor own_{};  // filled by the exchange API
  pybind11::object capsule_;
  const Tensor* tensor_;
};

}  // namespace codedinv::dlpack
