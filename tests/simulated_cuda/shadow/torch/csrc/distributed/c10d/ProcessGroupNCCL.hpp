// The part of c10d::ProcessGroupNCCL that the product's NCCL part uses, so that its source is compiled as it is.
// Carried between processes of one machine by shared memory; see nccl.cpp.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <memory>

namespace c10d {

class __attribute__((visibility("default"))) ProcessGroupNCCL : public Backend {
 public:
  struct Options : Backend::Options {
    Options() : Backend::Options("nccl", std::chrono::minutes(10)) {}
    static c10::intrusive_ptr<Options> create() { return c10::make_intrusive<Options>(); }
    bool is_high_priority_stream = false;
  };

  ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options> options = Options::create());
  ~ProcessGroupNCCL() override;

  const std::string getBackendName() const override { return "nccl"; }
  c10::intrusive_ptr<Work> broadcast(std::vector<at::Tensor>& tensors, const BroadcastOptions& options) override;
  c10::intrusive_ptr<Work> allreduce(std::vector<at::Tensor>& tensors, const AllreduceOptions& options) override;
  c10::intrusive_ptr<Work> allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                     const AllgatherOptions& options) override;
  c10::intrusive_ptr<Work> barrier(const BarrierOptions& options) override;
  void setTimeout(std::chrono::milliseconds timeout) override { options_->timeout = timeout; }
  void eagerConnectSingleDevice(at::Device device) override;
  ErrorType getError() override;
  void abort() override;
  void shutdown() override;

 private:
  c10::intrusive_ptr<Work> start(struct Collective collective, std::vector<at::Tensor> tensors, c10::IValue value);

  const c10::intrusive_ptr<Store> store_;
  const c10::intrusive_ptr<Options> options_;
  std::shared_ptr<class Communicator> communicator_;
};

}  // namespace c10d
