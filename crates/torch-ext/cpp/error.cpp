// Errors on their way from C++ to Rust.
#include "bridge.h"

#include <typeinfo>

namespace fnet {
namespace {

FnetError* make_error(FnetErrorKind kind, const char* message) noexcept {
  auto* error = static_cast<FnetError*>(std::malloc(sizeof(FnetError)));
  if (error == nullptr) std::abort();
  error->kind = kind;
  error->message = strdup(message);
  return error;
}

bool speaks_of_memory(const char* message) noexcept {
  // cuBLAS and cuDNN say only that an allocation of their own failed.
  for (const char* words : {"out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"}) {
    if (std::strstr(message, words) != nullptr) return true;
  }
  return false;
}

// Gloo's exception types are not declared in any installed header; their messages carry the source path.
bool speaks_of_collective(const char* message) noexcept {
  return std::strstr(message, "gloo/") != nullptr || std::strstr(message, "NCCL") != nullptr;
}

FnetErrorKind classify(const char* message, FnetErrorKind fallback) noexcept {
  if (speaks_of_memory(message)) return FnetErrorKind::kOutOfMemory;
  if (speaks_of_collective(message)) return FnetErrorKind::kCollective;
  return fallback;
}

}  // namespace

FnetError* current_error(FnetErrorKind fallback) noexcept {
  try {
    throw;
  } catch (const InvalidArgument& error) {
    return make_error(FnetErrorKind::kInvalid, error.what());
  } catch (const EnvironmentFault& error) {
    return make_error(FnetErrorKind::kEnvironment, error.what());
  } catch (const c10::OutOfMemoryError& error) {
    return make_error(FnetErrorKind::kOutOfMemory, error.what_without_backtrace());
  } catch (const c10::DistError& error) {
    // NCCL tells in this way of a device without memory for its buffers, too.
    const char* message = error.what_without_backtrace();
    return make_error(classify(message, FnetErrorKind::kCollective), message);
  } catch (const c10::Error& error) {
    const char* message = error.what_without_backtrace();
    return make_error(classify(message, fallback), message);
  } catch (const std::bad_alloc&) {
    return make_error(FnetErrorKind::kOutOfMemory, "the host is out of memory");
  } catch (const std::exception& error) {
    return make_error(classify(error.what(), fallback), error.what());
  } catch (...) {
    return make_error(fallback, "an exception of unknown type");
  }
}

}  // namespace fnet

extern "C" void fnet_error_free(FnetError* error) {
  if (error == nullptr) return;
  std::free(error->message);
  std::free(error);
}
