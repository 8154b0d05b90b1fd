// CUDA through libtorch's device-independent interfaces: no CUDA header, no link to libtorch_cuda.
#include "bridge.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <dlfcn.h>

// The same numbers as cuda::MemoryStatistics.
struct FnetMemoryStatistics {
  int64_t allocated, allocated_peak, reserved, reserved_peak;
};

// The path of the libtorch_cpu that this process has loaded; valid as long as the process runs.
extern "C" const char* fnet_libtorch_path() {
  Dl_info info{};
  // Any symbol that libtorch_cpu exports will do.
  if (dladdr(reinterpret_cast<const void*>(&at::accelerator::deviceCount), &info) == 0) return nullptr;
  return info.dli_fname;
}

// Number of devices that the loaded libtorch_cuda can use. Must not be called before libtorch_cuda is loaded:
// libtorch remembers the first answer about its hooks.
extern "C" FnetError* fnet_cuda_device_count(int* out) {
  return fnet::guarded([&] { *out = at::detail::getCUDAHooks().getNumGPUs(); });
}

extern "C" FnetError* fnet_cuda_set_device(int device) {
  return fnet::guarded([&] {
    // Once for the process, as libtorch itself does it before the first tensor.
    at::globalContext().lazyInitDevice(at::kCUDA);
    at::accelerator::setDeviceIndex(static_cast<c10::DeviceIndex>(device));
  });
}

extern "C" FnetError* fnet_cuda_synchronize(int device) {
  return fnet::guarded([&] { at::accelerator::synchronizeDevice(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" FnetError* fnet_cuda_memory(int device, FnetMemoryStatistics* out) {
  return fnet::guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto stats = at::accelerator::getDeviceStats(index);
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *out = {stats.allocated_bytes[aggregate].current, stats.allocated_bytes[aggregate].peak,
            stats.reserved_bytes[aggregate].current,  stats.reserved_bytes[aggregate].peak};
  });
}

extern "C" FnetError* fnet_cuda_reset_peak(int device) {
  return fnet::guarded([&] { at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" FnetError* fnet_cuda_empty_cache() {
  return fnet::guarded([&] { at::accelerator::emptyCache(); });
}
