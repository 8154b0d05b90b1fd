// State of libtorch's own random-number generators.
#include "bridge.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

namespace {

at::Generator default_generator(int device) {
  if (device < 0) return at::detail::getDefaultCPUGenerator();
  return at::globalContext().defaultGenerator(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
}

}  // namespace

// `device` is -1 for the CPU, else the index of a CUDA device.
extern "C" FnetError* fnet_generator_state(int device, TensorPtr* out) {
  return fnet::guarded([&] {
    at::Generator generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

extern "C" FnetError* fnet_set_generator_state(int device, TensorPtr state) {
  return fnet::guarded([&] {
    at::Generator generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

extern "C" FnetError* fnet_seed_generator(int device, uint64_t seed) {
  return fnet::guarded([&] {
    at::Generator generator = default_generator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}
