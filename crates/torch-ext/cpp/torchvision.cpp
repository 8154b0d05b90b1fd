// Calls to torchvision's operators through libtorch's dispatcher.
#include "torchvision.h"

#include "bridge.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fnet {
namespace {

c10::OperatorHandle find_operator(const char* name) {
  auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!handle.has_value()) {
    throw EnvironmentFault(std::string("the operator ") + name +
                           " is not registered: torchvision's library must be loaded before tensors on this device "
                           "are used (cuda::load_libraries)");
  }
  return *handle;
}

using RoiAlignSchema = at::Tensor(const at::Tensor&, const at::Tensor&, double, c10::SymInt, c10::SymInt, int64_t, bool);
using RoiAlignBackwardSchema = at::Tensor(const at::Tensor&, const at::Tensor&, double, c10::SymInt, c10::SymInt,
                                          c10::SymInt, c10::SymInt, c10::SymInt, c10::SymInt, int64_t, bool);

class RoiAlignByLevel : public torch::autograd::Function<RoiAlignByLevel> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, at::TensorList levels, const at::Tensor& rois,
                            const std::optional<at::Tensor>& order, const std::optional<at::Tensor>& back,
                            const std::vector<int64_t>& counts,
                            const std::vector<double>& strides, int64_t bins) {
    static const auto op = find_operator("torchvision::roi_align").typed<RoiAlignSchema>();
    const at::AutoDispatchBelowADInplaceOrView below;
    std::vector<at::Tensor> pooled;
    std::vector<int64_t> shapes;
    for (size_t i = 0, row = 0; i < levels.size(); row += counts[i++]) {
      // The kernel wants both inputs in one type.
      const at::Tensor selected = rois.narrow(0, static_cast<int64_t>(row), counts[i]);
      pooled.push_back(op.call(levels[i].to(at::kFloat), selected, 1.0 / strides[i], bins, bins, 0, true));
      shapes.insert(shapes.end(), levels[i].sizes().begin(), levels[i].sizes().end());
    }
    context->save_for_backward({rois, order.value_or(at::Tensor())});
    context->saved_data["shapes"] = shapes;
    context->saved_data["counts"] = counts;
    context->saved_data["strides"] = strides;
    context->saved_data["bins"] = bins;
    context->saved_data["kind"] = static_cast<int64_t>(levels[0].scalar_type());
    at::Tensor all = at::cat(pooled);
    if (back) all = all.index_select(0, *back);
    return all.to(levels[0].scalar_type());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    static const auto op = find_operator("torchvision::_roi_align_backward").typed<RoiAlignBackwardSchema>();
    const torch::autograd::variable_list saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto shapes = data["shapes"].toIntVector(), counts = data["counts"].toIntVector();
    const auto strides = data["strides"].toDoubleVector();
    const int64_t bins = data["bins"].toInt();
    const auto kind = static_cast<at::ScalarType>(data["kind"].toInt());
    at::Tensor sorted = grad_outputs[0].to(at::kFloat);
    if (saved[1].defined()) sorted = sorted.index_select(0, saved[1]);
    torch::autograd::variable_list grads;
    for (size_t i = 0, row = 0; i < counts.size(); row += counts[i++]) {
      // Also with no RoI: every level stays part of the graph.
      const int64_t* shape = shapes.data() + 4 * i;
      const auto start = static_cast<int64_t>(row);
      grads.push_back(op.call(sorted.narrow(0, start, counts[i]), saved[0].narrow(0, start, counts[i]), 1.0 / strides[i],
                              bins, bins, shape[0], shape[1], shape[2], shape[3], 0, true)
                          .to(kind));
    }
    grads.resize(grads.size() + 6);  // the RoIs, their order, counts, strides and bins have no gradient
    return grads;
  }
};

}  // namespace

at::Tensor roi_align_torchvision(const std::vector<at::Tensor>& levels, const RoisByLevel& by_level,
                                 const std::vector<double>& strides, int64_t bins) {
  return RoiAlignByLevel::apply(at::TensorList(levels), by_level.rois, by_level.order, by_level.back, by_level.counts,
                                strides, bins);
}

}  // namespace fnet
