// Operators that torchvision's shared library registers with the dispatcher; used for CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace fnet {

// RoIAlign level by level through torchvision::roi_align, with its own gradient. Output [K, C, bins, bins].
at::Tensor roi_align_torchvision(const std::vector<at::Tensor>& levels, const at::Tensor& rois,
                                 const at::Tensor& roi_levels, const std::vector<double>& strides, int64_t bins);

// torchvision::nms.
at::Tensor nms_torchvision(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold);

}  // namespace fnet
