// torchvision::roi_align, which its shared library registers with the dispatcher; used for CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace fnet {

// RoIs by the level that they are read from: those of level 0 first, then those of level 1, and so on.
struct RoisByLevel {
  at::Tensor rois;              // [K, 5] float32
  // [K] int64: where each was, and where each of the caller's order is now; none if that order is this one.
  std::optional<at::Tensor> order, back;
  std::vector<int64_t> counts;  // of each level
};

// RoIAlign level by level, with one gradient for all. Output [K, C, bins, bins] in the caller's order.
at::Tensor roi_align_torchvision(const std::vector<at::Tensor>& levels, const RoisByLevel& by_level,
                                 const std::vector<double>& strides, int64_t bins);

}  // namespace fnet
