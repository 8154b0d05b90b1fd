// Averages gradients over the ranks while the backward pass runs.
#include "bridge.h"
#include "optim.h"
#include "process_group.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

// Gradients that travel together: one row, in which each parameter has a place with its own strides. What is sent is that
// row, or one of bfloat16 with places of its own.
struct FnetBucket {
  at::Tensor row, sent;
  std::vector<at::Tensor> parameters, places, sent_places;
  size_t missing = 0;  // gradients that this pass has not computed yet
  c10::intrusive_ptr<c10d::Work> sum;
};

struct FnetReducer {
  FnetReducer(c10::intrusive_ptr<c10d::ProcessGroup> group, const std::vector<at::Tensor>& parameters,
              const int64_t* bucket_of, bool as_bfloat16);
  ~FnetReducer();

  // Called when a gradient of this bucket is computed: starts all buckets that are complete, in their order.
  void computed(FnetBucket& bucket) {
    if (!reducing) return;
    --bucket.missing;
    while (started < buckets.size() && buckets[started].missing == 0) start_next();
  }

  void backward(const at::Tensor& loss) {
    for (auto& bucket : buckets) bucket.missing = bucket.parameters.size();
    started = 0;
    reducing = true;
    try {
      loss.backward();
      // Parameters that took no part in this pass count with what they have, or as zero.
      while (started < buckets.size()) start_next();
    } catch (...) {
      reducing = false;
      throw;
    }
    reducing = false;
  }

  void wait() {
    const at::NoGradGuard no_grad;
    for (auto& bucket : buckets) {
      // NCCL's wait for a sum that has failed would abort it in this thread, which may take for ever.
      if (const auto error = bucket.sum->exception()) std::rethrow_exception(error);
      if (!bucket.sum->wait()) throw std::runtime_error("the all-reduce of gradients was aborted");
      bucket.sum.reset();
      if (!bucket.sent.is_same(bucket.row)) bucket.row.copy_(bucket.sent);
    }
  }

 private:
  void start_next();

  const c10::intrusive_ptr<c10d::ProcessGroup> group;
  std::vector<FnetBucket> buckets;  // in the order of reduction
  bool backend_divides = false;
  bool reducing = false;
  size_t started = 0;
};

namespace {

class Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(FnetReducer& reducer, FnetBucket& bucket) : reducer_(reducer), bucket_(bucket) {}
  void operator()(const at::Tensor&) override { reducer_.computed(bucket_); }

 private:
  FnetReducer& reducer_;
  FnetBucket& bucket_;
};

}  // namespace

FnetReducer::FnetReducer(c10::intrusive_ptr<c10d::ProcessGroup> of, const std::vector<at::Tensor>& parameters,
                         const int64_t* bucket_of, bool as_bfloat16)
    : group(std::move(of)) {
  if (parameters.empty()) throw fnet::InvalidArgument("no parameter to reduce the gradients of");
  const auto options = parameters[0].options().requires_grad(false);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& parameter = parameters[i];
    if (!parameter.is_leaf() || !parameter.requires_grad() || parameter.scalar_type() != parameters[0].scalar_type() ||
        parameter.device() != parameters[0].device() || !parameter.is_non_overlapping_and_dense()) {
      throw fnet::InvalidArgument("parameter " + std::to_string(i) +
                                  ": gradients are reduced of leaves of one type on one device, without gaps in memory");
    }
    const auto bucket = static_cast<size_t>(bucket_of[i]);
    if (bucket >= buckets.size()) buckets.resize(bucket + 1);
    buckets[bucket].parameters.push_back(parameter);
  }
  for (auto& bucket : buckets) {
    int64_t size = 0;
    for (const auto& parameter : bucket.parameters) size += parameter.numel();
    const auto places = [&bucket](const at::Tensor& row) {
      std::vector<at::Tensor> places;
      int64_t offset = 0;
      for (const auto& parameter : bucket.parameters) {
        places.push_back(row.as_strided(parameter.sizes(), parameter.strides(), offset));
        offset += parameter.numel();
      }
      return places;
    };
    bucket.row = at::zeros({size}, options);
    bucket.places = places(bucket.row);
    bucket.sent = as_bfloat16 ? at::zeros({size}, options.dtype(at::kBFloat16)) : bucket.row;
    bucket.sent_places = as_bfloat16 ? places(bucket.sent) : bucket.places;
  }
  backend_divides = group->getBackend(options.device().type())->getBackendName() == "nccl";
  // Last, for the hooks must not outlive this object.
  for (auto& bucket : buckets) {
    for (const auto& parameter : bucket.parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(*this, bucket));
    }
  }
}

FnetReducer::~FnetReducer() {
  for (const auto& bucket : buckets) {
    for (const auto& parameter : bucket.parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }
}

void FnetReducer::start_next() {
  at::NoGradGuard no_grad;
  auto& bucket = buckets[started++];
  std::vector<at::Tensor> to, from;
  for (size_t i = 0; i < bucket.places.size(); ++i) {
    at::Tensor& grad = bucket.parameters[i].mutable_grad();
    at::Tensor& sent = bucket.sent_places[i];
    if (!grad.defined()) {
      sent.zero_();
    } else if (!backend_divides) {
      // Copied and divided in one go; in float32 also where bfloat16 is sent.
      at::mul_out(sent, fnet::in_order_of(bucket.places[i], grad), at::native::wrapped_scalar_tensor(1.0 / group->getSize()));
    } else if (!grad.is_same(sent)) {
      to.push_back(sent);
      from.push_back(fnet::in_order_of(bucket.places[i], grad));
    }
    grad = bucket.places[i];
  }
  if (!to.empty()) at::_foreach_copy_(to, from);
  c10d::AllreduceOptions options;
  if (backend_divides) options.reduceOp = c10d::ReduceOp::AVG;
  std::vector<at::Tensor> rows{bucket.sent};
  bucket.sum = group->allreduce(rows, options);
}

// `bucket_of`: the bucket of each parameter; buckets are reduced in the order of their numbers.
extern "C" FnetError* fnet_reducer_new(FnetGroup* group, const TensorPtr* parameters, size_t count,
                                       const int64_t* bucket_of, bool as_bfloat16, FnetReducer** out) {
  return fnet::guarded(
      [&] { *out = new FnetReducer(group->group, fnet::to_vector(parameters, count), bucket_of, as_bfloat16); });
}

// Returns when all gradients of this rank are computed, and all sums are under way.
extern "C" FnetError* fnet_reducer_backward(FnetReducer* reducer, TensorPtr loss) {
  return fnet::guarded([&] { reducer->backward(*loss); });
}

// Returns when the gradients are the means over the ranks, for what uses them on the current stream.
extern "C" FnetError* fnet_reducer_wait(FnetReducer* reducer) {
  return fnet::guarded([&] { reducer->wait(); }, FnetErrorKind::kCollective);
}

extern "C" FnetError* fnet_reducer_free(FnetReducer* reducer) {
  return fnet::guarded([&] { delete reducer; }, FnetErrorKind::kCollective);
}
