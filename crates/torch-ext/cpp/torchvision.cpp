// Calls to torchvision's operators through libtorch's dispatcher.
#include "torchvision.h"

#include "bridge.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sort.h>

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

}  // namespace

at::Tensor roi_align_torchvision(const std::vector<at::Tensor>& levels, const at::Tensor& rois,
                                 const at::Tensor& roi_levels, const std::vector<double>& strides, int64_t bins) {
  static const auto op = find_operator("torchvision::roi_align")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, c10::SymInt, c10::SymInt,
                                               int64_t, bool)>();
  // The kernel wants both inputs in one type.
  const at::Tensor boxes = rois.detach().to(levels[0].device(), at::kFloat);
  const auto pool = [&](const at::Tensor& level, const at::Tensor& selected, double stride) {
    return op.call(level.to(at::kFloat), selected, 1.0 / stride, bins, bins, 0, true);
  };
  const at::ScalarType kind = levels[0].scalar_type();
  if (levels.size() == 1) return pool(levels[0], boxes, strides[0]).to(kind);

  // The RoIs of each level are found on the host, at the price of one wait for the device instead of one per level.
  const at::Tensor host_levels = roi_levels.detach().to(at::kCPU, at::kLong);
  const at::Tensor order = std::get<1>(at::sort(host_levels, /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const at::Tensor counts = at::bincount(host_levels, {}, static_cast<int64_t>(levels.size()));
  if (counts.size(0) != static_cast<int64_t>(levels.size())) {
    throw InvalidArgument("RoIAlign: a RoI names a level beyond the " + std::to_string(levels.size()) + " given");
  }
  const at::Tensor sorted = boxes.index_select(0, order.to(boxes.device()));
  const auto* count = counts.const_data_ptr<int64_t>();
  std::vector<at::Tensor> pooled;
  for (size_t i = 0, row = 0; i < levels.size(); row += count[i++]) {
    // Also with no RoI: every level stays part of the graph.
    pooled.push_back(pool(levels[i], sorted.narrow(0, static_cast<int64_t>(row), count[i]), strides[i]));
  }
  return at::cat(pooled).index_select(0, at::argsort(order).to(boxes.device())).to(kind);
}

at::Tensor nms_torchvision(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  static const auto op = find_operator("torchvision::nms").typed<at::Tensor(const at::Tensor&, const at::Tensor&, double)>();
  return op.call(boxes, scores, iou_threshold);
}

}  // namespace fnet
