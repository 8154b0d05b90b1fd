// Where CUDA's kernels differ from the CPU's beyond their arithmetic: layouts of results, arguments that they refuse, and
// additions in no fixed order.
#include "sim.h"

#include <ATen/Context.h>
#include <ATen/native/ConvUtils.h>

#include <random>

namespace sim {
namespace {

bool is_one_of(const std::string& name, std::initializer_list<const char*> names) {
  for (const char* one : names) {
    if (name == one) return true;
  }
  return false;
}

// As cuDNN's results: memory is made in the format, so a side of 1 gets the stride that the format gives it.
Tensor in_format(const Tensor& t, at::MemoryFormat format) {
  if (!t.defined()) return t;
  Tensor result = at::empty(t.sizes(), t.options(), format);
  if (result.strides() == t.strides()) return t;
  return result.copy_(t);
}

bool is_depthwise(const Tensor& input, int64_t groups) { return groups > 1 && input.dim() == 4 && input.size(1) == groups; }

// FNET_SIM_UNORDERED=1: additions that CUDA makes by atomics come in another order each time.
bool shuffles(const std::string& base) {
  static const bool yes = setting("FNET_SIM_UNORDERED", 0) != 0;
  // torchvision's RoIAlign has no deterministic form.
  return yes && (base == "torchvision::_roi_align_backward" || !at::globalContext().deterministicAlgorithms());
}

Tensor random_order(int64_t count) {
  static std::mutex mutex;
  static std::mt19937_64 generator{std::random_device{}()};
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shuffle(order.begin(), order.end(), generator);
  return at::tensor(order, at::kLong);
}

// What CUDA's kernels say of themselves under deterministic algorithms.
void alert(const std::string& base, c10::ArrayRef<c10::IValue> arguments) {
  if (!at::globalContext().deterministicAlgorithms()) return;
  static const std::map<std::string, const char*> alerts{
      {"torchvision::_roi_align_backward", "roi_align_backward_kernel"},
      {"aten::upsample_bilinear2d_backward", "upsample_bilinear2d_backward_out_cuda"},
      {"aten::upsample_bicubic2d_backward", "upsample_bicubic2d_backward_out_cuda"},
      {"aten::adaptive_max_pool2d_backward", "adaptive_max_pool2d_backward_cuda"},
      {"aten::_adaptive_avg_pool2d_backward", "adaptive_avg_pool2d_backward_cuda"},
      {"aten::max_pool2d_with_indices_backward", "max_pool2d_with_indices_backward_cuda"},
      {"aten::nll_loss2d_forward", "nll_loss2d_forward_out_cuda_template"},
      {"aten::grid_sampler_2d_backward", "grid_sampler_2d_backward_cuda"},
      {"aten::reflection_pad2d_backward", "reflection_pad2d_backward_cuda"},
      {"aten::replication_pad2d_backward", "replication_pad2d_backward_cuda"},
      {"aten::scatter_reduce_", "scatter_reduce_two_"},
      {"aten::kthvalue", "kthvalue CUDA"},
      {"aten::histc", "_histc_cuda"}};
  const auto found = alerts.find(base);
  if (found != alerts.end()) at::globalContext().alertNotDeterministic(found->second);
  if (is_one_of(base, {"aten::cumsum", "aten::cumsum_", "aten::_cumsum"}) && arguments[0].toTensor().is_floating_point()) {
    at::globalContext().alertNotDeterministic("cumsum_cuda_kernel");
  }
  if (base == "aten::bincount" && arguments[1].isTensor() && arguments[1].toTensor().defined()) {
    at::globalContext().alertNotDeterministic("_bincount_cuda");
  }
  if (is_one_of(base, {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "aten::mv", "aten::dot", "aten::_addmm_activation"})) {
    const std::string workspace = sim_text("CUBLAS_WORKSPACE_CONFIG", "");
    if (workspace != ":4096:8" && workspace != ":16:8") {
      at::globalContext().alertNotDeterministic("a matrix product by cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8");
    }
  }
}

std::vector<std::vector<Tensor>> lists_of(c10::ArrayRef<c10::IValue> arguments) {
  std::vector<std::vector<Tensor>> lists;
  for (const auto& v : arguments) {
    if (v.isTensorList() && v.toListRef().size() > 0) lists.push_back(v.toTensorVector());
  }
  return lists;
}

// Whether the rows of several lists lie alike, which the kernels over lists take for granted.
bool alike(const std::vector<std::vector<Tensor>>& lists, size_t count, std::string* where) {
  for (size_t l = 0; l < count; ++l) {
    for (size_t i = 0; i < lists[0].size(); ++i) {
      const Tensor &a = lists[0][i], &b = lists[l][i];
      if (a.sizes() == b.sizes() && a.strides() == b.strides() && a.is_non_overlapping_and_dense() && a.device() == b.device()) continue;
      *where = c10::str("tensor ", i, " of list 0 has sizes ", a.sizes(), " and strides ", a.strides(), ", of list ", l, " ", b.sizes(), " and ",
                        b.strides());
      return false;
    }
  }
  return true;
}

}  // namespace

// What CUDA refuses, before anything runs.
void check_call(const std::string& base, c10::ArrayRef<c10::IValue> arguments) {
  alert(base, arguments);
  if (base.rfind("aten::_fused_", 0) == 0 && base != "aten::_fused_dropout") {
    const auto lists = lists_of(arguments);
    // Parameters, gradients and their state; of AdamW and Adam the steps come last.
    const bool adam = base.find("adam") != std::string::npos;
    const size_t count = adam && lists.size() > 1 ? lists.size() - 1 : lists.size();
    std::string where;
    TORCH_CHECK(lists.empty() || alike(lists, count, &where), base, ": params, grads and states must have same dtype, device, and layout: ", where);
    for (const auto& v : arguments) {
      if (v.isTensor() && v.toTensor().defined()) TORCH_CHECK(v.toTensor().is_cuda(), base, ": grad_scale, found_inf and lr must be on the device");
    }
    step_is_over();
  } else if (base.rfind("aten::_foreach_", 0) == 0) {
    const auto lists = lists_of(arguments);
    std::string where;
    if (lists.size() > 1 && lists[0].size() == lists[1].size() && !alike(lists, lists.size(), &where)) {
      count(Count::kOperator, base + " tensor by tensor", static_cast<int64_t>(lists[0].size()) - 1);
    }
  }
}

// Changes to arguments; the CPU's tensors of a call.
void before_kernel(const std::string& base, torch::jit::Stack& stack) {
  if (!shuffles(base)) return;
  if (is_one_of(base, {"aten::index_add", "aten::index_add_"})) {
    const Tensor order = random_order(stack[2].toTensor().numel());
    stack[3] = stack[3].toTensor().index_select(stack[1].toInt(), order);
    stack[2] = stack[2].toTensor().index_select(0, order);
  } else if (is_one_of(base, {"aten::scatter_add", "aten::scatter_add_"}) && stack[2].toTensor().dim() == 1) {
    const Tensor order = random_order(stack[2].toTensor().numel());
    stack[2] = stack[2].toTensor().index_select(0, order);
    stack[3] = stack[3].toTensor().narrow(0, 0, order.numel()).index_select(0, order);
  } else if (base == "torchvision::_roi_align_backward") {
    const Tensor order = random_order(stack[1].toTensor().size(0));
    stack[0] = stack[0].toTensor().index_select(0, order);
    stack[1] = stack[1].toTensor().index_select(0, order);
  }
}

// Layouts of results. `stack` holds what the CPU's kernel returned; for convolutions its arguments' format decides.
void format_results(const std::string& base, const std::optional<at::MemoryFormat>& format, torch::jit::Stack& stack) {
  if (base == "aten::nonzero") {
    // CUDA writes one row per dimension and transposes.
    stack[0] = stack[0].toTensor().t().contiguous().t();
  } else if (format) {
    const size_t count = base == "aten::convolution" ? 1 : 2;
    for (size_t i = 0; i < count; ++i) {
      if (stack[i].isTensor()) stack[i] = in_format(stack[i].toTensor(), *format);
    }
  }
}

// The format of a convolution's results on CUDA.
std::optional<at::MemoryFormat> convolution_format(const std::string& base, const torch::jit::Stack& stack) {
  const bool forward = base == "aten::convolution";
  if (!forward && base != "aten::convolution_backward") return {};
  const Tensor &input = stack[forward ? 0 : 1].toTensor(), &weight = stack[forward ? 1 : 2].toTensor();
  const int64_t groups = stack[forward ? 8 : 9].toInt();
  if (input.dim() != 4 || is_depthwise(input, groups)) return at::MemoryFormat::Contiguous;
  return at::native::cudnn_conv_suggest_memory_format(input, weight);
}

}  // namespace sim
