// Errors on their way from C++ to Rust, which tells by message and number what those of no special type are about.
#include "bridge.h"

namespace fnet {
namespace {

FnetError* make_error(FnetErrorKind kind, const char* message, int32_t device_code = 0) noexcept {
  auto* error = static_cast<FnetError*>(std::malloc(sizeof(FnetError)));
  if (error == nullptr) std::abort();
  error->kind = kind;
  error->device_code = device_code;
  error->message = strdup(message);
  return error;
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
  } catch (const c10::AcceleratorError& error) {
    return make_error(fallback, error.what_without_backtrace(), error.get_error_code());
  } catch (const c10::DistError& error) {
    return make_error(FnetErrorKind::kCollective, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    return make_error(fallback, error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return make_error(FnetErrorKind::kOutOfMemory, "the host is out of memory");
  } catch (const std::exception& error) {
    return make_error(fallback, error.what());
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
