// Automatic casts to a narrow type, one region at a time.
#include "bridge.h"

#include <ATen/autocast_mode.h>

namespace {

at::DeviceType device_type(bool cuda) { return cuda ? at::kCUDA : at::kCPU; }

}  // namespace

// Enters a region; `was_enabled` and `previous_kind` take what fnet_autocast_leave must bring back.
extern "C" FnetError* fnet_autocast_enter(bool cuda, int8_t kind, bool* was_enabled, int8_t* previous_kind) {
  return fnet::guarded([&] {
    const auto device = device_type(cuda);
    *was_enabled = at::autocast::is_autocast_enabled(device);
    *previous_kind = static_cast<int8_t>(at::autocast::get_autocast_dtype(device));
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(kind));
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

extern "C" FnetError* fnet_autocast_leave(bool cuda, bool was_enabled, int8_t previous_kind) {
  return fnet::guarded([&] {
    const auto device = device_type(cuda);
    // The cache holds casts of parameters, which the next optimizer step makes stale.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(previous_kind));
    at::autocast::set_autocast_enabled(device, was_enabled);
  });
}
