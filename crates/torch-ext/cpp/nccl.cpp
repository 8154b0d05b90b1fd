// The NCCL backend of a process group: a shared object of its own, loaded only with CUDA.
#define USE_C10D_NCCL
#include "bridge.h"
#include "process_group.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>

namespace {

// What c10d would do by itself about a lost peer is to end the process from a thread of its own. Under a launcher that
// watches the ranks (it hands them a control channel) that is the launcher's decision, so all of it is off unless the
// user asked for it. Without one c10d's own deadline is all there is against a peer that went silent.
void leave_errors_to_the_launcher() {
  if (std::getenv("FNET_CONTROL") == nullptr) return;
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/0);
  setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 0);
  setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", 0);
  setenv("TORCH_NCCL_PROPAGATE_ERROR", "0", 0);
  setenv("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0", 0);
  // After an error the watchdog sleeps four times as long, holding the lock that every collective takes, so that others
  // may dump what they know. Nobody does.
  setenv("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "0", 0);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) FnetError* fnet_nccl_add(FnetGroup* group, FnetStore* store,
                                                                           int rank, int size, int device,
                                                                           int64_t timeout_ms) {
  return fnet::guarded(
      [&] {
        leave_errors_to_the_launcher();
        auto options = c10d::ProcessGroupNCCL::Options::create();
        options->timeout = std::chrono::milliseconds(timeout_ms);
        auto keys = c10::make_intrusive<c10d::PrefixStore>("nccl", store->store);
        auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, rank, size, options);
        const at::Device cuda(at::kCUDA, static_cast<c10::DeviceIndex>(device));
        backend->setBoundDeviceId(cuda);
        // Connect now, so that a fault of the network or of NCCL is reported at the start and not in the first step.
        backend->eagerConnectSingleDevice(cuda);
        group->group->setBackend(c10::kCUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
      },
      FnetErrorKind::kCollective);
}
