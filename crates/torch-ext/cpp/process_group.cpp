// Collectives over a process group, and waiting for them.
#include "process_group.h"

#include "bridge.h"

#include <torch/csrc/autograd/custom_function.h>

namespace fnet {
namespace {

constexpr auto kCollective = FnetErrorKind::kCollective;

std::chrono::milliseconds milliseconds(int64_t count) { return std::chrono::milliseconds(count); }

// Collectives treat a tensor as a row of values in the order of memory.
void check_dense(const at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) {
    throw InvalidArgument("a collective needs a tensor without gaps or overlaps in memory: make it contiguous");
  }
}

c10d::ReduceOp reduction(int op) {
  switch (op) {
    case 0: return c10d::ReduceOp::SUM;
    case 1: return c10d::ReduceOp::SUM;  // and a division at the end
    case 2: return c10d::ReduceOp::MIN;
    case 3: return c10d::ReduceOp::MAX;
    default: throw InvalidArgument("all-reduce: unknown operation " + std::to_string(op));
  }
}

// Called with true before a sum, and with false after one that has not failed.
using Watch = void (*)(bool);

// Sums over the ranks; the gradient of a sum over ranks is the sum of the ranks' gradients.
class AllReduceSum : public torch::autograd::Function<AllReduceSum> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const c10::intrusive_ptr<c10d::ProcessGroup>& group, int64_t watch) {
    context->saved_data["group"] = c10::IValue::make_capsule(group);
    context->saved_data["watch"] = watch;
    return reduce(input, *group, watch);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto capsule = context->saved_data["group"].toCapsule();
    const int64_t watch = context->saved_data["watch"].toInt();
    return {reduce(grads[0], static_cast<c10d::ProcessGroup&>(*capsule), watch), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor reduce(const at::Tensor& input, c10d::ProcessGroup& group, int64_t watch) {
    const auto tell = reinterpret_cast<Watch>(watch);
    std::vector<at::Tensor> tensors{input.clone(at::MemoryFormat::Contiguous)};
    tell(true);
    group.allreduce(tensors)->wait();
    tell(false);
    return tensors[0];
  }
};

}  // namespace
}  // namespace fnet

// `op`: 0 sum, 1 mean, 2 minimum, 3 maximum. The tensor is changed in place; it must live until the work is done.
extern "C" FnetError* fnet_group_all_reduce(FnetGroup* group, TensorPtr tensor, int op, int64_t timeout_ms,
                                            FnetWork** out) {
  return fnet::guarded(
      [&] {
        fnet::check_dense(*tensor);
        c10d::AllreduceOptions options;
        options.reduceOp = fnet::reduction(op);
        options.timeout = fnet::milliseconds(timeout_ms);
        std::vector<at::Tensor> tensors{tensor->detach()};
        auto work = group->group->allreduce(tensors, options);
        *out = new FnetWork{work, op == 1 ? tensors[0] : at::Tensor(), static_cast<double>(group->group->getSize())};
      },
      fnet::kCollective);
}

extern "C" FnetError* fnet_group_broadcast(FnetGroup* group, TensorPtr tensor, int root, int64_t timeout_ms,
                                           FnetWork** out) {
  return fnet::guarded(
      [&] {
        fnet::check_dense(*tensor);
        c10d::BroadcastOptions options;
        options.rootRank = root;
        options.timeout = fnet::milliseconds(timeout_ms);
        std::vector<at::Tensor> tensors{tensor->detach()};
        *out = new FnetWork{group->group->broadcast(tensors, options), {}, 1.0};
      },
      fnet::kCollective);
}

// `outputs`: one contiguous tensor per rank, shaped like `input`.
extern "C" FnetError* fnet_group_all_gather(FnetGroup* group, const TensorPtr* outputs, size_t count, TensorPtr input,
                                            int64_t timeout_ms, FnetWork** out) {
  return fnet::guarded(
      [&] {
        c10d::AllgatherOptions options;
        options.timeout = fnet::milliseconds(timeout_ms);
        std::vector<std::vector<at::Tensor>> lists{fnet::to_vector(outputs, count)};
        std::vector<at::Tensor> inputs{input->detach().contiguous()};
        *out = new FnetWork{group->group->allgather(lists, inputs, options), {}, 1.0};
      },
      fnet::kCollective);
}

