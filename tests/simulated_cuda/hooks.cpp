// What libtorch_cuda tells libtorch_cpu of itself.
#include "sim.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

namespace at {

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override { sim::check_usable(); }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return sim::device_count() > 0; }
  bool hasCUDA() const override { return sim::device_count() > 0; }
  bool hasCUDART() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  long versionCuDNN() const override { return 91900; }
  // None is large enough: the CPU has no kernel in place of cuDNN's, but one for libtorch's own.
  double batchnormMinEpsilonCuDNN() const override { return 1e30; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  const Generator& getDefaultGenerator(DeviceIndex i) const override { return sim::default_generator(i); }
  Generator getNewGenerator(DeviceIndex i) const override { return make_generator<sim::Generator>(i < 0 ? sim::current_device() : i); }
  Device getDeviceFromPtr(void* p) const override {
    TORCH_CHECK(sim::is_device_address(p), "The specified pointer resides on host memory and is not registered with any CUDA device.");
    return Device(kCUDA, static_cast<DeviceIndex>(sim::device_of_address(p)));
  }
  bool isPinnedPtr(const void* p) const override { return sim::is_pinned(p); }
  Allocator* getPinnedMemoryAllocator() const override { return &sim::pinned(); }
  Allocator* getCUDADeviceAllocator() const override { return sim::device_allocator(); }
  std::string showConfig() const override { return "simulated CUDA"; }
  int getNumGPUs() const override { return sim::device_count(); }
  DeviceIndex deviceCount() const override { return static_cast<DeviceIndex>(sim::device_count()); }
  DeviceIndex current_device() const override { return sim::current_device(); }
  DeviceIndex getCurrentDevice() const override { return sim::current_device(); }
  void setCurrentDevice(DeviceIndex i) const override { sim::use_device(i); }
  DeviceIndex exchangeDevice(DeviceIndex i) const override { return sim::Guard().exchangeDevice(Device(kCUDA, i)).index(); }
  DeviceIndex maybeExchangeDevice(DeviceIndex i) const override { return exchangeDevice(i); }
  void deviceSynchronize(DeviceIndex i) const override { sim::Guard().synchronizeDevice(i); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at

namespace sim {
namespace {

// c10d::Reducer asks for one per kind of device.
struct Timer final : c10d::Timer {
  explicit Timer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const int64_t a = getTimeRef(start), b = getTimeRef(end);
    if (a == c10d::kUnsetTime || b == c10d::kUnsetTime) return std::nullopt;
    return b - a;
  }
};

struct AtLoad {
  AtLoad() {
    c10::SetAllocator(c10::kCUDA, device_allocator(), 1);
    at::setHostAllocator(at::kCUDA, &pinned(), 1);
    register_operators();
    guard_memory();
  }
} at_load;

}  // namespace
}  // namespace sim

namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, sim::Timer)
}
