// Averages gradients over the ranks while the backward pass runs.
#include "bridge.h"
#include "process_group.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/distributed/c10d/reducer.hpp>

struct FnetReducer {
  std::unique_ptr<c10d::Reducer> reducer;
  // Called when a backward pass has computed all gradients of this rank.
  void (*on_computed)(void*) = nullptr;
  void* context = nullptr;
};

namespace {

// Buckets in the order in which the backward pass fills them: last parameters first. A function of the parameter
// list alone, so that a restarted job sums in the same order as an uninterrupted one.
std::vector<std::vector<size_t>> buckets_of(const std::vector<at::Tensor>& parameters, int64_t first_bytes,
                                            int64_t bytes) {
  auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
      parameters, {static_cast<size_t>(first_bytes), static_cast<size_t>(bytes)}));
  std::reverse(buckets.begin(), buckets.end());
  return buckets;
}

// Calls `function` at the end of the backward pass through `output`, before the reducer waits for the other ranks: what
// is queued first in a pass runs first, and the reducer queues its waiting once the last gradient is there.
void call_when_computed(const at::Tensor& output, void (*function)(void*), void* context) {
  output.register_hook([function, context](const at::Tensor&) {
    torch::autograd::Engine::get_default_engine().queue_callback([function, context] { function(context); });
  });
}

}  // namespace

extern "C" FnetError* fnet_reducer_new(FnetGroup* group, const TensorPtr* parameters, size_t count,
                                       int64_t first_bucket_bytes, int64_t bucket_bytes, FnetReducer** out) {
  return fnet::guarded([&] {
    const std::vector<at::Tensor> list = fnet::to_vector(parameters, count);
    // Buckets are rebuilt after the first step unless find_unused_parameters is on; a rebuilt layout would change the
    // order of summation between a process's first and second step.
    *out = new FnetReducer{std::make_unique<c10d::Reducer>(
        list, buckets_of(list, first_bucket_bytes, bucket_bytes), group->group, std::vector<bool>(count, false),
        bucket_bytes, /*find_unused_parameters=*/true, /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(), first_bucket_bytes, /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false, std::vector<int64_t>())};
  });
}

// Makes the next backward pass, from `outputs`, reduce the gradients; a pass without this call only accumulates them.
extern "C" FnetError* fnet_reducer_prepare(FnetReducer* reducer, const TensorPtr* outputs, size_t count) {
  return fnet::guarded([&] {
    const std::vector<at::Tensor> list = fnet::to_vector(outputs, count);
    reducer->reducer->prepare_for_backward(list);
    if (reducer->on_computed != nullptr && !list.empty()) {
      call_when_computed(list.front(), reducer->on_computed, reducer->context);
    }
  }, FnetErrorKind::kCollective);
}

// Has `function` called with `context` in every reduced pass, when all gradients of this rank are computed.
extern "C" void fnet_reducer_on_computed(FnetReducer* reducer, void (*function)(void*), void* context) {
  reducer->on_computed = function;
  reducer->context = context;
}

extern "C" FnetError* fnet_reducer_free(FnetReducer* reducer) {
  return fnet::guarded([&] { delete reducer; }, FnetErrorKind::kCollective);
}

// Writes the bucket of every parameter to `out`, in the order of reduction.
extern "C" FnetError* fnet_bucket_layout(const TensorPtr* parameters, size_t count, int64_t first_bucket_bytes,
                                         int64_t bucket_bytes, int64_t* out) {
  return fnet::guarded([&] {
    const auto buckets = buckets_of(fnet::to_vector(parameters, count), first_bucket_bytes, bucket_bytes);
    for (size_t bucket = 0; bucket < buckets.size(); ++bucket) {
      for (size_t parameter : buckets[bucket]) out[parameter] = static_cast<int64_t>(bucket);
    }
  });
}
