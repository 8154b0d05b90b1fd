// What every source file of the bridge shares: how tensors and errors cross the C ABI.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

// A tensor as tch holds it: a pointer to a heap-allocated at::Tensor. Results are owned by the caller.
using TensorPtr = at::Tensor*;

// Kinds of errors; the numbers are repeated in src/error.rs.
enum class FnetErrorKind : int32_t {
  kOther = 0,
  kInvalid = 1,      // an argument that the function does not accept
  kOutOfMemory = 2,  // host or device memory
  kCollective = 3,   // a peer, the store, or a collective
  kEnvironment = 4,  // a library, a device or a driver
};

// An error on its way to Rust; released by fnet_error_free.
struct FnetError {
  FnetErrorKind kind;
  int32_t device_code;  // CUDA's number of the error; 0 where there is none
  char* message;
};

namespace fnet {

// Raised for arguments that a function does not accept.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Raised when the machine lacks a library, a device or a driver.
struct EnvironmentFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Turns the exception in flight into an error; `fallback` is the kind of exceptions of no special type.
FnetError* current_error(FnetErrorKind fallback) noexcept;

// Runs `body`; returns null, or the error that came out of it.
template <class Body>
FnetError* guarded(Body&& body, FnetErrorKind fallback = FnetErrorKind::kOther) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return current_error(fallback);
  }
}

// Copies the handles of `count` tensors.
inline std::vector<at::Tensor> to_vector(const TensorPtr* tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) result.push_back(*tensors[i]);
  return result;
}

}  // namespace fnet
