// The process group of ranks that exchange tensors of the CPU.
#define USE_C10D_GLOO
#include "bridge.h"
#include "process_group.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <set>

namespace {

using Clock = std::chrono::steady_clock;
using c10::ivalue::Future;

// How long collectives whose connections were cut may take to end by themselves.
constexpr auto kLetGo = std::chrono::seconds(1);

// A collective of Gloo that can be ended from outside.
class Collective : public c10d::Work {
 public:
  Collective(int rank, const c10d::Work& work, const Future& future)
      : Work(rank, work.retrieveOpType()), future_(c10::make_intrusive<Future>(future.elementType())) {}

  c10::intrusive_ptr<Future> getFuture() override { return future_; }

  // Called once.
  void end(const std::exception_ptr& error, c10::IValue value) {
    if (error) {
      future_->setError(error);
    } else {
      future_->markCompleted(std::move(value));
    }
    finish(error);
  }

 private:
  const c10::intrusive_ptr<Future> future_;
};

// The collectives that run; who takes one out ends it. Outlives the group, for Gloo's thread may still be at the end of one.
class Running {
 public:
  // Starts one by `gloo`, unless the group has been aborted.
  template <class Start>
  static c10::intrusive_ptr<c10d::Work> start(const std::shared_ptr<Running>& running, int rank, Start&& gloo) {
    c10::intrusive_ptr<Collective> collective;
    c10::intrusive_ptr<Future> future;
    {
      const std::lock_guard<std::mutex> lock(running->mutex_);
      if (running->aborted_) throw std::runtime_error("the process group has been aborted");
      const auto work = gloo();
      future = work->getFuture();
      collective = c10::make_intrusive<Collective>(rank, *work, *future);
      running->collectives_.insert(collective);
    }
    // Called at once if Gloo is done already.
    future->addCallback([running, collective](Future& done) {
      if (!running->take(collective)) return;
      const auto error = done.exception_ptr();
      collective->end(error, error ? c10::IValue() : done.constValue());
    });
    return collective;
  }

  // Returns when each has ended or is about to.
  void abort() {
    std::unique_lock<std::mutex> lock(mutex_);
    aborted_ = true;
    taken_.wait_until(lock, Clock::now() + kLetGo, [this] { return collectives_.empty(); });
    const auto left = std::move(collectives_);
    collectives_.clear();
    lock.unlock();
    const auto error =
        std::make_exception_ptr(std::runtime_error("the collective was broken off while it waited for another rank"));
    for (const auto& collective : left) collective->end(error, {});
  }

 private:
  bool take(const c10::intrusive_ptr<Collective>& collective) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool was_there = collectives_.erase(collective) > 0;
    taken_.notify_all();
    return was_there;
  }

  std::mutex mutex_;
  std::condition_variable taken_;
  std::set<c10::intrusive_ptr<Collective>> collectives_;
  bool aborted_ = false;
};

// Gloo does not tell who waits for the rest of a tensor that the connection is gone: a wait of that kind would go on until
// the deadline. This one ends it in `abort`, which is called after the connections have been cut. Nothing is written to
// the tensors of such a collective any more; Gloo keeps them.
class AbortableGloo : public c10d::ProcessGroupGloo {
 public:
  using ProcessGroupGloo::ProcessGroupGloo;

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    return Running::start(running_, getRank(), [&] { return ProcessGroupGloo::broadcast(tensors, options); });
  }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    return Running::start(running_, getRank(), [&] { return ProcessGroupGloo::allreduce(tensors, options); });
  }

  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                           std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& options) override {
    return Running::start(running_, getRank(), [&] { return ProcessGroupGloo::allgather(outputs, inputs, options); });
  }

  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    return Running::start(running_, getRank(), [&] { return ProcessGroupGloo::barrier(options); });
  }

  void abort() override { running_->abort(); }

 private:
  const std::shared_ptr<Running> running_ = std::make_shared<Running>();
};

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
        auto backend = c10::make_intrusive<AbortableGloo>(store->store, rank, size, options);
        auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, rank, size);
        group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
        group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::GLOO, backend);
        *out = new FnetGroup{group};
      },
      FnetErrorKind::kCollective);
}