// `device` is the CUDA device of this rank, or -1.
extern "C" FnetError* fnet_group_barrier(FnetGroup* group, int device, int64_t timeout_ms, FnetWork** out) {
  return fnet::guarded(
      [&] {
        c10d::BarrierOptions options;
        options.timeout = fnet::milliseconds(timeout_ms);
        if (device >= 0) {
          options.device_ids = {device};
          options.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
        }
        *out = new FnetWork{group->group->barrier(options), {}, 1.0};
      },
      fnet::kCollective);
}

// Blocks until the collective is done or the deadline has passed; with NCCL, too, if it is given a deadline. Without one
// (0) NCCL has the current stream wait, and the host goes on.
extern "C" FnetError* fnet_work_wait(FnetWork* work, int64_t timeout_ms) {
  return fnet::guarded(
      [&] {
        // NCCL's wait for one that has failed would abort it in this thread, which may take for ever.
        if (const auto error = work->work->exception()) std::rethrow_exception(error);
        if (!work->work->wait(fnet::milliseconds(timeout_ms))) throw std::runtime_error("the collective was aborted");
        if (work->averaged.defined()) {
          work->averaged.div_(work->divisor);
          work->averaged = at::Tensor();
        }
      },
      fnet::kCollective);
}

extern "C" FnetError* fnet_work_free(FnetWork* work) {
  return fnet::guarded([&] { delete work; }, fnet::kCollective);
}

extern "C" FnetError* fnet_group_all_reduce_sum(FnetGroup* group, TensorPtr tensor, fnet::Watch watch,
                                                TensorPtr* out) {
  return fnet::guarded(
      [&] {
        const auto number = static_cast<int64_t>(reinterpret_cast<intptr_t>(watch));
        *out = new at::Tensor(fnet::AllReduceSum::apply(*tensor, group->group, number));
      },
      fnet::kCollective);
}

// The deadline of collectives that are given none, as the reducer's.
extern "C" FnetError* fnet_group_set_timeout(FnetGroup* group, int64_t timeout_ms) {
  return fnet::guarded([&] { group->group->setTimeout(fnet::milliseconds(timeout_ms)); }, fnet::kCollective);
}

// Breaks off the collectives of tensors on CUDA, or those of tensors on the CPU: each kind by itself, so that one which
// fails or hangs does not keep the other.
extern "C" FnetError* fnet_group_abort(FnetGroup* group, bool cuda) {
  return fnet::guarded([&] { group->group->getBackend(cuda ? c10::kCUDA : c10::kCPU)->abort(); }, fnet::kCollective);
}

// Of tensors on the CPU: NCCL's has no deadline, and the end of the process does as well.
extern "C" FnetError* fnet_group_shutdown(FnetGroup* group) {
  return fnet::guarded([&] { group->group->getBackend(c10::kCPU)->shutdown(); }, fnet::kCollective);
}

// What the backend for CUDA has noticed by itself: a number of c10d::ErrorType, 0 for nothing.
extern "C" FnetError* fnet_group_cuda_error(FnetGroup* group, int* out) {
  return fnet::guarded([&] { *out = static_cast<int>(group->group->getBackend(c10::kCUDA)->getError()); },
                       fnet::kCollective);
}

// Another handle to the same group.
extern "C" FnetError* fnet_group_clone(FnetGroup* group, FnetGroup** out) {
  return fnet::guarded([&] { *out = new FnetGroup{group->group}; });
}

extern "C" FnetError* fnet_group_free(FnetGroup* group) {
  return fnet::guarded([&] { delete group; }, fnet::kCollective);
}
