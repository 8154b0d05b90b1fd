// CUDA through libtorch's device-independent interfaces: no CUDA header, no link to libtorch_cuda.
#include "bridge.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

// The same numbers as cuda::MemoryStatistics.
struct FnetMemoryStatistics {
  int64_t allocated, allocated_peak, reserved, reserved_peak;
};

struct FnetEvent {
  c10::Event event;
};

struct FnetStream {
  c10::Stream stream;
};

namespace {

c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::kCUDA); }

FnetEvent* record(const c10::Stream& stream) {
  auto event = std::make_unique<FnetEvent>(FnetEvent{c10::Event(c10::kCUDA)});
  event->event.record(stream);
  return event.release();
}

}  // namespace

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

extern "C" FnetError* fnet_cuda_memory(int device, FnetMemoryStatistics* out) {
  return fnet::guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto stats = at::accelerator::getDeviceStats(index);
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *out = {stats.allocated_bytes[aggregate].current, stats.allocated_bytes[aggregate].peak,
            stats.reserved_bytes[aggregate].current,  stats.reserved_bytes[aggregate].peak};
  });
}

// The present end of the current stream.
extern "C" FnetError* fnet_event_record(int device, FnetEvent** out) {
  return fnet::guarded([&] { *out = record(at::accelerator::getCurrentStream(static_cast<c10::DeviceIndex>(device))); });
}

extern "C" FnetError* fnet_event_is_reached(FnetEvent* event, bool* out) {
  return fnet::guarded([&] { *out = event->event.query(); });
}

extern "C" FnetError* fnet_event_free(FnetEvent* event) {
  return fnet::guarded([&] { delete event; });
}

// One of libtorch's own, which wait for no other stream unless they are told to. The high priority keeps it out of the
// queue of a kernel that does not end.
extern "C" FnetError* fnet_stream_new(int device, FnetStream** out) {
  return fnet::guarded([&] {
    const c10::Device on(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    *out = new FnetStream{cuda().getStreamFromGlobalPool(on, /*isHighPriority=*/true)};
  });
}

extern "C" FnetError* fnet_stream_wait(FnetStream* stream, FnetEvent* event) {
  return fnet::guarded([&] { event->event.block(stream->stream); });
}

// Starts copying `count` values of `from`, in the order of memory and beginning with value `start`, to the begin of `to`,
// pinned bytes; nothing is allocated on the device. The event that is written to `out` is reached when they are there.
extern "C" FnetError* fnet_stream_copy(FnetStream* stream, TensorPtr from, size_t start, size_t count, TensorPtr to,
                                       FnetEvent** out) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    if (!from->is_non_overlapping_and_dense()) throw fnet::InvalidArgument("a tensor with gaps in memory is not copied");
    const auto row = from->detach().as_strided({from->numel()}, {1});
    const auto values = row.narrow(0, static_cast<int64_t>(start), static_cast<int64_t>(count));
    const auto bytes = values.numel() * values.element_size();
    const auto target = to->narrow(0, 0, bytes).view(values.scalar_type());
    const c10::StreamGuard guard(stream->stream);
    target.copy_(values, /*non_blocking=*/true);
    *out = record(stream->stream);
  });
}

extern "C" FnetError* fnet_stream_free(FnetStream* stream) {
  return fnet::guarded([&] { delete stream; });
}

extern "C" FnetError* fnet_pinned_bytes(size_t count, TensorPtr* out) {
  return fnet::guarded([&] {
    const auto options = at::TensorOptions(at::kByte).pinned_memory(true);
    *out = new at::Tensor(at::empty({static_cast<int64_t>(count)}, options));
  });
}
