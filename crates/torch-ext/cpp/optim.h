// How gradients lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace fnet {

// The values of `grad` with the very strides of `like`; without a copy if they lie in the same order.
at::Tensor in_order_of(const at::Tensor& like, const at::Tensor& grad);

}  // namespace fnet
