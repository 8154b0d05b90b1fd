// The process group of ranks that exchange tensors of the CPU.
#define USE_C10D_GLOO
#include "bridge.h"
#include "process_group.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace {

std::shared_ptr<gloo::transport::Device> make_device(const char* interface, const char* hostname) {
  if (interface != nullptr) return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  if (hostname != nullptr) return c10d::ProcessGroupGloo::createDeviceForHostname(hostname);
  return c10d::ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

// `interface` and `hostname` choose the local address to bind; either may be null.
extern "C" FnetError* fnet_gloo_new(FnetStore* store, int rank, int size, int64_t timeout_ms, const char* interface,
                                    const char* hostname, FnetGroup** out) {
  return fnet::guarded(
      [&] {
        auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
        options->devices.push_back(make_device(interface, hostname));
        // One thread keeps collectives in the order in which they were started.
        options->threads = 1;
        auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, size, options);
        auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, rank, size);
        group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
        group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::GLOO, backend);
        *out = new FnetGroup{group};
      },
      FnetErrorKind::kCollective);
}
